//! What differs between two worlds, in words for the log.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use super::World;
use crate::mesh::display_ttl;

/// What a reload changed, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Changes {
    /// Workloads, `<namespace>/<name>`.
    pub workloads: Changed,
    /// Services, `<namespace>/<name>`.
    pub services: Changed,
    /// Workloads for which the policy decides otherwise, new ones excluded.
    pub policies: Vec<String>,
    /// Other fields of the mesh file, in words.
    pub other: Vec<String>,
}

/// Names that came, changed or went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Changed {
    /// New ones.
    pub added: Vec<String>,
    /// Those that are not as they were.
    pub changed: Vec<String>,
    /// Those that are gone.
    pub removed: Vec<String>,
}

impl Changes {
    /// What is different in `after`, the policies excluded: what they mean for a workload is compiled elsewhere.
    pub(crate) fn between(before: &World, after: &World) -> Self {
        let mut other = Vec::new();
        if before.ttl != after.ttl {
            let shown = |ttl: Option<_>| ttl.map_or_else(|| "the default".to_owned(), display_ttl);
            other.push(format!("certificates live for {} (was {})", shown(after.ttl), shown(before.ttl)));
        }
        Self {
            workloads: changed(&before.workloads, &after.workloads, |workload| workload.key()),
            services: changed(&before.services, &after.services, |service| service.key()),
            policies: Vec::new(),
            other,
        }
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self == &Self::default()
    }
}

/// `workloads: new shop/a, gone shop/b; policy of shop/c`.
impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        for (what, changed) in [("workloads", &self.workloads), ("services", &self.services)] {
            let kinds = [("new", &changed.added), ("changed", &changed.changed), ("gone", &changed.removed)];
            let kinds = kinds.iter().filter(|(_, names)| !names.is_empty());
            let kinds: Vec<String> = kinds.map(|(kind, names)| format!("{kind} {}", listed(names))).collect();
            if !kinds.is_empty() {
                parts.push(format!("{what}: {}", kinds.join(", ")));
            }
        }
        if !self.policies.is_empty() {
            parts.push(format!("policy of {}", listed(&self.policies)));
        }
        parts.extend(self.other.iter().cloned());
        match parts.is_empty() {
            true => f.write_str("nothing that matters"),
            false => f.write_str(&parts.join("; ")),
        }
    }
}

fn changed<T>(before: &[Arc<T>], after: &[Arc<T>], key: impl Fn(&T) -> String) -> Changed {
    let names = |items: &[Arc<T>]| items.iter().map(|item| key(item)).collect::<BTreeSet<_>>();
    let (old, new) = (names(before), names(after));
    // What is the same is shared.
    let same: BTreeSet<*const T> = before.iter().map(Arc::as_ptr).collect();
    let touched = after.iter().filter(|item| !same.contains(&Arc::as_ptr(item)));
    let mut touched: Vec<String> = touched.map(|item| key(item)).filter(|name| old.contains(name)).collect();
    touched.sort();
    Changed {
        added: new.difference(&old).cloned().collect(),
        changed: touched,
        removed: old.difference(&new).cloned().collect(),
    }
}

/// As many names as a person reads.
fn listed(names: &[String]) -> String {
    match names.split_at_checked(SHOWN) {
        Some((first, rest)) if rest.len() > 1 => format!("{} and {} more", first.join(", "), rest.len()),
        _ => names.join(", "),
    }
}

const SHOWN: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_read_as_one_line() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let many: Vec<String> = (0..20).map(|n| format!("shop/w{n}")).collect();
        let changes = Changes {
            workloads: Changed { added: names(&["shop/a", "shop/b"]), changed: vec![], removed: names(&["shop/c"]) },
            services: Changed { changed: names(&["shop/s"]), ..Changed::default() },
            policies: many,
            other: names(&["certificates live for 1h (was the default)"]),
        };
        assert_eq!(
            changes.to_string(),
            "workloads: new shop/a, shop/b, gone shop/c; services: changed shop/s; policy of shop/w0, shop/w1, \
             shop/w2, shop/w3, shop/w4, shop/w5, shop/w6, shop/w7 and 12 more; certificates live for 1h (was the default)"
        );
        assert_eq!(Changes::default().to_string(), "nothing that matters");
    }
}
