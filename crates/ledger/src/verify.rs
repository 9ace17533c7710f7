//! Verifying everything: each entry is hashed again, each file of hashes and indexes is made again and compared.

use std::{
    collections::BTreeSet,
    fs::{self, File, TryLockError},
    io::{BufReader, Read},
    path::Path,
};

use crate::{
    error::{Damage, OpenError, ReadError},
    facts::Describe,
    format::{HEADER, MARK_BYTES, Mark, SLOT_BYTES},
    ledger::{Head, Ledger, LogId},
    merkle::Hash,
    open::{
        LOCK, MARK,
        disk::{expect, header, tree_header},
        scan::{Scan, scan},
        try_lock,
    },
    segment::{Layout, entries_file, tree_file},
    state::State,
};

/// What was found when everything was read.
#[derive(Clone, Debug)]
pub struct Report {
    /// The log's name.
    pub log: LogId,
    /// What it is, as far as it was read.
    pub head: Head,
    /// How many segments were read.
    pub segments: u64,
    /// How many bytes of files there are.
    pub bytes: u64,
    /// Bytes at the end that were never acknowledged and are no whole entries. The next start cuts them off.
    pub torn: u64,
    /// The root of the first entries, as many as were asked about; `None` where there are fewer, or they cannot be read.
    pub early: Option<Hash>,
    /// Everything that is not what was acknowledged; the first in each file.
    pub damages: Vec<Damage>,
}

impl Ledger {
    /// Reads everything that is durable at this moment, and says what is wrong with it. Appends go on meanwhile.
    ///
    /// Blocks on the disk, for as long as reading all of it takes.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn verify(&self) -> Result<Report, ReadError> {
        let (head, log, height) = {
            let state = self.shared.read();
            (state.head, state.log, state.height)
        };
        let mut check = Check::new(&self.shared.dir, self.shared.describe, State::new(log, height));
        check.walk(head.size)?;
        let found = check.state.publish();
        if check.damages.is_empty() && found != head {
            let what =
                format!("its {} entries have the root {}, and {} was acknowledged", found.size, found.root, head.root);
            check.damages.push(Damage::new(&self.shared.dir, 0, what));
        }
        Ok(check.report(0))
    }
}

/// Verifies the files of a log that no process has open, such as a backup.
///
/// # Errors
/// When it is in use, is no log, or the disk refuses.
pub fn verify_files(dir: impl AsRef<Path>, describe: Describe) -> Result<Report, OpenError> {
    verify_files_at(dir, describe, 0)
}

/// The same, and says what the root of the first `early` entries is.
///
/// # Errors
/// When it is in use, is no log, or the disk refuses.
pub fn verify_files_at(dir: impl AsRef<Path>, describe: Describe, early: u64) -> Result<Report, OpenError> {
    let dir = dir.as_ref();
    // A copy may have no lock, or be on a disk that is not written to.
    let lock = File::open(dir.join(LOCK)).ok();
    if let Some(Err(TryLockError::WouldBlock)) = lock.as_ref().map(try_lock) {
        return Err(OpenError::Locked { path: dir.to_owned() });
    }
    let first = entries_file(dir, 0);
    let file = File::open(&first).map_err(OpenError::io("open", &first))?;
    let begins = match header(&file, &first) {
        Ok(begins) => begins,
        Err(ReadError::Damaged(damage)) => return Err(damage.into()),
        Err(error) => return Err(error.into()),
    };
    let mut check = Check::new(dir, describe, State::new(begins.log, begins.height));
    let marks = check.marks()?;
    let acknowledged = marks.iter().map(|mark| mark.head.size).max().unwrap_or_default();
    check.marks = marks;
    check.early = (early, (early == 0).then(Hash::empty));
    let torn = check.walk(u64::MAX)?;
    check.state.publish();
    let size = check.state.size();
    if size < acknowledged && check.damages.is_empty() {
        let what = format!("the ledger ends after {size} entries, and {acknowledged} were acknowledged");
        check.damages.push(Damage::new(entries_file(dir, check.state.growing.first), check.state.growing.bytes, what));
    }
    Ok(check.report(torn))
}

/// A log that is being read.
struct Check<'a> {
    dir: &'a Path,
    describe: Describe,
    state: State,
    /// Acknowledged heads that are not met yet.
    marks: Vec<Mark>,
    /// A size, and the root that the log had then, once it is met.
    early: (u64, Option<Hash>),
    segments: u64,
    bytes: u64,
    damages: Vec<Damage>,
}

impl<'a> Check<'a> {
    fn new(dir: &'a Path, describe: Describe, state: State) -> Self {
        Self { dir, describe, state, marks: Vec::new(), early: (0, None), segments: 0, bytes: 0, damages: Vec::new() }
    }

    fn report(self, torn: u64) -> Report {
        let Self { state, early: (_, early), segments, bytes, damages, .. } = self;
        Report { log: state.log, head: state.head, segments, bytes, torn, early, damages }
    }

    /// Reads segment after segment, up to an entry; how many bytes at the end are no entries.
    fn walk(&mut self, limit: u64) -> Result<u64, ReadError> {
        let last = last_segment(self.dir)?;
        while self.state.size() <= last && self.state.size() < limit {
            let first = self.state.size();
            match self.segment(first, limit, first == last) {
                Ok(None) => {}
                Ok(Some(torn)) => return Ok(torn),
                Err(ReadError::Damaged(damage)) => {
                    self.damages.push(damage);
                    if !self.skip(first)? {
                        return Ok(0);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(0)
    }

    /// Reads one segment; `Some` where it is the last one, and how many bytes at its end are no entries.
    fn segment(&mut self, first: u64, limit: u64, last: bool) -> Result<Option<u64>, ReadError> {
        let (path, tree) = (entries_file(self.dir, first), tree_file(self.dir, first));
        let file = open(&path)?;
        expect(&path, &self.state, &header(&file, &path)?)?;
        self.segments += 1;
        let length = file.metadata().map_err(ReadError::io(&path))?.len();
        self.bytes += length;
        let mut wrong = None;
        let (marks, (early, root)) = (&mut self.marks, &mut self.early);
        let mut seen = |state: &State| {
            meet(marks, state, &mut wrong);
            if state.size() == *early {
                *root = Some(state.root());
            }
        };
        let Scan { offset, trouble } = scan(&file, &path, &mut self.state, self.describe, limit, &mut seen)?;
        if let Some(mark) = wrong {
            let what = format!(
                "the first {} entries do not have the root {} that was acknowledged",
                mark.head.size, mark.head.root
            );
            return Err(Damage::new(path, HEADER as u64, what).into());
        }
        if self.state.room() > 0 {
            let acknowledged = self.marks.iter().map(|mark| mark.head.size).max().unwrap_or_default();
            if self.state.size() >= limit {
                return Ok(Some(0));
            }
            if !last || tree.exists() || self.state.size() < acknowledged {
                let what = trouble.unwrap_or("the file ends here");
                return Err(
                    Damage::new(path, offset, format!("{what}; this should be entry {}", self.state.size())).into()
                );
            }
            return Ok(Some(length - offset));
        }
        if length > offset {
            return Err(Damage::new(path, offset, "there is something behind the last entry").into());
        }
        // Full and not sealed: a start does it.
        let Some((header, expected)) = self.state.growing.tree(self.state.log, self.state.height) else {
            return Ok(None);
        };
        if tree.exists() {
            self.bytes += expected.len() as u64;
            if let Some(damage) = compare(&tree, &expected, Layout::new(header.height))? {
                self.damages.push(damage);
            }
        } else if !last && !self.next_is_the_last(first)? {
            // That of the last full segment may not be written yet, while the next one grows.
            self.damages.push(Damage::new(tree, 0, "the file is missing"));
        }
        self.state.sealed(header);
        Ok(None)
    }

    fn next_is_the_last(&self, first: u64) -> Result<bool, ReadError> {
        Ok(last_segment(self.dir)? == first + (1 << self.state.height))
    }

    /// Goes on behind a damaged segment by what its tree says of it; whether that is possible.
    fn skip(&mut self, first: u64) -> Result<bool, ReadError> {
        let mut state = State::new(self.state.log, self.state.height);
        self.state.sealed.iter().for_each(|header| state.adopt(header.clone()));
        self.state = state;
        // What was acknowledged cannot be compared any more.
        self.marks.clear();
        let Ok(entries) = open(&entries_file(self.dir, first)) else { return Ok(false) };
        match tree_header(self.dir, &entries, &self.state) {
            Ok(header) => {
                self.state.adopt(header);
                Ok(true)
            }
            Err(ReadError::Damaged(damage)) => {
                if !self.damages.contains(&damage) && damage.file() != entries_file(self.dir, first) {
                    self.damages.push(damage);
                }
                Ok(false)
            }
            Err(ReadError::Io { .. } | ReadError::Beyond { .. }) => Ok(false),
        }
    }

    /// What the file of the mark says, which must be as it is written, to the last byte.
    fn marks(&mut self) -> Result<Vec<Mark>, ReadError> {
        let path = self.dir.join(MARK);
        let mut bytes = Vec::new();
        open(&path)?.read_to_end(&mut bytes).map_err(ReadError::io(&path))?;
        let mut marks = Vec::new();
        for slot in 0..2 {
            let at = slot * SLOT_BYTES;
            let part = usize::try_from(at).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
            let part = part.get(..SLOT_BYTES as usize).unwrap_or(part);
            match Mark::decode(part) {
                Some(mark) if mark.log == self.state.log => marks.push(mark),
                Some(mark) => self.damages.push(Damage::new(&path, at, format!("it is of the ledger {}", mark.log))),
                None => {
                    self.damages.push(Damage::new(&path, at, "this copy of the last acknowledged head cannot be read"))
                }
            }
            let padding = part.get(MARK_BYTES..).unwrap_or_default();
            if let Some(byte) = padding.iter().position(|byte| *byte != 0) {
                let at = at + (MARK_BYTES + byte) as u64;
                self.damages.push(Damage::new(&path, at, "there is something where nothing is written"));
            }
        }
        if bytes.len() as u64 != 2 * SLOT_BYTES {
            let what = format!("it has {} bytes and should have {}", bytes.len(), 2 * SLOT_BYTES);
            self.damages.push(Damage::new(&path, bytes.len() as u64, what));
        }
        let empty = Head { size: 0, root: Hash::empty() };
        marks.retain(|mark| mark.head != empty);
        Ok(marks)
    }
}

/// Compares the marks of this size with what was read.
fn meet(marks: &mut Vec<Mark>, state: &State, wrong: &mut Option<Mark>) {
    if marks.iter().all(|mark| mark.head.size != state.size()) {
        return;
    }
    let root = state.root();
    marks.retain(|mark| {
        let here = mark.head.size == state.size();
        if here && mark.head.root != root {
            *wrong = Some(mark.clone());
        }
        !here
    });
}

/// Where a file is not what it should be.
fn compare(path: &Path, expected: &[u8], layout: Layout) -> Result<Option<Damage>, ReadError> {
    let mut file = BufReader::new(open(path)?);
    let mut found = Vec::with_capacity(expected.len());
    file.read_to_end(&mut found).map_err(ReadError::io(path))?;
    if found == expected {
        return Ok(None);
    }
    let same = found.iter().zip(expected).take_while(|(found, expected)| found == expected).count();
    let what = if found.len() == expected.len() {
        format!("{} are not those of the entries", layout.part(same as u64))
    } else {
        format!("it has {} bytes and should have {}", found.len(), expected.len())
    };
    Ok(Some(Damage::new(path, same as u64, what)))
}

fn open(path: &Path) -> Result<File, ReadError> {
    match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(Damage::new(path, 0, "the file is missing").into())
        }
        outcome => outcome.map_err(ReadError::io(path)),
    }
}

/// The first entry of the last segment of which there is any file.
fn last_segment(dir: &Path) -> Result<u64, ReadError> {
    let mut firsts = BTreeSet::new();
    for file in fs::read_dir(dir).map_err(ReadError::io(dir))? {
        let path = file.map_err(ReadError::io(dir))?.path();
        let ours = path.extension().is_some_and(|end| end == "entries" || end == "tree");
        if let Some(first) = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok()).filter(|_| ours) {
            firsts.insert(first);
        }
    }
    Ok(firsts.last().copied().unwrap_or_default())
}
