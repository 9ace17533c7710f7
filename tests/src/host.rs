use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::components::installed;
use crate::{Answer, DEADLINE, Process, passed_over, until};

/// A switch that hosts are plugged into: a network of its own, which nothing leaves. It goes when this is dropped.
#[derive(Debug)]
pub struct Switch {
    holder: Process,
}

/// A machine as far as its network and its `/run` and `/var/lib` go; the rest it shares with this one.
#[derive(Debug)]
pub struct Host {
    holder: Process,
    switch: u32,
    port: String,
    address: Ipv4Addr,
    home: PathBuf,
}

impl Switch {
    /// Sets one up; `None` where this user may have no networks.
    ///
    /// # Errors
    /// When it is not there, or may not be in CI.
    pub fn new(log: &Path) -> Result<Option<Self>> {
        let able = rustix::process::geteuid().is_root()
            && installed("ip", &["-V"])
            && installed("unshare", &["--net", "--mount", "true"]);
        if !able {
            passed_over("root, iproute2 and network namespaces (unshare --net)")?;
            return Ok(None);
        }
        let mut command = Command::new("unshare");
        command.args([
            "--net",
            "sh",
            "-c",
            "ip link add switch type bridge && ip link set switch up && exec sleep infinity",
        ]);
        let switch = Self { holder: Process::start(command, log)? };
        let up = || inside(switch.holder.id(), &["--net"], "ip").args(["link", "show", "switch", "up"]).output();
        until("a switch", DEADLINE, || up().is_ok_and(|output| !output.stdout.is_empty()).then_some(()))
            .with_context(|| switch.holder.log())?;
        Ok(Some(switch))
    }

    /// Plugs a new host in, as `10.77.0.<number>`. What it has in `/var/lib` stays in `home` over its reboots.
    ///
    /// # Errors
    /// When it is not there.
    pub fn host(&self, number: u8, home: &Path) -> Result<Host> {
        let address = Ipv4Addr::new(10, 77, 0, number);
        let port = format!("host{number}");
        fs::create_dir_all(home.join("var-lib"))?;
        let script = "mount -t tmpfs -o mode=0755 alcazar /run && mount --bind \"$0/var-lib\" /var/lib \
                      && touch /run/up && exec sleep infinity";
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "sh", "-c", script]).arg(home);
        let holder = Process::start(command, &home.join("host.log"))?;
        let host = Host { holder, switch: self.holder.id(), port, address, home: home.to_owned() };
        until("a host", DEADLINE, || host.seen(Path::new("/run/up")).exists().then_some(()))
            .with_context(|| host.holder.log())?;
        let (port, there) = (&host.port, host.holder.id());
        host.at_switch(&format!("link add {port} type veth peer name eth0 netns {there}"))?;
        host.at_switch(&format!("link set {port} master switch up"))?;
        for words in [format!("address add {address}/24 dev eth0"), "link set eth0 up".into(), "link set lo up".into()]
        {
            ip(there, &words)?;
        }
        Ok(host)
    }
}

impl Host {
    /// A program that runs there.
    pub fn command(&self, program: &Path) -> Command {
        inside(self.holder.id(), &["--net", "--mount"], program)
    }

    /// Starts it; its log is in the host's home, by this name.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, command: Command, log: &str) -> Result<Process> {
        Process::start(command, &self.home.join(log))
    }

    /// Its network, for a program that is to have it.
    pub fn network(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.holder.id()))
    }

    /// Where the others reach it.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Where a file of it is for everybody else.
    pub fn seen(&self, path: &Path) -> PathBuf {
        let inside = path.strip_prefix("/").unwrap_or(path);
        PathBuf::from(format!("/proc/{}/root", self.holder.id())).join(inside)
    }

    /// Makes a call from there, by the real curl.
    ///
    /// # Errors
    /// When curl cannot be started.
    pub fn curl(&self, arguments: &[&str]) -> Result<Answer> {
        let mut command = self.command(Path::new("curl"));
        command.args(["-sS", "-i", "--max-time", "10", "--noproxy", "", "-w", "\n%{http_code}"]).args(arguments);
        Ok(Answer::of(&command.output().context("cannot start curl")?))
    }

    /// Cuts its cable.
    ///
    /// # Errors
    /// When it cannot be cut.
    pub fn cut(&self) -> Result<()> {
        self.at_switch(&format!("link set {} down", self.port))
    }

    /// Plugs it in again.
    ///
    /// # Errors
    /// When it cannot be.
    pub fn mend(&self) -> Result<()> {
        self.at_switch(&format!("link set {} up", self.port))
    }

    /// Does to `/run` what a reboot does, once the processes have ended.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn empty_run(&self) -> Result<()> {
        for entry in fs::read_dir(self.seen(Path::new("/run")))? {
            let path = entry?.path();
            if path.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
        }
        Ok(())
    }

    fn at_switch(&self, words: &str) -> Result<()> {
        ip(self.switch, words)
    }
}

fn ip(process: u32, words: &str) -> Result<()> {
    let output = inside(process, &["--net"], "ip").args(words.split(' ')).output()?;
    ensure!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn inside(process: u32, spaces: &[&str], program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    command.args(spaces).arg("--target").arg(process.to_string()).arg("--").arg(program);
    command
}
