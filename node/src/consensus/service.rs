//! What this node answers to other nodes: Raft frames only to members of the same cluster and life of disk (rule 1), formation questions
//! to anybody who knows the secret.

use super::core::Core;
use super::transfer::{self, First, Offer, Pipe};
use super::types::{Ometa, Ovote, SnapshotData, to_oid};
use super::wire::{self, Ask};
use super::{bodies, catalog, formation, heartbeat, lease, mover, order, raising, rebuild};
use crate::model::limits::SNAPSHOT_PATIENCE;
use crate::model::{LeaderId, NodeId, ShardId};
use crate::peer::paths::{self, Acceptor};
use crate::peer::transport::head_only;
use crate::peer::{Card, Frame, Handler, PeerError, StreamKind};
use bytes::{Buf, Bytes};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use openraft::ServerState;
use openraft::raft::VoteRequest;
use openraft::storage::Snapshot;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

type Frames = BoxStream<'static, Result<Frame, PeerError>>;

/// A forced vote waits this long for this voter's own connections to the leader to break too (they break within milliseconds).
const SEE_FOR_MYSELF: Duration = Duration::from_millis(60);

/// The node's answers.
pub(super) struct Service {
    pub(super) core: Arc<Core>,
    pub(super) paths: paths::Joiner,
}

impl Service {
    pub(super) fn new(core: Arc<Core>, accept: Acceptor) -> Service {
        Service { core, paths: paths::Joiner::new(accept) }
    }

    fn admit(&self, from: &Card) -> Result<(), PeerError> {
        if from.same_cluster(&self.core.card()) && self.core.members.contains(from.node) && !self.core.is_outlived(from) {
            return Ok(());
        }
        Err(PeerError::Refused(format!("node {} with disk generation {} is no member of this cluster", from.node, from.generation)))
    }
}

impl Handler for Service {
    fn card(&self) -> Card {
        self.core.card()
    }

    fn is_outlived(&self, card: &Card) -> bool {
        self.core.is_outlived(card)
    }

    fn ask(&self, from: Card, mut frame: Frame) -> BoxFuture<'static, Result<Frame, PeerError>> {
        let core = self.core.clone();
        let kind = Ask::of(&mut frame.head);
        let admitted = self.admit(&from);
        Box::pin(async move {
            match kind? {
                Ask::Formation => Ok(formation::report(&core, from.node)),
                Ask::Adopt => formation::adopt(&core, from, frame.head).await,
                raft => {
                    admitted?;
                    answer(core, from, raft, frame).await
                }
            }
        })
    }

    fn stream(&self, from: Card, kind: StreamKind, rx: Frames, tx: mpsc::Sender<Frame>) {
        if let Err(refused) = self.admit(&from) {
            tracing::warn!(node = %from.node, %refused, "stream refused");
            return;
        }
        match kind {
            StreamKind::Append => drop(tokio::spawn(serve_append(self.core.clone(), rx, tx))),
            StreamKind::Heartbeat => drop(tokio::spawn(serve_heartbeat(self.core.clone(), from.node, rx, tx))),
            StreamKind::Snapshot => drop(tokio::spawn(serve_transfer(self.core.clone(), from.node, Pipe::new(rx, tx)))),
            StreamKind::Edge | StreamKind::Deliver => self.paths.joined(from.node, kind, rx, tx),
        }
    }
}

async fn answer(core: Arc<Core>, from: Card, kind: Ask, frame: Frame) -> Result<Frame, PeerError> {
    if kind == Ask::Catalog {
        return catalog::answer(&core, frame).await;
    }
    let mut head = frame.head;
    match kind {
        Ask::Vote => vote(&core, head, false).await,
        Ask::PreVote => vote(&core, head, true).await,
        Ask::Transfer => {
            let (shard, request) = wire::read_transfer(&mut head)?;
            let group = group(&core, shard)?;
            group.inner().forced.store(false, std::sync::atomic::Ordering::Relaxed);
            let answer = order::in_time(group.inner().raft.handle_transfer_leader(request)).await.map_err(refused)?;
            answer.map_err(refused)?.map_err(refused)?;
            Ok(Frame::default())
        }
        Ask::Lease => lease::answer_frame(&core, from.node, from.incarnation, head),
        Ask::Led => led(&core, from.node, head),
        Ask::Rebuild => rebuild::answer(&core, from, head).await,
        Ask::Ready => mover::answer_ready(&core, head).await,
        Ask::Version => Ok(raising::answer(&core)),
        Ask::Formation | Ask::Adopt | Ask::Catalog => Err(PeerError::Malformed("answered elsewhere")),
    }
}

fn refused(error: impl std::fmt::Display) -> PeerError {
    PeerError::Refused(error.to_string())
}

pub(super) fn group(core: &Core, shard: ShardId) -> Result<super::shard::Shard, PeerError> {
    core.group(shard).ok_or_else(|| PeerError::Refused(format!("shard {shard} is not (yet) on this node")))
}

async fn vote(core: &Core, mut head: Bytes, pre: bool) -> Result<Frame, PeerError> {
    let campaign = wire::read_campaign(&mut head)?;
    let group = group(core, campaign.shard)?;
    let mut request: VoteRequest<_> = campaign.request;
    if campaign.forced && request.leadership_transfer && !leader_is_gone(core, &group).await {
        tracing::info!(shard = %campaign.shard, "forced vote of a node that alone lost its leader: the lease holds");
        request.leadership_transfer = false;
    }
    let raft = &group.inner().raft;
    let ballot = async { if pre { raft.pre_vote(request).await } else { raft.vote(request).await } };
    let ballot = order::in_time(ballot).await.map_err(refused)?.map_err(refused)?;
    Ok(head_only(wire::write_ballot(&ballot)))
}

/// Rule 10: this node's own connections to the leader are down as well.
async fn leader_is_gone(core: &Core, group: &super::shard::Shard) -> bool {
    use openraft::async_runtime::watch::WatchReceiver;
    let leader = {
        let metrics = group.inner().raft.server_metrics();
        let server = metrics.borrow_watched();
        if server.state == ServerState::Leader {
            return false;
        }
        server.vote.committed.then(|| super::types::from_lid(server.vote.leader_id).node())
    };
    let Some(leader) = leader.filter(|l| *l != core.me) else { return true };
    let Some(transport) = core.transport() else { return false };
    let mut waited = Duration::ZERO;
    while transport.link(leader).up > 0 {
        if waited >= SEE_FOR_MYSELF {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
        waited += Duration::from_millis(3);
    }
    true
}

fn led(core: &Core, from: NodeId, mut head: Bytes) -> Result<Frame, PeerError> {
    let is_slow = head.try_get_u8().map_err(|_| PeerError::Malformed("led"))?;
    core.slow_disks.told(from, is_slow != 0);
    while head.remaining() >= 26 {
        let shard = ShardId(head.get_u16_le());
        let leader = LeaderId { term: head.get_u64_le(), voter: head.get_u64_le() };
        let floor = head.get_u64_le();
        if leader.node() == from {
            core.hint(shard, leader);
            core.floors.raise(shard, floor);
        }
    }
    Ok(Frame::default())
}

/// One replication session (T3): requests into openraft, its answers back, in order. A frame that cannot be served ends the stream,
/// which the leader sees as an error (T1: nothing is dropped in silence).
async fn serve_append(core: Arc<Core>, mut rx: Frames, tx: mpsc::Sender<Frame>) {
    let Some(Ok(first)) = rx.next().await else { return };
    let (shard, first) = match wire::read_append(first) {
        Ok(read) => read,
        Err(error) => return tracing::warn!(%error, "append stream refused"),
    };
    let Some(group) = core.group(shard) else { return };
    let rest = rx.map(move |frame| match frame.and_then(wire::read_append) {
        Ok((of, request)) if of == shard => Some(request),
        Ok(_) => None,
        Err(error) => {
            tracing::debug!(%shard, %error, "append stream ended");
            None
        }
    });
    let rest = rest.take_while(|request| std::future::ready(request.is_some())).filter_map(std::future::ready);
    let requests = futures::stream::iter([first]).chain(rest);
    let mut answers = Box::pin(group.inner().raft.stream_append(Box::pin(requests)));
    while let Some(Ok(answer)) = answers.next().await {
        if tx.send(head_only(wire::write_appended(&answer))).await.is_err() {
            break;
        }
    }
}

/// A state comes, or another node lost its own, or an entry, and wants this one's.
async fn serve_transfer(core: Arc<Core>, from: NodeId, mut pipe: Pipe) {
    let served = match transfer::first(&mut pipe).await {
        Ok(First::Offered(offer)) => take_state(&core, &mut pipe, offer).await,
        Ok(First::Wanted(shard)) => match group(&core, shard) {
            Ok(group) => transfer::send(&mut pipe, &group.inner().holding, &Ovote::new(0, 0)).await.map(drop),
            Err(error) => Err(error),
        },
        Ok(First::Entry(shard, id)) => bodies::give(&core, &mut pipe, shard, id).await,
        Err(error) => Err(error),
    };
    if let Err(error) = served {
        tracing::info!(%from, %error, "transfer of a state ended");
        pipe.refuse(&error).await;
    }
}

async fn take_state(core: &Core, pipe: &mut Pipe, offer: Offer) -> Result<(), PeerError> {
    let group = group(core, offer.shard)?;
    let turn = tokio::time::timeout(SNAPSHOT_PATIENCE, group.inner().holding.receive()).await;
    let receiving = turn.map_err(|_| PeerError::Refused("an older state is still being installed".into()))?;
    let arrived = transfer::receive(pipe, &offer, &receiving).await?;
    let meta = Ometa { last_log_id: Some(to_oid(arrived.applied)), last_membership: offer.membership };
    let snapshot = Snapshot { meta, snapshot: SnapshotData::Arrived(Box::new(arrived)) };
    // Answered when it is installed: `receiving` must live until then, so that nothing else is staged meanwhile.
    let answer = group.inner().raft.install_full_snapshot(offer.vote, snapshot).await;
    let answer = answer.map_err(|e| PeerError::Refused(e.to_string()))?;
    pipe.installed(&answer.vote).await
}

async fn serve_heartbeat(core: Arc<Core>, from: NodeId, mut rx: Frames, tx: mpsc::Sender<Frame>) {
    while let Some(Ok(frame)) = rx.next().await {
        let beats = match heartbeat::read_beats(frame) {
            Ok(beats) => beats,
            Err(error) => return tracing::warn!(%error, "heartbeat stream refused"),
        };
        for (id, shard, request) in beats {
            let Some(group) = core.group(shard) else { continue };
            // Not answered, it is a lost one to the leader.
            let Some(turn) = core.beats.turn(from, shard) else { continue };
            let tx = tx.clone();
            // Each on its own: an answer waits for that group's log to be flushed (P4).
            tokio::spawn(async move {
                let _turn = turn;
                let (prev, last) = (request.prev_log_id, request.prev_log_id);
                if let Ok(answer) = group.inner().raft.append_entries(request).await {
                    let _ = tx.try_send(heartbeat::write_beat_answer(id, &answer.into_stream_result(prev, last)));
                }
            });
        }
    }
}
