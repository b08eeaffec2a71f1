//! What is known of single messages in a chunk of extents: when their time ends, how large their bodies are. Kept as steps: a value
//! holds from its message on until the next step, so messages alike cost nothing. Only in queues that need it. Called by `extents`.

use super::codec::{Reader, Writer};
use super::hash::StateHasher;
use super::shard::RestoreError;

/// What an enqueue notes of its message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Note {
    /// When it expires, ms since the epoch; [`AT_ONCE`]: unless a consumer takes it now; 0: never.
    pub deadline_ms: u64,
    /// Bytes of its body, where the queue counts them.
    pub body_bytes: Option<u32>,
}

/// A deadline that ended when the message came.
pub const AT_ONCE: u64 = 1;

impl Note {
    /// Nothing to note.
    pub fn is_empty(&self) -> bool {
        *self == Note::default()
    }
}

/// Notes of one chunk, ascending.
#[derive(Clone, Debug, Default)]
pub struct Notes {
    deadlines: Vec<(u64, u64)>,
    /// `u32::MAX`: not counted.
    sizes: Vec<(u64, u32)>,
}

const UNCOUNTED: u32 = u32::MAX;

impl Notes {
    /// Of the next message, beyond all noted ones.
    pub fn add(&mut self, seq: u64, note: Note) {
        if note.deadline_ms != self.deadlines.last().map_or(0, |step| step.1) {
            self.deadlines.push((seq, note.deadline_ms));
        }
        let size = note.body_bytes.unwrap_or(UNCOUNTED);
        if size != self.sizes.last().map_or(UNCOUNTED, |step| step.1) {
            self.sizes.push((seq, size));
        }
    }

    /// How many steps there are.
    pub fn steps(&self) -> usize {
        self.deadlines.len() + self.sizes.len()
    }

    /// A message's deadline, and the first later message with another.
    pub fn deadline(&self, seq: u64) -> (u64, u64) {
        let at = self.deadlines.partition_point(|step| step.0 <= seq);
        let until = self.deadlines.get(at).map_or(u64::MAX, |step| step.0);
        (at.checked_sub(1).map_or(0, |at| self.deadlines[at].1), until)
    }

    /// Some message has a deadline.
    pub fn is_timed(&self) -> bool {
        self.deadlines.iter().any(|step| step.1 > 0)
    }

    /// Bytes of a message's body, if they were counted.
    pub fn body_bytes(&self, seq: u64) -> Option<u32> {
        let at = self.sizes.partition_point(|step| step.0 <= seq);
        at.checked_sub(1).map(|at| self.sizes[at].1).filter(|size| *size != UNCOUNTED)
    }

    /// notes := n u32 | (seq u64, deadline u64)* | n u32 | (seq u64, bytes u32)*
    pub fn encode(&self, out: &mut Writer) {
        out.u32(self.deadlines.len() as u32);
        for (seq, deadline) in &self.deadlines {
            out.u64(*seq);
            out.u64(*deadline);
        }
        out.u32(self.sizes.len() as u32);
        for (seq, size) in &self.sizes {
            out.u64(*seq);
            out.u32(*size);
        }
    }

    /// The way back.
    pub fn decode(input: &mut Reader<'_>) -> Result<Notes, RestoreError> {
        let mut notes = Notes::default();
        for _ in 0..input.u32()? {
            notes.deadlines.push((input.u64()?, input.u64()?));
        }
        for _ in 0..input.u32()? {
            notes.sizes.push((input.u64()?, input.u32()?));
        }
        Ok(notes)
    }

    /// Folds into a state hash.
    pub fn hash(&self, hasher: &mut StateHasher) {
        self.deadlines.iter().flat_map(|step| [step.0, step.1]).for_each(|word| hasher.word(word));
        self.sizes.iter().flat_map(|step| [step.0, u64::from(step.1)]).for_each(|word| hasher.word(word));
    }
}
