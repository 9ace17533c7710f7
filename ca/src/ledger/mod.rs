//! The ledger of everything that was issued: entries, who is found how, signed heads.
//!
//! ```text
//! record ──▶ Entry ──encode──▶ alcazar-ledger: hashed, appended, fsynced with all that wait ──▶ its number ──▶ the reply
//! find_serial, live_of_identity, list ──▶ the indexes ──▶ Recorded
//! tree_head ──▶ signed by the intermediate ──▶ whoever asks; the store, every minute and at the end
//! ```
//!
//! # Invariants
//! - A reply that something was issued means that it is in the ledger.
//! - What signs is in the ledger before it signs for anybody.
//! - A ledger goes on from what was known of it: one that is shorter, or another one, does not open.

mod authorities;
mod config;
mod continuity;
mod entry;
mod error;
mod head;
mod heads;
mod health;
mod witness;

use std::{ops::ControlFlow, path::Path, sync::Arc, time::SystemTime};

use alcazar_identity::SpiffeId;
use alcazar_ledger::{Head, Health, Hooks, Observe, Options, Query, Report, Step, Term, merkle::Hash};
use alcazar_service::Metrics;
use tokio::{sync::watch, task};

use self::entry::term;
pub use self::{
    config::LedgerConfig,
    entry::{DecodeEntryError, EncodeEntryError, Recorded, RecordedKind},
    error::{LedgerError, OpenLedgerError},
    head::{HEAD_CONTEXT, HeadError, SignedHead, TreeHead, moment},
    witness::{WITNESS_CONTEXT, Witness},
};
pub(crate) use self::{
    continuity::Standing,
    entry::Entry,
    heads::HeadRecord,
    witness::{Verdict, judge},
};
use crate::{
    records::{Records, seconds},
    serial::random_bytes,
};

/// Where everything that is issued is put on record.
pub(crate) struct Ledger {
    log: Arc<alcazar_ledger::Ledger>,
    /// Why somebody else seems to go on with this ledger, too.
    fork: watch::Sender<Option<String>>,
}

/// What is looked for; all of it must hold.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// A serial number, or a token's id.
    pub serial: Option<String>,
    /// Whom it names.
    pub identity: Option<SpiffeId>,
    /// Who asked for it.
    pub caller: Option<String>,
    /// Issued then or later.
    pub since: Option<SystemTime>,
    /// Issued before then.
    pub until: Option<SystemTime>,
    /// With a smaller number: where an earlier page ended.
    pub before: Option<u64>,
}

/// An entry, and the proof that it is in the ledger.
#[derive(Clone, Debug)]
pub struct Included {
    /// The bytes of the entry, as they were hashed.
    pub entry: Vec<u8>,
    /// The hashes beside its way to the root.
    pub proof: Vec<Hash>,
}

impl Ledger {
    /// Opens the ledger in the data folder, which must go on from what is known of it.
    pub(crate) async fn open(
        standing: &Standing<'_>,
        records: &Records,
        metrics: &Metrics,
        hooks: Hooks,
    ) -> Result<Self, OpenLedgerError> {
        let hooks = Hooks { observe: Some(measure(metrics, hooks.observe)), ..hooks };
        let options = Options { hooks, ..Options::new(entry::describe, random_bytes()?) };
        let dir = standing.data_dir.join(FOLDER);
        let opened = task::spawn_blocking(move || alcazar_ledger::Ledger::open(dir, options)).await;
        let log = Arc::new(opened.map_err(|_panic| OpenLedgerError::Interrupted)??);
        health::measure(metrics, &log);
        let ledger = Self { log, fork: watch::Sender::default() };
        continuity::check(&ledger, records, standing).await?;
        Ok(ledger)
    }

    /// Whether it takes entries.
    pub(crate) fn health(&self) -> Health {
        self.log.health()
    }

    /// Puts something on record; its number. Durable when this returns, and nobody gets it before.
    pub(crate) async fn record(&self, entry: &Entry<'_>) -> Result<u64, LedgerError> {
        let (bytes, facts) = entry.encode()?;
        Ok(self.log.append(bytes, facts).await?)
    }

    /// The ledger's own name.
    pub(crate) fn name(&self) -> String {
        self.log.id().to_string()
    }

    /// How many entries, and their root.
    pub(crate) fn head(&self) -> Head {
        self.log.head()
    }

    pub(crate) async fn root(&self, size: u64) -> Result<Hash, LedgerError> {
        self.blocking(move |log| Ok(log.root(size)?)).await
    }

    /// What has this serial number, or is the token of this id.
    pub(crate) async fn find_serial(&self, serial: &str) -> Result<Option<Recorded>, LedgerError> {
        let filter = Filter { serial: Some(serial.to_owned()), ..Filter::default() };
        Ok(self.list(filter, 1).await?.pop())
    }

    async fn all_of_serial(&self, serial: &str) -> Result<Vec<Recorded>, LedgerError> {
        let filter = Filter { serial: Some(serial.to_owned()), ..Filter::default() };
        self.list(filter, usize::MAX).await
    }

    /// Everything that names the identity and is not over at `now`, the newest first.
    pub(crate) async fn live_of_identity(&self, id: &SpiffeId, now: SystemTime) -> Result<Vec<Recorded>, LedgerError> {
        let wanted = id.clone();
        let query = Query {
            term: Some((term::IDENTITY, Term::of(id.as_str().as_bytes()))),
            // Good to its last second, and that second included.
            lasting: Some(seconds::of(now).saturating_sub(1)),
            ..Query::default()
        };
        self.search(query, usize::MAX, move |found| found.spiffe_id == wanted && found.not_after >= now).await
    }

    /// The newest `limit` entries that are looked for.
    pub(crate) async fn list(&self, filter: Filter, limit: usize) -> Result<Vec<Recorded>, LedgerError> {
        let query = filter.query();
        self.search(query, limit, move |found| filter.holds(found)).await
    }

    /// The entry `index`, and the proof that it is among the first `size`.
    pub(crate) async fn prove(&self, index: u64, size: u64) -> Result<Included, LedgerError> {
        self.blocking(move |log| Ok(Included { entry: log.entry(index)?, proof: log.inclusion(index, size)? })).await
    }

    /// The proof that the first `old` entries are the beginning of the first `new`.
    pub(crate) async fn consistency(&self, old: u64, new: u64) -> Result<Vec<Hash>, LedgerError> {
        self.blocking(move |log| Ok(log.consistency(old, new)?)).await
    }

    /// Reads everything and says what is wrong with it.
    pub(crate) async fn verify(&self) -> Result<Report, LedgerError> {
        self.blocking(|log| Ok(log.verify()?)).await
    }

    /// Closes the files: another process may open them when this returns.
    pub(crate) async fn close(&self) {
        self.log.close().await;
    }

    async fn search(
        &self,
        query: Query,
        limit: usize,
        holds: impl Fn(&Recorded) -> bool + Send + 'static,
    ) -> Result<Vec<Recorded>, LedgerError> {
        self.blocking(move |log| {
            let (mut found, mut unreadable) = (Vec::new(), None);
            if limit == 0 {
                return Ok(found);
            }
            log.search(&query, |index, bytes| {
                match Recorded::decode(index, bytes) {
                    Ok(recorded) if holds(&recorded) => found.push(recorded),
                    Ok(_) => {}
                    Err(source) => unreadable = Some(LedgerError::Entry { index, source }),
                }
                if found.len() >= limit || unreadable.is_some() {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })?;
            unreadable.map_or(Ok(found), Err)
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&alcazar_ledger::Ledger) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, LedgerError> {
        let log = self.log.clone();
        task::spawn_blocking(move || work(&log)).await.map_err(|_panic| LedgerError::Interrupted)?
    }
}

impl Filter {
    /// The index that finds the fewest.
    fn query(&self) -> Query {
        let of = |place, text: &str| (place, Term::of(text.as_bytes()));
        let serial = self.serial.as_deref().map(|serial| of(term::SERIAL, serial));
        let identity = || self.identity.as_ref().map(|id| of(term::IDENTITY, id.as_str()));
        let caller = || self.caller.as_deref().map(|caller| of(term::CALLER, caller));
        Query {
            term: serial.or_else(identity).or_else(caller),
            since: self.since.map(seconds::of),
            until: self.until.map(seconds::of),
            lasting: None,
            before: self.before,
        }
    }

    fn holds(&self, found: &Recorded) -> bool {
        self.serial.as_ref().is_none_or(|serial| found.serial == *serial)
            && self.identity.as_ref().is_none_or(|id| found.spiffe_id == *id)
            && self.caller.as_ref().is_none_or(|caller| found.caller == *caller)
    }
}

/// Counts how long the disk takes, and passes each step on.
fn measure(metrics: &Metrics, next: Option<Observe>) -> Observe {
    let syncs = metrics.histogram(
        "alcazar_ca_ledger_sync_seconds",
        "How long the disk takes to make a group of ledger entries durable",
        SYNC_BOUNDS,
    );
    Arc::new(move |step| {
        if let Step::Synced { took } = step {
            syncs.observe(took);
        }
        if let Some(next) = &next {
            next(step);
        }
    })
}

/// The ledger's folder in the data folder.
pub(crate) const FOLDER: &str = "ledger";

const SYNC_BOUNDS: &[f64] = &[0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0];

/// Verifies the files of a ledger that no CA has open, such as a backup.
///
/// # Errors
/// When it is in use, is no ledger, or the disk refuses.
pub fn verify_files(dir: impl AsRef<Path>) -> Result<Report, alcazar_ledger::OpenError> {
    verify_files_at(dir, 0)
}

/// The same, and says what the root of the first `early` entries is.
///
/// # Errors
/// When it is in use, is no ledger, or the disk refuses.
pub fn verify_files_at(dir: impl AsRef<Path>, early: u64) -> Result<Report, alcazar_ledger::OpenError> {
    alcazar_ledger::verify_files_at(dir, entry::describe, early)
}

/// Whether these bytes are an entry of a ledger; for the fuzzer, which finds inputs that panic.
pub fn is_entry(bytes: &[u8]) -> bool {
    entry::describe(bytes).is_some()
}
