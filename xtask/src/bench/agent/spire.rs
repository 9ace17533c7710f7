//! SPIRE's agent beside its server, with as many entries as ours has registrations, each of a user of its own.
//!
//! It is told to keep all of them: by default it keeps a thousand, and gets the others when somebody asks.

use std::{
    fmt::Write as _,
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::Context;
use serde_json::json;

use super::process::until_said;
use crate::{
    bench::{
        ca::{build::Spire, server::Server},
        measure::{Running, cpu_time, memory},
    },
    process::output,
};

/// What it spends on so many identities.
pub(super) struct Spent {
    pub(super) memory: f64,
    pub(super) processor: Duration,
}

pub(super) fn spent(programs: &Spire, count: usize) -> anyhow::Result<Spent> {
    let server = Server::spire(&programs.server)?;
    let folder = tempfile::tempdir()?;
    eprintln!("SPIRE's agent: {count} entries");
    let token = ask(programs, &server, &["token", "generate"])?;
    let token = token.lines().find_map(|line| line.strip_prefix("Token: ")).context("no join token")?.trim().to_owned();
    let bundle = folder.path().join("bundle.pem");
    fs::write(&bundle, ask(programs, &server, &["bundle", "show"])?)?;
    let entries = folder.path().join("entries.json");
    fs::write(&entries, self::entries(&token, count))?;
    ask(programs, &server, &["entry", "create", "-data", &entries.display().to_string()])?;

    let (config, log) = (folder.path().join("agent.conf"), folder.path().join("log"));
    fs::write(&config, configuration(folder.path(), &server, count))?;
    let out = File::create(&log)?;
    let mut command = Command::new(&programs.agent);
    command.args(["run", "-joinToken", &token, "-config"]).arg(&config);
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
    let agent = [Running(command.spawn().context("cannot start SPIRE's agent")?)];
    let took = until_said(&log, "SVID updated", count, DEADLINE)?;
    let processor = cpu_time(&agent)?;
    std::thread::sleep(SETTLE);
    let memory = memory(&agent)?;
    eprintln!("  {count} in {took:.1?}; processor time {processor:.1?}; {:.1} MB", memory / 1e6);
    Ok(Spent { memory, processor })
}

fn ask(programs: &Spire, server: &Server, words: &[&str]) -> anyhow::Result<String> {
    output(Command::new(&programs.server).args(words).arg("-socketPath").arg(server.admin()))
}

fn entries(token: &str, count: usize) -> String {
    let entry = |number: usize| {
        json!({
            "selectors": [{"type": "unix", "value": format!("uid:{}", FIRST_USER + number)}],
            "spiffe_id": format!("spiffe://example.org/ns/bench/sa/w{number}"),
            "parent_id": format!("spiffe://example.org/spire/agent/join_token/{token}"),
        })
    };
    json!({"entries": (0..count).map(entry).collect::<Vec<_>>()}).to_string()
}

fn configuration(folder: &Path, server: &Server, count: usize) -> String {
    let (at, address) = (folder.display(), server.address());
    let mut text = format!("agent {{\n  server_address = \"{}\"\n  server_port = {}\n", address.ip(), address.port());
    for (name, value) in [("data_dir", "data"), ("socket_path", "agent.sock"), ("trust_bundle_path", "bundle.pem")] {
        writeln!(text, "  {name} = \"{at}/{value}\"").unwrap_or_default();
    }
    // What it holds is told at this level alone.
    text + &format!(
        r#"  log_level = "DEBUG"
  trust_domain = "example.org"
  x509_svid_cache_max_size = {count}
}}
plugins {{
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  KeyManager "disk" {{ plugin_data {{ directory = "{at}/data" }} }}
  WorkloadAttestor "unix" {{ plugin_data {{}} }}
}}
"#
    )
}

const FIRST_USER: usize = 100_000;
/// It gets five hundred every five seconds.
const DEADLINE: Duration = Duration::from_secs(600);
/// What it has used on the way may go.
const SETTLE: Duration = Duration::from_secs(30);
