//! At a start: whether this is the ledger that the CA had, and goes on from where it was.
//!
//! What is known of it stands outside of its folder, which may have been exchanged as a whole: its last signed head in the store,
//! and its name in the data folder, which tells it from those of other replicas. Without such a name, and where nobody shares
//! the store, every head there is this CA's own.

use std::{fs, io, path::Path};

use alcazar_identity::{TrustBundle, TrustDomain};
use alcazar_ledger::merkle::Hash;
use alcazar_service::{files::write_atomic, process};
use alcazar_store::Expected;
use tokio::task;

use super::{
    Ledger, LedgerError, OpenLedgerError,
    heads::{HeadRecord, Replaced, is_ledger_name},
};
use crate::records::{Records, family};

/// Whose ledger it is to be.
pub(crate) struct Standing<'a> {
    pub(crate) data_dir: &'a Path,
    pub(crate) trust_domain: &'a TrustDomain,
    pub(crate) cluster: &'a str,
    /// Whom to believe about heads.
    pub(crate) roots: Option<&'a TrustBundle>,
    /// Whether other replicas keep heads in the store.
    pub(crate) shared: bool,
    /// The ledger that is lost for good, as the operator says.
    pub(crate) replaces: Option<&'a str>,
}

/// A head, and the ledger that it is of.
type Named = (String, HeadRecord, alcazar_store::Revision);

/// Refuses a ledger that is not the one that the CA had, or has lost some of it. Remembers its name.
pub(super) async fn check(ledger: &Ledger, records: &Records, standing: &Standing<'_>) -> Result<(), OpenLedgerError> {
    let name = ledger.name();
    let remembered = remembered(standing.data_dir).await?;
    let heads = heads(records).await?;
    let own = heads.iter().find(|(of, ..)| *of == name);
    if let Some((_, head, _)) = own {
        compare(ledger, head, standing).await?;
    }
    let others = || heads.iter().filter(|(of, head, _)| *of != name && head.replaced.is_none());
    let lost: Vec<_> = match &remembered {
        Some(before) if *before != name => vec![before.clone()],
        None if own.is_none() && !standing.shared => others().map(|(of, ..)| of.clone()).collect(),
        _ => Vec::new(),
    };
    let newest = |of: &String| heads.iter().find(|(name, ..)| name == of);
    let last = lost.iter().max_by_key(|of| newest(of).map(|(_, head, _)| head.at));
    if let Some(expected) = last {
        let size = ledger.head().size;
        // A ledger with entries is somebody's; a new one has none.
        if standing.replaces != Some(expected) || size > 0 {
            let signed = newest(expected).map(|(_, head, _)| head.size).unwrap_or_default();
            return Err(OpenLedgerError::Exchanged { found: name, size, expected: expected.clone(), signed });
        }
        for (of, head, revision) in heads.iter().filter(|(of, ..)| lost.contains(of)) {
            let mut replaced = head.clone();
            replaced.replaced = Some(Replaced { by: name.clone() });
            records.put(family::HEADS, of, Expected::At(*revision), &replaced).await?;
        }
        let entries = newest(expected).map(|(_, head, _)| head.size).unwrap_or_default();
        tracing::warn!(
            ledger = name,
            lost = expected,
            entries,
            "a new ledger begins, as the configuration says; keep what there is of the lost one: it is the record of what was issued"
        );
    } else if own.is_none() && remembered.as_ref() == Some(&name) && ledger.head().size > 0 {
        // Each start puts a head there before anybody is served.
        tracing::error!(
            ledger = name,
            entries = ledger.head().size,
            "this CA has issued before, and the store knows nothing of it: it was moved, emptied or exchanged, and the revocations, registrations, join tokens and lineages that it held are gone; put it back from where it is or from its backup, or revoke anew what must stay revoked"
        );
    } else if own.is_none() && ledger.head().size == 0 && others().next().is_some() {
        let others = others().count();
        tracing::info!(ledger = name, others, "the ledger of a new replica begins; the store knows heads of others");
    }
    if remembered.as_ref() != Some(&name) {
        remember(standing.data_dir, name).await?;
    }
    Ok(())
}

/// The heads of all ledgers, this one's among them.
async fn heads(records: &Records) -> Result<Vec<Named>, OpenLedgerError> {
    let listing = records.store().list(&crate::records::prefix(family::HEADS)?).await;
    let mut heads = Vec::new();
    for entry in listing.map_err(crate::records::RecordError::from)?.entries {
        let name = entry.key().name().to_owned();
        if is_ledger_name(&name) {
            let stored = crate::records::read::<HeadRecord>(&entry)?;
            heads.push((name, stored.record, stored.revision));
        }
    }
    Ok(heads)
}

/// Compares the ledger with the head that was last kept of it.
async fn compare(ledger: &Ledger, known: &HeadRecord, standing: &Standing<'_>) -> Result<(), OpenLedgerError> {
    let (name, size, signed) = (ledger.name(), ledger.head().size, Hash::from(known.root));
    if let Some(Replaced { by }) = &known.replaced {
        return Err(OpenLedgerError::Replaced { ledger: name, by: by.clone() });
    }
    if known.trust_domain != *standing.trust_domain || known.cluster != standing.cluster {
        let (trust_domain, cluster) = (known.trust_domain.clone(), known.cluster.clone());
        return Err(OpenLedgerError::OfAnother { ledger: name, trust_domain, cluster });
    }
    if let (Some(roots), Some(signed)) = (standing.roots, known.clone().signed(&name))
        && let Err(error) = signed.verify(roots)
    {
        // Its root may be trusted no more. What it says is compared all the same: the ledger must be able to go on from it.
        tracing::warn!(ledger = name, reason = %process::chain(&error), "who signed the last head of the ledger cannot be verified");
    }
    if size < known.size {
        return Err(OpenLedgerError::Shrunk { ledger: name, size, signed: known.size });
    }
    let found = ledger.root(known.size).await.map_err(|error| match error {
        LedgerError::Read(error) => OpenLedgerError::Read(error),
        _ => OpenLedgerError::Interrupted,
    })?;
    if found != signed {
        return Err(OpenLedgerError::Changed { ledger: name, size: known.size, found, signed });
    }
    Ok(())
}

/// The name of the ledger that this data folder had last.
async fn remembered(data_dir: &Path) -> Result<Option<String>, OpenLedgerError> {
    let path = data_dir.join(NAME_FILE);
    blocking(move || match fs::read_to_string(&path) {
        Ok(name) if is_ledger_name(name.trim_end()) => Ok(Some(name.trim_end().to_owned())),
        Ok(_) => Err(OpenLedgerError::NameFile { path }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(OpenLedgerError::NameFile { path }),
        Err(source) => Err(OpenLedgerError::Name { doing: "read", path, source }),
    })
    .await
}

async fn remember(data_dir: &Path, name: String) -> Result<(), OpenLedgerError> {
    let path = data_dir.join(NAME_FILE);
    blocking(move || {
        let written = write_atomic(&path, format!("{name}\n").as_bytes(), 0o600);
        written.map_err(|source| OpenLedgerError::Name { doing: "write", path, source })
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, OpenLedgerError> + Send + 'static,
) -> Result<T, OpenLedgerError> {
    task::spawn_blocking(work).await.map_err(|_panic| OpenLedgerError::Interrupted)?
}

/// The file in the data folder, beside the ledger's own.
const NAME_FILE: &str = "ledger-name";

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        time::{Duration, SystemTime},
    };

    use super::*;
    use crate::{Ca, Config, overheard::overhear};

    #[tokio::test]
    async fn a_ca_whose_store_was_moved_away_says_what_is_gone_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let errors = Arc::new(AtomicUsize::new(0));
        let counted = errors.clone();
        let _guard = overhear(move |event| {
            if *event.metadata().level() == tracing::Level::ERROR {
                counted.fetch_add(1, Ordering::SeqCst);
            }
        });
        let noon = || SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let open = async || {
            let ca = Ca::open(Config::new(folder.path()), Arc::new(noon)).await.unwrap();
            ca.close().await;
            errors.swap(0, Ordering::SeqCst)
        };
        assert_eq!([open().await, open().await], [0, 0]);
        fs::rename(folder.path().join("store"), folder.path().join("away")).unwrap();
        assert_eq!(open().await, 1);
        // Said once: from then on the store knows the ledger.
        assert_eq!(open().await, 0);
    }
}
