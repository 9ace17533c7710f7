//! What is logged while a test runs, on its own thread.

use tracing::{
    Event, Level, Metadata, Subscriber,
    span::{Attributes, Id, Record},
    subscriber::DefaultGuard,
};

/// Tells of each warning and error, until the guard is dropped.
pub(crate) fn overhear(tell: impl Fn(&Event<'_>) + Send + Sync + 'static) -> DefaultGuard {
    tracing::subscriber::set_default(Overhears(tell))
}

struct Overhears<F>(F);

impl<F: Fn(&Event<'_>) + Send + Sync + 'static> Subscriber for Overhears<F> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN
    }

    fn event(&self, event: &Event<'_>) {
        (self.0)(event);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}
