//! Machines on a network of their own: one is onboarded, and lives through what happens to machines.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use alcazar_testkit::turn;

use crate::hosts::{FILES, World};

/// The life of every certificate, in seconds: a renewal comes at five or six of them.
const LIFE: u64 = 14;

#[test]
fn a_machine_joins_and_needs_nobody_again() {
    let _turn = turn();
    let Some(world) = World::new(LIFE) else { return };
    let folder = world.onboard("vm-1");
    let mode = |name: &str| fs::metadata(folder.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("."), mode("token"), mode("install.sh")), (0o700, 0o600, 0o755));
    // What is there has a token in it: it is not replaced.
    let again = world.onboarding("vm-1", "orders", &folder, &[]);
    assert!(
        !again.status.success() && String::from_utf8_lossy(&again.stderr).contains("is there already"),
        "{again:?}"
    );
    let mut vm = world.machine(2, &folder);
    vm.boot();
    vm.wait_ready();
    let first = vm.wait_for_a_certificate_but("");
    assert_eq!(first.id().to_string(), "spiffe://td.example/ns/shop/sa/orders");
    let key = fs::metadata(vm.host.seen(Path::new(FILES)).join("..data/key.pem")).unwrap();
    assert_eq!((key.uid(), key.gid(), key.mode() & 0o777), (4321, 4322, 0o640));

    // A thief has copied the folder.
    let mut thief = world.machine(3, &folder);
    thief.boot();
    thief.agent().wait_for_line("the refusal", |line| line.contains("token") && line.contains("used")).unwrap();
    assert!(thief.certificate().is_none());
    drop(thief);

    // A cable is cut for longer than half of a certificate's life: there is a good one at each moment.
    // It begins with a fresh one: what comes of it would else depend on when the last renewal was.
    let before = vm.wait_for_a_certificate_but("");
    let before = vm.wait_for_a_certificate_but(before.serial());
    vm.host.cut().unwrap();
    let cut = Instant::now();
    while cut.elapsed() < Duration::from_secs(LIFE / 2 + 1) {
        assert!(vm.good_certificate().is_some(), "{}", vm.agent().log());
        std::thread::sleep(Duration::from_millis(100));
    }
    vm.host.mend().unwrap();
    vm.wait_for_a_certificate_but(before.serial());

    // The power goes; the token is used, and nobody brings another.
    let before = vm.wait_for_a_certificate_but("");
    vm.crash();
    vm.boot();
    vm.wait_ready();
    vm.wait_for_a_certificate_but(before.serial());
    assert!(vm.host.curl(&["http://127.0.0.1:15020/healthz"]).unwrap().code == 200);
}
