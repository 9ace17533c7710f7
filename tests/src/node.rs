use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{
    ControlGroups, Kubernetes, Process, binary, components::installed, free_port, image, passed_over, tool, until,
};

/// Each has a name of its own in its container.
static EXECS: AtomicU64 = AtomicU64::new(0);

/// A kubelet takes its time on a loaded machine.
const START: Duration = Duration::from_secs(120);

/// A real node of a cluster: containerd and a kubelet in namespaces of mounts and processes of their own, below a control group of their
/// own, with the controllers that daemons need. There is no network of pods: theirs is the host's. All of it ends when it is dropped.
#[derive(Debug)]
pub struct Node {
    name: String,
    controllers: Vec<Process>,
    kubelet: Option<Process>,
    containerd: Process,
    groups: ControlGroups,
    folder: TempDir,
    kubeconfig: PathBuf,
    port: u16,
    health: u16,
    programs: PathBuf,
}

impl Node {
    /// Starts it; `None` when something that it needs is not here.
    ///
    /// # Errors
    /// When it does not start, or something is missing in CI.
    pub fn start(kubernetes: &Kubernetes, name: &str) -> Result<Option<Self>> {
        let Some(kubelet) = tool("kubernetes", "kubelet")? else { return Ok(None) };
        for (program, arguments) in [("containerd", "--version"), ("runc", "--version"), ("ctr", "--version")] {
            if !installed(program, &[arguments]) {
                passed_over("containerd; Debian's packages containerd and runc have it")?;
                return Ok(None);
            }
        }
        let Some(client) = tool("spiffe-client", "spiffe-client")? else { return Ok(None) };
        if !rustix::process::geteuid().is_root() {
            passed_over("to be root, for a node of Kubernetes")?;
            return Ok(None);
        }
        let folder = tempfile::Builder::new().prefix("node").tempdir()?;
        let programs = kubelet.parent().context("a tool in a folder")?.to_owned();
        let (port, groups) = (free_port()?, ControlGroups::make(&format!("alcazar-test-{}", std::process::id()))?);
        let containerd = containerd(folder.path())?;
        let kubeconfig = kubernetes.kubeconfig();
        let mut node = Self {
            name: name.to_owned(),
            controllers: Vec::new(),
            kubelet: None,
            containerd,
            groups,
            folder,
            kubeconfig,
            port,
            health: free_port()?,
            programs,
        };
        until("containerd", START, || node.ctr(&["version"]).is_ok().then_some(()))
            .with_context(|| node.containerd.log())?;
        node.import(&[CLIENT, PAUSE], &[(&client, "/spiffe-client")], &["/spiffe-client", "pause"])?;
        fs::create_dir(node.folder.path().join("static"))?;
        fs::write(node.folder.path().join("kubelet.yaml"), node.kubelet_yaml())?;
        node.start_kubelet()?;
        for (program, arguments) in
            [("kube-controller-manager", "--controllers=daemonset-controller"), ("kube-scheduler", "--v=0")]
        {
            let mut command = Command::new(node.programs.join(program));
            command.arg(format!("--kubeconfig={}", node.kubeconfig.display())).arg(arguments);
            command.args(["--leader-elect=false", "--secure-port=0"]);
            node.controllers.push(Process::start(command, &node.folder.path().join(program))?);
        }
        Ok(Some(node))
    }

    /// Starts the kubelet, at the beginning or after it was ended, and waits until it is well.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_kubelet(&mut self) -> Result<()> {
        let within = self.init()?;
        let folder = self.folder.path();
        let mut command = Command::new("nsenter");
        command.args([format!("--mount=/proc/{within}/ns/mnt"), format!("--pid=/proc/{within}/ns/pid")]);
        command.arg(self.programs.join("kubelet"));
        command.args([
            format!("--config={}", folder.join("kubelet.yaml").display()),
            format!("--kubeconfig={}", self.kubeconfig.display()),
            format!("--hostname-override={}", self.name),
            format!("--root-dir={}", folder.join("kubelet").display()),
            format!("--cert-dir={}", folder.join("pki").display()),
        ]);
        let kubelet = Process::start(command, &folder.join("kubelet.log"))?;
        let url = format!("http://127.0.0.1:{}/healthz", self.health);
        let well = || crate::Curl::default().get(&url).is_ok_and(|answer| answer.code == 200);
        until("the kubelet", START, || well().then_some(())).with_context(|| kubelet.log())?;
        self.kubelet = Some(kubelet);
        Ok(())
    }

    /// Ends the kubelet at once, as a crash would. What runs on the node goes on.
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill_kubelet(&mut self) -> Result<()> {
        let mut nsenter = self.kubelet.take().context("a kubelet that runs")?;
        kill_process(Pid::from_raw(nsenter.child()?).context("a process")?, Signal::KILL)?;
        // It ends with its only child.
        nsenter.wait(crate::DEADLINE).map(drop)
    }

    /// The port of the kubelet, on the loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The certificate that the kubelet made for itself.
    pub fn kubelet_certificate(&self) -> PathBuf {
        self.folder.path().join("pki/kubelet.crt")
    }

    /// What the kubelet is told as its `cgroupRoot`.
    pub fn cgroup_root(&self) -> String {
        format!("/{}", self.groups.name())
    }

    /// Where the kubelet finds static pods.
    pub fn static_pods(&self) -> PathBuf {
        self.folder.path().join("static")
    }

    /// Makes an image of one of our programs, with what it is linked with.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn import_program(&self, tag: &str, program: &str) -> Result<()> {
        let built = binary(program)?;
        // What is for debuggers would be copied many times.
        let stripped = self.folder.path().join(program);
        let status = Command::new("strip").arg("-o").args([&stripped, &built]).status()?;
        ensure!(status.success(), "strip: {status}");
        let libraries = image::libraries(&stripped)?;
        let place = format!("/{program}");
        let mut files = vec![(stripped.as_path(), place.as_str())];
        files.extend(libraries.iter().map(|library| (Path::new(library), library.as_str())));
        self.import(&[tag], &files, &[&place])
    }

    /// Runs a program in a container of a pod, as `kubectl exec` does where there is a kubelet.
    ///
    /// # Errors
    /// When there is no such container.
    pub fn exec(&self, container: &str, arguments: &[&str]) -> Result<Output> {
        let id = container.trim_start_matches("containerd://");
        let exec = format!("exec-{}", EXECS.fetch_add(1, Ordering::Relaxed));
        let mut command = self.client();
        command.args(["tasks", "exec", "--exec-id", &exec, id]).args(arguments);
        Ok(command.output()?)
    }

    /// What a container has said so far in the pods whose names begin like this, and in all restarts of it.
    pub fn said(&self, namespace: &str, pod: &str, container: &str) -> String {
        let beginning = format!("{namespace}_{pod}");
        let folders = fs::read_dir(self.folder.path().join("pods")).into_iter().flatten().flatten();
        let its = folders.filter(|folder| folder.file_name().to_string_lossy().starts_with(&beginning));
        let logs = its.flat_map(|folder| fs::read_dir(folder.path().join(container)).into_iter().flatten().flatten());
        logs.filter_map(|log| fs::read_to_string(log.path()).ok()).collect()
    }

    /// The logs of what the node consists of, for an error.
    pub fn log(&self) -> String {
        self.kubelet.as_ref().map(Process::log).unwrap_or_default()
    }

    fn import(&self, tags: &[&str], files: &[(&Path, &str)], run: &[&str]) -> Result<()> {
        let archive = self.folder.path().join("image.tar");
        image::pack(&archive, tags, files, run)?;
        self.ctr(&["images", "import", &archive.display().to_string()])
    }

    fn client(&self) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.folder.path().join("c.sock")).args(["--namespace", "k8s.io"]);
        command
    }

    fn ctr(&self, arguments: &[&str]) -> Result<()> {
        let output = self.client().args(arguments).output()?;
        ensure!(output.status.success(), "ctr {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// The first process of the node's namespace of processes.
    fn init(&self) -> Result<i32> {
        self.containerd.child()
    }

    fn kubelet_yaml(&self) -> String {
        let folder = self.folder.path().display();
        format!(
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\naddress: 127.0.0.1\nport: {}\nhealthzPort: {}\n\
             authentication: {{anonymous: {{enabled: false}}, webhook: {{enabled: true}}}}\nauthorization: {{mode: Webhook}}\n\
             cgroupDriver: cgroupfs\ncgroupRoot: {}\nfailCgroupV1: false\nfailSwapOn: false\nenforceNodeAllocatable: []\n\
             containerRuntimeEndpoint: unix://{folder}/c.sock\npodLogsDir: {folder}/pods\nstaticPodPath: {folder}/static\n\
             imageGCHighThresholdPercent: 100\nimageGCLowThresholdPercent: 99\n\
             evictionHard: {{memory.available: 1Mi, nodefs.available: 1Mi, imagefs.available: 1Mi, nodefs.inodesFree: '1', imagefs.inodesFree: '1'}}\n",
            self.port,
            self.health,
            self.cgroup_root(),
        )
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The first process of its namespace takes all others with it.
        drop(self.containerd.kill());
    }
}

fn containerd(folder: &Path) -> Result<Process> {
    let at = folder.display();
    let config = format!(
        "version = 2\nroot = \"{at}/root\"\nstate = \"{at}/state\"\ndisabled_plugins = [\"io.containerd.internal.v1.opt\"]\n\
         [grpc]\naddress = \"{at}/c.sock\"\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"{PAUSE}\"\n\
         restrict_oom_score_adj = true\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"{at}/none\"\nconf_dir = \"{at}/none\"\n"
    );
    fs::write(folder.join("containerd.toml"), config)?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "containerd", "--config"]);
    command.arg(folder.join("containerd.toml"));
    Process::start(command, &folder.join("containerd.log"))
}

/// The image of our client on go-spiffe.
const CLIENT: &str = "localhost/spiffe-client:1";
/// The image of what holds a pod's namespaces: the same.
const PAUSE: &str = "localhost/pause:1";
