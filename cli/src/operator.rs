//! The operator's way to a CA: its administration socket.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use alcazar_service::process::chain;
use clap::Args;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::args::DataDirArg;
use crate::up::Paths;

/// Which CA a command speaks to.
#[derive(Debug, Args)]
pub(crate) struct CaArg {
    /// The CA's administration socket; without it, that of the mesh in --data-dir
    #[arg(long = "ca", value_name = "SOCKET")]
    socket: Option<PathBuf>,
    #[command(flatten)]
    data: DataDirArg,
}

impl CaArg {
    /// A channel to the CA's administration services.
    pub(crate) async fn connect(&self) -> Result<Channel, OperatorError> {
        let mesh = || Paths::of(&self.data.path).ca().join(alcazar_ca::ADMIN_SOCKET);
        let socket = self.socket.clone().unwrap_or_else(mesh);
        let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display()));
        let endpoint = endpoint.map_err(|source| OperatorError::Path { socket: socket.clone(), source })?;
        // The system says what is wrong with a socket more clearly than a channel does.
        tokio::net::UnixStream::connect(&socket).await.map_err(|source| unreachable(socket.clone(), source))?;
        endpoint.connect().await.map_err(|source| OperatorError::Channel { socket, source })
    }
}

fn unreachable(socket: PathBuf, source: io::Error) -> OperatorError {
    match source.kind() {
        io::ErrorKind::NotFound => OperatorError::Missing { socket },
        io::ErrorKind::PermissionDenied => OperatorError::Denied { socket },
        _ => OperatorError::Unreachable { socket, source },
    }
}

/// Why an operator's command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OperatorError {
    /// The path cannot stand in an address.
    #[error("{} cannot be the path of a socket", socket.display())]
    Path { socket: PathBuf, source: tonic::transport::Error },
    /// There is nothing.
    #[error("there is no socket {}; {START_IT}", socket.display())]
    Missing { socket: PathBuf },
    /// It is not ours to use.
    #[error(
        "the socket {} is its owner's alone, as whoever may use it may admit nodes; use the user that the CA runs as, or root",
        socket.display()
    )]
    Denied { socket: PathBuf },
    /// Nobody answers.
    #[error("no CA answers on {}, as it does while it runs; {START_RUNNING}", socket.display())]
    Unreachable { socket: PathBuf, source: io::Error },
    /// Somebody answers who is no CA, or one that ends.
    #[error("whoever answers on {} is not the CA", socket.display())]
    Channel { socket: PathBuf, source: tonic::transport::Error },
    /// The CA said no. It tells an operator the whole reason.
    #[error("{}", .0.message())]
    Refused(Status),
    /// What was asked for is not there.
    #[error("{0}")]
    Nothing(String),
    /// A file that the operator named.
    #[error("{}: {what}", path.display())]
    File { path: PathBuf, what: String },
    /// What the CA sent is not what it should be.
    #[error("the CA's answer cannot be read: {0}")]
    Answer(String),
}

/// The status says nothing that its message does not: it is no cause that would be printed once more.
impl From<Status> for OperatorError {
    fn from(status: Status) -> Self {
        Self::Refused(status)
    }
}

const START_IT: &str = "start the CA (`alcazar up`, or `alcazar-ca --config ca.yaml`), or name its socket with --ca (admin.sock in its dataDir)";
const START_RUNNING: &str = "start it (`alcazar up`, or `alcazar-ca --config ca.yaml`), or name its socket with --ca (admin.sock in its dataDir)";

/// Runs a command that speaks to a CA; a failure is printed with its causes.
pub(crate) fn run<F: Future<Output = Result<ExitCode, OperatorError>>>(command: F) -> ExitCode {
    run_any(command)
}

/// The same, for a command that has failures of its own.
pub(crate) fn run_any<E: std::error::Error + 'static>(command: impl Future<Output = Result<ExitCode, E>>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("alcazar: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("alcazar: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_ca_says_is_said_once_and_without_the_words_of_its_transport() {
        let refused = OperatorError::from(Status::invalid_argument("not a reason of RFC 5280"));
        assert_eq!(chain(&refused), "not a reason of RFC 5280");
    }

    #[test]
    fn what_keeps_an_operator_out_is_told_apart() {
        let said = |kind: io::ErrorKind| unreachable("ca/admin.sock".into(), kind.into()).to_string();
        assert!(said(io::ErrorKind::NotFound).starts_with("there is no socket ca/admin.sock; start the CA"));
        assert!(said(io::ErrorKind::PermissionDenied).contains("use the user that the CA runs as"));
        assert!(said(io::ErrorKind::ConnectionRefused).starts_with("no CA answers on ca/admin.sock"));
    }
}
