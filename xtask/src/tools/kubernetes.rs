//! kube-apiserver, built from the published Go modules: nobody publishes the binary where every machine may fetch it.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};

use super::{cache, works};
use crate::process::run as run_command;

/// The minor version and patch that is tested against.
const KUBERNETES: &str = "34.4";

/// The modules that Kubernetes publishes one by one, all of one version.
const STAGING: &[&str] = &[
    "api",
    "apiextensions-apiserver",
    "apimachinery",
    "apiserver",
    "cli-runtime",
    "client-go",
    "cloud-provider",
    "cluster-bootstrap",
    "code-generator",
    "component-base",
    "component-helpers",
    "controller-manager",
    "cri-api",
    "cri-client",
    "csi-translation-lib",
    "dynamic-resource-allocation",
    "endpointslice",
    "externaljwt",
    "kms",
    "kube-aggregator",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
    "metrics",
    "mount-utils",
    "pod-security-admission",
    "sample-apiserver",
    "sample-cli-plugin",
    "sample-controller",
];

const MAIN: &str = r#"package main

import (
	"os"

	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() {
	os.Exit(cli.Run(app.NewAPIServerCommand()))
}
"#;

/// The binary, built at the first call. That takes minutes and 2 GB in Go's own caches.
pub(crate) fn apiserver() -> anyhow::Result<PathBuf> {
    let folder = cache()?.join(format!("kubernetes-1.{KUBERNETES}"));
    let binary = folder.join("kube-apiserver");
    if binary.is_file() {
        return Ok(binary);
    }
    ensure!(
        works(&["go", "version"]),
        "Go is missing, which kube-apiserver is built with: install 1.24 or newer from https://go.dev/dl (Debian's own is older)"
    );
    println!("kube-apiserver 1.{KUBERNETES}: is built once, which takes some minutes");
    // Built beside its place and renamed, so that a build that was cut off leaves nothing half there.
    let fresh = folder.with_extension("new");
    if fresh.exists() {
        std::fs::remove_dir_all(&fresh)?;
    }
    std::fs::create_dir_all(&fresh).with_context(|| format!("cannot make {}", fresh.display()))?;
    std::fs::write(fresh.join("go.mod"), go_mod())?;
    std::fs::write(fresh.join("main.go"), MAIN)?;
    let link = format!("-s -w -X k8s.io/component-base/version.gitVersion=v1.{KUBERNETES}");
    run_command(Command::new("go").current_dir(&fresh).env("CGO_ENABLED", "0").args([
        "build",
        "-mod=mod",
        "-trimpath",
        "-ldflags",
        &link,
        "-o",
        "kube-apiserver",
        ".",
    ]))?;
    run_command(Command::new(fresh.join("kube-apiserver")).arg("--version"))?;
    std::fs::rename(&fresh, &folder)?;
    Ok(binary)
}

/// `k8s.io/kubernetes` asks for its own parts at version 0.0.0, from folders that the published module lacks.
fn go_mod() -> String {
    let mut text = format!(
        "module kube-apiserver\n\ngo 1.24.0\n\nrequire (\n\tk8s.io/component-base v0.{KUBERNETES}\n\tk8s.io/kubernetes v1.{KUBERNETES}\n)\n\nreplace (\n"
    );
    for module in STAGING {
        // Writing to a string does not fail.
        let _ok = writeln!(text, "\tk8s.io/{module} => k8s.io/{module} v0.{KUBERNETES}");
    }
    text + ")\n"
}
