//! A mesh file of one's own: services that run already, services that are started, TCP, and gRPC.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use alcazar_testkit::{
    DEADLINE, EchoServer, Greeter, HttpOrigin, Mesh, curl, greet_by_connect, greet_by_prior_knowledge, turn, until,
};

#[test]
fn own_services_join_the_mesh() {
    let _turn = turn();
    let (web, database, greeter) =
        (HttpOrigin::start("web").unwrap(), EchoServer::start().unwrap(), Greeter::start().unwrap());
    let [started, forward, outbound] = free_ports();
    let head = "trustDomain: example.org\ncluster: east\n";
    let mesh = format!(
        "workloads:
- name: web-v1
  namespace: shop
  serviceAccount: web
  labels: {{app: web, version: v1}}
  address: 127.0.0.1
  ports:
  - {{name: http, number: {web}, protocol: HTTP}}
  - {{name: db, number: {database}, protocol: TCP}}
- name: greeter
  namespace: shop
  serviceAccount: greeter
  address: 127.0.0.1
  ports: [{{name: grpc, number: {greeter}, protocol: HTTP}}]
- name: files
  namespace: shop
  serviceAccount: files
  command: [sh, -c, 'echo started for $http_proxy >&2; exec python3 -m http.server $PORT --bind 127.0.0.1']
  ports: [{{name: http, number: {started}, protocol: HTTP}}]
- name: caller
  namespace: office
  serviceAccount: caller
  address: 127.0.0.1
  outbound: 127.0.0.1:{outbound}
  forwards: [{{listen: '127.0.0.1:{forward}', to: 'db.shop:5432'}}]
services:
- {{name: web, namespace: shop, selector: {{app: web}}, ports: [{{name: http, port: 80, targetPort: {web}, protocol: HTTP}}]}}
- {{name: db, namespace: shop, selector: {{app: web}}, ports: [{{name: db, port: 5432, targetPort: {database}, protocol: TCP}}]}}
- {{name: greeter, namespace: shop, selector: {{app: greeter}}, ports: [{{name: grpc, port: 80, targetPort: {greeter}, protocol: HTTP}}]}}
- {{name: files, namespace: shop, selector: {{app: files}}, ports: [{{name: http, port: 80, targetPort: {started}, protocol: HTTP}}]}}
",
        web = web.port(),
        database = database.port(),
        greeter = greeter.port(),
    );
    let mesh = ["greeter", "files"].iter().fold(mesh, |mesh, name| {
        let account = format!("serviceAccount: {name}");
        mesh.replacen(&account, &format!("{account}\n  labels: {{app: {name}}}"), 1)
    });
    let mesh = Mesh::of(&format!("{head}{mesh}"), &[]).unwrap();
    let caller = mesh.workload("office/caller").unwrap();
    assert_eq!(caller.outbound, format!("127.0.0.1:{outbound}"));
    assert_eq!(caller.spiffe_id, "spiffe://example.org/ns/office/sa/caller");

    for host in ["web.shop", "web.shop.svc", "web.shop.svc.cluster.local", "WEB.shop:80"] {
        let answer = curl(&caller.outbound, &format!("http://{host}/")).unwrap();
        assert!(
            answer.code == 200 && answer.text.contains("URI=spiffe://example.org/ns/office/sa/caller"),
            "{host} {answer:?}"
        );
    }
    // The bare name is for its own namespace.
    let greeters_proxy = mesh.workload("shop/greeter").unwrap().outbound;
    assert_eq!(curl(&greeters_proxy, "http://web/").unwrap().code, 200);
    assert_ne!(curl(&caller.outbound, "http://web/").unwrap().code, 200);

    // The command was told where to listen and whom to ask; its words are repeated with its name.
    let files = mesh.workload("shop/files").unwrap();
    assert_eq!(curl(&caller.outbound, "http://files.shop/").unwrap().code, 200);
    let said = format!("shop/files: started for http://{}", files.outbound);
    until("the command's words", DEADLINE, || mesh.log().contains(&said).then_some(())).unwrap();

    // TCP by CONNECT, and by a listener of its own.
    let mut stream = TcpStream::connect(&caller.outbound).unwrap();
    write!(stream, "CONNECT db.shop:5432 HTTP/1.1\r\nhost: db.shop:5432\r\n\r\n").unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    assert!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head));
    echo(stream);
    echo(TcpStream::connect(("127.0.0.1", forward)).unwrap());

    // gRPC, as its clients do it: through a tunnel, or speaking HTTP/2 to the proxy at once.
    for greet in [greet_by_connect, greet_by_prior_knowledge] {
        let said = greet(&caller.outbound, "greeter.shop", "olive").unwrap();
        assert_eq!(said[0], "hello olive");
        assert!(said[1].contains("URI=spiffe://example.org/ns/office/sa/caller"), "{said:?}");
        let error = greet(&caller.outbound, "greeter.shop", "").unwrap_err();
        assert!(format!("{error:#}").contains("nobody to greet"), "{error:#}");
    }
    workloads_come_and_go(&mesh, &caller.outbound);
}

fn workloads_come_and_go(mesh: &Mesh, proxy: &str) {
    let late = HttpOrigin::start("late").unwrap();
    let before = fs::read_to_string(mesh.mesh_file()).unwrap();
    let entry = format!(
        "- {{name: late, namespace: shop, serviceAccount: late, labels: {{app: late}}, address: 127.0.0.1, ports: [{{name: http, number: {port}, protocol: HTTP}}]}}
services:
- {{name: late, namespace: shop, selector: {{app: late}}, ports: [{{name: http, port: 80, targetPort: {port}, protocol: HTTP}}]}}
",
        port = late.port()
    );
    let files = mesh.workload("shop/files").unwrap().pid.unwrap();
    fs::write(mesh.mesh_file(), before.replace("services:\n", &entry)).unwrap();
    let code = || curl(proxy, "http://late.shop/").unwrap().code;
    until("the new workload", DEADLINE, || (code() == 200).then_some(())).unwrap();
    fs::write(mesh.mesh_file(), &before).unwrap();
    until("its end", DEADLINE, || (mesh.workload("shop/late").is_err() && code() == 502).then_some(())).unwrap();
    // One that takes another's place, and its ports, is started when that one has ended.
    let renamed = before.replace("name: caller\n  namespace: office", "name: clerk\n  namespace: office");
    fs::write(mesh.mesh_file(), renamed).unwrap();
    until("the successor", DEADLINE, || {
        let is_there = mesh.workload("office/clerk").is_ok_and(|clerk| !clerk.serial.is_empty());
        (is_there && curl(proxy, "http://web.shop/").is_ok_and(|answer| answer.code == 200)).then_some(())
    })
    .unwrap();
    assert!(!mesh.log().contains("cannot start the proxy"), "{}", mesh.log());
    // What was not touched runs on.
    assert_eq!(mesh.workload("shop/files").unwrap().pid, Some(files));
}

fn echo(mut stream: TcpStream) {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"olive").unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"olive");
}

/// Ports that were free a moment ago.
fn free_ports() -> [u16; 3] {
    let listeners = [(); 3].map(|()| TcpListener::bind(("127.0.0.1", 0)).unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}
