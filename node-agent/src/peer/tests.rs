use std::fs;
use std::future::poll_fn;
use std::os::unix::net::UnixStream as StdStream;
use std::process::{Child, Command, Stdio};

use super::*;

/// Our end of a connection that a process made, which ends when it is told to.
struct Connected {
    stream: UnixStream,
    child: Child,
    _folder: tempfile::TempDir,
}

impl Connected {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let script = "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); sys.stdin.read()";
        let child = Command::new("/usr/bin/python3").args(["-c", script]).arg(&path).stdin(Stdio::piped()).spawn();
        let (stream, _) = listener.accept().await.unwrap();
        Self { stream, child: child.unwrap(), _folder: folder }
    }
}

const ALL: Needs = Needs { groups: true, unit: true, path: true, digest: true, pod: false };

fn lookout() -> Lookout {
    Lookout::new(alcazar_service::clock::system(), None)
}

#[tokio::test]
async fn a_process_is_seen_as_it_is_until_it_ends() {
    let mut connected = Connected::new().await;
    let peer = Arc::new(Peer::of(&connected.stream).unwrap());
    assert_eq!(peer.pid(), Some(connected.child.id().cast_signed()));
    assert_eq!(peer.uid(), rustix::process::geteuid().as_raw());
    let seen = lookout().look(&peer, ALL).await;
    let python = fs::canonicalize("/usr/bin/python3").unwrap();
    assert_eq!(seen.path.known().unwrap().as_str(), python.to_str().unwrap());
    let digest = ring::digest::digest(&ring::digest::SHA256, &fs::read(&python).unwrap());
    let digest = alcazar_identity::ExecutableDigest::new(digest.as_ref().try_into().unwrap());
    assert_eq!(seen.digest, Fact::Known(digest));
    assert!(seen.groups.known().is_some());
    assert_eq!(lookout().look(&peer, Needs::default()).await, Seen::default(), "nobody needs it");

    // Where nobody lists pods there are none, whatever else can be seen.
    assert_eq!(lookout().needs(), Needs::default());
    let nobody_lists = lookout().look(&peer, Needs { pod: true, ..Needs::default() }).await;
    assert_eq!(nobody_lists, Seen { pod: Fact::Absent(NO_PODS.to_owned()), ..Seen::default() });

    // It ends, and nobody has reaped it: all that could be read of it would still be there.
    connected.child.kill().unwrap();
    poll_fn(|cx| peer.poll_ended(cx)).await;
    let ended = Fact::Unknown("its process has ended".to_owned());
    assert_eq!(lookout().look(&peer, ALL).await.groups, ended);
    connected.child.wait().unwrap();
    assert!(matches!(Peer::of(&connected.stream), Err(PidfdError::Gone)), "who connected has ended");
}

#[tokio::test]
async fn one_user_s_processes_that_take_their_time_keep_nobody_else() {
    let (here, _there) = StdStream::pair().unwrap();
    here.set_nonblocking(true).unwrap();
    let peer = Arc::new(Peer::of(&UnixStream::from_std(here).unwrap()).unwrap());
    let lookout = lookout();
    let _all = lookout.turns(peer.user()).acquire_many_owned(u32::try_from(TURNS).unwrap()).await.unwrap();
    tokio::time::pause();
    let late = Fact::Unknown("it could not be looked at in time".to_owned());
    assert_eq!(lookout.look(&peer, ALL).await.unit, late);
    assert_eq!(lookout.turns(&User::Outside(peer.uid() + 1)).available_permits(), TURNS);
    let pod = User::Pod("0f6d2c1e-4b3a-4c5d-8e9f-001122334455".parse().unwrap());
    assert_eq!(lookout.turns(&pod).available_permits(), TURNS);
}

#[tokio::test]
async fn whoever_ends_while_its_pod_is_looked_for_is_nobody() {
    let mut connected = Connected::new().await;
    let peer = Peer::of(&connected.stream).unwrap();
    let config = r#"{"kubelet": "https://127.0.0.1:10250", "rootFile": "/r", "tokenFile": "/t"}"#;
    let config: crate::kubernetes::KubernetesConfig = serde_json::from_str(config).unwrap();
    let source = config.source("n1").unwrap();
    let (pods, _keeper) = Pods::new(config.cgroup_root, source, alcazar_service::clock::system());
    let uid = "0f6d2c1e-4b3a-4c5d-8e9f-001122334455".parse().unwrap();
    tokio::time::pause();
    let needs = Needs { pod: true, ..ALL };
    let late = in_its_pod(&peer, needs, Seen::default(), &uid, &pods).await;
    assert!(matches!(&late.pod, Fact::Unknown(why) if why.contains("have not been listed in time")), "{late:?}");
    let looking = in_its_pod(&peer, needs, Seen::default(), &uid, &pods);
    let ending = async {
        connected.child.kill().unwrap();
        connected.child.wait().unwrap();
    };
    let (seen, ()) = tokio::join!(looking, ending);
    assert_eq!(seen, nothing(needs, ENDED));
}
