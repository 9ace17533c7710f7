//! Who may import whom. The rules are those of ARCHITECTURE.md; a new arrow is a decision, made here.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::process::{cargo, output};

/// Fails when a crate of the workspace imports one that it may not.
pub(crate) fn check() -> anyhow::Result<()> {
    let metadata = output(&mut cargo(&["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("cannot read the output of cargo metadata")?;
    let wrong = violations(&imports(&metadata));
    ensure!(wrong.is_empty(), "{}\nsee \"Who may import whom\" in ARCHITECTURE.md", wrong.join("\n"));
    Ok(())
}

/// What a crate imports: every dependency for its code, and the workspace's crates for its tests too.
type Imports = BTreeMap<String, Vec<String>>;

const SHARED: &[&str] = &[
    "alcazar-api",
    "alcazar-identity",
    "alcazar-jwt",
    "alcazar-ledger",
    "alcazar-mtls",
    "alcazar-policy",
    "alcazar-service",
    "alcazar-store",
    "alcazar-yaml",
];

/// For each crate of the workspace, the crates of the workspace that it may import; `None`: all of them.
fn allowed(crate_name: &str) -> Option<&'static [&'static str]> {
    match crate_name {
        "alcazar" | "alcazar-testkit" => None,
        "alcazar-ca" | "alcazar-node-agent" | "alcazar-proxy" | "alcazar-control" => Some(SHARED),
        "alcazar-policy" => Some(&["alcazar-identity", "alcazar-yaml"]),
        "alcazar-mtls" => Some(&["alcazar-identity"]),
        "alcazar-api" => Some(&["alcazar-identity", "alcazar-jwt", "alcazar-policy"]),
        "alcazar-service" => Some(&["alcazar-yaml"]),
        "xtask-load" => Some(&["alcazar-api", "alcazar-identity", "alcazar-jwt", "alcazar-mtls", "alcazar-service"]),
        // identity, jwt, ledger, yaml, store, xtask, and every crate that is not drawn yet.
        _ => Some(&[]),
    }
}

/// Crates that decide and parse: no runtime, no TLS, no wire format, no cluster.
const PURE: &[&str] = &["alcazar-identity", "alcazar-jwt", "alcazar-policy", "alcazar-yaml"];
const IMPURE: &[&str] = &["tokio", "rustls", "prost", "tonic", "kube", "hyper", "sled"];

/// Crates from outside that have one home.
const HOMES: &[(&str, &str)] = &[
    ("rustls", "alcazar-mtls"),
    ("tokio-rustls", "alcazar-mtls"),
    ("rustls-webpki", "alcazar-mtls"),
    ("cryptoki", "alcazar-ca"),
    ("envoy-types", "alcazar-api"),
    ("pkcs8", "alcazar-ca"),
    ("prometheus-client", "alcazar-service"),
    ("sled", "alcazar-store"),
    ("serde-saphyr", "alcazar-yaml"),
];

fn violations(imports: &Imports) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, imported) in imports {
        for dependency in imported {
            let ours = imports.contains_key(dependency);
            if ours && allowed(name).is_some_and(|allowed| !allowed.contains(&dependency.as_str())) {
                wrong.push(format!("{name} may not import {dependency}"));
            }
            if PURE.contains(&name.as_str()) && IMPURE.contains(&dependency.as_str()) {
                wrong.push(format!("{name} is pure and may not import {dependency}"));
            }
            if let Some((_, home)) = HOMES.iter().find(|(outside, home)| outside == dependency && home != name) {
                wrong.push(format!("{name} may not import {dependency}: its home is {home}"));
            }
        }
    }
    wrong
}

fn imports(metadata: &Value) -> Imports {
    let packages = || metadata.get("packages").and_then(Value::as_array).into_iter().flatten();
    let names: Vec<&str> = packages().filter_map(|package| package.get("name")?.as_str()).collect();
    let imported = |package: &Value| {
        let dependencies = package.get("dependencies").and_then(Value::as_array).into_iter().flatten();
        let counted = dependencies.filter_map(|dependency| {
            let name = dependency.get("name")?.as_str()?;
            let for_tests = dependency.get("kind").and_then(Value::as_str) == Some("dev");
            (!for_tests || names.contains(&name)).then(|| name.to_owned())
        });
        counted.collect()
    };
    packages().filter_map(|package| Some((package.get("name")?.as_str()?.to_owned(), imported(package)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_keeps_to_its_arrows() {
        check().unwrap();
    }

    #[test]
    fn an_arrow_the_other_way_is_found() {
        let imports: Imports = [
            ("alcazar-identity", vec!["alcazar-policy", "tokio"]),
            ("alcazar-policy", vec!["alcazar-identity"]),
            ("alcazar-ca", vec!["alcazar-proxy", "alcazar-store", "rustls"]),
            ("alcazar-proxy", vec![]),
            ("alcazar-store", vec!["sled"]),
            ("alcazar", vec!["alcazar-ca", "alcazar-proxy"]),
        ]
        .into_iter()
        .map(|(name, imported)| (name.to_owned(), imported.into_iter().map(str::to_owned).collect()))
        .collect();
        assert_eq!(
            violations(&imports),
            [
                "alcazar-ca may not import alcazar-proxy",
                "alcazar-ca may not import rustls: its home is alcazar-mtls",
                "alcazar-identity may not import alcazar-policy",
                "alcazar-identity is pure and may not import tokio",
            ]
        );
    }
}
