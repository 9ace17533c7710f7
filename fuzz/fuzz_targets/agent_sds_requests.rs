#![no_main]

use std::sync::{Arc, LazyLock};

use alcazar_api::envoy::discovery::{DeltaDiscoveryRequest, DiscoveryRequest};
use alcazar_api::envoy::tls::Secret;
use alcazar_api::envoy::{Any, SECRET_URL, unpack};
use alcazar_api::sds::{bundle_from_secret, svid_from_secret};
use alcazar_identity::Credentials;
use alcazar_node_agent::registry::Held;
use alcazar_node_agent::sds::{Delta, Sotw, View};
use libfuzzer_sys::fuzz_target;

/// What the caller may see: one certificate, and the roots of its trust domain.
static HELD: LazyLock<(String, View)> = LazyLock::new(|| {
    let secret = |bytes: &[u8]| {
        let any = Any { type_url: SECRET_URL.to_owned(), value: bytes.to_vec() };
        unpack::<Secret>(SECRET_URL, &any).unwrap()
    };
    let svid = svid_from_secret(&secret(include_bytes!("../seeds/sds_secret/certificate"))).unwrap();
    let id = svid.id().clone();
    let roots = secret(include_bytes!("../seeds/sds_secret/bundle"));
    let bundle = bundle_from_secret(&roots, id.trust_domain().clone(), 1).unwrap();
    let held = Held::Certificate(Arc::new(Credentials::new(svid, bundle.into())));
    (id.to_string(), View::new([(id, Arc::new(held))]))
});

// A local process sends what it likes, in any order. Each chunk is one request of both kinds of stream; after some of them what
// it may see is another thing.
fuzz_target!(|chunks: Vec<Vec<u8>>| {
    let (mut sotw, mut delta, nothing) = (Sotw::default(), Delta::default(), View::default());
    let (id, everything) = &*HELD;
    for (number, chunk) in chunks.into_iter().enumerate() {
        let view = if number % 4 == 3 { &nothing } else { everything };
        let any = Any { type_url: String::new(), value: chunk };
        if unpack::<DiscoveryRequest>("", &any).is_ok_and(|request| sotw.hear(&request).is_ok()) {
            let said = sotw.say(view);
            said.iter().flat_map(|said| &said.resources).for_each(|resource| is_only_its_own(resource, id));
            assert!(sotw.say(view).is_none(), "nothing is said twice");
        }
        if unpack::<DeltaDiscoveryRequest>("", &any).is_ok_and(|request| delta.hear(&request).is_ok()) {
            let said = delta.say(view);
            let resources = said.iter().flat_map(|said| &said.resources).filter_map(|resource| resource.resource.as_ref());
            resources.for_each(|resource| is_only_its_own(resource, id));
            assert!(delta.say(view).is_none(), "nothing is said twice");
        }
    }
});

/// A key is in what is asked for by `default` or the caller's own identity, and in nothing else.
fn is_only_its_own(resource: &Any, id: &str) {
    let secret = unpack::<Secret>(SECRET_URL, resource).unwrap();
    let has_key = svid_from_secret(&secret).is_ok();
    assert_eq!(has_key, secret.name == "default" || secret.name == id, "{}", secret.name);
}
