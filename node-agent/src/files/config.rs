//! What `agent.yaml` says of files: for programs that speak neither SDS nor the Workload API.

use std::path::PathBuf;
use std::time::Duration;

use alcazar_service::duration;
use serde::{Deserialize, Deserializer, de::Error as _};

/// The files of one workload.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FilesConfig {
    /// The id of the registration whose certificate it is.
    pub registration: String,
    /// Where the files are; made when it is missing. Of one entry alone.
    pub directory: PathBuf,
    /// Whose they are: a user's name or number. Default: the agent's own user.
    #[serde(default)]
    pub owner: Option<Account>,
    /// Their group, by name or number. Default: the owner's.
    #[serde(default)]
    pub group: Option<Account>,
    /// The mode of certificates, in octal. Default: 0644.
    #[serde(default = "certificate_mode", deserialize_with = "mode")]
    pub mode: u32,
    /// The mode of what holds the private key, in octal; nobody else may read it. Default: 0600.
    #[serde(default = "key_mode", deserialize_with = "mode")]
    pub key_mode: u32,
    /// Which roots are in `root-cert.pem`. Default: those of the workload's own trust domain.
    #[serde(default)]
    pub roots: Roots,
    /// The same in `keystore.p12`, for programs that read PKCS#12. Default: no such file.
    #[serde(default)]
    pub pkcs12: Option<Pkcs12Config>,
    /// What is to be done after each change. Default: nothing, and the program looks for itself.
    #[serde(default)]
    pub after: Option<After>,
}

/// A file of PKCS#12.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pkcs12Config {
    /// The file whose only line is the password; read anew for each certificate.
    pub password_file: PathBuf,
}

/// A user or a group.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Account {
    /// By number.
    Number(u32),
    /// By name, which the system knows.
    Name(String),
}

/// Whom a program believes by its `root-cert.pem`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Roots {
    /// The workload's own trust domain.
    #[default]
    Own,
    /// Every trust domain that is believed. A file of PEM does not say which root may speak for which trust domain: the program
    /// has to look at the names that it admits.
    All,
}

/// How a program learns of new files.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct After {
    /// A program and its arguments, without a shell. It runs as the files' owner.
    #[serde(default)]
    pub command: Vec<String>,
    /// A signal, such as `HUP`, to the process whose number is in `pidFile`, and which runs as the files' owner.
    #[serde(default)]
    pub signal: Option<String>,
    /// The file with the number of that process.
    #[serde(default)]
    pub pid_file: Option<PathBuf>,
    /// How long the command may take. Default: 10s.
    #[serde(default = "default_timeout", deserialize_with = "duration::deserialize")]
    pub timeout: Duration,
}

/// What makes no sense in them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilesConfigError {
    /// Relative to what?
    #[error("files: the directory {} is not an absolute path", .0.display())]
    Relative(PathBuf),
    /// Each would replace the other's.
    #[error("files: two entries have the directory {}; each needs one of its own", .0.display())]
    Twice(PathBuf),
    /// A key for everybody.
    #[error("files: keyMode {mode:04o} of {} lets everybody read the private key; 0600, or 0640 with a group, is enough", directory.display())]
    KeyForAll {
        /// The directory.
        directory: PathBuf,
        /// The mode.
        mode: u32,
    },
    /// Nothing, or two things.
    #[error("files: after, for {}: give a command, or a signal with its pidFile, and not both", .0.display())]
    After(PathBuf),
    /// No signal by which programs are told to look.
    #[error("files: after, for {}: {signal:?} is not a signal that programs are told to look by: HUP, USR1, USR2, INT or TERM", directory.display())]
    Signal {
        /// The directory.
        directory: PathBuf,
        /// What stands there.
        signal: String,
    },
}

/// Whether the entries make sense, each and together.
///
/// # Errors
/// The first that does not.
pub(crate) fn check(all: &[FilesConfig]) -> Result<(), FilesConfigError> {
    for (place, entry) in all.iter().enumerate() {
        let directory = || entry.directory.clone();
        if !entry.directory.is_absolute() {
            return Err(FilesConfigError::Relative(directory()));
        }
        if all.iter().take(place).any(|other| other.directory == entry.directory) {
            return Err(FilesConfigError::Twice(directory()));
        }
        if entry.key_mode & 0o007 != 0 {
            return Err(FilesConfigError::KeyForAll { directory: directory(), mode: entry.key_mode });
        }
        if let Some(after) = &entry.after {
            let signals = after.signal.is_some() || after.pid_file.is_some();
            let whole = after.signal.is_some() == after.pid_file.is_some();
            if !whole || signals != after.command.is_empty() {
                return Err(FilesConfigError::After(directory()));
            }
            if let Some(signal) = after.signal.as_ref().filter(|name| super::after::signal(name).is_none()) {
                return Err(FilesConfigError::Signal { directory: directory(), signal: signal.clone() });
            }
        }
    }
    Ok(())
}

fn mode<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let text = String::deserialize(deserializer)?;
    let parsed = u32::from_str_radix(&text, 8).ok().filter(|mode| *mode <= 0o777 && text.starts_with('0'));
    parsed.ok_or_else(|| D::Error::custom(format!("{text:?} is not a mode; write it in octal and quoted, as \"0640\"")))
}

fn certificate_mode() -> u32 {
    0o644
}

fn key_mode() -> u32 {
    0o600
}

fn default_timeout() -> Duration {
    Duration::from_secs(10)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: serde_json::Value) -> Result<FilesConfig, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn an_entry_says_whose_files_are_where_and_what_makes_no_sense_is_named() {
        let plain = read(json!({"registration": "shop.web", "directory": "/etc/web"})).unwrap();
        assert_eq!((plain.mode, plain.key_mode, plain.roots, &plain.after), (0o644, 0o600, Roots::Own, &None));
        let other = read(json!({"registration": "shop.db", "directory": "/etc/db", "owner": "postgres", "group": 5,
            "keyMode": "0640", "roots": "all", "after": {"signal": "HUP", "pidFile": "/run/db.pid"}}))
        .unwrap();
        assert_eq!((&other.owner, &other.group), (&Some(Account::Name("postgres".into())), &Some(Account::Number(5))));
        assert_eq!(check(&[plain.clone(), other.clone()]), Ok(()));

        let said = |entry: FilesConfig| check(&[plain.clone(), entry]).unwrap_err().to_string();
        assert!(said(plain.clone()).contains("two entries have the directory /etc/web"));
        assert!(said(FilesConfig { directory: "web".into(), ..other.clone() }).contains("not an absolute path"));
        assert!(said(FilesConfig { key_mode: 0o604, ..other.clone() }).contains("keyMode 0604"));
        let after = |value: serde_json::Value| FilesConfig {
            after: Some(serde_json::from_value(value).unwrap()),
            ..other.clone()
        };
        for neither in [
            json!({}),
            json!({"signal": "HUP"}),
            json!({"pidFile": "/a"}),
            json!({"command": ["a"], "signal": "HUP", "pidFile": "/a"}),
        ] {
            assert!(said(after(neither)).contains("give a command, or a signal with its pidFile"));
        }
        assert!(said(after(json!({"signal": "KILL", "pidFile": "/a"}))).contains("\"KILL\" is not a signal"));
        for mode in ["640", "0888", "01777", ""] {
            let wrong = read(json!({"registration": "a", "directory": "/a", "mode": mode}));
            assert!(wrong.unwrap_err().contains("is not a mode"), "{mode:?}");
        }
    }
}
