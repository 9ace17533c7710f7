#![no_main]

use std::sync::LazyLock;

use alcazar_api::ca::v1;
use alcazar_node_agent::{Narrowing, Registration};
use alcazar_yaml::SourceFile;
use libfuzzer_sys::fuzz_target;

static REGISTERED: LazyLock<Vec<Registration>> = LazyLock::new(|| {
    let node = "spiffe://td/node/east/vm-1";
    let read = |(id, selectors): &(&str, &[&str])| {
        let wire = v1::Registration {
            id: (*id).into(),
            node_id: node.into(),
            spiffe_id: format!("spiffe://td/{id}"),
            selectors: selectors.iter().map(|selector| (*selector).to_owned()).collect(),
            ..v1::Registration::default()
        };
        Registration::read(&wire, &node.parse().unwrap()).unwrap()
    };
    [("a", &["uid:7"][..]), ("b", &["socket:b", "group:9"])].iter().map(read).collect()
});

// A file that a person wrote: it is understood or refused in one line, and what is left of a registration asks for all that it
// asked for before.
fuzz_target!(|text: &str| {
    match Narrowing::read(&SourceFile::new("narrow.yaml", text)) {
        Ok(narrowing) => {
            for registration in REGISTERED.iter() {
                let Some(narrowed) = narrowing.narrow(registration.clone()) else { continue };
                assert!(registration.selectors().iter().all(|selector| narrowed.selectors().contains(selector)));
                assert_eq!((narrowed.id(), narrowed.spiffe_id()), (registration.id(), registration.spiffe_id()));
                assert_eq!((narrowed.ttl(), narrowed.socket()), (registration.ttl(), registration.socket()));
            }
        }
        Err(error) => drop(error.to_string()),
    }
});
