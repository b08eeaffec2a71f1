//! sled 0.34 behind glass: every call catches panics, each tree carries a digest of its pairs that is checked at open, flushes are
//! followed by a real fdatasync (sled's own is `sync_file_range`), and the epoch garbage that sled leaves is driven out. A store that
//! fails is opened anew; what is damaged on disk is set aside. Called by the store's thread only.

use super::marks::Marks;
use super::{Change, Stored};
use crate::model::{LeaderId, LogId, ShardId, panics};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const CACHE_BYTES: u64 = 64 << 20;
/// sled collects segments only in its flusher thread, so that must run.
const FLUSHER_MS: u64 = 1000;
/// An epoch collection frees at most 8 bags of 64 objects; a checkpoint of 5,000 keys leaves about 80 bags in one go.
const EPOCH_ROUNDS: usize = 200;
/// sled's words for a store that somebody holds.
const LOCKED: &str = "could not acquire lock";
/// How long a lock that may be our own is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// Sorts before every key of a machine.
const META: &[u8] = b"\0meta";
const META_BYTES: usize = 32;
/// More than sled needs to write at an open.
const PROBE_BYTES: usize = 1 << 20;

/// Why the store could not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Reading or writing failed, or another process holds the store.
    #[error("state store: {0}")]
    Disk(String),
    /// The content is wrong or sled panicked. What the disk holds is checked at the next call and set aside if it is wrong too.
    #[error("state store is damaged: {0}")]
    Damaged(String),
    /// The shard has nothing stored that a partial change could build on.
    #[error("shard {0} needs a full checkpoint")]
    NeedsFull(ShardId),
    /// The store has a newer state of the shard already: its log may be purged up to there.
    #[error("shard {shard} is stored up to {stored}, a state of {given} would take it back")]
    Older {
        /// Which.
        shard: ShardId,
        /// Index of what is stored.
        stored: u64,
        /// Index of what was given.
        given: u64,
    },
    /// Not taken: too many wait, or the store is closing.
    #[error("state store is busy")]
    Busy,
}

impl StateError {
    /// Whether the store was closed by it: what was written since the last flush is lost.
    pub fn closes(&self) -> bool {
        matches!(self, StateError::Disk(_) | StateError::Damaged(_))
    }
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
    /// Of these what was durable, whether or not the file could be written that says so.
    durable: Marks,
    /// The file says less.
    unmarked: bool,
    /// `None` after a failure, until the next call opens what is on disk.
    open: Option<Open>,
    /// Shards that were found older than their mark: a partial change would build on the wrong base.
    needs_full: BTreeSet<ShardId>,
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
    catch_unwind(AssertUnwindSafe(|| panics::contained(work))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        Err(StateError::Damaged(text.unwrap_or_else(|| "panic".to_owned())))
    })
}

impl Trees {
    /// Opens and checks; a damaged store is set aside.
    pub fn open(path: &Path) -> Result<(Trees, OpenReport), StateError> {
        let marks = Marks::read(path);
        let (unknown, marks) = (marks.is_none(), marks.unwrap_or_default());
        let (durable, needs_full) = (marks.clone(), BTreeSet::new());
        let mut trees = Trees { path: path.to_owned(), marks, durable, unmarked: false, open: None, needs_full };
        let report = trees.reopen()?;
        trees.needs_full.clear();
        if unknown && report.set_aside.is_none() && trees.has_checkpoints()? {
            tracing::error!(path = %path.display(), "the state store's marks cannot be read: whether it lost checkpoints, the logs must show");
        }
        Ok((trees, report))
    }

    /// Applies a change; durable after `flush`. After an error that `StateError::closes` nothing written since the last flush counts.
    pub fn write(&mut self, shard: ShardId, change: &Change) -> Result<(), StateError> {
        self.opened()?;
        if !change.full && self.needs_full.contains(&shard) {
            return Err(StateError::NeedsFull(shard));
        }
        self.with(|open| open.write(shard, change))?;
        self.needs_full.remove(&shard);
        self.marks.set(shard, change.applied);
        Ok(())
    }

    /// Makes all writes durable. The file of marks follows: a checkpoint is none the less for it, since this process knows what was durable
    /// and the next one builds on what it finds.
    pub fn flush(&mut self) -> Result<(), StateError> {
        self.with(Open::flush)?;
        self.durable = self.marks.clone();
        let marked = self.durable.write(&self.path);
        if let Err(error) = &marked
            && !self.unmarked
        {
            tracing::warn!(path = %self.path.display(), %error, "what was checkpointed cannot be written down beside the state store");
        }
        self.unmarked = marked.is_err();
        Ok(())
    }

    /// A shard's pairs.
    pub fn load(&mut self, shard: ShardId) -> Result<Stored, StateError> {
        self.with(|open| open.load(shard))
    }

    fn has_checkpoints(&self) -> Result<bool, StateError> {
        let Some(open) = &self.open else { return Ok(false) };
        for shard in open.shards() {
            if open.applied(shard)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn opened(&mut self) -> Result<(), StateError> {
        if self.open.is_none() {
            self.marks = self.durable.clone();
            self.reopen()?;
        }
        Ok(())
    }

    /// After a failure nothing that sled holds in memory can be trusted: it is closed, and the next call opens what is on disk anew.
    /// A full disk is no damage: the logs of what was checkpointed may be purged, so the store stays where it is.
    fn with<R>(&mut self, work: impl FnOnce(&Open) -> Result<R, StateError>) -> Result<R, StateError> {
        self.opened()?;
        let Some(open) = &self.open else { return Err(StateError::Busy) };
        let result = contained(|| work(open));
        if let Err(error) = &result
            && error.closes()
        {
            tracing::error!(path = %self.path.display(), %error, "state store failed, it will be opened anew");
            if let Some(open) = self.open.take() {
                // Closing writes once more and may fail in the same way.
                let _ = contained(|| {
                    drop(open);
                    Ok(())
                });
            }
        }
        result
    }

    fn reopen(&mut self) -> Result<OpenReport, StateError> {
        let path = &self.path;
        let (open, set_aside) = match contained(|| Open::checked(path)) {
            Ok(open) => (open, None),
            Err(StateError::Damaged(why)) => {
                has_room(path)?;
                let to = set_aside(path)?;
                tracing::error!(path = %path.display(), to = %to.display(), why, "state store is damaged, set aside; starting empty");
                (contained(|| Open::checked(path))?, Some(SetAside { to, why }))
            }
            Err(other) => return Err(other),
        };
        let rolled_back = if set_aside.is_none() { self.marks.behind(|shard| open.applied(shard))? } else { Vec::new() };
        if !rolled_back.is_empty() {
            tracing::error!(path = %path.display(), ?rolled_back, "state store lost checkpoints");
        }
        if set_aside.is_some() {
            self.marks.clear();
        }
        for lost in &rolled_back {
            self.marks.remove(lost.shard);
            self.needs_full.insert(lost.shard);
        }
        self.durable = self.marks.clone();
        self.open = Some(open);
        Ok(OpenReport { set_aside, rolled_back })
    }
}

/// What looks like damage on a full disk may be the full disk.
fn has_room(path: &Path) -> Result<(), StateError> {
    let mut probe = path.as_os_str().to_owned();
    probe.push(".probe");
    let probe = PathBuf::from(probe);
    let written = std::fs::write(&probe, vec![1; PROBE_BYTES]).and_then(|()| File::open(&probe)?.sync_all());
    let _ = std::fs::remove_file(&probe); // may never have been made
    Ok(written?)
}

/// Renames the directory to `<path>.damaged`. An older one of that name goes only when every shard in it has a newer checkpoint in the
/// one that takes its place: until then it may be the only copy of what logs no longer hold, and the newer one gets a number.
fn set_aside(path: &Path) -> Result<PathBuf, StateError> {
    let name = |number: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(if number == 0 { ".damaged".to_owned() } else { format!(".damaged.{number}") });
        PathBuf::from(name)
    };
    let mut to = name(0);
    // Marks that cannot be read cover nothing and are covered by nothing.
    let covered = || Some(Marks::read(path)?.cover(&Marks::read(&to)?));
    if to.exists() && covered() == Some(true) {
        std::fs::remove_dir_all(&to)?;
    }
    for number in 1.. {
        if !to.exists() {
            break;
        }
        to = name(number);
    }
    if path.exists() {
        std::fs::rename(path, &to)?;
    }
    Ok(to)
}

/// A store that was just closed keeps its file lock until sled's deferred destructors have run: the lock is waited for a little.
fn open_patiently(path: &Path) -> Result<sled::Db, sled::Error> {
    let started = Instant::now();
    loop {
        match sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(Some(FLUSHER_MS)).open() {
            Err(sled::Error::Io(error)) if error.to_string().contains(LOCKED) && started.elapsed() < LOCK_PATIENCE => {
                crossbeam_epoch::pin().flush();
                std::thread::sleep(Duration::from_millis(20));
            }
            opened => return opened,
        }
    }
}

impl Open {
    fn checked(path: &Path) -> Result<Open, StateError> {
        let db = open_patiently(path)?;
        let file = File::options().read(true).write(true).open(path.join("db"))?;
        let open = Open { db, file };
        for shard in open.shards() {
            open.check(shard)?;
        }
        Ok(open)
    }

    /// That have a tree.
    fn shards(&self) -> Vec<ShardId> {
        let shard = |name: &[u8]| match name {
            [b't', high, low] => Some(ShardId(u16::from_be_bytes([*high, *low]))),
            _ => None,
        };
        self.db.tree_names().iter().filter_map(|name| shard(name)).collect()
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
        if let Some(stored) = meta.map(|m| m.applied.index).filter(|stored| change.applied.index < *stored) {
            return Err(StateError::Older { shard, stored, given: change.applied.index });
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn id(index: u64) -> LogId {
        LogId { leader: LeaderId { term: 1, voter: 2 }, index }
    }

    fn change(index: u64, full: bool) -> Change {
        Change { applied: id(index), full, puts: vec![(b"a".to_vec(), index.to_le_bytes().to_vec())], deletes: Vec::new() }
    }

    fn fail(trees: &mut Trees, error: StateError) {
        assert_eq!(trees.with(|_| Err::<(), _>(error.clone())), Err(error));
    }

    #[test]
    fn a_full_disk_twice_in_a_row_costs_no_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let (mut trees, _) = Trees::open(&path).unwrap();
        trees.write(ShardId(1), &change(5, true)).unwrap();
        trees.flush().unwrap();
        for error in [StateError::Disk("no space".into()), StateError::Disk("no space".into()), StateError::Damaged("panic".into())] {
            fail(&mut trees, error);
            assert_eq!(trees.load(ShardId(1)).unwrap().applied, Some(id(5)));
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing was set aside");
        trees.write(ShardId(1), &change(6, false)).unwrap();
        trees.flush().unwrap();
        assert_eq!(trees.load(ShardId(1)).unwrap().applied, Some(id(6)));
    }

    #[test]
    fn a_checkpoint_is_one_although_its_mark_cannot_be_written_and_is_missed_when_it_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let (mut trees, _) = Trees::open(&path).unwrap();
        std::fs::create_dir(path.join("marks")).unwrap();
        trees.write(ShardId(1), &change(5, true)).unwrap();
        assert_eq!(trees.flush(), Ok(()));
        fail(&mut trees, StateError::Disk("closes it".into()));
        open_patiently(&path).unwrap().drop_tree(tree_name(ShardId(1))).unwrap();
        assert_eq!(trees.write(ShardId(1), &change(6, false)), Err(StateError::NeedsFull(ShardId(1))));
        trees.write(ShardId(1), &change(6, true)).unwrap();
        std::fs::remove_dir(path.join("marks")).unwrap();
        assert_eq!(trees.flush(), Ok(()));
        assert_eq!(Marks::read(&path), Some(trees.durable), "made up for");
    }

    /// Breaks the content so that the next open sees it.
    fn break_it(trees: &mut Trees) {
        fail(trees, StateError::Disk("closes it".into()));
        let db = open_patiently(&trees.path).unwrap();
        db.open_tree(tree_name(ShardId(1))).unwrap().insert("b", "a pair that no digest knows").unwrap();
        db.flush().unwrap();
    }

    #[test]
    fn a_store_set_aside_stays_until_every_shard_of_it_has_a_newer_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let (mut trees, _) = Trees::open(&path).unwrap();
        (1..3).for_each(|shard| trees.write(ShardId(shard), &change(5, true)).unwrap());
        trees.flush().unwrap();
        break_it(&mut trees);
        assert_eq!(trees.load(ShardId(1)), Ok(Stored::default()));
        assert_eq!(trees.write(ShardId(1), &change(6, false)), Err(StateError::NeedsFull(ShardId(1))));
        trees.write(ShardId(1), &change(7, true)).unwrap();
        trees.flush().unwrap();
        break_it(&mut trees);
        assert_eq!(trees.load(ShardId(1)), Ok(Stored::default()));
        let first = dir.path().join("state.damaged");
        let marks = |shards: &[(u16, u64)]| {
            let mut marks = Marks::default();
            shards.iter().for_each(|(shard, index)| marks.set(ShardId(*shard), id(*index)));
            marks
        };
        assert_eq!(Marks::read(&first), Some(marks(&[(1, 5), (2, 5)])), "shard 2 is nowhere else");
        assert!(dir.path().join("state.damaged.1").exists());
        (1..3).for_each(|shard| trees.write(ShardId(shard), &change(8, true)).unwrap());
        trees.flush().unwrap();
        break_it(&mut trees);
        trees.load(ShardId(1)).unwrap();
        assert_eq!(Marks::read(&first), Some(marks(&[(1, 8), (2, 8)])), "the older one was not needed any more");
        // Of one whose marks rotted nobody knows whether it is needed.
        std::fs::write(first.join("marks"), b"rot").unwrap();
        (1..3).for_each(|shard| trees.write(ShardId(shard), &change(9, true)).unwrap());
        trees.flush().unwrap();
        break_it(&mut trees);
        trees.load(ShardId(1)).unwrap();
        assert_eq!(std::fs::read(first.join("marks")).unwrap(), b"rot");
        assert!(dir.path().join("state.damaged.2").exists());
    }

    #[test]
    fn a_store_whose_marks_rotted_opens_as_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let (mut trees, _) = Trees::open(&path).unwrap();
        trees.write(ShardId(1), &change(5, true)).unwrap();
        trees.flush().unwrap();
        drop(trees);
        std::fs::write(path.join("marks"), b"rot").unwrap();
        let (mut trees, report) = Trees::open(&path).unwrap();
        assert_eq!((report, trees.load(ShardId(1)).unwrap().applied), (OpenReport::default(), Some(id(5))));
        // What is loaded at a start is what the next change builds on, and marks are there again.
        trees.write(ShardId(1), &change(6, false)).unwrap();
        trees.flush().unwrap();
        assert!(Marks::read(&path).is_some());
    }
}
