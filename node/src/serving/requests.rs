//! What edges ask of the leader besides batches: consume, cancel, credit, get, return, stat, purge. Requests for a queue that is
//! held (rule 18) or that the shard does not know yet (rule 27) are kept until that is over.

use super::edges::PathId;
use super::parking::Parked;
use super::proposing::{Purge, Return};
use super::queue::{Care, Consumer, Get, Step};
use super::sealing::Wish;
use super::server::ShardServer;
use super::taking::Take;
use crate::machine::Stream;
use crate::model::catalog::Refusal;
use crate::model::link::{Consumer as Spec, QueueStat, Ranges, ToEdge, ToLeader};
use crate::model::{ConsumerId, QueueId, Seq, SessionId};

/// Consumers that can start between two entries without taking the order of a later leader's.
const ORDER_SHIFT: u32 = 16;

/// The queue a request cannot do without.
fn needs(request: &ToLeader) -> Option<QueueId> {
    match request {
        ToLeader::Consume(spec) => Some(spec.queue),
        ToLeader::Get { queue, .. } | ToLeader::Take { queue, .. } | ToLeader::Purge { queue, .. } | ToLeader::Seal { queue, .. } => {
            Some(*queue)
        }
        // What a client is told must be true; listings may be late.
        ToLeader::Stat { queues, used: true, .. } => queues.first().copied(),
        ToLeader::Hello { .. }
        | ToLeader::Batch(_)
        | ToLeader::Attach { .. }
        | ToLeader::Cancel { .. }
        | ToLeader::Credit { .. }
        | ToLeader::Prefetch { .. }
        | ToLeader::Return { .. }
        | ToLeader::Withdraw { .. }
        | ToLeader::Ping { .. }
        | ToLeader::Stream { .. }
        | ToLeader::Stat { .. } => None,
    }
}

impl ShardServer {
    pub(super) fn request(&mut self, id: PathId, request: ToLeader) {
        let Some(session) = self.path_mut(id).and_then(|p| p.session) else { return };
        let is_queue = |queue: &QueueId| self.machine.lock().stream(*queue).is_none();
        let is_known = |queue: &QueueId| matches!(request, ToLeader::Stat { .. }) && self.is_untouched(*queue);
        if let Some(queue) = needs(&request).filter(|queue| is_queue(queue) && !is_known(queue)) {
            if self.queue_state(queue).is_none() {
                return self.too_early(id, queue, request);
            }
            if self.must_wait(queue, &request) {
                if let Some(state) = self.queues.get_mut(&queue) {
                    state.parked.push(Parked { path: id, session, request });
                }
                return;
            }
        }
        match request {
            ToLeader::Consume(spec) => self.consume(id, session, spec),
            ToLeader::Cancel { consumer } => self.cancel(id, session, consumer),
            ToLeader::Credit { consumer, messages, bytes } => self.credit(id, session, consumer, messages, bytes),
            ToLeader::Prefetch { consumer, limit, held } => self.with_consumer(session, consumer, |c| c.set_prefetch(limit, held)),
            ToLeader::Get { request, queue, no_ack: _ } => self.get(Get { path: id, session, request }, queue),
            ToLeader::Take { request, queue, most, alone, patient } => {
                self.take_in(Take { path: id, session, request, most, alone, patient }, queue);
            }
            ToLeader::Withdraw { request, queue } => self.withdraw(id, session, queue, request),
            ToLeader::Return { queue, ranges, seen, failures } => self.give_back(session, queue, &ranges, seen.then_some(&failures)),
            ToLeader::Stat { request, queues, used } => {
                queues.iter().filter(|_| used).for_each(|queue| self.touch(*queue));
                self.stat(id, request, &queues, !used);
            }
            ToLeader::Seal { request, queue, if_unused, if_empty } => {
                self.seal(queue, Wish::Client { path: id, request, if_unused, if_empty });
            }
            ToLeader::Ping { number } if self.lead.is_some() && self.proposer.lease_valid() => self.send(id, ToEdge::Pong { number }),
            ToLeader::Ping { .. } => {}
            ToLeader::Stream { request, stream, publisher, reader } => {
                let state = self.machine.lock().stream(stream).map(|s| s.state(publisher.as_deref(), reader.as_deref()));
                match state {
                    Some(state) => self.send(id, ToEdge::Stream { request, result: Ok(state) }),
                    None => self.too_early(id, stream, ToLeader::Stream { request, stream, publisher, reader }),
                }
            }
            ToLeader::Purge { request, queue } => self.log.purges.push(Purge { path: id, request, queue, count: 0, withdrawn: false }),
            ToLeader::Hello { .. } | ToLeader::Batch(_) | ToLeader::Attach { .. } => {}
        }
    }

    /// A queue that the shard does not have: waits when the catalog is ahead of the shard, else it does not exist.
    fn too_early(&mut self, id: PathId, queue: QueueId, request: ToLeader) {
        if self.opens_reply(id, &request) {
            return self.early.push((0, id, request));
        }
        let index = self.config.catalog.index();
        if index > self.machine.lock().catalog_index() && self.config.catalog.facts(queue).is_some() {
            self.log.asked_index = self.log.asked_index.max(index);
            return self.early.push((index, id, request));
        }
        let refusal = self.not_found(queue);
        match request {
            ToLeader::Consume(spec) => self.send(id, ToEdge::Consuming { consumer: spec.id, result: Err(refusal) }),
            ToLeader::Get { request, .. } => self.send(id, ToEdge::Got { request, result: Err(refusal) }),
            ToLeader::Take { request, .. } => self.send(id, ToEdge::Took { request, result: Err(refusal) }),
            ToLeader::Purge { request, .. } | ToLeader::Seal { request, .. } => {
                self.send(id, ToEdge::Purged { request, result: Err(refusal) });
            }
            ToLeader::Stat { request, .. } => self.send(id, ToEdge::Stats { request, stats: Vec::new() }),
            ToLeader::Stream { request, .. } => self.send(id, ToEdge::Stream { request, result: Err(refusal) }),
            ToLeader::Hello { .. }
            | ToLeader::Batch(_)
            | ToLeader::Attach { .. }
            | ToLeader::Cancel { .. }
            | ToLeader::Credit { .. }
            | ToLeader::Prefetch { .. }
            | ToLeader::Return { .. }
            | ToLeader::Withdraw { .. }
            | ToLeader::Ping { .. } => {}
        }
    }

    /// The shard followed the catalog: what waited for a queue is tried again.
    pub(super) fn retry_early(&mut self) {
        for (_, path, request) in std::mem::take(&mut self.early) {
            self.request(path, request);
        }
    }

    pub(super) fn not_found(&self, queue: QueueId) -> Refusal {
        let (name, vhost) = self.name_of(queue);
        Refusal::NotFound { kind: "queue".into(), name, vhost }
    }

    fn name_of(&self, queue: QueueId) -> (String, String) {
        match self.config.catalog.facts(queue) {
            Some(facts) => (facts.name.name.to_string(), facts.name.vhost.to_string()),
            None => (queue.to_string(), String::new()),
        }
    }

    fn consume(&mut self, id: PathId, session: SessionId, spec: Spec) {
        let (consumer, queue) = (spec.id, spec.queue);
        let Some(state) = self.queues.get_mut(&queue) else { return };
        let twin = state.consumers.iter().any(|c| c.session == session && c.spec.id == consumer);
        let single = state.care.as_ref().is_some_and(|c| c.settings.single_active_consumer);
        let locked = state.consumers.iter().any(|c| c.spec.exclusive) || (spec.exclusive && (single || !state.consumers.is_empty()));
        if locked && !twin {
            let (name, vhost) = self.name_of(queue);
            let refusal = Refusal::Access(format!("queue '{name}' in vhost '{vhost}' in exclusive use"));
            return self.send(id, ToEdge::Consuming { consumer, result: Err(refusal) });
        }
        let order = match state.consumers.iter().find(|c| c.session == session && c.spec.id == consumer) {
            Some(twin) => twin.spec.order,
            None => {
                let order = self.next_order();
                let started = Consumer::new(Spec { order, ..spec }, session, id, 0, 0);
                if let Some(state) = self.queues.get_mut(&queue) {
                    state.add_consumer(started);
                }
                self.consumers.insert((session, consumer), queue);
                self.session_used(session);
                order
            }
        };
        self.send(id, ToEdge::Consuming { consumer, result: Ok(order) });
        self.touch(queue);
        self.mark(queue);
    }

    /// Later ones are larger, under later leaders too: those have applied more.
    fn next_order(&mut self) -> u64 {
        let floor = self.machine.lock().applied().index << ORDER_SHIFT;
        self.last_order = floor.max(self.last_order + 1);
        self.last_order
    }

    pub(super) fn session_used(&mut self, session: SessionId) {
        if let Some(session) = self.sessions.get_mut(&session) {
            session.used = true;
        }
    }

    /// Deliveries of earlier turns are on their way already and none is gathered now, so nothing follows the answer.
    fn cancel(&mut self, id: PathId, session: SessionId, consumer: ConsumerId) {
        if let Some(queue) = self.consumers.remove(&(session, consumer)) {
            if let Some(state) = self.queues.get_mut(&queue) {
                state.consumers.retain(|c| c.session != session || c.spec.id != consumer);
            }
            self.check_last_consumer(queue);
        } else {
            self.forget_consume(id, consumer);
        }
        self.send(id, ToEdge::Cancelled { consumer, asked: true });
    }

    /// An auto-delete queue that lost its last consumer ends; while edges are still to attach nobody knows (rule 22).
    pub(super) fn check_last_consumer(&mut self, queue: QueueId) {
        let Some(state) = self.queues.get_mut(&queue) else { return };
        state.last_gone = state.consumers.is_empty();
        let goes_on = !state.last_gone || state.parked.iter().any(Parked::consumes);
        // It may have been the single active one: the next is chosen at the next look, with or without a message.
        self.mark(queue);
        if goes_on || self.sessions.values().any(|s| !s.resolved) {
            return;
        }
        self.touch(queue);
        let is_auto_delete = if queue.is_reply() { Some(false) } else { self.is_auto_delete(queue) };
        if let Some(state) = self.queues.get_mut(&queue) {
            state.last_gone = is_auto_delete.is_none();
        }
        if queue.is_reply() {
            self.log.replies.drops.push(queue);
        } else if is_auto_delete == Some(true) {
            self.seal(queue, Wish::Abandoned);
        }
    }

    fn credit(&mut self, id: PathId, session: SessionId, consumer: ConsumerId, messages: u32, bytes: u64) {
        self.path_has_room(id);
        self.with_consumer(session, consumer, |consumer| consumer.add_credit(messages, bytes));
    }

    /// Change what a consumer may get; its queue is looked at again.
    fn with_consumer(&mut self, session: SessionId, consumer: ConsumerId, change: impl FnOnce(&mut Consumer)) {
        let Some(queue) = self.consumers.get(&(session, consumer)).copied() else { return };
        let Some(state) = self.queues.get_mut(&queue) else { return };
        if let Some(consumer) = state.consumers.iter_mut().find(|c| c.session == session && c.spec.id == consumer) {
            change(consumer);
            self.mark(queue);
        }
    }

    fn get(&mut self, get: Get, queue: QueueId) {
        self.session_used(get.session);
        if let Some(state) = self.queues.get_mut(&queue) {
            state.gets.push_back(get);
            self.touch(queue);
            self.mark(queue);
        }
    }

    /// `seen`: a client had them, and so often some of them had failed before.
    fn give_back(&mut self, session: SessionId, queue: QueueId, ranges: &Ranges, seen: Option<&Vec<(Seq, u32)>>) {
        let Some(state) = self.queue_state(queue) else {
            if seen.is_some() {
                self.send_session(session, ToEdge::Recorded { queue, ranges: ranges.clone() });
            }
            return;
        };
        let counts = |care: &Care| care.settings.delivery_limit.is_some();
        match seen.filter(|_| state.care.as_deref().is_some_and(counts)) {
            Some(failures) => {
                let stale = self.count_failed(session, queue, ranges, failures);
                if !stale.is_empty() {
                    self.put_back(session, queue, &stale, true);
                }
            }
            None => self.put_back(session, queue, ranges, seen.is_some()),
        }
    }

    /// Those whose failed delivery counts are counted with the next entry; returns the others.
    fn count_failed(&mut self, session: SessionId, queue: QueueId, ranges: &Ranges, failures: &[(Seq, u32)]) -> Ranges {
        let Some(state) = self.queues.get(&queue) else { return Ranges::new() };
        let (failed, stale) = self.split_returned(session, state, ranges);
        if let Some(care) = self.queues.get_mut(&queue).and_then(|state| state.care.as_mut()).filter(|_| !failed.is_empty()) {
            // They come before what is behind them: nothing is delivered until they are counted.
            care.frozen += 1;
            care.counting += 1;
            self.log.returns.push(Return { session, queue, ranges: counted(&failed, failures) });
        }
        stale
    }

    fn put_back(&mut self, session: SessionId, queue: QueueId, ranges: &Ranges, seen: bool) {
        let Some(state) = self.queues.get_mut(&queue) else { return };
        ranges.iter().filter(|(first, last)| first <= last).for_each(|(a, b)| state.give_back(session, *a, *b, seen));
        if seen {
            self.put_on_record(session, queue, ranges.clone());
        }
        self.mark(queue);
    }

    /// The session is told once every later leader will know that these were seen.
    pub(super) fn put_on_record(&mut self, session: SessionId, queue: QueueId, ranges: Ranges) {
        match self.queues.get_mut(&queue).filter(|state| !state.is_on_record()) {
            Some(state) => state.unrecorded.push((session, ranges)),
            None => self.send_session(session, ToEdge::Recorded { queue, ranges }),
        }
    }

    /// `weighed`: with the bytes that are checked out, at the cost of a look at each run of them.
    fn stat(&mut self, id: PathId, request: u64, queues: &[QueueId], weighed: bool) {
        let shared = self.machine.clone();
        let machine = shared.lock();
        let stream = |id| Some(stat_of_stream(id, machine.stream(id)?));
        let stats = if queues.is_empty() {
            let streams = machine.streams().map(|(id, stream)| stat_of_stream(id, stream));
            machine.queues().map(|(id, queue)| self.stat_of(id, queue, weighed)).chain(streams).collect()
        } else {
            queues
                .iter()
                .filter_map(|id| machine.queue(*id).map(|queue| self.stat_of(*id, queue, weighed)).or_else(|| stream(*id)))
                .collect()
        };
        drop(machine);
        self.send(id, ToEdge::Stats { request, stats });
    }

    fn stat_of(&self, id: QueueId, queue: &crate::machine::Queue, weighed: bool) -> QueueStat {
        let state = self.queues.get(&id);
        let unacked = state.map_or(0, |s| s.checked.count()).min(queue.live_count());
        QueueStat {
            queue: id,
            ready: queue.live_count() - unacked,
            unacked,
            bytes: queue.live_body_bytes(),
            unacked_bytes: state.filter(|_| weighed).map_or(0, |s| queue.count_in(&s.checked_ranges()).body_bytes),
            consumers: state.map_or(0, |s| s.consumers.len() as u32),
            active: queue.active().and_then(|(session, consumer)| Some((self.sessions.get(&session)?.node, consumer))),
        }
    }

    /// The catalog dropped the queue: its consumers end, who waits for it is told.
    pub(super) fn queue_dropped(&mut self, queue: QueueId) {
        self.unreadable.remove(&queue);
        let Some(state) = self.queues.remove(&queue) else { return };
        self.limited.remove(&queue);
        state.care.and_then(|c| c.alarm).map(|at| self.alarms.remove(&(at, queue)));
        for consumer in state.consumers {
            self.consumers.remove(&(consumer.session, consumer.spec.id));
            self.send(consumer.path, ToEdge::Cancelled { consumer: consumer.spec.id, asked: false });
        }
        for get in state.gets {
            let result = Err(self.not_found(queue));
            self.send(get.path, ToEdge::Got { request: get.request, result });
        }
        self.grant_all(state.wishes);
        for take in state.takes {
            let result = Err(self.not_found(queue));
            self.send(take.path, ToEdge::Took { request: take.request, result });
        }
        for one in state.parked {
            self.request(one.path, one.request);
        }
        for (session, ranges) in state.unrecorded.into_iter().chain(state.recording) {
            self.send_session(session, ToEdge::Recorded { queue, ranges });
        }
    }

    /// Asks for a place in the next entry.
    pub(super) fn want_reserve(&mut self, queue: QueueId) {
        if let Some(state) = self.queues.get_mut(&queue)
            && state.reserve == Step::Idle
        {
            state.reserve = Step::Wanted;
            self.log.reserves.push(queue);
        }
    }
}

fn stat_of_stream(queue: QueueId, stream: &Stream) -> QueueStat {
    let ready = stream.next().0 - stream.first().0;
    QueueStat { queue, ready, bytes: stream.bytes(), ..QueueStat::default() }
}

/// Ranges with how often their messages had failed; `failures`, ascending, has those that had.
fn counted(ranges: &Ranges, failures: &[(Seq, u32)]) -> Vec<(Seq, Seq, u32)> {
    let mut out = Vec::with_capacity(ranges.len() + 2 * failures.len());
    for (first, last) in ranges.iter().filter(|(first, last)| first <= last) {
        let mut next = first.0;
        let from = failures.partition_point(|(seq, _)| seq < first);
        for (seq, before) in failures[from..].iter().take_while(|(seq, _)| seq <= last) {
            if next < seq.0 {
                out.push((Seq(next), Seq(seq.0 - 1), 0));
            }
            out.push((*seq, *seq, *before));
            next = seq.0 + 1;
        }
        if next <= last.0 {
            out.push((Seq(next), *last, 0));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_where_messages_had_failed_before() {
        let seq = |range: &(u64, u64)| (Seq(range.0), Seq(range.1));
        let cut = |ranges: &[(u64, u64)], failures: &[(u64, u32)]| {
            let failures: Vec<_> = failures.iter().map(|f| (Seq(f.0), f.1)).collect();
            counted(&ranges.iter().map(seq).collect(), &failures).into_iter().map(|r| (r.0.0, r.1.0, r.2)).collect::<Vec<_>>()
        };
        assert_eq!(cut(&[(1, 9)], &[]), [(1, 9, 0)]);
        assert_eq!(
            cut(&[(1, 3), (5, 9)], &[(1, 2), (4, 7), (6, 1), (9, 3)]),
            [(1, 1, 2), (2, 3, 0), (5, 5, 0), (6, 6, 1), (7, 8, 0), (9, 9, 3)]
        );
    }
}
