//! The other end of `alcazar status`: a Unix socket in the data directory that answers `GET /status`.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use alcazar_service::Shutdown;
use axum::routing::get;
use axum::{Json, Router};
use tokio::net::UnixListener;

use crate::status::Status;

/// Makes the socket, in place of one that a kill has left behind.
///
/// The directory is nobody else's, so nobody gets in before the mode is set.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers until the shutdown.
pub(crate) async fn serve(
    listener: UnixListener,
    status: Arc<dyn Fn() -> Status + Send + Sync>,
    shutdown: Shutdown,
) -> io::Result<()> {
    let app = Router::new().route("/status", get(move || async move { Json(status()) }));
    axum::serve(listener, app).with_graceful_shutdown(async move { shutdown.cancelled().await }).await
}
