//! Users and groups by name.

use nix::unistd::{Group, Uid, User};

use super::config::{Account, FilesConfig};
use super::folder::Access;

/// Whose the files of an entry are to be.
///
/// # Errors
/// When the system does not know the user or the group.
pub(crate) fn access(config: &FilesConfig) -> Result<Access, OwnerError> {
    let user = match &config.owner {
        Some(Account::Name(name)) => Some(user(name)?),
        Some(Account::Number(number)) => {
            Some((*number, User::from_uid(Uid::from_raw(*number)).ok().flatten().map(|user| user.gid.as_raw())))
        }
        None => None,
    };
    let group = match &config.group {
        Some(Account::Name(name)) => Some(group(name)?),
        Some(Account::Number(number)) => Some(*number),
        None => user.and_then(|(_, group)| group),
    };
    if let (Some((uid, _)), None) = (user, group) {
        return Err(OwnerError::NoGroup(uid));
    }
    Ok(Access { uid: user.map(|(uid, _)| uid), gid: group, mode: config.mode, key_mode: config.key_mode })
}

/// A user's number, and its group's.
fn user(name: &str) -> Result<(u32, Option<u32>), OwnerError> {
    match User::from_name(name) {
        Ok(Some(user)) => Ok((user.uid.as_raw(), Some(user.gid.as_raw()))),
        Ok(None) => Err(OwnerError::Unknown { kind: "user", name: name.into() }),
        Err(source) => Err(OwnerError::Unread { name: name.into(), source: source.into() }),
    }
}

fn group(name: &str) -> Result<u32, OwnerError> {
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err(OwnerError::Unknown { kind: "group", name: name.into() }),
        Err(source) => Err(OwnerError::Unread { name: name.into(), source: source.into() }),
    }
}

/// Why it is not known whose files are to be.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    /// The system has none of this name.
    #[error("files: this machine knows no {kind} {name:?}; make it before the agent starts, or give its number")]
    Unknown {
        /// User or group.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// A number of which nothing is known, not even its group.
    #[error("files: this machine knows no user of the number {0}; name the group of the files, too")]
    NoGroup(u32),
    /// The system does not say.
    #[error("files: this machine does not say whether it knows {name:?}")]
    Unread {
        /// The name.
        name: String,
        /// What it said.
        source: std::io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_up_and_strangers_refused() {
        let entry = |owner: Option<Account>, group: Option<Account>| {
            let plain = serde_json::json!({"registration": "a", "directory": "/a"});
            FilesConfig { owner, group, ..serde_json::from_value(plain).unwrap() }
        };
        let name = |name: &str| Some(Account::Name(name.into()));
        let found = |owner, group| {
            access(&entry(owner, group)).map(|access| (access.uid, access.gid)).map_err(|error| error.to_string())
        };
        assert_eq!(found(None, None), Ok((None, None)));
        assert_eq!(found(name("root"), None), Ok((Some(0), Some(0))));
        assert_eq!(found(name("root"), Some(Account::Number(7))), Ok((Some(0), Some(7))));
        let nobody = Some(Account::Number(4_000_000_000));
        assert!(found(nobody.clone(), None).unwrap_err().contains("name the group of the files, too"));
        assert_eq!(found(nobody, Some(Account::Number(7))), Ok((Some(4_000_000_000), Some(7))));
        assert!(found(name("no-such-user"), None).unwrap_err().contains("knows no user \"no-such-user\""));
        assert!(found(None, name("no-such-group")).unwrap_err().contains("knows no group"));
    }
}
