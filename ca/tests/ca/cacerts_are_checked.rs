//! Certificates that a person plugs in: made by OpenSSL as people make them, broken as people break them.

use std::{
    fs,
    time::{Duration, SystemTime},
};

use alcazar_ca::{CacertsError, CacertsFiles, PluggedIn, check_cacerts};
use alcazar_service::{clock, process::chain};

use crate::support::workshop::{Workshop, openssl, with};

fn check(set: &[(&'static str, Vec<u8>)]) -> Result<PluggedIn, CacertsError> {
    check_at(set, clock::now())
}

fn check_at(set: &[(&'static str, Vec<u8>)], now: SystemTime) -> Result<PluggedIn, CacertsError> {
    let files = CacertsFiles::new(set.iter().map(|(name, bytes)| (*name, bytes.clone())));
    check_cacerts(&files, &[], None, &"cluster.local".parse().unwrap(), now)
}

fn without(set: &[(&'static str, Vec<u8>)], name: &str) -> Vec<(&'static str, Vec<u8>)> {
    set.iter().filter(|(file, _)| *file != name).cloned().collect()
}

fn refused(set: &[(&'static str, Vec<u8>)], says: &[&str]) {
    let error = chain(&check(set).err().unwrap_or_else(|| panic!("accepted, and should say {says:?}")));
    for part in says {
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
}

#[test]
fn sets_as_people_make_them_are_taken() {
    let workshop = Workshop::new();
    let set = workshop.set();
    let found = check(&set).unwrap();
    assert_eq!((found.chain.len(), found.roots.len(), found.is_root), (1, 1, false));
    assert!(found.key.is_some() && found.warnings.is_empty());

    // Trailing newlines, carriage returns, words between the blocks; the root in the chain or not; several roots.
    let mut ragged = set.clone();
    for (_, bytes) in &mut ragged {
        let text = String::from_utf8(bytes.clone()).unwrap().replace('\n', "\r\n");
        *bytes = format!("# a note\r\n{text}\r\n\r\n\n").into_bytes();
    }
    check(&ragged).unwrap();
    check(&with(&set, "cert-chain.pem", workshop.read(&["middle.pem"]))).unwrap();
    check(&with(&set, "cert-chain.pem", workshop.read(&["root.pem"]))).unwrap();
    workshop.root("other", "EC -pkeyopt ec_paramgen_curve:P-384", "pathlen:1");
    let both = check(&with(&set, "root-cert.pem", workshop.read(&["other.pem", "root.pem", "other.pem"]))).unwrap();
    assert_eq!(both.roots.len(), 2);
    assert_eq!(both.roots[0], both.root, "the one above the intermediate comes first");

    // The other names; keys in the older shapes.
    let tls = vec![
        ("tls.crt", workshop.read(&["middle.pem"])),
        ("tls.key", workshop.read(&["middle.key"])),
        ("ca.crt", workshop.read(&["root.pem"])),
    ];
    check(&tls).unwrap();
    openssl(workshop.path(), "ec -in middle.key -out middle.sec1");
    check(&with(&set, "ca-key.pem", workshop.read(&["middle.sec1"]))).unwrap();
    workshop.key("rsa", "RSA -pkeyopt rsa_keygen_bits:2048");
    workshop.authority("rsa", "root", "pathlen:0", "subjectKeyIdentifier=hash", 365);
    openssl(workshop.path(), "rsa -in rsa.key -traditional -out rsa.pkcs1");
    let rsa =
        with(&with(&set, "ca-cert.pem", workshop.read(&["rsa.pem"])), "ca-key.pem", workshop.read(&["rsa.pkcs1"]));
    check(&rsa).unwrap();

    // A longer chain, and a root that is plugged in itself.
    workshop.authority("upper", "root", "pathlen:1", "subjectKeyIdentifier=hash", 365);
    workshop.authority("lower", "upper", "pathlen:0", "subjectKeyIdentifier=hash", 365);
    let long =
        with(&with(&set, "ca-cert.pem", workshop.read(&["lower.pem"])), "ca-key.pem", workshop.read(&["lower.key"]));
    let found = check(&with(&long, "cert-chain.pem", workshop.read(&["lower.pem", "upper.pem", "root.pem"]))).unwrap();
    assert_eq!(found.chain.len(), 2);
    let root =
        with(&with(&set, "ca-cert.pem", workshop.read(&["root.pem"])), "ca-key.pem", workshop.read(&["root.key"]));
    assert!(check(&root).unwrap().is_root);
}

#[test]
fn each_fault_is_told_with_its_file_and_how_to_mend_it() {
    let workshop = Workshop::new();
    let set = workshop.set();
    let replace = |name, from: &[&str]| with(&set, name, workshop.read(from));

    refused(&[], &["ca-cert.pem", "tls.crt"]);
    for (name, _) in &set {
        refused(&without(&set, name), &[name, "missing"]);
        refused(&with(&set, name, Vec::new()), &[name]);
        refused(&with(&set, name, b"\xff\xfe".to_vec()), &[name]);
        let bytes = set.iter().find(|(file, _)| file == name).unwrap().1.clone();
        refused(&with(&set, name, bytes[..bytes.len() / 2].to_vec()), &[name]);
    }
    refused(&with(&set, "tls.key", workshop.read(&["middle.key"])), &["two sets"]);
    refused(&replace("ca-cert.pem", &["middle.key"]), &["ca-cert.pem", "exchanged"]);
    refused(&replace("ca-key.pem", &["middle.pem"]), &["ca-key.pem", "CERTIFICATE"]);
    refused(&replace("ca-key.pem", &["root.key"]), &["does not belong", "that of CN=root in cert-chain.pem"]);
    workshop.key("stray", "EC -pkeyopt ec_paramgen_curve:P-256");
    refused(&replace("ca-key.pem", &["stray.key"]), &["ca-key.pem", "does not belong"]);

    // Not a CA; another trust domain's; limited to something else; constraints that verifiers refuse.
    let own = |name: &str| {
        let set = with(&set, "ca-cert.pem", workshop.read(&[&format!("{name}.pem")]));
        with(&set, "ca-key.pem", workshop.read(&[&format!("{name}.key")]))
    };
    workshop.key("leaf", "EC -pkeyopt ec_paramgen_curve:P-256");
    workshop.certificate("leaf", "root", "basicConstraints=CA:FALSE\n", 365, "");
    refused(&own("leaf"), &["CN=leaf in ca-cert.pem", "not a certificate authority"]);
    workshop.authority("foreign", "root", "pathlen:0", "subjectAltName=URI:spiffe://other.example", 365);
    refused(&own("foreign"), &["spiffe://other.example", "cluster.local", "trustDomain"]);
    workshop.authority("narrow", "root", "pathlen:0", "extendedKeyUsage=codeSigning", 365);
    refused(&own("narrow"), &["extended key usage"]);
    workshop.authority("bound", "root", "pathlen:0", "nameConstraints=permitted;URI:.example", 365);
    refused(&own("bound"), &["name constraints on URIs"]);

    // Weak keys and signatures.
    workshop.key("small", "RSA -pkeyopt rsa_keygen_bits:1024");
    workshop.authority("small", "root", "pathlen:0", "subjectKeyIdentifier=hash", 365);
    refused(&own("small"), &["ca-cert.pem", "RSA key of 1024 bits"]);
    workshop.key("odd", "EC -pkeyopt ec_paramgen_curve:secp256k1");
    workshop.authority("odd", "root", "pathlen:0", "subjectKeyIdentifier=hash", 365);
    assert!(check(&own("odd")).is_err());
    workshop.key("sha1", "EC -pkeyopt ec_paramgen_curve:P-256");
    let extensions = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n";
    workshop.certificate("sha1", "root", extensions, 365, " -sha1");
    assert!(check(&own("sha1")).is_err());

    // Chains that do not lead up; a length that is used up.
    workshop.root("other", "EC -pkeyopt ec_paramgen_curve:P-256", "pathlen:1");
    refused(&replace("root-cert.pem", &["other.pem"]), &["issued by CN=root", "cert-chain.pem"]);
    workshop.authority("below", "middle", "pathlen:0", "subjectKeyIdentifier=hash", 365);
    let too_low = with(&own("below"), "cert-chain.pem", workshop.read(&["below.pem", "middle.pem"]));
    refused(&too_low, &["CN=middle in cert-chain.pem", "pathlen"]);
    refused(&own("below"), &[]);
    workshop.root("short", "EC -pkeyopt ec_paramgen_curve:P-256", "pathlen:0");
    let root = with(&own("short"), "root-cert.pem", workshop.read(&["short.pem"]));
    refused(&root, &["CN=short", "pathlen"]);

    // Dates, with both clocks.
    let later = clock::now() + Duration::from_secs(400 * 24 * 3600);
    let error = chain(&check_at(&set, later).err().unwrap());
    assert!(
        error.contains("CN=middle in ca-cert.pem is good from") && error.contains("the clock here says"),
        "{error}"
    );
    assert!(check_at(&set, SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)).is_err());
}

#[test]
fn a_list_of_revocations_is_read() {
    let workshop = Workshop::new();
    let path = workshop.path();
    fs::write(path.join("index"), "").unwrap();
    fs::write(path.join("number"), "01\n").unwrap();
    let ca = "[ca]\ndefault_ca=d\n[d]\ndatabase=index\ncrlnumber=number\ndefault_md=sha256\ndefault_crl_days=30\n";
    fs::write(path.join("ca.cnf"), ca).unwrap();
    openssl(path, "ca -config ca.cnf -gencrl -cert root.pem -keyfile root.key -out none.crl");
    let set = workshop.set();
    check(&with(&set, "ca-crl.pem", workshop.read(&["none.crl"]))).unwrap();
    check(&with(&set, "ca-crl.pem", b"\n".to_vec())).unwrap();
    openssl(path, "ca -config ca.cnf -revoke middle.pem -cert root.pem -keyfile root.key");
    openssl(path, "ca -config ca.cnf -gencrl -cert root.pem -keyfile root.key -out revoked.crl");
    refused(&with(&set, "ca-crl.pem", workshop.read(&["revoked.crl"])), &["CN=middle", "revoked by ca-crl.pem"]);
    workshop.root("other", "EC -pkeyopt ec_paramgen_curve:P-256", "pathlen:1");
    openssl(path, "ca -config ca.cnf -gencrl -cert other.pem -keyfile other.key -out other.crl");
    refused(&with(&set, "ca-crl.pem", workshop.read(&["other.crl"])), &["ca-crl.pem", "not signed by any"]);
    refused(&with(&set, "ca-crl.pem", workshop.read(&["root.pem"])), &["ca-crl.pem"]);
}
