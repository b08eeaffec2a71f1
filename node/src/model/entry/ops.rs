//! Operations within an entry: the content of an edge's batch or of the leader's section, written and read. Bodies are only sliced.

use super::append::{AppendOp, is_sound};
use super::mark::{Mark, read_mark};
use super::parts::{PartOp, Word, read_part, read_word, skip_head};
use super::{EntryBytes, FRAME_HEAD, Malformed, StoredView};
use crate::model::letters::{Source, Targets};
use crate::model::link::Ranges;
use crate::model::properties::Traits;
use crate::model::{ConsumerId, Offset, QueueId, Seq, SessionId, ShardId, TxId};
use bytes::{Buf, BufMut, Bytes, BytesMut};

pub(super) const OP_ENQUEUE: u8 = 1;
/// Flag of an enqueue: the number of its queues is an u32, not an u16.
const MANY_QUEUES: u8 = 1;
/// Flag of an enqueue: its time to live follows.
const HAS_EXPIRATION: u8 = 2;
/// Flag of an enqueue: its priority follows.
const HAS_PRIORITY: u8 = 4;
/// Flag of an enqueue: a dead letter; its source follows.
const HAS_SOURCE: u8 = 8;
pub(super) const OP_SETTLE: u8 = 2;
const OP_RESERVE: u8 = 3;
const OP_TEND: u8 = 4;
pub(super) const OP_ACTIVATE: u8 = 5;
const OP_ROUTED: u8 = 6;
const OP_DONE: u8 = 7;
pub(super) const OP_RETURN: u8 = 8;
pub(super) const OP_APPEND: u8 = 9;
pub(super) const OP_STORE: u8 = 10;
pub(super) const OP_MARK: u8 = 11;
pub(super) const OP_PART: u8 = 16;
pub(super) const OP_WORD: u8 = 17;
/// Only in what is left of an entry (`trimmed`).
pub(super) const OP_GONE: u8 = 32;

/// Why messages leave a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum SettleReason {
    /// Acknowledged, or delivered without acknowledgement.
    Ack = 1,
    /// Rejected without requeue.
    Reject = 2,
    /// Purged.
    Purge = 3,
    /// Its time to live ended.
    Expired = 4,
    /// The queue was full.
    MaxLength = 5,
    /// Its delivery failed too often.
    DeliveryLimit = 6,
    /// It was delayed, and its time has come.
    Due = 7,
    /// It did not leave: a queue that was bound later gets a copy.
    Replay = 8,
    /// No message like it came before.
    First = 9,
}

impl SettleReason {
    /// The reason of this number.
    pub fn from_byte(byte: u8) -> Option<SettleReason> {
        let all = [
            Self::Ack,
            Self::Reject,
            Self::Purge,
            Self::Expired,
            Self::MaxLength,
            Self::DeliveryLimit,
            Self::Due,
            Self::Replay,
            Self::First,
        ];
        all.into_iter().find(|r| *r as u8 == byte)
    }
}

/// Builds operations: the content of a batch (edge) or of a leader section.
#[derive(Debug, Default)]
pub struct Ops {
    pub(super) buffer: BytesMut,
    /// Of enqueues, appends, parts and words: what may be refused.
    pub(super) ordinals: u32,
}

impl Ops {
    /// With room for `bytes`.
    pub fn with_capacity(bytes: usize) -> Ops {
        Ops { buffer: BytesMut::with_capacity(bytes), ordinals: 0 }
    }

    /// One message into `queues` (not empty, all of this shard). Returns its ordinal.
    pub fn enqueue(&mut self, queues: &[QueueId], exchange: &[u8], key: &[u8], properties: &[u8], body: &[u8]) -> u32 {
        self.enqueue_from(None, queues, (exchange, key, properties, body))
    }

    /// The same; `source`: a letter, each of its copies is taken once.
    pub fn enqueue_from(
        &mut self,
        source: Option<Source>,
        queues: &[QueueId],
        (exchange, key, properties, body): (&[u8], &[u8], &[u8], &[u8]),
    ) -> u32 {
        let message = 2 + exchange.len() + key.len() + 4 + properties.len() + body.len();
        self.enqueue_head(queues.len(), Traits::of(properties), source, message);
        queues.iter().for_each(|q| self.buffer.put_u64_le(q.0));
        self.buffer.put_u8(exchange.len() as u8);
        self.buffer.put_slice(exchange);
        self.buffer.put_u8(key.len() as u8);
        self.buffer.put_slice(key);
        self.buffer.put_u32_le(properties.len() as u32);
        self.buffer.put_slice(properties);
        self.buffer.put_slice(body);
        self.ordinals += 1;
        self.ordinals - 1
    }

    /// The place of a message that is not to be stored: it only has an ordinal, so that those behind it keep theirs.
    pub fn void(&mut self) {
        self.frame(OP_ENQUEUE, 3);
        self.buffer.put_slice(&[0; 3]);
        self.ordinals += 1;
    }

    /// head := flags u8 | queues u16 (u32 with `MANY_QUEUES`) | expiration ms u64? | priority u8? | (source shard u16, epoch u64, number u64)?
    fn enqueue_head(&mut self, queues: usize, traits: Traits, source: Option<Source>, message: usize) {
        let (mut flags, mut head) = (0, 3);
        if u16::try_from(queues).is_err() {
            (flags, head) = (MANY_QUEUES, 5);
        }
        if traits.expiration_ms.is_some() {
            (flags, head) = (flags | HAS_EXPIRATION, head + 8);
        }
        if traits.priority > 0 {
            (flags, head) = (flags | HAS_PRIORITY, head + 1);
        }
        if source.is_some() {
            (flags, head) = (flags | HAS_SOURCE, head + 18);
        }
        self.buffer.reserve(FRAME_HEAD + head + 8 * queues + message);
        self.frame(OP_ENQUEUE, head + 8 * queues + message);
        self.buffer.put_u8(flags);
        match u16::try_from(queues) {
            Ok(count) => self.buffer.put_u16_le(count),
            Err(_) => self.buffer.put_u32_le(queues as u32),
        }
        if let Some(ms) = traits.expiration_ms {
            self.buffer.put_u64_le(ms);
        }
        if traits.priority > 0 {
            self.buffer.put_u8(traits.priority);
        }
        if let Some(source) = source {
            self.buffer.put_u16_le(source.shard.0);
            self.buffer.put_u64_le(source.epoch);
            self.buffer.put_u64_le(source.number);
        }
    }

    /// What is due in a queue is done: messages whose time ended by `now_ms` leave from its front, then those beyond its limit. Those in
    /// `checked` are with consumers and stay; `room` more messages than the limit may wait, consumers take them at once. Also the
    /// basis for the enqueues that follow in the same entry (rule 24).
    pub fn tend(&mut self, queue: QueueId, now_ms: u64, room: u32, checked: &[(Seq, Seq)]) {
        self.frame(OP_TEND, 24 + 16 * checked.len());
        self.buffer.put_u64_le(queue.0);
        self.buffer.put_u64_le(now_ms);
        self.buffer.put_u32_le(room);
        self.buffer.put_u32_le(checked.len() as u32);
        self.put_ranges(checked);
    }

    /// The first waiting letters of a queue have their way (rule 25): the machine gives their copies numbers. It counts only in a shard
    /// that follows the catalog to `catalog_index`, and for the first ones, of one run.
    pub fn routed(&mut self, (queue, number, count): (QueueId, u64, u32), catalog_index: u64, targets: &[(ShardId, Vec<QueueId>)]) {
        let len = targets.iter().map(|(_, queues)| 6 + 8 * queues.len()).sum::<usize>();
        self.frame(OP_ROUTED, 30 + len);
        self.buffer.put_u64_le(queue.0);
        self.buffer.put_u64_le(number);
        self.buffer.put_u32_le(count);
        self.buffer.put_u64_le(catalog_index);
        self.buffer.put_u16_le(targets.len() as u16);
        for (shard, queues) in targets {
            self.buffer.put_u16_le(shard.0);
            self.buffer.put_u32_le(queues.len() as u32);
            queues.iter().for_each(|q| self.buffer.put_u64_le(q.0));
        }
    }

    /// A shard has these dead letters.
    pub fn done(&mut self, (first, last): (u64, u64), shard: ShardId) {
        self.frame(OP_DONE, 18);
        self.buffer.put_u64_le(first);
        self.buffer.put_u64_le(last);
        self.buffer.put_u16_le(shard.0);
    }

    fn put_ranges(&mut self, ranges: &[(Seq, Seq)]) {
        for (first, last) in ranges {
            self.buffer.put_u64_le(first.0);
            self.buffer.put_u64_le(last.0);
        }
    }

    /// Messages leave a queue.
    pub fn settle(&mut self, queue: QueueId, reason: SettleReason, ranges: &[(Seq, Seq)]) {
        self.frame(OP_SETTLE, 13 + 16 * ranges.len());
        self.buffer.put_u8(reason as u8);
        self.buffer.put_u64_le(queue.0);
        self.buffer.put_u32_le(ranges.len() as u32);
        self.put_ranges(ranges);
    }

    /// Messages up to `up_to` may be delivered, to these sessions only.
    pub fn reserve(&mut self, queue: QueueId, up_to: Seq, sessions: &[SessionId]) {
        self.frame(OP_RESERVE, 18 + 8 * sessions.len());
        self.buffer.put_u64_le(queue.0);
        self.buffer.put_u64_le(up_to.0);
        self.buffer.put_u16_le(sessions.len() as u16);
        sessions.iter().for_each(|s| self.buffer.put_u64_le(s.0));
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Nothing yet.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Ordinals given out so far.
    pub fn ordinals(&self) -> u32 {
        self.ordinals
    }

    /// Take the bytes; the builder starts anew.
    pub fn take(&mut self) -> Bytes {
        self.ordinals = 0;
        self.buffer.split().freeze()
    }

    pub(super) fn frame(&mut self, kind: u8, len: usize) {
        self.buffer.put_u8(kind);
        self.buffer.put_u32_le(len as u32);
    }
}

/// Walks operations that lie in one part of an entry; cheap to clone.
#[derive(Clone, Debug, PartialEq)]
pub struct OpsReader {
    bytes: Bytes,
    position: usize,
}

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// A message into queues.
    Enqueue(EnqueueOp),
    /// Messages leave.
    Settle {
        /// Whose.
        queue: QueueId,
        /// Why.
        reason: SettleReason,
        /// Which.
        ranges: Ranges,
    },
    /// May be delivered.
    Reserve {
        /// Whose.
        queue: QueueId,
        /// Up to and with.
        up_to: Seq,
        /// To whom.
        sessions: Vec<SessionId>,
    },
    /// What is due is done.
    Tend {
        /// Where.
        queue: QueueId,
        /// The leader's time.
        now_ms: u64,
        /// Messages that consumers take at once.
        room: u32,
        /// With consumers.
        checked: Ranges,
    },
    /// Letters have their way.
    Routed {
        /// The queue it left.
        queue: QueueId,
        /// Number of the first.
        number: u64,
        /// How many, side by side.
        count: u32,
        /// Routed by.
        catalog_index: u64,
        /// The queues that get it.
        targets: Targets,
    },
    /// A shard has dead letters.
    Done {
        /// Number of the first.
        first: u64,
        /// Number of the last.
        last: u64,
        /// Which shard.
        shard: ShardId,
    },
    /// The delivery of messages failed.
    Return {
        /// Of which queue.
        queue: QueueId,
        /// Which, and how often they had failed before.
        ranges: Vec<(Seq, Seq, u32)>,
    },
    /// A chunk comes to a stream.
    Append(AppendOp),
    /// A reader of a stream is this far.
    Store {
        /// Of which stream.
        stream: QueueId,
        /// The name that it gave itself, UTF-8.
        reader: Bytes,
        /// How far.
        offset: Offset,
    },
    /// A part of a transaction.
    Part(PartOp),
    /// Something is said of a transaction.
    Word {
        /// Which.
        tx: TxId,
        /// What.
        word: Word,
    },
    /// Something is noted of a queue.
    Mark {
        /// Of which.
        queue: QueueId,
        /// What.
        mark: Mark,
    },
    /// What was here is gone from its queues: so many messages of each. In no entry that is applied.
    Gone(Vec<(QueueId, u32)>),
    /// Only this consumer gets messages.
    Activate {
        /// Of which queue.
        queue: QueueId,
        /// The consumer's edge.
        session: SessionId,
        /// The consumer.
        consumer: ConsumerId,
    },
}

/// A message into queues; parsed lazily, nothing is copied.
#[derive(Clone, Debug, PartialEq)]
pub struct EnqueueOp {
    /// Position of the operation in the entry: what an extent remembers.
    pub position: usize,
    queues: Bytes,
    /// What the message asks for.
    pub traits: Traits,
    /// It is a letter of that shard.
    pub source: Option<Source>,
    /// The stored message.
    pub message: Bytes,
    /// It waited in a part of a transaction.
    pub staged: Option<Staged>,
}

/// Where a message is that waited in a part of a transaction, and what of it the machine did not keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Staged {
    /// The entry that it lies in.
    pub index: u64,
    /// Bytes of its body, which are not in `message`.
    pub body_bytes: u32,
}

impl EnqueueOp {
    /// Without its body, as a machine keeps it that holds the entry at `index`.
    pub fn stage(&self, index: u64) -> EnqueueOp {
        let body_bytes = self.body_bytes();
        let head = &self.message[..self.message.len() - body_bytes as usize];
        EnqueueOp {
            queues: Bytes::copy_from_slice(&self.queues),
            message: Bytes::copy_from_slice(head),
            staged: Some(Staged { index, body_bytes }),
            ..*self
        }
    }

    /// One that was kept so.
    pub fn unstage(position: usize, queues: Bytes, traits: Traits, head: Bytes, staged: Staged) -> EnqueueOp {
        EnqueueOp { position, queues, traits, source: None, message: head, staged: Some(staged) }
    }

    /// Bytes of it as it is stored.
    pub fn bytes(&self) -> u32 {
        self.message.len() as u32 + self.staged.map_or(0, |staged| staged.body_bytes)
    }

    /// Its queues as they are written.
    pub fn queue_bytes(&self) -> &[u8] {
        &self.queues
    }

    /// It stands for a message that is not stored (`Ops::void`).
    pub fn is_void(&self) -> bool {
        self.queues.is_empty()
    }

    /// Bytes of its body.
    pub fn body_bytes(&self) -> u32 {
        if let Some(staged) = self.staged {
            return staged.body_bytes;
        }
        StoredView::parse(&self.message).map_or(0, |view| (self.message.len() - view.body_at) as u32)
    }

    /// The queues it goes to.
    pub fn queues(&self) -> impl Iterator<Item = QueueId> + Clone + '_ {
        self.queues.chunks_exact(8).map(|mut c| QueueId(c.get_u64_le()))
    }
}

impl OpsReader {
    pub(super) fn new(entry: &EntryBytes, start: usize, end: usize) -> Result<OpsReader, Malformed> {
        let bytes = match entry.tail(start) {
            Some(tail) if tail.len() >= end - start => tail.slice(..end - start),
            None if start == end => Bytes::new(),
            _ if start == end => Bytes::new(),
            _ => {
                return Err(Malformed { position: start, why: "operations across parts" });
            }
        };
        Ok(OpsReader { bytes, position: start })
    }

    pub(super) fn over(bytes: Bytes, position: usize) -> OpsReader {
        OpsReader { bytes, position }
    }

    /// Position of the next operation.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Operations from the position of one (an extent's first) to the end of the part that holds it. The caller stops after its count.
    pub fn at(entry: &EntryBytes, position: usize) -> OpsReader {
        OpsReader { bytes: entry.tail(position).unwrap_or_default(), position }
    }
}

impl Iterator for OpsReader {
    type Item = Result<Op, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.bytes.is_empty() {
            return None;
        }
        let position = self.position;
        let bad = |why| Some(Err(Malformed { position, why }));
        if self.bytes.len() < FRAME_HEAD {
            return bad("operation head");
        }
        let kind = self.bytes.get_u8();
        let len = self.bytes.get_u32_le() as usize;
        if self.bytes.len() < len {
            return bad("operation longer than its section");
        }
        let body = self.bytes.split_to(len);
        self.position += FRAME_HEAD + len;
        Some(read_op(kind, body, position).ok_or(Malformed { position, why: "operation" }))
    }
}

/// The queues that a batch's enqueues go to, once for each message, those of its parts of transactions too: they bring nothing yet, but
/// are taken or refused now. Walks the heads of operations only.
pub fn each_target(mut ops: &[u8], each: &mut impl FnMut(QueueId)) {
    while let Some((head, rest)) = ops.split_first_chunk::<FRAME_HEAD>() {
        let len = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let Some((mut body, rest)) = rest.split_at_checked(len) else { return };
        ops = rest;
        match head[0] {
            OP_ENQUEUE => {
                let Some((n, ..)) = read_enqueue_head(&mut body) else { return };
                body.chunks_exact(8).take(n).for_each(|mut c| each(QueueId(c.get_u64_le())));
            }
            OP_PART => {
                let Some(part) = skip_head(body) else { return };
                each_target(part, each);
            }
            _ => {}
        }
    }
}

/// The queues of an enqueue, by its body.
pub(super) fn enqueued_to(mut body: &[u8]) -> Option<impl Iterator<Item = QueueId> + '_> {
    let (n, ..) = read_enqueue_head(&mut body)?;
    let queues = body.get(..n.checked_mul(8)?)?;
    Some(queues.chunks_exact(8).map(|mut c| QueueId(c.get_u64_le())))
}

/// Whether these are operations as an edge may send them: an entry that a machine cannot read would stop the shard everywhere.
/// Walks the heads and copies nothing.
pub fn is_batch(mut ops: &[u8]) -> bool {
    while !ops.is_empty() {
        let Some((head, rest)) = ops.split_first_chunk::<FRAME_HEAD>() else { return false };
        let len = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let Some((body, rest)) = rest.split_at_checked(len) else { return false };
        if !is_edge_op(head[0], body).unwrap_or(false) {
            return false;
        }
        ops = rest;
    }
    true
}

fn is_edge_op(kind: u8, mut body: &[u8]) -> Option<bool> {
    match kind {
        OP_PART => {
            let ops = skip_head(body)?;
            Some(is_batch(ops) && kinds(ops).all(|kind| matches!(kind, OP_ENQUEUE | OP_SETTLE)))
        }
        OP_WORD => Some(read_word(&mut body)?.1.is_edges()),
        OP_APPEND => Some(is_sound(body)),
        OP_STORE => Some(std::str::from_utf8(body.get(16..)?).is_ok()),
        OP_ENQUEUE => {
            let (queues, ..) = read_enqueue_head(&mut body)?;
            let message = body.get(queues.checked_mul(8)?..)?;
            Some(if queues > 0 { StoredView::parse(message).is_some() } else { message.is_empty() })
        }
        OP_SETTLE => {
            let reason = SettleReason::from_byte(body.try_get_u8().ok()?);
            let (_queue, ranges) = (body.try_get_u64_le().ok()?, body.try_get_u32_le().ok()? as usize);
            Some(reason.is_some() && body.len() == ranges.checked_mul(16)?)
        }
        _ => None,
    }
}

/// The kinds of operations; up to the first malformed one.
fn kinds(mut ops: &[u8]) -> impl Iterator<Item = u8> {
    std::iter::from_fn(move || {
        let (head, rest) = ops.split_first_chunk::<FRAME_HEAD>()?;
        ops = rest.get(u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize..)?;
        Some(head[0])
    })
}

/// Takes the head off: the number of queues, what the message asks for, where it died.
fn read_enqueue_head(body: &mut impl Buf) -> Option<(usize, Traits, Option<Source>)> {
    let flags = body.try_get_u8().ok()?;
    let queues = match flags & MANY_QUEUES {
        0 => usize::from(body.try_get_u16_le().ok()?),
        _ => body.try_get_u32_le().ok()? as usize,
    };
    let mut traits = Traits::default();
    if flags & HAS_EXPIRATION != 0 {
        traits.expiration_ms = Some(body.try_get_u64_le().ok()?);
    }
    if flags & HAS_PRIORITY != 0 {
        traits.priority = body.try_get_u8().ok()?;
    }
    let mut source = None;
    if flags & HAS_SOURCE != 0 {
        let shard = ShardId(body.try_get_u16_le().ok()?);
        source = Some(Source { shard, epoch: body.try_get_u64_le().ok()?, number: body.try_get_u64_le().ok()? });
    }
    Some((queues, traits, source))
}

fn read_routed(mut body: Bytes) -> Option<Op> {
    let (queue, number) = (QueueId(body.try_get_u64_le().ok()?), body.try_get_u64_le().ok()?);
    let (count, catalog_index) = (body.try_get_u32_le().ok()?, body.try_get_u64_le().ok()?);
    let mut targets = Vec::new();
    for _ in 0..body.try_get_u16_le().ok()? {
        let (shard, n) = (ShardId(body.try_get_u16_le().ok()?), body.try_get_u32_le().ok()? as usize);
        if body.len() < n.checked_mul(8)? {
            return None;
        }
        targets.push((shard, (0..n).map(|_| QueueId(body.get_u64_le())).collect()));
    }
    body.is_empty().then_some(Op::Routed { queue, number, count, catalog_index, targets })
}

pub(super) fn read_ranges(body: &[u8], n: usize) -> Option<Ranges> {
    let ranges = body.chunks_exact(16).take(n).map(|mut c| (Seq(c.get_u64_le()), Seq(c.get_u64_le())));
    (body.len() == n.checked_mul(16)?).then(|| ranges.collect())
}

fn read_op(kind: u8, mut body: Bytes, position: usize) -> Option<Op> {
    match kind {
        OP_ENQUEUE => {
            let (n, traits, source) = read_enqueue_head(&mut body)?;
            if body.len() < n.checked_mul(8)? {
                return None;
            }
            let queues = body.split_to(n * 8);
            Some(Op::Enqueue(EnqueueOp { position, queues, traits, source, message: body, staged: None }))
        }
        OP_SETTLE => {
            let reason = SettleReason::from_byte(body.try_get_u8().ok()?)?;
            let (queue, n) = (QueueId(body.try_get_u64_le().ok()?), body.try_get_u32_le().ok()? as usize);
            Some(Op::Settle { queue, reason, ranges: read_ranges(&body, n)? })
        }
        OP_TEND => {
            let (queue, now_ms) = (QueueId(body.try_get_u64_le().ok()?), body.try_get_u64_le().ok()?);
            let (room, n) = (body.try_get_u32_le().ok()?, body.try_get_u32_le().ok()? as usize);
            Some(Op::Tend { queue, now_ms, room, checked: read_ranges(&body, n)? })
        }
        OP_ROUTED => read_routed(body),
        OP_APPEND => AppendOp::read(body, position).map(Op::Append),
        OP_STORE => {
            let (stream, offset) = (QueueId(body.try_get_u64_le().ok()?), Offset(body.try_get_u64_le().ok()?));
            Some(Op::Store { stream, reader: body, offset })
        }
        OP_PART => read_part(body, position + FRAME_HEAD).map(Op::Part),
        OP_WORD => read_word(&mut body).map(|(tx, word)| Op::Word { tx, word }),
        OP_MARK => read_mark(body).map(|(queue, mark)| Op::Mark { queue, mark }),
        OP_GONE => super::trimmed::gone(&body).map(Op::Gone),
        OP_DONE => Some(Op::Done {
            first: body.try_get_u64_le().ok()?,
            last: body.try_get_u64_le().ok()?,
            shard: ShardId(body.try_get_u16_le().ok()?),
        }),
        OP_RETURN => {
            let (queue, n) = (QueueId(body.try_get_u64_le().ok()?), body.try_get_u32_le().ok()? as usize);
            let range = |mut c: &[u8]| (Seq(c.get_u64_le()), Seq(c.get_u64_le()), c.get_u32_le());
            (body.len() == n.checked_mul(20)?).then(|| Op::Return { queue, ranges: body.chunks_exact(20).map(range).collect() })
        }
        OP_ACTIVATE => Some(Op::Activate {
            queue: QueueId(body.try_get_u64_le().ok()?),
            session: SessionId(body.try_get_u64_le().ok()?),
            consumer: ConsumerId(body.try_get_u64_le().ok()?),
        }),
        OP_RESERVE => {
            let (queue, up_to) = (QueueId(body.try_get_u64_le().ok()?), Seq(body.try_get_u64_le().ok()?));
            let n = body.try_get_u16_le().ok()? as usize;
            let sessions = body.chunks_exact(8).map(|mut c| SessionId(c.get_u64_le()));
            (body.len() == n * 8).then(|| Op::Reserve { queue, up_to, sessions: sessions.collect() })
        }
        _ => None,
    }
}
