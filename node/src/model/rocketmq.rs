//! How things of RocketMQ stand in the catalog: a rocket topic is an exchange, a consumer group on it a queue for each partition. The
//! names and arguments that make them so, and what an operator may ask for. Used by `edge`, the session and `management`.

use super::NodeId;
use super::catalog::{ExchangeKind, ExchangeSpec, Name, Table, Value};
use super::store;
use serde::{Deserialize, Serialize};

/// Property (header) that a message's partition follows from.
pub const SHARDING_KEY: &str = "__SHARDINGKEY";
/// Argument of a binding of a rocket topic: only messages of that partition, from 0.
pub const PARTITION: &str = "x-partition";
/// Argument of a rocket topic: how many partitions it has.
pub const PARTITIONS: &str = "x-partitions";
/// Partitions unless told otherwise, as in RocketMQ.
pub const PARTITIONS_DEFAULT: u32 = 8;
/// Most partitions: each is a queue of every group.
pub const PARTITIONS_MAX: u32 = 64;
/// Longest name of a topic or a group, bytes (the service allows 64, and its dead letter topics have a prefix).
pub const NAME_BYTES: usize = 100;
/// Longest time a delivered message may be invisible, ms: 12 hours, as in the service.
pub const INVISIBLE_MAX_MS: u64 = 12 * 60 * 60 * 1000;

/// After this time nobody will decide a half message any more: it is dropped, as by the service.
pub const HALF_LIFE_MS: u64 = 24 * 60 * 60 * 1000;

/// How long a message is kept for a topic's first group: three days, as in RocketMQ.
pub const RESERVE_MS: u64 = 3 * 24 * 60 * 60 * 1000;
/// How much of a topic is kept for its first group, bytes of bodies.
pub const RESERVE_BYTES: u64 = 1 << 30;

const INVISIBLE: &str = "x-invisible-ms";
const ORDERED_INVISIBLE: &str = "x-ordered-invisible-ms";
const HALF_INVISIBLE: &str = "x-half-invisible-ms";
const MAX_RETRIES: &str = "x-max-retries";
/// Arguments of a rocket topic that stay as it was made with.
pub const TOPIC_ARGUMENTS: [&str; 5] = [PARTITIONS, INVISIBLE, ORDERED_INVISIBLE, HALF_INVISIBLE, MAX_RETRIES];
const DEAD_PREFIX: &str = "%DLQ%";
const HALF_PREFIX: &str = "%HALF%";
/// Dead letters are not counted and never die again.
const ENDLESS: i64 = 1_000_000_000;
/// A group's queue leaves it to the node that handed a message out when that comes back.
const HOLD_MS: i64 = 2 * INVISIBLE_MAX_MS as i64;

/// What a topic asks for; `None`: as the server says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicSettings {
    /// Partitions, at least 1.
    pub partitions: u32,
    /// How long a delivered message is invisible, ms.
    pub invisible_ms: Option<u64>,
    /// The same for messages consumed in order.
    pub ordered_invisible_ms: Option<u64>,
    /// The same for half messages that are checked.
    pub half_invisible_ms: Option<u64>,
    /// Times that a message is delivered again before it goes to the dead letters.
    pub max_retries: Option<u32>,
}

impl Default for TopicSettings {
    fn default() -> TopicSettings {
        TopicSettings { partitions: 1, invisible_ms: None, ordered_invisible_ms: None, half_invisible_ms: None, max_retries: None }
    }
}

fn number(arguments: &Table, name: &str) -> Option<u64> {
    match arguments.get(name) {
        Some(Value::Int(n)) => u64::try_from(*n).ok(),
        Some(_) | None => None,
    }
}

/// How many partitions an exchange with these arguments has.
pub fn partitions(arguments: &Table) -> u32 {
    number(arguments, PARTITIONS).map_or(1, |n| n.clamp(1, u64::from(PARTITIONS_MAX)) as u32)
}

impl TopicSettings {
    /// Of an exchange; `None`: it is no rocket topic.
    pub fn of(exchange: &ExchangeSpec) -> Option<TopicSettings> {
        let arguments = &exchange.arguments;
        (exchange.routes_as() == ExchangeKind::RocketTopic).then(|| TopicSettings {
            partitions: partitions(arguments),
            invisible_ms: number(arguments, INVISIBLE),
            ordered_invisible_ms: number(arguments, ORDERED_INVISIBLE),
            half_invisible_ms: number(arguments, HALF_INVISIBLE),
            max_retries: number(arguments, MAX_RETRIES).map(|n| n.min(u64::from(u32::MAX)) as u32),
        })
    }

    /// Why it cannot be.
    pub fn check(&self) -> Result<(), String> {
        if !(1..=PARTITIONS_MAX).contains(&self.partitions) {
            return Err(format!("a topic has 1 to {PARTITIONS_MAX} partitions, not {}", self.partitions));
        }
        let times = [self.invisible_ms, self.ordered_invisible_ms, self.half_invisible_ms];
        match times.into_iter().flatten().find(|ms| !(1..=INVISIBLE_MAX_MS).contains(ms)) {
            Some(ms) => Err(format!("a message is invisible for 1 to {INVISIBLE_MAX_MS} ms, not {ms}")),
            None => Ok(()),
        }
    }

    /// The exchange of a topic: it delays what asks for that, and knows partitions.
    pub fn exchange(&self, name: Name) -> ExchangeSpec {
        let kind = Value::Text(ExchangeKind::RocketTopic.text().as_bytes().to_vec());
        let int = |n: u64| Value::Int(n as i64);
        let mut arguments = Table::from([(store::DELAYED_TYPE.to_owned(), kind), (PARTITIONS.to_owned(), int(self.partitions.into()))]);
        let more = [
            (INVISIBLE, self.invisible_ms),
            (ORDERED_INVISIBLE, self.ordered_invisible_ms),
            (HALF_INVISIBLE, self.half_invisible_ms),
            (MAX_RETRIES, self.max_retries.map(u64::from)),
        ];
        arguments.extend(more.into_iter().filter_map(|(name, value)| Some((name.to_owned(), int(value?)))));
        ExchangeSpec { name, kind: ExchangeKind::Delayed, durable: true, auto_delete: false, internal: false, arguments }
    }
}

/// Whether a topic or a group can be called that.
pub fn is_name(name: &str) -> bool {
    let known = |b: u8| b.is_ascii_alphanumeric() || b"_-%|.".contains(&b);
    !name.is_empty() && name.len() <= NAME_BYTES && name.bytes().all(known)
}

/// The queue of a group for one of a topic's partitions. `@` is in no name, so none means two things.
pub fn group_queue(topic: &str, group: &str, partition: u32, partitions: u32) -> String {
    if partitions == 1 { format!("{topic}@{group}") } else { format!("{topic}@{group}@{partition}") }
}

/// The queue that keeps what comes in a partition while the topic has no group: that of a group without a name.
pub fn reserve_queue(topic: &str, partition: u32, partitions: u32) -> String {
    group_queue(topic, "", partition, partitions)
}

/// Arguments of those queues: together they keep the last [`RESERVE_BYTES`], each message for [`RESERVE_MS`].
pub fn reserve_arguments(partitions: u32) -> Table {
    let bytes = RESERVE_BYTES / u64::from(partitions.max(1));
    let int = |n: u64| Value::Int(n as i64);
    Table::from([("x-message-ttl".to_owned(), int(RESERVE_MS)), ("x-max-length-bytes".to_owned(), int(bytes))])
}

/// The group of a topic that a queue belongs to.
pub fn group_of<'a>(topic: &str, queue: &'a str) -> Option<&'a str> {
    let rest = queue.strip_prefix(topic)?.strip_prefix('@')?;
    Some(rest.split('@').next().unwrap_or(rest)).filter(|group| is_name(group))
}

/// The topic of a group's dead letters. The group itself consumes it.
pub fn dead_letter_topic(group: &str) -> String {
    format!("{DEAD_PREFIX}{group}")
}

/// The group whose dead letters a topic has.
pub fn dead_letters_of(topic: &str) -> Option<&str> {
    topic.strip_prefix(DEAD_PREFIX)
}

/// The queue that keeps the half messages of a topic that came to a node.
pub fn half_queue(topic: &str, node: NodeId) -> String {
    format!("{HALF_PREFIX}{topic}@{node}")
}

/// Arguments of a group's queue. `retries`: deliveries after the first, before a message goes to the dead letters.
pub fn group_arguments(topic: &str, group: &str, retries: u32) -> Table {
    let mut arguments = Table::from([("x-consumer-timeout".to_owned(), Value::Int(HOLD_MS))]);
    if dead_letters_of(topic).is_some() {
        arguments.insert("x-delivery-limit".to_owned(), Value::Int(ENDLESS));
    } else {
        arguments.insert("x-delivery-limit".to_owned(), Value::Int(retries.into()));
        arguments.insert("x-dead-letter-exchange".to_owned(), Value::Text(dead_letter_topic(group).into_bytes()));
    }
    arguments
}

/// Deliveries after the first that a group's queue with these arguments allows.
pub fn retries_of(arguments: &Table) -> Option<u64> {
    number(arguments, "x-delivery-limit")
}

/// Arguments of a queue of half messages. They expire there too: it may be that no agent ever fetches them.
pub fn half_arguments() -> Table {
    let (hold, life) = (Value::Int(HOLD_MS), Value::Int(HALF_LIFE_MS as i64));
    Table::from([("x-consumer-timeout".to_owned(), hold), ("x-message-ttl".to_owned(), life)])
}

/// Arguments of the binding of one partition's queue.
pub fn partition_arguments(partition: u32) -> Table {
    Table::from([(PARTITION.to_owned(), Value::Int(partition.into()))])
}

/// What signs a client's requests: apart from passwords, for it must be known in the clear.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessKey {
    /// The key of the signatures.
    pub secret: String,
    /// Who the client is.
    pub user: String,
}

/// What operators ask for: several changes of the catalog each. All may be repeated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Arrangement {
    /// A topic; one of that name must have the same settings.
    AddTopic {
        /// Its name.
        topic: Name,
        /// How it is.
        settings: TopicSettings,
    },
    /// A topic goes, with the queues of its groups.
    DeleteTopic {
        /// Its name.
        topic: Name,
    },
    /// A group on a topic.
    AddGroup {
        /// The topic.
        topic: Name,
        /// The group.
        group: String,
        /// Deliveries after the first; `None`: as the topic or the server says.
        max_retries: Option<u32>,
    },
    /// A group goes from a topic, with what waits for it.
    DeleteGroup {
        /// The topic.
        topic: Name,
        /// The group.
        group: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::settings::QueueSettings;

    #[test]
    fn a_topics_exchange_says_all_of_it() {
        let name = Name { vhost: "/".into(), name: "orders".into() };
        let settings = TopicSettings { partitions: 8, invisible_ms: Some(3000), max_retries: Some(0), ..TopicSettings::default() };
        let exchange = settings.exchange(name.clone());
        assert_eq!(TopicSettings::of(&exchange), Some(settings));
        assert_eq!(store::of_exchange(exchange.kind, &exchange.arguments), Ok(Some(store::Store::Delayed)));
        let plain = ExchangeSpec { kind: ExchangeKind::Topic, arguments: Table::new(), ..exchange };
        assert_eq!(TopicSettings::of(&plain), None);
    }

    #[test]
    fn names_of_queues_lead_back_to_their_groups() {
        assert_eq!(group_of("orders", &group_queue("orders", "GID_a", 0, 1)), Some("GID_a"));
        assert_eq!(group_of("orders", &group_queue("orders", "GID_a", 7, 8)), Some("GID_a"));
        assert_eq!(group_of("order", &group_queue("orders", "GID_a", 7, 8)), None);
        for partitions in [1, 8] {
            assert_eq!(group_of("orders", &reserve_queue("orders", 0, partitions)), None);
        }
        assert_eq!(dead_letters_of(&dead_letter_topic("g")), Some("g"));
        for wrong in ["", "a b", "a@b", "a/b", "é"] {
            assert!(!is_name(wrong), "{wrong}");
        }
        assert!(is_name("%DLQ%GID_a-1"));
    }

    #[test]
    fn half_messages_expire_in_their_queue() {
        let settings = QueueSettings::from_arguments(&half_arguments());
        assert_eq!((settings.message_ttl_ms, settings.dead_letter), (Some(86_400_000), None));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert!(TopicSettings { partitions: 0, ..TopicSettings::default() }.check().is_err());
        assert!(TopicSettings { partitions: 65, ..TopicSettings::default() }.check().is_err());
        assert!(TopicSettings { invisible_ms: Some(0), ..TopicSettings::default() }.check().is_err());
        assert!(TopicSettings { half_invisible_ms: Some(INVISIBLE_MAX_MS + 1), ..TopicSettings::default() }.check().is_err());
        assert_eq!(TopicSettings::default().check(), Ok(()));
    }
}
