//! An intermediate that signs, and what is above it.

use std::sync::Arc;

use alcazar_identity::{CertificateDer, Validity};

use crate::authority::{Authority, AuthorityError, AuthorityInfo};

/// An intermediate that signs, and what is above it.
#[derive(Clone, Debug)]
pub(crate) struct Signing {
    pub(crate) authority: Arc<Authority>,
    /// From the intermediate itself up, the root excluded.
    pub(crate) upper: Vec<CertificateDer<'static>>,
    pub(crate) root: AuthorityInfo,
    pub(crate) renewal: Renewal,
}

/// Who sees to the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Renewal {
    /// Nobody need: the key above it is here, or with a replica that is asked.
    Itself,
    /// A person, who plugs it in.
    Person,
    /// The replica whose it is, and which gave it to this one with the key: this one goes over to what that signs with then.
    Sharer,
}

impl Signing {
    /// Nothing that it signs is good for longer than any certificate above it.
    pub(super) fn new(
        authority: Authority,
        upper: Vec<CertificateDer<'static>>,
        root: AuthorityInfo,
        renewal: Renewal,
    ) -> Result<Self, AuthorityError> {
        let infos = above(&upper)?;
        let authority = authority.below(infos.iter().map(|info| info.validity).chain([root.validity]));
        Ok(Self { authority: Arc::new(authority), upper, root, renewal })
    }

    /// When what it signs can be verified.
    pub(crate) fn bounds(&self) -> Validity {
        self.authority.bounds()
    }

    /// The certificates between the intermediate and the root.
    pub(crate) fn above(&self) -> Vec<AuthorityInfo> {
        above(&self.upper).unwrap_or_default()
    }

    /// Whether both are the same certificates from end to end.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.authority.info() == other.authority.info() && self.upper == other.upper && self.root == other.root
    }
}

fn above(upper: &[CertificateDer<'static>]) -> Result<Vec<AuthorityInfo>, AuthorityError> {
    upper.iter().skip(1).map(|certificate| AuthorityInfo::parse(certificate.clone())).collect()
}
