//! Nodes with certificates, and the workloads that are registered for them.

use std::{collections::BTreeMap, net::SocketAddr, path::Path, sync::Arc};

use alcazar_api::{
    ca::v1::{
        self, administration_client::AdministrationClient, attest_node_request::Evidence,
        certificate_authority_client::CertificateAuthorityClient, issue_workload_result::Outcome,
    },
    istio::v1::auth::{IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient},
};
use alcazar_identity::{
    CertificateDer, Credentials, Fingerprint, SpiffeId, SvidKey, TrustBundles, TrustDomain, X509Svid,
};
use alcazar_mtls::{Connector, Expected, grpc};
use alcazar_service::clock;
use anyhow::{Context, bail};
use futures::{StreamExt, TryStreamExt, stream};
use prost_types::{Struct, Value, value::Kind};
use rcgen::{CertificateParams, KeyPair};
use tokio::sync::watch;
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};

use crate::{
    Crowd,
    load::{Call, Client, Counts, pick},
};

/// A node that has attested itself.
pub(crate) struct Node {
    address: SocketAddr,
    connector: Connector,
    expected: Expected,
    /// The name and the identity of each workload that is registered for it.
    workloads: Vec<(String, String)>,
    /// A request for each of some keys.
    requests: Vec<Request>,
}

/// A certificate request in both of its forms.
pub(crate) struct Request {
    pub(crate) der: Vec<u8>,
    pub(crate) pem: String,
}

impl Client for Node {
    type Connection = Channel;

    /// A connection of its own, made at the first call.
    async fn connect(&self) -> anyhow::Result<Channel> {
        Ok(grpc::channel(self.address, self.connector.clone(), self.expected.clone()))
    }

    async fn ask(&self, channel: &mut Channel, call: Call, turn: usize, size: usize) -> anyhow::Result<Counts> {
        match call {
            Call::One => self.one(channel, turn).await,
            Call::Batch => self.many(channel, turn, size).await,
        }
    }
}

impl Node {
    /// By Istio's `CreateCertificate`.
    async fn one(&self, channel: &Channel, turn: usize) -> anyhow::Result<Counts> {
        let (_, identity) = pick(&self.workloads, turn)?;
        let identity = Value { kind: Some(Kind::StringValue(identity.clone())) };
        let metadata = Struct { fields: BTreeMap::from([("ImpersonatedIdentity".to_owned(), identity)]) };
        let request = IstioCertificateRequest {
            csr: pick(&self.requests, turn)?.pem.clone(),
            validity_duration: 0,
            metadata: Some(metadata),
        };
        match IstioCertificateServiceClient::new(channel.clone()).create_certificate(request).await {
            Ok(reply) if reply.get_ref().cert_chain.len() >= 2 => Ok((1, 0)),
            Ok(reply) => bail!("a chain of {} certificates", reply.get_ref().cert_chain.len()),
            Err(status) if status.code() == Code::ResourceExhausted => Ok((0, 1)),
            Err(status) => Err(status.into()),
        }
    }

    /// By `IssueWorkloads`.
    async fn many(&self, channel: &Channel, turn: usize, size: usize) -> anyhow::Result<Counts> {
        let item = |number: usize| {
            let (registration, _) = pick(&self.workloads, turn + number)?;
            let csr = pick(&self.requests, turn + number)?.der.clone();
            anyhow::Ok(v1::IssueWorkload { registration_id: registration.clone(), csr, ..v1::IssueWorkload::default() })
        };
        let items = (0..size).map(item).collect::<anyhow::Result<Vec<_>>>()?;
        let mut client = CertificateAuthorityClient::new(channel.clone()).max_decoding_message_size(64 << 20);
        let reply = client.issue_workloads(v1::IssueWorkloadsRequest { items }).await?;
        let mut counts = (0, 0);
        for result in reply.into_inner().results {
            match result.outcome {
                Some(Outcome::Svid(_)) => counts.0 += 1,
                Some(Outcome::Refusal(refusal)) if refusal.code == i32::from(Code::ResourceExhausted) => counts.1 += 1,
                other => bail!("{}: {other:?}", result.registration_id),
            }
        }
        Ok(counts)
    }
}

/// So many nodes that share so many identities.
pub(crate) async fn nodes(socket: &Path, crowd: &Crowd<'_>) -> anyhow::Result<Vec<Node>> {
    let Crowd { address, name, clients: count, identities } = *crowd;
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
    let request = v1::CreateJoinTokenRequest { node_id: id.to_string(), ttl: 0, kubernetes_node: false };
    let token = operator.clone().create_join_token(request).await?.into_inner().token;
    let connector = Connector::pinned(trust_domain.clone(), pin, grpc::ALPN, clock::system());
    let channel = grpc::channel(address, connector, expected.clone());
    let key = KeyPair::generate()?;
    let csr = CertificateParams::default().serialize_request(&key)?.der().to_vec();
    let request = v1::AttestNodeRequest { evidence: Some(Evidence::JoinToken(token)), csr, ..Default::default() };
    let issued = CertificateAuthorityClient::new(channel).attest_node(request).await?.into_inner();
    let chain: Vec<_> = issued.chain.into_iter().map(CertificateDer::from).collect();
    let bundles = issued.bundles.context("no trust bundle")?.try_into()?;
    Ok((X509Svid::new(chain, SvidKey::from_pkcs8(key.serialize_der())?)?, bundles))
}

/// A key, and the request for its certificate.
pub(crate) fn request() -> anyhow::Result<Request> {
    let request = CertificateParams::default().serialize_request(&KeyPair::generate()?)?;
    Ok(Request { der: request.der().to_vec(), pem: request.pem()? })
}

/// A few keys for each node: the CA does the same work for a key that it has seen.
pub(crate) const KEYS: usize = 8;
