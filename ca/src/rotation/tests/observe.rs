//! What a CA sees of each class of party.

use std::time::{Duration, SystemTime};

use alcazar_identity::SpiffeId;
use alcazar_store::{Expected, Revision};
use rcgen::{CertificateParams, KeyPair};

use super::{
    super::{
        Adopted, Class, Kind, Observed, Party, Role, Standing, Timed, Why,
        observe::{CLIENTS, FEDERATED, TOKENS},
    },
    whole::{KINDS, Whole},
};
use crate::{
    callers::Plug,
    csr::{Csr, KeyHash},
    federation::{BundleEndpointConfig, EndpointProfile},
    records::{Leaf, Lineage, family},
};

async fn parties(whole: &Whole) -> Vec<Party> {
    whole.ca.observe(&whole.rotation().await, Duration::ZERO).await.unwrap().parties
}

async fn timed(whole: &Whole, name: &str) -> Option<Timed> {
    let found = parties(whole).await.into_iter().find(|party| party.name == name)?;
    match found.class {
        Class::Timed(timed) => Some(timed),
        Class::Observed(observed) => panic!("{observed:?}"),
    }
}

fn csr() -> Csr {
    let key = KeyPair::generate().unwrap();
    Csr::from_der(CertificateParams::default().serialize_request(&key).unwrap().der()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_ca_itself_is_seen_with_what_it_serves_and_signs() {
    for kind in KINDS {
        let whole = Whole::open(|_| ()).await;
        whole.ca.start_rotation(kind).await.unwrap();
        let seen = parties(&whole).await;
        let [Party { name, class: Class::Observed(Observed { role: Role::Replica, report: Some(report), .. }) }] =
            &*seen
        else {
            panic!("{seen:?}")
        };
        let old = whole.rotation().await.old;
        assert_eq!((name.as_str(), report.signing.as_ref()), ("the CA of local", Some(&old)));
        assert_eq!(report.sequence, whole.ca.own_bundle().unwrap().sequence());
        assert_eq!(report.leaves.get(&old).copied(), (kind != Kind::Jwt).then_some(1), "{kind}");
        whole.ca.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_is_seen_from_its_lineage_on_and_no_more_once_it_is_revoked() {
    let mut whole = Whole::open(|_| ()).await;
    let node: SpiffeId = "spiffe://cluster.local/node/local/vm-1".parse().unwrap();
    let lineage = Lineage::begin(Leaf::sample(1, KeyHash::of(b"1")), Revision::new(1));
    let records = &whole.ca.0.records;
    records.put(family::NODES, node.principal(), Expected::Absent, &lineage).await.unwrap();
    whole.ca.start_rotation(Kind::Root).await.unwrap();
    let report = async |whole: &Whole| {
        let found = parties(whole).await.into_iter().find(|party| party.name == node.principal())?;
        let Class::Observed(Observed { role: Role::Node, report, .. }) = found.class else { panic!("{found:?}") };
        Some(report)
    };
    assert_eq!(report(&whole).await, Some(None), "it has not said anything");
    // The rotation stands there and names it.
    for _ in 0..10 {
        whole.look().await;
    }
    let waits = whole.ca.rotation().await.unwrap().unwrap().waits;
    assert_eq!((waits.len(), &waits[0].why), (1, &Why::Unheard));
    assert!(matches!(waits[0].standing, Standing::Unreachable(_)));

    let issuer = whole.ca.hierarchy().intermediate().info().fingerprint.to_string();
    let heard = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let leaves = [(issuer, 2), ("unknown".to_owned(), 1)].into();
    let said = Adopted { heard, sequence: 1, round: 0, leaves, behind: vec!["a proxy".into()] };
    whole.ca.0.records.put_adopted(&node, &said).await.unwrap();
    let told = report(&whole).await.unwrap().unwrap();
    assert_eq!((told.sequence, &told.behind[..]), (1, &["a proxy".to_owned()][..]));
    let old = whole.rotation().await.old;
    assert_eq!(told.leaves, [(old, 3)].into(), "of an issuer that nobody knows the worst is believed");

    whole.ca.end_lineage(&node).await.unwrap();
    assert_eq!(report(&whole).await, None);
    assert!(whole.ca.0.records.adopted().await.unwrap().is_empty(), "nothing of it is left");
    whole.ca.close().await;
}

#[tokio::test(start_paused = true)]
async fn whoever_is_issued_to_and_never_reports_is_waited_for_by_the_life_of_what_it_got() {
    let whole = Whole::open(|_| ()).await;
    whole.ca.start_rotation(Kind::Root).await.unwrap();
    assert_eq!(timed(&whole, CLIENTS).await, None);
    let id = SpiffeId::workload(whole.ca.trust_domain(), "shop", "reviews").unwrap();
    let life = Duration::from_secs(2400);
    whole.ca.issue_for("secret shop/istio.reviews", Plug::Secrets, &id, &csr(), life).await.unwrap();
    let noted = timed(&whole, CLIENTS).await.unwrap();
    assert_eq!((noted.bundle, noted.leaf), (life + Duration::from_secs(1), life + Duration::from_secs(1)));
    // Who asks for more than anybody gets is not waited for longer than anything lives.
    let ages = Duration::from_secs(1_000_000);
    whole.ca.issue_for("secret shop/istio.reviews", Plug::Secrets, &id, &csr(), ages).await.unwrap();
    let day = Duration::from_secs(24 * 3600 + 1);
    assert_eq!(timed(&whole, CLIENTS).await.unwrap().leaf, day);
    whole.ca.close().await;
}

#[tokio::test(start_paused = true)]
async fn federated_trust_domains_are_waited_for_where_they_can_fetch_the_bundle() {
    for kind in KINDS {
        let whole = Whole::open(|config| {
            config.bundle_endpoint = Some(BundleEndpointConfig {
                listen: ([127, 0, 0, 1], 0).into(),
                profile: EndpointProfile::Spiffe,
                refresh_hint: Duration::from_secs(400),
            });
        })
        .await;
        whole.ca.start_rotation(kind).await.unwrap();
        let expected = Timed { bundle: Duration::from_secs(500), leaf: Duration::ZERO };
        assert_eq!(timed(&whole, FEDERATED).await, Some(expected), "{kind}");
        whole.ca.close().await;
    }
    let whole = Whole::open(|_| ()).await;
    whole.ca.start_rotation(Kind::Root).await.unwrap();
    assert_eq!(timed(&whole, FEDERATED).await, None, "nobody can fetch it");
    whole.ca.close().await;
}

#[tokio::test(start_paused = true)]
async fn tokens_are_waited_for_when_their_key_is_exchanged_and_certificates_are_not() {
    let whole = Whole::open(|_| ()).await;
    whole.ca.note_unreported(Duration::from_secs(3600)).await.unwrap();
    whole.ca.start_rotation(Kind::Jwt).await.unwrap();
    assert_eq!((timed(&whole, CLIENTS).await, timed(&whole, TOKENS).await), (None, None));
    whole.ca.note_token(Duration::from_secs(300)).await.unwrap();
    let noted = timed(&whole, TOKENS).await.unwrap();
    assert_eq!(noted.bundle, Duration::ZERO);
    assert!(noted.leaf > Duration::from_secs(300) && noted.leaf < Duration::from_secs(400), "{noted:?}");
    whole.ca.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_rotation_is_forced_in_the_step_that_a_person_has_seen_and_in_no_other() {
    let mut whole = Whole::open(|_| ()).await;
    whole.ca.note_unreported(Duration::from_secs(3600)).await.unwrap();
    whole.ca.start_rotation(Kind::Root).await.unwrap();
    for _ in 0..6 {
        whole.look().await;
    }
    let shown = whole.ca.rotation().await.unwrap().unwrap();
    assert_eq!(shown.waits.iter().map(|wait| wait.party.as_str()).collect::<Vec<_>>(), [CLIENTS]);
    let (step, clients) = (shown.rotation.step, [CLIENTS.to_owned()].into());
    let refused = whole.ca.force_rotation(step - 1, &clients).await.unwrap_err().to_string();
    assert!(refused.contains("distribute"), "{refused}");
    let forced = whole.ca.force_rotation(step, &clients).await.unwrap();
    assert!(forced.waits.is_empty(), "{:?}", forced.waits);
    while whole.rotation().await.step == step {
        whole.look().await;
    }
    assert!(whole.ca.force_rotation(step, &clients).await.is_err());
    whole.ca.close().await;
}

/// With `ALCAZAR_NODES=10000` it is a measurement; `--nocapture` shows it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_costs_as_much_as_there_are_nodes_and_no_more() {
    let whole = Whole::open(|_| ()).await;
    let nodes: u32 = option_env!("ALCAZAR_NODES").and_then(|text| text.parse().ok()).unwrap_or(400);
    let records = &whole.ca.0.records;
    let issuer = whole.ca.hierarchy().intermediate().info().fingerprint.to_string();
    let heard = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let put = async |number: u32| {
        let node: SpiffeId = format!("spiffe://cluster.local/node/local/vm-{number}").parse().unwrap();
        let lineage = Lineage::begin(Leaf::sample(number, KeyHash::of(&number.to_be_bytes())), Revision::new(1));
        records.put(family::NODES, node.principal(), Expected::Absent, &lineage).await.unwrap();
        let leaves = [(issuer.clone(), 30)].into();
        let said = Adopted { heard, sequence: 1, round: 0, leaves, behind: Vec::new() };
        records.put_adopted(&node, &said).await.unwrap();
    };
    whole.ca.start_rotation(Kind::Root).await.unwrap();
    let rotation = whole.rotation().await;
    let mut costs = Vec::new();
    for part in 0..2 {
        futures::future::join_all((part * nodes / 2..(part + 1) * nodes / 2).map(put)).await;
        let mut quickest = Duration::MAX;
        for _ in 0..3 {
            let begun = std::time::Instant::now();
            let seen = whole.ca.observe(&rotation, Duration::ZERO).await.unwrap();
            quickest = quickest.min(begun.elapsed());
            assert_eq!(seen.parties.len() as u32, (part + 1) * nodes / 2 + 1);
        }
        costs.push(quickest);
    }
    println!("a look at {} nodes: {:?}, at {nodes}: {:?}", nodes / 2, costs[0], costs[1]);
    assert!(costs[1] < costs[0] * 8 + Duration::from_millis(50), "{costs:?}");
    whole.ca.close().await;
}
