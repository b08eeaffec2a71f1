//! A message between the two worlds. Published over HTTP it is an AMQP message like any other: the tag is its routing key, each property
//! a header. Delivered over HTTP, whoever published it, it has text for a body, a tag and properties; what XML or the syntax of properties
//! cannot carry arrives encoded, and a marker property says so.

use super::faults::Fault;
use super::request::Incoming;
use crate::model::catalog::{Table, Value};
use crate::model::entry::StoredMessage;
use crate::model::link::Delivery;
use crate::model::properties::{CONTENT_ENCODING, CONTENT_TYPE, CORRELATION_ID, DELIVERY_MODE, EXPIRATION, HEADERS, PRIORITY, REPLY_TO};
use crate::model::step::Publish;
use crate::model::{limits, store};
use crate::wire::amqp::table;
use crate::wire::rocketmq::properties::{encode, is_carriable, parse, push};
use crate::wire::rocketmq::xml::is_text;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use md5::{Digest, Md5};
use serde::{Deserialize, Serialize};

/// Property: when it is to be delivered, ms since the epoch.
const START: &str = "__STARTDELIVERTIME";
/// Property: it is a half message; seconds until it is checked for the first time.
const HALF: &str = "__TransCheckT";
/// Longest wait for the start of delivery, ms: 40 days, as in the service.
const DELAY_MAX_MS: u64 = 40 * 24 * 60 * 60 * 1000;
/// Seconds before a half message is checked.
const IMMUNITY_S: std::ops::RangeInclusive<u64> = 10..=300;
/// The longest of it, ms.
pub(super) const IMMUNITY_MAX_MS: u64 = *IMMUNITY_S.end() * 1000;
/// Header: when it was published, ms since the epoch (the property `timestamp` has seconds).
const PUBLISHED: &str = "x-rocketmq-published-ms";
/// Header of a half message: its tag, as its routing key is the name of its queue.
const TAG: &str = "x-rocketmq-tag";
/// What stands before properties that AMQP gives a meaning to.
const ESCAPE: &str = "p:";
/// Marker: how the body is encoded.
const BODY_ENCODING: &str = "__BodyEncoding";
/// Marker: names of properties whose values are percent-encoded, and `tag`.
const ENCODED: &str = "__PercentEncoded";
/// Marker: names of properties with empty values.
const EMPTY: &str = "__Empty";

const MESSAGE_ID: u16 = 1 << 7;
const TIMESTAMP: u16 = 1 << 6;
const PERSISTENT: u8 = 2;
const TEXT: &[u8] = b"text/plain;charset=utf-8";

/// What a client's message is to become.
#[derive(Clone, Debug, PartialEq)]
pub struct Outgoing {
    /// Ready for the edge, but for its channel and ticket.
    pub publish: Publish,
    /// MD5 of the body, upper-case hex.
    pub md5: String,
    /// It is a half message, checked after so many ms.
    pub immunity_ms: Option<u64>,
}

/// MD5 in the service's form.
pub fn md5_of(bytes: &[u8]) -> String {
    hex(&Md5::digest(bytes))
}

/// Whether a text is the MD5 of these bytes: base64 of it, as in HTTP, or of its hex digits, or those themselves, as clients send it.
pub fn is_md5_of(text: &str, bytes: &[u8]) -> bool {
    let digest = Md5::digest(bytes);
    let (digits, decoded) = (hex(&digest), STANDARD.decode(text).unwrap_or_default());
    decoded == digest[..] || decoded.eq_ignore_ascii_case(digits.as_bytes()) || text.eq_ignore_ascii_case(&digits)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

/// Headers whose names AMQP or this broker give a meaning to.
fn is_reserved(name: &str) -> bool {
    name == "CC" || name == "BCC" || name.starts_with("x-") || name.starts_with(ESCAPE)
}

/// A message for `topic`, or for the queue of its half messages. `id`: its id.
pub fn outgoing(topic: &str, half_queue: &str, incoming: Incoming, id: &str, now_ms: u64) -> Result<Outgoing, Fault> {
    let Incoming { body, tag, properties } = incoming;
    let mut headers = Table::from([(PUBLISHED.to_owned(), Value::Int(now_ms as i64))]);
    let (mut start_ms, mut immunity_s) = (None, None);
    for (key, value) in parse(&properties) {
        let wrong = || Fault::argument(format!("The value of property {key} is not valid."));
        match key {
            START => start_ms = Some(value.parse::<u64>().map_err(|_| wrong())?),
            HALF => immunity_s = Some(value.parse::<u64>().ok().filter(|s| IMMUNITY_S.contains(s)).ok_or_else(wrong)?),
            _ => {}
        }
        let name = if is_reserved(key) { format!("{ESCAPE}{key}") } else { key.to_owned() };
        if name.len() > limits::NAME_BYTES {
            return Err(Fault::argument(format!("A property's name has more than {} bytes.", limits::NAME_BYTES)));
        }
        headers.insert(name, Value::Text(value.as_bytes().to_vec()));
    }
    if start_ms.is_some_and(|at| at > now_ms + DELAY_MAX_MS) {
        return Err(Fault::argument("The start of delivery is more than 40 days away."));
    }
    let (exchange, key) = match immunity_s {
        Some(_) => {
            headers.insert(TAG.to_owned(), Value::Text(tag.into_bytes()));
            (Bytes::new(), Bytes::copy_from_slice(half_queue.as_bytes()))
        }
        None => {
            delay(&mut headers, start_ms, now_ms);
            (Bytes::copy_from_slice(topic.as_bytes()), Bytes::from(tag.into_bytes()))
        }
    };
    let md5 = md5_of(body.as_bytes());
    let properties = written(&headers, id, now_ms);
    let publish = Publish { channel: 0, ticket: None, mandatory: false, exchange, routing_key: key, properties, body: body.into() };
    Ok(Outgoing { publish, md5, immunity_ms: immunity_s.map(|s| s * 1000) })
}

fn delay(headers: &mut Table, start_ms: Option<u64>, now_ms: u64) {
    if let Some(ms) = start_ms.and_then(|at| at.checked_sub(now_ms)).filter(|ms| *ms > 0) {
        headers.insert(store::DELAY.to_owned(), Value::Int(ms as i64));
    }
}

/// The property list of a message.
fn written(headers: &Table, id: &str, now_ms: u64) -> Bytes {
    let mut out = BytesMut::with_capacity(256);
    out.put_u16(CONTENT_TYPE | HEADERS | DELIVERY_MODE | MESSAGE_ID | TIMESTAMP);
    out.put_u8(TEXT.len() as u8);
    out.put_slice(TEXT);
    table::write(&mut out, headers);
    out.put_u8(PERSISTENT);
    out.put_u8(id.len() as u8);
    out.put_slice(id.as_bytes());
    out.put_u64(now_ms / 1000);
    out.freeze()
}

/// What a message says of itself.
#[derive(Debug, Default)]
struct Facts {
    headers: Table,
    id: Option<String>,
    timestamp_s: Option<u64>,
}

fn facts(properties: &[u8]) -> Option<Facts> {
    let mut list = properties;
    let flags = list.try_get_u16().ok()?;
    let mut more = flags;
    while more & 1 != 0 {
        more = list.try_get_u16().ok()?;
    }
    let mut facts = Facts::default();
    let texts = [CONTENT_TYPE, CONTENT_ENCODING, HEADERS, DELIVERY_MODE, PRIORITY, CORRELATION_ID, REPLY_TO, EXPIRATION, MESSAGE_ID];
    for flag in texts.into_iter().filter(|flag| flags & flag != 0) {
        let len = match flag {
            HEADERS => list.try_get_u32().ok()? as usize,
            DELIVERY_MODE | PRIORITY => 1,
            _ => usize::from(list.try_get_u8().ok()?),
        };
        let (value, rest) = list.split_at_checked(len)?;
        list = rest;
        match flag {
            HEADERS => facts.headers = table::read_entries(value).unwrap_or_default(),
            MESSAGE_ID => facts.id = String::from_utf8(value.to_vec()).ok(),
            _ => {}
        }
    }
    if flags & TIMESTAMP != 0 {
        facts.timestamp_s = list.try_get_u64().ok();
    }
    Some(facts)
}

impl Facts {
    fn of(properties: &[u8]) -> Facts {
        facts(properties).unwrap_or_default()
    }

    fn number(&self, name: &str) -> Option<u64> {
        match self.headers.get(name) {
            Some(Value::Int(n)) => u64::try_from(*n).ok(),
            Some(Value::Text(text)) => std::str::from_utf8(text).ok()?.parse().ok(),
            Some(_) | None => None,
        }
    }
}

/// A message as a consumer is shown it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// 32 upper-case hex digits, the same for all deliveries to a group.
    pub id: String,
    /// The body.
    pub body: String,
    /// MD5 of it as it is shown.
    pub md5: String,
    /// Its tag.
    pub tag: String,
    /// Its properties.
    pub properties: String,
    /// When it was published, ms since the epoch, if that is known.
    pub published_ms: Option<u64>,
}

/// How a message is shown.
pub fn shown(delivery: &Delivery, message: &StoredMessage) -> Shown {
    let facts = Facts::of(&message.properties);
    let is_id = |id: &&String| id.len() == 32 && id.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
    let id = facts.id.as_ref().filter(is_id).cloned().unwrap_or_else(|| format!("{:016X}{:016X}", delivery.queue.0, delivery.seq.0));
    let (mut properties, mut encoded, mut empty) = (String::new(), Vec::new(), Vec::new());
    for (name, value) in facts.headers.iter().filter(|(name, _)| !is_own(name)) {
        let name = name.strip_prefix(ESCAPE).unwrap_or(name);
        let text = match value {
            Value::Text(bytes) | Value::Bytes(bytes) => bytes.clone(),
            other => other.text().into_bytes(),
        };
        add(&mut properties, (name, &text), &mut encoded, &mut empty);
    }
    let (body, encoding) = text_body(&message.body);
    let tag = match std::str::from_utf8(&message.key).ok().filter(|tag| is_text(tag)) {
        Some(tag) => tag.to_owned(),
        None => {
            encoded.push("tag".to_owned());
            encode(&message.key)
        }
    };
    encoding.iter().for_each(|encoding| push(&mut properties, BODY_ENCODING, encoding));
    for (marker, names) in [(ENCODED, encoded), (EMPTY, empty)] {
        if !names.is_empty() {
            push(&mut properties, marker, &names.join(","));
        }
    }
    let published_ms = facts.number(PUBLISHED).or_else(|| facts.timestamp_s.and_then(|s| s.checked_mul(1000)));
    Shown { id, md5: md5_of(body.as_bytes()), body, tag, properties, published_ms }
}

/// Headers that are the broker's own business.
fn is_own(name: &str) -> bool {
    let of_deaths = name == "x-death" || name.starts_with("x-first-death-") || name.starts_with("x-last-death-");
    let is_known = name == PUBLISHED || name == TAG || name == store::DELAY || name == "CC" || name == "BCC";
    is_known || of_deaths || name.starts_with('\0')
}

fn add(out: &mut String, (name, value): (&str, &[u8]), encoded: &mut Vec<String>, empty: &mut Vec<String>) {
    let key = if is_carriable(name) { name.to_owned() } else { encode(name.as_bytes()) };
    if key.is_empty() {
        return;
    }
    let text = std::str::from_utf8(value).ok();
    match text {
        Some("") => empty.push(key),
        Some(text) if is_carriable(text) && key == name => push(out, &key, text),
        _ => {
            push(out, &key, &encode(value));
            encoded.push(key);
        }
    }
}

/// The body as text, and how it is encoded. An empty element would break the SDK.
fn text_body(body: &[u8]) -> (String, Option<&'static str>) {
    match std::str::from_utf8(body) {
        Ok("") => (" ".to_owned(), Some("empty")),
        Ok(text) if is_text(text) => (text.to_owned(), None),
        Ok(_) | Err(_) => (STANDARD.encode(body), Some("base64")),
    }
}

/// A half message as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HalfFacts {
    /// Its id.
    pub id: String,
    /// When it was published, ms since the epoch.
    pub published_ms: u64,
    /// When it is checked for the first time.
    pub check_ms: u64,
}

/// What a half message says; one that says nothing is checked at once.
pub fn half_facts(message: &StoredMessage) -> HalfFacts {
    let facts = Facts::of(&message.properties);
    let published_ms = facts.number(PUBLISHED).unwrap_or_default();
    let immunity_s = facts.number(HALF).unwrap_or_default().min(*IMMUNITY_S.end());
    HalfFacts { id: facts.id.unwrap_or_default(), published_ms, check_ms: published_ms.saturating_add(immunity_s * 1000) }
}

/// The tag of a half message in place of its routing key.
pub fn unveiled(message: &StoredMessage) -> StoredMessage {
    let facts = Facts::of(&message.properties);
    let key = match facts.headers.get(TAG) {
        Some(Value::Text(tag)) => Bytes::from(tag.clone()),
        Some(_) | None => Bytes::new(),
    };
    StoredMessage { key, ..message.clone() }
}

/// The message that a half message becomes when it is committed.
pub fn whole(topic: &str, message: &StoredMessage, now_ms: u64) -> Publish {
    let mut facts = Facts::of(&message.properties);
    let StoredMessage { key, body, .. } = unveiled(message);
    facts.headers.remove(TAG);
    let start_ms = facts.number(START);
    let published_ms = facts.number(PUBLISHED).unwrap_or(now_ms);
    delay(&mut facts.headers, start_ms, now_ms);
    let properties = written(&facts.headers, facts.id.as_deref().unwrap_or_default(), published_ms);
    let exchange = Bytes::copy_from_slice(topic.as_bytes());
    Publish { channel: 0, ticket: None, mandatory: false, exchange, routing_key: key, properties, body }
}
