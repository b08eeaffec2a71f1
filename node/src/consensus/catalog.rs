//! Catalog commands: proposing them on the leader, finding the leader from any node, answering only what is visible everywhere (rule 28).

use super::core::Core;
use super::shard::WriteError;
use super::types::Reply;
use super::wire::Ask;
use crate::machine::catalog::decode_command;
use crate::model::catalog::{CatalogCommand, CatalogReply, Refusal};
use crate::model::entry::EntryBytes;
use crate::model::{NodeId, ShardId};
use crate::peer::transport::head_only;
use crate::peer::{Frame, PeerError};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Between two attempts.
const RETRY: Duration = Duration::from_millis(20);
/// One attempt: longer than the wait for leases of a new leader.
const ATTEMPT: Duration = Duration::from_secs(3);

const OK: u8 = 0;
const NOT_LEADER: u8 = 1;
const UNKNOWN: u8 = 2;

/// Why a command was not done on this node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    /// Nothing happened: another node leads the catalog.
    #[error("this node does not lead the catalog")]
    NotLeader,
    /// Nothing happened: no majority acknowledged this leader in time.
    #[error("no majority of the catalog's replicas answers")]
    NoQuorum,
    /// It may have happened.
    #[error("{0}")]
    Unknown(String),
}

/// Submits catalog commands from any node. Cheap to clone.
#[derive(Clone)]
pub struct CatalogClient {
    pub(super) core: Arc<Core>,
}

impl CatalogClient {
    /// Commit `command` and wait until it is visible on every node that may route, this one included. Retries on a leader change until
    /// `deadline`; commands are idempotent. Nothing is proposed later, but what was proposed before may still be committed: a refusal for
    /// want of an answer leaves open whether the command takes effect. Answers the catalog index that holds the effect.
    pub async fn submit(&self, command: &CatalogCommand, deadline: Instant) -> Result<(u64, CatalogReply), Refusal> {
        let bytes = Bytes::from(encode(command)?);
        let mut why = "no leader of the catalog is known".to_string();
        while Instant::now() < deadline {
            match self.attempt(bytes.clone(), deadline).await {
                Ok((index, reply)) => return self.applied_here(index, deadline).await.map(|()| (index, reply)),
                Err(error) => why = error,
            }
            tokio::time::sleep(RETRY.min(deadline.saturating_duration_since(Instant::now()))).await;
        }
        Err(Refusal::Unavailable(format!("the catalog did not answer in time ({why}); is a majority of nodes up and connected?")))
    }

    async fn attempt(&self, command: Bytes, deadline: Instant) -> Result<(u64, CatalogReply), String> {
        let leadership = *self.core.leadership(ShardId::CATALOG).borrow();
        let leader = leadership.leader.ok_or("no leader of the catalog is known")?.node();
        let patience = ATTEMPT.min(deadline.saturating_duration_since(Instant::now()));
        if leader == self.core.me {
            let done = tokio::time::timeout(patience, propose(&self.core, command, Instant::now() + patience)).await;
            return done.map_err(|_| "no majority of the catalog's replicas answers".to_string())?.map_err(|e| e.to_string());
        }
        ask(&self.core, leader, command, patience).await
    }

    async fn applied_here(&self, index: u64, deadline: Instant) -> Result<(), Refusal> {
        let Some(catalog) = self.core.group(ShardId::CATALOG) else { return Ok(()) };
        let mut applied_rx = catalog.applied();
        let here = applied_rx.wait_for(|id| id.is_some_and(|id| id.index >= index));
        match tokio::time::timeout_at(deadline, here).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Refusal::Unavailable("this node is stopping".into())),
            Err(_) => Err(Refusal::Unavailable("done, but this node has not caught up with the catalog in time".into())),
        }
    }
}

fn encode(command: &CatalogCommand) -> Result<Vec<u8>, Refusal> {
    rmp_serde::to_vec_named(command).map_err(|e| Refusal::Unavailable(format!("internal error: {e}")))
}

/// Commit a command as the catalog's leader and wait until it is visible. It is proposed by `deadline` or not at all.
pub(super) async fn propose(core: &Core, command: Bytes, deadline: Instant) -> Result<(u64, CatalogReply), CatalogError> {
    let catalog = core.group(ShardId::CATALOG).ok_or(CatalogError::NotLeader)?;
    if !catalog.leadership().borrow().is_me {
        return Err(CatalogError::NotLeader);
    }
    let (id, reply) = loop {
        match catalog.write(EntryBytes::from(command.clone())).await {
            Ok(done) => break done,
            Err(WriteError::NotLeader) => return Err(CatalogError::NotLeader),
            // Nothing was written.
            Err(WriteError::NoQuorum) if Instant::now() + RETRY < deadline => tokio::time::sleep(RETRY).await,
            Err(WriteError::NoQuorum) => return Err(CatalogError::NoQuorum),
            Err(error) => return Err(CatalogError::Unknown(error.to_string())),
        }
    };
    let Reply::Catalog(reply) = reply else { return Err(CatalogError::Unknown("the catalog gave no reply".into())) };
    if !core.leases.caught_up(id.leader, id.index) || !core.leases.visible(id.index).await {
        return Err(CatalogError::Unknown("leadership of the catalog moved".into()));
    }
    Ok((id.index, reply))
}

async fn ask(core: &Core, leader: NodeId, command: Bytes, patience: Duration) -> Result<(u64, CatalogReply), String> {
    let transport = core.transport().ok_or("this node is starting")?;
    let mut head = BytesMut::with_capacity(9);
    head.put_u8(Ask::Catalog as u8);
    head.put_u64_le(patience.as_millis() as u64);
    let frame = Frame { head: head.freeze(), body: vec![command] };
    let mut head = transport.ask(leader, frame, patience).await.map_err(|e| e.to_string())?.head;
    let malformed = |_| "malformed answer of the catalog's leader".to_string();
    match head.try_get_u8().map_err(malformed)? {
        OK => {
            let index = head.try_get_u64_le().map_err(malformed)?;
            Ok((index, rmp_serde::from_slice(&head).map_err(|e| e.to_string())?))
        }
        NOT_LEADER => Err(CatalogError::NotLeader.to_string()),
        _ => Err(String::from_utf8_lossy(&head).into_owned()),
    }
}

/// What no replica could apply must not get into the log: it would end the group on all nodes for good.
fn readable(body: &mut Vec<Bytes>) -> Result<Bytes, PeerError> {
    let command = body.pop().filter(|bytes| decode_command(bytes).is_some());
    command.ok_or(PeerError::Malformed("catalog command"))
}

/// The leader's side of `ask`: who asks waits no longer than it says.
pub(super) async fn answer(core: &Core, Frame { head: mut question, mut body }: Frame) -> Result<Frame, PeerError> {
    let patience_ms = question.try_get_u64_le().map_err(|_| PeerError::Malformed("catalog command"))?;
    let command = readable(&mut body)?;
    let deadline = Instant::now() + ATTEMPT.min(Duration::from_millis(patience_ms));
    let mut head = BytesMut::new();
    match propose(core, command, deadline).await {
        Ok((index, reply)) => {
            head.put_u8(OK);
            head.put_u64_le(index);
            let reply = rmp_serde::to_vec_named(&reply).map_err(|_| PeerError::Malformed("catalog reply"))?;
            head.put_slice(&reply);
        }
        Err(CatalogError::NotLeader) => head.put_u8(NOT_LEADER),
        Err(why @ (CatalogError::NoQuorum | CatalogError::Unknown(_))) => {
            head.put_u8(UNKNOWN);
            head.put_slice(why.to_string().as_bytes());
        }
    }
    Ok(head_only(head.freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::QueueId;

    #[test]
    fn a_command_that_no_replica_could_apply_is_not_proposed() {
        let good = Bytes::from(encode(&CatalogCommand::DeleteQueue { id: QueueId(3) }).expect("encodes"));
        assert_eq!(readable(&mut vec![good.clone()]), Ok(good.clone()));
        for bad in [Bytes::new(), Bytes::from_static(b"poison"), good.slice(..good.len() - 1)] {
            assert_eq!(readable(&mut vec![bad]), Err(PeerError::Malformed("catalog command")));
        }
    }
}
