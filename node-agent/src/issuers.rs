//! The certificates above those of workloads: all workloads of a node have the same, and it is kept once.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use alcazar_identity::CertificateDer;

/// Those that are shared, for as long as the process lives: a CA has another one in months, and there are never many.
pub(crate) struct Issuers {
    known: Mutex<BTreeSet<&'static [u8]>>,
}

/// Those of this process.
pub(crate) static ISSUERS: Issuers = Issuers::new();

impl Issuers {
    const fn new() -> Self {
        Self { known: Mutex::new(BTreeSet::new()) }
    }

    /// A certificate, in memory that is shared with all who have the same; a copy where there are too many already.
    pub(crate) fn share(&self, der: &[u8]) -> CertificateDer<'static> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(same) = known.get(der) {
            return CertificateDer::from(*same);
        }
        if known.len() >= MOST || der.len() > LONGEST {
            return CertificateDer::from(der.to_vec());
        }
        let kept: &'static [u8] = Box::leak(der.into());
        known.insert(kept);
        CertificateDer::from(kept)
    }
}

/// What is never given back is bounded, whatever a CA sends.
const MOST: usize = 64;
/// In bytes.
const LONGEST: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_certificate_is_kept_once_and_not_without_end() {
        let issuers = Issuers::new();
        let shares = |der: &[u8]| {
            let [one, two] = [issuers.share(der), issuers.share(der)];
            assert_eq!((&*one, &*two), (der, der));
            one.as_ptr() == two.as_ptr()
        };
        assert!(!shares(&[1; LONGEST + 1]));
        assert!((0..MOST).all(|one| shares(&one.to_be_bytes())));
        assert!(!shares(b"one more"));
        assert!(shares(&0_usize.to_be_bytes()));
    }
}
