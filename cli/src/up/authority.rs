//! The certificate authority of this mesh, in this process: what `up` asks of it as its administrator.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use alcazar_ca::{
    AdminError, AuthorityInfo, Ca, Config, OpenError, ParseRegistrationError, Registration, RevocationConfig,
};
use alcazar_control::World;
use alcazar_identity::{ParseSpiffeIdError, Selector, SpiffeId};
use alcazar_service::clock;
use zeroize::Zeroizing;

use super::data_dir::Paths;
use super::survey::seconds;
use crate::status;

/// The registration, and socket, of the control plane.
pub(crate) const CONTROL: &str = "alcazar-system.alcazar-control";

/// The node's name in its SPIFFE ID: a mesh of `up` is on one machine.
const NODE: &str = "local";

/// The CA, for the one node there is.
#[derive(Clone)]
pub(crate) struct Authority {
    ca: Ca,
    node: SpiffeId,
}

impl Authority {
    /// Opens the CA of the data directory, and makes its registrations those of `world`.
    pub(crate) async fn open(paths: &Paths, world: &World) -> Result<Self, OpenAuthorityError> {
        let config = Config {
            trust_domain: world.trust_domain.clone(),
            cluster: world.cluster.clone(),
            // For whoever checks certificates of this mesh by CRLs: openssl, an auditor.
            revocation: RevocationConfig {
                listen: Some((Ipv4Addr::LOCALHOST, 0).into()),
                ..RevocationConfig::default()
            },
            ..Config::new(paths.ca())
        };
        let node = SpiffeId::node(&world.trust_domain, &world.cluster, NODE)?;
        let control = SpiffeId::workload(&world.trust_domain, "alcazar-system", "alcazar-control")?;
        let authority = Self { ca: Ca::open(config, clock::system()).await?, node };
        authority.forget_absent(world).await?;
        authority.register(CONTROL, &control, None).await?;
        Ok(authority)
    }

    /// The CA itself.
    pub(crate) fn ca(&self) -> Ca {
        self.ca.clone()
    }

    /// The node's name.
    pub(crate) fn node() -> &'static str {
        NODE
    }

    /// A token by which the agent joins, where it has no certificate that is still good.
    pub(crate) async fn join_token(&self) -> Result<Zeroizing<String>, AdminError> {
        let (token, _) = self.ca.create_join_token(&self.node, None).await?;
        Ok(token.reveal())
    }

    /// Lets the node ask for an identity, and serve it on the socket of the registration's name.
    pub(crate) async fn register(
        &self,
        registration: &str,
        id: &SpiffeId,
        ttl: Option<Duration>,
    ) -> Result<(), RegisterError> {
        let wrong = |source| RegisterError::Wrong { registration: registration.to_owned(), source };
        let socket = registration.parse().map_err(|error| wrong(ParseRegistrationError::Selector(error)))?;
        let selector = Selector::Socket(socket);
        let parsed = registration.parse().map_err(wrong)?;
        let wanted = Registration::new(parsed, self.node.clone(), id.clone(), [selector], ttl).map_err(wrong)?;
        let failed = |source| RegisterError::Failed { registration: registration.to_owned(), source };
        self.ca.put_registration(wanted).await.map_err(failed)
    }

    /// Takes it back.
    pub(crate) async fn unregister(&self, registration: &str) -> Result<(), RegisterError> {
        let wrong = |source| RegisterError::Wrong { registration: registration.to_owned(), source };
        let id = registration.parse().map_err(wrong)?;
        let failed = |source| RegisterError::Failed { registration: registration.to_owned(), source };
        self.ca.delete_registration(&id).await.map_err(failed).map(drop)
    }

    /// Root and intermediate, for the status.
    pub(crate) fn hierarchy(&self) -> (status::Authority, status::Authority) {
        let shown = |info: &AuthorityInfo| status::Authority {
            fingerprint: info.fingerprint.to_string(),
            not_after: seconds(info.validity.not_after()),
        };
        let prints = self.ca.fingerprints();
        (shown(&prints.root), shown(&prints.intermediate))
    }

    /// Takes back the registrations of workloads that left the mesh while it did not run.
    async fn forget_absent(&self, world: &World) -> Result<(), OpenAuthorityError> {
        let present: BTreeSet<String> =
            world.workloads.iter().map(|w| w.socket_name()).chain([CONTROL.to_owned()]).collect();
        for registration in self.ca.registrations().await? {
            if !present.contains(registration.id().as_str()) {
                self.ca.delete_registration(registration.id()).await?;
            }
        }
        Ok(())
    }
}

/// Why the CA cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenAuthorityError {
    #[error("cannot open the certificate authority")]
    Open(#[from] OpenError),
    #[error("cannot read the certificate authority's registrations")]
    Registrations(#[from] AdminError),
    #[error(transparent)]
    Register(#[from] RegisterError),
    #[error("the cluster's name cannot stand in a SPIFFE ID")]
    Node(#[from] ParseSpiffeIdError),
}

/// Why a workload cannot be registered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegisterError {
    #[error("{registration} cannot be registered")]
    Wrong { registration: String, source: ParseRegistrationError },
    #[error("cannot register {registration}")]
    Failed { registration: String, source: AdminError },
}
