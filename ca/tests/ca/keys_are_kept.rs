//! Keys at rest: private, durable, never overwritten, and in a form that OpenSSL opens.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use alcazar_ca::{FileKeys, KeyAlgorithm, KeyError, KeyLabel, KeyStore};
use alcazar_service::process::chain;

fn label(text: &str) -> KeyLabel {
    text.parse().unwrap()
}

fn openssl(folder: &Path, arguments: &[&str]) -> Output {
    Command::new("openssl").current_dir(folder).args(arguments).output().unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// A file that holds a passphrase, as `systemd-creds` or an editor leaves it.
fn passphrase(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    path
}

/// What it signs is verified by OpenSSL with the public key that OpenSSL reads from the file.
fn openssl_agrees(folder: &Path, file: &str, open: &[&str], digest: &str, signature: &[u8]) {
    fs::write(folder.join("signature"), signature).unwrap();
    fs::write(folder.join("message"), "message").unwrap();
    let public = openssl(folder, &[&["pkey", "-in", file, "-pubout", "-out", "public"], open].concat());
    assert!(public.status.success(), "{}", String::from_utf8_lossy(&public.stderr));
    let verified = openssl(folder, &["dgst", digest, "-verify", "public", "-signature", "signature", "message"]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
}

#[test]
fn a_key_is_found_again_and_signs_as_openssl_expects() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let sealed = FileKeys::new(path, Some(passphrase(path, "passphrase", "correct horse\n")));
    let plain = FileKeys::new(path, None);
    let secret = ["-passin", "pass:correct horse"];
    let cases: [(&FileKeys, &str, KeyAlgorithm, &str, &[&str]); 3] = [
        (&plain, "plain", KeyAlgorithm::P256, "-sha256", &[]),
        (&sealed, "sealed", KeyAlgorithm::P256, "-sha256", &secret),
        (&sealed, "larger", KeyAlgorithm::P384, "-sha384", &secret),
    ];
    for (keys, name, algorithm, digest, open) in cases {
        let made = keys.generate_with(&label(name), algorithm).unwrap();
        let found = keys.open(&label(name)).unwrap();
        assert_eq!(made.public_key(), found.public_key());
        assert!(!found.is_remote());
        let file = keys.path(&label(name));
        assert_eq!(mode(&file), 0o600);
        let encrypted = fs::read_to_string(&file).unwrap().starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----");
        assert_eq!(encrypted, !open.is_empty());
        let signature = found.sign(b"message").unwrap();
        openssl_agrees(path, file.file_name().unwrap().to_str().unwrap(), open, digest, &signature);
    }
    assert_eq!(plain.labels().unwrap(), [label("larger"), label("plain"), label("sealed")]);
    plain.remove(&label("plain")).unwrap();
    plain.remove(&label("plain")).unwrap();
    assert_eq!(plain.labels().unwrap(), [label("larger"), label("sealed")]);
}

#[test]
fn a_key_is_never_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let keys = FileKeys::new(folder.path().join("keys"), None);
    assert!(keys.labels().unwrap().is_empty());
    let first = keys.generate(&label("root")).unwrap();
    assert!(matches!(keys.generate(&label("root")), Err(KeyError::Exists { .. })));
    assert_eq!(keys.open(&label("root")).unwrap().public_key(), first.public_key());
}

#[test]
fn a_key_that_lay_open_is_encrypted_once_there_is_a_passphrase() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let plain = FileKeys::new(path, None);
    let made = plain.generate(&label("root")).unwrap();
    let sealed = FileKeys::new(path, Some(passphrase(path, "passphrase", "s3cret")));
    assert_eq!(sealed.open(&label("root")).unwrap().public_key(), made.public_key());
    let text = fs::read_to_string(plain.path(&label("root"))).unwrap();
    assert!(text.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"));
    assert_eq!(sealed.open(&label("root")).unwrap().public_key(), made.public_key());
    assert!(matches!(plain.open(&label("root")), Err(KeyError::Locked { .. })));
}

#[test]
fn each_failure_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let sealed = FileKeys::new(path, Some(passphrase(path, "right", "right\r\n")));
    sealed.generate(&label("root")).unwrap();
    let refused = |keys: &FileKeys, name: &str| chain(&keys.open(&label(name)).err().unwrap());

    let wrong = FileKeys::new(path, Some(passphrase(path, "wrong", "wrong")));
    assert!(refused(&wrong, "root").contains("does not open the private key"), "{}", refused(&wrong, "root"));
    assert!(refused(&FileKeys::new(path, None), "root").contains("passphraseFile"));
    assert!(refused(&sealed, "other").contains("restore it from a backup"));
    let empty = FileKeys::new(path, Some(passphrase(path, "empty", "\nright")));
    assert!(refused(&empty, "root").contains("its first line is empty"));
    let missing = FileKeys::new(path, Some(path.join("nowhere")));
    assert!(refused(&missing, "root").contains("nowhere"));
    fs::set_permissions(path.join("right"), fs::Permissions::from_mode(0o444)).unwrap();
    assert!(refused(&sealed, "root").contains("chmod o="));
    fs::set_permissions(path.join("right"), fs::Permissions::from_mode(0o440)).unwrap();

    let file = sealed.path(&label("root"));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(refused(&sealed, "root").contains("chmod 600"));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let whole = fs::read_to_string(&file).unwrap();
    let halved = &whole[..whole.len() / 2];
    let twice = format!("{whole}{whole}");
    let other = whole.replace("ENCRYPTED PRIVATE KEY", "CERTIFICATE");
    for (text, says) in
        [("", "no PEM block"), (halved, "no PEM block"), (&twice, "more than one"), (&other, "CERTIFICATE")]
    {
        fs::write(&file, text).unwrap();
        let error = refused(&sealed, "root");
        assert!(error.contains(says) && error.contains("restore"), "{error}");
    }
    fs::write(&file, whole.replacen("\nM", "\nQ", 1)).unwrap();
    assert!(refused(&sealed, "root").contains("restore"), "{}", refused(&sealed, "root"));
}

#[test]
fn keys_that_openssl_made_are_read_in_each_of_its_shapes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let keys = FileKeys::new(path, Some(passphrase(path, "passphrase", "pw")));
    let run = |arguments: &[&str]| {
        let output = openssl(path, arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    run(&["ecparam", "-name", "prime256v1", "-genkey", "-out", "sec1-key.pem"]);
    run(&["genrsa", "-traditional", "-out", "pkcs1-key.pem", "2048"]);
    run(&["genpkey", "-algorithm", "ed25519", "-out", "ed25519-key.pem"]);
    run(&["pkcs8", "-topk8", "-in", "sec1-key.pem", "-scrypt", "-passout", "pass:pw", "-out", "scrypt-key.pem"]);
    run(&[
        "pkcs8",
        "-topk8",
        "-in",
        "pkcs1-key.pem",
        "-v2",
        "aes-256-cbc",
        "-passout",
        "pass:pw",
        "-out",
        "pbkdf2-key.pem",
    ]);
    for name in ["sec1", "pkcs1", "ed25519", "scrypt", "pbkdf2"] {
        fs::set_permissions(path.join(format!("{name}-key.pem")), fs::Permissions::from_mode(0o600)).unwrap();
        let signer = keys.open(&label(name)).unwrap_or_else(|error| panic!("{name}: {}", chain(&error)));
        let signature = signer.sign(b"message").unwrap();
        if name != "ed25519" {
            openssl_agrees(path, &format!("{name}-key.pem"), &["-passin", "pass:pw"], "-sha256", &signature);
        }
    }
    run(&["ecparam", "-name", "secp521r1", "-genkey", "-noout", "-out", "odd-key.pem"]);
    fs::set_permissions(path.join("odd-key.pem"), fs::Permissions::from_mode(0o600)).unwrap();
    let error = chain(&keys.open(&label("odd")).err().unwrap());
    assert!(error.contains("of a kind that is not used here"), "{error}");
}
