//! `alcazar ca status`: how a CA is.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use alcazar_api::ca::v1::{self, status_client::StatusClient};
use alcazar_identity::rfc3339;
use serde_json::json;

use crate::operator::{CaArg, OperatorError};
use crate::say;
use crate::table::Table;

pub(super) async fn show(ca: &CaArg, as_json: bool) -> Result<ExitCode, OperatorError> {
    let mut client = StatusClient::new(ca.connect().await?);
    let status = client.get_status(v1::GetStatusRequest {}).await?.into_inner();
    Ok(say(&if as_json { json(&status) } else { text(&status) }))
}

fn json(status: &v1::CaStatus) -> String {
    let issuance = status.issuance.clone().unwrap_or_default();
    let counts = |counts: &[v1::Count]| -> serde_json::Map<String, serde_json::Value> {
        counts.iter().map(|count| (count.name.clone(), count.count.into())).collect()
    };
    let value = json!({
        "trust_domain": status.trust_domain,
        "cluster": status.cluster,
        "now": status.now,
        "started_at": status.started_at,
        "horizon": status.horizon.iter().map(|point| json!({
            "name": point.name,
            "fingerprint": point.fingerprint,
            "not_before": point.not_before,
            "not_after": point.not_after,
            "percent_left": point.percent_left,
        })).collect::<Vec<_>>(),
        "issuance": {
            "asked": issuance.asked,
            "issued": issuance.issued,
            "refused": counts(&issuance.refused_by_code),
            "waiting": issuance.waiting,
            "overload_refusals": counts(&issuance.overload_refusals),
        },
        "parts": status.parts.iter().map(|part| json!({
            "name": part.name, "state": part.state, "reason": part.reason,
        })).collect::<Vec<_>>(),
        "troubles": status.troubles.iter().map(|trouble| json!({"at": trouble.at, "what": trouble.what})).collect::<Vec<_>>(),
        "facts": status.facts.iter().map(|fact| json!({
            "part": fact.part, "name": fact.name, "value": fact.value,
        })).collect::<Vec<_>>(),
    });
    serde_json::to_string_pretty(&value).unwrap_or_default() + "\n"
}

fn text(status: &v1::CaStatus) -> String {
    let mut horizon = Table::new(["CERTIFICATE", "LEFT", "UNTIL", "FINGERPRINT"]);
    for point in &status.horizon {
        let left = format!("{}% ({})", point.percent_left, span(point.not_after - status.now));
        horizon.row([point.name.clone(), left, moment(point.not_after), point.fingerprint.clone()]);
    }
    let mut parts = Table::new(["PART", "STATE", "WHY"]);
    for part in &status.parts {
        parts.row([part.name.clone(), part.state.clone(), part.reason.clone()]);
    }
    let issuance = status.issuance.clone().unwrap_or_default();
    let counts = |counts: &[v1::Count]| {
        let some = counts.iter().filter(|count| count.count > 0);
        let words: Vec<_> = some.map(|count| format!("{} {}", count.name, count.count)).collect();
        if words.is_empty() { "none".to_owned() } else { words.join(", ") }
    };
    let mut text = format!(
        "trust domain  {}\ncluster       {}\nup for        {}\nissued        {} of {} that were asked for\nrefused       {}\n\
         waiting       {} ({} told to come back)\n\n{horizon}\n{parts}",
        status.trust_domain,
        status.cluster,
        span(status.now - status.started_at),
        issuance.issued,
        issuance.asked,
        counts(&issuance.refused_by_code),
        issuance.waiting,
        counts(&issuance.overload_refusals),
    );
    let mut facts = Table::new(["OF", "", "NOW"]);
    for fact in &status.facts {
        facts.row([fact.part.clone(), fact.name.clone(), fact.value.clone()]);
    }
    if !status.facts.is_empty() {
        text += &format!("\n{facts}");
    }
    if !status.troubles.is_empty() {
        text += "\nlast troubles\n";
        for trouble in &status.troubles {
            text += &format!("{}  {}\n", moment(trouble.at), trouble.what);
        }
    }
    text
}

fn moment(seconds: i64) -> String {
    let at = u64::try_from(seconds).ok().and_then(|at| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(at)));
    at.map_or_else(|| "?".to_owned(), rfc3339)
}

/// In the largest unit of which there are two: `3d`, `36h`, `90m`, `45s`.
fn span(seconds: i64) -> String {
    let units = [(86_400, "d"), (3_600, "h"), (60, "m")];
    let (size, unit) = units.into_iter().find(|(size, _)| seconds >= 2 * size).unwrap_or((1, "s"));
    format!("{}{unit}", seconds / size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> v1::CaStatus {
        let point = v1::HorizonPoint {
            name: "root".into(),
            fingerprint: "ab".into(),
            not_before: 0,
            not_after: 1_800_172_800,
            percent_left: 40,
        };
        let part = v1::PartHealth { name: "issuance".into(), state: "degraded".into(), reason: "look".into() };
        v1::CaStatus {
            trust_domain: "cluster.local".into(),
            cluster: "east".into(),
            now: 1_800_000_000,
            started_at: 1_799_996_400,
            horizon: vec![point],
            parts: vec![part],
            issuance: Some(v1::Issuance { asked: 5, issued: 3, ..v1::Issuance::default() }),
            troubles: vec![v1::Trouble { at: 1_800_000_000, what: "the disk is full".into() }],
            ..v1::CaStatus::default()
        }
    }

    #[test]
    fn people_and_programs_read_the_same() {
        let text = text(&status());
        for expected in [
            "cluster       east\n",
            "up for        60m\n",
            "issued        3 of 5 that were asked for\n",
            "root         40% (2d)  2027-01-17T08:00:00Z  ab\n",
            "issuance  degraded  look\n",
            "2027-01-15T08:00:00Z  the disk is full\n",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in\n{text}");
        }
        let value: serde_json::Value = serde_json::from_str(&json(&status())).unwrap();
        assert_eq!(value["horizon"][0]["percent_left"], 40);
        assert_eq!(value["issuance"]["issued"], 3);
    }
}
