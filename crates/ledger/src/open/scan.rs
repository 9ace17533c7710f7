//! Reading the entries of a segment from its file, one after another.

use std::{
    fs::File,
    io::{BufReader, Seek, SeekFrom},
    path::Path,
};

use crate::{
    error::{Damage, ReadError},
    facts::Describe,
    format::{Frames, HEADER, Stop},
    state::State,
};

/// How far the entries of a file are whole.
pub(crate) struct Scan {
    /// Where the last whole one ends.
    pub(crate) offset: u64,
    /// Why what follows is none; `None` where nothing was read any further, or nothing follows.
    pub(crate) trouble: Option<&'static str>,
}

/// Takes entries into `state` until its open segment is full, the log has `limit` of them, or no whole one follows. `seen`
/// is called after each.
pub(crate) fn scan(
    mut file: &File,
    path: &Path,
    state: &mut State,
    describe: Describe,
    limit: u64,
    seen: &mut dyn FnMut(&State),
) -> Result<Scan, ReadError> {
    file.seek(SeekFrom::Start(HEADER as u64)).map_err(ReadError::io(path))?;
    let mut frames = Frames::new(BufReader::with_capacity(BUFFER, file), HEADER as u64);
    while state.room() > 0 && state.size() < limit {
        match frames.next() {
            Ok(Some(frame)) => {
                let Some(facts) = describe(frame.entry) else {
                    let what =
                        format!("entry {} is whole, but this version of the program cannot read it", state.size());
                    return Err(Damage::new(path, frame.offset, what).into());
                };
                state.push(frame.leaf, frame.entry.len(), &facts);
                seen(state);
            }
            Ok(None) => break,
            Err(Stop::NoFrame { what }) => return Ok(Scan { offset: frames.offset(), trouble: Some(what) }),
            Err(Stop::Io(source)) => return Err(ReadError::Io { path: path.to_owned(), source }),
        }
    }
    Ok(Scan { offset: frames.offset(), trouble: None })
}

const BUFFER: usize = 256 << 10;
