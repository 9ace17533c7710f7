//! `alcazar ledger` against a CA that answers something else than was asked, or hides what it issued.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use alcazar_api::ca::v1::{
    self,
    get_inclusion_proof_request::Entry,
    ledger_client::LedgerClient,
    ledger_server::{self, LedgerServer},
};
use alcazar_ca::{Ca, Config};
use alcazar_service::{Readiness, Shutdown, clock};
use futures::stream;
use tokio::net::{TcpListener, UnixListener};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

/// What the CA says that is not so.
#[derive(Clone, Copy, Debug)]
enum Lie {
    Nothing,
    /// Every proof is of the first entry, whichever is asked for.
    OtherEntry,
    /// The first entry, under the number that was asked for.
    Renumbered,
    /// Nothing was issued lately.
    EmptyList,
    /// Only old entries.
    OldList,
    /// Somebody else asked for it.
    OtherCaller,
    /// It was issued at another time.
    OtherMoment,
}

/// Between the operator and an honest CA.
struct Liar {
    honest: LedgerClient<Channel>,
    lie: Lie,
}

#[tonic::async_trait]
impl ledger_server::Ledger for Liar {
    async fn get_tree_head(
        &self,
        request: Request<v1::GetTreeHeadRequest>,
    ) -> Result<Response<v1::SignedTreeHead>, Status> {
        self.honest.clone().get_tree_head(request.into_inner()).await
    }

    async fn list_entries(
        &self,
        request: Request<v1::ListEntriesRequest>,
    ) -> Result<Response<v1::ListEntriesResponse>, Status> {
        let mut request = request.into_inner();
        if matches!(self.lie, Lie::OldList) {
            request.before = Some(2);
        }
        let mut answer = self.honest.clone().list_entries(request).await?.into_inner();
        match self.lie {
            Lie::EmptyList => answer = v1::ListEntriesResponse::default(),
            Lie::OtherCaller => answer.entries[0].caller = "somebody".into(),
            Lie::OtherMoment => answer.entries[0].issued_at += 1,
            _ => {}
        }
        Ok(Response::new(answer))
    }

    async fn get_inclusion_proof(
        &self,
        request: Request<v1::GetInclusionProofRequest>,
    ) -> Result<Response<v1::InclusionProof>, Status> {
        let mut request = request.into_inner();
        let asked = request.entry.clone();
        if matches!(self.lie, Lie::OtherEntry | Lie::Renumbered) {
            request.entry = Some(Entry::Index(0));
        }
        let mut proof = self.honest.clone().get_inclusion_proof(request).await?.into_inner();
        if let (Lie::Renumbered, Some(Entry::Index(index))) = (self.lie, asked) {
            proof.index = index;
        }
        Ok(Response::new(proof))
    }

    async fn get_consistency_proof(
        &self,
        request: Request<v1::GetConsistencyProofRequest>,
    ) -> Result<Response<v1::ConsistencyProof>, Status> {
        self.honest.clone().get_consistency_proof(request.into_inner()).await
    }

    async fn get_witnesses(
        &self,
        request: Request<v1::GetWitnessesRequest>,
    ) -> Result<Response<v1::Witnesses>, Status> {
        self.honest.clone().get_witnesses(request.into_inner()).await
    }

    async fn verify_files(
        &self,
        request: Request<v1::VerifyFilesRequest>,
    ) -> Result<Response<v1::VerifyFilesResponse>, Status> {
        self.honest.clone().verify_files(request.into_inner()).await
    }
}

/// Runs `alcazar ledger` with these words: whether it succeeded, and what it said.
async fn ledger(words: &[&str]) -> (bool, String) {
    let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
    let run = move || assert_cmd::Command::cargo_bin("alcazar").unwrap().arg("ledger").args(words).output().unwrap();
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

async fn serve(ca: &Ca, shutdown: &Shutdown) {
    let (listener, readiness) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), Readiness::new());
    let running = ca.run(listener, shutdown.clone(), readiness.clone());
    shutdown.spawn("the CA of a test", async move { running.await.unwrap() });
    readiness.wait().await;
}

async fn lying(folder: &Path, honest: &Path, lie: Lie, shutdown: &Shutdown) -> String {
    let socket = folder.join(format!("{lie:?}.sock"));
    let honest = LedgerClient::connect(format!("unix:{}", honest.display())).await.unwrap();
    let listener = UnixListener::bind(&socket).unwrap();
    let incoming =
        stream::unfold(listener, |listener| async { Some((listener.accept().await.map(|(io, _)| io), listener)) });
    let end = shutdown.clone();
    shutdown.spawn("a CA that lies", async move {
        let server = tonic::transport::Server::builder().add_service(LedgerServer::new(Liar { honest, lie }));
        server.serve_with_incoming_shutdown(incoming, end.cancelled()).await.unwrap();
    });
    socket.to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_to_another_question_and_a_list_that_hides_something_are_told() {
    alcazar_mtls::install_default_provider();
    let folder = tempfile::tempdir().unwrap();
    let (dir, shutdown) = (folder.path().join("ca"), Shutdown::new());
    let ca = Ca::open(Config::new(&dir), clock::system()).await.unwrap();
    serve(&ca, &shutdown).await;
    let root = folder.path().join("root.pem");
    std::fs::write(&root, ca.trust_bundles().get(ca.trust_domain()).unwrap().to_pem()).unwrap();
    let root = root.to_str().unwrap();
    let newest = ca.issued(None, 1).await.unwrap().remove(0).serial;
    for (lie, shows, verifies) in [
        (Lie::Nothing, None, None),
        (Lie::OtherEntry, Some("and answered with"), Some("was asked for entry 2 and answered with entry 0")),
        (Lie::Renumbered, Some("and answered with"), Some("entry 2 (")),
        (Lie::EmptyList, None, Some("does not list entry 2")),
        (Lie::OldList, None, Some("does not list entry 2")),
        (Lie::OtherCaller, None, Some("was listed as")),
        (Lie::OtherMoment, None, Some("was listed as")),
    ] {
        let socket = lying(folder.path(), &ca.admin_socket(), lie, &shutdown).await;
        for (words, reason) in [(["show", &newest], shows), (["verify", "--entries=3"], verifies)] {
            let (good, said) = ledger(&[&words[..], &["--ca", &socket, "--root", root]].concat()).await;
            assert_eq!(good, reason.is_none(), "{lie:?} {words:?}: {said}");
            assert!(reason.is_none_or(|reason| said.contains(reason)), "{lie:?} {words:?}: {said}");
        }
    }
    shutdown.trigger("the test is over");
    shutdown.finished(Duration::from_secs(20)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_is_not_of_now_is_told() {
    alcazar_mtls::install_default_provider();
    let folder = tempfile::tempdir().unwrap();
    for (name, aside, good) in [("behind", -700, false), ("ahead", 700, false), ("about", -400, true)] {
        let shutdown = Shutdown::new();
        let clock: clock::Clock = Arc::new(move || {
            let aside = Duration::from_secs(u64::try_from(700 + aside).unwrap());
            clock::now() - Duration::from_secs(700) + aside
        });
        let ca = Ca::open(Config::new(folder.path().join(name)), clock).await.unwrap();
        serve(&ca, &shutdown).await;
        let socket = ca.admin_socket().to_str().unwrap().to_owned();
        let (held, said) = ledger(&["verify", "--ca", &socket]).await;
        assert_eq!(held, good, "{name}: {said}");
        assert!(said.contains("the clock here") || said.contains("this machine's"), "{name}: {said}");
        let (held, said) = ledger(&["verify", "--ca", &socket, "--max-age", "1h"]).await;
        assert!(held, "{name}: {said}");
        shutdown.trigger("the test is over");
        shutdown.finished(Duration::from_secs(20)).await.unwrap();
    }
}
