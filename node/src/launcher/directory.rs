//! The directory of a local cluster: `node-N/`, `node-N.log`, `secret` and the marker that says that `warren cluster` made it (with
//! the number of nodes). Locked while a launcher runs on it. Used by `launcher` alone.

use super::ClusterError;
use crate::config::{ClusterSecret, DataDir, DataDirError};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const NODES_DEFAULT: u16 = 3;

/// An open, locked cluster directory.
#[derive(Debug)]
pub(crate) struct ClusterDir {
    lock: DataDir,
    nodes: u16,
}

impl ClusterDir {
    /// Open, or make, the directory for `wanted` nodes (`None`: as many as it has). `fresh`: without its old data.
    pub(crate) fn open(path: &Path, wanted: Option<u16>, fresh: bool) -> Result<ClusterDir, ClusterError> {
        fs::create_dir_all(path).map_err(|error| DataDirError::Io { path: path.to_owned(), error })?;
        let path = fs::canonicalize(path)?;
        let is_ours = DataDir::is_local_cluster(&path);
        if !is_ours && fs::read_dir(&path)?.next().is_some() {
            return Err(ClusterError::Foreign { path });
        }
        if !is_ours {
            mark(&path, wanted.unwrap_or(NODES_DEFAULT))?; // before anything else is in it
        }
        let lock = DataDir::lock(&path)?;
        refuse_running_nodes(&path)?;
        if fresh {
            clear(&path)?;
            mark(&path, wanted.unwrap_or(NODES_DEFAULT))?;
        }
        let has = marked(&path)?;
        match wanted {
            Some(wanted) if wanted != has => Err(ClusterError::OtherSize { path, has, wanted }),
            _ => Ok(ClusterDir { lock, nodes: has }),
        }
    }

    /// Number of nodes.
    pub(crate) fn nodes(&self) -> u16 {
        self.nodes
    }

    /// Data directory of a node.
    pub(crate) fn node(&self, node: u16) -> PathBuf {
        self.lock.path().join(format!("node-{node}"))
    }

    /// Log file of a node.
    pub(crate) fn log(&self, node: u16) -> PathBuf {
        self.lock.path().join(format!("node-{node}.log"))
    }

    /// The file with the cluster secret, made when it is missing.
    pub(crate) fn secret(&self) -> Result<PathBuf, ClusterError> {
        let path = DataDir::secret_path(self.lock.path());
        ClusterSecret::from_file_or_new(&path)?;
        Ok(path)
    }

    /// Nodes whose directory a live process has, with its pid.
    pub(crate) fn running_nodes(&self) -> impl Iterator<Item = (u16, u32)> {
        let running = |node: &u16| DataDir::is_locked(&self.node(*node));
        (1..=self.nodes).filter(running).filter_map(|node| Some((node, DataDir::pid(&self.node(node))?)))
    }
}

fn mark(path: &Path, nodes: u16) -> io::Result<()> {
    fs::write(DataDir::marker_path(path), format!("nodes={nodes}\n"))
}

fn marked(path: &Path) -> io::Result<u16> {
    let text = fs::read_to_string(DataDir::marker_path(path))?;
    let nodes = text.trim().strip_prefix("nodes=").and_then(|nodes| nodes.parse().ok());
    nodes.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{}: not understood", DataDir::marker_path(path).display())))
}

/// The directories and log files of nodes.
fn node_entries(path: &Path) -> io::Result<Vec<PathBuf>> {
    let is_ours = |entry: &fs::DirEntry| entry.file_name().to_str().is_some_and(is_of_a_node);
    Ok(fs::read_dir(path)?.collect::<io::Result<Vec<_>>>()?.iter().filter(|entry| is_ours(entry)).map(fs::DirEntry::path).collect())
}

/// `node-N`, `node-N.log`, and `node-N.log.M` after a rotation.
fn is_of_a_node(name: &str) -> bool {
    let is_number = |text: &str| text.parse::<u16>().is_ok();
    let Some(rest) = name.strip_prefix("node-") else { return false };
    match rest.split_once('.') {
        None => is_number(rest),
        Some((node, "log")) => is_number(node),
        Some((node, kind)) => is_number(node) && kind.strip_prefix("log.").is_some_and(is_number),
    }
}

fn refuse_running_nodes(path: &Path) -> Result<(), ClusterError> {
    Ok(node_entries(path)?.iter().try_for_each(|node| DataDir::refuse_locked(node))?)
}

/// Delete what a cluster leaves in its directory, and nothing else that may lie there.
fn clear(path: &Path) -> io::Result<()> {
    for entry in node_entries(path)? {
        match entry.symlink_metadata()?.is_dir() {
            true => fs::remove_dir_all(entry)?,
            false => fs::remove_file(entry)?,
        }
    }
    match fs::remove_file(DataDir::secret_path(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path, wanted: Option<u16>, fresh: bool) -> Result<u16, ClusterError> {
        ClusterDir::open(path, wanted, fresh).map(|dir| dir.nodes())
    }

    #[test]
    fn a_directory_remembers_its_number_of_nodes() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(open(dir.path(), Some(5), false).unwrap(), 5);
        assert_eq!(open(dir.path(), None, false).unwrap(), 5);
        assert!(matches!(open(dir.path(), Some(3), false), Err(ClusterError::OtherSize { has: 5, wanted: 3, .. })));
        assert_eq!(open(dir.path(), Some(3), true).unwrap(), 3);
    }

    #[test]
    fn fresh_deletes_the_data_of_a_cluster_and_leaves_what_is_not_its() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path(), None, false).unwrap();
        fs::create_dir(dir.path().join("node-1")).unwrap();
        fs::write(dir.path().join("node-1/wal"), "x").unwrap();
        fs::write(dir.path().join("node-1.log"), "x").unwrap();
        fs::write(dir.path().join("node-1.log.3"), "x").unwrap();
        let others = ["notes.txt", "node-notes", "node-1.txt", "node-1.log.gz"];
        others.iter().for_each(|name| fs::write(dir.path().join(name), "x").unwrap());
        open(dir.path(), None, true).unwrap();
        let left = |name: &str| dir.path().join(name).exists();
        assert!(!["node-1", "node-1.log", "node-1.log.3"].iter().any(|name| left(name)));
        assert!(others.iter().all(|name| left(name)));
    }

    #[test]
    fn a_foreign_directory_is_never_touched() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("node-1")).unwrap();
        assert!(matches!(open(dir.path(), None, true), Err(ClusterError::Foreign { .. })));
        assert!(dir.path().join("node-1").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing was written");
    }

    #[test]
    fn a_directory_in_use_is_refused_with_the_pid_of_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let _first = ClusterDir::open(dir.path(), None, false).unwrap();
        let error = open(dir.path(), None, true).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
    }

    #[test]
    fn a_running_node_keeps_its_data_from_fresh() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path(), None, false).unwrap();
        let _node = DataDir::lock(&dir.path().join("node-2")).unwrap();
        assert!(matches!(open(dir.path(), None, true), Err(ClusterError::DataDir(DataDirError::InUse { .. }))));
        assert!(dir.path().join("node-2").exists());
    }

    #[test]
    fn the_secret_is_made_once_and_only_its_owner_reads_it() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let cluster = ClusterDir::open(dir.path(), None, false).unwrap();
        let path = cluster.secret().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(cluster.secret().unwrap(), path);
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(text.trim().len(), 64);
    }
}
