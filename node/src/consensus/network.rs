//! openraft's network over `peer`: append streams pipelined with our own window and deadline (T1, T2), heartbeats through the pair's
//! multiplexer, votes as questions.

use super::heartbeat::HeartbeatMux;
use super::holding::Holding;
use super::transfer;
use super::types::*;
use super::wire::{self, Ask, Campaign};
use crate::model::{NodeId, ShardId, VoterId};
use crate::peer::transport::head_only;
use crate::peer::{Duplex, PeerError, StreamKind, Transport};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::storage::Snapshot;
use openraft::{EmptyNode, OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Append requests in flight on one stream: with 1 MiB each this bounds the memory of a slow follower (P11).
const WINDOW: usize = 8;
/// After a failed attempt to open an append stream, the next one waits for a connection or this long.
const REOPEN: Duration = Duration::from_millis(250);
/// No answer for this long while something is in flight: the session starts anew (T1).
const ACK_DEADLINE: Duration = Duration::from_secs(3);

/// News of a commit wait this long for entries to ride with: alone they would double the traffic of a group that is used one message
/// at a time. The catalog's do not wait, its answers do for every node to apply (rule 28).
const COMMIT_LINGER: Duration = Duration::from_millis(10);

/// What all groups' networks of a node share.
pub struct Network {
    transport: Arc<dyn Transport>,
    muxes: Mutex<HashMap<NodeId, Arc<HeartbeatMux>>>,
}

impl Network {
    /// Over `transport`.
    pub fn new(transport: Arc<dyn Transport>) -> Arc<Network> {
        Arc::new(Network { transport, muxes: Mutex::default() })
    }

    fn mux(&self, to: NodeId) -> Arc<HeartbeatMux> {
        let make = || HeartbeatMux::start(self.transport.clone(), to);
        self.muxes.lock().entry(to).or_insert_with(make).clone()
    }

    /// The network of one group; `forced` marks its campaigns as forced failovers.
    pub fn group(self: &Arc<Self>, holding: Arc<Holding>, forced: Arc<AtomicBool>) -> GroupNetwork {
        GroupNetwork { shared: self.clone(), holding, forced }
    }
}

/// Makes a group's connections.
pub struct GroupNetwork {
    shared: Arc<Network>,
    holding: Arc<Holding>,
    forced: Arc<AtomicBool>,
}

impl GroupNetwork {
    fn connection(&self, target: u64, heartbeat: bool) -> Connection {
        let to = VoterId::unpack(target).node;
        let mux = heartbeat.then(|| self.shared.mux(to));
        let (transport, holding) = (self.shared.transport.clone(), self.holding.clone());
        Connection { transport, shard: holding.shard, holding, to, mux, forced: self.forced.clone() }
    }
}

impl RaftNetworkFactory<Types> for GroupNetwork {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, _node: &EmptyNode) -> Connection {
        self.connection(target, false)
    }

    async fn new_heartbeat_client(&mut self, target: u64, _node: &EmptyNode) -> Connection {
        self.connection(target, true)
    }
}

/// One group's way to one other member: a cheap handle on the pair's connections.
pub struct Connection {
    transport: Arc<dyn Transport>,
    shard: ShardId,
    holding: Arc<Holding>,
    to: NodeId,
    mux: Option<Arc<HeartbeatMux>>,
    forced: Arc<AtomicBool>,
}

fn unreachable_error(error: &PeerError) -> RPCError<Types> {
    RPCError::Unreachable(Unreachable::from_string(error))
}

impl Connection {
    async fn ask(&self, head: Bytes, option: &RPCOption) -> Result<Bytes, RPCError<Types>> {
        let answer = self.transport.ask(self.to, head_only(head), option.hard_ttl()).await;
        answer.map(|frame| frame.head).map_err(|e| unreachable_error(&e))
    }

    async fn campaign(&self, kind: Ask, request: VoteRequest<Types>, option: RPCOption) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let forced = request.leadership_transfer && self.forced.load(Ordering::Relaxed);
        let head = wire::write_campaign(kind, &Campaign { shard: self.shard, request, forced });
        let mut answer = self.ask(head, &option).await?;
        wire::read_ballot(&mut answer).map_err(|e| unreachable_error(&e))
    }
}

/// Until there is a connection again, at most `REOPEN`.
async fn reconnected(transport: &dyn Transport, to: NodeId) {
    let mut changes_rx = transport.link_changes();
    let was_up = transport.link(to).up > 0;
    let up = async { while transport.link(to).up == 0 && changes_rx.changed().await.is_ok() {} };
    if was_up {
        // Connected, and still not opened: the other side is starting.
        tokio::time::sleep(REOPEN / 5).await;
    } else {
        let _ = tokio::time::timeout(REOPEN, up).await;
    }
}

type Answers<'s> = BoxStream<'s, Result<StreamAppendResult<Types>, RPCError<Types>>>;

impl RaftNetworkV2<Types> for Connection {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        _request: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        Err(RPCError::Unreachable(Unreachable::from_string("append entries travel on streams only")))
    }

    fn stream_append<'s, S>(&'s mut self, mut input: S, option: RPCOption) -> BoxFuture<'s, Result<Answers<'s>, RPCError<Types>>>
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        if let Some(mux) = self.mux.clone() {
            let shard = self.shard;
            return Box::pin(async move {
                let Some(request) = input.next().await else { return Ok(Box::pin(futures::stream::empty()) as Answers<'s>) };
                let answer = mux.beat(shard, request, option.hard_ttl()).await.map_err(|e| unreachable_error(&e));
                Ok(Box::pin(futures::stream::iter([answer])) as Answers<'s>)
            });
        }
        let (transport, shard, to) = (self.transport.clone(), self.shard, self.to);
        Box::pin(async move {
            let path = match transport.open(to, StreamKind::Append).await {
                Ok(path) => path,
                // openraft's backoff is taken when it is asked for a request; without this wait it would open again at once, for ever.
                Err(error) => {
                    let refused = async move {
                        reconnected(&*transport, to).await;
                        Err(unreachable_error(&error))
                    };
                    return Ok(Box::pin(futures::stream::once(refused)) as Answers<'s>);
                }
            };
            let session = Session::new(shard, input, path);
            Ok(Box::pin(futures::stream::unfold(session, Session::next)) as Answers<'s>)
        })
    }

    async fn vote(&mut self, request: VoteRequest<Types>, option: RPCOption) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.campaign(Ask::Vote, request, option).await
    }

    async fn pre_vote(&mut self, request: VoteRequest<Types>, option: RPCOption) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.campaign(Ask::PreVote, request, option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Ovote,
        _snapshot: Snapshot<Lid, u64, EmptyNode, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        // The state as it is now, not as it was checkpointed: the follower gets further than openraft takes note of, which does no harm.
        tokio::select! {
            pushed = transfer::push(&*self.transport, self.to, &self.holding, &vote) => match pushed {
                Ok(vote) => Ok(SnapshotResponse::new(vote)),
                Err(error) => {
                    tracing::info!(shard = %self.shard, to = %self.to, %error, "the state could not be sent");
                    Err(StreamingError::Unreachable(Unreachable::from_string(&error)))
                }
            },
            closed = cancel => Err(StreamingError::Closed(closed)),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        self.ask(wire::write_transfer(self.shard, &request), &option).await?;
        Ok(Ok(()))
    }
}

/// One replication session: polls openraft's requests and the follower's answers in one place, so that dropping it drops both (T2).
struct Session<S> {
    shard: ShardId,
    input: S,
    path: Duplex,
    input_ended: bool,
    failed: bool,
    in_flight: usize,
    deadline: Instant,
    /// The last entry that the follower was sent or asked about.
    sent: Option<Oid>,
    /// Requests that only bring news of a commit.
    waiting: Vec<AppendEntriesRequest<Types>>,
    waiting_until: Instant,
}

impl<S: Stream<Item = AppendEntriesRequest<Types>> + Unpin> Session<S> {
    fn new(shard: ShardId, input: S, path: Duplex) -> Session<S> {
        let now = Instant::now();
        let (in_flight, waiting) = (0, Vec::new());
        Session { shard, input, path, input_ended: false, failed: false, in_flight, deadline: now, sent: None, waiting, waiting_until: now }
    }

    async fn next(mut self) -> Option<(Result<StreamAppendResult<Types>, RPCError<Types>>, Self)> {
        if self.failed {
            return None;
        }
        match self.answer().await {
            Ok(None) => None,
            Ok(Some(answer)) => Some((Ok(answer), self)),
            Err(error) => {
                self.failed = true;
                Some((Err(unreachable_error(&error)), self))
            }
        }
    }

    async fn answer(&mut self) -> Result<Option<StreamAppendResult<Types>>, PeerError> {
        loop {
            if self.input_ended && self.in_flight == 0 {
                return Ok(None);
            }
            tokio::select! {
                biased;
                answer = self.path.rx.next() => {
                    let mut frame = answer.unwrap_or(Err(PeerError::Refused("the follower ended the append stream".into())))?;
                    self.in_flight = self.in_flight.saturating_sub(1);
                    self.deadline = Instant::now() + ACK_DEADLINE;
                    return wire::read_appended(&mut frame.head).map(Some);
                }
                request = self.input.next(), if !self.input_ended && self.in_flight + self.waiting.len() < WINDOW => match request {
                    None => {
                        self.input_ended = true;
                        self.send_waiting().await?;
                    }
                    Some(request) if self.can_wait(&request) => {
                        if self.waiting.is_empty() {
                            self.waiting_until = Instant::now() + COMMIT_LINGER;
                        }
                        self.waiting.push(request);
                    }
                    Some(request) => {
                        self.send_waiting().await?;
                        self.send(request).await?;
                    }
                },
                () = tokio::time::sleep_until(self.waiting_until), if !self.waiting.is_empty() => self.send_waiting().await?,
                () = tokio::time::sleep_until(self.deadline), if self.in_flight > 0 => {
                    tracing::warn!(shard = %self.shard, in_flight = self.in_flight, "append stream without an answer, restarting it");
                    return Err(PeerError::Refused("no answer to an append request".into()));
                }
            }
        }
    }

    /// Neither entries nor a question where the follower's log ends.
    fn can_wait(&self, request: &AppendEntriesRequest<Types>) -> bool {
        self.shard != ShardId::CATALOG && request.entries.is_empty() && self.sent.is_some() && request.prev_log_id == self.sent
    }

    async fn send_waiting(&mut self) -> Result<(), PeerError> {
        for request in std::mem::take(&mut self.waiting) {
            self.send(request).await?;
        }
        Ok(())
    }

    async fn send(&mut self, request: AppendEntriesRequest<Types>) -> Result<(), PeerError> {
        if self.in_flight == 0 {
            self.deadline = Instant::now() + ACK_DEADLINE;
        }
        self.in_flight += 1;
        self.sent = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
        let frame = wire::write_append(self.shard, request);
        self.path.tx.send(frame).await.map_err(|_| PeerError::Refused("the append stream is closed".into()))
    }
}
