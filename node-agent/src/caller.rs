use std::fmt;

use alcazar_identity::{ExecutableDigest, ExecutablePath, PodAccount, PodNamespace, Selector, SocketName, UnitName};

/// Who is at the other end of a Unix socket, as the kernel says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The workload's own socket by which it came; `None`: the shared one.
    pub socket: Option<SocketName>,
    /// The user of its process when it connected.
    pub uid: u32,
    /// The group of its process when it connected.
    pub gid: u32,
    /// Its process, for the log.
    pub pid: Option<i32>,
    /// What its process looked like, as far as somebody wanted to know.
    pub seen: Seen,
}

/// What was seen of a process, at a moment at which it was certainly alive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Its supplementary groups.
    pub groups: Fact<Vec<u32>>,
    /// The service of the system manager that it belongs to.
    pub unit: Fact<UnitName>,
    /// The file that it executes.
    pub path: Fact<ExecutablePath>,
    /// The content of that file.
    pub digest: Fact<ExecutableDigest>,
    /// The pod that it is in.
    pub pod: Fact<Pod>,
}

/// Whose a pod is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its own name, for the log.
    pub name: String,
    /// The namespace that it is in.
    pub namespace: PodNamespace,
    /// The service account that it runs under.
    pub account: PodAccount,
}

/// Something about a process. What is not known matches nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Fact<T> {
    /// Nobody needed it.
    #[default]
    NotAsked,
    /// It certainly has none; why.
    Absent(String),
    /// It is so.
    Known(T),
    /// It could not be known, or was not to be believed; why.
    Unknown(String),
}

/// What of a process is to be looked at: no more than what some registration needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs {
    pub(crate) groups: bool,
    pub(crate) unit: bool,
    pub(crate) path: bool,
    pub(crate) digest: bool,
    pub(crate) pod: bool,
}

/// The ids by which the kernel shows users and groups that have none here: whoever has them is nobody in particular.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overflow {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Caller {
    /// Whether a selector describes it. What was not looked at, and what is not known, is described by none.
    pub fn is(&self, selector: &Selector) -> bool {
        match selector {
            Selector::Socket(name) => self.socket.as_ref() == Some(name),
            Selector::Uid(uid) => self.uid == *uid && *uid != OVERFLOW.uid,
            Selector::Gid(gid) => self.gid == *gid && *gid != OVERFLOW.gid,
            Selector::Group(gid) => {
                let supplementary = self.seen.groups.known().is_some_and(|groups| groups.contains(gid));
                (self.gid == *gid || supplementary) && *gid != OVERFLOW.gid
            }
            Selector::Unit(name) => self.seen.unit.known() == Some(name),
            Selector::Path(path) => self.seen.path.known() == Some(path),
            Selector::Sha256(digest) => self.seen.digest.known() == Some(digest),
            Selector::PodNamespace(name) => self.seen.pod.known().is_some_and(|pod| pod.namespace == *name),
            Selector::PodAccount(name) => self.seen.pod.known().is_some_and(|pod| pod.account == *name),
        }
    }

    /// Whether it is in a pod, or could be in one: that was looked at, and it is not certain that it is in none.
    pub(crate) fn may_be_in_a_pod(&self) -> bool {
        matches!(self.seen.pod, Fact::Known(_) | Fact::Unknown(_))
    }

    /// What was seen of its pod.
    pub(crate) fn pod_seen(&self) -> String {
        self.seen.pod.or_why(|pod| format!("its pod is {pod}"))
    }

    /// A selector that does not hold, and what was seen in its place.
    pub(crate) fn instead_of(&self, selector: &Selector) -> String {
        let seen = match selector {
            Selector::Socket(_) => match &self.socket {
                Some(name) => format!("it came by the socket of {name}"),
                None => "it came by the shared socket".to_owned(),
            },
            Selector::Uid(uid) => number("uid", self.uid, *uid == OVERFLOW.uid),
            Selector::Gid(gid) => number("gid", self.gid, *gid == OVERFLOW.gid),
            Selector::Group(_) => {
                self.seen.groups.or_why(|groups| format!("its groups are {}", list(self.gid, groups)))
            }
            Selector::Unit(_) => self.seen.unit.or_why(|unit| format!("its unit is {unit}")),
            Selector::Path(_) => self.seen.path.or_why(|path| format!("it executes {path}")),
            Selector::Sha256(_) => self.seen.digest.or_why(|digest| format!("it executes {digest}")),
            Selector::PodNamespace(_) | Selector::PodAccount(_) => self.pod_seen(),
        };
        format!("{selector} ({seen})")
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "uid {}, gid {}", self.uid, self.gid)?;
        if let Some(pid) = self.pid {
            write!(f, ", pid {pid}")?;
        }
        if let Fact::Known(groups) = &self.seen.groups {
            write!(f, ", groups {}", list(self.gid, groups))?;
        }
        if let Fact::Known(unit) = &self.seen.unit {
            write!(f, ", unit {unit}")?;
        }
        if let Fact::Known(path) = &self.seen.path {
            write!(f, ", path {path}")?;
        }
        if let Fact::Known(digest) = &self.seen.digest {
            write!(f, ", sha256 {digest}")?;
        }
        if let Fact::Known(pod) = &self.seen.pod {
            write!(f, ", in the pod {pod}")?;
        }
        match &self.socket {
            Some(name) => write!(f, ", on the socket of {name}"),
            None => f.write_str(", on the shared socket"),
        }
    }
}

impl fmt::Display for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} of the service account {}", self.namespace, self.name, self.account)
    }
}

impl<T> Fact<T> {
    pub(crate) fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::NotAsked | Self::Absent(_) | Self::Unknown(_) => None,
        }
    }

    fn or_why(&self, words: impl FnOnce(&T) -> String) -> String {
        match self {
            Self::Known(value) => words(value),
            Self::NotAsked => "not looked at".to_owned(),
            Self::Absent(why) | Self::Unknown(why) => why.clone(),
        }
    }
}

impl<T> From<Result<T, String>> for Fact<T> {
    fn from(known: Result<T, String>) -> Self {
        known.map_or_else(Self::Unknown, Self::Known)
    }
}

impl Needs {
    /// What must be looked at to know whether these hold.
    pub(crate) fn of<'s>(selectors: impl IntoIterator<Item = &'s Selector>) -> Self {
        let mut needs = Self::default();
        for selector in selectors {
            match selector {
                Selector::Socket(_) | Selector::Uid(_) | Selector::Gid(_) => {}
                Selector::Group(_) => needs.groups = true,
                Selector::Unit(_) => needs.unit = true,
                Selector::Path(_) => needs.path = true,
                Selector::Sha256(_) => needs.digest = true,
                Selector::PodNamespace(_) | Selector::PodAccount(_) => needs.pod = true,
            }
        }
        needs
    }

    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            groups: self.groups || other.groups,
            unit: self.unit || other.unit,
            path: self.path || other.path,
            digest: self.digest || other.digest,
            pod: self.pod || other.pod,
        }
    }

    pub(crate) fn is_none(self) -> bool {
        self == Self::default()
    }
}

fn number(kind: &str, seen: u32, nobodys: bool) -> String {
    match nobodys {
        true => format!("its {kind} is {seen}; this one stands for everybody without a {kind} here, so it is nobody's"),
        false => format!("its {kind} is {seen}"),
    }
}

fn list(primary: u32, groups: &[u32]) -> String {
    let rest = groups.iter().filter(|gid| **gid != primary);
    let all: Vec<_> = std::iter::once(&primary).chain(rest).take(MOST_GROUPS_TOLD).map(u32::to_string).collect();
    all.join(" ")
}

/// What the kernel shows for an id that has no counterpart in our user namespace, unless somebody changed
/// `/proc/sys/kernel/overflowuid`, which nobody does: the files of old file systems have it too.
pub(crate) const OVERFLOW: Overflow = Overflow { uid: 65534, gid: 65534 };
const MOST_GROUPS_TOLD: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Seen {
        Seen {
            groups: Fact::Known(vec![27, 100, 65534]),
            unit: Fact::Known("web.service".parse().unwrap()),
            path: Fact::Known("/usr/bin/web".parse().unwrap()),
            digest: Fact::Known(ExecutableDigest::new([0xab; 32])),
            pod: Fact::Known(Pod {
                name: "reviews-1".into(),
                namespace: "shop".parse().unwrap(),
                account: "reviews".parse().unwrap(),
            }),
        }
    }

    #[test]
    fn a_selector_holds_for_whom_it_describes() {
        let shared = Caller { socket: None, uid: 1000, gid: 100, pid: None, seen: known() };
        let own = Caller { socket: Some("shop.x".parse().unwrap()), ..shared.clone() };
        let blind = Caller { seen: Seen::default(), ..shared.clone() };
        let unknown = Caller {
            seen: Seen {
                groups: Fact::Unknown("x".into()),
                unit: Fact::Unknown("x".into()),
                path: Fact::Unknown("x".into()),
                digest: Fact::Unknown("x".into()),
                pod: Fact::Unknown("x".into()),
            },
            ..shared.clone()
        };
        let holds = |text: &str| {
            let selector: Selector = text.parse().unwrap();
            [&shared, &own, &blind, &unknown].map(|caller| caller.is(&selector))
        };
        assert_eq!(holds("uid:1000"), [true; 4]);
        assert_eq!(holds("uid:100"), [false; 4]);
        assert_eq!(holds("gid:100"), [true; 4]);
        assert_eq!(holds("gid:27"), [false; 4], "the primary group alone");
        assert_eq!(holds("socket:shop.x"), [false, true, false, false]);
        assert_eq!(holds("socket:shop.y"), [false; 4]);
        assert_eq!(holds("group:27"), [true, true, false, false]);
        assert_eq!(holds("group:100"), [true; 4], "the primary group is one of them");
        assert_eq!(holds("group:28"), [false; 4]);
        assert_eq!(holds("unit:web.service"), [true, true, false, false]);
        assert_eq!(holds("unit:web2.service"), [false; 4]);
        assert_eq!(holds("path:/usr/bin/web"), [true, true, false, false]);
        assert_eq!(holds("path:/usr/bin"), [false; 4]);
        assert_eq!(holds(&format!("sha256:{}", "ab".repeat(32))), [true, true, false, false]);
        assert_eq!(holds(&format!("sha256:{}", "ba".repeat(32))), [false; 4]);
        assert_eq!(holds("k8s:ns:shop"), [true, true, false, false]);
        assert_eq!(holds("k8s:ns:reviews"), [false; 4]);
        assert_eq!(holds("k8s:sa:reviews"), [true, true, false, false]);
        assert_eq!(holds("k8s:sa:shop"), [false; 4]);
    }

    #[test]
    fn whom_the_kernel_has_no_number_for_is_nobody() {
        let caller = Caller { socket: None, uid: 65534, gid: 65534, pid: None, seen: known() };
        for nobody in ["uid:65534", "gid:65534", "group:65534"] {
            let selector = nobody.parse().unwrap();
            assert!(!caller.is(&selector), "{nobody}");
            assert!(caller.instead_of(&selector).starts_with(nobody));
        }
    }

    #[test]
    fn a_caller_is_told_with_what_was_seen() {
        let caller = Caller { socket: None, uid: 1, gid: 2, pid: Some(3), seen: known() };
        let told = caller.to_string();
        assert!(
            told.starts_with(
                "uid 1, gid 2, pid 3, groups 2 27 100 65534, unit web.service, path /usr/bin/web, sha256 abab"
            ),
            "{told}"
        );
        let instead = |text: &str| caller.instead_of(&text.parse().unwrap());
        assert_eq!(instead("unit:a.service"), "unit:a.service (its unit is web.service)");
        assert_eq!(instead("group:5"), "group:5 (its groups are 2 27 100 65534)");
        assert_eq!(instead("uid:5"), "uid:5 (its uid is 1)");
        assert_eq!(instead("k8s:sa:x"), "k8s:sa:x (its pod is shop/reviews-1 of the service account reviews)");
        let blind = Caller { seen: Seen::default(), ..caller };
        assert_eq!(blind.instead_of(&"path:/a".parse().unwrap()), "path:/a (not looked at)");
    }
}
