//! A machine boots while its agent and the control plane are away: nobody who starts the proxy waits for them.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::Command;

use alcazar_testkit::{Curl, DEADLINE, Process, binary, free_port};

#[test]
fn a_proxy_starts_before_what_it_needs() {
    let home = tempfile::tempdir().unwrap();
    let at = home.path().display();
    let (admin, control) = (free_port().unwrap(), free_port().unwrap());
    let config = format!(
        "workload: shop/orders\nsdsSocket: {at}/nobody.sock\ncontrol: {{address: '127.0.0.1:{control}'}}\n\
         inbound: 127.0.0.1:0\nadmin: 127.0.0.1:{admin}\n"
    );
    fs::write(home.path().join("proxy.yaml"), config).unwrap();
    let manager = UnixDatagram::bind(home.path().join("notify")).unwrap();
    manager.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut command = Command::new(binary("alcazar-proxy").unwrap());
    command.arg("--config").arg(home.path().join("proxy.yaml")).env("NOTIFY_SOCKET", home.path().join("notify"));
    let proxy = Process::start(command, &home.path().join("proxy.log")).unwrap();

    let mut said = [0; 256];
    let length = manager.recv(&mut said).unwrap_or_else(|error| panic!("{error}\n{}", proxy.log()));
    let said = String::from_utf8_lossy(&said[..length]).into_owned();
    assert!(said.lines().any(|line| line == "READY=1"), "{said:?}");
    // What it waits for is for those who ask.
    let ready = format!("http://127.0.0.1:{admin}/readyz");
    let answer =
        proxy.until("an answer", DEADLINE, || Curl::default().get(&ready).ok().filter(|answer| answer.code != 0));
    let answer = answer.unwrap();
    assert_eq!(answer.code, 503, "{answer:?}");
    assert!(answer.text.contains("certificate of shop/orders"), "{answer:?}");
}
