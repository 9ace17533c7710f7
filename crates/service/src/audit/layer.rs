//! From the events of the log to lines of the audit file.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use serde_json::{Map, Value};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span::{Attributes, Id, Record},
    subscriber::Interest,
};
use tracing_subscriber::{
    fmt::{
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    layer::{Context, Filter, Layer},
    registry::LookupSpan,
};

use super::Audit;

/// Takes the events of some targets, with what the spans around them know.
///
/// It is part of the log's set-up, which comes before the configuration is read: until an [`Audit`] is put into its place,
/// nothing is written.
#[derive(Debug, Clone)]
pub struct AuditLayer {
    audit: Arc<OnceLock<Audit>>,
    targets: &'static [&'static str],
}

impl AuditLayer {
    /// The events of these targets, once there is a file for them. What stands after the last `:` of a target is the event's name;
    /// the first is that of the spans.
    pub fn new(audit: Arc<OnceLock<Audit>>, targets: &'static [&'static str]) -> Self {
        Self { audit, targets }
    }

    fn takes(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO && self.targets.contains(&metadata.target())
    }
}

/// What a span knows.
struct Known(Map<String, Value>);

impl<S: Subscriber + for<'s> LookupSpan<'s>> Layer<S> for AuditLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id).filter(|span| self.takes(span.metadata())) else { return };
        let mut known = Fields(Map::new());
        attributes.record(&mut known);
        span.extensions_mut().replace(Known(known.0));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut extensions = span.extensions_mut();
        if let Some(Known(known)) = extensions.get_mut::<Known>() {
            let mut fields = Fields(std::mem::take(known));
            values.record(&mut fields);
            *known = fields.0;
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let Some(audit) = self.audit.get().filter(|_| self.takes(event.metadata())) else { return };
        let mut fields = Fields(Map::new());
        event.record(&mut fields);
        let name = event.metadata().target().rsplit(':').next().unwrap_or_default();
        let mut line = Map::from_iter([("at".to_owned(), now().into()), ("event".to_owned(), name.into())]);
        // The event's own words come first, where both have them.
        line.extend(fields.0);
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(Known(known)) = span.extensions().get::<Known>() {
                for (name, value) in known {
                    line.entry(name.clone()).or_insert_with(|| value.clone());
                }
            }
        }
        audit.line(Value::Object(line).to_string());
    }
}

/// What other layers are set to show does not decide what is written here.
impl<S> Filter<S> for AuditLayer {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        self.takes(metadata)
    }

    /// Decided once for each place in the code, so that whatever is not wanted costs nothing.
    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.takes(metadata) { Interest::always() } else { Interest::never() }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::INFO)
    }
}

/// This moment, as RFC 3339 with microseconds.
pub(super) fn now() -> String {
    let mut text = String::new();
    let outcome = SystemTime.format_time(&mut Writer::new(&mut text));
    if outcome.is_ok() { text } else { String::new() }
}

struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::{layer::SubscriberExt, registry};

    use super::{super::AuditConfig, *};

    const TARGETS: &[&str] = &["test::request", "test::issued"];

    #[test]
    fn an_event_becomes_a_line_with_what_its_request_knows_whatever_the_log_shows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit");
        let (slot, quiet) = (Arc::new(OnceLock::new()), tracing_subscriber::EnvFilter::new("off"));
        let layer = AuditLayer::new(slot.clone(), TARGETS);
        let log = tracing_subscriber::fmt::layer().with_writer(std::io::sink).with_filter(quiet);
        let subscriber = registry().with(layer.clone().with_filter(layer)).with(log);
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "test::issued", "before there is a file");
            slot.set(Audit::open(&AuditConfig::new(&path)).unwrap()).unwrap();
            let span = tracing::info_span!(target: "test::request", "request", request_id = "7f", what = tracing::field::Empty, serial = "the span's");
            span.in_scope(|| {
                span.record("what", "a root");
                tracing::info!(target: "test::issued", serial = "ab\"c", clamped = true, left = 3, who = %"me", "issued it");
            });
            tracing::info!(target: "test::other", "nobody's business");
            tracing::warn!(target: "test::issued", "alone");
        });
        slot.get().unwrap().close();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let [first, second] = &*lines else { panic!("{text}") };
        let mut known = first.as_object().unwrap().clone();
        let at = known.remove("at").unwrap();
        assert!(at.as_str().unwrap().ends_with('Z') && at.as_str().unwrap().len() > 20, "{at}");
        let expected = serde_json::json!({
            "event": "issued", "message": "issued it", "serial": "ab\"c", "clamped": true, "left": 3, "who": "me",
            "request_id": "7f", "what": "a root",
        });
        assert_eq!(Value::Object(known), expected);
        assert_eq!(second["message"], "alone");
    }
}
