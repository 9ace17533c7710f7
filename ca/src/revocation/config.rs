//! What the operator says about CRLs.

use std::{fmt, net::SocketAddr, str::FromStr};

use alcazar_identity::Fingerprint;
use serde::Deserialize;
use thiserror::Error;

/// Where CRLs are served, and what certificates say of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct RevocationConfig {
    /// Where whoever checks certificates finds the CRLs: `http://pki.example.com/crl`. Certificates and intermediates made from now
    /// on name their issuer's, `<this>/<SHA-256 of the issuer>.crl`. Default: they name none.
    pub crl_url: Option<CrlUrl>,
    /// Where the pages `/crl/...` are served by themselves, over plain HTTP, as CRLs usually are: their signatures protect them.
    /// Default: beside the health checks alone (`admin`).
    pub listen: Option<SocketAddr>,
    /// That no other cluster has an intermediate under the roots of this trust domain. A CA knows that of the roots that it made;
    /// of one that is plugged in or kept offline a person does. Where others may, nodes are told no CRLs: whoever checks by them
    /// refuses everybody under an authority whose CRL it has not. Default: false.
    pub sole_cluster: bool,
}

/// The base of the CRLs' URLs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct CrlUrl(String);

impl CrlUrl {
    /// Where the CRL of this issuer is.
    pub fn of(&self, issuer: Fingerprint) -> String {
        format!("{}/{issuer}.crl", self.0)
    }
}

impl FromStr for CrlUrl {
    type Err = ParseCrlUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseCrlUrlError(text.chars().take(80).collect());
        let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")).ok_or_else(wrong)?;
        let host = rest.split('/').next().unwrap_or_default();
        let good = |byte: u8| byte.is_ascii_graphic() && !b"\"<>\\^`{|}?#".contains(&byte);
        if host.is_empty() || text.len() > LONGEST || !rest.bytes().all(good) {
            return Err(wrong());
        }
        Ok(Self(text.trim_end_matches('/').to_owned()))
    }
}

impl TryFrom<String> for CrlUrl {
    type Error = ParseCrlUrlError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for CrlUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Not the base of a URL.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is not where CRLs can be: write http:// (or https://), a host, and a path without a query")]
pub struct ParseCrlUrlError(String);

/// It is in every certificate.
const LONGEST: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_is_a_url_without_a_query() {
        let print = Fingerprint::of(b"an issuer");
        for (text, expected) in [
            ("http://pki.example.com/crl", "http://pki.example.com/crl"),
            ("https://pki.example.com:8443/", "https://pki.example.com:8443"),
            ("http://[::1]:80/a/b/", "http://[::1]:80/a/b"),
        ] {
            assert_eq!(text.parse::<CrlUrl>().unwrap().of(print), format!("{expected}/{print}.crl"), "{text}");
        }
        let long = format!("http://{}", "a".repeat(200));
        for bad in
            ["", "pki.example.com", "ftp://x/", "http://", "http:///crl", "http://x/a?b", "http://x/\u{e9}", &long]
        {
            assert!(bad.parse::<CrlUrl>().is_err(), "{bad}");
        }
    }
}
