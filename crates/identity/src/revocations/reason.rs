use std::fmt;
use std::str::FromStr;

/// Why something was revoked.
///
/// **Source**: RFC 5280 §5.3.1. `removeFromCRL` is for delta CRLs, which nobody here makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RevocationReason {
    /// Nobody said.
    Unspecified,
    /// Somebody else has, or may have, the private key.
    KeyCompromise,
    /// Somebody else has, or may have, the private key of the issuer.
    CaCompromise,
    /// It belongs to somebody else now.
    AffiliationChanged,
    /// There is a newer one in its place.
    Superseded,
    /// It is not needed any more.
    CessationOfOperation,
    /// Put aside until it is known better: the only one that can be lifted.
    CertificateHold,
    /// It may not do any more what it was issued for.
    PrivilegeWithdrawn,
    /// As `CaCompromise`, of an attribute authority.
    AaCompromise,
}

impl RevocationReason {
    /// All of them, by their codes.
    pub const ALL: [Self; 9] = [
        Self::Unspecified,
        Self::KeyCompromise,
        Self::CaCompromise,
        Self::AffiliationChanged,
        Self::Superseded,
        Self::CessationOfOperation,
        Self::CertificateHold,
        Self::PrivilegeWithdrawn,
        Self::AaCompromise,
    ];

    /// The number in a CRL.
    pub fn code(self) -> u8 {
        match self {
            Self::Unspecified => 0,
            Self::KeyCompromise => 1,
            Self::CaCompromise => 2,
            Self::AffiliationChanged => 3,
            Self::Superseded => 4,
            Self::CessationOfOperation => 5,
            Self::CertificateHold => 6,
            Self::PrivilegeWithdrawn => 9,
            Self::AaCompromise => 10,
        }
    }

    /// The reason with this number.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.code() == code)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::KeyCompromise => "keyCompromise",
            Self::CaCompromise => "cACompromise",
            Self::AffiliationChanged => "affiliationChanged",
            Self::Superseded => "superseded",
            Self::CessationOfOperation => "cessationOfOperation",
            Self::CertificateHold => "certificateHold",
            Self::PrivilegeWithdrawn => "privilegeWithdrawn",
            Self::AaCompromise => "aACompromise",
        }
    }
}

impl fmt::Display for RevocationReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for RevocationReason {
    type Err = ParseRevocationReasonError;

    /// Reads a name of RFC 5280, in any case and with or without hyphens: `keyCompromise`, `key-compromise`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = text.replace(['-', '_'], "");
        let found = Self::ALL.into_iter().find(|reason| reason.name().eq_ignore_ascii_case(&plain));
        found.ok_or_else(|| ParseRevocationReasonError(text.to_owned()))
    }
}

/// A text that names no reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a reason of RFC 5280: unspecified, keyCompromise, cACompromise, affiliationChanged, superseded, \
     cessationOfOperation, certificateHold, privilegeWithdrawn, aACompromise"
)]
pub struct ParseRevocationReasonError(String);
