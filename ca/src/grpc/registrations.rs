//! The registrations of one node, pushed as they change: from memory, so that ten thousand nodes that come back at once read
//! the store no more than one does.

use std::sync::Arc;

use alcazar_api::ca::v1;
use alcazar_identity::SpiffeId;
use tokio::sync::mpsc;
use tonic::Status;

use super::registration_message;
use crate::{ca::Ca, records::Registration};

/// Sends the node's registrations: the whole set first, as soon as all are known, and again after each change.
pub(super) async fn push(ca: &Ca, node: &SpiffeId, sender: &mpsc::Sender<Result<v1::Registrations, Status>>) {
    let records = &ca.0.records;
    let mut changes = records.registration_changes();
    // A part of them would take from the node what it has.
    if changes.wait_for(Option::is_some).await.is_err() {
        return;
    }
    let mut sent: Option<Vec<Arc<Registration>>> = None;
    loop {
        changes.mark_unchanged();
        let known = records.known_registrations(node);
        if sent.as_ref() != Some(&known) {
            let registrations = known.iter().map(|registration| registration_message(registration)).collect();
            if sender.send(Ok(v1::Registrations { registrations })).await.is_err() {
                return;
            }
            sent = Some(known);
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}
