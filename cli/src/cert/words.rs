//! One certificate after the other, in words.

use std::time::{Duration, SystemTime};

use alcazar_identity::{CertificateDer, Fingerprint, SvidKey, SvidLeaf, rfc3339};
use anyhow::Context;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{DistributionPointName, GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

use crate::span;

/// Says what they are, and how they hang together.
pub(super) fn all(
    certificates: &[CertificateDer<'_>],
    keys: &[Result<SvidKey, String>],
    now: SystemTime,
) -> anyhow::Result<String> {
    let mut text = String::new();
    let mut parsed = Vec::new();
    for (place, der) in certificates.iter().enumerate() {
        let broken = || format!("certificate {} is not an X.509 certificate in DER", place + 1);
        let (rest, certificate) = X509Certificate::from_der(der).with_context(broken)?;
        anyhow::ensure!(rest.is_empty(), "certificate {} has bytes after its end", place + 1);
        parsed.push(certificate);
    }
    for (place, (der, certificate)) in certificates.iter().zip(&parsed).enumerate() {
        let kind = if certificate.is_ca() { "authority" } else { "leaf" };
        text.push_str(&format!("certificate {} of {} ({kind})\n", place + 1, parsed.len()));
        one(&mut text, der, certificate, now);
        let signed = match signer(certificate, &parsed) {
            Some(signer) if signer == place => "by itself: a root".to_owned(),
            Some(signer) => format!("by certificate {} of these", signer + 1),
            None => "by none of these".to_owned(),
        };
        line(&mut text, "signed", &signed);
    }
    for key in keys {
        match key {
            Ok(key) => {
                let public = key.public_key();
                let owner =
                    parsed.iter().position(|certificate| *certificate.public_key().subject_public_key.data == *public);
                let whose = owner.map_or("of none of these certificates".to_owned(), |place| {
                    format!("of certificate {}", place + 1)
                });
                text.push_str(&format!("private key  {whose}\n"));
            }
            Err(what) => {
                text.push_str(&format!("private key  {what}\n"));
            }
        }
    }
    Ok(text)
}

fn one(text: &mut String, der: &CertificateDer<'_>, certificate: &X509Certificate<'_>, now: SystemTime) {
    let names = names(certificate);
    line(text, "names", if names.is_empty() { "nobody" } else { &names });
    line(text, "subject", &or_dash(certificate.subject().to_string()));
    line(text, "issuer", &or_dash(certificate.issuer().to_string()));
    line(text, "serial", &certificate.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    let [from, until] =
        [certificate.validity().not_before, certificate.validity().not_after].map(|at| moment(at.timestamp()));
    line(text, "good", &good(from, until, now));
    line(text, "key", &key(certificate));
    line(text, "for", &or_dash(uses(certificate)));
    for url in crl_urls(certificate) {
        line(text, "revocation", &url);
    }
    line(text, "fingerprint", &format!("SHA-256 {}", Fingerprint::of(der)));
    if !certificate.is_ca() {
        let svid = match SvidLeaf::parse(der) {
            Ok(_) => "yes, in form; who vouches for it is the verifier's question".to_owned(),
            Err(error) => format!("no: {error}"),
        };
        line(text, "X509-SVID", &svid);
    }
}

fn line(text: &mut String, what: &str, value: &str) {
    text.push_str(&format!("  {what:<12} {value}\n"));
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

fn moment(seconds: i64) -> SystemTime {
    let since = Duration::from_secs(seconds.unsigned_abs());
    let moved =
        if seconds < 0 { SystemTime::UNIX_EPOCH.checked_sub(since) } else { SystemTime::UNIX_EPOCH.checked_add(since) };
    moved.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// From when until when, and where in between the clock is.
fn good(from: SystemTime, until: SystemTime, now: SystemTime) -> String {
    let place = match (from.duration_since(now), until.duration_since(now)) {
        (Ok(ahead), _) if !ahead.is_zero() => format!("not yet: it begins in {}", span::of(ahead)),
        (_, Ok(left)) => format!("for {} more", span::of(left)),
        (_, Err(past)) => format!("no more: it ended {} ago", span::of(past.duration())),
    };
    format!("{} to {}; {place}", rfc3339(from), rfc3339(until))
}

fn names(certificate: &X509Certificate<'_>) -> String {
    let found = certificate.subject_alternative_name().ok().flatten();
    let names = found.iter().flat_map(|found| &found.value.general_names).map(|name| match name {
        GeneralName::URI(uri) => (*uri).to_owned(),
        GeneralName::DNSName(name) => format!("DNS {name}"),
        GeneralName::IPAddress(bytes) => format!("IP {}", address(bytes)),
        GeneralName::RFC822Name(name) => format!("mail {name}"),
        other => format!("{other}"),
    });
    names.collect::<Vec<_>>().join(", ")
}

fn address(bytes: &[u8]) -> String {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return std::net::Ipv4Addr::from(four).to_string();
    }
    <[u8; 16]>::try_from(bytes)
        .map_or("that is none".to_owned(), |sixteen| std::net::Ipv6Addr::from(sixteen).to_string())
}

fn key(certificate: &X509Certificate<'_>) -> String {
    let spki = certificate.public_key();
    match spki.parsed() {
        Ok(PublicKey::RSA(rsa)) => format!("RSA, {} bits", rsa.key_size()),
        Ok(PublicKey::EC(_)) => {
            let curve = spki
                .algorithm
                .parameters
                .as_ref()
                .and_then(|parameters| parameters.as_oid().ok())
                .map(|oid| oid.to_id_string());
            match curve.as_deref() {
                Some("1.2.840.10045.3.1.7") => "ECDSA, P-256".to_owned(),
                Some("1.3.132.0.34") => "ECDSA, P-384".to_owned(),
                Some("1.3.132.0.35") => "ECDSA, P-521".to_owned(),
                other => format!("ECDSA, the curve {}", other.unwrap_or("that is not said")),
            }
        }
        _ if spki.algorithm.algorithm.to_id_string() == "1.3.101.112" => "Ed25519".to_owned(),
        _ => format!("of the kind {}", spki.algorithm.algorithm.to_id_string()),
    }
}

fn uses(certificate: &X509Certificate<'_>) -> String {
    let mut uses = Vec::new();
    if let Ok(Some(constraints)) = certificate.basic_constraints()
        && constraints.value.ca
    {
        uses.push(match constraints.value.path_len_constraint {
            Some(length) => format!("issuing certificates (pathlen {length})"),
            None => "issuing certificates".to_owned(),
        });
    }
    if let Ok(Some(usage)) = certificate.key_usage() {
        uses.push(usage.value.to_string());
    }
    if let Ok(Some(usage)) = certificate.extended_key_usage() {
        let purposes = [
            (usage.value.server_auth, "server authentication"),
            (usage.value.client_auth, "client authentication"),
            (usage.value.code_signing, "code signing"),
            (usage.value.any, "anything"),
        ];
        uses.extend(purposes.into_iter().filter(|(has, _)| *has).map(|(_, name)| name.to_owned()));
    }
    uses.join(", ")
}

fn crl_urls(certificate: &X509Certificate<'_>) -> Vec<String> {
    let mut urls = Vec::new();
    for extension in certificate.extensions() {
        let ParsedExtension::CRLDistributionPoints(points) = extension.parsed_extension() else { continue };
        for point in &points.points {
            let Some(DistributionPointName::FullName(names)) = &point.distribution_point else { continue };
            urls.extend(
                names
                    .iter()
                    .filter_map(|name| if let GeneralName::URI(uri) = name { Some((*uri).to_owned()) } else { None }),
            );
        }
    }
    urls
}

/// Which of them has signed it.
fn signer(certificate: &X509Certificate<'_>, all: &[X509Certificate<'_>]) -> Option<usize> {
    all.iter().position(|other| {
        other.subject() == certificate.issuer() && certificate.verify_signature(Some(other.public_key())).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_before_within_or_after() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let said = |now| good(at(1000), at(4600), at(now));
        assert_eq!(said(1000), "1970-01-01T00:16:40Z to 1970-01-01T01:16:40Z; for 60 min more");
        assert!(said(940).ends_with("not yet: it begins in 60 s"));
        assert!(said(4700).ends_with("no more: it ended 100 s ago"));
    }
}
