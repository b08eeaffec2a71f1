//! Exchanges that keep messages: what their declarations and their messages ask for. An exchange keeps them in a queue that nobody sees
//! ([`super::catalog::QueueRecord::backs`]). Used by the session and the catalog (declarations), the edge and the machine (messages).
//! Semantics and texts are those of RabbitMQ's plugins for x-delayed-message and x-recent-history.

use super::catalog::{ExchangeKind, Table, Value};
use super::deduplication::{self, Deduplication};
use super::entry::SettleReason;
use super::limits;
use super::properties::header;
use serde::{Deserialize, Serialize};

/// What a queue behind an exchange does with its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Store {
    /// Lets each go when its time has come.
    Delayed,
    /// Keeps the last ones, for queues that are bound later.
    History {
        /// So many, at least 1.
        length: u64,
    },
    /// Lets each go at once, unless it came before.
    Unique(Deduplication),
}

impl Store {
    /// Why messages leave it by themselves; `None`: they do not.
    pub fn leaving(self) -> Option<SettleReason> {
        match self {
            Store::Delayed => Some(SettleReason::Due),
            Store::Unique(_) => Some(SettleReason::First),
            Store::History { .. } => None,
        }
    }
}

/// Argument: how a delayed exchange routes.
pub const DELAYED_TYPE: &str = "x-delayed-type";
/// Argument: messages that an exchange with history keeps.
pub const HISTORY_LENGTH: &str = "x-recent-history-length";
/// Messages that an exchange with history keeps unless told otherwise (the plugin's default).
pub const HISTORY_LENGTH_DEFAULT: u64 = 20;
/// Header: a delay in ms.
pub const DELAY: &str = "x-delay";
/// Longest delay, ms, 49 days; a longer one is none, as in the plugin.
pub const DELAY_MAX_MS: i64 = 4_294_967_295;
const NO_STORE: &str = "x-recent-history-no-store";

/// Why an exchange with these arguments cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// A kind that there is not.
    UnknownKind(String),
    /// Another reason.
    Argument(String),
}

/// The kind that a delayed exchange routes as.
pub fn delayed_kind(arguments: &Table) -> Result<ExchangeKind, Invalid> {
    let invalid = || Invalid::Argument(format!("Invalid argument, '{DELAYED_TYPE}' must be an existing exchange type"));
    let Some(Value::Text(name)) = arguments.get(DELAYED_TYPE) else { return Err(invalid()) };
    let unknown = || Invalid::UnknownKind(String::from_utf8_lossy(name).into_owned());
    let kind = ExchangeKind::of_text(name).ok_or_else(unknown)?;
    // What keeps messages itself cannot be kept by another.
    if kind.keeps_messages() { Err(invalid()) } else { Ok(kind) }
}

/// What an exchange of this kind keeps.
pub fn of_exchange(kind: ExchangeKind, arguments: &Table) -> Result<Option<Store>, Invalid> {
    match kind {
        ExchangeKind::Delayed => delayed_kind(arguments).map(|_| Some(Store::Delayed)),
        ExchangeKind::RecentHistory => match arguments.get(HISTORY_LENGTH) {
            None => Ok(Some(Store::History { length: HISTORY_LENGTH_DEFAULT })),
            Some(Value::Int(length)) if *length > limits::HISTORY_MESSAGES => {
                let most = limits::HISTORY_MESSAGES;
                Err(Invalid::Argument(format!("Invalid argument {length}, '{HISTORY_LENGTH}' must be {most} at most")))
            }
            Some(Value::Int(length)) if *length > 0 => Ok(Some(Store::History { length: *length as u64 })),
            Some(other) => {
                let why = format!("Invalid argument {}, '{HISTORY_LENGTH}' must be a positive integer", other.text());
                Err(Invalid::Argument(why))
            }
        },
        ExchangeKind::Deduplication => deduplication(arguments).map(|unique| Some(Store::Unique(unique))),
        ExchangeKind::Direct
        | ExchangeKind::Fanout
        | ExchangeKind::Topic
        | ExchangeKind::Headers
        | ExchangeKind::ConsistentHash
        | ExchangeKind::ModulusHash
        | ExchangeKind::Random
        | ExchangeKind::LocalRandom
        | ExchangeKind::RocketTopic => Ok(None),
    }
}

/// What an exchange that lets no message through twice remembers. The plugin's texts; numbers may be texts.
fn deduplication(arguments: &Table) -> Result<Deduplication, Invalid> {
    let positive = |name: &str, invalid: &str| {
        let number = match arguments.get(name) {
            Some(Value::Int(n)) => Some(*n),
            Some(Value::Text(text)) => std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()),
            _ => None,
        };
        let why = || Invalid::Argument(format!("{invalid} argument, '{name}' must be an integer greater than 0"));
        number.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0).ok_or_else(why)
    };
    let size = positive(deduplication::SIZE, "Missing or invalid")?;
    if size > limits::DEDUPLICATION_VALUES {
        let most = limits::DEDUPLICATION_VALUES;
        return Err(Invalid::Argument(format!("Invalid argument, '{}' must be {most} at most", deduplication::SIZE)));
    }
    match arguments.get("x-cache-persistence") {
        None => {}
        Some(Value::Text(text)) if [&b"disk"[..], b"memory"].contains(&text.as_slice()) => {}
        Some(_) => {
            return Err(Invalid::Argument("Invalid argument, 'x-cache-persistence' must be either 'disk' or 'memory'".to_owned()));
        }
    }
    let ttl_ms = if arguments.contains_key(deduplication::TTL) { Some(positive(deduplication::TTL, "Invalid")?) } else { None };
    Ok(Deduplication { size: Some(size), ttl_ms, ..Deduplication::default() })
}

/// How long a message with these properties is to wait, ms; `None`: not at all. Numbers may be texts or floats, as in the plugin.
pub fn delay_ms(properties: &[u8]) -> Option<u32> {
    header(properties, DELAY).and_then(whole).filter(|ms| (1..=DELAY_MAX_MS).contains(ms)).and_then(|ms| u32::try_from(ms).ok())
}

/// Whether an exchange with history keeps a message with these properties.
pub fn is_remembered(properties: &[u8]) -> bool {
    header(properties, NO_STORE) != Some(b"t\x01")
}

/// The whole number that a value (with its type) says. 64-bit ones that do not fit count as absent, like text that is no number.
pub(super) fn whole(value: &[u8]) -> Option<i64> {
    let (kind, rest) = value.split_first()?;
    let four = || rest.first_chunk::<4>();
    let eight = || rest.first_chunk::<8>();
    match kind {
        b'b' => rest.first().map(|n| i64::from(*n as i8)),
        b'B' => rest.first().map(|n| i64::from(*n)),
        b's' => rest.first_chunk().map(|n| i64::from(i16::from_be_bytes(*n))),
        b'u' => rest.first_chunk().map(|n| i64::from(u16::from_be_bytes(*n))),
        b'I' => four().map(|n| i64::from(i32::from_be_bytes(*n))),
        b'i' => four().map(|n| i64::from(u32::from_be_bytes(*n))),
        b'l' | b'L' => eight().map(|n| i64::from_be_bytes(*n)),
        b'f' => four().map(|n| f32::from_be_bytes(*n) as i64),
        b'd' => eight().map(|n| f64::from_be_bytes(*n) as i64),
        b'S' => std::str::from_utf8(rest.get(4..)?).ok()?.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::deaths::Headers;
    use crate::model::properties::HEADERS;
    use proptest::prelude::*;

    fn text(text: &str) -> Value {
        Value::Text(text.as_bytes().to_vec())
    }

    fn one(name: &str, value: Value) -> Table {
        Table::from([(name.to_owned(), value)])
    }

    /// A property list with one header.
    fn properties(name: &str, value: &[u8]) -> Vec<u8> {
        let mut list = HEADERS.to_be_bytes().to_vec();
        let body = [&[name.len() as u8], name.as_bytes(), value].concat();
        list.extend_from_slice(&(body.len() as u32).to_be_bytes());
        list.extend_from_slice(&body);
        list
    }

    #[test]
    fn a_delayed_exchange_names_another_kind() {
        assert_eq!(delayed_kind(&one(DELAYED_TYPE, text("topic"))), Ok(ExchangeKind::Topic));
        assert_eq!(delayed_kind(&one(DELAYED_TYPE, text("x-consistent-hash"))), Ok(ExchangeKind::ConsistentHash));
        assert_eq!(delayed_kind(&one(DELAYED_TYPE, text("nix"))), Err(Invalid::UnknownKind("nix".into())));
        for wrong in [Table::new(), one(DELAYED_TYPE, Value::Int(1)), one(DELAYED_TYPE, text("x-delayed-message"))] {
            assert!(matches!(delayed_kind(&wrong), Err(Invalid::Argument(_))));
        }
    }

    #[test]
    fn a_history_has_twenty_messages_or_as_many_as_asked_for() {
        let of = |arguments: &Table| of_exchange(ExchangeKind::RecentHistory, arguments);
        assert_eq!(of(&Table::new()), Ok(Some(Store::History { length: 20 })));
        assert_eq!(of(&one(HISTORY_LENGTH, Value::Int(3))), Ok(Some(Store::History { length: 3 })));
        let why = "Invalid argument 0, 'x-recent-history-length' must be a positive integer";
        assert_eq!(of(&one(HISTORY_LENGTH, Value::Int(0))), Err(Invalid::Argument(why.into())));
        assert!(of(&one(HISTORY_LENGTH, text("7"))).is_err());
        assert!(of(&one(HISTORY_LENGTH, Value::Int(100_001))).is_err());
    }

    #[test]
    fn a_delay_may_be_any_number_and_only_a_positive_one_counts() {
        let of = |value: &[u8]| delay_ms(&properties(DELAY, value));
        assert_eq!(of(b"I\0\0\x03\xe8"), Some(1000));
        assert_eq!(of(b"l\0\0\0\0\xff\xff\xff\xff"), Some(u32::MAX));
        assert_eq!(of(b"l\0\0\0\x01\0\0\0\0"), None, "too long");
        assert_eq!(of(b"I\xff\xff\xff\xff"), None, "negative: it was delayed before");
        assert_eq!(of(b"I\0\0\0\0"), None);
        assert_eq!(of(b"S\0\0\0\x0250"), Some(50));
        assert_eq!(of(b"S\0\0\0\x02ab"), None);
        assert_eq!(of(&[b"d".to_vec(), 2.9f64.to_be_bytes().to_vec()].concat()), Some(2));
        assert_eq!(of(b"t\x01"), None);
        assert_eq!(delay_ms(&[0, 0]), None);
    }

    #[test]
    fn a_delay_that_is_over_is_negative() {
        for (before, after) in [
            (&b"I\0\0\x03\xe8"[..], &b"I\xff\xff\xfc\x18"[..]),
            (b"S\0\0\0\x041000", b"I\xff\xff\xfc\x18"),
            (b"l\0\0\0\0\xff\xff\xff\xff", b"l\xff\xff\xff\xff\0\0\0\x01"),
        ] {
            let list = properties(DELAY, before);
            let mut headers = Headers::of(&list);
            headers.end_delay();
            let written = headers.write(true);
            assert_eq!(written, properties(DELAY, after));
            assert_eq!(delay_ms(&written), None);
        }
    }

    #[test]
    fn only_true_keeps_a_message_out_of_a_history() {
        assert!(is_remembered(&[0, 0]));
        assert!(!is_remembered(&properties("x-recent-history-no-store", b"t\x01")));
        assert!(is_remembered(&properties("x-recent-history-no-store", b"t\0")));
        assert!(is_remembered(&properties("x-recent-history-no-store", b"S\0\0\0\x04true")));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(mut bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            if bytes.len() > 1 {
                bytes[0] = 0x20;
                bytes[1] = 0;
            }
            let _ = (delay_ms(&bytes), is_remembered(&bytes), whole(&bytes));
        }
    }
}
