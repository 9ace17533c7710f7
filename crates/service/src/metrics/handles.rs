//! What a part of the program holds to count with.

use std::{any::Any, borrow::Cow, fmt, time::Duration};

use prometheus_client::{
    encoding::{EncodeGaugeValue, EncodeLabelSet, EncodeMetric, LabelSetEncoder, MetricEncoder},
    metrics::{
        MetricType, counter::Counter as Count, family::Family, gauge::Gauge as Level,
        histogram::Histogram as Distribution,
    },
};

/// Something that only grows.
#[derive(Clone, Debug, Default)]
pub struct Counter(pub(super) Count);

impl Counter {
    /// One more.
    pub fn inc(&self) {
        self.0.inc();
    }

    /// As many more.
    pub fn inc_by(&self, by: u64) {
        self.0.inc_by(by);
    }

    /// How many there have been.
    pub fn value(&self) -> u64 {
        self.0.get()
    }
}

/// Something that goes up and down.
#[derive(Clone, Debug, Default)]
pub struct Gauge(pub(super) Level);

impl Gauge {
    /// What it is now.
    pub fn set(&self, value: i64) {
        self.0.set(value);
    }

    /// One more.
    pub fn inc(&self) {
        self.0.inc();
    }

    /// One less.
    pub fn dec(&self) {
        self.0.dec();
    }

    /// What it was set to.
    pub fn value(&self) -> i64 {
        self.0.get()
    }
}

/// How values are distributed.
#[derive(Clone, Debug)]
pub struct Histogram(pub(super) Distribution);

impl Histogram {
    /// One duration, in seconds.
    pub fn observe(&self, duration: Duration) {
        self.0.observe(duration.as_secs_f64());
    }

    /// One value, in the unit that the name says.
    pub fn observe_value(&self, value: f64) {
        self.0.observe(value);
    }
}

/// Counters that are told apart by `N` labels.
#[derive(Clone, Debug)]
pub struct Counters<const N: usize> {
    pub(super) family: Family<Labels<N>, Count>,
    pub(super) labels: [&'static str; N],
}

impl<const N: usize> Counters<N> {
    /// The counter with these values of the labels, in their order.
    pub fn with<V: Into<Cow<'static, str>>>(&self, values: [V; N]) -> Counter {
        Counter(self.family.get_or_create_owned(&Labels::new(self.labels, values)))
    }
}

/// Gauges that are told apart by `N` labels.
#[derive(Clone, Debug)]
pub struct Gauges<const N: usize> {
    pub(super) family: Family<Labels<N>, Level>,
    pub(super) labels: [&'static str; N],
}

impl<const N: usize> Gauges<N> {
    /// The gauge with these values of the labels, in their order.
    pub fn with<V: Into<Cow<'static, str>>>(&self, values: [V; N]) -> Gauge {
        Gauge(self.family.get_or_create_owned(&Labels::new(self.labels, values)))
    }

    /// Forgets all of them: before those that exist now are set.
    pub fn clear(&self) {
        self.family.clear();
    }
}

/// Names and values of labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Labels<const N: usize> {
    names: [&'static str; N],
    values: [Cow<'static, str>; N],
}

impl<const N: usize> Labels<N> {
    fn new<V: Into<Cow<'static, str>>>(names: [&'static str; N], values: [V; N]) -> Self {
        Self { names, values: values.map(Into::into) }
    }
}

impl<const N: usize> EncodeLabelSet for Labels<N> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.names.iter().zip(&self.values).try_for_each(|(name, value)| {
            use prometheus_client::encoding::EncodeLabel;
            (*name, value.as_ref()).encode(encoder.encode_label())
        })
    }
}

/// A counter without the suffix of its kind. OpenMetrics has no counters of that shape, so its kind is unknown there.
#[derive(Debug)]
pub(super) struct Plain(pub(super) Count);

impl EncodeMetric for Plain {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_gauge(&Value(self.0.get()))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Unknown
    }
}

struct Value(u64);

impl EncodeGaugeValue for Value {
    fn encode(&self, encoder: &mut prometheus_client::encoding::GaugeValueEncoder<'_>) -> fmt::Result {
        // 2^63 requests are more than there will be.
        EncodeGaugeValue::encode(&i64::try_from(self.0).unwrap_or(i64::MAX), encoder)
    }
}

/// A handle whose kind is found out when its name is asked for again.
pub(super) struct Held(Box<dyn Any + Send>);

impl Held {
    pub(super) fn new<T: Send + 'static>(handle: T) -> Self {
        Self(Box::new(handle))
    }

    pub(super) fn downcast<T: Clone + 'static>(&self) -> Option<T> {
        self.0.downcast_ref().cloned()
    }
}
