//! A record of a stream as an AMQP 0-9-1 client gets it: the way back of [`super::writing`], and what RabbitMQ makes of records that clients of
//! streams and of AMQP 1.0 write. A record that is not AMQP 1.0 is a body without properties.

use super::sections::{Body, Message};
use super::value::{Items, Value};
use super::{
    COPIES, CORRELATION_ID_HEADER, ENCODED, EXCHANGE, KEPT, MESSAGE_ID_HEADER, OFFSET, QUEUE_ADDRESS, RECEIVED, RECEIVED_HEADER,
    ROUTING_KEY, TYPE, UUID, is_internal,
};
use crate::model::properties::{Fields, entries};
use bytes::{BufMut, BytesMut};
use std::borrow::Cow;

/// Longest short string, bytes.
const SHORT_MAX: usize = u8::MAX as usize;
/// Lists within lists.
const DEPTH_MAX: u8 = 16;

/// Scratch space of a reader, for all its messages.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    headers: Vec<u8>,
}

/// Appends a record as a stored message (`model::entry::StoredMessage`): its exchange and key as they were published, or the default
/// exchange and the stream's name; its properties with the offset among the headers; its body.
pub fn append_stored(out: &mut BytesMut, reading: &mut Reading, record: &[u8], offset: u64, stream: &[u8]) {
    reading.headers.clear();
    let Ok(message) = Message::parse(record) else {
        put_key(out, b"");
        put_key(out, stream);
        reading.offset(offset);
        put_properties(out, &Fields { headers: Some(&reading.headers), ..Fields::default() });
        return out.put_slice(record);
    };
    let annotations = Annotations::of(message.annotations);
    put_key(out, annotations.exchange.unwrap_or_default());
    put_key(out, annotations.key.unwrap_or(stream));
    match annotations.kept.and_then(Fields::parse) {
        Some(kept) => reading.kept(out, &kept, offset),
        None => reading.mapped(out, &message, &annotations, offset),
    }
    match message.body {
        Body::Data(pieces) => pieces.iter().for_each(|piece| out.put_slice(piece)),
        Body::Encoded(sections) => out.put_slice(sections),
    }
}

/// The message annotations that mean something here.
#[derive(Default)]
struct Annotations<'a> {
    exchange: Option<&'a [u8]>,
    key: Option<&'a [u8]>,
    kind: Option<&'a [u8]>,
    kept: Option<&'a [u8]>,
    /// As old brokers wrote them.
    delivery_mode: Option<u8>,
    priority: Option<u8>,
    expiration: Option<&'a [u8]>,
}

impl<'a> Annotations<'a> {
    fn of(items: Items<'a>) -> Annotations<'a> {
        let mut found = Annotations::default();
        for (key, value) in items.pairs().map_while(Result::ok) {
            let Value::Symbol(name) = key else { continue };
            let text = match value {
                Value::Text(text) | Value::Binary(text) | Value::Symbol(text) if text.len() <= SHORT_MAX => Some(text),
                _ => None,
            };
            match (name, value) {
                (b"x-basic-delivery-mode", Value::Ubyte(mode)) => found.delivery_mode = Some(mode),
                (b"x-basic-priority", Value::Ubyte(priority)) => found.priority = Some(priority),
                (b"x-basic-expiration", _) => found.expiration = text,
                (_, Value::Binary(list)) if name == KEPT.as_bytes() => found.kept = Some(list),
                _ if name == EXCHANGE.as_bytes() => found.exchange = text,
                _ if name == ROUTING_KEY.as_bytes() => found.key = text,
                _ if name == TYPE.as_bytes() => found.kind = text,
                _ => {}
            }
        }
        found
    }
}

impl Reading {
    /// The list as it was, and the offset.
    fn kept(&mut self, out: &mut BytesMut, kept: &Fields<'_>, offset: u64) {
        for (name, value) in entries(kept.headers.unwrap_or_default()).filter(|(name, _)| *name != OFFSET.as_bytes()) {
            put_name(&mut self.headers, name);
            self.headers.put_slice(value);
        }
        self.offset(offset);
        put_properties(out, &Fields { headers: Some(&self.headers), ..*kept });
    }

    fn mapped(&mut self, out: &mut BytesMut, message: &Message<'_>, annotations: &Annotations<'_>, offset: u64) {
        let [durable, priority, ttl] = fields(message.header);
        let [id, user, _, _, reply_to, correlation, content_type, content_encoding, _, time, group] = fields(message.properties);
        let ttl = if let Value::Uint(ms) = ttl {
            Some(Cow::Owned(ms.to_string().into_bytes()))
        } else {
            annotations.expiration.map(Cow::Borrowed)
        };
        for (name, value) in message.application.pairs().map_while(Result::ok) {
            if let Value::Text(name) = name {
                self.header(name, value);
            }
        }
        for (name, value) in message.annotations.pairs().map_while(Result::ok) {
            if let Value::Symbol(name) = name {
                self.annotation(name, value);
            }
        }
        let (message_id, correlation_id) = (self.id(id, MESSAGE_ID_HEADER), self.id(correlation, CORRELATION_ID_HEADER));
        let reply_to = short(reply_to).and_then(queue_of);
        self.offset(offset);
        let fields = Fields {
            content_type: short(content_type),
            content_encoding: short(content_encoding),
            headers: Some(&self.headers),
            delivery_mode: if let Value::Bool(durable) = durable { Some(1 + u8::from(durable)) } else { annotations.delivery_mode },
            priority: if let Value::Ubyte(priority) = priority { Some(priority) } else { annotations.priority },
            correlation_id: correlation_id.as_deref(),
            reply_to: reply_to.as_deref(),
            expiration: ttl.as_deref(),
            message_id: message_id.as_deref(),
            timestamp: if let Value::Timestamp(ms) = time { u64::try_from(ms).ok().map(|ms| ms / 1000) } else { None },
            kind: if let Body::Encoded(_) = message.body { Some(ENCODED) } else { annotations.kind },
            user_id: short(user).filter(|id| !id.contains(&0) && str::from_utf8(id).is_ok()),
            app_id: short(group),
            cluster_id: None,
        };
        put_properties(out, &fields);
    }

    fn offset(&mut self, offset: u64) {
        put_name(&mut self.headers, OFFSET.as_bytes());
        self.headers.put_u8(b'l');
        self.headers.put_u64(offset);
    }

    /// A header of this name, when its value can be one.
    fn header(&mut self, name: &[u8], value: Value<'_>) {
        if name.len() > SHORT_MAX {
            return;
        }
        let start = self.headers.len();
        put_name(&mut self.headers, name);
        if !put_value(&mut self.headers, value, 0) {
            self.headers.truncate(start);
        }
    }

    fn annotation(&mut self, name: &[u8], value: Value<'_>) {
        match value {
            _ if name == COPIES.as_bytes() => self.header(b"CC", value),
            Value::Timestamp(ms) if name == RECEIVED.as_bytes() => self.header(RECEIVED_HEADER.as_bytes(), Value::Long(ms)),
            _ if name.starts_with(b"x-") && !is_internal(name) => self.header(name, value),
            _ => {}
        }
    }

    /// A message or correlation id; one that no short string can hold becomes a header.
    fn id<'v>(&mut self, id: Value<'v>, name: &str) -> Option<Cow<'v, [u8]>> {
        match id {
            Value::Uuid(uuid) => Some(Cow::Owned(uuid_text(uuid))),
            Value::Ulong(number) => Some(Cow::Owned(number.to_string().into_bytes())),
            Value::Text(text) if text.len() <= SHORT_MAX => Some(Cow::Borrowed(text)),
            Value::Text(text) => {
                self.header(name.as_bytes(), Value::Text(text));
                None
            }
            Value::Binary(bytes) => {
                put_name(&mut self.headers, name.as_bytes());
                put_long(&mut self.headers, b'x', bytes);
                None
            }
            _ => None,
        }
    }
}

/// The first values of a list; those that are not there are null.
fn fields<const N: usize>(mut items: Items<'_>) -> [Value<'_>; N] {
    std::array::from_fn(|_| items.next().and_then(Result::ok).unwrap_or(Value::Null))
}

fn short(value: Value<'_>) -> Option<&[u8]> {
    match value {
        Value::Text(text) | Value::Symbol(text) | Value::Binary(text) if text.len() <= SHORT_MAX => Some(text),
        _ => None,
    }
}

/// Appends a value with its type in front. False: AMQP 0-9-1 has none for it.
fn put_value(out: &mut Vec<u8>, value: Value<'_>, depth: u8) -> bool {
    match value {
        Value::Null => out.put_u8(b'V'),
        Value::Bool(set) => out.put_slice(&[b't', u8::from(set)]),
        Value::Ubyte(n) => out.put_slice(&[b'B', n]),
        Value::Byte(n) => out.put_slice(&[b'b', n as u8]),
        Value::Ushort(n) => put_fixed(out, b'u', &n.to_be_bytes()),
        Value::Short(n) => put_fixed(out, b's', &n.to_be_bytes()),
        Value::Uint(n) => put_fixed(out, b'i', &n.to_be_bytes()),
        Value::Int(n) => put_fixed(out, b'I', &n.to_be_bytes()),
        Value::Ulong(n) => put_fixed(out, b'l', &n.to_be_bytes()),
        Value::Long(n) => put_fixed(out, b'l', &n.to_be_bytes()),
        Value::Float(x) => put_fixed(out, b'f', &x.to_be_bytes()),
        Value::Double(x) => put_fixed(out, b'd', &x.to_be_bytes()),
        Value::Timestamp(ms) => match u64::try_from(ms) {
            Ok(ms) => put_fixed(out, b'T', &(ms / 1000).to_be_bytes()),
            Err(_) => return false,
        },
        Value::Text(bytes) | Value::Symbol(bytes) | Value::Binary(bytes) => put_long(out, b'S', bytes),
        Value::List(items) | Value::Array(items) if depth < DEPTH_MAX => {
            let at = begin(out, b'A');
            for item in items.map_while(Result::ok) {
                put_value(out, item, depth + 1);
            }
            end(out, at);
        }
        Value::Map(items) if depth < DEPTH_MAX => {
            let at = begin(out, b'F');
            for (key, value) in items.pairs().map_while(Result::ok) {
                let Some(name) = short(key) else { continue };
                let start = out.len();
                put_name(out, name);
                if !put_value(out, value, depth + 1) {
                    out.truncate(start);
                }
            }
            end(out, at);
        }
        Value::List(_) | Value::Array(_) | Value::Map(_) | Value::Char(_) | Value::Uuid(_) | Value::Other => return false,
    }
    true
}

fn begin(out: &mut Vec<u8>, kind: u8) -> usize {
    put_fixed(out, kind, &[0; 4]);
    out.len()
}

fn end(out: &mut [u8], at: usize) {
    let len = (out.len() - at) as u32;
    out[at - 4..at].copy_from_slice(&len.to_be_bytes());
}

fn put_fixed(out: &mut Vec<u8>, kind: u8, bytes: &[u8]) {
    out.put_u8(kind);
    out.put_slice(bytes);
}

fn put_long(out: &mut Vec<u8>, kind: u8, bytes: &[u8]) {
    put_fixed(out, kind, &(bytes.len() as u32).to_be_bytes());
    out.put_slice(bytes);
}

/// A name of at most 255 bytes.
fn put_name(out: &mut Vec<u8>, name: &[u8]) {
    out.put_u8(name.len() as u8);
    out.put_slice(name);
}

/// The exchange or key of a stored message.
fn put_key(out: &mut BytesMut, key: &[u8]) {
    let key = &key[..key.len().min(SHORT_MAX)];
    out.put_u8(key.len() as u8);
    out.put_slice(key);
}

/// The properties of a stored message behind their length.
fn put_properties(out: &mut BytesMut, fields: &Fields<'_>) {
    let at = out.len();
    out.put_u32_le(0);
    fields.write(out);
    let len = (out.len() - at - 4) as u32;
    out[at..at + 4].copy_from_slice(&len.to_le_bytes());
}

fn uuid_text(uuid: &[u8; 16]) -> Vec<u8> {
    let mut text = UUID.to_vec();
    for (at, byte) in uuid.iter().enumerate() {
        if [4, 6, 8, 10].contains(&at) {
            text.push(b'-');
        }
        text.extend(format!("{byte:02x}").as_bytes());
    }
    text
}

/// The queue that an address names; any other address stays as it is. `None`: percent-encoded wrongly.
fn queue_of(address: &[u8]) -> Option<Cow<'_, [u8]>> {
    let Some(quoted) = address.strip_prefix(QUEUE_ADDRESS) else { return Some(Cow::Borrowed(address)) };
    let mut name = Vec::with_capacity(quoted.len());
    let mut rest = quoted;
    while let Some((byte, next)) = rest.split_first() {
        rest = next;
        match byte {
            b'%' => {
                let (hex, next) = rest.split_first_chunk::<2>()?;
                name.push(u8::from_str_radix(str::from_utf8(hex).ok()?, 16).ok()?);
                rest = next;
            }
            byte => name.push(*byte),
        }
    }
    Some(Cow::Owned(name))
}
