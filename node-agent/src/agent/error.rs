use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::config::ConfigError;
use crate::saved::LoadError;
use crate::sealed::SealKeyError;
use crate::sockets::{BindError, SocketsDirError};

/// Why an agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The configuration makes no sense.
    #[error("the configuration cannot be used")]
    Config(#[from] ConfigError),
    /// The file that narrows cannot be used; nothing is served by half of a rule.
    #[error("the narrowing file cannot be used")]
    Narrowing(#[source] alcazar_service::config::ConfigError),
    /// The data directory cannot be used.
    #[error("cannot use the data directory {}", path.display())]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The data directory is somebody else's: its permissions are not ours to change.
    #[error(
        "{} has something else in it and nothing of an agent; name a directory of the agent's own as dataDir (one that is missing is made)",
        .0.display()
    )]
    ForeignDir(PathBuf),
    /// The saved identity cannot be used, and is not ours to do away with.
    #[error(transparent)]
    Saved(#[from] LoadError),
    /// The key that seals cannot be used.
    #[error(transparent)]
    Seal(#[from] SealKeyError),
    /// Another agent has it: two would renew against each other.
    #[error("another agent uses the data directory {}", .0.display())]
    Taken(PathBuf),
    /// The sockets directory cannot be used.
    #[error(transparent)]
    Sockets(#[from] SocketsDirError),
    /// The shared socket cannot be made.
    #[error(transparent)]
    Socket(#[from] BindError),
    /// The admin address cannot be listened on.
    #[error("cannot listen on the admin address {address}")]
    Admin {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// Why an agent ended otherwise than it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A part ended by itself; the log says more.
    #[error("a part of the agent broke")]
    Broken,
    /// A part did not end when asked to.
    #[error("the agent did not end in time")]
    Unfinished(#[source] alcazar_service::Unfinished),
}
