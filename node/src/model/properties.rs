//! The property list of a message as on the wire (spec 4.2.6.1), walked without decoding it: what the broker itself acts on. Used by
//! `entry` (what an enqueue tells the machine), the session (form), the edge (headers, dead letters).

use super::settings::EXPIRY_MAX_MS;
use bytes::Buf;

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

/// How `BCC` is called in a stored message: no client sees it, a dead letter goes by it (RabbitMQ keeps the routing keys apart).
pub const BLIND_COPIES: &str = "\0CC";

/// A stored message has routing keys that its consumers are not to see.
pub fn has_blind_copies(list: &[u8]) -> bool {
    field(list, HEADERS).is_some_and(|table| table.windows(4).any(|bytes| bytes == b"\x03\0CC"))
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
    let mut rest = field(properties, HEADERS)?;
    while let Ok(len) = rest.try_get_u8() {
        let (key, value) = rest.split_at_checked(usize::from(len))?;
        let (value, next) = value.split_at_checked(value_len(value, 0)?)?;
        if key == name.as_bytes() {
            return Some(value);
        }
        rest = next;
    }
    None
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
    use bytes::BufMut;
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

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            Traits::of(&bytes);
            let _ = check_expiration(&bytes);
        }
    }
}
