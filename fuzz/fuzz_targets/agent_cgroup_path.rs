#![no_main]

use alcazar_node_agent::unit_of;
use libfuzzer_sys::fuzz_target;

// What a process may have made of its control groups: it is of a service right below `system.slice`, or of none.
fuzz_target!(|text: &str| {
    let Ok(unit) = unit_of(text) else { return };
    assert!(!unit.as_str().starts_with("user@"), "a user's units are named by the user");
    let paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    let is_of_the_systems = |path: &str| {
        let mut components = path.strip_prefix("/system.slice/").into_iter().flat_map(|rest| rest.split('/'));
        let first = components.find(|component| !component.ends_with(".slice"));
        first.is_some_and(|first| first.strip_prefix('_').unwrap_or(first) == unit.as_str())
    };
    assert!(paths.into_iter().any(is_of_the_systems), "{unit}");
    // Whatever is made below a service is the service's own.
    if !text.contains("name=systemd") && text.lines().count() == 1 {
        assert_eq!(unit_of(&format!("{}/system.slice/other.service", text.trim_end_matches(['\n', '\r']))), Ok(unit));
    }
});
