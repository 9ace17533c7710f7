//! The root and the intermediate are exchanged while requests flow: no request fails for it, and at the end nobody believes
//! the old root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use alcazar_testkit::{DEADLINE, HttpOrigin, Load, Mesh, binary, openssl_s_client, turn, until};

/// In one process on one machine a rotation is a matter of seconds; a busy machine gets more of them.
const SECONDS: Duration = Duration::from_secs(60);

#[test]
fn root_and_intermediate_rotate_under_load_without_a_failed_request() {
    let _turn = turn();
    let origin = HttpOrigin::start("reviews").unwrap();
    let port = origin.port();
    let mesh = format!(
        "workloads:
- {{name: reviews, namespace: shop, serviceAccount: reviews, address: 127.0.0.1, ports: [{{name: http, number: {port}, protocol: HTTP}}]}}
- {{name: caller, namespace: shop, serviceAccount: caller, address: 127.0.0.1}}
"
    );
    let mesh = Mesh::of(&mesh, &[]).unwrap();
    let url = format!("http://reviews.shop:{port}/");
    let caller = mesh.workload("shop/caller").unwrap();
    let inbound = mesh.workload("shop/reviews").unwrap().inbound;
    let home = tempfile::tempdir().unwrap();
    let before = (mesh.root().unwrap(), intermediate(&mesh));
    let stolen = Stolen::from(&mesh, home.path());
    // Believed as long as its root is.
    assert!(!stolen.is_refused(&inbound), "the certificate of the test is wrong in itself: {}", mesh.log());

    let many = Load::start(&caller.outbound, &url, 4, 10).unwrap();
    let one = Load::start(&caller.outbound, &url, 2, u32::MAX).unwrap();

    let begun = Instant::now();
    let said = alcazar(&mesh, &["root", "rotate", "--yes", "--watch"]);
    assert!(said.status.success(), "{said:?}\n{}", mesh.log());
    assert!(begun.elapsed() < SECONDS, "{:?}", begun.elapsed());
    let said = text(&said);
    for phase in ["distribute", "reissue", "retire", "done: the old one is gone"] {
        assert!(said.contains(phase), "{phase}: {said}");
    }
    let between = (mesh.root().unwrap(), intermediate(&mesh));
    assert!(between.0 != before.0 && between.1 != before.1, "{before:?} {between:?}");

    let said = alcazar(&mesh, &["ca", "rotate", "--yes", "--watch"]);
    assert!(said.status.success(), "{said:?}\n{}", mesh.log());
    let after = (mesh.root().unwrap(), intermediate(&mesh));
    assert_eq!(after.0, between.0);
    assert_ne!(after.1, between.1);

    // What was accepted under the old certificates is still served.
    let so_far = (many.answered(), one.answered());
    until("more answers", DEADLINE, || {
        (many.answered() > so_far.0 + 20 && one.answered() > so_far.1 + 20).then_some(())
    })
    .unwrap();
    assert!(many.finish().unwrap() > 100);
    assert!(one.finish().unwrap() > 100);

    // Whoever has stolen a key of the old hierarchy has nothing.
    assert!(stolen.is_refused(&inbound), "{}", mesh.log());
    assert!(text(&alcazar(&mesh, &["root", "rotation"])).contains("done"), "{}", mesh.log());
    let left: Vec<_> = keys(&mesh);
    assert_eq!(left.len(), 2, "the keys of one root and one intermediate: {left:?}");
}

#[test]
fn a_rotation_goes_on_after_a_kill_and_an_abort_leads_back() {
    let _turn = turn();
    let origin = HttpOrigin::start("reviews").unwrap();
    let port = origin.port();
    let mesh = format!(
        "workloads:
- {{name: reviews, namespace: shop, serviceAccount: reviews, address: 127.0.0.1, ports: [{{name: http, number: {port}, protocol: HTTP}}]}}
"
    );
    let mut mesh = Mesh::of(&mesh, &[]).unwrap();
    let before = mesh.root().unwrap();

    let begun = alcazar(&mesh, &["root", "rotate", "--yes"]);
    assert!(begun.status.success(), "{begun:?}");
    let twice = alcazar(&mesh, &["ca", "rotate", "--yes"]);
    assert!(!twice.status.success() && String::from_utf8_lossy(&twice.stderr).contains("under way"), "{twice:?}");
    let aborted = alcazar(&mesh, &["root", "rotation", "abort"]);
    assert!(aborted.status.success(), "{aborted:?}\n{}", mesh.log());
    // Whoever watches is told by the status that it is not the new root that came of it.
    let ended = alcazar(&mesh, &["root", "rotation", "--watch"]);
    assert!(!ended.status.success() && text(&ended).contains("aborted"), "{ended:?}");
    assert_eq!(mesh.root().unwrap(), before);
    assert_eq!(keys(&mesh).len(), 2, "{:?}", keys(&mesh));

    let begun = alcazar(&mesh, &["root", "rotate", "--yes"]);
    assert!(begun.status.success(), "{begun:?}");
    mesh = mesh.kill_and_restart().unwrap();
    let ended = alcazar(&mesh, &["root", "rotation", "--watch"]);
    assert!(ended.status.success(), "{ended:?}\n{}", mesh.log());
    assert_ne!(mesh.root().unwrap(), before);
    assert_eq!(keys(&mesh).len(), 2, "{:?}", keys(&mesh));
}

/// A certificate of `shop/caller` that somebody made with the intermediate's key.
struct Stolen {
    chain: String,
    key: String,
}

impl Stolen {
    fn from(mesh: &Mesh, home: &Path) -> Self {
        let hierarchy = hierarchy(mesh);
        let key = keys(mesh).into_iter().find(|path| name(path).starts_with("intermediate-")).unwrap();
        let certificate = hierarchy.join(name(&key).replace("-key.pem", ".pem"));
        let path = |end: &str| home.join(end).to_string_lossy().into_owned();
        let (request, leaf, own, extensions) = (path("csr"), path("leaf.pem"), path("leaf.key"), path("ext"));
        fs::write(
            &extensions,
            "subjectAltName=critical,URI:spiffe://cluster.local/ns/shop/sa/caller\nbasicConstraints=critical,CA:FALSE\n\
             keyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n",
        )
        .unwrap();
        openssl(&["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/"])
            .args(["-keyout", &own, "-out", &request])
            .done();
        openssl(&["x509", "-req", "-days", "1", "-in", &request, "-out", &leaf, "-extfile", &extensions])
            .arg("-CA")
            .arg(&certificate)
            .arg("-CAkey")
            .arg(&key)
            .done();
        let chain = path("chain.pem");
        let both = [fs::read_to_string(&leaf).unwrap(), fs::read_to_string(&certificate).unwrap()].concat();
        fs::write(&chain, both).unwrap();
        Self { chain, key: own }
    }

    /// Whether the mesh port ends its handshake.
    fn is_refused(&self, inbound: &str) -> bool {
        let arguments =
            ["-alpn", "alcazar/h2", "-cert", &self.chain, "-cert_chain", &self.chain, "-key", &self.key, "-ign_eof"];
        openssl_s_client(inbound, &arguments).unwrap().contains("alert")
    }
}

fn openssl(arguments: &[&str]) -> Command {
    let mut command = Command::new("openssl");
    command.args(arguments);
    command
}

trait Done {
    fn done(&mut self);
}

impl Done for Command {
    fn done(&mut self) {
        let output = self.output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

fn alcazar(mesh: &Mesh, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary("alcazar").unwrap());
    command.args(arguments).arg("--data-dir").arg(mesh.data_dir());
    command.output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn intermediate(mesh: &Mesh) -> String {
    mesh.status().unwrap().pointer("/intermediate/fingerprint").unwrap().to_string()
}

fn hierarchy(mesh: &Mesh) -> PathBuf {
    mesh.data_dir().join("ca/hierarchy")
}

fn keys(mesh: &Mesh) -> Vec<PathBuf> {
    let all = fs::read_dir(hierarchy(mesh)).unwrap().map(|entry| entry.unwrap().path());
    let is_key =
        |name: &str| name.ends_with("-key.pem") && (name.starts_with("root") || name.starts_with("intermediate"));
    all.filter(|path| is_key(&name(path))).collect()
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}
