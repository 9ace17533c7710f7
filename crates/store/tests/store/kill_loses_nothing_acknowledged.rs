//! A process that is killed in the middle of its writes loses none that it was told is durable.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    sync::Arc,
};

use alcazar_store::{Expected, Key, Prefix, SledStore, Store};
use tokio::task::JoinSet;

const FOLDER: &str = "ALCAZAR_TEST_STORE_FOLDER";
const WRITERS: u64 = 8;
const ROUNDS: usize = 12;

/// Not a test of its own: what the killed process runs. Each acknowledged write is a line on its standard output.
#[test]
fn child_writes_until_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let store: Arc<dyn Store> = Arc::new(SledStore::open(std::path::PathBuf::from(folder)).unwrap());
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            let store = store.clone();
            writers.spawn(async move {
                // One key is written over and over, others come and stay.
                let counter: Key = format!("counter/{writer}").parse().unwrap();
                for n in 0u64.. {
                    let expected = store
                        .get(&counter)
                        .await
                        .unwrap()
                        .map_or(Expected::Absent, |entry| Expected::At(entry.revision()));
                    let revision = store.put_if(&counter, expected, n.to_be_bytes().to_vec()).await.unwrap();
                    tell(&format!("ack {counter} {} {n}", revision.get()));
                    let fresh: Key = format!("log/{writer}/{}", revision.get()).parse().unwrap();
                    let revision = store.put_if(&fresh, Expected::Absent, vec![3; 300]).await.unwrap();
                    tell(&format!("ack {fresh} {} 0", revision.get()));
                }
            });
        }
        writers.join_next().await;
    });
}

/// One write call a line, so that a killed process leaves no half of one behind another.
fn tell(line: &str) {
    std::io::stdout().lock().write_all(format!("\n{line}\n").as_bytes()).unwrap();
}

#[test]
fn killed_in_the_middle_of_writes_it_loses_nothing_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let mut acknowledged: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "kill_loses_nothing_acknowledged::child_writes_until_killed",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut acks = 0;
        // Each round is killed after another number of writes; then what was already said is read to its end.
        while let Some(Ok(line)) = lines.next() {
            let words: Vec<_> = line.split(' ').collect();
            let ["ack", key, revision, n] = words[..] else { continue };
            let known = acknowledged.entry(key.to_owned()).or_default();
            *known = (revision.parse().unwrap(), n.parse().unwrap()).max(*known);
            acks += 1;
            if acks == 20 + round * 37 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(acks >= 20 + round * 37, "the child ended by itself after {acks} writes");

        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let store = SledStore::open(folder.path()).unwrap();
            let found: BTreeMap<_, _> = store
                .list(&Prefix::all())
                .await
                .unwrap()
                .entries
                .into_iter()
                .map(|e| (e.key().to_string(), e.revision().get()))
                .collect();
            for (key, (revision, _)) in &acknowledged {
                let kept = found.get(key).copied();
                assert!(
                    kept >= Some(*revision),
                    "round {round}: {key} was acknowledged at {revision} and is at {kept:?}"
                );
            }
        });
    }
}
