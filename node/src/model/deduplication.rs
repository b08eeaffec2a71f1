//! Publisher deduplication: how a queue is asked for it, and what a message says of itself. The header `x-deduplication-header` and the
//! arguments are those of the deduplication plugin for RabbitMQ; publisher reference and publishing id are the words of RabbitMQ's
//! streams. Read by the machine, checked with the other arguments of a queue.

use super::catalog::{Table, Value};
use super::limits;
use super::properties::{DEATHS, header};
use super::store::whole;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Argument: the queue takes no message twice.
pub const ENABLED: &str = "x-message-deduplication";
/// Argument: values that are remembered.
pub const SIZE: &str = "x-cache-size";
/// Argument, and without `x-` a policy's key: publishers whose publishing ids are remembered.
pub const PUBLISHERS: &str = "x-cache-publishers";
/// Likewise: ranges of ids that are remembered of each.
pub const RANGES: &str = "x-cache-publisher-ranges";
/// Argument and header: how long a value is remembered, ms.
pub const TTL: &str = "x-cache-ttl";
const VALUE: &str = "x-deduplication-header";
const PUBLISHER: &str = "x-publisher-reference";
const PUBLISHING_ID: &str = "x-publishing-id";

/// What a queue remembers. Without size and time: values of the messages that are in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Deduplication {
    /// At most so many of the last values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Values for so long, ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
    /// What is remembered of publishing ids.
    #[serde(skip_serializing_if = "is_default")]
    pub ids: Ids,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What a queue remembers of publishing ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    /// Of so many publishers,
    pub publishers: u64,
    /// so many ranges each.
    pub ranges: u64,
}

impl Default for Ids {
    fn default() -> Ids {
        Ids { publishers: limits::PUBLISHERS, ranges: limits::PUBLISHER_RANGES }
    }
}

impl Ids {
    /// As asked for. What was not asked for gives way to what was, ranges to publishers: a queue has at most
    /// [`limits::QUEUE_RANGES_MAX`] in all.
    pub fn of(publishers: Option<u64>, ranges: Option<u64>) -> Ids {
        let ranges = ranges.map(|ranges| ranges.clamp(1, limits::PUBLISHER_RANGES_MAX));
        let room = limits::QUEUE_RANGES_MAX / ranges.unwrap_or(1);
        let publishers = publishers.map_or(limits::PUBLISHERS.min(room), |publishers| publishers.clamp(1, limits::PUBLISHERS_MAX));
        let ranges = ranges.unwrap_or(limits::PUBLISHER_RANGES);
        Ids { publishers, ranges: ranges.min(limits::QUEUE_RANGES_MAX / publishers) }
    }

    /// Whether both can be had together.
    pub fn fit(publishers: u64, ranges: u64) -> bool {
        publishers.saturating_mul(ranges) <= limits::QUEUE_RANGES_MAX
    }
}

impl Deduplication {
    /// Of a queue with these checked arguments; `lowest`: what the arguments and the policy together say of a number.
    pub fn of_queue(arguments: &Table, lowest: impl Fn(&str) -> Option<u64>) -> Option<Deduplication> {
        let positive = |name: &str| match arguments.get(name) {
            Some(Value::Int(n)) => u64::try_from(*n).ok().filter(|n| *n > 0),
            _ => None,
        };
        let either = |name: &str| lowest(name.trim_start_matches("x-"));
        let ids = || Ids::of(either(PUBLISHERS), either(RANGES));
        (arguments.get(ENABLED) == Some(&Value::Bool(true))).then(|| Deduplication {
            size: positive(SIZE),
            ttl_ms: positive(TTL),
            ids: ids(),
        })
    }

    /// Values are remembered beyond the time that their message is in the queue.
    pub fn is_window(&self) -> bool {
        self.size.is_some() || self.ttl_ms.is_some()
    }
}

/// What is remembered of a value: 128 bits of its SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub [u64; 2]);

impl Key {
    /// Integers of all widths are one.
    fn of(value: &[u8]) -> Key {
        let digest = match (value.first(), whole(value)) {
            (Some(b'b' | b'B' | b's' | b'u' | b'I' | b'i' | b'l' | b'L'), Some(number)) => {
                Sha256::new().chain_update(b"l").chain_update(number.to_be_bytes()).finalize()
            }
            _ => Sha256::digest(value),
        };
        let half = |at: usize| digest[at..at + 8].iter().fold(0, |all, byte| all << 8 | u64::from(*byte));
        Key([half(0), half(8)])
    }
}

/// What a message says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// Its deduplication header, and how long that is to be remembered, ms.
    pub header: Option<(Key, Option<u64>)>,
    /// Its publisher and its id there.
    pub publisher: Option<(Key, u64)>,
    /// It was in a queue before.
    pub died: bool,
}

impl Marks {
    /// Of a message with these properties; `None`: nothing.
    pub fn of(properties: &[u8]) -> Option<Marks> {
        let value = header(properties, VALUE).filter(|value| *value != b"V");
        let id = header(properties, PUBLISHING_ID).and_then(whole).and_then(|id| u64::try_from(id).ok());
        let publisher = id.and_then(|id| Some((Key::of(header(properties, PUBLISHER)?), id)));
        if value.is_none() && publisher.is_none() {
            return None;
        }
        let ttl = || header(properties, TTL).and_then(whole).and_then(|ms| u64::try_from(ms).ok()).filter(|ms| *ms > 0);
        Some(Marks { header: value.map(|value| (Key::of(value), ttl())), publisher, died: header(properties, DEATHS).is_some() })
    }

    /// Whether a message is to be looked for at all by an exchange that goes by the header.
    pub fn has_header(properties: &[u8]) -> bool {
        header(properties, VALUE).is_some_and(|value| value != b"V")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::properties::HEADERS;

    fn properties(headers: &[(&str, &[u8])]) -> Vec<u8> {
        let body: Vec<u8> = headers.iter().flat_map(|(name, value)| [&[name.len() as u8], name.as_bytes(), value].concat()).collect();
        [&HEADERS.to_be_bytes()[..], &(body.len() as u32).to_be_bytes(), &body].concat()
    }

    #[test]
    fn a_message_says_what_it_is() {
        assert_eq!(Marks::of(&[0, 0]), None);
        assert_eq!(Marks::of(&properties(&[(VALUE, b"V")])), None);
        assert_eq!(Marks::of(&properties(&[(PUBLISHING_ID, b"I\0\0\0\x01")])), None, "an id without a publisher");
        let marks = Marks::of(&properties(&[(VALUE, b"S\0\0\0\x01a"), (TTL, b"I\0\0\0\x05"), (DEATHS, b"V")])).expect("a value");
        assert_eq!((marks.header, marks.died), (Some((Key::of(b"S\0\0\0\x01a"), Some(5))), true));
        let marks = Marks::of(&properties(&[(PUBLISHER, b"S\0\0\0\x01p"), (PUBLISHING_ID, b"l\0\0\0\0\0\0\0\x07")])).expect("an id");
        assert_eq!((marks.publisher, marks.died), (Some((Key::of(b"S\0\0\0\x01p"), 7)), false));
    }

    #[test]
    fn numbers_are_equal_whatever_their_width_and_are_not_texts() {
        assert_eq!(Key::of(b"I\0\0\0\x05"), Key::of(b"b\x05"));
        assert_ne!(Key::of(b"I\0\0\0\x05"), Key::of(b"S\0\0\0\x015"));
        assert_ne!(Key::of(b"S\0\0\0\x01a"), Key::of(b"S\0\0\0\x01b"));
    }

    #[test]
    fn only_true_switches_it_on() {
        let of =
            |pairs: &[(&str, Value)]| Deduplication::of_queue(&pairs.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect(), |_| None);
        assert_eq!(of(&[(SIZE, Value::Int(5))]), None);
        assert_eq!(of(&[(ENABLED, Value::Bool(false))]), None);
        assert_eq!(of(&[(ENABLED, Value::Bool(true))]), Some(Deduplication::default()));
        let window = of(&[(ENABLED, Value::Bool(true)), (SIZE, Value::Int(5)), (TTL, Value::Int(70))]);
        assert_eq!(window, Some(Deduplication { size: Some(5), ttl_ms: Some(70), ..Deduplication::default() }));
    }

    #[test]
    fn a_window_of_ids_is_bounded_and_what_was_not_asked_for_gives_way() {
        let of = |publishers, ranges| {
            let Ids { publishers, ranges } = Ids::of(publishers, ranges);
            assert!(Ids::fit(publishers, ranges));
            (publishers, ranges)
        };
        assert_eq!(of(None, None), (1024, 1024));
        assert_eq!(of(Some(5), None), (5, 1024));
        assert_eq!(of(None, Some(5)), (1024, 5));
        assert_eq!(of(None, Some(16_384)), (64, 16_384));
        assert_eq!(of(Some(65_536), None), (65_536, 16));
        assert_eq!(of(Some(4096), Some(1000)), (4096, 256), "publishers first");
        assert_eq!(of(Some(u64::MAX), Some(u64::MAX)), (65_536, 16));
        assert_eq!(of(Some(0), Some(0)), (1, 1));
    }
}
