//! The mailbox of a shard's server and the handle that everybody else holds: paths, leadership, outcomes, effects, finished reads.
//! Nothing here blocks or waits. What lies in it is bounded by what the server itself asked for (entries in flight, reads), by the
//! number of paths, and for effects by the entries in flight: effects that arrive while this node does not lead are dropped.

use super::feed::CatalogFeed;
use super::lateness::Lateness;
use crate::machine::shard::Effect;
use crate::model::entry::EntryBytes;
use crate::model::entry::Word;
use crate::model::letters::{Address, Letter, LetterFate, LetterMessage, RoutedRun, Source};
use crate::model::ports::{Clock, Courier, DeadLetterOffice, LeaderEnd, Leadership, LetterAnswered, ProposalOutcome, Reading, WordHeard};
use crate::model::{LogId, NodeId, QueueId, ShardId, TxId, limits};
use futures::task::AtomicWaker;
use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often waiting things are looked at.
const TICK: Duration = Duration::from_millis(100);

/// What a shard's server is told once.
#[derive(Clone)]
pub struct ServerConfig {
    /// Its shard.
    pub shard: ShardId,
    /// This node.
    pub node: NodeId,
    /// For the entries' stamp, and for what ends by time.
    pub clock: Arc<dyn Clock>,
    /// An edge without a path for this long is declared gone.
    pub edge_gone: Duration,
    /// How often waiting things are looked at (edges without a path, full paths, idle windows); nothing ticks while nothing waits.
    pub tick: Duration,
    /// The catalog as this node knows it.
    pub catalog: Arc<dyn CatalogFeed>,
    /// Who routes dead letters.
    pub letters: Arc<dyn DeadLetterOffice>,
    /// Who carries words about transactions.
    pub courier: Arc<dyn Courier>,
    /// Counts what becomes of delayed messages.
    pub lateness: Arc<Lateness>,
}

/// No letter goes anywhere.
struct Closed;

impl DeadLetterOffice for Closed {
    fn route(&self, _letters: &[Letter], _address: &Address) -> Option<Vec<RoutedRun>> {
        None
    }

    fn write(&self, _letter: &Letter, _address: &Address) -> LetterMessage {
        LetterMessage::default()
    }

    fn forward(&self, _: Source, _: (ShardId, &[QueueId]), _catalog_index: u64, _: &[LetterMessage], _answered: LetterAnswered) {}
}

impl Courier for Closed {
    fn tell(&self, _shard: ShardId, _tx: TxId, _word: Word, _heard: WordHeard) -> bool {
        false
    }
}

impl ServerConfig {
    /// With the limits' times and this machine's own clock; dead letters wait.
    pub fn new(shard: ShardId, node: NodeId, catalog: Arc<dyn CatalogFeed>) -> ServerConfig {
        let edge_gone = limits::EDGE_GONE;
        let (letters, courier) = (Arc::new(Closed), Arc::new(Closed));
        let lateness = Arc::default();
        ServerConfig { shard, node, clock: Arc::new(OwnClock), edge_gone, tick: TICK, catalog, letters, courier, lateness }
    }
}

/// This machine's: nobody else's time matters to what only this node has.
pub(super) struct OwnClock;

impl Clock for OwnClock {
    fn read(&self) -> Reading {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
        let boot = clock_gettime(ClockId::Boottime);
        Reading {
            clock_ms: Some(since_epoch.map_or(0, |t| t.as_millis() as u64)),
            steady_ms: boot.tv_sec.unsigned_abs() * 1000 + boot.tv_nsec.unsigned_abs() / 1_000_000,
            is_agreed: true,
            is_sure: true,
        }
    }
}

/// What a server asks of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerEvent {
    /// A queue takes nothing any more, since it is to be deleted: propose `DeleteQueue` until it is (rule 22).
    Sealed {
        /// Which queue.
        queue: QueueId,
    },
}

/// A body that was read from disk.
pub(super) struct ReadDone {
    pub queue: QueueId,
    pub index: u64,
    pub result: io::Result<EntryBytes>,
}

/// An entry with letters of a queue was read.
pub(super) struct LetterRead {
    pub queue: QueueId,
    pub index: u64,
    pub result: io::Result<EntryBytes>,
}

/// What waits for the server.
#[derive(Default)]
pub(super) struct Inbox {
    pub ends: Vec<LeaderEnd>,
    pub leadership: Option<Leadership>,
    pub outcomes: Vec<(u64, ProposalOutcome)>,
    pub effects: Vec<Effect>,
    pub reads: Vec<ReadDone>,
    pub letters: Vec<LetterRead>,
    pub letters_answered: Vec<((u64, u64), ShardId, LetterFate)>,
    pub told: Vec<(TxId, ShardId)>,
    pub catalog_moved: bool,
    pub stop: bool,
}

impl Inbox {
    fn is_empty(&self) -> bool {
        self.ends.is_empty()
            && self.leadership.is_none()
            && self.outcomes.is_empty()
            && self.effects.is_empty()
            && self.reads.is_empty()
            && self.letters.is_empty()
            && self.letters_answered.is_empty()
            && self.told.is_empty()
            && !self.catalog_moved
            && !self.stop
    }
}

#[derive(Default)]
struct Shared {
    inbox: Mutex<Inbox>,
    leading: AtomicBool,
    waker: AtomicWaker,
}

/// The receiving end of a [`ServerHandle`], handed to `spawn`.
pub struct Mailbox(Arc<Shared>);

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mailbox")
    }
}

impl Mailbox {
    /// Takes all that waits; pending when nothing does.
    pub(super) fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Inbox> {
        self.0.waker.register(cx.waker());
        let mut inbox = self.0.inbox.lock();
        if inbox.is_empty() { Poll::Pending } else { Poll::Ready(std::mem::take(&mut *inbox)) }
    }

    /// A handle to this mailbox, for reads that the server starts itself.
    pub(super) fn handle(&self) -> ServerHandle {
        ServerHandle(self.0.clone())
    }
}

/// Cheap to clone; no call blocks.
#[derive(Clone)]
pub struct ServerHandle(Arc<Shared>);

impl fmt::Debug for ServerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerHandle")
    }
}

/// A handle and its mailbox, made first so that a proposer can be given the handle before the server runs.
pub fn mailbox() -> (ServerHandle, Mailbox) {
    let shared = Arc::new(Shared::default());
    (ServerHandle(shared.clone()), Mailbox(shared))
}

impl ServerHandle {
    /// A path from an edge, local or remote.
    pub fn connected(&self, end: LeaderEnd) {
        self.put(|inbox| inbox.ends.push(end));
    }

    /// Who leads now. `is_me` only once an entry of that leader id is applied here (rule 24).
    pub fn leadership(&self, leadership: Leadership) {
        self.0.leading.store(leadership.is_me, Ordering::Release);
        self.put(|inbox| inbox.leadership = Some(leadership));
    }

    /// An entry was applied to the shard's machine, by whoever proposed it; before or after the entry's `outcome`.
    pub fn applied(&self, _id: LogId, effects: Vec<Effect>) {
        if self.0.leading.load(Ordering::Acquire) && !effects.is_empty() {
            self.put(|inbox| inbox.effects.extend(effects));
        }
    }

    /// What became of a proposal, in log order, once per proposal; after the machine applied it.
    pub fn outcome(&self, token: u64, outcome: ProposalOutcome) {
        self.put(|inbox| inbox.outcomes.push((token, outcome)));
    }

    /// The local catalog applied something.
    pub fn catalog_moved(&self) {
        self.put(|inbox| inbox.catalog_moved = true);
    }

    /// Ends the server: paths close, volatile state is forgotten.
    pub fn stop(&self) {
        self.put(|inbox| inbox.stop = true);
    }

    pub(super) fn read_done(&self, done: ReadDone) {
        self.put(|inbox| inbox.reads.push(done));
    }

    pub(super) fn letter_read(&self, read: LetterRead) {
        self.put(|inbox| inbox.letters.push(read));
    }

    pub(super) fn letters_answered(&self, letters: (u64, u64), target: ShardId, fate: LetterFate) {
        self.put(|inbox| inbox.letters_answered.push((letters, target, fate)));
    }

    pub(super) fn told(&self, tx: TxId, shard: ShardId) {
        self.put(|inbox| inbox.told.push((tx, shard)));
    }

    fn put(&self, change: impl FnOnce(&mut Inbox)) {
        change(&mut self.0.inbox.lock());
        self.0.waker.wake();
    }
}
