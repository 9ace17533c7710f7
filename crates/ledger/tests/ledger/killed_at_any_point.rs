//! A process that is killed at any step of an append loses none that it was told is durable.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use alcazar_ledger::{Hooks, Ledger, Options, Step, verify_files};

use crate::support::{append, describe, open, options, text};

const FOLDER: &str = "ALCAZAR_TEST_LEDGER_FOLDER";
const STEP: &str = "ALCAZAR_TEST_LEDGER_STEP";
const WRITERS: u64 = 4;

/// Not a test of its own: what the killed process runs. It ends itself by SIGKILL at a step; each acknowledged entry is a
/// line on its standard output.
#[test]
fn child_appends_until_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let when = std::env::var_os(STEP).unwrap().into_string().unwrap();
    let (step, times) = when.split_once(' ').unwrap();
    let (step, left) = (step.to_owned(), AtomicUsize::new(times.parse().unwrap()));
    let observe = move |now: Step| {
        if name(now) == step && left.fetch_sub(1, Ordering::Relaxed) == 1 {
            let me = rustix::process::getpid();
            rustix::process::kill_process(me, rustix::process::Signal::KILL).unwrap();
            // Nothing more of this process is written.
            loop {
                std::thread::park();
            }
        }
    };
    let hooks = Hooks { observe: Some(Arc::new(observe)), ..Hooks::default() };
    let options = Options { hooks, ..options() };
    let ledger = Arc::new(Ledger::open(PathBuf::from(folder), options).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..WRITERS {
            let ledger = ledger.clone();
            writers.spawn(async move {
                for n in 0.. {
                    let text = text(writer * 1_000_000 + n);
                    let index = append(&ledger, &text).await;
                    // One write call a line, so that a killed process leaves no half of one behind another.
                    std::io::stdout().lock().write_all(format!("\nack {index} {text}\n").as_bytes()).unwrap();
                }
            });
        }
        writers.join_next().await;
    });
}

fn name(step: Step) -> &'static str {
    match step {
        Step::Taken { .. } => "taken",
        Step::Written { .. } => "written",
        Step::Synced { .. } => "synced",
        Step::Acknowledged => "acknowledged",
        Step::Sealed => "sealed",
    }
}

fn run_child(folder: &Path, step: &str, times: usize) -> Vec<(u64, String)> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed_at_any_point::child_appends_until_killed", "--nocapture", "--test-threads=1"])
        .env(FOLDER, folder)
        .env(STEP, format!("{step} {times}"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let acknowledged = lines.map_while(Result::ok).filter_map(|line| {
        let (index, text) = line.strip_prefix("ack ")?.split_once(' ')?;
        Some((index.parse().ok()?, text.to_owned()))
    });
    let acknowledged = acknowledged.collect();
    assert_eq!(child.wait().unwrap().signal(), Some(9), "the child was to be killed at {step} {times}");
    acknowledged
}

#[test]
fn killed_at_any_step_it_has_all_that_was_acknowledged_and_verifies() {
    let folder = tempfile::tempdir().unwrap();
    let mut known: Vec<(u64, String)> = Vec::new();
    for round in 0..4 {
        for step in ["taken", "written", "synced", "acknowledged", "sealed"] {
            let times = if step == "sealed" { 1 + round } else { 1 + round * 5 };
            known.extend(run_child(folder.path(), step, times));

            let report = verify_files(folder.path(), describe).unwrap();
            assert_eq!(report.damages, [], "{step} {times}");
            let ledger = open(folder.path()).unwrap();
            for (index, text) in &known {
                let entry = ledger.entry(*index).unwrap();
                assert_eq!(entry, text.as_bytes(), "{step} {times}: entry {index} was acknowledged");
            }
            assert_eq!(ledger.verify().unwrap().damages, [], "{step} {times}");
        }
    }
    assert!(known.len() > 50, "only {} entries were acknowledged", known.len());
}
