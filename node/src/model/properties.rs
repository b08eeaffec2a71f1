//! The property list of a message as on the wire (spec 4.2.6.1), walked without decoding it: what the broker itself acts on. Used by
//! `entry` (what an enqueue tells the machine), the session (form), the edge (headers, dead letters).

use super::settings::EXPIRY_MAX_MS;
use bytes::{Buf, BufMut};

/// Flag of content-type.
pub const CONTENT_TYPE: u16 = 1 << 15;
/// Flag of content-encoding.
pub const CONTENT_ENCODING: u16 = 1 << 14;
/// Flag of the headers table.
pub const HEADERS: u16 = 1 << 13;
/// Flag of delivery-mode.
pub const DELIVERY_MODE: u16 = 1 << 12;
/// Flag of priority.
pub const PRIORITY: u16 = 1 << 11;
/// Flag of correlation-id.
pub const CORRELATION_ID: u16 = 1 << 10;
/// Flag of reply-to.
pub const REPLY_TO: u16 = 1 << 9;
/// Flag of expiration.
pub const EXPIRATION: u16 = 1 << 8;
const MESSAGE_ID: u16 = 1 << 7;
const TIMESTAMP: u16 = 1 << 6;
const TYPE: u16 = 1 << 5;
const USER_ID: u16 = 1 << 4;
const APP_ID: u16 = 1 << 3;
const CLUSTER_ID: u16 = 1 << 2;

/// How `BCC` is called in a stored message: no client sees it, a dead letter goes by it (RabbitMQ keeps the routing keys apart).
pub const BLIND_COPIES: &str = "\0CC";

/// The record of a message's deaths, which the broker writes.
pub const DEATHS: &str = "x-death";
/// How an `x-death` that a client sent is called in a stored message: it is shown to consumers as it came, until the broker has a record of its
/// own, and is never read (RabbitMQ since 4.0).
pub const CLIENT_DEATHS: &str = "\0-death";

/// A stored message has headers that its consumers do not see as they are stored.
pub fn has_hidden(list: &[u8]) -> bool {
    field(list, HEADERS).is_some_and(|table| entries(table).any(|(name, _)| name.first() == Some(&0)))
}

/// Nesting of tables and arrays that is looked through.
const DEPTH_MAX: u8 = 32;

/// What a message asks of the queues it goes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traits {
    /// Time to live, ms.
    pub expiration_ms: Option<u64>,
    /// Higher ones first, where a queue tells them apart.
    pub priority: u8,
}

impl Traits {
    /// Of a message with these properties. What is malformed counts as absent.
    pub fn of(properties: &[u8]) -> Traits {
        let Some([a, b]) = properties.first_chunk::<2>() else { return Traits::default() };
        if u16::from_be_bytes([*a, *b]) & (PRIORITY | EXPIRATION) == 0 {
            return Traits::default();
        }
        let priority = field(properties, PRIORITY).and_then(|p| p.first().copied()).unwrap_or(0);
        let expiration_ms = field(properties, EXPIRATION).and_then(|text| check_expiration(text).ok());
        Traits { expiration_ms, priority }
    }
}

/// The value of one of the fields up to expiration: of a short string and a table without their length.
pub fn field(mut list: &[u8], wanted: u16) -> Option<&[u8]> {
    let flags = list.try_get_u16().ok()?;
    let mut more = flags;
    while more & 1 != 0 {
        more = list.try_get_u16().ok()?;
    }
    if flags & wanted == 0 {
        return None;
    }
    let fields = [CONTENT_TYPE, CONTENT_ENCODING, HEADERS, DELIVERY_MODE, PRIORITY, CORRELATION_ID, REPLY_TO, EXPIRATION];
    for flag in fields.into_iter().filter(|f| flags & f != 0) {
        let len = match flag {
            HEADERS => list.try_get_u32().ok()? as usize,
            DELIVERY_MODE | PRIORITY => 1,
            _ => usize::from(list.try_get_u8().ok()?),
        };
        let (value, rest) = list.split_at_checked(len)?;
        if flag == wanted {
            return Some(value);
        }
        list = rest;
    }
    None
}

/// A header's value with its type in front, as the client wrote it; builds nothing.
pub fn header<'a>(properties: &'a [u8], name: &str) -> Option<&'a [u8]> {
    entries(field(properties, HEADERS)?).find(|(key, _)| *key == name.as_bytes()).map(|(_, value)| value)
}

/// The entries of a table: their names, and their values with the type in front. Ends at what is malformed.
pub fn entries(table: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut rest = table;
    std::iter::from_fn(move || {
        let len = rest.try_get_u8().ok()?;
        let (key, value) = rest.split_at_checked(usize::from(len))?;
        let (value, next) = value.split_at_checked(value_len(value, 0)?)?;
        rest = next;
        Some((key, value))
    })
}

/// Takes an array's item with its type in front off the front of `bytes`.
pub fn item<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (item, rest) = bytes.split_at_checked(value_len(bytes, 0)?)?;
    *bytes = rest;
    Some(item)
}

/// All fields of a property list, borrowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Fields<'a> {
    pub content_type: Option<&'a [u8]>,
    pub content_encoding: Option<&'a [u8]>,
    /// The table's entries, without their length.
    pub headers: Option<&'a [u8]>,
    pub delivery_mode: Option<u8>,
    pub priority: Option<u8>,
    pub correlation_id: Option<&'a [u8]>,
    pub reply_to: Option<&'a [u8]>,
    pub expiration: Option<&'a [u8]>,
    pub message_id: Option<&'a [u8]>,
    /// Seconds since the epoch.
    pub timestamp: Option<u64>,
    pub kind: Option<&'a [u8]>,
    pub user_id: Option<&'a [u8]>,
    pub app_id: Option<&'a [u8]>,
    pub cluster_id: Option<&'a [u8]>,
}

impl<'a> Fields<'a> {
    /// Reads a list; `None` when it is not what its flags promise, down to the values within headers.
    pub fn parse(mut list: &'a [u8]) -> Option<Fields<'a>> {
        let flags = list.try_get_u16().ok()?;
        let mut short = |flag: u16| -> Option<Option<&'a [u8]>> {
            if flags & flag == 0 {
                return Some(None);
            }
            let len = match flag {
                HEADERS => list.try_get_u32().ok()? as usize,
                DELIVERY_MODE | PRIORITY => 1,
                TIMESTAMP => 8,
                _ => usize::from(list.try_get_u8().ok()?),
            };
            let (value, rest) = list.split_at_checked(len)?;
            list = rest;
            Some(Some(value))
        };
        let octet = |value: Option<&[u8]>| value.and_then(|v| v.first().copied());
        let fields = Fields {
            content_type: short(CONTENT_TYPE)?,
            content_encoding: short(CONTENT_ENCODING)?,
            headers: short(HEADERS)?,
            delivery_mode: octet(short(DELIVERY_MODE)?),
            priority: octet(short(PRIORITY)?),
            correlation_id: short(CORRELATION_ID)?,
            reply_to: short(REPLY_TO)?,
            expiration: short(EXPIRATION)?,
            message_id: short(MESSAGE_ID)?,
            timestamp: short(TIMESTAMP)?.and_then(|v| v.try_into().ok()).map(u64::from_be_bytes),
            kind: short(TYPE)?,
            user_id: short(USER_ID)?,
            app_id: short(APP_ID)?,
            cluster_id: short(CLUSTER_ID)?,
        };
        let is_whole = flags & 0b11 == 0 && list.is_empty() && fields.headers.is_none_or(|table| is_table(table, 0));
        is_whole.then_some(fields)
    }

    /// Appends the list. Text is cut at 255 bytes, `headers` must be a table's entries.
    pub fn write(&self, out: &mut impl BufMut) {
        let texts_before = [(CONTENT_TYPE, self.content_type), (CONTENT_ENCODING, self.content_encoding)];
        let texts = [
            (CORRELATION_ID, self.correlation_id),
            (REPLY_TO, self.reply_to),
            (EXPIRATION, self.expiration),
            (MESSAGE_ID, self.message_id),
        ];
        let texts_behind = [(TYPE, self.kind), (USER_ID, self.user_id), (APP_ID, self.app_id), (CLUSTER_ID, self.cluster_id)];
        let present = |fields: &[(u16, Option<&[u8]>)]| fields.iter().filter(|f| f.1.is_some()).fold(0, |flags, f| flags | f.0);
        let mut flags = present(&texts_before) | present(&texts) | present(&texts_behind);
        flags |= if self.headers.is_some() { HEADERS } else { 0 };
        flags |= if self.delivery_mode.is_some() { DELIVERY_MODE } else { 0 };
        flags |= if self.priority.is_some() { PRIORITY } else { 0 };
        flags |= if self.timestamp.is_some() { TIMESTAMP } else { 0 };
        out.put_u16(flags);
        put_texts(out, &texts_before);
        if let Some(headers) = self.headers {
            out.put_u32(headers.len() as u32);
            out.put_slice(headers);
        }
        [self.delivery_mode, self.priority].into_iter().flatten().for_each(|octet| out.put_u8(octet));
        put_texts(out, &texts);
        self.timestamp.into_iter().for_each(|seconds| out.put_u64(seconds));
        put_texts(out, &texts_behind);
    }
}

fn put_texts(out: &mut impl BufMut, fields: &[(u16, Option<&[u8]>)]) {
    for text in fields.iter().filter_map(|f| f.1) {
        let text = &text[..text.len().min(usize::from(u8::MAX))];
        out.put_u8(text.len() as u8);
        out.put_slice(text);
    }
}

/// Whether these are the entries of a table, with well-formed values all the way down.
fn is_table(mut bytes: &[u8], depth: u8) -> bool {
    while !bytes.is_empty() {
        let Ok(len) = bytes.try_get_u8() else { return false };
        let Some((_, value)) = bytes.split_at_checked(usize::from(len)) else { return false };
        bytes = value;
        if !is_value(&mut bytes, depth) {
            return false;
        }
    }
    true
}

fn is_value(bytes: &mut &[u8], depth: u8) -> bool {
    let Some((value, rest)) = value_len(bytes, depth).and_then(|len| bytes.split_at_checked(len)) else { return false };
    *bytes = rest;
    match value[0] {
        b'F' => is_table(&value[5..], depth + 1),
        b'A' => {
            let mut items = &value[5..];
            while !items.is_empty() {
                if !is_value(&mut items, depth + 1) {
                    return false;
                }
            }
            true
        }
        _ => true,
    }
}

/// Bytes of a field table's value with its type (spec 4.2.5.5 and its errata); `depth`: nesting of those around it.
pub(super) fn value_len(bytes: &[u8], depth: u8) -> Option<usize> {
    let (kind, rest) = bytes.split_first()?;
    let len = match kind {
        b'V' => 0,
        b't' | b'b' | b'B' => 1,
        b's' | b'u' => 2,
        b'I' | b'i' | b'f' => 4,
        b'D' => 5,
        b'l' | b'L' | b'd' | b'T' => 8,
        b'S' | b'x' | b'F' | b'A' if depth < DEPTH_MAX => 4 + u32::from_be_bytes(*rest.first_chunk::<4>()?) as usize,
        _ => return None,
    };
    (rest.len() >= len).then_some(1 + len)
}

/// An expiration in ms, or why not, in RabbitMQ's words (`rabbit_basic:parse_expiration`).
pub fn check_expiration(text: &[u8]) -> Result<u64, String> {
    let digits_from = usize::from(matches!(text.first(), Some(b'-' | b'+')));
    let end = digits_from + text[digits_from..].iter().take_while(|b| b.is_ascii_digit()).count();
    if end == digits_from {
        return Err("no_integer".to_owned());
    }
    let (number, rest) = (String::from_utf8_lossy(&text[..end]), String::from_utf8_lossy(&text[end..]));
    if !rest.is_empty() {
        return Err(format!("{{leftover_string,\"{rest}\"}}"));
    }
    let value: i128 = number.parse().unwrap_or(i128::MAX);
    match u64::try_from(value) {
        Ok(ms) if ms <= EXPIRY_MAX_MS as u64 => Ok(ms),
        _ if value < 0 => Err(format!("{{value_negative,{value}}}")),
        _ => Err(format!("{{value_too_large,{}}}", number.trim_start_matches('+'))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn properties() -> Vec<u8> {
        let mut list = Vec::new();
        list.put_u16(CONTENT_TYPE | HEADERS | DELIVERY_MODE | PRIORITY | REPLY_TO | EXPIRATION);
        list.put_slice(b"\x04text");
        list.put_u32(3);
        list.put_slice(b"\x01kV");
        list.put_u8(2);
        list.put_u8(7);
        list.put_slice(b"\x02to");
        list.put_slice(b"\x0560000");
        list
    }

    #[test]
    fn finds_what_the_broker_acts_on() {
        assert_eq!(Traits::of(&properties()), Traits { expiration_ms: Some(60_000), priority: 7 });
        assert_eq!(field(&properties(), HEADERS), Some(&b"\x01kV"[..]));
        assert_eq!(field(&properties(), REPLY_TO), Some(&b"to"[..]));
        assert_eq!(field(&properties(), CORRELATION_ID), None);
        assert_eq!(Traits::of(&[0, 0]), Traits::default());
    }

    #[test]
    fn an_expiration_is_refused_in_rabbitmqs_words() {
        assert_eq!(check_expiration(b"0"), Ok(0));
        assert_eq!(check_expiration(b"315360000000"), Ok(315_360_000_000));
        for (text, why) in [
            ("abc", "no_integer"),
            ("", "no_integer"),
            ("10ms", "{leftover_string,\"ms\"}"),
            ("-1", "{value_negative,-1}"),
            ("315360000001", "{value_too_large,315360000001}"),
        ] {
            assert_eq!(check_expiration(text.as_bytes()), Err(why.to_owned()), "{text}");
        }
    }

    #[test]
    fn all_fields_of_a_list_are_read_and_written() {
        let list = properties();
        let fields = Fields::parse(&list).expect("well-formed");
        assert_eq!((fields.content_type, fields.priority, fields.headers), (Some(&b"text"[..]), Some(7), Some(&b"\x01kV"[..])));
        let all = Fields { cluster_id: Some(b"c"), kind: Some(b"k"), timestamp: Some(1 << 40), ..fields };
        let mut out = Vec::new();
        all.write(&mut out);
        assert_eq!(Fields::parse(&out), Some(all));
        for cut in 0..list.len() {
            assert_eq!(Fields::parse(&list[..cut]), None, "{cut} bytes of {}", list.len());
        }
        let inner = [&[0x20, 0, 0, 0, 0, 9][..], b"\x01kF\0\0\0\x02", b"\x05k"].concat();
        assert_eq!(Fields::parse(&inner), None, "the table within the table is cut short");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            Traits::of(&bytes);
            if let Some(fields) = Fields::parse(&bytes) {
                let mut out = Vec::new();
                fields.write(&mut out);
                prop_assert_eq!(&out, &bytes);
            }
            let _ = check_expiration(&bytes);
        }
    }
}
