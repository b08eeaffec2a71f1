//! What comes from a shard's leader, and what happens when nothing comes: verdicts resolve tickets, deliveries go to their connections,
//! answers to their requests; the tick blocks, nacks and gives up. Called by the lane's task only.

use super::batches::Closed;
use super::consumers::Late;
use super::requests::{Answer, Asked, Sink};
use super::run::{Ended, Fate, Run};
use super::{Lane, State, no_quorum};
use crate::edge::access::Kind;
use crate::edge::names::not_found;
use crate::edge::pulse;
use crate::edge::replies;
use crate::model::catalog::{Name, Refusal};
use crate::model::entry::{SettleReason, StoredMessage};
use crate::model::link::{Deliveries, Delivery, RefusedEnqueue, ToEdge, ToLeader};
use crate::model::step::{Event, Got, Reply};
use crate::model::{BatchSeq, ConsumerId, LeaderId, QueueId, SessionId};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// No verdict for so long: publishers are told that they wait. A failover takes less.
const STUCK: Duration = Duration::from_secs(1);
/// The owner of an in-memory shard is unreachable for so long: its queues count as gone (rule 29).
const OWNER_GONE: Duration = Duration::from_secs(1);

/// Without a path for so long an edge may soon count as gone: what clients have not seen by then they do not get (rule 19).
const UNHEARD: Duration = Duration::from_millis(500);

/// What a lane needs of the edge it belongs to.
pub(in crate::edge) trait Home: Send + Sync + 'static {
    /// Route a message again that was refused for `queues`: queues made after catalog index `routed_at` count, and those of `queues`
    /// that the catalog still has. Says how the message ends when it does not go on.
    fn reroute(&self, run: &Run, message: &StoredMessage, queues: &[QueueId], routed_at: u64) -> Option<Fate>;
    /// The catalog has that queue.
    fn knows(&self, queue: QueueId) -> bool;
    /// How long a message of that queue may be held, unless its consumer says so.
    fn hold_timeout(&self, queue: QueueId) -> Duration;
    /// For the counters.
    fn ended(&self, ended: Ended);
    /// For the counters: messages handed to consumers, and whether they came from another node.
    fn delivered(&self, messages: u64, remote: bool);
    /// For the counters: messages fetched.
    fn got(&self);
    /// For the counters: a batch goes to a leader.
    fn batch_sent(&self, remote: bool);
    /// For the counters.
    fn path_opened(&self);
}

/// Whether the path is still good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Stay,
    Leave,
}

impl Lane {
    pub(super) fn on_message(&self, home: &dyn Home, message: ToEdge) -> Next {
        if self.is_stale() {
            return Next::Leave;
        }
        match message {
            ToEdge::Welcome { leader, session, last } => return self.welcome(home, leader, session, last),
            ToEdge::NotLeader => return Next::Leave,
            ToEdge::Verdict { seq, refused } => self.verdict(home, seq, refused),
            ToEdge::Rewind { from } => self.state.lock().batches.rewind(from, Instant::now()),
            ToEdge::Consuming { consumer, result } => self.consuming(home, consumer, result),
            ToEdge::Cancelled { consumer, asked } => self.cancelled(consumer, asked),
            ToEdge::Got { request, result } => self.got(home, request, result),
            ToEdge::Took { request, result } => self.took(home, request, result),
            ToEdge::Stats { request, stats } => self.answer(request, Ok(Answer::Stats(stats))),
            ToEdge::Purged { request, result } => self.about_queue(home, request, result.map(Answer::Purged)),
            ToEdge::Stream { request, result } => self.about_queue(home, request, result.map(Answer::Stream)),
            ToEdge::Recorded { queue, ranges } => self.state.lock().returning.recorded(queue, &ranges),
            ToEdge::Pong { number } => self.heard(number),
        }
        Next::Stay
    }

    fn welcome(&self, home: &dyn Home, leader: LeaderId, session: SessionId, last: BatchSeq) -> Next {
        // A node that was elected again may greet for its earlier leadership still: what it knows of this edge is older than the verdicts.
        if self.shard.owner().is_none() && self.state.lock().former.is_some_and(|former| leader < former) {
            tracing::debug!(shard = %self.shard, ?leader, "welcomed by a leader that another one has followed");
            return Next::Leave;
        }
        let restarted = self.shard.owner().is_some() && self.state.lock().former.is_some_and(|f| f.term != leader.term);
        if restarted {
            self.wipe(home, "the node that held this queue in its memory has restarted", true);
        }
        let declared_gone = self.state.lock().batches.session() != session;
        if declared_gone {
            self.drop_unwritten();
        }
        let mut state = self.state.lock();
        if declared_gone {
            // All that it held went back as seen; what comes of it now is another client's doing.
            state.returning.clear();
            state.lose_taken(self.shard);
        }
        tracing::debug!(shard = %self.shard, ?leader, %session, %last, "welcomed by a leader");
        if state.former.is_some_and(|former| former != leader) {
            state.cancel_on_failover();
        }
        state.leader = Some(leader);
        state.former = Some(leader);
        state.unreachable = None;
        state.attach_due = true;
        state.batches.welcome(session, last, Instant::now());
        self.contact.welcomed(pulse::now_ms());
        self.gone.store(false, Ordering::Relaxed);
        Next::Stay
    }

    /// The leader answered under its lease: whoever waited for that goes on.
    fn heard(&self, number: u64) {
        if self.contact.answered(number, pulse::now_ms()) {
            let state = self.state.lock();
            state.consumers.waiting().chain(state.getters.values()).for_each(|mailbox| mailbox.look_again());
        }
    }

    fn verdict(&self, home: &dyn Home, seq: BatchSeq, refused: Vec<(u32, RefusedEnqueue)>) {
        let mut state = self.state.lock();
        let closed = state.batches.verdict(seq, Instant::now());
        if state.stuck && closed.is_some() {
            state.unblock(self.shard);
        }
        self.unlock_with_room(state);
        if let Some(closed) = closed {
            let mut refused = refused;
            refused.sort_unstable_by_key(|r| r.0);
            resolve(home, &closed, &refused);
            resolve_chunks(home, &closed, &refused);
            closed.commits.iter().for_each(|commit| commit.done());
        }
    }

    fn consuming(&self, home: &dyn Home, consumer: ConsumerId, result: Result<u64, Refusal>) {
        let mut state = self.state.lock();
        if let Err(Refusal::NotFound { .. }) = &result {
            let known = state.requests.queue_of(consumer.0).is_some_and(|q| home.knows(q));
            if known && state.requests.retry(consumer.0, Instant::now()) {
                return;
            }
        }
        let Some(Asked { sink: Sink::Consume { mailbox, at, name }, .. }) = state.requests.take(consumer.0) else { return };
        match result {
            Ok(order) => {
                let queue = state.consumers.records.get(&consumer).map(|record| record.spec.queue);
                mailbox.reply(at, Ok(self.started(queue, consumer)));
                let Some(record) = state.consumers.records.get_mut(&consumer) else { return };
                record.spec.order = order;
                record.running = true;
                for messages in std::mem::take(&mut record.early) {
                    record.mailbox.deliver(consumer, record.place, messages);
                }
            }
            Err(refusal) => {
                state.consumers.records.remove(&consumer);
                mailbox.drop_consumer(consumer);
                mailbox.reply(at, Err(named(refusal, &name)));
            }
        }
    }

    fn started(&self, queue: Option<QueueId>, consumer: ConsumerId) -> Reply {
        match (self.shard.owner(), queue) {
            (Some(node), Some(queue)) if queue.is_reply() => Reply::ReplyTo { consumer, address: replies::address(queue, node) },
            (_, _) => Reply::Consuming { consumer },
        }
    }

    fn cancelled(&self, consumer: ConsumerId, asked: bool) {
        let mut state = self.state.lock();
        if asked {
            if let Some(cancelling) = state.consumers.cancelling.remove(&consumer) {
                cancelling.mailbox.reply(cancelling.at, Ok(Reply::Done));
            }
            return;
        }
        if let Some(mut record) = state.consumers.records.remove(&consumer) {
            state.requests.take(consumer.0);
            // What others hold of the queue stays as it is.
            state.take_failures(record.spec.queue, &record.unacked);
            state.unmark(record.spec.queue, &mut record.unacked);
            record.mailbox.push_at(record.place.channel, |channel| Event::ConsumerGone { channel, consumer });
        }
    }

    fn got(&self, home: &dyn Home, request: u64, result: Result<Option<(Delivery, u64)>, Refusal>) {
        let mut state = self.state.lock();
        if let Err(Refusal::NotFound { .. }) = &result {
            let known = state.requests.queue_of(request).is_some_and(|q| home.knows(q));
            if known && state.requests.retry(request, Instant::now()) {
                return;
            }
        }
        let Some(Asked { sink: Sink::Get { mailbox, at, no_ack, name, timeout }, .. }) = state.requests.take(request) else {
            if let Ok(Some((delivery, _))) = result {
                state.came(std::slice::from_ref(&delivery));
                state.give_back_messages(&[delivery]);
            }
            return;
        };
        let (queue, seq) = match &result {
            Ok(Some((delivery, _))) => {
                state.came(std::slice::from_ref(delivery));
                (delivery.queue, delivery.seq)
            }
            Ok(None) | Err(_) => {
                mailbox.reply(at, result.map(|_| Reply::Got(None)).map_err(|refusal| named(refusal, &name)));
                return;
            }
        };
        state.getters.entry(mailbox.id()).or_insert_with(|| mailbox.clone());
        let shard = self.shard;
        let reply = result.map(|got| Reply::Got(got.map(|(delivery, remaining)| Got { shard, delivery, remaining })));
        if !mailbox.reply(at, reply) {
            let back = [(queue, [seq].into_iter().collect())].into_iter().collect();
            state.give_back(back, false);
            return;
        }
        home.got();
        if no_ack {
            state.settled(queue, seq);
            state.batches.settle(queue, SettleReason::Ack, seq, Instant::now());
        } else {
            state.consumers.fetched((queue, seq), mailbox, at, timeout);
        }
    }

    /// An answer about a queue that the leader may not have heard of.
    fn about_queue(&self, home: &dyn Home, request: u64, result: Result<Answer, Refusal>) {
        if let Err(Refusal::NotFound { .. }) = &result {
            let mut state = self.state.lock();
            let known = state.requests.queue_of(request).is_some_and(|q| home.knows(q));
            if known && state.requests.retry(request, Instant::now()) {
                return;
            }
        }
        self.answer(request, result);
    }

    fn answer(&self, request: u64, answer: Result<Answer, Refusal>) {
        let asked = self.state.lock().requests.take(request);
        if let Some(Asked { sink: Sink::Task(answer_tx), .. }) = asked {
            // The task may have given up.
            let _ = answer_tx.send(answer);
        }
    }

    pub(super) fn on_deliveries(&self, home: &dyn Home, deliveries: Deliveries) {
        let Deliveries { leader, consumer, messages } = deliveries;
        let count = messages.len() as u64;
        let mut state = self.state.lock();
        if state.leader != Some(leader) || self.is_stale() {
            return;
        }
        self.contact.came(pulse::now_ms());
        state.came(&messages);
        let Some(record) = state.consumers.delivered(consumer, &messages) else {
            state.give_back_messages(&messages);
            return;
        };
        if !record.running {
            record.early.push(messages);
        } else {
            // Not taken: the channel is closing, and its end gives back whatever the consumer holds.
            record.mailbox.deliver(consumer, record.place, messages);
        }
        drop(state);
        home.delivered(count, leader.node() != self.config.node);
    }

    /// What can go to the leader now, in order.
    pub(super) fn collect(&self, home: &dyn Home, now: Instant, out: &mut Vec<ToLeader>) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let Some(leader) = state.leader else { return };
        if std::mem::take(&mut state.attach_due) {
            // Returns first: what was seen must be known before the queue flows again.
            state.returning.tell(out);
            let (consumers, loose) = state.consumers.attach(state.batches.settling());
            let mut asked = state.requests.take_consumes();
            // As they are to run by now.
            asked.iter_mut().for_each(|spec| state.consumers.refresh(spec));
            out.push(ToLeader::Attach { leader, consumers, asked, loose });
        }
        out.append(&mut state.outgoing);
        state.returning.tell(out);
        out.extend(self.contact.ask(pulse::now_ms()).map(|number| ToLeader::Ping { number }));
        state.consumers.take_credit(out);
        state.requests.collect(now, |mark| state.batches.is_past(mark), out);
        while let Some(batch) = state.batches.next(leader, now) {
            home.batch_sent(leader.node() != self.config.node);
            out.push(ToLeader::Batch(batch));
        }
        self.unlock(guard);
    }

    /// When `collect` may have something although nothing new came.
    pub(super) fn due(&self) -> Option<Instant> {
        let state = self.state.lock();
        state.leader?;
        [state.batches.due(), state.requests.due(), state.consumers.sweep_at].into_iter().flatten().min()
    }

    /// Somebody waits for something: ticks are needed.
    pub(super) fn is_busy(&self) -> bool {
        let state = self.state.lock();
        let idle = state.batches.is_empty() && state.requests.is_empty() && state.consumers.cancelling.is_empty();
        !idle || (state.leader.is_none() && !self.is_gone())
    }

    pub(super) fn path_lost(&self) {
        self.contact.lost();
        let mut state = self.state.lock();
        state.leader = None;
        state.unreachable.get_or_insert_with(Instant::now);
        state.outgoing.clear();
        state.returning.path_lost();
        state.requests.path_lost();
        for (_, cancelling) in state.consumers.cancelling.drain() {
            cancelling.mailbox.reply(cancelling.at, Ok(Reply::Done));
        }
    }

    /// Time passed.
    pub(super) fn tick(&self, home: &dyn Home, now: Instant) {
        let mut state = self.state.lock();
        state.ticked = Some(now);
        for (id, asked) in state.requests.expired(Some(now)) {
            state.refuse(id, asked, Refusal::Unavailable(no_quorum(self.shard)));
        }
        for (_, late) in state.consumers.cancelling.extract_if(|_, c| c.deadline <= now) {
            late.mailbox.reply(late.at, Ok(Reply::Done));
        }
        state.consumers.sweep(now, |queue| home.hold_timeout(queue)).iter().for_each(Late::close);
        let unheard = state.leader.is_none() && state.unreachable.is_some_and(|since| now >= since + UNHEARD);
        let lost = self.shard.owner().is_some() && (!self.is_gone() || state.batches.has_publishes() || state.batches.has_commits());
        let lost = lost && state.unreachable.is_some_and(|since| now >= since + OWNER_GONE);
        let stuck = state.batches.stuck_since().is_some_and(|since| now >= since + STUCK);
        let mut nacked = Vec::new();
        if stuck && !lost {
            state.stuck = true;
            let waiting: Vec<_> = state.batches.runs().map(|r| r.mailbox.clone()).collect();
            waiting.iter().for_each(|m| state.block(self.shard, m));
            if let Some(before) = now.checked_sub(self.config.no_quorum_timeout) {
                nacked = state.batches.nack_older(before);
            }
        }
        self.unlock_with_room(state);
        if unheard {
            self.drop_unwritten();
        }
        nacked.iter().for_each(|run| home.ended(run.end(Fate::Nacked, None)));
        if lost {
            self.gone.store(true, Ordering::Relaxed);
            self.wipe(home, &no_quorum(self.shard), false);
        }
    }

    /// What the shard held is gone for good: waiting publishes are unroutable there, consumers end, requests fail. An owner that was
    /// only out of reach and has not `restarted` has its messages still: those that were here were seen.
    fn wipe(&self, home: &dyn Home, why: &str, restarted: bool) {
        let mut state = self.state.lock();
        let mut seen = state.batches.settling();
        let closed = state.batches.wipe();
        for (queue, set) in std::mem::take(&mut state.marked) {
            seen.entry(queue).or_default().extend(&set.to_ranges());
        }
        let (records, loose) = state.consumers.wipe();
        for (queue, set) in loose {
            seen.entry(queue).or_default().extend(&set.to_ranges());
        }
        for record in records {
            seen.entry(record.spec.queue).or_default().extend(&record.unacked.to_ranges());
            let consumer = record.spec.id;
            if record.running {
                record.mailbox.push_at(record.place.channel, |channel| Event::ConsumerGone { channel, consumer });
            }
        }
        if restarted {
            state.returning.clear();
        } else {
            state.give_back(seen, true);
        }
        for (id, asked) in state.requests.expired(None) {
            state.refuse(id, asked, Refusal::Unavailable(why.to_string()));
        }
        state.unblock(self.shard);
        self.unlock_with_room(state);
        tracing::info!(shard = %self.shard, why, batches = closed.len(), "the queues of an in-memory shard are gone");
        for batch in closed {
            let all = 0..batch.runs.last().map_or(0, |r| r.first + r.count);
            for (run, _, message) in batch.messages(all) {
                home.ended(run.end(Fate::Unroutable, Some(&message)));
            }
            batch.chunks.iter().flat_map(|chunk| &chunk.runs).for_each(|run| home.ended(run.end(Fate::Unroutable, None)));
            batch.commits.iter().for_each(|commit| commit.done());
        }
    }
}

impl Late {
    /// The channel ends, in RabbitMQ's words.
    fn close(&self) {
        let timeout_ms = self.timeout.as_millis();
        tracing::warn!(peer = %self.mailbox.peer, channel = self.at.channel, timeout_ms, "no acknowledgement in time; the channel is closed");
        self.mailbox.push_at(self.at, |channel| {
            let text = format!(
                "delivery acknowledgement on channel {channel} timed out. Timeout value used: {timeout_ms} ms. This timeout value can be \
                 configured, see consumers doc guide to learn more"
            );
            Event::ChannelError { channel, refusal: Refusal::Precondition(text), method: (0, 0) }
        });
    }
}

impl State {
    /// Another leader took over: consumers that do not want that end.
    fn cancel_on_failover(&mut self) {
        let ending = self.consumers.records.values().filter(|r| r.running && r.wishes.cancel_on_failover);
        let ending: Vec<_> = ending.map(|r| (r.spec.id, r.place)).collect();
        for (consumer, place) in ending {
            if let Some(mailbox) = self.end_consumer(consumer) {
                mailbox.push_at(place.channel, |channel| Event::ConsumerGone { channel, consumer });
            }
        }
    }

    fn refuse(&mut self, id: u64, asked: Asked, refusal: Refusal) {
        if let Some(queue) = asked.to_withdraw().filter(|_| self.leader.is_some()) {
            self.outgoing.push(ToLeader::Withdraw { request: id, queue });
        }
        match asked.sink {
            Sink::Task(answer_tx) => {
                let _ = answer_tx.send(Err(refusal));
            }
            Sink::Take { answer_tx, .. } => {
                let _ = answer_tx.send(Err(refusal));
            }
            Sink::Get { mailbox, at, .. } => {
                mailbox.reply(at, Err(refusal));
            }
            Sink::Consume { mailbox, at, .. } => {
                let consumer = ConsumerId(id);
                self.consumers.records.remove(&consumer);
                mailbox.drop_consumer(consumer);
                if self.leader.is_some() {
                    self.outgoing.push(ToLeader::Cancel { consumer });
                }
                mailbox.reply(at, Err(refusal));
            }
        }
    }
}

/// A leader knows queues by their ids: "not found" is said with the name.
pub(in crate::edge) fn named(refusal: Refusal, name: &Name) -> Refusal {
    match refusal {
        Refusal::NotFound { .. } => not_found(Kind::Queue, name),
        other => other,
    }
}

/// The same for its chunks: one that was refused has lost its stream.
fn resolve_chunks(home: &dyn Home, closed: &Closed, refused: &[(u32, RefusedEnqueue)]) {
    let mut ended = Ended::default();
    for chunk in &closed.chunks {
        let is_refused = refused.iter().any(|(ordinal, _)| *ordinal == chunk.ordinal);
        let fate = if is_refused { Fate::Unroutable } else { Fate::Taken };
        chunk.runs.iter().for_each(|run| ended += run.end(fate, None));
    }
    home.ended(ended);
}

/// A batch took effect except for the `refused` messages (ascending): their queues are gone, or full.
fn resolve(home: &dyn Home, closed: &Closed, refused: &[(u32, RefusedEnqueue)]) {
    let mut ended = Ended::default();
    if refused.is_empty() {
        closed.runs.iter().for_each(|run| ended += run.end(Fate::Taken, None));
        return home.ended(ended);
    }
    for run in &closed.runs {
        let mut from = run.first;
        let end = run.first + run.count;
        for (ordinal, why) in refused.iter().copied().filter(|r| (run.first..end).contains(&r.0)) {
            if from < ordinal {
                ended += run.slice(from, ordinal).end(Fate::Taken, None);
            }
            match why {
                RefusedEnqueue::UnknownQueue | RefusedEnqueue::Sealed => {}
                RefusedEnqueue::Full | RefusedEnqueue::GivenUp | RefusedEnqueue::Lost => {
                    run.commit.iter().for_each(|commit| commit.refused(why));
                    ended += run.one(ordinal).end(Fate::Nacked, None);
                }
            }
            from = ordinal + 1;
        }
        if from < end {
            ended += run.slice(from, end).end(Fate::Taken, None);
        }
    }
    let nowhere = refused.iter().filter(|r| matches!(r.1, RefusedEnqueue::UnknownQueue | RefusedEnqueue::Sealed));
    let sealed: Vec<u32> = refused.iter().filter(|r| r.1 == RefusedEnqueue::Sealed).map(|r| r.0).collect();
    for (run, queues, message) in closed.messages(nowhere.map(|r| r.0)) {
        let fate = match &run.commit {
            // A message of a transaction went with its queue: it counts as published before that was deleted, over several shards, too.
            Some(_) => Some(Fate::Taken),
            None if sealed.binary_search(&run.first).is_ok() => Some(Fate::Unroutable),
            None => home.reroute(&run, &message, &queues, closed.catalog_index),
        };
        if let Some(fate) = fate {
            ended += run.end(fate, Some(&message));
        }
    }
    home.ended(ended);
}

impl std::ops::AddAssign for Ended {
    fn add_assign(&mut self, other: Ended) {
        self.confirmed += other.confirmed;
        self.nacked += other.nacked;
        self.returned += other.returned;
    }
}
