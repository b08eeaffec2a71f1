//! Entries for deliveries: from this node's log, and from another replica when this disk returns something else than was written
//! (rule 7). Only committed entries are asked for, so any replica that has the id has the same bytes, or what is left of them: what
//! somebody's copy lacks was settled by an entry that is committed, so nobody delivers it any more. What is fetched is used, and written
//! only when the file with the damaged place is cleaned (`relocation`).

use super::core::Core;
use super::journal::Journal;
use super::members::Members;
use super::service::group;
use super::shard::Inner;
use super::transfer::{self, Pipe};
use crate::model::entry::EntryBytes;
use crate::model::stored::StoredEntry;
use crate::model::{LogId, NodeId, ShardId};
use crate::peer::{PeerError, StreamKind, Transport};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// One replica may take so long for one entry.
const PATIENCE: Duration = Duration::from_secs(5);

/// What deliveries had to do without this node's disk.
#[derive(Debug, Default)]
pub struct BodyCounters {
    fetched: AtomicU64,
    missing: AtomicU64,
}

impl BodyCounters {
    /// Entries that came from another replica.
    pub fn fetched(&self) -> u64 {
        self.fetched.load(Ordering::Relaxed)
    }

    /// Attempts to read an entry that no replica could give.
    pub fn missing(&self) -> u64 {
        self.missing.load(Ordering::Relaxed)
    }
}

/// The other replicas of a group and the way there.
pub(super) struct Others {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) me: NodeId,
    pub(super) members: Members,
    pub(super) counters: Arc<BodyCounters>,
}

/// An entry of the group, from wherever it can be read. Errors: this disk's, with what the others said.
pub(super) async fn read(group: &Inner, index: u64) -> io::Result<EntryBytes> {
    let (shard, journal, others) = (group.id, &group.journal, &group.others);
    let error = match from_disk(journal, shard, index).await {
        Ok(entry) => return Ok(entry),
        Err(error) => error,
    };
    // Not in the index either: nobody needs it any more.
    let Some(id) = journal.log_id(shard, index) else { return Err(error) };
    let mut why = error.to_string();
    for node in others.members.now(shard).into_iter().filter(|node| *node != others.me) {
        match tokio::time::timeout(PATIENCE, from_node(others, node, shard, id)).await {
            Ok(Ok(entry)) => {
                others.counters.fetched.fetch_add(1, Ordering::Relaxed);
                tracing::error!(%shard, index, %error, from = %node, "an entry is damaged on this disk; it was fetched from another node");
                return Ok(entry);
            }
            Ok(Err(refused)) => why.push_str(&format!("; node {node}: {refused}")),
            Err(_) => why.push_str(&format!("; node {node} did not answer")),
        }
    }
    others.counters.missing.fetch_add(1, Ordering::Relaxed);
    Err(io::Error::new(error.kind(), why))
}

/// The first ones of several entries of the group, at least one; one that is damaged comes by itself. Errors as in `read`.
pub(super) async fn read_run(group: &Inner, indices: Vec<u64>) -> io::Result<Vec<StoredEntry>> {
    let Some(first) = indices.first().copied() else { return Ok(Vec::new()) };
    let (shard, journal) = (group.id, group.journal.clone());
    let run = tokio::task::spawn_blocking(move || journal.read_bodies(shard, &indices)).await.map_err(io::Error::other)?;
    match run {
        Ok(entries) if !entries.is_empty() => Ok(entries),
        Ok(_) | Err(_) => Ok(vec![read(group, first).await?.into()]),
    }
}

async fn from_disk(journal: &Arc<dyn Journal>, shard: ShardId, index: u64) -> io::Result<EntryBytes> {
    let journal = journal.clone();
    tokio::task::spawn_blocking(move || journal.read_body(shard, index)).await.map_err(io::Error::other)?
}

async fn from_node(others: &Others, node: NodeId, shard: ShardId, id: LogId) -> Result<EntryBytes, PeerError> {
    let mut pipe = Pipe::from(others.transport.open(node, StreamKind::Snapshot).await?);
    transfer::fetch(&mut pipe, shard, id).await
}

/// The other side: exactly this entry, if it is here and good.
pub(super) async fn give(core: &Core, pipe: &mut Pipe, shard: ShardId, id: LogId) -> Result<(), PeerError> {
    let journal = group(core, shard)?.inner().journal.clone();
    let lacks = |why: String| PeerError::Refused(format!("entry {} of shard {shard} is not here: {why}", id.index));
    if journal.log_id(shard, id.index) != Some(id) {
        return Err(lacks("unknown".into()));
    }
    let read = tokio::task::spawn_blocking(move || transfer::stored(&*journal, shard, id)).await;
    let stored = read.map_err(|error| lacks(error.to_string()))?.map_err(|error| lacks(error.to_string()))?;
    transfer::give(pipe, stored).await
}
