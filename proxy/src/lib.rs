//! The data plane: mutual TLS, decisions, and forwarding.
