//! Small ext4 file systems in files, mounted through loop devices: disks that tests can fill. Needs root; says why it cannot.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const BALLAST: &str = "ballast";

/// A mounted file system; unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// Makes a file system of `bytes` in `<at>.img` and mounts it at `at`.
    ///
    /// # Errors
    /// Why there can be none here: no root, no loop devices, no mkfs.ext4.
    pub fn mount(at: &Path, bytes: u64) -> Result<SmallDisk, String> {
        let image = at.with_extension("img");
        let made = fs::create_dir_all(at).and_then(|()| File::create(&image)?.set_len(bytes));
        made.map_err(|error| format!("{}: {error}", image.display()))?;
        let (image, at_text) = (image.display().to_string(), at.display().to_string());
        run("mkfs.ext4", &["-q", "-F", "-m", "0", &image])?;
        run("mount", &["-o", "loop", &image, &at_text])?;
        Ok(SmallDisk { at: at.to_owned() })
    }

    /// Takes all that is free, to the last block.
    pub fn fill(&self) {
        let mut file = File::create(self.at.join(BALLAST)).expect("a file can be made");
        for size in [1 << 20, 4096, 1] {
            let piece = vec![0x5a; size];
            while file.write_all(&piece).is_ok() && file.sync_data().is_ok() {}
        }
    }

    /// Gives back what `fill` took.
    pub fn free(&self) {
        let _ = fs::remove_file(self.at.join(BALLAST)); // may not be filled
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(why) = run("umount", &["-l", &self.at.display().to_string()]) {
            println!("{why}");
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}
