//! One connection as the rest of the edge sees it: the events that wait for its listener, its channels' epochs and prefetch pools, what
//! blocks it. Lanes and request tasks push, the connection's own task takes. One short lock; a lane's lock may be held around it, never
//! the other way round.

use super::access::Who;
use super::pool::Pool;
use super::streams::StreamConsumer;
use crate::model::catalog::{Name, Owner, Refusal};
use crate::model::link::Delivery;
use crate::model::report::Report;
use crate::model::step::{Event, Publish, Reply, TookOne};
use crate::model::{ConnectionId, ConsumerId, ShardId};
use parking_lot::Mutex;
use smallvec::SmallVec;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};
use tokio::sync::{Notify, oneshot};

/// Between two looks whether messages that wait for contact with their leader may go.
const STALE_POLL: Duration = Duration::from_millis(20);
/// What a message costs beyond its own bytes.
const EVENT_BYTES: usize = 64;

/// A channel between two closings of its number: what was meant for an earlier life of the number must not reach a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ChannelRef {
    /// The number.
    pub channel: u16,
    /// Which life.
    pub epoch: u32,
}

/// Where a consumer of this connection lives.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConsumerPlace {
    pub shard: ShardId,
    pub channel: ChannelRef,
    pub no_ack: bool,
    /// Its own prefetch, whatever the channel's common one is.
    pub prefetch: Option<u32>,
}

impl ConsumerPlace {
    /// Messages that its leader may give it while the channel has a common prefetch: more would only wait on this node.
    pub fn prefetch_under(&self, common: Option<u32>) -> Option<u32> {
        match (self.prefetch, common.filter(|_| !self.no_ack)) {
            (Some(own), Some(common)) => Some(own.min(common)),
            (own, common) => own.or(common),
        }
    }
}

/// Why publishes of a connection wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blocker {
    /// The whole node (disk alarm, operator).
    Node,
    /// No routing lease.
    Routing,
    /// A shard without a quorum.
    Shard(ShardId),
}

/// A user in a vhost.
#[derive(Debug)]
pub(super) struct Identity {
    /// Name, and which user of that name; `None`: the broker itself.
    pub user: Option<(Arc<str>, u64)>,
    pub vhost: Arc<str>,
    /// Which vhost of that name.
    pub vhost_created: u64,
}

impl Identity {
    /// As rights are asked for.
    pub fn who(&self) -> Who<'_> {
        Who { user: self.user(), vhost: &self.vhost }
    }

    /// The user's name.
    pub fn user(&self) -> Option<&str> {
        self.user.as_ref().map(|(name, _)| &**name)
    }

    /// Something in the vhost.
    pub fn name(&self, name: &str) -> Name {
        Name { vhost: self.vhost.clone(), name: name.into() }
    }
}

#[derive(Debug)]
pub(super) struct Mailbox {
    pub owner: Owner,
    pub peer: SocketAddr,
    pub since: SystemTime,
    pub identity: OnceLock<Identity>,
    /// It counts against the limits of its user and its vhost.
    pub is_inside: AtomicBool,
    /// Open channels.
    pub channels: AtomicU32,
    /// Declared an exclusive queue at least once.
    pub has_exclusive: AtomicBool,
    closed: AtomicBool,
    state: Mutex<State>,
    changed: Notify,
    /// A channel, or the connection, was closed.
    closing: Notify,
    /// Consumers of streams, which live on this node.
    pub streams: Mutex<HashMap<ConsumerId, Arc<StreamConsumer>>>,
}

#[derive(Debug, Default)]
struct State {
    events: Vec<Event>,
    epochs: HashMap<u16, u32>,
    pools: HashMap<u16, Pool>,
    consumers: HashMap<ConsumerId, ConsumerPlace>,
    /// What takes were given and have not said yet.
    taken: HashMap<u64, Vec<TookOne>>,
    /// So many of the events, all there were at the last look, wait for contact with a leader.
    stale: usize,
    blockers: Vec<Blocker>,
    told: bool,
    /// Who waits for a report.
    reports: Vec<oneshot::Sender<Report>>,
}

impl Mailbox {
    pub fn new(owner: Owner, peer: SocketAddr) -> Mailbox {
        Mailbox {
            owner,
            peer,
            since: SystemTime::now(),
            identity: OnceLock::new(),
            is_inside: AtomicBool::new(false),
            channels: AtomicU32::new(0),
            has_exclusive: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            state: Mutex::default(),
            changed: Notify::new(),
            closing: Notify::new(),
            streams: Mutex::default(),
        }
    }

    pub fn id(&self) -> ConnectionId {
        self.owner.connection
    }

    /// The client is gone. Lanes check this under their own lock, so that what is registered after the sweep is refused.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// The client is gone. Returns the deliveries that its session has not seen.
    pub fn close(&self) -> Vec<(ShardId, Delivery)> {
        self.closed.store(true, Ordering::SeqCst);
        let mut guard = self.state.lock();
        let state = std::mem::take(&mut *guard);
        drop(guard);
        self.closing.notify_waiters();
        let mut unseen: Vec<_> = state.pools.into_values().flat_map(Pool::into_parked).collect();
        let mut took: Vec<TookOne> = state.taken.into_values().flatten().collect();
        for event in state.events {
            match event {
                Event::Deliver { shard, messages, .. } => unseen.extend(messages.into_iter().map(|m| (shard, m))),
                Event::Reply { result: Ok(Reply::Took(messages)), .. } => took.extend(messages),
                _ => {}
            }
        }
        unseen.extend(took.into_iter().map(|one| (one.shard, one.delivery)));
        unseen
    }

    /// The answer to `Step::Leave`: nothing comes after it.
    pub fn left(&self) {
        self.state.lock().events.push(Event::Left);
        self.changed.notify_one();
    }

    pub fn push(&self, event: Event) {
        let mut state = self.state.lock();
        if !self.is_closed() {
            state.events.push(event);
            drop(state);
            self.changed.notify_one();
        }
    }

    /// Answer a request. False when its channel is gone: then nobody reads the answer.
    pub fn reply(&self, at: ChannelRef, result: Result<Reply, Refusal>) -> bool {
        self.push_at(at, |channel| Event::Reply { channel, result })
    }

    /// A leader answered a take: its messages wait here until `reply_taken`, so that they can still go back (rule 20).
    pub fn keep_taken(&self, take: u64, messages: Vec<TookOne>) {
        self.state.lock().taken.insert(take, messages);
    }

    /// What a take was given and still has.
    pub fn taken(&self, take: u64) -> Vec<TookOne> {
        self.state.lock().taken.remove(&take).unwrap_or_default()
    }

    /// The answer of a request that took: the messages of all its takes. `Err`: nobody reads it, they go back.
    pub fn reply_taken(&self, at: ChannelRef, takes: &[u64]) -> Result<(), Vec<TookOne>> {
        let mut state = self.state.lock();
        let messages: Vec<TookOne> = takes.iter().flat_map(|take| state.taken.remove(take).unwrap_or_default()).collect();
        if self.is_closed() || state.epoch(at.channel) != at.epoch {
            return Err(messages);
        }
        state.events.push(Event::Reply { channel: at.channel, result: Ok(Reply::Took(messages)) });
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    pub fn push_at(&self, at: ChannelRef, event: impl FnOnce(u16) -> Event) -> bool {
        let mut state = self.state.lock();
        if self.is_closed() || state.epoch(at.channel) != at.epoch {
            return false;
        }
        state.events.push(event(at.channel));
        drop(state);
        self.changed.notify_one();
        true
    }

    /// Confirm tickets `first..=last`, joined to the confirm before it when that is the last event.
    pub fn confirm(&self, at: ChannelRef, first: u64, last: u64) {
        let mut state = self.state.lock();
        if self.is_closed() || state.epoch(at.channel) != at.epoch {
            return;
        }
        match state.events.last_mut() {
            Some(Event::Confirmed { channel, tickets }) if *channel == at.channel => add_range(tickets, first, last),
            _ => state.events.push(Event::Confirmed { channel: at.channel, tickets: vec![(first, last)] }),
        }
        drop(state);
        self.changed.notify_one();
    }

    pub fn nack(&self, at: ChannelRef, first: u64, last: u64) {
        self.push_at(at, |channel| Event::Nacked { channel, tickets: vec![(first, last)] });
    }

    /// A mandatory message that nobody took; before its confirm.
    pub fn returned(&self, at: ChannelRef, publish: Publish) {
        self.push_at(at, |_| Event::Returned(Box::new(publish)));
    }

    /// Messages for a consumer; what is over the channel's common prefetch waits in its pool. False: nobody took them.
    pub fn deliver(&self, consumer: ConsumerId, place: ConsumerPlace, messages: Vec<Delivery>) -> bool {
        let at = place.channel;
        let mut state = self.state.lock();
        if self.is_closed() || state.epoch(at.channel) != at.epoch {
            return false;
        }
        let messages = match state.pools.get_mut(&at.channel) {
            Some(pool) if !place.no_ack => pool.admit(consumer, place.shard, messages),
            _ => messages,
        };
        if !messages.is_empty() {
            state.events.push(Event::Deliver { channel: at.channel, consumer, shard: place.shard, messages });
            drop(state);
            self.changed.notify_one();
        }
        true
    }

    /// `count` messages of a consumer were settled: parked ones may follow.
    pub fn settled(&self, consumer: ConsumerId, count: u32) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        if state.pools.is_empty() {
            return;
        }
        let Some(place) = state.consumers.get(&consumer).copied() else { return };
        let Some(pool) = state.pools.get_mut(&place.channel.channel) else { return };
        let before = state.events.len();
        if pool.release(consumer, count) {
            state.consumers.remove(&consumer);
        }
        pool.admit_parked(place.channel.channel, &mut state.events);
        if state.events.len() > before {
            self.changed.notify_one();
        }
    }

    /// `basic.qos global=true`. `held`: what each consumer of the channel holds now.
    pub fn set_pool(&self, channel: u16, limit: Option<u32>, held: &[(ConsumerId, u64)]) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let pool = state.pools.entry(channel).or_insert_with(|| Pool::new(held));
        pool.set_limit(limit);
        pool.admit_parked(channel, &mut state.events);
        if pool.is_idle() {
            let ended = state.pools.remove(&channel).into_iter().flat_map(Pool::into_ended);
            for consumer in ended {
                state.consumers.remove(&consumer);
            }
        }
        self.changed.notify_one();
    }

    /// The channel's common prefetch.
    pub fn common_prefetch(&self, channel: u16) -> Option<u32> {
        self.state.lock().pools.get(&channel).and_then(Pool::limit)
    }

    /// Remember a consumer. False when its channel or the connection is gone.
    pub fn add_consumer(&self, id: ConsumerId, place: ConsumerPlace) -> bool {
        let mut state = self.state.lock();
        let open = !self.is_closed() && state.epoch(place.channel.channel) == place.channel.epoch;
        if open {
            state.consumers.insert(id, place);
        }
        open
    }

    /// A consumer ends: takes back its deliveries that the session has not seen. Its place is known as long as its channel's pool counts
    /// what it left.
    pub fn drop_consumer(&self, id: ConsumerId) -> Vec<Delivery> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        state.stale = 0;
        let mut unseen = take_deliveries(&mut state.events, |_, consumer| consumer == id);
        if let Some(place) = state.consumers.get(&id).copied() {
            let is_done = state.pools.get_mut(&place.channel.channel).is_none_or(|pool| {
                pool.release(id, unseen.len() as u32);
                unseen.extend(pool.take(id));
                pool.end(id)
            });
            if is_done {
                state.consumers.remove(&id);
            }
        }
        unseen
    }

    /// Takes back a consumer's deliveries that the session has not seen; the consumer stays.
    pub fn take_unseen(&self, id: ConsumerId) -> Vec<Delivery> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        state.stale = 0;
        let mut unseen = take_deliveries(&mut state.events, |_, consumer| consumer == id);
        let channel = state.consumers.get(&id).map(|place| place.channel.channel);
        if let Some(pool) = channel.and_then(|channel| state.pools.get_mut(&channel)) {
            pool.release(id, unseen.len() as u32);
            unseen.extend(pool.take(id));
        }
        unseen
    }

    pub fn consumer(&self, id: ConsumerId) -> Option<ConsumerPlace> {
        self.state.lock().consumers.get(&id).copied()
    }

    pub fn consumers_of(&self, channel: u16) -> Vec<(ConsumerId, ConsumerPlace)> {
        let state = self.state.lock();
        state.consumers.iter().filter(|(_, p)| p.channel.channel == channel).map(|(id, p)| (*id, *p)).collect()
    }

    /// The channel's number begins a new life: its events and parked deliveries are forgotten. Returns the new epoch, its consumers, and
    /// what was fetched for it that the session has not seen.
    pub fn close_channel(&self, channel: u16) -> (u32, Vec<(ConsumerId, ConsumerPlace)>, Vec<TookOne>) {
        let mut state = self.state.lock();
        state.pools.remove(&channel);
        let ended = state.consumers.extract_if(|_, p| p.channel.channel == channel).collect();
        let mut unseen = Vec::new();
        for event in state.events.extract_if(.., |e| channel_of(e) == Some(channel)) {
            match event {
                Event::Reply { result: Ok(Reply::Took(messages)), .. } => unseen.extend(messages),
                Event::Reply { result: Ok(Reply::Got(Some(got))), .. } => unseen.push(TookOne { shard: got.shard, delivery: got.delivery }),
                _ => {}
            }
        }
        state.stale = 0;
        let epoch = state.epochs.entry(channel).or_default();
        *epoch += 1;
        let epoch = *epoch;
        drop(state);
        self.closing.notify_waiters();
        (epoch, ended, unseen)
    }

    /// Publishes wait because of `blocker`; the client is told once, when it is in its vhost.
    pub fn block(&self, blocker: Blocker, why: &str) {
        let mut state = self.state.lock();
        if self.is_closed() {
            return;
        }
        if !state.blockers.contains(&blocker) {
            state.blockers.push(blocker);
        }
        if self.identity.get().is_some() && !std::mem::replace(&mut state.told, true) {
            state.events.push(Event::Blocked(why.to_string()));
            drop(state);
            self.changed.notify_one();
        }
    }

    pub fn unblock(&self, blocker: Blocker) {
        let mut state = self.state.lock();
        state.blockers.retain(|b| *b != blocker);
        if state.blockers.is_empty() && std::mem::take(&mut state.told) {
            state.events.push(Event::Unblocked);
            drop(state);
            self.changed.notify_one();
        }
    }

    /// Asks the session for a report.
    pub fn ask_report(&self) -> oneshot::Receiver<Report> {
        let (tx, rx) = oneshot::channel();
        let mut state = self.state.lock();
        if !self.is_closed() {
            if state.reports.is_empty() {
                state.events.push(Event::Report);
            }
            state.reports.push(tx);
        }
        drop(state);
        self.changed.notify_one();
        rx
    }

    /// The session's answer.
    pub fn report(&self, report: &Report) {
        let waiting = std::mem::take(&mut self.state.lock().reports);
        // Who no longer waits needs no answer.
        waiting.into_iter().for_each(|tx| drop(tx.send(report.clone())));
    }

    pub fn is_blocked(&self) -> bool {
        !self.state.lock().blockers.is_empty()
    }

    /// Resolves when that life of the channel is over; cancel safe.
    pub async fn closed(&self, at: ChannelRef) {
        loop {
            let closing = self.closing.notified();
            tokio::pin!(closing);
            closing.as_mut().enable();
            if self.is_closed() || self.state.lock().epoch(at.channel) != at.epoch {
                return;
            }
            closing.await;
        }
    }

    /// Events in order, until the messages among them come to `bytes`. Messages of a shard that is not `fresh` wait, and with them what
    /// must not overtake them. `fresh` is called under the lock.
    pub fn take_events(&self, out: &mut Vec<Event>, bytes: usize, mut fresh: impl FnMut(ShardId) -> bool) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        if state.events.is_empty() {
            return;
        }
        let (mut left, mut kept, mut waiting) = (Some(bytes), Vec::new(), SmallVec::<[u16; 4]>::new());
        let mut known: Option<(ShardId, bool)> = None;
        for mut event in state.events.drain(..) {
            let Some(room) = left else {
                kept.push(event);
                continue;
            };
            let is_stale = any_shard(&event, |shard| match known {
                Some((of, fresh)) if of == shard => !fresh,
                _ => !known.insert((shard, fresh(shard))).1,
            });
            let waits = |c: &u16| is_stale || (keeps_its_place(&event) && waiting.contains(c));
            if let Some(channel) = channel_of(&event).filter(waits) {
                waiting.push(channel);
                kept.push(event);
                continue;
            }
            let (used, rest) = split(&mut event, room);
            left = room.checked_sub(used).filter(|left| *left > 0 && rest.is_none());
            out.push(event);
            kept.extend(rest);
        }
        state.stale = if left.is_some() { kept.len() } else { 0 };
        if !kept.is_empty() {
            state.events = kept;
        }
    }

    /// Resolves when there are events that can be taken, or when it is time to look whether those that wait for a leader can; cancel safe.
    pub async fn changed(&self) {
        loop {
            let (count, stale) = {
                let state = self.state.lock();
                (state.events.len(), state.stale)
            };
            if count > 0 && count != stale {
                return;
            }
            let changed = self.changed.notified();
            if count == 0 {
                changed.await;
            } else if tokio::time::timeout(STALE_POLL, changed).await.is_err() {
                return;
            }
        }
    }

    /// A leader was heard: what waits for that is looked at again.
    pub fn look_again(&self) {
        self.state.lock().stale = 0;
        self.changed.notify_one();
    }

    /// Answers to basic.get that the session has not seen become "empty", those of takes lose what came from there. Returns the
    /// messages of those of `shard`.
    pub fn void_gets(&self, shard: ShardId) -> Vec<Delivery> {
        let (mut voided, mut guard) = (Vec::new(), self.state.lock());
        let state = &mut *guard;
        let mut void = |took: &mut Vec<TookOne>| voided.extend(took.extract_if(.., |one| one.shard == shard).map(|one| one.delivery));
        state.taken.values_mut().for_each(&mut void);
        for event in &mut state.events {
            if let Event::Reply { result: Ok(Reply::Took(took)), .. } = event {
                void(took);
            }
        }
        for event in &mut state.events {
            if let Event::Reply { result: Ok(Reply::Got(got)), .. } = event
                && let Some(got) = got.take_if(|got| got.shard == shard)
            {
                voided.push(got.delivery);
            }
        }
        voided
    }
}

/// Whether that holds for a shard whose leader gave messages of an event.
fn any_shard(event: &Event, mut holds: impl FnMut(ShardId) -> bool) -> bool {
    match event {
        Event::Deliver { shard, .. } => holds(*shard),
        Event::Reply { result: Ok(Reply::Got(Some(got))), .. } => holds(got.shard),
        Event::Reply { result: Ok(Reply::Took(took)), .. } => took.iter().any(|one| holds(one.shard)),
        _ => false,
    }
}

/// Whether an event stays behind messages of its channel that came before it.
fn keeps_its_place(event: &Event) -> bool {
    matches!(event, Event::Deliver { .. } | Event::Reply { .. } | Event::ConsumerGone { .. } | Event::ChannelError { .. })
}

/// The bytes of an event's messages. Of deliveries only so many stay in it as fit into `room`, the first in any case; the rest comes back.
fn split(event: &mut Event, room: usize) -> (usize, Option<Event>) {
    if let Event::Deliver { channel, consumer, shard, messages } = event {
        let mut used = 0;
        for at in 0..messages.len() {
            if used >= room {
                let rest = messages.split_off(at);
                return (used, Some(Event::Deliver { channel: *channel, consumer: *consumer, shard: *shard, messages: rest }));
            }
            used += messages[at].message.len() + EVENT_BYTES;
        }
        return (used, None);
    }
    if let Event::Reply { result: Ok(Reply::Got(Some(got))), .. } = event {
        return (got.delivery.message.len() + EVENT_BYTES, None);
    }
    if let Event::Reply { result: Ok(Reply::Took(took)), .. } = event {
        return (took.iter().map(|one| one.delivery.message.len() + EVENT_BYTES).sum(), None);
    }
    if let Event::Returned(publish) = event { (publish.body.len() + EVENT_BYTES, None) } else { (0, None) }
}

impl State {
    fn epoch(&self, channel: u16) -> u32 {
        self.epochs.get(&channel).copied().unwrap_or_default()
    }
}

fn add_range(tickets: &mut Vec<(u64, u64)>, first: u64, last: u64) {
    match tickets.last_mut() {
        Some(end) if end.1 + 1 == first => end.1 = last,
        Some(end) if end.1 < first => tickets.push((first, last)),
        None => tickets.push((first, last)),
        Some(_) => {
            let at = tickets.partition_point(|r| r.0 < first);
            tickets.insert(at, (first, last));
        }
    }
}

fn take_deliveries(events: &mut Vec<Event>, which: impl Fn(u16, ConsumerId) -> bool) -> Vec<Delivery> {
    let mut taken = Vec::new();
    events.retain_mut(|event| match event {
        Event::Deliver { channel, consumer, messages, .. } if which(*channel, *consumer) => {
            taken.append(messages);
            false
        }
        _ => true,
    });
    taken
}

/// The channel an event is for, `None` for those of the connection.
fn channel_of(event: &Event) -> Option<u16> {
    match event {
        Event::Reply { channel, .. }
        | Event::Confirmed { channel, .. }
        | Event::Nacked { channel, .. }
        | Event::ChannelError { channel, .. }
        | Event::Deliver { channel, .. }
        | Event::ConsumerGone { channel, .. } => Some(*channel),
        Event::Returned(publish) => Some(publish.channel),
        Event::Authenticated
        | Event::AuthenticationFailed(_)
        | Event::Opened
        | Event::OpenRefused(_)
        | Event::SecretUpdated(_)
        | Event::Blocked(_)
        | Event::Unblocked
        | Event::Report
        | Event::Lost { .. }
        | Event::Close(_)
        | Event::Left => None,
    }
}
