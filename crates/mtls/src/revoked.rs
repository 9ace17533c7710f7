use std::sync::Arc;

use alcazar_identity::Revoked;

use crate::{LiveCredentials, PeerIdentity};

/// Completes when the peer of a connection is to be believed no more by the revocations of the moment.
///
/// A handshake judges a peer once; whoever holds a connection open awaits this beside it, and cuts it then.
pub async fn until_revoked(peer: PeerIdentity, mut credentials: LiveCredentials) -> Revoked {
    let mut seen = None;
    loop {
        let now = Arc::clone(credentials.borrow_and_update().revocations());
        // A rotation brings other credentials with the same revocations.
        if !seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, &now)) {
            if let Some(revoked) = peer.revoked_by(&now) {
                return revoked;
            }
            seen = Some(now);
        }
        if credentials.changed().await.is_err() {
            // Nobody is left who could revoke.
            return std::future::pending().await;
        }
    }
}
