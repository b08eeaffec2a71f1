//! `RealDisk`: the operating system's files. Used by the composition root; leaves out any caching of its own.

use super::{Disk, DiskFile};
use rustix::fs::{OFlags, fdatasync, fsync, statvfs};
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Most parts one `pwritev` takes (IOV_MAX).
const PARTS_MAX: usize = 1024;

/// A directory of the operating system.
#[derive(Debug)]
pub struct RealDisk {
    dir: PathBuf,
}

impl RealDisk {
    /// Use `dir`, made when it is missing.
    pub fn new(dir: impl AsRef<Path>) -> io::Result<RealDisk> {
        let dir = dir.as_ref().to_path_buf();
        if !dir.is_dir() {
            fs::create_dir_all(&dir)?;
            if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
                fsync(&File::open(parent)?)?;
            }
        }
        Ok(RealDisk { dir })
    }

    fn options() -> OpenOptions {
        use std::os::unix::fs::OpenOptionsExt;
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(OFlags::CLOEXEC.bits() as i32);
        options
    }
}

impl Disk for RealDisk {
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(RealFile(Self::options().create(true).truncate(true).open(self.dir.join(name))?)))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(RealFile(Self::options().open(self.dir.join(name))?)))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if entry.file_type()?.is_file()
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.dir.join(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn sync_dir(&self) -> io::Result<()> {
        Ok(fsync(&File::open(&self.dir)?)?)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = statvfs(&self.dir)?;
        Ok(stat.f_bavail * stat.f_frsize)
    }
}

struct RealFile(File);

impl DiskFile for RealFile {
    fn write_all_vectored_at(&self, parts: &[IoSlice<'_>], position: u64) -> io::Result<()> {
        let mut at = position;
        let mut next = 0; // first part that is not written completely
        let mut skip = 0; // bytes of it that are written
        while next < parts.len() {
            if parts[next].len() == skip {
                next += 1;
                skip = 0;
                continue;
            }
            let written = if skip > 0 {
                self.0.write_at(&parts[next][skip..], at)?
            } else {
                let end = parts.len().min(next + PARTS_MAX);
                match rustix::io::pwritev(&self.0, &parts[next..end], at) {
                    Err(rustix::io::Errno::INTR) => continue,
                    other => other?,
                }
            };
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            at += written as u64;
            let mut rest = written + skip;
            while next < parts.len() && rest >= parts[next].len() {
                rest -= parts[next].len();
                next += 1;
            }
            skip = rest;
        }
        Ok(())
    }

    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match self.0.read_at(&mut buffer[done..], position + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(fdatasync(&self.0)?)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn handle(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_parts_are_written_in_order_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(dir.path().join("wal")).unwrap();
        let file = disk.create("a").unwrap();
        let parts: Vec<Vec<u8>> = (0..3000u32).map(|i| i.to_le_bytes()[..(i % 4) as usize].to_vec()).collect();
        let slices: Vec<IoSlice<'_>> = parts.iter().map(|p| IoSlice::new(p)).collect();
        file.write_all_vectored_at(&slices, 7).unwrap();
        let expected: Vec<u8> = parts.concat();
        let mut back = vec![0; expected.len()];
        file.read_exact_at(&mut back, 7).unwrap();
        assert_eq!(back, expected);
        assert_eq!(file.len().unwrap(), 7 + expected.len() as u64);
        assert_eq!(file.read_at(&mut [0; 10], 7 + expected.len() as u64 - 3).unwrap(), 3);
        disk.rename("a", "b").unwrap();
        disk.sync_dir().unwrap();
        assert_eq!(disk.list().unwrap(), ["b"]);
        assert!(disk.free_bytes().unwrap() > 0);
    }
}
