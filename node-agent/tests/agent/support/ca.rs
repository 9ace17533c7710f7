//! A small CA: real keys, real certificates, and the rules by which a CA knows a node. No I/O.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use alcazar_api::ca::v1;
use alcazar_api::ca::v1::issue_workload_result::Outcome;
use alcazar_identity::{
    CertificateDer, Credentials, Fingerprint, JwtAuthority, SpiffeId, SvidKey, TrustBundle, TrustBundles, X509Svid,
};
use alcazar_jwt::{Algorithm, SignJwt, fixed_of_der, sign};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use tonic::Status;

pub(crate) const TRUST_DOMAIN: &str = "td.example";
pub(crate) const NODE: &str = "spiffe://td.example/node/east/vm-1";

/// Two CAs of a test never give the same serial.
static SERIALS: AtomicU64 = AtomicU64::new(1);

/// What the CA knows. Times are arguments.
pub(crate) struct Ca {
    root: CertifiedIssuer<'static, KeyPair>,
    intermediate: CertifiedIssuer<'static, KeyPair>,
    sequence: u64,
    jwt_key: JwtKey,
    /// How long tokens live, and how many were given.
    pub(crate) token_ttl: Duration,
    pub(crate) tokens_issued: usize,
    /// Bundles of other trust domains.
    pub(crate) foreign: Vec<TrustBundle>,
    /// Roots that are believed besides our own.
    pub(crate) more_roots: Vec<CertificateDer<'static>>,
    /// How long certificates live, of nodes and of workloads.
    pub(crate) node_ttl: Duration,
    pub(crate) workload_ttl: Duration,
    /// Single-use: the public key of the request that used each.
    tokens: BTreeMap<String, Option<Vec<u8>>>,
    /// The lineage of the node: the serials and keys of the latest certificate and the one before.
    lineage: Vec<(String, Vec<u8>)>,
    /// Evidence that can be shown again, by its kind.
    #[allow(dead_code, reason = "the unit tests have a CA with other callers")]
    pub(crate) known: Vec<(&'static str, String)>,
    /// So long after its end a certificate lets the node come back.
    #[allow(dead_code, reason = "the unit tests have a CA to which nodes come back")]
    pub(crate) reattest_within: Duration,
    pub(crate) registrations: Vec<v1::Registration>,
    /// The next answers of `issue` are refusals.
    pub(crate) refuse_workloads: Option<String>,
    /// The code of those refusals, and when to ask again in milliseconds.
    #[allow(dead_code, reason = "the unit tests have a CA that is busy")]
    pub(crate) refuse_with: (i32, u64),
    /// Whom the certificates of workloads name, whoever they are for.
    #[allow(dead_code, reason = "the unit tests have a CA that errs")]
    pub(crate) issues_for: Option<String>,
    /// How many certificates workloads were given.
    pub(crate) issued: usize,
    /// What a token was last spent for.
    pub(crate) attested: Option<v1::IssuedSvid>,
    /// By which way the node came, in order.
    pub(crate) node_log: Vec<&'static str>,
    /// What is to be issued anew.
    #[allow(dead_code, reason = "the unit tests have a CA that rotates")]
    pub(crate) reissue: v1::Reissue,
    /// Whether it does not know the pods of the node yet.
    pub(crate) pods_unknown: bool,
    /// What the node has reported.
    #[allow(dead_code, reason = "the unit tests have a CA that rotates")]
    pub(crate) reports: Vec<v1::ReportAdoptionRequest>,
    /// What is revoked, signed.
    pub(crate) revoked: Vec<v1::SignedRevocationList>,
}

impl Ca {
    pub(crate) fn new(now: SystemTime) -> Self {
        let far = now + Duration::from_secs(10 * 365 * 86_400);
        let root = CertifiedIssuer::self_signed(authority("root", now, far), KeyPair::generate().unwrap()).unwrap();
        let mut params = authority("intermediate", now, far);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.subject_alt_names = vec![SanType::URI(format!("spiffe://{TRUST_DOMAIN}").try_into().unwrap())];
        let intermediate = CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &root).unwrap();
        Self {
            root,
            intermediate,
            sequence: 1,
            jwt_key: JwtKey::new("the-key"),
            token_ttl: Duration::from_secs(300),
            tokens_issued: 0,
            foreign: Vec::new(),
            more_roots: Vec::new(),
            node_ttl: Duration::from_secs(3600),
            workload_ttl: Duration::from_secs(3600),
            tokens: BTreeMap::new(),
            lineage: Vec::new(),
            known: Vec::new(),
            reattest_within: Duration::ZERO,
            registrations: Vec::new(),
            refuse_workloads: None,
            refuse_with: (7, 0),
            issues_for: None,
            issued: 0,
            attested: None,
            node_log: Vec::new(),
            reissue: v1::Reissue::default(),
            pods_unknown: false,
            reports: Vec::new(),
            revoked: Vec::new(),
        }
    }

    /// A list of revocations by this CA.
    pub(crate) fn signed(&self, list: &alcazar_identity::RevocationList, now: SystemTime) -> v1::SignedRevocationList {
        use rcgen::SigningKey;
        let list = alcazar_api::revocations::encode_list(list, now);
        let message = alcazar_api::revocations::to_be_signed(&list);
        let signature = self.intermediate.key().sign(&message).unwrap();
        v1::SignedRevocationList { list, signature, chain: vec![self.intermediate.der().to_vec()] }
    }

    /// The CRL of this CA, with nobody on it.
    #[allow(dead_code, reason = "the unit tests have a CA that tells CRLs")]
    pub(crate) fn crl(&self, from: SystemTime, until: SystemTime) -> v1::Crl {
        let params = rcgen::CertificateRevocationListParams {
            this_update: from.into(),
            next_update: until.into(),
            crl_number: rcgen::SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        let crl = params.signed_by(&self.intermediate).unwrap().der().to_vec();
        v1::Crl { crl, chain: vec![self.intermediate.der().to_vec()], last: false }
    }

    pub(crate) fn root_der(&self) -> CertificateDer<'static> {
        self.root.as_ref().der().clone()
    }

    /// A token for the node.
    pub(crate) fn token(&mut self) -> String {
        let secret = format!("secret-{}", self.tokens.len());
        let token = format!("alcazar-join-v1.{secret}.{}", Fingerprint::of(&self.root_der()));
        self.tokens.insert(token.clone(), None);
        token
    }

    pub(crate) fn register(&mut self, id: &str, account: &str, selectors: &[&str]) {
        self.registrations.retain(|registration| registration.id != id);
        self.registrations.push(v1::Registration {
            id: id.to_owned(),
            node_id: NODE.to_owned(),
            spiffe_id: format!("spiffe://{TRUST_DOMAIN}/ns/shop/sa/{account}"),
            selectors: selectors.iter().map(|s| (*s).to_owned()).collect(),
            ttl: 0,
            ..v1::Registration::default()
        });
    }

    pub(crate) fn bundles(&self) -> TrustBundles {
        let roots = self.more_roots.iter().cloned().chain([self.root_der()]);
        let authority = JwtAuthority::new(self.jwt_key.key_id(), self.jwt_key.0.subject_public_key_info()).unwrap();
        let own = TrustBundle::new(TRUST_DOMAIN.parse().unwrap(), self.sequence, roots).unwrap();
        let mut bundles: TrustBundles = own.with_jwt_authorities([authority]).unwrap().into();
        for foreign in &self.foreign {
            bundles.insert(foreign.clone());
        }
        bundles
    }

    /// Tokens for workloads of the node.
    pub(crate) fn issue_tokens(&mut self, items: &[v1::IssueJwtSvid], now: SystemTime) -> Vec<v1::IssueJwtSvidResult> {
        use v1::issue_jwt_svid_result::Outcome;
        let mut results = Vec::new();
        for item in items {
            let registered = self.registrations.iter().find(|registration| registration.id == item.registration_id);
            let outcome = match (registered, &self.refuse_workloads) {
                (Some(registered), None) => {
                    let (issued_at, expires_at) = (seconds(now), seconds(now + self.token_ttl));
                    self.tokens_issued += 1;
                    let claims = serde_json::json!({
                        "sub": registered.spiffe_id, "aud": item.audience, "iat": issued_at, "exp": expires_at,
                        "jti": self.tokens_issued.to_string(), "nested": {"flags": [true, null, 1.5]},
                    });
                    Outcome::Svid(v1::IssuedJwtSvid {
                        spiffe_id: registered.spiffe_id.clone(),
                        token: sign(Some("JWT"), &claims, &self.jwt_key).unwrap(),
                        issued_at,
                        expires_at,
                        key_id: self.jwt_key.key_id().to_owned(),
                    })
                }
                _ => Outcome::Refusal(v1::Refusal { code: 7, message: "not registered".into(), retry_after_ms: 0 }),
            };
            results
                .push(v1::IssueJwtSvidResult { registration_id: item.registration_id.clone(), outcome: Some(outcome) });
        }
        results
    }

    /// Signs tokens by another key from now on, and no more by that of before: it was stolen.
    #[allow(dead_code, reason = "the unit tests replace it")]
    pub(crate) fn replace_jwt_key(&mut self) {
        self.jwt_key = JwtKey::new("the-next-key");
        self.sequence += 1;
    }

    /// Believes one more root, as at the start of a rotation.
    pub(crate) fn add_root(&mut self, root: CertificateDer<'static>) {
        self.more_roots.push(root);
        self.sequence += 1;
    }

    pub(crate) fn attest(&mut self, token: &str, csr: &[u8], now: SystemTime) -> Result<v1::IssuedSvid, Status> {
        let key = public_key(csr);
        match self.tokens.get_mut(token) {
            None => return Err(Status::permission_denied("no such token")),
            Some(Some(used)) if *used != key => return Err(Status::permission_denied("the token was used")),
            // Its reply was lost: the same certificate once more, as the CA gives it.
            Some(Some(_)) if let Some(attested) = &self.attested => {
                self.node_log.push("token");
                return Ok(v1::IssuedSvid { answered_at: seconds(now), ..attested.clone() });
            }
            Some(used) => *used = Some(key.clone()),
        }
        self.node_log.push("token");
        let issued = self.issue_one(csr, NODE, self.node_ttl, now);
        self.lineage = vec![(serial(&issued), key)];
        self.attested = Some(issued.clone());
        Ok(issued)
    }

    /// As if it had never been here.
    #[allow(dead_code, reason = "the unit tests have a CA with other callers")]
    pub(crate) fn forget_the_node(&mut self) {
        self.lineage.clear();
    }

    /// By what can be shown again and again.
    #[allow(dead_code, reason = "the unit tests have a CA with other callers")]
    pub(crate) fn attest_known(
        &mut self,
        kind: &'static str,
        shown: &str,
        csr: &[u8],
        now: SystemTime,
    ) -> Result<v1::IssuedSvid, Status> {
        if !self.known.iter().any(|known| *known == (kind, shown.to_owned())) {
            return Err(Status::unauthenticated("not authenticated"));
        }
        self.node_log.push(kind);
        let issued = self.issue_one(csr, NODE, self.node_ttl, now);
        self.lineage = vec![(serial(&issued), public_key(csr))];
        Ok(issued)
    }

    /// By a certificate that has ended.
    #[allow(dead_code, reason = "the unit tests have a CA to which nodes come back")]
    pub(crate) fn come_back(
        &mut self,
        caller: &str,
        ended: SystemTime,
        csr: &[u8],
        now: SystemTime,
    ) -> Result<v1::IssuedSvid, Status> {
        if now >= ended + self.reattest_within {
            return Err(Status::unauthenticated("the certificate ended too long ago"));
        }
        let issued = self.renew(caller, csr, now)?;
        self.node_log.pop();
        self.node_log.push("lineage");
        Ok(issued)
    }

    /// Only the latest certificate of the lineage renews; the one before it, for the same new key alone.
    pub(crate) fn renew(&mut self, caller: &str, csr: &[u8], now: SystemTime) -> Result<v1::IssuedSvid, Status> {
        let key = public_key(csr);
        let latest = self.lineage.last().is_some_and(|(serial, _)| serial == caller);
        let retry = match self.lineage.as_slice() {
            [.., (before, _), (_, next)] => before == caller && *next == key,
            _ => false,
        };
        if !latest && !retry {
            return Err(Status::permission_denied("not the latest certificate of this node"));
        }
        self.node_log.push(if latest { "svid" } else { "retry" });
        let issued = self.issue_one(csr, NODE, self.node_ttl, now);
        if retry {
            self.lineage.pop();
        }
        self.lineage.push((serial(&issued), key));
        Ok(issued)
    }

    pub(crate) fn issue(&mut self, items: &[v1::IssueWorkload], now: SystemTime) -> Vec<v1::IssueWorkloadResult> {
        let mut results = Vec::new();
        for item in items {
            let registered = self.registrations.iter().find(|registration| registration.id == item.registration_id);
            let (code, retry_after_ms) = self.refuse_with;
            let refusal =
                |message: &str| Outcome::Refusal(v1::Refusal { code, message: message.to_owned(), retry_after_ms });
            let outcome = match (registered.cloned(), &self.refuse_workloads) {
                (Some(_), Some(reason)) => refusal(reason),
                (None, _) => refusal("not registered"),
                (Some(registration), None) => {
                    self.issued += 1;
                    let id = self.issues_for.clone().unwrap_or(registration.spiffe_id);
                    Outcome::Svid(self.issue_one(&item.csr, &id, self.workload_ttl, now))
                }
            };
            results.push(v1::IssueWorkloadResult {
                registration_id: item.registration_id.clone(),
                outcome: Some(outcome),
            });
        }
        results
    }

    /// What the CA itself serves with.
    pub(crate) fn own_credentials(&mut self, now: SystemTime) -> Credentials {
        let id = format!("spiffe://{TRUST_DOMAIN}/ns/alcazar-system/sa/alcazar-ca");
        Credentials::new(self.svid(&id, Duration::from_secs(86_400), now), self.bundles())
    }

    /// Anybody's SVID, made here with its key.
    pub(crate) fn svid(&mut self, id: &str, ttl: Duration, now: SystemTime) -> X509Svid {
        let pair = KeyPair::generate().unwrap();
        let issued = self.sign(&pair, id, ttl, now);
        let chain = issued.chain.into_iter().map(CertificateDer::from).collect();
        X509Svid::new(chain, SvidKey::from_pkcs8(pair.serialize_der()).unwrap()).unwrap()
    }

    pub(crate) fn issue_one(&mut self, csr: &[u8], id: &str, ttl: Duration, now: SystemTime) -> v1::IssuedSvid {
        let csr = CertificateSigningRequestParams::from_der(&csr.to_vec().into()).unwrap();
        self.sign(&csr.public_key, id, ttl, now)
    }

    fn sign(&mut self, key: &impl PublicKeyData, id: &str, ttl: Duration, now: SystemTime) -> v1::IssuedSvid {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = (now - Duration::from_secs(120)).into();
        params.not_after = (now + ttl).into();
        params.serial_number = Some((0x1000_0000 + SERIALS.fetch_add(1, Ordering::Relaxed)).into());
        let leaf = params.signed_by(key, &self.intermediate).unwrap();
        v1::IssuedSvid {
            spiffe_id: id.to_owned(),
            chain: vec![leaf.der().to_vec(), self.intermediate.as_ref().der().to_vec()],
            issued_at: seconds(now),
            not_after: seconds(now + ttl),
            bundles: Some((&self.bundles()).into()),
            answered_at: seconds(now),
        }
    }
}

/// Signs tokens.
struct JwtKey(KeyPair, &'static str);

impl JwtKey {
    fn new(name: &'static str) -> Self {
        Self(KeyPair::generate().unwrap(), name)
    }
}

impl SignJwt for JwtKey {
    fn algorithm(&self) -> Algorithm {
        Algorithm::Es256
    }

    fn key_id(&self) -> &str {
        self.1
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
        let signature = rcgen::SigningKey::sign(&self.0, message)?;
        Ok(fixed_of_der(Algorithm::Es256, &signature)?)
    }
}

fn authority(name: &str, now: SystemTime, until: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (now - Duration::from_secs(86_400)).into();
    params.not_after = until.into();
    params
}

fn public_key(csr: &[u8]) -> Vec<u8> {
    let csr = CertificateSigningRequestParams::from_der(&csr.to_vec().into()).unwrap();
    csr.public_key.subject_public_key_info()
}

fn serial(issued: &v1::IssuedSvid) -> String {
    let leaf = alcazar_identity::SvidLeaf::parse(&CertificateDer::from(issued.chain[0].clone())).unwrap();
    leaf.serial().to_owned()
}

fn seconds(at: SystemTime) -> i64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs().try_into().unwrap()
}

/// The node's name, parsed.
pub(crate) fn node() -> SpiffeId {
    NODE.parse().unwrap()
}
