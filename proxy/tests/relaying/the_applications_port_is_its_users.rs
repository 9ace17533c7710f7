//! The explicit proxy and the forwards serve one user's processes, if they are told to, and no other's.

use std::net::SocketAddr;
use std::process::Stdio;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::common::app::{self, App};
use crate::common::{FRONTEND, Mesh, SOON, Wanted, policy};

/// Asks for a page through the proxy, and the forward for an echo, as a user: what became of each.
async fn as_user(uid: u32, proxy: SocketAddr, forward: SocketAddr) -> String {
    let script = "import socket, sys\n\
        def over(port, said):\n\
        \x20   try:\n\
        \x20       with socket.create_connection(('127.0.0.1', int(port)), 10) as s:\n\
        \x20           s.sendall(said)\n\
        \x20           return s.recv(12).decode()\n\
        \x20   except ConnectionError:\n\
        \x20       return 'reset'\n\
        print(over(sys.argv[1], b'GET http://reviews.shop/ HTTP/1.1\\r\\nhost: reviews.shop\\r\\n\\r\\n'), over(sys.argv[2], b'echo'))";
    let uid = uid.to_string();
    let output = Command::new("setpriv")
        .args(["--reuid", &uid, "--regid", &uid, "--clear-groups", "/usr/bin/python3", "-c", script])
        .args([proxy.port().to_string(), forward.port().to_string()])
        .stderr(Stdio::inherit())
        .output();
    let output = tokio::time::timeout(SOON, output).await.unwrap().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test]
async fn another_user_of_the_host_is_refused_and_so_is_root() {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "needs root");
        return eprintln!("passed over: needs root");
    }
    let tcp = app::tcp(|stream| Box::pin(app::echo(stream))).await;
    let http = App::start(&[]).await.address;
    for workers in [1, 2] {
        let wanted =
            Wanted { tcp: Some(tcp), forward: true, policy: policy::allow_all(FRONTEND), workers, ..Wanted::new(http) };
        let mesh = Mesh::start(&Wanted { user: Some(41_001), ..wanted });
        let forward = mesh.frontend.addresses.forwards[0];
        for _ in 0..3 {
            assert_eq!(as_user(41_001, mesh.outbound(), forward).await, "HTTP/1.1 200 echo");
            assert_eq!(as_user(41_002, mesh.outbound(), forward).await, "HTTP/1.1 403 reset");
            assert_eq!(as_user(0, mesh.outbound(), forward).await, "HTTP/1.1 403 reset", "root is another user");
        }
        // Whoever says nothing has its answer too.
        let mut root = TcpStream::connect(mesh.outbound()).await.unwrap();
        let mut said = String::new();
        tokio::time::timeout(SOON, root.read_to_string(&mut said)).await.unwrap().unwrap();
        assert!(said.ends_with("\r\n\r\nthis proxy serves the application's user\n"), "{said}");
        mesh.stop().await;
    }
}

#[tokio::test]
async fn the_user_of_the_proxy_itself_can_be_the_one() {
    let http = App::start(&[]).await.address;
    let user = Some(rustix::process::geteuid().as_raw());
    let mesh = Mesh::start(&Wanted { user, policy: policy::allow(FRONTEND, "/*"), ..Wanted::new(http) });
    let mut client = TcpStream::connect(mesh.outbound()).await.unwrap();
    client.write_all(b"GET http://reviews.shop/ HTTP/1.1\r\nhost: reviews.shop\r\n\r\n").await.unwrap();
    let mut said = [0; 12];
    tokio::time::timeout(SOON, client.read_exact(&mut said)).await.unwrap().unwrap();
    assert_eq!(&said, b"HTTP/1.1 200");
    drop(client);
    mesh.stop().await;
}
