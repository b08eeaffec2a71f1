//! openraft's state machine over a group's machine: applying is memory only (P3). Tracks what is applied, for leadership (rule 24) and
//! for whoever waits for an index.

use super::types::*;
use crate::model::LogId;
use crate::model::entry::EntryBytes;
use crate::store::state::Change;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot, SnapshotMeta};
use openraft::{EntryPayload, OptionalSend};
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use tokio::sync::watch;

/// An entry that the machine cannot read: a bug or a newer version. The group stops on this node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("entry {index} cannot be applied: {why}")]
pub struct Fault {
    /// Its index.
    pub index: u64,
    /// The cause in words.
    pub why: String,
}

/// A group's machine as this room drives it. Deterministic, memory only.
pub trait Machine: Send + Sync + 'static {
    /// Apply a committed entry; in order, each once.
    fn apply(&self, id: LogId, entry: &EntryBytes) -> Result<Reply, Fault>;
    /// The log moved on with an entry that is not the machine's (blank, membership).
    fn pass(&self, _id: LogId) -> Result<(), Fault> {
        Ok(())
    }
    /// What the store must change, when the machine has applied nothing beyond `flushed`.
    fn checkpoint(&self, _flushed: u64) -> Option<Change> {
        None
    }
    /// The last `checkpoint` did not get to the disk: the next one must be full.
    fn checkpoint_lost(&self) {}
    /// Indices of entries that a checkpoint at `upto` shows to be without live messages; each is given once.
    fn released(&self, _upto: u64) -> Vec<u64> {
        Vec::new()
    }
    /// The last entry that the machine's restored state contains; `None` when it starts empty.
    fn restored(&self) -> Option<LogId>;
}

/// The durable checkpoint of a group, shared with whoever writes it: what openraft calls the snapshot.
pub type Checkpointed = Arc<Mutex<Option<LogId>>>;

/// openraft's side of a machine.
pub struct GroupMachine {
    machine: Arc<dyn Machine>,
    applied: Option<Oid>,
    membership: Ostored,
    applied_tx: watch::Sender<Option<LogId>>,
    checkpointed: Checkpointed,
}

impl GroupMachine {
    /// `membership`: the group's members as the log last said, for a state that was restored beyond that entry.
    pub fn new(machine: Arc<dyn Machine>, membership: Ostored) -> (GroupMachine, watch::Receiver<Option<LogId>>, Checkpointed) {
        let restored = machine.restored();
        let membership = if restored.is_some() { membership } else { Ostored::default() };
        let (applied_tx, applied_rx) = watch::channel(restored);
        let checkpointed = Arc::new(Mutex::new(restored));
        let applied = restored.map(to_oid);
        (GroupMachine { machine, applied, membership, applied_tx, checkpointed: checkpointed.clone() }, applied_rx, checkpointed)
    }

    fn snapshot(&self) -> Option<Osnapshot> {
        let last_log_id = (*self.checkpointed.lock()).map(to_oid)?;
        let meta = SnapshotMeta { last_log_id: Some(last_log_id), last_membership: self.membership.clone() };
        Some(Snapshot { meta, snapshot: Bytes::new() })
    }
}

type Osnapshot = Snapshot<Lid, u64, openraft::EmptyNode, Bytes>;

impl RaftStateMachine<Types> for GroupMachine {
    type SnapshotData = Bytes;
    type SnapshotBuilder = Published;

    async fn applied_state(&mut self) -> Result<(Option<Oid>, Ostored), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let id = from_oid(entry.log_id);
            let reply = match entry.payload {
                EntryPayload::Normal(command) => self.machine.apply(id, &command.0).map_err(io::Error::other)?,
                EntryPayload::Blank => self.pass(id)?,
                EntryPayload::Membership(members) => {
                    self.membership = Ostored::new(Some(entry.log_id), members);
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
        self.snapshot().map(Published)
    }

    async fn get_snapshot_builder(&mut self) -> Published {
        let empty = Snapshot { meta: SnapshotMeta::default(), snapshot: Bytes::new() };
        Published(self.snapshot().unwrap_or(empty))
    }

    async fn install_snapshot(&mut self, _meta: &SnapshotMeta<Lid, u64, openraft::EmptyNode>, _snapshot: Bytes) -> Result<(), io::Error> {
        Err(io::Error::other("snapshots are not received yet: logs are kept for the slowest replica"))
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Osnapshot>, io::Error> {
        Ok(self.snapshot())
    }
}

impl GroupMachine {
    fn pass(&self, id: LogId) -> io::Result<Reply> {
        // The first entry of a log has index 0, which the machines take for "nothing applied".
        if id.index > 0 {
            self.machine.pass(id).map_err(io::Error::other)?;
        }
        Ok(Reply::Nothing)
    }
}

/// Publishes the durable checkpoint to openraft, which purges logs up to it; nothing is built.
pub struct Published(Osnapshot);

impl RaftSnapshotBuilder<Types> for Published {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> Result<Osnapshot, io::Error> {
        Ok(self.0.clone())
    }
}
