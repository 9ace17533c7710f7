//! Looks after the keys: makes the next in time, takes the old out of the bundle, destroys their private halves.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use alcazar_identity::rfc3339;
use alcazar_service::{Shutdown, process};
use rcgen::PublicKeyData;
use thiserror::Error;
use tokio::task;

use super::keys::{self, JwtKey, Lives, Plan};
use crate::{
    ca::Ca,
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
    turn: tokio::sync::Mutex<()>,
}

impl JwtKeys {
    pub(super) fn signers(&self) -> MutexGuard<'_, BTreeMap<String, Arc<dyn Signer>>> {
        self.signers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ca {
    /// Makes the keys for JWT-SVIDs what they should be at this moment. A running CA does it by itself, now and then.
    ///
    /// # Errors
    /// When a key cannot be made or opened, or the store does not answer. What is there goes on.
    pub async fn look_after_jwt_svids(&self) -> Result<(), JwtKeyError> {
        self.look_after_jwt_keys().await
    }

    /// A key that signs is in the bundle when this returns.
    pub(crate) async fn look_after_jwt_keys(&self) -> Result<(), JwtKeyError> {
        let _turn = self.0.jwt.turn.lock().await;
        let hierarchy = self.hierarchy();
        self.open_jwt_signers(hierarchy.jwt_keys()).await?;
        let now = (self.0.clock)();
        let held = self.0.jwt.signers().keys().cloned().collect();
        let Plan { make, forget } = keys::plan(hierarchy.jwt_keys(), &held, self.jwt_lives(), now);
        if let Some(signs_from) = make {
            self.make_jwt_key(signs_from, |keys, next, _lives| [keys, &[next]].concat()).await?;
        }
        if !forget.is_empty() {
            self.forget_jwt_keys(&forget).await?;
        }
        Ok(())
    }

    /// Replaces the signing key before its time: the next one is published now and signs once everybody has it; the key id, and
    /// the moment from which on it signs.
    ///
    /// # Errors
    /// When no key can be made, or the store does not answer.
    pub async fn rotate_jwt_key(&self) -> Result<(String, SystemTime), JwtKeyError> {
        let _turn = self.0.jwt.turn.lock().await;
        let signs_from = (self.0.clock)() + self.jwt_lives().lead;
        let key = self.make_jwt_key(signs_from, |keys, next, lives| keys::replaced_by(keys, &next, lives)).await?;
        Ok((key.key_id, key.signs_from))
    }

    /// Looks after the keys now and then, until the end.
    pub(crate) async fn follow_jwt_keys(self, shutdown: Shutdown) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
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
    /// that nobody knows.
    async fn make_jwt_key(
        &self,
        signs_from: SystemTime,
        join: impl Fn(&[JwtKey], JwtKey, Lives) -> Vec<JwtKey>,
    ) -> Result<JwtKey, JwtKeyError> {
        let key_id = KeyLabel::random(SORT)?.as_str().trim_start_matches(PREFIX).to_owned();
        let label = label(&key_id)?;
        let store = self.0.keys.clone();
        let signer =
            task::spawn_blocking(move || store.generate(&label)).await.map_err(|_panic| JwtKeyError::Interrupted)??;
        let public_key = SigningHandle(signer.clone()).subject_public_key_info();
        let (lives, now) = (self.jwt_lives(), (self.0.clock)());
        let key = JwtKey::new(key_id, public_key, signs_from, lives, now);
        self.change_jwt_keys(|keys| Some(join(keys, key.clone(), lives))).await?;
        self.0.jwt.signers().insert(key.key_id.clone(), signer);
        tracing::info!(target: "alcazar::rotation", key_id = key.key_id, signs_from = %rfc3339(key.signs_from), signs_until = %rfc3339(key.signs_until), "a key for JWT-SVIDs was published");
        Ok(key)
    }

    /// Out of the bundle first: a key that is destroyed and still believed would do no harm, but nobody could say why it is there.
    async fn forget_jwt_keys(&self, forget: &[String]) -> Result<(), JwtKeyError> {
        self.change_jwt_keys(|keys| {
            let kept: Vec<_> = keys.iter().filter(|key| !forget.contains(&key.key_id)).cloned().collect();
            (kept.len() < keys.len()).then_some(kept)
        })
        .await?;
        for key_id in forget {
            let held = self.0.jwt.signers().remove(key_id).is_some();
            if held {
                let (store, label) = (self.0.keys.clone(), label(key_id)?);
                task::spawn_blocking(move || store.remove(&label))
                    .await
                    .map_err(|_panic| JwtKeyError::Interrupted)??;
            }
            tracing::info!(target: "alcazar::rotation", key_id, held, "a key for JWT-SVIDs is believed no more");
        }
        Ok(())
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
const LOOK: Duration = Duration::from_secs(60);
