//! `model::link` values as frames, several in one frame. Batches and deliveries carry their bodies as parts, uncopied; everything else
//! is rare and travels as MessagePack. Used by `paths`.

use super::transport::{Frame, PeerError};
use crate::model::link::{Batch, Deliveries, Delivery, ToEdge, ToLeader};
use crate::model::{BatchSeq, ConsumerId, LeaderId, QueueId, Seq, SessionId};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

const PACKED: u8 = 0;
const BATCH: u8 = 1;
const VERDICT: u8 = 2;
/// Flag of a delivery: how often it failed follows.
const HAS_FAILURES: u8 = 2;
const BAD: PeerError = PeerError::Malformed("link value");

/// A stream's first frame: which path it belongs to, and to which shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Made by the edge; both streams of a path carry the same.
    pub path: u64,
    /// The shard.
    pub shard: crate::model::ShardId,
}

impl Opening {
    /// As the first frame.
    pub fn write(self) -> Frame {
        let mut head = BytesMut::with_capacity(10);
        head.put_u64_le(self.path);
        head.put_u16_le(self.shard.0);
        Frame { head: head.freeze(), body: Vec::new() }
    }

    /// From the first frame.
    pub fn read(mut frame: Frame) -> Result<Opening, PeerError> {
        let path = frame.head.try_get_u64_le().map_err(|_| BAD)?;
        Ok(Opening { path, shard: crate::model::ShardId(frame.head.try_get_u16_le().map_err(|_| BAD)?) })
    }
}

fn pack(head: &mut BytesMut, value: &impl Serialize) {
    let bytes = rmp_serde::to_vec(value).expect("plain values always serialise");
    head.put_u8(PACKED);
    head.put_u32_le(bytes.len() as u32);
    head.put_slice(&bytes);
}

fn unpack<T: DeserializeOwned>(head: &mut Bytes) -> Result<T, PeerError> {
    let len = head.try_get_u32_le().map_err(|_| BAD)? as usize;
    if head.len() < len {
        return Err(BAD);
    }
    rmp_serde::from_slice(&head.split_to(len)).map_err(|_| BAD)
}

/// Edge to leader.
pub fn write_up(values: impl IntoIterator<Item = ToLeader>) -> Frame {
    let (mut head, mut body) = (BytesMut::with_capacity(64), Vec::new());
    for value in values {
        match value {
            ToLeader::Batch(batch) => {
                head.put_u8(BATCH);
                head.put_u64_le(batch.session.0);
                head.put_u64_le(batch.seq.0);
                head.put_u64_le(batch.floor.0);
                head.put_u64_le(batch.catalog_index);
                body.push(batch.ops);
            }
            other => pack(&mut head, &other),
        }
    }
    Frame { head: head.freeze(), body }
}

/// The inverse of `write_up`.
pub fn read_up(frame: Frame) -> Result<Vec<ToLeader>, PeerError> {
    let Frame { mut head, body } = frame;
    let (mut values, mut parts) = (Vec::new(), body.into_iter());
    while let Ok(kind) = head.try_get_u8() {
        values.push(match kind {
            PACKED => unpack(&mut head)?,
            BATCH if head.len() >= 32 => ToLeader::Batch(Batch {
                session: SessionId(head.get_u64_le()),
                seq: BatchSeq(head.get_u64_le()),
                floor: BatchSeq(head.get_u64_le()),
                catalog_index: head.get_u64_le(),
                ops: parts.next().ok_or(BAD)?,
            }),
            _ => return Err(BAD),
        });
    }
    Ok(values)
}

/// Leader to edge: verdicts and answers.
pub fn write_down(values: impl IntoIterator<Item = ToEdge>) -> Frame {
    let mut head = BytesMut::with_capacity(64);
    for value in values {
        match value {
            ToEdge::Verdict { seq, refused } if refused.is_empty() => {
                head.put_u8(VERDICT);
                head.put_u64_le(seq.0);
            }
            other => pack(&mut head, &other),
        }
    }
    Frame { head: head.freeze(), body: Vec::new() }
}

/// The inverse of `write_down`.
pub fn read_down(mut frame: Frame) -> Result<Vec<ToEdge>, PeerError> {
    let (mut values, head) = (Vec::new(), &mut frame.head);
    while let Ok(kind) = head.try_get_u8() {
        values.push(match kind {
            PACKED => unpack(head)?,
            VERDICT if head.len() >= 8 => ToEdge::Verdict { seq: BatchSeq(head.get_u64_le()), refused: Vec::new() },
            _ => return Err(BAD),
        });
    }
    Ok(values)
}

/// Leader to edge: messages, one body part each.
pub fn write_deliveries(values: impl IntoIterator<Item = Deliveries>) -> Frame {
    let (mut head, mut body) = (BytesMut::with_capacity(256), Vec::new());
    for deliveries in values {
        head.put_u64_le(deliveries.leader.term);
        head.put_u64_le(deliveries.leader.voter);
        head.put_u64_le(deliveries.consumer.0);
        head.put_u32_le(deliveries.messages.len() as u32);
        for message in deliveries.messages {
            head.put_u64_le(message.queue.0);
            head.put_u64_le(message.seq.0);
            head.put_u8(u8::from(message.redelivered) | if message.failures > 0 { HAS_FAILURES } else { 0 });
            if message.failures > 0 {
                head.put_u32_le(message.failures);
                head.put_u64_le(message.failed_ms);
            }
            body.push(message.message);
        }
    }
    Frame { head: head.freeze(), body }
}

/// The inverse of `write_deliveries`.
pub fn read_deliveries(frame: Frame) -> Result<Vec<Deliveries>, PeerError> {
    let Frame { mut head, body } = frame;
    let (mut values, mut parts) = (Vec::new(), body.into_iter());
    while !head.is_empty() {
        if head.len() < 28 {
            return Err(BAD);
        }
        let leader = LeaderId { term: head.get_u64_le(), voter: head.get_u64_le() };
        let (consumer, n) = (ConsumerId(head.get_u64_le()), head.get_u32_le() as usize);
        if head.len() < n.saturating_mul(17) {
            return Err(BAD);
        }
        let mut messages = Vec::with_capacity(n);
        for _ in 0..n {
            let (queue, seq) = (head.try_get_u64_le().map_err(|_| BAD)?, head.try_get_u64_le().map_err(|_| BAD)?);
            let (queue, seq) = (QueueId(queue), Seq(seq));
            let flags = head.try_get_u8().map_err(|_| BAD)?;
            let (failures, failed_ms) = match flags & HAS_FAILURES {
                0 => (0, 0),
                _ => (head.try_get_u32_le().map_err(|_| BAD)?, head.try_get_u64_le().map_err(|_| BAD)?),
            };
            let message = parts.next().ok_or(BAD)?;
            messages.push(Delivery { queue, seq, redelivered: flags & 1 != 0, failures, failed_ms, message });
        }
        values.push(Deliveries { leader, consumer, messages });
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::catalog::Refusal;
    use crate::model::link::{Attached, Consumer, QueueStat, RefusedEnqueue};
    use crate::model::{Incarnation, NodeId, ShardId};
    use proptest::prelude::*;

    fn consumer() -> Consumer {
        let (id, queue, tag) = (ConsumerId(4), QueueId(8), "ctag".to_string());
        Consumer { id, queue, no_ack: false, exclusive: true, prefetch: Some(3), window_bytes: 1 << 20, tag, priority: -3, order: 77 }
    }

    fn delivery(seq: u64, message: Vec<u8>) -> Delivery {
        Delivery {
            queue: QueueId(8),
            seq: Seq(seq),
            redelivered: seq.is_multiple_of(2),
            failures: (seq / 2) as u32,
            failed_ms: seq / 2 * 1000,
            message: message.into(),
        }
    }

    fn ups(ops: Vec<u8>) -> Vec<ToLeader> {
        let leader = LeaderId { term: 7, voter: 65537 };
        let attached = Attached { consumer: consumer(), unacked: vec![(Seq(1), Seq(9))], unwritten_bytes: 12 };
        let batch = Batch { session: SessionId(1), seq: BatchSeq(2), floor: BatchSeq(1), catalog_index: 77, ops: ops.into() };
        vec![
            ToLeader::Hello { node: NodeId(3), incarnation: Incarnation(u64::MAX) },
            ToLeader::Batch(batch.clone()),
            ToLeader::Attach {
                leader,
                consumers: vec![attached],
                asked: vec![consumer()],
                loose: vec![(QueueId(1), vec![(Seq(2), Seq(2))])],
            },
            ToLeader::Batch(Batch { seq: BatchSeq(3), ..batch }),
            ToLeader::Consume(consumer()),
            ToLeader::Cancel { consumer: ConsumerId(4) },
            ToLeader::Credit { consumer: ConsumerId(4), messages: 9, bytes: 1 << 40 },
            ToLeader::Prefetch { consumer: ConsumerId(4), limit: Some(6), held: 2 },
            ToLeader::Get { request: 5, queue: QueueId(8), no_ack: true },
            ToLeader::Return { queue: QueueId(8), ranges: vec![(Seq(1), Seq(1))], seen: false, failures: vec![] },
            ToLeader::Stat { request: 6, queues: vec![QueueId(1), QueueId(2)], used: true },
            ToLeader::Purge { request: 7, queue: QueueId(8) },
            ToLeader::Seal { request: 8, queue: QueueId(8), if_unused: true, if_empty: false },
            ToLeader::Take { request: 8, queue: QueueId(8), most: 16, alone: true, patient: false },
            ToLeader::Withdraw { request: 8, queue: QueueId(8) },
        ]
    }

    fn downs(message: Vec<u8>) -> Vec<ToEdge> {
        let refusal = Refusal::NotFound { kind: "queue".into(), name: "q".into(), vhost: "/".into() };
        vec![
            ToEdge::Welcome { leader: LeaderId { term: 7, voter: 1 }, session: SessionId(2), last: BatchSeq(0) },
            ToEdge::NotLeader,
            ToEdge::Verdict { seq: BatchSeq(9), refused: Vec::new() },
            ToEdge::Verdict { seq: BatchSeq(10), refused: vec![(0, RefusedEnqueue::UnknownQueue), (1, RefusedEnqueue::Full)] },
            ToEdge::Rewind { from: BatchSeq(11) },
            ToEdge::Consuming { consumer: ConsumerId(1), result: Err(refusal.clone()) },
            ToEdge::Cancelled { consumer: ConsumerId(1), asked: true },
            ToEdge::Got { request: 1, result: Ok(Some((delivery(3, message.clone()), 44))) },
            ToEdge::Took { request: 8, result: Ok(vec![delivery(4, message), delivery(5, Vec::new())]) },
            ToEdge::Got { request: 2, result: Ok(None) },
            ToEdge::Stats {
                request: 3,
                stats: vec![QueueStat {
                    queue: QueueId(1),
                    ready: 2,
                    unacked: 3,
                    bytes: 4,
                    unacked_bytes: 8,
                    consumers: 5,
                    active: Some((NodeId(6), ConsumerId(7))),
                }],
            },
            ToEdge::Purged { request: 4, result: Err(refusal) },
        ]
    }

    proptest! {
        #[test]
        fn values_survive_the_wire(bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..6)) {
            prop_assert_eq!(read_up(write_up(ups(bodies[0].clone()))).expect("up"), ups(bodies[0].clone()));
            prop_assert_eq!(read_down(write_down(downs(bodies[0].clone()))).expect("down"), downs(bodies[0].clone()));
            let messages: Vec<Delivery> = (1u64..).zip(bodies).map(|(seq, body)| delivery(seq, body)).collect();
            let one = Deliveries { leader: LeaderId { term: 2, voter: 3 }, consumer: ConsumerId(9), messages };
            let none = Deliveries { messages: Vec::new(), ..one.clone() };
            let all = vec![one.clone(), none, one];
            prop_assert_eq!(read_deliveries(write_deliveries(all.clone())).expect("deliveries"), all);
        }

        #[test]
        fn mutated_bytes_are_refused_without_panic(at in 0usize..400, byte: u8, cut in 0usize..400) {
            for frame in [write_up(ups(vec![1, 2, 3])), write_down(downs(vec![4])), write_deliveries([Deliveries { leader: LeaderId::default(), consumer: ConsumerId(1), messages: vec![delivery(1, vec![5])] }])] {
                let mut head = frame.head.to_vec();
                let len = head.len();
                head[at % len] = byte;
                head.truncate(len - cut % len);
                let mutated = Frame { head: head.into(), body: frame.body };
                let _ = (read_up(mutated.clone()), read_down(mutated.clone()), read_deliveries(mutated));
            }
        }
    }

    #[test]
    fn an_opening_survives_the_wire() {
        let opening = Opening { path: u64::MAX - 3, shard: ShardId(4) };
        assert_eq!(Opening::read(opening.write()), Ok(opening));
    }

    #[test]
    fn a_batch_is_carried_without_copying_its_operations() {
        let ops = Bytes::from(vec![7u8; 64]);
        let batch = Batch { session: SessionId(1), seq: BatchSeq(1), floor: BatchSeq(0), catalog_index: 0, ops: ops.clone() };
        let frame = write_up([ToLeader::Batch(batch)]);
        assert_eq!(frame.body[0].as_ptr(), ops.as_ptr());
    }
}
