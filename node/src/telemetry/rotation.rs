//! A log file that is renamed to `.1` (`.1` to `.2` and so on) when it is full. Used by `telemetry` alone.

use parking_lot::Mutex;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Old files kept beside the one that is written.
const OLD_FILES: u32 = 4;

/// The file; cheap to share, one line per `write`.
#[derive(Debug)]
pub(super) struct RotatingFile {
    path: PathBuf,
    bytes_max: u64,
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    bytes: u64,
}

impl Open {
    fn at(path: &Path) -> io::Result<Open> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Open { file, bytes })
    }
}

impl RotatingFile {
    /// Continue the file at `path`.
    pub(super) fn open(path: &Path, bytes_max: u64) -> io::Result<RotatingFile> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        Ok(RotatingFile { path: path.to_owned(), bytes_max, open: Mutex::new(Open::at(path)?) })
    }

    fn old(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }

    /// A rename that fails costs an old file, never a line: writing goes on in whatever file is open.
    fn rotate(&self, open: &mut Open) -> io::Result<()> {
        for number in (1..OLD_FILES).rev() {
            match fs::rename(self.old(number), self.old(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(&self.path, self.old(1))?;
        *open = Open::at(&self.path)?;
        Ok(())
    }
}

impl Write for &RotatingFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut open = self.open.lock();
        if open.bytes > 0 && open.bytes + line.len() as u64 > self.bytes_max && self.rotate(&mut open).is_err() {
            open.bytes = 0; // try again after another file's worth
        }
        open.file.write_all(line)?;
        open.bytes += line.len() as u64;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_is_kept_as_number_one_and_only_four_old_ones_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node-1.log");
        let log = RotatingFile::open(&path, 20).unwrap();
        for line in 1..=7 {
            (&log).write_all(format!("line number {line}\n").as_bytes()).unwrap();
        }
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap_or_default();
        assert_eq!(read("node-1.log"), "line number 7\n");
        assert_eq!(read("node-1.log.1"), "line number 6\n");
        assert_eq!(read("node-1.log.4"), "line number 3\n");
        assert!(!dir.path().join("node-1.log.5").exists());
    }

    #[test]
    fn an_opened_file_is_continued() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, "before\n").unwrap();
        (&RotatingFile::open(&path, 1000).unwrap()).write_all(b"after\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "before\nafter\n");
    }
}
