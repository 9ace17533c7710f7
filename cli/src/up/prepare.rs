//! What is done before anything runs: the data directory is ours, the mesh file is right.

use std::io::{self, stderr};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use alcazar_control::{Control, LoadError, World};
use alcazar_service::process::chain;
use alcazar_service::telemetry::colour_wanted;
use alcazar_yaml::{Style, render_all};

use super::authority::CONTROL;
use super::data_dir::{DataDir, OpenDataDirError, Paths, SocketPathTooLong};
use super::{leftovers, sample};
use crate::args::UpArgs;

/// A mesh that can be started.
pub(super) struct Prepared {
    pub(super) data: DataDir,
    pub(super) source: Source,
    pub(super) control: Control,
    /// Where the control plane listens.
    pub(super) listener: TcpListener,
}

impl Prepared {
    /// Takes the data directory, and reads the mesh file and its policies.
    pub(super) fn open(args: &UpArgs) -> Result<Self, PrepareError> {
        let data = DataDir::open(&args.data.path)?;
        let paths = data.paths();
        for workload in leftovers::end(&paths.commands()).map_err(PrepareError::Leftovers)? {
            tracing::warn!(target: "alcazar::supervise", "{workload}: ended what an earlier run had left behind");
        }
        let source = Source::of(args, paths)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(PrepareError::Listen)?;
        listener.set_nonblocking(true).map_err(PrepareError::Listen)?;
        let control = Control::open(alcazar_control::Config {
            mesh: source.mesh.clone(),
            addresses: Some(paths.addresses()),
            listen: listener.local_addr().map_err(PrepareError::Listen)?,
            sds_socket: paths.sds_socket(CONTROL)?,
            admin: None,
        })?;
        check_paths(paths, &control.world().borrow())?;
        Ok(Self { data, source, control, listener })
    }
}

/// What is run: the sample, or a mesh of one's own.
pub(super) struct Source {
    pub(super) mesh: PathBuf,
    pub(super) is_sample: bool,
}

impl Source {
    fn of(args: &UpArgs, paths: &Paths) -> Result<Self, PrepareError> {
        match &args.mesh {
            Some(mesh) => Ok(Self { mesh: mesh.clone(), is_sample: false }),
            None => {
                let mesh = sample::write(&paths.sample()).map_err(PrepareError::Sample)?;
                Ok(Self { mesh, is_sample: true })
            }
        }
    }

    /// The folder of the mesh file.
    pub(super) fn directory(&self) -> PathBuf {
        let parent = self.mesh.parent().filter(|parent| !parent.as_os_str().is_empty());
        parent.unwrap_or(Path::new(".")).to_owned()
    }
}

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
pub(super) enum PrepareError {
    #[error(transparent)]
    DataDir(#[from] OpenDataDirError),
    #[error("cannot end what an earlier run has left behind")]
    Leftovers(#[source] io::Error),
    #[error("cannot write the sample")]
    Sample(#[source] io::Error),
    #[error("cannot listen on loopback for the control plane")]
    Listen(#[source] io::Error),
    #[error(transparent)]
    Socket(#[from] SocketPathTooLong),
    #[error(transparent)]
    Load(#[from] LoadError),
}

impl PrepareError {
    /// Prints it, what a person wrote with carets; 2 when that has to be mended.
    pub(super) fn report(&self) -> ExitCode {
        let style = if colour_wanted(&stderr()) { Style::Colour } else { Style::Plain };
        match self {
            Self::Load(LoadError::Refused(errors)) => eprint!("{}", render_all(errors, style)),
            Self::Load(error) => eprintln!("alcazar: {}", chain(error)),
            other => {
                eprintln!("alcazar: {}", chain(other));
                return ExitCode::FAILURE;
            }
        }
        ExitCode::from(2)
    }
}

/// Sockets that cannot be bound later are refused before anything is started.
fn check_paths(paths: &Paths, world: &World) -> Result<(), SocketPathTooLong> {
    world.workloads.iter().try_for_each(|workload| paths.sds_socket(&workload.socket_name()).map(drop))
}
