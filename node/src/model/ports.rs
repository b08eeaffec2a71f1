//! The seams between rooms that must not know each other: what `serving` needs from whoever replicates, and the paths between an
//! edge and a leader. Implemented by `consensus` (Raft groups), by `serving::local` (in-memory shards) and by `peer` (remote paths).

use super::entry::{EntryBytes, SectionReply, Word};
use super::letters::{Address, Letter, LetterFate, LetterMessage, RoutedRun, Source};
use super::link::{Deliveries, ToEdge, ToLeader};
use super::stored::StoredEntry;
use super::{LeaderId, LogId, NodeId, QueueId, ShardId, TxId};
use futures::future::BoxFuture;
use std::sync::Arc;
use std::{fmt, io};
use tokio::sync::mpsc;

/// Who leads a shard as this node sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The leader id, once known.
    pub leader: Option<LeaderId>,
    /// This node leads under that id.
    pub is_me: bool,
}

impl Leadership {
    /// The id that this node leads under, if it does.
    pub fn as_me(&self) -> Option<LeaderId> {
        self.leader.filter(|_| self.is_me)
    }
}

/// What became of a proposal.
#[derive(Clone, Debug, PartialEq)]
pub enum ProposalOutcome {
    /// Committed and applied at this id: the machine's answers, one per section.
    Applied(LogId, Vec<SectionReply>),
    /// Not proposed, or its fate is unknown (leadership lost, lease expired): drop later ones, edges rewind (rule 12).
    Failed(String),
}

/// Tokens count within an epoch; their upper bits say which. After a failed proposal the later ones of its epoch fail too, whether
/// or not they were on their way already: who proposes begins a new epoch when it hears of the failure (rule 12).
pub const EPOCH_SHIFT: u32 = 40;

/// The first token of the epoch after `token`'s.
pub fn next_epoch(token: u64) -> u64 {
    ((token >> EPOCH_SHIFT) + 1) << EPOCH_SHIFT
}

/// A replicated log that takes entries under a leadership and hands the outcome to the mailbox given at its construction, in log order.
pub trait Proposer: Send + Sync + 'static {
    /// Queue an entry. Never blocks. `token` (see [`EPOCH_SHIFT`]) comes back with the outcome; exactly one outcome per call.
    fn propose(&self, token: u64, leader: LeaderId, entry: EntryBytes);
    /// Whether a quorum acknowledged this leader within the lease (rule 20); always true for a local shard.
    fn lease_valid(&self) -> bool;
}

/// What time it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Milliseconds since the epoch as far as the cluster agrees; `None` while that is not known.
    pub clock_ms: Option<u64>,
    /// Milliseconds from anywhere, of a clock that nobody can set and that goes on in a suspended machine.
    pub steady_ms: u64,
    /// A majority of the members agreed on `clock_ms`; else it is a guess.
    pub is_agreed: bool,
    /// So it does, and this node's own clock is right: what ends by time may end (rule 24).
    pub is_sure: bool,
}

/// The time that entries carry and messages end by. Implemented by `consensus` (what the members' clocks agree on) and by `serving` for
/// queues that no other node has.
pub trait Clock: Send + Sync + 'static {
    /// Now; cheap enough for every entry.
    fn read(&self) -> Reading;
}

/// Bodies by log index.
pub trait Bodies: Send + Sync + 'static {
    /// From memory, at once.
    fn cached(&self, index: u64) -> Option<EntryBytes>;
    /// From disk (or a peer when the local copy is bad).
    fn read(&self, index: u64) -> BoxFuture<'static, io::Result<EntryBytes>>;
    /// The first ones of several, ascending, as many as are had in one go: at least one.
    fn read_run(&self, indices: Vec<u64>) -> BoxFuture<'static, io::Result<Vec<StoredEntry>>> {
        let first = indices.first().map(|first| self.read(*first));
        Box::pin(async move {
            match first {
                Some(read) => Ok(vec![read.await?.into()]),
                None => Ok(Vec::new()),
            }
        })
    }
}

/// Says whether a quorum acknowledged a leader of this process within the lease (rule 20).
#[derive(Clone)]
pub struct Lease(Arc<dyn Fn() -> bool + Send + Sync>);

impl Lease {
    /// That `check` says so. It is asked often, under locks: it must not wait.
    pub fn new(check: impl Fn() -> bool + Send + Sync + 'static) -> Lease {
        Lease(Arc::new(check))
    }

    /// Now.
    pub fn is_valid(&self) -> bool {
        (self.0)()
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({})", self.is_valid())
    }
}

/// An edge's end of a path to a shard's leader. Dropping it ends the path; a closed receiver says that the path is gone.
#[derive(Debug)]
pub struct EdgeEnd {
    /// To the leader, in order.
    pub up_tx: mpsc::Sender<ToLeader>,
    /// Verdicts and answers.
    pub down_rx: mpsc::Receiver<ToEdge>,
    /// Messages.
    pub deliveries_rx: mpsc::Receiver<Deliveries>,
    /// Of a leader in this process: what it gave may be written while this is valid.
    pub lease: Option<Lease>,
}

/// The leader's end of the same path.
#[derive(Debug)]
pub struct LeaderEnd {
    /// Which node's edge.
    pub node: NodeId,
    /// From the edge, in order.
    pub up_rx: mpsc::Receiver<ToLeader>,
    /// Verdicts and answers; its capacity covers all windows, so a full one means a broken peer: drop the path.
    pub down_tx: mpsc::Sender<ToEdge>,
    /// Messages; full means wait.
    pub deliveries_tx: mpsc::Sender<Deliveries>,
}

/// Messages that fit into each direction of a path.
pub const PATH_CAPACITY: usize = 4096;

/// A new path, both ends; `peer` gives each end to one process.
pub fn path(node: NodeId) -> (EdgeEnd, LeaderEnd) {
    let (up_tx, up_rx) = mpsc::channel(PATH_CAPACITY);
    let (down_tx, down_rx) = mpsc::channel(PATH_CAPACITY);
    let (deliveries_tx, deliveries_rx) = mpsc::channel(PATH_CAPACITY);
    (EdgeEnd { up_tx, down_rx, deliveries_rx, lease: None }, LeaderEnd { node, up_rx, down_tx, deliveries_tx })
}

/// Routes letters of the shards that this node leads and carries them to other shards. Implemented by `edge`. No call waits.
pub trait DeadLetterOffice: Send + Sync + 'static {
    /// Where letters with one address go, and what they become, in order; `None`: not now, ask again.
    fn route(&self, letters: &[Letter], address: &Address) -> Option<Vec<RoutedRun>>;
    /// What a letter becomes that was routed before: always the same.
    fn write(&self, letter: &Letter, address: &Address) -> LetterMessage;
    /// Sends letters to queues of another shard, behind those sent there before; the shard first follows the catalog to `catalog_index`.
    /// `answered` is called once for each, for several together when it can be, unless the node ends before.
    fn forward(
        &self,
        first: Source,
        target: (ShardId, &[QueueId]),
        catalog_index: u64,
        letters: &[LetterMessage],
        answered: LetterAnswered,
    );
}

/// Told what became of letters: from one to another, counted from 0 in what was sent.
pub type LetterAnswered = Arc<dyn Fn((u64, u64), LetterFate) + Send + Sync>;

/// Carries what the leaders of this node have to say to other shards about transactions (rule 26). Implemented by `edge`.
pub trait Courier: Send + Sync + 'static {
    /// Says it behind what was said there before; false: not now. `heard` is called once the shard has it.
    fn tell(&self, shard: ShardId, tx: TxId, word: Word, heard: WordHeard) -> bool;
}

/// Told once that a word arrived.
pub type WordHeard = Box<dyn Fn() + Send + Sync>;

/// Opens paths to leaders, in process or over the network. The composition root implements it.
pub trait Paths: Send + Sync + 'static {
    /// A path to `shard` on `leader`'s node.
    fn connect(&self, shard: ShardId, leader: NodeId) -> BoxFuture<'static, io::Result<EdgeEnd>>;
}
