//! A queue's replicated state in a data shard: how far it was filled, which messages are live and where they lie, what is reserved
//! for delivery and to whom. Called by `shard` (changes) and by `serving` (reads). Consumers and credit are not here.

use super::codec::{Reader, Writer};
use super::extents::{Extents, Taken};
use super::hash::StateHasher;
use super::shard::RestoreError;
use crate::model::entry::{EntryBytes, Op, OpsReader};
use crate::model::{QueueId, Seq, SessionId};
use bytes::Bytes;

/// A run of live messages and where their bodies lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Located {
    /// Seq of the first.
    pub first: Seq,
    /// How many.
    pub count: u32,
    /// Log index of the entry.
    pub index: u64,
    /// Position in the entry of an enqueue into this queue, from where `skip` counts.
    pub position: u32,
    /// Enqueues into this queue to pass over, from `position` on, before the first.
    pub skip: u32,
}

/// A queue.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    tail: u64,
    reserved: u64,
    holders: Vec<SessionId>,
    live: Taken,
    extents: Extents,
    /// Section in which the last extent may still grow; not state.
    open: u64,
    /// Entries whose effects name this queue already; not state.
    pub(super) enqueued_in: u64,
    pub(super) settled_in: u64,
    pub(super) reserved_in: u64,
    /// A checkpoint holds its row.
    pub(super) stored: bool,
}

/// A queue without its messages.
#[derive(Clone, Debug)]
pub(super) struct Row {
    tail: u64,
    reserved: u64,
    holders: Vec<SessionId>,
}

impl Row {
    /// row := tail u64 | reserved u64 | holders u16 | session u64*
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::with_capacity(18 + 8 * self.holders.len());
        out.u64(self.tail);
        out.u64(self.reserved);
        out.u16(self.holders.len() as u16);
        self.holders.iter().for_each(|s| out.u64(s.0));
        out.finish()
    }
}

impl Queue {
    /// The last seq given out; the first is 1, 0 = none yet.
    pub fn tail(&self) -> Seq {
        Seq(self.tail)
    }

    /// Messages that are not settled.
    pub fn live_count(&self) -> u64 {
        self.live.count
    }

    /// Stored bytes of live messages. A batch that is settled in part counts by its mean message.
    pub fn live_bytes(&self) -> u64 {
        self.live.bytes
    }

    /// Messages up to here may have been delivered (rule 18).
    pub fn reserved(&self) -> Seq {
        Seq(self.reserved)
    }

    /// Only these sessions may hold unsettled messages up to `reserved`.
    pub fn holders(&self) -> &[SessionId] {
        &self.holders
    }

    /// Appends the next live messages with seq >= `from`, in order, as runs, at most `max` messages in all.
    pub fn locate(&self, from: Seq, max: usize, out: &mut Vec<Located>) {
        self.extents.locate(from, max, out);
    }

    /// Whether the message is there and not settled.
    pub fn is_live(&self, seq: Seq) -> bool {
        self.extents.is_live(seq)
    }

    /// One more message; true when it began a new extent, which is a reference to the entry.
    pub(super) fn enqueue(&mut self, section: u64, index: u64, position: u32, bytes: u32) -> bool {
        let grown = self.open == section && self.extents.extend(Seq(self.tail), bytes);
        self.tail += 1;
        self.live.count += 1;
        self.live.bytes += u64::from(bytes);
        if !grown {
            self.open = section;
            self.extents.push(Seq(self.tail), index, position, bytes);
        }
        !grown
    }

    /// Messages leave; unknown ones are ignored. Log indices of extents that end go to `released`. True when any left.
    pub(super) fn settle(&mut self, first: Seq, last: Seq, released: &mut Vec<u64>) -> bool {
        let taken = self.extents.settle(first.0, last.0, released);
        self.live.count -= taken.count;
        self.live.bytes -= taken.bytes;
        taken.count > 0
    }

    pub(super) fn reserve(&mut self, up_to: Seq, sessions: Vec<SessionId>) {
        self.reserved = self.reserved.max(up_to.0);
        self.holders = sessions;
    }

    pub(super) fn extents(&self) -> &Extents {
        &self.extents
    }

    pub(super) fn extents_mut(&mut self) -> &mut Extents {
        &mut self.extents
    }

    /// What a checkpoint keeps of it beside the extents.
    pub(super) fn row(&self) -> Row {
        Row { tail: self.tail, reserved: self.reserved, holders: self.holders.clone() }
    }

    pub(super) fn decode_row(&mut self, value: &[u8]) -> Result<(), RestoreError> {
        let mut input = Reader::new(value);
        self.tail = input.u64()?;
        self.reserved = input.u64()?;
        let holders = input.u16()?;
        self.holders = (0..holders).map(|_| input.u64().map(SessionId)).collect::<Result<_, _>>()?;
        input.end()
    }

    /// After all rows and chunks are in: counts afresh what is not stored.
    pub(super) fn complete(&mut self) -> Result<(), RestoreError> {
        if !self.extents.is_sound() || self.extents.last() > self.tail {
            return Err(RestoreError::Malformed("extents out of order"));
        }
        self.live = self.extents.count();
        Ok(())
    }

    pub(super) fn hash(&self, hasher: &mut StateHasher) {
        hasher.word(self.tail);
        hasher.word(self.reserved);
        hasher.word(self.holders.len() as u64);
        self.holders.iter().for_each(|s| hasher.word(s.0));
        hasher.word(self.live.count);
        hasher.word(self.live.bytes);
        self.extents.hash(hasher);
    }
}

/// Reads the messages of a run out of its entry: slices, no copies. Gives fewer when the entry is not the one the run names.
pub fn read_run(entry: &EntryBytes, queue: QueueId, run: &Located, out: &mut Vec<(Seq, Bytes)>) {
    let (mut skip, mut next, end) = (run.skip, run.first.0, run.first.0 + u64::from(run.count));
    for op in OpsReader::at(entry, run.position as usize) {
        let Ok(Op::Enqueue(op)) = op else {
            if op.is_err() {
                return;
            }
            continue;
        };
        for _ in op.queues().filter(|q| *q == queue) {
            if skip > 0 {
                skip -= 1;
                continue;
            }
            if next == end {
                return;
            }
            out.push((Seq(next), op.message.clone()));
            next += 1;
        }
        if next == end {
            return;
        }
    }
}
