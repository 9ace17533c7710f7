//! What crosses the wire is read strictly, and followed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops at the first surprise"
)]

mod an_sds_client_keeps_its_credentials_fresh;
mod revocation_lists_are_checked;
mod spiffe_documents;
