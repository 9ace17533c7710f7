//! A workload's command is started again when it ends, and ends with the mesh, also when it would rather not.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use alcazar_testkit::{DEADLINE, EchoServer, Mesh, turn, until};

#[test]
fn commands_are_supervised() {
    let _turn = turn();
    let database = EchoServer::start().unwrap();
    let mesh = format!(
        "workloads:
- name: short
  namespace: shop
  serviceAccount: short
  command: [sh, -c, 'echo once more; exit 7']
- name: missing
  namespace: shop
  serviceAccount: missing
  command: [/nowhere/to/be/found]
- name: stubborn
  namespace: shop
  serviceAccount: stubborn
  command: [sh, -c, 'trap \"\" TERM; pwd; echo and a tail without an end of line | tr -d \"\\n\"; while :; do sleep 1; done']
- {{name: db, namespace: shop, serviceAccount: db, address: 127.0.0.1, ports: [{{name: db, number: {}, protocol: TCP}}]}}
",
        database.port()
    );
    let mut mesh = Mesh::of(&mesh, &[]).unwrap();
    // Its end is told with its status, its words with its name, and it runs again.
    let starts = |log: &str| log.matches("shop/short: once more").count();
    until("a third start", DEADLINE, || (starts(&mesh.log()) >= 3).then_some(())).unwrap();
    let log = mesh.log();
    assert!(log.contains("shop/short: the command has ended (exit status: 7); it is started again in 500ms"), "{log}");
    mesh.process().wait_for_line("what is missing", |line| line.contains("cannot start /nowhere/to/be/found")).unwrap();
    // It runs in the folder of the mesh file.
    let folder = mesh.mesh_file().parent().unwrap().canonicalize().unwrap();
    let place = format!("shop/stubborn: {}", folder.display());
    mesh.process().wait_for_line("its folder", |line| line == place).unwrap();

    // Neither a command that does not listen nor a connection that stays open keeps the mesh from ending.
    let stubborn = mesh.workload("shop/stubborn").unwrap();
    let mut held = TcpStream::connect(&stubborn.outbound).unwrap();
    let authority = format!("db.shop:{}", database.port());
    write!(held, "CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n\r\n").unwrap();
    held.set_read_timeout(Some(DEADLINE)).unwrap();
    assert_ne!(held.read(&mut [0; 64]).unwrap(), 0);
    let begun = Instant::now();
    let status = mesh.stop().unwrap();
    assert!(status.success(), "{status}: {}", mesh.log());
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert!(!Path::new(&format!("/proc/{}", stubborn.pid.unwrap())).exists());
    assert!(mesh.log().contains("shop/stubborn: the command did not end when asked, and is killed"), "{}", mesh.log());
    assert!(!mesh.log().contains("still running"), "{}", mesh.log());
    assert!(!mesh.log().contains("panicked"), "{}", mesh.log());
}
