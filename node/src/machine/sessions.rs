//! The sessions of edges with a shard (rules 12-14): one row per node, the last batch applied, and the verdicts an edge may still
//! ask for again. A process that was declared gone and lives on goes on where it was, under a new id. Called by `shard`.

use super::codec::{Reader, Writer};
use super::hash::StateHasher;
use super::shard::RestoreError;
use crate::model::link::RefusedEnqueue;
use crate::model::{BatchSeq, Incarnation, NodeId, SessionId};
use std::collections::{BTreeMap, BTreeSet};

/// Refused enqueues of a batch: ordinal and reason.
pub type Refused = Vec<(u32, RefusedEnqueue)>;

/// One edge process.
#[derive(Clone, Debug, PartialEq)]
pub struct Session {
    /// Its node.
    pub node: NodeId,
    /// Its process.
    pub incarnation: Incarnation,
    /// Last batch applied.
    pub last: BatchSeq,
    /// Batches with refusals whose verdict the edge has not said it received.
    verdicts: BTreeMap<BatchSeq, Refused>,
    /// Declared gone: no session any more, but its process may say hello again and asks for these verdicts.
    gone: bool,
}

/// How a batch stands to its session.
#[derive(Clone, Debug, PartialEq)]
pub enum Standing {
    /// The next one.
    Next,
    /// Applied before, with these refusals.
    Duplicate(Refused),
    /// Beyond the next one; the last applied.
    Gap(BatchSeq),
    /// No such session.
    Unknown,
}

/// All sessions by id.
#[derive(Clone, Debug, Default)]
pub struct Sessions {
    rows: BTreeMap<SessionId, Session>,
    dirty: BTreeSet<SessionId>,
    stored: BTreeSet<SessionId>,
}

impl Sessions {
    /// A session for this process; the node's earlier one is replaced, its batches are fenced. A process counts its batches on.
    pub fn hello(&mut self, id: SessionId, node: NodeId, incarnation: Incarnation) -> Option<SessionId> {
        let old = self.rows.iter().find(|(_, row)| row.node == node).map(|(id, _)| *id);
        let former = old.and_then(|old| {
            self.dirty.insert(old);
            self.rows.remove(&old)
        });
        let replaced = old.filter(|_| former.as_ref().is_some_and(|row| !row.gone));
        let row = match former.filter(|row| row.incarnation == incarnation) {
            Some(row) => Session { gone: false, ..row },
            None => Session { node, incarnation, last: BatchSeq(0), verdicts: BTreeMap::new(), gone: false },
        };
        self.rows.insert(id, row);
        self.dirty.insert(id);
        replaced
    }

    /// The edge is gone; its node, if the session was there. What it was told stays until its node says hello.
    pub fn gone(&mut self, id: SessionId) -> Option<NodeId> {
        let row = self.rows.get_mut(&id).filter(|row| !row.gone)?;
        row.gone = true;
        self.dirty.insert(id);
        Some(row.node)
    }

    /// How a batch stands.
    pub fn standing(&self, id: SessionId, seq: BatchSeq) -> Standing {
        let Some(row) = self.get(id) else { return Standing::Unknown };
        if seq <= row.last {
            Standing::Duplicate(row.verdicts.get(&seq).cloned().unwrap_or_default())
        } else if seq.0 == row.last.0 + 1 {
            Standing::Next
        } else {
            Standing::Gap(row.last)
        }
    }

    /// The next batch was applied.
    pub fn accept(&mut self, id: SessionId, seq: BatchSeq, floor: BatchSeq, refused: &Refused) {
        let Some(row) = self.rows.get_mut(&id) else { return };
        row.last = seq;
        while row.verdicts.first_key_value().is_some_and(|(seq, _)| *seq <= floor) {
            row.verdicts.pop_first();
        }
        if !refused.is_empty() {
            row.verdicts.insert(seq, refused.clone());
        }
        self.dirty.insert(id);
    }

    /// One that is not gone.
    pub fn get(&self, id: SessionId) -> Option<&Session> {
        self.rows.get(&id).filter(|row| !row.gone)
    }

    /// Another process of that node has said hello since.
    pub fn is_replaced(&self, node: NodeId, incarnation: Incarnation) -> bool {
        self.rows.values().any(|row| row.node == node && row.incarnation != incarnation)
    }

    /// All that are not gone, by id.
    pub fn iter(&self) -> impl Iterator<Item = (SessionId, &Session)> {
        self.rows.iter().filter(|(_, row)| !row.gone).map(|(id, row)| (*id, row))
    }

    /// Hands over what changed since the last call.
    pub fn take_changes(&mut self, mut put: impl FnMut(SessionId, Vec<u8>), mut delete: impl FnMut(SessionId)) {
        for id in std::mem::take(&mut self.dirty) {
            match self.rows.get(&id) {
                Some(row) => {
                    self.stored.insert(id);
                    put(id, encode(row));
                }
                None if self.stored.remove(&id) => delete(id),
                None => {}
            }
        }
    }

    /// All rows.
    pub fn export(&self, mut put: impl FnMut(SessionId, Vec<u8>)) {
        self.rows.iter().for_each(|(id, row)| put(*id, encode(row)));
    }

    /// Puts a row back. `stored`: it came from the checkpoint that the next one builds on.
    pub fn import(&mut self, id: SessionId, value: &[u8], stored: bool) -> Result<(), RestoreError> {
        self.rows.insert(id, decode(value)?);
        if stored {
            self.stored.insert(id)
        } else {
            self.dirty.insert(id)
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
        hasher.word(self.rows.len() as u64);
        for (id, row) in &self.rows {
            hasher.word(id.0);
            hasher.bytes(&encode(row));
        }
    }
}

fn reason_byte(reason: RefusedEnqueue) -> u8 {
    match reason {
        RefusedEnqueue::UnknownQueue => 1,
        RefusedEnqueue::Full => 2,
        RefusedEnqueue::GivenUp => 3,
        RefusedEnqueue::Sealed => 4,
        RefusedEnqueue::Lost => 5,
    }
}

/// row := node u16 | incarnation u64 | last u64 | verdicts u32 | (seq u64, runs u32, (first u32, count u32, reason u8)*)* | gone u8
fn encode(row: &Session) -> Vec<u8> {
    let mut out = Writer::default();
    out.u16(row.node.0);
    out.u64(row.incarnation.0);
    out.u64(row.last.0);
    out.u32(row.verdicts.len() as u32);
    for (seq, refused) in &row.verdicts {
        out.u64(seq.0);
        let runs: Vec<_> = refused.chunk_by(|a, b| a.0 + 1 == b.0 && a.1 == b.1).collect();
        out.u32(runs.len() as u32);
        for run in runs {
            out.u32(run[0].0);
            out.u32(run.len() as u32);
            out.u8(reason_byte(run[0].1));
        }
    }
    out.u8(row.gone.into());
    out.finish()
}

fn decode(value: &[u8]) -> Result<Session, RestoreError> {
    let mut input = Reader::new(value);
    let (node, incarnation, last) = (NodeId(input.u16()?), Incarnation(input.u64()?), BatchSeq(input.u64()?));
    let mut verdicts = BTreeMap::new();
    for _ in 0..input.u32()? {
        let seq = BatchSeq(input.u64()?);
        let mut refused = Refused::new();
        for _ in 0..input.u32()? {
            let (first, count) = (input.u32()?, input.u32()?);
            let reason = match input.u8()? {
                1 => RefusedEnqueue::UnknownQueue,
                2 => RefusedEnqueue::Full,
                3 => RefusedEnqueue::GivenUp,
                4 => RefusedEnqueue::Sealed,
                5 => RefusedEnqueue::Lost,
                _ => return Err(RestoreError::Malformed("reason of a refusal")),
            };
            let end = first.checked_add(count).ok_or(RestoreError::Malformed("ordinal of a refusal"))?;
            refused.extend((first..end).map(|ordinal| (ordinal, reason)));
        }
        verdicts.insert(seq, refused);
    }
    let gone = input.u8()? != 0;
    input.end()?;
    Ok(Session { node, incarnation, last, verdicts, gone })
}
