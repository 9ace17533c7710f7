//! Where proxies listen when nobody says: chosen once, remembered in a file, the same after a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The addresses that were chosen, by workload.
///
/// Choices of workloads that are gone are kept, so that one which comes back finds its address again, until
/// somebody else needs the port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddressBook {
    chosen: BTreeMap<String, Choice>,
}

/// What an address is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The mesh's side of a proxy.
    Inbound,
    /// The application's side.
    Outbound,
}

impl AddressBook {
    /// Reads a book. A file that is not there is an empty book.
    ///
    /// # Errors
    /// When the file cannot be read, or is not an address book.
    pub fn load(path: &Path) -> Result<Self, AddressBookError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(AddressBookError::Read { path: path.to_owned(), source }),
        };
        Self::from_json(&text).map_err(|source| AddressBookError::Damaged { path: path.to_owned(), source })
    }

    /// Writes the book, whole or not at all.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), AddressBookError> {
        alcazar_service::files::write_atomic(path, self.to_json().as_bytes(), 0o600)
            .map_err(|source| AddressBookError::Write { path: path.to_owned(), source })
    }

    /// Reads a book from its text.
    ///
    /// # Errors
    /// When the text is not one.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        let written: Written = serde_json::from_str(text)?;
        Ok(Self { chosen: written.workloads })
    }

    /// The book's text.
    pub fn to_json(&self) -> String {
        let written = Written { version: Version::One, workloads: self.chosen.clone() };
        // Strings and addresses always serialize; were it ever otherwise, an empty book would choose anew.
        serde_json::to_string_pretty(&written).unwrap_or_default() + "\n"
    }

    /// Forgets the choices that cannot stand: ports that the mesh file now claims for something else, and twice the same.
    pub(crate) fn prepare(&mut self, present: &BTreeSet<String>, claimed: &BTreeSet<u16>) {
        let mut seen = BTreeSet::new();
        // The present ones come first, so that they keep theirs where an absent one has the same.
        for is_present in [true, false] {
            for (key, choice) in &mut self.chosen {
                if present.contains(key) == is_present {
                    choice.retain(|address| !claimed.contains(&address.port()) && seen.insert(address.port()));
                }
            }
        }
    }

    /// The address of a workload: the remembered one, or a free one that is remembered from now on.
    ///
    /// `None` when no port is left.
    pub(crate) fn address(
        &mut self,
        key: &str,
        role: Role,
        claimed: &BTreeSet<u16>,
        is_free: &dyn Fn(SocketAddr) -> bool,
    ) -> Option<SocketAddr> {
        if let Some(remembered) = self.chosen.get(key).and_then(|choice| choice.get(role)) {
            return Some(remembered);
        }
        let used: BTreeSet<u16> = self.chosen.values().flat_map(Choice::ports).collect();
        let candidate = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let fits = |port: &u16| !claimed.contains(port) && !used.contains(port) && is_free(candidate(*port));
        let address = candidate(role.range().find(fits)?);
        *self.chosen.entry(key.to_owned()).or_default().slot(role) = Some(address);
        Some(address)
    }
}

impl Role {
    /// Below the ports that systems give to clients (32768 and up on Linux).
    fn range(self) -> RangeInclusive<u16> {
        match self {
            Self::Outbound => 15101..=16999,
            Self::Inbound => 17001..=18999,
        }
    }
}

/// The field of the mesh file.
impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        })
    }
}

/// The chosen addresses of one workload; none for what the file states.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Choice {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    inbound: Option<SocketAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    outbound: Option<SocketAddr>,
}

impl Choice {
    fn get(&self, role: Role) -> Option<SocketAddr> {
        match role {
            Role::Inbound => self.inbound,
            Role::Outbound => self.outbound,
        }
    }

    fn slot(&mut self, role: Role) -> &mut Option<SocketAddr> {
        match role {
            Role::Inbound => &mut self.inbound,
            Role::Outbound => &mut self.outbound,
        }
    }

    fn ports(&self) -> impl Iterator<Item = u16> {
        self.inbound.into_iter().chain(self.outbound).map(|address| address.port())
    }

    fn retain(&mut self, mut stands: impl FnMut(SocketAddr) -> bool) {
        self.inbound = self.inbound.filter(|address| stands(*address));
        self.outbound = self.outbound.filter(|address| stands(*address));
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: Version,
    workloads: BTreeMap<String, Choice>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Version {
    #[serde(rename = "alcazar.addresses/v1")]
    One,
}

/// Why an address book cannot be used.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum AddressBookError {
    /// The file cannot be read.
    #[error("cannot read the address book {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write the address book {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not an address book.
    #[error("{} is not an address book", path.display())]
    #[diagnostic(help("remove the file: proxies' addresses are then chosen anew"))]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, port))
    }

    fn choose(book: &mut AddressBook, key: &str, role: Role) -> Option<u16> {
        book.address(key, role, &BTreeSet::new(), &|_| true).map(|address| address.port())
    }

    #[test]
    fn a_choice_is_remembered_and_never_given_twice() {
        let mut book = AddressBook::default();
        assert_eq!(choose(&mut book, "shop/a", Role::Outbound), Some(15101));
        assert_eq!(choose(&mut book, "shop/b", Role::Outbound), Some(15102));
        assert_eq!(choose(&mut book, "shop/a", Role::Inbound), Some(17001));
        let mut read = AddressBook::from_json(&book.to_json()).unwrap();
        assert_eq!(read, book);
        assert_eq!(choose(&mut read, "shop/b", Role::Outbound), Some(15102));
        assert_eq!(choose(&mut read, "shop/c", Role::Outbound), Some(15103));
    }

    #[test]
    fn what_is_claimed_or_in_use_is_not_chosen() {
        let mut book = AddressBook::default();
        let claimed = BTreeSet::from([15101, 15102]);
        let is_free = |address: SocketAddr| address.port() != 15103;
        assert_eq!(book.address("shop/a", Role::Outbound, &claimed, &is_free), Some(address(15104)));
        assert_eq!(book.address("shop/a", Role::Inbound, &claimed, &|_| false), None);
    }

    #[test]
    fn a_port_that_the_file_now_claims_is_chosen_anew() {
        let mut book = AddressBook::default();
        choose(&mut book, "shop/a", Role::Outbound);
        choose(&mut book, "shop/b", Role::Outbound);
        let present = BTreeSet::from(["shop/a".to_owned(), "shop/b".to_owned()]);
        book.prepare(&present, &BTreeSet::from([15101]));
        assert_eq!(choose(&mut book, "shop/b", Role::Outbound), Some(15102));
        let claimed = BTreeSet::from([15101]);
        assert_eq!(book.address("shop/a", Role::Outbound, &claimed, &|_| true), Some(address(15103)));
    }

    #[test]
    fn an_absent_workload_gives_way_to_a_present_one() {
        let json = r#"{"version": "alcazar.addresses/v1", "workloads": {
            "shop/a": {"outbound": "127.0.0.1:15101"}, "shop/b": {"outbound": "127.0.0.1:15101"}}}"#;
        let mut book = AddressBook::from_json(json).unwrap();
        book.prepare(&BTreeSet::from(["shop/b".to_owned()]), &BTreeSet::new());
        assert_eq!(choose(&mut book, "shop/b", Role::Outbound), Some(15101));
        assert_eq!(choose(&mut book, "shop/a", Role::Outbound), Some(15102));
    }

    #[test]
    fn a_file_is_written_whole_and_a_damaged_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("addresses.json");
        assert_eq!(AddressBook::load(&path).unwrap(), AddressBook::default());
        let mut book = AddressBook::default();
        choose(&mut book, "shop/a", Role::Inbound);
        book.save(&path).unwrap();
        assert_eq!(AddressBook::load(&path).unwrap(), book);
        for damaged in ["", "{}", "[]", r#"{"version": "2", "workloads": {}}"#, "\u{0}"] {
            std::fs::write(&path, damaged).unwrap();
            let error = AddressBook::load(&path).unwrap_err();
            assert!(matches!(error, AddressBookError::Damaged { .. }), "{damaged:?}: {error}");
        }
    }
}
