//! Transactions over several shards as one shard knows them (rule 26): parts that wait for their decision, and, in the shard that
//! decides, decisions that not everybody has heard. Rows of the checkpoint, too. What applying them does is in `deciding`.

use super::codec::{Reader, Writer};
use super::hash::StateHasher;
use super::shard::RestoreError;
use crate::model::entry::trimmed::Wanted;
use crate::model::entry::{EnqueueOp, SettleReason, Staged};
use crate::model::link::Ranges;
use crate::model::properties::Traits;
use crate::model::{Incarnation, NodeId, QueueId, Seq, ShardId, TxId};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// Messages that leave a queue.
pub type Leaving = (QueueId, SettleReason, Ranges);

/// A part that waits for the decision.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    /// Who decides.
    pub decider: ShardId,
    /// The other shards with a part; only the decider knows them.
    pub others: Vec<ShardId>,
    /// The edge that commits is gone: the decider is to be asked.
    pub is_orphan: bool,
    /// What the transaction holds until the decision, and how it leaves then; live messages only.
    pub leaving: Vec<Leaving>,
    /// The entry with the messages.
    pub(super) index: u64,
    /// Without their bodies.
    pub(super) messages: Vec<EnqueueOp>,
}

impl Prepared {
    /// Each message's queues, with the bytes of its body.
    fn targets(&self) -> impl Iterator<Item = (QueueId, u64)> + '_ {
        self.messages.iter().flat_map(|message| message.queues().map(|queue| (queue, u64::from(message.body_bytes()))))
    }

    /// All its messages, from the first one of each queue on.
    fn wanted(&self) -> Vec<Wanted> {
        let mut all: BTreeMap<QueueId, Wanted> = BTreeMap::new();
        for message in &self.messages {
            for queue in message.queues() {
                all.entry(queue).or_insert(Wanted { position: message.position as u32, queue, skip: 0, count: 0 }).count += 1;
            }
        }
        all.into_values().collect()
    }
}

/// A decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// Committed, or given up.
    pub is_commit: bool,
    /// Shards that have not been heard to know it.
    pub waiting: Vec<ShardId>,
    /// They are to be told by the leader: the edge is gone, or somebody asked.
    pub is_urgent: bool,
}

/// A shard's view of one.
#[derive(Clone, Debug, PartialEq)]
enum Row {
    Prepared(Prepared),
    Decided(Decided),
}

/// All of a shard.
#[derive(Clone, Debug, Default)]
pub(super) struct Transactions {
    rows: BTreeMap<TxId, Row>,
    dirty: BTreeSet<TxId>,
    stored: BTreeSet<TxId>,
    /// Messages that the parts bring to each queue, and the bytes of their bodies; counted, not stored.
    coming: BTreeMap<QueueId, (u64, u64)>,
}

impl Transactions {
    pub fn prepared(&self, tx: TxId) -> Option<&Prepared> {
        match self.rows.get(&tx)? {
            Row::Prepared(prepared) => Some(prepared),
            Row::Decided(_) => None,
        }
    }

    pub fn decided(&self, tx: TxId) -> Option<&Decided> {
        match self.rows.get(&tx)? {
            Row::Decided(decided) => Some(decided),
            Row::Prepared(_) => None,
        }
    }

    pub fn decided_mut(&mut self, tx: TxId) -> Option<&mut Decided> {
        match self.rows.get_mut(&tx)? {
            Row::Decided(decided) => {
                self.dirty.insert(tx);
                Some(decided)
            }
            Row::Prepared(_) => None,
        }
    }

    /// All ids, ascending.
    pub fn ids(&self) -> impl Iterator<Item = TxId> + '_ {
        self.rows.keys().copied()
    }

    /// Those of one process.
    pub fn of(&self, node: NodeId, incarnation: Incarnation) -> Vec<TxId> {
        let id = |number| TxId { node, incarnation, number };
        self.rows.range(id(0)..=id(u64::MAX)).map(|(tx, _)| *tx).collect()
    }

    /// Decisions against transactions of earlier processes of a node: those commit nothing any more.
    pub fn forget_earlier(&mut self, node: NodeId, incarnation: Incarnation) {
        let over = |(tx, row): (&TxId, &Row)| {
            let heard = matches!(row, Row::Decided(d) if !d.is_commit && d.waiting.is_empty());
            (tx.node == node && tx.incarnation != incarnation && heard).then_some(*tx)
        };
        let over: Vec<TxId> = self.rows.iter().filter_map(over).collect();
        over.into_iter().for_each(|tx| drop(self.remove(tx)));
    }

    pub fn prepare(&mut self, tx: TxId, prepared: Prepared) {
        self.dirty.insert(tx);
        self.count(&prepared);
        self.rows.insert(tx, Row::Prepared(prepared));
    }

    /// Messages that undecided parts bring to a queue, and the bytes of their bodies.
    pub fn coming(&self, queue: QueueId) -> (u64, u64) {
        self.coming.get(&queue).copied().unwrap_or_default()
    }

    fn count(&mut self, prepared: &Prepared) {
        for (queue, bytes) in prepared.targets() {
            let coming = self.coming.entry(queue).or_default();
            *coming = (coming.0 + 1, coming.1 + bytes);
        }
    }

    fn discount(&mut self, prepared: &Prepared) {
        for (queue, bytes) in prepared.targets() {
            if let Some(coming) = self.coming.get_mut(&queue) {
                *coming = (coming.0.saturating_sub(1), coming.1.saturating_sub(bytes));
                if coming.0 == 0 {
                    self.coming.remove(&queue);
                }
            }
        }
    }

    pub fn decide(&mut self, tx: TxId, decided: Decided) {
        self.dirty.insert(tx);
        self.rows.insert(tx, Row::Decided(decided));
    }

    /// A part leaves the table.
    pub fn take_prepared(&mut self, tx: TxId) -> Option<Prepared> {
        self.prepared(tx)?;
        match self.remove(tx)? {
            Row::Prepared(prepared) => {
                self.discount(&prepared);
                Some(prepared)
            }
            Row::Decided(_) => None,
        }
    }

    /// A decision is over.
    pub fn forget(&mut self, tx: TxId) {
        if self.decided(tx).is_some() {
            self.remove(tx);
        }
    }

    fn remove(&mut self, tx: TxId) -> Option<Row> {
        self.dirty.insert(tx);
        self.rows.remove(&tx)
    }

    /// The edge is gone. True when there was nobody to ask for it yet.
    pub fn orphan(&mut self, tx: TxId) -> bool {
        let Some(Row::Prepared(prepared)) = self.rows.get_mut(&tx) else { return false };
        self.dirty.insert(tx);
        !std::mem::replace(&mut prepared.is_orphan, true)
    }

    /// The log index of each part.
    pub fn indices(&self) -> impl Iterator<Item = u64> + '_ {
        self.rows.values().filter_map(|row| match row {
            Row::Prepared(prepared) => Some(prepared.index),
            Row::Decided(_) => None,
        })
    }

    /// The messages of each part: the log index, where they lie, their bytes.
    pub fn messages(&self) -> impl Iterator<Item = (u64, Vec<Wanted>, u64)> + '_ {
        self.rows.values().filter_map(|row| match row {
            Row::Prepared(prepared) => {
                let bytes = prepared.messages.iter().map(|message| u64::from(message.bytes())).sum();
                Some((prepared.index, prepared.wanted(), bytes))
            }
            Row::Decided(_) => None,
        })
    }

    /// Hands over what changed since the last call.
    pub fn take_changes(&mut self, mut put: impl FnMut(TxId, Vec<u8>), mut delete: impl FnMut(TxId)) {
        for tx in std::mem::take(&mut self.dirty) {
            match self.rows.get(&tx) {
                Some(row) => {
                    self.stored.insert(tx);
                    put(tx, encode(row));
                }
                None if self.stored.remove(&tx) => delete(tx),
                None => {}
            }
        }
    }

    /// All rows.
    pub fn export(&self, mut put: impl FnMut(TxId, Vec<u8>)) {
        self.rows.iter().for_each(|(tx, row)| put(*tx, encode(row)));
    }

    /// Puts a row back. `stored`: it came from the checkpoint that the next one builds on.
    pub fn import(&mut self, tx: TxId, value: &[u8], stored: bool) -> Result<(), RestoreError> {
        let row = decode(value)?;
        if let Row::Prepared(prepared) = &row {
            self.count(prepared);
        }
        self.rows.insert(tx, row);
        if stored {
            self.stored.insert(tx)
        } else {
            self.dirty.insert(tx)
        };
        Ok(())
    }

    /// Everything counts as changed and nothing as stored.
    pub fn forget_stored(&mut self) {
        self.stored.clear();
        self.dirty = self.rows.keys().copied().collect();
    }

    /// Folds into a state hash.
    pub fn hash(&self, hasher: &mut StateHasher) {
        for (tx, row) in &self.rows {
            [u64::from(tx.node.0), tx.incarnation.0, tx.number].into_iter().for_each(|word| hasher.word(word));
            hasher.bytes(&encode(row));
        }
    }
}

const PREPARED: u8 = 1;
const DECIDED: u8 = 2;

/// row      := 1 u8 | prepared, or 2 u8 | decided
/// prepared := decider u16 | shards | orphan u8 | index u64 | n u32 | message* | n u32 | leaving*
/// message  := position u32 | body bytes u32 | time to live ms u64 (`u64::MAX`: none) | priority u8 | len u32 | queue u64* | len u32 | message without body
/// leaving  := queue u64 | reason u8 | n u32 | (first u64, last u64)*
/// decided  := commit u8 | shards | urgent u8
/// shards   := n u16 | shard u16*
fn encode(row: &Row) -> Vec<u8> {
    let mut out = Writer::with_capacity(64);
    match row {
        Row::Prepared(prepared) => {
            out.u8(PREPARED);
            out.u16(prepared.decider.0);
            encode_shards(&prepared.others, &mut out);
            out.u8(prepared.is_orphan.into());
            out.u64(prepared.index);
            out.u32(prepared.messages.len() as u32);
            prepared.messages.iter().for_each(|message| encode_message(message, &mut out));
            out.u32(prepared.leaving.len() as u32);
            for (queue, reason, ranges) in &prepared.leaving {
                out.u64(queue.0);
                out.u8(*reason as u8);
                out.u32(ranges.len() as u32);
                ranges.iter().flat_map(|range| [range.0, range.1]).for_each(|seq| out.u64(seq.0));
            }
        }
        Row::Decided(decided) => {
            out.u8(DECIDED);
            out.u8(decided.is_commit.into());
            encode_shards(&decided.waiting, &mut out);
            out.u8(decided.is_urgent.into());
        }
    }
    out.finish()
}

fn encode_message(message: &EnqueueOp, out: &mut Writer) {
    out.u32(message.position as u32);
    out.u32(message.body_bytes());
    out.u64(message.traits.expiration_ms.unwrap_or(u64::MAX));
    out.u8(message.traits.priority);
    out.bytes(message.queue_bytes());
    out.bytes(&message.message);
}

fn encode_shards(shards: &[ShardId], out: &mut Writer) {
    out.u16(shards.len() as u16);
    shards.iter().for_each(|shard| out.u16(shard.0));
}

fn decode(value: &[u8]) -> Result<Row, RestoreError> {
    let mut input = Reader::new(value);
    let row = match input.u8()? {
        PREPARED => Row::Prepared(decode_prepared(&mut input)?),
        DECIDED => {
            let is_commit = input.u8()? != 0;
            let waiting = decode_shards(&mut input)?;
            Row::Decided(Decided { is_commit, waiting, is_urgent: input.u8()? != 0 })
        }
        _ => return Err(RestoreError::Malformed("kind of a transaction's row")),
    };
    input.end()?;
    Ok(row)
}

fn decode_prepared(input: &mut Reader<'_>) -> Result<Prepared, RestoreError> {
    let (decider, others) = (ShardId(input.u16()?), decode_shards(input)?);
    let (is_orphan, index) = (input.u8()? != 0, input.u64()?);
    let mut messages = Vec::new();
    for _ in 0..input.u32()? {
        let (position, body_bytes, ttl) = (input.u32()?, input.u32()?, input.u64()?);
        let traits = Traits { expiration_ms: (ttl != u64::MAX).then_some(ttl), priority: input.u8()? };
        let (queues, head) = (Bytes::copy_from_slice(input.bytes()?), Bytes::copy_from_slice(input.bytes()?));
        messages.push(EnqueueOp::unstage(position as usize, queues, traits, head, Staged { index, body_bytes }));
    }
    let mut leaving = Vec::new();
    for _ in 0..input.u32()? {
        let queue = QueueId(input.u64()?);
        let reason = SettleReason::from_byte(input.u8()?).ok_or(RestoreError::Malformed("reason of a settle"))?;
        let ranges = (0..input.u32()?).map(|_| Ok((Seq(input.u64()?), Seq(input.u64()?)))).collect::<Result<_, RestoreError>>()?;
        leaving.push((queue, reason, ranges));
    }
    Ok(Prepared { decider, others, is_orphan, index, messages, leaving })
}

fn decode_shards(input: &mut Reader<'_>) -> Result<Vec<ShardId>, RestoreError> {
    (0..input.u16()?).map(|_| input.u16().map(ShardId)).collect()
}
