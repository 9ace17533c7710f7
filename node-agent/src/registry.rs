use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use alcazar_identity::{Credentials, SocketName};
use tokio::sync::watch;

use crate::caller::{Caller, Needs};
use crate::registration::Registration;
use crate::shared::Shared;

/// What the agent holds for one registration at a moment.
#[derive(Debug, Clone)]
pub enum Held {
    /// A certificate that is good, and whom its holder believes.
    Certificate(Arc<Credentials>),
    /// No certificate, and why not: none has come yet, or the last one expired.
    Nothing(String),
}

impl Held {
    /// The credentials, when there are any.
    pub fn credentials(&self) -> Option<&Credentials> {
        match self {
            Self::Certificate(credentials) => Some(credentials),
            Self::Nothing(_) => None,
        }
    }
}

/// One registration and, live, what is held for it.
#[derive(Debug)]
pub struct Served {
    registration: Registration,
    held: watch::Receiver<Arc<Held>>,
}

impl Served {
    /// A registration, and the channel by which its certificates come.
    pub fn new(registration: Registration, held: watch::Receiver<Arc<Held>>) -> Self {
        Self { registration, held }
    }

    /// The registration.
    pub fn registration(&self) -> &Registration {
        &self.registration
    }

    /// What is held now.
    pub fn now(&self) -> Arc<Held> {
        self.held.borrow().clone()
    }

    /// What is held, to be followed. The channel closes when the registration is gone.
    pub fn follow(&self) -> watch::Receiver<Arc<Held>> {
        self.held.clone()
    }
}

/// Everything that is registered for this node.
#[derive(Debug, Default)]
pub struct Registry {
    by_id: BTreeMap<Arc<str>, Arc<Served>>,
    by_socket: BTreeMap<SocketName, Arc<Served>>,
    /// Those known by their process.
    shared: Shared,
    /// Whether this is the CA's word, and not what was known before it has spoken.
    said: bool,
}

impl Registry {
    /// The registrations, by their id. Of two that name one socket the first by id has it.
    pub fn new(all: impl IntoIterator<Item = Arc<Served>>) -> Self {
        let by_id: BTreeMap<_, _> = all.into_iter().map(|served| (served.registration.shared_id(), served)).collect();
        let mut by_socket = BTreeMap::new();
        let mut shared = Shared::default();
        for served in by_id.values() {
            match served.registration.socket() {
                Some(name) => {
                    by_socket.entry(name.clone()).or_insert_with(|| served.clone());
                }
                None => shared.push(served.clone()),
            }
        }
        Self { by_id, by_socket, shared, said: false }
    }

    /// The same, as the CA's word, or as what goes on until the CA has spoken.
    pub(crate) fn with_word(self, said: bool) -> Self {
        Self { said, ..self }
    }

    /// Whether the CA has said that these are all.
    pub(crate) fn is_said(&self) -> bool {
        self.said
    }

    /// All, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Served>> {
        self.by_id.values()
    }

    /// Those that have a socket of their own, by its name.
    pub fn sockets(&self) -> impl Iterator<Item = (&SocketName, &Arc<Served>)> {
        self.by_socket.iter()
    }

    /// What must be looked at of a caller's process to know its registrations: what those ask for that it could be by all that
    /// the kernel said of its connection.
    pub fn needs(&self, caller: &Caller) -> Needs {
        match &caller.socket {
            Some(_) => self.own(caller).filter(|r| r.may_admit(caller)).map(Registration::needs).unwrap_or_default(),
            None => self.shared.needs(caller),
        }
    }

    /// The registrations that a caller is the workload of: the most narrowly described first.
    ///
    /// # Errors
    /// When there is none; the error says which came closest.
    pub fn admit(&self, caller: &Caller) -> Result<Vec<Arc<Served>>, NotAdmitted> {
        let mut admitted: Vec<_> = match &caller.socket {
            Some(name) => self.by_socket.get(name).cloned().into_iter().collect(),
            None => self.shared.candidates(caller).map(Arc::clone).collect(),
        };
        admitted.retain(|served| served.registration.admits(caller));
        if !admitted.is_empty() {
            admitted.sort_by(|a, b| narrowest_first(a).cmp(&narrowest_first(b)));
            return Ok(admitted);
        }
        let closest = match &caller.socket {
            Some(_) => self.own(caller),
            None => self.shared.closest(caller),
        };
        Err(NotAdmitted {
            caller: Box::new(caller.clone()),
            closest: closest.map(|registration| nearly(registration, caller)),
            needs: closest.map(Registration::needs).unwrap_or_default(),
            told: Some(0),
        })
    }

    /// The registration whose socket a caller came by.
    fn own(&self, caller: &Caller) -> Option<&Registration> {
        self.by_socket.get(caller.socket.as_ref()?).map(|served| served.registration())
    }
}

/// Two descriptions of one caller: the one that says more comes first, then the one that somebody has put in.
fn narrowest_first(served: &Served) -> (Reverse<usize>, bool, &str) {
    let registration = &served.registration;
    (Reverse(registration.selectors().len()), registration.is_of_pods(), registration.id())
}

/// Nobody is registered whom a caller could be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no registration matches the caller ({caller}); {}", closest.as_deref().unwrap_or("none is known this way"))]
pub struct NotAdmitted {
    caller: Box<Caller>,
    /// The registration that lacked least, and what it lacked.
    closest: Option<String>,
    /// What that one asks for.
    needs: Needs,
    /// Whether the log is to have it, and how often it did not before.
    told: Option<u64>,
}

impl NotAdmitted {
    /// Who it was, with what was seen.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// The registration that came closest, in words.
    pub fn closest(&self) -> Option<&str> {
        self.closest.as_deref()
    }

    /// What must be looked at to tell all that the closest registration lacked.
    pub(crate) fn needs(&self) -> Needs {
        self.needs
    }

    /// The same; the log does not have it.
    pub(crate) fn untold(self) -> Self {
        Self { told: None, ..self }
    }

    /// The same, after as many that the log does not have.
    pub(crate) fn after(self, untold: u64) -> Self {
        Self { told: Some(untold), ..self }
    }

    /// After how many that the log does not have it is to be logged; `None`: it is not.
    pub(crate) fn is_told(&self) -> Option<u64> {
        self.told
    }
}

fn nearly(registration: &Registration, caller: &Caller) -> String {
    let mut unmet: Vec<_> =
        registration.unmet(caller).into_iter().map(|selector| caller.instead_of(selector)).collect();
    if registration.bars(caller) {
        unmet.push(format!("a selector k8s: to be a pod's ({})", caller.pod_seen()));
    }
    format!("the closest is {} ({}), which needs {}", registration.id(), registration.spiffe_id(), unmet.join(", "))
}

#[cfg(test)]
mod tests {
    use alcazar_api::ca::v1;

    use super::*;
    use crate::caller::{Fact, Seen};

    fn served(id: &str, selectors: &[&str]) -> Arc<Served> {
        let node = "spiffe://td/node/east/vm-1";
        let wire = v1::Registration {
            id: id.into(),
            node_id: node.into(),
            spiffe_id: format!("spiffe://td/ns/shop/sa/{id}"),
            selectors: selectors.iter().map(|s| (*s).to_owned()).collect(),
            ttl: 0,
            ..v1::Registration::default()
        };
        let registration = Registration::read(&wire, &node.parse().unwrap()).unwrap();
        let held = watch::channel(Arc::new(Held::Nothing("not yet".into()))).1;
        Arc::new(Served::new(registration, held))
    }

    fn caller(socket: Option<&str>, uid: u32, gid: u32) -> Caller {
        Caller { socket: socket.map(|name| name.parse().unwrap()), uid, gid, pid: Some(42), seen: Seen::default() }
    }

    #[test]
    fn a_caller_is_known_by_its_socket_or_its_process() {
        let registry = Registry::new([
            served("a", &["uid:1"]),
            served("b", &["uid:1", "gid:2"]),
            served("c", &["socket:c"]),
            served("d", &["socket:c", "uid:1"]),
        ]);
        let admitted = |caller| match registry.admit(&caller) {
            Ok(served) => served.iter().map(|s| s.registration().id().to_owned()).collect::<Vec<_>>().join(" "),
            Err(refused) => refused.to_string(),
        };
        assert_eq!(admitted(caller(None, 1, 2)), "b a", "the narrower description first");
        assert_eq!(admitted(caller(None, 1, 3)), "a");
        assert_eq!(admitted(caller(Some("c"), 1, 2)), "c", "one socket, one registration");
        assert_eq!(
            admitted(caller(None, 5, 2)),
            "no registration matches the caller (uid 5, gid 2, pid 42, on the shared socket); \
             the closest is b (spiffe://td/ns/shop/sa/b), which needs uid:1 (its uid is 5)"
        );
        assert!(admitted(caller(Some("gone"), 1, 2)).ends_with("none is known this way"));

        // A pod has whatever user it likes, and the folder of the sockets.
        let mut in_a_pod = caller(None, 1, 2);
        in_a_pod.seen.pod = Fact::Unknown("it is in the pod x".into());
        let refused = admitted(in_a_pod.clone());
        assert!(
            refused.ends_with("the closest is b (spiffe://td/ns/shop/sa/b), which needs a selector k8s: to be a pod's (it is in the pod x)"),
            "{refused}"
        );
        in_a_pod.socket = Some("c".parse().unwrap());
        assert!(admitted(in_a_pod).contains("the closest is c "));
    }

    #[test]
    fn what_somebody_has_put_in_comes_before_what_follows_from_pods() {
        let pods = ["k8s:ns:shop", "k8s:sa:web"];
        let with_uid = ["k8s:ns:shop", "k8s:sa:web", "uid:1"];
        let registry = Registry::new([served("k8s.shop.web", &pods), served("shop.b", &pods), served("shop.a", &pods)]);
        let mut web = caller(None, 1, 1);
        web.seen.pod = Fact::Known(crate::caller::Pod {
            name: "web-1".into(),
            namespace: "shop".parse().unwrap(),
            account: "web".parse().unwrap(),
        });
        let admitted = |registry: &Registry| -> Vec<_> {
            registry.admit(&web).unwrap().iter().map(|served| served.registration().id().to_owned()).collect()
        };
        assert_eq!(admitted(&registry), ["shop.a", "shop.b", "k8s.shop.web"]);
        let registry = Registry::new([served("k8s.shop.web", &with_uid), served("shop.a", &pods)]);
        assert_eq!(admitted(&registry), ["k8s.shop.web", "shop.a"], "the narrower one before all");
    }

    #[test]
    fn of_a_process_no_more_is_looked_at_than_somebody_it_could_be_asks_for() {
        let registry = Registry::new([
            served("a", &["uid:1", "unit:a.service"]),
            served("b", &["uid:1", "group:2"]),
            served("c", &["uid:2", "path:/c"]),
            served("d", &["socket:d", "path:/d"]),
        ]);
        let needs = |groups, unit, path| Needs { groups, unit, path, digest: false, pod: false };
        assert_eq!(registry.needs(&caller(None, 1, 1)), needs(true, true, false));
        assert_eq!(registry.needs(&caller(None, 2, 1)), needs(false, false, true));
        assert_eq!(registry.needs(&caller(None, 3, 1)), Needs::default());
        assert_eq!(registry.needs(&caller(Some("d"), 3, 1)), needs(false, false, true));

        // Whoever is nobody is told of all the same, with all that the closest one asks for.
        let refused = registry.admit(&caller(None, 2, 1)).unwrap_err();
        assert_eq!(refused.needs(), needs(false, false, true));
        let mut known = caller(None, 2, 1);
        known.seen.path = Fact::Known("/usr/bin/x".parse().unwrap());
        let refused = registry.admit(&known).unwrap_err().to_string();
        assert!(refused.ends_with("which needs path:/c (it executes /usr/bin/x)"), "{refused}");
    }
}
