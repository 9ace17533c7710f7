//! How a workload is known on its node: the grammar that the CA, which is told, and the agent, which looks, have in common.

use std::fmt;
use std::str::FromStr;

/// One thing that must hold for a caller to be a workload.
///
/// Its order is that in which a person is told of several.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Selector {
    /// It came by the socket of this name, which the agent made for it alone.
    Socket(SocketName),
    /// Its process runs as this user.
    Uid(u32),
    /// This is the primary group of its process.
    Gid(u32),
    /// Its process is in this group, primary or supplementary.
    Group(u32),
    /// Its process belongs to this service of the system manager.
    Unit(UnitName),
    /// Its process executes this file.
    Path(ExecutablePath),
    /// Its process executes a file with this content.
    Sha256(ExecutableDigest),
    /// Its process is of a pod in this namespace of Kubernetes.
    PodNamespace(PodNamespace),
    /// Its process is of a pod that runs under a service account of this name.
    PodAccount(PodAccount),
}

impl FromStr for Selector {
    type Err = ParseSelectorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |digits: &str| {
            let canonical = digits.parse::<u32>().ok().filter(|number| number.to_string() == digits);
            canonical.ok_or_else(|| ParseSelectorError::Number(text.to_owned()))
        };
        match text.split_once(':') {
            Some(("socket", name)) => name.parse().map(Self::Socket),
            Some(("uid", digits)) => number(digits).map(Self::Uid),
            Some(("gid", digits)) => number(digits).map(Self::Gid),
            Some(("group", digits)) => number(digits).map(Self::Group),
            Some(("unit", name)) => name.parse().map(Self::Unit),
            Some(("path", path)) => path.parse().map(Self::Path),
            Some(("sha256", digest)) => digest.parse().map(Self::Sha256),
            Some(("k8s", of_a_pod)) => match of_a_pod.split_once(':') {
                Some(("ns", namespace)) => namespace.parse().map(Self::PodNamespace),
                Some(("sa", account)) => account.parse().map(Self::PodAccount),
                _ => Err(unknown(text)),
            },
            _ => Err(unknown(text)),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(name) => write!(f, "socket:{name}"),
            Self::Uid(uid) => write!(f, "uid:{uid}"),
            Self::Gid(gid) => write!(f, "gid:{gid}"),
            Self::Group(gid) => write!(f, "group:{gid}"),
            Self::Unit(name) => write!(f, "unit:{name}"),
            Self::Path(path) => write!(f, "path:{path}"),
            Self::Sha256(digest) => write!(f, "sha256:{digest}"),
            Self::PodNamespace(namespace) => write!(f, "k8s:ns:{namespace}"),
            Self::PodAccount(account) => write!(f, "k8s:sa:{account}"),
        }
    }
}

/// The name of a workload's own socket, without directory and `.sock`.
///
/// **Shape**: 1 to 200 of `a-z`, `0-9`, `.`, `-`, starting with a letter or digit; [`SHARED_SOCKET`] is taken.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketName(String);

impl SocketName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SocketName {
    type Err = ParseSelectorError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let shaped = name.bytes().next().is_some_and(plain) && name.bytes().all(|b| plain(b) || b".-".contains(&b));
        if shaped && name.len() <= MAX_SOCKET_NAME && name != SHARED_SOCKET {
            Ok(Self(name.to_owned()))
        } else {
            Err(ParseSelectorError::SocketName(name.to_owned()))
        }
    }
}

impl fmt::Display for SocketName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a service of systemd.
///
/// **Shape**: at most 255 of ASCII letters, digits and `:-_.\@`, ending in `.service`; no template, which never runs.
///
/// **Source**: systemd.unit(5).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitName(String);

impl UnitName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for UnitName {
    type Err = ParseSelectorError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || br":-_.\@".contains(&b);
        let stem = name.strip_suffix(".service").filter(|stem| !stem.is_empty());
        let runs = stem.is_some_and(|stem| !stem.starts_with(['.', '@']) && !stem.ends_with('@'));
        if runs && name.len() <= MAX_UNIT_NAME && name.bytes().all(allowed) {
            Ok(Self(name.to_owned()))
        } else {
            Err(ParseSelectorError::Unit(name.to_owned()))
        }
    }
}

impl fmt::Display for UnitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where an executable file is.
///
/// **Shape**: absolute, without `.`, `..`, empty components and control characters: as the kernel names the file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExecutablePath(String);

impl ExecutablePath {
    /// The path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ExecutablePath {
    type Err = ParseSelectorError;

    fn from_str(path: &str) -> Result<Self, Self::Err> {
        let component = |part: &str| !matches!(part, "" | "." | "..");
        let canonical = path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(component));
        if canonical && path.len() <= MAX_PATH && !path.chars().any(char::is_control) {
            Ok(Self(path.to_owned()))
        } else {
            Err(ParseSelectorError::Path(path.to_owned()))
        }
    }
}

impl fmt::Display for ExecutablePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The SHA-256 of an executable file, as `sha256sum` prints it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExecutableDigest([u8; 32]);

impl ExecutableDigest {
    /// A digest that somebody computed.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl FromStr for ExecutableDigest {
    type Err = ParseSelectorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseSelectorError::Digest(text.to_owned());
        let lower = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != 64 || !text.bytes().all(lower) {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (at, byte) in bytes.iter_mut().enumerate() {
            let pair = text.get(2 * at..2 * at + 2).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for ExecutableDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The name of a namespace of Kubernetes.
///
/// **Shape**: a DNS label: 1 to 63 of `a-z`, `0-9` and `-`, with a letter or digit at both ends.
///
/// **Source**: RFC 1123, as Kubernetes reads it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodNamespace(String);

impl PodNamespace {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PodNamespace {
    type Err = ParseSelectorError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match is_dns_label(name) {
            true => Ok(Self(name.to_owned())),
            false => Err(ParseSelectorError::PodNamespace(name.to_owned())),
        }
    }
}

impl fmt::Display for PodNamespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a service account of Kubernetes, without its namespace.
///
/// **Shape**: a DNS subdomain: labels joined by `.`, at most 253 bytes.
///
/// **Source**: RFC 1123, as Kubernetes reads it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodAccount(String);

impl PodAccount {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PodAccount {
    type Err = ParseSelectorError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name.len() <= MAX_SUBDOMAIN && name.split('.').all(is_dns_label) {
            true => Ok(Self(name.to_owned())),
            false => Err(ParseSelectorError::PodAccount(name.to_owned())),
        }
    }
}

impl fmt::Display for PodAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_dns_label(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (1..=63).contains(&name.len())
        && name.bytes().all(|b| plain(b) || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// Why a text is not a selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseSelectorError {
    /// A kind that this version does not know: whoever it should describe is nobody here.
    #[error("{text:?} is not a selector: {hint}")]
    Unknown {
        /// What was given.
        text: String,
        /// What may have been meant.
        hint: String,
    },
    /// Not a number as numbers are written.
    #[error("{0:?} names no user or group: a number is needed, as `id` prints it")]
    Number(String),
    /// A name that cannot be a socket's.
    #[error(
        "{0:?} cannot be a socket's selector: the name is 1 to {MAX_SOCKET_NAME} of a-z, 0-9, '.' and '-', beginning with a letter or digit, and not {SHARED_SOCKET:?}, the agent's own"
    )]
    SocketName(String),
    /// A name that cannot be a running service's.
    #[error(
        "{0:?} names no service that can run: the whole name is needed, as in unit:nginx.service or unit:web@1.service"
    )]
    Unit(String),
    /// Not a path as the kernel says it.
    #[error(
        "{0:?} is not the path of an executable: it must be absolute and without '.', '..' and '//', as `readlink /proc/<pid>/exe` prints it"
    )]
    Path(String),
    /// Not a digest.
    #[error("{0:?} is not a SHA-256: 64 of 0-9 and a-f, as `sha256sum` prints it")]
    Digest(String),
    /// Not a namespace's name.
    #[error("{0:?} names no namespace of Kubernetes: 1 to 63 of a-z, 0-9 and '-', with a letter or digit at both ends")]
    PodNamespace(String),
    /// Not a service account's name.
    #[error(
        "{0:?} names no service account of Kubernetes: the name alone is needed, as in k8s:sa:reviews, beside k8s:ns:<namespace>"
    )]
    PodAccount(String),
}

fn unknown(text: &str) -> ParseSelectorError {
    let kind = text.split(':').next().unwrap_or_default().trim().to_ascii_lowercase();
    let meant = match kind.as_str() {
        "user" => Some("uid"),
        "gids" | "supplementary" | "supplementary_gid" => Some("group"),
        "exe" | "executable" => Some("path"),
        "digest" | "sha" | "hash" => Some("sha256"),
        "service" | "systemd" => Some("unit"),
        "kubernetes" | "pod" | "ns" | "namespace" | "k8s" => Some("k8s:ns"),
        "sa" | "serviceaccount" | "account" => Some("k8s:sa"),
        other => nearest(other),
    };
    let hint = match meant {
        Some(kind) => format!("did you mean `{kind}:`?"),
        None => format!("possible are {}", KINDS.map(|(kind, value)| format!("{kind}:{value}")).join(", ")),
    };
    ParseSelectorError::Unknown { text: text.to_owned(), hint }
}

/// The kind of which a letter or two is wrong. Nobody mistypes one into something long, and the comparison is quadratic.
fn nearest(kind: &str) -> Option<&'static str> {
    let short = (3..=12).contains(&kind.len());
    let scored = KINDS.map(|(known, _)| (strsim::damerau_levenshtein(kind, known), known));
    let (distance, known) = scored.into_iter().min()?;
    (short && distance <= kind.len() / 3).then_some(known)
}

const KINDS: [(&str, &str); 9] = [
    ("socket", "<name>"),
    ("uid", "<number>"),
    ("gid", "<number>"),
    ("group", "<number>"),
    ("unit", "<name>.service"),
    ("path", "<absolute path>"),
    ("sha256", "<hex>"),
    ("k8s:ns", "<namespace>"),
    ("k8s:sa", "<service account>"),
];

/// The name of the socket that all callers share.
pub const SHARED_SOCKET: &str = "agent";

const MAX_SOCKET_NAME: usize = 200;
/// UNIT_NAME_MAX of systemd.
const MAX_UNIT_NAME: usize = 255;
/// PATH_MAX of Linux, without the zero at the end.
const MAX_PATH: usize = 4095;
const MAX_SUBDOMAIN: usize = 253;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn selectors_are_read_strictly() {
        let digest = format!("sha256:{DIGEST}");
        for good in [
            "socket:shop.reviews-v1",
            "socket:0a",
            "uid:0",
            "uid:4294967295",
            "gid:1000",
            "group:27",
            "unit:nginx.service",
            "unit:web@1.service",
            r"unit:dev-disk\x2d1:a_B.service",
            "path:/usr/sbin/nginx",
            "path:/opt/a b/é",
            "path:/opt/...",
            &digest,
            "k8s:ns:shop",
            "k8s:sa:reviews.v-1",
        ] {
            assert_eq!(good.parse::<Selector>().map(|s| s.to_string()), Ok(good.to_owned()));
        }
        let long = ["socket:", "unit:", "path:/"].map(|kind| format!("{kind}{}.service", "a".repeat(5000)));
        let upper = digest.to_uppercase().replace("SHA", "sha");
        let [short, other] = [digest.trim_end_matches('5').to_owned(), digest.replace('e', "g")];
        for bad in [
            "",
            "uid",
            "uid:",
            "uid:-1",
            "uid:+1",
            "uid:01",
            "uid:4294967296",
            "uid: 1",
            "Uid:1",
            " uid:1",
            "group:",
            "group:wheel",
            "socket:",
            "socket:agent",
            "socket:../x",
            "socket:a/b",
            "socket:.x",
            "socket:-x",
            "socket:A",
            "socket:a b",
            "unit:",
            "unit:.service",
            "unit:nginx",
            "unit:nginx.socket",
            "unit:web@.service",
            "unit:@1.service",
            "unit:a/b.service",
            "unit:a b.service",
            "unit:é.service",
            "path:",
            "path:nginx",
            "path:./nginx",
            "path:/",
            "path:/usr//nginx",
            "path:/usr/",
            "path:/usr/../nginx",
            "path:/./nginx",
            "path:/a\nb",
            "path:/a\0",
            "sha256:",
            "exe:/bin/x",
            "k8s:ns:",
            "k8s:ns:a.b",
            "k8s:ns:Shop",
            "k8s:ns:-a",
            "k8s:sa:shop/reviews",
            "k8s:sa:a..b",
            "k8s:sa:system:x",
            "k8s:pod:a",
            "k8s:",
            "k8s",
            "pid:1",
            &long[0],
            &long[1],
            &long[2],
            &upper,
            &short,
            &other,
        ] {
            assert!(bad.parse::<Selector>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_is_not_known_is_refused_with_what_may_have_been_meant() {
        let check = |text: &str, hint: &str| {
            let error = text.parse::<Selector>().unwrap_err().to_string();
            assert!(error.contains(hint), "{error}");
        };
        check("exe:/bin/x", "did you mean `path:`?");
        check("user:7", "did you mean `uid:`?");
        check("Groups:7", "did you mean `group:`?");
        check("sokcet:a", "did you mean `socket:`?");
        check("systemd:nginx.service", "did you mean `unit:`?");
        check("label:x", "possible are socket:<name>, uid:<number>, gid:<number>, group:<number>, unit:<name>.service");
        check("k8s:reviews", "did you mean `k8s:ns:`?");
        check("sa:reviews", "did you mean `k8s:sa:`?");
        check("unit:nginx", "as in unit:nginx.service");
        check("sha256:abc", "as `sha256sum` prints it");
        check(&"x".repeat(100_000), "possible are");
    }

    proptest! {
        #[test]
        fn what_parses_prints_as_it_was(text in "(socket|uid|gid|group|unit|path|sha256|k8s:ns|k8s:sa):[a-z0-9./@-]{0,12}(\\.service)?") {
            if let Ok(selector) = text.parse::<Selector>() {
                prop_assert_eq!(selector.to_string(), text);
            }
        }
    }
}
