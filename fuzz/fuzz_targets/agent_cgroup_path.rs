#![no_main]

use alcazar_node_agent::{CgroupRoot, pod_of, unit_of};
use libfuzzer_sys::fuzz_target;

// What a process may have made of its control groups: it is of a service right below `system.slice`, or of none; and in the first pod
// on its path, or in none.
fuzz_target!(|text: &str| {
    of_one_pod(text);
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

fn of_one_pod(text: &str) {
    let root = CgroupRoot::default();
    let Ok(pod) = pod_of(text, &root) else { return };
    let named = |path: &str| path.contains(pod.as_str()) || path.contains(&pod.as_str().replace('-', "_"));
    let below = |path: &&str| path.starts_with("/kubepods/") || path.starts_with("/kubepods.slice/");
    let paths: Vec<_> = text.lines().filter_map(|line| line.splitn(3, ':').nth(2)).filter(below).collect();
    assert!(!paths.is_empty() && paths.iter().all(|path| named(path)), "{pod}");
    // Whatever is made below a pod is the pod's own, and never another's.
    let text = text.trim_end_matches(['\n', '\r']);
    if text.lines().count() == 1 {
        assert_eq!(pod_of(&format!("{text}/x"), &root), Ok(pod));
        for other in ["/kubepods/pod", "/kubepods-pod", "/pod"] {
            assert!(pod_of(&format!("{text}{other}00000000-0000-0000-0000-000000000000"), &root).is_err());
        }
    }
}
