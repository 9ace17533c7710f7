//! `alcazar revoke`, `alcazar unrevoke`, `alcazar revocations`: what is believed no more although its time is not over.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use alcazar_api::MAX_MESSAGE;
use alcazar_api::ca::v1::{
    self, revocation_administration_client::RevocationAdministrationClient, revoke_request, unrevoke_request,
};
use alcazar_identity::{RevocationReason, rfc3339};
use clap::{Args, Subcommand};
use prost::Message;
use tonic::transport::Channel;

use crate::operator::{self, CaArg, OperatorError};
use crate::say;
use crate::table::Table;

/// What to take back, and why.
#[derive(Debug, Args)]
pub(crate) struct RevokeArgs {
    #[command(flatten)]
    subject: RevokedArg,
    /// Why, as RFC 5280 has it: keyCompromise, superseded, cessationOfOperation, privilegeWithdrawn, certificateHold, ...
    #[arg(long, value_name = "REASON")]
    reason: RevocationReason,
    /// Also an intermediate that is still signed with, because its key is in other hands: whoever has a certificate of it is cut off
    #[arg(long, requires = "intermediate")]
    force: bool,
    #[command(flatten)]
    ca: CaArg,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct RevokedArg {
    /// One certificate, by its serial number
    #[arg(long, value_name = "HEX")]
    serial: Option<String>,
    /// All certificates of an identity, and its right to new ones, until it is reinstated
    #[arg(long, value_name = "SPIFFE-ID")]
    identity: Option<String>,
    /// An intermediate that signs no more, by the SHA-256 of its certificate
    #[arg(long, value_name = "SHA-256")]
    intermediate: Option<String>,
}

/// What to give back.
#[derive(Debug, Args)]
pub(crate) struct UnrevokeArgs {
    #[command(flatten)]
    subject: GivenBackArg,
    #[command(flatten)]
    ca: CaArg,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct GivenBackArg {
    /// A certificate that was revoked for certificateHold
    #[arg(long, value_name = "HEX")]
    serial: Option<String>,
    /// An identity: it is issued new certificates again, the old ones stay revoked
    #[arg(long, value_name = "SPIFFE-ID")]
    identity: Option<String>,
}

/// What is asked about revocations.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct RevocationsArgs {
    #[command(subcommand)]
    command: Option<Files>,
    #[command(flatten)]
    ca: CaArg,
}

/// Signed lists as files, from one CA to another.
#[derive(Debug, Subcommand)]
enum Files {
    /// Write the signed lists that this CA holds to a file
    Export {
        /// Where to
        #[arg(value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        ca: CaArg,
    },
    /// Hold the list of a cluster that is gone no more; the identities that it bars stay revoked, by this CA's own list
    Drop {
        /// The cluster, as `alcazar revocations` shows it
        #[arg(value_name = "CLUSTER")]
        cluster: String,
        /// Its trust domain. Default: the CA's own
        #[arg(long, value_name = "DOMAIN")]
        trust_domain: Option<String>,
        /// Although the cluster is heard from
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        ca: CaArg,
    },
    /// Take over lists that a root or another cluster's CA has signed
    Import {
        /// The file
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Also a list that revokes an intermediate that is still signed with
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        ca: CaArg,
    },
}

pub(crate) fn revoke(args: &RevokeArgs) -> ExitCode {
    operator::run(async {
        let subject = match &args.subject {
            RevokedArg { serial: Some(serial), .. } => revoke_request::Subject::Serial(serial.clone()),
            RevokedArg { identity: Some(id), .. } => revoke_request::Subject::SpiffeId(id.clone()),
            RevokedArg { intermediate, .. } => {
                revoke_request::Subject::Intermediate(intermediate.clone().unwrap_or_default())
            }
        };
        let request =
            v1::RevokeRequest { subject: Some(subject), reason: args.reason.code().into(), force: args.force };
        let mut client = connect(&args.ca).await?;
        let reply = client.revoke(request).await?.into_inner();
        let mut said = match &reply.entry {
            Some(entry) if reply.already => {
                let since = moment(entry.since);
                format!(
                    "{}{} is revoked since {since} ({}); nothing changed\n",
                    entry.subject,
                    named(entry),
                    reason(entry)
                )
            }
            Some(entry) => format!("revoked {}{} ({})\n", entry.subject, named(entry), reason(entry)),
            None => "revoked; the root's list says so to everybody\n".to_owned(),
        };
        said.extend(reply.notes.iter().map(|note| format!("note: {note}\n")));
        Ok(say(&said))
    })
}

pub(crate) fn unrevoke(args: &UnrevokeArgs) -> ExitCode {
    operator::run(async {
        let subject = match &args.subject {
            GivenBackArg { serial: Some(serial), .. } => unrevoke_request::Subject::Serial(serial.clone()),
            GivenBackArg { identity, .. } => unrevoke_request::Subject::SpiffeId(identity.clone().unwrap_or_default()),
        };
        let mut client = connect(&args.ca).await?;
        let entry = client.unrevoke(v1::UnrevokeRequest { subject: Some(subject) }).await?.into_inner().entry;
        Ok(say(&match entry {
            Some(entry) => format!("{} is issued certificates again; its old ones stay revoked\n", entry.subject),
            None => "the hold is lifted\n".to_owned(),
        }))
    })
}

pub(crate) fn list(args: &RevocationsArgs) -> ExitCode {
    match &args.command {
        None => operator::run(show(&args.ca)),
        Some(Files::Export { file, ca }) => operator::run(async {
            let mut client = connect(ca).await?;
            let lists = client.export_revocations(v1::ExportRevocationsRequest {}).await?.into_inner();
            let failed = |error: std::io::Error| unusable(file, &error);
            alcazar_service::files::write_atomic(file, &lists.encode_to_vec(), 0o644).map_err(failed)?;
            Ok(say(&format!("{} signed lists in {}\n", lists.lists.len(), file.display())))
        }),
        Some(Files::Drop { cluster, trust_domain, force, ca }) => operator::run(async {
            let cluster = cluster.strip_prefix("cluster:").unwrap_or(cluster);
            let request = v1::DropRevocationsRequest {
                cluster: cluster.to_owned(),
                trust_domain: trust_domain.clone().unwrap_or_default(),
                force: *force,
            };
            let dropped = connect(ca).await?.drop_revocations(request).await?.into_inner();
            let of = trust_domain.as_ref().map(|name| format!(" of {name}")).unwrap_or_default();
            let mut said = format!("the list of cluster:{cluster}{of} is held no more\n");
            said.extend(dropped.barred.iter().map(|id| format!("revoked by this CA's own list from now on: {id}\n")));
            said.extend(dropped.notes.iter().map(|note| format!("note: {note}\n")));
            Ok(say(&said))
        }),
        Some(Files::Import { file, force, ca }) => operator::run(async {
            let bytes = std::fs::read(file).map_err(|error| unusable(file, &error))?;
            let lists = v1::RevocationLists::decode(bytes.as_slice());
            let lists = lists.map_err(|_reason| {
                unusable(file, &"this is no file of `alcazar revocations export` or `alcazar root revoke-intermediate`")
            })?;
            // Whether by force is for whoever imports to say, and not for the file.
            let lists = v1::RevocationLists { force: *force, ..lists };
            let mut client = connect(ca).await?;
            let taken = client.import_revocations(lists).await?.into_inner().taken;
            Ok(say(&match taken.as_slice() {
                [] => "nothing new: the CA holds these lists, or newer ones\n".to_owned(),
                taken => format!("took over {}\n", taken.join(", ")),
            }))
        }),
    }
}

fn unusable(file: &Path, what: &dyn std::fmt::Display) -> OperatorError {
    OperatorError::File { path: file.to_owned(), what: what.to_string() }
}

/// Lists may be long.
async fn connect(ca: &CaArg) -> Result<RevocationAdministrationClient<Channel>, OperatorError> {
    Ok(RevocationAdministrationClient::new(ca.connect().await?).max_decoding_message_size(MAX_MESSAGE))
}

async fn show(ca: &CaArg) -> Result<ExitCode, OperatorError> {
    let mut client = connect(ca).await?;
    let listed = client.list_revocations(v1::ListRevocationsRequest {}).await?.into_inner();
    if listed.entries.is_empty() {
        return Ok(say("nothing is revoked\n"));
    }
    let mut table = Table::new(["WHAT", "SINCE", "UNTIL", "REASON", "LIST", "BY", "SUBJECT"]);
    for entry in listed.entries {
        let until = match (entry.until, entry.reinstated_at) {
            (0, _) => "reinstated by `alcazar unrevoke`".to_owned(),
            (until, 0) => moment(until),
            (until, _) => format!("{} (reinstated)", moment(until)),
        };
        let (reason, named) = (reason(&entry), named(&entry));
        let by = if entry.by.is_empty() { "-".to_owned() } else { entry.by };
        table.row([entry.kind, moment(entry.since), until, reason, entry.issuer, by, entry.subject + &named]);
    }
    Ok(say(&table.to_string()))
}

fn reason(entry: &v1::RevocationEntry) -> String {
    let reason = u8::try_from(entry.reason).ok().and_then(RevocationReason::from_code);
    reason.map_or_else(|| entry.reason.to_string(), |reason| reason.to_string())
}

/// Whom a certificate names, where that is known.
fn named(entry: &v1::RevocationEntry) -> String {
    if entry.spiffe_id.is_empty() { String::new() } else { format!(" of {}", entry.spiffe_id) }
}

fn moment(seconds: i64) -> String {
    let since = u64::try_from(seconds).ok().map(Duration::from_secs);
    since.and_then(|since| SystemTime::UNIX_EPOCH.checked_add(since)).map_or_else(|| "-".to_owned(), rfc3339)
}
