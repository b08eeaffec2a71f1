//! What a log says of transactions over several shards (rule 26): their parts, and the words that shards and edges exchange about them.
//! Written by `edge` and `serving`, applied by `machine`.

use super::ops::{OP_PART, OP_WORD, Ops, OpsReader};
use crate::model::{Incarnation, NodeId, SessionId, ShardId, TxId};
use bytes::{Buf, BufMut, Bytes};

/// Length of a transaction's id.
const TX: usize = 18;
/// Length of the session in a part's head.
const SESSION: usize = 8;

/// A part: its enqueues and settles take effect when the transaction is decided, and nobody sees them before.
#[derive(Clone, Debug, PartialEq)]
pub struct PartOp {
    /// It is strict: what it settles was given to this session, and it is refused under another one, for others may have it since. With
    /// messages it is refused, too, when something that it settles is not there. When it is all of its transaction, nothing is waited for.
    pub session: Option<SessionId>,
    /// Of which transaction.
    pub tx: TxId,
    /// Who decides; has a part itself.
    pub decider: ShardId,
    /// The other shards with a part; only the decider is told.
    pub others: Vec<ShardId>,
    /// Enqueues and settles.
    pub ops: OpsReader,
}

/// What is said of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// To the decider, once all parts are there: it is committed unless it was given up before, which refuses the word.
    Decide,
    /// It was committed.
    Commit,
    /// It was given up.
    Abort,
    /// To the decider: all parts have heard.
    Forget,
    /// To the decider: this shard has a part whose edge is gone. What is not decided then is given up.
    Ask {
        /// Who wants to hear.
        shard: ShardId,
    },
    /// From the decider's leader to itself: this shard has heard.
    Told {
        /// Which.
        shard: ShardId,
    },
}

impl Word {
    fn parts(self) -> (u8, ShardId) {
        match self {
            Word::Decide => (1, ShardId::default()),
            Word::Commit => (2, ShardId::default()),
            Word::Abort => (3, ShardId::default()),
            Word::Forget => (4, ShardId::default()),
            Word::Ask { shard } => (5, shard),
            Word::Told { shard } => (6, shard),
        }
    }

    fn of(kind: u8, shard: ShardId) -> Option<Word> {
        let all = [Word::Decide, Word::Commit, Word::Abort, Word::Forget, Word::Ask { shard }, Word::Told { shard }];
        all.into_iter().find(|word| word.parts().0 == kind)
    }

    /// Whether an edge may say it.
    pub(super) fn is_edges(self) -> bool {
        !matches!(self, Word::Told { .. })
    }
}

/// Where a part under construction begins.
#[derive(Debug)]
pub struct PartStart {
    length_at: usize,
    ordinal: u32,
}

impl Ops {
    /// A part begins; what is written up to `end_part` belongs to it.
    pub fn begin_part(&mut self, tx: TxId, decider: ShardId, others: &[ShardId]) -> PartStart {
        self.frame(OP_PART, 0);
        let start = PartStart { length_at: self.buffer.len() - 4, ordinal: self.ordinals };
        self.buffer.put_u64_le(0);
        self.put_tx(tx);
        self.buffer.put_u16_le(decider.0);
        self.buffer.put_u16_le(others.len() as u16);
        others.iter().for_each(|shard| self.buffer.put_u16_le(shard.0));
        start
    }

    /// The part under construction is strict: see `PartOp::session`.
    pub fn claim(&mut self, start: &PartStart, session: SessionId) {
        let at = start.length_at + 4;
        self.buffer[at..at + SESSION].copy_from_slice(&session.0.to_le_bytes());
    }

    /// The part ends. It has one ordinal, which is returned.
    pub fn end_part(&mut self, start: PartStart) -> u32 {
        let len = (self.buffer.len() - start.length_at - 4) as u32;
        self.buffer[start.length_at..start.length_at + 4].copy_from_slice(&len.to_le_bytes());
        self.ordinals = start.ordinal + 1;
        start.ordinal
    }

    /// A word about a transaction. Returns its ordinal.
    pub fn word(&mut self, tx: TxId, word: Word) -> u32 {
        let (kind, shard) = word.parts();
        self.frame(OP_WORD, TX + 3);
        self.put_tx(tx);
        self.buffer.put_u8(kind);
        self.buffer.put_u16_le(shard.0);
        self.ordinals += 1;
        self.ordinals - 1
    }

    /// Operations written elsewhere follow. Returns the ordinal that their first one has here.
    pub fn append(&mut self, other: &Ops) -> u32 {
        let first = self.ordinals;
        self.buffer.extend_from_slice(&other.buffer);
        self.ordinals += other.ordinals;
        first
    }

    /// An operation with an ordinal as it was read. Returns the ordinal.
    pub fn copy(&mut self, op: &[u8]) -> u32 {
        self.buffer.extend_from_slice(op);
        self.ordinals += 1;
        self.ordinals - 1
    }

    fn put_tx(&mut self, tx: TxId) {
        self.buffer.put_u16_le(tx.node.0);
        self.buffer.put_u64_le(tx.incarnation.0);
        self.buffer.put_u64_le(tx.number);
    }
}

fn read_tx(body: &mut impl Buf) -> Option<TxId> {
    Some(TxId {
        node: NodeId(body.try_get_u16_le().ok()?),
        incarnation: Incarnation(body.try_get_u64_le().ok()?),
        number: body.try_get_u64_le().ok()?,
    })
}

/// Takes the head of a part off.
fn read_head(body: &mut impl Buf) -> Option<(Option<SessionId>, TxId, ShardId, Vec<ShardId>)> {
    let session = Some(SessionId(body.try_get_u64_le().ok()?)).filter(|session| session.0 != 0);
    let (tx, decider) = (read_tx(body)?, ShardId(body.try_get_u16_le().ok()?));
    let others = (0..body.try_get_u16_le().ok()?).map(|_| body.try_get_u16_le().ok().map(ShardId)).collect::<Option<_>>()?;
    Some((session, tx, decider, others))
}

/// `position`: of the first byte of `body` in its entry.
pub(super) fn read_part(mut body: Bytes, position: usize) -> Option<PartOp> {
    let before = body.len();
    let (session, tx, decider, others) = read_head(&mut body)?;
    let position = position + before - body.len();
    Some(PartOp { session, tx, decider, others, ops: OpsReader::over(body, position) })
}

pub(super) fn read_word(body: &mut impl Buf) -> Option<(TxId, Word)> {
    let (tx, kind) = (read_tx(body)?, body.try_get_u8().ok()?);
    let word = Word::of(kind, ShardId(body.try_get_u16_le().ok()?))?;
    (!body.has_remaining()).then_some((tx, word))
}

/// The session of a strict part, by its body.
pub(super) fn claimed_by(mut body: &[u8]) -> Option<SessionId> {
    read_head(&mut body)?.0
}

/// Skips the head of a part; what is left are its operations.
pub(super) fn skip_head(mut body: &[u8]) -> Option<&[u8]> {
    read_head(&mut body)?;
    Some(body)
}
