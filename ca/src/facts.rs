//! What `alcazar ca status` tells of each part, as it is at this moment.

use std::fmt::Display;

use alcazar_identity::rfc3339;
use alcazar_service::process::chain;

use crate::{ca::Ca, storage::StoreConfig};

/// Something to know of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fact {
    pub(crate) part: &'static str,
    pub(crate) name: String,
    pub(crate) value: String,
}

/// Facts of one part, as they are gathered.
struct Facts<'a>(&'static str, &'a mut Vec<Fact>);

impl Facts<'_> {
    fn tell(&mut self, name: impl Into<String>, value: impl Display) {
        self.1.push(Fact { part: self.0, name: name.into(), value: value.to_string() });
    }
}

impl Ca {
    /// Every part's. What cannot be asked says why.
    pub(crate) async fn facts(&self) -> Vec<Fact> {
        let mut all = Vec::new();
        self.facts_of_trust(&mut Facts("trust", &mut all));
        self.facts_of_the_ledger(&mut Facts("ledger", &mut all)).await;
        self.facts_of_revocation(&mut Facts("revocation", &mut all));
        self.facts_of_rotation(&mut Facts("rotation", &mut all)).await;
        self.facts_of_tokens(&mut Facts("jwt-svids", &mut all));
        self.facts_of_federation(&mut Facts("federation", &mut all)).await;
        let mut replicas = Facts("replicas", &mut all);
        self.told_of_replicas().into_iter().for_each(|(replica, state)| replicas.tell(replica, state));
        let store = match &self.0.config.store {
            StoreConfig::Sled => "sled, in the data folder",
            StoreConfig::Etcd(_) => "etcd",
            StoreConfig::Kubernetes(_) => "Kubernetes objects",
        };
        let mut of_the_store = Facts("store", &mut all);
        of_the_store.tell("is", store);
        let unheard = self.0.renewals.all().len();
        if unheard > 0 {
            of_the_store.tell("has not heard of", format!("{unheard} nodes that were renewed while it was away"));
        }
        all
    }

    fn facts_of_trust(&self, facts: &mut Facts<'_>) {
        let hierarchy = self.hierarchy();
        if let Some(bundle) = hierarchy.bundles().get(self.trust_domain()) {
            facts.tell("sequence", bundle.sequence());
        }
        facts.tell("roots", hierarchy.roots().len());
        if let Some(trouble) = self.hierarchy_trouble() {
            facts.tell("trouble", trouble);
        }
    }

    async fn facts_of_the_ledger(&self, facts: &mut Facts<'_>) {
        let head = self.0.ledger.head();
        facts.tell("entries", head.size);
        facts.tell("root", head.root);
        match self.kept_head().await {
            Ok(Some(kept)) => {
                facts.tell("last signed head", format!("{} entries, {}", kept.head.size, rfc3339(kept.head.at)));
            }
            Ok(None) => facts.tell("last signed head", "none yet"),
            Err(error) => facts.tell("last signed head", format!("cannot be read: {}", chain(&error))),
        }
    }

    fn facts_of_revocation(&self, facts: &mut Facts<'_>) {
        let published = self.follow_revocations().borrow().clone();
        let count = |count: fn(&alcazar_identity::RevocationList) -> usize| -> usize {
            published.revocations.lists().map(count).sum()
        };
        facts.tell("version", published.version);
        facts.tell("certificates", count(|list| list.serials().count()));
        facts.tell("identities", count(|list| list.identities().count()));
        facts.tell("intermediates", count(|list| list.intermediates().count()));
    }

    async fn facts_of_rotation(&self, facts: &mut Facts<'_>) {
        let shown = match self.rotation().await {
            Ok(Some(shown)) => shown,
            Ok(None) => return facts.tell("under way", "none, and there was none"),
            Err(error) => return facts.tell("under way", format!("cannot be read: {}", chain(&error))),
        };
        let rotation = &shown.rotation;
        if rotation.is_over() {
            return facts.tell(
                "under way",
                format!("none; the last one ({}) ended at {}", rotation.kind, rfc3339(rotation.entered)),
            );
        }
        facts.tell("under way", format!("{}, since {}", rotation.kind, rfc3339(rotation.started)));
        let back = if rotation.back { ", on its way back" } else { "" };
        facts.tell("phase", format!("{}{back}, since {}", rotation.phase, rfc3339(rotation.entered)));
        let mut parties: Vec<_> = shown.waits.iter().map(|wait| wait.party.as_str()).take(NAMED).collect();
        let more = format!("{} more", shown.waits.len().saturating_sub(NAMED));
        if shown.waits.len() > NAMED {
            parties.push(&more);
        }
        facts.tell("waits for", if parties.is_empty() { "nobody".to_owned() } else { parties.join(", ") });
        if let Some(problem) = &shown.problem {
            facts.tell("problem", problem);
        }
    }

    fn facts_of_tokens(&self, facts: &mut Facts<'_>) {
        let metrics = &self.0.metrics;
        facts.tell(
            "issued",
            format!("{} of {} that were asked for", metrics.tokens_issued.value(), metrics.tokens_asked.value()),
        );
        facts.tell("keys", self.hierarchy().jwt_keys().len());
        match self.jwt_key((self.0.clock)()) {
            Some(key) => facts.tell("signs with", format!("{}, until {}", key.key_id, rfc3339(key.signs_until))),
            None => facts.tell("signs with", "no key: no JWT-SVIDs are issued"),
        }
    }

    async fn facts_of_federation(&self, facts: &mut Facts<'_>) {
        let held = match self.foreign_bundles().await {
            Ok(held) => held,
            Err(error) => return facts.tell("bundles", format!("cannot be read: {}", chain(&error))),
        };
        for held in &held {
            let (bundle, confirmed) = (&held.bundle, self.confirmed(held));
            facts.tell(
                bundle.trust_domain().to_string(),
                format!("sequence {}, confirmed at {}", bundle.sequence(), rfc3339(confirmed)),
            );
        }
        for relation in &self.0.federation.relations {
            if !held.iter().any(|held| *held.bundle.trust_domain() == relation.trust_domain) {
                facts.tell(relation.trust_domain.to_string(), "nothing is held yet: its workloads are not believed");
            }
        }
    }
}

/// Of those that a rotation waits for; `alcazar root rotation` names them all.
const NAMED: usize = 8;
