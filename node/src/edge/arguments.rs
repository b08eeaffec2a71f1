//! Arguments of what is to be made: which of RabbitMQ's are refused because their effect is not there yet, which values are checked, what
//! is merely stored. An argument whose effect arrives leaves its list here. A queue or exchange that exists is compared instead, and what
//! an exchange's type asks of its arguments the catalog knows. All of it is asked behind the rights, as RabbitMQ's channel does.

use crate::machine::catalog::{exchange_text, queue_text};
use crate::model::catalog::{ExchangeSpec, Name, QueueSpec, Refusal, Table, Value};
use crate::model::settings::QueueSettings;

/// Asks for the delays of RabbitMQ 4.3, which are not there yet. Its elder versions pass the argument over as one that they do not know; who
/// sets it relies on it, for without delays a consumer that fails for a while uses up a delivery limit at once.
const DELAYED_RETRY: &str = "x-delayed-retry-type";
const DEAD_LETTERS: &str = "x-dead-letter-exchange";
const ALTERNATE: &str = "alternate-exchange";

/// Checks queue.declare of a new queue.
pub(super) fn check_queue(spec: &QueueSpec) -> Result<(), Refusal> {
    let subject = queue_text(&spec.name);
    if matches!(spec.arguments.get(DELAYED_RETRY), Some(Value::Text(kind)) if matches!(&**kind, b"all" | b"failed" | b"returned")) {
        return Err(Refusal::Precondition(format!("invalid arg '{DELAYED_RETRY}' for {subject}: not supported by this version")));
    }
    let needs_durability = check_type(&subject, spec)?;
    QueueSettings::check(&subject, &spec.arguments).map_err(|invalid| Refusal::Precondition(invalid.to_string()))?;
    let invalid = |what: &str| Err(Refusal::Precondition(format!("invalid property '{what}' for {subject}")));
    match spec {
        _ if !needs_durability => Ok(()),
        QueueSpec { auto_delete: true, .. } => invalid("auto-delete"),
        QueueSpec { exclusive_owner: Some(_), .. } => invalid("exclusive-owner"),
        QueueSpec { durable: false, .. } => invalid("non-durable"),
        QueueSpec { .. } => Ok(()),
    }
}

/// The exchange that gets the queue's dead letters; the refusal is that of RabbitMQ's channel, which asks for rights by it.
pub(super) fn dead_letter_exchange(spec: &QueueSpec) -> Result<Option<&[u8]>, Refusal> {
    exchange_named(&spec.arguments, DEAD_LETTERS, || queue_text(&spec.name))
}

/// The exchange that gets what an exchange that is to be made cannot route.
pub(super) fn alternate_exchange(spec: &ExchangeSpec) -> Result<Option<&[u8]>, Refusal> {
    exchange_named(&spec.arguments, ALTERNATE, || exchange_text(&spec.name))
}

fn exchange_named<'a>(arguments: &'a Table, argument: &str, subject: impl FnOnce() -> String) -> Result<Option<&'a [u8]>, Refusal> {
    match arguments.get(argument) {
        None => Ok(None),
        Some(Value::Text(exchange)) => Ok(Some(exchange)),
        Some(other) => Err(Refusal::Precondition(format!("invalid type '{}' for arg '{argument}' in {}", other.type_text(), subject()))),
    }
}

/// Checks basic.consume's arguments, those of streams excepted.
pub(super) fn check_consumer(queue: &Name, arguments: &Table) -> Result<(), Refusal> {
    let invalid = |name: &str, why: String| Err(Refusal::Precondition(format!("invalid arg '{name}' for {}: {why}", queue_text(queue))));
    for name in ["x-priority", "x-consumer-timeout"] {
        match arguments.get(name) {
            Some(Value::Int(n)) if *n < 0 && name == "x-consumer-timeout" => return invalid(name, format!("{{value_negative,{n}}}")),
            None | Some(Value::Int(_)) => {}
            Some(other) => return invalid(name, format!("\"expected integer, got {}\"", other.type_text())),
        }
    }
    match arguments.get("x-cancel-on-ha-failover") {
        None | Some(Value::Bool(_)) => Ok(()),
        Some(other) => invalid("x-cancel-on-ha-failover", format!("{{unacceptable_type,{}}}", other.type_text())),
    }
}

/// Checks basic.get: of a queue that was asked for as a quorum queue with a single active consumer nobody else takes messages.
pub(super) fn check_get(spec: &QueueSpec) -> Result<(), Refusal> {
    let is = |argument: &str, value: Value| spec.arguments.get(argument) == Some(&value);
    if spec.arguments.is_empty() || !is("x-single-active-consumer", Value::Bool(true)) || !is("x-queue-type", Value::Text(b"quorum".into()))
    {
        return Ok(());
    }
    let why = "basic.get operations are not supported by quorum queues with single active consumer";
    Err(Refusal::Locked(format!("cannot obtain access to locked {}. {why}", queue_text(&spec.name))))
}

/// Whether it is of a type that is durable and nobody's own.
fn check_type(subject: &str, spec: &QueueSpec) -> Result<bool, Refusal> {
    let invalid = |why: String| Err(Refusal::Precondition(format!("invalid arg 'x-queue-type' for {subject}: {why}")));
    match spec.arguments.get("x-queue-type") {
        None => Ok(false),
        Some(Value::Text(kind)) => match kind.as_slice() {
            b"classic" | b"" | b"undefined" => Ok(false),
            b"quorum" | b"stream" => Ok(true),
            other => invalid(format!("\"unsupported queue type '{}'\"", String::from_utf8_lossy(other))),
        },
        Some(other) => invalid(format!("{{unacceptable_type,{}}}", other.type_text())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::catalog::{Name, Owner};
    use crate::model::{ConnectionId, Incarnation, NodeId};

    fn spec(arguments: &[(&str, Value)]) -> QueueSpec {
        let arguments = arguments.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let name = Name { vhost: "/".into(), name: "q".into() };
        QueueSpec { name, durable: true, auto_delete: false, exclusive_owner: None, arguments }
    }

    fn text(text: &str) -> Value {
        Value::Text(text.into())
    }

    #[track_caller]
    fn is_refused(spec: &QueueSpec, why: &str) {
        assert_eq!(check_queue(spec), Err(Refusal::Precondition(why.to_owned())));
    }

    #[test]
    fn arguments_without_effect_yet_are_refused_by_name() {
        for kind in ["all", "failed", "returned"] {
            let why = "invalid arg 'x-delayed-retry-type' for queue 'q' in vhost '/': not supported by this version";
            is_refused(&spec(&[("x-delayed-retry-type", text(kind)), ("x-delayed-retry-min", Value::Int(1))]), why);
        }
        // Without a type they ask for nothing.
        let off =
            [("x-delayed-retry-type", text("disabled")), ("x-delayed-retry-min", Value::Int(1)), ("x-delayed-retry-max", Value::Int(1))];
        assert_eq!(check_queue(&spec(&off)), Ok(()));
        let timeout = |value| spec(&[("x-queue-type", text("quorum")), ("x-consumer-disconnected-timeout", value)]);
        assert_eq!(check_queue(&timeout(Value::Int(60_000))), Ok(()));
        let why = "invalid arg 'x-consumer-disconnected-timeout' for queue 'q' in vhost '/': {value_negative,-1}";
        is_refused(&timeout(Value::Int(-1)), why);
        for (name, value) in [("x-queue-type", "quorum"), ("x-queue-type", "classic"), ("x-queue-mode", "lazy"), ("x-unknown", "1")] {
            assert_eq!(check_queue(&spec(&[(name, text(value))])), Ok(()), "{name}");
        }
    }

    #[test]
    fn arguments_of_the_wrong_kind_are_refused_in_rabbitmqs_words() {
        for (name, value, why) in [
            ("x-max-length", Value::Int(-5), "{value_negative,-5}"),
            ("x-overflow", text("later"), "invalid_overflow"),
            ("x-message-ttl", text("1"), "\"expected integer, got longstr\""),
            ("x-queue-type", Value::Int(1), "{unacceptable_type,signedint}"),
            ("x-queue-type", text("odd"), "\"unsupported queue type 'odd'\""),
        ] {
            is_refused(&spec(&[(name, value)]), &format!("invalid arg '{name}' for queue 'q' in vhost '/': {why}"));
        }
        let odd = spec(&[(DEAD_LETTERS, Value::Bool(true))]);
        let why = "invalid type 'bool' for arg 'x-dead-letter-exchange' in queue 'q' in vhost '/'";
        assert_eq!(dead_letter_exchange(&odd), Err(Refusal::Precondition(why.to_owned())));
        assert_eq!(dead_letter_exchange(&spec(&[(DEAD_LETTERS, text("x"))])), Ok(Some(&b"x"[..])));
    }

    #[test]
    fn quorum_queues_and_streams_are_durable_and_nobodys_own() {
        let invalid = |what: &str| format!("invalid property '{what}' for queue 'q' in vhost '/'");
        let mine = Owner { node: NodeId(1), incarnation: Incarnation(1), connection: ConnectionId(1) };
        for kind in ["quorum", "stream"] {
            let fine = spec(&[("x-queue-type", text(kind))]);
            assert_eq!(check_queue(&fine), Ok(()));
            is_refused(&QueueSpec { durable: false, ..fine.clone() }, &invalid("non-durable"));
            is_refused(&QueueSpec { durable: false, exclusive_owner: Some(mine), ..fine.clone() }, &invalid("exclusive-owner"));
            is_refused(&QueueSpec { auto_delete: true, ..fine }, &invalid("auto-delete"));
        }
    }

    #[test]
    fn arguments_of_deduplication_are_checked_where_it_is_asked_for() {
        let on = ("x-message-deduplication", Value::Bool(true));
        let invalid = |name: &str, why: &str| format!("invalid arg '{name}' for queue 'q' in vhost '/': {why}");
        is_refused(&spec(&[("x-message-deduplication", Value::Int(1))]), &invalid(on.0, "{unacceptable_type,signedint}"));
        for (name, value, why) in [
            ("x-cache-size", 0, "{value_zero,0}"),
            ("x-cache-size", 1_000_001, "{max_value_exceeded,1000001}"),
            ("x-cache-ttl", -1, "{value_negative,-1}"),
            ("x-cache-publishers", 0, "{value_zero,0}"),
            ("x-cache-publishers", 65_537, "{max_value_exceeded,65537}"),
            ("x-cache-publisher-ranges", -1, "{value_negative,-1}"),
            ("x-cache-publisher-ranges", 16_385, "{max_value_exceeded,16385}"),
        ] {
            is_refused(&spec(&[on.clone(), (name, Value::Int(value))]), &invalid(name, why));
        }
        assert_eq!(check_queue(&spec(&[("x-cache-size", Value::Int(0))])), Ok(()), "nothing is asked for");
        let ids = |publishers, ranges| {
            spec(&[on.clone(), ("x-cache-publishers", Value::Int(publishers)), ("x-cache-publisher-ranges", Value::Int(ranges))])
        };
        is_refused(&ids(65_536, 17), &invalid("x-cache-publisher-ranges", "{max_value_exceeded,1114112}"));
        assert_eq!(check_queue(&ids(65_536, 16)), Ok(()));
        assert_eq!(check_queue(&spec(&[on.clone(), ("x-cache-size", Value::Int(5)), ("x-cache-ttl", Value::Int(5))])), Ok(()));
    }
}
