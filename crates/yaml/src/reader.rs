//! Reads fields out of [`Node`]s and notes everything that is wrong on the way.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::{Node, SourceFile, Span, Value, YamlError, YamlErrors, suggest};

/// One file's errors, as they are found.
#[derive(Debug)]
pub struct Reader<'a> {
    file: &'a SourceFile,
    errors: YamlErrors,
    count: usize,
}

/// How many errors of one file are kept. Who made so many mends them in more than one go.
const MAX_ERRORS: usize = 100;

/// A text and where it stood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// What it says.
    pub text: String,
    /// Where.
    pub span: Span,
}

impl<'a> Reader<'a> {
    /// Nothing is wrong yet.
    pub fn new(file: &'a SourceFile) -> Self {
        Self { file, errors: YamlErrors::default(), count: 0 }
    }

    /// The file that is read.
    pub fn file(&self) -> &'a SourceFile {
        self.file
    }

    /// Notes an error at `span`.
    pub fn error(&mut self, span: &Span, message: impl Into<String>) {
        self.push(YamlError::new(self.file, span.clone(), message));
    }

    /// Notes an error at `span`, and what to do about it.
    pub fn error_with_help(&mut self, span: &Span, message: impl Into<String>, help: impl Into<String>) {
        self.push(YamlError::new(self.file, span.clone(), message).with_help(help));
    }

    /// Notes an error.
    pub fn push(&mut self, error: YamlError) {
        self.count += 1;
        if self.count <= MAX_ERRORS {
            self.errors.push(error);
        }
    }

    /// How many errors were noted so far: to learn whether a part was read without any.
    pub fn error_count(&self) -> usize {
        self.count
    }

    /// All that was noted, in the order of the file. Of very many the first hundred, and how many more there are.
    pub fn into_errors(mut self) -> YamlErrors {
        self.errors.sort();
        if let Some(more) = self.count.checked_sub(MAX_ERRORS).filter(|more| *more > 0) {
            self.errors.push(YamlError::whole_file(self.file, format!("there are {more} more errors in this file")));
        }
        self.errors
    }

    /// The fields of a mapping. Notes keys that stand twice, and notes it if `node` is none.
    pub fn mapping<'n>(&mut self, node: &'n Node, what: &str) -> Option<Mapping<'n>> {
        let Value::Mapping(entries) = &node.value else {
            self.expected(node, what, "a mapping");
            return None;
        };
        let mut fields: Vec<Field<'n>> = Vec::with_capacity(entries.len());
        let mut seen: HashMap<&str, &Node> = HashMap::with_capacity(entries.len());
        for (key, value) in entries {
            let Value::Scalar(name) = &key.value else {
                self.error(&key.span, format!("a field's name must be a text, not {}", key.value.kind()));
                continue;
            };
            match seen.entry(name) {
                Entry::Vacant(vacant) => {
                    vacant.insert(key);
                    fields.push(Field { name, key, value, taken: false });
                }
                Entry::Occupied(first) => {
                    let message = format!("the field `{name}` stands twice");
                    let error = YamlError::new(self.file, key.span.clone(), message).with_label("again here");
                    let first = first.get().span.clone();
                    self.push(error.with_also(first, "first here").with_help("keep one of them"));
                }
            }
        }
        Some(Mapping { span: node.span.clone(), fields, known: Vec::new() })
    }

    /// The items of a list. Notes it if `node` is none.
    pub fn list<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n [Node]> {
        match &node.value {
            Value::List(items) => Some(items),
            _ => {
                self.expected(node, what, "a list");
                None
            }
        }
    }

    /// A text (or a number or boolean, as it was written). Notes it if `node` is none.
    pub fn text(&mut self, node: &Node, what: &str) -> Option<Text> {
        match &node.value {
            Value::Scalar(text) => Some(Text { text: text.clone(), span: node.span.clone() }),
            _ => {
                self.expected(node, what, "a text");
                None
            }
        }
    }

    /// A list of texts. Notes it if `node` or an item is none.
    pub fn texts(&mut self, node: &Node, what: &str) -> Option<Vec<Text>> {
        let items = self.list(node, what)?;
        Some(items.iter().filter_map(|item| self.text(item, what)).collect())
    }

    /// One of `values`. Notes it, with a suggestion, if it is another.
    pub fn one_of<T: Copy>(&mut self, node: &Node, what: &str, values: &[(&'static str, T)]) -> Option<T> {
        let text = self.text(node, what)?;
        let found = values.iter().find(|(name, _)| *name == text.text).map(|(_, value)| *value);
        if found.is_none() {
            let names = values.iter().map(|(name, _)| *name);
            let error = YamlError::new(self.file, text.span, format!("`{}` is not a value of `{what}`", text.text));
            self.push(error.with_help_if(suggest(&text.text, names)));
        }
        found
    }

    /// Notes unknown fields, with suggestions from those that were asked for.
    pub fn finish(&mut self, mapping: Mapping<'_>) {
        // What stands there already is not what was meant.
        let absent: Vec<&str> = mapping.known.iter().copied().filter(|name| !mapping.has(name)).collect();
        for field in mapping.fields.iter().filter(|field| !field.taken) {
            let help = suggest(field.name, absent.iter().copied());
            let error = YamlError::new(self.file, field.key.span.clone(), format!("unknown field `{}`", field.name));
            self.push(error.with_label("not known here").with_help_if(help));
        }
    }

    fn expected(&mut self, node: &Node, what: &str, kind: &str) {
        let help = match (&node.value, kind) {
            (Value::Scalar(text), "a list") => Some(format!("write `[{text:?}]`")),
            _ => None,
        };
        let message = format!("`{what}` must be {kind}, not {}", node.value.kind());
        self.push(YamlError::new(self.file, node.span.clone(), message).with_help_if(help));
    }
}

/// The fields of a mapping, to be taken one by one.
#[derive(Debug)]
pub struct Mapping<'n> {
    span: Span,
    fields: Vec<Field<'n>>,
    known: Vec<&'static str>,
}

#[derive(Debug)]
struct Field<'n> {
    name: &'n str,
    key: &'n Node,
    value: &'n Node,
    taken: bool,
}

impl<'n> Mapping<'n> {
    /// Where it begins.
    pub fn span(&self) -> &Span {
        &self.span
    }

    /// Whether it has no fields at all.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// Whether a field of that name stands in it.
    pub fn has(&self, name: &str) -> bool {
        self.fields.iter().any(|field| field.name == name)
    }

    /// The value of the field `name`, if it stands there.
    pub fn take(&mut self, name: &'static str) -> Option<&'n Node> {
        self.take_with_key(name).map(|(_, value)| value)
    }

    /// The key and the value of the field `name`, if it stands there.
    pub fn take_with_key(&mut self, name: &'static str) -> Option<(&'n Node, &'n Node)> {
        self.known.push(name);
        let field = self.fields.iter_mut().find(|field| field.name == name)?;
        field.taken = true;
        Some((field.key, field.value))
    }

    /// Every field that was not taken, for a mapping whose keys are free.
    pub fn take_rest(&mut self) -> Vec<(Text, &'n Node)> {
        let rest = self.fields.iter_mut().filter(|field| !field.taken);
        rest.map(|field| {
            field.taken = true;
            (Text { text: field.name.to_owned(), span: field.key.span.clone() }, field.value)
        })
        .collect()
    }
}
