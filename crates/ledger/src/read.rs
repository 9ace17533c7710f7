//! Reading entries and hashes: from memory at the open end, from the files of sealed segments before it.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::Path,
};

use crate::{
    error::{Damage, ReadError},
    format::{self, FRAME, MAX_ENTRY, TREE_HEADER, TreeHeader},
    ledger::Ledger,
    merkle::{self, Hash, Node},
    segment::{Layout, entries_file, tree_file},
    state::{Checked, Place, Shared, State},
};

/// Reading blocks on the disk: call these inside `spawn_blocking`.
impl Ledger {
    /// The bytes of an entry, as they were appended.
    ///
    /// # Errors
    /// When there is none of that number, or it is not what was acknowledged.
    pub fn entry(&self, index: u64) -> Result<Vec<u8>, ReadError> {
        let (height, size) = {
            let state = self.shared.read();
            (state.height, state.head.size)
        };
        if index >= size {
            return Err(ReadError::Beyond { what: format!("entry {index}"), size });
        }
        Segment::open(&self.shared, index >> height)?.entry(index & ((1 << height) - 1))
    }

    /// The root of the first `size` entries.
    ///
    /// # Errors
    /// When there are fewer, or a file is not what was acknowledged.
    pub fn root(&self, size: u64) -> Result<Hash, ReadError> {
        self.durable(size)?;
        merkle::root_of(size, self.nodes())
    }

    /// The proof that the entry `index` is among the first `size`.
    ///
    /// # Errors
    /// When there are fewer, or a file is not what was acknowledged: a proof that proves nothing is never given.
    pub fn inclusion(&self, index: u64, size: u64) -> Result<Vec<Hash>, ReadError> {
        self.durable(size)?;
        let beyond = || ReadError::Beyond { what: format!("entry {index} among the first {size}"), size };
        let proof = merkle::inclusion(index, size, self.nodes())?.ok_or_else(beyond)?;
        let leaf = Hash::leaf(&self.entry(index)?);
        let sound = merkle::verify_inclusion(leaf, index, size, &self.root(size)?, &proof);
        sound.map_err(|_wrong| self.unsound(index))?;
        Ok(proof)
    }

    /// The proof that the first `old` entries are the beginning of the first `new`.
    ///
    /// # Errors
    /// When there are fewer, or a file is not what was acknowledged.
    pub fn consistency(&self, old: u64, new: u64) -> Result<Vec<Hash>, ReadError> {
        self.durable(new)?;
        let beyond =
            || ReadError::Beyond { what: format!("ledger of {old} entries that became one of {new}"), size: new };
        let proof = merkle::consistency(old, new, self.nodes())?.ok_or_else(beyond)?;
        let sound = merkle::verify_consistency(old, &self.root(old)?, new, &self.root(new)?, &proof);
        sound.map_err(|_wrong| self.unsound(old))?;
        Ok(proof)
    }

    /// A proof came out that proves nothing: some hash is not what it was.
    fn unsound(&self, index: u64) -> ReadError {
        let height = self.shared.read().height;
        let path = tree_file(&self.shared.dir, (index >> height) << height);
        let what = "it, or one beside it, has hashes that are not those of the entries; verify the files to see which";
        Damage::new(path, TREE_HEADER as u64, what).into()
    }

    fn durable(&self, wanted: u64) -> Result<(), ReadError> {
        let size = self.shared.read().head.size;
        if wanted <= size { Ok(()) } else { Err(ReadError::Beyond { what: format!("ledger of {wanted}"), size }) }
    }

    fn nodes(&self) -> impl FnMut(Node) -> Result<Hash, ReadError> {
        let mut trees = Trees::new(&self.shared.dir, &self.shared.checked);
        move |node| {
            let (place, sealed) = {
                let state = self.shared.read();
                (state.place(node), state.sealed.clone())
            };
            trees.hash(place, &sealed)
        }
    }
}

/// The root of the first `size` entries of a log that is being opened.
pub(crate) fn root_at(dir: &Path, state: &State, size: u64) -> Result<Hash, ReadError> {
    let checked = Checked::default();
    let mut trees = Trees::new(dir, &checked);
    merkle::root_of(size, |node| trees.hash(state.place(node), &state.sealed))
}

/// Hashes from the files of sealed segments; the last one stays open.
struct Trees<'a> {
    dir: &'a Path,
    checked: &'a Checked,
    open: Option<(usize, File)>,
}

impl<'a> Trees<'a> {
    fn new(dir: &'a Path, checked: &'a Checked) -> Self {
        Self { dir, checked, open: None }
    }

    fn hash(&mut self, place: Place, sealed: &[TreeHeader]) -> Result<Hash, ReadError> {
        let nowhere = || ReadError::Beyond { what: "such hash".into(), size: 0 };
        let (segment, node) = match place {
            Place::Memory(hash) => return Ok(hash),
            Place::Disk(segment, node) => (segment, node),
            Place::Nowhere => return Err(nowhere()),
        };
        let header = sealed.get(segment).ok_or_else(nowhere)?;
        let file = match self.open.take() {
            Some((number, file)) if number == segment => file,
            _ => open_tree(self.dir, header, self.checked)?,
        };
        let mut hash = [0; 32];
        read_at(&file, &tree_file(self.dir, header.first), &mut hash, Layout::new(header.height).node(node))?;
        self.open = Some((segment, file));
        Ok(hash.into())
    }
}

/// The file of a sealed segment's hashes and indexes. At its first use in a process all of it is read: an index that was altered
/// does not say that something is missing.
fn open_tree(dir: &Path, header: &TreeHeader, checked: &Checked) -> Result<File, ReadError> {
    let path = tree_file(dir, header.first);
    let mut file = File::open(&path).map_err(ReadError::io(&path))?;
    if !checked.has(header.first) {
        let mut rest = Vec::with_capacity(usize::try_from(Layout::new(header.height).size()).unwrap_or_default());
        let read = file.seek(SeekFrom::Start(TREE_HEADER as u64)).and_then(|_| file.read_to_end(&mut rest));
        read.map_err(ReadError::io(&path))?;
        if format::sum(&rest) != header.sum {
            let what = "its hashes and indexes do not have their checksum";
            return Err(Damage::new(path, TREE_HEADER as u64, what).into());
        }
        checked.note(header.first);
    }
    Ok(file)
}

/// The entries of a segment.
pub(crate) struct Segment<'a> {
    shared: &'a Shared,
    first: u64,
    height: u32,
    entries: File,
    /// Where it is sealed.
    pub(crate) tree: Option<File>,
    entry: Vec<u8>,
}

impl<'a> Segment<'a> {
    /// The segment of this number, of those that have durable entries.
    pub(crate) fn open(shared: &'a Shared, number: u64) -> Result<Self, ReadError> {
        let (height, sealed) = {
            let state = shared.read();
            (state.height, state.sealed.clone())
        };
        let first = number << height;
        let path = entries_file(&shared.dir, first);
        let entries = File::open(&path).map_err(ReadError::io(path))?;
        let header = usize::try_from(number).ok().and_then(|number| sealed.get(number));
        let tree = header.map(|header| open_tree(&shared.dir, header, &shared.checked)).transpose()?;
        Ok(Self { shared, first, height, entries, tree, entry: Vec::new() })
    }

    fn entry(mut self, ordinal: u64) -> Result<Vec<u8>, ReadError> {
        self.read(ordinal)?;
        Ok(self.entry)
    }

    /// An entry's bytes, checked.
    pub(crate) fn read(&mut self, ordinal: u64) -> Result<&[u8], ReadError> {
        let path = entries_file(&self.shared.dir, self.first);
        let offset = self.offset(ordinal)?;
        let mut front = [0; FRAME];
        read_at(&self.entries, &path, &mut front, offset)?;
        let (length, _) = front.split_at(4);
        let length = length.iter().fold(0, |length, byte| (length << 8) | usize::from(*byte));
        let damaged = |what: &str| Damage::new(&path, offset, format!("entry {}: {what}", self.first + ordinal));
        if length > MAX_ENTRY {
            return Err(damaged("its length cannot be right").into());
        }
        self.entry.resize(length, 0);
        read_at(&self.entries, &path, &mut self.entry, offset + FRAME as u64)?;
        if format::check(&front, &self.entry).is_none() {
            return Err(damaged("it does not have its checksum").into());
        }
        Ok(&self.entry)
    }

    fn offset(&self, ordinal: u64) -> Result<u64, ReadError> {
        let Some(tree) = &self.tree else {
            let state = self.shared.read();
            let here = state.in_memory().find(|(_, segment)| segment.first == self.first);
            let at = usize::try_from(ordinal).ok();
            if let Some(offset) = here.and_then(|(_, segment)| segment.offsets.get(at?)) {
                return Ok((*offset).into());
            }
            // Sealed since this was opened.
            let sealed = state.sealed.clone();
            drop(state);
            let header = sealed.iter().find(|header| header.first == self.first);
            let nowhere = || ReadError::Beyond { what: format!("entry {}", self.first + ordinal), size: self.first };
            let tree = open_tree(&self.shared.dir, header.ok_or_else(nowhere)?, &self.shared.checked)?;
            return self.offset_in(&tree, ordinal);
        };
        self.offset_in(tree, ordinal)
    }

    fn offset_in(&self, tree: &File, ordinal: u64) -> Result<u64, ReadError> {
        let mut offset = [0; 4];
        read_at(tree, &tree_file(&self.shared.dir, self.first), &mut offset, Layout::new(self.height).offset(ordinal))?;
        Ok(u32::from_be_bytes(offset).into())
    }
}

/// Reads exactly what must be there.
pub(crate) fn read_at(file: &File, path: &Path, into: &mut [u8], at: u64) -> Result<(), ReadError> {
    file.read_exact_at(into, at).map_err(|source| match source.kind() {
        io::ErrorKind::UnexpectedEof => Damage::new(path, at, "the file ends before what must be here").into(),
        _ => ReadError::Io { path: path.to_owned(), source },
    })
}
