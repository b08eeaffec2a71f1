//! The consumers of a lane and what clients hold of its shard: the truth that a new leader is told (`Attach`). Pure; the lane carries
//! out what it says. A message is held from the moment it came from the leader, wherever on this node it is.

use super::ages::{Ages, Look};
use crate::edge::mailbox::{ChannelRef, ConsumerPlace, Mailbox};
use crate::edge::ranges::RangeSet;
use crate::model::link::{Attached, Consumer, Delivery, Ranges, ToLeader};
use crate::model::{ConnectionId, ConsumerId, QueueId, Seq};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(super) struct Record {
    pub spec: Consumer,
    pub mailbox: Arc<Mailbox>,
    pub place: ConsumerPlace,
    /// The leader has confirmed its start.
    pub running: bool,
    pub unacked: RangeSet,
    /// Delivered and not yet written to the socket.
    unwritten: u64,
    credit_messages: u32,
    credit_bytes: u64,
    /// The prefetch that the leader knows.
    told_prefetch: Option<u32>,
    dirty: bool,
    pub wishes: Wishes,
    ages: Ages,
    /// Came before the answer to its start.
    pub early: Vec<Vec<Delivery>>,
}

/// What a consumer asks of its own edge.
#[derive(Clone, Copy, Debug)]
pub(in crate::edge) struct Wishes {
    /// How long it may hold a message.
    pub timeout: Duration,
    /// It says so itself; else its queue does, as of now.
    pub is_own_timeout: bool,
    /// It ends when another leader takes over.
    pub cancel_on_failover: bool,
}

/// A message that basic.get or a take gave out.
#[derive(Debug)]
struct Fetched {
    mailbox: Arc<Mailbox>,
    at: ChannelRef,
    since: Instant,
    is_taken: bool,
}

/// What a consumer that ended left with its client.
#[derive(Debug)]
struct Left {
    mailbox: Arc<Mailbox>,
    at: ChannelRef,
    queue: QueueId,
    set: RangeSet,
    ages: Ages,
    wishes: Wishes,
}

/// Somebody who holds a message for too long.
#[derive(Debug)]
pub(super) struct Late {
    pub mailbox: Arc<Mailbox>,
    pub at: ChannelRef,
    pub timeout: Duration,
}

/// A cancel that the leader has not confirmed.
#[derive(Debug)]
pub(super) struct Cancelling {
    pub mailbox: Arc<Mailbox>,
    pub at: ChannelRef,
    pub deadline: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Consumers {
    pub records: HashMap<ConsumerId, Record>,
    /// Held by basic.get or by consumers that ended since.
    loose: BTreeMap<(ConnectionId, QueueId), RangeSet>,
    /// Those of them that came by basic.get or takes.
    fetched: BTreeMap<(ConnectionId, QueueId, Seq), Fetched>,
    /// Those of them that came otherwise.
    left: Vec<Left>,
    pub cancelling: HashMap<ConsumerId, Cancelling>,
    dirty: Vec<ConsumerId>,
    /// When consumers and fetched messages are looked at for messages held too long.
    pub sweep_at: Option<Instant>,
}

impl Consumers {
    pub fn add(&mut self, spec: Consumer, mailbox: Arc<Mailbox>, place: ConsumerPlace, wishes: Wishes) {
        self.sweep_soon(wishes.timeout);
        let record = Record {
            mailbox,
            place,
            running: false,
            unacked: RangeSet::default(),
            unwritten: 0,
            credit_messages: 0,
            credit_bytes: 0,
            told_prefetch: spec.prefetch,
            dirty: false,
            wishes,
            ages: Ages::default(),
            early: Vec::new(),
            spec,
        };
        self.records.insert(record.spec.id, record);
    }

    /// Messages came for a consumer: they are held from now on. `None`: nobody of that name, give them back.
    pub fn delivered(&mut self, id: ConsumerId, messages: &[Delivery]) -> Option<&mut Record> {
        let record = self.records.get_mut(&id)?;
        for message in messages {
            record.unacked.insert(message.seq);
            if message.redelivered {
                record.ages.again(message.seq);
            }
            record.unwritten += message.message.len() as u64;
        }
        Some(record)
    }

    /// A client has dealt with a message. False: it did not hold it (any more).
    pub fn release(&mut self, connection: ConnectionId, consumer: Option<ConsumerId>, queue: QueueId, seq: Seq) -> bool {
        if let Some(record) = consumer.and_then(|id| self.records.get_mut(&id)) {
            if !record.unacked.remove(seq) {
                return false;
            }
            if record.spec.prefetch.is_some() {
                record.credit_messages += 1;
                mark(&mut self.dirty, record);
            }
            return true;
        }
        self.fetched.remove(&(connection, queue, seq));
        let Some(loose) = self.loose.get_mut(&(connection, queue)) else { return false };
        let held = loose.remove(seq);
        if loose.is_empty() {
            self.loose.remove(&(connection, queue));
        }
        held
    }

    fn sweep_soon(&mut self, timeout: Duration) {
        let sweep = Instant::now() + pause(timeout);
        self.sweep_at = Some(self.sweep_at.map_or(sweep, |at| at.min(sweep)));
    }

    /// Who has held a message for longer than it may; `of_queue` says how long, where a consumer does not itself. Of consumers a message
    /// is seen at two looks at least, so up to half as long again.
    pub fn sweep(&mut self, now: Instant, of_queue: impl Fn(QueueId) -> Duration) -> Vec<Late> {
        if self.sweep_at.is_none_or(|at| now < at) {
            return Vec::new();
        }
        let mut known: HashMap<QueueId, Duration> = HashMap::new();
        let mut limit = |queue| *known.entry(queue).or_insert_with(|| of_queue(queue));
        let (mut late, mut next) = (Vec::new(), None);
        let mut look_at = |at: Instant| next = Some(next.map_or(at, |first: Instant| first.min(at)));
        for record in self.records.values_mut().filter(|r| !r.spec.no_ack) {
            if let Look::Held { since } = record.ages.look(&record.unacked, now, pause(record.wishes.timeout)) {
                if !record.wishes.is_own_timeout {
                    record.wishes.timeout = limit(record.spec.queue);
                }
                if now >= since + record.wishes.timeout {
                    record.ages = Ages::default();
                    late.push(Late { mailbox: record.mailbox.clone(), at: record.place.channel, timeout: record.wishes.timeout });
                }
            }
            look_at(record.ages.next(now));
        }
        let loose = &self.loose;
        self.left.retain_mut(|left| {
            let timeout = if left.wishes.is_own_timeout { left.wishes.timeout } else { limit(left.queue) };
            if left.ages.next(now) <= now {
                left.set = loose.get(&(left.mailbox.id(), left.queue)).map(|loose| left.set.split_by(loose).0).unwrap_or_default();
            }
            let is_late = match left.ages.look(&left.set, now, pause(timeout)) {
                Look::Nothing => return false,
                Look::Held { since } => now >= since + timeout,
                Look::NotYet => false,
            };
            if is_late {
                late.push(Late { mailbox: left.mailbox.clone(), at: left.at, timeout });
            }
            look_at(left.ages.next(now));
            !is_late
        });
        self.fetched.retain(|(_, queue, _), fetched| {
            let timeout = limit(*queue);
            let is_late = now >= fetched.since + timeout;
            if is_late {
                late.push(Late { mailbox: fetched.mailbox.clone(), at: fetched.at, timeout });
            }
            look_at(now + pause(timeout));
            !is_late
        });
        self.sweep_at = next;
        late
    }

    /// Bytes of deliveries reached the socket. True when it is worth telling the leader at once.
    pub fn written(&mut self, id: ConsumerId, bytes: u64) -> bool {
        let Some(record) = self.records.get_mut(&id) else { return false };
        let bytes = bytes.min(record.unwritten);
        record.unwritten -= bytes;
        record.credit_bytes += bytes;
        let worth = record.credit_bytes * 4 >= record.spec.window_bytes;
        if worth {
            mark(&mut self.dirty, record);
        }
        worth
    }

    /// Of consumers with deliveries that are not written.
    pub fn waiting(&self) -> impl Iterator<Item = &Arc<Mailbox>> {
        self.records.values().filter(|r| r.unwritten > 0).map(|r| &r.mailbox)
    }

    /// Another prefetch, from now on. True when the leader has to be told.
    pub fn set_prefetch(&mut self, id: ConsumerId, prefetch: Option<u32>) -> bool {
        let Some(record) = self.records.get_mut(&id).filter(|r| r.spec.prefetch != prefetch) else { return false };
        record.spec.prefetch = prefetch;
        mark(&mut self.dirty, record);
        true
    }

    pub fn has_credit(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Credit that is worth a message.
    pub fn take_credit(&mut self, out: &mut Vec<ToLeader>) {
        for id in self.dirty.drain(..) {
            let Some(record) = self.records.get_mut(&id) else { continue };
            record.dirty = false;
            if !record.running {
                continue;
            }
            let (told, limit) = (record.told_prefetch, record.spec.prefetch);
            if told != limit {
                out.push(ToLeader::Prefetch { consumer: id, limit, held: record.unacked.count() });
                record.told_prefetch = limit;
                if told.is_none() || limit.is_none() {
                    record.credit_messages = 0; // in `held`, or not counted at all
                }
            }
            let (messages, bytes) = (std::mem::take(&mut record.credit_messages), std::mem::take(&mut record.credit_bytes));
            if messages > 0 || bytes > 0 {
                out.push(ToLeader::Credit { consumer: id, messages, bytes });
            }
        }
    }

    /// Hold a message that came by a take, for so long at most.
    pub fn taken(&mut self, (queue, seq): (QueueId, Seq), mailbox: Arc<Mailbox>, at: ChannelRef, timeout: Duration) {
        let key = (mailbox.id(), queue, seq);
        self.fetched((queue, seq), mailbox, at, timeout);
        self.fetched.entry(key).and_modify(|fetched| fetched.is_taken = true);
    }

    /// What came by takes is not held any more: whose it was, and what.
    pub fn lose_taken(&mut self) -> (Vec<Arc<Mailbox>>, Vec<(QueueId, Seq)>) {
        let (mut mailboxes, mut lost) = (Vec::<Arc<Mailbox>>::new(), Vec::new());
        for ((connection, queue, seq), fetched) in self.fetched.extract_if(.., |_, fetched| fetched.is_taken) {
            if let Some(loose) = self.loose.get_mut(&(connection, queue)) {
                loose.remove(seq);
            }
            lost.push((queue, seq));
            if mailboxes.last().is_none_or(|last| last.id() != connection) {
                mailboxes.push(fetched.mailbox);
            }
        }
        self.loose.retain(|_, set| !set.is_empty());
        (mailboxes, lost)
    }

    /// Hold a message that came by basic.get, for so long at most.
    pub fn fetched(&mut self, (queue, seq): (QueueId, Seq), mailbox: Arc<Mailbox>, at: ChannelRef, timeout: Duration) {
        let connection = mailbox.id();
        self.loose.entry((connection, queue)).or_default().insert(seq);
        for left in self.left.iter_mut().filter(|left| left.queue == queue && left.mailbox.id() == connection) {
            left.set.remove(seq);
        }
        self.fetched.insert((connection, queue, seq), Fetched { mailbox, at, since: Instant::now(), is_taken: false });
        self.sweep_soon(timeout);
    }

    /// A consumer ends. What its client still holds becomes loose, except `unseen`; returns the ranges of those.
    pub fn end(&mut self, id: ConsumerId, unseen: &[Delivery]) -> Option<(Record, Ranges)> {
        let mut record = self.records.remove(&id)?;
        let mut back = RangeSet::default();
        for message in unseen.iter().chain(record.early.iter().flatten()) {
            if record.unacked.remove(message.seq) {
                back.insert(message.seq);
            }
        }
        let held = record.unacked.take();
        if !held.is_empty() {
            let mut set = RangeSet::default();
            set.extend(&held);
            let (mailbox, ages, wishes) = (record.mailbox.clone(), std::mem::take(&mut record.ages), record.wishes);
            let is_timed = !record.spec.no_ack;
            self.left.extend(is_timed.then(|| Left { mailbox, at: record.place.channel, queue: record.spec.queue, set, ages, wishes }));
            self.loose.entry((record.mailbox.id(), record.spec.queue)).or_default().extend(&held);
            self.sweep_soon(wishes.timeout);
        }
        Some((record, back.take()))
    }

    /// Everything that a connection holds outside of its consumers.
    pub fn take_loose(&mut self, connection: ConnectionId) -> Vec<(QueueId, Ranges)> {
        let all = (connection, QueueId(0), Seq(0))..=(connection, QueueId(u64::MAX), Seq(u64::MAX));
        self.fetched.extract_if(all, |_, _| true).for_each(drop);
        self.left.retain(|left| left.mailbox.id() != connection);
        let mine = (connection, QueueId(0))..=(connection, QueueId(u64::MAX));
        let keys: Vec<_> = self.loose.range(mine).map(|(key, _)| *key).collect();
        keys.into_iter().filter_map(|key| self.loose.remove(&key).map(|mut set| (key.1, set.take()))).collect()
    }

    pub fn of_connection(&self, connection: ConnectionId) -> Vec<ConsumerId> {
        self.records.values().filter(|r| r.mailbox.id() == connection).map(|r| r.spec.id).collect()
    }

    /// A consumer that is asked for again: as it is wanted now.
    pub fn refresh(&self, spec: &mut Consumer) {
        if let Some(record) = self.records.get(&spec.id) {
            spec.clone_from(&record.spec);
        }
    }

    /// What a leader is told: running consumers with what they hold, and everything else that is held or on its way out of the queue.
    /// Consumers whose start was never answered are asked for again instead.
    pub fn attach(&mut self, settling: BTreeMap<QueueId, RangeSet>) -> (Vec<Attached>, Vec<(QueueId, Ranges)>) {
        let (mut attached, mut loose) = (Vec::new(), settling);
        for record in self.records.values_mut() {
            (record.credit_messages, record.credit_bytes, record.dirty) = (0, 0, false);
            record.told_prefetch = record.spec.prefetch;
            if record.running {
                let (consumer, unacked) = (record.spec.clone(), record.unacked.to_ranges());
                attached.push(Attached { consumer, unacked, unwritten_bytes: record.unwritten });
            } else {
                record.early.clear();
                record.unacked = RangeSet::default();
                record.unwritten = 0;
            }
        }
        self.dirty.clear();
        for ((_, queue), set) in &self.loose {
            loose.entry(*queue).or_default().extend(&set.to_ranges());
        }
        attached.sort_by_key(|a| a.consumer.id);
        (attached, loose.into_iter().map(|(queue, mut set)| (queue, set.take())).collect())
    }

    /// The shard is gone: every consumer ends, nothing is held any more. Returns what was.
    pub fn wipe(&mut self) -> (Vec<Record>, Vec<(QueueId, RangeSet)>) {
        self.dirty.clear();
        self.fetched.clear();
        self.left.clear();
        let loose = std::mem::take(&mut self.loose).into_iter().map(|((_, queue), set)| (queue, set)).collect();
        (self.records.drain().map(|r| r.1).collect(), loose)
    }
}

/// Between two looks at what a consumer holds: what it holds for so long as it may is seen at 64 looks at most.
fn pause(timeout: Duration) -> Duration {
    (timeout / 4).clamp(Duration::from_millis(20), Duration::from_secs(60).max(timeout / 64))
}

fn mark(dirty: &mut Vec<ConsumerId>, record: &mut Record) {
    if !std::mem::replace(&mut record.dirty, true) {
        dirty.push(record.spec.id);
    }
}
