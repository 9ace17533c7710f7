//! The state machines, request by request.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use alcazar_api::envoy::core::data_source::Specifier;
use alcazar_api::envoy::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use alcazar_api::envoy::tls::Secret;
use alcazar_api::envoy::tls::secret::Type;
use alcazar_api::envoy::{SECRET_URL, Status, unpack};
use alcazar_identity::{Credentials, Crl, SpiffeId, TrustBundle, TrustDomain, pem_block, verify_crl};
use proptest::prelude::*;

use super::*;
use crate::crls::Crls;
use crate::registry::Held;
use crate::testing::ca::Ca;

const REVIEWS: &str = "spiffe://td.example/ns/shop/sa/reviews";
const RATINGS: &str = "spiffe://td.example/ns/shop/sa/ratings";
const OWN: &str = "spiffe://td.example";

fn noon() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// Certificates, new ones at each call.
struct Mint(Ca);

impl Mint {
    fn new() -> Self {
        Self(Ca::new(noon()))
    }

    fn held(&mut self, id: &str) -> (SpiffeId, Arc<Held>) {
        let svid = self.0.svid(id, Duration::from_secs(3600), noon());
        (id.parse().unwrap(), Arc::new(Held::Certificate(Arc::new(Credentials::new(svid, self.0.bundles())))))
    }

    fn view(&mut self) -> View {
        View::new([self.held(REVIEWS), self.held(RATINGS)])
    }
}

fn nothing(id: &str) -> (SpiffeId, Arc<Held>) {
    (id.parse().unwrap(), Arc::new(Held::Nothing("expired an hour ago".into())))
}

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn ask(names: &[&str], nonce: &str, error: Option<&str>) -> DiscoveryRequest {
    DiscoveryRequest {
        resource_names: strings(names),
        response_nonce: nonce.to_owned(),
        error_detail: error.map(|message| Status { message: message.to_owned(), ..Status::default() }),
        ..DiscoveryRequest::default()
    }
}

/// What a response holds: `name` for a secret, `!name` for one that there is not.
fn told(response: Option<DiscoveryResponse>) -> Option<(String, String)> {
    let response = response?;
    let there = response.resources.iter().map(|any| unpack::<Secret>(SECRET_URL, any).unwrap().name);
    let absent = response.resource_errors.iter().map(|e| format!("!{}", e.resource_name.as_ref().unwrap().name));
    Some((there.chain(absent).collect::<Vec<_>>().join(" "), response.nonce))
}

#[test]
fn names_lead_to_what_is_the_callers() {
    let mut mint = Mint::new();
    let view = mint.view();
    let expect = |view: &View, name: &str, expected: &str| {
        let found = match view.find(name) {
            Found::Certificate(credentials) => credentials.svid().id().to_string(),
            Found::Bundle(bundle, _) => format!("bundle of {}", bundle.trust_domain()),
            Found::Bundles(bundles) => format!("bundles of {}", bundles.iter().count()),
            Found::Revocations(evidence) => format!("{} bytes of revocations", evidence.len()),
            Found::NotNow(why) => why.to_owned(),
            Found::Unknown => "unknown".to_owned(),
        };
        assert_eq!(found, expected, "{name}");
    };
    expect(&view, "default", REVIEWS);
    expect(&view, "ROOTCA", "bundle of td.example");
    expect(&view, "ALL", "bundles of 1");
    expect(&view, "REVOCATIONS", "0 bytes of revocations");
    expect(&view, REVIEWS, REVIEWS);
    expect(&view, RATINGS, RATINGS);
    expect(&view, OWN, "bundle of td.example");
    for unknown in ["", "Default", "rootca", "spiffe://other", "spiffe://td.example/ns/shop/sa/payments", "file:///x"] {
        expect(&view, unknown, "unknown");
    }
    let view = View::new([nothing(REVIEWS), mint.held(RATINGS)]);
    expect(&view, "default", "expired an hour ago");
    // What is the same for all of them comes by another, while one was withdrawn.
    expect(&view, "ROOTCA", "bundle of td.example");
    expect(&view, "REVOCATIONS", "0 bytes of revocations");
    let view = View::new([nothing(REVIEWS), nothing(RATINGS)]);
    expect(&view, "ROOTCA", "expired an hour ago");
    let view = View::new([nothing(REVIEWS), mint.held(RATINGS)]);
    expect(&view, RATINGS, RATINGS);
    expect(&View::default(), "default", "unknown");
}

#[test]
fn a_version_is_that_of_the_content() {
    let mut mint = Mint::new();
    let (one, two) = (mint.view(), mint.view());
    let version = |view: &View, name: &str| view.find(name).version();
    assert_eq!(version(&one, "default"), version(&one, REVIEWS));
    assert_ne!(version(&one, "default"), version(&two, "default"));
    assert_eq!(version(&one, "ROOTCA"), version(&two, "ROOTCA"), "the roots are the same");
    let other = Ca::new(noon()).root_der();
    mint.0.add_root(other);
    assert_ne!(version(&one, "ROOTCA"), version(&mint.view(), "ROOTCA"));
}

#[test]
fn crls_come_with_the_roots_of_their_own_trust_domain_and_a_new_one_is_a_change() {
    let mut mint = Mint::new();
    let (own, partner): (TrustDomain, TrustDomain) =
        ("td.example".parse().unwrap(), "partner.example".parse().unwrap());
    mint.0.foreign.push(TrustBundle::new(partner.clone(), 1, [mint.0.root_der()]).unwrap());
    let bundles = mint.0.bundles();
    let crl = |hours: u64| {
        let crl = mint.0.crl(noon(), noon() + Duration::from_secs(hours * 3600));
        verify_crl(&crl.crl, &[crl.chain[0].as_slice().into()], bundles.get(&own).unwrap(), noon()).unwrap()
    };
    let (one, two) = (crl(24), crl(25));
    let view = mint.view();
    let with = |crls: &[&Crl]| {
        let crls = crls.iter().map(|crl| (*crl).clone()).collect();
        view.clone().with_crls(Arc::new(Crls::new(own.clone(), crls)))
    };
    let context = |view: &View, name: &str| match view.find(name).secret(name).unwrap().r#type {
        Some(Type::ValidationContext(context)) => context,
        other => panic!("{other:?}"),
    };
    let pem = |crl: &Crl| pem_block("X509 CRL", crl.der()).into_bytes();
    let both = with(&[&one, &two]);
    for name in ["ROOTCA", OWN] {
        let (checked, plain) = (context(&both, name), context(&view, name));
        let told = checked.crl.and_then(|source| source.specifier);
        assert_eq!(told, Some(Specifier::InlineBytes([pem(&one), pem(&two)].concat())), "{name}");
        assert!(checked.only_verify_leaf_cert_crl && checked.trusted_ca == plain.trusted_ca, "{name}");
        assert!(plain.crl.is_none() && !plain.only_verify_leaf_cert_crl, "{name}");
        let version = |view: &View| view.find(name).version().unwrap();
        let versions = [&view, &with(&[&one]), &with(&[&two]), &both].map(version);
        let different: std::collections::BTreeSet<_> = versions.iter().collect();
        assert_eq!(different.len(), 4, "{versions:?}");
        assert_eq!(version(&with(&[])), version(&view));
    }
    // They are not about anybody else, and the validator of several trust domains has none.
    for name in ["spiffe://partner.example", "ALL"] {
        assert!(context(&both, name).crl.is_none(), "{name}");
        assert_eq!(both.find(name).version(), view.find(name).version(), "{name}");
    }
}

#[test]
fn a_sotw_stream_goes_its_way() {
    let mut mint = Mint::new();
    let (view, rotated) = (mint.view(), mint.view());
    let mut stream = Sotw::default();
    let mut step =
        |request: Option<DiscoveryRequest>, view: &View, heard: Option<Heard>, expected: Option<(&str, &str)>| {
            if let Some(request) = request {
                assert_eq!(stream.hear(&request).ok(), heard);
            }
            assert_eq!(told(stream.say(view)), expected.map(|(told, nonce)| (told.to_owned(), nonce.to_owned())));
            assert_eq!(told(stream.say(view)), None, "nothing is said twice");
        };
    let subscribed = Some(Heard::Subscribed);
    let acknowledged = Some(Heard::Acknowledged);
    step(None, &view, None, None);
    step(Some(ask(&["default"], "", None)), &view, subscribed.clone(), Some(("default", "1")));
    step(Some(ask(&["default"], "1", None)), &view, acknowledged.clone(), None);
    // A push, rejected: it is not repeated.
    step(None, &rotated, None, Some(("default", "2")));
    step(Some(ask(&["default"], "2", Some("no"))), &rotated, Some(Heard::Rejected("no".into())), None);
    // One more name; an answer to an overtaken response; a name that is unknown.
    step(Some(ask(&["default", "ROOTCA"], "2", None)), &rotated, subscribed.clone(), Some(("ROOTCA default", "3")));
    step(Some(ask(&["x"], "2", None)), &rotated, Some(Heard::Stale), None);
    step(Some(ask(&["default", "x"], "3", None)), &rotated, subscribed.clone(), Some(("default !x", "4")));
    step(Some(ask(&["default", "x"], "4", None)), &rotated, acknowledged.clone(), None);
    // Fewer names need no answer, and what is not subscribed to is not pushed.
    step(Some(ask(&["x"], "4", None)), &rotated, acknowledged.clone(), None);
    step(Some(ask(&[], "4", None)), &view, acknowledged, None);
    // A client that starts anew gets everything anew.
    step(Some(ask(&["default"], "", None)), &view, subscribed, Some(("default", "5")));
}

#[test]
fn a_secret_that_comes_or_goes_is_told() {
    let mut mint = Mint::new();
    let pending = View::new([nothing(REVIEWS)]);
    let mut stream = Sotw::default();
    // A nonce of an earlier stream must not leave a client hanging.
    stream.hear(&ask(&["default"], "17", None)).unwrap();
    let first = stream.say(&pending).unwrap();
    assert_eq!(first.resource_errors[0].error_detail.as_ref().unwrap().message, "expired an hour ago");
    assert_eq!(told(stream.say(&mint.view())), Some(("default".into(), "2".into())));
    assert_eq!(told(stream.say(&pending)), Some(("!default".into(), "3".into())));
}

#[test]
fn no_names_are_all_names_once() {
    let mut mint = Mint::new();
    let view = mint.view();
    let mut stream = Sotw::default();
    stream.hear(&ask(&[], "", None)).unwrap();
    assert_eq!(told(stream.say(&view)), Some(("default ROOTCA".into(), "1".into())));
    stream.hear(&ask(&["ROOTCA"], "1", None)).unwrap();
    assert_eq!(told(stream.say(&view)), Some(("ROOTCA".into(), "2".into())));
}

#[test]
fn requests_have_limits() {
    let mut stream = Sotw::default();
    let many: Vec<String> = (0..=MAX_NAMES).map(|n| n.to_string()).collect();
    let other = DiscoveryRequest { type_url: "type.googleapis.com/x".into(), ..DiscoveryRequest::default() };
    assert_eq!(stream.hear(&other), Err(RequestError::Type("type.googleapis.com/x".into())));
    let too_many = DiscoveryRequest { resource_names: many.clone(), ..DiscoveryRequest::default() };
    assert_eq!(stream.hear(&too_many), Err(RequestError::TooMany));
    assert_eq!(stream.hear(&ask(&[&"x".repeat(4096)], "", None)), Err(RequestError::LongName(4096)));

    let mut stream = Delta::default();
    let (one, rest) = many.split_first().unwrap();
    let subscribe = |names: &[String]| DeltaDiscoveryRequest {
        resource_names_subscribe: names.to_vec(),
        ..DeltaDiscoveryRequest::default()
    };
    assert_eq!(stream.hear(&subscribe(rest)), Ok(Heard::Subscribed));
    assert_eq!(stream.hear(&subscribe(std::slice::from_ref(one))), Err(RequestError::TooMany), "in small bites too");
}

fn delta_told(response: Option<DeltaDiscoveryResponse>) -> Option<String> {
    let response = response?;
    let there = response.resources.iter().map(|resource| resource.name.clone());
    let removed = response.removed_resources.iter().map(|name| format!("!{name}"));
    Some(there.chain(removed).collect::<Vec<_>>().join(" "))
}

#[test]
fn a_delta_stream_tells_what_changed() {
    let mut mint = Mint::new();
    let (view, rotated) = (mint.view(), mint.view());
    let mut stream = Delta::default();
    let mut step = |subscribe: &[&str], unsubscribe: &[&str], nonce: &str, view: &View, expected: Option<&str>| {
        let request = DeltaDiscoveryRequest {
            resource_names_subscribe: strings(subscribe),
            resource_names_unsubscribe: strings(unsubscribe),
            response_nonce: nonce.to_owned(),
            ..DeltaDiscoveryRequest::default()
        };
        stream.hear(&request).unwrap();
        assert_eq!(delta_told(stream.say(view)).as_deref(), expected);
        assert_eq!(delta_told(stream.say(view)), None, "nothing is said twice");
    };
    step(&["default", "x"], &[], "", &view, Some("default !x"));
    step(&[], &[], "1", &view, None);
    step(&["ROOTCA"], &[], "", &view, Some("ROOTCA"));
    // The roots are the same after a rotation: only the certificate is told.
    step(&[], &[], "2", &rotated, Some("default"));
    // Who asks again is told again; who does not care any more is not.
    step(&["ROOTCA"], &["default"], "3", &view, Some("ROOTCA"));
    step(&[], &[], "", &View::new([nothing(REVIEWS)]), Some("!ROOTCA"));
    step(&["*"], &[], "", &view, Some("ROOTCA default"));
    step(&[], &["*"], "", &rotated, None);
}

#[test]
fn a_delta_client_that_comes_back_is_told_only_what_is_new() {
    let mut mint = Mint::new();
    let view = mint.view();
    let request = |version: String| DeltaDiscoveryRequest {
        resource_names_subscribe: strings(&["default", "ROOTCA"]),
        initial_resource_versions: [("default".to_owned(), version)].into(),
        ..DeltaDiscoveryRequest::default()
    };
    let held = view.find("default").version().unwrap();
    for (version, expected) in [(held, "ROOTCA"), ("0123456789abcdef".to_owned(), "ROOTCA default")] {
        let mut stream = Delta::default();
        stream.hear(&request(version)).unwrap();
        assert_eq!(delta_told(stream.say(&view)).as_deref(), Some(expected));
    }
}

fn any_name() -> impl Strategy<Value = String> {
    prop_oneof![Just("default"), Just("ROOTCA"), Just(REVIEWS), Just(OWN), Just("*"), Just("x"), Just("")]
        .prop_map(str::to_owned)
}

proptest! {
    #[test]
    fn every_subscription_is_answered_and_no_answer_is_repeated(
        requests in proptest::collection::vec(
            (proptest::collection::vec(any_name(), 0..4), any::<bool>(), any::<bool>()), 1..12,
        ),
    ) {
        let mut mint = Mint::new();
        let view = mint.view();
        let (mut sotw, mut nonce) = (Sotw::default(), String::new());
        for (names, fresh, reject) in requests {
            let request = DiscoveryRequest {
                resource_names: names.clone(),
                response_nonce: if fresh { String::new() } else { nonce.clone() },
                error_detail: reject.then(Status::default),
                ..DiscoveryRequest::default()
            };
            sotw.hear(&request).unwrap();
            let known: Vec<_> = sotw.subscribed().map(str::to_owned).collect();
            prop_assert!(names.iter().all(|name| known.contains(name)));
            if let Some(response) = sotw.say(&view) {
                let answered = response.resources.len() + response.resource_errors.len();
                prop_assert_eq!(answered, known.len());
                nonce = response.nonce;
            }
            prop_assert!(sotw.say(&view).is_none());
        }
    }
}
