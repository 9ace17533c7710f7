//! A machine whose clock is wrong: a little, and nothing comes of it; an hour, and both clocks are said.

use alcazar_identity::rfc3339;
use alcazar_service::clock::now;
use alcazar_testkit::{DEADLINE, faketime, turn, until};

use crate::hosts::{Machine, World};

/// The life of every certificate, the CA's own among them, in seconds.
const LIFE: u64 = 2 * HOUR as u64;
const HOUR: i64 = 3600;

#[test]
fn a_wrong_clock_is_lived_with_or_said() {
    let _turn = turn();
    let Some(faketime) = faketime().unwrap() else { return };
    let Some(world) = World::new(LIFE) else { return };
    let folder = world.onboard("vm-1");
    let mut vm = world.machine(2, &folder);

    // The first contact, an hour behind: the CA's certificate is of the future, and the CA has not said anything yet.
    vm.boot_wrong_by(&faketime, -HOUR);
    let said = trouble(&vm, "its clock is between");
    assert!(said.contains("is not good before"), "{said}");
    the_cas_clock_is_between(&said);
    vm.agent().wait_for_line("both clocks", |line| line.contains("its clock is between")).unwrap();
    assert!(vm.certificate().is_none());

    // The same machine, ninety seconds wrong: its token is still good, and so is what it gets.
    vm.crash();
    vm.boot_wrong_by(&faketime, -90);
    vm.wait_ready();
    let first = vm.wait_for_a_certificate_but("");

    // An hour ahead, while the CA can still be believed: it renews, and both clocks are said.
    vm.crash();
    vm.boot_wrong_by(&faketime, HOUR);
    vm.wait_for_a_certificate_but(first.serial());
    let said = trouble(&vm, "ahead of the CA's, which says");
    assert!(said.contains("this machine's clock says"), "{said}");
    let (_, cas) = said.split_once("ahead of the CA's, which says ").unwrap();
    assert!(
        cas[..20] <= *rfc3339(now()) && cas[..20] >= *rfc3339(now() - std::time::Duration::from_secs(120)),
        "{said}"
    );
    vm.agent().wait_for_line("both clocks", |line| line.contains("ahead of the CA's, which says")).unwrap();

    // So far ahead that every certificate is over, its own and the CA's.
    vm.crash();
    vm.boot_wrong_by(&faketime, 3 * HOUR);
    let said = trouble(&vm, "its clock is between");
    assert!(said.contains("expired at"), "{said}");
    the_cas_clock_is_between(&said);

    // Set again, it needs nobody.
    let before = vm.certificate().unwrap();
    vm.crash();
    vm.boot_wrong_by(&faketime, 90);
    vm.wait_ready();
    vm.wait_for_a_certificate_but("");
    assert_eq!(vm.certificate().unwrap().id(), before.id());
}

/// What the machine's own status says is wrong with it.
fn trouble(vm: &Machine, what: &str) -> String {
    let said =
        || vm.status().lines().find(|line| line.starts_with("trouble") && line.contains(what)).map(str::to_owned);
    until(what, DEADLINE, said).unwrap_or_else(|error| panic!("{error}\n{}\n{}", vm.status(), vm.agent().log()))
}

/// The bounds that are said hold the real clock, and the machine's own is outside of them.
fn the_cas_clock_is_between(said: &str) {
    let after = |text: &str| said.split_once(text).map(|(_, rest)| rest[..20].to_owned()).unwrap();
    let (own, from, to) = (after("this machine's clock says "), after("its clock is between "), after("Z and "));
    let real = rfc3339(now());
    assert!(from <= real && real <= to && (own < from || own > to), "{said}");
}
