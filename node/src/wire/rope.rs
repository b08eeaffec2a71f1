//! What goes out on a socket: small frames written into one buffer, large bodies pushed beside it uncopied, for one vectored write.
//! Protocols build their frames on it; the listener drains it.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::collections::VecDeque;
use std::io::IoSlice;

/// Bodies up to this size are copied into the buffer: cheaper than two more parts of a vectored write.
const COPY_BYTES: usize = 4096;

/// Bytes on their way out.
#[derive(Debug, Default)]
pub struct Rope {
    parts: VecDeque<Bytes>,
    parts_len: usize,
    /// What comes behind the parts; frames are written here.
    pub(super) tail: BytesMut,
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

    /// The first parts, as many as fit into `slices`; returns how many.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let all = self.parts.iter().map(|p| &p[..]).chain(std::iter::once(&self.tail[..]));
        let mut filled = 0;
        for (slot, part) in slices.iter_mut().zip(all.filter(|p| !p.is_empty())) {
            *slot = IoSlice::new(part);
            filled += 1;
        }
        filled
    }

    /// `count` bytes were written.
    pub fn advance(&mut self, mut count: usize) {
        while let Some(part) = self.parts.front_mut() {
            let step = count.min(part.len());
            part.advance(step);
            self.parts_len -= step;
            count -= step;
            if !part.is_empty() {
                return;
            }
            self.parts.pop_front();
        }
        self.tail.advance(count);
    }

    /// Gives the buffer back while nothing waits: an idle connection holds no memory for output.
    pub fn shrink(&mut self) {
        if self.is_empty() {
            self.tail = BytesMut::new();
            self.parts = VecDeque::new();
        }
    }

    /// Everything, in one piece (tests, small answers).
    pub fn take(&mut self) -> Bytes {
        let mut all = BytesMut::with_capacity(self.len());
        self.parts.drain(..).for_each(|p| all.put_slice(&p));
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
            let head = self.tail.split().freeze();
            self.push(head);
            self.push(body.slice(from..to));
        }
    }

    fn push(&mut self, part: Bytes) {
        self.parts_len += part.len();
        self.parts.push_back(part);
    }
}
