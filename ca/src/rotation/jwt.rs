//! The keys for JWT-SVIDs, as the machine sees and orders them.
//!
//! Each replica signs with a key of its own, so what is exchanged is a generation: the keys that one rotation brought, and those
//! that were made in their place since. The anchors are named by the key that signed when it began, and the first that was made.

use std::collections::BTreeSet;

use super::{Anchor, Rotation, observe::Seen};
use crate::{
    ca::Ca,
    hierarchy::Hierarchy,
    jwt_authority::{
        JwtKeyError,
        keys::{self, JwtKey, Standing, Wanted},
    },
};

impl Ca {
    /// The key for JWT-SVIDs that signs here now.
    pub(super) fn signing_jwt_key(&self) -> Option<Anchor> {
        let (hierarchy, held) = (self.hierarchy(), self.held_jwt_keys());
        keys::signing(hierarchy.jwt_keys(), &held, (self.0.clock)()).map(|key| Anchor::new(key.key_id.clone()))
    }

    /// How the two generations are.
    pub(super) fn jwt_view(&self, rotation: &Rotation, hierarchy: &Hierarchy) -> Seen {
        view(rotation, hierarchy.jwt_keys(), &self.held_jwt_keys())
    }

    /// Lets those sign that are to, and takes out of the bundle those that nobody is to believe.
    pub(super) async fn settle_jwt_keys(
        &self,
        rotation: &Rotation,
        dropped: &BTreeSet<Anchor>,
        signing: &Anchor,
    ) -> Result<(), JwtKeyError> {
        let standing = |anchor: Option<&Anchor>| match anchor {
            Some(anchor) if dropped.contains(anchor) => Standing::Withdrawn,
            Some(anchor) if anchor == signing => Standing::Signs,
            _ => Standing::Waits,
        };
        let wanted = Wanted {
            generation: rotation.begun,
            new: standing(rotation.new.as_ref()),
            old: standing(Some(&rotation.old)),
        };
        self.stand_jwt_keys(wanted).await
    }

    /// Removes one of the two, public and private.
    pub(super) async fn forget_jwt_generation(&self, rotation: &Rotation, anchor: &Anchor) -> Result<(), JwtKeyError> {
        let new = *anchor != rotation.old;
        let generation = rotation.begun;
        self.forget_jwt_keys_that(|key| (key.generation == Some(generation)) == new && key.standing != Standing::Signs)
            .await
    }
}

/// How the two generations are, for one who holds the private halves of `held`.
fn view(rotation: &Rotation, all: &[JwtKey], held: &BTreeSet<String>) -> Seen {
    let is_new = |key: &&JwtKey| key.generation == Some(rotation.begun);
    let made = all.iter().filter(is_new).max_by_key(|key| (held.contains(&key.key_id), &key.key_id));
    let made = made.map(|key| Anchor::new(key.key_id.clone()));
    let (old, new) = (rotation.old.clone(), rotation.new.clone().or_else(|| made.clone()));
    // Which of both have a key of which something holds.
    let having = |holds: &dyn Fn(&JwtKey) -> bool| {
        let of = |new: bool| all.iter().any(|key| is_new(&key) == new && holds(key));
        let new = new.clone().filter(|_| of(true));
        new.into_iter().chain(of(false).then(|| old.clone())).collect::<BTreeSet<_>>()
    };
    let signs = having(&|key| key.standing == Standing::Signs);
    let turned = new.as_ref().is_some_and(|new| signs.contains(new) && !signs.contains(&old));
    Seen {
        trusted: having(&|key| key.standing != Standing::Withdrawn),
        signing: if turned { new.clone().unwrap_or_else(|| old.clone()) } else { old.clone() },
        able: having(&|key| held.contains(&key.key_id)),
        known: having(&|_| true),
        made,
    }
}
