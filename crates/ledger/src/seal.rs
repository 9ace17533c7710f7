//! Sealing: the tree of a full segment is written beside the appends to the next one, so that nobody waits for it.

use std::{
    io,
    sync::Arc,
    thread::{self, JoinHandle},
};

use crate::{
    append::{Observe, Step},
    open::seal,
    segment::Growing,
    state::Shared,
};

/// Seals one segment at a time. Until it is done, the segment is read from memory; a start after a kill makes the tree again.
pub(crate) struct Sealer {
    work: Work,
    running: Option<JoinHandle<()>>,
}

/// What a thread needs to seal.
#[derive(Clone)]
struct Work {
    shared: Arc<Shared>,
    observe: Option<Observe>,
}

impl Sealer {
    pub(crate) fn new(shared: Arc<Shared>, observe: Option<Observe>) -> Self {
        Self { work: Work { shared, observe }, running: None }
    }

    /// Begins to seal the full segment, and the next one is open. Waits for the seal of the segment before, long done unless
    /// the disk cannot follow; where that failed, it is tried again first.
    ///
    /// # Errors
    /// When it fails again: the number of that segment's first entry, and why.
    pub(crate) fn seal(&mut self) -> Result<(), (u64, io::Error)> {
        self.finish();
        let left = self.work.shared.read().sealing().cloned();
        if let Some(segment) = left {
            self.work.seal(&segment).map_err(|error| (segment.first, error))?;
        }
        let full = self.work.shared.write().seal_later();
        let work = self.work.clone();
        let running = thread::Builder::new().name("alcazar-seal".into()).spawn(move || {
            if let Err(error) = work.seal(&full) {
                tracing::warn!(%error, segment = full.first, "a full segment of the ledger was not sealed; it is tried again before the next one");
            }
        });
        match running {
            Ok(running) => self.running = Some(running),
            Err(error) => {
                tracing::warn!(%error, "a full segment of the ledger is sealed later: there is no thread for it")
            }
        }
        Ok(())
    }

    /// Waits until nothing is being sealed.
    pub(crate) fn finish(&mut self) {
        // What panicked is still there to be sealed.
        drop(self.running.take().map(JoinHandle::join));
    }
}

impl Work {
    fn seal(&self, segment: &Growing) -> io::Result<()> {
        let (log, height) = {
            let state = self.shared.read();
            (state.log, state.height)
        };
        let header = seal(&self.shared.dir, segment, log, height)?;
        self.shared.write().sealed(header);
        if let Some(observe) = &self.observe {
            observe(Step::Sealed);
        }
        Ok(())
    }
}
