//! A message from AMQP 0-9-1 as a record of a stream, mapped as RabbitMQ does it (`mc_amqpl`, `mc_amqp`): properties to properties and header,
//! headers to application properties, those that begin with `x-` to message annotations.
//!
//! RabbitMQ's mapping drops what AMQP 1.0 has no place for: tables and arrays in headers, some types, `cluster-id`. Then the whole property
//! list goes beside it as one annotation, and an AMQP 0-9-1 reader gets that ([`super::reading`]).

use super::encoding::{BINARY, LIST, MAP, SYMBOL, TEXT, begin, bool, end, fixed, int, long, null, section, sized, timestamp, uint};
use super::sections::Message;
use super::{COPIES, ENCODED, EXCHANGE, KEPT, OFFSET, QUEUE_ADDRESS, RECEIVED, ROUTING_KEY, TYPE, UUID, is_internal};
use crate::model::properties::{BLIND_COPIES, CLIENT_DEATHS, DEATHS, Fields, entries, header, item};
use bytes::{BufMut, BytesMut};

/// The header with the value that readers filter by.
const FILTER_VALUE: &str = "x-stream-filter-value";
/// Texts longer than this are not looked through for what is not UTF-8: they become binary values, as in RabbitMQ.
const SCANNED_BYTES: usize = 4096;
/// Tables within tables.
const DEPTH_MAX: u8 = 16;
/// Fields of the properties section that have a place in AMQP 0-9-1: the last of them is group-id.
const PROPERTIES: u32 = 11;

/// A message as it was published.
#[derive(Clone, Copy, Debug)]
pub struct Published<'a> {
    /// To where.
    pub exchange: &'a [u8],
    /// With which key.
    pub key: &'a [u8],
    /// Property flags and list; `BCC` under its stored name or its own.
    pub properties: &'a [u8],
    /// Body.
    pub body: &'a [u8],
}

/// What readers may filter the message by, if it says so.
pub fn filter_value(properties: &[u8]) -> Option<&[u8]> {
    match header(properties, FILTER_VALUE)?.split_first_chunk::<5>()? {
        ([b'S', ..], value) => Some(value),
        _ => None,
    }
}

/// Appends the message as a record.
pub fn append_record(out: &mut BytesMut, message: &Published<'_>) {
    let fields = Fields::parse(message.properties);
    let mut record = Record { out, message, fields: fields.unwrap_or_default(), whole: fields.is_some() };
    let start = record.out.len();
    record.sections(false);
    if !record.whole {
        record.out.truncate(start);
        record.sections(true);
    }
    record.body();
}

struct Record<'o, 'm> {
    out: &'o mut BytesMut,
    message: &'m Published<'m>,
    fields: Fields<'m>,
    /// A reader gets back all that the client sent.
    whole: bool,
}

impl Record<'_, '_> {
    /// All before the body. `keep`: the property list goes beside it.
    fn sections(&mut self, keep: bool) {
        self.header();
        self.annotations(keep);
        self.properties();
        self.application_properties();
    }

    fn header(&mut self) {
        let Fields { delivery_mode, priority, expiration, .. } = self.fields;
        let ttl = expiration.and_then(|text| str::from_utf8(text).ok()?.parse::<u32>().ok().filter(|ms| ms.to_string().as_bytes() == text));
        self.whole &= (expiration.is_some() == ttl.is_some()) && matches!(delivery_mode, None | Some(1 | 2));
        if delivery_mode.is_none() && priority.is_none() && ttl.is_none() {
            return;
        }
        let out = &mut *self.out;
        section(out, 0x70);
        let at = begin(out, LIST);
        match delivery_mode {
            None => null(out),
            Some(mode) => bool(out, mode == 2),
        }
        match priority {
            None => null(out),
            Some(priority) => fixed(out, 0x50, &[priority]),
        }
        let count = if let Some(ms) = ttl { (uint(out, ms), 3).1 } else { 2 };
        end(out, at, count);
    }

    fn annotations(&mut self, keep: bool) {
        section(self.out, 0x72);
        let at = begin(self.out, MAP);
        let mut count = 2;
        for (name, value) in [(EXCHANGE, self.message.exchange), (ROUTING_KEY, self.message.key)] {
            sized(self.out, SYMBOL, name.as_bytes());
            let code = if str::from_utf8(value).is_ok() { TEXT } else { BINARY };
            sized(self.out, code, value);
        }
        if let Some(kind) = self.fields.kind.filter(|kind| *kind != ENCODED || !self.is_encoded()) {
            count += u32::from(self.text_annotation(TYPE, kind));
        }
        for (name, value) in entries(self.fields.headers.unwrap_or_default()) {
            count += u32::from(self.header_annotation(name, value));
        }
        if keep {
            sized(self.out, SYMBOL, KEPT.as_bytes());
            let list = as_it_is_shown(self.message.properties, &self.fields);
            sized(self.out, BINARY, list.as_deref().unwrap_or(self.message.properties));
            count += 1;
        }
        end(self.out, at, 2 * count);
    }

    fn text_annotation(&mut self, name: &str, text: &[u8]) -> bool {
        if str::from_utf8(text).is_err() {
            self.whole = false;
            return false;
        }
        sized(self.out, SYMBOL, name.as_bytes());
        sized(self.out, TEXT, text);
        true
    }

    /// A header that becomes a message annotation. False: it does not.
    fn header_annotation(&mut self, name: &[u8], value: &[u8]) -> bool {
        let name = if name == CLIENT_DEATHS.as_bytes() { DEATHS.as_bytes() } else { name };
        let is_copies = name == b"CC" && value.first() == Some(&b'A');
        if !is_copies && !name.starts_with(b"x-") {
            return false;
        }
        if name == KEPT.as_bytes() || !name.is_ascii() {
            self.whole = false;
            return false;
        }
        let is_renamed = name == COPIES.as_bytes() || name == RECEIVED.as_bytes();
        self.whole &= !is_renamed && (name == OFFSET.as_bytes() || !is_internal(name));
        sized(self.out, SYMBOL, if is_copies { COPIES.as_bytes() } else { name });
        self.whole &= put_value(self.out, value, 0);
        true
    }

    fn properties(&mut self) {
        let start = self.out.len();
        section(self.out, 0x73);
        let at = begin(self.out, LIST);
        let Fields { message_id, user_id, reply_to, correlation_id, content_type, content_encoding, timestamp: time, app_id, .. } =
            self.fields;
        self.whole &= self.fields.cluster_id.is_none();
        let mut any = self.id(message_id);
        any |= self.optional(user_id, is_text, |out, id| sized(out, BINARY, id));
        null(self.out); // to
        null(self.out); // subject
        any |= self.optional(reply_to, |name| quoted_len(name) <= 255, put_queue_address);
        any |= self.id(correlation_id);
        for symbol in [content_type, content_encoding] {
            any |= self.optional(symbol, <[u8]>::is_ascii, |out, text| sized(out, SYMBOL, text));
        }
        null(self.out); // absolute-expiry-time
        match time.and_then(milliseconds) {
            Some(ms) => timestamp(self.out, ms),
            None => null(self.out),
        }
        any |= time.is_some();
        self.whole &= time.is_none_or(|seconds| milliseconds(seconds).is_some());
        any |= self.optional(app_id, |id| str::from_utf8(id).is_ok(), |out, id| sized(out, TEXT, id));
        end(self.out, at, PROPERTIES);
        if !any {
            self.out.truncate(start);
        }
    }

    /// A value that goes into its field when it can be said there. True: it did.
    fn optional(&mut self, value: Option<&[u8]>, fits: impl Fn(&[u8]) -> bool, put: impl Fn(&mut BytesMut, &[u8])) -> bool {
        match value {
            Some(value) if fits(value) => {
                put(self.out, value);
                true
            }
            other => {
                self.whole &= other.is_none();
                null(self.out);
                false
            }
        }
    }

    /// A message or correlation id: a UUID where it is written as one.
    fn id(&mut self, id: Option<&[u8]>) -> bool {
        self.optional(
            id,
            |id| str::from_utf8(id).is_ok(),
            |out, id| match uuid_of(id) {
                Some(uuid) => fixed(out, 0x98, &uuid),
                None => sized(out, TEXT, id),
            },
        )
    }

    fn application_properties(&mut self) {
        let start = self.out.len();
        section(self.out, 0x74);
        let at = begin(self.out, MAP);
        let mut count = 0;
        for (name, value) in entries(self.fields.headers.unwrap_or_default()) {
            let is_composite = matches!(value.first(), Some(b'A' | b'F'));
            if name.starts_with(b"x-") || is_hidden(name) || name == b"BCC" || name == b"CC" && is_composite {
                continue;
            }
            if is_composite || str::from_utf8(name).is_err() {
                self.whole = false;
                continue;
            }
            sized(self.out, TEXT, name);
            self.whole &= put_value(self.out, value, 0);
            count += 2;
        }
        end(self.out, at, count);
        if count == 0 {
            self.out.truncate(start);
        }
    }

    /// The body is sections already.
    fn is_encoded(&self) -> bool {
        self.fields.kind == Some(ENCODED) && Message::is_encoded_body(self.message.body)
    }

    fn body(&mut self) {
        if self.is_encoded() {
            return self.out.put_slice(self.message.body);
        }
        section(self.out, 0x75);
        sized(self.out, BINARY, self.message.body);
    }
}

/// Stored by a name of the broker's own.
fn is_hidden(name: &[u8]) -> bool {
    name.first() == Some(&0)
}

/// The list without the copies that no consumer may see, and with what a client said of deaths, when it has some.
fn as_it_is_shown(list: &[u8], fields: &Fields<'_>) -> Option<Vec<u8>> {
    let is_blind = |name: &[u8]| name == b"BCC" || name == BLIND_COPIES.as_bytes();
    let headers = fields.headers.filter(|table| entries(table).any(|(name, _)| name == b"BCC" || is_hidden(name)))?;
    let mut kept = Vec::with_capacity(headers.len());
    for (name, value) in entries(headers).filter(|(name, _)| !is_blind(name)) {
        let name = if name == CLIENT_DEATHS.as_bytes() { DEATHS.as_bytes() } else { name };
        kept.put_u8(name.len() as u8);
        kept.put_slice(name);
        kept.put_slice(value);
    }
    let mut out = Vec::with_capacity(list.len());
    Fields { headers: Some(&kept), ..*fields }.write(&mut out);
    Some(out)
}

/// Appends a header's value. False: a reader does not get it back as it was.
fn put_value(out: &mut BytesMut, value: &[u8], depth: u8) -> bool {
    let Some((kind, bytes)) = value.split_first() else { return (null(out), false).1 };
    let seconds = |bytes: &[u8]| milliseconds(u64::from_be_bytes(bytes.try_into().ok()?));
    match kind {
        b'V' => null(out),
        b't' => bool(out, bytes != [0]),
        b'b' => fixed(out, 0x51, bytes),
        b'B' => fixed(out, 0x50, bytes),
        b's' => fixed(out, 0x61, bytes),
        b'u' => fixed(out, 0x60, bytes),
        b'f' => fixed(out, 0x72, bytes),
        b'd' => fixed(out, 0x82, bytes),
        b'I' => match bytes.try_into() {
            Ok(bytes) => int(out, i32::from_be_bytes(bytes)),
            Err(_) => return (null(out), false).1,
        },
        b'i' => match bytes.try_into() {
            Ok(bytes) => uint(out, u32::from_be_bytes(bytes)),
            Err(_) => return (null(out), false).1,
        },
        b'l' | b'L' => match bytes.try_into() {
            Ok(bytes) if *kind == b'l' => long(out, i64::from_be_bytes(bytes)),
            _ => return (fixed(out, 0x80, bytes), false).1,
        },
        b'T' => match seconds(bytes) {
            Some(ms) => timestamp(out, ms),
            None => return (null(out), false).1,
        },
        b'S' => {
            let text = bytes.get(4..).unwrap_or_default();
            sized(out, if text.len() <= SCANNED_BYTES && is_text(text) { TEXT } else { BINARY }, text);
        }
        b'x' => return (sized(out, BINARY, bytes.get(4..).unwrap_or_default()), false).1,
        b'A' | b'F' if depth < DEPTH_MAX => return put_composite(out, *kind, bytes.get(4..).unwrap_or_default(), depth + 1),
        // Decimals have no place.
        _ => return (null(out), false).1,
    }
    true
}

fn put_composite(out: &mut BytesMut, kind: u8, mut bytes: &[u8], depth: u8) -> bool {
    let (mut whole, mut count) = (true, 0);
    if kind == b'A' {
        let at = begin(out, LIST);
        while let Some(item) = item(&mut bytes) {
            whole &= put_value(out, item, depth);
            count += 1;
        }
        end(out, at, count);
        return whole;
    }
    let at = begin(out, MAP);
    for (name, value) in entries(bytes) {
        if !name.is_ascii() {
            whole = false;
            continue;
        }
        sized(out, SYMBOL, name);
        whole &= put_value(out, value, depth);
        count += 2;
    }
    end(out, at, count);
    whole
}

fn milliseconds(seconds: u64) -> Option<i64> {
    i64::try_from(seconds).ok()?.checked_mul(1000)
}

fn is_text(bytes: &[u8]) -> bool {
    !bytes.contains(&0) && str::from_utf8(bytes).is_ok()
}

/// The UUID that a text like `urn:uuid:6a1f…` stands for; `None` when it would not come back as the same text.
fn uuid_of(text: &[u8]) -> Option<[u8; 16]> {
    let hex = text.strip_prefix(UUID).filter(|hex| hex.len() == 36)?;
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if [8, 13, 18, 23].into_iter().any(|at| hex[at] != b'-') {
        return None;
    }
    let mut digits = hex.iter().enumerate().filter(|(at, _)| ![8, 13, 18, 23].contains(at)).map(|(_, byte)| digit(*byte));
    let mut uuid = [0; 16];
    for byte in &mut uuid {
        *byte = digits.next()?? << 4 | digits.next()??;
    }
    Some(uuid)
}

/// Bytes that stand for themselves in an address.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

fn quoted_len(name: &[u8]) -> usize {
    QUEUE_ADDRESS.len() + name.iter().map(|byte| if is_unreserved(*byte) { 1 } else { 3 }).sum::<usize>()
}

/// `/queues/` and the name, percent-encoded (RabbitMQ's address format v2).
fn put_queue_address(out: &mut BytesMut, name: &[u8]) {
    let len = quoted_len(name);
    out.put_slice(&[TEXT, len as u8]);
    out.put_slice(QUEUE_ADDRESS);
    for byte in name {
        match is_unreserved(*byte) {
            true => out.put_u8(*byte),
            false => out.put_slice(format!("%{byte:02X}").as_bytes()),
        }
    }
}
