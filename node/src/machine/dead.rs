//! Dead letters of a data shard (rule 25): messages that left their queue unconsumed and are still to be put into other queues. They keep
//! their entry alive. First they are *routed*: queues of the same shard get their copy in the same entry, other shards are noted; each of
//! those is *done* when its shard has the copy. The number orders them; a target shard takes each source's numbers once, ascending.

use super::codec::{Reader, Writer};
use super::hash::StateHasher;
use super::queue::Located;
use super::shard::RestoreError;
use crate::model::entry::SettleReason;
use crate::model::{QueueId, Seq, ShardId};
use std::collections::{BTreeMap, BTreeSet};

/// A message on its way to where dead letters go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dead {
    /// The queue it left.
    pub queue: QueueId,
    /// Where it lies: one message.
    pub at: Located,
    /// Why it left.
    pub reason: SettleReason,
    /// When, ms since the epoch; of a replay: the number of the binding that it is for.
    pub time_ms: u64,
    /// Other shards that are still to get it, with the queues there; `None`: not routed yet.
    pub targets: Option<Vec<(ShardId, Vec<QueueId>)>>,
}

/// All of a shard, by number.
#[derive(Clone, Debug, Default)]
pub(super) struct DeadLetters {
    rows: BTreeMap<u64, Dead>,
    last: u64,
    /// The last number taken from each source shard.
    inlets: BTreeMap<ShardId, u64>,
    dirty: BTreeSet<u64>,
    stored: BTreeSet<u64>,
}

impl DeadLetters {
    /// One more.
    pub fn add(&mut self, dead: Dead) {
        self.last += 1;
        self.dirty.insert(self.last);
        self.rows.insert(self.last, dead);
    }

    /// From a number on.
    pub fn from(&self, number: u64) -> impl Iterator<Item = (u64, &Dead)> {
        self.rows.range(number..).map(|(number, dead)| (*number, dead))
    }

    /// How many.
    pub fn len(&self) -> u64 {
        self.rows.len() as u64
    }

    /// One.
    pub fn get(&self, number: u64) -> Option<&Dead> {
        self.rows.get(&number)
    }

    /// It goes to these other shards. `None`: it is not there or was routed before; else the log index that it lets go of, if any.
    pub fn route(&mut self, number: u64, targets: Vec<(ShardId, Vec<QueueId>)>) -> Option<Option<u64>> {
        let dead = self.rows.get_mut(&number).filter(|dead| dead.targets.is_none())?;
        dead.targets = Some(targets);
        self.dirty.insert(number);
        Some(self.end(number))
    }

    /// A shard has it. The log index that it lets go of, if any.
    pub fn done(&mut self, number: u64, shard: ShardId) -> Option<u64> {
        let targets = self.rows.get_mut(&number)?.targets.as_mut()?;
        targets.retain(|(of, _)| *of != shard);
        self.dirty.insert(number);
        self.end(number)
    }

    fn end(&mut self, number: u64) -> Option<u64> {
        let over = self.rows.get(&number).is_some_and(|dead| dead.targets.as_ref().is_some_and(Vec::is_empty));
        if over { self.rows.remove(&number).map(|dead| dead.at.index) } else { None }
    }

    /// The queue is gone, and its dead letters that are not routed yet with it. The log indices they let go of.
    pub fn queue_dropped(&mut self, queue: QueueId) -> Vec<u64> {
        let gone: Vec<u64> = self.rows.iter().filter(|(_, d)| d.queue == queue && d.targets.is_none()).map(|(n, _)| *n).collect();
        gone.into_iter().filter_map(|number| (self.dirty.insert(number), self.rows.remove(&number)).1.map(|d| d.at.index)).collect()
    }

    /// Whether a message with this number of another shard's is to be taken: each once.
    pub fn takes(&mut self, source: ShardId, number: u64) -> bool {
        let last = self.inlets.entry(source).or_default();
        let fresh = number > *last;
        *last = number.max(*last);
        fresh
    }

    /// The log index of each.
    pub fn indices(&self) -> impl Iterator<Item = u64> + '_ {
        self.rows.values().map(|dead| dead.at.index)
    }

    /// Hands over what changed since the last call.
    pub fn take_changes(&mut self, mut put: impl FnMut(u64, Vec<u8>), mut delete: impl FnMut(u64)) {
        for number in std::mem::take(&mut self.dirty) {
            match self.rows.get(&number) {
                Some(dead) => {
                    self.stored.insert(number);
                    put(number, encode(dead));
                }
                None if self.stored.remove(&number) => delete(number),
                None => {}
            }
        }
    }

    /// All rows.
    pub fn export(&self, mut put: impl FnMut(u64, Vec<u8>)) {
        self.rows.iter().for_each(|(number, dead)| put(*number, encode(dead)));
    }

    /// Puts a row back. `stored`: it came from the checkpoint that the next one builds on.
    pub fn import(&mut self, number: u64, value: &[u8], stored: bool) -> Result<(), RestoreError> {
        self.rows.insert(number, decode(value)?);
        if stored {
            self.stored.insert(number)
        } else {
            self.dirty.insert(number)
        };
        Ok(())
    }

    /// Everything counts as changed and nothing as stored.
    pub fn forget_stored(&mut self) {
        self.stored.clear();
        self.dirty = self.rows.keys().copied().collect();
    }

    /// meta := last number u64 | n u16 | (source shard u16, last taken u64)*
    pub fn encode_meta(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u64(self.last);
        out.u16(self.inlets.len() as u16);
        for (shard, last) in &self.inlets {
            out.u16(shard.0);
            out.u64(*last);
        }
        out.finish()
    }

    /// The way back.
    pub fn decode_meta(&mut self, value: &[u8]) -> Result<(), RestoreError> {
        let mut input = Reader::new(value);
        self.last = input.u64()?;
        for _ in 0..input.u16()? {
            self.inlets.insert(ShardId(input.u16()?), input.u64()?);
        }
        input.end()
    }

    /// Nothing was ever in it.
    pub fn is_untouched(&self) -> bool {
        self.last == 0 && self.inlets.is_empty()
    }

    /// Folds into a state hash.
    pub fn hash(&self, hasher: &mut StateHasher) {
        hasher.bytes(&self.encode_meta());
        for (number, dead) in &self.rows {
            hasher.word(*number);
            hasher.bytes(&encode(dead));
        }
    }
}

/// row := queue u64 | seq u64 | index u64 | position u32 | skip u32 | reason u8 | time_ms u64 | routed u8 | n u16 | (shard u16, n u32, queue u64*)*
fn encode(dead: &Dead) -> Vec<u8> {
    let mut out = Writer::with_capacity(64);
    out.u64(dead.queue.0);
    out.u64(dead.at.first.0);
    out.u64(dead.at.index);
    out.u32(dead.at.position);
    out.u32(dead.at.skip);
    out.u8(dead.reason as u8);
    out.u64(dead.time_ms);
    out.u8(dead.targets.is_some().into());
    let targets = dead.targets.as_deref().unwrap_or_default();
    out.u16(targets.len() as u16);
    for (shard, queues) in targets {
        out.u16(shard.0);
        out.u32(queues.len() as u32);
        queues.iter().for_each(|q| out.u64(q.0));
    }
    out.finish()
}

fn decode(value: &[u8]) -> Result<Dead, RestoreError> {
    let mut input = Reader::new(value);
    let (queue, first) = (QueueId(input.u64()?), Seq(input.u64()?));
    let (index, position, skip) = (input.u64()?, input.u32()?, input.u32()?);
    let reason = SettleReason::from_byte(input.u8()?).ok_or(RestoreError::Malformed("reason of a dead letter"))?;
    let (time_ms, routed) = (input.u64()?, input.u8()? != 0);
    let mut targets = Vec::new();
    for _ in 0..input.u16()? {
        let shard = ShardId(input.u16()?);
        let n = input.u32()?;
        targets.push((shard, (0..n).map(|_| input.u64().map(QueueId)).collect::<Result<_, _>>()?));
    }
    input.end()?;
    let at = Located { first, count: 1, index, position, skip, deadline_ms: 0 };
    Ok(Dead { queue, at, reason, time_ms, targets: routed.then_some(targets) })
}
