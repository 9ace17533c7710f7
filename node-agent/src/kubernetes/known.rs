use std::time::Duration;

use tokio::time::Instant;

use super::PodList;
use crate::caller::{Fact, Pod};
use crate::peer::PodUid;

/// What is known of the pods of this node, and since when.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    /// As they were listed last.
    pub(super) pods: PodList,
    /// When that was asked for.
    pub(super) listed: Option<Instant>,
    /// When it was last asked for in vain since, and why.
    pub(super) failed: Option<(Instant, String)>,
}

impl Known {
    /// Whose a pod is, for somebody who asked at `asked`; `None` while the pods should be listed anew.
    ///
    /// A list counts for a moment: a pod that is gone is gone. Where nobody lists them, those that are known stay: their uids are never
    /// another's.
    pub(super) fn answer(&self, uid: &PodUid, asked: Instant) -> Option<Fact<Pod>> {
        let within = |at: Instant, most: Duration| asked.saturating_duration_since(at) < most;
        let is_fresh = self.listed.is_some_and(|at| within(at, FRESH));
        let nobody_says = self.failed.as_ref().is_some_and(|(at, _)| within(*at, IN_VAIN));
        let whose = self.pods.get(uid)?;
        (is_fresh || nobody_says).then(|| whose.clone().into())
    }

    /// Whose a pod is, for somebody who has waited as long as one does: where lists take their time, by one of a little while ago, and by
    /// any where nobody lists them.
    pub(super) fn last_answer(&self, uid: &PodUid, now: Instant) -> Fact<Pod> {
        let is_recent = self.listed.is_some_and(|at| now.saturating_duration_since(at) < RECENT);
        match self.pods.get(uid).filter(|_| is_recent || self.failed.is_some()) {
            Some(whose) => whose.clone().into(),
            None => Fact::Unknown(self.why_not(uid)),
        }
    }

    /// Why nothing is known of a pod after all the time that one waits for it.
    fn why_not(&self, uid: &PodUid) -> String {
        match (&self.failed, self.listed) {
            (Some((_, why)), _) => {
                format!("it is in the pod {uid}, and the pods of this node are not listed now: {why}")
            }
            (None, Some(_)) if self.pods.get(uid).is_some() => format!(
                "it is in the pod {uid}, which is on the list of this node's pods, but that was asked for more than {} s ago",
                RECENT.as_secs()
            ),
            (None, Some(_)) => format!("it is in the pod {uid}, which is not on the list of this node's pods"),
            (None, None) => format!("it is in the pod {uid}, and the pods of this node have not been listed in time"),
        }
    }

    /// After the pods were listed.
    pub(super) fn listed(pods: PodList, at: Instant) -> Self {
        Self { pods, listed: Some(at), failed: None }
    }

    /// After nobody listed them.
    pub(super) fn failed(&self, why: String, at: Instant) -> Self {
        Self { failed: Some((at, why)), ..self.clone() }
    }
}

/// How long a list is believed.
const FRESH: Duration = Duration::from_secs(2);
/// How long a list is believed where the next one does not come in time.
const RECENT: Duration = Duration::from_secs(15);
/// How long after an attempt in vain nobody waits for another.
const IN_VAIN: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "0f6d2c1e-4b3a-4c5d-8e9f-001122334455";
    const B: &str = "1f6d2c1e-4b3a-4c5d-8e9f-001122334455";

    #[tokio::test]
    async fn what_is_listed_counts_for_a_moment_and_where_nobody_lists_it_for_longer() {
        let json = format!(
            r#"{{"kind":"PodList","items":[{{"metadata":{{"uid":"{A}","namespace":"n","name":"p"}},"spec":{{"nodeName":"x","serviceAccountName":"s"}}}}]}}"#
        );
        let pods = PodList::read(json.as_bytes(), "x").unwrap();
        let (a, b, start) = (A.parse().unwrap(), B.parse().unwrap(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let nothing = Known::default();
        assert_eq!(nothing.answer(&a, at(0)), None);
        assert!(nothing.why_not(&a).contains("in time"));
        let failed = nothing.failed("it is away".into(), at(0));
        assert_eq!(failed.answer(&a, at(0)), None, "whom nobody knows waits");
        assert!(failed.why_not(&a).contains("it is away"));

        let known = Known::listed(pods, at(10));
        let is_known = |known: &Known, seconds| known.answer(&a, at(seconds)).map(|fact| fact.known().is_some());
        assert_eq!(is_known(&known, 5), Some(true), "listed after it was asked");
        assert_eq!(is_known(&known, 11), Some(true));
        assert_eq!(is_known(&known, 12), None);
        assert_eq!(known.answer(&b, at(10)), None, "the list lags behind a start");
        assert!(known.why_not(&b).contains("not on the list"));
        // The next list is not there in time.
        assert!(known.last_answer(&a, at(24)).known().is_some());
        assert!(matches!(known.last_answer(&a, at(25)), Fact::Unknown(why) if why.contains("more than 15 s ago")));
        assert!(matches!(known.last_answer(&b, at(11)), Fact::Unknown(why) if why.contains("not on the list")));
        let failed = known.failed("it is away".into(), at(20));
        assert_eq!(is_known(&failed, 21), Some(true), "it is as it was");
        assert_eq!(is_known(&failed, 31), None, "somebody may list them again");
        assert!(failed.last_answer(&a, at(60)).known().is_some(), "nobody did");
        assert_eq!(failed.answer(&b, at(21)), None);
        assert_eq!(Known::listed(PodList::default(), at(40)).answer(&a, at(40)), None, "it is gone");
    }
}
