//! Istio RBAC: documents to a compiled policy to an explained decision.
