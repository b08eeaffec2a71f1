//! The rejects of a batch: found, and taken out of it where messages are not the batch's to reject any more (rule 19). Written by `edge`
//! and `serving`; what a machine applies was looked through before.

use super::FRAME_HEAD;
use super::ops::{OP_PART, OP_SETTLE, Ops, SettleReason, read_ranges};
use super::parts::{claimed_by, skip_head};
use crate::model::QueueId;
use crate::model::link::Ranges;
use bytes::{Buf, Bytes};

/// Which of these ranges of a queue's messages are rejected all the same.
type Keep<'a> = dyn FnMut(QueueId, &Ranges) -> Ranges + 'a;

/// What a batch does to messages that are there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settling {
    /// It settles some, by itself or in a strict part, which may be all of its transaction.
    pub any: bool,
    /// It rejects some, in whatever way.
    pub rejects: bool,
}

impl Settling {
    /// Walks the heads of a batch's operations, once.
    pub fn of(mut ops: &[u8]) -> Settling {
        let mut found = Settling::default();
        while let Some((kind, body, rest)) = split(ops) {
            match kind {
                OP_SETTLE => {
                    found.any = true;
                    found.rejects |= body.first() == Some(&(SettleReason::Reject as u8));
                }
                OP_PART => {
                    let part = skip_head(body).map(Settling::of).unwrap_or_default();
                    found.any |= part.any && claimed_by(body).is_some();
                    found.rejects |= part.rejects;
                }
                _ => {}
            }
            ops = rest;
        }
        found
    }
}

/// The operations of a batch, and of its rejects only what `keep` gives back; `None` when that is all. Ordinals stay as they are.
pub fn keep_rejects(ops: &[u8], mut keep: impl FnMut(QueueId, &Ranges) -> Ranges) -> Option<Bytes> {
    let mut kept = Ops::with_capacity(ops.len());
    rewrite(ops, &mut keep, &mut kept).then(|| kept.take())
}

/// True when something is missing in `out`.
fn rewrite(mut ops: &[u8], keep: &mut Keep<'_>, out: &mut Ops) -> bool {
    let mut is_less = false;
    while let Some((kind, body, rest)) = split(ops) {
        let as_it_was = match kind {
            OP_SETTLE => keep_settle(body, keep, out),
            OP_PART => keep_part(body, keep, out),
            _ => true,
        };
        if as_it_was {
            out.buffer.extend_from_slice(&ops[..ops.len() - rest.len()]);
        }
        is_less |= !as_it_was;
        ops = rest;
    }
    is_less
}

/// True when it stays as it is; else what is left of it is in `out`.
fn keep_settle(body: &[u8], keep: &mut Keep<'_>, out: &mut Ops) -> bool {
    let Some((queue, ranges)) = read_reject(body) else { return true };
    let kept = keep(queue, &ranges);
    if kept == ranges {
        return true;
    }
    if !kept.is_empty() {
        out.settle(queue, SettleReason::Reject, &kept);
    }
    false
}

/// The same.
fn keep_part(body: &[u8], keep: &mut Keep<'_>, out: &mut Ops) -> bool {
    let Some(inner) = skip_head(body) else { return true };
    let mut part = Ops::default();
    if !rewrite(inner, keep, &mut part) {
        return true;
    }
    let head = &body[..body.len() - inner.len()];
    out.frame(OP_PART, head.len() + part.len());
    out.buffer.extend_from_slice(head);
    out.buffer.extend_from_slice(&part.buffer);
    false
}

fn read_reject(mut body: &[u8]) -> Option<(QueueId, Ranges)> {
    if body.try_get_u8().ok()? != SettleReason::Reject as u8 {
        return None;
    }
    let (queue, n) = (QueueId(body.try_get_u64_le().ok()?), body.try_get_u32_le().ok()? as usize);
    Some((queue, read_ranges(body, n)?))
}

/// The first operation's kind and body, and what follows it.
fn split(ops: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (head, rest) = ops.split_first_chunk::<FRAME_HEAD>()?;
    let len = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
    let (body, rest) = rest.split_at_checked(len)?;
    Some((head[0], body, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::entry::{EntryBytes, Op, OpsReader};
    use crate::model::{Incarnation, NodeId, Seq, ShardId, TxId};

    const Q: QueueId = QueueId(7);

    fn seqs(ranges: &[(u64, u64)]) -> Ranges {
        ranges.iter().map(|(first, last)| (Seq(*first), Seq(*last))).collect()
    }

    /// A message, an ack of 1, a reject of `ranges`; the same in a part; a last message.
    fn batch(ranges: &[(u64, u64)]) -> Bytes {
        let mut ops = Ops::default();
        let fill = |ops: &mut Ops, rejected: &[(u64, u64)]| {
            ops.enqueue(&[Q], b"", b"key", &[0, 0], b"body");
            ops.settle(Q, SettleReason::Ack, &seqs(&[(1, 1)]));
            if !rejected.is_empty() {
                ops.settle(Q, SettleReason::Reject, &seqs(rejected));
            }
        };
        fill(&mut ops, ranges);
        let start = ops.begin_part(TxId { node: NodeId(1), incarnation: Incarnation(2), number: 3 }, ShardId(4), &[ShardId(5)]);
        fill(&mut ops, ranges);
        ops.end_part(start);
        ops.enqueue(&[Q], b"", b"key", &[0, 0], b"last");
        ops.take()
    }

    #[test]
    fn only_rejects_are_taken_out_and_only_as_far_as_wanted() {
        let whole = batch(&[(2, 9), (12, 12)]);
        assert!(Settling::of(&whole).rejects && !Settling::of(&batch(&[])).rejects);
        assert_eq!(keep_rejects(&whole, |_, ranges| ranges.clone()), None);
        assert_eq!(keep_rejects(&batch(&[]), |_, _| panic!("there is none")), None);
        assert_eq!(keep_rejects(&whole, |queue, _| seqs(if queue == Q { &[(4, 5)] } else { &[] })), Some(batch(&[(4, 5)])));
        assert_eq!(keep_rejects(&whole, |_, _| Vec::new()), Some(batch(&[])));
    }

    #[test]
    fn a_reject_within_a_part_alone_is_found() {
        let mut ops = Ops::default();
        let start = ops.begin_part(TxId { node: NodeId(1), incarnation: Incarnation(2), number: 3 }, ShardId(4), &[]);
        ops.settle(Q, SettleReason::Reject, &seqs(&[(1, 1)]));
        ops.end_part(start);
        let ops = ops.take();
        assert_eq!(Settling::of(&ops), Settling { any: false, rejects: true });
        let kept = keep_rejects(&ops, |_, _| Vec::new()).expect("less");
        let Some(Ok(Op::Part(part))) = OpsReader::at(&EntryBytes::from(kept), 0).next() else { panic!("no part") };
        assert_eq!((part.decider, part.ops.count()), (ShardId(4), 0));
    }
}
