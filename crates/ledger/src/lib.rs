//! An append-only Merkle log (RFC 9162) in checksummed segment files, durable before an append is acknowledged.
