//! Declaring what exists already: equal, or a refusal in RabbitMQ's words. Called by the catalog's declares, by the edge's passive ones
//! (names only) and by those that could not make a queue.

use crate::model::catalog::{ExchangeKind, ExchangeSpec, Name, Owner, QueueSpec, Refusal, Table, Value};
use crate::model::rocketmq::TOPIC_ARGUMENTS;

/// Arguments of a queue whose change is refused; others are kept as first declared and ignored later, as in RabbitMQ.
const QUEUE_ARGUMENTS: [&str; 29] = [
    "x-expires",
    "x-message-ttl",
    "x-dead-letter-exchange",
    "x-dead-letter-routing-key",
    "x-dead-letter-strategy",
    "x-max-length",
    "x-max-length-bytes",
    "x-max-in-memory-length",
    "x-max-in-memory-bytes",
    "x-max-priority",
    "x-overflow",
    "x-queue-mode",
    "x-queue-version",
    "x-queue-type",
    "x-quorum-initial-group-size",
    "x-delivery-limit",
    "x-single-active-consumer",
    "x-queue-leader-locator",
    "x-queue-master-locator",
    "x-consumer-timeout",
    "x-max-age",
    "x-stream-max-segment-size-bytes",
    "x-stream-filter-size-bytes",
    "x-initial-cluster-size",
    "x-message-deduplication",
    "x-cache-size",
    "x-cache-ttl",
    "x-cache-publishers",
    "x-cache-publisher-ranges",
];

/// `queue 'q' in vhost '/'`.
pub fn queue_text(name: &Name) -> String {
    format!("queue '{}' in vhost '{}'", name.name, name.vhost)
}

/// `exchange 'e' in vhost '/'`.
pub fn exchange_text(name: &Name) -> String {
    format!("exchange '{}' in vhost '{}'", name.name, name.vhost)
}

/// Who may use a queue: its owner, or everybody when it has none. The refusal is RabbitMQ's.
pub fn check_owner(spec: &QueueSpec, owner: Option<Owner>) -> Result<(), Refusal> {
    match spec.exclusive_owner {
        Some(current) if owner != Some(current) => Err(locked(&spec.name)),
        Some(_) | None => Ok(()),
    }
}

fn locked(name: &Name) -> Refusal {
    Refusal::Locked(format!(
        "cannot obtain exclusive access to locked {}. It could be originally declared on another connection or the exclusive property \
         value does not match that of the original declaration.",
        queue_text(name)
    ))
}

/// Whether a declare asks for the queue that there is. The refusal is RabbitMQ's.
pub fn check_queue(current: &QueueSpec, asked: &QueueSpec) -> Result<(), Refusal> {
    if current.exclusive_owner != asked.exclusive_owner {
        return Err(locked(&current.name));
    }
    let what = queue_text(&current.name);
    check_field("durable", &what, current.durable, asked.durable)?;
    check_field("auto_delete", &what, current.auto_delete, asked.auto_delete)?;
    QUEUE_ARGUMENTS.iter().try_for_each(|key| check_argument(key, &what, &current.arguments, &asked.arguments))
}

pub(super) fn check_exchange(current: &ExchangeSpec, asked: &ExchangeSpec) -> Result<(), Refusal> {
    let what = exchange_text(&current.name);
    check_field("type", &what, current.kind.text(), asked.kind.text())?;
    check_field("durable", &what, current.durable, asked.durable)?;
    check_field("auto_delete", &what, current.auto_delete, asked.auto_delete)?;
    check_field("internal", &what, current.internal, asked.internal)?;
    let more = if current.routes_as() == ExchangeKind::RocketTopic { &TOPIC_ARGUMENTS[..] } else { &[] };
    let mut arguments = std::iter::once(&"alternate-exchange").chain(more);
    arguments.try_for_each(|key| check_argument(key, &what, &current.arguments, &asked.arguments))
}

fn check_field<T: PartialEq + std::fmt::Display>(key: &str, what: &str, current: T, asked: T) -> Result<(), Refusal> {
    if current == asked { Ok(()) } else { Err(inequivalent(key, what, &format!("'{asked}'"), &format!("'{current}'"))) }
}

fn check_argument(key: &str, what: &str, current: &Table, asked: &Table) -> Result<(), Refusal> {
    let classic = |value: Option<&Value>| value.is_none_or(|v| *v == Value::Text(b"classic".to_vec()));
    match (current.get(key), asked.get(key)) {
        (current, asked) if current == asked => Ok(()),
        (current, asked) if key == "x-queue-type" && classic(current) && classic(asked) => Ok(()),
        (Some(current), Some(asked)) => Err(inequivalent(key, what, &format!("'{}'", asked.text()), &format!("'{}'", current.text()))),
        (current, asked) => Err(inequivalent(key, what, &typed_text(asked), &typed_text(current))),
    }
}

fn inequivalent(key: &str, what: &str, asked: &str, current: &str) -> Refusal {
    Refusal::Inequivalent(format!("inequivalent arg '{key}' for {what}: received {asked} but current is {current}"))
}

fn typed_text(value: Option<&Value>) -> String {
    value.map_or("none".to_owned(), |v| format!("the value '{}' of type '{}'", v.text(), v.type_text()))
}
