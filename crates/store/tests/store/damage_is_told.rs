//! A store whose files were altered, cut, mixed or lost says so, and never opens as something else.

use std::{
    fs,
    path::{Path, PathBuf},
};

use alcazar_store::{Entry, Expected, Key, Prefix, SledStore, Store, StoreError};

/// A closed store with some history; gives its contents.
async fn filled(folder: &Path) -> Vec<Entry> {
    let store = SledStore::open(folder).unwrap();
    for n in 0..200u32 {
        let key: Key = format!("family/{:03}", n % 120).parse().unwrap();
        let expected = store.get(&key).await.unwrap().map_or(Expected::Absent, |entry| Expected::At(entry.revision()));
        store.put_if(&key, expected, vec![n as u8; 100]).await.unwrap();
    }
    let entries = store.list(&Prefix::all()).await.unwrap().entries;
    store.close().await;
    entries
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        let target = to.join(file.file_name());
        if file.file_type().unwrap().is_dir() {
            copy(&file.path(), &target);
        } else {
            fs::copy(file.path(), target).unwrap();
        }
    }
}

fn damage(folder: &Path) -> alcazar_store::Damage {
    match SledStore::open(folder) {
        Err(StoreError::Damaged(damage)) => damage,
        other => panic!("expected damage, found {other:?}"),
    }
}

fn snapshot_of(folder: &Path) -> Option<PathBuf> {
    fs::read_dir(folder)
        .unwrap()
        .map(|f| f.unwrap().path())
        .find(|p| p.file_name().unwrap().to_str().unwrap().starts_with("snap."))
}

/// Wherever one byte changes, opening either is refused in words, or gives exactly what was stored.
#[tokio::test]
async fn one_altered_byte_is_refused_or_harmless() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, trial) = (folder.path().join("whole"), folder.path().join("trial"));
    let contents = filled(&whole).await;
    let mut files = vec![whole.join("db"), whole.join("acknowledged"), whole.join("conf")];
    files.extend(snapshot_of(&whole));
    let (mut refused, mut harmless) = (0, 0);
    for file in files {
        let bytes = fs::read(&file).unwrap();
        // What sled wrote, rather than the empty rest of its segments.
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        let step = (used / 40).max(1);
        for at in (0..used).step_by(step) {
            fs::remove_dir_all(&trial).ok();
            copy(&whole, &trial);
            let mut altered = bytes.clone();
            altered[at] ^= 0x55;
            fs::write(trial.join(file.file_name().unwrap()), altered).unwrap();
            match SledStore::open(&trial) {
                Err(StoreError::Damaged(damage)) => {
                    assert!(damage.to_string().contains("to recover"), "{damage}");
                    refused += 1;
                }
                Err(other) => panic!("{} at {at}: {other:?}", file.display()),
                Ok(store) => {
                    let found = store.list(&Prefix::all()).await.unwrap().entries;
                    assert_eq!(found, contents, "{} at {at}", file.display());
                    harmless += 1;
                }
            }
        }
    }
    assert!(refused > 20, "{refused} refused, {harmless} harmless");
}

#[tokio::test]
async fn a_cut_or_emptied_log_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    filled(&whole).await;
    let length = fs::metadata(whole.join("db")).unwrap().len();
    let bytes = fs::read(whole.join("db")).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64;
    for keep in [0, 1, 1000, used / 2, used - 400, length / 3] {
        let trial = folder.path().join(format!("cut-{keep}"));
        copy(&whole, &trial);
        fs::OpenOptions::new().write(true).open(trial.join("db")).unwrap().set_len(keep).unwrap();
        damage(&trial);
    }
}

#[tokio::test]
async fn missing_files_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    filled(&whole).await;
    for name in ["db", "acknowledged"] {
        let trial = folder.path().join(name);
        copy(&whole, &trial);
        fs::remove_file(trial.join(name)).unwrap();
        assert_eq!(damage(&trial).file(), trial.join(name));
    }
}

/// The tail that sled drops by itself is noticed by the mark, as is a restored old copy of the database.
#[tokio::test]
async fn an_older_database_beside_a_newer_mark_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (folder.path().join("old"), folder.path().join("new"));
    filled(&old).await;
    copy(&old, &new);
    let store = SledStore::open(&new).unwrap();
    store.put_if(&"one/more".parse().unwrap(), Expected::Absent, vec![]).await.unwrap();
    store.close().await;
    fs::copy(new.join("acknowledged"), old.join("acknowledged")).unwrap();
    let damage = damage(&old);
    assert!(damage.what().contains("revision 201 was acknowledged"), "{damage}");
}

/// What a start that was killed has left: never acknowledged, and so never damage.
#[tokio::test]
async fn a_first_start_that_was_cut_short_anywhere_begins_again() {
    let new = tempfile::tempdir().unwrap();
    SledStore::open(new.path()).unwrap().close().await;
    for (db, conf, mark) in
        [(0, 0, None), (0, 4, None), (1000, 20, None), (usize::MAX, usize::MAX, Some("acknowledged.new"))]
    {
        let folder = tempfile::tempdir().unwrap();
        for (name, length) in [("db", db), ("conf", conf)] {
            let bytes = fs::read(new.path().join(name)).unwrap();
            fs::write(folder.path().join(name), &bytes[..length.min(bytes.len())]).unwrap();
        }
        if let Some(mark) = mark {
            fs::write(folder.path().join(mark), [0; 100]).unwrap();
        }
        fs::write(folder.path().join("making"), "").unwrap();
        for _ in 0..2 {
            let store = SledStore::open(folder.path()).unwrap();
            let key: Key = "family/key".parse().unwrap();
            let found = store.get(&key).await.unwrap().map_or(Expected::Absent, |entry| Expected::At(entry.revision()));
            store.put_if(&key, found, b"value".to_vec()).await.unwrap();
            store.close().await;
        }
        assert!(!folder.path().join("making").exists());
    }
}
