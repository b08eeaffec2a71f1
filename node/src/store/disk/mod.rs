//! The file layer under the WAL: files of one directory, positioned vectored writes, real syncs. `RealDisk` is the operating
//! system, `SimDisk` a seeded liar for crash tests and the simulator. Blocking; never called on an async runtime's threads.

mod real;
pub mod sim;

pub use real::RealDisk;
pub use sim::SimDisk;

use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// Files of one directory. Names are plain, without separators.
pub trait Disk: Send + Sync + 'static {
    /// A new empty file; an existing one of that name is emptied.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// An existing file.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Names of all files, in no order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Remove a file; durable only after `sync_dir`.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Rename, replacing `to`; durable only after `sync_dir`. Open handles stay valid.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Make names durable.
    fn sync_dir(&self) -> io::Result<()>;
    /// Bytes that can still be allocated.
    fn free_bytes(&self) -> io::Result<u64>;
}

/// An open file.
pub trait DiskFile: Send + Sync {
    /// Write all parts, one after the other, from `position` on.
    fn write_all_vectored_at(&self, parts: &[IoSlice<'_>], position: u64) -> io::Result<()>;
    /// Fill `buffer` from `position`; fewer bytes only at the end of the file.
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize>;
    /// Contents (and a grown length) are durable when this returns. After an error nothing is known about earlier writes.
    fn sync_data(&self) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// The system's handle of it, if the system has it.
    fn handle(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    /// Whether it has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Write zeros over `[position, position + len)`; not synced.
    fn zero(&self, position: u64, len: u64) -> io::Result<()> {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        let end = position + len;
        let mut at = position;
        while at < end {
            let step = (end - at).min(ZEROS.len() as u64);
            self.write_all_vectored_at(&[IoSlice::new(&ZEROS[..step as usize])], at)?;
            at += step;
        }
        Ok(())
    }

    /// Fill `buffer` completely; `UnexpectedEof` when the file ends before.
    fn read_exact_at(&self, buffer: &mut [u8], position: u64) -> io::Result<()> {
        if self.read_at(buffer, position)? == buffer.len() {
            return Ok(());
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}
