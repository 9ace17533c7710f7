//! The one shape of a component's `main`: logs, signals, the component, a bounded drain, an exit status.

use std::error::Error;
use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;

use crate::{Readiness, Shutdown, systemd};

/// Runs a component until it ends or a signal asks it to, then drains it.
///
/// The exit status is 0 after a clean end, 1 after a failure, 2 when the component refuses its configuration
/// (which `component` says by [`Failure::Refused`]).
pub fn run<C, F>(name: &'static str, drain: Duration, component: C) -> ExitCode
where
    C: FnOnce(Shutdown, Readiness) -> F,
    F: Future<Output = Result<(), Failure>>,
{
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report(name, &Failure::Failed(Box::new(error))),
    };
    let outcome = runtime.block_on(async {
        let shutdown = Shutdown::on_signals()?;
        shutdown.spawn("watchdog", systemd::beat(shutdown.clone()));
        let end = shutdown.clone();
        shutdown.spawn("word of the end", async move {
            end.cancelled().await;
            systemd::stopping();
        });
        let outcome = component(shutdown.clone(), Readiness::new()).await;
        shutdown.trigger("the component has ended");
        if let Err(unfinished) = shutdown.finished(drain).await {
            tracing::warn!("{unfinished}");
        }
        outcome
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report(name, &failure),
    }
}

/// How a component failed.
#[derive(Debug)]
pub enum Failure {
    /// What a person wrote is refused: shown with its place where it has one, exit status 2.
    Refused(miette::Report),
    /// Something else: the chain of causes is printed, exit status 1.
    Failed(Box<dyn Error + Send + Sync>),
}

impl Failure {
    /// A refusal of what a person wrote.
    pub fn refused(diagnostic: impl miette::Diagnostic + Send + Sync + 'static) -> Self {
        Self::Refused(miette::Report::new(diagnostic))
    }
}

impl<E> From<E> for Failure
where
    E: Into<Box<dyn Error + Send + Sync>>,
{
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

fn report(name: &str, failure: &Failure) -> ExitCode {
    match failure {
        Failure::Refused(report) => {
            eprintln!("{report:?}");
            ExitCode::from(2)
        }
        Failure::Failed(error) => {
            eprintln!("{name}: {}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes in one line: `cannot start: address in use: 127.0.0.1:1`.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // A transparent error repeats its cause; a reader needs it once.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot start")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn a_chain_of_causes_reads_as_one_line() {
        let error = Outer(std::io::Error::other("the port is taken"));
        assert_eq!(chain(&error), "cannot start: the port is taken");
    }
}
