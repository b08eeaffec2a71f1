//! A file in the data directory whose only use is its size: a start on a full disk needs a little space (for `pid` and `ports`, and the
//! state store writes when it is opened), and gets it by removing this file. It is made again when there is space: `node::alarm` asks.

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

const NAME: &str = "reserve";
/// Many times what a start writes on a full disk.
const BYTES: u64 = 16 << 20;

/// The reserve of a data directory.
#[derive(Clone, Debug)]
pub struct Reserve {
    dir: PathBuf,
    file: PathBuf,
}

impl Reserve {
    /// Of this directory; there need not be one yet.
    pub fn of(data_dir: &Path) -> Reserve {
        Reserve { dir: data_dir.to_owned(), file: data_dir.join(NAME) }
    }

    /// Before a start: gives the space away when there is hardly any other.
    ///
    /// # Errors
    /// What the system says.
    pub fn release_if_full(&self) -> io::Result<()> {
        if self.free_bytes()? < BYTES / 2 && self.file.exists() {
            fs::remove_file(&self.file)?;
        }
        Ok(())
    }

    /// Takes the space (again) when at least twice as much stays free.
    ///
    /// # Errors
    /// What the system says.
    pub fn renew(&self) -> io::Result<()> {
        if self.file.exists() || self.free_bytes()? < 3 * BYTES {
            return Ok(());
        }
        let taken = File::create(&self.file).and_then(|file| {
            fallocate(&file, FallocateFlags::empty(), 0, BYTES)?;
            file.sync_all()
        });
        if taken.is_err() {
            let _ = fs::remove_file(&self.file); // half of it would pass for all
        }
        taken
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = statvfs(&self.dir)?;
        Ok(stat.f_bavail * stat.f_frsize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn the_reserve_takes_real_space_and_keeps_it_while_there_is_other() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::of(dir.path());
        reserve.release_if_full().unwrap();
        reserve.renew().unwrap();
        let taken = fs::metadata(dir.path().join(NAME)).unwrap();
        assert!(taken.blocks() * 512 >= BYTES, "{} blocks", taken.blocks());
        reserve.release_if_full().unwrap();
        reserve.renew().unwrap();
        assert_eq!(fs::metadata(dir.path().join(NAME)).unwrap().ino(), taken.ino(), "the same one");
    }
}
