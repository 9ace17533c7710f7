//! What a process tells its own operator: `GET /status` on a Unix socket that is its owner's alone, as JSON.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use tokio::net::UnixListener;

use crate::Shutdown;

/// Makes the socket, in place of one that a kill has left behind.
///
/// The directory must be nobody else's: then nobody gets in before the mode is set.
///
/// # Errors
/// When the directory cannot be written.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers until the shutdown.
///
/// # Errors
/// When the listener fails.
pub async fn serve<T: Serialize + 'static>(
    listener: UnixListener,
    status: impl Fn() -> T + Clone + Send + Sync + 'static,
    shutdown: Shutdown,
) -> io::Result<()> {
    let app = Router::new().route("/status", get(move || async move { Json(status()) }));
    axum::serve(listener, app).with_graceful_shutdown(async move { shutdown.cancelled().await }).await
}
