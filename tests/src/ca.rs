use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use alcazar_api::ca::v1::{
    self, administration_client::AdministrationClient, attest_node_request::Evidence,
    certificate_authority_client::CertificateAuthorityClient, issue_jwt_svid_result, issue_workload_result::Outcome,
    jwt_client::JwtClient, ledger_client::LedgerClient, rotation_client::RotationClient,
};
use alcazar_identity::{
    CertificateDer, Credentials, Fingerprint, SpiffeId, SvidKey, TrustBundles, TrustDomain, X509Svid,
};
use alcazar_mtls::{Connector, Expected, grpc};
use alcazar_service::clock;
use anyhow::{Context, Result, ensure};
use rcgen::{CertificateParams, KeyPair};
use tokio::sync::watch;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::{Answer, Curl, Process, SmallDisk, binary, free_port, until_ok};

/// A CA as a process of its own, as its operator and its nodes know it.
#[derive(Debug)]
pub struct CaProcess {
    process: Process,
    home: PathBuf,
    /// Where its data folder is for others.
    data: PathBuf,
    port: u16,
    admin: u16,
}

impl CaProcess {
    /// Starts one with its files in `home`; `more` is added to its configuration.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(home: &Path, more: &str) -> Result<Self> {
        let data = home.join("data");
        let (port, admin) = Self::configure(home, &data, more)?;
        let process = Self::run(home, Command::new(binary("alcazar-ca")?))?;
        Ok(Self { process, home: home.to_owned(), data, port, admin })
    }

    /// Starts one with its data on this disk.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_on(disk: &SmallDisk, home: &Path, more: &str) -> Result<Self> {
        let (port, admin) = Self::configure(home, &disk.path().join("data"), more)?;
        let process = Self::run(home, disk.command(&binary("alcazar-ca")?))?;
        Ok(Self { process, home: home.to_owned(), data: disk.seen().join("data"), port, admin })
    }

    /// Starts it again where it was, after it ended.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_again(&mut self) -> Result<()> {
        self.process = Self::run(&self.home, Command::new(binary("alcazar-ca")?))?;
        Ok(())
    }

    /// Starts it again on the disk where it was, after it ended.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_again_on(&mut self, disk: &SmallDisk) -> Result<()> {
        self.process = Self::run(&self.home, disk.command(&binary("alcazar-ca")?))?;
        Ok(())
    }

    fn configure(home: &Path, data: &Path, more: &str) -> Result<(u16, u16)> {
        let (port, admin) = (free_port()?, free_port()?);
        let text = format!("dataDir: {}\nlisten: 127.0.0.1:{port}\nadmin: 127.0.0.1:{admin}\n{more}", data.display());
        fs::write(home.join("ca.yaml"), text)?;
        Ok((port, admin))
    }

    fn run(home: &Path, mut command: Command) -> Result<Process> {
        command.arg("--config").arg(home.join("ca.yaml"));
        Process::start(command, &home.join("ca.log"))
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its data folder.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// What it says of its readiness.
    ///
    /// # Errors
    /// When curl cannot be started.
    pub fn readiness(&self) -> Result<Answer> {
        self.page("/readyz")
    }

    /// Where nodes reach it, on the loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What is at a path of its administration address.
    ///
    /// # Errors
    /// When curl cannot be started.
    pub fn page(&self, path: &str) -> Result<Answer> {
        Curl::default().get(&format!("http://127.0.0.1:{}{path}", self.admin))
    }

    /// Waits until it is ready.
    ///
    /// # Errors
    /// When it is not by the deadline; the error has its log.
    pub fn wait_ready(&self) -> Result<()> {
        self.process.wait_ready(self.admin)
    }

    /// The operator's socket.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn operator(&self) -> Result<Channel> {
        let socket = self.data.join("admin.sock");
        Ok(Endpoint::from_shared(format!("unix:{}", socket.display()))?.connect().await?)
    }

    /// Its root.
    ///
    /// # Errors
    /// When it does not say.
    pub async fn root(&self) -> Result<Fingerprint> {
        let mut operator = AdministrationClient::new(self.operator().await?);
        let hierarchy = operator.get_hierarchy(v1::GetHierarchyRequest {}).await?.into_inner();
        Ok(Fingerprint::of(&hierarchy.root.context("no root")?.certificate))
    }

    /// A join token for a node, as an operator makes it, also for one of Kubernetes.
    ///
    /// # Errors
    /// As the CA says.
    pub async fn token(&self, node: &str) -> Result<String, Status> {
        let node_id = node_id(node).map_err(local)?.to_string();
        let mut operator = AdministrationClient::new(self.operator().await.map_err(away)?);
        let made =
            operator.create_join_token(v1::CreateJoinTokenRequest { node_id, ttl: 0, kubernetes_node: true }).await?;
        Ok(made.into_inner().token)
    }

    /// Registers the workload `shop.<name>` for a node.
    ///
    /// # Errors
    /// As the CA says.
    pub async fn register(&self, name: &str, node: &str) -> Result<(), Status> {
        self.register_as(name, node, &format!("socket:shop.{name}"), Duration::ZERO).await
    }

    /// The same, known by this selector, with certificates of this life; zero: of the CA's default.
    ///
    /// # Errors
    /// As the CA says.
    pub async fn register_as(&self, name: &str, node: &str, selector: &str, ttl: Duration) -> Result<(), Status> {
        let registration = v1::Registration {
            id: format!("shop.{name}"),
            node_id: node_id(node).map_err(local)?.to_string(),
            spiffe_id: format!("spiffe://{TRUST_DOMAIN}/ns/shop/sa/{name}"),
            selectors: vec![selector.to_owned()],
            ttl: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX),
            ..v1::Registration::default()
        };
        let mut operator = AdministrationClient::new(self.operator().await.map_err(away)?);
        operator.put_registration(registration).await.map(drop)
    }

    /// The serial numbers of everything in its ledger.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn ledger(&self) -> Result<BTreeSet<String>> {
        let mut client = LedgerClient::new(self.operator().await?);
        let (mut serials, mut before) = (BTreeSet::new(), None);
        loop {
            let request = v1::ListEntriesRequest { limit: 1000, before, ..v1::ListEntriesRequest::default() };
            let page = client.list_entries(request).await?.into_inner();
            serials.extend(page.entries.into_iter().map(|entry| entry.serial));
            match page.next {
                Some(next) => before = Some(next),
                None => return Ok(serials),
            }
        }
    }

    /// Joins as a node by a token, as one that knows the root.
    ///
    /// # Errors
    /// As the CA says.
    pub async fn attest(&self, root: Fingerprint, token: &str, key: &KeyPair) -> Result<Arc<Credentials>, Status> {
        let connector = Connector::pinned(trust_domain().map_err(local)?, root, grpc::ALPN, clock::system());
        let channel = self.reach(connector).map_err(local)?;
        let csr = csr(key).map_err(local)?;
        let request =
            v1::AttestNodeRequest { evidence: Some(Evidence::JoinToken(token.to_owned())), csr, ..Default::default() };
        let mut client = CertificateAuthorityClient::new(channel);
        let issued = client.attest_node(request).await?.into_inner();
        credentials(issued, key).map(Arc::new).map_err(local)
    }

    /// Renews a node's certificate.
    ///
    /// # Errors
    /// As the CA says.
    pub async fn renew(&self, node: &Arc<Credentials>, key: &KeyPair) -> Result<Arc<Credentials>, Status> {
        let mut client = CertificateAuthorityClient::new(self.channel(node).map_err(local)?);
        let csr = csr(key).map_err(local)?;
        let issued = client.renew_node(v1::RenewNodeRequest { csr }).await?.into_inner();
        credentials(issued, key).map(Arc::new).map_err(local)
    }

    /// Asks, as a node, for the certificate of the workload `shop.<name>`; its serial number.
    ///
    /// # Errors
    /// As the CA says.
    pub async fn issue(&self, node: &Arc<Credentials>, name: &str) -> Result<String, Status> {
        let key = KeyPair::generate().map_err(local)?;
        let registration_id = format!("shop.{name}");
        let item =
            v1::IssueWorkload { registration_id, csr: csr(&key).map_err(local)?, ..v1::IssueWorkload::default() };
        let mut client = CertificateAuthorityClient::new(self.channel(node).map_err(local)?);
        let reply = client.issue_workloads(v1::IssueWorkloadsRequest { items: vec![item] }).await?.into_inner();
        match reply.results.into_iter().next().and_then(|result| result.outcome) {
            Some(Outcome::Svid(issued)) => {
                credentials(issued, &key).map(|held| held.svid().serial().to_owned()).map_err(local)
            }
            Some(Outcome::Refusal(refusal)) => Err(status(refusal)),
            None => Err(Status::internal("no outcome")),
        }
    }

    /// Asks, as a node, for a JWT-SVID of the workload `shop.<name>` for this audience.
    ///
    /// # Errors
    /// As the CA says.
    pub async fn issue_jwt(
        &self,
        node: &Arc<Credentials>,
        name: &str,
        audience: &str,
    ) -> Result<v1::IssuedJwtSvid, Status> {
        let (registration_id, audience) = (format!("shop.{name}"), vec![audience.to_owned()]);
        let item = v1::IssueJwtSvid { registration_id, audience, ..v1::IssueJwtSvid::default() };
        let mut client = JwtClient::new(self.channel(node).map_err(local)?);
        let reply = client.issue_jwt_svids(v1::IssueJwtSvidsRequest { items: vec![item] }).await?.into_inner();
        match reply.results.into_iter().next().and_then(|result| result.outcome) {
            Some(issue_jwt_svid_result::Outcome::Svid(issued)) => Ok(issued),
            Some(issue_jwt_svid_result::Outcome::Refusal(refusal)) => Err(status(refusal)),
            None => Err(Status::internal("no outcome")),
        }
    }

    /// A channel to it with the certificate of a node.
    ///
    /// # Errors
    /// Never: its address can be read.
    pub fn channel(&self, node: &Arc<Credentials>) -> Result<Channel> {
        self.reach(Connector::new(watch::channel(node.clone()).1, grpc::ALPN, clock::system()))
    }

    /// Where agents find it.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Exchanges its root or its intermediate, from the first step to the last.
    ///
    /// # Errors
    /// When it is not done by the deadline; the error says whom it waits for.
    pub async fn rotate(&self, kind: v1::RotationKind, deadline: Duration) -> Result<()> {
        let mut operator = RotationClient::new(self.operator().await?);
        operator.start_rotation(v1::StartRotationRequest { kind: kind.into(), ..Default::default() }).await?;
        until_ok("the end of the rotation", deadline, async || {
            match operator.get_rotation(v1::GetRotationRequest {}).await.map(tonic::Response::into_inner) {
                Ok(status) if status.phase == "done" => Ok(()),
                other => Err(other),
            }
        })
        .await
    }

    fn reach(&self, connector: Connector) -> Result<Channel> {
        let target: grpc::Target = self.address().parse()?;
        let ca = SpiffeId::workload(&trust_domain()?, "alcazar-system", "alcazar-ca")?;
        Ok(grpc::channel(target, connector, Expected::id(ca)))
    }
}

/// What was issued for a key. Workloads' results have their bundles beside them.
fn credentials(issued: v1::IssuedSvid, key: &KeyPair) -> Result<Credentials> {
    let chain: Vec<_> = issued.chain.into_iter().map(CertificateDer::from).collect();
    ensure!(chain.len() == 2, "a leaf and an intermediate");
    let svid = X509Svid::new(chain, SvidKey::from_pkcs8(key.serialize_der())?)?;
    let bundles = match issued.bundles {
        Some(bundles) => TrustBundles::try_from(bundles)?,
        None => TrustBundles::default(),
    };
    Ok(Credentials::new(svid, bundles))
}

fn csr(key: &KeyPair) -> Result<Vec<u8>> {
    Ok(CertificateParams::default().serialize_request(key)?.der().to_vec())
}

fn trust_domain() -> Result<TrustDomain> {
    Ok(TRUST_DOMAIN.parse()?)
}

fn node_id(name: &str) -> Result<SpiffeId> {
    Ok(SpiffeId::node(&trust_domain()?, "local", name)?)
}

/// What one item of many was told, as if it had been alone.
fn status(refusal: v1::Refusal) -> Status {
    let mut status = Status::new(refusal.code.into(), refusal.message);
    if refusal.retry_after_ms > 0 {
        status.metadata_mut().insert("retry-after-ms", refusal.retry_after_ms.into());
    }
    status
}

/// Nobody's fault but this program's.
fn local(error: impl std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}

fn away(error: impl std::fmt::Display) -> Status {
    Status::unknown(format!("the operator's socket: {error}"))
}

const TRUST_DOMAIN: &str = "cluster.local";
