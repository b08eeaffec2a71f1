//! Applied state on disk: one sled tree per shard, written by checkpoints off every confirm's path, on a thread of its own. Called by
//! `consensus`, which must be able to do without: what is stored here is always a prefix of the log, never the only copy of anything.
//! A damaged store is set aside and reported; the next start is empty. A full disk is no damage: nothing is moved.

mod marks;
mod trees;

pub use trees::{OpenReport, RolledBack, SetAside, StateError};

use crate::model::{LogId, ShardId};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use trees::Trees;

/// Requests that wait for the thread: one checkpoint per shard is out at a time, so this is never reached.
const WAITING: usize = 1024;
/// Checkpoints that share one flush.
const TOGETHER: usize = 64;

/// What a checkpoint changes, as one atomic step (the same fields as the machine's delta).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Change {
    /// The state after this entry.
    pub applied: LogId,
    /// Stands for itself: whatever else is stored for the shard goes. Needed for a shard that has nothing stored.
    pub full: bool,
    /// Keys and values to set.
    pub puts: Vec<(Vec<u8>, Vec<u8>)>,
    /// Keys to remove.
    pub deletes: Vec<Vec<u8>>,
}

/// A shard as stored.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stored {
    /// Up to where; `None`: nothing is stored.
    pub applied: Option<LogId>,
    /// Keys and values, by key.
    pub pairs: Vec<(Vec<u8>, Vec<u8>)>,
}

type Done = Box<dyn FnOnce(Result<LogId, StateError>) + Send>;

enum Request {
    Checkpoint(ShardId, Change, Done),
    Load(ShardId, SyncSender<Result<Stored, StateError>>),
}

/// Since when the thread works on what it was given, for those who must not wait for it to know.
#[derive(Debug)]
struct Work {
    opened: Instant,
    /// Microseconds after `opened`, and one; 0: it has nothing to do.
    began_us: AtomicU64,
}

impl Work {
    fn new() -> Arc<Work> {
        Arc::new(Work { opened: Instant::now(), began_us: AtomicU64::new(0) })
    }

    fn began(&self) {
        self.began_us.store(self.opened.elapsed().as_micros() as u64 + 1, Ordering::Relaxed);
    }

    fn ended(&self) {
        self.began_us.store(0, Ordering::Relaxed);
    }

    fn under_way(&self) -> Option<Duration> {
        let began_us = self.began_us.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.opened.elapsed().saturating_sub(Duration::from_micros(began_us)))
    }
}

/// The store. Dropping it waits for checkpoints under way.
#[derive(Debug)]
pub struct StateStore {
    requests_tx: Option<SyncSender<Request>>,
    thread: Option<JoinHandle<()>>,
    path: PathBuf,
    work: Arc<Work>,
}

impl StateStore {
    /// Opens or creates the store in the directory `path` and checks all of it. A damaged one is renamed to `<path>.damaged` and an
    /// empty one takes its place: the report says so. Errors: the disk, or another process that holds the store.
    pub fn open(path: &Path) -> Result<(StateStore, OpenReport), StateError> {
        let (trees, report) = Trees::open(path)?;
        let (requests_tx, requests_rx) = sync_channel(WAITING);
        let work = Work::new();
        let working = work.clone();
        let thread = std::thread::Builder::new()
            .name("state-store".to_owned())
            .spawn(move || serve(trees, &requests_rx, &working))
            .map_err(|e| StateError::Disk(e.to_string()))?;
        let store = StateStore { requests_tx: Some(requests_tx), thread: Some(thread), path: path.to_owned(), work };
        Ok((store, report))
    }

    /// A store whose disk has no space for the first `refusals` checkpoints.
    #[cfg(test)]
    pub fn out_of_space(path: &Path, mut refusals: usize) -> StateStore {
        let (trees, _) = Trees::open(path).expect("opens");
        let (requests_tx, requests_rx) = sync_channel(WAITING);
        let work = Work::new();
        let working = work.clone();
        let serving = move || {
            while refusals > 0 {
                match requests_rx.recv() {
                    Ok(Request::Checkpoint(_, _, done)) => done(Err(StateError::Disk("no space left on device".into()))),
                    Ok(Request::Load(_, reply_tx)) => drop(reply_tx.send(Ok(Stored::default()))),
                    Err(_) => return,
                }
                refusals -= 1;
            }
            serve(trees, &requests_rx, &working);
        };
        StateStore { requests_tx: Some(requests_tx), thread: Some(std::thread::spawn(serving)), path: path.to_owned(), work }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Stores a change. `done` is called on the store's thread once it is durable, or says why not: then the change is lost and the
    /// shard's next one must be full. Never blocks. Changes of a shard must be given in log order: an older one is refused.
    pub fn checkpoint(&self, shard: ShardId, change: Change, done: impl FnOnce(Result<LogId, StateError>) + Send + 'static) {
        let request = Request::Checkpoint(shard, change, Box::new(done));
        let refused = match self.requests_tx.as_ref().map(|tx| tx.try_send(request)) {
            Some(Ok(())) => return,
            Some(Err(TrySendError::Full(request) | TrySendError::Disconnected(request))) => Some(request),
            None => None,
        };
        if let Some(Request::Checkpoint(_, _, done)) = refused {
            done(Err(StateError::Busy));
        }
    }

    /// How long the checkpoints under way have been taking, their sync included; `None`: there are none.
    pub fn writing_for(&self) -> Option<Duration> {
        self.work.under_way()
    }

    /// What is stored for a shard. Blocks: for the start of a node.
    pub fn load(&self, shard: ShardId) -> Result<Stored, StateError> {
        let (reply_tx, reply_rx) = sync_channel(1);
        let sent = self.requests_tx.as_ref().is_some_and(|tx| tx.send(Request::Load(shard, reply_tx)).is_ok());
        if sent { reply_rx.recv().unwrap_or(Err(StateError::Busy)) } else { Err(StateError::Busy) }
    }
}

impl Drop for StateStore {
    fn drop(&mut self) {
        self.requests_tx = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(path = %self.path.display(), "the state store's thread has panicked");
        }
    }
}

/// The thread: takes what waits, writes it, flushes once, answers.
fn serve(mut trees: Trees, requests_rx: &Receiver<Request>, work: &Work) {
    while let Ok(first) = requests_rx.recv() {
        work.began();
        let mut written = Vec::new();
        let mut next = Some(first);
        while let Some(request) = next {
            match request {
                Request::Checkpoint(shard, change, done) => match trees.write(shard, &change) {
                    Ok(()) => written.push((change.applied, done)),
                    Err(error) => {
                        lose(&mut written, &error);
                        done(Err(error));
                    }
                },
                Request::Load(shard, reply_tx) => {
                    let stored = trees.load(shard);
                    if let Err(error) = &stored {
                        lose(&mut written, error);
                    }
                    // The asker may have given up; nobody else wants the answer.
                    let _ = reply_tx.try_send(stored);
                }
            }
            next = if written.len() < TOGETHER { requests_rx.try_recv().ok() } else { None };
        }
        if !written.is_empty() {
            let flushed = trees.flush();
            for (applied, done) in written {
                done(flushed.clone().map(|()| applied));
            }
        }
        work.ended();
    }
}

/// What was written and not flushed when the store was closed is lost.
fn lose(written: &mut Vec<(LogId, Done)>, error: &StateError) {
    if error.closes() {
        written.drain(..).for_each(|(_, done)| done(Err(error.clone())));
    }
}

impl From<io::Error> for StateError {
    fn from(error: io::Error) -> StateError {
        StateError::Disk(error.to_string())
    }
}

#[cfg(test)]
mod tests;
