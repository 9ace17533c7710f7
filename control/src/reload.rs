//! From files on disk to the next world, and what is said about it.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

use alcazar_policy::{Policy, Settings};
use alcazar_yaml::{SourceFile, YamlError, YamlErrors};

use crate::addresses::{AddressBook, AddressBookError};
use crate::config::Config;
use crate::mesh::{self, Mesh, Reading};
use crate::sources::{self, Paths, ReadError};
use crate::world::{Addresses, World, join};

/// Reads the files of one mesh, again and again.
pub(crate) struct Loader {
    mesh: PathBuf,
    /// Where the policies are, as the last mesh file that could be read says.
    policies: Option<PathBuf>,
    book: Option<(PathBuf, AddressBook)>,
    /// The last policies that were right, with the files they are from.
    policy: Option<(Vec<SourceFile>, Arc<Policy>)>,
    /// What was read last, right or wrong.
    read: Option<(SourceFile, Vec<SourceFile>)>,
}

/// Why files do not make a world.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum LoadError {
    /// The mesh file cannot be read.
    #[error("cannot read the mesh file")]
    #[diagnostic(help("check the path, and that this user may read it"))]
    Mesh(#[source] ReadError),
    /// The mesh file or the policies are wrong: each place is shown.
    #[error("{}", count(.0.len()))]
    #[diagnostic(transparent)]
    Refused(YamlErrors),
    /// The address book is of no use.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Addresses(#[from] AddressBookError),
}

fn count(errors: usize) -> String {
    match errors {
        1 => "the mesh has an error".to_owned(),
        many => format!("the mesh has {many} errors"),
    }
}

/// What one reading found on disk.
struct Found {
    mesh: SourceFile,
    outcome: Result<Mesh, YamlErrors>,
    policies: Vec<SourceFile>,
}

impl Loader {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// When they do not make a world.
    pub(crate) fn open(config: &Config) -> Result<(Self, World), LoadError> {
        let book = match &config.addresses {
            Some(path) => Some((path.clone(), AddressBook::load(path)?)),
            None => None,
        };
        let mut loader = Self { mesh: config.mesh.clone(), policies: None, book, policy: None, read: None };
        let found = loader.find()?;
        let world = loader.build(found, None)?;
        Ok((loader, world))
    }

    /// The files that the next load reads.
    pub(crate) fn paths(&self) -> Paths {
        Paths { mesh: self.mesh.clone(), policies: self.policies.clone() }
    }

    /// Reads the files again. `None` when they are word for word as they were the last time, right or wrong.
    ///
    /// # Errors
    /// When they do not make a world. What is in force should stay.
    pub(crate) fn load(&mut self, previous: &World) -> Result<Option<World>, LoadError> {
        let last = self.read.take();
        let found = self.find()?;
        if last.is_some_and(|(mesh, policies)| mesh == found.mesh && policies == found.policies) {
            self.read = Some((found.mesh, found.policies));
            return Ok(None);
        }
        self.build(found, Some(previous)).map(Some)
    }

    fn find(&mut self) -> Result<Found, LoadError> {
        let mesh = sources::read(&self.mesh).map_err(LoadError::Mesh)?;
        let Reading { policies: stated, mesh: outcome } = mesh::read(&mesh);
        if let Some(stated) = &stated {
            self.policies = Some(stated.resolve(&self.mesh));
        } else if outcome.is_ok() {
            self.policies = None;
        }
        let policies = match &self.policies {
            Some(path) => sources::read_policies(path),
            None => Ok(Vec::new()),
        };
        match policies {
            Ok(policies) => Ok(Found { mesh, outcome, policies }),
            Err(error) => {
                let span = stated.map(|stated| stated.span);
                let mut errors = outcome.err().unwrap_or_default();
                errors.push(unreadable(&mesh, span, &error));
                Err(LoadError::Refused(errors))
            }
        }
    }

    fn build(&mut self, found: Found, previous: Option<&World>) -> Result<World, LoadError> {
        self.read = Some((found.mesh, found.policies.clone()));
        let policy = self.policy(found.policies);
        // Choices of a mesh that is refused are not kept.
        let mut next = self.book.as_ref().map(|(_, book)| book.clone());
        let addresses = match &mut next {
            Some(book) => Addresses::Chosen { book, is_free: &is_free },
            None => Addresses::Stated,
        };
        let world = join(found.outcome, policy, addresses, previous).map_err(LoadError::Refused)?;
        self.remember(next)?;
        Ok(world)
    }

    /// The policy of these files; the one before when they are the same, so that nothing is compiled again.
    fn policy(&mut self, files: Vec<SourceFile>) -> Result<Arc<Policy>, YamlErrors> {
        if let Some((_, policy)) = self.policy.as_ref().filter(|(were, _)| *were == files) {
            return Ok(Arc::clone(policy));
        }
        let policy = Arc::new(Policy::from_files(&files, &Settings::default())?);
        self.policy = Some((files, Arc::clone(&policy)));
        Ok(policy)
    }

    /// Keeps new choices before anybody uses them.
    fn remember(&mut self, next: Option<AddressBook>) -> Result<(), AddressBookError> {
        if let (Some((path, book)), Some(next)) = (&mut self.book, next)
            && *book != next
        {
            next.save(path)?;
            *book = next;
        }
        Ok(())
    }
}

fn unreadable(mesh: &SourceFile, span: Option<alcazar_yaml::Span>, error: &ReadError) -> YamlError {
    let message = format!("the policies cannot be read: {}", alcazar_service::process::chain(error));
    match span {
        Some(span) => YamlError::new(mesh, span, message).with_help("the path is relative to the mesh file"),
        None => YamlError::whole_file(mesh, message),
    }
}

fn is_free(address: SocketAddr) -> bool {
    TcpListener::bind(address).is_ok()
}
