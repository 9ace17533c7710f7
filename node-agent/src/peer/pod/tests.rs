use proptest::prelude::*;

use super::*;

const A: &str = "0f6d2c1e-4b3a-4c5d-8e9f-001122334455";
const B: &str = "1f6d2c1e-4b3a-4c5d-8e9f-001122334455";
const STATIC: &str = "0123456789abcdef0123456789abcdef";

fn slice(uid: &str) -> String {
    uid.replace('-', "_")
}

fn check_below(root: &str, file: &str, expected: Option<&str>) {
    let pod = pod_of(file, &root.parse().unwrap());
    assert_eq!(pod.as_ref().ok().map(PodUid::as_str), expected, "{file:?}: {pod:?}");
}

fn check(file: &str, expected: Option<&str>) {
    check_below("/", file, expected);
}

#[test]
fn a_process_is_in_the_first_pod_below_the_kubelets_groups() {
    let a = slice(A);
    for path in [
        format!("/kubepods/burstable/pod{A}/0123"),
        format!("/kubepods/besteffort/pod{A}/0123"),
        format!("/kubepods/pod{A}/0123"),
        format!("/kubepods/pod{A}"),
        // Whoever is in it may make groups below his own.
        format!("/kubepods/burstable/pod{A}/0123/system.slice/web.service"),
        format!("/kubepods/burstable/pod{A}/0123/kubepods/burstable"),
        format!("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{a}.slice/cri-containerd-0123.scope"),
        format!("/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{a}.slice/crio-0123.scope"),
        format!("/kubepods.slice/kubepods-pod{a}.slice/cri-containerd-0123.scope"),
        format!("/kubepods.slice/kubepods-pod{a}.slice/cri-containerd-0123.scope/init"),
        format!("/kubepods.slice/kubepods-pod{a}.slice/libpod-{STATIC}{STATIC}.scope"),
    ] {
        check(&format!("0::{path}\n"), Some(A));
        check(&format!("11:memory:{path}\n1:name=systemd:{path}\n"), Some(A));
        // The hierarchy of version 2 is there and keeps nothing.
        check(
            &format!("11:memory:{path}\n3:misc:/\n1:name=systemd:{path}\n0::/system.slice/containerd.service\n"),
            Some(A),
        );
    }
    check(&format!("0::/kubepods/burstable/pod{STATIC}/0123\n"), Some(STATIC));
    check(
        &format!("0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{STATIC}.slice/a.scope\n"),
        Some(STATIC),
    );
}

#[test]
fn whoever_is_elsewhere_or_in_two_pods_is_in_none() {
    let (a, b) = (slice(A), slice(B));
    for nobodys in [
        String::new(),
        "\n".to_owned(),
        "0::/\n".to_owned(),
        "0::/system.slice/kubelet.service\n".to_owned(),
        "0::/kubepods\n".to_owned(),
        "0::/kubepods/burstable\n".to_owned(),
        "0::/kubepods.slice/kubepods-burstable.slice\n".to_owned(),
        format!("0::/user.slice/kubepods/burstable/pod{A}/0123\n"),
        format!("0::/docker/0123/kubepods/burstable/pod{A}/0123\n"),
        format!("0::/burstable/pod{A}/0123\n"),
        format!("0::/pod{A}/0123\n"),
        format!("0::kubepods/burstable/pod{A}/0123\n"),
        format!("0:://kubepods/burstable/pod{A}/0123\n"),
        format!("0::/kubepods//burstable/pod{A}/0123\n"),
        format!("0::/kubepods/guaranteed/pod{A}/0123\n"),
        format!("0::/kubepods/burstable/burstable/pod{A}/0123\n"),
        format!("0::/kubepods/burstable/x/pod{A}/0123\n"),
        format!("0::/kubepods/burstable/pod{A} (deleted)\n"),
        format!("0::/kubepods/burstable/pod{}/0123\n", A.to_uppercase()),
        format!("0::/kubepods/burstable/pod{}/0123\n", &A[1..]),
        format!("0::/kubepods/burstable/pod{a}/0123\n"),
        format!("0::/kubepods.slice/kubepods-burstable-pod{a}.slice/x.scope\n"),
        format!("0::/kubepods.slice/kubepods-burstable.slice/kubepods-pod{a}.slice/x.scope\n"),
        format!("0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{A}.slice/x.scope\n"),
        format!("0::/system.slice/containerd.service/kubepods-burstable-pod{a}.slice:cri-containerd:0123\n"),
        // A pod within a pod: in either way, in either layout.
        format!("0::/kubepods/burstable/pod{A}/0123/kubepods/burstable/pod{B}/0123\n"),
        format!("0::/kubepods/burstable/pod{A}/pod{A}\n"),
        format!("0::/kubepods.slice/kubepods-pod{a}.slice/x.scope/kubepods.slice/kubepods-pod{b}.slice/y.scope\n"),
        format!("0::/kubepods/pod{A}/0123/kubepods.slice/kubepods-pod{b}.slice:cri-containerd:0123\n"),
        // Hierarchies that disagree.
        format!("5:cpu:/kubepods/pod{A}/0123\n1:name=systemd:/kubepods/pod{B}/0123\n"),
        format!("5:cpu:/kubepods/pod{A}/0123\n1:name=systemd:/kubepods/burstable\n"),
        format!("5:cpu:/kubepods/pod{A}/0123\n1:name=systemd\n"),
    ] {
        check(&nobodys, None);
    }
    for (outside, hint) in [
        (format!("0::/../../kubepods/pod{A}/0123\n"), "privileged"),
        (format!("0::/../kubepods-pod{a}.slice/x.scope\n"), "hostPID"),
        (format!("4:cpu:/kubepods/pod{A}/0123\n0::/..\n"), "namespace"),
        ("0::/user.slice\n".to_owned(), "\"/user.slice\" is not below /kubepods"),
    ] {
        let error = pod_of(&outside, &CgroupRoot::default()).unwrap_err().to_string();
        assert!(error.contains(hint), "{error}");
    }
}

#[test]
fn only_whoever_is_nowhere_near_a_pod_is_certainly_in_none() {
    let a = slice(A);
    let is_certain = |file: &str| matches!(pod_of(file, &CgroupRoot::default()), Err(NoPod::Elsewhere(_)));
    for elsewhere in ["0::/\n", "0::/system.slice/kubelet.service\n", "4:cpu:/user.slice\n0::/init.scope\n"] {
        assert!(is_certain(elsewhere), "{elsewhere:?}");
    }
    for unclear in [
        String::new(),
        "0::/kubepods\n".to_owned(),
        "0::/../../x\n".to_owned(),
        "nonsense\n".to_owned(),
        // Of a kubelet with another `cgroupRoot`, or another driver than its container runtime.
        format!("0::/kubelet/kubepods/burstable/pod{A}/0123\n"),
        format!("0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{a}.slice/x.scope\n"),
        format!("0::/system.slice/containerd.service/kubepods-burstable-pod{a}.slice:cri-containerd:0123\n"),
        format!("0::/x/pod{A}/0123\n"),
        format!("4:cpu:/x/pod{A}/0123\n0::/user.slice\n"),
        // Of a kubelet that makes no groups: its containers are where the runtime has them.
        format!("0::/system.slice/cri-containerd-{STATIC}{STATIC}.scope\n"),
        format!("0::/{STATIC}{STATIC}\n"),
        "0::/k8s.io/web\n".to_owned(),
        format!("5:cpu:/kubepods/pod{A}/0123\n1:name=systemd:/kubepods/pod{B}/0123\n"),
    ] {
        assert!(!is_certain(&unclear), "{unclear:?}");
        check(&unclear, None);
    }
}

#[test]
fn a_kubelet_may_keep_its_pods_below_a_group_of_its_own() {
    let a = slice(A);
    check_below("/kubelet", &format!("0::/kubelet/kubepods/burstable/pod{A}/0123\n"), Some(A));
    check_below(
        "/kubelet",
        &format!(
            "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{a}.slice/x.scope\n"
        ),
        Some(A),
    );
    check_below(
        "/a-b/c",
        &format!("0::/a_b.slice/a_b-c.slice/a_b-c-kubepods.slice/a_b-c-kubepods-pod{a}.slice/x.scope\n"),
        Some(A),
    );
    check_below("/kubelet", &format!("0::/kubepods/burstable/pod{A}/0123\n"), None);
    check_below("/", &format!("0::/kubelet/kubepods/burstable/pod{A}/0123\n"), None);
    for bad in ["", "kubelet", "/kubelet/", "//", "/../x", "/.", "/kubelet.slice", "/a b"] {
        assert!(bad.parse::<CgroupRoot>().is_err(), "{bad:?}");
    }
    assert_eq!("/a/b".parse::<CgroupRoot>().unwrap().to_string(), "/a/b/kubepods");
    assert_eq!("/".parse::<CgroupRoot>().unwrap().to_string(), "/kubepods");
}

/// Components that a path could be made of, by whoever is in a pod and means no good.
fn component() -> impl Strategy<Value = String> {
    let names =
        ["kubepods", "burstable", "besteffort", "kubepods.slice", "kubepods-burstable.slice", "x.scope", "..", ""];
    let fixed = proptest::sample::select(names.map(str::to_owned).to_vec());
    let pods = proptest::sample::select(vec![A, B, STATIC]).prop_flat_map(|uid| {
        let (s, uid) = (slice(uid), uid.to_owned());
        proptest::sample::select(vec![
            format!("pod{uid}"),
            format!("kubepods-pod{s}.slice"),
            format!("kubepods-burstable-pod{s}.slice"),
            format!("kubepods-burstable-pod{s}.slice:cri-containerd:0"),
        ])
    });
    prop_oneof![fixed, pods]
}

proptest! {
    #[test]
    fn nobody_comes_to_be_in_another_pod_by_groups_below_its_own(
        own in proptest::sample::select(vec![
            format!("/kubepods/burstable/pod{A}/0123"),
            format!("/kubepods/pod{A}"),
            format!("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{}.slice/x.scope", slice(A)),
            format!("/kubepods.slice/kubepods-pod{}.slice", slice(A)),
        ]),
        below in proptest::collection::vec(component(), 0..6),
    ) {
        let path = below.iter().fold(own, |path, name| format!("{path}/{name}"));
        if let Ok(pod) = pod_of(&format!("0::{path}\n"), &CgroupRoot::default()) {
            prop_assert_eq!(pod.as_str(), A);
        }
    }

    #[test]
    fn a_path_is_of_one_pod_at_most_and_of_one_that_it_names(paths in proptest::collection::vec(
        proptest::collection::vec(component(), 0..6), 0..3,
    )) {
        let file: String = paths.iter().map(|path| format!("0::/{}\n", path.join("/"))).collect();
        if let Ok(pod) = pod_of(&file, &CgroupRoot::default()) {
            let named = |uid: &str| file.contains(uid) || file.contains(&slice(uid));
            prop_assert!(named(pod.as_str()));
            for other in [A, B, STATIC].into_iter().filter(|other| *other != pod.as_str()) {
                let below = file.lines().filter(|line| line.starts_with("0::/kubepods"));
                prop_assert!(below.filter(|line| line.contains(other) || line.contains(&slice(other))).all(|line| !line.contains(pod.as_str())));
            }
        }
    }
}
