//! Large buffers that are used again: what is read for a moment, to be checked, would else cost fresh pages from the system each time.

use super::reader::RUN_BYTES;
use bytes::Bytes;
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;

/// Kept for reuse at most.
const KEPT: usize = 4;
/// What is smaller is not worth a large buffer, which lives as long as any part of it.
const WORTH: usize = RUN_BYTES as usize / 8;

#[derive(Default)]
pub(super) struct Buffers(Mutex<Vec<Box<[u8]>>>);

/// The first `len` bytes of a buffer, which goes back when nobody has a part of it any more.
struct Borrowed {
    from: Arc<Buffers>,
    buffer: Option<Box<[u8]>>,
    len: usize,
}

impl Buffers {
    /// `len` bytes as `fill` leaves them.
    pub fn fill(self: &Arc<Buffers>, len: usize, fill: impl FnOnce(&mut [u8]) -> io::Result<()>) -> io::Result<Bytes> {
        if !(WORTH..=RUN_BYTES as usize).contains(&len) {
            let mut buffer = vec![0; len];
            fill(&mut buffer)?;
            return Ok(buffer.into());
        }
        let kept = self.0.lock().pop();
        let mut buffer = kept.unwrap_or_else(|| vec![0; RUN_BYTES as usize].into());
        fill(&mut buffer[..len])?;
        Ok(Bytes::from_owner(Borrowed { from: self.clone(), buffer: Some(buffer), len }))
    }

    /// Gives back what nobody uses.
    pub fn forget(&self) {
        self.0.lock().clear();
    }
}

impl AsRef<[u8]> for Borrowed {
    fn as_ref(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&[], |buffer| &buffer[..self.len])
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        let mut kept = self.from.0.lock();
        if kept.len() < KEPT {
            kept.extend(self.buffer.take());
        }
    }
}
