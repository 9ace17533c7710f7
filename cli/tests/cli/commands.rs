//! The commands that need no mesh, as a person or a script runs them.

use assert_cmd::Command;

fn alcazar(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::cargo_bin("alcazar").unwrap().args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn explain(arguments: &[&str]) -> (Option<i32>, String, String) {
    let shop = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/samples/shop");
    let policies = format!("{shop}/policies");
    let mut all = vec!["policy", "explain", "--policy", &policies];
    all.extend(arguments);
    alcazar(&all)
}

#[test]
fn the_sample_is_explained_with_and_without_its_mesh() {
    let mesh = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/samples/shop/mesh.yaml");
    let charge = ["--method", "POST", "--path", "/charge", "--header", "x-confirmed=yes"];
    for (from, to, request, status, says) in [
        ("shop/frontend", "reviews.shop", &["--method", "GET", "--path", "/ratings"][..], 0, "shop/ratings-reader"),
        ("reports/nightly", "reviews.shop", &["--method", "GET", "--path", "/ratings"], 1, "source.namespace"),
        ("reports/nightly", "reviews.shop", &["--method", "GET", "--path", "/ratings/summary"], 0, "ratings-totals"),
        ("shop/frontend", "payments.shop", &charge, 0, "shop/charger"),
        ("shop/frontend", "payments.shop", &charge[..4], 1, "x-confirmed"),
        ("shop/catalog", "payments.shop", &charge, 1, "cluster.local/ns/shop/sa/catalog"),
        ("any/body", "frontend.shop", &["--method", "GET", "--path", "/"], 0, "shop/window"),
    ] {
        let call = [&["--from", from, "--to", to], request].concat();
        let without = explain(&call);
        let with = explain(&[&["--mesh", mesh], &call[..]].concat());
        assert_eq!(with, without, "{call:?}");
        assert_eq!(with.0, Some(status), "{call:?}: {with:?}");
        assert!(with.1.contains(says), "{call:?}: {}", with.1);
    }
}

#[test]
fn questions_that_make_no_sense_are_errors() {
    let mesh = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/samples/shop/mesh.yaml");
    let get = ["--method", "GET", "--path", "/"];
    for (question, says) in [
        (vec!["--from", "frontend", "--to", "reviews.shop"], "NAMESPACE/ACCOUNT"),
        (vec!["--from", "shop/frontend", "--to", "reviews"], "SERVICE.NAMESPACE"),
        (vec!["--from", "shop/frontend", "--to", "reviews.shop", "--mesh", mesh], "speaks HTTP"),
        ([&["--from", "shop/a", "--to", "nobody.shop", "--mesh", mesh], &get[..]].concat(), "frontend.shop"),
        (
            [&["--from", "shop/a", "--to", "reviews.shop", "--mesh", mesh, "--port", "81"], &get[..]].concat(),
            "it has 80",
        ),
        ([&["--from", "shop/a", "--to", "reviews.shop", "--header", "x"], &get[..]].concat(), "NAME=VALUE"),
        ([&["--from", "shop/a", "--to", "reviews.shop", "--mesh", "nowhere.yaml"], &get[..]].concat(), "nowhere.yaml"),
    ] {
        let (status, _, said) = explain(&question);
        assert_eq!(status, Some(2), "{question:?}: {said}");
        assert!(said.contains(says), "{question:?}: {said}");
    }
}

#[test]
fn version_and_completions_are_printed() {
    let (status, said, _) = alcazar(&["version"]);
    assert_eq!((status, said), (Some(0), format!("alcazar {}\n", env!("CARGO_PKG_VERSION"))));
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (status, said, _) = alcazar(&["completions", shell]);
        assert!(status == Some(0) && said.contains("explain"), "{shell}");
    }
}

#[test]
fn status_without_a_mesh_says_how_to_start_one() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().to_string_lossy().into_owned();
    let (status, said, error) = alcazar(&["status", "--data-dir", &directory]);
    assert_eq!((status, said.as_str()), (Some(1), ""));
    assert!(error.contains("no mesh runs") && error.contains("alcazar up"), "{error}");
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0, "asking leaves no trace");
}
