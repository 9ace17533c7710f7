use std::fmt;
use std::str::FromStr;

/// One thing that must hold for a caller to be a workload.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Selector {
    /// It came by the socket of this name, which the agent made for it alone.
    Socket(SocketName),
    /// Its process runs under this user.
    Uid(u32),
    /// Its process runs under this group.
    Gid(u32),
}

impl Selector {
    /// Whether it holds for a caller.
    pub fn holds(&self, caller: &Caller) -> bool {
        match self {
            Self::Socket(name) => caller.socket.as_ref() == Some(name),
            Self::Uid(uid) => caller.uid == *uid,
            Self::Gid(gid) => caller.gid == *gid,
        }
    }
}

impl FromStr for Selector {
    type Err = ParseSelectorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |digits: &str| {
            let canonical = digits.parse::<u32>().ok().filter(|number| number.to_string() == digits);
            canonical.ok_or_else(|| ParseSelectorError::Number(text.to_owned()))
        };
        match text.split_once(':') {
            Some(("socket", name)) => Ok(Self::Socket(name.parse()?)),
            Some(("uid", digits)) => number(digits).map(Self::Uid),
            Some(("gid", digits)) => number(digits).map(Self::Gid),
            _ => Err(ParseSelectorError::Unknown(text.to_owned())),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(name) => write!(f, "socket:{name}"),
            Self::Uid(uid) => write!(f, "uid:{uid}"),
            Self::Gid(gid) => write!(f, "gid:{gid}"),
        }
    }
}

/// The name of a workload's own socket, without directory and `.sock`.
///
/// **Shape**: `a-z`, `0-9`, `.`, `-`, starting with a letter or digit; `agent` is the shared socket's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
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
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let allowed = |c: char| plain(c) || matches!(c, '.' | '-');
        if name.starts_with(plain) && name.chars().all(allowed) && name != SHARED_SOCKET {
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
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "uid {}, gid {}", self.uid, self.gid)?;
        if let Some(pid) = self.pid {
            write!(f, ", pid {pid}")?;
        }
        match &self.socket {
            Some(name) => write!(f, ", on the socket of {name}"),
            None => f.write_str(", on the shared socket"),
        }
    }
}

/// Why a text is not a selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseSelectorError {
    /// A kind that this agent does not know.
    #[error("{0:?} is no selector that this agent knows: socket:<name>, uid:<number>, gid:<number>")]
    Unknown(String),
    /// Not a number as numbers are written.
    #[error("{0:?} names no user or group: a number is needed")]
    Number(String),
    /// A name that cannot be a socket's.
    #[error("{0:?} cannot be a socket's name: a-z, 0-9, '.' and '-', starting with a letter or digit, not \"agent\"")]
    SocketName(String),
}

/// The name of the socket that all callers share.
pub const SHARED_SOCKET: &str = "agent";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn selectors_are_read_strictly() {
        for good in ["socket:shop.reviews-v1", "socket:0a", "uid:0", "uid:4294967295", "gid:1000"] {
            assert_eq!(good.parse::<Selector>().map(|s| s.to_string()), Ok(good.to_owned()));
        }
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
            "path:/bin/x",
            "socket:",
            "socket:agent",
            "socket:../x",
            "socket:a/b",
            "socket:.x",
            "socket:-x",
            "socket:A",
            "socket:a b",
        ] {
            assert!(bad.parse::<Selector>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_selector_holds_for_whom_it_describes() {
        let shared = Caller { socket: None, uid: 1000, gid: 100, pid: None };
        let own = Caller { socket: Some("shop.x".parse().unwrap()), ..shared.clone() };
        let holds = |text: &str| {
            let selector: Selector = text.parse().unwrap();
            [selector.holds(&shared), selector.holds(&own)]
        };
        assert_eq!(holds("uid:1000"), [true, true]);
        assert_eq!(holds("uid:100"), [false, false]);
        assert_eq!(holds("gid:100"), [true, true]);
        assert_eq!(holds("socket:shop.x"), [false, true]);
        assert_eq!(holds("socket:shop.y"), [false, false]);
    }

    proptest! {
        #[test]
        fn what_parses_prints_as_it_was(text in "(socket|uid|gid):[a-z0-9./-]{0,12}") {
            if let Ok(selector) = text.parse::<Selector>() {
                prop_assert_eq!(selector.to_string(), text);
            }
        }
    }
}
