//! Bringing the signed set to the CA.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use alcazar_service::files::{private_directory, write_atomic};

use super::CeremonyError;
use crate::{
    cacerts::{CacertsFiles, GENERATION, check},
    config::Config,
    csr::KeyHash,
    hierarchy::{Folder, INSTALLED},
    keys::read_passphrase,
};

/// Checks a set for this CA and puts it where the CA finds it; a running one takes it over within seconds. Blocks.
///
/// # Errors
/// When the set does not fit, with which file, what, and how to mend it; nothing is changed then.
pub fn install(config: &Config, from: &Path, now: SystemTime) -> Result<PathBuf, CeremonyError> {
    if let Some(dir) = config.cacerts.as_ref().and_then(|cacerts| cacerts.dir.clone()) {
        return Err(CeremonyError::Elsewhere(dir));
    }
    let refused = |source| CeremonyError::Set { folder: from.into(), source: Box::new(source) };
    let files = CacertsFiles::read(from).map_err(refused)?;
    let own = Folder::new(config.data_dir.join("hierarchy"));
    let requests = own.requests()?;
    let held: Vec<_> = requests.iter().map(|(_, hash)| *hash).collect();
    let passphrase = config.keys.passphrase_file.as_deref().map(read_passphrase).transpose()?;
    let passphrase = passphrase.as_ref().map(|bytes| bytes.as_slice());
    let found = check(&files, &held, passphrase, &config.trust_domain, now).map_err(refused)?;
    if let (None, Some(certificate)) = (&found.key, found.chain.first()) {
        let hash = KeyHash::of_certificate(certificate);
        if let Some((label, _)) = requests.iter().find(|(_, held)| Some(*held) == hash) {
            // The request alone does not sign.
            config.key_store().open(label)?;
            own.answer(label)?;
        }
    }

    // A whole new folder, and the link to it turned at once, as Kubernetes does it: nobody reads half of each.
    let folder = config.data_dir.join(INSTALLED);
    private_directory(&config.data_dir).map_err(CeremonyError::io("create", &config.data_dir))?;
    private_directory(&folder).map_err(CeremonyError::io("create", &folder))?;
    let name = format!("..{}", crate::records::seconds::of(now));
    let fresh = (0..).map(|number| folder.join(format!("{name}-{number}"))).find(|path| !path.exists());
    let fresh = fresh.unwrap_or_else(|| folder.join(&name));
    let (data, target) = (folder.join(GENERATION), fresh.file_name().unwrap_or_default());
    let old = fs::read_link(&data).ok();
    if let Err(error) = turn_to(&files, &fresh, &folder) {
        // Nothing but what was there before; no private key lies about.
        match fs::remove_dir_all(&fresh) {
            Err(left) if left.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(folder = %fresh.display(), reason = %left, "what was not installed could not be removed; remove it by hand");
            }
            _ => {}
        }
        return Err(error);
    }
    if let Some(old) = old.filter(|old| old.as_os_str() != target) {
        let old = folder.join(old);
        fs::remove_dir_all(&old).map_err(CeremonyError::io("remove", &old))?;
    }
    Ok(folder)
}

/// Writes a generation, and turns the link to it once it is whole.
fn turn_to(files: &CacertsFiles, fresh: &Path, folder: &Path) -> Result<(), CeremonyError> {
    private_directory(fresh).map_err(CeremonyError::io("create", fresh))?;
    for (name, bytes) in files.iter() {
        let path = fresh.join(name);
        write_atomic(&path, bytes, 0o600).map_err(CeremonyError::io("write", &path))?;
    }
    let (data, turning) = (folder.join(GENERATION), folder.join(format!("{GENERATION}.new")));
    match fs::remove_file(&turning) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(CeremonyError::io("remove", &turning)(error));
        }
        _ => {}
    }
    let target = fresh.file_name().unwrap_or_default();
    std::os::unix::fs::symlink(target, &turning).map_err(CeremonyError::io("link", &turning))?;
    fs::rename(&turning, &data).map_err(CeremonyError::io("link", &data))?;
    fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(CeremonyError::io("sync", folder))
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::{
        Ca, FileKeys, KeyAlgorithm,
        ceremony::{RootFolder, RootKey, request},
    };

    fn at_noon() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    /// A set for this CA, signed by a root of its own.
    fn set(config: &Config, folder: &Path) -> PathBuf {
        let (home, out) = (folder.join("root"), folder.join("set"));
        let keys = Arc::new(FileKeys::sealed(&home, b"a long passphrase".to_vec().into()));
        let key = RootKey { keys, label: "root".parse().unwrap() };
        let day = Duration::from_secs(24 * 3600);
        let root =
            RootFolder::init(&home, &config.trust_domain, &key, KeyAlgorithm::P256, 3650 * day, at_noon()).unwrap();
        let asked = request(config, &config.key_store()).unwrap();
        root.sign(&root.propose(&asked.file, 365 * day, None, at_noon()).unwrap(), &out).unwrap();
        out
    }

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[tokio::test]
    async fn an_installation_that_fails_leaves_nothing_and_the_next_one_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::new(folder.path().join("ca"));
        let set = set(&config, folder.path());
        let installed = config.data_dir.join(INSTALLED);
        // The link cannot be turned: something is in its way.
        fs::create_dir_all(installed.join("..data.new/in the way")).unwrap();
        let error = install(&config, &set, at_noon()).unwrap_err();
        assert!(error.to_string().contains("..data.new"), "{error}");
        assert_eq!(names(&installed), ["..data.new"], "no key is left behind");
        fs::remove_dir_all(installed.join("..data.new")).unwrap();
        install(&config, &set, at_noon()).unwrap();
        assert!(installed.join(GENERATION).join("ca-cert.pem").exists());
        Ca::open(config, Arc::new(at_noon)).await.unwrap().close().await;
    }

    #[tokio::test]
    async fn an_installation_that_was_killed_is_none_and_a_set_that_is_lost_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::new(folder.path().join("ca"));
        let generation = config.data_dir.join(INSTALLED).join("..1800000000-0");
        fs::create_dir_all(&generation).unwrap();
        fs::write(generation.join("ca-cert.pem"), "half of i").unwrap();
        Ca::open(config.clone(), Arc::new(at_noon)).await.unwrap().close().await;
        // A set that was installed and is not there is another matter than none.
        std::os::unix::fs::symlink("..gone", config.data_dir.join(INSTALLED).join(GENERATION)).unwrap();
        let error = Ca::open(config, Arc::new(at_noon)).await.err().expect("it does not start");
        let reason = alcazar_service::process::chain(&error);
        assert!(reason.contains("cacerts"), "{reason}");
    }
}
