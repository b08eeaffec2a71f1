//! Applying transactions over several shards (rule 26). A part is checked and kept when it comes, and takes effect when its decision
//! does. The decision is an entry of one shard, the lowest with a part: `Word::Decide` is the commit point. An edge that is gone decides
//! nothing more: its undecided transactions are given up where they would be decided, and asked for elsewhere. Called by `shard`.

use super::limits;
use super::shard::{DataMachine, Effect, Fault};
use super::transactions::{Decided, Leaving, Prepared};
use crate::model::entry::{EnqueueOp, Op, PartOp, SettleReason, Word};
use crate::model::link::{Ranges, RefusedEnqueue};
use crate::model::settings::Overflow;
use crate::model::{Incarnation, NodeId, QueueId, SessionId, ShardId, TxId};
use std::collections::BTreeMap;

/// Messages and bytes of bodies that a part brings to a queue.
type Coming = BTreeMap<QueueId, (u64, u64)>;

/// So many messages, if all of them are there.
fn count(ranges: &Ranges) -> u64 {
    ranges.iter().filter(|(first, last)| first <= last).map(|(first, last)| last.0 - first.0 + 1).sum()
}

impl DataMachine {
    /// A part that waits for its decision.
    pub fn prepared(&self, tx: TxId) -> Option<&Prepared> {
        self.transactions.prepared(tx)
    }

    /// A decision that not everybody is known to have heard.
    pub fn decided(&self, tx: TxId) -> Option<&Decided> {
        self.transactions.decided(tx)
    }

    /// All transactions that this shard knows of.
    pub fn transactions(&self) -> impl Iterator<Item = TxId> + '_ {
        self.transactions.ids()
    }

    /// A part comes, from `by`. Why it is not kept, if it is not.
    pub(super) fn part(
        &mut self,
        index: u64,
        by: Option<SessionId>,
        part: PartOp,
        effects: &mut Vec<Effect>,
    ) -> Result<Option<RefusedEnqueue>, Fault> {
        let PartOp { session, tx, decider, others, ops } = part;
        if self.transactions.decided(tx).is_some() {
            return Ok(Some(RefusedEnqueue::GivenUp));
        }
        if self.transactions.prepared(tx).is_some() {
            return Ok(None);
        }
        if session.is_some() && session != by {
            return Ok(Some(RefusedEnqueue::Lost));
        }
        let (mut messages, mut leaving, mut coming) = (Vec::new(), Vec::new(), Coming::new());
        let (mut full, mut missing) = (false, false);
        for op in ops {
            match op? {
                Op::Enqueue(op) => {
                    full |= self.would_refuse(&op, &mut coming);
                    messages.push(op.stage(index));
                }
                Op::Settle { queue, reason, ranges } => {
                    let live = self.live_of(queue, reason, &ranges);
                    missing |= count(&ranges) > live.as_ref().map_or(0, |(.., live)| count(live));
                    leaving.extend(live);
                }
                // Nothing else is let into a part (`is_batch`).
                Op::Part(_) | Op::Word { .. } | Op::Reserve { .. } | Op::Tend { .. } | Op::Activate { .. } | Op::Mark { .. } => {}
                Op::Routed { .. } | Op::Done { .. } | Op::Return { .. } | Op::Append(_) | Op::Store { .. } | Op::Gone(_) => {}
            }
        }
        if session.is_some() && missing && !messages.is_empty() {
            return Ok(Some(RefusedEnqueue::Lost));
        }
        if full {
            return Ok(Some(RefusedEnqueue::Full));
        }
        if session.is_some() && decider == self.shard && others.is_empty() {
            self.take_effect(index, &messages, leaving, effects);
            return Ok(None);
        }
        self.exits.taken.push(index);
        self.transactions.prepare(tx, Prepared { decider, others, is_orphan: false, leaving, index, messages });
        effects.push(Effect::Transaction { tx });
        Ok(None)
    }

    /// Whether some queue refuses the message, with what the part brings before it. A sealed one is as good as deleted: it neither takes
    /// nor refuses.
    fn would_refuse(&mut self, op: &EnqueueOp, coming: &mut Coming) -> bool {
        let mut refused = false;
        for id in op.queues() {
            let Some(queue) = self.queues.get(&id).filter(|queue| !queue.is_sealed()) else { continue };
            refused |= queue.settings().is_some() && self.exits.is_stuck(id, queue);
            let Some(settings) = queue.settings().filter(|s| s.is_limited() && s.overflow != Overflow::DropHead) else { continue };
            let note = limits::note_of(Some(settings), op, self.last_time_ms);
            let before = coming.entry(id).or_insert_with(|| self.transactions.coming(id));
            let bytes = u64::from(note.body_bytes);
            refused |= limits::is_full(queue, self.bases.of(id, queue), (before.0, before.1 + bytes));
            *before = (before.0 + 1, before.1 + bytes);
        }
        refused
    }

    fn live_of(&self, id: QueueId, reason: SettleReason, ranges: &Ranges) -> Option<Leaving> {
        let queue = self.queues.get(&id)?;
        let live: Ranges =
            ranges.iter().filter(|(first, last)| first <= last).flat_map(|(first, last)| queue.live_ranges(*first, *last)).collect();
        (!live.is_empty()).then_some((id, reason, live))
    }

    /// Something is said of a transaction. Why not, when it cannot be.
    pub(super) fn word(&mut self, index: u64, (tx, word): (TxId, Word), effects: &mut Vec<Effect>) -> Option<RefusedEnqueue> {
        match word {
            Word::Decide => return self.decide(index, tx, effects),
            Word::Commit => self.end(index, tx, true, effects),
            Word::Abort => self.end(index, tx, false, effects),
            Word::Forget => self.transactions.forget(tx),
            Word::Ask { shard } => self.asked(index, tx, shard, effects),
            Word::Told { shard } => self.told(tx, shard),
        }
        None
    }

    fn decide(&mut self, index: u64, tx: TxId, effects: &mut Vec<Effect>) -> Option<RefusedEnqueue> {
        if self.transactions.decided(tx).is_some_and(|d| d.is_commit) {
            return None;
        }
        let Some(prepared) = self.transactions.prepared(tx) else { return Some(RefusedEnqueue::GivenUp) };
        let waiting = prepared.others.clone();
        self.end(index, tx, true, effects);
        self.transactions.decide(tx, Decided { is_commit: true, waiting, is_urgent: false });
        None
    }

    /// The part takes effect, or goes without any.
    fn end(&mut self, index: u64, tx: TxId, is_commit: bool, effects: &mut Vec<Effect>) {
        let Some(prepared) = self.transactions.take_prepared(tx) else { return };
        effects.push(Effect::Transaction { tx });
        self.exits.released.push(prepared.index);
        if !is_commit {
            return;
        }
        self.take_effect(index, &prepared.messages, prepared.leaving, effects);
    }

    fn take_effect(&mut self, index: u64, messages: &[EnqueueOp], leaving: Vec<Leaving>, effects: &mut Vec<Effect>) {
        // Its messages lie in another entry, or deeper in this one, than what comes before and behind them here.
        self.new_section();
        for message in messages {
            self.enqueue(index, message, effects);
        }
        self.new_section();
        for leaving in leaving {
            self.settle(index, leaving, effects);
        }
    }

    /// A shard with a part has lost its edge.
    fn asked(&mut self, index: u64, tx: TxId, shard: ShardId, effects: &mut Vec<Effect>) {
        if self.transactions.decided(tx).is_none() {
            self.end(index, tx, false, effects);
            self.transactions.decide(tx, Decided { is_commit: false, waiting: Vec::new(), is_urgent: true });
        }
        if let Some(decided) = self.transactions.decided_mut(tx) {
            decided.is_urgent = true;
            if !decided.waiting.contains(&shard) {
                decided.waiting.push(shard);
            }
            effects.push(Effect::Transaction { tx });
        }
    }

    /// A shard knows the decision. One against a transaction stays as long as its edge might still bring a part or decide.
    fn told(&mut self, tx: TxId, shard: ShardId) {
        let may_return = !self.sessions.is_replaced(tx.node, tx.incarnation);
        let Some(decided) = self.transactions.decided_mut(tx) else { return };
        decided.waiting.retain(|of| *of != shard);
        if decided.waiting.is_empty() && (decided.is_commit || !may_return) {
            self.transactions.forget(tx);
        }
    }

    /// An edge is gone: it may not come to tell what it decided.
    pub(super) fn orphaned(&mut self, index: u64, (node, incarnation): (NodeId, Incarnation), effects: &mut Vec<Effect>) {
        for tx in self.transactions.of(node, incarnation) {
            match self.transactions.prepared(tx) {
                Some(prepared) if prepared.decider == self.shard => {
                    let waiting = prepared.others.clone();
                    self.end(index, tx, false, effects);
                    self.transactions.decide(tx, Decided { is_commit: false, waiting, is_urgent: true });
                }
                Some(_) => drop(self.transactions.orphan(tx)),
                None => {
                    if let Some(decided) = self.transactions.decided_mut(tx) {
                        decided.is_urgent = true;
                    }
                }
            }
            effects.push(Effect::Transaction { tx });
        }
    }
}
