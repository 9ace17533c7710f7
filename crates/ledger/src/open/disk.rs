//! The files of segments: their headers, checked; making them.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use crate::{
    error::{Damage, ReadError},
    format::{HEADER, SegmentHeader, TREE_HEADER, TreeHeader},
    ledger::LogId,
    segment::{Growing, Layout, entries_file, tree_file},
    state::State,
};

/// The header of a file of entries.
pub(crate) fn header(file: &File, path: &Path) -> Result<SegmentHeader, ReadError> {
    let decoded = front::<HEADER>(file, path)?.and_then(|bytes| SegmentHeader::decode(&bytes));
    decoded.ok_or_else(|| Damage::new(path, 0, "its header is none that this version of the program writes").into())
}

/// Whether a file of entries is the one that comes next.
pub(crate) fn expect(path: &Path, state: &State, header: &SegmentHeader) -> Result<(), ReadError> {
    let wrong = |what: String| Err(Damage::new(path, 0, what).into());
    if header.log != state.log {
        return wrong(format!("it is of the ledger {}, not of {}", header.log, state.log));
    }
    if (header.height, header.first) != (state.height, state.size()) {
        return wrong(format!("it begins with entry {}, not with {}", header.first, state.size()));
    }
    let root = state.root();
    if header.before != root {
        return wrong(format!(
            "it follows a ledger with the root {}, and the entries before it have {root}",
            header.before
        ));
    }
    Ok(())
}

/// Whether the tree of the segment that begins with `first` was written by an earlier version.
pub(crate) fn is_outdated(dir: &Path, first: u64) -> Result<bool, ReadError> {
    let path = tree_file(dir, first);
    let file = File::open(&path).map_err(ReadError::io(&path))?;
    Ok(front::<8>(&file, &path)?.is_some_and(|bytes| TreeHeader::is_outdated(&bytes)))
}

/// The header of the tree of the next segment, whose file of entries is as long as it says.
pub(crate) fn tree_header(dir: &Path, entries: &File, state: &State) -> Result<TreeHeader, ReadError> {
    let (path, beside) = (tree_file(dir, state.size()), entries_file(dir, state.size()));
    let file = File::open(&path).map_err(ReadError::io(&path))?;
    let decoded = front::<TREE_HEADER>(&file, &path)?.and_then(|bytes| TreeHeader::decode(&bytes));
    let Some(header) = decoded.filter(|header| (header.log, header.height) == (state.log, state.height)) else {
        return Err(Damage::new(path, 0, "its header is none that this version of the program writes").into());
    };
    if header.first != state.size() {
        return Err(
            Damage::new(path, 0, format!("it is of the segment {}, not of {}", header.first, state.size())).into()
        );
    }
    let length = file.metadata().map_err(ReadError::io(&path))?.len();
    let size = Layout::new(state.height).size();
    if length != size {
        return Err(Damage::new(path, length.min(size), format!("it has {length} bytes and should have {size}")).into());
    }
    let length = entries.metadata().map_err(ReadError::io(&beside))?.len();
    if length != header.bytes {
        let what = format!("it has {length} bytes and should have {}", header.bytes);
        return Err(Damage::new(beside, length.min(header.bytes), what).into());
    }
    Ok(header)
}

/// Begins the file of the next segment.
pub(crate) fn create_segment(dir: &Path, state: &State) -> io::Result<File> {
    let header =
        SegmentHeader { log: state.log, height: state.height, first: state.size(), before: state.root() }.encode();
    write_whole(dir, &entries_file(dir, state.size()), &header)
}

/// Writes the tree of a segment that is full.
pub(crate) fn seal(dir: &Path, full: &Growing, log: LogId, height: u32) -> io::Result<TreeHeader> {
    let tree = full.tree(log, height);
    let (header, bytes) = tree.ok_or_else(|| io::Error::other("a segment that is not full was to be sealed"))?;
    write_whole(dir, &tree_file(dir, full.first), &bytes)?;
    Ok(header)
}

/// Writes the bytes of a file from `from` to its end again, as they are read, and syncs it.
///
/// After a failed sync the kernel keeps what the disk never took, as if it were there, and says at the next sync that all is well. So
/// what is read proves nothing of the disk; what is written again and synced does, and a disk that is still broken says so.
pub(crate) fn write_again(file: &File, from: u64) -> io::Result<()> {
    let mut buffer = vec![0; AGAIN];
    let mut at = from;
    loop {
        let read = match file.read_at(&mut buffer, at) {
            Ok(0) => return file.sync_all(),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        file.write_all_at(buffer.get(..read).unwrap_or_default(), at)?;
        at += read as u64;
    }
}

const AGAIN: usize = 256 << 10;

/// A file that is whole or not there.
pub(super) fn write_whole(dir: &Path, path: &Path, bytes: &[u8]) -> io::Result<File> {
    let unfinished = path.with_added_extension("new");
    let written = || {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&unfinished)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&unfinished, path)?;
        sync_folder(dir)?;
        Ok(file)
    };
    written().inspect_err(|_| match fs::remove_file(&unfinished) {
        Ok(()) => {}
        // The next start removes it.
        Err(error) => tracing::debug!(%error, file = %unfinished.display(), "an unfinished file stays"),
    })
}

pub(crate) fn sync_folder(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// The first bytes of a file; `None` where it is shorter.
fn front<const N: usize>(mut file: &File, path: &Path) -> Result<Option<[u8; N]>, ReadError> {
    let mut bytes = [0; N];
    let read = file.seek(SeekFrom::Start(0)).and_then(|_| file.read_exact(&mut bytes));
    match read {
        Ok(()) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
        Err(source) => Err(ReadError::Io { path: path.to_owned(), source }),
    }
}
