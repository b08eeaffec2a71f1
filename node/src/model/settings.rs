//! What a queue's arguments (and, merged in, a policy) ask for, parsed and checked once: by the edge at a declare, by the catalog
//! when it tells a shard of a queue. The refusals are RabbitMQ's texts (`rabbit_amqqueue:check_declare_arguments`).

use super::catalog::{Table, Value};
use super::deduplication::{self, Deduplication, Ids};
use super::letters::Address;
use super::limits;
use super::store::Store;
use super::stream::{FILTER_BYTES_MIN, SEGMENT_BYTES, StreamSettings, parse_max_age};
use serde::{Deserialize, Serialize};

/// Largest time to live or expiry, ms: ten years, as in RabbitMQ. Clients that build delays from queues use more than 2^32 ms.
pub const EXPIRY_MAX_MS: i64 = 10 * 365 * 24 * 60 * 60 * 1000;
/// Largest `x-max-priority`.
pub const PRIORITY_MAX: i64 = 255;
/// Failed deliveries of a message in a queue declared `quorum` that names no limit (RabbitMQ 4's default).
pub const QUORUM_DELIVERY_LIMIT: u64 = 20;
/// Largest segment of a stream, bytes (RabbitMQ's).
pub const SEGMENT_BYTES_MAX: i64 = 3_000_000_000;

/// What happens to a message that finds the queue full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Overflow {
    /// The oldest ready messages go.
    #[default]
    DropHead,
    /// It is refused.
    RejectPublish,
    /// It is refused, and dead-lettered.
    RejectPublishDlx,
}

/// Where messages go that leave a queue unconsumed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// The exchange, in the queue's vhost.
    pub exchange: String,
    /// Instead of the message's own keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routing_key: Option<String>,
}

/// What letters of a queue are known by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The queue's vhost.
    pub vhost: String,
    /// Its name; of the queue behind an exchange: that exchange's.
    pub name: String,
}

/// A queue's settings as its shard knows them. The default is a plain queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct QueueSettings {
    /// Most ready messages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_length: Option<u64>,
    /// Most bytes in the bodies of ready messages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_length_bytes: Option<u64>,
    /// What a full queue does.
    #[serde(skip_serializing_if = "is_default")]
    pub overflow: Overflow,
    /// How long a message may wait, ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_ttl_ms: Option<u64>,
    /// How long the queue may be unused, ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
    /// Where dead letters go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<DeadLetter>,
    /// Of a queue whose messages leave it as letters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Failed deliveries of a message that are counted are replicated; at one more than this it is a dead letter. `None`: no count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delivery_limit: Option<u64>,
    /// One consumer at a time gets messages.
    #[serde(skip_serializing_if = "is_default")]
    pub single_active_consumer: bool,
    /// Highest priority that is told apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_priority: Option<u8>,
    /// How long a consumer may hold a message, ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consumer_timeout_ms: Option<u64>,
    /// It is the queue of an exchange that keeps messages; clients have no part in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<Store>,
    /// It takes no message twice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deduplication: Option<Deduplication>,
    /// It is a stream; nothing else here concerns it then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<StreamSettings>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Why an argument is refused, in RabbitMQ's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidArgument(String);

type Check = Result<(), String>;

impl QueueSettings {
    /// Of the queue behind an exchange.
    pub fn of_store(store: Store) -> QueueSettings {
        let deduplication = match store {
            Store::Unique(unique) => Some(unique),
            Store::Delayed | Store::History { .. } => None,
        };
        QueueSettings { store: Some(store), deduplication, ..QueueSettings::default() }
    }

    /// The same of a queue or, for one behind an exchange, an exchange with this name.
    pub fn named(self, vhost: &str, name: &str) -> QueueSettings {
        let leave = self.dead_letter.is_some() || self.store.is_some();
        QueueSettings { origin: leave.then(|| Origin { vhost: vhost.to_owned(), name: name.to_owned() }), ..self }
    }

    /// What messages that leave the queue as letters are routed and written by; `None`: none do.
    pub fn address(&self) -> Option<Address> {
        let Origin { vhost, name } = self.origin.clone().unwrap_or_default();
        if self.store.is_some() {
            return Some(Address { vhost, exchange: name, ..Address::default() });
        }
        let DeadLetter { exchange, routing_key } = self.dead_letter.clone()?;
        Some(Address { vhost, queue: name, exchange, routing_key })
    }

    /// Nothing asked for: the queue costs nothing beyond its messages.
    pub fn is_plain(&self) -> bool {
        *self == QueueSettings::default()
    }

    /// Ready messages are counted against a limit.
    pub fn is_limited(&self) -> bool {
        self.max_length.is_some() || self.max_length_bytes.is_some()
    }

    /// Checks the arguments of a declare; `subject` is `queue 'q' in vhost '/'`.
    pub fn check(subject: &str, arguments: &Table) -> Result<(), InvalidArgument> {
        let kind = arguments.get("x-queue-type").and_then(text);
        let is_stream = kind.as_deref() == Some("stream");
        for (name, check) in CHECKS.into_iter().filter(|(name, _)| is_known(name, is_stream)) {
            if let Some(value) = arguments.get(name) {
                check(value, arguments).map_err(|why| InvalidArgument(format!("invalid arg '{name}' for {subject}: {why}")))?;
            }
        }
        if let Some((name, _)) = CHECKS.iter().find(|(name, _)| !is_known(name, is_stream) && arguments.contains_key(*name)) {
            let kind = kind.filter(|kind| ["quorum", "stream"].contains(&kind.as_str())).unwrap_or("classic".to_owned());
            return Err(InvalidArgument(format!("invalid arg '{name}' for {subject} of queue type rabbit_{kind}_queue")));
        }
        if is_stream { check_stream(arguments).map_err(|why| InvalidArgument(why.to_owned())) } else { Ok(()) }
    }

    /// The settings that checked arguments ask for. What does not check counts as absent.
    pub fn from_arguments(arguments: &Table) -> QueueSettings {
        QueueSettings::effective(arguments, &Table::new())
    }

    /// Arguments and the policy that applies to the queue (keys without `x-`), merged as RabbitMQ does: the lower of two numbers, an
    /// argument before the policy for everything else, but for the overflow of a quorum queue. Priorities and the single active consumer are
    /// arguments only.
    pub fn effective(arguments: &Table, policy: &Table) -> QueueSettings {
        let own = |name: &str| arguments.get(&format!("x-{name}"));
        let lowest = |name: &str| own(name).and_then(number).into_iter().chain(policy.get(name).and_then(number)).min();
        let first = |name: &str| own(name).or_else(|| policy.get(name)).and_then(text);
        let quorum = own("queue-type").and_then(text).as_deref() == Some("quorum");
        // A negative limit switches the default of a quorum queue off.
        let unlimited =
            [own("delivery-limit"), policy.get("delivery-limit")].into_iter().flatten().any(|v| matches!(v, Value::Int(n) if *n < 0));
        if own("queue-type").and_then(text).as_deref() == Some("stream") {
            return QueueSettings { stream: Some(stream_settings(arguments, policy)), ..QueueSettings::default() };
        }
        let exchange = first("dead-letter-exchange");
        // `rabbit_quorum_queue`: policy_has_precedence.
        let overflow = policy.get("overflow").filter(|_| quorum).and_then(text).or_else(|| first("overflow"));
        QueueSettings {
            max_length: lowest("max-length"),
            max_length_bytes: lowest("max-length-bytes"),
            overflow: match overflow.as_deref() {
                Some("reject-publish") => Overflow::RejectPublish,
                Some("reject-publish-dlx") => Overflow::RejectPublishDlx,
                Some(_) | None => Overflow::DropHead,
            },
            message_ttl_ms: lowest("message-ttl"),
            expires_ms: lowest("expires"),
            dead_letter: exchange.map(|exchange| DeadLetter { exchange, routing_key: first("dead-letter-routing-key") }),
            origin: None,
            delivery_limit: lowest("delivery-limit").or_else(|| (quorum && !unlimited).then_some(QUORUM_DELIVERY_LIMIT)),
            single_active_consumer: own("single-active-consumer") == Some(&Value::Bool(true)),
            max_priority: own("max-priority").and_then(number).map(|n| n.min(PRIORITY_MAX as u64) as u8),
            consumer_timeout_ms: lowest("consumer-timeout"),
            store: None,
            deduplication: Deduplication::of_queue(arguments, lowest),
            stream: None,
        }
    }
}

/// Of a stream a policy wins over an argument, as in RabbitMQ (`rabbit_stream_queue:policy_precedence`).
fn stream_settings(arguments: &Table, policy: &Table) -> StreamSettings {
    let both = |name: &str| [policy.get(name), arguments.get(&format!("x-{name}"))].into_iter().flatten();
    let size = both("stream-max-segment-size-bytes").find_map(number).filter(|size| *size > 0);
    let filter = both("stream-filter-size-bytes").find_map(number).and_then(|size| u8::try_from(size).ok());
    StreamSettings {
        max_length_bytes: both("max-length-bytes").find_map(number),
        max_age_ms: both("max-age").filter_map(text).find_map(|age| parse_max_age(&age)),
        segment_bytes: size.unwrap_or(SEGMENT_BYTES),
        filter_bytes: filter.filter(|size| *size >= FILTER_BYTES_MIN).unwrap_or(FILTER_BYTES_MIN),
    }
}

fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(n) => u64::try_from(*n).ok(),
        _ => None,
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::Text(bytes) => String::from_utf8(bytes.clone()).ok(),
        _ => None,
    }
}

/// Arguments that streams know, and only those of them that no other queue knows.
const OF_STREAMS: [&str; 6] = [
    "x-max-length-bytes",
    "x-max-age",
    "x-stream-max-segment-size-bytes",
    "x-stream-filter-size-bytes",
    "x-initial-cluster-size",
    "x-queue-leader-locator",
];
const OF_STREAMS_ONLY: [&str; 3] = ["x-max-age", "x-stream-max-segment-size-bytes", "x-stream-filter-size-bytes"];

fn is_known(name: &str, to_stream: bool) -> bool {
    if to_stream { OF_STREAMS.contains(&name) } else { !OF_STREAMS_ONLY.contains(&name) }
}

/// What a stream checks when all arguments are of their types (`rabbit_stream_queue:declare`).
fn check_stream(arguments: &Table) -> Result<(), &'static str> {
    let beyond =
        |name: &str, range: std::ops::RangeInclusive<i64>| matches!(arguments.get(name), Some(Value::Int(n)) if !range.contains(n));
    if beyond("x-stream-max-segment-size-bytes", 0..=SEGMENT_BYTES_MAX) {
        return Err("Exceeded max value for x-stream-max-segment-size-bytes");
    }
    if beyond("x-stream-filter-size-bytes", i64::from(FILTER_BYTES_MIN)..=255) {
        return Err("Invalid value for x-stream-filter-size-bytes");
    }
    Ok(())
}

/// Longest short string of AMQP, bytes.
const NAME_BYTES: usize = 255;

/// How an argument's value is checked; some depend on other arguments.
type Checker = fn(&Value, &Table) -> Check;

const CHECKS: [(&str, Checker); 29] = [
    ("x-expires", |v, _| check_expiry(v, false)),
    ("x-message-ttl", |v, _| check_expiry(v, true)),
    ("x-dead-letter-exchange", |v, _| check_text(v)),
    ("x-dead-letter-routing-key", check_dead_letter_key),
    ("x-dead-letter-strategy", |v, _| check_one_of(v, &["at-most-once", "at-least-once"], "invalid_dlx_strategy")),
    ("x-max-length", |v, _| check_count(v).map(drop)),
    ("x-max-length-bytes", |v, _| check_count(v).map(drop)),
    ("x-max-in-memory-length", |v, _| check_count(v).map(drop)),
    ("x-max-in-memory-bytes", |v, _| check_count(v).map(drop)),
    ("x-max-priority", |v, _| check_priority(v)),
    ("x-overflow", |v, _| check_one_of(v, &["drop-head", "reject-publish", "reject-publish-dlx"], "invalid_overflow")),
    ("x-queue-mode", |v, _| check_mode(v)),
    ("x-queue-version", |v, _| check_version(v)),
    ("x-single-active-consumer", |v, _| check_bool(v)),
    ("x-consumer-disconnected-timeout", |v, _| check_count(v).map(drop)),
    ("x-consumer-timeout", |v, _| check_count(v).map(drop)),
    ("x-delivery-limit", |v, _| check_integer(v).map(drop)),
    ("x-quorum-initial-group-size", |v, _| check_size(v)),
    ("x-initial-cluster-size", |v, _| check_size(v)),
    ("x-queue-leader-locator", |v, _| check_one_of(v, LOCATORS, "invalid_queue_locator_arg")),
    ("x-queue-master-locator", |v, _| check_text(v)),
    ("x-max-age", |v, _| check_max_age(v)),
    ("x-stream-max-segment-size-bytes", |v, _| check_count(v).map(drop)),
    ("x-stream-filter-size-bytes", |v, _| check_count(v).map(drop)),
    ("x-message-deduplication", |v, _| check_bool(v)),
    ("x-cache-size", |v, of| if of.contains_key(deduplication::ENABLED) { check_up_to(v, limits::DEDUPLICATION_VALUES) } else { Ok(()) }),
    (
        deduplication::PUBLISHERS,
        |v, of| if of.contains_key(deduplication::ENABLED) { check_up_to(v, limits::PUBLISHERS_MAX) } else { Ok(()) },
    ),
    (deduplication::RANGES, |v, of| if of.contains_key(deduplication::ENABLED) { check_ranges(v, of) } else { Ok(()) }),
    ("x-cache-ttl", |v, of| if of.contains_key(deduplication::ENABLED) { check_expiry(v, false) } else { Ok(()) }),
];
/// Where leaders of queues may be wished to be.
pub const LOCATORS: &[&str] = &["client-local", "balanced", "random", "least-leaders"];

fn unacceptable(value: &Value) -> String {
    format!("{{unacceptable_type,{}}}", value.type_text())
}

fn check_integer(value: &Value) -> Result<i64, String> {
    match value {
        Value::Int(n) => Ok(*n),
        other => Err(format!("\"expected integer, got {}\"", other.type_text())),
    }
}

fn check_count(value: &Value) -> Result<i64, String> {
    match check_integer(value)? {
        n if n < 0 => Err(format!("{{value_negative,{n}}}")),
        n => Ok(n),
    }
}

fn check_size(value: &Value) -> Check {
    match check_count(value)? {
        0 => Err("{value_zero,0}".to_owned()),
        _ => Ok(()),
    }
}

fn check_expiry(value: &Value, zero: bool) -> Check {
    match check_integer(value)? {
        0 if !zero => Err("{value_zero,0}".to_owned()),
        n if n < 0 => Err(format!("{{value_negative,{n}}}")),
        n if n > EXPIRY_MAX_MS => Err(format!("{{value_too_large,{n}}}")),
        _ => Ok(()),
    }
}

fn check_up_to(value: &Value, most: u64) -> Check {
    match check_count(value)? {
        0 => Err("{value_zero,0}".to_owned()),
        n if n.unsigned_abs() > most => Err(format!("{{max_value_exceeded,{n}}}")),
        _ => Ok(()),
    }
}

fn check_ranges(value: &Value, of: &Table) -> Check {
    check_up_to(value, limits::PUBLISHER_RANGES_MAX)?;
    let all = of.get(deduplication::PUBLISHERS).and_then(number).zip(number(value)).filter(|(p, r)| !Ids::fit(*p, *r));
    all.map_or(Ok(()), |(publishers, ranges)| Err(format!("{{max_value_exceeded,{}}}", publishers.saturating_mul(ranges))))
}

fn check_priority(value: &Value) -> Check {
    match check_count(value)? {
        n if n > PRIORITY_MAX => Err(format!("{{max_value_exceeded,{n}}}")),
        _ => Ok(()),
    }
}

fn check_mode(value: &Value) -> Check {
    let unsupported = |mode: &[u8]| format!("\"unsupported queue mode '{}'\"", String::from_utf8_lossy(mode));
    match value {
        Value::Text(mode) => check_one_of(value, &["default", "lazy"], &unsupported(mode)),
        other => Err(unacceptable(other)),
    }
}

fn check_version(value: &Value) -> Check {
    match check_count(value)? {
        1 | 2 => Ok(()),
        n => Err(format!("\"unsupported queue version '{n}'\"")),
    }
}

fn check_max_age(value: &Value) -> Check {
    match value {
        Value::Text(text) if is_max_age(text) => Ok(()),
        Value::Text(_) => Err("invalid_max_age".to_owned()),
        other => Err(unacceptable(other)),
    }
}

/// A number of at least 1 and a unit.
pub fn is_max_age(text: &[u8]) -> bool {
    str::from_utf8(text).ok().and_then(parse_max_age).is_some_and(|ms| ms > 0)
}

fn check_bool(value: &Value) -> Check {
    match value {
        Value::Bool(_) => Ok(()),
        other => Err(unacceptable(other)),
    }
}

/// A name: AMQP carries those of exchanges and routing keys in 255 bytes.
pub fn is_name(value: &Value) -> bool {
    matches!(value, Value::Text(bytes) if bytes.len() <= NAME_BYTES)
}

fn check_text(value: &Value) -> Check {
    match value {
        Value::Text(bytes) if bytes.len() > NAME_BYTES => Err(format!("{{too_long,{}}}", bytes.len())),
        Value::Text(_) => Ok(()),
        other => Err(unacceptable(other)),
    }
}

fn check_dead_letter_key(value: &Value, arguments: &Table) -> Check {
    check_text(value)?;
    match arguments.contains_key("x-dead-letter-exchange") {
        true => Ok(()),
        false => Err("routing_key_but_no_dlx_defined".to_owned()),
    }
}

fn check_one_of(value: &Value, known: &[&str], otherwise: &str) -> Check {
    match value {
        Value::Text(bytes) if known.iter().any(|k| k.as_bytes() == bytes) => Ok(()),
        Value::Text(_) => Err(otherwise.to_owned()),
        other => Err(unacceptable(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(pairs: &[(&str, Value)]) -> Table {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect()
    }

    fn words(text: &str) -> Value {
        Value::Text(text.as_bytes().to_vec())
    }

    #[test]
    fn of_quorum_queues_a_policy_says_what_happens_when_they_are_full() {
        let policy = table(&[("overflow", words("reject-publish"))]);
        for (kind, wanted) in [("quorum", Overflow::RejectPublish), ("classic", Overflow::DropHead)] {
            let arguments = table(&[("x-queue-type", words(kind)), ("x-overflow", words("drop-head"))]);
            assert_eq!(QueueSettings::effective(&arguments, &policy).overflow, wanted, "{kind}");
            assert_eq!(QueueSettings::effective(&arguments, &Table::new()).overflow, Overflow::DropHead);
        }
    }

    #[test]
    fn refusals_are_rabbitmqs_texts() {
        let refused = |name: &str, value: Value| {
            let check = QueueSettings::check("queue 'q' in vhost '/'", &table(&[(name, value)]));
            check.expect_err("refused").to_string()
        };
        let starts = |name: &str| format!("invalid arg '{name}' for queue 'q' in vhost '/': ");
        let cases = [
            ("x-message-ttl", Value::Int(-1), "{value_negative,-1}"),
            ("x-message-ttl", words("abc"), "\"expected integer, got longstr\""),
            ("x-message-ttl", Value::Int(EXPIRY_MAX_MS + 1), "{value_too_large,315360000001}"),
            ("x-expires", Value::Int(i64::MAX), "{value_too_large,9223372036854775807}"),
            ("x-expires", Value::Int(0), "{value_zero,0}"),
            ("x-max-length", Value::Int(-5), "{value_negative,-5}"),
            ("x-max-priority", Value::Int(256), "{max_value_exceeded,256}"),
            ("x-overflow", words("drop-tail"), "invalid_overflow"),
            ("x-overflow", Value::Int(1), "{unacceptable_type,signedint}"),
            ("x-dead-letter-exchange", Value::Bool(true), "{unacceptable_type,bool}"),
            ("x-dead-letter-routing-key", words("k"), "routing_key_but_no_dlx_defined"),
            ("x-single-active-consumer", words("true"), "{unacceptable_type,longstr}"),
            ("x-dead-letter-exchange", words(&"x".repeat(256)), "{too_long,256}"),
            ("x-dead-letter-routing-key", Value::Int(1), "{unacceptable_type,signedint}"),
            ("x-dead-letter-strategy", words("sometimes"), "invalid_dlx_strategy"),
            ("x-dead-letter-strategy", Value::Bool(true), "{unacceptable_type,bool}"),
            ("x-queue-leader-locator", words("anywhere"), "invalid_queue_locator_arg"),
            ("x-queue-leader-locator", Value::Int(1), "{unacceptable_type,signedint}"),
            ("x-queue-master-locator", words(&"x".repeat(256)), "{too_long,256}"),
            ("x-queue-mode", words("eager"), "\"unsupported queue mode 'eager'\""),
            ("x-queue-mode", Value::Int(1), "{unacceptable_type,signedint}"),
            ("x-queue-version", Value::Int(3), "\"unsupported queue version '3'\""),
            ("x-queue-version", Value::Int(0), "\"unsupported queue version '0'\""),
            ("x-queue-version", Value::Int(-1), "{value_negative,-1}"),
            ("x-queue-version", words("2"), "\"expected integer, got longstr\""),
            ("x-quorum-initial-group-size", Value::Int(0), "{value_zero,0}"),
        ];
        for (name, value, why) in cases {
            assert_eq!(refused(name, value), starts(name) + why);
        }
        let fine = [
            ("x-message-ttl", Value::Int(0)),
            ("x-overflow", words("reject-publish")),
            ("x-unknown", Value::Void),
            ("x-queue-mode", words("lazy")),
            ("x-queue-version", Value::Int(2)),
            ("x-queue-leader-locator", words("balanced")),
            ("x-dead-letter-exchange", words(&"x".repeat(255))),
        ];
        assert_eq!(QueueSettings::check("queue 'q' in vhost '/'", &table(&fine)), Ok(()));
    }

    #[test]
    fn a_policy_lowers_numbers_and_fills_what_arguments_leave_open() {
        let arguments = table(&[("x-max-length", Value::Int(10)), ("x-message-ttl", Value::Int(5)), ("x-overflow", words("drop-head"))]);
        let policy = table(&[
            ("max-length", Value::Int(7)),
            ("message-ttl", Value::Int(50)),
            ("overflow", words("reject-publish")),
            ("dead-letter-exchange", words("dlx")),
            ("max-priority", Value::Int(9)),
        ]);
        let merged = QueueSettings::effective(&arguments, &policy);
        let expected = QueueSettings {
            max_length: Some(7),
            message_ttl_ms: Some(5),
            dead_letter: Some(DeadLetter { exchange: "dlx".into(), routing_key: None }),
            ..QueueSettings::default()
        };
        assert_eq!(merged, expected);
    }

    #[test]
    fn streams_and_queues_know_their_own_arguments() {
        let check =
            |arguments: &[(&str, Value)]| QueueSettings::check("queue 'q' in vhost '/'", &table(arguments)).map_err(|e| e.to_string());
        let stream = ("x-queue-type", words("stream"));
        let of_type =
            |name: &str, kind: &str| Err(format!("invalid arg '{name}' for queue 'q' in vhost '/' of queue type rabbit_{kind}_queue"));
        for name in ["x-expires", "x-max-length", "x-overflow", "x-max-priority", "x-single-active-consumer", "x-dead-letter-exchange"] {
            assert_eq!(check(&[stream.clone(), (name, Value::Int(5))]), of_type(name, "stream"));
        }
        assert_eq!(check(&[("x-max-age", words("1D"))]), of_type("x-max-age", "classic"));
        assert_eq!(
            check(&[("x-queue-type", words("quorum")), ("x-stream-filter-size-bytes", Value::Int(16))]),
            of_type("x-stream-filter-size-bytes", "quorum")
        );
        let invalid = |name: &str, why: &str| Err(format!("invalid arg '{name}' for queue 'q' in vhost '/': {why}"));
        assert_eq!(check(&[stream.clone(), ("x-max-age", words("1d"))]), invalid("x-max-age", "invalid_max_age"));
        assert_eq!(check(&[stream.clone(), ("x-max-age", words("0D"))]), invalid("x-max-age", "invalid_max_age"));
        assert_eq!(check(&[stream.clone(), ("x-max-age", Value::Int(1))]), invalid("x-max-age", "{unacceptable_type,signedint}"));
        assert_eq!(check(&[stream.clone(), ("x-max-length-bytes", Value::Int(-1))]), invalid("x-max-length-bytes", "{value_negative,-1}"));
        assert_eq!(
            check(&[stream.clone(), ("x-initial-cluster-size", Value::Int(0))]),
            invalid("x-initial-cluster-size", "{value_zero,0}")
        );
        let too_large = Err("Exceeded max value for x-stream-max-segment-size-bytes".to_owned());
        assert_eq!(check(&[stream.clone(), ("x-stream-max-segment-size-bytes", Value::Int(3_000_000_001))]), too_large);
        for size in [15, 256] {
            let refused = check(&[stream.clone(), ("x-stream-filter-size-bytes", Value::Int(size))]);
            assert_eq!(refused, Err("Invalid value for x-stream-filter-size-bytes".to_owned()));
        }
        let all = [
            stream,
            ("x-max-age", words("7D")),
            ("x-max-length-bytes", Value::Int(1 << 40)),
            ("x-stream-max-segment-size-bytes", Value::Int(3_000_000_000)),
            ("x-stream-filter-size-bytes", Value::Int(255)),
            ("x-initial-cluster-size", Value::Int(3)),
            ("x-queue-leader-locator", words("balanced")),
        ];
        assert_eq!(check(&all), Ok(()));
        let policy = table(&[("max-age", words("1h")), ("max-length-bytes", Value::Int(1 << 41))]);
        let settings = QueueSettings::effective(&table(&all), &policy).stream.expect("a stream");
        assert_eq!((settings.max_age_ms, settings.max_length_bytes), (Some(3_600_000), Some(1 << 41)), "policies win");
        assert_eq!((settings.segment_bytes, settings.filter_bytes), (3_000_000_000, 255));
    }

    #[test]
    fn a_quorum_queue_counts_deliveries_unless_told_not_to() {
        let quorum = ("x-queue-type", words("quorum"));
        let limit = |arguments: &[(&str, Value)]| QueueSettings::from_arguments(&table(arguments)).delivery_limit;
        assert_eq!(limit(std::slice::from_ref(&quorum)), Some(20));
        assert_eq!(limit(&[quorum.clone(), ("x-delivery-limit", Value::Int(3))]), Some(3));
        for unlimited in [-1, -2] {
            assert_eq!(limit(&[quorum.clone(), ("x-delivery-limit", Value::Int(unlimited))]), None);
        }
        assert_eq!(limit(&[("x-delivery-limit", Value::Int(3))]), Some(3));
        assert!(QueueSettings::from_arguments(&Table::new()).is_plain());
    }

    #[test]
    fn settings_survive_their_bytes_and_a_plain_queue_has_few() {
        let settings = QueueSettings { max_length: Some(7), overflow: Overflow::RejectPublish, ..QueueSettings::default() };
        let bytes = rmp_serde::to_vec_named(&settings).expect("plain data");
        assert_eq!(rmp_serde::from_slice::<QueueSettings>(&bytes).expect("the same"), settings);
        assert_eq!(rmp_serde::to_vec_named(&QueueSettings::default()).expect("plain data").len(), 1);
    }
}
