//! The cost of one decision over 10, 1,000 and 10,000 rules that all apply to one workload.
//!
//! The mix: teams with a role each, four rules a role (paths by prefix and by exact text, methods, now and then a header,
//! a port or an exclusion), bound to accounts, now and then to a namespace or to everyone. Of the requests two in
//! three are allowed; the others miss by path, by method or by caller.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a benchmark stops at the first surprise"
)]

use std::hint::black_box;

use alcazar_identity::SpiffeId;
use alcazar_policy::{
    Activation, Attribute, Binding, Clause, Compiled, EncodedSlash, Host, Http, Matcher, NormalizedPath, Protocol,
    Request, Role, Rule, Subject, WorkloadPolicy,
};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

const RULES_OF_A_ROLE: usize = 4;

fn clause(field: &str, attribute: Attribute, values: &[Matcher]) -> Clause {
    Clause { field: field.to_owned(), attribute, negated: field.starts_with("not"), values: values.to_vec() }
}

fn exact(text: impl Into<String>) -> Matcher {
    Matcher::Exact(text.into())
}

fn rule(team: usize, index: usize) -> Rule {
    let methods = if index.is_multiple_of(2) { &["GET", "HEAD"][..] } else { &["POST"] };
    let methods: Vec<Matcher> = methods.iter().copied().map(exact).collect();
    let path = match index {
        3 => exact(format!("/v1/team-{team}/health")),
        _ => Matcher::Prefix(format!("/v1/team-{team}/resource-{index}/")),
    };
    let mut clauses = vec![clause("paths", Attribute::Path, &[path]), clause("methods", Attribute::Method, &methods)];
    if team.is_multiple_of(7) {
        let header = Attribute::Header("x-tier".to_owned());
        clauses.push(clause("constraints[request.headers[x-tier]]", header, &[exact("gold"), exact("silver")]));
    }
    if team.is_multiple_of(5) {
        clauses.push(clause("ports", Attribute::DestinationPort, &[Matcher::Port(9080), Matcher::Port(9443)]));
    }
    if team.is_multiple_of(3) {
        clauses.push(clause("notPaths", Attribute::Path, &[Matcher::Suffix("/secret".to_owned())]));
    }
    Rule { index: u32::try_from(index).unwrap(), clauses }
}

fn binding(team: usize) -> Binding {
    let account = |n: usize| exact(format!("cluster.local/ns/team-{}/sa/account-{}", n % 100, n % 200));
    let names = clause("names", Attribute::SourcePrincipal, &[account(team), account(team + 1)]);
    let clauses = match team % 20 {
        19 => vec![clause("names", Attribute::SourcePrincipal, &[Matcher::Present])],
        9 => vec![clause("namespaces", Attribute::SourceNamespace, &[exact(format!("team-{}", team % 100))])],
        _ => vec![names],
    };
    let subjects = vec![Subject { index: 0, clauses }];
    Binding { namespace: "shop".to_owned(), name: format!("team-{team}"), shadow: false, subjects }
}

fn policy(rules: usize) -> WorkloadPolicy {
    let role = |team| Role {
        namespace: "shop".to_owned(),
        name: format!("team-{team}"),
        rules: (0..RULES_OF_A_ROLE).map(|index| rule(team, index)).collect(),
        bindings: vec![binding(team)],
    };
    let roles = (0..rules.div_ceil(RULES_OF_A_ROLE)).map(role).collect();
    WorkloadPolicy { activation: Activation::On, roles }
}

struct Call {
    source: SpiffeId,
    path: String,
    method: &'static str,
    headers: Vec<(&'static str, &'static str)>,
}

fn calls(rules: usize) -> Vec<Call> {
    let teams = rules.div_ceil(RULES_OF_A_ROLE);
    let call = |n: usize| {
        let team = n * 7919 % teams;
        // One in three misses: another caller, another path, another method.
        let (caller, resource, method) = match n % 9 {
            0 => (team + 50, 0, "GET"),
            3 => (team, 8, "GET"),
            6 => (team, 0, "DELETE"),
            _ => (team, 2 * (n % 2), "GET"),
        };
        Call {
            source: format!("spiffe://cluster.local/ns/team-{}/sa/account-{}", caller % 100, caller % 200)
                .parse()
                .unwrap(),
            path: format!("/v1/team-{team}/resource-{resource}/items/{n}"),
            method,
            headers: vec![("accept", "*/*"), ("user-agent", "bench"), ("x-tier", "gold"), ("x-request-id", "1")],
        }
    };
    (0..512).map(call).collect()
}

fn decide(c: &mut Criterion) {
    let ours = "cluster.local".parse().unwrap();
    let mut group = c.benchmark_group("decide");
    for rules in [10, 1_000, 10_000] {
        let compiled = Compiled::new(policy(rules));
        let calls = calls(rules);
        let host = Host::normalize("catalog.shop").unwrap();
        let paths: Vec<_> =
            calls.iter().map(|call| NormalizedPath::parse(&call.path, EncodedSlash::Refuse).unwrap()).collect();
        let requests: Vec<Request<'_>> = calls
            .iter()
            .zip(&paths)
            .map(|(call, path)| Request {
                source: Some(&call.source),
                trust_domain: &ours,
                source_ip: [10, 0, 0, 7].into(),
                destination: ([10, 0, 0, 9], 9080).into(),
                sni: None,
                protocol: Protocol::Http(Http { host: Some(&host), path, method: call.method, headers: &call.headers }),
            })
            .collect();
        let allowed = requests.iter().filter(|request| compiled.decide(request).is_allowed()).count();
        assert!(allowed * 10 > requests.len() * 5 && allowed * 10 < requests.len() * 8, "{allowed} allowed");
        let mut next = requests.iter().cycle();
        group.bench_function(BenchmarkId::from_parameter(rules), |b| {
            b.iter(|| next.next().map(|request| black_box(compiled.decide(black_box(request)))));
        });
    }
    group.finish();

    let mut group = c.benchmark_group("compile");
    group.sample_size(10);
    let many = policy(10_000);
    group.bench_function(BenchmarkId::from_parameter(10_000), |b| b.iter(|| Compiled::new(black_box(many.clone()))));
    group.finish();

    let compiled = Compiled::new(policy(10_000));
    let path = NormalizedPath::parse("/nowhere", EncodedSlash::Refuse).unwrap();
    let headers = alcazar_policy::NoHeaders;
    let request = Request {
        source: None,
        trust_domain: &ours,
        source_ip: [10, 0, 0, 7].into(),
        destination: ([10, 0, 0, 9], 9080).into(),
        sni: None,
        protocol: Protocol::Http(Http { host: None, path: &path, method: "GET", headers: &headers }),
    };
    let mut group = c.benchmark_group("explain_denial");
    group.sample_size(10);
    group.bench_function(BenchmarkId::from_parameter(10_000), |b| b.iter(|| compiled.explain(black_box(&request))));
    group.finish();
}

criterion_group!(benches, decide);
criterion_main!(benches);
