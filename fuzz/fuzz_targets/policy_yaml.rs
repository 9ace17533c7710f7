//! A policy file, whatever it holds, is read or refused with errors that can be shown.
#![no_main]

use std::collections::BTreeMap;

use alcazar_policy::{Compiled, Policy, Settings, Workload};
use alcazar_yaml::{SourceFile, Style, render_all};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let file = SourceFile::new("fuzz.yaml", text);
    let (policy, errors) = Policy::tolerant(&[file], &Settings::default());
    let shown = render_all(&errors, Style::Plain);
    assert_eq!(shown.is_empty(), errors.is_empty());
    let labels = BTreeMap::from([("app".to_owned(), "a".to_owned())]);
    let services = ["a.default.svc.cluster.local".to_owned()];
    let aliases = ["old.local".to_owned()];
    drop(Compiled::new(policy.for_workload(&Workload {
        name: "a-1",
        namespace: "default",
        service_account: "a",
        labels: &labels,
        services: &services,
        trust_domain: "cluster.local",
        trust_domain_aliases: &aliases,
    })));
});
