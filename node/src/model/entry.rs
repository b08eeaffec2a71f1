//! The bytes of a data shard's log entry: what `edge` writes, `serving` joins, `machine` applies and deliveries read back.
//! Picture in docs/formats.md. Little endian. A body is written once, at the edge, and only sliced from then on.
//!
//! entry   := version u8 | time_ms u64 | section*
//! section := kind u8 | len u32 | body(len)
//! op      := kind u8 | len u32 | body(len)

mod append;
mod mark;
mod ops;
mod parts;
mod rejects;
mod stored;
pub mod trimmed;

pub use append::{AppendOp, ChunkBuilder, Skipped};
pub use mark::Mark;
pub use ops::{EnqueueOp, Op, Ops, OpsReader, SettleReason, Staged, each_target, is_batch};
pub use parts::{PartOp, PartStart, Word};
pub use rejects::{Settling, keep_rejects};
pub use stored::{StoredMessage, StoredView};

use super::link::{Batch, RefusedEnqueue};
use super::settings::QueueSettings;
use super::{BatchSeq, Incarnation, NodeId, QueueId, SessionId, version};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use smallvec::SmallVec;

const ENTRY_HEAD: usize = 9;
const FRAME_HEAD: usize = 5;
const BATCH_HEAD: usize = 32;
const ADVANCE_HEAD: usize = 28;

const SECTION_BATCH: u8 = 1;
const SECTION_LEADER: u8 = 2;
const SECTION_HELLO: u8 = 3;
const SECTION_GONE: u8 = 4;
const SECTION_ADVANCE: u8 = 5;
const SECTION_SETTINGS: u8 = 6;

/// A queue behind an exchange, and the number of a binding of that exchange.
pub type Replay = (QueueId, u64);

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

    /// Where a slice of one of the parts begins, over all parts.
    pub fn position_of(&self, slice: &Bytes) -> Option<usize> {
        let start = slice.as_ptr().addr();
        let mut before = 0;
        for part in &self.parts {
            let first = part.as_ptr().addr();
            if (first..=first + part.len()).contains(&start) && start + slice.len() <= first + part.len() {
                return Some(before + start - first);
            }
            before += part.len();
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

/// Builds an entry out of sections.
#[derive(Debug)]
pub struct EntryBuilder {
    rope: EntryBytes,
    head: BytesMut,
}

impl EntryBuilder {
    /// An entry stamped with the leader's time (ms since the epoch, never going back).
    pub fn new(time_ms: u64) -> EntryBuilder {
        EntryBuilder::of_version(version::FIRST, time_ms)
    }

    /// The same of a later version.
    pub fn of_version(version: u8, time_ms: u64) -> EntryBuilder {
        let mut head = BytesMut::with_capacity(128);
        head.put_u8(version);
        head.put_u64_le(time_ms);
        EntryBuilder { rope: EntryBytes::default(), head }
    }

    /// It is of this version: before its first section.
    pub fn set_version(&mut self, version: u8) {
        debug_assert_eq!((self.rope.len(), self.head.len()), (0, ENTRY_HEAD), "a section was written in another version");
        if let Some(first) = self.head.first_mut() {
            *first = version;
        }
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
        self.advance_with(from, to, creates, drops, &[]);
    }

    /// The same; `replays`: what these queues hold is copied to where these bindings lead.
    pub fn advance_with(&mut self, from: u64, to: u64, creates: &[QueueId], drops: &[QueueId], replays: &[Replay]) {
        self.section(SECTION_ADVANCE, ADVANCE_HEAD + 8 * (creates.len() + drops.len()) + 16 * replays.len());
        self.head.put_u64_le(from);
        self.head.put_u64_le(to);
        self.head.put_u32_le(creates.len() as u32);
        self.head.put_u32_le(drops.len() as u32);
        self.head.put_u32_le(replays.len() as u32);
        creates.iter().chain(drops).for_each(|q| self.head.put_u64_le(q.0));
        for (queue, binding) in replays {
            self.head.put_u64_le(queue.0);
            self.head.put_u64_le(*binding);
        }
    }

    /// A queue's settings as the catalog has them at index `at`, which the shard has reached by the advance before it.
    pub fn settings(&mut self, at: u64, queue: QueueId, settings: &QueueSettings) {
        let bytes = rmp_serde::to_vec_named(settings).expect("plain data, writing to memory cannot fail");
        self.section(SECTION_SETTINGS, 16 + bytes.len());
        self.head.put_u64_le(at);
        self.head.put_u64_le(queue.0);
        self.head.put_slice(&bytes);
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
        /// Queues whose messages go to new bindings, too.
        replays: Vec<Replay>,
    },
    /// A queue's settings.
    Settings {
        /// The catalog index they are of.
        at: u64,
        /// Whose.
        queue: QueueId,
        /// All of them.
        settings: Box<QueueSettings>,
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
    /// The queue has its settings, unless the advance before it was not accepted.
    Settings,
}

/// The version that an entry was written in; `None`: it is empty.
pub fn version_of(entry: &EntryBytes) -> Option<u8> {
    let (head, at) = entry.locate(0)?;
    head.get(at).copied()
}

/// Reads an entry of a version that is known: its time and its sections.
pub fn read_entry(entry: &EntryBytes) -> Result<(u64, Vec<Section>), Malformed> {
    let (head, at) = entry.locate(0).ok_or(Malformed { position: 0, why: "empty" })?;
    if head.len() - at < ENTRY_HEAD {
        return Err(Malformed { position: 0, why: "short" });
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
            need(body, ADVANCE_HEAD)?;
            let (from, to) = (body.get_u64_le(), body.get_u64_le());
            let (creates, drops, replays) = (body.get_u32_le() as usize, body.get_u32_le() as usize, body.get_u32_le() as usize);
            need(body, creates.saturating_add(drops).saturating_add(replays.saturating_mul(2)).saturating_mul(8))?;
            let mut ids = |n| (0..n).map(|_| QueueId(body.get_u64_le())).collect();
            let (creates, drops) = (ids(creates), ids(drops));
            let replays = (0..replays).map(|_| (QueueId(body.get_u64_le()), body.get_u64_le())).collect();
            Section::Advance { from, to, creates, drops, replays }
        }
        SECTION_SETTINGS => {
            need(body, len)?;
            let mut body = &body[..len];
            need(body, 16)?;
            let (at, queue) = (body.get_u64_le(), QueueId(body.get_u64_le()));
            let settings = rmp_serde::from_slice(body).map_err(|_| bad("settings"))?;
            Section::Settings { at, queue, settings: Box::new(settings) }
        }
        _ => return Err(bad("section kind")),
    };
    Ok((section, next))
}
