//! Reading a file from front to back, as recovery does: batch by batch, or looking for any batch that proves that an earlier one was
//! synced (rule 5).

use super::format::{BATCH_HEAD, BatchHeader, Lap, SECTOR};
use crate::store::disk::DiskFile;
use std::io;

const WINDOW: usize = 1 << 20;

/// A window over a file.
pub(super) struct Scan<'a> {
    file: &'a dyn DiskFile,
    /// Length of the file.
    pub len: u64,
    start: u64,
    window: Vec<u8>,
}

impl<'a> Scan<'a> {
    pub fn new(file: &'a dyn DiskFile) -> io::Result<Scan<'a>> {
        Ok(Scan { file, len: file.len()?, start: 0, window: Vec::new() })
    }

    /// Bytes from `position`; fewer at the end of the file.
    pub fn bytes(&mut self, position: u64, len: usize) -> io::Result<&[u8]> {
        let end = (position + len as u64).min(self.len);
        if position >= end {
            return Ok(&[]);
        }
        if position < self.start || end > self.start + self.window.len() as u64 {
            let want = len.max(WINDOW).min((self.len - position) as usize);
            self.window.resize(want, 0);
            self.start = position;
            self.file.read_exact_at(&mut self.window, position)?;
        }
        Ok(&self.window[(position - self.start) as usize..(end - self.start) as usize])
    }

    /// The intact head of a batch at `position`, of whatever lap.
    pub fn header(&mut self, position: u64) -> io::Result<Option<BatchHeader>> {
        let len = self.len;
        let header = BatchHeader::decode(self.bytes(position, BATCH_HEAD)?, position);
        Ok(header.filter(|h| h.len as usize >= BATCH_HEAD && h.end() <= len))
    }

    /// The first batch of this lap from `from` on with a number above `number`: proof that the batch with that number was synced.
    pub fn later(&mut self, lap: Lap, from: u64, number: u64) -> io::Result<Option<BatchHeader>> {
        let len = self.len;
        let at = self.find(from, len, |h| h.lap == lap && h.number > number)?;
        at.map_or(Ok(None), |at| self.header(at))
    }

    /// The first place in `[from, to)` with the head of a batch that `wanted` accepts.
    pub fn find(&mut self, from: u64, to: u64, wanted: impl Fn(&BatchHeader) -> bool) -> io::Result<Option<u64>> {
        let mut at = from;
        while at < to.min(self.len) {
            if self.header(at)?.is_some_and(|h| wanted(&h)) {
                return Ok(Some(at));
            }
            at += SECTOR;
        }
        Ok(None)
    }
}
