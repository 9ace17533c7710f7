//! The intermediate of a cluster was stolen, and its root is kept offline: a person replaces it, has the root take the old one back, and
//! brings the list to the CA. Proxies refuse what the thief has signed, also on a connection that is open, OpenSSL does by the
//! root's CRL, and nobody else notices.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use alcazar_testkit::{Cluster, DEADLINE, EchoServer, HttpOrigin, Load, Machine, Vault, openssl_s_client, turn, until};

const PATIENCE: Duration = Duration::from_secs(120);
/// A client's preface of HTTP/2, with no settings: it has said all that it must, and the connection stays open.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

#[test]
fn an_offline_root_takes_back_an_intermediate() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let vault = Vault::new(folder.path()).unwrap();
    vault.init("root").unwrap();
    let mut east = Cluster::new(folder.path(), "east", "").unwrap();
    // Whoever checks certificates by CRLs finds them at the CA.
    let crls = format!("http://{}/crl", east.admin());
    let config = fs::read_to_string(east.machine().file("ca.yaml")).unwrap();
    east.machine().write("ca.yaml", &format!("{config}revocation: {{crlUrl: '{crls}'}}\n")).unwrap();
    let options = format!(" --crl-url {crls}");
    vault.certify(&east, "root", &options).unwrap();
    let text = east.machine().openssl("x509 -in cacerts-east/ca-cert.pem -noout -text").unwrap();
    assert!(text.contains(&format!("URI:{crls}/")), "{text}");
    let thief = Thief::new(folder.path(), &east);
    east.start_ca().unwrap();
    east.start_agent().unwrap();
    let (origin, database) = (HttpOrigin::start("reviews").unwrap(), EchoServer::start().unwrap());
    east.start_proxies(origin.port(), database.port()).unwrap();
    let load = Load::start(&east.outbound(), &format!("http://reviews.shop:{}/", origin.port()), 2, 10).unwrap();
    assert!(!thief.is_refused(&east), "the certificate of the test is wrong in itself: {}", east.log());
    for name in ["chain.pem", "ca.pem"] {
        let said = by_crls(&thief.machine, &east, name);
        assert!(said.contains(&format!("{name}: OK")), "{said}");
    }

    // The root shows what it is about to take back, and asks.
    vault
        .machine()
        .write("stolen.pem", &fs::read_to_string(east.machine().file("cacerts-east/ca-cert.pem")).unwrap())
        .unwrap();
    let revoke = "root revoke-intermediate stolen.pem --root root --reason cACompromise --passphrase-file passphrase";
    let shown = vault.machine().refused(revoke).unwrap();
    for part in ["prod.example", "east", "entry 2 of the transcript", "cACompromise", "--yes"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(!vault.machine().file("root/revocations.pb").exists());
    let said = vault.machine().alcazar(&format!("{revoke} --yes")).unwrap();
    assert!(said.contains("alcazar revocations import"), "{said}");
    let transcript = vault.machine().alcazar("root verify-transcript --root root").unwrap();
    assert!(transcript.contains("revoke for the cluster east (cACompromise)"), "{transcript}");
    let text = vault.machine().openssl("crl -in root/ca-crl.pem -CAfile root/root-cert.pem -noout -text").unwrap();
    assert!(text.contains("CA Compromise") && text.contains("verify OK"), "{text}");

    // While it signs, the list is not taken: the whole cluster would be cut off.
    vault.machine().carry("root/revocations.pb", east.machine()).unwrap();
    let import = "revocations import revocations.pb";
    let refused = east.machine().refused(&format!("{import} --ca {}", east.socket().display())).unwrap();
    assert!(refused.contains("is the one that signs here"), "{refused}");

    // So it is replaced first, everywhere: the rotation asks for what only a person can bring.
    east.alcazar("ca rotate --yes").unwrap();
    until("the rotation asks for the operator", PATIENCE, || {
        east.alcazar("ca rotation").unwrap().contains("needs you").then_some(())
    })
    .unwrap();
    vault.certify(&east, "root", &options).unwrap();
    let watched = east.alcazar("ca rotation --watch").unwrap_or_else(|error| panic!("{error}: {}", east.log()));
    assert!(watched.contains("done"), "{watched}");
    assert!(!thief.is_refused(&east), "replaced is not revoked: {}", east.log());

    let mut open = Open::start(&thief, &east);
    let taken = east.alcazar(import).unwrap();
    assert!(taken.contains("took over root:") && taken.contains("the CRL of root:"), "{taken}");
    let cut = until("the end of the thief's connection", DEADLINE, || open.child.try_wait().unwrap());
    cut.unwrap_or_else(|error| panic!("{error}: {}", east.log()));
    assert!(east.log().contains("a connection was cut"), "{}", east.log());
    assert!(thief.is_refused(&east), "{}", east.log());
    let listed = east.alcazar("revocations").unwrap();
    assert!(listed.contains("intermediate") && listed.contains("cACompromise"), "{listed}");
    let again = east.alcazar(import).unwrap();
    assert!(again.contains("nothing new"), "{again}");

    // And for whoever goes by CRLs: at the URLs that the certificates name.
    let said = by_crls(&thief.machine, &east, "ca.pem");
    assert!(said.contains("certificate revoked"), "{said}");
    let genuine = openssl_s_client(&east.inbound(), &["-alpn", "alcazar/h2", "-showcerts"]).unwrap();
    let begin = genuine.find("-----BEGIN CERTIFICATE-----").unwrap();
    let end = genuine.rfind("-----END CERTIFICATE-----").unwrap();
    east.machine().write("genuine.pem", &format!("{}-----END CERTIFICATE-----\n", &genuine[begin..end])).unwrap();
    for name in ["genuine.pem", "cacerts-east/ca-cert.pem"] {
        let said = by_crls(east.machine(), &east, name);
        assert!(said.contains(&format!("{name}: OK")), "{said}");
    }

    // A start forgets none of it, and what the root has taken back stays on the lists that it signs later.
    east.process("ca").unwrap().terminate().unwrap();
    east.start_ca().unwrap();
    assert!(thief.is_refused(&east), "{}", east.log());
    let print = vault.machine().openssl("x509 -in stolen.pem -noout -fingerprint -sha256").unwrap();
    let print = print.trim().split_once('=').unwrap().1.replace(':', "").to_lowercase();
    let again =
        format!("root revoke-intermediate {print} --root root --reason superseded --passphrase-file passphrase");
    let shown = vault.machine().refused(&again).unwrap();
    assert!(shown.contains("It was taken back before") && shown.contains("cACompromise"), "{shown}");
    vault.init("another").unwrap();
    let other = "root revoke-intermediate stolen.pem --root another --reason superseded --passphrase-file passphrase";
    let refused = vault.machine().refused(other).unwrap();
    assert!(refused.contains("the root that has signed it"), "{refused}");

    let so_far = load.answered();
    until("more answers", PATIENCE, || (load.answered() > so_far + 20).then_some(())).unwrap();
    load.finish().unwrap_or_else(|error| panic!("{error}: {}", east.log()));
}

/// What OpenSSL says of the first certificate in a file by the CRL that it names; what is above it may be there, too.
fn by_crls(machine: &Machine, cluster: &Cluster, file: &str) -> String {
    let root = cluster.machine().file("cacerts-east/root-cert.pem");
    let line = format!("verify -crl_check -crl_download -CAfile {} -untrusted {file} {file}", root.display());
    let output = machine.run(Path::new("openssl"), &line).unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// Somebody with a copy of the CA's key, who makes a certificate of `shop/caller` for himself.
struct Thief {
    machine: Machine,
}

impl Thief {
    fn new(folder: &Path, cluster: &Cluster) -> Self {
        let machine = Machine::new(folder, "thief").unwrap();
        let hierarchy = cluster.machine().file("data/hierarchy");
        let files = fs::read_dir(&hierarchy).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
        let key =
            files.into_iter().find(|name| name.starts_with("intermediate-") && name.ends_with("-key.pem")).unwrap();
        fs::copy(hierarchy.join(key), machine.file("ca.key")).unwrap();
        fs::copy(cluster.machine().file("cacerts-east/ca-cert.pem"), machine.file("ca.pem")).unwrap();
        let print = machine.openssl("x509 -in ca.pem -noout -fingerprint -sha256").unwrap();
        let print = print.trim().split_once('=').unwrap().1.replace(':', "").to_lowercase();
        let extensions = format!(
            "subjectAltName=critical,URI:spiffe://prod.example/ns/shop/sa/caller\nbasicConstraints=critical,CA:FALSE\n\
             keyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n\
             crlDistributionPoints=URI:http://{}/crl/{print}.crl\n",
            cluster.admin()
        );
        machine.write("ext", &extensions).unwrap();
        machine
            .openssl(
                "req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj / -keyout leaf.key -out csr",
            )
            .unwrap();
        machine
            .openssl("x509 -req -days 1 -in csr -out leaf.pem -extfile ext -CA ca.pem -CAkey ca.key -CAcreateserial")
            .unwrap();
        let chain = ["leaf.pem", "ca.pem"].map(|name| fs::read_to_string(machine.file(name)).unwrap()).concat();
        machine.write("chain.pem", &chain).unwrap();
        Self { machine }
    }

    fn arguments(&self) -> Vec<String> {
        let path = |name: &str| self.machine.file(name).display().to_string();
        let with = ["-cert".to_owned(), path("chain.pem"), "-cert_chain".to_owned(), path("chain.pem")];
        let with = with.into_iter().chain(["-key".to_owned(), path("leaf.key")]);
        with.chain(["-alpn".to_owned(), "alcazar/h2".to_owned()]).collect()
    }

    /// Whether the mesh port of `shop/reviews` ends its handshake.
    fn is_refused(&self, cluster: &Cluster) -> bool {
        let arguments = self.arguments();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(["-ign_eof"]).collect();
        openssl_s_client(&cluster.inbound(), &arguments).unwrap().contains("alert")
    }
}

/// A connection of the thief that stays open.
struct Open {
    child: Child,
    _stdin: ChildStdin,
}

impl Open {
    fn start(thief: &Thief, cluster: &Cluster) -> Self {
        let log = thief.machine.file("open");
        let output = fs::File::create(&log).unwrap();
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", &cluster.inbound(), "-quiet"]).args(thief.arguments());
        let mut child = command.stdin(Stdio::piped()).stdout(output).stderr(Stdio::null()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(PREFACE).unwrap();
        // The server has answered by its own settings: it has let the client in.
        until("an answer", DEADLINE, || (fs::metadata(&log).unwrap().len() > 0).then_some(())).unwrap();
        assert!(child.try_wait().unwrap().is_none(), "it is open");
        Self { child, _stdin: stdin }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
