//! Streams as a proxy holds them: SDS, state of the world, its certificate and its bundle, each response acknowledged.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use alcazar_api::{
    envoy::{
        SECRET_URL,
        discovery::{DiscoveryRequest, DiscoveryResponse},
        secret::secret_discovery_service_client::SecretDiscoveryServiceClient,
        tls::Secret,
        unpack,
    },
    sds::{DEFAULT, ROOT_CA, svid_from_secret},
};
use alcazar_service::{Shutdown, clock};
use anyhow::{Context, bail};
use serde_json::json;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};
use tonic::{Streaming, transport::Channel};

use crate::connect;

/// What comes on all streams, with the moment at which it came.
pub(crate) struct Streams {
    responses: mpsc::UnboundedReceiver<(SystemTime, DiscoveryResponse)>,
    /// The streams end with it.
    _channels: Vec<Channel>,
}

/// A stream for each of the first workloads, each over a connection of its own user; waits until all have their certificate.
pub(crate) async fn open(socket: &Path, count: u32, shutdown: &Shutdown) -> anyhow::Result<Streams> {
    let (came, responses) = mpsc::unbounded_channel();
    let mut channels = Vec::new();
    for workload in 0..count {
        let channel = connect::channel(socket, workload).await?;
        let (requests, outgoing) = mpsc::channel(4);
        requests.send(request(None)).await?;
        let mut client = SecretDiscoveryServiceClient::new(channel.clone());
        let mut stream =
            client.stream_secrets(tokio_stream::wrappers::ReceiverStream::new(outgoing)).await?.into_inner();
        let first = stream.message().await?.context("the agent ended a stream")?;
        serial(&first)?.context("the agent has no certificate for a workload yet")?;
        requests.send(request(Some(&first))).await?;
        let came = came.clone();
        shutdown.spawn("stream", async move {
            if let Err(error) = follow(&mut stream, &requests, &came).await {
                eprintln!("a stream broke: {error:#}");
            }
        });
        channels.push(channel);
    }
    Ok(Streams { responses, _channels: channels })
}

async fn follow(
    stream: &mut Streaming<DiscoveryResponse>,
    requests: &mpsc::Sender<DiscoveryRequest>,
    came: &mpsc::UnboundedSender<(SystemTime, DiscoveryResponse)>,
) -> anyhow::Result<()> {
    while let Some(response) = stream.message().await? {
        // What it is, is read when nobody waits.
        let at = clock::now();
        requests.send(request(Some(&response))).await?;
        came.send((at, response))?;
    }
    bail!("the agent ended it")
}

impl Streams {
    /// The next so many certificates: each serial, and the microsecond since the epoch at which it came.
    pub(crate) async fn rotations(&mut self, count: usize, seconds: u64) -> anyhow::Result<String> {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        let mut responses = Vec::new();
        while responses.len() < count {
            match timeout_at(deadline, self.responses.recv()).await {
                Ok(Some(response)) => responses.push(response),
                Ok(None) => bail!("all streams broke"),
                Err(_) => break,
            }
        }
        let mut rotations = Vec::new();
        for (at, response) in responses {
            let Some(serial) = serial(&response)? else { continue };
            let at = at.duration_since(SystemTime::UNIX_EPOCH)?.as_micros();
            rotations.push(json!([serial, u64::try_from(at)?]));
        }
        Ok(json!(rotations).to_string())
    }
}

/// The serial of the certificate in a response.
fn serial(response: &DiscoveryResponse) -> anyhow::Result<Option<String>> {
    for resource in &response.resources {
        let secret: Secret = unpack(SECRET_URL, resource)?;
        if secret.name == DEFAULT {
            return Ok(Some(svid_from_secret(&secret)?.serial().to_owned()));
        }
    }
    Ok(None)
}

/// The first request, or an acknowledgement.
pub(crate) fn request(answered: Option<&DiscoveryResponse>) -> DiscoveryRequest {
    DiscoveryRequest {
        version_info: answered.map(|response| response.version_info.clone()).unwrap_or_default(),
        response_nonce: answered.map(|response| response.nonce.clone()).unwrap_or_default(),
        resource_names: [DEFAULT, ROOT_CA].map(str::to_owned).into(),
        type_url: SECRET_URL.to_owned(),
        ..DiscoveryRequest::default()
    }
}
