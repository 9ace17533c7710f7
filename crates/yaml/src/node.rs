//! Documents as trees that remember where each part stood, for readers that report everything at once.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;
use serde_saphyr::options::DuplicateKeyPolicy;

use crate::limits::options;
use crate::parse::{check_size, explain, span_of};
use crate::{SourceFile, Span, YamlError};

/// A part of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Where it stands. For a mapping or list: where it begins.
    pub span: Span,
    /// What it is.
    pub value: Value,
}

/// What a [`Node`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Nothing: an empty value, `~` or `null`.
    Null,
    /// A text, number or boolean, as it was written: `1.10` stays `1.10`.
    Scalar(String),
    /// `- a` or `[a]`.
    List(Vec<Node>),
    /// `a: b` or `{a: b}`, in the order of the file. A key may stand twice: it is the reader who refuses that.
    Mapping(Vec<(Node, Node)>),
}

impl Value {
    /// What it is, in words.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Scalar(_) => "a value",
            Self::List(_) => "a list",
            Self::Mapping(_) => "a mapping",
        }
    }
}

/// Reads all documents of a file. Empty documents are skipped.
///
/// # Errors
/// When the text is not YAML, or asks for too much.
pub fn documents(file: &SourceFile) -> Result<Vec<Node>, YamlError> {
    check_size(file)?;
    let raw: Vec<Spanned<Raw>> =
        serde_saphyr::from_multiple_with_options(file.text(), options(DuplicateKeyPolicy::PassThrough))
            .map_err(|error| explain(file, &error))?;
    let nodes = raw.into_iter().map(|raw| node(file, raw));
    Ok(nodes.filter(|node| node.value != Value::Null).collect())
}

fn node(file: &SourceFile, raw: Spanned<Raw>) -> Node {
    let span = span_of(file, raw.referenced).or_else(|| span_of(file, raw.defined)).unwrap_or(0..0);
    let value = match raw.value {
        Raw::Null => Value::Null,
        Raw::Text(text) => Value::Scalar(text),
        Raw::Plain(understood) => {
            let written = span_of(file, raw.defined).and_then(|span| file.text().get(span));
            Value::Scalar(written.map_or(understood, |text| text.trim().to_owned()))
        }
        Raw::List(items) => Value::List(items.into_iter().map(|item| node(file, item)).collect()),
        Raw::Mapping(entries) => {
            Value::Mapping(entries.into_iter().map(|(key, value)| (node(file, key), node(file, value))).collect())
        }
    };
    Node { span, value }
}

/// What the parser tells us, before spans are resolved.
enum Raw {
    Null,
    /// A text.
    Text(String),
    /// Something the parser took for a number or boolean: the file has how it was written.
    Plain(String),
    List(Vec<Spanned<Raw>>),
    Mapping(Vec<(Spanned<Raw>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("YAML")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_str<E>(self, text: &str) -> Result<Raw, E> {
        Ok(Raw::Text(text.to_owned()))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Plain(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Plain(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Plain(value.to_string()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Raw, E> {
        Ok(Raw::Plain(value.to_string()))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Raw, E> {
        Ok(Raw::Plain(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Plain(value.to_string()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Mapping(entries))
    }
}
