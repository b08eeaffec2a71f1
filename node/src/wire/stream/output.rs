//! What goes out on a stream socket: frames on a rope, chunks uncopied. The session appends, the listener drains.

use super::client::{Versions, put_versions};
use super::code::{Code, Key, RESPONSE};
use super::primitive::Put;
use super::server::{Broker, StreamMetadata};
use crate::model::stream::{CHUNK_HEAD, StreamChunk};
use crate::wire::rope::Rope;
use bytes::{BufMut, BytesMut};
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

impl Output {
    fn frame(&mut self, content: impl FnOnce(&mut BytesMut)) {
        let tail = &mut self.0.tail;
        let at = tail.len();
        tail.put_u32(0);
        content(tail);
        let len = (tail.len() - at - 4) as u32;
        tail[at..at + 4].copy_from_slice(&len.to_be_bytes());
    }

    /// A response that says no more than its code.
    pub fn respond(&mut self, key: Key, correlation: u32, code: Code) {
        self.answer(key, correlation, code, |_| {});
    }

    fn answer(&mut self, key: Key, correlation: u32, code: Code, content: impl FnOnce(&mut BytesMut)) {
        self.frame(|out| {
            out.put_response(key, correlation);
            out.put_u16(code as u16);
            content(out);
        });
    }

    /// A response with pairs (PeerProperties, Open).
    pub fn pairs(&mut self, key: Key, correlation: u32, pairs: &[(&str, &str)]) {
        self.answer(key, correlation, Code::Ok, |out| out.put_pairs(pairs));
    }

    /// A response with an array of strings (SaslHandshake, Route, Partitions).
    pub fn texts(&mut self, key: Key, correlation: u32, code: Code, texts: &[&str]) {
        self.answer(key, correlation, code, |out| out.put_texts(texts));
    }

    /// A response with a number (QueryPublisherSequence, QueryOffset).
    pub fn number(&mut self, key: Key, correlation: u32, code: Code, number: u64) {
        self.answer(key, correlation, code, |out| out.put_u64(number));
    }

    /// ResolveOffsetSpec: an offset, as every resolved specification is.
    pub fn resolved(&mut self, correlation: u32, code: Code, offset: u64) {
        self.answer(Key::ResolveOffsetSpec, correlation, code, |out| {
            out.put_u16(4);
            out.put_u64(offset);
        });
    }

    /// ExchangeCommandVersions.
    pub fn versions(&mut self, correlation: u32, commands: &[Versions]) {
        self.answer(Key::ExchangeCommandVersions, correlation, Code::Ok, |out| put_versions(out, commands));
    }

    /// StreamStats.
    pub fn stats(&mut self, correlation: u32, code: Code, stats: &[(&str, i64)]) {
        self.answer(Key::StreamStats, correlation, code, |out| {
            out.put_u32(stats.len() as u32);
            for (name, value) in stats {
                out.put_text(name);
                out.put_i64(*value);
            }
        });
    }

    /// Metadata.
    pub fn metadata(&mut self, correlation: u32, brokers: &[Broker<'_>], streams: &[StreamMetadata<'_>]) {
        self.frame(|out| {
            out.put_response(Key::Metadata, correlation);
            out.put_u32(brokers.len() as u32);
            for broker in brokers {
                out.put_u16(broker.reference);
                out.put_text(broker.host);
                out.put_u32(broker.port);
            }
            out.put_u32(streams.len() as u32);
            for stream in streams {
                out.put_text(stream.stream);
                out.put_u16(stream.code);
                out.put_u16(stream.leader);
                out.put_u32(stream.replicas.len() as u32);
                stream.replicas.iter().for_each(|replica| out.put_u16(*replica));
            }
        });
    }

    /// Tune: what we offer.
    pub fn tune(&mut self, frame_max: u32, heartbeat: u32) {
        self.frame(|out| {
            out.put_key(Key::Tune, 1);
            out.put_u32(frame_max);
            out.put_u32(heartbeat);
        });
    }

    /// Close, from us.
    pub fn close(&mut self, correlation: u32, code: Code, reason: &str) {
        self.frame(|out| {
            out.put_key(Key::Close, 1);
            out.put_u32(correlation);
            out.put_u16(code as u16);
            out.put_text(reason);
        });
    }

    /// Heartbeat.
    pub fn heartbeat(&mut self) {
        self.frame(|out| out.put_key(Key::Heartbeat, 1));
    }

    /// PublishConfirm.
    pub fn confirm(&mut self, publisher: u8, ids: &[u64]) {
        self.frame(|out| {
            out.put_key(Key::PublishConfirm, 1);
            out.put_u8(publisher);
            out.put_u32(ids.len() as u32);
            ids.iter().for_each(|id| out.put_u64(*id));
        });
    }

    /// PublishError, one code for all.
    pub fn publish_error(&mut self, publisher: u8, ids: &[u64], code: Code) {
        self.frame(|out| {
            out.put_key(Key::PublishError, 1);
            out.put_u8(publisher);
            out.put_u32(ids.len() as u32);
            for id in ids {
                out.put_u64(*id);
                out.put_u16(code as u16);
            }
        });
    }

    /// The answer to a Credit that cannot be honoured; it bears no correlation id.
    pub fn credit_error(&mut self, subscription: u8, code: Code) {
        self.frame(|out| {
            out.put_u16(Key::Credit as u16 | RESPONSE);
            out.put_u16(1);
            out.put_u16(code as u16);
            out.put_u8(subscription);
        });
    }

    /// MetadataUpdate.
    pub fn metadata_update(&mut self, stream: &str, code: Code) {
        self.frame(|out| {
            out.put_key(Key::MetadataUpdate, 1);
            out.put_u16(code as u16);
            out.put_text(stream);
        });
    }

    /// ConsumerUpdate.
    pub fn consumer_update(&mut self, correlation: u32, subscription: u8, active: bool) {
        self.frame(|out| {
            out.put_key(Key::ConsumerUpdate, 1);
            out.put_u32(correlation);
            out.put_u8(subscription);
            out.put_u8(u8::from(active));
        });
    }

    /// Deliver: the chunk's head is written, its data shared or sent from its file. `committed`: version 2. The filter stays here, as in
    /// RabbitMQ.
    pub fn deliver(&mut self, subscription: u8, committed: Option<u64>, chunk: &StreamChunk) {
        let own = 5 + if committed.is_some() { 8 } else { 0 };
        let tail = &mut self.0.tail;
        tail.reserve(4 + own + CHUNK_HEAD);
        tail.put_u32((own + CHUNK_HEAD + chunk.data.len()) as u32);
        tail.put_key(Key::Deliver, if committed.is_some() { 2 } else { 1 });
        tail.put_u8(subscription);
        if let Some(offset) = committed {
            tail.put_u64(offset);
        }
        tail.put_slice(&chunk.header());
        match &chunk.file {
            Some(file) => self.0.file(file.clone()),
            None => self.0.body(&chunk.data, 0, chunk.data.len()),
        }
    }
}
