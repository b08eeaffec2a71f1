//! From a queue to its consumers: locates live messages, gets their bodies (memory first, disk beside), and hands them out in turn
//! as far as credit, room on the path, the reserved mark and the lease allow. Never waits: what is not there now is marked later.

use super::edges::PathId;
use super::handle::ReadDone;
use super::level::Source;
use super::queue::{Choice, QueueState};
use super::server::ShardServer;
use crate::machine::{AT_ONCE, read_run};
use crate::model::entry::EntryBytes;
use crate::model::link::{Deliveries, Delivery, ToEdge};
use crate::model::{LeaderId, QueueId, Seq, SessionId};
use bytes::Bytes;
use std::time::Duration;
use tokio::time::Instant;

/// Bytes handed out before the mailbox is looked at again.
const TURN_BYTES: usize = 1 << 20;
/// A consumer's messages go out when they are this large together.
const CHUNK_BYTES: usize = 128 << 10;
/// ... or this many.
const CHUNK_MESSAGES: usize = 1024;
/// Entries of one queue that are read from disk at a time,
const READ_AHEAD: usize = 4;
/// as long as those that were read and wait for an earlier one are not larger than this together.
const AHEAD_BYTES: usize = 4 << 20;
/// Reads of one shard at a time; with the entries' size this bounds the memory they take.
const READS: usize = 32;

/// An entry that no replica could read is tried again after so many ticks,
const UNREADABLE_TICKS: u32 = 10;
/// and the log says so this often.
const UNREADABLE_REPEAT: Duration = Duration::from_secs(10);

/// What keeps a queue from delivering.
#[derive(Debug)]
pub(super) struct Unreadable {
    index: u64,
    retry_at: Instant,
    said_at: Instant,
}

/// What is there to deliver.
pub(super) enum Next {
    /// Nothing.
    Nothing,
    /// A body is being read, or cannot be.
    Waiting,
    /// This message's time has ended.
    Expired,
    /// This message, at the front of its source.
    Message(Place, Seq),
}

/// Where a message was found.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub level: usize,
    pub again: bool,
}

impl ShardServer {
    /// Delivers what can be delivered; true when there is more than one turn takes.
    pub(super) fn pump(&mut self) -> bool {
        let Some(leader) = self.lead else { return false };
        if self.dirty.is_empty() {
            return false;
        }
        if !self.proposer.lease_valid() {
            self.wait_for_lease();
            return false;
        }
        self.paths.iter_mut().for_each(|p| p.room = p.end.deliveries_tx.capacity());
        let mut budget = TURN_BYTES;
        for _ in 0..self.dirty.len() {
            let Some(id) = self.dirty.pop_front() else { break };
            let Some(mut state) = self.queues.remove(&id) else { continue };
            state.dirty = false;
            self.pump_queue(leader, &mut state, &mut budget);
            self.look_after(&mut state);
            let (again, reserve) = (budget == 0, state.needs_reserve());
            self.queues.insert(id, state);
            if reserve {
                self.want_reserve(id);
            }
            if again {
                self.mark(id);
                break;
            }
        }
        budget == 0
    }

    /// Everything that is due waits for the next tick (rule 20).
    fn wait_for_lease(&mut self) {
        while let Some(queue) = self.dirty.pop_front() {
            if let Some(state) = self.queues.get_mut(&queue) {
                state.dirty = false;
                self.stalled.push(queue);
            }
        }
    }

    fn pump_queue(&mut self, leader: LeaderId, state: &mut QueueState, budget: &mut usize) {
        if !state.is_still() && !state.takes.is_empty() {
            self.pump_takes(state, budget);
        }
        while !state.is_still() && *budget > 0 {
            if state.gets.is_empty() && !state.consumers.iter().any(|c| c.wants()) {
                break;
            }
            let (place, seq) = match self.next(state) {
                Next::Message(place, seq) => (place, seq),
                Next::Nothing => {
                    self.answer_gets_empty(state);
                    break;
                }
                Next::Waiting => break,
                Next::Expired => {
                    // It goes with the next entry, unless its letter finds no room: nobody is to wait for that.
                    if !state.gets.is_empty() && !self.may_leave(state) {
                        self.answer_gets_empty(state);
                    }
                    break;
                }
            };
            if seq > state.reserved || !self.hand_out(leader, state, place, budget) {
                break;
            }
        }
        for at in 0..state.consumers.len() {
            self.flush(leader, state, at);
        }
        self.keep_loaded(state);
    }

    /// Gives the next message to whoever's turn it is; false when nobody can take it now.
    fn hand_out(&mut self, leader: LeaderId, state: &mut QueueState, place: Place, budget: &mut usize) -> bool {
        if let Some(get) = state.gets.front().copied() {
            if !state.may_hold(get.session) {
                return false;
            }
            state.gets.pop_front();
            self.answer_get(state, get.path, (get.session, get.request), place, budget);
            return true;
        }
        let paths = &mut self.paths;
        let choice = state.choose(|consumer| {
            let Some(path) = paths.iter_mut().find(|p| p.id == consumer.path && !p.closed) else { return false };
            if consumer.out.is_empty() {
                path.full |= path.room == 0;
                return path.room > 0;
            }
            true
        });
        let Choice::Consumer(at) = choice else { return false };
        let Some((seq, message)) = state.levels[place.level].pop(place.again) else { return false };
        *budget = budget.saturating_sub(message.len().max(64));
        let session = state.consumers[at].session;
        let delivery = self.check_out(state, session, (seq, message));
        let consumer = &state.consumers[at];
        if consumer.out.is_empty()
            && let Some(path) = self.paths.iter_mut().find(|p| p.id == consumer.path)
        {
            path.room -= 1;
        }
        state.deliver(at, delivery);
        let consumer = &state.consumers[at];
        if consumer.out_bytes >= CHUNK_BYTES || consumer.out.len() >= CHUNK_MESSAGES {
            self.flush(leader, state, at);
        }
        true
    }

    /// Sends what was gathered for a consumer. Room was taken before; a path that closed meanwhile loses it, and the edge's next
    /// attach, or its end, gives it back.
    fn flush(&mut self, leader: LeaderId, state: &mut QueueState, at: usize) {
        let consumer = &mut state.consumers[at];
        if consumer.out.is_empty() {
            return;
        }
        consumer.out_bytes = 0;
        let messages = std::mem::take(&mut consumer.out);
        let deliveries = Deliveries { leader, consumer: consumer.spec.id, messages };
        if let Some(path) = self.paths.iter_mut().find(|p| p.id == consumer.path)
            && path.end.deliveries_tx.try_send(deliveries).is_err()
        {
            path.closed = true;
        }
    }

    fn answer_get(
        &mut self,
        state: &mut QueueState,
        path: PathId,
        (session, request): (crate::model::SessionId, u64),
        place: Place,
        budget: &mut usize,
    ) {
        if self.path_mut(path).is_none() {
            return;
        }
        let Some((seq, message)) = state.levels[place.level].pop(place.again) else { return };
        *budget = budget.saturating_sub(message.len().max(64));
        let delivery = self.check_out(state, session, (seq, message));
        let live = self.machine.lock().queue(state.id).map_or(0, |q| q.live_count());
        let remaining = live.saturating_sub(state.checked.count());
        self.send(path, ToEdge::Got { request, result: Ok(Some((delivery, remaining))) });
    }

    /// Only messages that were delivered before can have failed.
    pub(super) fn check_out(&self, state: &mut QueueState, session: SessionId, (seq, message): (Seq, Bytes)) -> Delivery {
        let mut delivery = state.check_out(session, seq, message);
        if delivery.redelivered && state.care.as_ref().is_some_and(|c| c.settings.delivery_limit.is_some()) {
            (delivery.failures, delivery.failed_ms) = self.machine.lock().queue(state.id).map_or((0, 0), |q| q.failed(seq));
        }
        delivery
    }

    fn answer_gets_empty(&mut self, state: &mut QueueState) {
        for get in std::mem::take(&mut state.gets) {
            self.send(get.path, ToEdge::Got { request: get.request, result: Ok(None) });
        }
    }

    fn keep_loaded(&mut self, state: &mut QueueState) {
        state.used = true;
        let empty = state.levels.iter().all(|l| l.fresh.is_empty() && l.again.is_empty());
        if !empty && !state.loaded {
            state.loaded = true;
            self.loaded.push(state.id);
        }
    }

    /// The next message of the highest level that has one: given back ones first.
    pub(super) fn next(&mut self, state: &mut QueueState) -> Next {
        let mut located = state.levels.len() == 1;
        for level in (0..state.levels.len()).rev() {
            for again in [true, false] {
                if !again && !located && state.levels[level].is_unknown() {
                    located = true;
                    self.locate_all(state);
                }
                let place = Place { level, again };
                let empty = if again { state.levels[level].returned.is_empty() } else { state.levels[level].exhausted };
                if empty {
                    continue;
                }
                match self.next_at(state, place) {
                    Next::Nothing => {}
                    found => return found,
                }
            }
        }
        Next::Nothing
    }

    /// Looks for what is at the cursors of all levels, under one lock.
    fn locate_all(&mut self, state: &mut QueueState) {
        let machine = self.machine.lock();
        let Some(queue) = machine.queue(state.id) else { return };
        for (n, level) in state.levels.iter_mut().enumerate().filter(|(_, level)| level.is_unknown()) {
            level.locate_fresh(n, queue, &state.checked, &mut self.located);
        }
    }

    /// Brings the next message of a source to its front.
    fn next_at(&mut self, state: &mut QueueState, place: Place) -> Next {
        loop {
            let level = &mut state.levels[place.level];
            let source = level.source(place.again);
            if let Some((seq, _)) = source.front.front().map(|(seq, body)| (*seq, body.len())) {
                if place.again || state.checked.highest() < seq || !state.checked.contains(seq) {
                    let deadline_ms = source.deadline_ms;
                    let expired = deadline_ms > AT_ONCE && self.end_ms().is_some_and(|end_ms| deadline_ms <= end_ms);
                    return if expired { Next::Expired } else { Next::Message(place, seq) };
                }
                source.front.pop_front();
                level.cursor = Seq(seq.0 + 1);
                continue;
            }
            if source.runs.is_empty() {
                let machine = self.machine.lock();
                let found = machine.queue(state.id).is_some_and(|queue| match place.again {
                    true => level.locate_again(place.level, queue, &mut self.located),
                    false => level.locate_fresh(place.level, queue, &state.checked, &mut self.located),
                });
                if !found {
                    return Next::Nothing;
                }
            }
            let id = state.id;
            if !self.load(id, level.source(place.again)) {
                return Next::Waiting;
            }
        }
    }

    /// Unpacks the first located run when its entry is at hand, else has it and the following ones read.
    fn load(&mut self, queue: QueueId, source: &mut Source) -> bool {
        let Some(run) = source.runs.front_mut() else { return false };
        if run.entry.is_none() {
            run.entry = self.bodies.cached(run.at.index);
        }
        let Some(entry) = run.entry.take() else {
            self.read_ahead(queue, source);
            return false;
        };
        let mut messages = Vec::with_capacity(run.at.count as usize);
        read_run(&entry, queue, &run.at, &mut messages);
        if messages.is_empty() {
            tracing::error!(queue = %queue, index = run.at.index, first = %run.at.first, "entry does not hold the messages it should");
            source.clear();
            self.stalled.push(queue);
            return false;
        }
        source.deadline_ms = source.runs.pop_front().map_or(0, |run| run.at.deadline_ms);
        source.front.extend(messages);
        true
    }

    fn read_ahead(&mut self, queue: QueueId, source: &mut Source) {
        let now = Instant::now();
        let not_yet = self.unreadable.get(&queue).filter(|u| now < u.retry_at).map(|u| u.index);
        let mut reading = source.runs.iter().filter(|r| r.reading).count();
        let (mut last, mut waiting_bytes) = (0, 0);
        for run in source.runs.iter_mut() {
            if reading >= READ_AHEAD || waiting_bytes > AHEAD_BYTES {
                return;
            }
            if Some(run.at.index) == not_yet {
                return self.stalled.push(queue);
            }
            if std::mem::replace(&mut last, run.at.index) == run.at.index {
                continue; // the same entry
            }
            waiting_bytes += run.entry.as_ref().map_or(0, EntryBytes::len);
            if run.entry.is_some() || run.reading {
                continue;
            }
            if self.reads >= READS {
                self.stalled.push(queue);
                return;
            }
            run.reading = true;
            reading += 1;
            self.reads += 1;
            let (index, handle, read) = (run.at.index, self.handle.clone(), self.bodies.read(run.at.index));
            tokio::spawn(async move {
                let result = read.await;
                handle.read_done(ReadDone { queue, index, result });
            });
        }
    }

    pub(super) fn read_done(&mut self, done: ReadDone) {
        self.reads -= 1;
        let ReadDone { queue, index, result } = done;
        match result {
            Ok(entry) => {
                let levels = self.queues.get_mut(&queue).into_iter().flat_map(|q| q.levels.iter_mut());
                let runs = levels.flat_map(|l| l.fresh.runs.iter_mut().chain(&mut l.again.runs));
                runs.filter(|run| run.at.index == index).for_each(|run| (run.entry, run.reading) = (Some(entry.clone()), false));
                self.unreadable.retain(|id, u| *id != queue || index < u.index);
            }
            Err(error) => self.cannot_read(queue, index, &error),
        }
        self.mark(queue);
        let stalled = std::mem::take(&mut self.stalled);
        stalled.into_iter().for_each(|queue| self.mark(queue));
    }

    /// No replica could give the entry. The queue delivers what comes before it, then waits: what is confirmed is not passed over. It is
    /// tried again now and then.
    fn cannot_read(&mut self, queue: QueueId, index: u64, error: &std::io::Error) {
        let Some(state) = self.queues.get_mut(&queue) else { return };
        let mut wanted = false;
        for runs in state.levels.iter_mut().flat_map(|l| [&mut l.fresh.runs, &mut l.again.runs]) {
            if let Some(at) = runs.iter().position(|run| run.at.index == index) {
                runs.truncate(at);
                wanted = true;
            }
        }
        if !wanted {
            return; // settled meanwhile
        }
        let now = Instant::now();
        let retry_at = now + self.config.tick * UNREADABLE_TICKS;
        let said_at = self.unreadable.get(&queue).filter(|u| u.index == index && now < u.said_at + UNREADABLE_REPEAT).map(|u| u.said_at);
        if said_at.is_none() {
            let shard = self.config.shard;
            tracing::error!(%shard, %queue, index, %error, "messages cannot be read on any node: their queue waits until they can, or is purged");
        }
        self.unreadable.insert(queue, Unreadable { index, retry_at, said_at: said_at.unwrap_or(now) });
    }
}
