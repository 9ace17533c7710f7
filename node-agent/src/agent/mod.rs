mod error;
mod show;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use alcazar_identity::SpiffeId;
use alcazar_mtls::Clock;
use alcazar_service::{Admin, Metrics, Readiness, Shutdown, files, local};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Notify, watch};

use crate::adoption::{Clients, Reporter};
use crate::authority::{Authority, GrpcAuthority};
use crate::callers::Doors;
use crate::config::{Config, ConfigError};
use crate::crls::{CrlKeeper, CrlsConfig, CrlsFile};
use crate::evidence::Sources;
use crate::files::{Access, FilesConfig, Keeper};
use crate::kubernetes;
use crate::link::{Heard, Link};
use crate::metrics;
use crate::narrowing::NarrowingFile;
use crate::node::Node;
use crate::registry::Registry;
use crate::renewal::Renewal;
use crate::revocations::{Checking, RevocationsFile};
use crate::saved::{self, NodeFile, SavedNode};
use crate::sealed::{self, Seal, Sealed, Writer};
use crate::services::Offer;
use crate::sockets::{self, Bound, SocketsDir};
use crate::status::{NodeStatus, Status, StatusReport};
use crate::workload_api::Tokens;
use show::Show;

pub use error::{OpenError, RunError};

/// The agent of one node.
pub struct Agent {
    id: SpiffeId,
    authority: Arc<dyn Authority>,
    sources: Sources,
    file: NodeFile,
    saved: SavedNode,
    revocations: RevocationsFile,
    /// Where CRLs are kept; `None`: nobody wants them.
    crls: Option<CrlsFile>,
    narrowing: Option<NarrowingFile>,
    sealed: Option<(Sealed, Writer)>,
    pods: Option<(kubernetes::Pods, kubernetes::Keeper)>,
    sockets: SocketsDir,
    /// Those that all callers use.
    shared: Vec<Bound>,
    files: Vec<(FilesConfig, Access)>,
    admin: Option<TcpListener>,
    /// The operator's own socket, where it could be made.
    operator: Option<UnixListener>,
    clock: Clock,
    status: watch::Sender<Arc<Status>>,
    /// Locked as long as this agent lives.
    data_lock: File,
}

impl Agent {
    /// Takes hold of the node's directories and reads what an earlier run has saved. Nothing is asked of the CA yet.
    ///
    /// # Errors
    /// When the configuration makes no sense, or a directory cannot be used.
    pub async fn open(config: Config, clock: Clock) -> Result<Self, OpenError> {
        let authority = GrpcAuthority::new(config.target()?, config.ca_id()?, config.cluster.clone(), clock.clone());
        Self::with_authority(config, Arc::new(authority), clock).await
    }

    async fn with_authority(config: Config, authority: Arc<dyn Authority>, clock: Clock) -> Result<Self, OpenError> {
        let id = config.node_id()?;
        let sources = config.sources()?;
        let files = config.files()?;
        let pods = config.kubernetes.as_ref().map(|kubernetes| {
            let source = kubernetes.source(&config.node).map_err(ConfigError::Kubernetes)?;
            Ok::<_, ConfigError>(kubernetes::Pods::new(kubernetes.cgroup_root.clone(), source, clock.clone()))
        });
        let pods = pods.transpose()?;
        let narrowing = config.narrow.as_deref().map(NarrowingFile::open).transpose().map_err(OpenError::Narrowing)?;
        let data_dir = config.data_dir;
        let failed = |source| OpenError::DataDir { path: data_dir.clone(), source };
        if is_foreign(&data_dir).map_err(failed)? {
            return Err(OpenError::ForeignDir(data_dir));
        }
        files::private_directory(&data_dir).map_err(failed)?;
        let locked = sockets::lock(&data_dir.join(LOCK)).map_err(failed)?;
        let data_lock = locked.ok_or_else(|| OpenError::Taken(data_dir.clone()))?;
        let file = NodeFile::within(&data_dir);
        let saved = file.load(&id)?;
        let revocations = RevocationsFile::within(&data_dir);
        let crls = (config.crls == CrlsConfig::Auto).then(|| CrlsFile::within(&data_dir));
        let sealed = match &config.seal {
            None => None,
            Some(seal) => {
                let key = sealed::read_key(&seal.key_file)?;
                let seal = Seal::new(&key, id.clone());
                let seal = seal.map_err(|error| failed(io::Error::other(error)))?;
                Some(Sealed::open(&data_dir, seal))
            }
        };
        let sockets = SocketsDir::open(&config.sockets_dir)?;
        let shared = vec![sockets::bind_shared(&sockets)?];
        let admin = match config.admin {
            Some(address) => {
                Some(TcpListener::bind(address).await.map_err(|source| OpenError::Admin { address, source })?)
            }
            None => None,
        };
        // It is for looking: nobody goes without an identity because of it.
        let operator = local::bind(&data_dir.join(OPERATOR)).inspect_err(|error| {
            let path = data_dir.join(OPERATOR);
            tracing::warn!(socket = %path.display(), %error, "cannot make the operator's socket; `alcazar agent status` has nobody to ask");
        });
        let node = NodeStatus::new(id.clone());
        let status = watch::Sender::new(Arc::new(Status { node, registrations: Vec::new(), narrowing: None }));
        Ok(Self {
            id,
            authority,
            sources,
            file,
            saved,
            revocations,
            crls,
            narrowing,
            sealed,
            pods,
            sockets,
            shared,
            files,
            admin,
            operator: operator.ok(),
            clock,
            status,
            data_lock,
        })
    }

    /// Serves another socket that all callers may use, which systemd has made and holds while the agent starts anew.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn also_serve(&mut self, listener: StdUnixListener) -> io::Result<()> {
        self.shared.push(Bound::given(listener)?);
        Ok(())
    }

    /// Who this node is.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// What the agent holds and does, live.
    pub fn status(&self) -> watch::Receiver<Arc<Status>> {
        self.status.subscribe()
    }

    /// Attests, renews and serves until the shutdown.
    ///
    /// # Errors
    /// When a part of the agent breaks.
    pub async fn run(self, shutdown: Shutdown, readiness: Readiness) -> Result<(), RunError> {
        let parts = shutdown.child();
        let registry = watch::Sender::new(Arc::new(Registry::default()));
        let clients = Clients::new();
        let session = watch::Sender::new(None);
        let tokens = Tokens::new(session.subscribe());
        let (pods, keeper) = self.pods.unzip();
        let served_crls = watch::Sender::new(Arc::default());
        let doors = Doors::new(registry.subscribe(), served_crls.subscribe(), self.clock.clone(), pods.clone());
        let bundles = watch::Sender::new(None);
        let saved = self.saved.current.as_ref().map(|current| current.bundles().clone()).unwrap_or_default();
        let said_crls = self.crls.is_some().then(|| watch::Sender::new(None));
        // Before anybody is served.
        if let (Some(file), Some(said)) = (self.crls, &said_crls) {
            let keeper = CrlKeeper {
                trust_domain: self.id.trust_domain().clone(),
                file,
                clock: self.clock.clone(),
                saved: saved.clone(),
                said: said.subscribe(),
                bundles: bundles.subscribe(),
                served: served_crls,
                part: readiness.part("CRLs"),
            };
            parts.spawn("CRLs", keeper.start(parts.clone()));
        }
        let offer = Offer { doors, clients: clients.clone(), tokens, clock: self.clock.clone() };
        for bound in self.shared {
            sockets::serve_shared(bound, &offer, &parts);
        }

        let doubt = Arc::new(Notify::new());
        let identity = watch::Sender::new(None);
        let said = watch::Sender::new(None);
        let reissue = watch::Sender::new(Arc::default());
        let rounds = [watch::Sender::new(0), watch::Sender::new(0)];
        let renewed = watch::Sender::new(0);
        let registrations = watch::Sender::new(None);
        // Before anything is restored or served.
        let held_back = self.revocations.held().current().clone();
        let (sealed, restored) = match self.sealed {
            None => (None, Vec::new()),
            Some((sealed, writer)) => {
                let loaded = sealed.load(&self.id, &saved, &held_back, (self.clock)());
                let unread = loaded.as_ref().err().map(ToString::to_string);
                let restored = loaded.unwrap_or_default();
                parts.spawn("sealed store", writer.keep(unread, readiness.part("sealed store"), parts.clone()));
                (Some(sealed), restored)
            }
        };
        let revoked = watch::Sender::new(held_back);
        let revocations = watch::Sender::new(None);
        let narrowing = watch::Sender::new(self.narrowing.as_ref().map(NarrowingFile::narrowing));
        let narrowed = watch::Sender::new(self.narrowing.as_ref().map(NarrowingFile::status));
        let node_status = watch::Sender::new(self.status.borrow().node.clone());
        if let Some(keeper) = keeper {
            let part = readiness.part("pods of this node");
            parts.spawn("pods of this node", keeper.keep(part, node_status.clone(), parts.clone()));
        }
        let workload_status = watch::Sender::new(Vec::new());
        let problems = watch::Sender::new(BTreeMap::new());

        let numbers = Metrics::new();
        metrics::measure(&numbers, self.status.subscribe(), clients.clone(), self.clock.clone());
        if let Some(pods) = &pods {
            pods.measure(&numbers);
        }
        let (status, served, health) = (self.status.subscribe(), clients.clone(), readiness.clone());
        let tell =
            move || StatusReport::new(&status.borrow(), &served.now(tokio::time::Instant::now()), &health.parts());
        if let Some(listener) = self.operator {
            let answering = local::serve(listener, tell, parts.clone());
            parts.spawn("operator's socket", async move {
                if let Err(error) = answering.await {
                    tracing::error!(%error, "the operator's socket is served no more");
                }
            });
        }
        let show = Show {
            node: node_status.subscribe(),
            workloads: workload_status.subscribe(),
            problems: problems.subscribe(),
            registry: registry.subscribe(),
            narrowed: narrowed.subscribe(),
            out: self.status,
        };
        let socket_paths = self.sockets.paths();
        parts.spawn("status", show.keep(socket_paths, parts.clone()));
        let keeping = sockets::keep(self.sockets, registry.subscribe(), offer, parts.clone(), problems);
        parts.spawn("sockets", keeping);
        for (config, access) in self.files {
            let part = readiness.part(format!("files in {}", config.directory.display()));
            let keeper = Keeper { config, access, registry: registry.subscribe(), clients: clients.clone(), part };
            parts.spawn("files of a workload", keeper.keep(parts.clone()));
        }
        let reporter = Reporter {
            node: self.id.clone(),
            session: session.subscribe(),
            identity: identity.subscribe(),
            bundles: bundles.subscribe(),
            registry: registry.subscribe(),
            clients,
            rounds: rounds.each_ref().map(watch::Sender::subscribe),
            renewed: renewed.subscribe(),
            resumed: self.saved.current.is_some(),
        };
        parts.spawn("adoption", reporter.keep(parts.clone()));
        let [node_round, round] = rounds;
        let renewal = Renewal {
            clock: self.clock.clone(),
            readiness: readiness.clone(),
            session: session.subscribe(),
            registrations: registrations.subscribe(),
            narrowing: narrowing.subscribe(),
            narrowed: narrowed.clone(),
            bundles: bundles.subscribe(),
            revocations: revoked.subscribe(),
            registry,
            reissue: reissue.subscribe(),
            round,
            renewed,
            status: workload_status,
            sealed,
            restored,
            before: Vec::new(),
            known: BTreeSet::new(),
        };
        match self.narrowing {
            Some(file) => {
                let part = readiness.part(NARROWING);
                parts.spawn("narrowing file", file.keep(narrowing, narrowed, part, parts.clone()));
            }
            None => {
                let until = parts.clone();
                parts.spawn("no narrowing file", async move {
                    until.cancelled().await;
                    drop(narrowing);
                });
            }
        }
        parts.spawn("renewal", renewal.keep(readiness.register("registrations of this node"), parts.clone()));
        let link = Link {
            node: self.id.clone(),
            authority: self.authority.clone(),
            identity: identity.subscribe(),
            revoked: revoked.subscribe(),
            clock: self.clock.clone(),
            status: node_status.clone(),
            out: Heard {
                session,
                registrations,
                said: said.clone(),
                reissue: reissue.clone(),
                revocations: revocations.clone(),
                crls: said_crls,
            },
            doubt: doubt.clone(),
        };
        parts.spawn("link to the CA", link.keep(parts.clone()));
        let checking = Checking {
            file: self.revocations,
            clock: self.clock.clone(),
            said: revocations.subscribe(),
            bundles: bundles.subscribe(),
            checked: revoked,
        };
        parts.spawn("revocations", checking.keep(parts.clone()));
        let node = Node {
            id: self.id,
            authority: self.authority,
            sources: self.sources,
            file: self.file,
            saved: self.saved,
            unsaved: None,
            clock: self.clock,
            identity,
            status: node_status,
            said: said.subscribe(),
            reissue: reissue.subscribe(),
            round: node_round,
            bundles,
            doubt,
        };
        let part = readiness.part(IDENTITY);
        part.not_ready("it has not started yet");
        parts.spawn("node identity", node.keep(part, parts.clone()));
        if let Some(listener) = self.admin {
            let admin = Admin::new(readiness).with_metrics(numbers);
            let until = parts.clone();
            parts.spawn("admin", async move {
                if let Err(error) = admin.serve(listener, until).await {
                    tracing::error!(%error, "the admin address is served no more");
                }
            });
        }

        parts.cancelled().await;
        let ended = parts.finished(DRAIN).await;
        drop(self.data_lock);
        match ended {
            Err(unfinished) => Err(RunError::Unfinished(unfinished)),
            Ok(()) if shutdown.is_cancelled() => Ok(()),
            Ok(()) => Err(RunError::Broken),
        }
    }
}

/// Whether a directory is in use for something else.
fn is_foreign(data_dir: &Path) -> io::Result<bool> {
    let entries = match fs::read_dir(data_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let mut stranger = false;
    for entry in entries {
        let name = entry?.file_name();
        // A saved identity may have been restored without the lock. The other is on every fresh file system of the ext family.
        match name.to_str() {
            Some(LOCK | saved::FILE) => return Ok(false),
            Some("lost+found") => {}
            _ => stranger = true,
        }
    }
    Ok(stranger)
}

/// How the parts are called of which the status tells more than their health.
pub(crate) const IDENTITY: &str = "identity of this node";
pub(crate) const NARROWING: &str = "narrowing file";

/// The file in the data directory by which one agent keeps out another.
const LOCK: &str = "agent.lock";

/// The socket in the data directory by which `alcazar agent status` asks.
const OPERATOR: &str = "admin.sock";

/// How long the parts have to end.
const DRAIN: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
