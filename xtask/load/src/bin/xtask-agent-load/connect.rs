//! Connections of many users from one process.

use std::{
    os::unix::net::UnixStream,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, anyhow};
use hyper_util::rt::TokioIo;
use rustix::{process::Uid, thread::set_thread_res_uid};
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

/// The user that a workload runs as.
pub(crate) fn uid(workload: u32) -> u32 {
    FIRST_UID + workload
}

/// Connects as a workload's user. The kernel keeps whom the connecting thread was acting for; from Linux 6.5 on it keeps the
/// process too, so nobody looks up what another thread of it is.
pub(crate) fn connect(socket: &Path, workload: u32) -> anyhow::Result<UnixStream> {
    let (socket, uid) = (socket.to_owned(), Uid::from_raw(uid(workload)));
    let connected = std::thread::spawn(move || {
        set_thread_res_uid(None, Some(uid), None).context("cannot act for another user; that needs root")?;
        anyhow::Ok(UnixStream::connect(socket)?)
    });
    connected.join().map_err(|_| anyhow!("the connecting thread panicked"))?
}

/// HTTP/2 over one such connection.
pub(crate) async fn channel(socket: &Path, workload: u32) -> anyhow::Result<Channel> {
    let stream = connect(socket, workload)?;
    stream.set_nonblocking(true)?;
    let once = Arc::new(Mutex::new(Some(stream)));
    let give = move |_| {
        let stream = once.lock().unwrap_or_else(PoisonError::into_inner).take();
        async move {
            let stream = stream.ok_or_else(|| std::io::Error::other("the agent has ended the connection"))?;
            Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::from_std(stream)?))
        }
    };
    Ok(Endpoint::from_static("http://agent").connect_with_connector(service_fn(give)).await?)
}

/// Where no system has users of its own.
const FIRST_UID: u32 = 1_000_000;
