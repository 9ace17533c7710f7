//! Which certificates the CA stands on, and what a person must do about which.

use std::time::SystemTime;

use alcazar_identity::{Fingerprint, Validity};

use super::Point;
use crate::{
    ca::Ca,
    hierarchy::{Hierarchy, Renewal},
    records::{Lineage, RecordError, family, prefix, read},
};

impl Ca {
    /// The certificates that everything stands on, from the roots down, and the oldest leaf that was seen last.
    pub(crate) fn points(&self) -> Vec<Point> {
        let hierarchy = self.hierarchy();
        let root = |info: &crate::AuthorityInfo| {
            let signs = info.fingerprint == hierarchy.root().fingerprint;
            let mend = signs.then(|| self.mend_root(&hierarchy));
            point("root", info.fingerprint, info.validity, false, mend)
        };
        let mut points: Vec<_> = hierarchy.roots().iter().map(root).collect();
        let renewal = hierarchy.signing().renewal;
        let folder = self.0.files.plugged.default_folder();
        for upper in hierarchy.signing().above() {
            let mend = format!("have it renewed by its owner, and put it into cert-chain.pem in {}", folder.display());
            points.push(point("upper", upper.fingerprint, upper.validity, false, Some(mend)));
        }
        let intermediate = hierarchy.intermediate().info();
        let plug_in = format!(
            "run here: alcazar ca request --config ca.yaml; where the root is kept: alcazar root sign REQUEST --root DIR; and \
             here: alcazar ca install DIR --config ca.yaml (or put new files into {})",
            folder.display()
        );
        let mend = match renewal {
            Renewal::Itself => None,
            Renewal::Person => Some(plug_in),
            Renewal::Sharer => Some(format!(
                "install a renewed one at {}, and this replica goes over to it; or give it one of its own: {plug_in}",
                self.whose_is_shared()
            )),
        };
        let renews = renewal == Renewal::Itself;
        points.push(point("intermediate", intermediate.fingerprint, intermediate.validity, renews, mend));
        let serving = self.0.serving.borrow().clone();
        if let Some(leaf) = serving.svid().chain().first() {
            points.push(point("serving", Fingerprint::of(leaf), serving.svid().validity(), true, None));
        }
        points.extend(self.0.oldest_leaf.borrow().clone());
        points
    }

    fn mend_root(&self, hierarchy: &Hierarchy) -> String {
        if hierarchy.signing().renewal == Renewal::Itself && matches!(self.0.files.plugged.folder(), Ok(None)) {
            return "run: alcazar root rotate".into();
        }
        format!(
            "make a new root where the present one is kept (alcazar root init --out DIR), have this CA's request signed by it, and bring \
             both roots in root-cert.pem to {}",
            self.0.files.plugged.default_folder().display()
        )
    }

    /// Looks for the leaf of a node of whose life the least is left: nodes renew at half of it, so one that is far past it has
    /// trouble, or is gone.
    ///
    /// # Errors
    /// When the store does not answer.
    pub(crate) async fn look_for_the_oldest_leaf(&self) -> Result<(), RecordError> {
        let now = (self.0.clock)();
        let family = prefix(family::NODES)?;
        let mut oldest: Option<Point> = None;
        for entry in self.0.records.store().list(&family).await?.entries {
            let Some(name) = family.strip(entry.key()) else { continue };
            let leaf = read::<Lineage>(&entry)?.record.latest;
            let Some(validity) =
                Validity::new(leaf.issued_at, leaf.not_after).filter(|validity| validity.contains(now))
            else {
                continue;
            };
            let found = Point {
                of: Some(name.to_owned()),
                ..point("leaf", Fingerprint::of(&leaf.certificate), validity, true, None)
            };
            if oldest.as_ref().is_none_or(|oldest| share(&found, now) < share(oldest, now)) {
                oldest = Some(found);
            }
        }
        self.0.oldest_leaf.send_replace(oldest);
        Ok(())
    }
}

fn point(
    name: &'static str,
    fingerprint: Fingerprint,
    validity: Validity,
    renews_itself: bool,
    mend: Option<String>,
) -> Point {
    Point { name, of: None, fingerprint, validity, renews_itself, mend }
}

/// How much of its life is left, in millionths.
fn share(point: &Point, now: SystemTime) -> u64 {
    point.left(now).as_secs() * 1_000_000 / point.validity.lifetime().as_secs().max(1)
}
