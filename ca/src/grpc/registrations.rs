//! The registrations of one node, pushed as they change: from memory, so that ten thousand nodes that come back at once read
//! the store no more than one does.

use std::time::Duration;

use alcazar_api::ca::v1;
use alcazar_identity::SpiffeId;
use tokio::{sync::watch, time::sleep};

use super::{registration_message, watched::Sender};
use crate::{
    ca::Ca,
    callers::{Accounts, KubernetesPlug},
};

/// Rises with each change; `None` until all is known.
type Changes = watch::Receiver<Option<u64>>;

/// Sends the node's registrations: the whole set first, as soon as all are known, and again after each change.
pub(super) async fn push(ca: &Ca, node: &SpiffeId, sender: &Sender<v1::Registrations>) {
    let mut recorded = ca.0.records.registration_changes();
    let mut pods = ca.0.callers.kubernetes().and_then(KubernetesPlug::pod_changes);
    // A part of them would take from the node what it has.
    if recorded.wait_for(Option::is_some).await.is_err() {
        return;
    }
    let (mut looked_at, mut sent) = (None, None);
    loop {
        recorded.mark_unchanged();
        if let Some(pods) = &mut pods {
            pods.mark_unchanged();
        }
        // Most changes of pods are on other nodes.
        let now: (Option<u64>, Option<Accounts>) = (*recorded.borrow(), ca.accounts_on(node).ok());
        if looked_at.as_ref() != Some(&now) {
            let pods_unknown = now.1.is_none();
            let known = (ca.registrations_of(node, &now.1.clone().unwrap_or_default()), pods_unknown);
            looked_at = Some(now);
            if sent.as_ref() != Some(&known) {
                let registrations = known.0.iter().map(|registration| registration_message(registration)).collect();
                if sender.send(Ok(v1::Registrations { registrations, pods_unknown })).await.is_err() {
                    return;
                }
                sent = Some(known);
            }
        }
        let goes_on = tokio::select! {
            changed = recorded.changed() => changed.is_ok(),
            goes_on = have_changed(pods.as_mut()) => goes_on,
        };
        if !goes_on {
            return;
        }
    }
}

/// The pods of the cluster have changed, and those that come or go together have done so.
async fn have_changed(pods: Option<&mut Changes>) -> bool {
    match pods {
        Some(pods) => {
            let changed = pods.changed().await;
            sleep(TOGETHER).await;
            changed.is_ok()
        }
        None => std::future::pending().await,
    }
}

/// So long pods of one deployment are waited for, which a scheduler places one by one. A pod takes longer to start.
const TOGETHER: Duration = Duration::from_millis(100);
