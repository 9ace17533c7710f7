//! Who cannot prove an identity of this mesh is refused at the mesh port, and the log says why.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use alcazar_testkit::{DEADLINE, HttpOrigin, Mesh, openssl_s_client, turn, until};

#[test]
fn strangers_are_refused() {
    let _turn = turn();
    let origin = HttpOrigin::start("reviews").unwrap();
    let mesh = mesh(&origin);
    let inbound = mesh.workload("shop/reviews").unwrap().inbound;
    let home = tempfile::tempdir().unwrap();
    for (name, san, more, reason) in [
        ("foreign", "URI:spiffe://cluster.local/ns/shop/sa/caller", &[][..], "root"),
        ("elsewhere", "URI:spiffe://example.org/ns/shop/sa/caller", &[], "example.org"),
        ("two", "URI:spiffe://cluster.local/ns/a/sa/b,URI:spiffe://cluster.local/ns/a/sa/c", &[], "URI"),
        ("nobody", "DNS:caller.shop", &[], "URI"),
        ("ca", "URI:spiffe://cluster.local/ns/shop/sa/caller", &["-addext", "basicConstraints=critical,CA:TRUE"], "CA"),
    ] {
        let known = mesh.log().len();
        let (certificate, key) = certificate(home.path(), name, san, more);
        let arguments = ["-alpn", "alcazar/h2", "-cert", &certificate, "-key", &key];
        openssl_s_client(&inbound, &arguments).unwrap();
        let line = until("the refusal", DEADLINE, || {
            let log = mesh.log();
            log.get(known..)?.lines().find(|line| line.contains(" refused ")).map(str::to_owned)
        });
        let line = line.unwrap();
        assert!(line.contains(reason), "{name}: {line}");
    }
    let known = mesh.log().len();
    openssl_s_client(&inbound, &["-alpn", "alcazar/h2"]).unwrap();
    until("the refusal of a caller without a certificate", DEADLINE, || {
        mesh.log()
            .get(known..)?
            .lines()
            .find(|line| line.contains(" refused ") && line.contains("certificate"))
            .map(drop)
    })
    .unwrap();
}

#[test]
fn a_request_that_two_servers_would_read_differently_goes_nowhere() {
    let _turn = turn();
    let origin = HttpOrigin::start("reviews").unwrap();
    let mesh = mesh(&origin);
    let outbound = mesh.workload("shop/caller").unwrap().outbound;
    let host = format!("reviews.shop:{}", origin.port());
    let line = format!("POST http://{host}/ HTTP/1.1\r\nhost: {host}\r\n");
    for fields in [
        "content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\n\r\n".to_owned(),
        "content-length: 5\r\ncontent-length: 6\r\n\r\nolives".to_owned(),
        "transfer-encoding: chunked, gzip\r\n\r\n".to_owned(),
        "bad header: 1\r\n\r\n".to_owned(),
        "a: b\0c\r\n\r\n".to_owned(),
        format!("long: {}\r\n\r\n", "x".repeat(1 << 20)),
    ] {
        let mut stream = TcpStream::connect(&outbound).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        // The proxy may answer and close before it has read all of a head that is too long.
        let sent = stream.write_all(format!("{line}{fields}").as_bytes());
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let shown = fields.get(..40).unwrap_or(&fields);
        assert!(answer.starts_with("HTTP/1.1 4") || sent.is_err() || read.is_err(), "{shown:?}: {answer}");
        assert!(!answer.contains("200 OK") && !answer.contains("reviews\n"), "{shown:?}: {answer}");
    }
}

/// A mesh of `shop/reviews`, which is this application, and of somebody who calls it.
fn mesh(reviews: &HttpOrigin) -> Mesh {
    let text = format!(
        "workloads:
- {{name: reviews, namespace: shop, serviceAccount: reviews, address: 127.0.0.1, ports: [{{name: http, number: {}, protocol: HTTP}}]}}
- {{name: caller, namespace: shop, serviceAccount: caller, address: 127.0.0.1}}
",
        reviews.port()
    );
    Mesh::of(&text, &[]).unwrap()
}

/// A self-signed certificate and its key, by OpenSSL.
fn certificate(home: &Path, name: &str, san: &str, more: &[&str]) -> (String, String) {
    let path = |end: &str| home.join(format!("{name}.{end}")).to_string_lossy().into_owned();
    let (certificate, key) = (path("pem"), path("key"));
    // OpenSSL's own configuration would make a CA of everybody.
    let config = path("cnf");
    std::fs::write(&config, "[req]\ndistinguished_name = name\n[name]\n").unwrap();
    let output = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "1",
            "-config",
            &config,
        ])
        .args([
            "-subj",
            "/",
            "-addext",
            &format!("subjectAltName=critical,{san}"),
            "-keyout",
            &key,
            "-out",
            &certificate,
        ])
        .args(["-addext", "keyUsage=critical,digitalSignature", "-addext", "extendedKeyUsage=serverAuth,clientAuth"])
        .args(more)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    (certificate, key)
}
