//! A stock TLS client, OpenSSL, against the acceptor.

use std::path::Path;
use std::process::Stdio;

use alcazar_mtls::{AcceptError, Accepted, Clients};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use crate::common::*;

/// Lets `openssl s_client` connect; returns all that it printed, and what the acceptor makes of it.
async fn s_client(clients: Clients, args: &[&str]) -> (String, Result<Accepted<TcpStream>, AcceptError>) {
    let mesh = Mesh::new();
    let folder = tempfile::tempdir().unwrap();
    let svid = mesh.cluster.leaf(RATINGS).svid();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("chain.pem", &svid.chain_pem());
    write("key.pem", &svid.key().to_pem());
    write("root.pem", &mesh.root.bundle(TD).to_pem());

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let moment = NOW.to_string();
    let common = ["s_client", "-connect", &address, "-CAfile", "root.pem", "-attime", &moment, "-msg"];
    let mut client = run(folder.path(), &[&common, args].concat());
    // Held open, or the client would take its end for ours.
    let stdin = client.stdin.take();
    let accepted = async {
        let (tcp, _) = listener.accept().await.unwrap();
        let mut accepted = mesh.acceptor(clients, &[b"h2"]).accept(tcp).await?;
        accepted.stream.write_all(b"hello from the acceptor\n").await.unwrap();
        accepted.stream.shutdown().await.unwrap();
        Ok(accepted)
    };
    let (accepted, output) = tokio::join!(accepted, client.wait_with_output());
    drop(stdin);
    let output = output.unwrap();
    (String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(), accepted)
}

fn run(folder: &Path, args: &[&str]) -> tokio::process::Child {
    let pipes = || Stdio::piped();
    let mut command = Command::new("openssl");
    command.current_dir(folder).args(args).stdin(pipes()).stdout(pipes()).stderr(pipes()).kill_on_drop(true);
    command.spawn().expect("openssl is installed")
}

const OURS: [&str; 6] = ["-cert", "chain.pem", "-cert_chain", "chain.pem", "-key", "key.pem"];

#[tokio::test]
async fn openssl_with_our_certificate_gets_in_and_is_given_no_ticket() {
    let (printed, accepted) = s_client(Clients::Required, &[&OURS[..], &["-alpn", "h2"]].concat()).await;
    let accepted = accepted.unwrap_or_else(|error| panic!("{}\n{printed}", causes(&error)));
    assert_eq!(accepted.peer.unwrap().id().as_str(), RATINGS);
    for part in ["Verify return code: 0 (ok)", "TLSv1.3", "ALPN protocol: h2", "hello from the acceptor"] {
        assert!(printed.contains(part), "{part:?} is not in\n{printed}");
    }
    assert!(printed.contains("CertificateVerify"), "-msg names handshake messages\n{printed}");
    assert!(!printed.contains("NewSessionTicket"), "a ticket would let a session skip the verifier\n{printed}");
}

#[tokio::test]
async fn openssl_without_a_certificate_is_refused_by_name_or_let_in_anonymously() {
    let (printed, accepted) = s_client(Clients::Required, &[]).await;
    assert!(matches!(accepted, Err(AcceptError::Peer { .. })), "{accepted:?}");
    assert!(printed.contains("certificate required"), "{printed}");

    let (printed, accepted) = s_client(Clients::Optional, &[]).await;
    assert!(accepted.unwrap().peer.is_none());
    assert!(printed.contains("hello from the acceptor"), "{printed}");
}

#[tokio::test]
async fn openssl_with_tls_1_2_is_refused() {
    let (printed, accepted) = s_client(Clients::Optional, &["-tls1_2"]).await;
    assert!(matches!(accepted, Err(AcceptError::Tls { .. })), "{accepted:?}");
    assert!(printed.contains("alert protocol version"), "{printed}");
}
