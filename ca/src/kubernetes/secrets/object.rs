//! The Secret of a service account: what Citadel's contract puts into it, and what is kept of one that is there.

use std::collections::BTreeMap;

use alcazar_identity::{CertificateDer, TrustDomain, X509Svid};
use k8s_openapi::{
    ByteString,
    api::core::v1::Secret,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use zeroize::{Zeroize, Zeroizing};

use super::reconcile::Account;

/// The type that applications and dashboards know from Istio.
pub(super) const TYPE: &str = "istio.io/key-and-cert";
/// Ours are told by this label; what lacks it is never touched.
pub(super) const OWNED: (&str, &str) = ("app.kubernetes.io/managed-by", "alcazar-ca");
const PREFIX: &str = "istio.";
const CHAIN: &str = "cert-chain.pem";
const KEY: &str = "key.pem";
const ROOTS: &str = "root-cert.pem";

/// Which CA keeps a Secret: two on one Kubernetes cluster would repair each other's for ever.
const MADE_BY: &str = "alcazar.dev/ca";

/// The mark of a CA.
pub(super) fn mark(trust_domain: &TrustDomain, cluster: &str) -> String {
    format!("{trust_domain}/{cluster}")
}

/// Whether it has our label.
pub(super) fn is_ours(metadata: &ObjectMeta) -> bool {
    metadata.labels.as_ref().is_some_and(|labels| labels.get(OWNED.0).is_some_and(|by| by == OWNED.1))
}

/// The name of an account's Secret.
pub(super) fn name(account: &str) -> String {
    format!("{PREFIX}{account}")
}

/// The account that a Secret is for.
pub(super) fn account(secret: &str) -> Option<&str> {
    secret.strip_prefix(PREFIX).filter(|account| !account.is_empty())
}

/// What is kept of a Secret of ours. Its private key is looked at once and not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) uid: String,
    pub(super) version: String,
    /// The uid of the account that it was made for.
    pub(super) owner: Option<String>,
    /// The chain, where it can be read and the key is its leaf's.
    pub(super) svid: Option<Leaf>,
    pub(super) roots: Vec<u8>,
    /// Whether it is of the contract's type. Kubernetes lets nobody change that.
    pub(super) is_typed: bool,
    /// The mark of the CA that wrote it last, where there is one.
    pub(super) made_by: Option<String>,
}

/// A certificate that was issued into a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Leaf {
    pub(super) id: alcazar_identity::SpiffeId,
    pub(super) validity: alcazar_identity::Validity,
    pub(super) chain: Vec<CertificateDer<'static>>,
}

impl Held {
    /// Reads a Secret and wipes its key.
    pub(super) fn read(mut secret: Secret) -> Self {
        let mut data = secret.data.take().unwrap_or_default();
        let mut part = |name: &str| Zeroizing::new(data.remove(name).map(|bytes| bytes.0).unwrap_or_default());
        let (chain, key, roots) = (part(CHAIN), part(KEY), part(ROOTS));
        for other in data.values_mut() {
            other.0.zeroize();
        }
        let svid = X509Svid::from_pem(&chain, &key).ok();
        let metadata = secret.metadata;
        let owner = metadata.owner_references.into_iter().flatten().find(|owner| owner.kind == "ServiceAccount");
        Self {
            uid: metadata.uid.unwrap_or_default(),
            version: metadata.resource_version.unwrap_or_default(),
            owner: owner.map(|owner| owner.uid),
            svid: svid.map(|svid| Leaf {
                id: svid.id().clone(),
                validity: svid.validity(),
                chain: svid.chain().to_vec(),
            }),
            roots: roots.to_vec(),
            is_typed: secret.type_.as_deref() == Some(TYPE),
            made_by: metadata.annotations.and_then(|mut annotations| annotations.remove(MADE_BY)),
        }
    }
}

/// The Secret of an account, to replace `held` where there is one.
pub(super) fn write(account: &Account, svid: &X509Svid, roots: &str, mark: &str, held: Option<&Held>) -> Secret {
    let data = [
        (CHAIN, svid.chain_pem().into_bytes()),
        (KEY, svid.key().to_pem().as_bytes().to_vec()),
        (ROOTS, roots.as_bytes().to_vec()),
    ];
    let metadata = ObjectMeta {
        name: Some(name(&account.name)),
        namespace: Some(account.namespace.clone()),
        resource_version: held.map(|held| held.version.clone()),
        labels: Some(BTreeMap::from([(OWNED.0.into(), OWNED.1.into())])),
        annotations: Some(BTreeMap::from([
            ("istio.io/service-account.name".into(), account.name.clone()),
            (MADE_BY.into(), mark.into()),
        ])),
        // Where the CA is away when the account goes, the cluster's garbage collector removes it.
        owner_references: Some(vec![OwnerReference {
            api_version: "v1".into(),
            kind: "ServiceAccount".into(),
            name: account.name.clone(),
            uid: account.uid.clone(),
            ..OwnerReference::default()
        }]),
        ..ObjectMeta::default()
    };
    let data = data.into_iter().map(|(name, bytes)| (name.to_owned(), ByteString(bytes))).collect();
    Secret { metadata, type_: Some(TYPE.into()), data: Some(data), ..Secret::default() }
}

/// A Secret with its private key, which is wiped when it is dropped, in the middle of a request too.
pub(super) struct Wiped(pub(super) Secret);

impl Drop for Wiped {
    fn drop(&mut self) {
        for bytes in self.0.data.iter_mut().flat_map(BTreeMap::values_mut) {
            bytes.0.zeroize();
        }
    }
}
