//! When a person must act, said early and with the commands.

use std::time::SystemTime;

use alcazar_identity::{Validity, rfc3339};

use super::{Hierarchy, HierarchyFiles};

/// How much of a life is left, in the steps at which it is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Left {
    Half,
    Quarter,
    Tenth,
    Nothing,
}

impl Left {
    /// `None` while more than half is left.
    pub(crate) fn of(validity: Validity, now: SystemTime) -> Option<Self> {
        let (left, whole) = (validity.remaining(now), validity.lifetime());
        match () {
            () if left.is_zero() => Some(Self::Nothing),
            () if left <= whole / 10 => Some(Self::Tenth),
            () if left <= whole / 4 => Some(Self::Quarter),
            () if left <= whole / 2 => Some(Self::Half),
            () => None,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Half => "less than half of its life is left",
            Self::Quarter => "less than 25 % of its life is left",
            Self::Tenth => "less than 10 % of its life is left",
            Self::Nothing => "it has ended",
        }
    }
}

/// What a person must do, and by when; `None` where everything renews by itself or is young.
pub(crate) fn errand(hierarchy: &Hierarchy, files: &HierarchyFiles, now: SystemTime) -> Option<(Left, String)> {
    let (root, intermediate) = (hierarchy.root(), hierarchy.intermediate().info());
    // The root first: an intermediate cannot outlive it.
    if let Some(left) = Left::of(root.validity, now) {
        let mend = match files.plugged.folder() {
            Ok(None) => "run: alcazar root rotate".into(),
            _ => format!(
                "make a new root where the present one is kept (alcazar root init), have this CA's request signed by it, and \
                 bring both roots in root-cert.pem to {}",
                files.plugged.default_folder().display()
            ),
        };
        return Some((left, said("root", left, root.validity, &mend)));
    }
    let folder = files.plugged.folder().ok()??;
    // One that is signed here renews by itself.
    if files.folder.has_intermediate(intermediate.fingerprint) {
        return None;
    }
    let left = Left::of(intermediate.validity, now)?;
    let mend = format!(
        "run here: alcazar ca request --config ca.yaml; where the root is kept: alcazar root sign REQUEST --root DIR; and here: \
         alcazar ca install DIR --config ca.yaml (or put new files into {})",
        folder.display()
    );
    Some((left, said("intermediate", left, intermediate.validity, &mend)))
}

fn said(what: &str, left: Left, validity: Validity, mend: &str) -> String {
    format!("the {what} ends {}: {}; {mend}", rfc3339(validity.not_after()), left.words())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_life_is_said_to_end_at_each_step() {
        let at = |second| SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        let validity = Validity::new(at(0), at(1000)).unwrap();
        let check = |second, expected| assert_eq!(Left::of(validity, at(second)), expected, "{second}");
        check(499, None);
        check(500, Some(Left::Half));
        check(749, Some(Left::Half));
        check(750, Some(Left::Quarter));
        check(900, Some(Left::Tenth));
        check(1000, Some(Left::Nothing));
        check(2000, Some(Left::Nothing));
        assert!(Left::Half < Left::Nothing);
    }
}
