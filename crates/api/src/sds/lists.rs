use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::client::{StreamError, request, send};
use super::held::ResponseError;
use super::{REVOCATIONS, revocations_from_secret};
use crate::ca::v1;
use crate::envoy::discovery::{DiscoveryRequest, DiscoveryResponse};
use crate::envoy::secret::secret_discovery_service_client::SecretDiscoveryServiceClient;
use crate::envoy::tls::Secret;
use crate::envoy::{SECRET_URL, unpack};

/// What is revoked, on a stream of its own beside that of the certificate. It fails and begins again by itself.
pub(super) struct Lists {
    client: SecretDiscoveryServiceClient<Channel>,
    open: Option<Open>,
    /// Not before.
    again: Instant,
}

struct Open {
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
}

impl Lists {
    pub(super) fn new(client: SecretDiscoveryServiceClient<Channel>) -> Self {
        Self { client, open: None, again: Instant::now() }
    }

    /// The lists as the agent shows them next, unchecked; `None`: it has none. Cancel safe: nothing that came is lost.
    pub(super) async fn next(&mut self) -> Option<v1::SignedRevocations> {
        loop {
            match self.try_next().await {
                Ok(shown) => return shown,
                Err(failure) => {
                    tracing::warn!(target: "alcazar::revoked", %failure, retry_in = ?PAUSE, "the agent cannot be asked what is revoked; what is held is enforced");
                    self.open = None;
                    self.again = Instant::now() + PAUSE;
                }
            }
        }
    }

    async fn try_next(&mut self) -> Result<Option<v1::SignedRevocations>, StreamError> {
        loop {
            let open = match &mut self.open {
                Some(open) => open,
                None => {
                    tokio::time::sleep_until(self.again).await;
                    let (requests, outgoing) = mpsc::channel(4);
                    send(&requests, request(&[REVOCATIONS], None, None)).await?;
                    let responses = self.client.stream_secrets(ReceiverStream::new(outgoing)).await?.into_inner();
                    self.open.insert(Open { requests, responses })
                }
            };
            let response = open.responses.message().await?.ok_or(StreamError::Ended)?;
            let shown = lists_of(&response);
            let refusal = shown.as_ref().err().map(ToString::to_string);
            // There is room: one answer for each response. Where there is none, the stream has ended, and says so next.
            drop(open.requests.try_send(request(&[REVOCATIONS], Some(&response), refusal)));
            match shown {
                Ok(shown) => return Ok(shown),
                Err(failure) => {
                    tracing::warn!(target: "alcazar::revoked", %failure, "refused the lists of revocations that the agent sent; keeping what was held");
                }
            }
        }
    }
}

fn lists_of(response: &DiscoveryResponse) -> Result<Option<v1::SignedRevocations>, ResponseError> {
    let mut shown = None;
    for resource in &response.resources {
        let secret: Secret = unpack(SECRET_URL, resource)?;
        if secret.name == REVOCATIONS {
            shown = Some(revocations_from_secret(&secret)?);
        }
    }
    Ok(shown)
}

const PAUSE: Duration = Duration::from_secs(5);
