//! Checkpoints: every second the applied state of each group that moved goes to the state store, off every confirm's path. What a
//! durable checkpoint covers may leave the log: entries without live messages are released, the log is purged up to it.

use super::groups::Checkpointed;
use crate::consensus::Shard;
use crate::model::LogId;
use crate::store::state::StateStore;
use crate::store::wal::Wal;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// Between two rounds.
const INTERVAL: Duration = Duration::from_secs(1);
/// A group that is always ahead of the disk gets this many chances per round to be caught level.
const TRIES: usize = 20;
const TRY_AGAIN: Duration = Duration::from_millis(5);

/// One group's part in checkpoints.
pub(super) struct Member {
    pub group: Arc<dyn Checkpointed>,
    pub shard: Shard,
}

/// Writes checkpoints of all groups until the node stops.
pub(super) struct Checkpointer {
    pub members: Vec<Member>,
    pub store: Arc<StateStore>,
    pub wal: Wal,
}

impl Checkpointer {
    /// For ever; cancel safe between groups.
    pub async fn run(&self) {
        let mut last: Vec<Option<LogId>> = vec![None; self.members.len()];
        loop {
            tokio::time::sleep(INTERVAL).await;
            for (member, last) in self.members.iter().zip(&mut last) {
                if *last != Some(member.group.applied()) {
                    *last = self.checkpoint(member).await.or(*last);
                }
            }
        }
    }

    /// One round for everything, at the end.
    pub async fn finish(&self) {
        for member in &self.members {
            self.checkpoint(member).await;
        }
    }

    /// Returns what the durable checkpoint holds; `None` when none was written.
    async fn checkpoint(&self, member: &Member) -> Option<LogId> {
        let shard = member.group.shard();
        let (change, freed) = self.take(member).await?;
        let applied = change.applied;
        let (done_tx, done_rx) = oneshot::channel();
        self.store.checkpoint(shard, change, move |result| drop(done_tx.send(result)));
        match done_rx.await {
            Ok(Ok(_)) => {
                self.wal.release(shard, &freed);
                Some(applied)
            }
            Ok(Err(error)) => {
                tracing::warn!(%shard, %error, "checkpoint failed; the log keeps everything until one succeeds");
                member.group.give_back(freed);
                None
            }
            Err(_) => None,
        }
    }

    async fn take(&self, member: &Member) -> Option<(crate::store::state::Change, Vec<u64>)> {
        for _ in 0..TRIES {
            let flushed = self.wal.flushed(member.group.shard())?;
            if let Some(taken) = member.group.take(flushed) {
                return Some(taken);
            }
            tokio::time::sleep(TRY_AGAIN).await;
        }
        None
    }
}
