//! The Secrets of service accounts, as applications knew them from Citadel, on a real Kubernetes API.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use alcazar_ca::{Ca, Config, KubernetesConfig, SecretsConfig};
use alcazar_service::{Readiness, Shutdown, clock};
use alcazar_testkit::Kubernetes;
use k8s_openapi::{ByteString, api::core::v1::Secret, api::core::v1::ServiceAccount};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::net::TcpListener;

const SOON: Duration = Duration::from_secs(60);

fn secrets(client: &Client, namespace: &str) -> Api<Secret> {
    Api::namespaced(client.clone(), namespace)
}

/// Looks until the Secret is as it should be.
async fn until(
    what: &str,
    secrets: &Api<Secret>,
    name: &str,
    is_it: impl Fn(Option<&Secret>) -> bool,
) -> Option<Secret> {
    let start = Instant::now();
    loop {
        let found = secrets.get_opt(name).await.unwrap();
        if is_it(found.as_ref()) {
            return found;
        }
        assert!(start.elapsed() < SOON, "not within {SOON:?}: {what}; {:?}", found.map(|secret| secret.metadata));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn part(secret: &Secret, name: &str) -> Vec<u8> {
    secret.data.as_ref().and_then(|data| data.get(name)).map(|bytes| bytes.0.clone()).unwrap_or_default()
}

fn version(secret: Option<&Secret>) -> Option<String> {
    secret.and_then(|secret| secret.metadata.resource_version.clone())
}

/// OpenSSL verifies the chain to the root, that the key is the leaf's, and whom it names.
fn openssl_believes(secret: &Secret, id: &str) {
    let folder = tempfile::tempdir().unwrap();
    for name in ["cert-chain.pem", "key.pem", "root-cert.pem"] {
        std::fs::write(folder.path().join(name), part(secret, name)).unwrap();
    }
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).current_dir(folder.path()).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    openssl(&["verify", "-CAfile", "root-cert.pem", "-untrusted", "cert-chain.pem", "cert-chain.pem"]);
    let of_key = openssl(&["pkey", "-in", "key.pem", "-pubout"]);
    assert_eq!(of_key, openssl(&["x509", "-in", "cert-chain.pem", "-noout", "-pubkey"]));
    let names = openssl(&["x509", "-in", "cert-chain.pem", "-noout", "-ext", "subjectAltName"]);
    assert!(names.contains(&format!("URI:{id}")), "{names}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_account_of_a_namespace_that_asks_has_a_secret_that_is_kept_up() {
    let Some(kubernetes) = Kubernetes::start().await.unwrap() else { return };
    let client = kubernetes.client().await.unwrap();
    kubernetes.namespace("shop", &[("alcazar.dev/secrets", "enabled")]).await.unwrap();
    kubernetes.namespace("quiet", &[]).await.unwrap();
    kubernetes.service_account("shop", "cart").await.unwrap();
    kubernetes.service_account("quiet", "clerk").await.unwrap();
    let (shop, quiet) = (secrets(&client, "shop"), secrets(&client, "quiet"));

    // Somebody else's Secret of that name is nobody's to overwrite.
    kubernetes.service_account("shop", "stranger").await.unwrap();
    let theirs: Secret = serde_json::from_value(json!({
        "metadata": {"name": "istio.stranger"}, "type": "istio.io/key-and-cert", "stringData": {"key.pem": "theirs"},
    }))
    .unwrap();
    shop.create(&PostParams::default(), &theirs).await.unwrap();

    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::new(folder.path().join("ca"));
    config.kubernetes = KubernetesConfig {
        kubeconfig: Some(kubernetes.kubeconfig()),
        secrets: Some(SecretsConfig::default()),
        ..KubernetesConfig::default()
    };
    let (shutdown, readiness) = (Shutdown::new(), Readiness::new());
    let ca = Ca::open(config, clock::system()).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    shutdown.spawn("the CA", {
        let running = ca.run(listener, shutdown.clone(), readiness);
        async move { running.await.unwrap() }
    });

    let made = until("a Secret", &shop, "istio.cart", |found| found.is_some()).await.unwrap();
    assert_eq!(made.type_.as_deref(), Some("istio.io/key-and-cert"));
    openssl_believes(&made, "spiffe://cluster.local/ns/shop/sa/cart");

    // Edited: repaired, whatever was edited.
    for name in ["cert-chain.pem", "key.pem", "root-cert.pem"] {
        let before = shop.get("istio.cart").await.unwrap();
        let mut edited = before.clone();
        edited.data.as_mut().unwrap().insert(name.into(), ByteString(b"by hand".into()));
        let edited = shop.replace("istio.cart", &PostParams::default(), &edited).await.unwrap();
        let good = |found: Option<&Secret>| {
            version(found) != version(Some(&edited)) && found.is_some_and(|found| part(found, name) != b"by hand")
        };
        let repaired = until("it is repaired", &shop, "istio.cart", good).await.unwrap();
        openssl_believes(&repaired, "spiffe://cluster.local/ns/shop/sa/cart");
    }
    // Deleted: made again.
    let uid = shop.get("istio.cart").await.unwrap().metadata.uid;
    shop.delete("istio.cart", &DeleteParams::default()).await.unwrap();
    let again =
        until("it is made again", &shop, "istio.cart", |found| found.is_some_and(|found| found.metadata.uid != uid));
    openssl_believes(&again.await.unwrap(), "spiffe://cluster.local/ns/shop/sa/cart");

    // The trusted roots change: so does the Secret.
    let (old, new) = (ca.fingerprints().root.fingerprint, ca.make_root().await.unwrap().fingerprint);
    ca.set_trusted_roots(&[old, new]).await.unwrap();
    let two = |found: Option<&Secret>| {
        let roots = found.map(|found| String::from_utf8(part(found, "root-cert.pem")).unwrap()).unwrap_or_default();
        roots.matches("BEGIN CERTIFICATE").count() == 2
    };
    openssl_believes(
        &until("both roots are in it", &shop, "istio.cart", two).await.unwrap(),
        "spiffe://cluster.local/ns/shop/sa/cart",
    );

    // A namespace that asks by Citadel's label, and takes it back.
    assert_eq!(quiet.get_opt("istio.clerk").await.unwrap(), None);
    label(&client, "quiet", "ca.istio.io/override", "true").await;
    until("the namespace asked", &quiet, "istio.clerk", |found| found.is_some()).await;
    label(&client, "quiet", "alcazar.dev/secrets", "disabled").await;
    until("the namespace asks no more", &quiet, "istio.clerk", |found| found.is_none()).await;

    // The account goes, and its Secret with it.
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "shop");
    accounts.delete("cart", &DeleteParams::default()).await.unwrap();
    until("its account is gone", &shop, "istio.cart", |found| found.is_none()).await;
    assert_eq!(part(&shop.get("istio.stranger").await.unwrap(), "key.pem"), b"theirs");

    // Everything is on record.
    let id = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
    let issued = ca.issued(Some(&id), 100).await.unwrap();
    assert!(issued.len() >= 5 && issued[0].caller == "secret shop/istio.cart", "{issued:?}");

    an_account_that_is_edited_without_end(&kubernetes, &ca, &shop).await;
    secrets_that_are_not_this_cas(&kubernetes, &ca, &client).await;
    five_hundred_accounts(&kubernetes, &client).await;
    shutdown.trigger("the test is over");
    shutdown.finished(Duration::from_secs(20)).await.unwrap();
}

/// Whoever may edit a Secret does not decide how much is issued.
async fn an_account_that_is_edited_without_end(kubernetes: &Kubernetes, ca: &Ca, shop: &Api<Secret>) {
    kubernetes.service_account("shop", "till").await.unwrap();
    until("a Secret", shop, "istio.till", |found| found.is_some()).await;
    let spoil = Patch::Merge(json!({"data": {"key.pem": null}}));
    let (id, start) = ("spiffe://cluster.local/ns/shop/sa/till".parse().unwrap(), Instant::now());
    // Each repair is spoilt as soon as it is seen, until the first that is not made at once.
    loop {
        let spoilt = shop.patch("istio.till", &PatchParams::default(), &spoil).await.unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while version(shop.get_opt("istio.till").await.unwrap().as_ref()) == version(Some(&spoilt))
            && Instant::now() < deadline
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if Instant::now() >= deadline {
            break;
        }
        assert!(start.elapsed() < SOON, "it is repaired without end");
    }
    let issued = ca.issued(Some(&id), 100).await.unwrap().len();
    assert!((3..=7).contains(&issued), "{issued} certificates");
}

/// The CA's own identity goes into no Secret, and what another CA keeps is left to it.
async fn secrets_that_are_not_this_cas(kubernetes: &Kubernetes, ca: &Ca, client: &Client) {
    let namespace = "alcazar-system";
    kubernetes.namespace(namespace, &[("alcazar.dev/secrets", "enabled")]).await.unwrap();
    let system = secrets(client, namespace);
    let labels = json!({"app.kubernetes.io/managed-by": "alcazar-ca"});
    let make = async |name: &str, annotations: serde_json::Value| {
        let metadata = json!({"name": name, "labels": labels, "annotations": annotations});
        let secret = json!({"metadata": metadata, "type": "istio.io/key-and-cert", "stringData": {"key.pem": "k"}});
        let secret: Secret = serde_json::from_value(secret).unwrap();
        system.create(&PostParams::default(), &secret).await.unwrap();
    };
    make("istio.alcazar-ca", json!({})).await;
    make("istio.blue", json!({"alcazar.dev/ca": "cluster.local/blue"})).await;
    for account in ["alcazar-ca", "blue", "green"] {
        kubernetes.service_account(namespace, account).await.unwrap();
    }
    until("one as any other", &system, "istio.green", |found| found.is_some()).await;
    until("the CA's own is taken away", &system, "istio.alcazar-ca", |found| found.is_none()).await;
    assert_eq!(part(&system.get("istio.blue").await.unwrap(), "key.pem"), b"k");
    assert!(ca.issued(None, 2000).await.unwrap().iter().all(|recorded| {
        recorded.caller != "secret alcazar-system/istio.alcazar-ca"
            && recorded.caller != "secret alcazar-system/istio.blue"
    }));
}

async fn label(client: &Client, namespace: &str, name: &str, value: &str) {
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(client.clone());
    let patch = Patch::Merge(json!({"metadata": {"labels": {name: value}}}));
    namespaces.patch(namespace, &PatchParams::default(), &patch).await.unwrap();
}

async fn five_hundred_accounts(kubernetes: &Kubernetes, client: &Client) {
    kubernetes.namespace("crowd", &[]).await.unwrap();
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "crowd");
    for n in 0..500 {
        let account: ServiceAccount = serde_json::from_value(json!({"metadata": {"name": format!("sa-{n}")}})).unwrap();
        accounts.create(&PostParams::default(), &account).await.unwrap();
    }
    let (crowd, start) = (secrets(client, "crowd"), Instant::now());
    label(client, "crowd", "alcazar.dev/secrets", "enabled").await;
    loop {
        let made = crowd.list_metadata(&ListParams::default()).await.unwrap().items.len();
        if made == 500 {
            break;
        }
        assert!(start.elapsed() < SOON, "{made} of 500 within {SOON:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("500 accounts had their Secrets after {:?}", start.elapsed());
}
