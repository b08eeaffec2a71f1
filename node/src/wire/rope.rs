//! What goes out on a socket: small frames written into one buffer, large bodies pushed beside it uncopied, for one vectored write; and
//! bytes that lie in files, to be sent from there.
//! Protocols build their frames on it; the listener drains it.

use crate::model::stored::FileBytes;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::collections::VecDeque;
use std::io::IoSlice;

/// Bodies up to this size are copied into the buffer: cheaper than two more parts of a vectored write.
const COPY_BYTES: usize = 4096;

/// Bytes on their way out.
#[derive(Debug, Default)]
pub struct Rope {
    parts: VecDeque<Part>,
    parts_len: usize,
    /// What comes behind the parts; frames are written here.
    pub(super) tail: BytesMut,
}

#[derive(Debug)]
enum Part {
    Memory(Bytes),
    File(FileBytes),
}

/// What is written next.
#[derive(Debug)]
pub enum Front<'a> {
    /// So many parts in memory; with what follows them, a file's bytes or not.
    Memory { slices: usize, more: bool },
    /// Bytes of a file.
    File(&'a FileBytes),
}

impl Part {
    fn len(&self) -> usize {
        match self {
            Part::Memory(bytes) => bytes.len(),
            Part::File(bytes) => bytes.len(),
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Part::Memory(bytes) => bytes.advance(count),
            Part::File(bytes) => bytes.advance(count),
        }
    }
}

impl Rope {
    /// Bytes not yet written.
    pub fn len(&self) -> usize {
        self.parts_len + self.tail.len()
    }

    /// All written.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is written next: the first parts in memory, as many as fit into `slices`, or bytes of a file.
    pub fn front<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> Front<'a> {
        let mut filled = 0;
        for part in &self.parts {
            match part {
                Part::File(bytes) if filled == 0 => return Front::File(bytes),
                Part::File(_) => return Front::Memory { slices: filled, more: true },
                Part::Memory(_) if filled == slices.len() => return Front::Memory { slices: filled, more: false },
                Part::Memory(bytes) => slices[filled] = IoSlice::new(bytes),
            }
            filled += 1;
        }
        if filled < slices.len() && !self.tail.is_empty() {
            slices[filled] = IoSlice::new(&self.tail);
            filled += 1;
        }
        Front::Memory { slices: filled, more: false }
    }

    /// `count` bytes were written.
    pub fn advance(&mut self, mut count: usize) {
        while let Some(part) = self.parts.front_mut() {
            let step = count.min(part.len());
            part.advance(step);
            self.parts_len -= step;
            count -= step;
            if part.len() > 0 {
                return;
            }
            self.parts.pop_front();
        }
        self.tail.advance(count);
    }

    /// Puts what lies in files into memory, as `read` gives it, so that the files are not held.
    ///
    /// # Errors
    /// That of `read`; what comes behind stays as it is.
    pub fn settle<E>(&mut self, read: impl Fn(&FileBytes) -> Result<Bytes, E>) -> Result<(), E> {
        for part in &mut self.parts {
            if let Part::File(bytes) = part {
                *part = Part::Memory(read(bytes)?);
            }
        }
        Ok(())
    }

    /// Gives the buffer back while nothing waits: an idle connection holds no memory for output.
    pub fn shrink(&mut self) {
        if self.is_empty() {
            self.tail = BytesMut::new();
            self.parts = VecDeque::new();
        }
    }

    /// Everything that is in memory, in one piece (tests).
    #[cfg(test)]
    pub fn take(&mut self) -> Bytes {
        let mut all = BytesMut::with_capacity(self.len());
        for part in self.parts.drain(..) {
            if let Part::Memory(bytes) = part {
                all.put_slice(&bytes);
            }
        }
        all.put_slice(&self.tail);
        self.parts_len = 0;
        self.tail.clear();
        all.freeze()
    }

    /// Raw bytes.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.tail.put_slice(bytes);
    }

    /// `from..to` of a body, shared unless it is small.
    pub(super) fn body(&mut self, body: &Bytes, from: usize, to: usize) {
        if to - from <= COPY_BYTES {
            self.tail.put_slice(&body[from..to]);
        } else {
            self.push(Part::Memory(body.slice(from..to)));
        }
    }

    /// What a file holds.
    pub(super) fn file(&mut self, bytes: FileBytes) {
        self.push(Part::File(bytes));
    }

    /// Behind all that was written before.
    fn push(&mut self, part: Part) {
        let head = self.tail.split().freeze();
        for part in [Part::Memory(head), part] {
            if part.len() > 0 {
                self.parts_len += part.len();
                self.parts.push_back(part);
            }
        }
    }
}
