//! Entries as they lie in files: what can be sent to a client from there without being copied. `store` says where, `edge` cuts chunks out of
//! it, `listener` sends them. Knows nothing of what a file is.

use super::entry::EntryBytes;
use std::fmt;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Weak};

/// A file whose bytes neither change nor go while it is held.
pub type Lent = dyn AsFd + Send + Sync;

/// An entry from disk.
#[derive(Clone, Debug)]
pub struct StoredEntry {
    /// It, checked.
    pub bytes: EntryBytes,
    /// Where it lies as it is, if it can be sent from there.
    pub place: Option<Place>,
}

/// Where an entry begins. Holds nothing.
#[derive(Clone)]
pub struct Place {
    file: Weak<Lent>,
    position: u64,
}

/// Bytes in a file.
#[derive(Clone)]
pub struct FileBytes {
    file: Arc<Lent>,
    position: u64,
    len: usize,
}

impl From<EntryBytes> for StoredEntry {
    fn from(bytes: EntryBytes) -> StoredEntry {
        StoredEntry { bytes, place: None }
    }
}

impl Place {
    /// At `position` of a file.
    pub fn new(file: &Arc<Lent>, position: u64) -> Place {
        Place { file: Arc::downgrade(file), position }
    }

    /// A part of the entry; `None`: the file has gone.
    pub fn part(&self, part: Range<usize>) -> Option<FileBytes> {
        let file = self.file.upgrade()?;
        Some(FileBytes { file, position: self.position + part.start as u64, len: part.len() })
    }
}

impl FileBytes {
    /// How many.
    pub fn len(&self) -> usize {
        self.len
    }

    /// None.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where in the file they begin.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Leaves out the first `count`.
    pub fn advance(&mut self, count: usize) {
        let count = count.min(self.len);
        self.position += count as u64;
        self.len -= count;
    }
}

impl AsFd for FileBytes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl PartialEq for FileBytes {
    fn eq(&self, other: &FileBytes) -> bool {
        Arc::ptr_eq(&self.file, &other.file) && (self.position, self.len) == (other.position, other.len)
    }
}

impl Eq for FileBytes {}

impl fmt::Debug for FileBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of a file at {}", self.len, self.position)
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {} of a file", self.position)
    }
}
