//! The bytes of a data shard's log entry: what `edge` writes, `serving` joins, `machine` applies and deliveries read back.
//! Picture in docs/formats.md. Little endian. A body is written once, at the edge, and only sliced from then on.
//!
//! entry   := version u8 | time_ms u64 | section*
//! section := kind u8 | len u32 | body(len)
//! op      := kind u8 | len u32 | body(len)

use super::link::{Batch, Ranges, RefusedEnqueue};
use super::{BatchSeq, Incarnation, NodeId, QueueId, Seq, SessionId};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use smallvec::SmallVec;

/// First byte of every entry.
pub const VERSION: u8 = 1;
const ENTRY_HEAD: usize = 9;
const FRAME_HEAD: usize = 5;
const BATCH_HEAD: usize = 32;

const SECTION_BATCH: u8 = 1;
const SECTION_LEADER: u8 = 2;
const SECTION_HELLO: u8 = 3;
const SECTION_GONE: u8 = 4;
const SECTION_ADVANCE: u8 = 5;
const OP_ENQUEUE: u8 = 1;
/// Flag of an enqueue: the number of its queues is an u32, not an u16.
const MANY_QUEUES: u8 = 1;
const OP_SETTLE: u8 = 2;
const OP_RESERVE: u8 = 3;

/// Bytes that are not an entry: a bug or a newer version, never a torn write (the log's CRC covers those).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed entry at byte {position}: {why}")]
pub struct Malformed {
    /// Where.
    pub position: usize,
    /// What.
    pub why: &'static str,
}

/// An entry as a rope: parts that came from different edges are never copied together. Positions count over all parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntryBytes {
    parts: SmallVec<[Bytes; 3]>,
    len: usize,
}

impl EntryBytes {
    /// All parts, in order.
    pub fn parts(&self) -> &[Bytes] {
        &self.parts
    }

    /// Bytes in total.
    pub fn len(&self) -> usize {
        self.len
    }

    /// No bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Append a part.
    pub fn push(&mut self, part: Bytes) {
        self.len += part.len();
        if !part.is_empty() {
            self.parts.push(part);
        }
    }

    /// The part that holds `position`, from there to the part's end.
    pub fn tail(&self, position: usize) -> Option<Bytes> {
        let mut at = position;
        for part in &self.parts {
            if at < part.len() {
                return Some(part.slice(at..));
            }
            at -= part.len();
        }
        None
    }

    /// All in one piece (copies when there are several parts).
    pub fn flatten(&self) -> Bytes {
        match self.parts.as_slice() {
            [] => Bytes::new(),
            [one] => one.clone(),
            many => {
                let mut all = BytesMut::with_capacity(self.len);
                many.iter().for_each(|p| all.extend_from_slice(p));
                all.freeze()
            }
        }
    }

    fn locate(&self, position: usize) -> Option<(&Bytes, usize)> {
        let mut at = position;
        for part in &self.parts {
            if at < part.len() {
                return Some((part, at));
            }
            at -= part.len();
        }
        None
    }
}

impl From<Bytes> for EntryBytes {
    fn from(bytes: Bytes) -> EntryBytes {
        let mut rope = EntryBytes::default();
        rope.push(bytes);
        rope
    }
}

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
}

impl SettleReason {
    fn from_byte(byte: u8) -> Option<SettleReason> {
        [Self::Ack, Self::Reject, Self::Purge, Self::Expired, Self::MaxLength].into_iter().find(|r| *r as u8 == byte)
    }
}

/// Builds an entry out of sections.
#[derive(Debug)]
pub struct EntryBuilder {
    rope: EntryBytes,
    head: BytesMut,
}

impl EntryBuilder {
    /// An entry stamped with the leader's time (ms since the epoch, never going back).
    pub fn new(time_ms: u64) -> EntryBuilder {
        let mut head = BytesMut::with_capacity(128);
        head.put_u8(VERSION);
        head.put_u64_le(time_ms);
        EntryBuilder { rope: EntryBytes::default(), head }
    }

    /// An edge's batch; its operations become a part of their own, uncopied.
    pub fn batch(&mut self, batch: &Batch) {
        self.section(SECTION_BATCH, BATCH_HEAD + batch.ops.len());
        self.head.put_u64_le(batch.session.0);
        self.head.put_u64_le(batch.seq.0);
        self.head.put_u64_le(batch.floor.0);
        self.head.put_u64_le(batch.catalog_index);
        self.rope.push(self.head.split().freeze());
        self.rope.push(batch.ops.clone());
    }

    /// The leader's own operations (`Ops::settle`, `Ops::reserve`).
    pub fn leader_ops(&mut self, ops: &[u8]) {
        self.section(SECTION_LEADER, ops.len());
        self.head.put_slice(ops);
    }

    /// A session for this process of an edge; its id is the entry's index. At most one per entry.
    pub fn hello(&mut self, node: NodeId, incarnation: Incarnation) {
        self.section(SECTION_HELLO, 10);
        self.head.put_u16_le(node.0);
        self.head.put_u64_le(incarnation.0);
    }

    /// The session's edge is gone (rule 18).
    pub fn gone(&mut self, session: SessionId) {
        self.section(SECTION_GONE, 8);
        self.head.put_u64_le(session.0);
    }

    /// The shard follows the catalog from index `from` to `to` (rule 27).
    pub fn advance(&mut self, from: u64, to: u64, creates: &[QueueId], drops: &[QueueId]) {
        self.section(SECTION_ADVANCE, 24 + 8 * (creates.len() + drops.len()));
        self.head.put_u64_le(from);
        self.head.put_u64_le(to);
        self.head.put_u32_le(creates.len() as u32);
        self.head.put_u32_le(drops.len() as u32);
        creates.iter().chain(drops).for_each(|q| self.head.put_u64_le(q.0));
    }

    /// The entry.
    pub fn finish(mut self) -> EntryBytes {
        self.rope.push(self.head.freeze());
        self.rope
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.rope.len() + self.head.len()
    }

    /// No section yet.
    pub fn is_empty(&self) -> bool {
        self.len() == ENTRY_HEAD
    }

    fn section(&mut self, kind: u8, len: usize) {
        self.head.put_u8(kind);
        self.head.put_u32_le(len as u32);
    }
}

/// Builds operations: the content of a batch (edge) or of a leader section.
#[derive(Debug, Default)]
pub struct Ops {
    buffer: BytesMut,
    enqueues: u32,
}

impl Ops {
    /// With room for `bytes`.
    pub fn with_capacity(bytes: usize) -> Ops {
        Ops { buffer: BytesMut::with_capacity(bytes), enqueues: 0 }
    }

    /// One message into `queues` (not empty, all of this shard). Returns its ordinal among the batch's enqueues.
    pub fn enqueue(&mut self, queues: &[QueueId], exchange: &[u8], key: &[u8], properties: &[u8], body: &[u8]) -> u32 {
        let message = 2 + exchange.len() + key.len() + 4 + properties.len() + body.len();
        let count = u16::try_from(queues.len());
        let head = if count.is_ok() { 3 } else { 5 };
        self.buffer.reserve(FRAME_HEAD + head + 8 * queues.len() + message);
        self.frame(OP_ENQUEUE, head + 8 * queues.len() + message);
        match count {
            Ok(count) => {
                self.buffer.put_u8(0);
                self.buffer.put_u16_le(count);
            }
            Err(_) => {
                self.buffer.put_u8(MANY_QUEUES);
                self.buffer.put_u32_le(queues.len() as u32);
            }
        }
        queues.iter().for_each(|q| self.buffer.put_u64_le(q.0));
        self.buffer.put_u8(exchange.len() as u8);
        self.buffer.put_slice(exchange);
        self.buffer.put_u8(key.len() as u8);
        self.buffer.put_slice(key);
        self.buffer.put_u32_le(properties.len() as u32);
        self.buffer.put_slice(properties);
        self.buffer.put_slice(body);
        self.enqueues += 1;
        self.enqueues - 1
    }

    /// The place of a message that is not to be stored: it only has an ordinal, so that those behind it keep theirs.
    pub fn void(&mut self) {
        self.frame(OP_ENQUEUE, 3);
        self.buffer.put_slice(&[0; 3]);
        self.enqueues += 1;
    }

    /// Messages leave a queue.
    pub fn settle(&mut self, queue: QueueId, reason: SettleReason, ranges: &[(Seq, Seq)]) {
        self.frame(OP_SETTLE, 13 + 16 * ranges.len());
        self.buffer.put_u8(reason as u8);
        self.buffer.put_u64_le(queue.0);
        self.buffer.put_u32_le(ranges.len() as u32);
        for (first, last) in ranges {
            self.buffer.put_u64_le(first.0);
            self.buffer.put_u64_le(last.0);
        }
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

    /// Enqueues so far.
    pub fn enqueues(&self) -> u32 {
        self.enqueues
    }

    /// Take the bytes; the builder starts anew.
    pub fn take(&mut self) -> Bytes {
        self.enqueues = 0;
        self.buffer.split().freeze()
    }

    fn frame(&mut self, kind: u8, len: usize) {
        self.buffer.put_u8(kind);
        self.buffer.put_u32_le(len as u32);
    }
}

/// A section as the machine reads it.
#[derive(Clone, Debug, PartialEq)]
pub enum Section {
    /// An edge's numbered batch.
    Batch {
        /// Session, number, floor; `ops` of it is empty here.
        session: SessionId,
        /// Number.
        seq: BatchSeq,
        /// Verdicts received.
        floor: BatchSeq,
        /// Routed by.
        catalog_index: u64,
        /// Its operations.
        ops: OpsReader,
    },
    /// The leader's own operations.
    Leader {
        /// Its operations.
        ops: OpsReader,
    },
    /// A session begins.
    Hello {
        /// The edge's node.
        node: NodeId,
        /// Its process.
        incarnation: Incarnation,
    },
    /// A session ends.
    Gone {
        /// Which.
        session: SessionId,
    },
    /// The catalog moved.
    Advance {
        /// From index.
        from: u64,
        /// To index.
        to: u64,
        /// Queues made.
        creates: Vec<QueueId>,
        /// Queues dropped.
        drops: Vec<QueueId>,
    },
}

/// The machine's answer to a section, in the order of sections.
#[derive(Clone, Debug, PartialEq)]
pub enum SectionReply {
    /// The batch took effect (or had done so before).
    Batch {
        /// Whose.
        session: SessionId,
        /// Which.
        seq: BatchSeq,
        /// Ordinals of refused enqueues.
        refused: Vec<(u32, RefusedEnqueue)>,
    },
    /// A batch beyond the next one (rule 12), or routed by a later catalog than the shard follows (rule 27): no effect.
    Gap {
        /// Whose.
        session: SessionId,
        /// Last applied.
        last: BatchSeq,
    },
    /// The session is unknown or was replaced: no effect; the edge says hello again.
    UnknownSession {
        /// Whose.
        session: SessionId,
    },
    /// The new session.
    Hello {
        /// Its id.
        session: SessionId,
        /// The node's earlier session, now fenced.
        replaced: Option<SessionId>,
    },
    /// The leader's operations took effect (those that name unknown queues had none).
    Leader,
    /// The session is gone.
    Gone,
    /// Whether the advance fitted.
    Advanced {
        /// `from` was the shard's catalog index.
        accepted: bool,
    },
}

/// Reads an entry: its time and its sections.
pub fn read_entry(entry: &EntryBytes) -> Result<(u64, Vec<Section>), Malformed> {
    let (head, at) = entry.locate(0).ok_or(Malformed { position: 0, why: "empty" })?;
    if head.len() - at < ENTRY_HEAD || head[at] != VERSION {
        return Err(Malformed { position: 0, why: "version" });
    }
    let time_ms = (&head[at + 1..]).get_u64_le();
    let mut sections = Vec::new();
    let mut position = ENTRY_HEAD;
    while position < entry.len() {
        let (section, next) = read_section(entry, position)?;
        sections.push(section);
        position = next;
    }
    Ok((time_ms, sections))
}

fn read_section(entry: &EntryBytes, position: usize) -> Result<(Section, usize), Malformed> {
    let bad = |why| Malformed { position, why };
    let (part, at) = entry.locate(position).ok_or(bad("section"))?;
    let mut head = part.get(at..at + FRAME_HEAD).ok_or(bad("section head"))?;
    let (kind, len) = (head.get_u8(), head.get_u32_le() as usize);
    let (start, next) = (position + FRAME_HEAD, position + FRAME_HEAD + len);
    if next > entry.len() {
        return Err(bad("section longer than the entry"));
    }
    let mut body = part.get(at + FRAME_HEAD..).unwrap_or(&[]);
    let need = |body: &[u8], n: usize| if body.len() < n { Err(bad("short section")) } else { Ok(()) };
    let section = match kind {
        SECTION_BATCH => {
            need(body, BATCH_HEAD)?;
            if len < BATCH_HEAD {
                return Err(bad("short batch"));
            }
            Section::Batch {
                session: SessionId(body.get_u64_le()),
                seq: BatchSeq(body.get_u64_le()),
                floor: BatchSeq(body.get_u64_le()),
                catalog_index: body.get_u64_le(),
                ops: OpsReader::new(entry, start + BATCH_HEAD, next)?,
            }
        }
        SECTION_LEADER => Section::Leader { ops: OpsReader::new(entry, start, next)? },
        SECTION_HELLO => {
            need(body, 10)?;
            Section::Hello { node: NodeId(body.get_u16_le()), incarnation: Incarnation(body.get_u64_le()) }
        }
        SECTION_GONE => {
            need(body, 8)?;
            Section::Gone { session: SessionId(body.get_u64_le()) }
        }
        SECTION_ADVANCE => {
            need(body, 24)?;
            let (from, to) = (body.get_u64_le(), body.get_u64_le());
            let (creates, drops) = (body.get_u32_le() as usize, body.get_u32_le() as usize);
            need(body, creates.saturating_add(drops).saturating_mul(8))?;
            let mut ids = |n| (0..n).map(|_| QueueId(body.get_u64_le())).collect();
            Section::Advance { from, to, creates: ids(creates), drops: ids(drops) }
        }
        _ => return Err(bad("section kind")),
    };
    Ok((section, next))
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
}

/// A message into queues; parsed lazily, nothing is copied.
#[derive(Clone, Debug, PartialEq)]
pub struct EnqueueOp {
    /// Position of the operation in the entry: what an extent remembers.
    pub position: usize,
    queues: Bytes,
    /// The stored message.
    pub message: Bytes,
}

impl EnqueueOp {
    /// It stands for a message that is not stored (`Ops::void`).
    pub fn is_void(&self) -> bool {
        self.queues.is_empty()
    }

    /// The queues it goes to.
    pub fn queues(&self) -> impl Iterator<Item = QueueId> + '_ {
        self.queues.chunks_exact(8).map(|mut c| QueueId(c.get_u64_le()))
    }
}

impl OpsReader {
    fn new(entry: &EntryBytes, start: usize, end: usize) -> Result<OpsReader, Malformed> {
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

/// Whether a batch's operations settle anything: walks their heads only.
pub fn has_settles(mut ops: &[u8]) -> bool {
    while let Some((head, rest)) = ops.split_first_chunk::<FRAME_HEAD>() {
        if head[0] == OP_SETTLE {
            return true;
        }
        let len = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        ops = rest.get(len..).unwrap_or(&[]);
    }
    false
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
        OP_ENQUEUE => {
            let queues = match body.try_get_u8().ok()? & MANY_QUEUES {
                0 => usize::from(body.try_get_u16_le().ok()?),
                _ => body.try_get_u32_le().ok()? as usize,
            };
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

fn read_op(kind: u8, mut body: Bytes, position: usize) -> Option<Op> {
    match kind {
        OP_ENQUEUE => {
            let n = match body.try_get_u8().ok()? & MANY_QUEUES {
                0 => usize::from(body.try_get_u16_le().ok()?),
                _ => body.try_get_u32_le().ok()? as usize,
            };
            if body.len() < n.checked_mul(8)? {
                return None;
            }
            let queues = body.split_to(n * 8);
            Some(Op::Enqueue(EnqueueOp { position, queues, message: body }))
        }
        OP_SETTLE => {
            let reason = SettleReason::from_byte(body.try_get_u8().ok()?)?;
            let (queue, n) = (QueueId(body.try_get_u64_le().ok()?), body.try_get_u32_le().ok()? as usize);
            let ranges = body.chunks_exact(16).take(n).map(|mut c| (Seq(c.get_u64_le()), Seq(c.get_u64_le())));
            (body.len() == n.checked_mul(16)?).then(|| Op::Settle { queue, reason, ranges: ranges.collect() })
        }
        OP_RESERVE => {
            let (queue, up_to) = (QueueId(body.try_get_u64_le().ok()?), Seq(body.try_get_u64_le().ok()?));
            let n = body.try_get_u16_le().ok()? as usize;
            let sessions = body.chunks_exact(8).map(|mut c| SessionId(c.get_u64_le()));
            (body.len() == n * 8).then(|| Op::Reserve { queue, up_to, sessions: sessions.collect() })
        }
        _ => None,
    }
}

/// A message as stored: exchange, routing key, properties (flags and list as on the wire), body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredMessage {
    /// Exchange it was published to.
    pub exchange: Bytes,
    /// Its routing key.
    pub key: Bytes,
    /// Property flags and list.
    pub properties: Bytes,
    /// Body.
    pub body: Bytes,
}

/// A stored message, borrowed: for encoding a delivery without touching reference counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredView<'a> {
    /// Exchange it was published to.
    pub exchange: &'a [u8],
    /// Its routing key.
    pub key: &'a [u8],
    /// Property flags and list.
    pub properties: &'a [u8],
    /// Position of the body; it reaches to the end.
    pub body_at: usize,
}

impl<'a> StoredView<'a> {
    /// Looks at a stored message; `None` when it is malformed.
    pub fn parse(bytes: &'a [u8]) -> Option<StoredView<'a>> {
        let mut rest = bytes;
        let mut cut = |n: usize| {
            let (head, tail) = rest.split_at_checked(n)?;
            rest = tail;
            Some(head)
        };
        let n = cut(1)?[0] as usize;
        let exchange = cut(n)?;
        let n = cut(1)?[0] as usize;
        let key = cut(n)?;
        let n = cut(4)?.get_u32_le() as usize;
        let properties = cut(n)?;
        Some(StoredView { exchange, key, properties, body_at: bytes.len() - rest.len() })
    }
}

impl StoredMessage {
    /// Slices a stored message; `None` when it is malformed.
    pub fn parse(mut bytes: Bytes) -> Option<StoredMessage> {
        let mut cut = |n: usize| (bytes.len() >= n).then(|| bytes.split_to(n));
        let n = cut(1)?[0] as usize;
        let exchange = cut(n)?;
        let n = cut(1)?[0] as usize;
        let key = cut(n)?;
        let n = cut(4)?.get_u32_le() as usize;
        let properties = cut(n)?;
        Some(StoredMessage { exchange, key, properties, body: bytes })
    }
}
