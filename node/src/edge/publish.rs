//! The hot path: a publish is checked, routed under one catalog read lock and appended to the lanes of its shards. Nothing waits here;
//! what cannot go on now is given back as it came. Also the second routing of messages whose queues were gone (rule 27).

use super::access::Kind;
use super::connection::Connection;
use super::copies::{Copies, Keys};
use super::headers::{MessageSubject, user_id};
use super::lane::{Ended, Fate, Home, Lane, Message, Run, Shared};
use super::mailbox::{Blocker, ChannelRef, Identity};
use super::streams::{Record, stream_target};
use super::{Edge, names, replies};
use crate::machine::catalog::{Catalog, Envelope, RouteResult, exchange_text};
use crate::model::catalog::{Name, Refusal};
use crate::model::entry::StoredMessage;
use crate::model::step::{Event, Publish, REPLY_TO};
use crate::model::stream::StreamTarget;
use crate::model::{QueueId, ShardId, properties};
use bytes::{Bytes, BytesMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

const PUBLISH: (u16, u16) = (60, 40);
/// Scratch space for records that a connection keeps.
const RECORD_BYTES: usize = 64 << 10;
/// Users with this tag may publish in the name of others.
const IMPERSONATOR: &str = "impersonator";
pub(super) const NO_LEASE: &str = "this node has no contact with a majority of the cluster; it serves again when it has";

/// How often somebody who waits for the routing lease looks again.
pub(super) const LEASE_POLL: Duration = Duration::from_millis(20);

/// Why a publish waits.
#[derive(Clone, Debug)]
pub(super) enum Hold {
    /// The node is blocked.
    Blocked,
    /// No routing lease; `until`: when a publish with a ticket is nacked instead.
    Lease { until: Option<Instant> },
    /// A lane is full; `until`: when what has a ticket is nacked instead.
    Room { lane: Arc<Lane>, until: Option<Instant> },
}

/// The name of an exchange as a client sent it.
fn exchange_name<'a>(identity: &Identity, exchange: &'a Bytes) -> Result<&'a str, Refusal> {
    str::from_utf8(exchange).map_err(|_| names::not_found(Kind::Exchange, &identity.name(&String::from_utf8_lossy(exchange))))
}

impl Connection {
    /// Routes one message, or gives it back when it has to wait.
    #[allow(clippy::result_large_err, reason = "the step is given back as it came; a box would cost every publish")]
    pub(super) fn publish(&mut self, mut publish: Publish) -> Result<(), Publish> {
        let at = self.at(publish.channel);
        self.hold = None;
        if self.is_failed(publish.channel) {
            return Ok(());
        }
        if let Err(hold) = self.check_node(publish.ticket.is_some()) {
            match hold {
                None => self.mailbox.nack(at, publish.ticket.unwrap_or_default(), publish.ticket.unwrap_or_default()),
                Some(hold) => {
                    self.hold = Some(hold);
                    return Err(publish);
                }
            }
            return Ok(());
        }
        let routed = Copies::read(&publish.properties).and_then(|copies| Ok((self.route(&publish, &copies)?, copies)));
        let (index, copies) = match routed {
            Ok(routed) => routed,
            Err(refusal) => {
                // Of several reasons the client hears the one that RabbitMQ comes to first.
                let first = self.try_publish(&publish).err();
                self.fail(at.channel, first.unwrap_or(refusal));
                return Ok(());
            }
        };
        self.enter_lanes();
        if let Some(full) = self.entered.iter().find(|(at, _)| !self.lanes[*at].lane.has_room()) {
            let full = self.lanes[full.0].lane.clone();
            if self.waits_for_room(full, publish.ticket.is_some()) {
                return Err(publish);
            }
            self.mailbox.nack(at, publish.ticket.unwrap_or_default(), publish.ticket.unwrap_or_default());
            self.edge.counters.nacked.add(1);
            return Ok(());
        }
        self.published += 1;
        if let Some(properties) = copies.stored(&publish.properties) {
            publish.properties = properties;
        }
        self.append(at, &publish, index);
        Ok(())
    }

    /// Holds a publish until there is room in that lane. False: somebody waits for an answer, and it has moved nothing for so long that what
    /// waits in it with a ticket is nacked.
    pub(super) fn waits_for_room(&mut self, lane: Arc<Lane>, answered: bool) -> bool {
        let until = lane.gives_up(&self.mailbox).filter(|_| answered);
        let waits = until.is_none_or(|until| Instant::now() < until);
        if waits {
            self.hold = Some(Hold::Room { lane, until });
        }
        waits
    }

    /// Whether the node takes publishes now; `Err(None)`: refuse it, somebody waits for an answer and has waited long enough.
    pub(super) fn check_node(&self, answered: bool) -> Result<(), Option<Hold>> {
        let edge = &*self.edge;
        if edge.holds_back(&self.mailbox) {
            return Err(Some(Hold::Blocked));
        }
        if edge.port.routing_lease() {
            return Ok(());
        }
        self.mailbox.block(Blocker::Routing, NO_LEASE);
        let now = Instant::now();
        let until = edge.lease_missed(now) + edge.config.no_quorum_timeout;
        match answered {
            true if now >= until => Err(None),
            true => Err(Some(Hold::Lease { until: Some(until) })),
            false => Err(Some(Hold::Lease { until: None })),
        }
    }

    /// Fills `targets` and `unseen`. Returns the catalog index that it was routed by.
    pub(super) fn route(&mut self, publish: &Publish, copies: &Copies) -> Result<u64, Refusal> {
        self.targets.clear();
        let Connection { edge, mailbox, writable, targets, streams, known_streams, unseen, .. } = self;
        streams.clear();
        let identity = mailbox.identity.get().ok_or_else(no_vhost)?;
        let catalog = edge.catalog.read();
        let exchange = exchange_name(identity, &publish.exchange)?;
        let keys = copies.keys(&publish.routing_key);
        writable.check(&edge.patterns, &catalog, identity.who(), (&publish.exchange, exchange), keys.iter().copied())?;
        match edge.route(&catalog, &identity.vhost, (exchange, &keys), &publish.properties, targets) {
            result @ (RouteResult::Routed | RouteResult::OnlyRemembered) => {
                *unseen = result == RouteResult::OnlyRemembered;
                known_streams.among(&catalog, targets, streams);
                check_properties(&catalog, identity, &publish.properties).map(|()| catalog.index())
            }
            RouteResult::NoExchange => Err(names::not_found(Kind::Exchange, &identity.name(exchange))),
            RouteResult::Internal => Err(internal(&identity.name(exchange))),
        }
    }

    /// A message of a transaction was taken in. What RabbitMQ looks at then is looked at now; its way is found at the commit. Without a
    /// routing lease this node's catalog may be old, and the commit will tell.
    pub(super) fn check_publish(&mut self, publish: &Publish) {
        if self.is_failed(publish.channel) || !self.edge.port.routing_lease() {
            return;
        }
        if let Err(refusal) = self.try_publish(publish) {
            self.fail(publish.channel, refusal);
        }
    }

    /// All that may be against a publish, in the order in which RabbitMQ's channel looks at it.
    fn try_publish(&mut self, publish: &Publish) -> Result<(), Refusal> {
        let Connection { edge, mailbox, writable, .. } = self;
        let identity = mailbox.identity.get().ok_or_else(no_vhost)?;
        let catalog = edge.catalog.read();
        let exchange = exchange_name(identity, &publish.exchange)?;
        let (at, name) = ((&publish.exchange, exchange), identity.name(exchange));
        writable.check(&edge.patterns, &catalog, identity.who(), at, [])?;
        match catalog.exchange(&name) {
            None => return Err(names::not_found(Kind::Exchange, &name)),
            Some(spec) if spec.internal => return Err(internal(&name)),
            Some(_) => {}
        }
        check_reply_to(&publish.properties)?;
        check_expiration(&publish.properties)?;
        let copies = Copies::read(&publish.properties)?;
        let keys = copies.keys(&publish.routing_key);
        writable.check(&edge.patterns, &catalog, identity.who(), at, keys.iter().copied())?;
        check_user_id(&catalog, identity, &publish.properties)
    }

    /// Finds the lanes of `targets`: positions in `lanes` with the end of their stretch of `targets`. Shards that are gone for good
    /// take no part.
    pub(super) fn enter_lanes(&mut self) {
        self.entered.clear();
        if self.targets.len() > 1 {
            self.targets.sort_unstable_by_key(|t| t.1);
        }
        let mut start = 0;
        while let Some((_, shard)) = self.targets.get(start).copied() {
            let len = self.targets[start..].iter().take_while(|t| t.1 == shard).count();
            let lane = self.lane_at(shard);
            if self.lanes[lane].lane.is_gone() {
                self.targets.drain(start..start + len);
            } else {
                start += len;
                self.entered.push((lane, start));
            }
        }
    }

    fn append(&mut self, at: ChannelRef, publish: &Publish, index: u64) {
        let mailbox = self.mailbox.clone();
        let ticket = publish.ticket.unwrap_or_default();
        let mut run = Run {
            mailbox,
            at,
            ticket,
            mandatory: publish.mandatory,
            rerouted: false,
            first: 0,
            count: 1,
            shared: None,
            letters: None,
            commit: None,
            strict: false,
        };
        if self.entered.is_empty() {
            self.edge.counters.unroutable.add(1);
            let message = StoredMessage {
                exchange: publish.exchange.clone(),
                key: publish.routing_key.clone(),
                properties: publish.properties.clone(),
                body: publish.body.clone(),
            };
            self.edge.ended(run.end(Fate::Unroutable, Some(&message)));
            return;
        }
        if run.mandatory && self.unseen {
            self.edge.counters.returned.add(1);
            self.mailbox.returned(at, publish.clone());
            run.mandatory = false;
        }
        let parts = self.parts();
        if parts > 1 {
            run.shared = Some(Shared::new(parts));
        }
        let message = Message {
            exchange: &publish.exchange,
            key: &publish.routing_key,
            properties: &publish.properties,
            body: &publish.body,
            source: None,
        };
        let record = (!self.streams.is_empty()).then(|| Record::encode(&mut self.record, &message));
        let mut start = 0;
        for (lane, end) in &self.entered {
            let targets = &self.targets[start..*end];
            start = *end;
            let entered = &mut self.lanes[*lane];
            self.queues.clear();
            self.queues.extend(targets.iter().map(|t| t.0));
            if let Some(record) = &record {
                self.queues.retain(|queue| !self.streams.iter().any(|stream| stream.stream == *queue));
                for stream in self.streams.iter().filter(|stream| stream.shard == entered.lane.shard) {
                    entered.mark = entered.lane.append_record(stream, record.entry(), &run);
                }
            }
            if !self.queues.is_empty() {
                entered.mark = entered.lane.enqueue(&self.queues, &message, index, run.clone());
            }
        }
        if self.record.capacity() > RECORD_BYTES {
            self.record = BytesMut::new();
        }
    }

    /// How many verdicts the message waits for: one for the queues of each shard, one for each stream.
    fn parts(&self) -> u32 {
        if self.streams.is_empty() {
            return self.entered.len() as u32;
        }
        let is_stream = |queue: QueueId| self.streams.iter().any(|stream| stream.stream == queue);
        let mut start = 0;
        let with_queues = self.entered.iter().filter(|(_, end)| {
            let targets = &self.targets[std::mem::replace(&mut start, *end)..*end];
            targets.iter().any(|(queue, _)| !is_stream(*queue))
        });
        with_queues.count() as u32 + self.streams.len() as u32
    }

    /// A publish that closes its channel.
    fn fail(&mut self, channel: u16, refusal: Refusal) {
        self.set_failed(channel);
        self.mailbox.push(Event::ChannelError { channel, refusal, method: PUBLISH });
    }
}

fn no_vhost() -> Refusal {
    Refusal::NotAllowed("publish before a vhost is open".to_string())
}

fn internal(name: &Name) -> Refusal {
    Refusal::Access(format!("cannot publish to internal {}", exchange_text(name)))
}

/// What RabbitMQ looks at when the exchange is there and may be published to.
fn check_properties(catalog: &Catalog, identity: &Identity, properties: &[u8]) -> Result<(), Refusal> {
    check_reply_to(properties)?;
    check_expiration(properties)?;
    check_user_id(catalog, identity, properties)
}

/// The session puts an address in the place of this name, when its channel has a consumer for answers.
fn check_reply_to(list: &[u8]) -> Result<(), Refusal> {
    match properties::field(list, properties::REPLY_TO) {
        Some(name) if name == REPLY_TO.as_bytes() => Err(Refusal::Precondition("fast reply consumer does not exist".to_owned())),
        Some(_) | None => Ok(()),
    }
}

/// A time to live that is none is refused in RabbitMQ's words.
fn check_expiration(list: &[u8]) -> Result<(), Refusal> {
    let Some(text) = properties::field(list, properties::EXPIRATION) else { return Ok(()) };
    properties::check_expiration(text).map(drop).map_err(|why| {
        let text = String::from_utf8_lossy(text);
        Refusal::Precondition(format!("invalid expiration '{text}': {why}"))
    })
}

/// A publisher may name nobody but itself, unless it may speak for others. The refusal is RabbitMQ's.
fn check_user_id(catalog: &Catalog, identity: &Identity, properties: &[u8]) -> Result<(), Refusal> {
    let Some(user) = identity.user() else { return Ok(()) };
    let Some(claimed) = user_id(properties).filter(|claimed| *claimed != user.as_bytes()) else { return Ok(()) };
    if catalog.user(user).is_some_and(|u| u.tags.iter().any(|tag| tag == IMPERSONATOR)) {
        return Ok(());
    }
    let claimed = String::from_utf8_lossy(claimed);
    Err(Refusal::Precondition(format!("user_id property set to '{claimed}' but authenticated user was '{user}'")))
}

impl Edge {
    /// Appends the queues that take a message: those of the catalog, and those behind direct reply-to addresses.
    fn route(
        &self,
        catalog: &Catalog,
        vhost: &str,
        (exchange, keys): (&str, &Keys<'_>),
        properties: &[u8],
        out: &mut Vec<(QueueId, ShardId)>,
    ) -> RouteResult {
        let near = |shard| self.leads(shard);
        let subject = MessageSubject::new(properties);
        let before = out.len();
        let result = catalog.route(&Envelope { vhost, exchange, keys, subject: &subject, near: &near }, out);
        if exchange.is_empty() && out.len() - before < keys.len() {
            let replies = keys.iter().filter_map(|key| replies::parse(key));
            out.extend(replies.filter(|(_, node)| catalog.incarnation(*node).is_some()).map(|(queue, node)| (queue, ShardId::local(node))));
        }
        result
    }

    /// Takes the streams out of `targets`.
    fn split_streams(&self, targets: &mut Vec<(QueueId, ShardId)>) -> Vec<StreamTarget> {
        let catalog = self.catalog.read();
        let streams = targets.extract_if(.., |(queue, _)| catalog.is_stream(*queue));
        streams.filter_map(|(queue, _)| stream_target(&catalog, catalog.queue_by_id(queue)?)).collect()
    }

    /// This node leads the shard.
    pub(super) fn leads(&self, shard: ShardId) -> bool {
        match shard.owner() {
            Some(owner) => owner == self.config.node,
            None => self.leaders.leadership(shard).borrow().is_some_and(|leader| leader.node() == self.config.node),
        }
    }

    /// A publish found no routing lease. Returns since when; a task tells the publishers when it is back.
    fn lease_missed(&self, now: Instant) -> Instant {
        let mut lost = self.lease_lost.lock();
        if let Some(since) = *lost {
            return since;
        }
        *lost = Some(now);
        let this = self.this.clone();
        self.runtime.spawn(async move {
            loop {
                tokio::time::sleep(LEASE_POLL).await;
                let Some(edge) = this.upgrade() else { return };
                let mut lost = edge.lease_lost.lock();
                if edge.port.routing_lease() {
                    *lost = None;
                    return edge.connections.lock().values().for_each(|m| m.unblock(Blocker::Routing));
                }
            }
        });
        now
    }
}

impl Home for Edge {
    fn reroute(&self, run: &Run, message: &StoredMessage, queues: &[QueueId], routed_at: u64) -> Option<Fate> {
        let Some(identity) = run.mailbox.identity.get() else { return Some(Fate::Unroutable) };
        let Ok(exchange) = std::str::from_utf8(&message.exchange) else { return Some(Fate::Unroutable) };
        if run.rerouted {
            // Refused twice although it exists: the copies of the catalog do not agree yet. It is in no queue, so not confirmed.
            return Some(if queues.iter().any(|q| self.knows(*q)) { Fate::Nacked } else { Fate::Unroutable });
        }
        let mut targets: Vec<(QueueId, ShardId)> = Vec::new();
        let index = {
            let catalog = self.catalog.read();
            let copies = Copies::read(&message.properties).unwrap_or_default();
            // An exchange that is gone leaves no targets: unroutable then.
            let _ = self.route(&catalog, &identity.vhost, (exchange, &copies.keys(&message.key)), &message.properties, &mut targets);
            // Other older queues had their chance: some of them took the message in other shards, or another part of it is on its way to
            // them. So did those behind direct reply-to addresses, which are not numbered like others.
            let reached = run.shared.as_ref().map_or(routed_at, |shared| shared.reroute(routed_at, catalog.index()));
            targets.retain(|(queue, _)| queue.0 > reached && !queue.is_reply() && !queues.contains(queue));
            targets.extend(queues.iter().filter_map(|id| Some((*id, catalog.queue_by_id(*id)?.shard))));
            catalog.index()
        };
        let streams = self.split_streams(&mut targets);
        targets.sort_unstable_by_key(|t| t.1);
        let parts: Vec<_> = targets.chunk_by(|a, b| a.1 == b.1).filter(|p| !self.lane(p[0].1).is_gone()).collect();
        let count = (parts.len() + streams.len()) as u32;
        if count == 0 {
            return Some(Fate::Unroutable);
        }
        let shared = match &run.shared {
            Some(shared) => {
                shared.add_parts(count - 1);
                Some(shared.clone())
            }
            None => (count > 1 && (run.is_ticketed() || run.mandatory)).then(|| Shared::new(count)),
        };
        let again = Run { rerouted: true, shared, ..run.clone() };
        let message = message.view();
        for part in &parts {
            let queues: Vec<_> = part.iter().map(|t| t.0).collect();
            self.lane(part[0].1).enqueue(&queues, &message, index, again.clone());
        }
        let mut scratch = BytesMut::new();
        for stream in &streams {
            self.lane(stream.shard).append_record(stream, Record::encode(&mut scratch, &message).entry(), &again);
        }
        self.counters.rerouted.add(1);
        None
    }

    fn knows(&self, queue: QueueId) -> bool {
        self.catalog.read().queue_by_id(queue).is_some()
    }

    fn hold_timeout(&self, queue: QueueId) -> Duration {
        let catalog = self.catalog.read();
        let of_queue = catalog.queue_by_id(queue).and_then(|record| catalog.settings(record).consumer_timeout_ms);
        of_queue.map_or(self.config.consumer_timeout, Duration::from_millis)
    }

    fn ended(&self, ended: Ended) {
        self.counters.confirmed.add(ended.confirmed);
        self.counters.nacked.add(ended.nacked);
        self.counters.returned.add(ended.returned);
    }

    fn delivered(&self, messages: u64, remote: bool) {
        self.counters.delivered.add(messages);
        if remote {
            self.counters.delivered_remote.add(messages);
        }
    }

    fn got(&self) {
        self.counters.got.add(1);
    }

    fn batch_sent(&self, remote: bool) {
        self.counters.batches.add(1);
        self.counters.batches_remote.add(remote.into());
    }

    fn path_opened(&self) {
        self.counters.paths_opened.add(1);
    }
}
