//! A node that lost a group's state, or entries that belong to it, gets it from any other replica before it takes part again. Until
//! then it neither votes nor acknowledges, and what it promised is kept: its vote and its log stay as they are, the state comes under
//! the log (rules 1, 3).

use super::core::Core;
use super::formation::FormationError;
use super::holding::Holding;
use super::transfer::{self, Pipe};
use crate::model::NodeId;
use crate::peer::{PeerError, StreamKind};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const RETRY: Duration = Duration::from_millis(500);
/// Between two log lines about the same obstacle.
const REPEAT: Duration = Duration::from_secs(10);

/// Returns when the state is here.
pub(super) async fn state(core: &Core, holding: &Arc<Holding>) -> Result<(), FormationError> {
    let shard = holding.shard;
    let others = || core.members.around(shard).into_iter().filter(|n| *n != core.me).collect::<Vec<NodeId>>();
    if others().is_empty() {
        return Err(FormationError::Stopped(format!(
            "the state of shard {shard} is lost: its checkpoint is gone, the log does not reach back to its beginning, and no other node \
             has a replica. Restore the data directory from a backup"
        )));
    }
    let mut said: Option<Instant> = None;
    loop {
        let mut why = Vec::new();
        for node in others() {
            match from(core, holding, node, None).await {
                Ok(()) => return Ok(()),
                Err(error) => why.push(format!("node {node}: {error}")),
            }
        }
        if said.is_none_or(|at| at.elapsed() >= REPEAT) {
            let why = why.join("; ");
            tracing::error!(%shard, why, "the state of this shard is lost on this node; it does not vote until another replica gave it its state");
            said = Some(Instant::now());
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Takes the state of `node`, which must be one after entry `least`.
pub(super) async fn from(core: &Core, holding: &Arc<Holding>, node: NodeId, least: Option<u64>) -> Result<(), PeerError> {
    let transport = core.transport().ok_or_else(|| PeerError::Refused("the network is not started".into()))?;
    let receiving = holding.receive().await;
    let mut pipe = Pipe::from(transport.open(node, StreamKind::Snapshot).await?);
    let offer = transfer::pull(&mut pipe, holding.shard).await?;
    let arrived = transfer::receive(&mut pipe, &offer, &receiving).await?;
    let purged = holding.journal.state(holding.shard).purged.map(|id| id.index);
    let restored = holding.machine.restored().map(|id| id.index);
    if Some(arrived.applied.index) < purged.max(restored).max(least) {
        let error = PeerError::Refused("its state is older than what this node has forgotten".into());
        pipe.refuse(&error).await;
        return Err(error);
    }
    holding.install(offer.membership.clone(), arrived).await.map_err(|e| PeerError::Refused(e.to_string()))?;
    // The sender only waits to end.
    let _ = pipe.installed(&offer.vote).await;
    Ok(())
}
