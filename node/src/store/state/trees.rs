//! sled 0.34 behind glass: every call catches panics, each tree carries a digest of its pairs that is checked at open, flushes are
//! followed by a real fdatasync (sled's own is `sync_file_range`), and the epoch garbage that sled leaves is driven out. A store that
//! fails is set aside. Called by the store's thread only.

use super::marks::Marks;
use super::{Change, Stored};
use crate::model::{LeaderId, LogId, ShardId};
use std::fs::File;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

const CACHE_BYTES: u64 = 64 << 20;
/// sled collects segments only in its flusher thread, so that must run.
const FLUSHER_MS: u64 = 500;
/// An epoch collection frees at most 8 bags of 64 objects; a checkpoint of 5,000 keys leaves about 80 bags in one go.
const EPOCH_ROUNDS: usize = 200;
/// Sorts before every key of a machine.
const META: &[u8] = b"\0meta";
const META_BYTES: usize = 32;

/// Why the store could not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Reading or writing failed, or another process holds the store.
    #[error("state store: {0}")]
    Disk(String),
    /// The content is wrong or sled panicked; the store was set aside and is empty now.
    #[error("state store is damaged: {0}")]
    Damaged(String),
    /// The shard has nothing stored that a partial change could build on.
    #[error("shard {0} needs a full checkpoint")]
    NeedsFull(ShardId),
    /// Not taken: too many wait, or the store is closing.
    #[error("state store is busy")]
    Busy,
}

/// A damaged store was moved away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// Where it is now.
    pub to: PathBuf,
    /// What was wrong.
    pub why: String,
}

/// What opening found. Nothing wrong: the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// The store was damaged and is empty now.
    pub set_aside: Option<SetAside>,
    /// Shards that sled gave back older than a checkpoint it had made durable (it cuts off what it cannot read), or not at all. What
    /// is there is whole, but the log may not reach back to it.
    pub rolled_back: Vec<RolledBack>,
}

/// A shard whose newest checkpoint is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RolledBack {
    /// Which.
    pub shard: ShardId,
    /// What was durable once.
    pub from: LogId,
    /// What is there.
    pub to: Option<LogId>,
}

/// All trees of a node.
#[derive(Debug)]
pub struct Trees {
    path: PathBuf,
    /// Last checkpoint of each shard.
    marks: Marks,
    /// `None` after a failure, until the next write opens an empty one.
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    db: sled::Db,
    file: File,
}

/// What a tree says of itself.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Meta {
    applied: LogId,
    /// Sum over all pairs.
    digest: u64,
}

impl Meta {
    fn encode(self) -> [u8; META_BYTES] {
        let mut out = [0; META_BYTES];
        let words = [self.applied.leader.term, self.applied.leader.voter, self.applied.index, self.digest];
        for (to, word) in out.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    fn decode(bytes: &[u8]) -> Option<Meta> {
        let (words, rest) = bytes.as_chunks::<8>();
        let [term, voter, index, digest] = <[[u8; 8]; 4]>::try_from(words).ok()?.map(u64::from_le_bytes);
        rest.is_empty().then_some(Meta { applied: LogId { leader: LeaderId { term, voter }, index }, digest })
    }
}

fn pair_digest(key: &[u8], value: &[u8]) -> u64 {
    let crc = crc32c::crc32c_append(crc32c::crc32c(key), value);
    (u64::from(crc) << 16 | key.len() as u64 & 0xffff).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn tree_name(shard: ShardId) -> [u8; 3] {
    let [high, low] = shard.0.to_be_bytes();
    [b't', high, low]
}

impl From<sled::Error> for StateError {
    fn from(error: sled::Error) -> StateError {
        match error {
            sled::Error::Io(e) if !matches!(e.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) => StateError::Disk(e.to_string()),
            other => StateError::Damaged(other.to_string()),
        }
    }
}

/// Runs a piece of sled; a panic is damage.
fn contained<R>(work: impl FnOnce() -> Result<R, StateError>) -> Result<R, StateError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        Err(StateError::Damaged(text.unwrap_or_else(|| "panic".to_owned())))
    })
}

impl Trees {
    /// Opens and checks; a damaged store is set aside.
    pub fn open(path: &Path) -> Result<(Trees, OpenReport), StateError> {
        let mut marks = Marks::read(path);
        let (open, set_aside) = match contained(|| Open::checked(path)) {
            Ok(open) => (open, None),
            Err(StateError::Damaged(why)) => {
                let to = set_aside(path)?;
                tracing::error!(path = %path.display(), to = %to.display(), why, "state store is damaged, set aside; starting empty");
                (contained(|| Open::checked(path))?, Some(SetAside { to, why }))
            }
            Err(other) => return Err(other),
        };
        let rolled_back = if set_aside.is_none() { marks.behind(|shard| open.applied(shard))? } else { Vec::new() };
        if !rolled_back.is_empty() {
            tracing::error!(path = %path.display(), ?rolled_back, "state store lost checkpoints");
        }
        if set_aside.is_some() {
            marks.clear();
        }
        rolled_back.iter().for_each(|lost| marks.remove(lost.shard));
        Ok((Trees { path: path.to_owned(), marks, open: Some(open) }, OpenReport { set_aside, rolled_back }))
    }

    /// Applies a change; durable after `flush`.
    pub fn write(&mut self, shard: ShardId, change: &Change) -> Result<(), StateError> {
        self.with(|open| open.write(shard, change))?;
        self.marks.set(shard, change.applied);
        Ok(())
    }

    /// Makes all writes durable.
    pub fn flush(&mut self) -> Result<(), StateError> {
        self.with(Open::flush)?;
        self.marks.write(&self.path)?;
        Ok(())
    }

    /// A shard's pairs.
    pub fn load(&mut self, shard: ShardId) -> Result<Stored, StateError> {
        self.with(|open| open.load(shard))
    }

    /// After a failure nothing that sled holds can be trusted: the store is set aside, and the next call begins an empty one.
    fn with<R>(&mut self, work: impl FnOnce(&Open) -> Result<R, StateError>) -> Result<R, StateError> {
        if self.open.is_none() {
            self.open = Some(contained(|| Open::checked(&self.path))?);
        }
        let Some(open) = &self.open else { return Err(StateError::Busy) };
        let result = contained(|| work(open));
        if let Err(error @ (StateError::Damaged(_) | StateError::Disk(_))) = &result {
            tracing::error!(path = %self.path.display(), %error, "state store failed, setting it aside");
            if let Some(open) = self.open.take() {
                // Closing writes once more and may fail in the same way.
                let _ = contained(|| {
                    drop(open);
                    Ok(())
                });
            }
            self.marks.clear();
            if let Err(error) = set_aside(&self.path) {
                tracing::error!(path = %self.path.display(), %error, "the failed state store cannot be moved");
            }
        }
        result
    }
}

/// Renames the directory to `<path>.damaged`; an older one of that name goes.
fn set_aside(path: &Path) -> Result<PathBuf, StateError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".damaged");
    let to = PathBuf::from(name);
    if to.exists() {
        std::fs::remove_dir_all(&to)?;
    }
    if path.exists() {
        std::fs::rename(path, &to)?;
    }
    Ok(to)
}

impl Open {
    fn checked(path: &Path) -> Result<Open, StateError> {
        let db = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(Some(FLUSHER_MS)).open()?;
        let file = File::options().read(true).write(true).open(path.join("db"))?;
        let open = Open { db, file };
        for name in open.db.tree_names() {
            if let [b't', high, low] = *name {
                open.check(ShardId(u16::from_be_bytes([high, low])))?;
            }
        }
        Ok(open)
    }

    fn check(&self, shard: ShardId) -> Result<(), StateError> {
        let stored = self.load(shard)?;
        let sum = stored.pairs.iter().fold(0u64, |sum, (k, v)| sum.wrapping_add(pair_digest(k, v)));
        let told = self.meta(&self.tree(shard)?)?.map_or(0, |m| m.digest);
        if sum == told { Ok(()) } else { Err(StateError::Damaged(format!("digest of shard {shard} does not match"))) }
    }

    fn tree(&self, shard: ShardId) -> Result<sled::Tree, StateError> {
        Ok(self.db.open_tree(tree_name(shard))?)
    }

    fn meta(&self, tree: &sled::Tree) -> Result<Option<Meta>, StateError> {
        let Some(bytes) = tree.get(META)? else { return Ok(None) };
        Meta::decode(&bytes).map(Some).ok_or_else(|| StateError::Damaged("meta row".to_owned()))
    }

    fn applied(&self, shard: ShardId) -> Result<Option<LogId>, StateError> {
        Ok(self.meta(&self.tree(shard)?)?.map(|m| m.applied))
    }

    fn write(&self, shard: ShardId, change: &Change) -> Result<(), StateError> {
        let tree = self.tree(shard)?;
        let meta = self.meta(&tree)?;
        let (mut batch, mut digest) = (sled::Batch::default(), meta.map_or(0, |m| m.digest));
        if change.full {
            digest = 0;
            for key in tree.iter().keys() {
                batch.remove(key?);
            }
        } else if meta.is_none() {
            return Err(StateError::NeedsFull(shard));
        } else {
            for key in change.deletes.iter().chain(change.puts.iter().map(|(key, _)| key)) {
                if let Some(old) = tree.get(key)? {
                    digest = digest.wrapping_sub(pair_digest(key, &old));
                }
            }
            change.deletes.iter().for_each(|key| batch.remove(key.as_slice()));
        }
        for (key, value) in &change.puts {
            digest = digest.wrapping_add(pair_digest(key, value));
            batch.insert(key.as_slice(), value.as_slice());
        }
        batch.insert(META, &Meta { applied: change.applied, digest }.encode());
        tree.apply_batch(batch)?;
        Ok(())
    }

    fn flush(&self) -> Result<(), StateError> {
        self.db.flush()?;
        self.file.sync_data()?;
        (0..EPOCH_ROUNDS).for_each(|_| crossbeam_epoch::pin().flush());
        Ok(())
    }

    fn load(&self, shard: ShardId) -> Result<Stored, StateError> {
        let tree = self.tree(shard)?;
        let applied = self.applied(shard)?;
        let mut pairs = Vec::new();
        for pair in tree.iter() {
            let (key, value) = pair?;
            if key != META {
                pairs.push((key.to_vec(), value.to_vec()));
            }
        }
        Ok(Stored { applied, pairs })
    }
}
