//! openraft's network over `peer`: append streams pipelined with our own window and deadline (T1, T2), heartbeats through the pair's
//! multiplexer, votes as questions.

use super::alarm::Alarm;
use super::boot::BootTime;
use super::contact::Contact;
use super::heartbeat::HeartbeatMux;
use super::holding::Holding;
use super::transfer;
use super::types::*;
use super::watch::Watch;
use super::wire::{self, Ask, Campaign};
use crate::model::{NodeId, ShardId, VoterId};
use crate::peer::transport::head_only;
use crate::peer::{Duplex, Frame, PeerError, StreamKind, Transport};
use bytes::Bytes;
use futures::{Stream, StreamExt, TryFutureExt};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::storage::Snapshot;
use openraft::{EmptyNode, OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
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
    watch: Arc<Watch>,
}

impl Network {
    /// Over `transport`.
    pub fn new(transport: Arc<dyn Transport>, watch: Arc<Watch>) -> Arc<Network> {
        Arc::new(Network { transport, muxes: Mutex::default(), watch })
    }

    fn mux(&self, to: NodeId) -> Arc<HeartbeatMux> {
        let make = || HeartbeatMux::start(self.transport.clone(), to, &self.watch);
        self.muxes.lock().entry(to).or_insert_with(make).clone()
    }

    /// The network of one group; `forced` marks its campaigns as forced failovers, `contact` hears of every acknowledgement.
    pub fn group(self: &Arc<Self>, holding: Arc<Holding>, forced: Arc<AtomicBool>, contact: Arc<Contact>) -> GroupNetwork {
        GroupNetwork { shared: self.clone(), holding, forced, contact }
    }
}

/// Makes a group's connections.
pub struct GroupNetwork {
    shared: Arc<Network>,
    holding: Arc<Holding>,
    forced: Arc<AtomicBool>,
    contact: Arc<Contact>,
}

impl GroupNetwork {
    fn connection(&self, target: u64, heartbeat: bool) -> Connection {
        let to = VoterId::unpack(target).node;
        let mux = heartbeat.then(|| self.shared.mux(to));
        let (transport, holding) = (self.shared.transport.clone(), self.holding.clone());
        let acks = Acks { contact: self.contact.clone(), voter: target };
        Connection { transport, shard: holding.shard, holding, to, mux, forced: self.forced.clone(), acks }
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
    acks: Acks,
}

/// Notes what one member acknowledges.
#[derive(Clone)]
struct Acks {
    contact: Arc<Contact>,
    voter: u64,
}

impl Acks {
    fn answered(&self, vote: &Ovote, sent: BootTime, answer: &StreamAppendResult<Types>) {
        match answer {
            // Another log is no other leader.
            Ok(_) | Err(StreamAppendError::Conflict(_)) => self.contact.acknowledged(vote, self.voter, sent),
            Err(StreamAppendError::HigherVote(_)) => {}
        }
    }
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
            let (shard, acks) = (self.shard, self.acks.clone());
            return Box::pin(async move {
                let Some(request) = input.next().await else { return Ok(Box::pin(futures::stream::empty()) as Answers<'s>) };
                let vote = request.vote;
                let answered = mux.beat(shard, request, option.hard_ttl()).await;
                let answer = answered.map_err(|e| unreachable_error(&e)).map(|(sent, answer)| {
                    acks.answered(&vote, sent, &answer);
                    answer
                });
                Ok(Box::pin(futures::stream::iter([answer])) as Answers<'s>)
            });
        }
        let (transport, shard, to, acks) = (self.transport.clone(), self.shard, self.to, self.acks.clone());
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
            let session = Session::new(shard, input, path, acks);
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
    acks: Acks,
    input_ended: bool,
    failed: bool,
    /// When the requests without an answer left, and under which vote; they are answered in order, each once.
    in_flight: VecDeque<(BootTime, Ovote)>,
    deadline: Instant,
    /// The last entry that the follower was sent or asked about.
    sent: Option<Oid>,
    /// The newest of the requests that only bring news of a commit. The older ones are answered with it: openraft counts indices.
    news: Option<AppendEntriesRequest<Types>>,
    news_at: Instant,
    alarm: Alarm,
}

impl<S: Stream<Item = AppendEntriesRequest<Types>> + Unpin> Session<S> {
    fn new(shard: ShardId, input: S, path: Duplex, acks: Acks) -> Session<S> {
        let (now, in_flight) = (Instant::now(), VecDeque::with_capacity(WINDOW));
        let (input_ended, failed, sent, news, alarm) = (false, false, None, None, Alarm::new());
        Session { shard, input, path, acks, input_ended, failed, in_flight, deadline: now, sent, news, news_at: now, alarm }
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
            if self.input_ended && self.in_flight.is_empty() {
                return Ok(None);
            }
            let is_full = self.path.tx.capacity() == 0;
            let has_room = self.in_flight.len() < WINDOW && !is_full;
            let news_at = (self.news.is_some() && has_room).then_some(self.news_at);
            let deadline = (!self.in_flight.is_empty()).then_some(self.deadline);
            let next = news_at.into_iter().chain(deadline).min();
            tokio::select! {
                biased;
                answer = self.path.rx.next() => {
                    let frame = answer.unwrap_or(Err(PeerError::Refused("the follower ended the append stream".into())))?;
                    return self.answered(frame).map(Some);
                }
                request = self.input.next(), if !self.input_ended && has_room => match request {
                    None => {
                        self.input_ended = true;
                        self.send_news()?;
                    }
                    Some(request) => self.take(request)?,
                },
                room = self.path.tx.reserve().map_ok(drop), if is_full => {
                    room.map_err(|_| PeerError::Refused("the append stream is closed".into()))?;
                }
                () = self.alarm.reached(next.unwrap_or(self.deadline)), if next.is_some() => {
                    if next == news_at {
                        self.send_news()?;
                        continue;
                    }
                    tracing::warn!(shard = %self.shard, in_flight = self.in_flight.len(), "append stream without an answer, restarting it");
                    return Err(PeerError::Refused("no answer to an append request".into()));
                }
            }
        }
    }

    fn answered(&mut self, mut frame: Frame) -> Result<StreamAppendResult<Types>, PeerError> {
        let answer = wire::read_appended(&mut frame.head)?;
        let (sent, vote) = self.in_flight.pop_front().ok_or(PeerError::Malformed("an answer to no request"))?;
        self.acks.answered(&vote, sent, &answer);
        self.deadline = Instant::now() + ACK_DEADLINE;
        Ok(answer)
    }

    /// News of a commit wait a little. What comes behind them knows of that commit or of a later one: they need not go any more.
    fn take(&mut self, request: AppendEntriesRequest<Types>) -> Result<(), PeerError> {
        if self.can_wait(&request) {
            if self.news.replace(request).is_none() {
                self.news_at = Instant::now() + COMMIT_LINGER;
            }
            return Ok(());
        }
        self.news = None;
        self.send(request)
    }

    /// Neither entries nor a question where the follower's log ends.
    fn can_wait(&self, request: &AppendEntriesRequest<Types>) -> bool {
        self.shard != ShardId::CATALOG && request.entries.is_empty() && self.sent.is_some() && request.prev_log_id == self.sent
    }

    fn send_news(&mut self) -> Result<(), PeerError> {
        match self.news.take() {
            Some(request) => self.send(request),
            None => Ok(()),
        }
    }

    /// Only when the stream has room: while a send waited, no answer would be read and no deadline kept.
    fn send(&mut self, request: AppendEntriesRequest<Types>) -> Result<(), PeerError> {
        if self.in_flight.is_empty() {
            self.deadline = Instant::now() + ACK_DEADLINE;
        }
        self.in_flight.push_back((BootTime::now(), request.vote));
        self.sent = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
        let frame = wire::write_append(self.shard, request);
        self.path.tx.try_send(frame).map_err(|_| PeerError::Refused("the append stream is closed".into()))
    }
}

#[cfg(test)]
#[path = "network_tests.rs"]
mod tests;
