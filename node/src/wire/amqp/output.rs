//! What goes out on an AMQP socket: frames on a rope. The session appends, the listener drains.

use super::content::CLASS_BASIC;
use super::frame::{FRAME_END, FRAME_OVERHEAD, FrameKind};
use super::method::Method;
use super::primitive::put_short;
use crate::wire::rope::Rope;
use bytes::{BufMut, Bytes};
use std::ops::{Deref, DerefMut};

/// Bytes on their way out.
#[derive(Debug, Default)]
pub struct Output(Rope);

impl Deref for Output {
    type Target = Rope;
    fn deref(&self) -> &Rope {
        &self.0
    }
}

impl DerefMut for Output {
    fn deref_mut(&mut self) -> &mut Rope {
        &mut self.0
    }
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
    /// A method frame.
    pub fn method(&mut self, channel: u16, method: &Method) {
        let at = self.begin(FrameKind::Method, channel);
        method.encode(&mut self.0.tail);
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
        put_short(&mut self.0.tail, consumer_tag);
        self.tail.put_u64(delivery_tag);
        self.tail.put_u8(u8::from(redelivered));
        put_short(&mut self.0.tail, exchange);
        put_short(&mut self.0.tail, key);
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
        self.tail.reserve(FRAME_OVERHEAD);
        self.tail.put_u8(FrameKind::Body as u8);
        self.tail.put_u16(channel);
        self.tail.put_u32((to - from) as u32);
        self.0.body(body, from, to);
        self.tail.put_u8(FRAME_END);
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
