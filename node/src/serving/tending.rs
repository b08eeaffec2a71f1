//! What queues need of their leader beyond delivery: messages whose time ends, limits, an own end when nobody uses them, one active
//! consumer. Decided here, carried out by the machine: each decision is an operation that names what consumers hold (rule 24), and
//! nothing that an operation in flight may take away is delivered. Called by `server` and `proposing`.

use super::queue::{QueueState, Step};
use super::sealing::Wish;
use super::server::ShardServer;
use crate::machine::{AT_ONCE, Queue};
use crate::model::entry::{Ops, each_target};
use crate::model::link::Batch;
use crate::model::{ConsumerId, QueueId, Seq, SessionId};
use smallvec::SmallVec;
use std::time::Duration;
use tokio::time::Instant;

/// An alarm by the clock is set at most this far ahead: clocks that are set are noticed.
pub(super) const ALARM_MAX: Duration = Duration::from_secs(10);
/// A clock that may be wrong is looked at again after this time.
pub(super) const UNSURE: Duration = Duration::from_secs(1);
/// A queue whose users may not all have been heard of is looked at again after this time.
const UNHEARD: Duration = Duration::from_secs(1);

/// What an entry brings to queues with limits: queue, messages, and whether it may make them drop some.
pub(super) type Targets = SmallVec<[(QueueId, u64, bool); 2]>;

impl ShardServer {
    /// What ends by time has ended up to here, ms since the epoch; `None` while this node's clock may be wrong.
    pub(super) fn end_ms(&self) -> Option<u64> {
        let now = self.config.clock.read();
        now.is_sure.then(|| self.log.time_ms(now))
    }

    /// Messages came.
    pub(super) fn news(&mut self, queue: QueueId) {
        if let Some(state) = self.queues.get_mut(&queue) {
            state.news();
            self.mark(queue);
        }
    }

    /// The queue is, or has become, more than a plain one.
    pub(super) fn take_care_of(&mut self, id: QueueId) {
        if self.queue_state(id).is_none() {
            return;
        }
        let machine = self.machine.lock();
        let (Some(state), Some(queue)) = (self.queues.get_mut(&id), machine.queue(id)) else { return };
        state.configure(queue);
        match state.care.as_ref().is_some_and(|c| c.settings.is_limited()) {
            true => self.limited.insert(id),
            false => self.limited.remove(&id),
        };
        drop(machine);
        self.mark(id);
    }

    /// Alarms that are due.
    pub(super) fn ring_alarms(&mut self) {
        let now = Instant::now();
        while let Some((_, queue)) = self.alarms.first().filter(|(at, _)| *at <= now).copied() {
            self.alarms.pop_first();
            if let Some(care) = self.queues.get_mut(&queue).and_then(|s| s.care.as_mut()) {
                care.alarm = None;
            }
            self.mark(queue);
        }
    }

    /// Somebody used the queue.
    pub(super) fn touch(&mut self, queue: QueueId) {
        if let Some(care) = self.queues.get_mut(&queue).and_then(|s| s.care.as_mut())
            && care.settings.expires_ms.is_some()
        {
            care.last_used = Instant::now();
            self.mark(queue);
        }
    }

    /// After each look at a queue: is something due, and when will it be?
    pub(super) fn look_after(&mut self, state: &mut QueueState) {
        if state.care.is_none() || state.held {
            return;
        }
        self.choose_active(state);
        let unused = self.unused_at(state);
        let due = self.due_at(state);
        let now = Instant::now();
        let due = due.filter(|at| *at > now || self.may_leave(state));
        let Some(care) = &mut state.care else { return };
        if due.is_some_and(|at| at <= now) && care.tend == Step::Idle {
            care.tend = Step::Wanted;
            self.log.tends.push(state.id);
        }
        let next = alarm_at(now, due.filter(|at| *at > now), unused);
        if care.alarm != next {
            care.alarm.take().map(|at| self.alarms.remove(&(at, state.id)));
            care.alarm = next;
            next.map(|at| self.alarms.insert((at, state.id)));
        }
    }

    /// Whether messages can leave the queue of their own accord; if its outbox is full they stay until it is not (rule 25).
    pub(super) fn may_leave(&mut self, state: &QueueState) -> bool {
        let buries = state.care.as_ref().is_some_and(|c| c.settings.dead_letter.is_some() || c.settings.store.is_some());
        let may = !buries || self.machine.lock().buries(state.id);
        if !may {
            self.letters.kept.insert(state.id);
        }
        may
    }

    /// When the queue wants a `Tend`; now when it is too full.
    fn due_at(&self, state: &QueueState) -> Option<Instant> {
        let machine = self.machine.lock();
        let queue = machine.queue(state.id)?;
        let now = Instant::now();
        let mut checked = None;
        if state.care.as_ref().is_some_and(|c| c.drops_head()) && is_over(state, queue) {
            return Some(now);
        }
        if queue.is_scheduled() {
            return queue.next_due_ms().map(|due_ms| self.at(due_ms));
        }
        if !queue.is_timed() {
            return None;
        }
        let checked = checked.get_or_insert_with(|| state.checked_ranges());
        let heads = (0..queue.levels()).filter_map(|level| queue.first_ready(level, Seq(0), checked));
        let deadline = heads.map(|run| run.deadline_ms).filter(|ms| *ms > 0).min()?;
        Some(self.at(deadline))
    }

    /// When this time has come; [`AT_ONCE`] needs no clock.
    fn at(&self, time_ms: u64) -> Instant {
        let now = Instant::now();
        if time_ms == AT_ONCE {
            return now;
        }
        self.end_ms().map_or(now + UNSURE, |end_ms| now + Duration::from_millis(time_ms.saturating_sub(end_ms)))
    }

    /// When the queue ends for want of use; asks for that when it does.
    fn unused_at(&mut self, state: &mut QueueState) -> Option<Instant> {
        let used = !state.consumers.is_empty() || !state.gets.is_empty() || !state.takes.is_empty() || !state.parked.is_empty();
        let care = state.care.as_mut()?;
        let after = care.settings.expires_ms.filter(|_| !used && !care.unused_told)?;
        let now = Instant::now();
        let at = care.last_used + Duration::from_millis(after);
        if at > now {
            return Some(at);
        }
        // An edge that is still to attach may bring consumers (rule 22).
        if self.sessions.values().any(|s| !s.resolved) {
            return Some(now + UNHEARD);
        }
        care.unused_told = true;
        state.wish(Wish::Unused, &mut self.log);
        None
    }

    /// Rule 21: the next active consumer is chosen when the present one is known to be gone, or when there is one of a higher priority
    /// and the present one, which gets nothing more, has settled what it holds (as quorum queues do it).
    fn choose_active(&mut self, state: &mut QueueState) {
        let Some(care) = state.care.as_mut().filter(|c| c.settings.single_active_consumer && c.activate == Step::Idle) else { return };
        let present = care.active.filter(|(session, consumer)| {
            let unheard = self.sessions.get(session).is_some_and(|s| !s.resolved);
            unheard || state.consumers.iter().any(|c| (c.session, c.spec.id) == (*session, *consumer))
        });
        let priority = |active| state.consumers.iter().find(|c| (c.session, c.spec.id) == active).map(|c| c.spec.priority);
        let best = state.consumers.first().map(|c| c.spec.priority);
        let yields = present.and_then(priority).is_some_and(|own| best > Some(own));
        if care.yields && !yields && present.is_some() {
            self.stalled.push(state.id); // it gets messages again
        }
        care.yields = yields;
        let is_free = match present {
            None => best.is_some(),
            Some(_) => yields && !state.active_holds(),
        };
        if let Some(care) = state.care.as_mut().filter(|_| is_free) {
            care.activate = Step::Wanted;
            self.log.activations.push(state.id);
        }
    }

    /// The consumer that a queue asks to be active: the first of the highest priority.
    pub(super) fn next_active(state: &mut QueueState) -> Option<(SessionId, ConsumerId)> {
        let care = state.care.as_mut()?;
        let chosen = state.consumers.first().map(|c| (c.session, c.spec.id));
        care.activate = if chosen.is_some() { Step::InFlight } else { Step::Idle };
        chosen
    }

    /// What a batch brings to queues with limits; false: one of them is not to be added to now.
    pub(super) fn limited_targets(&self, batch: &Batch, targets: &mut Targets) -> bool {
        if self.limited.is_empty() {
            return true;
        }
        let before = targets.clone();
        let mut free = true;
        each_target(&batch.ops, &mut |queue| {
            if !free || !self.limited.contains(&queue) {
                return;
            }
            free = self.queues.get(&queue).and_then(|s| s.care.as_ref()).is_none_or(|c| c.frozen == 0);
            match targets.iter_mut().find(|t| t.0 == queue) {
                Some(target) => target.1 += 1,
                None => targets.push((queue, 1, false)),
            }
        });
        if !free {
            *targets = before;
        }
        free
    }

    /// The entry to be proposed has these messages for queues with limits: their basis goes before them, and nothing is delivered from a
    /// queue that may drop some.
    pub(super) fn brace(&mut self, targets: &mut Targets, ops: &mut Ops) {
        let machine = self.machine.lock();
        for (id, count, risky) in targets.iter_mut() {
            let (Some(state), Some(queue)) = (self.queues.get_mut(id), machine.queue(*id)) else { continue };
            if !state.held && queue.reserved() > Seq(0) {
                // The basis only: nothing expires by it that may be delivered meanwhile.
                ops.tend(*id, 0, state.room(), &state.checked_ranges());
            }
            let Some(care) = &mut state.care else { continue };
            care.coming += *count;
            let long = care.settings.max_length.is_some_and(|max| queue.live_count() + care.coming > max);
            *risky = care.drops_head() && (long || care.settings.max_length_bytes.is_some());
            care.frozen += u32::from(*risky);
        }
    }

    /// The entry has its outcome.
    pub(super) fn relax(&mut self, targets: &Targets) {
        for (id, count, risky) in targets {
            let Some(state) = self.queues.get_mut(id) else { continue };
            if *risky {
                state.forget_window();
            }
            let Some(care) = &mut state.care else { continue };
            care.coming = care.coming.saturating_sub(*count);
            care.frozen = care.frozen.saturating_sub(u32::from(*risky));
            self.thawed |= *risky;
            self.mark(*id);
        }
    }

    /// Writes a `Tend`; true when it goes out. `due_ms`: when the first of the queue's delayed messages is due.
    pub(super) fn write_tend(state: &mut QueueState, (now_ms, due_ms): (u64, Option<u64>), ops: &mut Ops) -> bool {
        let (room, checked) = (state.room(), state.checked_ranges());
        let Some(care) = state.care.as_mut() else { return false };
        if state.held {
            care.tend = Step::Idle;
            return false;
        }
        care.due_ms = due_ms.filter(|due_ms| *due_ms != AT_ONCE).unwrap_or_default();
        care.tend = Step::InFlight;
        care.frozen += 1;
        ops.tend(state.id, now_ms, room, &checked);
        true
    }

    /// A `Tend` has its outcome.
    pub(super) fn tended(&mut self, id: QueueId) {
        let Some(state) = self.queues.get_mut(&id) else { return };
        state.forget_window();
        let mut due_ms = 0;
        if let Some(care) = &mut state.care {
            care.tend = Step::Idle;
            care.frozen = care.frozen.saturating_sub(1);
            due_ms = std::mem::take(&mut care.due_ms);
        }
        if due_ms > 0 {
            self.left_late(id, due_ms);
        }
        self.thawed = true;
        self.mark(id);
    }

    /// The machine was asked for another active consumer.
    pub(super) fn activated(&mut self, id: QueueId) {
        let active = self.machine.lock().queue(id).and_then(Queue::active);
        if let Some(care) = self.queues.get_mut(&id).and_then(|s| s.care.as_mut()) {
            care.activated(active);
            self.mark(id);
        }
    }
}

/// When a queue is to be looked at again. Only what ends by the clock is looked at before its time: an idle queue that ends by itself
/// wakes nobody until it does.
pub(super) fn alarm_at(now: Instant, by_clock: Option<Instant>, unused: Option<Instant>) -> Option<Instant> {
    by_clock.map(|at| at.min(now + ALARM_MAX)).into_iter().chain(unused).min()
}

/// More messages are ready than may be, and consumers do not take them at once.
fn is_over(state: &QueueState, queue: &Queue) -> bool {
    let Some(settings) = queue.settings() else { return false };
    let long = settings.max_length.is_some_and(|max| queue.live_count() > max);
    let heavy = settings.max_length_bytes.is_some_and(|max| queue.live_body_bytes() > max);
    if !long && !heavy {
        return false;
    }
    let out = queue.count_in(&state.checked_ranges());
    let (count, bytes) = (queue.live_count() - out.count, queue.live_body_bytes().saturating_sub(out.body_bytes));
    let room = u64::from(state.room());
    settings.max_length.is_some_and(|max| count > max.saturating_add(room))
        || (count > room && settings.max_length_bytes.is_some_and(|max| bytes > max))
}
