//! Queues that end on a condition (rule 22): a client's if-unused and if-empty, the last consumer of an auto-delete queue, an expiry.
//! The leader looks, lets nobody begin to consume, and writes a seal, which the machine refuses when a message came meanwhile. From
//! then on the queue is as good as deleted: it takes nothing, whoever leads, until the catalog has deleted it. Called by `requests`,
//! `tending` and `proposing`.

use super::edges::{Path, PathId};
use super::handle::ServerEvent;
use super::proposing::Log;
use super::queue::{QueueState, Step};
use super::server::ShardServer;
use crate::machine::catalog::queue_text;
use crate::model::QueueId;
use crate::model::catalog::Refusal;
use crate::model::entry::{Mark, Ops};
use crate::model::link::{Consumer, ToEdge, ToLeader};
use std::time::Duration;
use tokio::time::Instant;

/// Who wants the end of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// A client.
    Client { path: PathId, request: u64, if_unused: bool, if_empty: bool },
    /// It deletes itself with its last consumer, which is gone.
    Abandoned,
    /// It deletes itself when nobody uses it for long.
    Unused,
}

/// A seal that the machine refuses is written again so often, if messages keep coming; then the queue is not empty.
const REFUSALS_MAX: u32 = 3;

/// Why not.
#[derive(Clone, Copy)]
enum Obstacle {
    InUse,
    NotEmpty,
}

impl QueueState {
    /// Somebody wants its end.
    pub fn wish(&mut self, wish: Wish, log: &mut Log) {
        if !self.wishes.contains(&wish) {
            self.wishes.push(wish);
        }
        if self.seal == Step::Idle {
            (self.seal, self.refusals) = (Step::Wanted, 0);
            log.seals.push(self.id);
        }
    }

    /// Nothing begins here any more, or it is not known yet whether it may.
    pub fn is_closing(&self) -> bool {
        self.sealed || self.seal == Step::InFlight
    }

    fn obstacle(&self, wish: Wish, ready: u64) -> Option<Obstacle> {
        let is_used = !self.consumers.is_empty();
        match wish {
            Wish::Client { if_unused: true, .. } | Wish::Abandoned if is_used => Some(Obstacle::InUse),
            Wish::Client { if_empty: true, .. } if ready > 0 => Some(Obstacle::NotEmpty),
            Wish::Client { .. } | Wish::Abandoned => None,
            Wish::Unused => {
                let since = self.care.as_ref().and_then(|c| Some(c.last_used + Duration::from_millis(c.settings.expires_ms?)));
                (is_used || !self.gets.is_empty() || !self.takes.is_empty() || since.is_none_or(|at| at > Instant::now()))
                    .then_some(Obstacle::InUse)
            }
        }
    }
}

/// A client whose edge is away asks again when that is back.
fn is_waited_for(wish: Wish, paths: &[Path]) -> bool {
    match wish {
        Wish::Client { path, .. } => paths.iter().any(|p| p.id == path && !p.closed),
        Wish::Abandoned | Wish::Unused => true,
    }
}

impl ShardServer {
    /// A client wants a queue deleted if.
    pub(super) fn seal(&mut self, queue: QueueId, wish: Wish) {
        let Some(state) = self.queues.get_mut(&queue) else { return };
        if state.sealed {
            return self.grant(wish, 0);
        }
        state.wish(wish, &mut self.log);
    }

    /// Requests that cannot be answered yet: somebody who has not been heard of may hold messages, consume alone or be counted, or the
    /// queue may be about to end.
    pub(super) fn must_wait(&mut self, queue: QueueId, request: &ToLeader) -> bool {
        let Some(state) = self.queues.get(&queue) else { return false };
        if state.sealed && matches!(request, ToLeader::Seal { .. }) {
            return false;
        }
        if state.held || state.is_closing() {
            return true;
        }
        let is_open = |id: PathId| self.paths.iter().any(|p| p.id == id && !p.closed);
        let any_unheard = || self.sessions.values().any(|s| !s.resolved);
        match request {
            // In the order of coming: who is to be alone is not overtaken.
            ToLeader::Consume(_) if state.parked.iter().any(|one| one.consumes() && is_open(one.path)) => true,
            // It is refused.
            ToLeader::Consume(spec) if spec.exclusive && state.care.as_ref().is_some_and(|c| c.settings.single_active_consumer) => false,
            ToLeader::Consume(spec) => {
                let alone = spec.exclusive || self.machine.lock().queue(queue).is_some_and(|q| q.had_exclusive());
                (alone && any_unheard()) || self.notes_first(queue, spec)
            }
            ToLeader::Seal { if_unused, .. } => *if_unused && any_unheard(),
            ToLeader::Stat { .. } => state.holders.iter().any(|s| self.sessions.get(s).is_some_and(|s| !s.resolved)),
            // What was given back before is purged, too.
            ToLeader::Purge { .. } => state.care.as_ref().is_some_and(|care| care.counting > 0),
            ToLeader::Get { .. } | ToLeader::Take { .. } => false,
            ToLeader::Hello { .. }
            | ToLeader::Batch(_)
            | ToLeader::Attach { .. }
            | ToLeader::Cancel { .. }
            | ToLeader::Credit { .. }
            | ToLeader::Prefetch { .. }
            | ToLeader::Return { .. }
            | ToLeader::Withdraw { .. }
            | ToLeader::Ping { .. }
            | ToLeader::Stream { .. } => false,
        }
    }

    /// What a later leader must know of a consumer is noted before it starts. In-memory queues have no later leader.
    fn notes_first(&mut self, id: QueueId, spec: &Consumer) -> bool {
        if self.config.shard.owner().is_some() {
            return false;
        }
        let machine = self.machine.lock();
        let Some(queue) = machine.queue(id) else { return false };
        let (exclusive, consumed) = (queue.had_exclusive(), queue.had_consumer());
        drop(machine);
        let mark = if spec.exclusive && !exclusive {
            Mark::Exclusive
        } else if consumed {
            return false;
        } else {
            match self.is_auto_delete(id) {
                Some(true) => Mark::Consumed,
                Some(false) => return false,
                None => return true,
            }
        };
        if !self.log.marks.contains(&(id, mark)) {
            self.log.marks.push((id, mark));
        }
        true
    }

    /// Whether a queue goes with its last consumer. `None`: this node's catalog is behind the shard's and does not know it yet; who waits
    /// for that is looked at again when it moves.
    pub(super) fn is_auto_delete(&mut self, queue: QueueId) -> Option<bool> {
        let is_behind = self.config.catalog.index() < self.machine.lock().catalog_index();
        let facts = self.config.catalog.facts(queue);
        self.lagging |= is_behind && facts.is_none();
        (facts.is_some() || !is_behind).then(|| facts.is_some_and(|facts| facts.auto_delete))
    }

    /// Writes the seals that are wanted and may be; which.
    pub(super) fn write_seals(&mut self, ops: &mut Ops) -> Vec<QueueId> {
        let wanted = std::mem::take(&mut self.log.seals);
        wanted.into_iter().filter(|queue| self.write_seal(*queue, ops)).collect()
    }

    fn write_seal(&mut self, id: QueueId, ops: &mut Ops) -> bool {
        let machine = self.machine.lock();
        let (Some(state), Some(queue)) = (self.queues.get_mut(&id), machine.queue(id)) else { return false };
        let ready = queue.live_count().saturating_sub(state.checked.count()) + machine.coming(id).0;
        let tail = queue.tail();
        drop(machine);
        let mut wishes = std::mem::take(&mut state.wishes);
        wishes.retain(|wish| is_waited_for(*wish, &self.paths));
        let mut refused = Vec::new();
        for wish in wishes {
            match state.obstacle(wish, ready) {
                Some(obstacle) => refused.push((wish, obstacle)),
                None => state.wishes.push(wish),
            }
        }
        let first = state.wishes.first().copied();
        state.seal = if first.is_some() { Step::InFlight } else { Step::Idle };
        if let Some(wish) = first {
            let is_asked = matches!(wish, Wish::Client { if_empty: true, .. });
            ops.mark(id, Mark::Sealed { tail: is_asked.then_some(tail) });
        }
        refused.into_iter().for_each(|(wish, obstacle)| self.refuse_end(id, wish, obstacle));
        if first.is_none() {
            self.retry_parked(id);
        }
        first.is_some()
    }

    fn refuse_end(&mut self, id: QueueId, wish: Wish, obstacle: Obstacle) {
        match wish {
            Wish::Client { path, request, .. } => {
                let name = self.config.catalog.facts(id).map(|facts| queue_text(&facts.name)).unwrap_or_default();
                let why = match obstacle {
                    Obstacle::InUse => "in use",
                    Obstacle::NotEmpty => "not empty",
                };
                self.send(path, ToEdge::Purged { request, result: Err(Refusal::Precondition(format!("{name} {why}"))) });
            }
            Wish::Abandoned => {}
            Wish::Unused => {
                if let Some(care) = self.queues.get_mut(&id).and_then(|s| s.care.as_mut()) {
                    care.unused_told = false;
                }
                self.mark(id);
            }
        }
    }

    fn grant(&mut self, wish: Wish, count: u64) {
        if let Wish::Client { path, request, .. } = wish {
            self.send(path, ToEdge::Purged { request, result: Ok(count) });
        }
    }

    /// An entry with a seal has its outcome; it was applied, or failed to be.
    pub(super) fn seal_written(&mut self, id: QueueId, was_applied: bool) {
        let machine = self.machine.lock();
        let found = machine.queue(id).map(|q| (q.is_sealed(), q.live_count()));
        drop(machine);
        let (Some(state), Some((is_sealed, live))) = (self.queues.get_mut(&id), found) else { return };
        state.seal = Step::Idle;
        if is_sealed {
            state.sealed = true;
            let count = live.saturating_sub(state.checked.count());
            std::mem::take(&mut state.wishes).into_iter().for_each(|wish| self.grant(wish, count));
            return self.events.push_back(ServerEvent::Sealed { queue: id });
        }
        state.refusals += u32::from(was_applied);
        let overtaken = |wish: &Wish| matches!(wish, Wish::Client { if_empty: true, .. });
        let is_refused = state.refusals >= REFUSALS_MAX;
        let (refused, wishes): (Vec<Wish>, Vec<Wish>) =
            std::mem::take(&mut state.wishes).into_iter().partition(|wish| is_refused && overtaken(wish));
        if !wishes.is_empty() {
            (state.seal, state.wishes) = (Step::Wanted, wishes);
            self.log.seals.push(id);
        }
        refused.into_iter().for_each(|wish| self.refuse_end(id, wish, Obstacle::NotEmpty));
        self.retry_parked(id);
    }

    /// A queue is gone that somebody wanted gone.
    pub(super) fn grant_all(&mut self, wishes: Vec<Wish>) {
        wishes.into_iter().for_each(|wish| self.grant(wish, 0));
    }

    /// Under a new leadership: queues that a former leader sealed are deleted, and those that delete themselves with their last consumer
    /// end unless somebody attaches one.
    pub(super) fn take_up_ends(&mut self) {
        let machine = self.machine.lock();
        let marked: Vec<_> =
            machine.queues().filter(|(_, q)| q.is_sealed() || q.had_consumer()).map(|(id, q)| (id, q.is_sealed())).collect();
        drop(machine);
        for (queue, is_sealed) in marked {
            if let Some(state) = self.queue_state(queue) {
                state.last_gone = !is_sealed;
            }
            if is_sealed {
                self.events.push_back(ServerEvent::Sealed { queue });
            }
        }
        self.release_holds();
    }
}
