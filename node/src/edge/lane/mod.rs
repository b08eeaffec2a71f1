//! A lane: everything of this node's clients that concerns one shard. Connections append to it under a short lock and never wait; one task
//! talks to the shard's leader. `batches`, `consumers`, `requests` decide, `task` carries out, `answers` is what the leader says.

mod ages;
mod answers;
mod asking;
mod batches;
mod chunks;
mod committing;
mod consumers;
mod contact;
mod requests;
mod returns;
mod run;
mod story;
pub(super) mod takes;
mod task;

use self::batches::{Batches, Settles};
pub(super) use self::consumers::Wishes;
use self::consumers::{Cancelling, Consumers};
use self::contact::Contact;
use self::requests::{Requests, Sink};
use self::returns::Returns;
use super::EdgeConfig;
use super::mailbox::{Blocker, ChannelRef, ConsumerPlace, Mailbox};
use super::pulse::{self, Pulse};
use super::ranges::RangeSet;
use crate::model::catalog::Name;
use crate::model::entry::{SettleReason, Word};
use crate::model::letters::{LetterMessage, Source};
use crate::model::link::{Consumer, Delivery, RefusedEnqueue, ToLeader};
use crate::model::step::{Event, Held, Outcome};
use crate::model::stream::StreamTarget;
use crate::model::{ConnectionId, ConsumerId, LeaderId, Offset, QueueId, Seq, ShardId, TxId};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

pub(super) use self::answers::{Home, named};
pub(super) use self::batches::Message;
pub(super) use self::committing::{Committing, Late, Share};
pub(super) use self::requests::Answer;
pub(super) use self::run::{Ended, Fate, Letters, Run, Shared};
pub(super) use self::task::run;

#[derive(Debug)]
pub(super) struct Lane {
    pub shard: ShardId,
    config: EdgeConfig,
    state: Mutex<State>,
    /// The task has something to do.
    wake: Notify,
    /// There is room again.
    room: Notify,
    /// Held, but for what is late.
    bytes: AtomicUsize,
    /// The owner of this in-memory shard is gone: nothing can be routed to it.
    gone: AtomicBool,
    contact: Contact,
    pulse: Arc<Pulse>,
    /// Stops of this process before the present path was opened.
    stops: AtomicU64,
}

#[derive(Debug)]
struct State {
    batches: Batches,
    consumers: Consumers,
    requests: Requests,
    /// Unseen returns and cancels for the present path, in order.
    outgoing: Vec<ToLeader>,
    /// What clients saw and gave back.
    returning: Returns,
    /// Whose mailboxes may have answers to basic.get that their sessions have not seen.
    getters: HashMap<ConnectionId, Arc<Mailbox>>,
    /// Held messages that came as redelivered: whoever gives them back, somebody has seen them.
    marked: BTreeMap<QueueId, RangeSet>,
    /// Of those: how often they had failed, where that is counted.
    failures: BTreeMap<(QueueId, Seq), u32>,
    /// The leader that welcomed this edge on the present path.
    leader: Option<LeaderId>,
    /// The last leader that did.
    former: Option<LeaderId>,
    attach_due: bool,
    /// No welcome since.
    unreachable: Option<Instant>,
    stuck: bool,
    blocked: Vec<Arc<Mailbox>>,
    /// The last tick, which comes while anything waits.
    ticked: Option<Instant>,
}

/// A question about queues.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    /// Which.
    pub queues: Vec<QueueId>,
    /// A client declares them.
    pub used: bool,
}

/// basic.get.
#[derive(Debug)]
pub(super) struct Fetch {
    pub queue: QueueId,
    pub name: Name,
    pub no_ack: bool,
    /// How long the client may hold the message.
    pub timeout: Duration,
}

impl Lane {
    pub fn new(shard: ShardId, config: EdgeConfig, pulse: Arc<Pulse>) -> Lane {
        let now = Instant::now();
        let state = State {
            batches: Batches::new(now, shard.owner().is_some()),
            consumers: Consumers::default(),
            requests: Requests::default(),
            outgoing: Vec::new(),
            returning: Returns::default(),
            getters: HashMap::new(),
            marked: BTreeMap::new(),
            failures: BTreeMap::new(),
            leader: None,
            former: None,
            attach_due: false,
            unreachable: Some(now),
            stuck: false,
            blocked: Vec::new(),
            ticked: None,
        };
        Lane {
            shard,
            contact: Contact::new(config.silence),
            config,
            state: Mutex::new(state),
            wake: Notify::new(),
            room: Notify::new(),
            bytes: AtomicUsize::new(0),
            gone: AtomicBool::new(false),
            stops: AtomicU64::new(pulse.beat()),
            pulse,
        }
    }

    /// Publishes fit.
    pub fn has_room(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) < self.config.lane_bytes
    }

    /// Resolves when publishes fit; cancel safe.
    pub async fn wait_for_room(&self) {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if self.has_room() {
                return;
            }
            room.await;
        }
    }

    /// A publish of this client waits for room. When it is told no instead: as those that wait here are, counted from the last sign of
    /// progress. `None`: none of them waits.
    pub fn gives_up(&self, mailbox: &Arc<Mailbox>) -> Option<Instant> {
        let mut state = self.state.lock();
        if state.stuck {
            state.block(self.shard, mailbox);
        }
        state.batches.stuck_since().map(|since| since + self.config.no_quorum_timeout)
    }

    /// Nothing is reachable there, for good.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// A message into queues of this shard. Returns the mark behind it.
    pub fn enqueue(&self, queues: &[QueueId], message: &Message<'_>, catalog_index: u64, run: Run) -> u64 {
        let alone = message.alone(queues);
        let mut state = self.state.lock();
        if state.stuck {
            state.block(self.shard, &run.mailbox);
        }
        let wake = match alone {
            Some(ops) => state.batches.enqueue_alone(ops, catalog_index, run, Instant::now()),
            None => state.batches.enqueue(queues, message, catalog_index, run, Instant::now()),
        };
        let mark = state.batches.mark();
        self.unlock(state);
        if wake {
            self.wake.notify_one();
        }
        mark
    }

    /// Letters, one behind the other, each into these queues; the copies are numbered from `first` on. `run`: of one letter.
    pub fn enqueue_letters(&self, queues: &[QueueId], (first, letters): (Source, &[LetterMessage]), catalog_index: u64, run: &Run) {
        let number = |n: usize| Source { number: first.number + (n * queues.len()) as u64, ..first };
        let messages = letters.iter().enumerate().map(|(n, letter)| Message::letter(letter, number(n)));
        let messages: Vec<(Message<'_>, Option<Bytes>)> = messages.map(|message| (message, message.alone(queues))).collect();
        let now = Instant::now();
        let mut state = self.state.lock();
        if state.stuck {
            state.block(self.shard, &run.mailbox);
        }
        let mut wake = false;
        for (n, (message, alone)) in (0..).zip(messages) {
            let run = run.one(n);
            wake |= match alone {
                Some(ops) => state.batches.enqueue_alone(ops, catalog_index, run, now),
                None => state.batches.enqueue(queues, &message, catalog_index, run, now),
            };
        }
        self.unlock(state);
        if wake {
            self.wake.notify_one();
        }
    }

    /// A reader of a stream of this shard is this far. Returns the mark behind that.
    pub fn store(&self, to: &StreamTarget, reader: &str, offset: Offset) -> u64 {
        let mut state = self.state.lock();
        let wake = state.batches.store(to, reader, offset, Instant::now());
        let mark = state.batches.mark();
        self.unlock(state);
        if wake {
            self.wake.notify_one();
        }
        mark
    }

    /// A client has dealt with messages of this shard. Returns how many of them it did hold.
    pub fn settle(&self, connection: ConnectionId, held: &[Held], outcome: Outcome) -> u64 {
        let now = Instant::now();
        let mut state = self.state.lock();
        let (released, wake) = state.settle(connection, held.iter(), outcome, now);
        drop(state);
        if wake {
            self.wake.notify_one();
        }
        released
    }

    /// What a transaction brings to this shard, in one batch: `share` has its messages; of its settlements those of this shard join
    /// them, and their numbers are added up. Returns the mark behind it.
    pub fn transact(
        &self,
        share: Share,
        settlements: &[(Vec<Held>, Outcome)],
        settled: &mut [u64],
        catalog_index: u64,
        commit: &Arc<Committing>,
    ) -> u64 {
        let (connection, now) = (commit.connection(), Instant::now());
        let Share { mut ops, part, runs } = share;
        let mut state = self.state.lock();
        if let Some(run) = runs.first().filter(|_| state.stuck) {
            state.block(self.shard, &run.mailbox);
        }
        let mut leaving: BTreeMap<(QueueId, SettleReason), RangeSet> = BTreeMap::new();
        let mut is_lost = false;
        for ((held, outcome), count) in settlements.iter().zip(settled) {
            let held = held.iter().filter(|h| h.shard == self.shard);
            let wanted = held.clone().count() as u64;
            let (released, _) =
                state.release(connection, held, *outcome, |_, queue, reason, seq| leaving.entry((queue, reason)).or_default().insert(seq));
            is_lost |= commit.is_strict() && released < wanted;
            *count += released;
        }
        let settles: Vec<Settles> = leaving.into_iter().map(|((queue, reason), mut set)| (queue, reason, set.take())).collect();
        settles.iter().for_each(|(queue, reason, ranges)| ops.settle(*queue, *reason, ranges));
        if let Some(start) = part {
            if commit.is_strict() && !settles.is_empty() {
                // What is held was given under this session: with another one all of it is lost.
                ops.claim(&start, state.batches.session());
            }
            ops.end_part(start);
            commit.holds(self.shard, &settles);
        }
        if is_lost {
            commit.refused(RefusedEnqueue::Lost);
        }
        // What it settled may have been given to others meanwhile: then there is nothing to wait for.
        let is_empty = ops.is_empty() || is_lost;
        if !is_empty {
            state.batches.transact(ops, runs, settles, catalog_index, commit, now);
        }
        let mark = state.batches.mark();
        self.unlock(state);
        self.wake.notify_one();
        if is_empty {
            commit.done();
        }
        mark
    }

    /// Says something about a transaction to this shard.
    pub fn word(&self, tx: TxId, word: Word, run: Run, commit: Option<&Arc<Committing>>) {
        let mut state = self.state.lock();
        state.batches.word(tx, word, run, commit, Instant::now());
        self.unlock(state);
        self.wake.notify_one();
    }

    /// A transaction was given up: what its client had settled waits again.
    pub fn requeue(&self, held: BTreeMap<QueueId, RangeSet>) {
        self.state.lock().give_back(held, true);
        self.wake.notify_one();
    }

    /// Deliveries of a consumer reached the socket.
    pub fn written(&self, consumer: ConsumerId, bytes: u64) {
        if self.state.lock().consumers.written(consumer, bytes) {
            self.wake.notify_one();
        }
    }

    /// Another prefetch for a consumer.
    pub fn set_prefetch(&self, consumer: ConsumerId, prefetch: Option<u32>) {
        if self.state.lock().consumers.set_prefetch(consumer, prefetch) {
            self.wake.notify_one();
        }
    }

    /// Start a consumer; the lane answers on its channel.
    pub fn consume(&self, spec: Consumer, name: Name, mailbox: &Arc<Mailbox>, place: ConsumerPlace, wishes: Wishes) {
        let mut state = self.state.lock();
        if !mailbox.add_consumer(spec.id, place) {
            return;
        }
        let (id, queue) = (spec.id.0, spec.queue);
        let sink = Sink::Consume { mailbox: mailbox.clone(), at: place.channel, name };
        state.requests.add(id, ToLeader::Consume(spec.clone()), Some(queue), sink, 0, self.config.no_quorum_timeout);
        state.consumers.add(spec, mailbox.clone(), place, wishes);
        drop(state);
        self.wake.notify_one();
    }

    /// basic.get; the lane answers on the channel.
    pub fn get(&self, id: u64, fetch: Fetch, mailbox: &Arc<Mailbox>, at: ChannelRef, after: u64) {
        let Fetch { queue, name, no_ack, timeout } = fetch;
        let sink = Sink::Get { mailbox: mailbox.clone(), at, no_ack, name, timeout };
        let message = ToLeader::Get { request: id, queue, no_ack };
        self.state.lock().requests.add(id, message, Some(queue), sink, after, self.config.no_quorum_timeout);
        self.wake.notify_one();
    }

    /// basic.cancel: nothing of the consumer reaches its client from now on. False: there is no such consumer (any more). The answer
    /// comes when the leader has cancelled it.
    pub fn cancel(&self, id: ConsumerId, at: ChannelRef) -> bool {
        let mut state = self.state.lock();
        let Some(mailbox) = state.end_consumer(id) else { return false };
        let deadline = Instant::now() + self.config.no_quorum_timeout;
        if state.leader.is_some() {
            state.consumers.cancelling.insert(id, Cancelling { mailbox, at, deadline });
        } else {
            // The next leader is not told of it at all.
            mailbox.reply(at, Ok(crate::model::step::Reply::Done));
        }
        drop(state);
        self.wake.notify_one();
        true
    }

    /// A channel closed: its consumers end, `held` goes back as seen, whatever else they hold as unseen.
    pub fn close_channel(&self, connection: ConnectionId, consumers: &[ConsumerId], held: &[Held]) {
        let mut state = self.state.lock();
        let (mut seen, mut unseen) = (BTreeMap::<QueueId, RangeSet>::new(), BTreeMap::<QueueId, RangeSet>::new());
        for h in held {
            if state.consumers.release(connection, h.consumer, h.queue, h.seq) {
                seen.entry(h.queue).or_default().insert(h.seq);
            }
        }
        for id in consumers {
            state.drop_consumer(*id, &mut unseen);
        }
        state.give_back(seen, true);
        state.give_back(unseen, false);
        drop(state);
        self.wake.notify_one();
    }

    /// A client is gone with everything it held; `unseen` of that never reached its session.
    pub fn close_connection(&self, connection: ConnectionId, unseen: &[(ShardId, Delivery)]) {
        let mut state = self.state.lock();
        let mut seen = BTreeMap::<QueueId, RangeSet>::new();
        for (queue, ranges) in state.consumers.take_loose(connection) {
            seen.entry(queue).or_default().extend(&ranges);
        }
        for id in state.consumers.of_connection(connection) {
            state.drop_consumer(id, &mut seen);
        }
        let mut back = BTreeMap::<QueueId, RangeSet>::new();
        for (_, message) in unseen.iter().filter(|u| u.0 == self.shard) {
            if seen.get_mut(&message.queue).is_some_and(|set| set.remove(message.seq)) {
                back.entry(message.queue).or_default().insert(message.seq);
            }
        }
        state.give_back(seen, true);
        state.give_back(back, false);
        state.blocked.retain(|m| m.id() != connection);
        state.getters.remove(&connection);
        drop(state);
        self.wake.notify_one();
    }

    /// Deliveries that no session has seen are not for its client any more: they go back, or somebody else has them.
    pub fn drop_unwritten(&self) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let mut back = BTreeMap::<QueueId, RangeSet>::new();
        let consumers: Vec<_> = state.consumers.records.values().map(|r| (r.spec.id, r.mailbox.clone())).collect();
        for (id, mailbox) in consumers {
            for message in mailbox.take_unseen(id) {
                state.consumers.written(id, message.message.len() as u64);
                if state.consumers.release(mailbox.id(), Some(id), message.queue, message.seq) {
                    back.entry(message.queue).or_default().insert(message.seq);
                }
            }
        }
        for mailbox in std::mem::take(&mut state.getters).into_values() {
            for message in mailbox.void_gets(self.shard) {
                if state.consumers.release(mailbox.id(), None, message.queue, message.seq) {
                    back.entry(message.queue).or_default().insert(message.seq);
                }
            }
        }
        if !back.is_empty() {
            state.give_back(back, false);
            drop(guard);
            self.wake.notify_one();
        }
    }

    /// What its leader gave may be handed to clients now (rules 19 and 20); else the leader is asked. May be called under a mailbox's lock.
    pub fn is_fresh(&self) -> bool {
        let fresh = self.contact.is_fresh(pulse::now_ms());
        if !fresh {
            self.wake.notify_one();
        }
        fresh
    }

    /// This process was stopped since the present path was opened: the leader may count it as gone.
    fn is_stale(&self) -> bool {
        self.stops.load(Ordering::Acquire) != self.pulse.beat()
    }

    /// Messages that a consumer holds.
    pub fn held(&self, consumer: ConsumerId) -> u64 {
        self.state.lock().consumers.records.get(&consumer).map_or(0, |r| r.unacked.count())
    }

    fn unlock(&self, state: parking_lot::MutexGuard<'_, State>) {
        self.bytes.store(state.batches.waiting_bytes(), Ordering::Relaxed);
        drop(state);
    }

    fn unlock_with_room(&self, state: parking_lot::MutexGuard<'_, State>) {
        let was_full = !self.has_room();
        self.unlock(state);
        if was_full && self.has_room() {
            self.room.notify_waiters();
        }
    }
}

impl State {
    /// A client has dealt with messages. Returns how many of them it did hold, and whether the lane's task has something to do.
    fn settle<'h>(
        &mut self,
        connection: ConnectionId,
        held: impl Iterator<Item = &'h Held>,
        outcome: Outcome,
        now: Instant,
    ) -> (u64, bool) {
        self.release(connection, held, outcome, |batches, queue, reason, seq| batches.settle(queue, reason, seq, now))
    }

    /// The same; `leave` takes those that leave their queues for good, and says whether the task has something to do.
    fn release<'h>(
        &mut self,
        connection: ConnectionId,
        held: impl Iterator<Item = &'h Held>,
        outcome: Outcome,
        mut leave: impl FnMut(&mut Batches, QueueId, SettleReason, Seq) -> bool,
    ) -> (u64, bool) {
        let mut back: BTreeMap<QueueId, RangeSet> = BTreeMap::new();
        let (mut released, mut wake) = (0, false);
        for h in held {
            if !self.consumers.release(connection, h.consumer, h.queue, h.seq) {
                continue;
            }
            released += 1;
            if outcome != Outcome::Requeue && !self.marked.is_empty() {
                self.settled(h.queue, h.seq);
            }
            match outcome {
                Outcome::Ack => wake |= leave(&mut self.batches, h.queue, SettleReason::Ack, h.seq),
                Outcome::Reject => wake |= leave(&mut self.batches, h.queue, SettleReason::Reject, h.seq),
                Outcome::Requeue => {
                    back.entry(h.queue).or_default().insert(h.seq);
                }
            }
        }
        wake |= !back.is_empty() || self.consumers.has_credit();
        self.give_back(back, true);
        (released, wake)
    }

    /// The session under which clients took messages has ended: others have them, or will. Whoever took them is told.
    fn lose_taken(&mut self, shard: ShardId) {
        let (mailboxes, lost) = self.consumers.lose_taken();
        lost.into_iter().for_each(|(queue, seq)| self.settled(queue, seq));
        mailboxes.iter().for_each(|mailbox| mailbox.push(Event::Lost { shard }));
    }

    /// Ends a consumer at its client's wish; what the session has not seen goes back.
    fn end_consumer(&mut self, id: ConsumerId) -> Option<Arc<Mailbox>> {
        let unseen = self.consumers.records.get(&id)?.mailbox.drop_consumer(id);
        let (record, back) = self.consumers.end(id, &unseen)?;
        let mut unseen = RangeSet::default();
        unseen.extend(&back);
        self.give_back([(record.spec.queue, unseen)].into_iter().collect(), false);
        if self.leader.is_some() {
            self.outgoing.push(ToLeader::Cancel { consumer: id });
        }
        self.requests.take(id.0);
        Some(record.mailbox)
    }

    /// Ends a consumer whose channel or client is gone; what it holds is added to `back`.
    fn drop_consumer(&mut self, id: ConsumerId, back: &mut BTreeMap<QueueId, RangeSet>) {
        let Some(record) = self.consumers.records.remove(&id) else { return };
        let ranges = record.unacked.to_ranges();
        if !ranges.is_empty() {
            back.entry(record.spec.queue).or_default().extend(&ranges);
        }
        if self.leader.is_some() {
            self.outgoing.push(ToLeader::Cancel { consumer: id });
        }
        self.requests.take(id.0);
    }

    /// Unseen messages need no word without a path: what is not held any more is not attached, and so goes back.
    fn give_back(&mut self, back: BTreeMap<QueueId, RangeSet>, seen: bool) {
        for (queue, mut set) in back.into_iter().filter(|(_, set)| !set.is_empty()) {
            let failures = self.take_failures(queue, &set);
            let marked = self.unmark(queue, &mut set);
            if seen {
                set.extend(&marked.to_ranges());
            } else if !marked.is_empty() {
                self.returning.add(queue, marked, failures.clone());
            }
            if set.is_empty() {
                continue;
            }
            if seen {
                self.returning.add(queue, set, failures);
            } else if self.leader.is_some() {
                self.outgoing.push(ToLeader::Return { queue, ranges: set.take(), seen, failures: Vec::new() });
            }
        }
    }

    /// How often messages of `set` had failed when they came; forgotten here.
    fn take_failures(&mut self, queue: QueueId, set: &RangeSet) -> BTreeMap<Seq, u32> {
        let mut found = BTreeMap::new();
        if self.failures.is_empty() {
            return found;
        }
        for (first, last) in set.to_ranges() {
            let taken = self.failures.extract_if((queue, first)..=(queue, last), |_, _| true);
            found.extend(taken.map(|((_, seq), count)| (seq, count)));
        }
        found
    }

    /// Takes those out of `set` that came as redelivered.
    fn unmark(&mut self, queue: QueueId, set: &mut RangeSet) -> RangeSet {
        let mut found = RangeSet::default();
        let Some(marked) = self.marked.get_mut(&queue) else { return found };
        for (first, last) in set.to_ranges() {
            (first.0..=last.0).map(Seq).filter(|seq| marked.remove(*seq)).for_each(|seq| {
                found.insert(seq);
            });
        }
        if marked.is_empty() {
            self.marked.remove(&queue);
        }
        found.to_ranges().iter().flat_map(|r| r.0.0..=r.1.0).for_each(|n| {
            set.remove(Seq(n));
        });
        found
    }

    /// A message left the client's hands for good.
    fn settled(&mut self, queue: QueueId, seq: Seq) {
        self.failures.remove(&(queue, seq));
        if let Some(marked) = self.marked.get_mut(&queue)
            && marked.remove(seq)
            && marked.is_empty()
        {
            self.marked.remove(&queue);
        }
    }

    /// Messages came.
    fn came(&mut self, messages: &[Delivery]) {
        if !self.returning.is_empty() {
            self.returning.came(messages);
        }
        for message in messages.iter().filter(|m| m.redelivered) {
            self.marked.entry(message.queue).or_default().insert(message.seq);
            if message.failures > 0 {
                self.failures.insert((message.queue, message.seq), message.failures);
            }
        }
    }

    fn give_back_messages(&mut self, messages: &[Delivery]) {
        let mut back: BTreeMap<QueueId, RangeSet> = BTreeMap::new();
        for message in messages {
            back.entry(message.queue).or_default().insert(message.seq);
        }
        self.give_back(back, false);
    }

    fn block(&mut self, shard: ShardId, mailbox: &Arc<Mailbox>) {
        if !self.blocked.iter().any(|m| Arc::ptr_eq(m, mailbox)) {
            mailbox.block(Blocker::Shard(shard), &no_quorum(shard));
            self.blocked.push(mailbox.clone());
        }
    }

    fn unblock(&mut self, shard: ShardId) {
        self.stuck = false;
        self.blocked.drain(..).for_each(|m| m.unblock(Blocker::Shard(shard)));
    }
}

/// Why a shard does not answer, and what to do.
pub(in crate::edge) fn no_quorum(shard: ShardId) -> String {
    match shard.owner() {
        Some(node) => format!("node {node}, which holds this queue in its memory, cannot be reached; try again when it is back"),
        None => format!("shard {shard} has no leader with a quorum of its replicas; it serves again when enough nodes are back"),
    }
}
