use std::path::PathBuf;
use std::time::Duration;

use alcazar_mtls::Clock;
use alcazar_mtls::web::{FetchError, HttpsUrl, Limits, RootsError, WebClient};

use super::{ParsePodListError, PodList};
use crate::evidence::{self, EvidenceError};

/// Where the pods of this node are listed, and what is needed to ask.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(super) url: HttpsUrl,
    pub(super) is_kubelet: bool,
    /// What the server's certificate has to be for; the host of the URL otherwise.
    pub(super) name: Option<String>,
    pub(super) roots: PathBuf,
    pub(super) token: PathBuf,
    pub(super) node: String,
}

impl Source {
    /// The pods of this node now.
    pub(super) async fn list(&self, clock: &Clock) -> Result<PodList, ListError> {
        let roots = tokio::fs::read(&self.roots).await;
        let roots = roots.map_err(|source| ListError::Read { path: self.roots.clone(), source })?;
        let unusable = |source| ListError::Roots { path: self.roots.clone(), source };
        let mut client = WebClient::with_roots(&roots, clock.clone()).map_err(unusable)?.with_limits(LIMITS);
        if let Some(name) = &self.name {
            client = client.with_server_name(name);
        }
        let token = evidence::bearer_token(&self.token).await?;
        // It is one word of printable characters.
        let client = client.with_bearer(&token).map_err(|_| EvidenceError::NoToken(self.token.clone()))?;
        let document = client.fetch(&self.url).await.map_err(|source| self.explained(source))?;
        Ok(PodList::read(&document.bytes, &self.node)?)
    }

    fn explained(&self, source: FetchError) -> ListError {
        match source {
            FetchError::Status { status: 401, .. } => ListError::Token { path: self.token.clone(), source },
            FetchError::Status { status: 403, .. } if self.is_kubelet => ListError::NotAllowed {
                needs: "get on nodes/pods (Kubernetes 1.33 and newer) or on nodes/proxy",
                source,
            },
            FetchError::Status { status: 403, .. } => ListError::NotAllowed { needs: "list on pods", source },
            FetchError::Handshake { .. } => {
                ListError::Server { path: self.roots.clone(), name: self.name.clone(), source }
            }
            source => ListError::Fetch(source),
        }
    }
}

/// Why the pods of this node cannot be listed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("kubernetes.rootFile {} holds no roots that can be used", path.display())]
    Roots { path: PathBuf, source: RootsError },
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    #[error("the token in {} is not accepted (a kubelet needs webhook authentication)", path.display())]
    Token { path: PathBuf, source: FetchError },
    #[error("the token's account may not list the pods of this node: it needs {needs}")]
    NotAllowed { needs: &'static str, source: FetchError },
    #[error(
        "who lists the pods is not proved by kubernetes.rootFile {}{}",
        path.display(),
        name.as_ref().map(|name| format!(" as {name:?} (kubernetes.serverName)")).unwrap_or_default()
    )]
    Server { path: PathBuf, name: Option<String>, source: FetchError },
    #[error(transparent)]
    Fetch(FetchError),
    #[error(transparent)]
    Parse(#[from] ParsePodListError),
}

/// A few hundred pods of 30 KiB each. Shorter than anybody waits for an answer, so that the reason is told and not the lateness.
const LIMITS: Limits = Limits { bytes: 32 << 20, deadline: Duration::from_secs(4) };
