use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use k8s_openapi::{
    api::{
        authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
        core::v1::{Container, Namespace, Pod, PodSpec, ServiceAccount},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, Config,
    api::PostParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use tempfile::TempDir;

use crate::{Etcd, Process, authority, free_port, tool};

/// A kube-apiserver takes its time on a loaded machine.
const START: Duration = Duration::from_secs(120);
const ADMIN: &str = "the-token-of-the-administrator";

/// A real kube-apiserver on a real etcd: no controllers, and no kubelet but that of a [`crate::Node`]. Without one pods
/// are objects that say which node they are on.
#[derive(Debug)]
pub struct Kubernetes {
    process: Process,
    folder: TempDir,
    etcd: Etcd,
    port: u16,
    binary: PathBuf,
}

impl Kubernetes {
    /// Starts both and waits until the API is ready; `None` when one of them is not here.
    ///
    /// # Errors
    /// When one does not start, or is missing in CI.
    pub async fn start() -> Result<Option<Self>> {
        let Some(binary) = tool("kubernetes", "kube-apiserver")? else { return Ok(None) };
        let Some(etcd) = Etcd::start()? else { return Ok(None) };
        alcazar_mtls::install_default_provider();
        let (folder, port) = (tempfile::tempdir()?, free_port()?);
        authority::write(folder.path(), &["localhost", "127.0.0.1", "kubernetes.default.svc"])?;
        fs::write(folder.path().join("tokens.csv"), format!("{ADMIN},admin,admin,\"system:masters\"\n"))?;
        rsa_key(&folder.path().join("sa.key"))?;
        fs::write(folder.path().join("kubeconfig"), kubeconfig(folder.path(), port, ADMIN))?;
        let process = Process::start(command(&binary, folder.path(), &etcd, port), &folder.path().join("log"))?;
        let kubernetes = Self { process, folder, etcd, port, binary };
        kubernetes.wait().await?;
        Ok(Some(kubernetes))
    }

    /// A kubeconfig of the administrator.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// The root of its certificate, in PEM.
    pub fn root(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Puts objects in, given in YAML, as an administrator does; `kubectl` has to be there.
    ///
    /// # Errors
    /// When the API refuses one.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        let file = self.folder.path().join("apply.yaml");
        fs::write(&file, yaml)?;
        self.kubectl(&["apply", "--filename", &file.display().to_string()]).map(drop)
    }

    /// Runs `kubectl` as the administrator; what it said.
    ///
    /// # Errors
    /// When it fails.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("kubectl");
        let output = command.arg("--kubeconfig").arg(self.kubeconfig()).args(arguments).output()?;
        ensure!(output.status.success(), "kubectl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Writes a kubeconfig for somebody's token.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig_for(&self, name: &str, token: &str) -> Result<PathBuf> {
        let path = self.folder.path().join(format!("kubeconfig-{name}"));
        fs::write(&path, kubeconfig(self.folder.path(), self.port, token))?;
        Ok(path)
    }

    /// A client with the administrator's rights.
    ///
    /// # Errors
    /// When there is none to be made.
    pub async fn client(&self) -> Result<Client> {
        client(&self.kubeconfig()).await
    }

    /// Where the API is.
    pub fn server(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// The API's process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The etcd below it.
    pub fn etcd(&self) -> &Etcd {
        &self.etcd
    }

    /// Ends the API at once (SIGKILL).
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill().map(drop)
    }

    /// Starts the API again, after it ended.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_again(&mut self) -> Result<()> {
        let command = command(&self.binary, self.folder.path(), &self.etcd, self.port);
        self.process = Process::start(command, &self.folder.path().join("log"))?;
        self.wait().await
    }

    /// Makes a namespace with labels.
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn namespace(&self, name: &str, labels: &[(&str, &str)]) -> Result<Namespace> {
        let labels: BTreeMap<_, _> = labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        let metadata = ObjectMeta { name: Some(name.into()), labels: Some(labels), ..ObjectMeta::default() };
        let namespace = Namespace { metadata, ..Namespace::default() };
        Ok(Api::all(self.client().await?).create(&PostParams::default(), &namespace).await?)
    }

    /// Makes a service account.
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn service_account(&self, namespace: &str, name: &str) -> Result<ServiceAccount> {
        let metadata = ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() };
        let account = ServiceAccount { metadata, ..ServiceAccount::default() };
        Ok(Api::namespaced(self.client().await?, namespace).create(&PostParams::default(), &account).await?)
    }

    /// A token of a service account for these audiences, bound to a pod where one is named (with its uid).
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn token(
        &self,
        namespace: &str,
        account: &str,
        audiences: &[&str],
        pod: Option<(&str, &str)>,
    ) -> Result<String> {
        let bound = pod.map(|(name, uid)| BoundObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: Some(name.into()),
            uid: Some(uid.into()),
        });
        let spec = TokenRequestSpec {
            audiences: audiences.iter().map(|audience| (*audience).into()).collect(),
            bound_object_ref: bound,
            // Longer than any test moves its clock.
            expiration_seconds: Some(48 * 3600),
        };
        let request = TokenRequest { spec, ..TokenRequest::default() };
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client().await?, namespace);
        let answer = accounts.create_token_request(account, &PostParams::default(), &request).await?;
        Ok(answer.status.context("a token request without an answer")?.token)
    }

    /// Makes a pod of a service account that is on a node. It is Pending: no kubelet runs it.
    ///
    /// # Errors
    /// When the API refuses.
    pub async fn pod(&self, namespace: &str, name: &str, account: &str, node: &str) -> Result<Pod> {
        let container = Container { name: "main".into(), image: Some("none".into()), ..Container::default() };
        let spec = PodSpec {
            containers: vec![container],
            node_name: Some(node.into()),
            service_account_name: Some(account.into()),
            ..PodSpec::default()
        };
        let metadata = ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() };
        let pod = Pod { metadata, spec: Some(spec), ..Pod::default() };
        Ok(Api::namespaced(self.client().await?, namespace).create(&PostParams::default(), &pod).await?)
    }

    async fn wait(&self) -> Result<()> {
        let client = self.client().await?;
        let start = tokio::time::Instant::now();
        loop {
            let request = http::Request::get("/readyz").body(Vec::new())?;
            let answer = tokio::time::timeout(Duration::from_secs(5), client.request_text(request)).await;
            match answer {
                Ok(Ok(_)) => return Ok(()),
                other => {
                    let late = start.elapsed() > START;
                    ensure!(!late, "kube-apiserver is not ready: {other:?}; its log:\n{}", self.process.log());
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// A client as a kubeconfig says.
async fn client(path: &Path) -> Result<Client> {
    let config = Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

fn command(binary: &Path, folder: &Path, etcd: &Etcd, port: u16) -> Command {
    let file = |flag: &str, name: &str| format!("--{flag}={}", folder.join(name).display());
    let mut command = Command::new(binary);
    command.args([
        format!("--etcd-servers={}", etcd.endpoint()),
        format!("--secure-port={port}"),
        "--bind-address=127.0.0.1".into(),
        "--advertise-address=127.0.0.1".into(),
        "--endpoint-reconciler-type=none".into(),
        "--service-cluster-ip-range=10.96.0.0/24".into(),
        "--authorization-mode=RBAC".into(),
        "--anonymous-auth=false".into(),
        "--allow-privileged=true".into(),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
        "--event-ttl=10m".into(),
        "--profiling=false".into(),
        file("tls-cert-file", "cert.pem"),
        file("tls-private-key-file", "key.pem"),
        file("client-ca-file", "ca.pem"),
        file("cert-dir", "certs"),
        file("token-auth-file", "tokens.csv"),
        file("service-account-key-file", "sa.key"),
        file("service-account-signing-key-file", "sa.key"),
    ]);
    command
}

/// As in clusters: tokens are signed by RSA.
fn rsa_key(path: &Path) -> Result<()> {
    let made = Command::new("openssl").args(["genrsa", "-out"]).arg(path).arg("2048").stderr(Stdio::null()).status()?;
    ensure!(made.success(), "openssl genrsa: {made}");
    Ok(())
}

fn kubeconfig(folder: &Path, port: u16, token: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: test\ncontexts:\n- name: test\n  context: {{cluster: test, user: test}}\n\
         clusters:\n- name: test\n  cluster:\n    server: https://127.0.0.1:{port}\n    certificate-authority: {}\n\
         users:\n- name: test\n  user: {{token: {token}}}\n",
        folder.join("ca.pem").display()
    )
}
