//! The parts of Kubernetes, built from the published Go modules: nobody publishes the binaries where every machine may fetch them.

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

/// What a cluster and a node of it consist of, and how each is made, in the package of its own under `cmd`.
const PROGRAMS: [(&str, &str); 4] = [
    ("kube-apiserver", "app.NewAPIServerCommand()"),
    ("kube-controller-manager", "app.NewControllerManagerCommand()"),
    ("kube-scheduler", "app.NewSchedulerCommand()"),
    ("kubelet", "app.NewKubeletCommand(context.Background())"),
];

/// The folder of the binaries; those that are missing are built. That takes minutes and 3 GB in Go's own caches.
pub(crate) fn programs() -> anyhow::Result<PathBuf> {
    let folder = cache()?.join(format!("kubernetes-1.{KUBERNETES}"));
    let missing: Vec<_> = PROGRAMS.iter().filter(|(name, _)| !folder.join(name).is_file()).collect();
    if missing.is_empty() {
        return Ok(folder);
    }
    ensure!(
        works(&["go", "version"]),
        "Go is missing, which Kubernetes is built with: install 1.24 or newer from https://go.dev/dl (Debian's own is older)"
    );
    let names: Vec<_> = missing.iter().map(|(name, _)| *name).collect();
    println!("Kubernetes 1.{KUBERNETES}: {} built once, which takes some minutes", names.join(", "));
    // Built beside its place, and each renamed when it is whole: a build that was cut off leaves nothing half there.
    let fresh = folder.with_extension("new");
    if fresh.exists() {
        std::fs::remove_dir_all(&fresh)?;
    }
    std::fs::create_dir_all(fresh.join("bin")).with_context(|| format!("cannot make {}", fresh.display()))?;
    std::fs::write(fresh.join("go.mod"), go_mod())?;
    for (name, command) in &missing {
        std::fs::create_dir(fresh.join(name))?;
        std::fs::write(fresh.join(name).join("main.go"), main(name, command))?;
    }
    let link = format!("-s -w -X k8s.io/component-base/version.gitVersion=v1.{KUBERNETES}");
    let mut build = Command::new("go");
    build.current_dir(&fresh).env("CGO_ENABLED", "0");
    build.args(["build", "-mod=mod", "-trimpath", "-ldflags", &link, "-o", "bin/", "./..."]);
    run_command(&mut build)?;
    std::fs::create_dir_all(&folder)?;
    for name in names {
        let built = fresh.join("bin").join(name);
        run_command(Command::new(&built).arg("--version"))?;
        std::fs::rename(built, folder.join(name))?;
    }
    std::fs::remove_dir_all(&fresh)?;
    Ok(folder)
}

fn main(name: &str, command: &str) -> String {
    let context = if command.contains("context.") { "\t\"context\"\n" } else { "" };
    format!(
        "package main\n\nimport (\n{context}\t\"os\"\n\n\t\"k8s.io/component-base/cli\"\n\t\"k8s.io/kubernetes/cmd/{name}/app\"\n)\n\n\
         func main() {{\n\tos.Exit(cli.Run({command}))\n}}\n"
    )
}

/// `k8s.io/kubernetes` asks for its own parts at version 0.0.0, from folders that the published module lacks.
fn go_mod() -> String {
    let mut text = format!(
        "module kubernetes-programs\n\ngo 1.24.0\n\nrequire (\n\tk8s.io/component-base v0.{KUBERNETES}\n\tk8s.io/kubernetes v1.{KUBERNETES}\n)\n\nreplace (\n"
    );
    for module in STAGING {
        // Writing to a string does not fail.
        let _ok = writeln!(text, "\tk8s.io/{module} => k8s.io/{module} v0.{KUBERNETES}");
    }
    text + ")\n"
}
