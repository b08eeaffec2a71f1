//! What basic.consume asks of a stream: which offset, which filter values. The refusals are RabbitMQ's (`rabbit_stream_queue`,
//! `rabbit_amqqueue:check_consume_arguments`).

use crate::machine::catalog::{queue_text, queue_type};
use crate::model::Offset;
use crate::model::catalog::{QueueRecord, Refusal, Table, Value};
use crate::model::stream::{OffsetSpec, may_hold, parse_max_age};

const OFFSET: &str = "x-stream-offset";
const FILTER: &str = "x-stream-filter";
const UNFILTERED: &str = "x-stream-match-unfiltered";
/// Of queues alone.
const OF_QUEUES: [&str; 3] = ["x-priority", "x-consumer-timeout", "x-cancel-on-ha-failover"];

/// The filter values that a consumer wants; it gets whole chunks that may have them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filters {
    values: Vec<Vec<u8>>,
    /// Messages without a value, too.
    unfiltered: bool,
}

impl Filters {
    /// Whether a chunk with this filter is wanted.
    pub fn want(&self, filter: &[u8]) -> bool {
        may_hold(filter, &self.values, self.unfiltered)
    }
}

/// Refuses arguments of consumers that the queue's type does not know.
pub(in crate::edge) fn check_known(record: &QueueRecord, arguments: &Table) -> Result<(), Refusal> {
    let kind = queue_type(&record.spec.arguments);
    let unknown: &[&str] = if kind == "stream" { &OF_QUEUES } else { &[OFFSET, FILTER, UNFILTERED] };
    let module = match kind {
        "stream" => "rabbit_stream_queue",
        "quorum" => "rabbit_quorum_queue",
        _ => "rabbit_classic_queue",
    };
    match unknown.iter().find(|name| arguments.contains_key(**name)) {
        None => Ok(()),
        Some(name) => {
            let subject = queue_text(&record.spec.name);
            Err(Refusal::Precondition(format!("invalid arg '{name}' for {subject} of queue type {module}")))
        }
    }
}

/// Where to begin. `now_ms`: what an interval is counted from.
pub(super) fn offset(subject: &str, arguments: &Table, now_ms: u64) -> Result<OffsetSpec, Refusal> {
    let Some(value) = arguments.get(OFFSET) else { return Ok(OffsetSpec::Next) };
    let found = match value {
        Value::Text(text) => match text.as_slice() {
            b"first" => Some(OffsetSpec::First),
            b"last" => Some(OffsetSpec::Last),
            b"next" => Some(OffsetSpec::Next),
            interval => {
                let age = str::from_utf8(interval).ok().and_then(parse_max_age).filter(|ms| *ms > 0);
                age.map(|ms| OffsetSpec::Timestamp(now_ms.saturating_sub(ms)))
            }
        },
        Value::Timestamp(seconds) => Some(OffsetSpec::Timestamp(seconds.saturating_mul(1000))),
        Value::Int(n) => u64::try_from(*n).ok().map(|n| OffsetSpec::Offset(Offset(n))),
        Value::Void
        | Value::Bool(_)
        | Value::Float(_)
        | Value::Double(_)
        | Value::Decimal(..)
        | Value::Bytes(_)
        | Value::List(_)
        | Value::Table(_) => None,
    };
    found.ok_or_else(|| {
        let shown = match value {
            Value::Text(text) => format!("<<\"{}\">>", String::from_utf8_lossy(text)),
            other => other.text(),
        };
        let why = format!("{{invalid_stream_offset_arg,{{{},{shown}}}}}", value.type_text());
        Refusal::Precondition(format!("invalid arg '{OFFSET}' for {subject}: {why}"))
    })
}

/// What to filter by; other types than texts count for nothing, as in RabbitMQ.
pub(super) fn filters(arguments: &Table) -> Option<Filters> {
    let values = match arguments.get(FILTER)? {
        Value::Text(value) => vec![value.clone()],
        Value::List(values) => values.iter().filter_map(|v| if let Value::Text(value) = v { Some(value.clone()) } else { None }).collect(),
        _ => return None,
    };
    Some(Filters { values, unfiltered: arguments.get(UNFILTERED) == Some(&Value::Bool(true)) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::stream::Filter;

    fn at(value: Value) -> Result<OffsetSpec, String> {
        let arguments = Table::from([(OFFSET.to_owned(), value)]);
        offset("queue 's' in vhost '/'", &arguments, 10_000_000).map_err(|refusal| refusal.to_string())
    }

    fn text(text: &str) -> Value {
        Value::Text(text.as_bytes().to_vec())
    }

    #[test]
    fn every_form_of_an_offset_is_understood() {
        assert_eq!(offset("", &Table::new(), 0), Ok(OffsetSpec::Next));
        let cases = [
            (text("first"), OffsetSpec::First),
            (text("last"), OffsetSpec::Last),
            (text("next"), OffsetSpec::Next),
            (text("1h"), OffsetSpec::Timestamp(6_400_000)),
            (text("7D"), OffsetSpec::Timestamp(0)),
            (Value::Timestamp(1_700_000_000), OffsetSpec::Timestamp(1_700_000_000_000)),
            (Value::Int(0), OffsetSpec::Offset(Offset(0))),
            (Value::Int(1 << 40), OffsetSpec::Offset(Offset(1 << 40))),
        ];
        for (value, spec) in cases {
            assert_eq!(at(value.clone()), Ok(spec), "{value:?}");
        }
    }

    #[test]
    fn other_offsets_are_refused_in_rabbitmqs_words() {
        let refused =
            |why: &str| Err(format!("invalid arg 'x-stream-offset' for queue 's' in vhost '/': {{invalid_stream_offset_arg,{why}}}"));
        assert_eq!(at(text("soon")), refused("{longstr,<<\"soon\">>}"));
        assert_eq!(at(text("0s")), refused("{longstr,<<\"0s\">>}"));
        assert_eq!(at(Value::Int(-1)), refused("{signedint,-1}"));
        assert_eq!(at(Value::Bool(true)), refused("{bool,true}"));
    }

    #[test]
    fn filters_are_a_text_or_several() {
        let mut filter = Filter::new(16);
        filter.insert(Some(b"b"));
        let wants = |arguments: &[(&str, Value)]| {
            let arguments: Table = arguments.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
            filters(&arguments).map(|filters| (filters.want(filter.bytes()), filters.want(b"")))
        };
        assert_eq!(wants(&[]), None);
        assert_eq!(wants(&[(UNFILTERED, Value::Bool(true))]), None, "there is nothing to match beside");
        assert_eq!(wants(&[(FILTER, text("b"))]), Some((true, false)));
        assert_eq!(wants(&[(FILTER, text("a")), (UNFILTERED, Value::Bool(true))]), Some((false, true)));
        assert_eq!(wants(&[(FILTER, Value::List(vec![text("a"), Value::Int(1), text("b")]))]), Some((true, false)));
    }
}
