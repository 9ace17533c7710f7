//! The control plane as a whole: opened on files that are right, then run.

use std::sync::Arc;
use std::time::Duration;

use alcazar_api::envoy::discovery::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use alcazar_api::sds;
use alcazar_identity::SpiffeId;
use alcazar_mtls::{Acceptor, Clients, grpc};
use alcazar_service::{Readiness, Shutdown, clock, process};
use alcazar_yaml::Style;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::Config;
use crate::reload::{LoadError, Loader};
use crate::server::Ads;
use crate::snapshot::Snapshot;
use crate::status::{Board, Status};
use crate::watch::Watch;
use crate::world::World;

/// A control plane that has read its files.
pub struct Control {
    config: Config,
    loader: Loader,
    worlds: watch::Sender<Arc<World>>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    board: Board,
    /// What was last said to be wrong, so that it is said once.
    complaint: Option<String>,
}

/// Why a control plane stopped.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The ADS listener failed.
    #[error("cannot serve ADS")]
    Serve(#[source] tonic::transport::Error),
}

impl Control {
    /// Reads and checks all files once.
    ///
    /// # Errors
    /// Everything that is wrong with them, each with its place.
    pub fn open(config: Config) -> Result<Self, LoadError> {
        let (loader, world) = Loader::open(&config)?;
        warn(&world, None);
        let world = Arc::new(world);
        let snapshot = Arc::new(Snapshot::first(Arc::clone(&world)));
        Ok(Self {
            config,
            loader,
            worlds: watch::Sender::new(world),
            snapshots: watch::Sender::new(snapshot),
            board: Board::new(),
            complaint: None,
        })
    }

    /// The world in force; bad edits never show here.
    pub fn world(&self) -> watch::Receiver<Arc<World>> {
        self.worlds.subscribe()
    }

    /// The connected proxies and how much of the configuration they have taken.
    pub fn status(&self) -> watch::Receiver<Arc<Status>> {
        self.board.subscribe()
    }

    /// Follows the files and serves proxies until the shutdown.
    ///
    /// Ready when its identity has come from the node agent and proxies can connect. Files are followed before that.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn run(self, listener: TcpListener, shutdown: Shutdown, readiness: Readiness) -> Result<(), RunError> {
        let ready = readiness.register("control: identity");
        let ads = Ads { snapshots: self.snapshots.subscribe(), board: self.board.clone(), shutdown: shutdown.clone() };
        let trust_domain = self.worlds.borrow().trust_domain.clone();
        let socket = self.config.sds_socket.clone();
        shutdown.spawn("control: files", self.follow(shutdown.clone()));

        let connecting = sds::connect(socket, clock::system());
        let (credentials, driver) = tokio::select! {
            connected = connecting => connected,
            () = shutdown.cancelled() => return Ok(()),
        };
        let end = shutdown.clone();
        shutdown.spawn("control: identity", async move {
            tokio::select! {
                () = driver => {}
                () = end.cancelled() => {}
            }
        });
        let id = credentials.borrow().svid().id().clone();
        if SpiffeId::workload(&trust_domain, NAMESPACE, ACCOUNT).is_ok_and(|expected| expected != id) {
            tracing::warn!(spiffe_id = %id, "proxies expect the control plane to be {NAMESPACE}/{ACCOUNT}, and will refuse this identity");
        }
        let acceptor = Acceptor::new(credentials, Clients::Required, grpc::ALPN, clock::system());
        let incoming = grpc::incoming(listener, acceptor);
        ready.ready();
        let end = shutdown.clone();
        grpc::server()
            .add_service(AggregatedDiscoveryServiceServer::new(ads))
            .serve_with_incoming_shutdown(incoming, async move { end.cancelled().await })
            .await
            .map_err(RunError::Serve)
    }

    /// Reads the files again whenever they change.
    async fn follow(mut self, shutdown: Shutdown) {
        let mut watch = Watch::new();
        loop {
            // Watched before they are read, so that no change falls between.
            let paths = self.loader.paths();
            watch.follow(paths.clone());
            self = match reload(self).await {
                Some(control) => control,
                None => return,
            };
            // The mesh file may name another folder now, which nobody watched while it was read.
            if self.loader.paths() != paths {
                continue;
            }
            tokio::select! {
                () = watch.changed() => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Reads the files; puts them into force if they are right, says what is wrong if not.
    fn load(&mut self) {
        let begun = Instant::now();
        let before = Arc::clone(&self.snapshots.borrow());
        match self.loader.load(&before.world) {
            Ok(None) => {}
            Ok(Some(world)) => {
                self.complaint = None;
                warn(&world, Some(&before.world));
                let world = Arc::new(world);
                let (snapshot, changes) = before.next(Arc::clone(&world));
                let generation = snapshot.number;
                self.worlds.send_replace(world);
                self.board.generation(generation);
                self.snapshots.send_replace(Arc::new(snapshot));
                let took = begun.elapsed();
                tracing::info!(target: "alcazar::reload", generation, ?took, "reloaded: {changes}");
            }
            Err(error) => {
                let shown = Some(show(&error));
                if let (Some(text), true) = (&shown, shown != self.complaint) {
                    tracing::error!(target: "alcazar::reload", report = %text, "refused an edit; what was in force stays");
                }
                self.complaint = shown;
            }
        }
    }
}

/// Files may be slow, and many: not on a thread that serves.
async fn reload(mut control: Control) -> Option<Control> {
    let work = tokio::task::spawn_blocking(move || {
        control.load();
        control
    });
    match work.await {
        Ok(control) => Some(control),
        Err(error) => {
            tracing::error!(target: "alcazar::reload", %error, "reading files failed; they are no longer followed");
            None
        }
    }
}

/// Says what is probably not meant, once.
fn warn(world: &World, before: Option<&World>) {
    let is_new = |warning: &&alcazar_yaml::YamlError| {
        before.is_none_or(|before| !before.warnings.iter().any(|known| known.message() == warning.message()))
    };
    for warning in world.warnings.iter().filter(is_new) {
        let report = alcazar_yaml::render(warning, Style::Plain);
        tracing::warn!(target: "alcazar::reload", report = %report, "probably not meant: {}", warning.message());
    }
}

/// An error as a person sees it, for a log.
fn show(error: &LoadError) -> String {
    match error {
        LoadError::Refused(errors) => alcazar_yaml::render_all(errors, Style::Plain),
        other => process::chain(other),
    }
}

/// How long proxies' streams may take to end.
pub const DRAIN: Duration = Duration::from_secs(5);
const NAMESPACE: &str = "alcazar-system";
const ACCOUNT: &str = "alcazar-control";
