//! A root that is kept offline is exchanged for another one, command by command as `docs/rotation.md` says, while a client calls all the
//! time through real proxies: no request fails, and at every step what the proxies show is verified by the bundle of that moment.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use alcazar_testkit::{Cluster, EchoServer, HttpOrigin, Load, Tunnel, Vault, openssl_s_client, turn, until};

/// A rotation is a matter of seconds, and of more of them on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn an_offline_root_is_exchanged_without_a_failed_request() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let vault = Vault::new(folder.path()).unwrap();
    let (old, new) = (vault.init("root").unwrap(), vault.init("new-root").unwrap());
    let mut east = Cluster::new(folder.path(), "east", "").unwrap();
    vault.certify(&east, "root", "").unwrap();
    east.start_ca().unwrap();
    east.start_agent().unwrap();
    let (origin, database) = (HttpOrigin::start("reviews").unwrap(), EchoServer::start().unwrap());
    east.start_proxies(origin.port(), database.port()).unwrap();
    let url = format!("http://reviews.shop:{}/", origin.port());
    let many = Load::start(&east.outbound(), &url, 2, 10).unwrap();
    let one = Load::start(&east.outbound(), &url, 1, u32::MAX).unwrap();
    let mut tunnel = Tunnel::open(&east.outbound(), &format!("reviews.shop:{}", database.port())).unwrap();
    tunnel.echo().unwrap();
    assert_eq!(is_verified(&east), [old.clone()].into());

    // What a CA with a root that is kept elsewhere cannot do, it says.
    let refused = east.machine().refused(&format!("root rotate --yes --ca {}", east.socket().display())).unwrap();
    assert!(refused.contains("--new-root"), "{refused}");

    vault.machine().carry("new-root/root-cert.pem", east.machine()).unwrap();
    let begun = east.alcazar("root rotate --new-root root-cert.pem --yes").unwrap();
    assert!(begun.contains(&old) && begun.contains(&new), "{begun}");
    let asked = until("the rotation asks for the operator", PATIENCE, || {
        let said = east.alcazar("root rotation").unwrap();
        (said.contains("operator") && said.contains("needs you")).then_some(said)
    });
    let asked = asked.unwrap_or_else(|error| panic!("{error}: {}", east.log()));
    assert!(asked.contains("distribute"), "{asked}");
    assert_eq!(is_verified(&east), [old.clone(), new.clone()].into());

    // A person takes his time, while the CA looks at its files again and again: what he has begun stays.
    let before = sequence(&east);
    east.process("ca").unwrap().kill().unwrap();
    east.start_ca().unwrap();
    until("the rotation asks for the operator again", PATIENCE, || {
        east.alcazar("root rotation").unwrap().contains("needs you").then_some(())
    })
    .unwrap();
    assert_eq!(sequence(&east), before, "nothing changed by itself");

    vault.certify(&east, "new-root", "").unwrap();
    // It ends by itself; each step is verified.
    let mut phases = BTreeSet::new();
    let done = until("the end of the rotation", PATIENCE, || {
        let said = east.alcazar("root rotation").unwrap();
        let phase = said.lines().find_map(|line| line.trim().strip_prefix("phase")).unwrap_or_default();
        phases.insert(phase.split(',').next().unwrap_or_default().trim().to_owned());
        is_verified(&east);
        said.contains("done: the old one is gone").then_some(())
    });
    done.unwrap_or_else(|error| panic!("{error}, through {phases:?}: {}", east.log()));
    east.alcazar("root rotation --watch").unwrap();
    assert_eq!(is_verified(&east), [new.clone()].into());
    let hierarchy = east.alcazar("ca hierarchy").unwrap();
    assert!(hierarchy.contains(&new) && !hierarchy.contains(&old), "{hierarchy}");

    // What was open from before goes on, and nobody has noticed anything.
    tunnel.echo().unwrap();
    let so_far = (many.answered(), one.answered());
    until("more answers", PATIENCE, || {
        (many.answered() > so_far.0 + 20 && one.answered() > so_far.1 + 20).then_some(())
    })
    .unwrap();
    for load in [many, one] {
        let answered = load.finish().unwrap_or_else(|error| panic!("{error}: {}", east.log()));
        assert!(answered > 100, "{answered}");
    }
    // After a start, too.
    east.process("ca").unwrap().terminate().unwrap();
    east.start_ca().unwrap();
    assert_eq!(is_verified(&east), [new].into());
}

/// Which roots the CA's bundle has; what the proxy shows is verified by it, by OpenSSL.
fn is_verified(cluster: &Cluster) -> BTreeSet<String> {
    let verified = until("what the proxy shows is verified", PATIENCE, || {
        let bundle = cluster.bundle().unwrap();
        let file = cluster.machine().file("bundle.pem");
        fs::write(&file, &bundle).unwrap();
        let arguments = ["-alpn", "alcazar/h2", "-CAfile", file.to_str().unwrap(), "-verify_return_error"];
        let said = openssl_s_client(&cluster.inbound(), &arguments).unwrap();
        // Between the two looks it may have gone on.
        let same = cluster.bundle().unwrap() == bundle;
        assert!(!same || said.contains("Verify return code: 0 (ok)"), "{said}\n{bundle}\n{}", cluster.log());
        same.then_some(bundle)
    });
    cluster.prints(&verified.unwrap()).unwrap()
}

fn sequence(cluster: &Cluster) -> String {
    let shown: serde_json::Value = serde_json::from_str(&cluster.alcazar("bundle show").unwrap()).unwrap();
    shown["spiffe_sequence"].to_string()
}
