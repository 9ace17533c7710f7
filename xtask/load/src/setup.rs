//! Nodes with certificates, and the workloads that are registered for them.

use std::{net::SocketAddr, path::Path, sync::Arc};

use alcazar_api::ca::v1::{
    self, administration_client::AdministrationClient, attest_node_request::Evidence,
    certificate_authority_client::CertificateAuthorityClient,
};
use alcazar_identity::{
    CertificateDer, Credentials, Fingerprint, SpiffeId, SvidKey, TrustBundles, TrustDomain, X509Svid,
};
use alcazar_mtls::{Connector, Expected, grpc};
use alcazar_service::clock;
use anyhow::Context;
use futures::{StreamExt, TryStreamExt, stream};
use rcgen::{CertificateParams, KeyPair};
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};

/// A node that has attested itself.
pub(crate) struct Node {
    address: SocketAddr,
    connector: Connector,
    expected: Expected,
    /// The name and the identity of each workload that is registered for it.
    pub(crate) workloads: Vec<(String, String)>,
    /// A request for each of some keys.
    pub(crate) requests: Vec<Request>,
}

/// A certificate request in both of its forms.
pub(crate) struct Request {
    pub(crate) der: Vec<u8>,
    pub(crate) pem: String,
}

impl Node {
    /// A connection of its own, made at the first call.
    pub(crate) fn channel(&self) -> Channel {
        grpc::channel(self.address, self.connector.clone(), self.expected.clone())
    }
}

/// So many nodes that share so many identities.
pub(crate) async fn nodes(
    socket: &Path,
    address: SocketAddr,
    name: &str,
    count: usize,
    identities: usize,
) -> anyhow::Result<Vec<Node>> {
    let channel = Endpoint::from_shared(format!("unix:{}", socket.display()))?.connect().await?;
    let operator = AdministrationClient::new(channel);
    let hierarchy = operator.clone().get_hierarchy(v1::GetHierarchyRequest {}).await?.into_inner();
    let trust_domain: TrustDomain = hierarchy.trust_domain.parse()?;
    let root = hierarchy.root.context("the CA has no root")?;
    let pin = Fingerprint::of(&CertificateDer::from(root.certificate));
    let expected = Expected::id(SpiffeId::workload(&trust_domain, "alcazar-system", "alcazar-ca")?);
    let mut nodes = Vec::with_capacity(count);
    for number in 0..count {
        let id = SpiffeId::node(&trust_domain, &hierarchy.cluster, &format!("{name}-{number}"))?;
        let svid = attest(&operator, address, &trust_domain, pin, &expected, &id).await?;
        let (credentials, bundles) = svid;
        // The channel outlives the sender; these credentials do not change.
        let connector = Connector::new(
            watch::channel(Arc::new(Credentials::new(credentials, bundles))).1,
            grpc::ALPN,
            clock::system(),
        );
        let mine = (number..identities.max(count)).step_by(count);
        let workloads = mine.map(|workload| {
            let identity = SpiffeId::workload(&trust_domain, name, &format!("w{workload}"))?;
            Ok((format!("{name}.w{workload}"), identity.to_string()))
        });
        let workloads = workloads.collect::<anyhow::Result<Vec<_>>>()?;
        stream::iter(workloads.iter().map(|(registration, identity)| {
            let mut operator = operator.clone();
            let message = v1::Registration {
                id: registration.clone(),
                node_id: id.to_string(),
                spiffe_id: identity.clone(),
                selectors: vec![format!("socket:{registration}")],
                ..v1::Registration::default()
            };
            async move { operator.put_registration(message).await }
        }))
        .buffer_unordered(256)
        .try_collect::<Vec<_>>()
        .await?;
        let requests = (0..KEYS).map(|_| request()).collect::<anyhow::Result<_>>()?;
        nodes.push(Node { address, connector, expected: expected.clone(), workloads, requests });
    }
    Ok(nodes)
}

async fn attest(
    operator: &AdministrationClient<Channel>,
    address: SocketAddr,
    trust_domain: &TrustDomain,
    pin: Fingerprint,
    expected: &Expected,
    id: &SpiffeId,
) -> anyhow::Result<(X509Svid, TrustBundles)> {
    let request = v1::CreateJoinTokenRequest { node_id: id.to_string(), ttl: 0 };
    let token = operator.clone().create_join_token(request).await?.into_inner().token;
    let connector = Connector::pinned(trust_domain.clone(), pin, grpc::ALPN, clock::system());
    let channel = grpc::channel(address, connector, expected.clone());
    let key = KeyPair::generate()?;
    let csr = CertificateParams::default().serialize_request(&key)?.der().to_vec();
    let request = v1::AttestNodeRequest { evidence: Some(Evidence::JoinToken(token)), csr };
    let issued = CertificateAuthorityClient::new(channel).attest_node(request).await?.into_inner();
    let chain: Vec<_> = issued.chain.into_iter().map(CertificateDer::from).collect();
    let bundles = issued.bundles.context("no trust bundle")?.try_into()?;
    Ok((X509Svid::new(chain, SvidKey::from_pkcs8(key.serialize_der())?)?, bundles))
}

fn request() -> anyhow::Result<Request> {
    let request = CertificateParams::default().serialize_request(&KeyPair::generate()?)?;
    Ok(Request { der: request.der().to_vec(), pem: request.pem()? })
}

/// A few keys for each node: the CA does the same work for a key that it has seen.
const KEYS: usize = 8;
