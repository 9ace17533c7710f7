//! What an operator does and asks: join tokens, registrations, and what is on record.

use std::time::{Duration, SystemTime};

use alcazar_identity::SpiffeId;
use alcazar_store::Expected;

use super::{AdminError, Ca, OpenError};
use crate::{
    ledger::{Filter, LedgerError, Recorded},
    records::{Registration, RegistrationId, TokenRecord, family},
    token::JoinToken,
};

impl Ca {
    /// Makes a token that admits `node` once, within `ttl` (10 minutes where `None`); the token and its end.
    ///
    /// # Errors
    /// When it is not the identity of a node of this cluster, or the store does not answer.
    pub async fn create_join_token(
        &self,
        node: &SpiffeId,
        ttl: Option<Duration>,
    ) -> Result<(JoinToken, SystemTime), AdminError> {
        use alcazar_identity::SpiffeIdKind::Node;
        if !matches!(node.kind(), Node { .. }) || node.trust_domain() != self.trust_domain() {
            return Err(AdminError::NotANode(node.clone()));
        }
        self.own_node(node)?;
        self.permits(node)?;
        let ttl = ttl.unwrap_or(TOKEN_TTL);
        if ttl > TOKEN_MAX_TTL {
            return Err(AdminError::TokenTtl(ttl));
        }
        let token = JoinToken::random(self.hierarchy().root().fingerprint)?;
        let expires = crate::issue::whole_seconds((self.0.clock)() + ttl);
        let record = TokenRecord { node: node.clone(), expires, consumed: None };
        self.0.records.put(family::TOKENS, token.hash().as_str(), Expected::Absent, &record).await?;
        tracing::info!(node = %node, expires = %alcazar_identity::rfc3339(expires), "made a join token");
        Ok((token, expires))
    }

    /// Adds a registration, or replaces the one of the same name.
    ///
    /// # Errors
    /// When it is of another trust domain or for a node of another cluster, its life is too long, or the store does not answer.
    pub async fn put_registration(&self, registration: Registration) -> Result<(), AdminError> {
        if registration.spiffe_id().trust_domain() != self.trust_domain() {
            return Err(AdminError::Foreign(registration.spiffe_id().clone()));
        }
        self.own_node(registration.node())?;
        crate::config::check_registration(&registration, &self.0.profiles)?;
        loop {
            let name = registration.id().as_str();
            let found = self.0.records.get::<Registration>(family::REGISTRATIONS, name).await?;
            let expected = match found {
                Some(stored) if stored.record == registration => return Ok(()),
                Some(stored) => Expected::At(stored.revision),
                None => Expected::Absent,
            };
            match self.0.records.put(family::REGISTRATIONS, name, expected, &registration).await {
                Err(error) if error.is_conflict() => {}
                outcome => return Ok(outcome.map(drop)?),
            }
        }
    }

    /// Removes a registration; whether there was one.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn delete_registration(&self, id: &RegistrationId) -> Result<bool, AdminError> {
        loop {
            let Some(found) = self.0.records.get::<Registration>(family::REGISTRATIONS, id.as_str()).await? else {
                return Ok(false);
            };
            match self.0.records.delete(family::REGISTRATIONS, id.as_str(), found.revision).await {
                Err(error) if error.is_conflict() => {}
                outcome => return Ok(outcome.map(|()| true)?),
            }
        }
    }

    /// Every registration.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn registrations(&self) -> Result<Vec<Registration>, AdminError> {
        let (stored, _) = self.0.records.list::<Registration>(family::REGISTRATIONS).await?;
        Ok(stored.into_iter().map(|stored| stored.record).collect())
    }

    /// The newest `limit` things on record, of one identity where it is given.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn issued(&self, id: Option<&SpiffeId>, limit: usize) -> Result<Vec<Recorded>, LedgerError> {
        self.recorded(Filter { identity: id.cloned(), ..Filter::default() }, limit).await
    }

    /// The newest `limit` things on record that are looked for.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn recorded(&self, filter: Filter, limit: usize) -> Result<Vec<Recorded>, LedgerError> {
        self.0.ledger.list(filter, limit).await
    }

    /// What has this serial number, in lower-case hexadecimal, or is the token of this id.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn find_serial(&self, serial: &str) -> Result<Option<Recorded>, LedgerError> {
        self.0.ledger.find_serial(serial).await
    }

    /// Everything on record that names the identity and is not over at `now`, the newest first.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn live_of_identity(&self, id: &SpiffeId, now: SystemTime) -> Result<Vec<Recorded>, LedgerError> {
        self.0.ledger.live_of_identity(id, now).await
    }

    fn own_node(&self, node: &SpiffeId) -> Result<(), AdminError> {
        let config = &self.0.config;
        if config.has_node(node) {
            return Ok(());
        }
        Err(AdminError::OtherCluster { node: node.clone(), cluster: config.cluster.clone() })
    }

    /// Makes the configured registrations those that the store has from a configuration.
    pub(super) async fn reconcile(&self, configured: Vec<Registration>) -> Result<(), OpenError> {
        let failed = |error: AdminError| OpenError::Registrations(Box::new(error));
        for old in self.registrations().await.map_err(failed)? {
            if old.is_configured() && !configured.iter().any(|new| new.id() == old.id()) {
                self.delete_registration(old.id()).await.map_err(failed)?;
            }
        }
        for registration in configured {
            self.put_registration(registration).await.map_err(failed)?;
        }
        Ok(())
    }
}

const TOKEN_TTL: Duration = Duration::from_secs(600);
pub(super) const TOKEN_MAX_TTL: Duration = Duration::from_secs(24 * 3600);
