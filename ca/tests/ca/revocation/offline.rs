//! A root that is kept offline takes intermediates back: what it signs is handed out as it is, and nobody else's is.

use std::{fs, path::Path, sync::Arc, time::Duration};

use alcazar_api::ca::v1;
use alcazar_ca::{
    Config, FileKeys, KeyAlgorithm,
    ceremony::{self, REVOCATIONS, RootFolder, RootKey, verify_transcript},
};
use alcazar_identity::{Fingerprint, RevocationReason};
use prost::Message;
use tonic::Code;

use super::hands::operator;
use crate::support::{Hands, Served, key, node};

const DAY: Duration = Duration::from_secs(24 * 3600);
const MINUTE: Duration = Duration::from_secs(60);

fn root(folder: &Path, hands: &Hands) -> RootFolder {
    let keys = Arc::new(FileKeys::sealed(folder, b"a long passphrase".to_vec().into()));
    let key = RootKey { keys, label: "root".parse().unwrap() };
    let domain = "cluster.local".parse().unwrap();
    RootFolder::init(folder, &domain, &key, KeyAlgorithm::P256, 3650 * DAY, hands.now()).unwrap()
}

/// Signs for a CA, which takes it over; its fingerprint.
fn round(config: &Config, by: &RootFolder, out: &Path, hands: &Hands) -> Fingerprint {
    let asked = ceremony::request(config, &config.key_store()).unwrap();
    let signed = by.sign(&by.propose(&asked.file, 365 * DAY, None, hands.now()).unwrap(), out).unwrap();
    ceremony::install(config, out, hands.now()).unwrap();
    signed.intermediate.fingerprint
}

fn take_back(by: &RootFolder, which: Fingerprint, hands: &Hands) -> v1::RevocationLists {
    let taking = by.propose_revocation(&which.to_string(), RevocationReason::CaCompromise, hands.now()).unwrap();
    let revoked = by.revoke(&taking).unwrap();
    v1::RevocationLists::decode(fs::read(revoked.file).unwrap().as_slice()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_offline_root_has_taken_back_is_taken_over_and_never_an_older_list_or_a_strangers() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let hands = Hands::new();
    let (by, stranger) = (root(&at("root"), &hands), root(&at("stranger"), &hands));
    let config = Config::new(at("data"));
    let first = round(&config, &by, &at("set"), &hands);
    let served = Served::start_with(config.clone(), &hands).await;
    let one = served.attested(&node("one")).await;
    let print = by.info().fingerprint;
    let from_the_set = served.ca.crl(print).await.unwrap();

    hands.advance(MINUTE);
    let second = round(&config, &by, &at("set"), &hands);
    served.ca.look_after_hierarchy().await.unwrap();
    assert_eq!(served.ca.fingerprints().intermediate.fingerprint, second);
    assert_ne!(served.ca.crl(print).await.unwrap(), from_the_set, "the newer set's");
    let two = served.attested(&node("two")).await;
    hands.advance(MINUTE);
    let once = take_back(&by, first, &hands);
    hands.advance(MINUTE);
    let other = round(&Config::new(at("other")), &by, &at("other-set"), &hands);
    let twice = take_back(&by, other, &hands);

    let import = async |lists: v1::RevocationLists| operator(&served).await.import_revocations(lists).await;
    let taken = import(twice.clone()).await.unwrap().into_inner().taken;
    assert_eq!(taken.len(), 2, "the list, and the CRL: {taken:?}");
    assert_eq!(served.ca.crl(print).await.unwrap(), twice.crls[0]);
    assert!(served.renew(&one, &key()).await.is_err(), "its intermediate is revoked");
    assert!(served.renew(&two, &key()).await.is_ok());
    // What came earlier and arrives late changes nothing.
    let older = import(v1::RevocationLists { crls: once.crls, ..Default::default() }).await.unwrap().into_inner();
    assert!(older.taken.is_empty(), "{older:?}");
    assert_eq!(served.ca.crl(print).await.unwrap(), twice.crls[0]);
    let exported =
        operator(&served).await.export_revocations(v1::ExportRevocationsRequest {}).await.unwrap().into_inner();
    assert_eq!(exported.crls, twice.crls, "for other clusters");

    // Of a root that nobody trusts here nothing is taken, nor what was altered.
    let theirs = round(&Config::new(at("theirs")), &stranger, &at("their-set"), &hands);
    let theirs = take_back(&stranger, theirs, &hands);
    let mut altered = twice.crls[0].clone();
    let last = altered.len() - 1;
    altered[last] ^= 1;
    for crls in [theirs.crls.clone(), vec![altered], vec![b"no list".to_vec()]] {
        let refused = import(v1::RevocationLists { crls, ..Default::default() }).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    }
    assert_eq!(import(theirs).await.unwrap_err().code(), Code::InvalidArgument);
    served.stop().await;
    let served = Served::start_with(config, &hands).await;
    assert_eq!(served.ca.crl(print).await.unwrap(), twice.crls[0], "after a start, too");
    served.stop().await;
}

#[test]
fn a_root_takes_back_what_it_has_signed_and_forgets_nothing_that_it_took_back() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let hands = Hands::new();
    let by = root(&at("root"), &hands);
    let one = round(&Config::new(at("one")), &by, &at("set-one"), &hands);
    let refused =
        |which: &str| by.propose_revocation(which, RevocationReason::Superseded, hands.now()).unwrap_err().to_string();
    let stranger = root(&at("stranger"), &hands);
    round(&Config::new(at("theirs")), &stranger, &at("theirs-set"), &hands);
    let theirs = at("theirs-set").join("ca-cert.pem");
    assert!(refused(theirs.to_str().unwrap()).contains("the root that has signed it"));
    assert!(refused(at("root/root-cert.pem").to_str().unwrap()).contains("this root itself"));
    assert!(refused(&Fingerprint::of(b"mistyped").to_string()).contains("give the file"));
    assert!(refused(at("root/root.json").to_str().unwrap()).contains("a certificate in PEM"));

    let first = take_back(&by, one, &hands);
    let proposal = by.propose_revocation(&one.to_string(), RevocationReason::Superseded, hands.now()).unwrap();
    assert!(proposal.to_string().contains("It was taken back before"), "{proposal}");
    // A list that is not the root's own is not gone on from: what it said would be forgotten.
    let file = at("root").join(REVOCATIONS);
    let kept = fs::read(&file).unwrap();
    let mut altered = first.clone();
    altered.lists[0].signature[9] ^= 1;
    for bytes in [b"damage".to_vec(), Vec::new(), altered.encode_to_vec()] {
        fs::write(&file, bytes).unwrap();
        assert!(refused(&one.to_string()).contains("put back the file"), "{}", refused(&one.to_string()));
    }
    fs::write(&file, kept).unwrap();
    let entries = verify_transcript(&at("root"), &by.info().certificate).unwrap();
    let acts: Vec<_> = entries.iter().map(|entry| (entry.act.as_str(), entry.reason.as_str())).collect();
    assert_eq!(acts, [("init", ""), ("sign", ""), ("revoke", "cACompromise")]);
    assert_eq!(entries[2].certificate, one.to_string());
}
