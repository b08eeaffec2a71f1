//! A node's data directory as a resource: who uses it (lock, `pid`, `start`), where it listens (`ports`), and the directory of a local
//! cluster around it. `cli` opens it before anything else, `launcher` and `warren ctl` read it. Its contents belong to `store`.

use super::{Environment, Reserve};
use crate::tls::Files;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const LOCK: &str = "lock";
const PID: &str = "pid";
const PORTS: &str = "ports";
/// In `ports`.
const HOST: &str = "host";
const START: &str = "start";
const MEMBERS: &str = "members";
const SECRET: &str = "secret";
const PEER_TLS: &str = "peer-tls";
/// In a directory that `warren cluster` made, and in no other.
const MARKER: &str = "warren-cluster";
/// How long a lock may stay held before its holder counts as running. A killed process keeps its lock until the system has taken its
/// last thread and its memory down, a moment after its parent heard of the death.
const DYING: Duration = Duration::from_secs(2);

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// A process uses it.
    #[error("data directory {path} is in use by {holder}; stop that process first, or choose another --data-dir")]
    InUse {
        /// Which.
        path: PathBuf,
        /// `process 123`, as far as known.
        holder: String,
    },
    /// It cannot be made or written.
    #[error("data directory {path}: {error}; choose another with --data-dir, or change its owner")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
}

/// Ports that a running server listens on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// AMQP 0-9-1.
    pub amqp: u16,
    /// The same over TLS (0: not served).
    pub amqps: u16,
    /// RabbitMQ streams (0: not served).
    pub stream: u16,
    /// The same over TLS (0: not served).
    pub stream_tls: u16,
    /// RocketMQ over HTTP (0: not served).
    pub rocketmq: u16,
    /// The same over TLS (0: not served).
    pub rocketmq_tls: u16,
    /// HTTP.
    pub management: u16,
    /// Other nodes and `warren ctl`.
    pub peer: u16,
}

/// A data directory that this process has locked. The lock ends with the process or the value.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Make it if it is missing, lock it, write `pid`. Blocks the thread for up to 2 s while another process has it.
    ///
    /// # Errors
    /// When another process has it, or it cannot be written.
    pub fn lock(path: &Path) -> Result<DataDir, DataDirError> {
        let wrong = |error: io::Error| DataDirError::Io { path: path.to_owned(), error };
        fs::create_dir_all(path).map_err(wrong)?;
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path.join(LOCK)).map_err(wrong)?;
        match lock_in_time(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DataDir::in_use(path)),
            Err(TryLockError::Error(error)) => return Err(wrong(error)),
        }
        Reserve::of(path).release_if_full().map_err(wrong)?;
        write_whole(&path.join(PID), &format!("{}\n", std::process::id())).map_err(wrong)?;
        Ok(DataDir { path: path.to_owned(), _lock: file })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a live process holds the lock of this directory.
    pub fn is_locked(path: &Path) -> bool {
        let Ok(file) = OpenOptions::new().write(true).open(path.join(LOCK)) else { return false };
        matches!(file.try_lock(), Err(TryLockError::WouldBlock))
    }

    /// Refuse a directory that a process has, and goes on having for 2 s. Blocks the thread for as long.
    ///
    /// # Errors
    /// [`DataDirError::InUse`].
    pub fn refuse_locked(path: &Path) -> Result<(), DataDirError> {
        let Ok(file) = OpenOptions::new().write(true).open(path.join(LOCK)) else { return Ok(()) };
        match lock_in_time(&file) {
            Err(TryLockError::WouldBlock) => Err(DataDir::in_use(path)),
            Ok(()) | Err(TryLockError::Error(_)) => Ok(()),
        }
    }

    fn in_use(path: &Path) -> DataDirError {
        let holder = DataDir::pid(path).map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"));
        DataDirError::InUse { path: path.to_owned(), holder }
    }

    /// The process that wrote `pid` last; it may be gone.
    pub fn pid(path: &Path) -> Option<u32> {
        fs::read_to_string(path.join(PID)).ok()?.trim().parse().ok()
    }

    /// The number of this start: larger than those of all starts before, whatever the clock does. Microseconds since the epoch, or one more
    /// than the last. Kept in `start`, synced.
    ///
    /// # Errors
    /// What the system says.
    pub fn next_start(path: &Path) -> io::Result<u64> {
        let last = fs::read_to_string(path.join(START)).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0u64);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64);
        let start = now.max(last.saturating_add(1));
        fs::create_dir_all(path)?;
        write_whole(&path.join(START), &format!("{start}\n"))?;
        File::open(path.join(START))?.sync_all()?;
        File::open(path)?.sync_all()?;
        Ok(start)
    }

    /// The list of members that was kept last, as `consensus` encodes it.
    pub fn roster(path: &Path) -> Option<Vec<u8>> {
        fs::read(path.join(MEMBERS)).ok()
    }

    /// Keep the list of members, durably.
    ///
    /// # Errors
    /// What the system says.
    pub fn write_roster(path: &Path, bytes: &[u8]) -> io::Result<()> {
        let new = path.join(format!("{MEMBERS}.new"));
        let mut file = File::create(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path.join(MEMBERS))?;
        File::open(path)?.sync_all()
    }

    /// Write `ports`: where the server listens, one `name=port` line each after one with the host. For `node`, once everything is bound.
    ///
    /// # Errors
    /// What the system says.
    pub fn write_ports(path: &Path, host: &str, ports: Ports) -> io::Result<()> {
        let Ports { amqp, amqps, stream, stream_tls, rocketmq, rocketmq_tls, management, peer } = ports;
        let clients = format!("amqp={amqp}\namqps={amqps}\nstream={stream}\nstream-tls={stream_tls}\n");
        let numbers = format!("{clients}rocketmq={rocketmq}\nrocketmq-tls={rocketmq_tls}\nmanagement={management}\npeer={peer}\n");
        write_whole(&path.join(PORTS), &format!("{HOST}={host}\n{numbers}"))
    }

    /// The host that the server that ran here last listened on, as it was configured.
    pub fn read_host(path: &Path) -> Option<String> {
        let text = fs::read_to_string(path.join(PORTS)).ok()?;
        text.lines().filter_map(|line| line.split_once('=')).find(|line| line.0 == HOST).map(|line| line.1.to_owned())
    }

    /// The ports of the server that ran here last.
    pub fn read_ports(path: &Path) -> Option<Ports> {
        let text = fs::read_to_string(path.join(PORTS)).ok()?;
        let mut ports = Ports::default();
        for (name, port) in text.lines().filter_map(|line| line.split_once('=')).filter(|line| line.0 != HOST) {
            let port = port.parse().ok()?;
            match name {
                "amqp" => ports.amqp = port,
                "amqps" => ports.amqps = port,
                "stream" => ports.stream = port,
                "stream-tls" => ports.stream_tls = port,
                "rocketmq" => ports.rocketmq = port,
                "rocketmq-tls" => ports.rocketmq_tls = port,
                "management" => ports.management = port,
                "peer" => ports.peer = port,
                _ => {}
            }
        }
        Some(ports)
    }

    /// Write `peer-tls`, or remove it: where the certificate and the key are that this node shows other nodes, so that `warren ctl` on
    /// the same machine finds them. One `name=path` line each.
    ///
    /// # Errors
    /// What the system says.
    pub fn write_peer_tls(path: &Path, files: Option<&Files>) -> io::Result<()> {
        let place = path.join(PEER_TLS);
        let Some(Files { certificate, key, ca }) = files else {
            return match fs::remove_file(place) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        };
        let mut text = String::new();
        for (name, file) in [("cert", Some(certificate)), ("key", Some(key)), ("ca", ca.as_ref())] {
            if let Some(file) = file {
                text += &format!("{name}={}\n", std::path::absolute(file)?.display());
            }
        }
        write_whole(&place, &text)
    }

    /// What the node that ran here last showed other nodes.
    pub fn read_peer_tls(path: &Path) -> Option<Files> {
        let text = fs::read_to_string(path.join(PEER_TLS)).ok()?;
        let file =
            |name| text.lines().filter_map(|line| line.split_once('=')).find(|line| line.0 == name).map(|line| PathBuf::from(line.1));
        Some(Files { certificate: file("cert")?, key: file("key")?, ca: file("ca") })
    }

    /// Where a directory keeps a cluster secret.
    pub fn secret_path(path: &Path) -> PathBuf {
        path.join(SECRET)
    }

    /// The file that marks a directory made by `warren cluster`.
    pub fn marker_path(path: &Path) -> PathBuf {
        path.join(MARKER)
    }

    /// Whether `warren cluster` made this directory.
    pub fn is_local_cluster(path: &Path) -> bool {
        DataDir::marker_path(path).is_file()
    }
}

fn lock_in_time(file: &File) -> Result<(), TryLockError> {
    let deadline = Instant::now() + DYING;
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            answer => return answer,
        }
    }
}

/// Readers see the old or the new text, never half of one.
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let draft = path.with_extension("draft");
    File::create(&draft)?.write_all(text.as_bytes())?;
    fs::rename(draft, path)
}

/// Where `warren cluster` keeps its data unless told otherwise.
pub fn default_cluster_dir(environment: Environment<'_>) -> PathBuf {
    state_dir(environment).join("cluster")
}

/// Where `warren server` keeps its data unless told otherwise.
pub fn default_server_dir(environment: Environment<'_>) -> PathBuf {
    state_dir(environment).join("server")
}

fn state_dir(environment: Environment<'_>) -> PathBuf {
    let read = |name: &str| environment(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = read("XDG_STATE_HOME").or_else(|| read("HOME").map(|home| home.join(".local/state")));
    base.map_or_else(|| PathBuf::from("warren-data"), |base| base.join("warren"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_start_has_a_larger_number_also_when_the_clock_went_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = DataDir::next_start(&dir.path().join("new")).expect("written");
        let second = DataDir::next_start(&dir.path().join("new")).expect("written");
        assert!(second > first);
        let ahead = second + 3_600_000_000;
        fs::write(dir.path().join(START), ahead.to_string()).expect("written");
        assert_eq!(DataDir::next_start(dir.path()).expect("written"), ahead + 1);
        assert_eq!(DataDir::next_start(dir.path()).expect("written"), ahead + 2);
    }
}
