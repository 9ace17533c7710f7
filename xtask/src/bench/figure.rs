//! One measured value, and how it is printed.

use serde_json::json;

/// One measured value; ours, and the peer's where one ran in the same run.
#[derive(Debug, PartialEq)]
pub(super) struct Figure {
    pub(super) bench: String,
    pub(super) figure: String,
    pub(super) unit: Unit,
    pub(super) ours: f64,
    /// Its name and its value.
    pub(super) peer: Option<(&'static str, f64)>,
}

/// What a value counts, and so whether more of it is better.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Unit {
    /// For one iteration; less is better.
    Nanoseconds,
    /// More is better.
    PerSecond,
    /// Resident memory; less is better.
    Bytes,
    /// Of something else that was measured; less is better.
    Times,
    /// Of one processor; less is better.
    Percent,
}

impl Figure {
    /// Above 1: ours is better.
    fn ratio(&self) -> Option<f64> {
        let (_, peer) = self.peer.as_ref()?;
        Some(match self.unit {
            Unit::Nanoseconds | Unit::Bytes | Unit::Times | Unit::Percent => peer / self.ours,
            Unit::PerSecond => self.ours / peer,
        })
    }

    pub(super) fn json(&self) -> String {
        json!({
            "bench": self.bench,
            "figure": self.figure,
            "unit": self.unit.name(),
            "ours": self.ours,
            "peer": self.peer.map(|(name, _)| name),
            "peer_value": self.peer.map(|(_, value)| value),
            "ratio": self.ratio(),
        })
        .to_string()
    }

    fn row(&self) -> String {
        let (peer, ratio) = match (&self.peer, self.ratio()) {
            (Some((name, value)), Some(ratio)) => (format!("{name} {}", self.unit.show(*value)), format!("{ratio:.2}")),
            _ => ("-".to_owned(), "-".to_owned()),
        };
        format!("{:<12} {:<36} {:>12} {peer:>22} {ratio:>7}", self.bench, self.figure, self.unit.show(self.ours))
    }
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::Nanoseconds => "ns",
            Self::PerSecond => "1/s",
            Self::Bytes => "bytes",
            Self::Times => "times",
            Self::Percent => "%",
        }
    }

    /// As a person reads it.
    fn show(self, value: f64) -> String {
        match self {
            Self::PerSecond => format!("{value:.0} /s"),
            Self::Times => format!("{value:.2} times"),
            Self::Percent => format!("{value:.3} %"),
            Self::Bytes if value < 1e5 => format!("{value:.0} B"),
            Self::Bytes => format!("{:.1} MB", value / 1e6),
            Self::Nanoseconds => match value {
                ns if ns < 1e3 => format!("{ns:.0} ns"),
                ns if ns < 1e6 => format!("{:.2} us", ns / 1e3),
                ns if ns < 1e9 => format!("{:.2} ms", ns / 1e6),
                ns => format!("{:.2} s", ns / 1e9),
            },
        }
    }
}

/// All figures, a header first.
pub(super) fn table(figures: &[Figure]) -> Vec<String> {
    let header = format!("{:<12} {:<36} {:>12} {:>22} {:>7}", "bench", "figure", "ours", "peer", "ratio");
    std::iter::once(header).chain(figures.iter().map(Figure::row)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_says_who_is_better() {
        let mut figure =
            Figure { bench: "decide".into(), figure: "10".into(), unit: Unit::Nanoseconds, ours: 250.0, peer: None };
        assert_eq!(
            figure.json(),
            r#"{"bench":"decide","figure":"10","ours":250.0,"peer":null,"peer_value":null,"ratio":null,"unit":"ns"}"#
        );
        figure.peer = Some(("envoy", 500.0));
        assert_eq!(figure.ratio(), Some(2.0));
        figure.unit = Unit::PerSecond;
        assert_eq!(figure.ratio(), Some(0.5));
        assert!(table(&[figure])[1].ends_with("0.50"));
    }
}
