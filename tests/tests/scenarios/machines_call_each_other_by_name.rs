//! Two machines, each with an agent and a proxy, as they are onboarded: an application calls the other by its name, by
//! `http_proxy`, and nobody else calls as it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use alcazar_testkit::{Answer, DEADLINE, Process, binary, passed_over, turn, until};

use crate::hosts::{Machine, World, wait_ready};

const MESH: &str = "
workloads:
- {name: orders, namespace: shop, serviceAccount: orders, address: 10.77.0.2, inbound: '10.77.0.2:15008', outbound: '127.0.0.1:15101'}
- {name: reviews, namespace: shop, serviceAccount: reviews, address: 10.77.0.3, inbound: '10.77.0.3:15008', ports: [{name: http, number: 8080, protocol: HTTP}]}
";

const POLICY: &str = "apiVersion: rbac.istio.io/v1alpha1
kind: ClusterRbacConfig
metadata: {name: default}
spec: {mode: 'ON'}
---
apiVersion: rbac.istio.io/v1alpha1
kind: ServiceRole
metadata: {name: reader, namespace: shop}
spec: {rules: [{services: ['reviews.shop.svc.cluster.local'], methods: [GET]}]}
---
apiVersion: rbac.istio.io/v1alpha1
kind: ServiceRoleBinding
metadata: {name: callers, namespace: shop}
spec:
  roleRef: {kind: ServiceRole, name: reader}
  subjects: [{user: 'td.example/ns/shop/sa/orders'}]
";

/// Who runs the application, and who the proxy.
const APPLICATION: u32 = 1000;
const PROXY: u32 = 4323;

#[test]
fn machines_call_each_other_by_name() {
    let _turn = turn();
    let Some(world) = World::new(3600) else { return };
    let Some(unit) = Unit::make() else {
        return passed_over(
            "control groups, and none of a proxy that runs on this machine (system.slice/alcazar-proxy.service)",
        )
        .unwrap();
    };
    let _mesh = world.control(MESH, POLICY);
    let machine = |name: &str, number: u8| {
        let user = APPLICATION.to_string();
        let more = ["--control-address", "10.77.0.1:15010", "--outbound-user", user.as_str()];
        let mut machine = world.machine(number, &world.onboard_as(name, name, &more));
        machine.boot();
        machine.wait_ready();
        machine
    };
    let (orders, reviews) = (machine("orders", 2), machine("reviews", 3));
    let mut proxy = unit.start(&orders, |config| config);
    let _other = unit.start(&reviews, |config| config);

    let pages = reviews.installed.join("pages");
    fs::create_dir(&pages).unwrap();
    fs::write(pages.join("ratings"), "five stars").unwrap();
    let mut origin = reviews.host.command(Path::new("python3"));
    origin.args(["-m", "http.server", "8080", "--directory"]).arg(&pages);
    let _origin = reviews.host.start(origin, "origin.log").unwrap();

    // No name is resolved on the machine: the proxy knows it.
    let called = || call(&orders, APPLICATION, "http://reviews.shop:8080/ratings");
    let answered = until("an answer", DEADLINE, || Some(called()).filter(|answer| answer.code == 200));
    let answer = answered.unwrap_or_else(|error| panic!("{error}: {:?}\n{}", called(), proxy.log()));
    assert!(answer.text.contains("five stars"), "{answer:?}");
    assert_eq!(call(&orders, APPLICATION, "http://payments.shop/").code, 502, "{}", proxy.log());
    // Another user of this machine, root even, is not the application.
    assert_eq!(call(&orders, 0, "http://reviews.shop:8080/ratings").code, 403, "{}", proxy.log());

    // The agent tells to whom the proxy listens, and warns where that is everybody.
    let served = |said: &str| {
        let status = || Some(orders.status()).filter(|status| status.contains(said));
        until(said, DEADLINE, status).unwrap_or_else(|error| panic!("{error}\n{}", orders.status()))
    };
    let status = served(&format!("uid {APPLICATION}"));
    assert!(!status.contains("warning"), "{status}");
    proxy.terminate().unwrap();
    let _proxy = unit.start(&orders, |config| {
        config
            .lines()
            .filter(|line| !line.starts_with("outboundUser"))
            .fold(String::new(), |all, line| all + line + "\n")
    });
    let status = served("ANYBODY");
    assert!(
        status.contains(
            "warning: whoever can connect to 127.0.0.1:15101 calls others as spiffe://td.example/ns/shop/sa/orders"
        ),
        "{status}"
    );
    assert_eq!(call(&orders, 0, "http://reviews.shop:8080/ratings").code, 200);
}

/// As an application of this user calls: by the proxy that it finds in its environment.
fn call(machine: &Machine, user: u32, url: &str) -> Answer {
    let user = user.to_string();
    let mut command = machine.host.command(Path::new("setpriv"));
    command.args(["--reuid", &user, "--regid", &user, "--clear-groups", "curl", "-sS", "-i", "--max-time", "10"]);
    command.args(["-w", "\n%{http_code}", url]).env("http_proxy", "http://127.0.0.1:15101");
    Answer::of(&command.output().unwrap())
}

/// The control group that systemd makes for the proxy's unit.
struct Unit {
    path: PathBuf,
    /// Where there is a systemd, the slice is its own.
    made_slice: bool,
}

impl Unit {
    fn make() -> Option<Self> {
        let kept = ["/sys/fs/cgroup/systemd", "/sys/fs/cgroup"].map(Path::new);
        let root = kept.into_iter().find(|root| root.join("cgroup.procs").exists())?;
        let slice = root.join("system.slice");
        let path = slice.join("alcazar-proxy.service");
        // A proxy of this very machine, or another run: nobody is to be moved in with them, or is taken for them.
        if fs::read_to_string(path.join("cgroup.procs")).is_ok_and(|processes| !processes.is_empty()) {
            return None;
        }
        let made_slice = !slice.exists();
        fs::create_dir_all(&path).ok()?;
        Some(Self { path, made_slice })
    }

    /// What systemd does: the agent's socket where the unit is to find it, and the program as a user of its own.
    fn start(&self, machine: &Machine, change: impl FnOnce(String) -> String) -> Process {
        let run = |name: &str| machine.host.seen(&Path::new("/run").join(name));
        if fs::symlink_metadata(run("alcazar-agent.sock")).is_err() {
            std::os::unix::fs::symlink("/run/alcazar/agent.sock", run("alcazar-agent.sock")).unwrap();
            // Nobody else may look into the folders where the programs are built.
            fs::copy(binary("alcazar-proxy").unwrap(), run("alcazar-proxy")).unwrap();
        }
        let config = fs::read_to_string(machine.installed.join("etc/alcazar/proxy.yaml")).unwrap();
        fs::write(run("proxy.yaml"), change(config)).unwrap();
        let script = format!(
            "echo $$ > {}/cgroup.procs && exec setpriv --reuid {PROXY} --regid {PROXY} --clear-groups /run/alcazar-proxy --config /run/proxy.yaml",
            self.path.display()
        );
        let mut command: Command = machine.host.command(Path::new("sh"));
        command.args(["-c", &script]);
        let proxy = machine.host.start(command, "proxy.log").unwrap();
        wait_ready(&machine.host, &proxy, 15021);
        proxy
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        // Those in it have been ended, and may not be gone yet.
        let gone = || fs::remove_dir(&self.path).is_ok() || !self.path.exists();
        drop(until("an empty control group", DEADLINE, || gone().then_some(())));
        if let Some(slice) = self.path.parent().filter(|_| self.made_slice) {
            drop(fs::remove_dir(slice));
        }
    }
}
