//! From an error to what a person sees.

use std::fmt;

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, SourceCode};

use crate::{YamlError, YamlErrors};

/// How to show errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Style {
    /// For files, pipes and tests.
    Plain,
    /// For terminals.
    Colour,
}

/// One error with its place in the file, a caret and the suggestion. Ends with a newline.
pub fn render(error: &YamlError, style: Style) -> String {
    // Once the colours are in, its control characters cannot be told from ours.
    let style = if error.has_control_characters() { Style::Plain } else { style };
    let theme = match style {
        Style::Plain => GraphicalTheme::unicode_nocolor(),
        Style::Colour => GraphicalTheme::unicode(),
    };
    let handler = GraphicalReportHandler::new_themed(theme).with_links(false).with_width(WIDTH);
    let mut out = String::new();
    if handler.render_report(&mut out, &Shown(error)).is_err() {
        // Only a source that cannot be read back fails; the words are still worth having.
        out = format!("{error}\n");
    }
    printable(out, style)
}

/// All of them, a blank line between each two.
pub fn render_all(errors: &YamlErrors, style: Style) -> String {
    errors.iter().map(|error| render(error, style)).collect::<Vec<_>>().join("\n")
}

const WIDTH: usize = 120;

/// A file must not be able to steer the terminal that its errors are shown on.
fn printable(text: String, style: Style) -> String {
    let is_steering = |c: char| c.is_control() && c != '\n' && !(style == Style::Colour && c == '\u{1b}');
    if text.contains(is_steering) { text.replace(is_steering, "\u{fffd}") } else { text }
}

/// An error whose place the picture shows, so that the words need not.
#[derive(Debug)]
struct Shown<'a>(&'a YamlError);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.span().is_none() {
            write!(f, "{}: ", self.0.file().name())?;
        }
        f.write_str(self.0.message())
    }
}

impl std::error::Error for Shown<'_> {}

impl Diagnostic for Shown<'_> {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.0.help()
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.0.source_code()
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        self.0.labels()
    }
}
