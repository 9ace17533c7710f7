//! `alcazar cert show`: certificates in words.

mod words;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use alcazar_identity::{CertificateDer, SvidKey};
use alcazar_service::clock;
use anyhow::{Context, bail, ensure};
use rustls_pki_types::pem::PemObject;

use crate::ca::finished;
use crate::operator::run_any;
use crate::say;

/// What is asked.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Say in words what certificates are: whose, by whom, until when, for what, and whether they are SVIDs
    Show {
        /// A file of PEM or DER, `-` for standard input, or `unix:PATH` for what a node agent gives to this user on that socket
        #[arg(value_name = "FILE|-|unix:PATH")]
        source: String,
    },
}

pub(crate) fn run(command: &Command) -> ExitCode {
    let Command::Show { source } = command;
    let now = clock::now();
    match source.strip_prefix("unix:") {
        Some(socket) => run_any(async { show_socket(Path::new(socket), now).await.map_err(Told) }),
        None => finished(show_file(source, now)),
    }
}

/// Certificates and keys, in the order in which they stand.
#[derive(Debug, Default)]
struct Found {
    certificates: Vec<CertificateDer<'static>>,
    keys: Vec<Result<SvidKey, String>>,
}

fn show_file(source: &str, now: SystemTime) -> anyhow::Result<ExitCode> {
    let bytes = if source == "-" {
        let mut bytes = Vec::new();
        std::io::stdin().take(LARGEST).read_to_end(&mut bytes).context("cannot read standard input")?;
        bytes
    } else {
        let file = PathBuf::from(source);
        std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?
    };
    let found = read(&bytes).with_context(|| format!("{source} cannot be shown"))?;
    Ok(say(&words::all(&found.certificates, &found.keys, now)?))
}

fn read(bytes: &[u8]) -> anyhow::Result<Found> {
    let mut found = Found::default();
    let Some(text) = std::str::from_utf8(bytes).ok().filter(|text| text.contains("-----BEGIN ")) else {
        ensure!(!bytes.is_empty(), "it is empty");
        found.certificates.push(CertificateDer::from(bytes.to_vec()));
        return Ok(found);
    };
    for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
        found.certificates.push(certificate.map_err(|error| anyhow::anyhow!("its PEM is damaged: {error}"))?);
    }
    let mut rest = text;
    while let Some((_, after)) = rest.split_once("-----BEGIN ") {
        let (label, body) = after.split_once("-----").context("its PEM is cut off")?;
        let end = format!("-----END {label}-----");
        let Some((body, next)) = body.split_once(&end) else { bail!("the block {label} does not end") };
        if label.ends_with("PRIVATE KEY") {
            let pem = format!("-----BEGIN {label}-----{body}{end}\n");
            found.keys.push(
                SvidKey::from_pem(pem.as_bytes()).map_err(|error| format!("{label}, which is not shown: {error}")),
            );
        }
        rest = next;
    }
    ensure!(!found.certificates.is_empty() || !found.keys.is_empty(), "it holds no certificate and no key");
    Ok(found)
}

async fn show_socket(socket: &Path, now: SystemTime) -> anyhow::Result<ExitCode> {
    // The system says what is wrong with a socket more clearly than a channel does.
    let reached = tokio::net::UnixStream::connect(socket).await;
    reached.with_context(|| format!("nobody can be reached on {}", socket.display()))?;
    let connecting = alcazar_api::sds::connect(socket.to_owned(), clock::system());
    let (credentials, driver) = tokio::time::timeout(PATIENCE, connecting).await.with_context(|| {
        format!(
            "the agent on {} gives this user nothing within {PATIENCE:?}: see its log for whom it takes the caller",
            socket.display()
        )
    })?;
    drop(driver);
    let held = credentials.borrow().clone();
    let mut text = words::all(held.svid().chain(), &[], now)?;
    for bundle in held.bundles().iter() {
        let roots = bundle.roots().count();
        text.push_str(&format!(
            "believes     {}, by {roots} {}\n",
            bundle.trust_domain(),
            if roots == 1 { "root" } else { "roots" }
        ));
    }
    Ok(say(&text))
}

/// A failure that is printed with its causes.
#[derive(Debug, thiserror::Error)]
#[error("{0:#}")]
struct Told(anyhow::Error);

/// More than any file of certificates has.
const LARGEST: u64 = 16 << 20;
/// How long an agent has to answer.
const PATIENCE: Duration = Duration::from_secs(5);
