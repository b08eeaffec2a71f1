//! Secrets that never show in logs: passwords, and the cluster secret with the places it may come from. `config` resolves it,
//! `peer` and `management` prove it to each other without sending it.

use super::{ConfigError, DataDir, Environment, Settings};
use rand::RngCore;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The variable that holds the cluster secret itself.
pub(super) const SECRET_VARIABLE: &str = "WARREN_CLUSTER_SECRET";
/// The one that names a file with it; also the variable of the option `--cluster-secret-file`.
const SECRET_FILE_VARIABLE: &str = "WARREN_CLUSTER_SECRET_FILE";
/// A shorter one can be guessed from one overheard handshake.
const SECRET_BYTES_MIN: usize = 8;

/// A text that is shown to nobody.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wrap it.
    pub fn new(text: &str) -> Secret {
        Secret(text.to_owned())
    }

    /// The text itself: for hashing, never for logs.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Secret {
    type Err = std::convert::Infallible;
    fn from_str(text: &str) -> Result<Secret, Self::Err> {
        Ok(Secret::new(text))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What all nodes of a cluster and its operators know.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterSecret(Arc<[u8]>);

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterSecret(…)")
    }
}

impl ClusterSecret {
    /// From text; white space around it does not count.
    ///
    /// # Errors
    /// When it is too short to be one.
    pub fn new(text: &str) -> Result<ClusterSecret, String> {
        let text = text.trim();
        if text.len() < SECRET_BYTES_MIN {
            return Err(format!("is shorter than {SECRET_BYTES_MIN} characters"));
        }
        Ok(ClusterSecret(text.as_bytes().into()))
    }

    /// The bytes, as an HMAC key.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// From a file.
    ///
    /// # Errors
    /// When it cannot be read or is too short.
    pub fn from_file(path: &Path) -> Result<ClusterSecret, ConfigError> {
        let wrong = |why: String| ConfigError::SecretFile { path: path.to_owned(), why };
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        ClusterSecret::new(&text).map_err(wrong)
    }

    /// From the file given, the one that `WARREN_CLUSTER_SECRET_FILE` names, or `WARREN_CLUSTER_SECRET`; `None`: nobody names one. The same
    /// for nodes, the launcher and `warren ctl`, so that they find each other.
    ///
    /// # Errors
    /// When it cannot be read or is too short.
    pub fn named(file: Option<&Path>, environment: Environment<'_>) -> Result<Option<ClusterSecret>, ConfigError> {
        let read = |name: &str| environment(name).filter(|text| !text.is_empty());
        if let Some(path) = file.map(Path::to_owned).or_else(|| read(SECRET_FILE_VARIABLE).map(PathBuf::from)) {
            return ClusterSecret::from_file(&path).map(Some);
        }
        let Some(text) = read(SECRET_VARIABLE) else { return Ok(None) };
        ClusterSecret::new(&text).map(Some).map_err(|why| ConfigError::Variable { name: SECRET_VARIABLE.into(), why })
    }

    /// The file with the secret kept in a data directory, or in the local cluster's directory around it.
    pub fn kept_by(data_dir: &Path) -> Option<PathBuf> {
        let around = data_dir.parent().filter(|parent| DataDir::is_local_cluster(parent));
        [Some(data_dir), around].into_iter().flatten().map(DataDir::secret_path).find(|path| path.exists())
    }

    /// Read `path`, or make a random secret there that only this user can read.
    ///
    /// # Errors
    /// When it can be neither read nor made.
    pub fn from_file_or_new(path: &Path) -> Result<ClusterSecret, ConfigError> {
        match create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.map_err(|error| ConfigError::SecretFile { path: path.to_owned(), why: error.to_string() })?,
        }
        ClusterSecret::from_file(path)
    }
}

/// Writes a new secret beside `path` and links it there, so that a crash leaves a whole file or none.
fn create(path: &Path) -> io::Result<()> {
    if path.exists() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let mut random = [0u8; 32];
    rand::rng().fill_bytes(&mut random);
    let text: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let draft = path.with_extension(format!("draft-{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    let linked = std::fs::hard_link(&draft, path);
    std::fs::remove_file(&draft)?;
    linked
}

/// What is [`named`](ClusterSecret::named), the file named in the TOML file, `DATA_DIR/secret`, the secret of the local cluster that
/// `DATA_DIR` belongs to; a node on its own makes one.
pub(super) fn resolve(
    settings: &Settings,
    data_dir: &Path,
    nodes: usize,
    environment: Environment<'_>,
) -> Result<ClusterSecret, ConfigError> {
    if let Some(secret) = ClusterSecret::named(settings.cluster_secret_file.as_deref(), environment)? {
        return Ok(secret);
    }
    if let Some(path) = ClusterSecret::kept_by(data_dir) {
        return ClusterSecret::from_file(&path);
    }
    if nodes > 1 {
        return Err(ConfigError::NoSecret { nodes });
    }
    let path = DataDir::secret_path(data_dir);
    std::fs::create_dir_all(data_dir).map_err(|error| ConfigError::SecretFile { path: path.clone(), why: error.to_string() })?;
    ClusterSecret::from_file_or_new(&path)
}
