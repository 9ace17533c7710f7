//! `alcazar revoke --identity`: its open connections end and no new ones are made, within a second or two, and nobody else
//! notices; `alcazar unrevoke` gives it a new certificate, by which it works again.
#![allow(clippy::print_stderr, reason = "a test stops at the first surprise, and says how long it took")]

use std::time::{Duration, Instant};

use alcazar_testkit::{Curl, DEADLINE, EchoServer, HttpOrigin, Load, Mesh, Tunnel, curl, turn, until};

const NIGHTLY: &str = "spiffe://cluster.local/ns/reports/sa/nightly";

#[test]
fn a_revoked_identity_is_cut_off_everywhere() {
    let _turn = turn();
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
    let (mut others, mut revoked) =
        (Tunnel::open(&caller.outbound, &db).unwrap(), Tunnel::open(&nightly.outbound, &db).unwrap());
    others.echo().unwrap();
    revoked.echo().unwrap();

    let start = Instant::now();
    let said = mesh.alcazar(&["revoke", "--identity", NIGHTLY, "--reason", "keyCompromise"]).unwrap();
    assert_eq!(said, format!("revoked {NIGHTLY} (keyCompromise)\n"));
    revoked.closed().unwrap();
    let took = start.elapsed();
    eprintln!("the open connection was closed {took:?} after `alcazar revoke` was typed");
    assert!(took < Duration::from_secs(5), "it took {took:?}");
    assert_ne!(code(), 200);
    until("the reason in the log", DEADLINE, || mesh.log().contains("a connection was cut").then_some(())).unwrap();
    let listed = mesh.alcazar(&["revocations"]).unwrap();
    assert!(listed.contains(NIGHTLY) && listed.contains("keyCompromise"), "{listed}");
    others.echo().unwrap();
    // And for whoever goes by CRLs.
    let crls = mesh.status().unwrap()["crls"].as_str().unwrap().to_owned();
    assert_eq!(Curl::default().get(&format!("{crls}/root.crl")).unwrap().code, 200);

    mesh.alcazar(&["unrevoke", "--identity", NIGHTLY]).unwrap();
    until("calls as before", DEADLINE, || (code() == 200).then_some(())).unwrap();
    let again = mesh.workload("reports/nightly").unwrap();
    assert_ne!(again.serial, nightly.serial);
    Tunnel::open(&nightly.outbound, &db).unwrap().echo().unwrap();
    // Neither revoking nor reinstating somebody disturbs anybody else.
    others.echo().unwrap();
    until("a steady load", DEADLINE, || (load.answered() > 20).then_some(())).unwrap();
    load.finish().unwrap();
}
