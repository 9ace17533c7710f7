//! SPIRE's server: agents that attested themselves by join tokens, and ask by `BatchNewX509SVID`.
//!
//! The few messages of its API that are needed are written down here, with the numbers of their fields.

use std::{
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use alcazar_identity::{
    CertificateDer, Credentials, SpiffeId, SvidKey, TrustBundle, TrustBundles, TrustDomain, X509Svid,
};
use alcazar_mtls::{Connector, Expected, grpc};
use alcazar_service::clock;
use anyhow::{Context, bail, ensure};
use futures::stream;
use http::uri::PathAndQuery;
use prost::Message;
use rcgen::{CertificateParams, KeyPair};
use tokio::sync::watch;
use tonic::{
    Code, Request, Status,
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use crate::{
    Crowd,
    load::{Call, Client, Counts, pick},
    setup::{KEYS, Request as Csr, request},
};

/// So many agents that share so many identities.
pub(crate) async fn agents(socket: &Path, crowd: &Crowd<'_>) -> anyhow::Result<Vec<Agent>> {
    let Crowd { address, name, clients: count, identities } = *crowd;
    let local = Endpoint::from_shared(format!("unix:{}", socket.display()))?.connect().await?;
    let bundle: wire::Bundle = unary(&local, "/spire.api.server.bundle.v1.Bundle/GetBundle", wire::Empty {}).await?;
    let trust_domain: TrustDomain = bundle.trust_domain.parse()?;
    let roots = bundle.x509_authorities.into_iter().map(|root| CertificateDer::from(root.asn1));
    let bundles = TrustBundles::from(TrustBundle::new(trust_domain.clone(), 1, roots)?);
    let expected = Expected::id(format!("spiffe://{trust_domain}/spire/server").parse::<SpiffeId>()?);
    let mut agents = Vec::with_capacity(count);
    for number in 0..count {
        let svid = attest(&local).await?;
        let parent = wire::SpiffeId { trust_domain: trust_domain.to_string(), path: svid.id().path().to_owned() };
        let mine: Vec<_> = (number..identities.max(count)).step_by(count).collect();
        let mut entries = Vec::with_capacity(mine.len());
        for some in mine.chunks(500) {
            let entry = |identity: &usize| wire::Entry {
                spiffe_id: Some(wire::SpiffeId {
                    trust_domain: trust_domain.to_string(),
                    path: format!("/ns/{name}/sa/w{identity}"),
                }),
                parent_id: Some(parent.clone()),
                selectors: vec![wire::Selector { kind: "unix".into(), value: format!("uid:{identity}") }],
                ..wire::Entry::default()
            };
            let all = wire::Entries { entries: some.iter().map(entry).collect() };
            let made: wire::EntryResults =
                unary(&local, "/spire.api.server.entry.v1.Entry/BatchCreateEntry", all).await?;
            for result in made.results {
                entries.push(result.entry.with_context(|| format!("no entry: {:?}", result.status))?.id);
            }
        }
        let credentials = watch::channel(Arc::new(Credentials::new(svid, bundles.clone()))).1;
        let connector = Connector::new(credentials, grpc::ALPN, clock::system());
        let requests = (0..KEYS).map(|_| request()).collect::<anyhow::Result<_>>()?;
        agents.push(Agent { address, connector, expected: expected.clone(), entries, requests });
    }
    for agent in &agents {
        agent.until_it_is_served().await?;
    }
    Ok(agents)
}

/// An agent that has attested itself.
pub(crate) struct Agent {
    address: SocketAddr,
    connector: Connector,
    expected: Expected,
    /// The names of the entries for which it may ask.
    entries: Vec<String>,
    requests: Vec<Csr>,
}

impl Client for Agent {
    type Connection = Channel;

    async fn connect(&self) -> anyhow::Result<Channel> {
        Ok(grpc::channel(self.address, self.connector.clone(), self.expected.clone()))
    }

    async fn ask(&self, channel: &mut Channel, call: Call, turn: usize, size: usize) -> anyhow::Result<Counts> {
        let size = if call == Call::Batch { size } else { 1 };
        let item = |number: usize| {
            let entry_id = pick(&self.entries, turn + number)?.clone();
            anyhow::Ok(wire::NewSvid { entry_id, csr: pick(&self.requests, turn + number)?.der.clone() })
        };
        let params = (0..size).map(item).collect::<anyhow::Result<Vec<_>>>()?;
        let issued: wire::SvidResults =
            unary(channel, "/spire.api.server.svid.v1.SVID/BatchNewX509SVID", wire::NewSvids { params }).await?;
        let mut counts = (0, 0);
        for result in issued.results {
            match (result.svid, result.status) {
                (Some(_), _) => counts.0 += 1,
                (None, Some(status)) if status.code == i32::from(Code::ResourceExhausted) => counts.1 += 1,
                (None, status) => bail!("no SVID: {status:?}"),
            }
        }
        Ok(counts)
    }
}

impl Agent {
    /// The server learns of entries every few seconds.
    async fn until_it_is_served(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut channel = self.connect().await?;
        loop {
            let asked = self.ask(&mut channel, Call::One, self.entries.len().saturating_sub(1), 1).await;
            match asked {
                Ok(_) => return Ok(()),
                Err(error) => ensure!(Instant::now() < deadline, "SPIRE does not issue: {error:#}"),
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

async fn attest(local: &Channel) -> anyhow::Result<X509Svid> {
    let wish = wire::TokenWish { ttl: 600 };
    let token: wire::JoinToken =
        unary(local, "/spire.api.server.agent.v1.Agent/CreateJoinToken", wish).await.context("no join token")?;
    let key = KeyPair::generate()?;
    let csr = CertificateParams::default().serialize_request(&key)?.der().to_vec();
    let data = wire::AttestationData { kind: "join_token".into(), payload: token.value.into_bytes() };
    let params = wire::AttestParams { data: Some(data), params: Some(wire::Csr { csr }) };
    let path = PathAndQuery::from_static("/spire.api.server.agent.v1.Agent/AttestAgent");
    let mut client = Grpc::new(local.clone());
    client.ready().await?;
    let codec = ProstCodec::<wire::Attest, wire::Attested>::default();
    let said = stream::iter([wire::Attest { params: Some(params) }]);
    let mut replies = client.streaming(Request::new(said), path, codec).await?.into_inner();
    let attested = replies.message().await?.and_then(|reply| reply.result).and_then(|result| result.svid);
    let chain = attested.context("SPIRE did not admit an agent")?.cert_chain.into_iter().map(CertificateDer::from);
    Ok(X509Svid::new(chain.collect(), SvidKey::from_pkcs8(key.serialize_der())?)?)
}

async fn unary<Q, R>(channel: &Channel, path: &'static str, question: Q) -> Result<R, Status>
where
    Q: Message + 'static,
    R: Message + Default + 'static,
{
    let mut client = Grpc::new(channel.clone()).max_decoding_message_size(64 << 20);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let codec = ProstCodec::<Q, R>::default();
    Ok(client.unary(Request::new(question), PathAndQuery::from_static(path), codec).await?.into_inner())
}

/// What goes over the wire, as far as it is needed.
mod wire {
    use prost::Message;

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Empty {}

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct SpiffeId {
        #[prost(string, tag = "1")]
        pub(super) trust_domain: String,
        #[prost(string, tag = "2")]
        pub(super) path: String,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Refusal {
        #[prost(int32, tag = "1")]
        pub(super) code: i32,
        #[prost(string, tag = "2")]
        pub(super) message: String,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Certificate {
        #[prost(bytes = "vec", tag = "1")]
        pub(super) asn1: Vec<u8>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Bundle {
        #[prost(string, tag = "1")]
        pub(super) trust_domain: String,
        #[prost(message, repeated, tag = "2")]
        pub(super) x509_authorities: Vec<Certificate>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct TokenWish {
        #[prost(int32, tag = "1")]
        pub(super) ttl: i32,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct JoinToken {
        #[prost(string, tag = "1")]
        pub(super) value: String,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Attest {
        #[prost(message, optional, tag = "1")]
        pub(super) params: Option<AttestParams>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct AttestParams {
        #[prost(message, optional, tag = "1")]
        pub(super) data: Option<AttestationData>,
        #[prost(message, optional, tag = "2")]
        pub(super) params: Option<Csr>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct AttestationData {
        #[prost(string, tag = "1")]
        pub(super) kind: String,
        #[prost(bytes = "vec", tag = "2")]
        pub(super) payload: Vec<u8>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Csr {
        #[prost(bytes = "vec", tag = "1")]
        pub(super) csr: Vec<u8>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Attested {
        #[prost(message, optional, tag = "1")]
        pub(super) result: Option<AttestedAgent>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct AttestedAgent {
        #[prost(message, optional, tag = "1")]
        pub(super) svid: Option<Svid>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Svid {
        #[prost(bytes = "vec", repeated, tag = "1")]
        pub(super) cert_chain: Vec<Vec<u8>>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Selector {
        #[prost(string, tag = "1")]
        pub(super) kind: String,
        #[prost(string, tag = "2")]
        pub(super) value: String,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Entry {
        #[prost(string, tag = "1")]
        pub(super) id: String,
        #[prost(message, optional, tag = "2")]
        pub(super) spiffe_id: Option<SpiffeId>,
        #[prost(message, optional, tag = "3")]
        pub(super) parent_id: Option<SpiffeId>,
        #[prost(message, repeated, tag = "4")]
        pub(super) selectors: Vec<Selector>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Entries {
        #[prost(message, repeated, tag = "1")]
        pub(super) entries: Vec<Entry>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct EntryResult {
        #[prost(message, optional, tag = "1")]
        pub(super) status: Option<Refusal>,
        #[prost(message, optional, tag = "2")]
        pub(super) entry: Option<Entry>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct EntryResults {
        #[prost(message, repeated, tag = "1")]
        pub(super) results: Vec<EntryResult>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct NewSvid {
        #[prost(string, tag = "1")]
        pub(super) entry_id: String,
        #[prost(bytes = "vec", tag = "2")]
        pub(super) csr: Vec<u8>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct NewSvids {
        #[prost(message, repeated, tag = "1")]
        pub(super) params: Vec<NewSvid>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct SvidResult {
        #[prost(message, optional, tag = "1")]
        pub(super) status: Option<Refusal>,
        #[prost(message, optional, tag = "2")]
        pub(super) svid: Option<Svid>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct SvidResults {
        #[prost(message, repeated, tag = "1")]
        pub(super) results: Vec<SvidResult>,
    }
}
