//! Mutual TLS between SPIFFE identities: one verifier, live credentials, acceptor and connector.
