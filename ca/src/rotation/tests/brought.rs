//! A root that a person brings: trusted first, plugged in later, signing when everybody has heard of it.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use alcazar_identity::CertificateDer;
use alcazar_service::process::chain;
use rustls_pki_types::pem::PemObject;

use super::{
    super::{ClusterConfig, Kind, Phase, Standing, Why, driver::Looked},
    whole::Whole,
};
use crate::hierarchy::pem;

impl Whole {
    /// Plugs in what another CA signs with, as if that had been made where its root is kept.
    fn plug_in(&self, other: &Self) {
        let (hierarchy, folder) = (other.ca.hierarchy(), self.folder.path().join("cacerts"));
        fs::create_dir_all(&folder).unwrap();
        let own = pem(&hierarchy.intermediate().info().certificate);
        let mut keys = fs::read_dir(other.folder.path().join("hierarchy")).unwrap().map(|entry| entry.unwrap().path());
        let is_its = |path: &PathBuf| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.starts_with("intermediate") && name.ends_with("-key.pem")
        };
        let key = fs::read(keys.find(is_its).unwrap()).unwrap();
        fs::write(folder.join("ca-key.pem"), key).unwrap();
        fs::write(folder.join("cert-chain.pem"), &own).unwrap();
        fs::write(folder.join("root-cert.pem"), pem(&hierarchy.root().certificate)).unwrap();
        fs::write(folder.join("ca-cert.pem"), own).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_root_that_a_person_brings_is_trusted_first_and_its_intermediate_asked_for_when_everybody_has_heard() {
    let mut whole = Whole::open(|_| ()).await;
    let before = whole.stands_on(Kind::Root).await;
    whole.ca.note_unreported(Duration::from_secs(600)).await.unwrap();
    // Another CA's root stands for one that is kept offline.
    let elsewhere = Whole::open(|_| ()).await;
    let root = elsewhere.ca.hierarchy().root().clone();
    let ours = whole.ca.hierarchy().root().certificate.clone();
    let refused =
        async |whole: &Whole, certificates| whole.ca.start_rotation_to(certificates).await.unwrap_err().to_string();
    assert!(refused(&whole, vec![ours.clone()]).await.starts_with("of the certificates given, 0"));
    let intermediate = elsewhere.ca.hierarchy().intermediate().info().certificate.clone();
    assert!(refused(&whole, vec![intermediate]).await.contains("not a root"));
    whole.set_clock(-900_000_000);
    assert!(refused(&whole, vec![root.certificate.clone()]).await.contains("not good now"));
    whole.set_clock(0);

    whole.ca.start_rotation_to(vec![ours, root.certificate.clone()]).await.unwrap();
    let (mut timed, mut asked) = (false, false);
    for _ in 0..30 {
        if whole.look().await != Looked::Waits {
            whole.open_again().await;
        }
        let shown = whole.ca.rotation().await.unwrap().unwrap();
        let operator = shown.waits.iter().any(|wait| wait.party == "operator");
        assert!(!operator || shown.waits.iter().all(|wait| wait.why == Why::Intermediate), "{:?}", shown.waits);
        timed |= shown.waits.iter().any(|wait| wait.why == Why::BundleLife);
        asked |= operator;
    }
    assert!(timed && asked && whole.rotation().await.phase == Phase::Distribute);
    assert!(whole.ca.hierarchy().trusts(root.fingerprint));
    assert_eq!(whole.ca.hierarchy().root().fingerprint.to_string(), before.0, "nothing under the new one signs yet");

    whole.ca.abort_rotation().await.unwrap();
    whole.run_to_the_end().await;
    assert_eq!(whole.stands_on(Kind::Root).await, before);
    whole.ca.close().await;
    elsewhere.ca.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_root_that_nobody_could_read_or_trust_for_long_is_not_handed_out() {
    let whole = Whole::open(|_| ()).await;
    let folder = tempfile::tempdir().unwrap();
    let made = |name: &str, key: &str| {
        let file = folder.path().join(name);
        let extensions = "-addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign";
        let command =
            format!("req -x509 -nodes -days 3650 -subj /O=cluster.local/CN={name} {extensions} -newkey {key}");
        let out = folder.path().join("key");
        let told =
            Command::new("openssl").args(command.split(' ')).arg("-keyout").arg(out).arg("-out").arg(&file).output();
        assert!(told.unwrap().status.success(), "{command}");
        CertificateDer::from_pem_file(file).unwrap()
    };
    let sequence = whole.ca.own_bundle().unwrap().sequence();
    for (name, key) in
        [("sha1", "rsa:2048 -sha1"), ("short", "rsa:1024"), ("p521", "ec -pkeyopt ec_paramgen_curve:P-521")]
    {
        let refused = whole.ca.start_rotation_to(vec![made(name, key)]).await.unwrap_err();
        assert!(refused.to_string().contains("cannot be a root here"), "{name}: {}", chain(&refused));
    }
    assert!(whole.ca.rotation().await.unwrap().is_none(), "nothing was written down");
    assert_eq!(whole.ca.own_bundle().unwrap().sequence(), sequence);
    whole.ca.close().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_plugged_in_early_signs_when_everybody_has_heard_and_not_before() {
    let mut whole =
        Whole::open(|config| config.clusters = vec![ClusterConfig { name: "west".into(), endpoint: None }]).await;
    let elsewhere = Whole::open(|_| ()).await;
    let (old, new) = (whole.ca.hierarchy().root().fingerprint, elsewhere.ca.hierarchy().root().clone());
    whole.ca.start_rotation_to(vec![new.certificate.clone()]).await.unwrap();
    whole.plug_in(&elsewhere);
    for look in 0..20 {
        whole.ca.look_after_hierarchy().await.unwrap();
        assert_eq!(whole.ca.hierarchy().root().fingerprint, old, "{look}: the cluster west has not heard of it");
        if look % 5 == 4 {
            whole.open_again().await;
        }
        whole.look().await;
    }
    assert_eq!(whole.rotation().await.phase, Phase::Distribute);
    let shown = whole.ca.rotation().await.unwrap().unwrap();
    assert!(shown.waits.iter().any(|wait| wait.party == "the cluster west"), "{:?}", shown.waits);
    // A person goes past it, and then it signs by itself.
    whole.ca.force_rotation(shown.rotation.step, &["the cluster west".to_owned()].into()).await.unwrap();
    whole.look().await;
    whole.ca.look_after_hierarchy().await.unwrap();
    assert_eq!(whole.ca.hierarchy().root().fingerprint, new.fingerprint);
    whole.run_to(Phase::Switch).await;
    whole.ca.close().await;
    elsewhere.ca.close().await;
}

#[tokio::test(start_paused = true)]
async fn an_abort_once_what_was_brought_has_signed_issues_anew_before_its_root_goes() {
    let mut whole = Whole::open(|_| ()).await;
    let before = whole.stands_on(Kind::Root).await;
    whole.ca.note_unreported(Duration::from_secs(600)).await.unwrap();
    let elsewhere = Whole::open(|_| ()).await;
    let new = elsewhere.ca.hierarchy().root().clone();
    whole.ca.start_rotation_to(vec![new.certificate.clone()]).await.unwrap();
    for _ in 0..40 {
        whole.look().await;
    }
    let asks = whole.ca.rotation().await.unwrap().unwrap().waits;
    assert!(asks.iter().any(|wait| wait.standing == Standing::Person), "{asks:?}");
    whole.plug_in(&elsewhere);
    whole.ca.look_after_hierarchy().await.unwrap();
    let signs = |whole: &Whole| whole.ca.hierarchy().root().fingerprint;
    assert_eq!((signs(&whole), whole.rotation().await.phase), (new.fingerprint, Phase::Distribute));

    // Leaves under it are in use: it stays trusted, and what to do is said, for as long as it would sign again.
    whole.ca.abort_rotation().await.unwrap();
    for _ in 0..5 {
        let stands = whole.ca.look_at_rotation(&mut whole.memory).await.unwrap_err();
        assert!(stands.to_string().contains("plug the set under"), "{}", chain(&stands));
        whole.ca.look_after_hierarchy().await.unwrap();
        assert!(whole.ca.hierarchy().trusts(new.fingerprint));
    }
    fs::remove_dir_all(whole.folder.path().join("cacerts")).unwrap();
    let mut phases = Vec::new();
    while !whole.rotation().await.is_over() {
        let phase = whole.rotation().await.phase;
        if phases.last() != Some(&phase) {
            phases.push(phase);
        }
        assert!(phase > Phase::Reissue || whole.ca.hierarchy().trusts(new.fingerprint), "{phase}");
        whole.look().await;
    }
    assert_eq!(phases, [Phase::Switch, Phase::Reissue, Phase::Retire, Phase::Forget]);
    assert_eq!(whole.stands_on(Kind::Root).await, before);
    whole.ca.close().await;
    elsewhere.ca.close().await;
}
