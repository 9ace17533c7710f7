//! `alcazar root rotate|rotation` and `alcazar ca rotate|rotation`: one command to begin, and the same few to look on, go back
//! and go past.

mod show;

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use alcazar_api::ca::v1::{self, RotationKind, RotationStatus, rotation_client::RotationClient};
use tonic::transport::Channel;

use crate::operator::{CaArg, OperatorError};
use crate::say;

/// `rotate`.
#[derive(Debug, clap::Args)]
pub(crate) struct RotateArgs {
    /// Stay, and show whom it waits for until it is done
    #[arg(long)]
    watch: bool,
    /// Begin without asking
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    ca: CaArg,
}

/// What is exchanged, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) enum What<'a> {
    /// The root; for one that is kept elsewhere, where its certificate is.
    Root(Option<&'a Path>),
    /// The intermediate.
    Intermediate,
    /// The key of JWT-SVIDs.
    Jwt {
        /// At once: it was stolen.
        compromised: bool,
    },
}

/// `rotation`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct RotationArgs {
    #[command(subcommand)]
    act: Option<Act>,
    /// Stay, and show whom it waits for until it is done
    #[arg(long)]
    watch: bool,
    /// Write down how far this cluster is, for the CA of another one under the same root
    #[arg(long, value_name = "FILE", conflicts_with_all = ["watch", "import_state"])]
    export_state: Option<PathBuf>,
    /// Take what another cluster's CA has written so
    #[arg(long, value_name = "FILE", conflicts_with = "watch")]
    import_state: Option<PathBuf>,
    #[command(flatten)]
    ca: CaArg,
}

#[derive(Debug, clap::Subcommand)]
enum Act {
    /// Go back to what was before
    Abort {
        #[command(flatten)]
        ca: CaArg,
    },
    /// Go on, in this phase, without waiting for some: they may be cut off
    Force {
        /// Whom not to wait for, as `rotation` names them; without any, all who are unreachable
        #[arg(value_name = "PARTY")]
        parties: Vec<String>,
        /// Do it without asking
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        ca: CaArg,
    },
}

/// Begins a rotation.
pub(crate) async fn rotate(what: What<'_>, args: &RotateArgs) -> Result<ExitCode, OperatorError> {
    let (announcement, request) = match what {
        What::Root(None) => (show::announcement(RotationKind::Root), request(RotationKind::Root)),
        What::Root(Some(path)) => {
            let new_root = certificates(path)?;
            (show::BROUGHT, v1::StartRotationRequest { new_root, ..request(RotationKind::Root) })
        }
        What::Intermediate => (show::announcement(RotationKind::Intermediate), request(RotationKind::Intermediate)),
        What::Jwt { compromised } => {
            let announcement = if compromised { show::AT_ONCE } else { show::announcement(RotationKind::Jwt) };
            (announcement, v1::StartRotationRequest { compromised, ..request(RotationKind::Jwt) })
        }
    };
    let mut client = RotationClient::new(args.ca.connect().await?);
    let question = format!("{announcement} Begin?");
    if !args.yes && !asked(&question) {
        eprintln!("nothing was begun");
        return Ok(ExitCode::FAILURE);
    }
    let begun = client.start_rotation(request).await?.into_inner();
    if args.watch {
        return watch(&mut client).await;
    }
    if begun.phase == "done" {
        return Ok(say(&show::status(&begun)));
    }
    Ok(say(&format!(
        "begun; `alcazar {} rotation --watch` follows it\n{}",
        show::command(begun.kind()),
        show::status(&begun)
    )))
}

fn request(kind: RotationKind) -> v1::StartRotationRequest {
    v1::StartRotationRequest { kind: kind.into(), ..v1::StartRotationRequest::default() }
}

/// The certificates in a PEM file, or in the `root-cert.pem` of a folder as `alcazar root init` and `alcazar root sign` write it.
fn certificates(path: &Path) -> Result<Vec<Vec<u8>>, OperatorError> {
    let names = ["root-cert.pem", "root.pem", "ca-cert.pem"].map(|name| path.join(name));
    let file = match path.is_dir() {
        true => names.into_iter().find(|file| file.is_file()).unwrap_or_else(|| path.join("root-cert.pem")),
        false => path.to_owned(),
    };
    let refused = |what: String| OperatorError::File { path: file.clone(), what };
    let text = std::fs::read(&file).map_err(|error| refused(error.to_string()))?;
    let found = alcazar_identity::TrustBundle::from_pem(alcazar_ca::Config::new("").trust_domain, 0, &text);
    let found = found.map_err(|error| refused(error.to_string()))?;
    Ok(found.roots().map(|root| root.to_vec()).collect())
}

fn unusable(file: &Path, error: &io::Error) -> OperatorError {
    OperatorError::File { path: file.to_owned(), what: error.to_string() }
}

/// Shows it, or does something about it.
pub(crate) async fn rotation(args: &RotationArgs) -> Result<ExitCode, OperatorError> {
    match &args.act {
        None => {
            let mut client = RotationClient::new(args.ca.connect().await?);
            if let Some(file) = &args.export_state {
                let state = client.export_cluster_state(v1::ExportClusterStateRequest {}).await?.into_inner().state;
                std::fs::write(file, state).map_err(|error| unusable(file, &error))?;
                return Ok(say(&format!("written to {}\n", file.display())));
            }
            if let Some(file) = &args.import_state {
                let state = std::fs::read(file).map_err(|error| unusable(file, &error))?;
                let taken = client.import_cluster_state(v1::ClusterState { state }).await?.into_inner();
                let what = if taken.news { "taken" } else { "it says nothing newer than what is known" };
                return Ok(say(&format!("the cluster {}: {what}\n", taken.cluster)));
            }
            if args.watch {
                return watch(&mut client).await;
            }
            Ok(say(&show::status(&now(&mut client).await?)))
        }
        Some(Act::Abort { ca }) => {
            let mut client = RotationClient::new(ca.connect().await?);
            let status = client.abort_rotation(v1::AbortRotationRequest {}).await?.into_inner();
            Ok(say(&format!("it goes back\n{}", show::status(&status))))
        }
        Some(Act::Force { parties, yes, ca }) => {
            force(&mut RotationClient::new(ca.connect().await?), parties, *yes).await
        }
    }
}

async fn force(client: &mut RotationClient<Channel>, parties: &[String], yes: bool) -> Result<ExitCode, OperatorError> {
    let status = now(client).await?;
    let chosen = |wait: &&v1::RotationWait| match parties {
        [] => wait.standing == "unreachable",
        named => named.contains(&wait.party),
    };
    let broken: Vec<_> = status.waits.iter().filter(chosen).cloned().collect();
    if let Some(unknown) = parties.iter().find(|party| !broken.iter().any(|wait| wait.party == **party)) {
        eprintln!(
            "alcazar: {unknown} is not waited for now; `alcazar {} rotation` says who is",
            show::command(status.kind())
        );
        return Ok(ExitCode::from(2));
    }
    if broken.is_empty() {
        return Ok(say("nobody is unreachable; name whom not to wait for\n"));
    }
    let question =
        format!("These may be cut off until they have followed:\n{}Go on without them?", show::everybody(&broken));
    if !yes && !asked(&question) {
        eprintln!("nothing was forced");
        return Ok(ExitCode::FAILURE);
    }
    let parties = broken.into_iter().map(|wait| wait.party).collect();
    let forced = client.force_rotation(v1::ForceRotationRequest { parties, step: status.step }).await?.into_inner();
    Ok(say(&format!("forced\n{}", show::status(&forced))))
}

async fn now(client: &mut RotationClient<Channel>) -> Result<RotationStatus, OperatorError> {
    Ok(client.get_rotation(v1::GetRotationRequest {}).await?.into_inner())
}

/// Shows each change until it is over. Whoever goes away leaves the rotation as it is.
async fn watch(client: &mut RotationClient<Channel>) -> Result<ExitCode, OperatorError> {
    let mut said = String::new();
    loop {
        let status = now(client).await?;
        let text = show::status(&status);
        // That time passes is no news.
        let news = show::without_numbers(&text);
        if news != said {
            said = news;
            if say(&text) != ExitCode::SUCCESS {
                return Ok(ExitCode::FAILURE);
            }
        }
        if status.phase.is_empty() || status.phase == "done" {
            return Ok(if status.back { ExitCode::FAILURE } else { ExitCode::SUCCESS });
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether a person says yes. Where nobody can be asked, nobody has.
fn asked(question: &str) -> bool {
    if !io::stdin().is_terminal() {
        eprintln!("{question} (nobody can be asked here; say --yes)");
        return false;
    }
    print!("{question} [yes/no] ");
    if io::stdout().flush().is_err() {
        return false;
    }
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).is_ok() && answer.trim() == "yes"
}

const LOOK: Duration = Duration::from_millis(300);
