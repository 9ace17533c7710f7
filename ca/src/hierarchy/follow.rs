//! Looking after the hierarchy while the CA runs.

use std::{sync::Arc, time::Duration};

use alcazar_service::{Part, Shutdown, process};
use tokio::{sync::watch, time::Instant};

use super::{Hierarchy, HierarchyError};
use crate::{ca::Ca, cacerts::Stamp, clock_set::ClockSet};

/// What was said last, so that a log is not filled with it.
#[derive(Default)]
struct Said {
    trouble: Option<String>,
}

/// Tells of each change of the hierarchy, and of what is wrong with it.
#[derive(Debug)]
pub struct HierarchyChanges {
    hierarchy: watch::Receiver<Arc<Hierarchy>>,
    trouble: watch::Receiver<Option<String>>,
}

impl HierarchyChanges {
    /// Waits for the next change.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.hierarchy.changed() => {}
            _ = self.trouble.changed() => {}
        }
    }
}

impl Ca {
    /// Tells of each change of the hierarchy from now on.
    pub fn hierarchy_changes(&self) -> HierarchyChanges {
        HierarchyChanges { hierarchy: self.0.hierarchy.subscribe(), trouble: self.0.hierarchy_trouble.subscribe() }
    }

    /// Takes over what a person plugs in, within seconds, and renews what is due, until the end. What is wrong is said in the log,
    /// in the health of `part`, and in [`Ca::hierarchy_trouble`]; what is in memory goes on.
    pub(crate) async fn follow_hierarchy(self, part: Part, shutdown: Shutdown) {
        let (mut seen, mut settled) = (Some(self.0.hierarchy_stamp.clone()), true);
        let (mut looked, mut said) = (Instant::now(), Said::default());
        let (mut clock, mut was_set) = (ClockSet::new(&self.0.clock), false);
        self.report(Ok(()), &part, &mut said);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            was_set |= clock.look();
            let stamp = self.stamp().await;
            // Files that are copied one by one are read when they have come to rest.
            if stamp != seen {
                (seen, settled) = (stamp, false);
                continue;
            }
            let plugged = self.0.files.plugged.folder().is_ok_and(|folder| folder.is_some());
            let due = was_set || looked.elapsed() >= if plugged { OFTEN } else { SELDOM };
            if settled && !due {
                continue;
            }
            let outcome = self.look_after_hierarchy().await;
            (looked, settled, was_set) = (Instant::now(), true, false);
            self.report(outcome, &part, &mut said);
        }
    }

    async fn stamp(&self) -> Option<Stamp> {
        let files = self.0.files.clone();
        tokio::task::spawn_blocking(move || files.plugged.stamp()).await.ok()
    }

    fn report(&self, outcome: Result<(), HierarchyError>, part: &Part, said: &mut Said) {
        let trouble = outcome.err().map(|error| process::chain(&error));
        if let Some(reason) = trouble.as_ref().filter(|reason| said.trouble.as_ref() != Some(reason)) {
            tracing::error!(target: "alcazar::reload", reason, "the CA's certificates on the disk cannot be used; the ones in memory go on");
        }
        if trouble.is_none() && said.trouble.is_some() {
            tracing::info!(target: "alcazar::reload", "the CA's certificates on the disk can be used again");
        }
        said.trouble.clone_from(&trouble);
        // What a person must do: all of it, the most urgent first. The log has it by the horizon's task.
        let now = (self.0.clock)();
        let mut errands: Vec<_> = self.points().iter().filter_map(|point| point.errand(now)).collect();
        errands.sort_by_key(|(level, _)| std::cmp::Reverse(*level));
        let errands: Vec<_> = errands.into_iter().map(|(_, what)| what).collect();
        let trouble = trouble.or_else(|| (!errands.is_empty()).then(|| errands.join("; also, ")));
        match &trouble {
            Some(what) => part.degraded(what.clone()),
            None => part.ready(),
        }
        self.0.hierarchy_trouble.send_if_modified(|held| {
            let changed = *held != trouble;
            *held = trouble;
            changed
        });
    }
}

/// A look costs a few calls of `stat`.
const LOOK: Duration = Duration::from_secs(1);
/// Where a person plugs certificates in, time alone can change what they amount to.
const OFTEN: Duration = Duration::from_secs(30);
const SELDOM: Duration = Duration::from_secs(600);
