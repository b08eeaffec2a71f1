//! A message's property list rewritten by the broker: the record of its deaths when it is dead-lettered (`x-death`, as RabbitMQ writes it),
//! the count of its failed deliveries. Other fields and headers stay byte for byte what the client sent. Pure; used by the edge and the
//! session.

use super::entry::SettleReason;
use super::properties::{
    CLIENT_DEATHS, CONTENT_ENCODING, CONTENT_TYPE, CORRELATION_ID, DEATHS, DELIVERY_MODE, EXPIRATION, HEADERS, PRIORITY, REPLY_TO, field,
    value_len,
};
use super::store;
use bytes::{Buf, BufMut};
use smallvec::SmallVec;
use std::ops::Range;

/// A header: its name, and its value with the type in front.
type Entry<'a> = (&'a [u8], &'a [u8]);

/// What happened to a message.
#[derive(Clone, Copy, Debug)]
pub struct Death<'a> {
    /// The queue it left.
    pub queue: &'a str,
    /// Why.
    pub reason: SettleReason,
    /// When, ms since the epoch.
    pub time_ms: u64,
    /// The exchange it had been published to.
    pub exchange: &'a [u8],
    /// Its routing key.
    pub key: &'a [u8],
}

/// RabbitMQ's name of a reason.
pub fn reason_name(reason: SettleReason) -> &'static str {
    match reason {
        SettleReason::Expired => "expired",
        SettleReason::MaxLength => "maxlen",
        SettleReason::DeliveryLimit => "delivery_limit",
        SettleReason::Ack | SettleReason::Reject | SettleReason::Purge | SettleReason::Due | SettleReason::Replay | SettleReason::First => {
            "rejected"
        }
    }
}

/// A message's headers, writable. What the client sent is only looked at until it is written.
#[derive(Clone, Debug)]
pub struct Headers<'a> {
    list: &'a [u8],
    entries: Vec<Entry<'a>>,
    /// Values that take the place of those above, by their places there.
    changed: Vec<(usize, Vec<u8>)>,
    /// Entries behind those above, as they are written.
    added: Vec<u8>,
}

impl<'a> Headers<'a> {
    /// Of a property list (flags and fields). A table that cannot be read counts as empty.
    pub fn of(list: &'a [u8]) -> Headers<'a> {
        let entries = field(list, HEADERS).and_then(entries).unwrap_or_default();
        Headers { list, entries, changed: Vec::new(), added: Vec::new() }
    }

    fn get(&self, name: &str) -> Option<&[u8]> {
        let Some(at) = self.entries.iter().position(|e| e.0 == name.as_bytes()) else {
            return find(&self.added, name.as_bytes()).map(|value| &self.added[value]);
        };
        let changed = self.changed.iter().find(|(of, _)| *of == at);
        Some(changed.map_or(self.entries[at].1, |(_, value)| value.as_slice()))
    }

    /// Sets a header, in its place or at the end.
    fn set(&mut self, name: &'static str, value: &[u8]) {
        let name = name.as_bytes();
        if let Some(at) = self.entries.iter().position(|e| e.0 == name) {
            self.changed.retain(|(of, _)| *of != at);
            self.changed.push((at, value.to_vec()));
        } else if let Some(before) = find(&self.added, name) {
            drop(self.added.splice(before, value.iter().copied()));
        } else {
            put(&mut self.added, name, value);
        }
    }

    fn set_text(&mut self, name: &'static str, text: &[u8]) {
        if self.get(name).is_some() {
            let mut value = Vec::with_capacity(5 + text.len());
            put_text(&mut value, text);
            return self.set(name, &value);
        }
        put_name(&mut self.added, name.as_bytes());
        put_text(&mut self.added, text);
    }

    /// Calls a header of the client's by another name.
    pub fn rename(&mut self, from: &str, to: &'a str) {
        self.entries.iter_mut().filter(|e| e.0 == from.as_bytes()).for_each(|e| e.0 = to.as_bytes());
    }

    /// Takes a header of the client's away.
    pub fn remove(&mut self, name: &str) {
        while let Some(at) = self.entries.iter().position(|e| e.0 == name.as_bytes()) {
            self.entries.remove(at);
            self.changed.retain(|(of, _)| *of != at);
            self.changed.iter_mut().filter(|(of, _)| *of > at).for_each(|(of, _)| *of -= 1);
        }
    }

    /// Routing keys beside the message's own: `CC` or `BCC`.
    pub fn keys(&self, name: &str) -> Vec<Vec<u8>> {
        self.listed(name).filter_map(text).map(<[u8]>::to_vec).collect()
    }

    /// The values of a header that is an array.
    fn listed(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.get(name).and_then(items).unwrap_or_default().into_iter()
    }

    /// Failed deliveries so far.
    pub fn set_delivery_count(&mut self, count: u32) {
        self.set("x-delivery-count", &long(count.into()));
    }

    /// Its delay is over: the header turns negative, so that the message is not delayed again and a consumer sees that it was.
    pub fn end_delay(&mut self) {
        if let Some(delay) = self.get(store::DELAY).and_then(store::whole) {
            self.set(store::DELAY, &integer(delay.saturating_neg()));
        }
    }

    /// One more death. Those before it, by recency: queue and reason. What a client said of deaths counts for nothing.
    pub fn record(&mut self, death: &Death<'_>) {
        self.remove(CLIENT_DEATHS);
        let (queue, reason) = (death.queue.as_bytes(), reason_name(death.reason).as_bytes());
        let is_first = self.get(DEATHS).is_none();
        let mut list = Vec::with_capacity(160 + 2 * death.queue.len() + death.key.len() + death.exchange.len());
        sized(&mut list, b'A', |list| {
            match self.deaths().filter(|d| d.is(queue, reason)).last() {
                Some(before) => before.put_again(list),
                None => self.put_death(list, death),
            }
            self.deaths().filter(|d| !d.is(queue, reason)).for_each(|d| list.put_slice(d.table));
        });
        self.added.reserve(list.len() + 200 + 2 * (queue.len() + death.exchange.len()));
        self.set(DEATHS, &list);
        for (which, wanted) in [("first", is_first), ("last", true)] {
            if wanted {
                let [queue_name, reason_name, exchange_name] = names(which);
                self.set_text(reason_name, reason);
                self.set_text(queue_name, queue);
                self.set_text(exchange_name, death.exchange);
            }
        }
    }

    fn put_death(&self, out: &mut Vec<u8>, death: &Death<'_>) {
        sized(out, b'F', |out| {
            if let Some(expiration) = field(self.list, EXPIRATION) {
                put_name(out, b"original-expiration");
                put_text(out, expiration);
            }
            put(out, b"count", &long(1));
            put_name(out, b"reason");
            put_text(out, reason_name(death.reason).as_bytes());
            put_name(out, b"queue");
            put_text(out, death.queue.as_bytes());
            put_name(out, b"time");
            out.put_u8(b'T');
            out.put_u64(death.time_ms / 1000);
            put_name(out, b"exchange");
            put_text(out, death.exchange);
            put_name(out, b"routing-keys");
            sized(out, b'A', |out| {
                put_text(out, death.key);
                self.listed("CC").filter_map(text).for_each(|key| put_text(out, key));
            });
        });
    }

    fn deaths(&self) -> impl Iterator<Item = Past<'_>> {
        self.listed(DEATHS).map(|table| Past { table })
    }

    /// Whether the message would come back to a queue by itself: it died there, and nobody rejected it since.
    pub fn is_cycle(&self, queue: &str) -> bool {
        for death in self.deaths() {
            if death.text(b"reason") == Some(&b"rejected"[..]) {
                return false;
            }
            if death.text(b"queue") == Some(queue.as_bytes()) {
                return true;
            }
        }
        false
    }

    /// The property list with these headers; `expiration`: keep that field.
    pub fn write(&self, expiration: bool) -> Vec<u8> {
        let Some(parts) = split(self.list) else { return self.list.to_vec() };
        let mut flags = parts.flags | HEADERS;
        if !expiration {
            flags &= !EXPIRATION;
        }
        let changed: usize = self.changed.iter().map(|(_, value)| value.len()).sum();
        let mut out = Vec::with_capacity(self.list.len() + changed + self.added.len() + 4);
        out.put_u16(flags);
        out.put_slice(parts.more_flags);
        out.put_slice(parts.before);
        let size_at = out.len();
        out.put_u32(0);
        for (at, (name, value)) in self.entries.iter().enumerate() {
            let changed = self.changed.iter().find(|(of, _)| *of == at);
            put(&mut out, name, changed.map_or(*value, |(_, value)| value.as_slice()));
        }
        out.put_slice(&self.added);
        let size = (out.len() - size_at - 4) as u32;
        out[size_at..size_at + 4].copy_from_slice(&size.to_be_bytes());
        out.put_slice(parts.between);
        if expiration {
            out.put_slice(parts.expiration);
        }
        out.put_slice(parts.after);
        out
    }
}

/// A recorded death.
struct Past<'a> {
    /// Value with its type.
    table: &'a [u8],
}

impl<'a> Past<'a> {
    fn content(&self) -> &'a [u8] {
        self.table.strip_prefix(b"F").and_then(|b| b.get(4..)).unwrap_or_default()
    }

    fn text(&self, name: &[u8]) -> Option<&'a [u8]> {
        let content = self.content();
        find(content, name).and_then(|value| text(&content[value]))
    }

    fn is(&self, queue: &[u8], reason: &[u8]) -> bool {
        self.text(b"queue") == Some(queue) && self.text(b"reason") == Some(reason)
    }

    /// The same once more.
    fn put_again(&self, out: &mut Vec<u8>) {
        sized(out, b'F', |out| {
            for (name, value) in entries(self.content()).unwrap_or_default() {
                match name {
                    b"count" => put(out, name, &long(count(value).saturating_add(1))),
                    _ => put(out, name, value),
                }
            }
        });
    }
}

fn names(which: &str) -> [&'static str; 3] {
    match which {
        "first" => ["x-first-death-queue", "x-first-death-reason", "x-first-death-exchange"],
        _ => ["x-last-death-queue", "x-last-death-reason", "x-last-death-exchange"],
    }
}

/// A property list around its headers and its expiration.
struct Parts<'a> {
    flags: u16,
    more_flags: &'a [u8],
    before: &'a [u8],
    between: &'a [u8],
    expiration: &'a [u8],
    after: &'a [u8],
}

fn split(list: &[u8]) -> Option<Parts<'_>> {
    let mut rest = list;
    let flags = rest.try_get_u16().ok()?;
    let mut more = flags;
    let flags_from = rest;
    while more & 1 != 0 {
        more = rest.try_get_u16().ok()?;
    }
    let more_flags = &flags_from[..flags_from.len() - rest.len()];
    let start = rest;
    for _ in [CONTENT_TYPE, CONTENT_ENCODING].into_iter().filter(|f| flags & f != 0) {
        skip_short(&mut rest)?;
    }
    let before = &start[..start.len() - rest.len()];
    if flags & HEADERS != 0 {
        let len = rest.try_get_u32().ok()? as usize;
        rest = rest.get(len..)?;
    }
    let start = rest;
    for _ in [DELIVERY_MODE, PRIORITY].into_iter().filter(|f| flags & f != 0) {
        rest = rest.get(1..)?;
    }
    for _ in [CORRELATION_ID, REPLY_TO].into_iter().filter(|f| flags & f != 0) {
        skip_short(&mut rest)?;
    }
    let between = &start[..start.len() - rest.len()];
    let start = rest;
    if flags & EXPIRATION != 0 {
        skip_short(&mut rest)?;
    }
    Some(Parts { flags, more_flags, before, between, expiration: &start[..start.len() - rest.len()], after: rest })
}

fn skip_short(rest: &mut &[u8]) -> Option<()> {
    let len = usize::from(rest.try_get_u8().ok()?);
    *rest = rest.get(len..)?;
    Some(())
}

/// The entries of a table's content.
fn entries(mut body: &[u8]) -> Option<Vec<Entry<'_>>> {
    let mut out = Vec::new();
    while !body.is_empty() {
        let (name, value, rest) = first_entry(body)?;
        out.push((name, value));
        body = rest;
    }
    Some(out)
}

/// The first entry of a table's content, and what follows it.
fn first_entry(body: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (len, rest) = body.split_first()?;
    let (name, rest) = rest.split_at_checked(usize::from(*len))?;
    let (value, rest) = rest.split_at_checked(value_len(rest, 0)?)?;
    Some((name, value, rest))
}

/// Where in a table's content the value with this name lies.
fn find(body: &[u8], name: &[u8]) -> Option<Range<usize>> {
    let mut rest = body;
    while let Some((of, value, behind)) = first_entry(rest) {
        if of == name {
            let end = body.len() - behind.len();
            return Some(end - value.len()..end);
        }
        rest = behind;
    }
    None
}

/// The values of an array, given with its type.
fn items(array: &[u8]) -> Option<Vec<&[u8]>> {
    let mut body = array.strip_prefix(b"A")?;
    let len = body.try_get_u32().ok()? as usize;
    let mut body = body.get(..len)?;
    let mut out = Vec::new();
    while !body.is_empty() {
        let (value, rest) = body.split_at_checked(value_len(body, 0)?)?;
        out.push(value);
        body = rest;
    }
    Some(out)
}

fn text(value: &[u8]) -> Option<&[u8]> {
    value.strip_prefix(b"S")?.get(4..)
}

fn count(value: &[u8]) -> i64 {
    match value.split_first() {
        Some((b'l' | b'L', rest)) => rest.first_chunk::<8>().map_or(0, |b| i64::from_be_bytes(*b)),
        Some((b'I', rest)) => rest.first_chunk::<4>().map_or(0, |b| i32::from_be_bytes(*b).into()),
        _ => 0,
    }
}

/// In 32 bits where they do.
fn integer(number: i64) -> SmallVec<[u8; 9]> {
    match i32::try_from(number) {
        Ok(short) => std::iter::once(b'I').chain(short.to_be_bytes()).collect(),
        Err(_) => SmallVec::from(long(number)),
    }
}

fn long(number: i64) -> [u8; 9] {
    let mut out = [b'l'; 9];
    out[1..].copy_from_slice(&number.to_be_bytes());
    out
}

/// A value with its length in front.
fn sized(out: &mut Vec<u8>, kind: u8, fill: impl FnOnce(&mut Vec<u8>)) {
    out.put_u8(kind);
    let size_at = out.len();
    out.put_u32(0);
    fill(out);
    let size = (out.len() - size_at - 4) as u32;
    out[size_at..size_at + 4].copy_from_slice(&size.to_be_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    out.put_u8(b'S');
    out.put_u32(text.len() as u32);
    out.put_slice(text);
}

fn put_name(out: &mut Vec<u8>, name: &[u8]) {
    out.put_u8(name.len() as u8);
    out.put_slice(name);
}

fn put(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    put_name(out, name);
    out.put_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn death(queue: &str, reason: SettleReason) -> Death<'_> {
        Death { queue, reason, time_ms: 12_345, exchange: b"x", key: b"k" }
    }

    fn list() -> Vec<u8> {
        let mut list = Vec::new();
        list.put_u16(CONTENT_TYPE | HEADERS | 1 << 12 | 1 << 9 | EXPIRATION | 1 << 7);
        list.put_slice(b"\x04text");
        let mut body = Vec::new();
        put(&mut body, b"mine", b"b\x07");
        put_name(&mut body, b"CC");
        sized(&mut body, b'A', |out| put_text(out, b"c1"));
        list.put_u32(body.len() as u32);
        list.put_slice(&body);
        list.put_slice(b"\x02\x02to\x0210\x03mid");
        list
    }

    #[test]
    fn a_death_is_recorded_as_rabbitmq_writes_it() {
        let properties = list();
        let mut headers = Headers::of(&properties);
        headers.record(&death("q", SettleReason::Expired));
        let written = headers.write(false);
        assert_eq!(field(&written, EXPIRATION), None);
        assert_eq!(field(&written, CONTENT_TYPE), Some(&b"text"[..]));
        assert!(written.ends_with(b"\x02\x02to\x03mid"), "all other fields stay");
        let again = Headers::of(&written);
        assert_eq!(again.get("mine"), Some(&b"b\x07"[..]));
        let names: Vec<_> = again.entries.iter().map(|e| String::from_utf8_lossy(e.0).into_owned()).collect();
        let wanted = ["mine", "CC", "x-death", "x-first-death-reason", "x-first-death-queue", "x-first-death-exchange"];
        assert_eq!(names[..6], wanted);
        let past = again.deaths().next().expect("one");
        let names: Vec<_> = entries(&past.table[5..]).expect("a table").into_iter().map(|e| e.0.to_vec()).collect();
        let wanted: [&[u8]; 7] = [b"original-expiration", b"count", b"reason", b"queue", b"time", b"exchange", b"routing-keys"];
        assert_eq!(names, wanted);
        assert_eq!(past.text(b"reason"), Some(&b"expired"[..]));
        assert_eq!(past.text(b"original-expiration"), Some(&b"10"[..]));
        assert!(past.table.windows(8).any(|w| w == b"\0\0\0\x02c1\x00\x00" || w.ends_with(b"c1")), "CC is among the keys");
    }

    #[test]
    fn what_a_client_says_of_deaths_is_neither_read_nor_kept() {
        let mut died = Headers::of(&[0, 0]);
        died.record(&death("q", SettleReason::Expired));
        let written = died.write(true);
        assert!(Headers::of(&written).is_cycle("q"));
        let mut said = Headers::of(&written);
        said.rename(DEATHS, CLIENT_DEATHS);
        let published = said.write(true);
        let mut headers = Headers::of(&published);
        assert!(!headers.is_cycle("q"));
        headers.record(&death("r", SettleReason::Expired));
        assert!(headers.is_cycle("r") && !headers.is_cycle("q"));
        assert_eq!(headers.deaths().count(), 1);
        assert_eq!(headers.get("x-first-death-queue"), Some(&b"S\0\0\0\x01r"[..]));
        assert_eq!(headers.get(CLIENT_DEATHS), None);
    }

    #[test]
    fn the_same_death_counts_and_comes_first() {
        let properties = [0u8, 0];
        let mut headers = Headers::of(&properties);
        headers.record(&death("a", SettleReason::Reject));
        headers.record(&death("b", SettleReason::MaxLength));
        headers.record(&death("a", SettleReason::Reject));
        let deaths: Vec<Past<'_>> = headers.deaths().collect();
        let shown: Vec<_> = deaths.iter().map(|d| (d.text(b"queue").unwrap_or_default(), d.text(b"reason").unwrap_or_default())).collect();
        assert_eq!(shown, [(&b"a"[..], &b"rejected"[..]), (&b"b"[..], &b"maxlen"[..])]);
        let counts: Vec<_> = deaths.iter().map(|d| entries(&d.table[5..]).expect("a table")[0].1).collect();
        assert_eq!(counts, [long(2), long(1)]);
        assert_eq!(text(headers.get("x-first-death-reason").expect("set")), Some(&b"rejected"[..]));
        assert_eq!(text(headers.get("x-last-death-queue").expect("set")), Some(&b"a"[..]));
    }

    #[test]
    fn a_cycle_is_one_without_a_reject() {
        let properties = [0u8, 0];
        let mut headers = Headers::of(&properties);
        headers.record(&death("a", SettleReason::Expired));
        assert!(headers.is_cycle("a"));
        assert!(!headers.is_cycle("b"));
        headers.record(&death("b", SettleReason::Reject));
        assert!(!headers.is_cycle("a"), "a client rejected it since");
        headers.record(&death("a", SettleReason::Expired));
        assert!(headers.is_cycle("a"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(mut bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            for head in [None, Some([0x20u8, 0])] {
                if let (Some(head), true) = (head, bytes.len() > 1) {
                    bytes[..2].copy_from_slice(&head);
                }
                let mut headers = Headers::of(&bytes);
                headers.record(&death("q", SettleReason::Reject));
                let _ = (headers.keys("CC"), headers.is_cycle("q"), headers.write(true), headers.write(false));
            }
        }
    }
}
