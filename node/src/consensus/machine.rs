//! openraft's state machine over a group's machine: applying is memory only (P3). Tracks what is applied, for leadership (rule 24) and
//! for whoever waits for an index.

use super::types::*;
use crate::model::LogId;
use crate::model::entry::EntryBytes;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot, SnapshotMeta};
use openraft::{EntryPayload, OptionalSend};
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
    /// The last entry that the machine's restored state contains; `None` when it starts empty.
    fn restored(&self) -> Option<LogId>;
}

/// openraft's side of a machine.
pub struct GroupMachine {
    machine: Arc<dyn Machine>,
    applied: Option<Oid>,
    membership: Ostored,
    applied_tx: watch::Sender<Option<LogId>>,
}

impl GroupMachine {
    /// `members` (and who initialized them): the configured members of the group, for a state that was restored beyond the log's membership entry.
    pub fn new(machine: Arc<dyn Machine>, members: Omembership, initializer: u64) -> (GroupMachine, watch::Receiver<Option<LogId>>) {
        let restored = machine.restored();
        let membership = match restored {
            Some(_) => Ostored::new(Some(first_entry(initializer)), members),
            None => Ostored::default(),
        };
        let (applied_tx, applied_rx) = watch::channel(restored);
        (GroupMachine { machine, applied: restored.map(to_oid), membership, applied_tx }, applied_rx)
    }
}

/// The id of the entry that `initialize` writes.
fn first_entry(initializer: u64) -> Oid {
    Oid { leader_id: Lid { term: 0, node_id: initializer }, index: 0 }
}

impl RaftStateMachine<Types> for GroupMachine {
    type SnapshotData = Bytes;
    type SnapshotBuilder = NoSnapshot;

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
                EntryPayload::Blank => Reply::Nothing,
                EntryPayload::Normal(command) => self.machine.apply(id, &command.0).map_err(io::Error::other)?,
                EntryPayload::Membership(members) => {
                    self.membership = Ostored::new(Some(entry.log_id), members);
                    Reply::Nothing
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

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<NoSnapshot> {
        None
    }

    async fn get_snapshot_builder(&mut self) -> NoSnapshot {
        NoSnapshot
    }

    async fn install_snapshot(&mut self, _meta: &SnapshotMeta<Lid, u64, openraft::EmptyNode>, _snapshot: Bytes) -> Result<(), io::Error> {
        Err(io::Error::other(NO_SNAPSHOT))
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Lid, u64, openraft::EmptyNode, Bytes>>, io::Error> {
        Ok(None)
    }
}

const NO_SNAPSHOT: &str = "snapshots are not sent yet: logs are kept for the slowest replica";

/// Refuses to build a snapshot.
pub struct NoSnapshot;

impl RaftSnapshotBuilder<Types> for NoSnapshot {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> Result<Snapshot<Lid, u64, openraft::EmptyNode, Bytes>, io::Error> {
        Err(io::Error::other(NO_SNAPSHOT))
    }
}
