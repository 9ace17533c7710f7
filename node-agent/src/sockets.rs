//! The Unix sockets: one for each workload that has a certificate and a `socket:` selector, and the shared one.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alcazar_identity::{SHARED_SOCKET, SocketName};
use alcazar_service::Shutdown;
use futures::{Stream, stream};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use crate::callers::Callers;
use crate::connection::Connection;
use crate::peer::{Peer, PidfdError, User};
use crate::registry::{Registry, Served};
use crate::services::{Offer, Services};

/// The directory of the sockets, held by one agent at a time.
#[derive(Debug)]
pub(crate) struct SocketsDir {
    path: PathBuf,
    /// Locked as long as this agent lives; the system unlocks it after a kill -9.
    _lock: File,
}

impl SocketsDir {
    /// Makes the directory, or takes it over: what sockets a crashed run has left are removed.
    pub(crate) fn open(path: &Path) -> Result<Self, SocketsDirError> {
        let failed = |source| SocketsDirError::Io { path: path.to_owned(), source };
        if !path.try_exists().map_err(failed)? {
            fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path).map_err(failed)?;
            // The umask may have shut out those who must pass through.
            fs::set_permissions(path, Permissions::from_mode(DIRECTORY_MODE)).map_err(failed)?;
        }
        let mode = fs::metadata(path).map_err(failed)?.permissions().mode();
        if mode & WRITABLE_BY_OTHERS != 0 {
            return Err(SocketsDirError::Open { path: path.to_owned(), mode: mode & 0o7777 });
        }
        let lock = lock(&path.join(LOCK)).map_err(failed)?.ok_or_else(|| SocketsDirError::Taken(path.to_owned()))?;
        // The longest temporary name and the shared socket must fit; workloads' sockets are checked one by one.
        check_length(&path.join(TEMPORARY)).map_err(SocketsDirError::Length)?;
        let directory = Self { path: path.to_owned(), _lock: lock };
        directory.sweep().map_err(failed)?;
        Ok(directory)
    }

    /// Where the socket of this name is.
    pub(crate) fn path_of(&self, name: &str) -> PathBuf {
        self.paths()(name)
    }

    /// [`SocketsDir::path_of`], for those who do not hold the directory.
    pub(crate) fn paths(&self) -> impl Fn(&str) -> PathBuf + Send + use<> {
        let path = self.path.clone();
        move |name| path.join(format!("{name}.sock"))
    }

    /// Removes sockets, and nothing else: nobody listens on them while we hold the lock.
    fn sweep(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let named = entry.path().extension().is_some_and(|extension| extension == "sock");
            if named && entry.file_type()?.is_socket() {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Makes a socket: it appears under its name when its mode is right, and not before.
    pub(crate) fn bind(&self, name: &str, mode: u32, owner: Option<u32>) -> Result<Bound, BindError> {
        let path = self.path_of(name);
        check_length(&path)?;
        match fs::symlink_metadata(&path) {
            Ok(there) if !there.file_type().is_socket() => return Err(BindError::InTheWay(path)),
            _ => {}
        }
        let temporary = self.path.join(TEMPORARY);
        let failed = |source| BindError::Io { path: path.clone(), source };
        remove_if_there(&temporary).map_err(failed)?;
        let listener = UnixListener::bind(&temporary).map_err(failed)?;
        fs::set_permissions(&temporary, Permissions::from_mode(mode)).map_err(failed)?;
        if let Some(uid) = owner {
            chown(&temporary, Some(uid), None).map_err(|source| BindError::Owner {
                path: path.clone(),
                uid,
                source,
            })?;
        }
        fs::rename(&temporary, &path).map_err(failed)?;
        Ok(Bound { listener: Some(listener), path, is_ours: true })
    }
}

/// A socket that is served; its file goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Bound {
    listener: Option<UnixListener>,
    path: PathBuf,
    /// Not one that outlives the agent, by whoever has made it.
    is_ours: bool,
}

impl Drop for Bound {
    fn drop(&mut self) {
        if !self.is_ours {
            return;
        }
        if let Err(error) = remove_if_there(&self.path) {
            tracing::warn!(socket = %self.path.display(), %error, "cannot remove a socket that is served no more");
        }
    }
}

impl Bound {
    /// A socket that systemd has made, and goes on listening on while the agent starts anew.
    pub(crate) fn given(listener: std::os::unix::net::UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let path = listener.local_addr()?.as_pathname().map(Path::to_owned).unwrap_or_default();
        Ok(Self { listener: Some(UnixListener::from_std(listener)?), path, is_ours: false })
    }

    /// Serves until the shutdown. Then its streams end; a client that does not let go of its connection loses it.
    pub(crate) async fn serve(mut self, services: Services, shutdown: Shutdown) {
        let Some(listener) = self.listener.take() else { return };
        let cut = Shutdown::new();
        let callers = services.callers.clone();
        let serving = tonic::transport::Server::builder()
            .max_concurrent_streams(MAX_STREAMS)
            .add_routes(services.routes())
            .serve_with_incoming_shutdown(incoming(listener, callers, cut.clone()), shutdown.cancelled());
        tokio::pin!(serving);
        let late = async {
            shutdown.cancelled().await;
            tokio::time::sleep(LAST_WORDS).await;
        };
        let served = tokio::select! {
            served = &mut serving => served,
            () = late => {
                tracing::warn!(socket = %self.path.display(), "clients do not let go of a socket that is served no more; they are cut off");
                cut.trigger("the socket is served no more");
                serving.await
            }
        };
        if let Err(error) = served {
            tracing::error!(socket = %self.path.display(), error = %alcazar_service::process::chain(&error), "a socket is served no more");
        }
    }
}

/// The connections of a socket. It never ends: when the system has no more descriptors it waits for some.
fn incoming(listener: UnixListener, callers: Callers, cut: Shutdown) -> impl Stream<Item = io::Result<Connection>> {
    stream::unfold((listener, callers, cut), |(listener, callers, cut)| async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    if let Some(connection) = connection(stream, &callers, &cut) {
                        return Some((Ok(connection), (listener, callers, cut)));
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection on a socket; trying again in {PAUSE:?}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    })
}

/// A connection of a process that can be known, and for which there is room.
fn connection(stream: UnixStream, callers: &Callers, cut: &Shutdown) -> Option<Connection> {
    let peer = match Peer::of(&stream) {
        Ok(peer) => callers.place(peer),
        Err(PidfdError::Gone) => {
            tracing::debug!("a process has ended right after it connected");
            return None;
        }
        Err(error) => {
            let uid = stream.peer_cred().map_or(u32::MAX, |credentials| credentials.uid());
            if let Some(not_logged_before) = callers.line(&User::Outside(uid)) {
                let reason = alcazar_service::process::chain(&error);
                tracing::warn!(target: "alcazar::refused", uid, reason, not_logged_before, "a connection of a process that cannot be known");
            }
            return None;
        }
    };
    let seat = callers.seat(&peer)?;
    Some(Connection::new(stream, peer, seat, cut.clone()))
}

/// Keeps the sockets as the registry says, until the shutdown.
pub(crate) async fn keep(
    directory: SocketsDir,
    mut registry: watch::Receiver<Arc<Registry>>,
    offer: Offer,
    shutdown: Shutdown,
    problems: watch::Sender<BTreeMap<SocketName, String>>,
) {
    let mut serving: BTreeMap<SocketName, Serving> = BTreeMap::new();
    loop {
        let now = registry.borrow_and_update().clone();
        close_those_gone(&mut serving, &now).await;
        for (name, served) in now.sockets() {
            let owner = served.registration().uid();
            match serving.get(name) {
                Some(socket) if socket.owner == owner => continue,
                // It is another user's now.
                Some(_) => close(&mut serving, |other| other == name).await,
                None => {}
            }
            if served.now().credentials().is_none() {
                continue;
            }
            match open(&directory, name, served, &offer, &shutdown) {
                Ok(end) => {
                    problems.send_if_modified(|problems| problems.remove(name).is_some());
                    serving.insert(name.clone(), Serving { owner, end });
                }
                Err(error) => tell_once(&problems, name, served, &error),
            }
        }
        tokio::select! {
            change = registry.changed() => if change.is_err() { break },
            () = shutdown.cancelled() => break,
        }
    }
    close_those_gone(&mut serving, &Registry::default()).await;
}

/// A workload's own socket that is served.
struct Serving {
    /// The user whose it is; `None`: the agent's own.
    owner: Option<u32>,
    end: Shutdown,
}

/// Serves a workload's own socket.
fn open(
    directory: &SocketsDir,
    name: &SocketName,
    served: &Served,
    offer: &Offer,
    shutdown: &Shutdown,
) -> Result<Shutdown, BindError> {
    // A workload of another user must be able to open its socket; nobody else may.
    let owner = served.registration().uid();
    let bound = directory.bind(name.as_str(), OWN_SOCKET_MODE, owner)?;
    let child = shutdown.child();
    let services = offer.services(Some(name.clone()), child.clone());
    child.spawn("socket of a workload", bound.serve(services, child.clone()));
    Ok(child)
}

/// Makes the shared socket: from then on whoever connects waits to be served.
pub(crate) fn bind_shared(directory: &SocketsDir) -> Result<Bound, BindError> {
    directory.bind(SHARED_SOCKET, SHARED_SOCKET_MODE, None)
}

/// Serves a socket that callers share.
pub(crate) fn serve_shared(bound: Bound, offer: &Offer, shutdown: &Shutdown) {
    let services = offer.services(None, shutdown.clone());
    shutdown.spawn("shared socket", bound.serve(services, shutdown.clone()));
}

async fn close_those_gone(serving: &mut BTreeMap<SocketName, Serving>, registry: &Registry) {
    close(serving, |name| !registry.sockets().any(|(there, _)| there == name)).await;
}

async fn close(serving: &mut BTreeMap<SocketName, Serving>, is_over: impl Fn(&SocketName) -> bool) {
    let ending: Vec<_> = serving.extract_if(.., |name, _| is_over(name)).map(|(_, serving)| serving.end).collect();
    for child in &ending {
        child.trigger("the registration is gone, or another");
    }
    for child in ending {
        if let Err(unfinished) = child.finished(DRAIN).await {
            tracing::warn!("{unfinished}");
        }
    }
}

fn tell_once(
    problems: &watch::Sender<BTreeMap<SocketName, String>>,
    name: &SocketName,
    served: &Served,
    error: &BindError,
) {
    let reason = alcazar_service::process::chain(error);
    let new =
        problems.send_if_modified(|problems| problems.insert(name.clone(), reason.clone()) != Some(reason.clone()));
    if new {
        let spiffe_id = served.registration().spiffe_id();
        tracing::error!(target: "alcazar::refused", %spiffe_id, reason, "a workload's socket cannot be served");
    }
}

/// Locks a file; `None` when another process holds it.
pub(crate) fn lock(path: &Path) -> io::Result<Option<File>> {
    let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    // Whoever can open it can hold it. One of an earlier version may be open to others.
    file.set_permissions(Permissions::from_mode(0o600))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

fn check_length(path: &Path) -> Result<(), BindError> {
    let length = path.as_os_str().as_bytes().len();
    if length > MAX_PATH { Err(BindError::TooLong { path: path.to_owned(), length }) } else { Ok(()) }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Why a directory cannot be the sockets'.
#[derive(Debug, thiserror::Error)]
pub enum SocketsDirError {
    /// It cannot be made or read.
    #[error("cannot use the sockets directory {}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others could put their own sockets in it.
    #[error(
        "others may write in the sockets directory {} (mode {mode:04o}) and could stand in for the agent: \
         use a directory of its own, mode 0711 or stricter", path.display()
    )]
    Open {
        /// The directory.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Another agent serves it.
    #[error("another agent serves the sockets directory {}", .0.display())]
    Taken(PathBuf),
    /// Its path leaves no room for a socket's name.
    #[error("the path of the sockets directory is too long")]
    Length(#[source] BindError),
}

/// Why a socket cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The system has room for no more.
    #[error(
        "the socket path {} has {length} bytes, Unix sockets have at most {MAX_PATH}: choose a shorter sockets directory",
        path.display()
    )]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// Something that is no socket has its name.
    #[error("{} is in the way: it is not a socket, so it is not replaced", .0.display())]
    InTheWay(PathBuf),
    /// The socket cannot be given to the workload's user.
    #[error("cannot give the socket {} to the user {uid} whom the registration names", path.display())]
    Owner {
        /// The socket.
        path: PathBuf,
        /// The user.
        uid: u32,
        /// What the system said.
        source: io::Error,
    },
    /// The system refused.
    #[error("cannot make the socket {}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Everybody may pass through to the socket that is theirs, nobody may look around.
const DIRECTORY_MODE: u32 = 0o711;
const WRITABLE_BY_OTHERS: u32 = 0o022;
const OWN_SOCKET_MODE: u32 = 0o600;
/// Everybody may connect: who they are decides what they get.
const SHARED_SOCKET_MODE: u32 = 0o666;
/// No workload's socket can have this name: they start with a letter or digit.
const TEMPORARY: &str = ".new";
const LOCK: &str = "agent.lock";
/// sun_path has 108 bytes, the last one zero.
const MAX_PATH: usize = 107;
/// Streams of one connection.
const MAX_STREAMS: u32 = 256;
/// How long to wait when a connection cannot be accepted.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(500);
/// How long a client has to take what it is told last.
const LAST_WORDS: std::time::Duration = std::time::Duration::from_secs(1);
/// How long a closing socket waits for its streams, which end at once, and for its connections.
const DRAIN: std::time::Duration = std::time::Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_appears_whole_replaces_a_dead_one_and_goes() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("sockets");
        let directory = SocketsDir::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o711);
        let bound = directory.bind("shop.a", 0o600, None).unwrap();
        let socket = path.join("shop.a.sock");
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
        std::os::unix::net::UnixStream::connect(&socket).unwrap();
        drop(bound);
        assert!(!socket.exists());

        // What a crashed run has left, within this run and before it.
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let bound = directory.bind("shop.a", 0o600, None).unwrap();
        std::os::unix::net::UnixStream::connect(&socket).unwrap();
        std::mem::forget(bound);
        fs::write(path.join("notes.sock"), "no socket").unwrap();
        drop(directory);
        drop(SocketsDir::open(&path).unwrap());
        assert!(!socket.exists());
        assert!(path.join("notes.sock").exists(), "what is no socket is not ours to remove");
    }

    #[tokio::test]
    async fn a_socket_that_cannot_be_says_why() {
        let home = tempfile::tempdir().unwrap();
        let directory = SocketsDir::open(&home.path().join("s")).unwrap();
        let room = MAX_PATH - directory.path_of("").as_os_str().len();
        drop(directory.bind(&"x".repeat(room), 0o600, None).unwrap());
        let error = directory.bind(&"x".repeat(room + 1), 0o600, None).unwrap_err().to_string();
        assert!(error.contains("has 108 bytes, Unix sockets have at most 107"), "{error}");
        fs::create_dir(directory.path_of("folder")).unwrap();
        let error = directory.bind("folder", 0o600, None).unwrap_err().to_string();
        assert!(error.contains("is in the way"), "{error}");
    }
}
