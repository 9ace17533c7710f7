//! A node that was off until its certificate ended comes back by that certificate's key, and nobody else does.

use std::time::Duration;

use alcazar_api::attestation::{lineage_proof, machine_proof};
use alcazar_api::ca::v1::{
    self, attest_node_request::Evidence, certificate_authority_client::CertificateAuthorityClient,
    node_attestation_client::NodeAttestationClient,
};
use alcazar_ca::Config;
use alcazar_identity::{RevocationReason, X509Svid};
use rcgen::{KeyPair, SigningKey};
use tonic::{Code, Status};

use crate::callers_support::stock;
use crate::revocation::hands;
use crate::support::{Hands, Served, csr, key, node, soon, svid};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A node as its disk has it.
struct Disk {
    svid: X509Svid,
    key: KeyPair,
}

impl Disk {
    async fn attested(served: &Served, name: &str) -> Self {
        let (key, token) = (key(), served.token(&node(name)).await);
        Self { svid: svid(&served.attest(&token, &key).await.unwrap(), &key), key }
    }

    async fn renewed(&self, served: &Served) -> Self {
        let next = key();
        Self { svid: svid(&served.renew(&self.svid, &next).await.unwrap(), &next), key: next }
    }

    /// Comes back with this key.
    async fn back_with(&self, served: &Served, next: &KeyPair) -> Result<Self, Status> {
        let (nonce, csr) = (nonce(served).await, csr(next));
        let proof = self.proof(&nonce, &csr);
        let issued = self.show(served, &nonce, proof, &csr, &node_id(&self.svid)).await?;
        let key = KeyPair::try_from(next.serialize_der()).unwrap();
        Ok(Self { svid: svid(&issued, next), key })
    }

    async fn back(&self, served: &Served) -> Result<Self, Status> {
        self.back_with(served, &key()).await
    }

    fn proof(&self, nonce: &[u8], csr: &[u8]) -> Vec<u8> {
        self.key.sign(&lineage_proof("cluster.local", "local", nonce, csr)).unwrap()
    }

    async fn show(
        &self,
        served: &Served,
        nonce: &[u8],
        signature: Vec<u8>,
        csr: &[u8],
        expects: &str,
    ) -> Result<v1::IssuedSvid, Status> {
        let chain = self.svid.chain().iter().map(|der| der.to_vec()).collect();
        let evidence = v1::LineageEvidence { chain, nonce: nonce.to_vec(), signature };
        let evidence = Some(Evidence::Lineage(evidence));
        let request = v1::AttestNodeRequest { evidence, csr: csr.to_vec(), node_id: expects.into() };
        let mut client = CertificateAuthorityClient::new(stock(served));
        client.attest_node(request).await.map(tonic::Response::into_inner)
    }
}

fn node_id(svid: &X509Svid) -> String {
    svid.id().to_string()
}

/// The CA takes a certificate of its own that is good by the clock a moment after that was set.
async fn nonce(served: &Served) -> Vec<u8> {
    let ask = async || NodeAttestationClient::new(stock(served)).challenge(v1::ChallengeRequest {}).await;
    soon("a nonce", ask).await.into_inner().nonce
}

fn refused(outcome: Result<Disk, Status>) -> Code {
    outcome.err().expect("it is refused").code()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_off_comes_back_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &Hands::new()).await;
    let first = Disk::attested(&served, "one").await;
    served.hands.advance(HOUR / 2);
    let second = first.renewed(&served).await;
    served.hands.advance(20 * DAY);

    // What proves nothing: another key, another purpose, another request, a nonce of before.
    let (good, request) = (nonce(&served).await, csr(&key()));
    let stranger = Disk { svid: second.svid.clone(), key: key() };
    let show = async |proof| second.show(&served, &good, proof, &request, "").await.unwrap_err().code();
    assert_eq!(show(stranger.proof(&good, &request)).await, Code::Unauthenticated);
    let machine = second.key.sign(&machine_proof("cluster.local", "local", &good, &request)).unwrap();
    assert_eq!(show(machine).await, Code::Unauthenticated);
    assert_eq!(show(second.proof(&good, &csr(&key()))).await, Code::Unauthenticated);

    // The reply is lost: the same key is answered with the same certificate.
    let next = key();
    let third = second.back_with(&served, &next).await.unwrap();
    let again = second.back_with(&served, &next).await.unwrap();
    assert_eq!(third.svid.chain(), again.svid.chain());
    let fourth = third.renewed(&served).await;

    // A proof is good once.
    served.hands.advance(DAY);
    let (once, request) = (nonce(&served).await, csr(&next));
    let proof = fourth.proof(&once, &request);
    let show = async || fourth.show(&served, &once, proof.clone(), &request, "").await;
    show().await.unwrap();
    assert_eq!(show().await.unwrap_err().code(), Code::Unauthenticated);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_a_disk_ends_the_lineage_as_at_a_renewal() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &Hands::new()).await;
    let stolen = Disk::attested(&served, "one").await;
    served.hands.advance(2 * DAY);
    let thief = stolen.back(&served).await.unwrap();
    // The node shows the same certificate for a key of its own: there are two holders, and neither goes on.
    assert_eq!(refused(stolen.back(&served).await), Code::Unauthenticated);
    let renewed = served.renew(&thief.svid, &key()).await;
    assert_eq!(renewed.unwrap_err().code(), Code::Unauthenticated);
    served.hands.advance(2 * DAY);
    assert_eq!(refused(thief.back(&served).await), Code::Unauthenticated);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_comes_back_who_was_revoked_or_away_too_long_or_where_that_is_forbidden() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::new(folder.path().join("ca"));
    config.nodes.reattest_within = Some(5 * DAY);
    let served = Served::start_with(config, &Hands::new()).await;
    let (one, two, three) = (
        Disk::attested(&served, "one").await,
        Disk::attested(&served, "two").await,
        Disk::attested(&served, "three").await,
    );
    served.hands.advance(3 * DAY);
    let why = RevocationReason::KeyCompromise;
    nonce(&served).await;
    hands::revoke(&served, hands::identity(&node("one")), why).await.unwrap();
    // The certificate has ended long ago, and is taken back all the same: it could come back by it.
    hands::revoke(&served, hands::serial(two.svid.serial()), why).await.unwrap();
    assert_eq!(refused(one.back(&served).await), Code::Unauthenticated);
    assert_eq!(refused(two.back(&served).await), Code::Unauthenticated);
    hands::give_back(&served, &node("one")).await.unwrap();
    served.hands.advance(Duration::from_secs(60));
    assert_eq!(refused(one.back(&served).await), Code::Unauthenticated, "its lineage has ended");
    // The list forgets what is over, and not this.
    served.hands.advance(DAY);
    assert_eq!(refused(two.back(&served).await), Code::Unauthenticated);
    let three = three.back(&served).await.unwrap();
    served.hands.advance(5 * DAY + HOUR);
    assert_eq!(refused(three.back(&served).await), Code::Unauthenticated, "away too long");
    served.stop().await;

    let mut config = Config::new(folder.path().join("strict"));
    config.nodes.reattest_within = Some(Duration::ZERO);
    let served = Served::start_with(config, &Hands::new()).await;
    Disk::attested(&served, "one").await;
    let challenge = NodeAttestationClient::new(stock(&served)).challenge(v1::ChallengeRequest {}).await;
    assert_eq!(challenge.unwrap_err().code(), Code::Unauthenticated, "nobody needs a nonce");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evidence_of_another_node_than_the_agent_expects_is_told_and_not_used_up() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &Hands::new()).await;
    let (token, ours) = (served.token(&node("one")).await, key());
    let attest = async |expects: &str| {
        let evidence = Some(Evidence::JoinToken(token.clone()));
        let request = v1::AttestNodeRequest { evidence, csr: csr(&ours), node_id: expects.into() };
        CertificateAuthorityClient::new(served.pinned(&token)).attest_node(request).await
    };
    for wrong in ["two", "one2"] {
        let refused = attest(node(wrong).as_str()).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        let said = refused.message();
        assert!(said.contains(node("one").as_str()) && said.contains(node(wrong).as_str()), "{said}");
    }
    assert_eq!(attest("nonsense").await.unwrap_err().code(), Code::InvalidArgument);
    let issued = attest(node("one").as_str()).await.unwrap().into_inner();
    assert_eq!(*svid(&issued, &ours).id(), node("one"), "the token was still good");

    let one = Disk { svid: svid(&issued, &ours), key: ours };
    let (nonce, request) = (nonce(&served).await, csr(&key()));
    let shown = one.show(&served, &nonce, one.proof(&nonce, &request), &request, node("two").as_str()).await;
    assert_eq!(shown.unwrap_err().code(), Code::FailedPrecondition);
    served.stop().await;
}
