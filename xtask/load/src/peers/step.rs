//! step-ca: `POST /1.0/sign` over HTTPS, with a one-time token for each certificate.
//!
//! Its folder holds what it starts from: a root and an intermediate of P-256, and a configuration with a JWK provisioner, whose
//! key the clients have.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use alcazar_jwt::{Algorithm, Jwk, PublicKey, SignJwt, fixed_of_der};
use alcazar_mtls::web::WebClient;
use alcazar_service::clock;
use anyhow::{Context, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SigningKey,
    date_time_ymd,
};
use serde_json::json;
use tokio::{net::TcpStream, task::JoinSet};

use crate::{
    Crowd,
    load::{Call, Client, Counts, pick},
    setup::KEYS,
};

/// Makes the hierarchy, the provisioner and the configuration.
pub(crate) fn prepare(folder: &Path, address: SocketAddr) -> anyhow::Result<()> {
    let authority = |name: &str, below: u8| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2120, 1, 1));
        params
    };
    let (root_key, key, provisioner) = (KeyPair::generate()?, KeyPair::generate()?, KeyPair::generate()?);
    let root = authority("root", 1).self_signed(&root_key)?;
    let issuer = Issuer::new(authority("root", 1), root_key);
    let intermediate = authority("intermediate", 0).signed_by(&key, &issuer)?;
    let write = |name: &str, text: &str| fs::write(folder.join(name), text).context(name.to_owned());
    write("root.crt", &root.pem())?;
    write("intermediate.crt", &intermediate.pem())?;
    write("intermediate.key", &key.serialize_pem())?;
    write(PROVISIONER, &provisioner.serialize_pem())?;
    let path = |name: &str| folder.join(name).display().to_string();
    let public = PublicKey::from_spki_der(&provisioner.subject_public_key_info())?;
    let jwk = Jwk::new(public.thumbprint(), public).with_usage("sig").with_algorithm(Algorithm::Es256);
    let provisioner = json!({ "type": "JWK", "name": ISSUER, "key": jwk.to_json() });
    let config = json!({
        "root": path("root.crt"),
        "crt": path("intermediate.crt"),
        "key": path("intermediate.key"),
        "address": address.to_string(),
        "dnsNames": [address.ip().to_string()],
        "logger": { "format": "text" },
        // What `step ca init` chooses.
        "db": { "type": "badgerv2", "dataSource": path("db") },
        "authority": { "provisioners": [provisioner] },
    });
    write("ca.json", &serde_json::to_string_pretty(&config)?)
}

/// So many clients that share so many names.
pub(crate) async fn clients(folder: &Path, crowd: &Crowd<'_>) -> anyhow::Result<Vec<StepClient>> {
    let Crowd { address, name, clients: count, identities } = *crowd;
    let web = WebClient::with_roots(&fs::read(folder.join("root.crt"))?, clock::system())?;
    let key = KeyPair::from_pem(&fs::read_to_string(folder.join(PROVISIONER))?)?;
    let id = PublicKey::from_spki_der(&key.subject_public_key_info())?.thumbprint();
    let provisioner = Arc::new(Provisioner { key, id, audience: format!("https://{}/1.0/sign", address.ip()) });
    let mut clients = Vec::with_capacity(count);
    for number in 0..count {
        let keys = (0..KEYS).map(|_| KeyPair::generate()).collect::<Result<Vec<_>, _>>()?;
        let mine = (number..identities.max(count)).step_by(count).enumerate();
        let requests = mine.map(|(turn, identity)| {
            let subject = format!("w{identity}.{name}.example");
            let mut params = CertificateParams::new([subject.clone()])?;
            params.distinguished_name.push(DnType::CommonName, &subject);
            let csr = params.serialize_request(pick(&keys, turn)?)?.pem()?;
            Ok(Named { subject, csr })
        });
        let requests = requests.collect::<anyhow::Result<_>>()?;
        let provisioner = Arc::clone(&provisioner);
        clients.push(StepClient { address, web: web.clone(), provisioner, requests });
    }
    // It takes no token of before its start, to the second and some more.
    if let Some(first) = clients.first() {
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut connection = first.connect().await?;
        while let Err(error) = first.ask(&mut connection, Call::One, 0, 1).await {
            ensure!(Instant::now() < deadline, "step-ca does not issue: {error:#}");
            tokio::time::sleep(Duration::from_millis(500)).await;
            connection = first.connect().await?;
        }
    }
    Ok(clients)
}

/// A client.
pub(crate) struct StepClient {
    address: SocketAddr,
    web: WebClient,
    provisioner: Arc<Provisioner>,
    requests: Vec<Named>,
}

/// A request for a certificate of this name.
struct Named {
    subject: String,
    csr: String,
}

/// A connection of HTTP/1.1.
pub(crate) struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    /// What moves its bytes; ends with it.
    _tasks: JoinSet<Result<(), hyper::Error>>,
}

impl Client for StepClient {
    type Connection = Connection;

    async fn connect(&self) -> anyhow::Result<Connection> {
        let tcp = TcpStream::connect(self.address).await?;
        tcp.set_nodelay(true)?;
        let tls = self.web.connect(&self.address.ip().to_string(), tcp).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(tls)).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        Ok(Connection { sender, _tasks: tasks })
    }

    async fn ask(&self, connection: &mut Connection, _: Call, turn: usize, _: usize) -> anyhow::Result<Counts> {
        let Named { subject, csr } = pick(&self.requests, turn)?;
        let body = json!({ "csr": csr, "ott": self.provisioner.token(subject)? }).to_string();
        let request = Request::post("/1.0/sign")
            .header(header::HOST, self.address.to_string())
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(body))?;
        connection.sender.ready().await?;
        let reply = connection.sender.send_request(request).await?;
        let status = reply.status();
        let body = reply.into_body().collect().await?.to_bytes();
        ensure!(status == StatusCode::CREATED, "{status}: {}", String::from_utf8_lossy(&body));
        Ok((1, 0))
    }
}

/// Who makes tokens.
struct Provisioner {
    key: KeyPair,
    id: String,
    audience: String,
}

impl Provisioner {
    fn token(&self, subject: &str) -> anyhow::Result<String> {
        let now = (clock::system())().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        let id = KeyPair::generate()?.public_key_raw().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let claims = json!({
            "iss": ISSUER, "sub": subject, "aud": self.audience, "sans": [subject],
            "iat": now, "nbf": now, "exp": now + 300, "jti": id,
        });
        Ok(alcazar_jwt::sign(Some("JWT"), &claims, self)?)
    }
}

impl SignJwt for Provisioner {
    fn algorithm(&self) -> Algorithm {
        Algorithm::Es256
    }

    fn key_id(&self) -> &str {
        &self.id
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(fixed_of_der(Algorithm::Es256, &self.key.sign(message)?)?)
    }
}

const ISSUER: &str = "bench";
const PROVISIONER: &str = "provisioner.key";
