use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use alcazar_jwt::{Algorithm, ClaimsError, Issuer, Jwk, PublicKey, SignJwt};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SigningKey};
use serde_json::json;

use super::*;

/// A key of an issuer.
struct Signing(KeyPair, &'static str);

impl Signing {
    fn new(key_id: &'static str) -> Arc<Self> {
        Arc::new(Self(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap(), key_id))
    }

    fn jwk(&self) -> Jwk {
        Jwk::new(self.1, PublicKey::from_spki_der(&self.0.subject_public_key_info()).unwrap())
    }

    fn token(&self) -> String {
        alcazar_jwt::sign(None, &json!({"iss": "i", "aud": "ca", "exp": 4_000_000_000_u64}), self).unwrap()
    }
}

impl SignJwt for Signing {
    fn algorithm(&self) -> Algorithm {
        Algorithm::Es256
    }

    fn key_id(&self) -> &str {
        self.1
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> {
        Ok(alcazar_jwt::fixed_of_der(Algorithm::Es256, &SigningKey::sign(&self.0, message)?)?)
    }
}

/// An issuer that publishes what the test says, and counts how often it is asked.
#[derive(Default)]
struct Published {
    document: RwLock<Option<Jwks>>,
    asked: AtomicUsize,
    hangs: AtomicBool,
}

struct Source(Arc<Published>);

impl FetchKeys for Source {
    fn fetch(&self) -> BoxFuture<'_, Result<Vec<u8>, FetchKeysError>> {
        Box::pin(async {
            self.0.asked.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            if self.0.hangs.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            let document = self.0.document.read().unwrap().clone();
            document.map(|keys| keys.to_json().to_string().into_bytes()).ok_or(FetchKeysError::Late)
        })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a test")
    }
}

struct World {
    keys: IssuerKeys,
    published: Arc<Published>,
    now: Arc<AtomicU64>,
}

impl World {
    fn new() -> Self {
        let (published, now) = (Arc::new(Published::default()), Arc::new(AtomicU64::new(1_800_000_000)));
        let hands = now.clone();
        let clock: Clock = Arc::new(move || SystemTime::UNIX_EPOCH + Duration::from_secs(hands.load(Ordering::SeqCst)));
        Self { keys: IssuerKeys::new(Box::new(Source(published.clone())), clock), published, now }
    }

    fn publish(&self, keys: &[&Arc<Signing>]) {
        *self.published.document.write().unwrap() = Some(keys.iter().map(|key| key.jwk()).collect());
    }

    fn away(&self) {
        *self.published.document.write().unwrap() = None;
    }

    fn advance(&self, seconds: u64) {
        self.now.fetch_add(seconds, Ordering::SeqCst);
    }

    fn asked(&self) -> usize {
        self.published.asked.load(Ordering::SeqCst)
    }

    /// Waits until the source was asked so often, and has answered.
    async fn looked(&self, times: usize) {
        while self.asked() < times {
            tokio::task::yield_now().await;
        }
        drop(self.keys.kept.turn.lock().await);
    }

    async fn verify(&self, key: &Signing) -> Result<(), CallerError> {
        let token = key.token();
        let now = (self.keys.kept.clock)();
        let expected = Expectations { audiences: &["ca"], issuer: Issuer::Is("i"), now, leeway: Duration::ZERO };
        self.keys.verify(Token::parse(&token).unwrap(), &expected).await.map(drop)
    }
}

fn is_unknown(outcome: &Result<(), CallerError>) -> bool {
    matches!(outcome, Err(CallerError::Verify(VerifyError::UnknownKey(_))))
}

fn is_unavailable(outcome: &Result<(), CallerError>) -> bool {
    matches!(outcome, Err(CallerError::Keys(_)))
}

#[tokio::test]
async fn an_unknown_key_is_looked_for_once_and_not_by_every_token() {
    let (world, old, new, nobodys) = (World::new(), Signing::new("old"), Signing::new("new"), Signing::new("nobody"));
    world.publish(&[&old]);
    world.verify(&old).await.unwrap();
    world.verify(&old).await.unwrap();
    assert_eq!(world.asked(), 1);
    // A flood of tokens with keys that nobody has.
    for _ in 0..10 {
        assert!(is_unknown(&world.verify(&nobodys).await));
    }
    assert_eq!(world.asked(), 1, "the source was asked a moment ago");
    // The issuer has a new key; it is found as soon as the source may be asked again.
    world.publish(&[&old, &new]);
    assert!(is_unknown(&world.verify(&new).await));
    world.advance(10);
    world.verify(&new).await.unwrap();
    world.verify(&old).await.unwrap();
    assert_eq!(world.asked(), 2);
    world.advance(10);
    let all = futures::future::join_all((0..20).map(|_| world.verify(&nobodys))).await;
    assert!(all.iter().all(is_unknown));
    assert_eq!(world.asked(), 3, "many at once are one question");
}

#[tokio::test]
async fn a_key_that_was_withdrawn_is_not_believed_after_the_next_look() {
    let (world, old, new) = (World::new(), Signing::new("old"), Signing::new("new"));
    world.publish(&[&old]);
    world.verify(&old).await.unwrap();
    world.publish(&[&new]);
    world.advance(599);
    world.verify(&old).await.unwrap();
    world.advance(1);
    // This one starts the look, and does not wait for it.
    world.verify(&old).await.unwrap();
    world.looked(2).await;
    assert!(is_unknown(&world.verify(&old).await));
    world.verify(&new).await.unwrap();
    // Nobody has looked for long: who comes then waits.
    world.publish(&[&old]);
    world.advance(1200);
    assert!(is_unknown(&world.verify(&new).await));
    assert_eq!(world.asked(), 3);
}

#[tokio::test]
async fn nobody_waits_for_a_source_that_hangs_while_there_are_keys() {
    let (world, key, nobodys) = (World::new(), Signing::new("key"), Signing::new("nobody"));
    world.publish(&[&key]);
    world.verify(&key).await.unwrap();
    world.published.hangs.store(true, Ordering::SeqCst);
    for _ in 0..10 {
        world.advance(599);
        // Were one of them to wait, it would wait for ever.
        world.verify(&key).await.unwrap();
        world.verify(&key).await.unwrap();
        // Who asks behind their backs has its turn.
        tokio::task::yield_now().await;
    }
    // A key that nobody knows is another matter.
    let waits = tokio::time::timeout(Duration::from_millis(50), world.verify(&nobodys)).await;
    assert!(waits.is_err());
}

#[tokio::test]
async fn keys_that_cannot_be_fetched_are_nobodys_fault_and_old_ones_go_on_for_a_day() {
    let (world, key) = (World::new(), Signing::new("key"));
    assert!(is_unavailable(&world.verify(&key).await));
    assert!(is_unavailable(&world.verify(&key).await));
    assert_eq!(world.asked(), 1, "not asked again at once");
    world.publish(&[]);
    world.advance(10);
    assert!(is_unavailable(&world.verify(&key).await), "an empty set is a mistake, not a withdrawal of everything");
    world.publish(&[&key]);
    world.advance(10);
    world.verify(&key).await.unwrap();
    world.away();
    for _ in 0..23 {
        world.advance(3600);
        world.verify(&key).await.unwrap();
    }
    world.advance(3600);
    assert!(is_unavailable(&world.verify(&key).await));
    // A clock that is set back makes the keys be asked for, and breaks nothing.
    world.publish(&[&key]);
    world.now.fetch_sub(50 * 3600, Ordering::SeqCst);
    world.verify(&key).await.unwrap();
}

#[tokio::test]
async fn a_good_key_does_not_make_a_token_good_for_us() {
    let (world, key) = (World::new(), Signing::new("key"));
    world.publish(&[&key]);
    world.now.store(4_000_000_000, Ordering::SeqCst);
    let outcome = world.verify(&key).await;
    assert!(
        matches!(outcome, Err(CallerError::Verify(VerifyError::Claims(ClaimsError::Expired { .. })))),
        "{outcome:?}"
    );
}

#[test]
fn an_issuers_configuration_is_its_own_and_names_an_https_url() {
    let read =
        |document: serde_json::Value| keys_url(document.to_string().as_bytes(), "https://i").map(|url| url.to_string());
    let good = json!({"issuer": "https://i", "jwks_uri": "https://keys.example/jwks"});
    assert_eq!(read(good).unwrap(), "https://keys.example/jwks");
    for bad in [
        json!({"issuer": "https://other", "jwks_uri": "https://keys.example/jwks"}),
        json!({"issuer": "https://i/", "jwks_uri": "https://keys.example/jwks"}),
        json!({"jwks_uri": "https://keys.example/jwks"}),
        json!({"issuer": "https://i", "jwks_uri": "http://keys.example/jwks"}),
        json!({"issuer": "https://i", "jwks_uri": "file:///etc/passwd"}),
        json!({"issuer": "https://i"}),
        json!([]),
    ] {
        assert!(matches!(read(bad.clone()), Err(FetchKeysError::Discovery(_))), "{bad}");
    }
}
