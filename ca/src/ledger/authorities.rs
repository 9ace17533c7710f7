//! Roots and intermediates on record: who can sign for the CA is to be seen in its ledger, like what was signed.

use std::time::SystemTime;

use alcazar_identity::{Fingerprint, TrustDomain};

use super::{Entry, Ledger, LedgerError, Query, Recorded, Term, term};
use crate::{authority::AuthorityInfo, ca::Ca};

impl Ledger {
    /// Puts those on record that are not there yet.
    pub(crate) async fn record_authorities(
        &self,
        held: impl IntoIterator<Item = &AuthorityInfo>,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<(), LedgerError> {
        for info in held {
            let serial = info.serial();
            // A stranger's root may have a serial number that something else has.
            let known = self.all_of_serial(&serial).await?;
            if known.iter().any(|known| known.kind.certificate() == Some(&info.certificate)) {
                continue;
            }
            self.record(&Entry::Authority { info, trust_domain, at: now, caller: CALLER }).await?;
            tracing::info!(target: "alcazar::issued", serial, fingerprint = %info.fingerprint, not_after = %alcazar_identity::rfc3339(info.validity.not_after()), "an authority of this CA is on record");
        }
        Ok(())
    }

    /// An authority that was put on record, whoever has its key.
    pub(crate) async fn authority(
        &self,
        print: Fingerprint,
        trust_domain: &TrustDomain,
    ) -> Result<Option<AuthorityInfo>, LedgerError> {
        let of_all = Some((term::IDENTITY, Term::of(trust_domain.to_uri().as_bytes())));
        let is_it = move |found: &Recorded| {
            found.kind.is_authority() && found.kind.certificate().is_some_and(|der| Fingerprint::of(der) == print)
        };
        let found = self.search(Query { term: of_all, ..Query::default() }, 1, is_it).await?.pop();
        Ok(found.and_then(|found| AuthorityInfo::parse(found.kind.certificate()?.clone()).ok()))
    }
}

impl Ca {
    /// Puts an authority on record, where it is not there yet: before anything is signed with it.
    pub(crate) async fn record_authority(&self, info: &AuthorityInfo) -> Result<(), LedgerError> {
        let now = crate::issue::whole_seconds((self.0.clock)());
        self.0.ledger.record_authorities([info], self.trust_domain(), now).await
    }
}

/// Nobody asks for an authority.
const CALLER: &str = "ca";
