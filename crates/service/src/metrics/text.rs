//! The two text formats of metrics, and which of them a scraper wants.

/// How metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format 0.0.4, which every scraper reads.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// What a scraper with this `accept` header gets: OpenMetrics where it names it, else what everybody reads.
    pub fn wanted(accept: Option<&str>) -> Self {
        let open = accept.is_some_and(|accept| accept.contains("application/openmetrics-text"));
        if open { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// Its content type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Prometheus' text format of an OpenMetrics text.
///
/// They differ in the comments: here a counter's name has its suffix there too, and what is of unknown kind is, as we
/// register it, a counter without the suffix.
pub(super) fn prometheus(open: &str) -> String {
    let mut written = String::with_capacity(open.len());
    let mut help = None;
    for line in open.lines() {
        if line.starts_with("# HELP ") {
            help = Some(line);
            continue;
        }
        let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) else {
            // `# EOF` and `# UNIT` mean nothing here.
            if !line.starts_with("# ") {
                push(&mut written, &[line]);
            }
            continue;
        };
        let suffix = if kind == "counter" { "_total" } else { "" };
        let text = help.take().and_then(|help| help.split(' ').nth(2).map(|name| (name, help)));
        if let Some((_, help)) = text.filter(|(described, _)| *described == name) {
            let words = help.splitn(4, ' ').nth(3).unwrap_or_default();
            push(&mut written, &["# HELP ", name, suffix, " ", words]);
        }
        push(&mut written, &["# TYPE ", name, suffix, " ", if kind == "unknown" { "counter" } else { kind }]);
    }
    written
}

fn push(written: &mut String, parts: &[&str]) {
    written.extend(parts.iter().copied());
    written.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scraper_gets_the_format_that_it_names() {
        let check = |accept, expected| assert_eq!(Format::wanted(accept), expected, "{accept:?}");
        check(None, Format::Prometheus);
        check(Some("text/plain"), Format::Prometheus);
        check(Some("*/*"), Format::Prometheus);
        check(Some("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.1"), Format::OpenMetrics);
    }

    #[test]
    fn the_two_formats_say_the_same() {
        let open = "# HELP a What.\n# TYPE a counter\na_total 1\n# HELP b B b.\n# TYPE b unknown\nb 2\n# EOF\n";
        let plain = "# HELP a_total What.\n# TYPE a_total counter\na_total 1\n# HELP b B b.\n# TYPE b counter\nb 2\n";
        assert_eq!(prometheus(open), plain);
    }
}
