//! What is wrong with a file, where, and how to mend it.

use std::fmt;

use miette::{Diagnostic, LabeledSpan, SourceCode};

use crate::{SourceFile, Span};

/// One thing that is wrong, with its place and, where we have one, a suggestion.
///
/// As an error it reads `mesh.yaml:3:7: unknown field ...`; as a miette [`Diagnostic`], or through
/// [`render`](crate::render()), it shows the line with a caret.
#[derive(Clone, PartialEq, Eq)]
pub struct YamlError(Box<Inner>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Inner {
    file: SourceFile,
    span: Option<Span>,
    message: String,
    label: Option<String>,
    help: Option<String>,
    also: Option<(Span, String)>,
}

impl YamlError {
    /// Something is wrong at `span`. The message is lower case, without a full stop.
    pub fn new(file: &SourceFile, span: Span, message: impl Into<String>) -> Self {
        let span = Some(file.clamp(&span));
        Self(Box::new(Inner { file: file.clone(), span, message: message.into(), label: None, help: None, also: None }))
    }

    /// Something is wrong with a value that [`parse`](crate::parse()) read into a [`Spanned`](crate::Spanned).
    pub fn at<T>(file: &SourceFile, value: &crate::Spanned<T>, message: impl Into<String>) -> Self {
        match crate::parse::span_of(file, value.referenced) {
            Some(span) => Self::new(file, span, message),
            None => Self::whole_file(file, message),
        }
    }

    /// Something is wrong with the file as a whole.
    pub fn whole_file(file: &SourceFile, message: impl Into<String>) -> Self {
        let mut error = Self::new(file, 0..0, message);
        error.0.span = None;
        error
    }

    /// What stands at the caret; without one, `here`.
    #[must_use]
    pub fn with_label(mut self, label: impl Into<String>) -> Self {
        self.0.label = Some(label.into());
        self
    }

    /// What to do about it.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.0.help = Some(help.into());
        self
    }

    /// What to do about it, if we know.
    #[must_use]
    pub fn with_help_if(mut self, help: Option<String>) -> Self {
        self.0.help = help.or(self.0.help);
        self
    }

    /// A second place in the same file that has to do with it.
    #[must_use]
    pub fn with_also(mut self, span: Span, label: impl Into<String>) -> Self {
        self.0.also = Some((self.0.file.clamp(&span), label.into()));
        self
    }

    /// The file it is about.
    pub fn file(&self) -> &SourceFile {
        &self.0.file
    }

    /// Where in the file, unless it is about the whole.
    pub fn span(&self) -> Option<Span> {
        self.0.span.clone()
    }

    /// Line and column, both from 1, unless it is about the whole file.
    pub fn position(&self) -> Option<(usize, usize)> {
        self.0.span.as_ref().map(|span| self.0.file.position(span.start))
    }

    /// What is wrong, without the place.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Whether the file, or what is said of it, holds characters that could steer a terminal.
    pub(crate) fn has_control_characters(&self) -> bool {
        let Inner { file, span: _, message, label, help, also } = &*self.0;
        let texts = [Some(file.name()), Some(file.text()), Some(message), label.as_deref(), help.as_deref()];
        let texts = texts.into_iter().flatten().chain(also.as_ref().map(|(_, label)| label.as_str()));
        texts.flat_map(str::chars).any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t'))
    }

    /// What to do about it.
    pub fn suggestion(&self) -> Option<&str> {
        self.0.help.as_deref()
    }
}

impl fmt::Display for YamlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.file.name())?;
        if let Some((line, column)) = self.position() {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {}", self.0.message)?;
        if let Some(help) = &self.0.help {
            write!(f, " ({help})")?;
        }
        Ok(())
    }
}

impl fmt::Debug for YamlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "YamlError({self})")
    }
}

impl std::error::Error for YamlError {}

impl Diagnostic for YamlError {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.0.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.0.span.as_ref().map(|_| &self.0.file as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let span = self.0.span.clone()?;
        let label = self.0.label.clone().unwrap_or_else(|| "here".to_owned());
        let first = LabeledSpan::new_primary_with_span(Some(label), span);
        let second = self.0.also.clone().map(|(span, label)| LabeledSpan::new_with_span(Some(label), span));
        Some(Box::new(std::iter::once(first).chain(second)))
    }
}

/// Everything that is wrong, in the order of files and lines. Where it is an error, it is not empty.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct YamlErrors(Vec<YamlError>);

impl YamlErrors {
    /// Adds one.
    pub fn push(&mut self, error: YamlError) {
        self.0.push(error);
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many things are wrong.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Each of them.
    pub fn iter(&self) -> std::slice::Iter<'_, YamlError> {
        self.0.iter()
    }

    /// Puts the errors of one file in its order.
    pub(crate) fn sort(&mut self) {
        self.0.sort_by_key(|error| error.span().map(|span| span.start));
    }

    /// `value` if nothing is wrong.
    ///
    /// # Errors
    /// All of these, if there are any.
    pub fn or<T>(self, value: T) -> Result<T, Self> {
        if self.is_empty() { Ok(value) } else { Err(self) }
    }
}

impl From<YamlError> for YamlErrors {
    fn from(error: YamlError) -> Self {
        Self(vec![error])
    }
}

impl Extend<YamlError> for YamlErrors {
    fn extend<I: IntoIterator<Item = YamlError>>(&mut self, errors: I) {
        self.0.extend(errors);
    }
}

impl IntoIterator for YamlErrors {
    type Item = YamlError;
    type IntoIter = std::vec::IntoIter<YamlError>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// One line for each.
impl fmt::Display for YamlErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if nth == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl fmt::Debug for YamlErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.0).finish()
    }
}

impl std::error::Error for YamlErrors {}

impl Diagnostic for YamlErrors {
    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        Some(Box::new(self.0.iter().map(|error| error as &dyn Diagnostic)))
    }
}
