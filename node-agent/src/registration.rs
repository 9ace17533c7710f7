use std::sync::Arc;
use std::time::Duration;

use alcazar_api::ca::v1;
use alcazar_identity::{ParseSelectorError, ParseSpiffeIdError, Selector, SocketName, SpiffeId};

use crate::caller::{Caller, Needs};

/// What the CA has registered for this node: an identity, and how its workload is known. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    stated: Arc<Stated>,
    /// All selectors, where some were added here to those that the CA has named.
    narrowed: Option<Arc<[Selector]>>,
}

/// As the CA has it.
#[derive(Debug, PartialEq, Eq)]
struct Stated {
    id: Arc<str>,
    spiffe_id: SpiffeId,
    /// Sorted, none twice, at least one, at most one of them a socket.
    selectors: Box<[Selector]>,
    ttl: Duration,
}

impl Registration {
    /// Reads what the CA said, for the node of this name.
    ///
    /// # Errors
    /// When it is another node's, or cannot be understood: nothing is served for it then.
    pub fn read(wire: &v1::Registration, node: &SpiffeId) -> Result<Self, RegistrationError> {
        if wire.node_id != node.as_str() {
            return Err(RegistrationError::OtherNode(wire.node_id.clone()));
        }
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-');
        if wire.id.is_empty() || !wire.id.chars().all(plain) {
            return Err(RegistrationError::Id(wire.id.clone()));
        }
        let spiffe_id: SpiffeId = wire.spiffe_id.parse()?;
        if spiffe_id.trust_domain() != node.trust_domain() {
            return Err(RegistrationError::TrustDomain(spiffe_id));
        }
        let mut selectors: Vec<Selector> = wire.selectors.iter().map(|s| s.parse()).collect::<Result<_, _>>()?;
        selectors.sort();
        selectors.dedup();
        if selectors.is_empty() {
            return Err(RegistrationError::NoSelector);
        }
        if selectors.iter().filter(|selector| matches!(selector, Selector::Socket(_))).count() > 1 {
            return Err(RegistrationError::TwoSockets);
        }
        let ttl = Duration::from_secs(u64::try_from(wire.ttl).unwrap_or_default());
        let stated = Stated { id: wire.id.as_str().into(), spiffe_id, selectors: selectors.into(), ttl };
        Ok(Self { stated: Arc::new(stated), narrowed: None })
    }

    /// The same, of a caller of whom these hold too.
    pub(crate) fn with(self, more: impl IntoIterator<Item = Selector>) -> Self {
        let mut selectors = self.selectors().to_vec();
        selectors.extend(more);
        selectors.sort();
        selectors.dedup();
        let narrowed = (*selectors != *self.stated.selectors).then(|| selectors.into());
        Self { narrowed, ..self }
    }

    /// The same, as the CA has it.
    pub(crate) fn as_registered(&self) -> Self {
        Self { stated: self.stated.clone(), narrowed: None }
    }

    /// Its name at the CA.
    pub fn id(&self) -> &str {
        &self.stated.id
    }

    /// The same, for those who keep it.
    pub(crate) fn shared_id(&self) -> Arc<str> {
        self.stated.id.clone()
    }

    /// Whether nobody has put it in, and it follows from pods on the node.
    pub(crate) fn is_of_pods(&self) -> bool {
        self.id().starts_with("k8s.")
    }

    /// Whom the workload becomes.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.stated.spiffe_id
    }

    /// What must hold, all of it, for a caller to be this workload.
    pub fn selectors(&self) -> &[Selector] {
        self.narrowed.as_deref().unwrap_or(&self.stated.selectors)
    }

    /// How long its certificates live; zero: as the CA decides.
    pub fn ttl(&self) -> Duration {
        self.stated.ttl
    }

    /// The socket that is made for this workload alone, where it has one.
    pub fn socket(&self) -> Option<&SocketName> {
        self.selectors().iter().find_map(|selector| match selector {
            Selector::Socket(name) => Some(name),
            _ => None,
        })
    }

    /// The user that the workload must run as, where it says.
    pub fn uid(&self) -> Option<u32> {
        self.selectors().iter().find_map(|selector| match selector {
            Selector::Uid(uid) => Some(*uid),
            _ => None,
        })
    }

    /// The selectors that do not hold for a caller; none: the caller is this workload.
    ///
    /// A caller on a workload's own socket is nobody else, whatever its user.
    pub fn unmet(&self, caller: &Caller) -> Vec<&Selector> {
        self.selectors().iter().filter(|selector| !caller.is(selector)).collect()
    }

    /// What of a caller's process must be looked at to know whether it is this workload.
    pub fn needs(&self) -> Needs {
        Needs::of(self.selectors())
    }

    /// Whether a caller can be this workload, by what is known without a look at its process.
    pub(crate) fn may_admit(&self, caller: &Caller) -> bool {
        let looked_for = |selector: &&Selector| !Needs::of([*selector]).is_none();
        self.socket() == caller.socket.as_ref() && self.selectors().iter().all(|s| looked_for(&s) || caller.is(s))
    }

    /// Whether a caller is in a pod, or could be, and this is not of pods.
    ///
    /// Pods choose their users and groups, and mount the folder of the sockets with all that is in it: who is in one is known by what
    /// Kubernetes says of it, and by the rest only besides.
    pub(crate) fn bars(&self, caller: &Caller) -> bool {
        caller.may_be_in_a_pod() && !self.needs().pod
    }

    /// How much a caller lacks to be this workload.
    pub(crate) fn lacking(&self, caller: &Caller) -> usize {
        self.unmet(caller).len() + usize::from(self.bars(caller))
    }

    /// Whether a caller is this workload.
    pub fn admits(&self, caller: &Caller) -> bool {
        self.socket() == caller.socket.as_ref() && self.lacking(caller) == 0
    }
}

/// Why a registration is not served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistrationError {
    /// The CA sent what is not ours.
    #[error("it is for the node {0:?}")]
    OtherNode(String),
    /// Its id has characters that ids cannot have.
    #[error("its id {0:?} is not made of a-z, 0-9, '.' and '-'")]
    Id(String),
    /// Its identity is none.
    #[error("its identity cannot be read: {0}")]
    SpiffeId(#[from] ParseSpiffeIdError),
    /// Its identity belongs to somebody else's trust domain.
    #[error("{0} is not in this node's trust domain")]
    TrustDomain(SpiffeId),
    /// Nothing says how its workload is known, so nobody is.
    #[error("it has no selector, so nobody can be its workload")]
    NoSelector,
    /// A selector cannot be understood, so nobody can be known by it.
    #[error(transparent)]
    Selector(#[from] ParseSelectorError),
    /// A caller comes by one socket.
    #[error("it names two sockets, a caller comes by one")]
    TwoSockets,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caller::{Fact, Seen};

    impl Registration {
        /// Whether the two are one in memory.
        pub(crate) fn is_shared_with(&self, other: &Self) -> bool {
            Arc::ptr_eq(&self.stated, &other.stated)
        }
    }

    fn node() -> SpiffeId {
        "spiffe://td/node/east/vm-1".parse().unwrap()
    }

    fn wire(selectors: &[&str]) -> v1::Registration {
        v1::Registration {
            id: "shop.reviews-v1".into(),
            node_id: node().to_string(),
            spiffe_id: "spiffe://td/ns/shop/sa/reviews".into(),
            selectors: selectors.iter().map(|s| (*s).to_owned()).collect(),
            ttl: 60,
            ..v1::Registration::default()
        }
    }

    #[test]
    fn what_the_ca_registered_is_read_strictly() {
        let good = Registration::read(&wire(&["uid:7", "socket:shop.reviews-v1", "uid:7"]), &node()).unwrap();
        assert_eq!(good.selectors().len(), 2);
        assert_eq!(good.socket().map(SocketName::as_str), Some("shop.reviews-v1"));
        assert_eq!((good.uid(), good.ttl()), (Some(7), Duration::from_secs(60)));

        let check = |change: fn(&mut v1::Registration), expected: RegistrationError| {
            let mut wire = wire(&["uid:7"]);
            change(&mut wire);
            assert_eq!(Registration::read(&wire, &node()), Err(expected));
        };
        let other = "spiffe://td/node/east/vm-2";
        check(|w| w.node_id = "spiffe://td/node/east/vm-2".into(), RegistrationError::OtherNode(other.into()));
        check(|w| w.id = "../x".into(), RegistrationError::Id("../x".into()));
        check(|w| w.id.clear(), RegistrationError::Id(String::new()));
        check(|w| w.selectors.clear(), RegistrationError::NoSelector);
        check(
            |w| w.spiffe_id = "spiffe://other/a".into(),
            RegistrationError::TrustDomain("spiffe://other/a".parse().unwrap()),
        );
        check(|w| w.selectors = vec!["socket:a".into(), "socket:b".into()], RegistrationError::TwoSockets);
        check(
            |w| w.selectors.push("unit:nginx".into()),
            RegistrationError::Selector(ParseSelectorError::Unit("nginx".into())),
        );
        // Of a later version: whom it describes cannot be known here, so it is nobody.
        let mut later = wire(&["uid:7"]);
        later.selectors.push("moon:full".into());
        let refused = Registration::read(&later, &node()).unwrap_err().to_string();
        assert!(refused.contains(r#""moon:full" is not a selector"#), "{refused}");
    }

    #[test]
    fn all_selectors_must_hold_and_a_socket_is_one_workloads_alone() {
        let caller = |socket: Option<&str>, uid| Caller {
            socket: socket.map(|name| name.parse().unwrap()),
            uid,
            gid: 100,
            pid: None,
            seen: Seen::default(),
        };
        let admits = |selectors: &[&str]| {
            let registration = Registration::read(&wire(selectors), &node()).unwrap();
            [caller(None, 7), caller(None, 8), caller(Some("a"), 7), caller(Some("b"), 7), caller(Some("a"), 8)]
                .map(|caller| registration.admits(&caller))
        };
        assert_eq!(admits(&["uid:7"]), [true, false, false, false, false]);
        assert_eq!(admits(&["uid:7", "gid:100"]), [true, false, false, false, false]);
        assert_eq!(admits(&["uid:7", "gid:1"]), [false; 5]);
        assert_eq!(admits(&["socket:a"]), [false, false, true, false, true]);
        assert_eq!(admits(&["socket:a", "uid:7"]), [false, false, true, false, false]);
    }

    #[test]
    fn who_is_in_a_pod_or_could_be_is_known_by_its_pod_and_by_the_rest_only_besides() {
        let pod = crate::caller::Pod {
            name: "web-1".into(),
            namespace: "shop".parse().unwrap(),
            account: "web".parse().unwrap(),
        };
        let admits = |selectors: &[&str], socket: Option<&str>| {
            let registration = Registration::read(&wire(selectors), &node()).unwrap();
            let facts = [
                Fact::NotAsked,
                Fact::Absent("it is elsewhere".into()),
                Fact::Known(pod.clone()),
                Fact::Unknown("it cannot be read".into()),
            ];
            facts.map(|pod| {
                let socket = socket.map(|name| name.parse().unwrap());
                let seen = Seen { groups: Fact::Known(vec![27]), pod, ..Seen::default() };
                registration.admits(&Caller { socket, uid: 7, gid: 100, pid: None, seen })
            })
        };
        let outside = [true, true, false, false];
        assert_eq!(admits(&["uid:7"], None), outside);
        assert_eq!(admits(&["gid:100", "group:27"], None), outside);
        assert_eq!(admits(&["socket:a"], Some("a")), outside, "its own socket is in the folder that pods mount");
        let inside = [false, false, true, false];
        assert_eq!(admits(&["k8s:ns:shop", "k8s:sa:web"], None), inside);
        assert_eq!(admits(&["k8s:sa:web", "uid:7"], None), inside);
        assert_eq!(admits(&["k8s:sa:web", "socket:a"], Some("a")), inside);
        assert_eq!(admits(&["k8s:sa:web", "uid:8"], None), [false; 4]);
        assert_eq!(admits(&["k8s:sa:db"], None), [false; 4]);
    }
}
