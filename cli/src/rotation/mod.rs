//! `alcazar root rotate|rotation` and `alcazar ca rotate|rotation`: one command to begin, and the same few to look on, go back
//! and go past.

mod show;

use std::io::{self, BufRead, IsTerminal, Write};
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

/// A key was stolen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Compromised(pub(crate) bool);

/// `rotation`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct RotationArgs {
    #[command(subcommand)]
    act: Option<Act>,
    /// Stay, and show whom it waits for until it is done
    #[arg(long)]
    watch: bool,
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
pub(crate) async fn rotate(
    kind: RotationKind,
    Compromised(compromised): Compromised,
    args: &RotateArgs,
) -> Result<ExitCode, OperatorError> {
    let mut client = RotationClient::new(args.ca.connect().await?);
    let question = format!("{} Begin?", if compromised { show::AT_ONCE } else { show::announcement(kind) });
    if !args.yes && !asked(&question) {
        return Ok(say("nothing was begun\n"));
    }
    let begun = client.start_rotation(v1::StartRotationRequest { kind: kind.into(), compromised }).await?.into_inner();
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

/// Shows it, or does something about it.
pub(crate) async fn rotation(args: &RotationArgs) -> Result<ExitCode, OperatorError> {
    match &args.act {
        None => {
            let mut client = RotationClient::new(args.ca.connect().await?);
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
        return Ok(say("nothing was forced\n"));
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
