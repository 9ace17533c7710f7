//! The data path as a whole, side by side with a pair of Envoys in the same run.
//!
//! load → outbound proxy → mutual TLS → inbound proxy with a hundred RBAC rules → origin. Either pair has one core for
//! itself; the load and the origin share the other. Rounds alternate, and each figure is the median of its rounds.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use super::envoy;
use super::figure::{Figure, Unit};
use super::load::{Load, Outcome, origin};
use super::measure::{Running, cpu_time, memory, wait_until_it_listens};
use crate::process::{cargo, output, run as run_command, target_folder};

/// How many RBAC policies each inbound proxy holds; the last one matches.
pub(super) const POLICIES: usize = 100;

const ROUNDS: usize = 3;
const CONNECTIONS: usize = 64;
const RATE: f64 = 1000.0;

pub(super) fn figures() -> anyhow::Result<Vec<Figure>> {
    run_command(&mut cargo(&["build", "--quiet", "--release", "--package", "alcazar", "--bin", "alcazar"]))?;
    let folder = tempfile::tempdir()?;
    pin_to_the_second_core()?;
    let origin = origin()?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        eprintln!("relay, round {round} of {ROUNDS}");
        ours.push(alcazar_round(folder.path(), origin)?);
        theirs.push(envoy_round(folder.path(), origin)?);
    }
    let figure = |name: &str, unit, of: fn(&Round) -> f64| Figure {
        bench: "relay".to_owned(),
        figure: format!("pair/{name}"),
        unit,
        ours: median(&ours, of),
        peer: Some(("envoy", median(&theirs, of))),
    };
    Ok(vec![
        figure("requests_per_second", Unit::PerSecond, |round| round.saturated.per_second()),
        figure("cpu_per_request", Unit::Nanoseconds, |round| round.cpu_per_request),
        figure("latency_p50_at_1000_per_second", Unit::Nanoseconds, |round| round.paced.latency(0.5)),
        figure("latency_p99_at_1000_per_second", Unit::Nanoseconds, |round| round.paced.latency(0.99)),
        figure("resident_memory", Unit::Bytes, |round| round.memory),
    ])
}

/// What one pair did in one round.
struct Round {
    saturated: Outcome,
    paced: Outcome,
    /// Nanoseconds of CPU time of all processes of the pair, while saturated.
    cpu_per_request: f64,
    memory: f64,
}

fn envoy_round(folder: &Path, origin: SocketAddr) -> anyhow::Result<Round> {
    let (running, outbound) = envoy::start(folder, origin)?;
    measure(&running, outbound, "http://server.bench/bench/1k")
}

fn alcazar_round(folder: &Path, origin: SocketAddr) -> anyhow::Result<Round> {
    let (mesh, policies, data) = (folder.join("mesh.yaml"), folder.join("policies.yaml"), folder.join("data"));
    std::fs::write(&policies, our_policies())?;
    std::fs::write(&mesh, our_mesh(origin))?;
    let binary = target_folder().join("release/alcazar");
    let mut command = Command::new("taskset");
    command.args(["-c", "0"]).arg(&binary).arg("up").arg("--mesh").arg(&mesh).arg("--data-dir").arg(&data);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut running = Running(command.spawn().context("cannot start alcazar")?);
    let outbound = our_outbound(&mut running, &binary, &data)?;
    wait_until_it_listens(outbound)?;
    let round = measure(std::slice::from_ref(&running), outbound, "http://server.bench/bench/1k");
    run_command(Command::new("kill").arg(running.0.id().to_string()))?;
    running.0.wait()?;
    round
}

fn measure(running: &[Running], proxy: SocketAddr, url: &str) -> anyhow::Result<Round> {
    let load =
        |seconds, rate| Load { proxy, url, connections: CONNECTIONS, duration: Duration::from_secs(seconds), rate };
    load(1, None).run().context("while warming up")?;
    let before = cpu_time(running)?;
    let saturated = load(5, None).run()?;
    let spent = cpu_time(running)?.saturating_sub(before);
    let paced = load(5, Some(RATE)).run()?;
    let cpu_per_request = spent.as_nanos() as f64 / saturated.requests() as f64;
    Ok(Round { saturated, paced, cpu_per_request, memory: memory(running)? })
}

fn our_mesh(origin: SocketAddr) -> String {
    format!(
        "policies: policies.yaml\nworkloads:\n\
         - {{name: client, namespace: bench, serviceAccount: client, address: 127.0.0.1}}\n\
         - name: server\n  namespace: bench\n  serviceAccount: server\n  labels: {{app: server}}\n  address: {}\n  \
         ports: [{{name: http, number: {}, protocol: HTTP}}]\n\
         services:\n- name: server\n  namespace: bench\n  selector: {{app: server}}\n  \
         ports: [{{name: http, port: 80, targetPort: {}, protocol: HTTP}}]\n",
        origin.ip(),
        origin.port(),
        origin.port(),
    )
}

fn our_policies() -> String {
    let role = |name: &str, account: &str, path: &str| {
        format!(
            "---\napiVersion: rbac.istio.io/v1alpha1\nkind: ServiceRole\nmetadata: {{name: {name}, namespace: bench}}\n\
             spec: {{rules: [{{services: [server.bench.svc.cluster.local], paths: [\"{path}*\"], methods: [GET]}}]}}\n\
             ---\napiVersion: rbac.istio.io/v1alpha1\nkind: ServiceRoleBinding\nmetadata: {{name: {name}, namespace: bench}}\n\
             spec: {{subjects: [{{user: cluster.local/ns/bench/sa/{account}}}], roleRef: {{kind: ServiceRole, name: {name}}}}}\n"
        )
    };
    let mut all =
        "apiVersion: rbac.istio.io/v1alpha1\nkind: ClusterRbacConfig\nmetadata: {name: default}\nspec: {mode: ON}\n"
            .to_owned();
    all.extend((1..POLICIES).map(|i| role(&format!("p{i:04}"), &format!("caller-{i}"), &format!("/api-{i}/"))));
    all += &role("zlast", "client", "/bench");
    all
}

/// Waits until `alcazar status` answers, and reads the client's outbound address.
fn our_outbound(running: &mut Running, binary: &Path, data: &Path) -> anyhow::Result<SocketAddr> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(status) = running.0.try_wait()? {
            bail!("alcazar ended before it was ready: {status}");
        }
        let asked = output(Command::new(binary).args(["status", "--json", "--data-dir"]).arg(data));
        match asked {
            Ok(text) => {
                let status: Value = serde_json::from_str(&text)?;
                let workloads =
                    status.get("workloads").and_then(Value::as_array).context("no workloads in the status")?;
                let client =
                    workloads.iter().find(|workload| workload.get("name").is_some_and(|name| name == "client"));
                let outbound =
                    client.and_then(|client| client.get("outbound")?.as_str()).context("no outbound address")?;
                return Ok(outbound.parse()?);
            }
            Err(error) => ensure!(Instant::now() < deadline, "alcazar did not become ready: {error:#}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn median(rounds: &[Round], of: fn(&Round) -> f64) -> f64 {
    let mut values: Vec<f64> = rounds.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// The load and the origin stay off the proxies' core; threads started from here on inherit it.
fn pin_to_the_second_core() -> anyhow::Result<()> {
    let pid = std::process::id().to_string();
    output(Command::new("taskset").args(["-a", "-c", "-p", "1", &pid])).context("cannot choose a core").map(drop)
}
