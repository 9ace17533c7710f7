//! The agent's own file that narrows what the CA has registered. It can add selectors and leave registrations out; there is
//! no way to write down more than the CA allows.

mod keeper;

use std::collections::BTreeMap;
use std::fmt;

use alcazar_identity::{Selector, SpiffeId};
use alcazar_yaml::{SourceFile, Spanned, YamlError, parse};
use serde::Deserialize;

use crate::registration::Registration;

pub(crate) use keeper::NarrowingFile;

/// What may be served on this node: an allow-list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Narrowing {
    entries: BTreeMap<Whom, Vec<Selector>>,
}

/// Of whom an entry speaks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Whom {
    Registration(String),
    Identity(SpiffeId),
}

/// An entry, as it is written.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Stated {
    registration: Option<Spanned<String>>,
    identity: Option<Spanned<String>>,
    #[serde(default)]
    selectors: Vec<Spanned<String>>,
}

impl Narrowing {
    /// Reads the file.
    ///
    /// # Errors
    /// The first thing in it that is wrong, with its place.
    pub fn read(file: &SourceFile) -> Result<Self, YamlError> {
        let mut entries = BTreeMap::new();
        for stated in parse::<Vec<Spanned<Stated>>>(file)? {
            let (whom, selectors) = entry(file, &stated)?;
            let told = whom.to_string();
            if entries.insert(whom, selectors).is_some() {
                let message = format!("{told} has an entry already, and one says all that must hold");
                return Err(YamlError::at(file, &stated, message));
            }
        }
        Ok(Self { entries })
    }

    /// What is left of a registration: the same one, which asks for more; `None` where no entry speaks of it.
    pub fn narrow(&self, registration: Registration) -> Option<Registration> {
        let by_id = self.entries.get(&Whom::Registration(registration.id().to_owned()));
        let by_identity = self.entries.get(&Whom::Identity(registration.spiffe_id().clone()));
        let more: Vec<_> = match (by_id, by_identity) {
            (None, None) => return None,
            (one, other) => one.into_iter().chain(other).flatten().cloned().collect(),
        };
        Some(registration.with(more))
    }

    /// Those of whom an entry speaks that none of these registrations is.
    pub(crate) fn strangers<'r>(&self, registrations: impl Iterator<Item = &'r Registration> + Clone) -> Vec<String> {
        let is_there = |whom: &&Whom| {
            registrations.clone().any(|registration| match whom {
                Whom::Registration(id) => registration.id() == id,
                Whom::Identity(id) => registration.spiffe_id() == id,
            })
        };
        self.entries.keys().filter(|whom| !is_there(whom)).map(ToString::to_string).collect()
    }
}

impl fmt::Display for Whom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registration(id) => write!(f, "the registration {id}"),
            Self::Identity(id) => write!(f, "the identity {id}"),
        }
    }
}

fn entry(file: &SourceFile, stated: &Spanned<Stated>) -> Result<(Whom, Vec<Selector>), YamlError> {
    let whom = match (&stated.value.registration, &stated.value.identity) {
        (Some(id), None) => Whom::Registration(id.value.clone()),
        (None, Some(id)) => {
            let parsed = id.value.parse();
            Whom::Identity(parsed.map_err(|error| YamlError::at(file, id, format!("not a SPIFFE ID: {error}")))?)
        }
        (None, None) => {
            return Err(YamlError::at(
                file,
                stated,
                "the entry says of whom it speaks neither by `registration` nor by `identity`",
            ));
        }
        (Some(_), Some(second)) => {
            return Err(YamlError::at(
                file,
                second,
                "the entry names a registration and an identity: one of them is enough",
            ));
        }
    };
    let selector = |text: &Spanned<String>| match text.value.parse() {
        Ok(Selector::Socket(_)) => {
            let message = "a socket is made for whom the CA says so, and cannot be asked for here";
            Err(YamlError::at(file, text, message)
                .with_help("name what must hold of the process, as in unit:<name>.service"))
        }
        Ok(selector) => Ok(selector),
        Err(error) => Err(YamlError::at(file, text, format!("{error}"))),
    };
    Ok((whom, stated.value.selectors.iter().map(selector).collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests {
    use alcazar_api::ca::v1;
    use alcazar_identity::SocketName;
    use proptest::prelude::*;

    use super::*;
    use crate::caller::{Caller, Fact, Seen};

    fn read(text: &str) -> Result<Narrowing, YamlError> {
        Narrowing::read(&SourceFile::new("narrow.yaml", text))
    }

    fn registration(id: &str, selectors: &[String]) -> Registration {
        let node = "spiffe://td/node/east/vm-1";
        let wire = v1::Registration {
            id: id.into(),
            node_id: node.into(),
            spiffe_id: format!("spiffe://td/ns/shop/sa/{id}"),
            selectors: selectors.to_vec(),
            ..v1::Registration::default()
        };
        Registration::read(&wire, &node.parse().unwrap()).unwrap()
    }

    fn narrowed(file: &str, id: &str, selectors: &[&str]) -> Option<String> {
        let selectors: Vec<_> = selectors.iter().map(|text| (*text).to_owned()).collect();
        let left = read(file).unwrap().narrow(registration(id, &selectors))?;
        Some(left.selectors().iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn an_entry_adds_what_must_hold_and_whoever_has_none_is_left_out() {
        let file = "- registration: web\n  selectors: ['unit:web.service', 'uid:7']\n\
                    - identity: spiffe://td/ns/shop/sa/db\n\
                    - identity: spiffe://td/ns/shop/sa/web\n  selectors: ['group:9']\n";
        assert_eq!(narrowed(file, "web", &["uid:7"]).as_deref(), Some("uid:7 group:9 unit:web.service"));
        // Another user than the CA's is nobody: it widens nothing.
        assert_eq!(narrowed(file, "web", &["uid:8"]).as_deref(), Some("uid:7 uid:8 group:9 unit:web.service"));
        assert_eq!(narrowed(file, "db", &["socket:db"]).as_deref(), Some("socket:db"));
        assert_eq!(narrowed(file, "cache", &["uid:7"]), None);
        assert_eq!(narrowed("[]", "web", &["uid:7"]), None, "an empty list is nobody");
        let strangers = read(file).unwrap().strangers([registration("web", &["uid:7".to_owned()])].iter());
        assert_eq!(strangers, ["the identity spiffe://td/ns/shop/sa/db"]);
    }

    #[test]
    fn what_is_wrong_is_shown_with_its_place() {
        let check = |text: &str, place: (usize, usize), message: &str| {
            let error = read(text).unwrap_err();
            assert!(error.to_string().contains(message), "{error}");
            assert_eq!(error.position(), Some(place), "{error}");
        };
        check("- registration: a\n  selectors: ['exe:/bin/x']\n", (2, 15), "did you mean `path:`?");
        check("- registration: a\n  selectors: ['socket:x']\n", (2, 15), "cannot be asked for here");
        check("- registration: a\n- registration: a\n", (2, 3), "the registration a has an entry already");
        check("- identity: web\n", (1, 13), "not a SPIFFE ID");
        check("- registration: a\n  identity: spiffe://td/a\n", (2, 13), "one of them is enough");
        check("- selectors: ['uid:7']\n", (1, 3), "neither by `registration` nor by `identity`");
        check("- registration: a\n  selector: ['uid:7']\n", (2, 3), "unknown field");
        assert!(read("").is_err(), "no list at all is a mistake");
        assert!(read("registration: a\n").is_err());
    }

    fn selector() -> impl Strategy<Value = String> {
        prop_oneof![
            (0..3u32).prop_map(|uid| format!("uid:{uid}")),
            (0..3u32).prop_map(|gid| format!("gid:{gid}")),
            (0..3u32).prop_map(|gid| format!("group:{gid}")),
            "[ab]".prop_map(|name| format!("unit:{name}.service")),
            "[ab]".prop_map(|name| format!("path:/{name}")),
        ]
    }

    fn caller() -> impl Strategy<Value = Caller> {
        let process = (0..3u32, 0..3u32, proptest::option::of(0..3u32), "[ab]", "[ab]", proptest::bool::ANY);
        process.prop_map(|(uid, gid, group, unit, path, own)| Caller {
            socket: own.then(|| "s".parse::<SocketName>().unwrap()),
            uid,
            gid,
            pid: None,
            seen: Seen {
                groups: group.map_or(Fact::Unknown("x".into()), |group| Fact::Known(vec![group])),
                unit: Fact::Known(format!("{unit}.service").parse().unwrap()),
                path: Fact::Known(format!("/{path}").parse().unwrap()),
                digest: Fact::NotAsked,
                pod: Fact::NotAsked,
            },
        })
    }

    proptest! {
        /// Whoever a narrowed registration admits, the CA's own admits.
        #[test]
        fn a_file_never_widens(
            mut of_the_ca in proptest::collection::vec(selector(), 1..3),
            socket in proptest::bool::ANY,
            of_the_file in proptest::collection::vec(selector(), 0..3),
            by_identity in proptest::collection::vec(selector(), 0..2),
            caller in caller(),
        ) {
            if socket {
                of_the_ca.push("socket:s".to_owned());
            }
            let entry = |whom: &str, selectors: &[String]| format!("- {whom}\n  selectors: {selectors:?}\n");
            let file = entry("registration: a", &of_the_file) + &entry("identity: spiffe://td/ns/shop/sa/a", &by_identity);
            let original = registration("a", &of_the_ca);
            let narrowed = read(&file).unwrap().narrow(original.clone()).unwrap();
            prop_assert!(!narrowed.admits(&caller) || original.admits(&caller));
            prop_assert_eq!((narrowed.id(), narrowed.spiffe_id(), narrowed.ttl()), (original.id(), original.spiffe_id(), original.ttl()));
            let all = of_the_file.iter().chain(&by_identity).all(|s| caller.is(&s.parse().unwrap()));
            prop_assert_eq!(narrowed.admits(&caller), original.admits(&caller) && all);
        }
    }
}
