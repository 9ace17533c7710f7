//! What certificates a registration may have: data, read from `ca.yaml`.

mod dns;
mod names;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use alcazar_identity::SpiffeId;
use serde::Deserialize;
use thiserror::Error;

pub use self::dns::{DnsName, ParseDnsNameError};
use self::names::{AllowedNames, ParseAllowedError};
use crate::{config::Certificates, csr::KeyKind, duration, issue::IssueError};

/// How leaves are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    default_ttl: Duration,
    max_ttl: Duration,
    longer: Longer,
    keys: BTreeSet<KeyKind>,
    names: Vec<AllowedNames>,
}

impl Profile {
    /// A profile with these lives, counted from issuance, for every kind of key and without DNS names.
    ///
    /// # Errors
    /// When they are not 10 s <= default <= maximum <= 24 h.
    pub fn new(default_ttl: Duration, max_ttl: Duration) -> Result<Self, ProfileError> {
        if default_ttl < SHORTEST || default_ttl > max_ttl || max_ttl > LONGEST {
            return Err(ProfileError::Lives { default_ttl, max_ttl });
        }
        let keys = KeyKind::ALL.into_iter().collect();
        Ok(Self { default_ttl, max_ttl, longer: Longer::Refuse, keys, names: Vec::new() })
    }

    /// The life of a leaf whose requester asks for none.
    pub fn default_ttl(&self) -> Duration {
        self.default_ttl
    }

    /// The longest life that is given.
    pub fn max_ttl(&self) -> Duration {
        self.max_ttl
    }

    /// The life that a request for `seconds` gets: none or a negative number means the default.
    ///
    /// # Errors
    /// When it asks for more than the longest, and the profile does not cut.
    pub fn ttl(&self, seconds: i64) -> Result<Duration, IssueError> {
        match u64::try_from(seconds) {
            Err(_) | Ok(0) => Ok(self.default_ttl),
            Ok(seconds) if seconds <= self.max_ttl.as_secs() => Ok(Duration::from_secs(seconds).max(SHORTEST)),
            Ok(_) if self.longer == Longer::Cut => Ok(self.max_ttl),
            Ok(seconds) => Err(IssueError::TtlTooLong { seconds, max: self.max_ttl }),
        }
    }

    /// Whether a key of this kind is certified.
    ///
    /// # Errors
    /// When it is not.
    pub fn check_key(&self, kind: KeyKind) -> Result<(), IssueError> {
        if self.keys.contains(&kind) { Ok(()) } else { Err(IssueError::KeyKind { kind, allowed: self.keys.clone() }) }
    }

    /// Whether the certificates of `id` may have this name.
    pub fn allows_name(&self, id: &SpiffeId, name: &DnsName) -> bool {
        self.names.iter().any(|allowed| allowed.allows(id, name))
    }
}

/// What becomes of a request for more than the longest life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Longer {
    /// It is an error.
    #[default]
    Refuse,
    /// It gets the longest.
    Cut,
}

/// A profile in the configuration file. What it does not say is as `certificates` has it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ProfileConfig {
    /// Which keys are certified: `P-256`, `P-384`, `Ed25519`, `RSA`. Default: all of them.
    pub keys: Option<Vec<KeyKind>>,
    /// For whoever asks for no life.
    #[serde(deserialize_with = "duration::deserialize_option")]
    pub ttl: Option<Duration>,
    /// The longest, at most that of `certificates`.
    #[serde(deserialize_with = "duration::deserialize_option")]
    pub max_ttl: Option<Duration>,
    /// Whether a request for a longer life is refused (`refuse`) or gets the longest (`cut`). Default: `refuse`.
    pub longer: Longer,
    /// Which DNS names registrations may give to which identities. Default: none.
    pub dns_names: Vec<AllowedNamesConfig>,
}

/// DNS names that some identities may have.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AllowedNamesConfig {
    /// `<namespace>/<service account>`; either can be `*`.
    pub identities: Vec<String>,
    /// Names. A first label of `*` stands for one label, of `**` for one or more; `{namespace}` and `{account}` for those of
    /// the identity.
    pub names: Vec<String>,
}

/// The profiles of a CA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Profiles {
    by_name: BTreeMap<String, Profile>,
    default: Profile,
    node: Profile,
}

impl Profiles {
    /// The profiles of a configuration; `default` is for workloads whose registration names none, `node` for nodes.
    pub(crate) fn new(
        configured: &BTreeMap<String, ProfileConfig>,
        certificates: &Certificates,
    ) -> Result<Self, ProfileError> {
        let plain = Profile::new(certificates.ttl, certificates.max_ttl)?;
        let mut by_name = BTreeMap::new();
        for (name, config) in configured {
            let wrong = |source: ProfileError| ProfileError::In { name: name.clone(), source: Box::new(source) };
            by_name.insert(name.clone(), config.profile(certificates).map_err(wrong)?);
        }
        let of = |name: &str| by_name.get(name).cloned().unwrap_or_else(|| plain.clone());
        let (default, node) = (of(DEFAULT), of(NODE));
        Ok(Self { by_name, default, node })
    }

    /// The profile of this name; `None` where there is none.
    pub(crate) fn of(&self, name: Option<&str>) -> Option<&Profile> {
        match name {
            None => Some(&self.default),
            Some(name) => self.by_name.get(name),
        }
    }

    /// That of nodes.
    pub(crate) fn node(&self) -> &Profile {
        &self.node
    }

    /// That of workloads whose registration names none.
    pub(crate) fn default(&self) -> &Profile {
        &self.default
    }
}

impl ProfileConfig {
    fn profile(&self, certificates: &Certificates) -> Result<Profile, ProfileError> {
        let max_ttl = self.max_ttl.unwrap_or(certificates.max_ttl);
        if max_ttl > certificates.max_ttl {
            return Err(ProfileError::Longest(max_ttl));
        }
        let mut profile = Profile::new(self.ttl.unwrap_or(certificates.ttl.min(max_ttl)), max_ttl)?;
        if let Some(keys) = &self.keys {
            profile.keys = keys.iter().copied().collect();
        }
        if profile.keys.is_empty() {
            return Err(ProfileError::NoKeys);
        }
        profile.longer = self.longer;
        profile.names = self.dns_names.iter().map(AllowedNames::parse).collect::<Result<_, _>>()?;
        Ok(profile)
    }
}

/// A profile that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProfileError {
    /// The lives do not fit.
    #[error(
        "a default life of {default_ttl:?} and a longest life of {max_ttl:?} do not fit: 10s <= default <= longest <= 24h"
    )]
    Lives {
        /// The default.
        default_ttl: Duration,
        /// The longest.
        max_ttl: Duration,
    },
    /// Longer than anybody gets.
    #[error("a longest life of {0:?} is more than certificates.maxTtl, which is for everybody")]
    Longest(Duration),
    /// Nothing could be certified.
    #[error("keys: name at least one kind: P-256, P-384, Ed25519, RSA")]
    NoKeys,
    /// A pattern that is none.
    #[error("dnsNames")]
    Names(#[from] ParseAllowedError),
    /// In this profile.
    #[error("{name}")]
    In {
        /// Its name.
        name: String,
        /// What is wrong with it.
        source: Box<ProfileError>,
    },
}

const DEFAULT: &str = "default";
const NODE: &str = "node";
const SHORTEST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn profiles(of: &[(&str, ProfileConfig)]) -> Result<Profiles, ProfileError> {
        let configured = of.iter().map(|(name, config)| ((*name).to_owned(), config.clone())).collect();
        Profiles::new(&configured, &Certificates { ttl: HOUR, max_ttl: 4 * HOUR })
    }

    #[test]
    fn what_a_profile_does_not_say_is_as_for_everybody() {
        let plain = profiles(&[]).unwrap();
        assert_eq!(plain.default(), &Profile::new(HOUR, 4 * HOUR).unwrap());
        assert_eq!(plain.node(), plain.default());
        assert_eq!(plain.of(Some("web")), None);

        let web = ProfileConfig { max_ttl: Some(HOUR / 2), longer: Longer::Cut, ..ProfileConfig::default() };
        let node = ProfileConfig { keys: Some(vec![KeyKind::P256]), ..ProfileConfig::default() };
        let some = profiles(&[("web", web), ("node", node)]).unwrap();
        let web = some.of(Some("web")).unwrap();
        assert_eq!((web.default_ttl(), web.max_ttl()), (HOUR / 2, HOUR / 2));
        assert_eq!(web.ttl(7200).unwrap(), HOUR / 2);
        assert!(some.default().ttl(5 * 3600).is_err());
        assert!(web.check_key(KeyKind::Rsa).is_ok() && some.node().check_key(KeyKind::P256).is_ok());
        let refused = some.node().check_key(KeyKind::Rsa).unwrap_err();
        assert_eq!(refused.to_string(), "a key of the kind RSA is not certified by the profile; it allows P-256");
    }

    #[test]
    fn a_profile_that_makes_no_sense_is_refused() {
        let check = |config: ProfileConfig, expected: &str| {
            let error = profiles(&[("web", config)]).unwrap_err();
            let text = alcazar_service::process::chain(&error);
            assert!(text.starts_with("web: ") && text.contains(expected), "{text}");
        };
        check(ProfileConfig { max_ttl: Some(5 * HOUR), ..ProfileConfig::default() }, "certificates.maxTtl");
        check(ProfileConfig { ttl: Some(Duration::from_secs(1)), ..ProfileConfig::default() }, "do not fit");
        check(ProfileConfig { keys: Some(Vec::new()), ..ProfileConfig::default() }, "at least one");
        let names = vec![AllowedNamesConfig { identities: vec!["shop".into()], names: vec!["a.b".into()] }];
        check(ProfileConfig { dns_names: names, ..ProfileConfig::default() }, "dnsNames: ");
    }
}
