//! YAML that people write: parsed strictly, refused with a caret and a suggestion.
