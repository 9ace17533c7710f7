//! YAML that people write: parsed strictly, refused with a caret and a suggestion.
//!
//! ```text
//!               ┌─ parse, parse_many ──> T: Deserialize       (configuration: stops at the first error)
//! SourceFile ───┤
//!               └─ documents ──> Node ──> Reader, Mapping     (policy: notes every error of every document)
//!                                              │
//!      YamlError, YamlErrors <─────────────────┘ ──> render: line, caret, suggestion
//! ```
//!
//! # Invariants
//! - Nothing is guessed or skipped: a duplicate key, an unknown tag, `yes` for a boolean are errors.
//! - Every error knows its file and, unless it is about all of it, its line and column.
//! - A file cannot ask for more than [`MAX_FILE_BYTES`], [`MAX_DEPTH`] and [`MAX_DOCUMENTS`]; aliases cannot multiply.
//! - Pure: files are read by the caller.

mod error;
mod limits;
mod node;
mod parse;
mod reader;
mod render;
mod source;
mod suggest;

pub use error::{YamlError, YamlErrors};
pub use limits::{MAX_DEPTH, MAX_DOCUMENTS, MAX_FILE_BYTES};
pub use node::{Node, Value, documents};
pub use parse::{parse, parse_many};
pub use reader::{Mapping, Reader, Text};
pub use render::{Style, render, render_all};
pub use serde_saphyr::Spanned;
pub use source::{SourceFile, Span};
pub use suggest::suggest;
