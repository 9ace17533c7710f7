//! Names as Kubernetes has them, so that a mesh file can become a cluster without renaming anything.

use alcazar_yaml::{Node, Reader, Text, YamlError};

/// A DNS label: `reviews-v1`.
pub(super) fn label(reader: &mut Reader<'_>, node: &Node, what: &str) -> Option<Text> {
    named(
        reader,
        node,
        what,
        is_label,
        "lower-case letters, digits and `-`, at most 63, a letter or digit at both ends",
    )
}

/// DNS labels joined by dots: a service account may have a name like `reviews.v1`.
pub(super) fn subdomain(reader: &mut Reader<'_>, node: &Node, what: &str) -> Option<Text> {
    let is_subdomain = |text: &str| text.len() <= 253 && text.split('.').all(is_label);
    named(reader, node, what, is_subdomain, "lower-case letters, digits, `-` and `.`, a letter or digit at both ends")
}

/// Whether a text is a DNS label (RFC 1123 §2.1, lower case).
pub(super) fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// Whether a text can be a label's value, or the part of its key after the slash; a value may be empty.
pub(super) fn is_label_value(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let end = |byte: Option<u8>| byte.is_none_or(|byte| byte.is_ascii_alphanumeric());
    text.len() <= 63 && text.bytes().all(inner) && end(text.bytes().next()) && end(text.bytes().next_back())
}

/// Whether a text can be a label's key: `app`, `app.kubernetes.io/name`.
pub(super) fn is_label_key(text: &str) -> bool {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    let prefix_fits = prefix.is_none_or(|prefix| prefix.len() <= 253 && prefix.split('.').all(is_label));
    prefix_fits && !name.is_empty() && is_label_value(name)
}

fn named(reader: &mut Reader<'_>, node: &Node, what: &str, fits: impl Fn(&str) -> bool, rule: &str) -> Option<Text> {
    let text = reader.text(node, what)?;
    if fits(&text.text) {
        return Some(text);
    }
    let mended = mend(&text.text);
    let help = if fits(&mended) { format!("did you mean `{mended}`?") } else { format!("a name has {rule}") };
    let message = format!("`{}` cannot be a `{what}`", text.text);
    reader.push(YamlError::new(reader.file(), text.span, message).with_label("not a DNS name").with_help(help));
    None
}

/// The name that was most likely meant.
fn mend(text: &str) -> String {
    let plain = text.trim().to_ascii_lowercase();
    plain.chars().map(|c| if c == '_' || c == ' ' { '-' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_kubernetes_has_them() {
        let longest = "a".repeat(63);
        for (text, label, value, key) in [
            ("reviews-v1", true, true, true),
            ("9", true, true, true),
            (&longest, true, true, true),
            ("", false, true, false),
            ("-a", false, false, false),
            ("a-", false, false, false),
            ("Reviews", false, true, true),
            ("a_b", false, true, true),
            ("a.b", false, true, true),
            ("app.kubernetes.io/name", false, false, true),
            ("/name", false, false, false),
            ("a/", false, false, false),
            ("ä", false, false, false),
            (&"a".repeat(64), false, false, false),
        ] {
            assert_eq!((is_label(text), is_label_value(text), is_label_key(text)), (label, value, key), "{text:?}");
        }
    }
}
