#![no_main]

use alcazar_api::envoy::discovery::DeltaDiscoveryResponse;
use alcazar_proxy::AdsState;
use libfuzzer_sys::fuzz_target;
use prost::Message;

// A response of the control plane: it is taken whole or refused, and answered in both cases.
fuzz_target!(|bytes: &[u8]| {
    let Ok(response) = DeltaDiscoveryResponse::decode(bytes) else { return };
    let Ok(name) = "shop/reviews-v1".parse() else { return };
    let mut state = AdsState::new(name);
    let nonce = response.nonce.clone();
    let answer = match state.take(response) {
        Ok(answer) => answer,
        Err(refused) => {
            assert!(refused.answer.error_detail.is_some());
            refused.answer
        }
    };
    assert_eq!(answer.response_nonce, nonce);
});
