//! A message's property list rewritten by the broker: the record of its deaths when it is dead-lettered (`x-death`, as RabbitMQ writes it),
//! the count of its failed deliveries. Other fields and headers stay byte for byte what the client sent. Pure; used by the edge and the
//! session.

use super::entry::SettleReason;
use super::properties::{
    CONTENT_ENCODING, CONTENT_TYPE, CORRELATION_ID, DELIVERY_MODE, EXPIRATION, HEADERS, PRIORITY, REPLY_TO, field, value_len,
};
use super::store;
use bytes::{Buf, BufMut};

/// A header: its name, and its value with the type in front.
type Entry<'a> = (&'a [u8], Vec<u8>);

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

/// A message's headers, writable.
#[derive(Clone, Debug)]
pub struct Headers<'a> {
    list: &'a [u8],
    entries: Vec<Entry<'a>>,
}

impl<'a> Headers<'a> {
    /// Of a property list (flags and fields). A table that cannot be read counts as empty.
    pub fn of(list: &'a [u8]) -> Headers<'a> {
        let entries = field(list, HEADERS).and_then(entries).unwrap_or_default();
        Headers { list, entries }
    }

    fn get(&self, name: &str) -> Option<&[u8]> {
        self.entries.iter().find(|e| e.0 == name.as_bytes()).map(|e| e.1.as_slice())
    }

    /// Sets a header, in its place or at the end.
    fn set(&mut self, name: &'static str, value: Vec<u8>) {
        match self.entries.iter_mut().find(|e| e.0 == name.as_bytes()) {
            Some(entry) => entry.1 = value,
            None => self.entries.push((name.as_bytes(), value)),
        }
    }

    /// Takes a header away.
    pub fn remove(&mut self, name: &str) {
        self.entries.retain(|e| e.0 != name.as_bytes());
    }

    /// Routing keys beside the message's own: `CC` or `BCC`.
    pub fn keys(&self, name: &str) -> Vec<Vec<u8>> {
        let items = self.get(name).and_then(|v| v.strip_prefix(b"A")).and_then(items).unwrap_or_default();
        items.iter().filter_map(|item| text(item)).map(<[u8]>::to_vec).collect()
    }

    /// Failed deliveries so far.
    pub fn set_delivery_count(&mut self, count: u32) {
        self.set("x-delivery-count", long(count.into()));
    }

    /// Its delay is over: the header turns negative, so that the message is not delayed again and a consumer sees that it was.
    pub fn end_delay(&mut self) {
        if let Some(delay) = self.get(store::DELAY).and_then(store::whole) {
            self.set(store::DELAY, integer(delay.saturating_neg()));
        }
    }

    /// One more death. Those before it, by recency: queue and reason.
    pub fn record(&mut self, death: &Death<'_>) {
        let (queue, reason) = (death.queue.as_bytes(), reason_name(death.reason).as_bytes());
        let deaths = self.deaths();
        let (mut same, others): (Vec<_>, Vec<_>) = deaths.into_iter().partition(|d| d.is(queue, reason));
        let first = self.get("x-death").is_none();
        let table = match same.pop() {
            Some(before) => before.again(),
            None => self.new_death(death),
        };
        let mut list = vec![table];
        list.extend(others.into_iter().map(|d| d.table));
        self.set("x-death", array(&list));
        for (which, set) in [("first", first), ("last", true)] {
            if set {
                let [queue_name, reason_name, exchange_name] = names(which);
                self.set(reason_name, long_text(reason));
                self.set(queue_name, long_text(queue));
                self.set(exchange_name, long_text(death.exchange));
            }
        }
    }

    fn new_death(&self, death: &Death<'_>) -> Vec<u8> {
        let mut keys = vec![long_text(death.key)];
        keys.extend(self.keys("CC").iter().map(|key| long_text(key)));
        let mut out = Vec::new();
        if let Some(expiration) = field(self.list, EXPIRATION) {
            put(&mut out, b"original-expiration", &long_text(expiration));
        }
        put(&mut out, b"count", &long(1));
        put(&mut out, b"reason", &long_text(reason_name(death.reason).as_bytes()));
        put(&mut out, b"queue", &long_text(death.queue.as_bytes()));
        let mut time = vec![b'T'];
        time.put_u64(death.time_ms / 1000);
        put(&mut out, b"time", &time);
        put(&mut out, b"exchange", &long_text(death.exchange));
        put(&mut out, b"routing-keys", &array(&keys));
        table(&out)
    }

    fn deaths(&self) -> Vec<Past> {
        let items = self.get("x-death").and_then(|v| v.strip_prefix(b"A")).and_then(items).unwrap_or_default();
        items.into_iter().map(|table| Past { table }).collect()
    }

    /// Whether the message would come back to a queue by itself: it died there, and nobody rejected it since.
    pub fn is_cycle(&self, queue: &str) -> bool {
        let deaths = self.deaths();
        match deaths.iter().position(|d| d.text(b"queue").as_deref() == Some(queue.as_bytes())) {
            None => false,
            Some(at) => deaths[..=at].iter().all(|d| d.text(b"reason").as_deref() != Some(b"rejected")),
        }
    }

    /// The property list with these headers; `expiration`: keep that field.
    pub fn write(&self, expiration: bool) -> Vec<u8> {
        let Some(parts) = split(self.list) else { return self.list.to_vec() };
        let mut flags = parts.flags | HEADERS;
        if !expiration {
            flags &= !EXPIRATION;
        }
        let mut body = Vec::new();
        self.entries.iter().for_each(|(name, value)| put(&mut body, name, value));
        let mut out = Vec::with_capacity(self.list.len() + body.len() + 8);
        out.put_u16(flags);
        out.put_slice(parts.more_flags);
        out.put_slice(parts.before);
        out.put_u32(body.len() as u32);
        out.put_slice(&body);
        out.put_slice(parts.between);
        if expiration {
            out.put_slice(parts.expiration);
        }
        out.put_slice(parts.after);
        out
    }
}

/// A recorded death.
struct Past {
    /// Value with its type.
    table: Vec<u8>,
}

impl Past {
    fn text(&self, name: &[u8]) -> Option<Vec<u8>> {
        let body = self.table.strip_prefix(b"F")?.get(4..)?;
        let entries = entries(body)?;
        let value = entries.into_iter().find(|e| e.0 == name)?.1;
        text(&value).map(<[u8]>::to_vec)
    }

    fn is(&self, queue: &[u8], reason: &[u8]) -> bool {
        self.text(b"queue").as_deref() == Some(queue) && self.text(b"reason").as_deref() == Some(reason)
    }

    /// The same once more.
    fn again(&self) -> Vec<u8> {
        let entries = self.table.strip_prefix(b"F").and_then(|b| b.get(4..)).and_then(entries).unwrap_or_default();
        let mut out = Vec::new();
        for (name, value) in &entries {
            let counted = (*name == b"count").then(|| long(count(value).saturating_add(1)));
            put(&mut out, name, counted.as_ref().unwrap_or(value));
        }
        table(&out)
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
        let len = usize::from(body.try_get_u8().ok()?);
        let (name, rest) = body.split_at_checked(len)?;
        let size = value_len(rest, 0)?;
        out.push((name, rest[..size].to_vec()));
        body = &rest[size..];
    }
    Some(out)
}

/// The values of an array, given with its length.
fn items(mut body: &[u8]) -> Option<Vec<Vec<u8>>> {
    let len = body.try_get_u32().ok()? as usize;
    let mut body = body.get(..len)?;
    let mut out = Vec::new();
    while !body.is_empty() {
        let size = value_len(body, 0)?;
        out.push(body[..size].to_vec());
        body = &body[size..];
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
fn integer(number: i64) -> Vec<u8> {
    match i32::try_from(number) {
        Ok(short) => [&b"I"[..], &short.to_be_bytes()].concat(),
        Err(_) => long(number),
    }
}

fn long(number: i64) -> Vec<u8> {
    let mut out = vec![b'l'];
    out.put_i64(number);
    out
}

fn sized(kind: u8, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(5 + content.len());
    out.put_u8(kind);
    out.put_u32(content.len() as u32);
    out.put_slice(content);
    out
}

fn long_text(text: &[u8]) -> Vec<u8> {
    sized(b'S', text)
}

fn table(content: &[u8]) -> Vec<u8> {
    sized(b'F', content)
}

fn array(values: &[Vec<u8>]) -> Vec<u8> {
    sized(b'A', &values.concat())
}

fn put(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.put_u8(name.len() as u8);
    out.put_slice(name);
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
        put(&mut body, b"CC", &array(&[long_text(b"c1")]));
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
        let past = &again.deaths()[0];
        let names: Vec<_> = entries(&past.table[5..]).expect("a table").into_iter().map(|e| e.0.to_vec()).collect();
        let wanted: [&[u8]; 7] = [b"original-expiration", b"count", b"reason", b"queue", b"time", b"exchange", b"routing-keys"];
        assert_eq!(names, wanted);
        assert_eq!(past.text(b"reason").as_deref(), Some(&b"expired"[..]));
        assert_eq!(past.text(b"original-expiration").as_deref(), Some(&b"10"[..]));
        assert!(past.table.windows(8).any(|w| w == b"\0\0\0\x02c1\x00\x00" || w.ends_with(b"c1")), "CC is among the keys");
    }

    #[test]
    fn the_same_death_counts_and_comes_first() {
        let properties = [0u8, 0];
        let mut headers = Headers::of(&properties);
        headers.record(&death("a", SettleReason::Reject));
        headers.record(&death("b", SettleReason::MaxLength));
        headers.record(&death("a", SettleReason::Reject));
        let deaths = headers.deaths();
        let shown: Vec<_> = deaths.iter().map(|d| (d.text(b"queue").unwrap_or_default(), d.text(b"reason").unwrap_or_default())).collect();
        assert_eq!(shown, [(b"a".to_vec(), b"rejected".to_vec()), (b"b".to_vec(), b"maxlen".to_vec())]);
        let counts: Vec<_> = deaths.iter().map(|d| entries(&d.table[5..]).expect("a table")[0].1.clone()).collect();
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
