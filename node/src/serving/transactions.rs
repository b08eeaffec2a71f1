//! Transactions over several shards under this leader (rule 26): what an undecided one settles is with nobody else, and shards tell each
//! other what an edge that is gone cannot tell them any more. What is decided is in the machine; here is only what was begun. Called by
//! `server` with the machine's effects.

use super::queue::QueueState;
use super::server::ShardServer;
use crate::machine::Queue;
use crate::model::entry::Word;
use crate::model::link::Ranges;
use crate::model::{QueueId, Seq, SessionId, ShardId, TxId};
use std::collections::{BTreeMap, BTreeSet};

/// Holds what undecided transactions settle.
pub(super) const UNDECIDED: SessionId = SessionId(u64::MAX);

/// What this leader has begun.
#[derive(Debug, Default)]
pub(super) struct Undecided {
    held: BTreeMap<TxId, Vec<(QueueId, Ranges)>>,
    asked: BTreeSet<TxId>,
    told: BTreeSet<(TxId, ShardId)>,
    /// Looked at again at the next tick.
    pub stalled: BTreeSet<TxId>,
}

impl ShardServer {
    /// Those that the machine knows when this node begins to lead.
    pub(super) fn take_up_transactions(&mut self) {
        let known: Vec<TxId> = self.machine.lock().transactions().collect();
        known.into_iter().for_each(|tx| self.transaction(tx));
    }

    /// Something about a transaction changed.
    pub(super) fn transaction(&mut self, tx: TxId) {
        let machine = self.machine.lock();
        let prepared = machine.prepared(tx).map(|p| (p.decider, p.is_orphan));
        let known = self.undecided.held.contains_key(&tx);
        let fresh = machine.prepared(tx).filter(|_| !known);
        let leaving = fresh.map(|p| p.leaving.iter().map(|(queue, _, ranges)| (*queue, ranges.clone())).collect());
        let wanted = machine.decided(tx).filter(|d| d.is_urgent).map(|d| (d.is_commit, d.waiting.clone()));
        drop(machine);
        if let Some(leaving) = leaving {
            self.hold_undecided(tx, leaving);
        }
        match prepared {
            Some((decider, true)) => self.ask(tx, decider),
            Some((_, false)) => {}
            None => self.let_go(tx),
        }
        if let Some((is_commit, waiting)) = wanted {
            waiting.into_iter().for_each(|shard| self.tell(tx, is_commit, shard));
        }
    }

    fn hold_undecided(&mut self, tx: TxId, leaving: Vec<(QueueId, Ranges)>) {
        for (queue, ranges) in &leaving {
            let Some(state) = self.queue_state(*queue) else { continue };
            ranges.iter().for_each(|(first, last)| state.checked.insert(*first, *last, UNDECIDED));
        }
        self.undecided.held.insert(tx, leaving);
    }

    /// It is decided: what it settled is gone, or waits again.
    fn let_go(&mut self, tx: TxId) {
        self.undecided.asked.remove(&tx);
        for (id, ranges) in self.undecided.held.remove(&tx).unwrap_or_default() {
            let Some(state) = self.queues.get_mut(&id) else { continue };
            let machine = self.machine.lock();
            let Some(queue) = machine.queue(id) else { continue };
            ranges.iter().for_each(|(first, last)| release(state, queue, *first, *last));
            drop(machine);
            self.mark(id);
        }
    }

    fn ask(&mut self, tx: TxId, decider: ShardId) {
        if self.undecided.asked.contains(&tx) {
            return;
        }
        let word = Word::Ask { shard: self.config.shard };
        match self.config.courier.tell(decider, tx, word, Box::new(|| {})) {
            true => drop(self.undecided.asked.insert(tx)),
            false => drop(self.undecided.stalled.insert(tx)),
        }
    }

    fn tell(&mut self, tx: TxId, is_commit: bool, shard: ShardId) {
        if self.undecided.told.contains(&(tx, shard)) {
            return;
        }
        let word = if is_commit { Word::Commit } else { Word::Abort };
        let handle = self.handle.clone();
        match self.config.courier.tell(shard, tx, word, Box::new(move || handle.told(tx, shard))) {
            true => drop(self.undecided.told.insert((tx, shard))),
            false => drop(self.undecided.stalled.insert(tx)),
        }
    }

    /// A shard has heard; the machine is told so with the next entry.
    pub(super) fn was_told(&mut self, tx: TxId, shard: ShardId) {
        if self.undecided.told.remove(&(tx, shard)) {
            self.log.told.push((tx, shard));
        }
    }

    pub(super) fn retry_transactions(&mut self) {
        std::mem::take(&mut self.undecided.stalled).into_iter().for_each(|tx| self.transaction(tx));
    }
}

/// A range that a transaction held: live messages wait again, somebody has seen them; the others are gone, whatever took them.
fn release(state: &mut QueueState, queue: &Queue, first: Seq, last: Seq) {
    let mut next = first;
    for (a, b) in queue.live_ranges(first, last) {
        if next < a {
            state.settled(next, Seq(a.0 - 1));
        }
        state.give_back(UNDECIDED, a, b, true);
        next = Seq(b.0 + 1);
    }
    if next <= last {
        state.settled(next, last);
    }
}
