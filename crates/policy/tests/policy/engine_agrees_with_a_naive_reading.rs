//! Random documents, random requests: the engine and a naive reading of the same YAML come to the same verdicts.

use std::cell::Cell;
use std::fmt::Write;

use alcazar_policy::{Compiled, Decision, Verdict};
use alcazar_yaml::SourceFile;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use crate::support::{Call, HttpCall, Place};

/// A row of numbers that makes all choices: proptest shrinks it, and zeros choose the plainest.
struct Tape<'a>(std::iter::Cycle<std::iter::Copied<std::slice::Iter<'a, u8>>>);

impl Tape<'_> {
    fn number(&mut self) -> usize {
        self.0.next().unwrap_or(0).into()
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.number() % n == n - 1
    }

    fn pick<'v>(&mut self, from: &[&'v str]) -> &'v str {
        from[self.number() % from.len()]
    }

    /// One to three of them, as a YAML list.
    fn some(&mut self, from: &[&str]) -> String {
        let count = 1 + self.number() % 3;
        let picked: Vec<String> = (0..count).map(|_| format!("{:?}", self.pick(from))).collect();
        format!("[{}]", picked.join(", "))
    }
}

const NAMESPACES: [&str; 3] = ["shop", "reports", "istio-system"];
const SERVICES: [&str; 8] = [
    "*",
    "catalog",
    "catalog.shop",
    "catalog.shop.svc.cluster.local",
    "cat*",
    "*.svc.cluster.local",
    "reviews.shop.svc",
    "*.reports",
];
const PATHS: [&str; 8] = ["*", "/*", "/a", "/a/*", "/a*", "*/b", "/b/a", "/a/b"];
const METHODS: [&str; 4] = ["GET", "POST", "*", "P*"];
const HOSTS: [&str; 4] = ["catalog.shop", "CATALOG*", "*.shop", "*"];
const VALUES: [&str; 5] = ["*", "one", "o*", "*e", "two"];
const NETS: [&str; 5] = ["10.0.0.0/8", "10.0.1.7", "10.0.1.8/31", "0.0.0.0/0", "192.168.0.0/16"];
const PRINCIPALS: [&str; 9] = [
    "allAuthenticatedUsers",
    "cluster.local/ns/shop/sa/frontend",
    "old.local/ns/shop/sa/frontend",
    "cluster.local/ns/reports/*",
    "old.local/ns/*",
    "*/sa/nightly",
    "*/ns/shop/sa/frontend",
    "foreign.example/ns/shop/sa/frontend",
    "allUsers",
];

fn rule(tape: &mut Tape<'_>) -> String {
    let mut fields =
        vec![format!("services: {}", if tape.one_in(3) { tape.some(&SERVICES) } else { "[\"*\"]".into() })];
    for (field, negation, values) in
        [("hosts", "notHosts", &HOSTS[..]), ("paths", "notPaths", &PATHS), ("methods", "notMethods", &METHODS)]
    {
        if tape.one_in(3) {
            fields.push(format!("{field}: {}", tape.some(values)));
        } else if tape.one_in(5) {
            fields.push(format!("{negation}: {}", tape.some(&values[1..])));
        }
    }
    match tape.number() % 8 {
        7 => fields.push("ports: [80, 5432]".to_owned()),
        6 => fields.push("notPorts: [5432]".to_owned()),
        _ => {}
    }
    let mut constraints = Vec::new();
    for (key, values, rarity) in [
        ("destination.labels[version]", &["v1", "v*", "*", "v2"][..], 6),
        ("destination.labels[absent]", &["*"], 20),
        ("destination.name", &["catalog*", "*-v2"], 12),
        ("destination.namespace", &["shop", "r*"], 12),
        ("destination.user", &["catalog", "reviews"], 12),
        ("destination.ip", &NETS, 12),
        ("request.headers[X-One]", &VALUES, 6),
        ("connection.sni", &["catalog*", "*"], 12),
        ("experimental.envoy.filters.http.x[y]", &["z"], 25),
    ] {
        if tape.one_in(rarity) {
            constraints.push(format!("{{key: \"{key}\", values: {}}}", tape.some(values)));
        }
    }
    if !constraints.is_empty() {
        fields.push(format!("constraints: [{}]", constraints.join(", ")));
    }
    format!("{{{}}}", fields.join(", "))
}

fn subject(tape: &mut Tape<'_>) -> String {
    let mut fields = Vec::new();
    match tape.number() % 6 {
        0 => fields.push("user: \"*\"".to_owned()),
        1 => fields.push(format!("user: {:?}", tape.pick(&PRINCIPALS))),
        2 => fields.push(format!("names: {}", tape.some(&PRINCIPALS))),
        3 => fields.push(format!("namespaces: {}", tape.some(&["shop", "re*", "*", "*p"]))),
        4 => fields.push(format!("notNames: {}", tape.some(&PRINCIPALS[..8]))),
        _ => fields.push(format!("notNamespaces: {}", tape.some(&["reports", "s*"]))),
    }
    match tape.number() % 16 {
        15 => fields.push(format!("ips: {}", tape.some(&NETS))),
        14 => fields.push(format!("notIps: {}", tape.some(&NETS[1..3]))),
        13 => fields.push("group: admins".to_owned()),
        12 => fields.push("notGroups: [admins]".to_owned()),
        _ => {}
    }
    let mut properties = Vec::new();
    for (key, values, rarity) in [
        ("source.principal", &PRINCIPALS[..8], 10),
        ("source.namespace", &["shop", "*"][..], 12),
        ("source.ip", &NETS, 12),
        ("request.headers[x-one]", &VALUES, 8),
        ("request.auth.claims[iss]", &["*"], 25),
    ] {
        if tape.one_in(rarity) {
            properties.push(format!("\"{key}\": {:?}", tape.pick(values)));
        }
    }
    // Now and then a property alone.
    if !properties.is_empty() {
        if tape.one_in(4) {
            fields.clear();
        }
        fields.push(format!("properties: {{{}}}", properties.join(", ")));
    }
    format!("{{{}}}", fields.join(", "))
}

fn several(tape: &mut Tape<'_>, most: usize, one: fn(&mut Tape<'_>) -> String) -> String {
    let count = 1 + tape.number() % most;
    let all: Vec<String> = (0..count).map(|_| format!("  - {}\n", one(tape))).collect();
    all.concat()
}

fn documents(tape: &mut Tape<'_>) -> String {
    let mut text = String::new();
    let mut document = |kind: &str, namespace: &str, name: &str, spec: String| {
        writeln!(text, "---\napiVersion: rbac.istio.io/v1alpha1\nkind: {kind}").unwrap();
        writeln!(text, "metadata: {{name: {name}, namespace: {namespace}}}\nspec:\n{spec}").unwrap();
    };
    let modes = [
        "mode: ON",
        "mode: ON_WITH_INCLUSION\n  inclusion: {namespaces: [shop], services: [nightly.reports.svc.cluster.local]}",
        "mode: ON_WITH_EXCLUSION\n  exclusion: {namespaces: [istio-system], services: [nightly.reports.svc.cluster.local]}",
        "mode: ON\n  enforcement_mode: PERMISSIVE",
        "mode: 'OFF'",
    ];
    let mode = [0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 0, 4][tape.number() % 12];
    document("ClusterRbacConfig", "x", "default", format!("  {}", modes[mode]));
    let roles = ["a", "b", "c"];
    for namespace in NAMESPACES {
        for role in roles {
            if tape.number() % 4 != 3 {
                document("ServiceRole", namespace, role, format!("  rules:\n{}", several(tape, 3, rule)));
            }
        }
        for binding in 0..1 + tape.number() % 3 {
            let role = match tape.number() % 8 {
                0..4 => format!("roleRef: {{kind: ServiceRole, name: {}}}", tape.pick(&roles)),
                4 => format!("role: {}", tape.pick(&roles)),
                5 | 6 => format!("role: /{}", tape.pick(&roles)),
                _ => format!("actions:\n{}", several(tape, 2, rule)),
            };
            let mode = if tape.one_in(4) { "\n  mode: PERMISSIVE" } else { "" };
            let spec = format!("  {role}{mode}\n  subjects:\n{}", several(tape, 2, subject));
            document("ServiceRoleBinding", namespace, &format!("to-{binding}"), spec);
        }
    }
    text
}

fn call(tape: &mut Tape<'_>) -> Call {
    let id = match tape.number() % 8 {
        0 | 1 => Some("spiffe://cluster.local/ns/shop/sa/frontend"),
        2 => Some("spiffe://cluster.local/ns/reports/sa/nightly"),
        3 => Some("spiffe://old.local/ns/shop/sa/frontend"),
        4 => Some("spiffe://foreign.example/ns/shop/sa/frontend"),
        5 => Some("spiffe://cluster.local/node/east/one"),
        _ => None,
    };
    let ip = tape.pick(&["10.0.1.7", "10.0.1.9", "192.168.3.4", "::ffff:10.0.1.7"]);
    let port = if tape.one_in(3) { 5432 } else { 80 };
    let http = (!tape.one_in(4)).then(|| HttpCall {
        host: [None, Some("catalog.shop"), Some("reviews.shop"), Some("x.org")][tape.number() % 4].map(str::to_owned),
        path: tape.pick(&["/a", "/a/b", "/b", "/b/a", "/", "/abc"]).to_owned(),
        method: tape.pick(&["GET", "POST", "PUT"]).to_owned(),
        headers: (0..tape.number() % 3)
            .map(|_| (tape.pick(&["x-one", "X-ONE", "other"]).to_owned(), tape.pick(&["one", "two", "oe"]).to_owned()))
            .collect(),
    });
    Call {
        source: id.map(|id| id.parse().unwrap()),
        source_ip: ip.parse().unwrap(),
        destination: ([10, 0, 1, 8], port).into(),
        sni: [None, Some("catalog.shop"), Some("x")][tape.number() % 3].map(str::to_owned),
        http,
    }
}

fn places() -> Vec<Place> {
    let mut places = vec![
        Place::new("shop", "catalog", "v1"),
        Place::new("shop", "reviews", "v2"),
        Place::new("reports", "nightly", "v1"),
        Place::new("istio-system", "gateway", "v1"),
    ];
    places[0].services.push("front.shop.svc.cluster.local".to_owned());
    places[1].aliases = vec!["old.local".to_owned()];
    places[3].services.clear();
    places
}

#[derive(Default)]
struct Counts {
    allowed: Cell<u32>,
    denied: Cell<u32>,
    shadow_differs: Cell<u32>,
    tcp_allowed: Cell<u32>,
}

fn bump(cell: &Cell<u32>) {
    cell.set(cell.get() + 1);
}

fn check(text: &str, place: &Place, compiled: &Compiled, docs: &[crate::naive::Doc], call: &Call, counts: &Counts) {
    let (decision, explanation) = call.with(|request| (compiled.decide(request), compiled.explain(request)));
    let got = (decision.is_allowed(), decision.shadow().map(|shadow| shadow.is_allowed()));
    let expected = crate::naive::verdict(docs, place, call);
    assert_eq!(got, expected, "to {}: {call:?}\n{explanation}\n{text}", place.name);

    // The explanation says the same, and a denial with roles in reach names one.
    assert_eq!(explanation.verdict == Verdict::Allow, got.0);
    match decision {
        Decision::Allow(permit) => match permit.because() {
            alcazar_policy::Because::Granted(grant) => assert!(compiled.grant(&grant).is_some()),
            alcazar_policy::Because::RbacOff | alcazar_policy::Because::ShadowOnly => return,
        },
        Decision::Deny(denial) => {
            let missed = explanation.nearest_miss.as_ref();
            assert_eq!(missed.is_some(), denial.reason() == alcazar_policy::Reason::NoMatch);
            assert!(missed.is_none_or(|miss| !miss.failed.is_empty()), "{explanation}");
        }
    }
    bump(if got.0 { &counts.allowed } else { &counts.denied });
    if got.1.is_some_and(|shadow| shadow != got.0) {
        bump(&counts.shadow_differs);
    }
    if got.0 && call.http.is_none() {
        bump(&counts.tcp_allowed);
    }
}

#[test]
fn the_engine_and_the_naive_reading_come_to_the_same_verdicts() {
    let counts = Counts::default();
    let config = Config { cases: 250, failure_persistence: None, ..Config::default() };
    let tapes = proptest::collection::vec(proptest::num::u8::ANY, 64..600);
    let result = TestRunner::new(config).run(&tapes, |tape| {
        let mut tape = Tape(tape.iter().copied().cycle());
        let text = documents(&mut tape);
        let policy = crate::support::policy(&text);
        let docs: Vec<crate::naive::Doc> = alcazar_yaml::parse_many(&SourceFile::new("p.yaml", text.as_str()))
            .map_err(|error| TestCaseError::fail(error.to_string()))?;
        for place in places() {
            let compiled = place.compile(&policy);
            for _ in 0..20 {
                check(&text, &place, &compiled, &docs, &call(&mut tape), &counts);
            }
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    let (allowed, denied) = (counts.allowed.get(), counts.denied.get());
    println!(
        "allowed {allowed}, denied {denied}, shadow differs {}, TCP allowed {}",
        counts.shadow_differs.get(),
        counts.tcp_allowed.get()
    );
    // A test that only ever sees one verdict shows nothing. What is drawn differs each time.
    assert!(allowed * 10 > denied && denied * 10 > allowed, "allowed {allowed}, denied {denied}");
    assert!(counts.shadow_differs.get() * 100 > allowed + denied);
    assert!(counts.tcp_allowed.get() * 100 > allowed + denied);
}
