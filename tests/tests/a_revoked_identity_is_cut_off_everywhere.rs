//! `alcazar revoke --identity`: its open connections end and no new ones are made, within a second or two, and nobody else
//! notices; `alcazar unrevoke` gives it a new certificate, by which it works again.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test stops at the first surprise, and says how long it took"
)]

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use alcazar_testkit::{DEADLINE, EchoServer, HttpOrigin, Load, Mesh, binary, curl, until};

const NIGHTLY: &str = "spiffe://cluster.local/ns/reports/sa/nightly";

#[test]
fn a_revoked_identity_is_cut_off_everywhere() {
    let (origin, database) = (HttpOrigin::start("reviews").unwrap(), EchoServer::start().unwrap());
    let mesh = format!(
        "workloads:
- {{name: reviews, namespace: shop, serviceAccount: reviews, address: 127.0.0.1, ports: [{{name: http, number: {http}, protocol: HTTP}}]}}
- {{name: db, namespace: shop, serviceAccount: db, address: 127.0.0.1, ports: [{{name: db, number: {db}, protocol: TCP}}]}}
- {{name: caller, namespace: shop, serviceAccount: caller, address: 127.0.0.1}}
- {{name: nightly, namespace: reports, serviceAccount: nightly, address: 127.0.0.1}}
",
        http = origin.port(),
        db = database.port()
    );
    let mesh = Mesh::of(&mesh, &[]).unwrap();
    let (caller, nightly) = (mesh.workload("shop/caller").unwrap(), mesh.workload("reports/nightly").unwrap());
    let url = format!("http://reviews.shop:{}/", origin.port());
    let db = format!("db.shop:{}", database.port());
    let code = || curl(&nightly.outbound, &url).unwrap().code;
    assert_eq!(code(), 200);
    let load = Load::start(&caller.outbound, &url, 2, u32::MAX).unwrap();
    let (mut others, mut revoked) = (tunnel(&caller.outbound, &db), tunnel(&nightly.outbound, &db));
    echo(&mut others);
    echo(&mut revoked);

    let start = Instant::now();
    let said = alcazar(&mesh, &["revoke", "--identity", NIGHTLY, "--reason", "keyCompromise"]);
    assert_eq!(said, format!("revoked {NIGHTLY}\n"));
    let closed = revoked.read(&mut [0; 1]);
    let took = start.elapsed();
    assert!(matches!(closed, Ok(0)) || closed.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
    eprintln!("the open connection was closed {took:?} after `alcazar revoke` was typed");
    assert!(took < Duration::from_secs(5), "it took {took:?}");
    assert_ne!(code(), 200);
    until("the reason in the log", DEADLINE, || mesh.log().contains("a connection was cut").then_some(())).unwrap();
    let listed = alcazar(&mesh, &["revocations"]);
    assert!(listed.contains(NIGHTLY) && listed.contains("keyCompromise"), "{listed}");
    echo(&mut others);

    alcazar(&mesh, &["unrevoke", "--identity", NIGHTLY]);
    until("calls as before", DEADLINE, || (code() == 200).then_some(())).unwrap();
    let again = mesh.workload("reports/nightly").unwrap();
    assert_ne!(again.serial, nightly.serial);
    echo(&mut tunnel(&nightly.outbound, &db));
    // Neither revoking nor reinstating somebody disturbs anybody else.
    echo(&mut others);
    until("a steady load", DEADLINE, || (load.answered() > 20).then_some(())).unwrap();
    load.finish().unwrap();
}

fn alcazar(mesh: &Mesh, arguments: &[&str]) -> String {
    let mut command = Command::new(binary("alcazar").unwrap());
    let output = command.args(arguments).arg("--data-dir").arg(mesh.data_dir()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A TCP connection through the proxy.
fn tunnel(proxy: &str, authority: &str) -> TcpStream {
    let mut stream = TcpStream::connect(proxy).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(stream, "CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n\r\n").unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    assert!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head));
    stream
}

fn echo(stream: &mut TcpStream) {
    stream.write_all(b"olive").unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"olive");
}
