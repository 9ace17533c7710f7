//! The ceremony with directories for machines: one that keeps the root, and one for each of two clusters. What it makes is read by
//! OpenSSL, and the clusters verify each other.

use std::fs;
use std::path::Path;

use alcazar_ca::{Ca, Config, OpenError};
use alcazar_identity::CertificateDer;
use alcazar_mtls::{Side, verify_peer};
use alcazar_service::{clock, process::chain};
use alcazar_testkit::Machine;

fn config(machine: &Machine, cluster: &str) -> Config {
    machine
        .write(
            "ca.yaml",
            &format!(
                "trustDomain: prod.example\ncluster: {cluster}\ndataDir: {}\nlisten: 127.0.0.1:0\n",
                machine.file("data").display()
            ),
        )
        .unwrap();
    alcazar_service::config::load(&machine.file("ca.yaml")).unwrap()
}

#[tokio::test]
async fn an_offline_root_signs_two_clusters_which_verify_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let vault = Machine::new(folder.path(), "vault").unwrap();
    vault.write("passphrase", "correct horse battery staple\n").unwrap();
    let said = vault.alcazar("root init --out root --trust-domain prod.example --passphrase-file passphrase").unwrap();
    assert!(said.contains("a root of prod.example"), "{said}");
    // The key is encrypted, and OpenSSL opens it; a root is never made over another.
    vault.openssl("pkey -in root/root-key.pem -passin file:passphrase -noout").unwrap();
    assert!(
        !vault
            .run(Path::new("openssl"), "pkey -in root/root-key.pem -passin pass:wrong -noout")
            .unwrap()
            .status
            .success()
    );
    assert!(
        vault
            .refused("root init --out root --trust-domain prod.example --passphrase-file passphrase")
            .unwrap()
            .contains("already")
    );

    let mut opened = Vec::new();
    for cluster in ["east", "west"] {
        let machine = Machine::new(folder.path(), cluster).unwrap();
        let config = config(&machine, cluster);
        let said = machine.alcazar(&format!("ca request --config ca.yaml --out {cluster}.csr")).unwrap();
        assert!(said.contains("prod.example") && said.contains(cluster), "{said}");
        let hash = said.lines().find_map(|line| line.trim().strip_prefix("its key")).unwrap().trim().to_owned();
        assert!(
            machine.alcazar("ca request --config ca.yaml").unwrap().contains(&hash),
            "asked again, it is the same request"
        );
        machine.openssl(&format!("req -in {cluster}.csr -noout -verify")).unwrap();
        // Until the certificate comes, the CA waits, and makes no root of its own.
        let waiting = Ca::open(config.clone(), clock::system()).await.err().unwrap();
        assert!(matches!(&waiting, OpenError::Hierarchy(_)), "{waiting}");
        assert!(chain(&waiting).contains("alcazar ca install"), "{}", chain(&waiting));

        machine.carry(&format!("{cluster}.csr"), &vault).unwrap();
        let sign = format!("root sign {cluster}.csr --root root --passphrase-file passphrase --life 90d");
        let refused = vault.refused(&sign).unwrap();
        assert!(refused.contains("--yes") && refused.contains(&hash) && refused.contains(cluster), "{refused}");
        assert!(!vault.file(format!("cacerts-{cluster}")).exists());
        let said = vault.alcazar(&format!("{sign} --yes")).unwrap();
        assert!(said.contains(&hash), "{said}");
        vault.carry(&format!("cacerts-{cluster}"), &machine).unwrap();
        machine
            .openssl(&format!("verify -CAfile cacerts-{cluster}/root-cert.pem cacerts-{cluster}/ca-cert.pem"))
            .unwrap();
        machine.alcazar(&format!("ca install cacerts-{cluster} --config ca.yaml")).unwrap();

        let ca = Ca::open(config.clone(), clock::system()).await.unwrap();
        ca.close().await;
        let ca = Ca::open(config, clock::system()).await.unwrap();
        opened.push((machine, ca));
    }
    // What each CA issues, the CAs' own certificates among it, is verified by the other and by OpenSSL.
    let bundles: Vec<_> = opened.iter().map(|(_, ca)| ca.trust_bundles()).collect();
    for (place, (machine, ca)) in opened.iter().enumerate() {
        let credentials = ca.serving_credentials();
        let leaf = credentials.svid().chain();
        let peer = verify_peer(leaf, &bundles[1 - place], Side::Server, clock::now()).unwrap();
        assert_eq!(peer.id(), &ca.id());
        fs::write(machine.file("leaf.pem"), credentials.svid().chain_pem()).unwrap();
        let cluster = if place == 0 { "east" } else { "west" };
        machine
            .openssl(&format!(
                "verify -CAfile cacerts-{cluster}/root-cert.pem -untrusted cacerts-{cluster}/ca-cert.pem leaf.pem"
            ))
            .unwrap();
        let text = machine.openssl(&format!("x509 -in cacerts-{cluster}/ca-cert.pem -noout -text")).unwrap();
        assert!(
            text.contains("pathlen:0") && text.contains("URI:spiffe://prod.example") && text.contains(cluster),
            "{text}"
        );
    }
    let intermediates: Vec<CertificateDer<'_>> =
        opened.iter().map(|(_, ca)| ca.fingerprints().intermediate.certificate).collect();
    assert_ne!(intermediates[0], intermediates[1]);

    // The set of one cluster is of no use to the other.
    let (east, west) = (&opened[0].0, &opened[1].0);
    west.carry("cacerts-west", east).unwrap();
    assert!(east.refused("ca install cacerts-west --config ca.yaml").unwrap().contains("ca-key.pem is missing"));

    // Each act is on record, signed by the root, as OpenSSL verifies too; one flipped bit is found.
    let said = vault.alcazar("root verify-transcript --root root").unwrap();
    assert!(said.contains("3 entries") && said.contains("cluster east") && said.contains("cluster west"), "{said}");
    vault.openssl("x509 -in root/root-cert.pem -pubkey -noout -out root.pub").unwrap();
    vault
        .openssl("dgst -sha256 -verify root.pub -signature root/transcript/0002.json.sig root/transcript/0002.json")
        .unwrap();
    let entry = vault.file("root/transcript/0002.json");
    let text = fs::read_to_string(&entry).unwrap();
    fs::write(&entry, text.replace("east", "eest")).unwrap();
    assert!(vault.refused("root verify-transcript --root root").unwrap().contains("0002.json"));
    fs::write(&entry, &text).unwrap();
    fs::remove_file(vault.file("root/transcript/0002.json")).unwrap();
    assert!(vault.refused("root verify-transcript --root root").unwrap().contains("0003.json"));
    for (_, ca) in opened {
        ca.close().await;
    }
}

#[test]
fn a_root_signs_no_request_that_it_should_not() {
    let folder = tempfile::tempdir().unwrap();
    let vault = Machine::new(folder.path(), "vault").unwrap();
    vault.write("passphrase", "correct horse battery staple\n").unwrap();
    vault.write("short", "hunter2\n").unwrap();
    assert!(
        vault
            .refused("root init --out r --trust-domain prod.example --passphrase-file short")
            .unwrap()
            .contains("fewer than")
    );
    assert!(vault.refused("root init --out r --trust-domain prod.example").unwrap().contains("--passphrase-file"));
    vault.alcazar(
        "root init --out root --trust-domain other.example --passphrase-file passphrase --algorithm p384 --life 400d",
    ).unwrap();
    let machine = Machine::new(folder.path(), "east").unwrap();
    config(&machine, "east");
    machine.alcazar("ca request --config ca.yaml --out east.csr").unwrap();
    machine.carry("east.csr", &vault).unwrap();
    let sign = |request: &str, more: &str| {
        vault.refused(&format!("root sign {request} --root root --passphrase-file passphrase --yes{more}")).unwrap()
    };
    assert!(sign("east.csr", "").contains("trust domain prod.example"), "{}", sign("east.csr", ""));
    let text = fs::read_to_string(vault.file("east.csr")).unwrap();
    for (name, text) in [("cut.csr", &text[..200]), ("empty.csr", ""), ("altered.csr", &text.replace('A', "B"))] {
        vault.write(name, text).unwrap();
        assert!(sign(name, "").contains("cannot be used as a request"), "{}", sign(name, ""));
    }
    vault.openssl("req -new -newkey rsa:2048 -nodes -keyout rsa.key -subj /CN=x -out rsa.csr").unwrap();
    assert!(sign("rsa.csr", "").contains("P-256 or P-384"), "{}", sign("rsa.csr", ""));
    vault
        .openssl("req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ec.key -subj /CN=x -out ec.csr")
        .unwrap();
    assert!(sign("ec.csr", "").contains("alcazar ca request"), "{}", sign("ec.csr", ""));
    assert!(
        vault
            .refused("root sign east.csr --root . --yes --passphrase-file passphrase")
            .unwrap()
            .contains("not the folder of a root")
    );
}
