//! openraft's state machine over a group's machine: applying is memory only (P3). Tracks what is applied, for leadership (rule 24) and
//! for whoever waits for an index. Snapshots come and go past openraft (`transfer`); here they are only installed.

use super::holding::Holding;
use super::types::*;
use crate::machine::Living;
use crate::model::LogId;
use crate::model::entry::EntryBytes;
use crate::store::state::Change;
use futures::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot, SnapshotMeta};
use openraft::{EntryPayload, OptionalSend};
use std::io;
use std::sync::Arc;
use tokio::sync::{oneshot, watch};

/// An entry that the machine cannot read: a bug or a newer version. The group stops on this node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("entry {index} cannot be applied: {why}")]
pub struct Fault {
    /// Its index.
    pub index: u64,
    /// The cause in words.
    pub why: String,
}

/// A machine's state for another node.
pub struct Departing {
    /// The state after this entry.
    pub applied: LogId,
    /// All of it.
    pub state: Vec<u8>,
    /// Entries whose bytes belong to it, ascending.
    pub live: Vec<u64>,
}

/// A state that came from another node, not yet in use.
pub struct Arrived {
    /// The state after this entry.
    pub applied: LogId,
    /// What the store must hold for it: a full change.
    pub change: Change,
    /// Entries whose bytes belong to it, ascending.
    pub live: Vec<u64>,
    /// Makes it the machine's state.
    pub adopt: Box<dyn FnOnce() + Send>,
}

/// A group's machine as this room drives it. Deterministic, memory only.
pub trait Machine: Send + Sync + 'static {
    /// Apply a committed entry; in order, each once.
    fn apply(&self, id: LogId, entry: &EntryBytes) -> Result<Reply, Fault>;
    /// The log moved on with an entry that is not the machine's (blank, membership).
    fn pass(&self, _id: LogId) -> Result<(), Fault> {
        Ok(())
    }
    /// What the store must change for the state as it is now; `None`: nothing. Counts as stored from now on.
    fn checkpoint(&self) -> Option<Change> {
        None
    }
    /// A `checkpoint` did not get to the disk: the next one must be full.
    fn checkpoint_lost(&self) {}
    /// Indices of entries that a checkpoint at `upto` shows to be without live messages; each is given once.
    fn released(&self, _upto: u64) -> Vec<u64> {
        Vec::new()
    }
    /// What of these entries (ascending, all in its checkpoint) belongs to the state as it is now; `None`: it cannot tell.
    fn living(&self, _indices: &[u64]) -> Option<Living> {
        None
    }
    /// The replica is given up: its state is empty from now on.
    fn clear(&self) {}
    /// The last entry that the machine's state contains; `None` when it is empty.
    fn restored(&self) -> Option<LogId>;
    /// Entries whose bytes belong to the state, ascending.
    fn live(&self) -> Vec<u64> {
        Vec::new()
    }
    /// All of the state, for another node; `None` when it is empty.
    fn snapshot(&self) -> Option<Departing> {
        None
    }
    /// The way back from `snapshot`.
    fn arrived(&self, _state: &[u8]) -> Result<Arrived, String> {
        Err("this machine takes no state".into())
    }
}

/// openraft's side of a machine.
pub struct GroupMachine {
    holding: Arc<Holding>,
    applied: Option<Oid>,
    applied_tx: watch::Sender<Option<LogId>>,
    _here: oneshot::Sender<()>,
}

/// What is heard of a machine that openraft has.
pub struct Heard {
    /// The last applied entry.
    pub applied_rx: watch::Receiver<Option<LogId>>,
    /// Ends with the machine: openraft's task that applies is gone.
    pub gone_rx: oneshot::Receiver<()>,
}

impl GroupMachine {
    /// Over a restored machine.
    pub fn new(holding: Arc<Holding>) -> (GroupMachine, Heard) {
        let restored = holding.machine.restored();
        let (applied_tx, applied_rx) = watch::channel(restored);
        let (_here, gone_rx) = oneshot::channel();
        (GroupMachine { holding, applied: restored.map(to_oid), applied_tx, _here }, Heard { applied_rx, gone_rx })
    }

    fn membership(&self) -> Ostored {
        self.holding.membership.lock().clone()
    }

    fn published(&self) -> Option<Osnapshot> {
        let last_log_id = (*self.holding.checkpointed.lock()).map(to_oid)?;
        let meta = SnapshotMeta { last_log_id: Some(last_log_id), last_membership: self.membership() };
        Some(Snapshot { meta, snapshot: SnapshotData::Published })
    }
}

type Osnapshot = Snapshot<Lid, u64, openraft::EmptyNode, SnapshotData>;

impl RaftStateMachine<Types> for GroupMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Published;

    async fn applied_state(&mut self) -> Result<(Option<Oid>, Ostored), io::Error> {
        Ok((self.applied, self.membership()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            self.holding.work.goes_on();
            let id = from_oid(entry.log_id);
            let reply = match entry.payload {
                EntryPayload::Normal(command) => self.accepted(self.holding.machine.apply(id, &command.0))?,
                EntryPayload::Blank => self.pass(id)?,
                EntryPayload::Membership(members) => {
                    *self.holding.membership.lock() = Ostored::new(Some(entry.log_id), members);
                    self.pass(id)?
                }
            };
            self.applied = Some(entry.log_id);
            self.applied_tx.send_replace(Some(id));
            if let Some(responder) = responder {
                responder.send(reply);
            }
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<Published> {
        self.published().map(|snapshot| Published(snapshot.meta))
    }

    async fn get_snapshot_builder(&mut self) -> Published {
        Published(self.published().map(|snapshot| snapshot.meta).unwrap_or_default())
    }

    async fn install_snapshot(&mut self, meta: &Ometa, data: SnapshotData) -> Result<(), io::Error> {
        let SnapshotData::Arrived(arrived) = data else {
            return Err(io::Error::other("only a state that came from another node can be installed"));
        };
        let applied = arrived.applied;
        self.holding.install(meta.last_membership.clone(), *arrived).await?;
        self.applied = Some(to_oid(applied));
        self.applied_tx.send_replace(Some(applied));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Osnapshot>, io::Error> {
        Ok(self.published())
    }
}

impl GroupMachine {
    fn accepted<T>(&self, applied: Result<T, Fault>) -> io::Result<T> {
        applied.map_err(|fault| {
            self.holding.work.refuses();
            io::Error::other(fault)
        })
    }

    fn pass(&self, id: LogId) -> io::Result<Reply> {
        // The first entry of a log has index 0, which the machines take for "nothing applied".
        if id.index > 0 {
            self.accepted(self.holding.machine.pass(id))?;
        }
        Ok(Reply::Nothing)
    }
}

/// Publishes the durable checkpoint to openraft, which purges logs up to it; nothing is built.
pub struct Published(Ometa);

impl RaftSnapshotBuilder<Types> for Published {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<Osnapshot, io::Error> {
        Ok(Snapshot { meta: self.0.clone(), snapshot: SnapshotData::Published })
    }
}
