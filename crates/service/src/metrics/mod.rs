//! What a process counts, for Prometheus: registered by name, read at `/metrics`.
//!
//! ```text
//!   metrics.counter("alcazar_x", "What it counts") ─▶ Counter ─ inc() ─┐
//!   metrics.on_scrape(|| depth.set(queue.len()))  ───────────────────────┼─▶ encode() ─▶ GET /metrics
//!   metrics.counters("alcazar_y", "…", ["code"])  ─▶ .with(["ok"]) ────┘
//! ```
//!
//! - Asking for a name again gives what it stands for already: parts that exist several times in a process share a metric.
//! - What is measured when it is asked for (ages, depths) is set by [`Metrics::on_scrape`], and no loop runs for it.
//! - Labels have few values: a label never holds what a caller chose.

mod handles;
mod text;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus_client::{
    metrics::{counter::Counter as Count, family::Family, gauge::Gauge as Level, histogram::Histogram as Distribution},
    registry::Registry,
};

use self::handles::{Held, Plain};
pub use self::{
    handles::{Counter, Counters, Gauge, Gauges, Histogram},
    text::Format,
};

/// The metrics of a process. Cheap to clone; clones are the same.
#[derive(Clone, Default)]
pub struct Metrics {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    registry: Registry,
    /// What each name stands for.
    held: BTreeMap<&'static str, Held>,
    before: Vec<Arc<dyn Fn() + Send + Sync>>,
}

impl Metrics {
    /// No metrics yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Something that only grows. It is read as `<name>_total`.
    pub fn counter(&self, name: &'static str, help: &'static str) -> Counter {
        self.hold(name, |registry| {
            let count = Count::default();
            registry.register(name, help, count.clone());
            Counter(count)
        })
    }

    /// A counter that is read under exactly this name, as dashboards that are older than the convention have it.
    pub fn plain_counter(&self, name: &'static str, help: &'static str) -> Counter {
        self.hold(name, |registry| {
            let count = Count::default();
            registry.register(name, help, Plain(count.clone()));
            Counter(count)
        })
    }

    /// Counters that are told apart by labels. They are read as `<name>_total`.
    pub fn counters<const N: usize>(
        &self,
        name: &'static str,
        help: &'static str,
        labels: [&'static str; N],
    ) -> Counters<N> {
        self.hold(name, |registry| {
            let family = Family::default();
            registry.register(name, help, family.clone());
            Counters { family, labels }
        })
    }

    /// Something that goes up and down.
    pub fn gauge(&self, name: &'static str, help: &'static str) -> Gauge {
        self.hold(name, |registry| {
            let level = Level::default();
            registry.register(name, help, level.clone());
            Gauge(level)
        })
    }

    /// Gauges that are told apart by labels.
    pub fn gauges<const N: usize>(
        &self,
        name: &'static str,
        help: &'static str,
        labels: [&'static str; N],
    ) -> Gauges<N> {
        self.hold(name, |registry| {
            let family = Family::default();
            registry.register(name, help, family.clone());
            Gauges { family, labels }
        })
    }

    /// How values are distributed over these upper bounds. For durations the unit is seconds and the name says so.
    pub fn histogram(&self, name: &'static str, help: &'static str, bounds: &[f64]) -> Histogram {
        self.hold(name, |registry| {
            let distribution = Distribution::new(bounds.iter().copied());
            registry.register(name, help, distribution.clone());
            Histogram(distribution)
        })
    }

    /// Calls `measure` each time before the metrics are read: to set what has a value at that moment only.
    pub fn on_scrape(&self, measure: impl Fn() + Send + Sync + 'static) {
        self.inner().before.push(Arc::new(measure));
    }

    /// Everything, as text.
    pub fn encode(&self, format: Format) -> String {
        // Not under the lock: a measurement may register something.
        let before = self.inner().before.clone();
        for measure in before {
            measure();
        }
        let mut written = String::new();
        if prometheus_client::encoding::text::encode(&mut written, &self.inner().registry).is_err() {
            tracing::error!("the metrics could not be written as text");
        }
        match format {
            Format::OpenMetrics => written,
            Format::Prometheus => text::prometheus(&written),
        }
    }

    fn hold<T: Clone + Send + 'static>(&self, name: &'static str, make: impl FnOnce(&mut Registry) -> T) -> T {
        let mut inner = self.inner();
        if let Some(held) = inner.held.get(name) {
            return held.downcast().unwrap_or_else(|| {
                tracing::error!(name, "a metric's name is used for two kinds of metric; the second is not shown");
                make(&mut Registry::default())
            });
        }
        let made = make(&mut inner.registry);
        inner.held.insert(name, Held::new(made.clone()));
        made
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").field("names", &self.inner().held.keys().collect::<Vec<_>>()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn lines(metrics: &Metrics, format: Format) -> Vec<String> {
        metrics.encode(format).lines().map(str::to_owned).collect()
    }

    #[test]
    fn names_are_read_as_they_were_registered() {
        let metrics = Metrics::new();
        metrics.plain_counter("citadel_server_csr_count", "Requests").inc();
        metrics.counter("alcazar_ca_refusals", "Refusals").inc_by(3);
        metrics.counters("alcazar_ca_answers", "Answers", ["code"]).with(["ok"]).inc();
        metrics.gauge("alcazar_ca_queue", "Waiting").set(2);
        metrics.histogram("alcazar_ca_seconds", "Time", &[0.5, 1.0]).observe(Duration::from_millis(700));
        let text = lines(&metrics, Format::Prometheus);
        for expected in [
            "# TYPE citadel_server_csr_count counter",
            "citadel_server_csr_count 1",
            "# HELP alcazar_ca_refusals_total Refusals.",
            "# TYPE alcazar_ca_refusals_total counter",
            "alcazar_ca_refusals_total 3",
            "alcazar_ca_answers_total{code=\"ok\"} 1",
            "# TYPE alcazar_ca_queue gauge",
            "alcazar_ca_queue 2",
            "# TYPE alcazar_ca_seconds histogram",
            "alcazar_ca_seconds_bucket{le=\"0.5\"} 0",
            "alcazar_ca_seconds_bucket{le=\"1.0\"} 1",
            "alcazar_ca_seconds_count 1",
        ] {
            assert!(text.iter().any(|line| line == expected), "{expected} is not in {text:#?}");
        }
        let open = lines(&metrics, Format::OpenMetrics);
        assert!(open.contains(&"# TYPE alcazar_ca_refusals counter".to_owned()), "{open:#?}");
        assert!(open.contains(&"# TYPE citadel_server_csr_count unknown".to_owned()), "{open:#?}");
        assert_eq!(open.last().map(String::as_str), Some("# EOF"));
    }

    #[test]
    fn a_name_stands_for_one_metric() {
        let metrics = Metrics::new();
        metrics.counter("alcazar_x", "X").inc();
        metrics.counter("alcazar_x", "X").inc();
        // Of another kind: it counts for itself, and the scrape stays right.
        metrics.gauge("alcazar_x", "X").set(9);
        let text = lines(&metrics, Format::Prometheus);
        assert_eq!(
            text.iter().filter(|line| line.starts_with("alcazar_x_total")).collect::<Vec<_>>(),
            ["alcazar_x_total 2"]
        );
        assert!(!text.iter().any(|line| line.starts_with("alcazar_x ")));
    }

    #[test]
    fn what_is_measured_at_a_scrape_is_of_that_moment() {
        let metrics = Metrics::new();
        let (gauge, source) = (metrics.gauge("alcazar_depth", "Depth"), Arc::new(Mutex::new(1)));
        let read = Arc::clone(&source);
        metrics.on_scrape(move || gauge.set(*read.lock().unwrap()));
        assert!(metrics.encode(Format::Prometheus).contains("alcazar_depth 1\n"));
        *source.lock().unwrap() = 5;
        assert!(metrics.encode(Format::Prometheus).contains("alcazar_depth 5\n"));
    }

    #[test]
    fn labels_are_escaped() {
        let metrics = Metrics::new();
        metrics.gauges("alcazar_end", "End", ["what"]).with(["a\"b\\c\nd".to_owned()]).set(1);
        let text = metrics.encode(Format::Prometheus);
        assert!(text.contains(r#"alcazar_end{what="a\"b\\c\nd"} 1"#), "{text}");
    }
}
