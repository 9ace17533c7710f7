#![no_main]

use alcazar_node_agent::SavedNode;
use libfuzzer_sys::fuzz_target;

// A file that may be damaged: it reads or it is an error, and what reads writes again.
fuzz_target!(|bytes: &[u8]| {
    if let Ok(saved) = SavedNode::decode(bytes) {
        assert!(saved.encode().is_ok());
    }
});
