//! The registrations of one node, pushed as they change.

use std::{collections::BTreeMap, time::Duration};

use alcazar_api::ca::v1;
use alcazar_identity::SpiffeId;
use alcazar_service::process;
use alcazar_store::{Event, Key, WatchError};
use tokio::sync::mpsc;
use tonic::Status;

use super::registration_message;
use crate::{
    ca::Ca,
    records::{RecordError, Registration, family, prefix, read},
};

/// Sends the node's registrations: the whole set first, and again after each change. Ends when the store does.
pub(super) async fn push(ca: &Ca, node: &SpiffeId, sender: &mpsc::Sender<Result<v1::Registrations, Status>>) {
    if let Err(error) = follow(ca, node, sender).await {
        tracing::error!(reason = %process::chain(&error), %node, "the registrations of a node can no longer be followed");
        drop(sender.send(Err(Status::unavailable("try again later"))).await);
    }
}

async fn follow(
    ca: &Ca,
    node: &SpiffeId,
    sender: &mpsc::Sender<Result<v1::Registrations, Status>>,
) -> Result<(), RecordError> {
    let store = ca.0.records.store();
    let prefix = prefix(family::REGISTRATIONS)?;
    let mut sent = None;
    loop {
        let mut known = BTreeMap::new();
        let listing = match store.list(&prefix).await {
            // What is known here is what the node has, most likely; the rest comes when the store answers.
            Err(error) if error.is_away() => {
                let here = ca.0.records.known_registrations(node);
                for registration in here {
                    let key = prefix.key(registration.id().as_str()).map_err(RecordError::Key)?;
                    known.insert(key, (*registration).clone());
                }
                if sent.as_ref() != Some(&known) {
                    let registrations = known.values().map(registration_message).collect();
                    if sender.send(Ok(v1::Registrations { registrations })).await.is_err() {
                        return Ok(());
                    }
                    sent = Some(known);
                }
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            listing => listing?,
        };
        for entry in &listing.entries {
            note(&mut known, node, entry.key().clone(), Some(read(entry)?.record));
        }
        let mut watch = store.watch(&prefix, listing.revision).await?;
        loop {
            if sent.as_ref() != Some(&known) {
                let registrations = known.values().map(registration_message).collect();
                if sender.send(Ok(v1::Registrations { registrations })).await.is_err() {
                    return Ok(());
                }
                sent = Some(known.clone());
            }
            match watch.next().await {
                Ok(Event::Put(entry)) => note(&mut known, node, entry.key().clone(), Some(read(&entry)?.record)),
                Ok(Event::Deleted { key, .. }) => note(&mut known, node, key, None),
                Err(WatchError::Lagged) => break,
                Err(WatchError::Closed) => return Ok(()),
            }
        }
    }
}

/// A store that is away is looked for.
const AGAIN: Duration = Duration::from_secs(1);

/// A registration may go from one node to another: then it leaves the first.
fn note(known: &mut BTreeMap<Key, Registration>, node: &SpiffeId, key: Key, registration: Option<Registration>) {
    match registration.filter(|registration| registration.node() == node) {
        Some(registration) => drop(known.insert(key, registration)),
        None => drop(known.remove(&key)),
    }
}
