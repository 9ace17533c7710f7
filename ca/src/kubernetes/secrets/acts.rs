//! What is done about one account's Secret: a look at it, and the calls to the API, each with a deadline.

use std::time::{Duration, SystemTime};

use alcazar_identity::{KeyError, ParseSpiffeIdError, ParseSvidError, SpiffeId, SvidKey, X509Svid};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api,
    api::{DeleteParams, PostParams, Preconditions},
};
use rcgen::{CertificateParams, KeyPair};
use thiserror::Error;
use zeroize::Zeroizing;

use super::{
    keeper::Keeper,
    object::{self, Held, Wiped},
    reconcile::{self, Account, Action, Trust, Why},
    world::Place,
};
use crate::{
    callers::Plug,
    csr::{Csr, CsrError},
    hierarchy::pem,
    refusal::RequestError,
};

/// What became of a look at an account.
pub(super) enum Done {
    /// Look again then, or when something changes.
    Until(Option<SystemTime>),
    /// It was written; it comes back by the watch, and is looked at then.
    Wrote,
    /// It is to be written, but not before then.
    Waits(SystemTime),
    /// The lease ends too soon to begin anything.
    NotNow,
    /// Its name is taken by a Secret that is not ours.
    Foreign(&'static str),
}

impl Keeper {
    pub(super) async fn look(&self, place: &Place, trust: &Trust) -> Result<Done, KeepSecretError> {
        let (account, held) = (self.world.account(place), self.world.secret(place));
        if let Some(why) = held.and_then(|held| self.is_foreign(held)) {
            return Ok(Done::Foreign(why));
        }
        let id = SpiffeId::workload(self.ca.trust_domain(), &place.0, &place.1)?;
        // The account that the CA itself may run under has no Secret: agents and proxies know the CA by that identity.
        let account = account.filter(|_| !crate::serving::is_the_cas(&id));
        let now = (self.ca.0.clock)();
        match (reconcile::reconcile(account, &id, held, self.world.opted_in(place), trust, now), account) {
            (Action::Keep(until), _) => Ok(Done::Until(Some(until))),
            (Action::Write(why), Some(account)) => match self.pace.may_write(place, self.generation, now) {
                Ok(()) => self.write(account, &id, held, why).await,
                Err(then) => Ok(Done::Waits(then)),
            },
            (Action::Remove, _) => self.remove(place, held).await,
            (Action::Nothing | Action::Write(_), _) => Ok(Done::Until(None)),
        }
    }

    /// Why a Secret with our label is not ours all the same.
    fn is_foreign(&self, held: &Held) -> Option<&'static str> {
        if !held.is_typed {
            return Some("it is of another type");
        }
        let anothers = held.made_by.as_ref().is_some_and(|by| *by != self.ours);
        anothers.then_some("another CA keeps it, by its annotation")
    }

    async fn write(
        &self,
        account: &Account,
        id: &SpiffeId,
        held: Option<&Held>,
        why: Why,
    ) -> Result<Done, KeepSecretError> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &account.namespace);
        let name = object::name(&account.name);
        if held.is_none()
            && bounded(secrets.get_metadata_opt(&name)).await?.is_some_and(|found| !object::is_ours(&found.metadata))
        {
            return Ok(Done::Foreign("it has no label app.kubernetes.io/managed-by=alcazar-ca"));
        }
        let present = held.and_then(|held| held.svid.as_ref()).map(|leaf| leaf.validity.not_after());
        let pass = match self.ca.admit(&format!("Secrets of {}", account.namespace), present).await {
            Ok(pass) => pass,
            Err(overloaded) => return Ok(Done::Waits((self.ca.0.clock)() + overloaded.retry_after)),
        };
        // The API may have taken its time, and so may those who went first.
        if !self.has_time() {
            return Ok(Done::NotNow);
        }
        let key = KeyPair::generate()?;
        let request = CertificateParams::default().serialize_request(&key)?;
        let csr = Csr::from_der(request.der())?;
        let caller = format!("secret {}/{name}", account.namespace);
        let reply = self.ca.issue_for(&caller, Plug::Secrets, id, &csr, self.ttl).await;
        drop(pass);
        let reply = reply.inspect_err(|error| self.ca.count(error)).map_err(Box::new)?;
        let pkcs8 = Zeroizing::new(key.serialize_der());
        let svid = X509Svid::new(reply.chain, SvidKey::from_pkcs8(pkcs8.to_vec())?)?;
        // The roots of the same moment as the certificate.
        let roots: String = reply.hierarchy.roots().iter().map(|root| pem(&root.certificate)).collect();
        let secret = Wiped(object::write(account, &svid, &roots, &self.ours, held));
        let parameters = PostParams::default();
        let written = match held {
            Some(_) => bounded(secrets.replace(&name, &parameters, &secret.0)).await,
            None => bounded(secrets.create(&parameters, &secret.0)).await,
        };
        drop(Wiped(written?));
        tracing::info!(target: "alcazar::rotation", spiffe_id = %id, namespace = account.namespace, secret = name, serial = svid.serial(), %why, "wrote the Secret of a service account");
        self.written.with([why.name()]).inc();
        Ok(Done::Wrote)
    }

    async fn remove(&self, place: &Place, held: Option<&Held>) -> Result<Done, KeepSecretError> {
        let Some(held) = held else { return Ok(Done::Until(None)) };
        if !self.has_time() {
            return Ok(Done::NotNow);
        }
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &place.0);
        let only_this = Preconditions { uid: Some(held.uid.clone()), resource_version: Some(held.version.clone()) };
        let parameters = DeleteParams { preconditions: Some(only_this), ..DeleteParams::default() };
        let name = object::name(&place.1);
        match bounded(secrets.delete(&name, &parameters)).await {
            Err(KeepSecretError::Api(kube::Error::Api(status))) if status.code == 404 => {}
            outcome => drop(outcome?),
        }
        tracing::info!(target: "alcazar::rotation", namespace = place.0, secret = name, "removed the Secret of a service account that has none any more");
        Ok(Done::Until(None))
    }
}

/// The client itself waits for as long as the connection stands.
async fn bounded<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, KeepSecretError> {
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(outcome) => Ok(outcome?),
        Err(_elapsed) => Err(KeepSecretError::Silent),
    }
}

/// Why an account's Secret is not as it should be.
#[derive(Debug, Error)]
pub(super) enum KeepSecretError {
    #[error("the account's name cannot stand in a SPIFFE ID")]
    Id(#[from] ParseSpiffeIdError),
    #[error("cannot make a key")]
    Generate(#[from] rcgen::Error),
    #[error(transparent)]
    Csr(#[from] CsrError),
    #[error("no certificate was issued")]
    Issue(#[from] Box<RequestError>),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("what was issued is not an SVID")]
    Svid(#[from] ParseSvidError),
    #[error("the Kubernetes API refused")]
    Api(#[from] kube::Error),
    #[error(
        "the Kubernetes API did not answer within {DEADLINE:?}; whether the Secret was written is seen by the watch"
    )]
    Silent,
}

impl KeepSecretError {
    /// Whether it will be the same until somebody changes something.
    pub(super) fn is_lasting(&self) -> bool {
        match self {
            Self::Id(_) | Self::Csr(_) | Self::Key(_) | Self::Svid(_) => true,
            Self::Issue(error) => !error.is_ours(),
            // Not: a conflict, or too many requests.
            Self::Api(kube::Error::Api(status)) => matches!(status.code, 400..=408 | 410..=428),
            Self::Api(_) | Self::Generate(_) | Self::Silent => false,
        }
    }
}

/// For one call to the API.
const DEADLINE: Duration = Duration::from_secs(5);
/// Nothing is begun later than this before the end of the lease: the call that writes ends before, with time for clocks that differ.
pub(super) const MARGIN: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use alcazar_service::clock;
    use tokio::net::TcpListener;

    use super::*;
    use crate::{Ca, Config};

    fn account() -> (Account, SpiffeId) {
        let account = Account { namespace: "shop".into(), name: "cart".into(), uid: "1".into() };
        (account, "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap())
    }

    /// One that takes connections and never answers. The clock of the runtime jumps ahead while everybody waits.
    #[tokio::test(start_paused = true)]
    async fn an_api_that_never_answers_holds_nothing_up() {
        alcazar_mtls::install_default_provider();
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", silent.local_addr().unwrap());
        let client = kube::Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let ca = Ca::open(Config::new(folder.path().join("ca")), clock::system()).await.unwrap();
        let keeper = Keeper::new(ca.clone(), client, Duration::from_secs(3600), "holder".into());
        let (account, id) = account();
        let before = ca.issued(Some(&id), 10).await.unwrap().len();
        let outcome = tokio::time::timeout(2 * DEADLINE, keeper.write(&account, &id, None, Why::Missing))
            .await
            .expect("a deadline");
        let error = outcome.err().unwrap();
        assert!(matches!(error, KeepSecretError::Silent) && !error.is_lasting(), "{error:?}");
        assert_eq!(ca.issued(Some(&id), 10).await.unwrap().len(), before, "nothing is issued to nowhere");
        ca.close().await;
    }

    #[tokio::test]
    async fn nothing_is_issued_when_the_lease_is_over() {
        alcazar_mtls::install_default_provider();
        let client = kube::Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let ca = Ca::open(Config::new(folder.path().join("ca")), clock::system()).await.unwrap();
        let keeper = Keeper::new(ca.clone(), client, Duration::from_secs(3600), "holder".into());
        let (account, id) = account();
        let held = Held::read(Secret::default());
        let outcome = keeper.write(&account, &id, Some(&held), Why::Altered).await.unwrap();
        assert!(matches!(outcome, Done::NotNow));
        assert!(ca.issued(Some(&id), 10).await.unwrap().is_empty());
        ca.close().await;
    }

    #[tokio::test]
    async fn a_secret_of_another_ca_is_not_ours() {
        alcazar_mtls::install_default_provider();
        let client = kube::Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let ca = Ca::open(Config::new(folder.path().join("ca")), clock::system()).await.unwrap();
        let keeper = Keeper::new(ca.clone(), client, Duration::from_secs(3600), "holder".into());
        let held = |by: Option<&str>| {
            let mut held = Held::read(Secret { type_: Some(object::TYPE.into()), ..Secret::default() });
            held.made_by = by.map(Into::into);
            held
        };
        assert_eq!(keeper.is_foreign(&held(None)), None, "one that is handed over");
        assert_eq!(keeper.is_foreign(&held(Some("cluster.local/local"))), None);
        assert!(keeper.is_foreign(&held(Some("cluster.local/green"))).is_some());
        assert!(keeper.is_foreign(&Held { is_typed: false, ..held(None) }).is_some());
        ca.close().await;
    }
}
