use std::process::Command;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::components::installed;
use crate::{DEADLINE, Process, free_port, passed_over, until};

/// A real etcd of three members, on this machine alone. They end when it is dropped.
#[derive(Debug)]
pub struct EtcdCluster {
    members: Vec<Process>,
    endpoints: Vec<String>,
    // After the processes that write to it.
    _folder: TempDir,
}

impl EtcdCluster {
    /// Starts it and waits until each member answers; `None` when etcd is not installed.
    ///
    /// # Errors
    /// When it does not start, or is missing in CI.
    pub fn start() -> Result<Option<Self>> {
        if !installed("etcd", &["--version"]) || !installed("etcdctl", &["version"]) {
            passed_over("etcd; Debian's packages etcd-server and etcd-client have it")?;
            return Ok(None);
        }
        let folder = tempfile::tempdir()?;
        let ports = (0..MEMBERS).map(|_| Ok((free_port()?, free_port()?))).collect::<Result<Vec<_>>>()?;
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let all: Vec<_> = ports.iter().enumerate().map(|(n, (_, peers))| format!("m{n}={}", url(*peers))).collect();
        let mut members = Vec::new();
        for (n, (port, peers)) in ports.iter().enumerate() {
            let name = format!("m{n}");
            let mut command = Command::new("etcd");
            command.arg("--data-dir").arg(folder.path().join(&name)).args(["--name", &name, "--log-level", "warn"]);
            command.args(["--listen-client-urls", &url(*port), "--advertise-client-urls", &url(*port)]);
            command.args(["--listen-peer-urls", &url(*peers), "--initial-advertise-peer-urls", &url(*peers)]);
            command.args(["--initial-cluster", &all.join(","), "--initial-cluster-state", "new"]);
            members.push(Process::start(command, &folder.path().join(format!("{name}.log")))?);
        }
        let endpoints = ports.iter().map(|(port, _)| url(*port)).collect();
        let cluster = Self { members, endpoints, _folder: folder };
        cluster.wait_whole()?;
        Ok(Some(cluster))
    }

    /// Where clients reach the members.
    pub fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    /// The members' processes.
    pub fn members(&self) -> &[Process] {
        &self.members
    }

    /// Waits until every member answers as part of a cluster that has a majority.
    ///
    /// # Errors
    /// When one does not by the deadline.
    pub fn wait_whole(&self) -> Result<()> {
        for (endpoint, member) in self.endpoints.iter().zip(&self.members) {
            let healthy = || {
                let mut command = Command::new("etcdctl");
                command.env("ETCDCTL_API", "3").args(["--endpoints", endpoint, "endpoint", "health"]);
                command.output().is_ok_and(|output| output.status.success()).then_some(())
            };
            until("a member of etcd answers", DEADLINE, healthy).with_context(|| member.log())?;
        }
        Ok(())
    }
}

const MEMBERS: usize = 3;
