//! An edge for tests of the listener: a broker in one map, with the least of semantics that clients need.

use crate::listener::{Edge, EdgeConnection};
use crate::model::catalog::{ExchangeKind, Refusal, Target};
use crate::model::entry::{EntryBuilder, Op, Ops, Section, read_entry};
use crate::model::link::{Batch, Delivery};
use crate::model::report::Report;
use crate::model::step::{Event, Got, Held, Outcome, Publish, Reply, Request, Step};
use crate::model::{BatchSeq, ConsumerId, QueueId, Seq, SessionId, ShardId};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::sync::Notify;

const SHARD: ShardId = ShardId(1);

/// What one connection hears.
#[derive(Default)]
pub(super) struct Outbox {
    pub(super) events: Mutex<Vec<Event>>,
    notify: Notify,
}

impl Outbox {
    fn push(&self, event: Event) {
        self.events.lock().push(event);
        self.notify.notify_one();
    }
}

struct Consumer {
    id: ConsumerId,
    channel: u16,
    room: Option<u32>,
    outbox: Arc<Outbox>,
}

#[derive(Default)]
struct Queue {
    id: u64,
    last: u64,
    ready: VecDeque<Delivery>,
    held: Vec<Delivery>,
    consumers: Vec<Consumer>,
}

#[derive(Default)]
pub(super) struct Broker {
    queues: BTreeMap<String, Queue>,
    exchanges: BTreeMap<String, ExchangeKind>,
    bindings: Vec<(String, String, String)>,
    ids: u64,
}

/// The fake.
#[derive(Default)]
pub(super) struct FakeEdge {
    pub(super) broker: Arc<Mutex<Broker>>,
    pub(super) full: Arc<AtomicBool>,
    pub(super) room: Arc<Notify>,
    /// Publishes given back.
    pub(super) given_back: Arc<AtomicU64>,
    pub(super) written: Arc<AtomicU64>,
    pub(super) outboxes: Mutex<Vec<Arc<Outbox>>>,
    pub(super) reported: Arc<Mutex<Option<Report>>>,
}

pub(super) struct FakeConnection {
    broker: Arc<Mutex<Broker>>,
    full: Arc<AtomicBool>,
    room: Arc<Notify>,
    given_back: Arc<AtomicU64>,
    written: Arc<AtomicU64>,
    outbox: Arc<Outbox>,
    reported: Arc<Mutex<Option<Report>>>,
}

impl Edge for FakeEdge {
    type Connection = FakeConnection;
    fn connect(&self, _peer: SocketAddr) -> FakeConnection {
        let outbox = Arc::new(Outbox::default());
        self.outboxes.lock().push(outbox.clone());
        FakeConnection {
            broker: self.broker.clone(),
            full: self.full.clone(),
            room: self.room.clone(),
            given_back: self.given_back.clone(),
            written: self.written.clone(),
            outbox,
            reported: self.reported.clone(),
        }
    }
}

impl FakeEdge {
    /// Somebody lists connections.
    pub(super) fn ask_reports(&self) {
        self.outboxes.lock().iter().for_each(|outbox| outbox.push(Event::Report));
    }

    /// A message from a client of another node.
    pub(super) fn inject(&self, queue: &str, body: &'static [u8]) {
        let publish = Publish {
            channel: 1,
            ticket: None,
            mandatory: false,
            exchange: Bytes::new(),
            routing_key: Bytes::copy_from_slice(queue.as_bytes()),
            properties: Bytes::from_static(&[0, 0]),
            body: Bytes::from_static(body),
        };
        self.broker.lock().publish(publish, &Outbox::default());
    }
}

impl EdgeConnection for FakeConnection {
    fn submit(&mut self, step: Step) -> Result<(), Step> {
        let event = match step {
            Step::Publish(_) if self.full.load(Ordering::SeqCst) => {
                self.given_back.fetch_add(1, Ordering::SeqCst);
                return Err(step);
            }
            Step::Authenticate { user, .. } if user == "guest" => Event::Authenticated,
            Step::AuthenticateByCertificate { user } if *user == *"guest" => Event::Authenticated,
            Step::Authenticate { .. } | Step::AuthenticateByCertificate { .. } => {
                Event::AuthenticationFailed("unknown user".to_owned().into())
            }
            Step::Open { vhost } if vhost == "/" => Event::Opened,
            Step::Open { vhost } => Event::OpenRefused(Refusal::NotFound { kind: "vhost".into(), name: vhost.clone(), vhost }),
            Step::Publish(publish) => {
                self.broker.lock().publish(publish, &self.outbox);
                return Ok(());
            }
            Step::Settle { held, outcome, .. } => {
                held.iter().for_each(|h| self.broker.lock().settle(h, outcome));
                return Ok(());
            }
            Step::ChannelClosed { held, channel } => {
                self.broker.lock().end(|c| c.channel == channel && Arc::ptr_eq(&c.outbox, &self.outbox));
                held.iter().for_each(|h| self.broker.lock().settle(h, Outcome::Requeue));
                return Ok(());
            }
            Step::Written { bytes, .. } => {
                self.written.fetch_add(bytes, Ordering::SeqCst);
                return Ok(());
            }
            Step::ChannelPrefetch { .. } | Step::Check(_) | Step::Append(_) => return Ok(()),
            Step::UpdateSecret => Event::SecretUpdated(Ok(())),
            Step::Report(report) => {
                *self.reported.lock() = Some(*report);
                return Ok(());
            }
            Step::Commit(commit) => {
                let channel = commit.channel;
                commit.publishes.into_iter().for_each(|publish| self.broker.lock().publish(publish, &self.outbox));
                let settled = commit.settlements.iter().flat_map(|(held, outcome)| held.iter().map(|h| (h, *outcome)));
                settled.for_each(|(held, outcome)| self.broker.lock().settle(held, outcome));
                Event::Reply { channel, result: Ok(Reply::Done) }
            }
            Step::Leave => Event::Left,
            Step::Request { channel, request } => {
                let result = self.broker.lock().request(channel, request, &self.outbox);
                self.outbox.push(Event::Reply { channel, result });
                self.broker.lock().deliver();
                return Ok(());
            }
        };
        self.outbox.push(event);
        Ok(())
    }

    fn take_events(&mut self, out: &mut Vec<Event>, bytes: usize) {
        let (mut events, mut used) = (self.outbox.events.lock(), 0);
        let mut fits = |event: &Event| {
            let before = used;
            if let Event::Deliver { messages, .. } = event {
                used += messages.iter().map(|m| m.message.len()).sum::<usize>();
            }
            before < bytes
        };
        let count = events.iter().take_while(|e| fits(e)).count();
        out.extend(events.drain(..count));
    }

    async fn changed(&self) {
        while self.outbox.events.lock().is_empty() {
            self.outbox.notify.notified().await;
        }
    }

    async fn writable(&self) {
        while self.full.load(Ordering::SeqCst) {
            self.room.notified().await;
        }
    }
}

impl Drop for FakeConnection {
    fn drop(&mut self) {
        self.broker.lock().end(|c| Arc::ptr_eq(&c.outbox, &self.outbox));
    }
}

impl Broker {
    fn end(&mut self, gone: impl Fn(&Consumer) -> bool) {
        self.queues.values_mut().for_each(|q| q.consumers.retain(|c| !gone(c)));
    }

    /// Ready messages of a queue.
    pub(super) fn ready(&self, queue: &str) -> usize {
        self.queues.get(queue).map_or(0, |q| q.ready.len())
    }

    /// Messages of a queue that consumers hold.
    pub(super) fn held(&self, queue: &str) -> usize {
        self.queues.get(queue).map_or(0, |q| q.held.len())
    }

    fn route(&self, exchange: &str, key: &str) -> Option<Vec<String>> {
        if exchange.is_empty() {
            return Some(self.queues.keys().filter(|q| *q == key).cloned().collect());
        }
        let kind = self.exchanges.get(exchange)?;
        let matches = |bound: &str| match kind {
            ExchangeKind::Direct => bound == key,
            ExchangeKind::Fanout
            | ExchangeKind::Headers
            | ExchangeKind::ConsistentHash
            | ExchangeKind::ModulusHash
            | ExchangeKind::Random
            | ExchangeKind::LocalRandom
            | ExchangeKind::RocketTopic
            | ExchangeKind::Delayed
            | ExchangeKind::RecentHistory
            | ExchangeKind::Deduplication => true,
            ExchangeKind::Topic => topic(&bound.split('.').collect::<Vec<_>>(), &key.split('.').collect::<Vec<_>>()),
        };
        Some(self.bindings.iter().filter(|(x, k, _)| x == exchange && matches(k)).map(|(_, _, q)| q.clone()).collect())
    }

    fn publish(&mut self, publish: Publish, outbox: &Outbox) {
        let exchange = String::from_utf8_lossy(&publish.exchange).into_owned();
        let channel = publish.channel;
        let Some(queues) = self.route(&exchange, &String::from_utf8_lossy(&publish.routing_key)) else {
            let refusal = Refusal::NotFound { kind: "exchange".into(), name: exchange, vhost: "/".into() };
            outbox.push(Event::ChannelError { channel, refusal, method: (60, 40) });
            return;
        };
        let ticket = publish.ticket;
        let message = stored(&publish);
        for name in &queues {
            let queue = self.queues.get_mut(name).expect("a bound queue exists");
            queue.last += 1;
            let delivery = Delivery {
                queue: QueueId(queue.id),
                seq: Seq(queue.last),
                redelivered: false,
                failures: 0,
                failed_ms: 0,
                message: message.clone(),
            };
            queue.ready.push_back(delivery);
        }
        if queues.is_empty() && publish.mandatory {
            outbox.push(Event::Returned(Box::new(publish)));
        }
        if let Some(ticket) = ticket {
            outbox.push(Event::Confirmed { channel, tickets: vec![(ticket, ticket)] });
        }
        self.deliver();
    }

    fn settle(&mut self, held: &Held, outcome: Outcome) {
        let Some(queue) = self.queues.values_mut().find(|q| q.id == held.queue.0) else { return };
        let Some(at) = queue.held.iter().position(|d| d.seq == held.seq) else { return };
        let mut delivery = queue.held.remove(at);
        if let Some(consumer) = queue.consumers.iter_mut().find(|c| Some(c.id) == held.consumer) {
            consumer.room = consumer.room.map(|r| r + 1);
        }
        if outcome == Outcome::Requeue {
            delivery.redelivered = true;
            let at = queue.ready.partition_point(|d| d.seq < delivery.seq);
            queue.ready.insert(at, delivery);
        }
        self.deliver();
    }

    fn deliver(&mut self) {
        for queue in self.queues.values_mut() {
            while !queue.ready.is_empty() {
                let Some(at) = queue.consumers.iter().position(|c| c.room != Some(0)) else { break };
                let mut consumer = queue.consumers.remove(at);
                let delivery = queue.ready.pop_front().expect("not empty");
                queue.held.push(delivery.clone());
                consumer.room = consumer.room.map(|r| r - 1);
                let (channel, id) = (consumer.channel, consumer.id);
                consumer.outbox.push(Event::Deliver { channel, consumer: id, shard: SHARD, messages: vec![delivery] });
                queue.consumers.push(consumer);
            }
        }
    }

    fn queue(&mut self, name: &str) -> Result<&mut Queue, Refusal> {
        let missing = Refusal::NotFound { kind: "queue".into(), name: name.to_owned(), vhost: "/".into() };
        self.queues.get_mut(name).ok_or(missing)
    }

    fn request(&mut self, channel: u16, request: Request, outbox: &Arc<Outbox>) -> Result<Reply, Refusal> {
        self.ids += 1;
        let id = self.ids;
        match request {
            Request::DeclareExchange { spec, .. } => drop(self.exchanges.insert(spec.name.name.to_string(), spec.kind)),
            Request::DeleteExchange { name, .. } => drop(self.exchanges.remove(&*name.name)),
            Request::DeclareQueue(declare) => {
                let given = declare.name.name.to_string();
                let name = if given.is_empty() { format!("amq.gen-{id}") } else { given };
                if declare.passive {
                    self.queue(&name)?;
                }
                let queue = self.queues.entry(name.clone()).or_insert_with(|| Queue { id, ..Queue::default() });
                let (messages, consumers) = (queue.ready.len() as u64, queue.consumers.len() as u32);
                return Ok(Reply::Queue { name: name.into(), messages, consumers });
            }
            Request::DeleteQueue { name, .. } => {
                let count = self.queue(&name.name)?.ready.len();
                self.bindings.retain(|(_, _, q)| **q != *name.name);
                for consumer in self.queues.remove(&*name.name).expect("found").consumers {
                    consumer.outbox.push(Event::ConsumerGone { channel: consumer.channel, consumer: consumer.id });
                }
                return Ok(Reply::Count(count as u64));
            }
            Request::PurgeQueue { name } => {
                let count = std::mem::take(&mut self.queue(&name.name)?.ready).len();
                return Ok(Reply::Count(count as u64));
            }
            Request::Bind(spec) => {
                assert_eq!(spec.target, Target::Queue, "the fake binds queues only");
                self.queue(&spec.destination)?;
                self.bindings.push((spec.source.to_string(), spec.key.to_string(), spec.destination.to_string()));
            }
            Request::Unbind(spec) => {
                self.bindings.retain(|(x, k, q)| (&**x, &**k, &**q) != (&*spec.source, &*spec.key, &*spec.destination));
            }
            Request::Consume { queue, prefetch, .. } => {
                let consumer = Consumer { id: ConsumerId(id), channel, room: prefetch, outbox: outbox.clone() };
                self.queue(&queue.name)?.consumers.push(consumer);
                return Ok(Reply::Consuming { consumer: ConsumerId(id) });
            }
            Request::Cancel { consumer } => self.end(|c| c.id == consumer),
            Request::Get { queue, .. } => {
                let queue = self.queue(&queue.name)?;
                let Some(delivery) = queue.ready.pop_front() else { return Ok(Reply::Got(None)) };
                queue.held.push(delivery.clone());
                return Ok(Reply::Got(Some(Got { shard: SHARD, delivery, remaining: queue.ready.len() as u64 })));
            }
            Request::Take(_) => return Ok(Reply::Took(Vec::new())),
            Request::Barrier | Request::OpenChannel => {}
        }
        Ok(Reply::Done)
    }
}

fn topic(pattern: &[&str], words: &[&str]) -> bool {
    match (pattern, words) {
        ([], []) => true,
        (["#", rest @ ..], _) => topic(rest, words) || (!words.is_empty() && topic(pattern, &words[1..])),
        (["*", rest @ ..], [_, more @ ..]) => topic(rest, more),
        ([word, rest @ ..], [same, more @ ..]) if word == same => topic(rest, more),
        _ => false,
    }
}

/// The message as a shard would store it.
fn stored(publish: &Publish) -> Bytes {
    let mut ops = Ops::default();
    ops.enqueue(&[QueueId(1)], &publish.exchange, &publish.routing_key, &publish.properties, &publish.body);
    let batch = Batch { session: SessionId(1), seq: BatchSeq(1), floor: BatchSeq(0), catalog_index: 0, ops: ops.take() };
    let mut builder = EntryBuilder::new(0);
    builder.batch(&batch);
    let (_, mut sections) = read_entry(&builder.finish()).expect("own entry");
    let Some(Section::Batch { mut ops, .. }) = sections.pop() else { panic!("no batch") };
    let Some(Ok(Op::Enqueue(op))) = ops.next() else { panic!("no message") };
    op.message
}
