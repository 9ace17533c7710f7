//! Which pod of Kubernetes a process is in, by its control groups.

use std::fmt;
use std::str::FromStr;

/// The uid of a pod, as its control group is named: a UUID, or the digest that the kubelet gives to a static pod.
///
/// **Shape**: lower-case hexadecimal, 8-4-4-4-12 or 32 digits in a row.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodUid(String);

/// The control group below which the kubelet keeps its pods: its `cgroupRoot`, `/` by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CgroupRoot(Vec<String>);

/// The pod that a process is in, from its `/proc/<pid>/cgroup`.
///
/// The path is read from its first component on, and the first pod on it is the one: whoever is in a pod may make control groups
/// below its own, named as he likes. For the same reason a path with a second pod on it is refused, and so are hierarchies
/// that disagree.
///
/// # Errors
/// Why it is in none, or in none that can be named.
///
/// **Source**: cgroups(7); the kubelet's `--cgroup-driver` and `--cgroup-root`.
pub fn pod_of(cgroup_file: &str, root: &CgroupRoot) -> Result<PodUid, NoPod> {
    let mut found: Option<PodUid> = None;
    let mut elsewhere = Vec::new();
    for line in cgroup_file.lines() {
        let Some(path) = line.splitn(3, ':').nth(2) else {
            return Err(NoPod::Unclear(format!("its control groups cannot be read: {line:?}")));
        };
        match (on_path(path, root).map_err(NoPod::Unclear)?, &found) {
            (None, _) => elsewhere.push(path),
            (Some(pod), None) => found = Some(pod),
            (Some(pod), Some(other)) if pod == *other => {}
            (Some(pod), Some(other)) => {
                return Err(NoPod::Unclear(format!("its control groups are of two pods, {other} and {pod}")));
            }
        }
    }
    found.ok_or_else(|| {
        let place = elsewhere.iter().max().copied().unwrap_or_default();
        let why = format!("it is in no pod: its control group {place:?} is not below {root}");
        // A kubelet whose groups are elsewhere than the agent was told has pods all the same.
        let certain = !elsewhere.is_empty() && !elsewhere.iter().any(|path| is_named_like_a_pods(path));
        if certain { NoPod::Elsewhere(why) } else { NoPod::Unclear(why) }
    })
}

/// The pod that this path leads into; none where it leads past the kubelet's part of the tree.
fn on_path(path: &str, root: &CgroupRoot) -> Result<Option<PodUid>, String> {
    let Some(rest) = path.strip_prefix('/') else { return Err(format!("its control group {path:?} is no path")) };
    let components: Vec<&str> = rest.split('/').collect();
    if components.contains(&"..") {
        return Err(format!(
            "its control group {path:?} is outside of what the agent can see: run the agent in the host's namespace of control \
             groups (on a node with version 2 that takes hostPID and a privileged container, or a service of the node's own)"
        ));
    }
    let Some(below) = plainly_below(&components, root).or_else(|| below_slices(&components, root)) else {
        return Ok(None);
    };
    let Some((first, inside)) = below.split_first() else {
        return Err(format!("it is in no pod, but in the control group {path:?} of all of them"));
    };
    let Some(pod) = first else { return Err(format!("its control group {path:?} names no pod")) };
    match inside.iter().flatten().next() {
        None => Ok(Some(pod.clone())),
        Some(other) => Err(format!("its control group {path:?} names a pod within another, {other} in {pod}")),
    }
}

/// What comes after the groups that are for all pods of a class, as the driver `cgroupfs` lays them out: the pod that each component
/// names, if it does.
fn plainly_below(components: &[&str], root: &CgroupRoot) -> Option<Vec<Option<PodUid>>> {
    let rest = strip(components, root.0.iter().map(String::as_str).chain([ALL_PODS]))?;
    let rest = rest.split_first().filter(|(class, _)| CLASSES.contains(class)).map_or(rest, |(_, rest)| rest);
    let pod = rest.first().map(|name| name.strip_prefix(POD).and_then(|uid| uid.parse().ok()));
    Some(pod.into_iter().chain(rest.iter().skip(1).map(|name| named_within(name))).collect())
}

/// The same as the driver `systemd` lays them out: the name of each slice has those above it before its own.
fn below_slices(components: &[&str], root: &CgroupRoot) -> Option<Vec<Option<PodUid>>> {
    let mut name = String::new();
    let mut slices = Vec::new();
    for part in root.0.iter().map(String::as_str).chain([ALL_PODS]) {
        // A dash is what divides the parts.
        let part = part.replace('-', "_");
        name = if name.is_empty() { part } else { format!("{name}-{part}") };
        slices.push(format!("{name}.slice"));
    }
    let mut rest = strip(components, slices.iter().map(String::as_str))?;
    for class in CLASSES {
        if let Some((first, below)) = rest.split_first()
            && *first == format!("{name}-{class}.slice")
        {
            (name, rest) = (format!("{name}-{class}"), below);
            break;
        }
    }
    let pod = rest.first().map(|first| {
        let uid = first.strip_suffix(".slice")?.strip_prefix(name.as_str())?.strip_prefix('-')?.strip_prefix(POD)?;
        // Its own dashes cannot be there as they are.
        if uid.contains('-') { None } else { uid.replace('_', "-").parse().ok() }
    });
    Some(pod.into_iter().chain(rest.iter().skip(1).map(|name| named_within(name))).collect())
}

fn strip<'c, 's>(components: &'c [&'c str], names: impl Iterator<Item = &'s str>) -> Option<&'c [&'c str]> {
    names.into_iter().try_fold(components, |rest, name| {
        rest.split_first().filter(|(first, _)| **first == name).map(|(_, rest)| rest)
    })
}

/// Whether a path could be one that some kubelet has made for a pod, wherever it keeps them.
fn is_named_like_a_pods(path: &str) -> bool {
    path.contains(ALL_PODS)
        || path.split('/').any(|component| named_within(component).is_some() || is_named_like_a_container(component))
}

/// Whether a component could be one that a container runtime has made, which is where pods are when the kubelet makes no groups.
///
/// `<runtime>-<id>.scope` by the driver `systemd`, and the id alone, of 64 hexadecimal digits, by the other; containerd has them in its
/// namespace `k8s.io`.
fn is_named_like_a_container(component: &str) -> bool {
    let scope = component.strip_suffix(".scope").unwrap_or(component);
    let id = scope.rsplit('-').next().unwrap_or_default();
    component == "k8s.io" || id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A pod that a component names in whichever way.
fn named_within(component: &str) -> Option<PodUid> {
    component.match_indices(POD).find_map(|(at, _)| {
        let after = component.get(at + POD.len()..)?;
        let end = after.find(|c: char| !c.is_ascii_hexdigit() && !matches!(c, '-' | '_')).unwrap_or(after.len());
        after.get(..end)?.to_ascii_lowercase().replace('_', "-").parse().ok()
    })
}

impl PodUid {
    /// The uid.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PodUid {
    type Err = ParsePodUidError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hex = |part: &str| part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let lengths: Vec<usize> = text.split('-').map(str::len).collect();
        match text.split('-').all(hex) && (lengths == UUID || lengths == DIGEST) {
            true => Ok(Self(text.to_owned())),
            false => Err(ParsePodUidError(text.to_owned())),
        }
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for CgroupRoot {
    type Err = ParseCgroupRootError;

    fn from_str(path: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseCgroupRootError(path.to_owned());
        let rest = path.strip_prefix('/').ok_or_else(wrong)?;
        if rest.is_empty() {
            return Ok(Self::default());
        }
        let plain = |name: &str| !matches!(name, "" | "." | "..") && !name.ends_with(".slice");
        let fine = |name: &str| plain(name) && name.chars().all(|c| c.is_ascii_graphic());
        match rest.split('/').all(fine) {
            true => Ok(Self(rest.split('/').map(str::to_owned).collect())),
            false => Err(wrong()),
        }
    }
}

impl fmt::Display for CgroupRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|name| write!(f, "/{name}"))?;
        write!(f, "/{ALL_PODS}")
    }
}

/// Why a process is in no pod that can be named.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoPod {
    /// It certainly is in none: nothing of its control groups is as of a pod's.
    #[error("{0}")]
    Elsewhere(String),
    /// It may be in one.
    #[error("{0}")]
    Unclear(String),
}

/// A text that is no pod's uid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no pod's uid")]
pub struct ParsePodUidError(String);

/// A text that is not where a kubelet keeps its pods.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not the cgroupRoot of a kubelet: a path as in its own configuration, from \"/\" on, as in \"/kubelet\""
)]
pub struct ParseCgroupRootError(String);

const ALL_PODS: &str = "kubepods";
/// Pods of the third class, the guaranteed ones, are beside these two.
const CLASSES: [&str; 2] = ["burstable", "besteffort"];
const POD: &str = "pod";
const UUID: [usize; 5] = [8, 4, 4, 4, 12];
const DIGEST: [usize; 1] = [32];

#[cfg(test)]
mod tests;
