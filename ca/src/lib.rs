//! The certificate authority: authenticate, authorize, check the CSR, sign, record, reply.
//!
//! ```text
//!   join token │ bearer token │ node's SVID (TLS) │ …        operator (Unix socket, 0600)
//!                        ▼                                            ▼
//! grpc      CertificateAuthority, IstioCertificateService       Administration
//!                        │                                            │
//! callers    one plug decides who it is                               │
//! requests   authenticate ─▶ authorize ─▶ Csr ─▶ issue() ─▶ record ─▶ reply
//!                        │                 pure    pure       │
//! ledger     entries, indexes, signed heads             ◀────┴──▶ alcazar-ledger (Merkle log, fsynced)
//! records    tokens, lineages, registrations (decisions: pure) ──▶ alcazar-store (fsynced)
//! hierarchy  root ─signs─▶ intermediate of this cluster ─signs─▶ leaves      Signer: the only holder of a CA key
//! ```
//!
//! # Invariants
//! - A certificate is in the ledger, durably, before anybody has it.
//! - Nothing but the public key is taken from a request; who the caller is decides what the certificate says.
//! - What a request carries chooses the one plug that decides who asks; none falls through to another.
//! - A join token admits one key once. Only the latest certificate of a node's lineage renews. A workload's certificate
//!   authenticates no issuance.
//! - A new root is made where there has never been one, and never because one is missing.
//! - The wire hears a terse code; the log has the whole reason (target `alcazar::refused`).
//! - Decisions are functions of their arguments: no clock, no store, no randomness inside.

mod admission;
mod audit;
mod authority;
mod ca;
mod cacerts;
mod callers;
pub mod ceremony;
mod clock_set;
mod config;
mod csr;
mod facts;
mod federation;
mod forgetting;
mod grpc;
mod hierarchy;
mod horizon;
mod issue;
mod jwt_authority;
mod keys;
mod kubernetes;
pub mod ledger;
mod metrics;
mod outage;
#[cfg(test)]
mod overheard;
mod patience;
mod profile;
pub mod records;
mod refusal;
mod replicas;
mod requests;
mod reserve;
mod revocation;
mod rotation;
mod run;
mod serial;
mod serving;
mod signer;
mod signing;
mod status;
mod storage;
mod store_health;
mod strangers;
mod token;

pub use admission::{Limit, Limits};
pub use alcazar_service::duration;
pub use audit::{AUDIT_TARGETS, watch_audit};
pub use authority::{Authority, AuthorityError, AuthorityInfo};
pub use ca::{AdminError, Ca, Fingerprints, OpenError};
pub use cacerts::{CacertsConfig, CacertsError, CacertsFiles, PluggedIn, check as check_cacerts};
pub use callers::{
    CallersConfig, CallersError, KubernetesCallers, MachineCallers, OidcCallers, ParseServiceAccountError, RuleConfig,
    RuleConfigError, RuleFault, VerifyTokens,
};
pub use config::{Certificates, Config, ConfigError, ConfiguredRegistration, NodesConfig, RegistrationError};
pub use csr::{Csr, CsrError, KeyHash, KeyKind};
pub use federation::{
    BundleEndpointConfig, EndpointError, EndpointProfile, FederationConfig, FederationConfigError, FederationError,
    ForeignBundle, ForeignError, RelationProfile, RootChangeError, Source,
};
pub use hierarchy::{Authorities, HierarchyChanges, HierarchyError};
pub use issue::{IssueError, Issued, Subject, issue};
pub use jwt_authority::{JwtConfig, JwtConfigError, JwtKeyError};
pub use keys::{
    FileKeys, KeyAlgorithm, KeyError, KeyLabel, KeyPemError, KeyStore, KeysConfig, ParseKeyLabelError, Pkcs11Config,
    Pkcs11Keys, read_passphrase,
};
pub use kubernetes::{KubernetesConfig, KubernetesError, SecretsConfig, client as kubernetes_client};
pub use profile::{AllowedNamesConfig, DnsName, Longer, ParseDnsNameError, Profile, ProfileConfig, ProfileError};
pub use records::{ParseRegistrationError, RecordError, Registration, RegistrationId};
pub use replicas::{
    DataFolderError, HeldIntermediate, JoinError, LetterError, ParseReplicaIdError, Phase, Presence, ReplicaId,
    ReplicaState, ReplicasConfig, SealError, SecretError, open_letter, read_letter,
};
pub use reserve::wait_for_room;
pub use revocation::{
    Barred, CrlUrl, ParseCrlUrlError, RefreshError, RevocationConfig, RevokeError, UnknownError, crl::CrlError,
    crl_routes,
};
pub use rotation::{ClusterConfig, ClusterConfigError};
pub use run::{ADMIN_SOCKET, RunError};
pub use serial::{NoRandomness, Serial};
pub use serving::ServingError;
pub use signer::{SignError, Signer};
pub use storage::{
    EtcdSection, KubernetesSection, OpenStoreError, StoreConfig, StoreConfigError, TlsSection, UserSection,
};
pub use token::{JoinToken, ParseJoinTokenError, TokenHash, TrustPin};
