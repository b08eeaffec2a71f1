//! What a leader notes down of a queue, so that the next one knows: written, and marks (rule 22) read.

use super::Ops;
use super::ops::{OP_ACTIVATE, OP_MARK, OP_RETURN};
use crate::model::{ConsumerId, QueueId, Seq, SessionId};
use bytes::{Buf, BufMut, Bytes};

const CONSUMED: u8 = 1;
const EXCLUSIVE: u8 = 2;
const SEALED: u8 = 3;
/// A seal that asks for no tail.
const ANY: u64 = u64::MAX;

/// A note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// It has, or had, a consumer.
    Consumed,
    /// It has, or had, a consumer that is alone.
    Exclusive,
    /// It takes nothing any more and is to be deleted.
    Sealed {
        /// Only if no message came behind this one.
        tail: Option<Seq>,
    },
}

impl Ops {
    /// From now on only this consumer gets messages of the queue (rule 21).
    pub fn activate(&mut self, queue: QueueId, session: SessionId, consumer: ConsumerId) {
        self.frame(OP_ACTIVATE, 24);
        self.buffer.put_u64_le(queue.0);
        self.buffer.put_u64_le(session.0);
        self.buffer.put_u64_le(consumer.0);
    }

    /// The delivery of these messages failed, which had failed so often before: each counts once more, once for that delivery (rule 23).
    pub fn returned(&mut self, queue: QueueId, ranges: &[(Seq, Seq, u32)]) {
        self.frame(OP_RETURN, 12 + 20 * ranges.len());
        self.buffer.put_u64_le(queue.0);
        self.buffer.put_u32_le(ranges.len() as u32);
        for (first, last, before) in ranges {
            self.buffer.put_u64_le(first.0);
            self.buffer.put_u64_le(last.0);
            self.buffer.put_u32_le(*before);
        }
    }

    /// A queue is noted to be so.
    pub fn mark(&mut self, queue: QueueId, mark: Mark) {
        let (kind, tail) = match mark {
            Mark::Consumed => (CONSUMED, ANY),
            Mark::Exclusive => (EXCLUSIVE, ANY),
            Mark::Sealed { tail } => (SEALED, tail.map_or(ANY, |seq| seq.0)),
        };
        self.frame(OP_MARK, 17);
        self.buffer.put_u64_le(queue.0);
        self.buffer.put_u8(kind);
        self.buffer.put_u64_le(tail);
    }
}

pub(super) fn read_mark(mut body: Bytes) -> Option<(QueueId, Mark)> {
    let (queue, kind, tail) = (QueueId(body.try_get_u64_le().ok()?), body.try_get_u8().ok()?, body.try_get_u64_le().ok()?);
    let mark = match kind {
        CONSUMED => Mark::Consumed,
        EXCLUSIVE => Mark::Exclusive,
        SEALED => Mark::Sealed { tail: (tail != ANY).then_some(Seq(tail)) },
        _ => return None,
    };
    body.is_empty().then_some((queue, mark))
}
