//! A set that is plugged in again on the way back: it signs when everybody has heard of its root again, and not before.

use std::{fs, path::Path, time::Duration};

use super::{
    super::{Kind, Phase},
    whole::Whole,
};
use crate::hierarchy::pem;

/// Plugs in what another CA signs with; its root stands for one that is kept offline.
fn plug_in(whole: &Whole, other: &Whole) {
    let (hierarchy, folder) = (other.ca.hierarchy(), whole.folder.path().join("cacerts"));
    fs::create_dir_all(&folder).unwrap();
    let own = pem(&hierarchy.intermediate().info().certificate);
    let is_its = |path: &Path| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with("intermediate") && name.ends_with("-key.pem")
    };
    let mut files = fs::read_dir(other.folder.path().join("hierarchy")).unwrap().map(|entry| entry.unwrap().path());
    fs::copy(files.find(|path| is_its(path)).unwrap(), folder.join("ca-key.pem")).unwrap();
    fs::write(folder.join("root-cert.pem"), pem(&hierarchy.root().certificate)).unwrap();
    for name in ["cert-chain.pem", "ca-cert.pem"] {
        fs::write(folder.join(name), &own).unwrap();
    }
}

async fn exchange(whole: &mut Whole, other: &Whole, until: Phase) {
    whole.ca.start_rotation_to(vec![other.ca.hierarchy().root().certificate.clone()]).await.unwrap();
    plug_in(whole, other);
    for _ in 0..200 {
        if whole.rotation().await.phase == until {
            return;
        }
        whole.look().await;
        whole.ca.look_after_hierarchy().await.unwrap();
    }
    panic!("{:?}", whole.ca.rotation().await);
}

#[tokio::test(start_paused = true)]
async fn a_set_that_is_plugged_in_again_does_not_sign_before_everybody_believes_its_root_again() {
    let mut whole = Whole::open(|_| ()).await;
    let (first, second) = (Whole::open(|_| ()).await, Whole::open(|_| ()).await);
    let (old, new) = (first.ca.hierarchy().root().fingerprint, second.ca.hierarchy().root().fingerprint);
    let signs = |whole: &Whole| whole.ca.hierarchy().root().fingerprint;
    exchange(&mut whole, &first, Phase::Done).await;
    assert_eq!(signs(&whole), old);
    // It leaves the old root for certain, as far as it says to others; an operator has second thoughts.
    whole.ca.note_unreported(Duration::from_secs(600)).await.unwrap();
    for phase in [Phase::Reissue, Phase::Retire] {
        exchange(&mut whole, &second, phase).await;
        assert_eq!(signs(&whole), new);
        plug_in(&whole, &first);
        for _ in 0..6 {
            whole.ca.look_after_hierarchy().await.unwrap();
            assert_eq!(signs(&whole), new, "{phase}: the rotation has not been told to go back");
        }
        whole.ca.abort_rotation().await.unwrap();
        // Whoever never reports has to look at the bundle again, where the old root was gone from it.
        if phase == Phase::Retire {
            for _ in 0..6 {
                whole.look().await;
                whole.ca.look_after_hierarchy().await.unwrap();
                assert_eq!((signs(&whole), whole.rotation().await.phase), (new, Phase::Distribute));
                assert!(whole.ca.hierarchy().trusts(old));
            }
        }
        for _ in 0..100 {
            whole.ca.look_after_hierarchy().await.unwrap();
            whole.look().await;
        }
        assert!(whole.rotation().await.is_over() && whole.rotation().await.back);
        assert_eq!(signs(&whole), old, "{phase}");
        assert!(!whole.ca.hierarchy().trusts(new));
    }
    assert_eq!(whole.rotation().await.kind, Kind::Root);
    for whole in [whole, first, second] {
        whole.ca.close().await;
    }
}
