//! `alcazar cert show`, of certificates that OpenSSL has made.

use std::path::Path;
use std::process::Command;

/// Runs the steps, one a line, in a folder.
fn openssl(folder: &Path, steps: &str) {
    for step in steps.lines().map(str::trim).filter(|step| !step.is_empty()) {
        let output = Command::new("sh").args(["-c", &format!("openssl {step}")]).current_dir(folder).output().unwrap();
        assert!(output.status.success(), "openssl {step}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

fn show(source: &str, folder: &Path) -> (bool, String) {
    let mut command = assert_cmd::Command::cargo_bin("alcazar").unwrap();
    let output = command.args(["cert", "show", source]).current_dir(folder).output().unwrap();
    let said = if output.status.success() { output.stdout } else { output.stderr };
    (output.status.success(), String::from_utf8(said).unwrap())
}

#[test]
fn a_chain_and_its_key_are_told_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let leaf = "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n\
        subjectAltName=URI:spiffe://td.example/ns/shop/sa/web,DNS:web.shop.svc,IP:10.0.0.7\ncrlDistributionPoints=URI:http://ca.example/crl\n";
    std::fs::write(at.join("leaf.ext"), leaf).unwrap();
    std::fs::write(at.join("odd.ext"), "subjectAltName=DNS:web.example\n").unwrap();
    openssl(
        at,
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -keyout root.key -out root.pem -subj /CN=root -days 30 -addext basicConstraints=critical,CA:TRUE,pathlen:1
         req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout leaf.key -out leaf.csr -subj /CN=web
         x509 -req -in leaf.csr -CA root.pem -CAkey root.key -set_serial 0x5be0a1 -days 2 -extfile leaf.ext -out leaf.pem
         req -new -newkey rsa:2048 -nodes -keyout odd.key -out odd.csr -subj /CN=odd
         x509 -req -in odd.csr -CA root.pem -CAkey root.key -set_serial 7 -days 1 -extfile odd.ext -out odd.pem
         x509 -in odd.pem -outform DER -out odd.der",
    );
    let read = |name: &str| std::fs::read_to_string(at.join(name)).unwrap();
    std::fs::write(at.join("all.pem"), ["leaf.pem", "root.pem", "leaf.key"].map(read).concat()).unwrap();

    let (good, said) = show("all.pem", at);
    assert!(good, "{said}");
    let has = |line: &str| assert!(said.lines().any(|said| said == line), "{line:?} is missing:\n{said}");
    has("certificate 1 of 2 (leaf)");
    has("  names        spiffe://td.example/ns/shop/sa/web, DNS web.shop.svc, IP 10.0.0.7");
    has("  subject      CN=web");
    has("  serial       5be0a1");
    has("  key          ECDSA, P-256");
    has("  revocation   http://ca.example/crl");
    has("  signed       by certificate 2 of these");
    has("  X509-SVID    yes, in form; who vouches for it is the verifier's question");
    has("certificate 2 of 2 (authority)");
    has("  key          ECDSA, P-384");
    has("  signed       by itself: a root");
    has("private key  of certificate 1");
    assert!(said.contains("; for 47 h") && said.contains("server authentication, client authentication"), "{said}");
    assert!(said.contains("issuing certificates (pathlen 1)") && !said.contains("BEGIN"), "{said}");

    // DER, a leaf that is no SVID, and a key of somebody else.
    let (good, said) = show("odd.der", at);
    assert!(good && said.contains("RSA, 2048 bits") && said.contains("no: it has no URI"), "{said}");
    assert!(said.contains("signed       by none of these"), "{said}");
    std::fs::write(at.join("two.pem"), ["odd.pem", "leaf.key"].map(read).concat()).unwrap();
    assert!(show("two.pem", at).1.contains("private key  of none of these certificates"));
}

#[test]
fn what_is_no_certificate_is_refused_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    std::fs::write(at.join("empty"), "").unwrap();
    std::fs::write(at.join("text"), "no certificate").unwrap();
    std::fs::write(at.join("cut.pem"), "-----BEGIN CERTIFICATE-----\nMIIB").unwrap();
    std::fs::write(
        at.join("csr.pem"),
        "-----BEGIN CERTIFICATE REQUEST-----\nMIIB\n-----END CERTIFICATE REQUEST-----\n",
    )
    .unwrap();
    for (source, says) in [
        ("missing.pem", "cannot read missing.pem"),
        ("empty", "it is empty"),
        ("text", "is not an X.509 certificate"),
        ("cut.pem", "cut.pem cannot be shown"),
        ("csr.pem", "it holds no certificate and no key"),
        ("unix:none.sock", "nobody can be reached on none.sock"),
    ] {
        let (good, said) = show(source, at);
        assert!(!good && said.contains(says), "{source}: {said}");
    }
}
