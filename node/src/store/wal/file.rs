//! Files of the WAL by name and lap: opening, preparing with zeros, the header. The keeper prepares them, the writer fills them.

use super::format::Lap;
use crate::store::disk::{Disk, DiskFile};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, OnceLock};

/// A file with data. Readers hold it while they read, which keeps it from being reused.
pub(super) struct WalFile {
    pub lap: Lap,
    pub file: Arc<dyn DiskFile>,
    /// Whether it may be sent from (`lend`), once that was asked.
    lent: OnceLock<bool>,
}

impl WalFile {
    /// `lent`: it was, in an earlier process.
    pub fn new(lap: Lap, file: Arc<dyn DiskFile>, lent: bool) -> WalFile {
        WalFile { lap, file, lent: if lent { true.into() } else { OnceLock::new() } }
    }

    /// Whether sockets may send from it. They refer to the file's pages for as long as a client has not read them, longer than this process
    /// lives: so a file that was lent is never written again, and a name beside it tells the next process.
    pub fn lend(&self, disk: &dyn Disk) -> bool {
        *self.lent.get_or_init(|| self.file.handle().is_some() && disk.create(&lent_name(self.lap.seq)).is_ok())
    }

    /// It has been.
    pub fn is_lent(&self) -> bool {
        self.lent.get() == Some(&true)
    }
}

impl AsFd for WalFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.handle().expect("only files that have one are lent")
    }
}

/// A file that waits for use; its name has its number, its content is zeros or an older lap.
pub(super) struct ReadyFile {
    pub seq: u32,
    pub file: Arc<dyn DiskFile>,
}

/// A file with data and what keeps it.
pub(super) struct Held {
    pub file: Arc<WalFile>,
    /// Records in it that may still be read.
    pub needed: u64,
}

pub(super) fn file_name(seq: u32) -> String {
    format!("{seq:010}.wal")
}

/// A file of this name, empty, says that the log file has been lent.
pub(super) fn lent_name(seq: u32) -> String {
    format!("{seq:010}.lent")
}

pub(super) fn sidecar_name(seq: u32) -> String {
    format!("{seq:010}.idx")
}

/// The number in a file's name.
pub(super) fn seq_of(name: &str, suffix: &str) -> Option<u32> {
    name.strip_suffix(suffix)?.parse().ok().filter(|seq| *seq > 0)
}

/// A new file full of real zeros, durable under its name. `pause` runs between two MiB.
pub(super) fn prepare(disk: &dyn Disk, seq: u32, bytes: u64, pause: impl Fn()) -> io::Result<ReadyFile> {
    const STEP: u64 = 1 << 20;
    let temporary = format!("{seq:010}.tmp");
    let fill = || {
        let file = disk.create(&temporary)?;
        for at in (0..bytes).step_by(STEP as usize) {
            file.zero(at, STEP.min(bytes - at))?;
            if at % (8 * STEP) == 7 * STEP {
                file.sync_data()?; // little by little: a large one would stall the log's own syncs
            }
            if at + STEP < bytes {
                pause();
            }
        }
        file.sync_data()?;
        disk.rename(&temporary, &file_name(seq))?;
        disk.sync_dir()?;
        Ok(ReadyFile { seq, file })
    };
    fill().inspect_err(|_| {
        let _ = disk.remove(&temporary); // left over otherwise until the next start removes it
    })
}
