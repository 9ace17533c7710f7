//! From a file to a type that derives `Deserialize`.

use serde::de::DeserializeOwned;
use serde_saphyr::budget::BudgetBreach;
use serde_saphyr::options::DuplicateKeyPolicy;
use serde_saphyr::{Error, Location};

use crate::limits::{MAX_DEPTH, MAX_DOCUMENTS, MAX_FILE_BYTES, options};
use crate::{SourceFile, Span, YamlError, suggest};

/// Reads a file that holds one document.
///
/// Unknown fields are refused where `T` says `#[serde(deny_unknown_fields)]`, as every configuration should.
///
/// # Errors
/// The first thing that is wrong. A file with no document is wrong too.
pub fn parse<T: DeserializeOwned>(file: &SourceFile) -> Result<T, YamlError> {
    check_size(file)?;
    if holds_nothing(file) {
        return Err(YamlError::whole_file(file, "the file holds no document"));
    }
    serde_saphyr::from_str_with_options(file.text(), options(DuplicateKeyPolicy::Error))
        .map_err(|error| explain(file, &error))
}

/// Reads a file that holds any number of documents, each after `---`. Empty documents are skipped.
///
/// # Errors
/// The first thing that is wrong.
pub fn parse_many<T: DeserializeOwned>(file: &SourceFile) -> Result<Vec<T>, YamlError> {
    check_size(file)?;
    serde_saphyr::from_multiple_with_options(file.text(), options(DuplicateKeyPolicy::Error))
        .map_err(|error| explain(file, &error))
}

pub(crate) fn check_size(file: &SourceFile) -> Result<(), YamlError> {
    let bytes = file.text().len();
    if bytes > MAX_FILE_BYTES {
        let message = format!("the file has {bytes} bytes, and at most {MAX_FILE_BYTES} are read");
        return Err(YamlError::whole_file(file, message).with_help("split it into several files"));
    }
    Ok(())
}

/// Blank lines, comments and document marks only: no type should be made of that, even if it has no mandatory field.
fn holds_nothing(file: &SourceFile) -> bool {
    let mut lines = file.text().lines().map(str::trim);
    lines.all(|line| line.is_empty() || line.starts_with('#') || line == "---" || line == "...")
}

/// The span of a location that the parser gave, as long as what stands there on its line.
pub(crate) fn span_of(file: &SourceFile, location: Location) -> Option<Span> {
    let start = match location.span().byte_offset() {
        Some(offset) => usize::try_from(offset).ok()?,
        None => file.offset(usize::try_from(location.line()).ok()?, usize::try_from(location.column()).ok()?)?,
    };
    let length = location.span().byte_len().and_then(|len| usize::try_from(len).ok()).unwrap_or(0);
    let span = file.clamp(&(start..start.saturating_add(length)));
    let text = file.text().get(span.clone())?;
    let line = text.lines().next().unwrap_or_default().trim_end();
    if !line.is_empty() {
        return Some(span.start..span.start + line.len());
    }
    let rest = file.text().get(span.start..).unwrap_or_default();
    let word: usize = rest.chars().take_while(|c| !c.is_whitespace() && *c != ':').map(char::len_utf8).sum();
    Some(span.start..span.start + word)
}

/// In our words, with a suggestion.
pub(crate) fn explain(file: &SourceFile, error: &Error) -> YamlError {
    let error = innermost(error);
    let place = error.location().and_then(|location| span_of(file, location));
    let at = |message: String| match &place {
        Some(span) => YamlError::new(file, span.clone(), message),
        None => YamlError::whole_file(file, message),
    };
    match error {
        Error::SerdeUnknownField { field, expected, .. } => at(format!("unknown field `{field}`"))
            .with_label("not known here")
            .with_help_if(suggest(field, expected.iter().copied())),
        Error::SerdeUnknownVariant { variant, expected, .. } => at(format!("unknown value `{variant}`"))
            .with_label("not a value that is known here")
            .with_help_if(suggest(variant, expected.iter().copied())),
        Error::SerdeMissingField { field, .. } => {
            at(format!("`{field}` is missing")).with_label("belongs to this").with_help(format!("add `{field}:`"))
        }
        Error::SerdeInvalidType { unexpected, expected, .. }
        | Error::SerdeInvalidValue { unexpected, expected, .. } => {
            at(format!("expected {expected}, found {unexpected}"))
        }
        Error::DuplicateMappingKey { key, .. } => {
            let key = key.as_ref().map(|key| format!(" `{key}`")).unwrap_or_default();
            at(format!("the field{key} stands twice")).with_help("keep one of them")
        }
        Error::InvalidBooleanStrict { .. } => at("expected a boolean".to_owned()).with_help("write `true` or `false`"),
        Error::NullIntoString { .. } => at("a text is missing here".to_owned()).with_help("write a value, or \"\""),
        Error::Eof { .. } => YamlError::whole_file(file, "the file holds no document"),
        Error::MultipleDocuments { .. } => at("a second document starts here".to_owned())
            .with_help("this file holds one document: remove the `---` and what follows, or move it to its own file"),
        Error::UnsupportedTag { tag, .. } => {
            at(format!("the tag `{tag}` is not supported")).with_help("remove the tag")
        }
        Error::UnknownAnchor { .. } => at("this alias has no anchor before it".to_owned())
            .with_help("a text that starts with `*` must stand in quotes"),
        Error::Budget { breach, .. } => at(too_much(breach)),
        Error::AliasReplayCounterOverflow { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => {
            at("the aliases of this file expand to too much".to_owned()).with_help("write the values out")
        }
        other => at(plain_words(other)),
    }
}

fn innermost(error: &Error) -> &Error {
    match error {
        Error::WithSnippet { error, .. } | Error::AliasError { error, .. } => innermost(error),
        other => other,
    }
}

fn too_much(breach: &BudgetBreach) -> String {
    match breach {
        BudgetBreach::Depth { .. } => format!("nested deeper than {} levels", MAX_DEPTH),
        BudgetBreach::Documents { .. } => {
            format!("more than {} documents in one file", MAX_DOCUMENTS)
        }
        BudgetBreach::Aliases { .. }
        | BudgetBreach::Anchors { .. }
        | BudgetBreach::AliasAnchorRatio { .. }
        | BudgetBreach::RecordedAnchorEvents { .. }
        | BudgetBreach::RecordedAnchorBytes { .. }
        | BudgetBreach::MergeKeys { .. } => "too many anchors, aliases or merge keys in one file".to_owned(),
        BudgetBreach::SequenceUnbalanced => "a list or mapping ends that never started".to_owned(),
        _ => "the file holds too much: split it".to_owned(),
    }
}

/// The parser's own message, without its advice to programmers and without the place, which we show ourselves.
fn plain_words(error: &Error) -> String {
    let options = serde_saphyr::render_options! {
        formatter: &serde_saphyr::UserMessageFormatter,
        snippets: serde_saphyr::SnippetMode::Off,
    };
    let text = error.render_with_options(options);
    match text.rfind(" at line ") {
        _ if text.contains("recursion limit") => format!("nested deeper than {MAX_DEPTH} levels"),
        Some(place) => text.get(..place).unwrap_or(&text).to_owned(),
        None => text,
    }
}
