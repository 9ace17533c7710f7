//! A rotation in words.

use std::time::{Duration, SystemTime};

use alcazar_api::ca::v1::{RotationKind, RotationStatus, RotationWait};
use alcazar_identity::rfc3339;

use crate::table::Table;

/// Which command a kind of rotation belongs to.
pub(super) fn command(kind: RotationKind) -> &'static str {
    match kind {
        RotationKind::Root => "root",
        _ => "ca",
    }
}

/// What is about to happen.
pub(super) fn announcement(kind: RotationKind) -> &'static str {
    match kind {
        RotationKind::Root => {
            "A new root is made and trusted beside the old one; when everybody holds both, it signs; when every certificate is \
             issued anew, the old root is trusted no more. Nothing is cut off, and until the end it can be aborted."
        }
        RotationKind::Jwt => {
            "A new key for JWT-SVIDs is published; when everybody holds it, it signs; when the last token of the old key is over, \
             the old key goes."
        }
        _ => {
            "A new intermediate is made under the same root and signs; when every certificate is issued anew, the old key goes. \
             Nobody's trust changes."
        }
    }
}

/// What is about to happen when the new root is kept elsewhere.
pub(super) const BROUGHT: &str = "The new root is trusted beside the old one. When everybody holds both you are asked for an intermediate under it; when that signs \
     and every certificate is issued anew, the old root is trusted no more.";

/// What is about to happen when a key for JWT-SVIDs was stolen.
pub(super) const AT_ONCE: &str = "Every key for JWT-SVIDs is replaced now. All JWT-SVIDs of before are refused by whoever has heard of it, and those of \
     after by whoever has not: agents hear of it in seconds, federated trust domains when they look again.";

/// Phase, who is waited for, and what comes next.
pub(super) fn status(status: &RotationStatus) -> String {
    if status.phase.is_empty() {
        return "there has been no rotation\n".to_owned();
    }
    let what = match status.kind() {
        RotationKind::Root => "root",
        RotationKind::Jwt => "JWT key",
        _ => "intermediate",
    };
    let known = |anchor: &str| if anchor.is_empty() { "(not made yet)".to_owned() } else { anchor.to_owned() };
    let mut text = format!("rotation of the {what}, begun {}\n", time(status.started));
    text.push_str(&format!("  from   {}\n  to     {}\n", known(&status.old), known(&status.new)));
    if status.phase == "done" {
        let end = match (status.back, status.problem.as_str()) {
            (true, "") => "aborted: all is as it was before",
            (true, _) => "ended where it stood",
            (false, _) => "done: the old one is gone",
        };
        text.push_str(&format!("  {end}, {}\n", time(status.entered)));
        if !status.problem.is_empty() {
            text.push_str(&format!("  {}\n", status.problem));
        }
        return text;
    }
    let direction = if status.back { " (on its way back)" } else { "" };
    text.push_str(&format!(
        "  phase  {}{direction}, since {}: {}\n",
        status.phase,
        time(status.entered),
        meaning(&status.phase)
    ));
    text.push_str(&format!("  next   {}\n", next(&status.phase, status.kind())));
    if !status.problem.is_empty() {
        text.push_str(&format!("  it cannot go on: {}\n", status.problem));
    }
    if !status.waits.is_empty() {
        text.push_str("waiting for\n");
        text.push_str(&waits(&status.waits));
    }
    text
}

/// Who is waited for, by class; of many the first.
pub(super) fn waits(waits: &[RotationWait]) -> String {
    some(waits, SHOWN)
}

/// All of them: whoever decides over somebody has seen the name.
pub(super) fn everybody(waits: &[RotationWait]) -> String {
    some(waits, usize::MAX)
}

fn some(waits: &[RotationWait], most: usize) -> String {
    let mut sorted: Vec<_> = waits.iter().collect();
    let rank =
        |wait: &RotationWait| ["person", "unreachable", "awaited", "timed"].iter().position(|s| **s == wait.standing);
    sorted.sort_by(|a, b| (rank(a), &a.party).cmp(&(rank(b), &b.party)));
    let mut table = Table::new(["", "PARTY", "STANDING", "WHY"]);
    for wait in sorted.iter().take(most) {
        let span = Duration::from_secs(u64::try_from(wait.seconds).unwrap_or(0));
        let standing = match wait.standing.as_str() {
            "unreachable" => format!("unreachable, silent for {span:?}"),
            "timed" => format!("timed, {span:?} left"),
            "person" => "needs you".to_owned(),
            other => other.to_owned(),
        };
        table.row([String::new(), wait.party.clone(), standing, wait.why.clone()]);
    }
    let more = sorted.len().saturating_sub(most);
    let rest = if more > 0 { format!("  and {more} more\n") } else { String::new() };
    format!("{table}{rest}")
}

/// A text in which what only counts is left out.
pub(super) fn without_numbers(text: &str) -> String {
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let without = text.replace(|c: char| c.is_ascii_digit(), "");
    // The columns are as wide as their widest number.
    without.lines().map(words).collect::<Vec<_>>().join("\n")
}

fn meaning(phase: &str) -> &'static str {
    match phase {
        "prepare" => "the new one is being made",
        "distribute" => "both are trusted, until everybody holds both",
        "switch" => "every CA begins to sign by the other one",
        "reissue" => "certificates are issued anew, until none of before is left",
        "retire" => "one alone is trusted, until everybody holds that",
        "forget" => "the key that nobody needs any more is removed",
        _ => "a phase that this program does not know",
    }
}

fn next(phase: &str, kind: RotationKind) -> &'static str {
    let trust = kind != RotationKind::Intermediate;
    match phase {
        "prepare" if trust => "distribute: both are trusted",
        "prepare" | "distribute" => "switch: the other one signs",
        "switch" => "reissue: certificates are issued anew",
        "reissue" if trust => "retire: one alone is trusted",
        "reissue" | "retire" => "forget: the key that nobody needs any more is removed",
        _ => "done",
    }
}

fn time(seconds: i64) -> String {
    let seconds = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    SystemTime::UNIX_EPOCH.checked_add(seconds).map_or_else(String::new, rfc3339)
}

/// More than that nobody reads on a screen.
const SHOWN: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(party: &str, standing: &str, seconds: i64) -> RotationWait {
        RotationWait {
            party: party.into(),
            standing: standing.into(),
            seconds,
            why: "has never reported".into(),
            forceable: true,
        }
    }

    #[test]
    fn whoever_goes_past_somebody_is_shown_every_name() {
        let many: Vec<_> = (0..100).map(|number| wait(&format!("node-{number}"), "unreachable", 300)).collect();
        assert_eq!(everybody(&many).matches("node-").count(), 100);
        assert!(waits(&many).contains("and 60 more"));
    }

    #[test]
    fn a_rotation_says_where_it_is_whom_it_waits_for_and_what_comes_next() {
        let mut shown = RotationStatus {
            kind: RotationKind::Root.into(),
            phase: "distribute".into(),
            started: 1_800_000_000,
            entered: 1_800_000_060,
            old: "aa".into(),
            new: "bb".into(),
            waits: vec![wait("clients", "timed", 90), wait("td/node/east/vm-2", "unreachable", 300)],
            ..RotationStatus::default()
        };
        assert_eq!(
            status(&shown),
            "rotation of the root, begun 2027-01-15T08:00:00Z\n  from   aa\n  to     bb\n  \
             phase  distribute, since 2027-01-15T08:01:00Z: both are trusted, until everybody holds both\n  \
             next   switch: the other one signs\nwaiting for\n  \
             PARTY              STANDING                      WHY\n  \
             td/node/east/vm-2  unreachable, silent for 300s  has never reported\n  \
             clients            timed, 90s left               has never reported\n"
        );
        let later = RotationStatus { waits: vec![wait("clients", "timed", 12)], ..shown.clone() };
        let much_later = RotationStatus { waits: vec![wait("clients", "timed", 9)], ..shown.clone() };
        assert_eq!(without_numbers(&status(&later)), without_numbers(&status(&much_later)));
        shown.phase = "done".into();
        shown.back = true;
        assert!(status(&shown).contains("aborted: all is as it was before"));
        assert_eq!(status(&RotationStatus::default()), "there has been no rotation\n");
    }
}
