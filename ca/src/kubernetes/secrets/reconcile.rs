//! What is to be done about one account's Secret: a function of what is there.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, SystemTime},
};

use alcazar_identity::{CertificateDer, SpiffeId};
use ring::digest;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::object::{Held, Leaf};
use crate::issue::BACKDATE;

/// A service account that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
}

/// What a Secret is to be in accord with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trust {
    /// What stands above a leaf: the signing intermediate first, the root excluded.
    pub(super) upper: Vec<CertificateDer<'static>>,
    /// The trusted roots, as the Secret holds them.
    pub(super) roots: String,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// There is none, and none is wanted.
    Nothing,
    /// It is as it should be until then.
    Keep(SystemTime),
    /// A fresh certificate and key are to be put there.
    Write(Why),
    /// It is to go.
    Remove,
}

/// Why a Secret is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    Missing,
    Altered,
    AnotherAccount,
    Issuer,
    Roots,
    Due,
}

impl Why {
    /// A word for metrics.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Altered => "altered",
            Self::AnotherAccount => "another account",
            Self::Issuer => "issuer",
            Self::Roots => "roots",
            Self::Due => "due",
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "there is none",
            Self::Altered => "it was altered",
            Self::AnotherAccount => "it was made for an earlier account of this name",
            Self::Issuer => "the CA signs with another intermediate",
            Self::Roots => "the trusted roots are others",
            Self::Due => "half of its life is over",
        })
    }
}

/// Whether the accounts of a namespace with these labels have Secrets. Our own label decides where it is there; else the one
/// by which Citadel was told that a namespace is its.
pub(super) fn opted_in(labels: &BTreeMap<String, String>) -> bool {
    match labels.get("alcazar.dev/secrets") {
        Some(value) => value == "enabled",
        None => labels.get("ca.istio.io/override").is_some_and(|value| value == "true"),
    }
}

/// Decides about the Secret of the account with the identity `id`.
pub(super) fn reconcile(
    account: Option<&Account>,
    id: &SpiffeId,
    held: Option<&Held>,
    opted_in: bool,
    trust: &Trust,
    now: SystemTime,
) -> Action {
    let Some(account) = account.filter(|_| opted_in) else {
        return if held.is_some() { Action::Remove } else { Action::Nothing };
    };
    let Some(held) = held else { return Action::Write(Why::Missing) };
    if held.owner.as_deref() != Some(account.uid.as_str()) {
        return Action::Write(Why::AnotherAccount);
    }
    let Some(leaf) = held.svid.as_ref().filter(|leaf| leaf.id == *id) else { return Action::Write(Why::Altered) };
    if leaf.chain.get(1..) != Some(trust.upper.as_slice()) {
        return Action::Write(Why::Issuer);
    }
    if !is_signed(leaf, trust) {
        return Action::Write(Why::Altered);
    }
    if held.roots != trust.roots.as_bytes() {
        return Action::Write(Why::Roots);
    }
    let due = due(leaf, &account.uid);
    if now >= due { Action::Write(Why::Due) } else { Action::Keep(due) }
}

/// Half of its life after its issuance, or up to a tenth of its life sooner: those that began together do not end together.
fn due(leaf: &Leaf, uid: &str) -> SystemTime {
    let issued = leaf.validity.not_before() + BACKDATE;
    let life = leaf.validity.not_after().duration_since(issued).unwrap_or(Duration::ZERO);
    let spread = digest::digest(&digest::SHA256, uid.as_bytes()).as_ref().first().copied().unwrap_or_default();
    issued + life / 2 - life.mul_f64(f64::from(spread) / 255.0 / 10.0)
}

fn is_signed(leaf: &Leaf, trust: &Trust) -> bool {
    let [Some(leaf), Some(issuer)] = [leaf.chain.first(), trust.upper.first()] else { return false };
    let (Ok((_, leaf)), Ok((_, issuer))) = (X509Certificate::from_der(leaf), X509Certificate::from_der(issuer)) else {
        return false;
    };
    leaf.verify_signature(Some(issuer.public_key())).is_ok()
}

#[cfg(test)]
mod tests {
    use alcazar_identity::{SvidKey, X509Svid};
    use rcgen::{CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose, SanType};

    use super::{super::object, *};

    const START: u64 = 1_800_000_000;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(START + seconds)
    }

    struct Ca(CertifiedIssuer<'static, KeyPair>);

    impl Ca {
        fn new() -> Self {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
        }

        fn trust(&self, roots: &str) -> Trust {
            Trust { upper: vec![self.0.der().clone()], roots: roots.into() }
        }

        /// A Secret with a leaf of an hour from the start on.
        fn held(&self, account: &Account, id: &SpiffeId) -> Held {
            let mut params = CertificateParams::default();
            params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().unwrap())];
            params.is_ca = IsCa::ExplicitNoCa;
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.not_before = (at(0) - BACKDATE).into();
            params.not_after = at(3600).into();
            params.distinguished_name = rcgen::DistinguishedName::new();
            let key = KeyPair::generate().unwrap();
            let leaf = params.signed_by(&key, &self.0).unwrap();
            let chain = vec![leaf.der().clone(), self.0.der().clone()];
            let svid = X509Svid::new(chain, SvidKey::from_pkcs8(key.serialize_der()).unwrap()).unwrap();
            let mut secret = object::write(account, &svid, "roots", "cluster.local/local", None);
            secret.metadata.uid = Some("u".into());
            Held::read(secret)
        }
    }

    fn account() -> (Account, SpiffeId) {
        let account = Account { namespace: "shop".into(), name: "cart".into(), uid: "1".into() };
        (account, "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap())
    }

    #[test]
    fn each_state_of_a_secret_has_its_action() {
        let ((account, id), ca) = (account(), Ca::new());
        let (trust, good) = (ca.trust("roots"), ca.held(&account, &id));
        let decide = |account: Option<&Account>, held: Option<&Held>, opted_in, trust: &Trust, seconds| {
            reconcile(account, &id, held, opted_in, trust, at(seconds))
        };
        let write = |why| Action::Write(why);
        assert_eq!(decide(None, None, true, &trust, 0), Action::Nothing);
        assert_eq!(decide(Some(&account), None, false, &trust, 0), Action::Nothing);
        assert_eq!(decide(None, Some(&good), true, &trust, 0), Action::Remove);
        assert_eq!(decide(Some(&account), Some(&good), false, &trust, 0), Action::Remove);
        assert_eq!(decide(Some(&account), None, true, &trust, 0), write(Why::Missing));

        let Action::Keep(due) = decide(Some(&account), Some(&good), true, &trust, 0) else { panic!("it is good") };
        assert!(at(1440) <= due && due <= at(1800), "{due:?}");
        assert_eq!(reconcile(Some(&account), &id, Some(&good), true, &trust, due), write(Why::Due));
        assert_eq!(decide(Some(&account), Some(&good), true, &ca.trust("other"), 0), write(Why::Roots));
        assert_eq!(decide(Some(&account), Some(&good), true, &Ca::new().trust("roots"), 0), write(Why::Issuer));

        let again = Account { uid: "2".into(), ..account.clone() };
        assert_eq!(decide(Some(&again), Some(&good), true, &trust, 0), write(Why::AnotherAccount));
        let unreadable = Held { svid: None, ..good.clone() };
        assert_eq!(decide(Some(&account), Some(&unreadable), true, &trust, 0), write(Why::Altered));
        let another = ca.held(&account, &"spiffe://cluster.local/ns/shop/sa/other".parse().unwrap());
        assert_eq!(decide(Some(&account), Some(&another), true, &trust, 0), write(Why::Altered));
        // Another CA's leaf under our intermediate's name.
        let mut forged = Ca::new().held(&account, &id);
        forged.svid.as_mut().unwrap().chain.truncate(1);
        forged.svid.as_mut().unwrap().chain.extend(trust.upper.clone());
        assert_eq!(decide(Some(&account), Some(&forged), true, &trust, 0), write(Why::Altered));
    }

    #[test]
    fn our_own_label_decides_before_citadels() {
        let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let (ours, citadels) = ("alcazar.dev/secrets", "ca.istio.io/override");
        for (pairs, expected) in [
            (vec![], false),
            (vec![(ours, "enabled")], true),
            (vec![(ours, "disabled")], false),
            (vec![(ours, "true")], false),
            (vec![(citadels, "true")], true),
            (vec![(citadels, "false")], false),
            (vec![(ours, "disabled"), (citadels, "true")], false),
            (vec![(ours, "enabled"), (citadels, "false")], true),
        ] {
            assert_eq!(opted_in(&labels(&pairs)), expected, "{pairs:?}");
        }
    }
}
