//! Files of the WAL by name and lap: opening, preparing with zeros, the header. The keeper prepares them, the writer fills them.

use super::format::Lap;
use crate::store::disk::{Disk, DiskFile};
use std::io;
use std::sync::Arc;

/// A file with data. Readers hold it while they read, which keeps it from being reused.
pub(super) struct WalFile {
    pub lap: Lap,
    pub file: Arc<dyn DiskFile>,
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

pub(super) fn sidecar_name(seq: u32) -> String {
    format!("{seq:010}.idx")
}

/// The number in a file's name.
pub(super) fn seq_of(name: &str, suffix: &str) -> Option<u32> {
    name.strip_suffix(suffix)?.parse().ok().filter(|seq| *seq > 0)
}

/// A new file full of real zeros, durable under its name. `pause` runs after each MiB.
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
            pause();
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
