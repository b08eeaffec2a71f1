//! A client's connection as its listener holds it. Steps go in and take effect in order, events come out; `submit` never waits. Dropping
//! it says that the client is gone.

use super::access::Writable;
use super::admission;
use super::gets::Gets;
use super::lane::Lane;
use super::mailbox::{ChannelRef, Mailbox};
use super::publish::{Hold, LEASE_POLL};
use super::requests::Asking;
use super::streams::{Clerk, KnownStreams};
use super::transaction::Routes;
use super::{Edge, lane};
use crate::model::catalog::{CatalogCommand, Refusal};
use crate::model::step::{Event, Held, LoginRefused, Outcome, Reply, Request, Step};
use crate::model::stream::StreamTarget;
use crate::model::{ConsumerId, QueueId, ShardId};
use bytes::BytesMut;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio::time::timeout_at;

const RETRY_MAX: Duration = Duration::from_secs(2);
/// A client that leaves waits no longer for the end of its exclusive queues.
const LEAVE_PATIENCE: Duration = Duration::from_secs(5);

/// A client's connection.
pub struct Connection {
    pub(super) edge: Arc<Edge>,
    pub(super) mailbox: Arc<Mailbox>,
    /// Name, and which user of that name.
    user: Option<(Arc<str>, u64)>,
    channels: Vec<Channel>,
    /// Lanes that this connection has used.
    pub(super) lanes: Vec<Entered>,
    pub(super) hold: Option<Hold>,
    /// Of a transaction that was given back.
    pub(super) routes: Option<Routes>,
    pub(super) writable: Writable,
    // Scratch space of the publish path.
    pub(super) targets: Vec<(QueueId, ShardId)>,
    /// Those of them that are streams.
    pub(super) streams: Vec<Arc<StreamTarget>>,
    pub(super) known_streams: KnownStreams,
    /// A message as streams hold it.
    pub(super) record: BytesMut,
    /// Only exchanges that remember it take what was routed last.
    pub(super) unseen: bool,
    pub(super) queues: Vec<QueueId>,
    pub(super) entered: Vec<(usize, usize)>,
    /// Publishes that the counters do not know yet.
    pub(super) published: u64,
    /// Stops of this process that were looked at.
    stops: u64,
    /// Nothing of the client is left in this room.
    departed: bool,
    /// Of consumer groups.
    pub(super) clerk: Option<Clerk>,
    gets: Gets,
}

#[derive(Clone, Copy, Debug, Default)]
struct Channel {
    epoch: u32,
    /// A publish failed: nothing happens on it until it is closed.
    failed: bool,
}

/// A lane with the mark behind this connection's last publish.
pub(super) struct Entered {
    pub lane: Arc<Lane>,
    pub mark: u64,
}

impl Connection {
    pub(super) fn new(edge: Arc<Edge>, mailbox: Arc<Mailbox>) -> Connection {
        let stops = edge.pulse.beat();
        Connection {
            stops,
            edge,
            mailbox,
            user: None,
            channels: Vec::new(),
            lanes: Vec::new(),
            hold: None,
            routes: None,
            writable: Writable::default(),
            targets: Vec::new(),
            streams: Vec::new(),
            known_streams: KnownStreams::default(),
            record: BytesMut::new(),
            unseen: false,
            queues: Vec::new(),
            entered: Vec::new(),
            published: 0,
            departed: false,
            clerk: None,
            gets: Gets::default(),
        }
    }

    /// Takes a step. `Err` gives it back: publishes have to wait; submit it again after `writable`, before any other.
    #[allow(clippy::result_large_err, reason = "the step is given back as it came; a box would cost every publish")]
    pub fn submit(&mut self, step: Step) -> Result<(), Step> {
        match step {
            Step::Publish(publish) => return self.publish(publish).map_err(Step::Publish),
            Step::Append(append) => return self.append_to_stream(append).map_err(Step::Append),
            Step::Commit(commit) => return self.commit(commit).map_err(Step::Commit),
            Step::Check(publish) => self.check_publish(&publish),
            Step::Settle { held, outcome, .. } => self.settle(&held, outcome),
            Step::Written { consumer, bytes } => self.written(consumer, bytes),
            Step::Request { channel, request } => self.request(channel, request),
            Step::ChannelPrefetch { channel, limit } => self.channel_prefetch(channel, limit),
            Step::UpdateSecret => self.update_secret(),
            Step::Report(report) => self.mailbox.report(&report),
            Step::ChannelClosed { channel, held } => self.channel_closed(channel, &held),
            Step::Authenticate { user, password } => self.authenticate(&user, &password),
            Step::AuthenticateByCertificate { user } => self.authenticate_by_certificate(user),
            Step::Open { vhost } => self.open(&vhost),
            Step::Leave => self.leave(),
        }
        Ok(())
    }

    /// What waits for the client, in order, until the messages among it come to `bytes`: only what is written at once may be taken, for
    /// what stays is given back when this node loses contact with its leader (rule 20). Never waits.
    pub fn take_events(&mut self, out: &mut Vec<Event>, bytes: usize) {
        self.count();
        let stops = self.edge.pulse.beat();
        if std::mem::replace(&mut self.stops, stops) != stops {
            // Others may have these messages by now (rule 20).
            self.edge.lanes.read().values().for_each(|lane| lane.drop_unwritten());
        }
        let before = out.len();
        {
            let lanes = self.edge.lanes.read();
            // Streams are read here, whoever leads.
            let is_fresh = |shard| shard == ShardId::STREAMS || lanes.get(&shard).is_some_and(|lane| lane.is_fresh());
            self.mailbox.take_events(out, bytes, is_fresh);
        }
        if !self.gets.is_idle() {
            for event in &out[before..] {
                if let Event::Reply { channel, .. } = event {
                    self.gets.answered(*channel);
                }
            }
            self.ask_waiting_gets();
        }
    }

    /// Resolves when there are events; cancel safe.
    pub async fn changed(&self) {
        self.mailbox.changed().await;
    }

    /// What was given back waits for the end of an alarm, which may take long.
    pub fn is_blocked(&self) -> bool {
        matches!(self.hold, Some(Hold::Blocked))
    }

    /// Resolves when a step that was given back may be tried again; cancel safe.
    pub async fn writable(&self) {
        match &self.hold {
            None => {}
            Some(Hold::Room { lane, until: None }) => lane.wait_for_room().await,
            // What comes of it at that time is looked at when it is tried again.
            Some(Hold::Room { lane, until: Some(until) }) => drop(timeout_at((*until).into(), lane.wait_for_room()).await),
            Some(Hold::Blocked) => self.wait_for_node().await,
            Some(Hold::Lease { until }) => {
                while !self.edge.port.routing_lease() && until.is_none_or(|t| Instant::now() < t) {
                    tokio::time::sleep(LEASE_POLL).await;
                }
            }
        }
    }

    async fn wait_for_node(&self) {
        loop {
            let unblocked = self.edge.unblocked.notified();
            tokio::pin!(unblocked);
            unblocked.as_mut().enable();
            if !self.edge.is_blocked.load(Ordering::Acquire) {
                return;
            }
            unblocked.await;
        }
    }

    fn authenticate(&mut self, user: &str, password: &[u8]) {
        let edge = &*self.edge;
        let from = self.mailbox.peer.ip();
        let result = admission::authenticate(&edge.catalog.read(), user, password, from, &edge.config.loopback_users);
        self.authenticated(user.into(), result);
    }

    fn authenticate_by_certificate(&mut self, user: Arc<str>) {
        let edge = &*self.edge;
        let from = self.mailbox.peer.ip();
        let result = admission::vouched(&edge.catalog.read(), &user, from, &edge.config.loopback_users);
        self.authenticated(user, result);
    }

    /// `result`: which user of that name it is.
    fn authenticated(&mut self, user: Arc<str>, result: Result<u64, LoginRefused>) {
        match result {
            Ok(created) => {
                self.user = Some((user, created));
                self.mailbox.push(Event::Authenticated);
            }
            Err(refused) => {
                tracing::warn!(peer = %self.mailbox.peer, why = refused.why, "login refused");
                self.mailbox.push(Event::AuthenticationFailed(refused));
            }
        }
    }

    fn open(&mut self, vhost: &str) {
        let Some(user) = self.user.clone() else {
            let refusal = Refusal::NotAllowed("not authenticated".to_string());
            return self.mailbox.push(Event::OpenRefused(refusal));
        };
        let allowed = admission::open(&self.edge.catalog.read(), &user, vhost);
        match allowed {
            Ok(identity) => self.edge.admit(&self.mailbox, identity),
            Err(refusal) => self.mailbox.push(Event::OpenRefused(refusal)),
        }
    }

    /// A password does not expire, so the new one is not looked at, as by RabbitMQ; whether its user may still be in the vhost is.
    fn update_secret(&mut self) {
        let identity = self.mailbox.identity.get().zip(self.user.as_ref());
        let allowed = match identity {
            Some((identity, user)) => admission::open(&self.edge.catalog.read(), user, &identity.vhost).map(drop),
            None => Err(Refusal::NotAllowed("not in a vhost".to_string())),
        };
        self.mailbox.push(Event::SecretUpdated(allowed));
    }

    pub(super) fn settle(&mut self, held: &[Held], outcome: Outcome) {
        let mut settled = 0;
        for group in held.chunk_by(|a, b| a.shard == b.shard) {
            if group[0].shard == ShardId::STREAMS {
                settled += self.settle_streams(group);
                continue;
            }
            let lane = self.lane_at(group[0].shard);
            settled += self.lanes[lane].lane.settle(self.mailbox.id(), group, outcome);
        }
        self.settled(held, outcome, settled);
    }

    /// What came from streams is credit again, whatever the client says of it.
    pub(super) fn settle_streams(&self, held: &[Held]) -> u64 {
        for group in held.chunk_by(|a, b| a.consumer == b.consumer) {
            if let Some(consumer) = group[0].consumer.and_then(|id| self.mailbox.stream(id)) {
                consumer.settled(group.len() as u32);
            }
        }
        held.len() as u64
    }

    /// `held` were settled in their lanes, `settled` of them were held there.
    pub(super) fn settled(&mut self, held: &[Held], outcome: Outcome, settled: u64) {
        for group in held.chunk_by(|a, b| a.consumer == b.consumer) {
            if let Some(consumer) = group[0].consumer {
                self.mailbox.settled(consumer, group.len() as u32);
            }
        }
        let counters = &self.edge.counters;
        match outcome {
            Outcome::Ack => counters.acked.add(settled),
            Outcome::Reject => counters.rejected.add(settled),
            Outcome::Requeue => counters.requeued.add(settled),
        }
    }

    fn written(&mut self, consumer: ConsumerId, bytes: u64) {
        let Some(place) = self.mailbox.consumer(consumer) else { return };
        if place.shard == ShardId::STREAMS {
            if let Some(stream) = self.mailbox.stream(consumer) {
                stream.written(bytes);
            }
        } else {
            let lane = self.lane_at(place.shard);
            self.lanes[lane].lane.written(consumer, bytes);
        }
    }

    fn request(&mut self, channel: u16, request: Request) {
        let at = self.at(channel);
        if self.is_failed(channel) {
            return;
        }
        if request == Request::OpenChannel {
            return self.edge.admit_channel(&self.mailbox, at);
        }
        if let Request::Cancel { consumer } = request {
            return self.cancel(at, consumer);
        }
        if !matches!(request, Request::Get { .. }) {
            self.start(at, request);
        } else if let Some(request) = self.gets.admit(channel, request) {
            self.start(at, request);
        }
    }

    fn ask_waiting_gets(&mut self) {
        while let Some((channel, request)) = self.gets.next() {
            let at = self.at(channel);
            self.start(at, request);
        }
    }

    fn start(&self, at: ChannelRef, request: Request) {
        let Some(identity) = self.mailbox.identity.get() else {
            let refusal = Refusal::NotAllowed("request before a vhost is open".to_string());
            self.mailbox.reply(at, Err(refusal));
            return;
        };
        let marks = self.lanes.iter().map(|e| (e.lane.shard, e.mark)).collect();
        let (user, vhost) = (identity.user.as_ref().map(|user| user.0.clone()), identity.vhost.clone());
        let asking = Asking { edge: self.edge.clone(), mailbox: self.mailbox.clone(), at, user, vhost, marks };
        asking.start(request);
    }

    fn cancel(&mut self, at: ChannelRef, consumer: ConsumerId) {
        let place = self.mailbox.consumer(consumer).filter(|p| p.channel == at);
        if place.is_some_and(|p| p.shard == ShardId::STREAMS) {
            self.mailbox.end_stream(consumer);
            self.mailbox.drop_consumer(consumer);
            self.mailbox.reply(at, Ok(Reply::Done));
            return;
        }
        let known = place.is_some_and(|p| {
            let lane = self.lane_at(p.shard);
            self.lanes[lane].lane.cancel(consumer, at)
        });
        if !known {
            self.mailbox.reply(at, Ok(Reply::Done));
        }
    }

    fn channel_prefetch(&mut self, channel: u16, limit: Option<u32>) {
        let consumers = self.mailbox.consumers_of(channel);
        let mut counted: Vec<_> = consumers.into_iter().filter(|(_, p)| !p.no_ack).collect();
        let streams = counted.extract_if(.., |(_, place)| place.shard == ShardId::STREAMS);
        let streams: Vec<_> = streams.filter_map(|(id, place)| Some((self.mailbox.stream(id)?, id, place))).collect();
        let mut held: Vec<_> = counted.iter().map(|(id, p)| (*id, self.edge.lane(p.shard).held(*id))).collect();
        held.extend(streams.iter().map(|(stream, id, _)| (*id, stream.held())));
        self.mailbox.set_pool(channel, limit, &held);
        let limit = self.mailbox.common_prefetch(channel);
        counted.iter().for_each(|(id, p)| self.edge.lane(p.shard).set_prefetch(*id, p.prefetch_under(limit)));
        streams.iter().for_each(|(stream, _, p)| p.prefetch_under(limit).into_iter().for_each(|limit| stream.set_limit(limit)));
    }

    fn channel_closed(&mut self, channel: u16, held: &[Held]) {
        let (epoch, consumers, unseen) = self.mailbox.close_channel(channel);
        for one in &unseen {
            self.edge.lane(one.shard).give_back_unseen(&self.mailbox, std::slice::from_ref(&one.delivery));
        }
        let one_less = |channels: u32| Some(channels.saturating_sub(1));
        let _ = self.mailbox.channels.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less);
        *self.channel(channel) = Channel { epoch, failed: false };
        consumers.iter().filter(|c| c.1.shard == ShardId::STREAMS).for_each(|c| self.mailbox.end_stream(c.0));
        let mut shards: Vec<ShardId> = consumers.iter().map(|c| c.1.shard).chain(held.iter().map(|h| h.shard)).collect();
        shards.retain(|shard| *shard != ShardId::STREAMS);
        shards.sort_unstable();
        shards.dedup();
        for shard in shards {
            let mine: Vec<_> = consumers.iter().filter(|c| c.1.shard == shard).map(|c| c.0).collect();
            let held: Vec<_> = held.iter().filter(|h| h.shard == shard).copied().collect();
            self.edge.lane(shard).close_channel(self.mailbox.id(), &mine, &held);
        }
        self.gets.closed(channel);
        self.ask_waiting_gets();
    }

    fn channel(&mut self, channel: u16) -> &mut Channel {
        let at = usize::from(channel);
        if self.channels.len() <= at {
            self.channels.resize(at + 1, Channel::default());
        }
        &mut self.channels[at]
    }

    pub(super) fn at(&mut self, channel: u16) -> ChannelRef {
        ChannelRef { channel, epoch: self.channel(channel).epoch }
    }

    pub(super) fn is_failed(&mut self, channel: u16) -> bool {
        self.channel(channel).failed
    }

    pub(super) fn set_failed(&mut self, channel: u16) {
        self.channel(channel).failed = true;
    }

    /// Position of a shard's lane in `lanes`.
    pub(super) fn lane_at(&mut self, shard: ShardId) -> usize {
        if let Some(at) = self.lanes.iter().position(|e| e.lane.shard == shard) {
            return at;
        }
        self.lanes.push(Entered { lane: self.edge.lane(shard), mark: 0 });
        self.lanes.len() - 1
    }

    fn count(&mut self) {
        self.edge.counters.published.add(std::mem::take(&mut self.published));
    }
}

impl Connection {
    /// An orderly end: answered when its exclusive queues are gone, or when that takes too long (they go all the same).
    fn leave(&mut self) {
        let mailbox = self.mailbox.clone();
        match self.depart() {
            None => mailbox.left(),
            Some(dropping) => drop(self.edge.runtime.spawn(async move {
                if tokio::time::timeout(LEAVE_PATIENCE, dropping).await.is_err() {
                    tracing::warn!(connection = %mailbox.id(), "exclusive queues outlive their connection: no answer from the catalog");
                }
                mailbox.left();
            })),
        }
    }

    /// Once: everything of this client goes. Its exclusive queues may take a while.
    fn depart(&mut self) -> Option<JoinHandle<()>> {
        if std::mem::replace(&mut self.departed, true) {
            return None;
        }
        self.count();
        let unseen = self.mailbox.close();
        self.mailbox.end_streams();
        let edge = &self.edge;
        edge.connections.lock().remove(&self.mailbox.id());
        let lanes: Vec<Arc<lane::Lane>> = edge.lanes.read().values().cloned().collect();
        lanes.iter().for_each(|lane| lane.close_connection(self.mailbox.id(), &unseen));
        edge.counters.connections_closed.add(1);
        let exclusive = self.mailbox.has_exclusive.load(Ordering::SeqCst);
        exclusive.then(|| edge.runtime.spawn(drop_exclusive(edge.this.clone(), self.mailbox.clone())))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        drop(self.depart());
        self.count();
    }
}

/// The exclusive queues of a closed connection go, however long it takes to tell the catalog.
pub(super) async fn drop_exclusive(edge: Weak<Edge>, mailbox: Arc<Mailbox>) {
    let mut pause = Duration::from_millis(50);
    loop {
        let Some(edge) = edge.upgrade() else { return };
        match edge.submit(CatalogCommand::ConnectionGone(mailbox.owner)).await {
            Ok(_) => return,
            Err(refusal) => tracing::debug!(connection = %mailbox.id(), %refusal, "exclusive queues wait for the catalog"),
        }
        drop(edge);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
}
