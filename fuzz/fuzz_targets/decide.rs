//! Whatever a request says, deciding and explaining hold together: a policy with every kind of clause.
#![no_main]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use alcazar_policy::{
    Compiled, EncodedSlash, Host, Http, NormalizedPath, Policy, Protocol, Request, Settings, Verdict, Workload,
};
use alcazar_yaml::SourceFile;
use libfuzzer_sys::fuzz_target;

static COMPILED: LazyLock<Compiled> = LazyLock::new(|| {
    let file = SourceFile::new("shop.yaml", include_str!("../../crates/policy/tests/policy/policies/shop.yaml"));
    let policy = Policy::from_files(&[file], &Settings::default()).expect("the sample is right");
    let labels = BTreeMap::from([("version".to_owned(), "v2".to_owned())]);
    let services =
        ["catalog", "reviews", "db"].map(|service| format!("{service}.shop.svc.cluster.local"));
    Compiled::new(policy.for_workload(&Workload {
        name: "all-1",
        namespace: "shop",
        service_account: "all",
        labels: &labels,
        services: &services,
        trust_domain: "cluster.local",
        trust_domain_aliases: &[],
    }))
});

/// Principal, method, path, host, address, port, headers: whatever the fuzzer makes of them.
type Parts = (String, String, String, String, [u8; 16], u16, Vec<(String, String)>);

fuzz_target!(|parts: Parts| {
    let (source, host, path, method, address, port, headers) = parts;
    let source = format!("spiffe://{source}").parse().ok();
    let host = Host::normalize(&host).ok();
    let path = NormalizedPath::parse(&path, EncodedSlash::Refuse).ok();
    let protocol = match &path {
        Some(path) => Protocol::Http(Http { host: host.as_ref(), path, method: &method, headers: &headers }),
        None => Protocol::Tcp,
    };
    let request = Request {
        source: source.as_ref(),
        trust_domain: &"cluster.local".parse().unwrap(),
        source_ip: address.into(),
        destination: (address, port).into(),
        sni: Some(&method),
        protocol,
    };
    let decision = COMPILED.decide(&request);
    let explanation = COMPILED.explain(&request);
    assert_eq!(decision.is_allowed(), explanation.verdict == Verdict::Allow);
    assert!(!explanation.to_string().contains('\n'));
});
