//! What the CA does to its hierarchy: open it, renew it, and the steps of which a rotation is made.
//!
//! Each act has its turn; what it changes is in the store before anybody stands on it.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use alcazar_identity::Fingerprint;
use alcazar_service::process;
use alcazar_store::Expected;
use serde::{Deserialize, Serialize};
use tokio::task;

use super::{
    Authorities, Hierarchy, HierarchyError, HierarchyFiles, Signing, TrustState,
    files::{Opened, Remembered},
    heard::{Heard, HeardPatience},
    trust::Active,
};
use crate::{
    authority::AuthorityInfo,
    ca::Ca,
    config::Config,
    jwt_authority::keys::JwtKey,
    patience::Patience,
    records::{Records, Stored, family, text},
};

/// Opens the hierarchy, and remembers what was made.
pub(crate) async fn open(
    records: &Records,
    files: &HierarchyFiles,
    config: &Config,
    now: SystemTime,
) -> Result<Hierarchy, HierarchyError> {
    let remembered = remembered(records, files).await?;
    let (opener, known) = (files.clone(), remembered.clone());
    let heard = match blocking(move || Ok(opener.waits_to_be_heard_of(&known, now))).await? {
        true => Heard::of(records, config, None, now).await?,
        false => Heard::default(),
    };
    let (opener, known) = (files.clone(), remembered.clone());
    let opened = blocking(move || opener.open(&known, None, &heard, now)).await?;
    settle(records, files, &remembered, &opened).await?;
    say_who_is_waited_for(&mut Vec::new(), &opened.waits);
    Hierarchy::new(&opened.trust, opened.signing, &config.trust_domain)
}

/// Every root and intermediate that is here, and every root that is trusted.
pub(crate) async fn held(files: &HierarchyFiles, hierarchy: &Hierarchy) -> Result<Vec<AuthorityInfo>, HierarchyError> {
    let files = files.clone();
    let here = blocking(move || files.authorities()).await?;
    let standing = [hierarchy.root(), hierarchy.intermediate().info()].into_iter().cloned();
    let all = hierarchy.roots().iter().cloned().chain(standing).chain(here.roots).chain(here.intermediates);
    let mut held: Vec<AuthorityInfo> = Vec::new();
    for info in all {
        if !held.contains(&info) {
            held.push(info);
        }
    }
    Ok(held)
}

impl Ca {
    /// Makes a root that nobody trusts yet.
    ///
    /// # Errors
    /// When the key store or the disk does not take it.
    pub async fn make_root(&self) -> Result<AuthorityInfo, HierarchyError> {
        let _turn = self.0.hierarchy_turn.lock().await;
        let (files, now) = (self.0.files.clone(), (self.0.clock)());
        let made = blocking(move || files.make_root(now)).await?;
        self.record_authority(&made).await?;
        Ok(made)
    }

    /// Makes an intermediate of this cluster under a root whose key is here. Nothing signs with it until it is activated.
    ///
    /// # Errors
    /// When the root's key is not here, or the key store or the disk does not take it.
    pub async fn make_intermediate(&self, root: Fingerprint) -> Result<AuthorityInfo, HierarchyError> {
        let _turn = self.0.hierarchy_turn.lock().await;
        let (files, now) = (self.0.files.clone(), (self.0.clock)());
        let made = blocking(move || files.make_intermediate(root, now)).await?;
        self.record_authority(&made).await?;
        Ok(made)
    }

    /// Signs with this intermediate from now on. Its root must be trusted.
    ///
    /// # Errors
    /// When it is not here, is revoked, or its root is not trusted.
    pub async fn activate(&self, intermediate: Fingerprint) -> Result<(), HierarchyError> {
        let (files, now) = (self.0.files.clone(), (self.0.clock)());
        let next = blocking(move || files.load(intermediate, now)).await?;
        self.announce(&next).await?;
        let _turn = self.0.hierarchy_turn.lock().await;
        if self.revoked_intermediate(intermediate).is_some() {
            return Err(HierarchyError::Revoked { intermediate });
        }
        let files = self.0.files.clone();
        let now = (self.0.clock)();
        let signing = blocking(move || files.load(intermediate, now)).await?;
        let trust = self.trust_state().await?.record;
        if !trust.trusts(signing.root.fingerprint) {
            return Err(HierarchyError::NotTrusted { intermediate, root: signing.root.fingerprint });
        }
        self.record_authority(signing.authority.info()).await?;
        let (files, before) = (self.0.files.clone(), self.hierarchy().intermediate().info().fingerprint);
        blocking(move || files.succeed(intermediate, before, now)).await?;
        remember_active(&self.0.records, intermediate).await?;
        self.publish(&trust, signing).await
    }

    /// Trusts exactly these roots, which are trusted already or lie here; the sequence of the set. That of the signing
    /// intermediate must be among them.
    ///
    /// # Errors
    /// When that of the signing intermediate is left out, or one is neither trusted nor here.
    pub async fn set_trusted_roots(&self, roots: &[Fingerprint]) -> Result<u64, HierarchyError> {
        let _turn = self.0.hierarchy_turn.lock().await;
        let active = self.hierarchy().root().fingerprint;
        if !roots.contains(&active) {
            return Err(HierarchyError::InUse { fingerprint: active });
        }
        loop {
            let present = self.trust_state().await?;
            let mut certificates = Vec::new();
            for root in roots.iter().collect::<BTreeSet<_>>() {
                let trusted = present.record.infos()?.into_iter().find(|info| info.fingerprint == *root);
                let (files, root) = (self.0.files.clone(), *root);
                certificates.push(match trusted {
                    Some(info) => info.certificate,
                    None => blocking(move || files.root_certificate(root)).await?,
                });
            }
            let Some(next) = present.record.exactly(certificates) else { return Ok(present.record.sequence) };
            match self.put_trust(&present, &next).await {
                Err(error) if error.is_conflict() => {}
                Err(error) => return Err(error),
                Ok(()) => {
                    self.publish(&next, self.hierarchy().signing().clone()).await?;
                    return Ok(next.sequence);
                }
            }
        }
    }

    /// Changes the trusted roots by the operator's hand; `None` changes nothing. `change` is asked while nobody else changes the
    /// hierarchy here, and again when another replica was quicker.
    pub(crate) async fn change_trusted_roots(
        &self,
        change: impl Fn(&TrustState) -> Option<TrustState>,
    ) -> Result<(), HierarchyError> {
        let _turn = self.0.hierarchy_turn.lock().await;
        loop {
            let present = self.trust_state().await?;
            let Some(next) = change(&present.record) else { return Ok(()) };
            match self.put_trust(&present, &next).await {
                Err(error) if error.is_conflict() => {}
                Err(error) => return Err(error),
                Ok(()) => return self.publish(&next, self.hierarchy().signing().clone()).await,
            }
        }
    }

    /// From when on nothing stands on a root any more, where that is known.
    pub(crate) async fn root_retires_at(&self, root: Fingerprint) -> Result<Option<SystemTime>, HierarchyError> {
        let trust = self.trust_state().await?.record;
        let trusted = trust.roots.iter().find(|trusted| Fingerprint::of(&trusted.certificate) == root);
        Ok(trusted.and_then(|trusted| trusted.retire_at).map(|at| at.0))
    }

    /// Changes the keys for JWT-SVIDs in the trust state, and in what everybody believes; `None` changes nothing. `change` is
    /// asked again when another replica was quicker.
    pub(crate) async fn change_jwt_keys(
        &self,
        change: impl Fn(&[JwtKey]) -> Option<Vec<JwtKey>>,
    ) -> Result<(), HierarchyError> {
        let _turn = self.0.hierarchy_turn.lock().await;
        loop {
            let present = self.trust_state().await?;
            let Some(keys) = change(&present.record.jwt_keys) else { return Ok(()) };
            let next = present.record.with_jwt_keys(keys);
            match self.put_trust(&present, &next).await {
                Err(error) if error.is_conflict() => {}
                Err(error) => return Err(error),
                Ok(()) => {
                    let hierarchy = Hierarchy::new(&next, self.hierarchy().signing().clone(), self.trust_domain())?;
                    self.0.hierarchy.send_replace(Arc::new(hierarchy));
                    self.serve_with_new_bundles();
                    return Ok(());
                }
            }
        }
    }

    /// Removes a root and its key from the disk. It must not be trusted any more.
    ///
    /// # Errors
    /// When it is trusted, or the disk does not let go of it.
    pub async fn forget_root(&self, root: Fingerprint) -> Result<(), HierarchyError> {
        let _turn = self.0.hierarchy_turn.lock().await;
        if self.trust_state().await?.record.trusts(root) {
            return Err(HierarchyError::InUse { fingerprint: root });
        }
        let files = self.0.files.clone();
        blocking(move || files.forget_root(root)).await
    }

    /// Removes an intermediate and its key from the disk. It must not be the one that signs.
    ///
    /// # Errors
    /// When it signs, or the disk does not let go of it.
    pub async fn forget_intermediate(&self, intermediate: Fingerprint) -> Result<(), HierarchyError> {
        let _turn = self.0.hierarchy_turn.lock().await;
        if self.hierarchy().intermediate().info().fingerprint == intermediate {
            return Err(HierarchyError::InUse { fingerprint: intermediate });
        }
        let files = self.0.files.clone();
        blocking(move || files.forget_intermediate(intermediate)).await
    }

    /// Every root and intermediate on the disk, trusted or not, signing or not.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub async fn authorities(&self) -> Result<Authorities, HierarchyError> {
        let files = self.0.files.clone();
        blocking(move || files.authorities()).await
    }

    /// Looks at the hierarchy again: renews the intermediate when it is due, takes over what a person plugged in and what another
    /// replica changed, and drops roots whose time is over. Where the disk cannot be used, what is in memory goes on.
    ///
    /// # Errors
    /// When what is on the disk, or in the store, cannot be used.
    pub async fn look_after_hierarchy(&self) -> Result<(), HierarchyError> {
        let _turn = self.0.hierarchy_turn.lock().await;
        self.try_look_after_hierarchy().await
    }

    /// What is wrong with the CA's certificates on the disk, or what a person must do about them; what is in memory goes on.
    pub fn hierarchy_trouble(&self) -> Option<String> {
        self.0.hierarchy_trouble.borrow().clone()
    }

    async fn try_look_after_hierarchy(&self) -> Result<(), HierarchyError> {
        let now = (self.0.clock)();
        let present = self.trust_state().await?;
        // Of a root that is being rotated to or away from it is for the rotation to say when nothing stands on it any more.
        let rotates = self.rotating_roots().await?;
        let due: Vec<_> = present.record.retired(now).into_iter().filter(|root| !rotates.contains(root)).collect();
        let retired = self.0.hierarchy_patience.retired.over(due, now);
        if let Some(next) = present.record.without(&retired)
            && next.trusts(self.hierarchy().root().fingerprint)
        {
            self.put_trust(&present, &next).await?;
            tracing::info!(target: "alcazar::rotation", sequence = next.sequence, "a root that nothing stands on any more is not trusted any more");
        }
        let remembered = remembered(&self.0.records, &self.0.files).await?;
        let patience = &self.0.hierarchy_patience.heard;
        let (files, known) = (self.0.files.clone(), remembered.clone());
        let look = move || Ok((files.waits_to_be_heard_of(&known, now), files.root_above_plugged(now)));
        let (waits, plugged) = blocking(look).await?;
        // Of a root that is known to all a rotation may say that it is not to sign now, or not yet again.
        let rotation = match plugged {
            Some(root) => self.awaited_before_signing(root).await?,
            None => None,
        };
        let heard = match waits || rotation.is_some() {
            true => {
                let heard = Heard::of(&self.0.records, self.config(), Some(patience), now).await?;
                heard.with_rotation(rotation)
            }
            false => Heard::nobody_waits(&self.0.records, patience, now).await?,
        };
        let heard = match &remembered.trust {
            Some(trust) => heard.measured(trust, patience, now),
            None => heard,
        };
        let (files, known) = (self.0.files.clone(), remembered.clone());
        let held = self.hierarchy();
        let present = held.signing().clone();
        let opened = blocking(move || files.open(&known, Some(&present), &heard, now)).await?;
        if held.intermediate().info() != opened.signing.authority.info() {
            self.record_authority(opened.signing.authority.info()).await?;
            self.announce(&opened.signing).await?;
        }
        for root in opened.trust.infos()? {
            if !held.trusts(root.fingerprint) {
                self.record_authority(&root).await?;
            }
        }
        settle(&self.0.records, &self.0.files, &remembered, &opened).await?;
        say_who_is_waited_for(&mut self.0.hierarchy_patience.waits(), &opened.waits);
        let active = opened.signing.authority.info().fingerprint;
        if !held.signing().is_like(&opened.signing)
            || held.bundles().get(self.trust_domain()).map(|bundle| bundle.sequence()) != Some(opened.trust.sequence)
        {
            self.publish(&opened.trust, opened.signing).await?;
        }
        // Last of all: nobody signs with any of them any more.
        self.forget_what_is_over(active, remembered.leaf_life, now).await
    }

    /// Forgets the intermediates that were replaced, once no leaf of them is alive: not one that a rotation may go back to, nor one
    /// that another replica signs with, perhaps by the same key in a token.
    async fn forget_what_is_over(
        &self,
        active: Fingerprint,
        leaf_life: Duration,
        now: SystemTime,
    ) -> Result<(), HierarchyError> {
        if self.0.records.rotation().await?.is_some_and(|found| !found.record.rotation.is_over()) {
            return Ok(());
        }
        let files = self.0.files.clone();
        let mut over = blocking(move || files.over(active, leaf_life, now)).await?;
        let known = self.0.presences.known();
        over.retain(|old| {
            !known.iter().any(|state| state.signs_elsewhere(now) && state.presence.signing.intermediate == *old)
        });
        for old in self.0.hierarchy_patience.replaced.over(over, now) {
            let files = self.0.files.clone();
            blocking(move || files.forget_intermediate(old)).await?;
            tracing::info!(target: "alcazar::rotation", fingerprint = %old, "an intermediate that was replaced is gone, with its key: nothing that it signed is good any more");
        }
        Ok(())
    }

    /// Everybody who issues, and everybody who watches, goes on with this.
    pub(super) async fn publish(&self, trust: &TrustState, signing: Signing) -> Result<(), HierarchyError> {
        let hierarchy = Hierarchy::new(trust, signing, self.trust_domain())?;
        let (intermediate, root) = (hierarchy.intermediate().info().fingerprint, hierarchy.root().fingerprint);
        self.record_authority(hierarchy.intermediate().info()).await?;
        tracing::info!(target: "alcazar::rotation", sequence = trust.sequence, roots = trust.roots.len(), %intermediate, %root, "the hierarchy changed");
        self.0.hierarchy.send_replace(Arc::new(hierarchy));
        // The one that the CA serves with is of the old moment; a failure is tried again by the task that rotates it.
        if let Err(error) = self.renew_serving().await {
            tracing::error!(reason = %process::chain(&error), "the CA's serving certificate was not renewed; the present one stays");
        }
        Ok(())
    }

    pub(crate) async fn trust_state(&self) -> Result<Stored<TrustState>, HierarchyError> {
        self.0.records.get(family::TRUST, STATE).await?.ok_or(HierarchyError::NoState)
    }

    pub(super) async fn put_trust(
        &self,
        present: &Stored<TrustState>,
        next: &TrustState,
    ) -> Result<(), HierarchyError> {
        self.0.records.put(family::TRUST, STATE, Expected::At(present.revision), next).await?;
        Ok(())
    }
}

/// What the store remembers.
pub(crate) async fn remembered(records: &Records, files: &HierarchyFiles) -> Result<Remembered, HierarchyError> {
    let trust = records.get::<TrustState>(family::TRUST, STATE).await?.map(|stored| stored.record);
    let active = match records.get::<Active>(family::TRUST, &active_of(records)).await? {
        Some(stored) => Some(stored.record.intermediate),
        None => inherited(records, files).await?.map(|stored| stored.record.intermediate),
    };
    let root = records.get::<RootRecord>(family::HIERARCHY, "root").await?.map(|stored| stored.record.fingerprint);
    let leaf_life = files.plugged.leaf_life().max(records.longest_life().await?);
    Ok(Remembered { trust, active, root, leaf_life })
}

/// Writes down what was found or made.
pub(super) async fn settle(
    records: &Records,
    files: &HierarchyFiles,
    remembered: &Remembered,
    opened: &Opened,
) -> Result<(), HierarchyError> {
    if remembered.trust.as_ref() != Some(&opened.trust) {
        let stored = records.get::<TrustState>(family::TRUST, STATE).await?;
        let expected = match stored {
            None => Expected::Absent,
            Some(stored) if Some(&stored.record) == remembered.trust.as_ref() => Expected::At(stored.revision),
            // Another replica was faster: what it wrote is taken over at the next look.
            Some(_) => return Err(HierarchyError::Raced),
        };
        records.put(family::TRUST, STATE, expected, &opened.trust).await?;
    }
    let active = opened.signing.authority.info().fingerprint;
    let inherited = inherited(records, files).await?;
    if remembered.active != Some(active) || inherited.is_some() {
        remember_active(records, active).await?;
    }
    if let Some(old) = inherited {
        match records.delete(family::TRUST, ACTIVE, old.revision).await {
            Err(error) if !error.is_conflict() => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

/// Says whom a new root waits for, when that changes; what changes with each second is not said again.
fn say_who_is_waited_for(said: &mut Vec<String>, waits: &[String]) {
    let names =
        |waits: &[String]| waits.iter().map(|name| name.split(',').next().map(str::to_owned)).collect::<Vec<_>>();
    if !waits.is_empty() && names(said) != names(waits) {
        let waits = waits.join("; ");
        tracing::warn!(target: "alcazar::rotation", waits, "a new root is trusted; what is under it signs when these have heard of it, and what signed before goes on until then");
    }
    *said = waits.to_vec();
}

/// What is not done at first sight.
#[derive(Debug, Default)]
pub(crate) struct HierarchyPatience {
    retired: Patience<Fingerprint>,
    replaced: Patience<Fingerprint>,
    heard: HeardPatience,
    waits: Mutex<Vec<String>>,
}

impl HierarchyPatience {
    fn waits(&self) -> MutexGuard<'_, Vec<String>> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// There is one writer: this replica.
async fn remember_active(records: &Records, intermediate: Fingerprint) -> Result<(), HierarchyError> {
    let name = active_of(records);
    let stored = records.get::<Active>(family::TRUST, &name).await?;
    let expected = stored.as_ref().map_or(Expected::Absent, |stored| Expected::At(stored.revision));
    records.put(family::TRUST, &name, expected, &Active { intermediate }).await?;
    Ok(())
}

/// What was written down before each replica had a record of its own, where it is this replica's.
async fn inherited(records: &Records, files: &HierarchyFiles) -> Result<Option<Stored<Active>>, HierarchyError> {
    let Some(found) = records.get::<Active>(family::TRUST, ACTIVE).await? else { return Ok(None) };
    let (folder, fingerprint) = (files.folder.clone(), found.record.intermediate);
    let here = !files.shared || blocking(move || Ok(folder.has_intermediate(fingerprint))).await?;
    Ok(here.then_some(found))
}

fn active_of(records: &Records) -> String {
    format!("{ACTIVE}-{}", records.replica())
}

/// Keys and certificates are read and made where a thread may wait for a disk, a passphrase or a token.
pub(crate) async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, HierarchyError> + Send + 'static,
) -> Result<T, HierarchyError> {
    task::spawn_blocking(act).await.map_err(|_ending| HierarchyError::Interrupted)?
}

/// The root, as the first version of this program wrote it down.
#[derive(Serialize, Deserialize)]
struct RootRecord {
    #[serde(with = "text")]
    fingerprint: Fingerprint,
}

const STATE: &str = "state";
const ACTIVE: &str = "active";
