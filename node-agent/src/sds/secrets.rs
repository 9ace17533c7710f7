use std::sync::Arc;

use alcazar_api::envoy::tls::Secret;
use alcazar_api::envoy::{SECRET_URL, pack};
use alcazar_api::sds::{
    ALL, DEFAULT, REVOCATIONS, ROOT_CA, bundle_secret, bundles_secret, checked_bundle_secret, revocations_secret,
    svid_secret,
};
use alcazar_identity::{Credentials, Crl, Fingerprint, SpiffeId, TrustBundle, TrustBundles, TrustDomain};

use crate::crls::Crls;
use crate::registry::Held;

/// What one caller may see at a moment: what is held for the registrations that it matches, the first of which is
/// its `default`.
#[derive(Debug, Clone, Default)]
pub struct View {
    held: Vec<(SpiffeId, Arc<Held>)>,
    crls: Arc<Crls>,
}

/// What is known under a name.
#[derive(Debug)]
pub enum Found<'v> {
    /// A certificate with its key.
    Certificate(&'v Credentials),
    /// A trust bundle, with the CRLs of its trust domain where all are here.
    Bundle(&'v TrustBundle, &'v [Crl]),
    /// Every trust domain's bundle.
    Bundles(&'v TrustBundles),
    /// The signed lists of revocations.
    Revocations(&'v [u8]),
    /// The name is one of the caller's, but nothing is held under it now; why.
    NotNow(&'v str),
    /// Nobody has told this caller of such a name.
    Unknown,
}

impl View {
    /// What is held for these identities.
    pub fn new(held: impl IntoIterator<Item = (SpiffeId, Arc<Held>)>) -> Self {
        Self { held: held.into_iter().collect(), crls: Arc::default() }
    }

    /// The same with these CRLs.
    #[must_use]
    pub fn with_crls(self, crls: Arc<Crls>) -> Self {
        Self { crls, ..self }
    }

    /// The CRLs of a trust domain; none where not all are here.
    pub(crate) fn crls(&self, trust_domain: &TrustDomain) -> &[Crl] {
        self.crls.of(trust_domain)
    }

    /// Looks a name up: `default`, `ROOTCA`, `ALL`, `REVOCATIONS`, a SPIFFE ID, or `spiffe://<trust domain>`.
    pub fn find(&self, name: &str) -> Found<'_> {
        match name {
            DEFAULT => self.held.first().map_or(Found::Unknown, |(_, held)| certificate(held)),
            ROOT_CA => self.any().map_or(Found::Unknown, |(id, held)| self.bundle(held, id.trust_domain())),
            ALL => self.any().map_or(Found::Unknown, |(_, held)| bundles(held)),
            REVOCATIONS => self.any().map_or(Found::Unknown, |(_, held)| revocations(held)),
            name => self.find_id(name),
        }
    }

    /// What is held for each identity, the default one first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &(SpiffeId, Arc<Held>)> {
        self.held.iter()
    }

    /// By whom to tell what is the same for all of the caller's identities: the first that holds a certificate, since one that
    /// was withdrawn has nothing.
    pub(crate) fn any(&self) -> Option<&(SpiffeId, Arc<Held>)> {
        self.held.iter().find(|(_, held)| held.credentials().is_some()).or_else(|| self.held.first())
    }

    /// Whether it is the caller's own trust domain.
    pub(crate) fn is_own(&self, trust_domain: &TrustDomain) -> bool {
        self.held.first().is_some_and(|(id, _)| id.trust_domain() == trust_domain)
    }

    fn find_id(&self, name: &str) -> Found<'_> {
        let Ok(id) = name.parse::<SpiffeId>() else { return Found::Unknown };
        if id.path().is_empty() {
            return self.any().map_or(Found::Unknown, |(_, held)| self.bundle(held, id.trust_domain()));
        }
        self.held.iter().find(|(held, _)| *held == id).map_or(Found::Unknown, |(_, held)| certificate(held))
    }

    fn bundle<'v>(&'v self, held: &'v Held, trust_domain: &TrustDomain) -> Found<'v> {
        match held {
            Held::Certificate(credentials) => {
                let bundle = credentials.bundles().get(trust_domain);
                bundle.map_or(Found::Unknown, |bundle| Found::Bundle(bundle, self.crls(trust_domain)))
            }
            Held::Nothing(why) => Found::NotNow(why),
        }
    }
}

impl Found<'_> {
    /// Tells contents apart: the same version is the same content, across restarts too. `None`: there is none.
    pub fn version(&self) -> Option<String> {
        match self {
            // The serial is not enough: intermediates may change while the leaf stays.
            Self::Certificate(credentials) => Some(digest(credentials.svid().chain().iter().map(AsRef::as_ref))),
            // All that the client gets of it: whatever is added to these contexts is a change, too.
            Self::Bundle(..) | Self::Bundles(_) => {
                Some(digest([pack(SECRET_URL, &self.secret("")?).value.as_slice()].into_iter()))
            }
            Self::Revocations(evidence) => Some(digest([*evidence].into_iter())),
            Self::NotNow(_) | Self::Unknown => None,
        }
    }

    /// The secret, under the name by which it was asked for.
    pub fn secret(&self, name: &str) -> Option<Secret> {
        match self {
            Self::Certificate(credentials) => Some(svid_secret(name, credentials.svid())),
            Self::Bundle(bundle, []) => Some(bundle_secret(name, bundle)),
            Self::Bundle(bundle, crls) => Some(checked_bundle_secret(name, bundle, *crls)),
            Self::Bundles(bundles) => Some(bundles_secret(name, bundles)),
            Self::Revocations(evidence) => Some(revocations_secret(name, evidence)),
            Self::NotNow(_) | Self::Unknown => None,
        }
    }

    /// Why there is none, in words.
    pub fn absence(&self) -> Option<String> {
        match self {
            Self::Certificate(_) | Self::Bundle(..) | Self::Bundles(_) | Self::Revocations(_) => None,
            Self::NotNow(why) => Some((*why).to_owned()),
            Self::Unknown => Some("no such secret for this caller".to_owned()),
        }
    }
}

/// The names that a caller gets who asks for everything.
pub(crate) const EVERYTHING: [&str; 2] = [DEFAULT, ROOT_CA];

fn certificate(held: &Held) -> Found<'_> {
    match held {
        Held::Certificate(credentials) => Found::Certificate(credentials),
        Held::Nothing(why) => Found::NotNow(why),
    }
}

fn bundles(held: &Held) -> Found<'_> {
    match held {
        Held::Certificate(credentials) => Found::Bundles(credentials.bundles()),
        Held::Nothing(why) => Found::NotNow(why),
    }
}

fn revocations(held: &Held) -> Found<'_> {
    match held {
        Held::Certificate(credentials) => Found::Revocations(credentials.revocations().evidence()),
        Held::Nothing(why) => Found::NotNow(why),
    }
}

/// The start of a SHA-256 over these parts: enough to tell a version from the one before.
pub(crate) fn digest<'a>(parts: impl Iterator<Item = &'a [u8]>) -> String {
    let all: Vec<u8> = parts.flat_map(|part| Fingerprint::of(part).as_bytes().to_owned()).collect();
    let mut text = Fingerprint::of(&all).to_string();
    text.truncate(16);
    text
}
