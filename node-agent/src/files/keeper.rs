//! The loop around one folder of files.

use std::sync::Arc;
use std::time::Duration;

use alcazar_api::sds::{ALL, DEFAULT, ROOT_CA};
use alcazar_identity::Credentials;
use alcazar_service::{Health, Part, Shutdown, process};
use tokio::sync::watch;

use super::after::{self, AfterError};
use super::config::{FilesConfig, Roots};
use super::content::Content;
use super::folder::{Access, Folder, FolderError};
use super::pkcs12::{Password, Pkcs12Error};
use crate::adoption::{ClientStream, Clients, Named};
use crate::caller::{Caller, Seen};
use crate::registry::{Held, Registry, Served};
use crate::sds::View;

/// Keeps the files of one workload.
pub(crate) struct Keeper {
    pub(crate) config: FilesConfig,
    pub(crate) access: Access,
    pub(crate) registry: watch::Receiver<Arc<Registry>>,
    pub(crate) clients: Clients,
    pub(crate) part: Part,
}

/// How far one run has come.
struct Progress {
    /// The registration, once it is known, and live what is held for it.
    served: Option<(Arc<Served>, watch::Receiver<Arc<Held>>)>,
    /// What the files are of.
    written: Option<Arc<Held>>,
    /// Whether the program has heard of them. A run that ended in between may have told it nothing: it is told once too often.
    told: bool,
    /// As the adoption of certificates and roots sees the reader of the files.
    reader: ClientStream,
    /// Sets of files, counted from one.
    sets: u64,
    failures: u32,
}

impl Keeper {
    /// Writes the files at each change, until the shutdown.
    pub(crate) async fn keep(mut self, shutdown: Shutdown) {
        let mut progress = self.begin();
        loop {
            self.find(&mut progress).await;
            let again = match self.look(&mut progress).await {
                Ok(()) => {
                    progress.failures = 0;
                    SETTLE
                }
                Err(error) => {
                    progress.failures += 1;
                    self.complain(&process::chain(&error));
                    pause(progress.failures)
                }
            };
            tokio::select! {
                () = held_changes(&mut progress.served) => {}
                change = self.registry.changed() => if change.is_err() { return },
                () = tokio::time::sleep(again), if progress.failures > 0 => {}
                // Whoever opened a file by the old link has read it by then.
                () = tokio::time::sleep(again), if progress.failures == 0 => self.sweep().await,
                () = shutdown.cancelled() => return,
            }
        }
    }

    fn begin(&self) -> Progress {
        let uid = self.access.uid.unwrap_or_else(|| rustix::process::geteuid().as_raw());
        let gid = self.access.gid.unwrap_or_else(|| rustix::process::getegid().as_raw());
        let reader = self.clients.enter(Caller { socket: None, uid, gid, pid: None, seen: Seen::default() });
        Progress { served: None, written: None, told: false, reader, sets: 0, failures: 0 }
    }

    /// Looks which registration it is now.
    async fn find(&mut self, progress: &mut Progress) {
        let registry = self.registry.borrow_and_update().clone();
        let found = registry.iter().find(|served| served.registration().id() == self.config.registration);
        match (&progress.served, found) {
            (Some((before, _)), Some(now)) if Arc::ptr_eq(before, now) => {}
            // Before the CA has spoken nothing is said of it: what an earlier run has written stays.
            (None, None) if !registry.is_said() => {}
            (_, None) => {
                progress.served = None;
                progress.written = None;
                self.withdraw().await;
            }
            (_, Some(now)) => progress.served = Some((now.clone(), now.follow())),
        }
    }

    async fn look(&self, progress: &mut Progress) -> Result<(), KeepError> {
        let Some((served, held)) = &mut progress.served else {
            self.part
                .set(Health::NotReady(format!("there is no registration {} on this node", self.config.registration)));
            return Ok(());
        };
        let held = held.borrow_and_update().clone();
        let credentials = match &*held {
            Held::Certificate(credentials) => credentials,
            Held::Nothing(why) => {
                self.part.set(Health::NotReady(why.clone()));
                return Ok(());
            }
        };
        if !progress.written.as_ref().is_some_and(|written| Arc::ptr_eq(written, &held)) {
            let (config, access, of) = (self.config.clone(), self.access, credentials.clone());
            let put = tokio::task::spawn_blocking(move || {
                let content = content(&config, &of)?;
                Ok::<_, KeepError>(Folder::open(&config.directory)?.put(&content, access)?)
            });
            if put.await.map_err(|_panic| KeepError::Interrupted)?? {
                let svid = credentials.svid();
                tracing::info!(target: "alcazar::rotation", directory = %self.config.directory.display(), spiffe_id = %svid.id(), serial = svid.serial(), "wrote the files of a workload");
                progress.told = false;
            }
            progress.sets += 1;
            let names = [DEFAULT, if self.config.roots == Roots::All { ALL } else { ROOT_CA }];
            let view = View::new([(served.registration().spiffe_id().clone(), held.clone())]);
            progress.reader.sent(progress.sets, Named::of(names, &view));
            progress.written = Some(held);
        }
        if let Some(after) = self.config.after.as_ref().filter(|_| !progress.told) {
            let told = after::tell(after, self.access.uid, self.access.gid).await;
            if let Err(error) = told {
                progress.reader.refused(progress.sets, &error.to_string());
                // The next try acknowledges, or is refused, under a number of its own.
                progress.written = None;
                return Err(error.into());
            }
        }
        progress.told = true;
        progress.reader.acknowledged(progress.sets);
        self.part.ready();
        Ok(())
    }

    fn complain(&self, reason: &str) {
        let directory = self.config.directory.display();
        tracing::error!(%directory, registration = self.config.registration, reason, "the files of a workload are not what they should be; trying again");
        self.part.set(Health::Degraded(format!("{directory}: {reason}")));
    }

    /// The CA has another word: the workload is nobody on this node any more.
    async fn withdraw(&self) {
        let directory = self.config.directory.display();
        match self.on_disk(|folder| folder.clear()).await {
            Ok(Some(true)) => {
                tracing::warn!(%directory, registration = self.config.registration, "removed the files of a workload that is not registered any more");
            }
            Ok(_) => {}
            Err(reason) => {
                tracing::error!(%directory, reason, "cannot remove the files of a workload that is not registered any more; remove them");
            }
        }
    }

    async fn sweep(&self) {
        if let Err(reason) = self.on_disk(|folder| folder.sweep()).await {
            tracing::warn!(directory = %self.config.directory.display(), reason, "cannot remove files that were replaced");
        }
    }

    /// Does something in the folder; `None` where there is none.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Folder) -> std::io::Result<T> + Send + 'static,
    ) -> Result<Option<T>, String> {
        let path = self.config.directory.clone();
        let done = tokio::task::spawn_blocking(move || match Folder::existing(&path) {
            Ok(Some(folder)) => work(&folder).map(Some).map_err(|error| error.to_string()),
            Ok(None) => Ok(None),
            Err(error) => Err(process::chain(&error).to_string()),
        });
        done.await.unwrap_or(Ok(None))
    }
}

fn content(config: &FilesConfig, credentials: &Credentials) -> Result<Content, Pkcs12Error> {
    let content = Content::of(credentials, config.roots);
    match &config.pkcs12 {
        None => Ok(content),
        Some(store) => content.with_store(credentials, config.roots, &Password::read(&store.password_file)?),
    }
}

async fn held_changes(served: &mut Option<(Arc<Served>, watch::Receiver<Arc<Held>>)>) {
    // A channel that is closed is a registration that goes: the registry is about to say so.
    if let Some((_, held)) = served
        && held.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

fn pause(failures: u32) -> Duration {
    LONGEST_PAUSE.min(Duration::from_secs(1) * 2u32.saturating_pow(failures.saturating_sub(1)))
}

#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Pkcs12(#[from] Pkcs12Error),
    #[error("the files are new, and their program was not told")]
    After(#[from] AfterError),
    #[error("the files were not written, as the agent ends")]
    Interrupted,
}

/// How long the files of before are left to those who read them just now.
const SETTLE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
