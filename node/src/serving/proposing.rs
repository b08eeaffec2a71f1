//! What goes into the log: waiting batches of all edges, the catalog's changes first, the leader's own operations, hellos and
//! farewells, joined into one entry whenever a slot is free (no linger). And what comes back: verdicts, rewinds (rules 12, 13, 27).

use super::edges::PathId;
use super::posting::Routing;
use super::queue::{QueueState, Step};
use super::replies::Replies;
use super::server::ShardServer;
use super::stamp::Stamp;
use super::tending::Targets;
use crate::machine::{AT_ONCE, Queue};
use crate::model::entry::{EntryBuilder, Mark, Op, Ops, OpsReader, SectionReply, SettleReason, Settling, Word, is_batch};
use crate::model::link::{Batch, Ranges, RefusedEnqueue, ToEdge};
use crate::model::ports::{EPOCH_SHIFT, ProposalOutcome, Reading, next_epoch};
use crate::model::{BatchSeq, Incarnation, NodeId, QueueId, Seq, SessionId, ShardId, TxId, limits, version};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// Pause after a failed proposal, so that an edge and a leader that does not know it is deposed do not spin.
const FAILURE_PAUSE: Duration = Duration::from_millis(10);

/// A process that does not know the time yet holds what it would write into the log for as long: no edge has a routing lease from a
/// leader of the catalog that this node cannot hear for longer.
const TIME_PATIENCE: Duration = limits::ROUTING_LEASE;

/// A purge that waits or is proposed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Purge {
    pub path: PathId,
    pub request: u64,
    pub queue: QueueId,
    pub count: u64,
    /// Whoever asked was told that it failed: it is not proposed again.
    pub withdrawn: bool,
}

/// Messages that leave a queue; in the part with that ordinal.
type Settled = (Option<u32>, QueueId, Ranges);

/// A section of an entry in flight.
#[derive(Debug)]
enum Part {
    Advance,
    Settings,
    Replies(Replies),
    Leader(Own),
    Gone(SessionId),
    Hello(NodeId, Incarnation),
    Batch {
        session: SessionId,
        seq: BatchSeq,
        settles: Vec<Settled>,
        void: bool,
    },
    /// No section and no reply: the entry's time is all there is to say. The last one.
    Time,
}

/// Messages whose delivery failed, where that is counted.
#[derive(Debug)]
pub(super) struct Return {
    pub session: SessionId,
    pub queue: QueueId,
    /// With how often they had failed before.
    pub ranges: Vec<(Seq, Seq, u32)>,
}

/// The leader's own operations in an entry.
#[derive(Debug, Default)]
struct Own {
    reserves: Vec<QueueId>,
    purges: Vec<Purge>,
    tends: Vec<QueueId>,
    activations: Vec<QueueId>,
    marks: Vec<(QueueId, Mark)>,
    seals: Vec<QueueId>,
    letters: Vec<Routing>,
    dones: Vec<((u64, u64), ShardId)>,
    told: Vec<(TxId, ShardId)>,
    returns: Vec<Return>,
}

#[derive(Debug)]
struct InFlight {
    token: u64,
    parts: Vec<Part>,
    targets: Targets,
}

/// What waits for the log and what is in it without an outcome.
#[derive(Debug, Default)]
pub(super) struct Log {
    in_flight: VecDeque<InFlight>,
    next_token: u64,
    stamp: Stamp,
    /// The catalog index that the shard will have once everything in flight is applied.
    catalog_index: u64,
    /// What entries are written in, as the catalog said last.
    version: u8,
    pub catalog_moved: bool,
    /// A request wants the shard to know the catalog up to here.
    pub asked_index: u64,
    pub reserves: Vec<QueueId>,
    pub purges: Vec<Purge>,
    pub tends: Vec<QueueId>,
    pub activations: Vec<QueueId>,
    pub marks: Vec<(QueueId, Mark)>,
    pub seals: Vec<QueueId>,
    /// Letters, from one to another, that a shard has.
    pub dones: Vec<((u64, u64), ShardId)>,
    pub told: Vec<(TxId, ShardId)>,
    pub returns: Vec<Return>,
    pub gones: Vec<SessionId>,
    pub replies: Replies,
    pub resume_at: Option<Instant>,
    /// Until then a leader that does not know the time waits for it.
    time_by: Option<Instant>,
    turn: usize,
    /// Hellos in flight; not proposed twice.
    pub greeting: Vec<(NodeId, Incarnation)>,
}

impl Log {
    pub fn forget(&mut self) {
        *self = Log { next_token: next_epoch(self.next_token), stamp: self.stamp, ..Log::default() };
    }

    /// The catalog index that the shard will have once everything in flight is applied.
    pub fn catalog_index(&self) -> u64 {
        self.catalog_index
    }

    /// The time that an entry would carry now.
    pub fn time_ms(&self, now: Reading) -> u64 {
        let mut stamp = self.stamp;
        stamp.next(now)
    }

    /// Whoever asked for this purge does not wait any more.
    pub fn withdraw_purge(&mut self, path: PathId, request: u64) {
        let is_it = |purge: &Purge| (purge.path, purge.request) == (path, request);
        self.purges.retain(|purge| !is_it(purge));
        for part in self.in_flight.iter_mut().flat_map(|f| &mut f.parts) {
            if let Part::Leader(own) = part {
                own.purges.iter_mut().filter(|purge| is_it(purge)).for_each(|purge| purge.withdrawn = true);
            }
        }
    }

    /// The edge resends these: the outcome of the copies in flight is not for it, so that verdicts stay in order.
    pub fn void(&mut self, session: SessionId, from: BatchSeq) {
        for part in self.in_flight.iter_mut().flat_map(|f| &mut f.parts) {
            if let Part::Batch { session: of, seq, void, .. } = part {
                *void |= *of == session && *seq >= from;
            }
        }
    }

    /// A shard has these letters.
    pub fn done(&mut self, (first, last): (u64, u64), shard: ShardId) {
        match self.dones.last_mut() {
            Some(((_, before), of)) if *of == shard && *before + 1 == first => *before = last,
            _ => self.dones.push(((first, last), shard)),
        }
    }

    pub fn begin(&mut self, catalog_index: u64, time_ms: u64) {
        self.catalog_index = catalog_index;
        self.stamp.begin(time_ms);
        self.time_by = Some(Instant::now() + TIME_PATIENCE);
        self.catalog_moved = true;
    }
}

/// What a batch settles when it is applied, in a strict part of its own with the ordinal of that, which may be refused.
fn settles(batch: &Batch, shard: ShardId) -> Vec<Settled> {
    let (mut all, mut ordinal) = (Vec::new(), 0);
    for op in OpsReader::at(&batch.ops.clone().into(), 0).filter_map(Result::ok) {
        match op {
            Op::Settle { queue, ranges, .. } => all.push((None, queue, ranges)),
            Op::Part(part) => {
                let is_whole = part.session.is_some() && part.decider == shard && part.others.is_empty();
                all.extend(part.ops.filter(|_| is_whole).filter_map(|op| match op {
                    Ok(Op::Settle { queue, ranges, .. }) => Some((Some(ordinal), queue, ranges)),
                    _ => None,
                }));
                ordinal += 1;
            }
            Op::Enqueue(_) | Op::Append(_) | Op::Word { .. } => ordinal += 1,
            _ => {}
        }
    }
    all
}

impl ShardServer {
    /// A batch from an edge, in its order: one out of order is sent back at once, a repeated one goes through (the machine knows).
    pub(super) fn batch(&mut self, id: PathId, batch: Batch) {
        let (shard, node) = (self.config.shard, self.config.node);
        let Some(path) = self.path_mut(id) else { return };
        if path.session != Some(batch.session) {
            return self.close(id);
        }
        if path.end.node != node && !is_batch(&batch.ops) {
            tracing::error!(%shard, node = %path.end.node, seq = %batch.seq, "a batch that cannot be read; the path is closed");
            return self.close(id);
        }
        // What the edge has the verdicts of it cannot send again, even if a second copy of it failed on its way.
        path.next = path.next.max(BatchSeq(batch.floor.0.saturating_add(1)));
        if batch.seq > path.next {
            let from = path.next;
            return self.rewind(id, from);
        }
        if batch.seq == path.next {
            path.next = BatchSeq(batch.seq.0 + 1);
            path.rewound = false;
        }
        path.batches.push_back(batch);
    }

    /// Says so once; what the edge had sent before it heard is dropped silently.
    fn rewind(&mut self, id: PathId, from: BatchSeq) {
        let Some(path) = self.path_mut(id) else { return };
        path.next = from;
        if !std::mem::replace(&mut path.rewound, true) {
            self.send(id, ToEdge::Rewind { from });
        }
    }

    /// Proposes while there is something and a slot.
    pub(super) fn propose(&mut self) {
        let Some(leader) = self.lead else { return };
        if self.log.resume_at.is_some_and(|at| at > Instant::now()) {
            return;
        }
        self.log.resume_at = None;
        while self.log.in_flight.len() < limits::ENTRIES_IN_FLIGHT {
            let now = self.config.clock.read();
            if now.clock_ms.is_none() && self.log.time_by.is_some_and(|by| Instant::now() < by) {
                self.log.resume_at = Some(Instant::now() + FAILURE_PAUSE);
                return;
            }
            let mut stamp = self.log.stamp;
            let time_ms = stamp.next(now);
            let mut entry = EntryBuilder::of_version(self.log.version.max(version::FIRST), time_ms);
            let mut targets = Targets::new();
            // Without a clock that can be trusted only that ends which needs none.
            let end_ms = if now.is_sure { time_ms } else { AT_ONCE };
            let parts = self.fill(&mut entry, end_ms, &mut targets);
            if parts.is_empty() {
                return;
            }
            self.log.stamp = stamp;
            self.log.next_token += 1;
            let token = self.log.next_token;
            self.log.in_flight.push_back(InFlight { token, parts, targets });
            self.proposer.propose(token, leader, entry.finish());
        }
    }

    fn fill(&mut self, entry: &mut EntryBuilder, end_ms: u64, targets: &mut Targets) -> Vec<Part> {
        let mut parts = Vec::new();
        self.fill_advance(entry, &mut parts);
        self.fill_replies(entry, &mut parts);
        let batches = self.take_batches(entry.len(), targets);
        self.fill_leader_ops(entry, end_ms, targets, &mut parts);
        for session in std::mem::take(&mut self.log.gones) {
            entry.gone(session);
            parts.push(Part::Gone(session));
        }
        if let Some((node, incarnation)) = self.waiting_hello() {
            entry.hello(node, incarnation);
            self.log.greeting.push((node, incarnation));
            parts.push(Part::Hello(node, incarnation));
        }
        for mut batch in batches {
            let settling = Settling::of(&batch.ops);
            if settling.rejects {
                self.strike_stale(&mut batch);
            }
            entry.batch(&batch);
            let settles = if settling.any { settles(&batch, self.config.shard) } else { Vec::new() };
            parts.push(Part::Batch { session: batch.session, seq: batch.seq, settles, void: false });
        }
        if std::mem::take(&mut self.ages.wanted) {
            self.ages.in_flight = true;
            parts.push(Part::Time);
        }
        parts
    }

    /// The catalog's changes go first when the catalog made or dropped queues of this shard, or a waiting batch was routed by a
    /// later catalog than the shard follows.
    fn fill_advance(&mut self, entry: &mut EntryBuilder, parts: &mut Vec<Part>) {
        let from = self.log.catalog_index;
        let needed = self.paths.iter().flat_map(|p| &p.batches).any(|b| b.catalog_index > from) || self.log.asked_index > from;
        if !needed && !std::mem::take(&mut self.log.catalog_moved) {
            return;
        }
        // What an advance on its way makes or drops, the machine does not know yet: then it cannot be compared with the catalog.
        let known = || {
            let machine = self.machine.lock();
            (machine.catalog_index() == from).then(|| {
                let queues = machine.queues().map(|(id, _)| id).filter(|id| !id.is_reply());
                queues.chain(machine.streams().map(|(id, _)| id)).collect()
            })
        };
        let changes = self.config.catalog.changes(self.config.shard, from, &known);
        self.log.catalog_moved = changes.is_none();
        let Some(changes) = changes else { return };
        self.log.version = self.log.version.max(changes.version);
        entry.set_version(self.log.version.max(version::FIRST));
        let quiet = changes.creates.is_empty() && changes.drops.is_empty() && changes.settings.is_empty() && changes.replays.is_empty();
        if changes.to <= from || (quiet && !needed) {
            return;
        }
        entry.advance_with(from, changes.to, &changes.creates, &changes.drops, &changes.replays);
        parts.push(Part::Advance);
        for (queue, settings) in &changes.settings {
            entry.settings(changes.to, *queue, settings);
            parts.push(Part::Settings);
        }
        self.log.catalog_index = changes.to;
    }

    /// Queues of direct reply-to consumers come and go without the catalog.
    fn fill_replies(&mut self, entry: &mut EntryBuilder, parts: &mut Vec<Part>) {
        if self.log.replies.is_empty() {
            return;
        }
        let replies = std::mem::take(&mut self.log.replies);
        let index = self.log.catalog_index;
        entry.advance(index, index, &replies.creates, &replies.drops);
        parts.push(Part::Replies(replies));
    }

    /// Messages whose time ended by `end_ms` go.
    fn fill_leader_ops(&mut self, entry: &mut EntryBuilder, end_ms: u64, targets: &mut Targets, parts: &mut Vec<Part>) {
        let letters = self.letter_targets(targets);
        let log = &mut self.log;
        let wanted = [&log.reserves, &log.tends, &log.activations, &log.seals].iter().any(|list| !list.is_empty());
        let waiting =
            !log.purges.is_empty() || !log.dones.is_empty() || !log.told.is_empty() || !log.returns.is_empty() || !log.marks.is_empty();
        if !wanted && !waiting && letters == 0 && targets.is_empty() {
            return;
        }
        let (mut own, mut ops) = (Own::default(), Ops::default());
        own.dones = std::mem::take(&mut log.dones);
        own.dones.iter().for_each(|(letters, shard)| ops.done(*letters, *shard));
        own.told = std::mem::take(&mut log.told);
        for (tx, shard) in &own.told {
            ops.word(*tx, Word::Told { shard: *shard });
        }
        own.returns = std::mem::take(&mut log.returns);
        own.returns.iter().for_each(|r| ops.returned(r.queue, &r.ranges));
        own.marks = std::mem::take(&mut log.marks);
        own.marks.iter().for_each(|(queue, mark)| ops.mark(*queue, *mark));
        self.write_reserves(&mut own, &mut ops);
        own.seals = self.write_seals(&mut ops);
        self.write_purges(&mut own, &mut ops);
        for id in std::mem::take(&mut self.log.tends) {
            let due_ms = self.machine.lock().queue(id).and_then(Queue::next_due_ms);
            if self.queues.get_mut(&id).is_some_and(|state| ShardServer::write_tend(state, (end_ms, due_ms), &mut ops)) {
                own.tends.push(id);
            }
        }
        for id in std::mem::take(&mut self.log.activations) {
            if let Some((session, consumer)) = self.queues.get_mut(&id).and_then(|state| ShardServer::next_active(state)) {
                ops.activate(id, session, consumer);
                own.activations.push(id);
            }
        }
        self.brace(targets, &mut ops);
        own.letters = self.write_letters(letters, &mut ops);
        if !ops.is_empty() {
            entry.leader_ops(&ops.take());
            parts.push(Part::Leader(own));
        }
    }

    fn write_reserves(&mut self, own: &mut Own, ops: &mut Ops) {
        let wanted = std::mem::take(&mut self.log.reserves);
        if wanted.is_empty() {
            return;
        }
        let machine = self.machine.lock();
        for id in wanted {
            let (Some(state), Some(queue)) = (self.queues.get_mut(&id), machine.queue(id)) else { continue };
            let (up_to, sessions) = state.reservation(queue);
            ops.reserve(id, up_to, &sessions);
            state.reserve = Step::InFlight;
            own.reserves.push(id);
        }
    }

    fn write_purges(&mut self, own: &mut Own, ops: &mut Ops) {
        for mut purge in std::mem::take(&mut self.log.purges) {
            let machine = self.machine.lock();
            let (Some(state), Some(queue)) = (self.queues.get_mut(&purge.queue), machine.queue(purge.queue)) else {
                drop(machine);
                let result = Err(self.not_found(purge.queue));
                self.send(purge.path, ToEdge::Purged { request: purge.request, result });
                continue;
            };
            let (ranges, count) = state.purge(queue);
            ops.settle(purge.queue, SettleReason::Purge, &ranges);
            // After a failure everything is counted again.
            purge.count = purge.count.max(count);
            own.purges.push(purge);
        }
    }

    /// Batches of all paths in turn, each path's in order, as many as fit behind `len` bytes; one of any size always fits alone.
    fn take_batches(&mut self, mut len: usize, targets: &mut Targets) -> Vec<Batch> {
        let (n, index) = (self.paths.len(), self.log.catalog_index);
        let mut taken = Vec::new();
        let mut idle = 0;
        while idle < n {
            let at = self.log.turn % n;
            self.log.turn = at + 1;
            let path = &self.paths[at];
            let fits = |b: &Batch| b.catalog_index <= index && (taken.is_empty() || len + b.ops.len() <= limits::ENTRY_BYTES);
            let front = path.batches.front().filter(|b| !path.closed && fits(b));
            let ready = front.is_some_and(|b| self.limited_targets(b, targets));
            let Some(batch) = ready.then(|| self.paths[at].batches.pop_front()).flatten() else {
                idle += 1;
                continue;
            };
            idle = 0;
            len += batch.ops.len();
            taken.push(batch);
        }
        taken
    }

    pub(super) fn outcome(&mut self, token: u64, outcome: ProposalOutcome) {
        let Some(at) = self.log.in_flight.iter().position(|f| f.token == token) else { return };
        let Some(entry) = self.log.in_flight.remove(at) else { return };
        self.relax(&entry.targets);
        if matches!(entry.parts.last(), Some(Part::Time)) {
            self.aged();
        }
        match outcome {
            ProposalOutcome::Applied(_, replies) => {
                for (part, reply) in entry.parts.into_iter().zip(replies) {
                    self.applied_part(part, reply);
                }
            }
            ProposalOutcome::Failed(why) => {
                tracing::debug!(shard = %self.config.shard, token, why, "proposal failed");
                self.log.resume_at = Some(Instant::now() + FAILURE_PAUSE);
                if token >> EPOCH_SHIFT == self.log.next_token >> EPOCH_SHIFT {
                    self.log.next_token = next_epoch(self.log.next_token);
                }
                entry.parts.into_iter().for_each(|part| self.failed_part(part));
            }
        }
    }

    fn applied_part(&mut self, part: Part, reply: SectionReply) {
        match (part, reply) {
            (Part::Batch { session, settles, void, .. }, SectionReply::Batch { seq, refused, .. }) => {
                self.settled(settles, &refused);
                if !void {
                    self.send_session(session, ToEdge::Verdict { seq, refused });
                }
            }
            (Part::Batch { void, .. }, SectionReply::Gap { session, last }) if !void => {
                self.send_back(session, BatchSeq(last.0 + 1));
            }
            (Part::Batch { .. }, SectionReply::UnknownSession { session }) => {
                if let Some(path) = self.paths.iter().find(|p| p.session == Some(session)).map(|p| p.id) {
                    self.close(path);
                }
            }
            (Part::Advance, SectionReply::Advanced { accepted }) => self.advanced(accepted),
            (Part::Replies(replies), SectionReply::Advanced { accepted: false }) => {
                self.advanced(false);
                self.log.replies.add(replies);
            }
            (Part::Leader(own), _) => self.applied_own(own),
            (Part::Hello(node, incarnation), _) => {
                self.log.greeting.retain(|h| *h != (node, incarnation));
                self.sync_sessions();
            }
            (Part::Gone(_), _) => self.sync_sessions(),
            (Part::Batch { .. } | Part::Advance | Part::Settings | Part::Replies(_) | Part::Time, _) => {}
        }
    }

    fn applied_own(&mut self, own: Own) {
        own.reserves.into_iter().for_each(|queue| self.reserved(queue));
        own.tends.into_iter().for_each(|queue| self.tended(queue));
        own.activations.into_iter().for_each(|queue| self.activated(queue));
        own.marks.into_iter().for_each(|(queue, _)| self.settle_parked(queue));
        own.seals.into_iter().for_each(|queue| self.seal_written(queue, true));
        own.returns.into_iter().for_each(|r| self.returned(r));
        let shrank = !own.letters.is_empty() || !own.dones.is_empty();
        self.letters_posted(own.letters, true);
        if shrank {
            self.outboxes_shrank();
        }
        for purge in own.purges.into_iter().filter(|purge| !purge.withdrawn) {
            self.send(purge.path, ToEdge::Purged { request: purge.request, result: Ok(purge.count) });
        }
    }

    /// The machine counted: what is still alive waits again.
    fn returned(&mut self, counted: Return) {
        let Return { session, queue, ranges } = counted;
        if let Some(state) = self.queues.get_mut(&queue) {
            ranges.iter().for_each(|(a, b, _)| state.give_back(session, *a, *b, true));
            if let Some(care) = &mut state.care {
                care.frozen = care.frozen.saturating_sub(1);
                care.counting = care.counting.saturating_sub(1);
            }
        }
        self.put_on_record(session, queue, ranges.into_iter().map(|(a, b, _)| (a, b)).collect());
        self.thawed = true;
        self.mark(queue);
        self.retry_parked(queue);
    }

    /// Not in the log as far as anybody knows: batches are the edge's to repeat, the rest is proposed again.
    fn failed_part(&mut self, part: Part) {
        match part {
            Part::Batch { void: true, .. } => {}
            Part::Batch { session, seq, .. } => self.send_back(session, seq),
            Part::Advance => self.advanced(false),
            Part::Settings | Part::Time => {}
            Part::Replies(replies) => self.log.replies.add(replies),
            Part::Leader(own) => {
                for queue in own.reserves {
                    if let Some(state) = self.queues.get_mut(&queue) {
                        state.reserve = Step::Wanted;
                        self.log.reserves.push(queue);
                    }
                }
                own.tends.into_iter().for_each(|queue| self.tended(queue));
                own.activations.into_iter().for_each(|queue| self.activated(queue));
                own.seals.into_iter().for_each(|queue| self.seal_written(queue, false));
                self.log.marks.extend(own.marks);
                own.purges.into_iter().for_each(|purge| self.not_purged(purge));
                self.log.dones.extend(own.dones);
                self.log.told.extend(own.told);
                self.log.returns.extend(own.returns);
                self.letters_posted(own.letters, false);
            }
            Part::Hello(node, incarnation) => {
                self.log.greeting.retain(|h| *h != (node, incarnation));
            }
            Part::Gone(session) => {
                if let Some(session) = self.sessions.get_mut(&session) {
                    session.going = false;
                }
            }
        }
    }

    /// Batches of a session from `from` on cannot be accepted any more: those that wait are dropped, the edge resends.
    fn send_back(&mut self, session: SessionId, from: BatchSeq) {
        let Some(id) = self.sessions.get(&session).map(|s| s.path) else { return };
        let Some(path) = self.path_mut(id).filter(|p| from < p.next) else { return };
        path.batches.clear();
        path.rewound = false;
        self.log.void(session, from);
        self.rewind(id, from);
    }

    /// What a purge was to take waits again, until it is proposed once more.
    fn not_purged(&mut self, purge: Purge) {
        if let (Some(state), Some(queue)) = (self.queues.get_mut(&purge.queue), self.machine.lock().queue(purge.queue)) {
            state.restart(queue);
        }
        self.mark(purge.queue);
        if !purge.withdrawn {
            self.log.purges.push(purge);
        }
    }

    fn advanced(&mut self, accepted: bool) {
        if !accepted {
            self.log.catalog_index = self.machine.lock().catalog_index();
            self.log.catalog_moved = true;
        }
        self.retry_early();
    }

    fn reserved(&mut self, queue: QueueId) {
        let machine = self.machine.lock();
        let (Some(state), Some(applied)) = (self.queues.get_mut(&queue), machine.queue(queue)) else { return };
        state.reserved = applied.reserved();
        state.holders = applied.holders().into();
        state.reserve = Step::Idle;
        drop(machine);
        for (session, ranges) in std::mem::take(&mut state.recording) {
            self.send_session(session, ToEdge::Recorded { queue, ranges });
        }
        self.mark(queue);
    }

    fn settled(&mut self, settles: Vec<Settled>, refused: &[(u32, RefusedEnqueue)]) {
        let is_refused = |part: Option<u32>| part.is_some_and(|part| refused.iter().any(|(ordinal, _)| *ordinal == part));
        for (_, queue, ranges) in settles.into_iter().filter(|(part, ..)| !is_refused(*part)) {
            let yields = |state: &QueueState| state.care.as_ref().is_some_and(|c| c.yields);
            if self.queues.get(&queue).is_some_and(|state| yields(state)) {
                self.mark(queue); // another consumer may wait for just this
            }
            if let Some(state) = self.queues.get_mut(&queue) {
                ranges.into_iter().filter(|(first, last): &(Seq, Seq)| first <= last).for_each(|(a, b)| state.settled(a, b));
                // Somebody may wait to be alone.
                if !state.takes.is_empty() {
                    self.mark(queue);
                }
            }
        }
    }
}
