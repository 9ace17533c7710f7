//! Where Istio 1.4 let more through than the document said: one test for each difference.

use alcazar_policy::{
    Activation, Attribute, Binding, Clause, Compiled, IpNet, Matcher, Policy, Role, Rule, Settings, Subject,
    WorkloadPolicy,
};
use alcazar_yaml::SourceFile;

use crate::support::{Call, Place, policy};

const ON: &str =
    "apiVersion: rbac.istio.io/v1alpha1\nkind: ClusterRbacConfig\nmetadata: {name: default}\nspec: {mode: ON}\n";

fn role_and_binding(rule: &str, subject: &str) -> String {
    let head =
        |kind| format!("---\napiVersion: rbac.istio.io/v1alpha1\nkind: {kind}\nmetadata: {{name: r, namespace: n}}\n");
    let binding = head("ServiceRoleBinding");
    format!("{ON}{}spec: {{rules: [{rule}]}}\n{binding}spec: {{role: r, subjects: [{subject}]}}\n", head("ServiceRole"))
}

fn allows(rule: &str, subject: &str, call: &Call) -> bool {
    let compiled = Place::new("n", "a", "v1").compile(&policy(&role_and_binding(rule, subject)));
    call.with(|request| compiled.decide(request)).is_allowed()
}

const ANY_RULE: &str = "{services: [\"*\"]}";
const ANYONE: &str = "{user: \"*\"}";

#[test]
fn only_the_authenticated_have_any_principal() {
    let (with, without) = (Call::http("n/x", "GET", "/"), Call::http("-", "GET", "/"));
    for (subject, expected) in [
        ("{user: \"*\"}", (true, true)),
        ("{user: allUsers}", (true, true)),
        ("{names: [allUsers]}", (true, true)),
        ("{names: [allAuthenticatedUsers]}", (true, false)),
        ("{user: allAuthenticatedUsers}", (true, false)),
        ("{properties: {source.principal: \"*\"}}", (true, false)),
        ("{properties: {source.user: \"*\"}}", (true, false)),
        ("{namespaces: [\"*\"]}", (true, false)),
        ("{notNames: [allAuthenticatedUsers]}", (false, true)),
    ] {
        assert_eq!((allows(ANY_RULE, subject, &with), allows(ANY_RULE, subject, &without)), expected, "{subject}");
    }
}

#[test]
fn a_dot_in_a_namespace_is_a_dot() {
    let subject = "{properties: {source.namespace: a.b}}";
    assert!(allows(ANY_RULE, subject, &Call::http("a.b/x", "GET", "/")));
    assert!(!allows(ANY_RULE, subject, &Call::http("aXb/x", "GET", "/")));
}

#[test]
fn the_namespaces_of_a_federated_trust_domain_are_not_ours() {
    let theirs = |id: &str| {
        let mut call = Call::http("-", "GET", "/");
        call.source = Some(id.parse().unwrap());
        call
    };
    let (they, we) = (theirs("spiffe://two.example/ns/shop/sa/web"), Call::http("shop/web", "GET", "/"));
    for (subject, expected) in [
        ("{properties: {source.namespace: shop}}", (false, true)),
        ("{namespaces: [shop]}", (false, true)),
        ("{namespaces: [\"*\"]}", (false, true)),
        ("{notNamespaces: [shop]}", (true, false)),
        // Whoever means them says so.
        ("{user: two.example/ns/shop/sa/web}", (true, false)),
        ("{names: [\"two.example/ns/shop/*\"]}", (true, false)),
        ("{user: cluster.local/ns/shop/sa/web}", (false, true)),
        ("{names: [allAuthenticatedUsers]}", (true, true)),
    ] {
        let found = (allows(ANY_RULE, subject, &they), allows(ANY_RULE, subject, &we));
        assert_eq!(found, expected, "{subject}");
    }
}

#[test]
fn a_suffix_of_a_principal_matches_on_tcp_too() {
    let subject = "{names: [\"*/sa/x\"]}";
    assert!(allows(ANY_RULE, subject, &Call::tcp("any/x", 1)));
    assert!(!allows(ANY_RULE, subject, &Call::tcp("any/y", 1)));
}

#[test]
fn the_query_is_no_part_of_the_path() {
    assert!(allows("{paths: [\"/a\"]}", ANYONE, &Call::http("-", "GET", "/a?b=c")));
    assert!(!allows("{paths: [\"*/public\"]}", ANYONE, &Call::http("-", "GET", "/secret?/public")));
    assert!(!allows("{notPaths: [\"/secret\"]}", ANYONE, &Call::http("-", "GET", "/secret?x")));
}

#[test]
fn a_repeated_header_allows_only_with_every_value() {
    let rule = "{constraints: [{key: \"request.headers[x-role]\", values: [admin, \"a*\"]}]}";
    let call = || Call::http("-", "GET", "/");
    assert!(allows(rule, ANYONE, &call().header("X-Role", "admin")));
    assert!(allows(rule, ANYONE, &call().header("x-role", "admin").header("X-ROLE", "auditor")));
    assert!(!allows(rule, ANYONE, &call().header("x-role", "admin").header("x-role", "guest")));
    assert!(!allows(rule, ANYONE, &call()));
}

#[test]
fn what_is_not_known_is_refused_where_it_is_written() {
    for (rule, subject) in [
        ("{constraints: [{key: destination.labels, values: [a]}]}", ANYONE),
        ("{constraints: [{key: destination.ip, values: [\"10.0.0.0/99\"]}]}", ANYONE),
        ("{constraints: [{key: destination.ip, values: [a]}, {key: destination.ip, values: [b]}]}", ANYONE),
        ("{ports: [99999]}", ANYONE),
        (ANY_RULE, "{properties: {request.something: a}}"),
        (ANY_RULE, "{ips: [nowhere]}"),
    ] {
        let file = SourceFile::new("p.yaml", role_and_binding(rule, subject));
        assert!(Policy::from_files(&[file], &Settings::default()).is_err(), "{rule} {subject}");
    }
}

#[test]
fn what_is_not_known_never_matches_where_it_gets_through_all_the_same() {
    let net: IpNet = "10.0.0.0/8".parse().unwrap();
    let clause = |attribute, negated, values: &[Matcher]| Clause {
        field: "f".to_owned(),
        attribute,
        negated,
        values: values.to_vec(),
    };
    let text = || Matcher::Exact("x".to_owned());
    for bad in [
        clause(Attribute::Unknown("moon.phase".to_owned()), false, &[Matcher::Present]),
        clause(Attribute::Unknown("moon.phase".to_owned()), true, &[text()]),
        clause(Attribute::Path, true, &[]),
        clause(Attribute::Path, true, &[Matcher::Cidr(net)]),
        clause(Attribute::Path, true, &[text(), Matcher::Port(1)]),
        clause(Attribute::SourceIp, true, &[text()]),
        clause(Attribute::DestinationPort, true, &[text()]),
    ] {
        for in_subject in [false, true] {
            let (rule, subject) = if in_subject { (vec![], vec![bad.clone()]) } else { (vec![bad.clone()], vec![]) };
            // A second rule and subject that would match do not save the role.
            let rules = vec![Rule { index: 0, clauses: rule }, Rule { index: 1, clauses: vec![] }];
            let subjects = vec![Subject { index: 0, clauses: subject }, Subject { index: 1, clauses: vec![] }];
            let binding = Binding { namespace: "n".into(), name: "b".into(), shadow: false, subjects };
            let role = Role { namespace: "n".into(), name: "r".into(), rules, bindings: vec![binding] };
            let compiled = Compiled::new(WorkloadPolicy { activation: Activation::On, roles: vec![role] });
            let told = Call::http("n/x", "GET", "/").with(|request| {
                assert!(!compiled.decide(request).is_allowed(), "{bad:?}");
                compiled.explain(request).to_string()
            });
            assert!(told.contains("role n/r never matches"), "{told}");
        }
    }
}

#[test]
fn http_fields_deny_on_tcp_and_never_widen() {
    for rule in [
        "{paths: [\"*\"]}",
        "{notPaths: [\"/a\"]}",
        "{methods: [\"*\"]}",
        "{notMethods: [PUT]}",
        "{notHosts: [a]}",
        "{constraints: [{key: \"request.headers[a]\", values: [\"*\"]}]}",
    ] {
        assert!(!allows(rule, ANYONE, &Call::tcp("n/x", 80)), "{rule}");
    }
    for subject in ["{notGroups: [a]}", "{properties: {\"request.headers[a]\": \"*\"}}"] {
        assert!(!allows(ANY_RULE, subject, &Call::tcp("n/x", 80)), "{subject}");
    }
    assert!(allows("{ports: [80]}", "{names: [\"*/sa/x\"]}", &Call::tcp("n/x", 80)));
}

#[test]
fn a_group_that_nobody_verified_is_not_absent() {
    // A token that says `blocked` is not read by this version; taking that for "not blocked" would let it through.
    assert!(!allows(ANY_RULE, "{notGroups: [blocked]}", &Call::http("n/x", "GET", "/")));
    assert!(!allows(ANY_RULE, "{user: \"*\", notGroups: [blocked]}", &Call::http("n/x", "GET", "/")));
}

#[test]
fn an_included_service_is_included_by_each_of_its_names() {
    let activation = |name: &str| {
        let text = ON.replace("{mode: ON}", &format!("{{mode: ON_WITH_INCLUSION, inclusion: {{services: [{name}]}}}}"));
        policy(&text).for_workload(&Place::new("n", "a", "v1").workload()).activation
    };
    for name in ["a.n.svc.cluster.local", "a.n", "a.n.svc", "A.N.svc.cluster.local", "a.n.svc.cluster.local."] {
        assert_eq!(activation(name), Activation::On, "{name}");
    }
    assert_eq!(activation("b.n.svc.cluster.local"), Activation::Off);
}

#[test]
fn an_excluded_service_does_not_switch_off_its_neighbours() {
    let text = ON.replace(
        "{mode: ON}",
        "{mode: ON_WITH_EXCLUSION, exclusion: {services: [a.n.svc.cluster.local], namespaces: [free]}}",
    );
    let policy = policy(&text);
    let activation = |place: &Place| policy.for_workload(&place.workload()).activation;
    let mut both = Place::new("n", "a", "v1");
    assert_eq!(activation(&both), Activation::Off);
    both.services.push("b.n.svc.cluster.local".to_owned());
    assert_eq!(activation(&both), Activation::On);
    both.services.clear();
    assert_eq!(activation(&both), Activation::On);
    assert_eq!(activation(&Place::new("free", "a", "v1")), Activation::Off);
}
