#![no_main]

use alcazar_api::envoy::discovery::{DeltaDiscoveryRequest, DiscoveryRequest};
use alcazar_api::envoy::{Any, unpack};
use alcazar_node_agent::sds::{Delta, Sotw, View};
use libfuzzer_sys::fuzz_target;

// A local process sends what it likes, in any order. Each chunk is one request of both kinds of stream.
fuzz_target!(|chunks: Vec<Vec<u8>>| {
    let (mut sotw, mut delta, view) = (Sotw::default(), Delta::default(), View::default());
    for chunk in chunks {
        let any = Any { type_url: String::new(), value: chunk };
        if unpack::<DiscoveryRequest>("", &any).is_ok_and(|request| sotw.hear(&request).is_ok()) {
            drop(sotw.say(&view));
            assert!(sotw.say(&view).is_none(), "nothing is said twice");
        }
        if unpack::<DeltaDiscoveryRequest>("", &any).is_ok_and(|request| delta.hear(&request).is_ok()) {
            drop(delta.say(&view));
            assert!(delta.say(&view).is_none(), "nothing is said twice");
        }
    }
});
