//! Whether the store that replicas share answers: for readiness, before somebody who needs it finds out.

use std::time::Duration;

use alcazar_service::{Part, Shutdown, process};
use alcazar_store::Key;

use crate::ca::Ca;

impl Ca {
    /// Asks a shared store now and then until the end, and says in `part` what is wrong with it. A store on this disk tells of
    /// itself.
    pub(crate) async fn watch_store(self, part: Part, shutdown: Shutdown) {
        let Ok(key) = NOBODYS.parse::<Key>() else { return };
        if !self.0.config.store.is_shared() {
            return;
        }
        let mut said = false;
        loop {
            let asked = tokio::select! {
                () = shutdown.cancelled() => return,
                asked = self.0.store.get(&key) => asked,
            };
            match asked {
                Ok(_) => {
                    if std::mem::take(&mut said) {
                        tracing::info!("the store answers again");
                    }
                    part.ready();
                }
                Err(error) => {
                    let reason = process::chain(&error);
                    if !std::mem::replace(&mut said, true) {
                        tracing::error!(
                            reason,
                            "the store does not answer: who is known is issued certificates, joins and registrations are refused until it does"
                        );
                    }
                    part.degraded(format!("joins and registrations are refused: {reason}"));
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }
}

/// A record that there never is.
const NOBODYS: &str = "ca/health";
const LOOK: Duration = Duration::from_secs(5);
