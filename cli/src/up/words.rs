//! The words of an event: a sentence for what is known here, the message and its fields for all else.

use std::fmt::Write;
use std::time::SystemTime;

use alcazar_identity::rfc3339;
use tracing::field::{Field, Visit};

use crate::status::short_serial;

/// What an event carries.
#[derive(Debug, Default)]
pub(crate) struct Words {
    message: String,
    fields: Vec<(&'static str, String)>,
}

impl Words {
    /// The event in a line, or more where it shows a place in a file.
    pub(crate) fn sentence(&self, target: &str, now: SystemTime) -> String {
        let known = match target {
            "alcazar::decision" => self.denial(),
            "alcazar::rotation" => self.rotation(now),
            _ => None,
        };
        printable(&known.unwrap_or_else(|| self.plain()))
    }

    fn denial(&self) -> Option<String> {
        let [source, namespace, workload, reason, id] =
            ["source", "namespace", "workload", "reason", "id"].map(|name| self.field(name));
        let source = source?.strip_prefix("spiffe://").unwrap_or(source?);
        let asked = match self.field("method")? {
            "TCP" => format!("TCP port {}", self.field("port")?),
            method => format!("{method} {}{}", self.field("host").unwrap_or_default(), self.field("path")?),
        };
        // The word stands before the line already.
        let reason = reason?.strip_prefix("denied: ").unwrap_or(reason?);
        Some(format!("{source}: {asked} at {}/{}: {reason} [{}]", namespace?, workload?, id?))
    }

    fn rotation(&self, now: SystemTime) -> Option<String> {
        let name = self.field("registration").or(self.field("spiffe_id"))?;
        let (before, serial) = (short_serial(self.field("previous_serial")?), short_serial(self.field("serial")?));
        let until = moment(self.field("not_after")?, now);
        let next =
            self.field("next_rotation").map(|next| format!(", next at {}", moment(next, now))).unwrap_or_default();
        Some(match before {
            "none" => format!("{name}: first certificate {serial}, until {until}{next}"),
            before => format!("{name}: {before} -> {serial}, until {until}{next}"),
        })
    }

    /// The message, then `name=value` of each field, then what has several lines (a caret under a line of YAML).
    fn plain(&self) -> String {
        let mut text = self.message.trim_end().to_owned();
        let is_long = |(_, value): &&(_, String)| value.contains('\n');
        for (index, (name, value)) in self.fields.iter().filter(|field| !is_long(field)).enumerate() {
            let space = if index == 0 { "  " } else { " " };
            let quote = if value.contains(' ') { "\"" } else { "" };
            // Writing to a string cannot fail.
            write!(text, "{space}{name}={quote}{value}{quote}").unwrap_or_default();
        }
        for (_, value) in self.fields.iter().filter(is_long) {
            write!(text, "\n{}", value.trim_end()).unwrap_or_default();
        }
        text
    }

    fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| *field == name).map(|(_, value)| value.as_str())
    }

    fn take(&mut self, field: &Field, value: String) {
        match field.name() {
            "message" => self.message = value,
            name => self.fields.push((name, value)),
        }
    }
}

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.take(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, value.to_owned());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.take(field, alcazar_service::process::chain(value));
    }
}

/// A moment that is today without its date.
fn moment(at: &str, now: SystemTime) -> &str {
    let now = rfc3339(now);
    match (at.split_once('T'), now.split_once('T')) {
        (Some((day, time)), Some((today, _))) if day == today => time,
        _ => at,
    }
}

/// A text without the control characters that a stranger may have put into it to play with the terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() && c != '\n' && c != '\t' { char::REPLACEMENT_CHARACTER } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(message: &str, fields: &[(&'static str, &str)]) -> Words {
        let fields = fields.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Words { message: message.to_owned(), fields }
    }

    #[test]
    fn a_denial_says_who_what_where_and_why() {
        let denial = [
            ("id", "8f-1"),
            ("source", "spiffe://td/ns/reports/sa/nightly"),
            ("namespace", "shop"),
            ("workload", "reviews-v1"),
            ("port", "9090"),
            ("method", "GET"),
            ("host", "reviews.shop"),
            ("path", "/ratings"),
            ("reason", "denied: no role"),
        ];
        let said = words("a request was denied", &denial).sentence("alcazar::decision", SystemTime::UNIX_EPOCH);
        assert_eq!(said, "td/ns/reports/sa/nightly: GET reviews.shop/ratings at shop/reviews-v1: no role [8f-1]");
        let tcp = denial.map(|(name, value)| if name == "method" { (name, "TCP") } else { (name, value) });
        let said = words("", &tcp).sentence("alcazar::decision", SystemTime::UNIX_EPOCH);
        assert_eq!(said, "td/ns/reports/sa/nightly: TCP port 9090 at shop/reviews-v1: no role [8f-1]");
        let closed = words("a connection was closed", &[("port", "1")]);
        assert_eq!(closed.sentence("alcazar::decision", SystemTime::UNIX_EPOCH), "a connection was closed  port=1");
    }

    #[test]
    fn a_rotation_says_whose_and_until_when() {
        let rotation = |before, not_after| {
            let fields = [
                ("registration", "shop.reviews-v1"),
                ("previous_serial", before),
                ("serial", "00112233445566778899"),
                ("not_after", not_after),
                ("next_rotation", "1970-01-01T00:00:45Z"),
            ];
            words("rotated", &fields).sentence("alcazar::rotation", SystemTime::UNIX_EPOCH)
        };
        let today = rotation("aabbccddeeff00112233", "1970-01-01T00:01:30Z");
        assert_eq!(today, "shop.reviews-v1: aabbccddeeff -> 001122334455, until 00:01:30Z, next at 00:00:45Z");
        let first = rotation("none", "1970-01-02T00:00:00Z");
        assert_eq!(
            first,
            "shop.reviews-v1: first certificate 001122334455, until 1970-01-02T00:00:00Z, next at 00:00:45Z"
        );
    }

    #[test]
    fn all_else_is_its_message_with_its_fields_and_carets_below() {
        let fields = [("file", "a.yaml"), ("report", "1 | pats:\n  | ^^^^\n"), ("reason", "no such field")];
        let said = words("kept the last good policy", &fields).sentence("alcazar::reload", SystemTime::UNIX_EPOCH);
        let expected = "kept the last good policy  file=a.yaml reason=\"no such field\"\n1 | pats:\n  | ^^^^";
        assert_eq!(said, expected);
    }

    #[test]
    fn a_stranger_cannot_play_with_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\tc"), "a\u{fffd}[2Jb\tc");
    }
}
