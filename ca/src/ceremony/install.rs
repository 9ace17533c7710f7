//! Bringing the signed set to the CA.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use alcazar_service::files::{private_directory, write_atomic};

use super::CeremonyError;
use crate::{
    cacerts::{CacertsFiles, check},
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
    private_directory(&fresh).map_err(CeremonyError::io("create", &fresh))?;
    for (name, bytes) in files.iter() {
        let path = fresh.join(name);
        write_atomic(&path, bytes, 0o600).map_err(CeremonyError::io("write", &path))?;
    }
    let (data, turning) = (folder.join("..data"), folder.join("..data.new"));
    let old = fs::read_link(&data).ok();
    match fs::remove_file(&turning) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(CeremonyError::io("remove", &turning)(error));
        }
        _ => {}
    }
    let target = fresh.file_name().unwrap_or_default();
    std::os::unix::fs::symlink(target, &turning).map_err(CeremonyError::io("link", &turning))?;
    fs::rename(&turning, &data).map_err(CeremonyError::io("link", &data))?;
    fs::File::open(&folder).and_then(|folder| folder.sync_all()).map_err(CeremonyError::io("sync", &folder))?;
    if let Some(old) = old.filter(|old| old.as_os_str() != target) {
        let old = folder.join(old);
        fs::remove_dir_all(&old).map_err(CeremonyError::io("remove", &old))?;
    }
    Ok(folder)
}
