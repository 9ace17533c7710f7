//! A kill at any moment loses nothing that was acknowledged, and the next start goes on.

use std::sync::Mutex;

use alcazar_testkit::{DEADLINE, HttpOrigin, Mesh, Process, binary, curl, turn, until};

/// While one mesh is down between two runs, another would choose its ports.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn mesh(port: u16) -> String {
    format!(
        "workloads:
- name: reviews
  namespace: shop
  serviceAccount: reviews
  address: 127.0.0.1
  ports: [{{name: http, number: {port}, protocol: HTTP}}]
- name: caller
  namespace: shop
  serviceAccount: caller
  command: [sh, -c, 'sleep 1000.{port} & wait']
"
    )
}

#[test]
fn kill_nine_and_restart_keep_the_root() {
    let _turn = turn();
    let _alone = ONE_AT_A_TIME.lock();
    let origin = HttpOrigin::start("reviews").unwrap();
    let url = format!("http://reviews.shop:{}/", origin.port());
    let mut mesh = Mesh::of(&mesh(origin.port()), &[]).unwrap();
    let before = mesh.status().unwrap();
    let caller = mesh.workload("shop/caller").unwrap();
    assert_eq!(curl(&caller.outbound, &url).unwrap().code, 200);

    mesh = mesh.kill_and_restart().unwrap();
    let leader = caller.pid.unwrap();
    until("the end of the command", DEADLINE, || (!is_running(leader)).then_some(())).unwrap();
    let after = mesh.status().unwrap();
    for pointer in ["/root", "/intermediate"] {
        assert_eq!(before.pointer(pointer), after.pointer(pointer), "{pointer}");
    }
    // Addresses that were chosen once are remembered: nobody has to learn them again.
    let again = mesh.workload("shop/caller").unwrap();
    assert_eq!((&caller.outbound, &caller.inbound), (&again.outbound, &again.inbound));
    assert_eq!(curl(&again.outbound, &url).unwrap().code, 200);
    // What the command itself had started is ended too.
    until("one command", DEADLINE, || (sleepers(origin.port()) == 1).then_some(())).unwrap();

    mesh = mesh.stop_and_restart().unwrap();
    assert_eq!(mesh.status().unwrap().pointer("/root"), before.pointer("/root"));
}

#[test]
fn a_kill_during_the_first_start_does_no_harm() {
    let _turn = turn();
    let _alone = ONE_AT_A_TIME.lock();
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    let up = || {
        let mut command = std::process::Command::new(binary("alcazar").unwrap());
        command.arg("up").arg("--data-dir").arg(&data).arg("--mesh").arg(home.path().join("mesh.yaml"));
        Process::start(command, &home.path().join("log")).unwrap()
    };
    let origin = HttpOrigin::start("reviews").unwrap();
    std::fs::write(home.path().join("mesh.yaml"), mesh(origin.port())).unwrap();
    // Later and later moments, each seen by what is on disk already.
    for step in ["lock", "addresses.json", "ca", "agent", "up.sock"] {
        let mut process = up();
        let path = data.join(step);
        until(step, DEADLINE, || path.exists().then_some(())).unwrap();
        process.kill().unwrap();
    }
    let mut process = up();
    process.wait_for_line("readiness", |line| line.contains("Ctrl-C ends it")).unwrap();
    assert!(process.terminate().unwrap().success(), "{}", process.log());
    // Nothing of any of the runs is left.
    assert_eq!(sleepers(origin.port()), 0);
}

fn is_running(pid: u64) -> bool {
    // A zombie that init has not yet collected runs no more.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

/// How many processes `sleep 1000.<port>` there are: the port makes it this test's own.
fn sleepers(port: u16) -> usize {
    let line = format!("sleep\01000.{port}\0");
    let entries = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok());
    entries.filter(|entry| std::fs::read_to_string(entry.path().join("cmdline")).is_ok_and(|text| text == line)).count()
}
