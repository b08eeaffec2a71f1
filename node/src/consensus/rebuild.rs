//! A replica whose log was damaged, or whose disk is new, has forgotten things that it confirmed: it takes part in nothing until it has
//! again all that it may have acknowledged, and a vote that is not older than any it may have given (rules 1, 5; docs/decisions/0011,
//! 0022). It asks who leads; the leader has itself confirmed by a majority without the asker, and answers when all that its log holds then
//! is applied. The state from there on is what the asker goes on with.

use super::core::Core;
use super::fetch;
use super::formation::{self, FormationError};
use super::holding::Holding;
use super::journal::{Damage, Vote};
use super::log::completion;
use super::placement::FIRST_GENERATION;
use super::service::group as group_of;
use super::wire::Ask;
use crate::model::{LeaderId, NodeId, ShardId, VoterId};
use crate::peer::transport::head_only;
use crate::peer::{Card, Frame, PeerError};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::raft::ReadPolicy;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

const RETRY: Duration = Duration::from_millis(300);
/// Between two log lines about the same obstacle.
const REPEAT: Duration = Duration::from_secs(10);
/// The leader may take so long to be confirmed and to apply its log.
const PATIENCE: Duration = Duration::from_secs(3);

const NOT_LEADING: u8 = 0;
const DAMAGED_TOO: u8 = 1;
const WHOLE_FROM: u8 = 2;

/// What another replica says, and the term of its own vote.
type Answer = (Said, u64);

/// How far a replica can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    /// It does not lead, or cannot prove it.
    NotLeading,
    /// Its own log is damaged.
    DamagedToo,
    /// It leads; its state after this entry has all that it ever sent and all that was confirmed before.
    WholeFrom(u64),
}

/// Returns when the group may take part again.
pub(super) async fn group(core: &Core, holding: &Arc<Holding>, damage: Damage) -> Result<(), FormationError> {
    let shard = holding.shard;
    // They may change meanwhile.
    let others = || core.members.around(shard).into_iter().filter(|n| *n != core.me).collect::<Vec<NodeId>>();
    if others().is_empty() {
        return Err(FormationError::Stopped(format!(
            "the log of shard {shard} is damaged and no other node has a replica: restore the data directory from a backup"
        )));
    }
    let is_new = || !core.members.roster().now(shard).contains(&core.me);
    let was_new = is_new();
    if was_new {
        tracing::info!(%shard, "this node is to have a replica of the shard: its leader is asked for the state");
    } else {
        tracing::error!(%shard, ?damage, "the log of this shard is damaged: this replica takes part in nothing until it is rebuilt from the leader");
    }
    let mut said: Option<Instant> = None;
    loop {
        if shard == ShardId::CATALOG {
            // No catalog says who they are, and its leader may be one that came later.
            formation::hear_of_members(core).await;
        }
        let answers = ask_all(core, shard, &others()).await;
        let mut why = String::from("no leader that a majority without this node confirms");
        let votes = if damage == Damage::FORGOTTEN { given(&answers) } else { Some(damage.votes) };
        let leader = answers.iter().find_map(|(node, answer)| whole_from(*answer).map(|least| (*node, least)));
        match (leader, votes) {
            (Some((node, least)), Some(votes)) => match fetch::from(core, holding, node, Some(least)).await {
                Ok(()) => return mend(core, shard, votes, (node, was_new)).await,
                Err(error) => why = format!("node {node}: {error}"),
            },
            (Some(_), None) => why = String::from("the votes that this node has forgotten are known when all other replicas are there"),
            (None, _) => {}
        }
        if said.is_none_or(|at| at.elapsed() >= REPEAT) {
            let damaged = 1 + answers.iter().filter(|(_, answer)| matches!(answer, Some((Said::DamagedToo, _)))).count();
            match is_new() {
                true => tracing::info!(%shard, why, "this node waits for its replica of the shard"),
                false => tell(shard, 1 + answers.len(), damaged, &why),
            }
            said = Some(Instant::now());
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn tell(shard: ShardId, replicas: usize, damaged: usize, why: &str) {
    if has_majority(replicas, damaged) {
        tracing::error!(%shard, why, "the damaged replica of this shard waits to be rebuilt; it does not vote");
    } else {
        tracing::error!(
            %shard, replicas, damaged,
            "too many replicas of this shard are damaged: those that are left are no majority, so what was confirmed may be on damaged \
             disks only. Nothing is done without you: restore the data directories as they were, or mend the disks; until then the shard is \
             not served"
        );
    }
}

/// Whether the replicas that are not damaged can elect a leader.
fn has_majority(replicas: usize, damaged: usize) -> bool {
    (replicas - damaged) * 2 > replicas
}

/// No vote that this node gave is of a later term: who asked for it had voted for itself before. `None`: not all others can tell.
fn given(answers: &[(NodeId, Option<Answer>)]) -> Option<Option<u64>> {
    let terms: Option<Vec<u64>> = answers.iter().map(|(_, answer)| answer.filter(|a| a.0 != Said::DamagedToo).map(|a| a.1)).collect();
    terms.map(|terms| terms.into_iter().max())
}

fn whole_from(answer: Option<Answer>) -> Option<u64> {
    match answer?.0 {
        Said::WholeFrom(index) => Some(index),
        Said::NotLeading | Said::DamagedToo => None,
    }
}

/// All that may have been acknowledged is here. The vote first: it must not be older than one that may have been given.
async fn mend(core: &Core, shard: ShardId, votes: Option<u64>, (from, is_new): (NodeId, bool)) -> Result<(), FormationError> {
    let me = VoterId { node: core.me, generation: FIRST_GENERATION };
    if let Some(term) = votes {
        // As if this node had stood for election in the term after: nobody has its vote there.
        let leader = LeaderId { term: term + 1, voter: me.pack() };
        let known = core.journal.state(shard).vote;
        if known.is_none_or(|vote| vote.leader < leader) {
            let (done, saved) = completion();
            core.journal.save_vote(shard, Vote { leader, committed: false }, done);
            saved.await?;
        }
    }
    let (done, mended) = completion();
    core.journal.mended(shard, done);
    mended.await?;
    if is_new {
        tracing::info!(%shard, %from, "the new replica of the shard is whole and takes part");
    } else {
        core.rebuilt.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(%shard, %from, "the damaged replica of this shard is rebuilt and takes part again");
    }
    Ok(())
}

async fn ask_all(core: &Core, shard: ShardId, others: &[NodeId]) -> Vec<(NodeId, Option<Answer>)> {
    let Some(transport) = core.transport() else { return Vec::new() };
    let mut question = BytesMut::from(&[Ask::Rebuild as u8][..]);
    question.put_u16_le(shard.0);
    let question = question.freeze();
    let asks = others.iter().map(|node| {
        let answer = transport.ask(*node, head_only(question.clone()), 2 * PATIENCE);
        async move { (*node, answer.await.ok().and_then(|frame| read(frame.head))) }
    });
    futures::future::join_all(asks).await
}

fn read(mut head: Bytes) -> Option<Answer> {
    let (kind, term) = (head.try_get_u8().ok()?, head.try_get_u64_le().ok()?);
    let said = match kind {
        NOT_LEADING => Said::NotLeading,
        DAMAGED_TOO => Said::DamagedToo,
        WHOLE_FROM => Said::WholeFrom(head.try_get_u64_le().ok()?),
        _ => return None,
    };
    Some((said, term))
}

/// Answers `Ask::Rebuild`. From then on an earlier disk of the asker is refused, should it come back.
pub(super) async fn answer(core: &Core, from: Card, mut head: Bytes) -> Result<Frame, PeerError> {
    let shard = ShardId(head.try_get_u16_le().map_err(|_| PeerError::Malformed("rebuild"))?);
    if from.generation > core.life(from.node) {
        let (done, saved) = completion();
        core.journal.save_life(from.node, from.generation, done);
        saved.await.map_err(|e| PeerError::Refused(e.to_string()))?;
    }
    let confirmed = tokio::time::timeout(PATIENCE, confirmed(core, shard)).await.ok().flatten();
    let said = match (core.journal.damage(shard), confirmed) {
        (Some(_), _) => Said::DamagedToo,
        (None, Some(index)) => Said::WholeFrom(index),
        (None, None) => Said::NotLeading,
    };
    let vote = core.journal.state(shard).vote;
    Ok(head_only(write((said, vote.map_or(0, |vote| vote.leader.term)))))
}

fn write((said, term): Answer) -> Bytes {
    let mut answer = BytesMut::with_capacity(17);
    let (kind, index) = match said {
        Said::NotLeading => (NOT_LEADING, None),
        Said::DamagedToo => (DAMAGED_TOO, None),
        Said::WholeFrom(index) => (WHOLE_FROM, Some(index)),
    };
    answer.put_u8(kind);
    answer.put_u64_le(term);
    if let Some(index) = index {
        answer.put_u64_le(index);
    }
    answer.freeze()
}

/// The end of this leader's log, once a majority has said since the question that this node leads, and once it is applied. The asker does
/// not answer heartbeats, so it is not in that majority.
async fn confirmed(core: &Core, shard: ShardId) -> Option<u64> {
    let group = group_of(core, shard).ok()?;
    if !group.leadership().borrow().is_me {
        return None;
    }
    let _ = group.inner().raft.get_read_linearizer(ReadPolicy::ReadIndex).await.ok()?;
    let last = core.journal.state(shard).last?.index;
    let mut applied_rx = group.applied();
    applied_rx.wait_for(|applied| applied.is_some_and(|id| id.index >= last)).await.ok()?;
    Some(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_majority_must_be_left_to_rebuild_from() {
        assert!(has_majority(3, 1) && has_majority(5, 2));
        assert!(!has_majority(3, 2) && !has_majority(5, 3) && !has_majority(2, 1));
    }
}
