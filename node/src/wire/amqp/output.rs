//! What goes out on a socket: a rope of small frames written into one buffer and large bodies pushed beside it uncopied, for one vectored
//! write. The session appends, the listener drains.

use super::content::CLASS_BASIC;
use super::frame::{FRAME_END, FRAME_OVERHEAD, FrameKind};
use super::method::Method;
use super::primitive::put_short;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::collections::VecDeque;
use std::io::IoSlice;

/// Bodies up to this size are copied into the buffer: cheaper than two more parts of a vectored write.
const COPY_BYTES: usize = 4096;

/// Bytes on their way out.
#[derive(Debug, Default)]
pub struct Output {
    parts: VecDeque<Bytes>,
    parts_len: usize,
    tail: BytesMut,
}

/// A message's content as it goes out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content<'a> {
    /// Flags and property list.
    pub properties: &'a [u8],
    /// What ends with the body.
    pub body: &'a Bytes,
    /// Where the body begins in it.
    pub body_at: usize,
}

impl Output {
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

    /// Raw bytes: the protocol header.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.tail.put_slice(bytes);
    }

    /// A method frame.
    pub fn method(&mut self, channel: u16, method: &Method) {
        let at = self.begin(FrameKind::Method, channel);
        method.encode(&mut self.tail);
        self.end(at);
    }

    /// A heartbeat frame.
    pub fn heartbeat(&mut self) {
        let at = self.begin(FrameKind::Heartbeat, 0);
        self.end(at);
    }

    /// basic.ack to a publisher.
    pub fn ack(&mut self, channel: u16, delivery_tag: u64, multiple: bool) {
        let at = self.begin(FrameKind::Method, channel);
        self.id(80);
        self.tail.put_u64(delivery_tag);
        self.tail.put_u8(u8::from(multiple));
        self.end(at);
    }

    /// basic.deliver; its content follows with `content`.
    pub fn deliver(&mut self, channel: u16, consumer_tag: &[u8], delivery_tag: u64, redelivered: bool, exchange: &[u8], key: &[u8]) {
        let at = self.begin(FrameKind::Method, channel);
        self.id(60);
        put_short(&mut self.tail, consumer_tag);
        self.tail.put_u64(delivery_tag);
        self.tail.put_u8(u8::from(redelivered));
        put_short(&mut self.tail, exchange);
        put_short(&mut self.tail, key);
        self.end(at);
    }

    /// Content header and body frames, none longer than `frame_max` as a whole.
    pub fn content(&mut self, channel: u16, content: &Content<'_>, frame_max: u32) {
        let at = self.begin(FrameKind::Header, channel);
        self.tail.put_u16(CLASS_BASIC);
        self.tail.put_u16(0);
        self.tail.put_u64((content.body.len() - content.body_at) as u64);
        self.tail.put_slice(content.properties);
        self.end(at);
        let step = (frame_max as usize).saturating_sub(FRAME_OVERHEAD).max(1);
        let mut at = content.body_at;
        while at < content.body.len() {
            let end = content.body.len().min(at + step);
            self.body(channel, content.body, at, end);
            at = end;
        }
    }

    fn body(&mut self, channel: u16, body: &Bytes, from: usize, to: usize) {
        let len = to - from;
        self.tail.reserve(FRAME_OVERHEAD + if len <= COPY_BYTES { len } else { 0 });
        self.tail.put_u8(FrameKind::Body as u8);
        self.tail.put_u16(channel);
        self.tail.put_u32(len as u32);
        if len <= COPY_BYTES {
            self.tail.put_slice(&body[from..to]);
        } else {
            let head = self.tail.split().freeze();
            self.push(head);
            self.push(body.slice(from..to));
        }
        self.tail.put_u8(FRAME_END);
    }

    fn push(&mut self, part: Bytes) {
        self.parts_len += part.len();
        self.parts.push_back(part);
    }

    fn id(&mut self, method: u16) {
        self.tail.put_u16(CLASS_BASIC);
        self.tail.put_u16(method);
    }

    fn begin(&mut self, kind: FrameKind, channel: u16) -> usize {
        self.tail.put_u8(kind as u8);
        self.tail.put_u16(channel);
        self.tail.put_u32(0);
        self.tail.len()
    }

    fn end(&mut self, at: usize) {
        let len = (self.tail.len() - at) as u32;
        self.tail[at - 4..at].copy_from_slice(&len.to_be_bytes());
        self.tail.put_u8(FRAME_END);
    }
}
