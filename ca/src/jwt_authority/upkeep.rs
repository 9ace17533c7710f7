//! Looks after the keys: makes the next in time, takes the old out of the bundle, destroys their private halves.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use alcazar_identity::rfc3339;
use alcazar_service::{Shutdown, process};
use rcgen::PublicKeyData;
use thiserror::Error;
use tokio::task;

use super::keys::{self, JwtKey, Lives, Plan, Wanted};
use crate::{
    ca::Ca,
    clock_set::ClockSet,
    hierarchy::HierarchyError,
    keys::{KeyError, KeyLabel, ParseKeyLabelError},
    serial::NoRandomness,
    signer::{Signer, SigningHandle},
};

/// The signers of this replica, by the names of their keys.
#[derive(Default)]
pub(crate) struct JwtKeys {
    signers: Mutex<BTreeMap<String, Arc<dyn Signer>>>,
    /// One looks after them at a time.
    turn: tokio::sync::Mutex<Turn>,
}

/// What is remembered from one look to the next.
#[derive(Default)]
struct Turn {
    looks: u64,
    /// Keys that the clock says are over, and how many looks in a row have found it so.
    over: BTreeMap<String, u64>,
    /// A key that was made and could not be published: the next try takes it.
    spare: Option<(String, Arc<dyn Signer>)>,
    /// Private halves that nobody knows, as of the last sweep.
    unknown: BTreeSet<KeyLabel>,
}

impl Turn {
    /// Of these keys, which are over, those that have been so for long enough.
    fn surely_over(&mut self, over: &[String], lives: Lives) -> Vec<String> {
        self.over.retain(|key, _| over.contains(key));
        for key in over {
            *self.over.entry(key.clone()).or_default() += 1;
        }
        let enough = lives.doubt().as_secs().div_ceil(LOOK.as_secs());
        self.over.iter().filter(|(_, looks)| **looks > enough).map(|(key, _)| key.clone()).collect()
    }
}

impl JwtKeys {
    pub(super) fn signers(&self) -> MutexGuard<'_, BTreeMap<String, Arc<dyn Signer>>> {
        self.signers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ca {
    /// Makes the keys for JWT-SVIDs what they should be at this moment. A running CA does it by itself, once a minute.
    ///
    /// # Errors
    /// When a key cannot be made or opened, or the store does not answer. What is there goes on.
    pub async fn look_after_jwt_svids(&self) -> Result<(), JwtKeyError> {
        self.look_after_jwt_keys().await
    }

    /// A key that signs is in the bundle when this returns.
    pub(crate) async fn look_after_jwt_keys(&self) -> Result<(), JwtKeyError> {
        let mut turn = self.0.jwt.turn.lock().await;
        let hierarchy = self.hierarchy();
        self.open_jwt_signers(hierarchy.jwt_keys()).await?;
        self.destroy_unknown_jwt_keys().await?;
        let now = (self.0.clock)();
        let held = self.0.jwt.signers().keys().cloned().collect();
        let Plan { make, over } = keys::plan(hierarchy.jwt_keys(), &held, self.jwt_lives(), now);
        if let Some(signs_from) = make {
            // Beside those of a rotation it is of the same.
            let join = |keys: &[JwtKey], next, _lives| {
                let next = JwtKey { generation: keys::generation(keys), ..next };
                [keys, &[next]].concat()
            };
            self.make_jwt_key(&mut turn, signs_from, join).await?;
        }
        // A clock that jumped ahead makes no key over: it would be destroyed, and be missed when the clock is right again.
        let forget = turn.surely_over(&over, self.jwt_lives());
        if !forget.is_empty() {
            self.forget_jwt_keys(&forget).await?;
        }
        if turn.looks.is_multiple_of(LOOKS_TO_A_SWEEP) {
            self.sweep_jwt_keys(&mut turn).await?;
        }
        turn.looks += 1;
        Ok(())
    }

    /// Replaces the signing key before its time: the next one is published now and signs once everybody has it; the key id, and
    /// the moment from which on it signs.
    ///
    /// # Errors
    /// When no key can be made, or the store does not answer.
    pub async fn rotate_jwt_key(&self) -> Result<(String, SystemTime), JwtKeyError> {
        let mut turn = self.0.jwt.turn.lock().await;
        let signs_from = (self.0.clock)() + self.jwt_lives().lead;
        let key =
            self.make_jwt_key(&mut turn, signs_from, |keys, next, lives| keys::replaced_by(keys, &next, lives)).await?;
        Ok((key.key_id, key.signs_from))
    }

    /// Replaces every key at once: one of them was stolen. What they signed is believed by nobody who has heard of it, and everybody
    /// who checks must hear of the new one; the id of that, and those of the others.
    ///
    /// # Errors
    /// When no key can be made, or the store does not answer.
    pub(crate) async fn replace_stolen_jwt_keys(&self) -> Result<(String, Vec<String>), JwtKeyError> {
        let mut turn = self.0.jwt.turn.lock().await;
        // Whoever took one may have taken this as well; a sweep destroys it.
        turn.spare = None;
        let gone = Mutex::new(Vec::new());
        let alone = |keys: &[JwtKey], next: JwtKey, _lives| {
            let ids = keys.iter().map(|key| key.key_id.clone()).collect();
            *gone.lock().unwrap_or_else(PoisonError::into_inner) = ids;
            vec![JwtKey { at_once: true, ..next }]
        };
        let key = self.make_jwt_key(&mut turn, (self.0.clock)(), alone).await?;
        self.destroy_unknown_jwt_keys().await?;
        Ok((key.key_id, gone.into_inner().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Makes a key of this replica for a rotation, where there is none yet. It is published, and waits.
    pub(crate) async fn make_jwt_generation(&self, generation: u64) -> Result<(), JwtKeyError> {
        let mut turn = self.0.jwt.turn.lock().await;
        let hierarchy = self.hierarchy();
        self.open_jwt_signers(hierarchy.jwt_keys()).await?;
        let held = self.held_jwt_keys();
        let ours = |key: &&JwtKey| key.generation == Some(generation) && held.contains(&key.key_id);
        if hierarchy.jwt_keys().iter().find(ours).is_some() {
            return Ok(());
        }
        // A replica whose clock is behind is to take it for begun, too.
        let signs_from = (self.0.clock)().checked_sub(SKEW).unwrap_or(SystemTime::UNIX_EPOCH);
        let join = |keys: &[JwtKey], next: JwtKey, _lives| [keys, &[next.waiting(generation)]].concat();
        self.make_jwt_key(&mut turn, signs_from, join).await.map(drop)
    }

    /// Makes the standings what a rotation wants.
    pub(crate) async fn stand_jwt_keys(&self, wanted: Wanted) -> Result<(), JwtKeyError> {
        let _turn = self.0.jwt.turn.lock().await;
        let (lives, now) = (self.jwt_lives(), (self.0.clock)());
        self.change_jwt_keys(|keys| {
            let next = keys::standing(keys, wanted, lives, now);
            (next != keys).then_some(next)
        })
        .await?;
        Ok(())
    }

    /// Removes these from the trust state, and the private halves that are here.
    pub(crate) async fn forget_jwt_keys_that(&self, goes: impl Fn(&JwtKey) -> bool) -> Result<(), JwtKeyError> {
        let _turn = self.0.jwt.turn.lock().await;
        let hierarchy = self.hierarchy();
        // Also of a process that was ended in between: a key that is not open is not found again.
        self.open_jwt_signers(hierarchy.jwt_keys()).await?;
        let gone: Vec<_> = hierarchy.jwt_keys().iter().filter(|key| goes(key)).map(|key| key.key_id.clone()).collect();
        // The private halves first: what is not in the trust state any more is looked for by nobody after a crash.
        for key_id in &gone {
            self.destroy_jwt_key(key_id).await?;
        }
        self.forget_jwt_keys(&gone).await
    }

    /// The keys whose private halves are open here.
    pub(crate) fn held_jwt_keys(&self) -> BTreeSet<String> {
        self.0.jwt.signers().keys().cloned().collect()
    }

    /// Looks after the keys now and then, until the end.
    pub(crate) async fn follow_jwt_keys(self, shutdown: Shutdown) {
        let mut clock = ClockSet::new(&self.0.clock);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
                () = clock.wait() => {}
            }
            if let Err(error) = self.look_after_jwt_keys().await {
                tracing::error!(reason = %process::chain(&error), "the keys for JWT-SVIDs could not be looked after; the present ones go on");
            }
        }
    }

    fn jwt_lives(&self) -> Lives {
        self.0.config.jwt.lives(self.0.config.refresh_hint())
    }

    /// The private half first, then the public half in the store and in the bundle, then it signs: a crash in between leaves a key
    /// that nobody knows, which a sweep destroys. While the store is away, each try takes the same one.
    async fn make_jwt_key(
        &self,
        turn: &mut Turn,
        signs_from: SystemTime,
        join: impl Fn(&[JwtKey], JwtKey, Lives) -> Vec<JwtKey>,
    ) -> Result<JwtKey, JwtKeyError> {
        let (key_id, signer) = match &turn.spare {
            Some((key_id, signer)) => (key_id.clone(), signer.clone()),
            None => self.generate_jwt_key().await?,
        };
        turn.spare = Some((key_id.clone(), signer.clone()));
        let public_key = SigningHandle(signer.clone()).subject_public_key_info();
        let (lives, now) = (self.jwt_lives(), (self.0.clock)());
        let key = JwtKey::new(key_id, public_key, signs_from, lives, now).of(self.replica().as_str());
        let change = |keys: &[JwtKey]| {
            // A try that was said to fail may have been written all the same.
            let others: Vec<_> = keys.iter().filter(|other| other.key_id != key.key_id).cloned().collect();
            Some(join(&others, key.clone(), lives))
        };
        self.change_jwt_keys(change).await?;
        turn.spare = None;
        self.0.jwt.signers().insert(key.key_id.clone(), signer);
        tracing::info!(target: "alcazar::rotation", key_id = key.key_id, signs_from = %rfc3339(key.signs_from), signs_until = %rfc3339(key.signs_until), "a key for JWT-SVIDs was published");
        Ok(key)
    }

    async fn generate_jwt_key(&self) -> Result<(String, Arc<dyn Signer>), JwtKeyError> {
        let key_id = KeyLabel::random(SORT)?.as_str().trim_start_matches(PREFIX).to_owned();
        let (label, store) = (label(&key_id)?, self.0.keys.clone());
        let made = task::spawn_blocking(move || store.generate(&label)).await;
        Ok((key_id, made.map_err(|_panic| JwtKeyError::Interrupted)??))
    }

    /// Destroys private halves that nobody knows, left by a crash: those that two sweeps in a row have found. Only where they are
    /// this CA's own files: others may keep their keys on the same token.
    async fn sweep_jwt_keys(&self, turn: &mut Turn) -> Result<(), JwtKeyError> {
        if self.0.config.keys.pkcs11.is_some() {
            return Ok(());
        }
        let hierarchy = self.hierarchy();
        let published = hierarchy.jwt_keys().iter().map(|key| &key.key_id);
        let known: BTreeSet<_> = published.chain(turn.spare.iter().map(|(key_id, _)| key_id)).cloned().collect();
        let (store, before) = (self.0.keys.clone(), std::mem::take(&mut turn.unknown));
        let sweep = move || {
            let is_known = |label: &KeyLabel| match label.as_str().strip_prefix(PREFIX) {
                Some(key_id) => known.contains(key_id),
                None => true,
            };
            let unknown: BTreeSet<_> = store.labels()?.into_iter().filter(|label| !is_known(label)).collect();
            for label in unknown.intersection(&before) {
                store.remove(label)?;
                tracing::warn!(%label, "destroyed a private key for JWT-SVIDs that nobody knows: it was made before a crash, or while the store was away");
            }
            Ok::<_, JwtKeyError>(unknown)
        };
        turn.unknown = task::spawn_blocking(sweep).await.map_err(|_panic| JwtKeyError::Interrupted)??;
        Ok(())
    }

    /// Out of the bundle first: a key that is destroyed and still believed would do no harm, but nobody could say why it is there.
    async fn forget_jwt_keys(&self, forget: &[String]) -> Result<(), JwtKeyError> {
        self.change_jwt_keys(|keys| {
            let kept: Vec<_> = keys.iter().filter(|key| !forget.contains(&key.key_id)).cloned().collect();
            (kept.len() < keys.len()).then_some(kept)
        })
        .await?;
        for key_id in forget {
            let held = self.destroy_jwt_key(key_id).await?;
            tracing::info!(target: "alcazar::rotation", key_id, held, "a key for JWT-SVIDs is believed no more");
        }
        Ok(())
    }

    /// Destroys the private halves of keys that another replica took out of the trust state.
    async fn destroy_unknown_jwt_keys(&self) -> Result<(), JwtKeyError> {
        let known: BTreeSet<_> = self.hierarchy().jwt_keys().iter().map(|key| key.key_id.clone()).collect();
        for key_id in self.held_jwt_keys().difference(&known) {
            self.destroy_jwt_key(key_id).await?;
        }
        Ok(())
    }

    /// Whether its private half was here.
    async fn destroy_jwt_key(&self, key_id: &str) -> Result<bool, JwtKeyError> {
        let held = self.0.jwt.signers().remove(key_id).is_some();
        if held {
            let (store, label) = (self.0.keys.clone(), label(key_id)?);
            task::spawn_blocking(move || store.remove(&label)).await.map_err(|_panic| JwtKeyError::Interrupted)??;
        }
        Ok(held)
    }

    /// Opens those of the keys whose private halves are here and not open yet.
    async fn open_jwt_signers(&self, keys: &[JwtKey]) -> Result<(), JwtKeyError> {
        let known: Vec<_> = self.0.jwt.signers().keys().cloned().collect();
        let wanted: Vec<_> = keys.iter().map(|key| key.key_id.clone()).filter(|id| !known.contains(id)).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let store = self.0.keys.clone();
        let open = move || {
            let labels = store.labels()?;
            let mut opened = BTreeMap::new();
            for key_id in wanted {
                let label = label(&key_id)?;
                // Another replica's, where it is not here.
                if labels.contains(&label) {
                    opened.insert(key_id, store.open(&label)?);
                }
            }
            Ok::<_, JwtKeyError>(opened)
        };
        let opened = task::spawn_blocking(open).await.map_err(|_panic| JwtKeyError::Interrupted)??;
        self.0.jwt.signers().extend(opened);
        Ok(())
    }
}

fn label(key_id: &str) -> Result<KeyLabel, ParseKeyLabelError> {
    format!("{PREFIX}{key_id}").parse()
}

/// Why the keys could not be looked after.
#[derive(Debug, Error)]
pub enum JwtKeyError {
    /// A private half.
    #[error("a key for JWT-SVIDs cannot be used")]
    Key(#[from] KeyError),
    /// A name in the store that is none.
    #[error("the name of a key for JWT-SVIDs in the store makes no sense")]
    Label(#[from] ParseKeyLabelError),
    /// The public halves.
    #[error("the keys for JWT-SVIDs cannot be published")]
    Trust(#[from] HierarchyError),
    /// No random bytes.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
    /// The process ends.
    #[error("looking after the keys for JWT-SVIDs was interrupted")]
    Interrupted,
}

const SORT: &str = "jwt";
const PREFIX: &str = "jwt-";
/// By how much the clocks of replicas may differ.
const SKEW: Duration = Duration::from_secs(300);
const LOOK: Duration = Duration::from_secs(60);
/// An hour between two sweeps.
const LOOKS_TO_A_SWEEP: u64 = 60;
