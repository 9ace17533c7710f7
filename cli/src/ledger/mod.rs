//! `alcazar ledger`: what a CA has issued, and the proof that nobody changed the record of it.

mod answer;
mod error;
mod files;
mod list;
mod show;
mod state;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use crate::operator::{self, CaArg};

/// What is asked.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List what was issued, newest first
    List(ListArgs),
    /// Show one certificate or token, and verify the proof that it is in the ledger
    Show(ShowArgs),
    /// Verify the ledger: its signed head, that it only grew since the last time, and that entries are in it
    Verify(VerifyArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    ca: CaArg,
    /// Only what names this SPIFFE ID
    #[arg(long, value_name = "SPIFFE_ID")]
    identity: Option<String>,
    /// Only what has this serial number, in hexadecimal; a token's id
    #[arg(long, value_name = "SERIAL")]
    serial: Option<String>,
    /// Only what this caller asked for: a SPIFFE ID, or as it stands in the CALLER column
    #[arg(long, value_name = "CALLER")]
    caller: Option<String>,
    /// Only what was issued then or later: a time such as 2026-01-31T12:00:00Z, or how long ago, such as 24h
    #[arg(long, value_name = "TIME", value_parser = when)]
    since: Option<When>,
    /// Only what was issued before then
    #[arg(long, value_name = "TIME", value_parser = when)]
    until: Option<When>,
    /// At most this many
    #[arg(long, value_name = "NUMBER", default_value_t = 20)]
    limit: usize,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    ca: CaArg,
    /// The serial number, in hexadecimal; a token's id
    serial: String,
    #[command(flatten)]
    pin: PinArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    ca: CaArg,
    #[command(flatten)]
    pin: PinArgs,
    /// How many of the newest entries to prove one by one
    #[arg(long, value_name = "NUMBER", default_value_t = 10)]
    entries: u32,
    /// Let the CA read all of its files again, too: it takes as long as that takes
    #[arg(long)]
    files: bool,
    /// Verify the files of a ledger that no CA has open, such as a backup, instead of asking one
    #[arg(long, value_name = "DIR", conflicts_with_all = ["root", "max_age", "socket", "files"])]
    dir: Option<PathBuf>,
}

/// What a head is held against.
#[derive(Debug, clap::Args)]
pub(crate) struct PinArgs {
    /// The trusted roots, PEM; without it, those of --state, else what the CA itself says
    #[arg(long, value_name = "FILE")]
    root: Option<PathBuf>,
    /// Where the last verified head is kept: the next run proves that the ledger only grew since
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// How far the head's time may be from the clock here: an old one hides what was issued since
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = alcazar_ca::duration::parse)]
    max_age: Duration,
}

pub(crate) fn run(command: &Command) -> ExitCode {
    let now = alcazar_service::clock::now();
    match command {
        Command::List(args) => operator::run_any(list::list(args, now)),
        Command::Show(args) => operator::run_any(show::show(args, now)),
        Command::Verify(args) => match &args.dir {
            Some(dir) => operator::run_any(async { files::verify(dir, args.pin.state.as_deref()) }),
            None => operator::run_any(verify::verify(args, now)),
        },
    }
}

/// A moment, or how long ago.
#[derive(Clone, Copy, Debug)]
pub(crate) enum When {
    At(SystemTime),
    Ago(Duration),
}

impl When {
    /// In seconds since 1970.
    fn seconds(self, now: SystemTime) -> i64 {
        let at = match self {
            Self::At(at) => at,
            Self::Ago(span) => now.checked_sub(span).unwrap_or(SystemTime::UNIX_EPOCH),
        };
        // Zero means that none is given; nothing was issued in the first second of 1970.
        let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs().max(1);
        i64::try_from(since).unwrap_or(i64::MAX)
    }
}

fn when(text: &str) -> Result<When, String> {
    use time::{OffsetDateTime, format_description::well_known::Rfc3339};
    if let Ok(at) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(When::At(at.into()));
    }
    let ago = alcazar_ca::duration::parse(text).map(When::Ago);
    ago.map_err(|_reason| "write a time as 2026-01-31T12:00:00Z, or how long ago it was as 24h".to_owned())
}

/// A serial number as the ledger has it, however a tool has printed it: `5B:E0:...`, `0x5be0...`.
fn spelled(serial: &str) -> String {
    let serial = serial.trim().to_ascii_lowercase().replace(':', "");
    serial.strip_prefix("0x").unwrap_or(&serial).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_number_is_known_as_any_tool_prints_it() {
        for text in ["5be0a1", "5B:E0:A1", "0x5BE0A1", " 5be0a1\n"] {
            assert_eq!(spelled(text), "5be0a1", "{text:?}");
        }
    }

    #[test]
    fn a_time_is_a_moment_or_how_long_ago() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let seconds = |text: &str| when(text).map(|when| when.seconds(now));
        assert_eq!(seconds("2026-01-31T12:00:00Z"), Ok(1_769_860_800));
        assert_eq!(seconds("2026-01-31T13:00:00+01:00"), Ok(1_769_860_800));
        assert_eq!(seconds("24h"), Ok(1_800_000_000 - 86_400));
        assert_eq!(seconds("1970-01-01T00:00:00Z"), Ok(1));
        for bad in ["", "yesterday", "2026-01-31", "-1h"] {
            assert!(when(bad).is_err(), "{bad:?}");
        }
    }
}
