//! Shared state: get, compare-and-swap, watch and lease, on sled today.
