//! Columns of `list_queues`, `list_exchanges` and `list_bindings`: rabbitmqctl's names, defaults and values. Used by `admin`.

use super::source::{ExchangeRow, QueueRow};
use super::term;
use crate::model::catalog::{BindingSpec, Table, Target, Value};
use serde_json::{Value as Json, json};
use warren_proto::admin::{Cell, ListReply, Row};

/// Something that can be listed: its columns, and the value in each.
pub(super) trait Listed {
    /// All column names.
    const COLUMNS: &'static [&'static str];
    /// Columns that RabbitMQ has and nobody here knows: always empty, as there for a queue of a type that does not tell.
    const UNTOLD: &'static [&'static str] = &[];
    /// Shown when none are asked for.
    const DEFAULT: &'static [&'static str];
    /// The value in a column of `COLUMNS`.
    fn cell(&self, column: &str) -> Cell;
}

/// Columns that do not exist: the message names them, in rabbitmqctl's words, and those that do.
pub(super) fn list<T: Listed>(items: &[T], columns: Vec<String>) -> Result<ListReply, String> {
    let is_known = |column: &&str| T::COLUMNS.contains(column) || T::UNTOLD.contains(column);
    let unknown: Vec<&str> = columns.iter().map(String::as_str).filter(|column| !is_known(column)).collect();
    if !unknown.is_empty() {
        let columns = T::COLUMNS.join(", ");
        return Err(format!("Info key(s) {} are not supported\n<column> must be one of {columns}", unknown.join(",")));
    }
    let columns = match columns.is_empty() {
        true => T::DEFAULT.iter().map(|column| (*column).to_owned()).collect(),
        false => columns,
    };
    let rows = items.iter().map(|item| Row { cells: columns.iter().map(|column| item.cell(column)).collect() }).collect();
    Ok(ListReply { columns, rows })
}

pub(super) fn text(value: &str) -> Cell {
    Cell { text: term::escaped(value), json: json!(value).to_string() }
}

pub(super) fn plain(value: impl Into<Json>) -> Cell {
    let json = value.into().to_string();
    Cell { text: json.clone(), json }
}

pub(super) fn unknown() -> Cell {
    Cell { text: String::new(), json: Json::Null.to_string() }
}

pub(super) fn count(value: Option<u64>) -> Cell {
    value.map_or_else(unknown, plain)
}

pub(super) fn arguments(table: &Table) -> Cell {
    Cell { text: term::table(table), json: term::table_json(table).to_string() }
}

/// What kind of queue it is.
pub(super) const QUEUE_TYPE: &str = "x-queue-type";

/// `x-queue-type` as declared; a durable queue is replicated whatever it says.
fn queue_type(arguments: &Table) -> Cell {
    match arguments.get(QUEUE_TYPE) {
        Some(Value::Text(kind)) => text(&String::from_utf8_lossy(kind)),
        _ => text("classic"),
    }
}

impl QueueRow {
    /// RabbitMQ's word for whether somebody serves it.
    fn state(&self) -> &'static str {
        if self.leader.is_some() { "running" } else { "down" }
    }

    /// Whether a listing of queues in that state has it; empty: all of them.
    pub(super) fn is_in(&self, state: &str) -> bool {
        match state {
            "" => true,
            // Its leader told no figures.
            "unresponsive" => self.messages_ready.is_none(),
            state => state == self.state(),
        }
    }
}

impl Listed for QueueRow {
    const COLUMNS: &'static [&'static str] = &[
        "name",
        "vhost",
        "durable",
        "auto_delete",
        "exclusive",
        "arguments",
        "policy",
        "operator_policy",
        "effective_policy_definition",
        "pid",
        "owner_pid",
        "type",
        "state",
        "messages",
        "messages_ready",
        "messages_unacknowledged",
        "message_bytes",
        "message_bytes_ready",
        "message_bytes_unacknowledged",
        "consumers",
        "leader",
        "members",
        "online",
        "shard",
    ];
    const UNTOLD: &'static [&'static str] = &[
        "exclusive_consumer_pid",
        "exclusive_consumer_tag",
        "messages_ready_ram",
        "messages_unacknowledged_ram",
        "messages_ram",
        "messages_persistent",
        "message_bytes_ram",
        "message_bytes_persistent",
        "head_message_timestamp",
        "disk_reads",
        "disk_writes",
        "consumer_utilisation",
        "consumer_capacity",
        "memory",
    ];
    const DEFAULT: &'static [&'static str] = &["name", "messages"];

    fn cell(&self, column: &str) -> Cell {
        let spec = &self.record.spec;
        match column {
            "name" => text(&spec.name.name),
            "vhost" => text(&spec.name.vhost),
            "durable" => plain(spec.durable),
            "auto_delete" => plain(spec.auto_delete),
            "exclusive" => plain(spec.exclusive_owner.is_some()),
            "arguments" => arguments(&spec.arguments),
            "policy" => text(self.policy.as_deref().unwrap_or_default()),
            "operator_policy" => text(self.operator_policy.as_deref().unwrap_or_default()),
            "effective_policy_definition" => arguments(&self.definition),
            "pid" => self.leader.map_or_else(unknown, |node| text(&format!("<{}.{}.0>", node.0, self.record.id.0))),
            "owner_pid" => spec.exclusive_owner.map_or_else(unknown, |owner| text(&format!("<{}.{}.0>", owner.node.0, owner.connection.0))),
            "type" => queue_type(&spec.arguments),
            "state" => text(self.state()),
            "messages" => count(self.messages_ready.zip(self.messages_unacknowledged).map(|(ready, unacked)| ready + unacked)),
            "messages_ready" => count(self.messages_ready),
            "messages_unacknowledged" => count(self.messages_unacknowledged),
            "message_bytes" => count(self.message_bytes),
            "message_bytes_ready" => {
                count(self.message_bytes.zip(self.message_bytes_unacknowledged).map(|(all, unacked)| all.saturating_sub(unacked)))
            }
            "message_bytes_unacknowledged" => count(self.message_bytes_unacknowledged),
            "consumers" => count(self.consumers),
            "leader" => self.leader.map_or_else(unknown, |node| plain(node.0)),
            "members" => plain(self.members.iter().map(|node| node.0).collect::<Vec<_>>()),
            "online" => plain(self.online.iter().map(|node| node.0).collect::<Vec<_>>()),
            "shard" => text(&self.record.shard.to_string()),
            _ => unknown(),
        }
    }
}

impl Listed for ExchangeRow {
    const COLUMNS: &'static [&'static str] = &["name", "type", "durable", "auto_delete", "internal", "arguments", "policy", "vhost"];
    const DEFAULT: &'static [&'static str] = &["name", "type"];

    fn cell(&self, column: &str) -> Cell {
        match column {
            "name" => text(&self.spec.name.name),
            "type" => text(self.spec.kind.text()),
            "durable" => plain(self.spec.durable),
            "auto_delete" => plain(self.spec.auto_delete),
            "internal" => plain(self.spec.internal),
            "arguments" => arguments(&self.spec.arguments),
            "policy" => text(self.policy.as_deref().unwrap_or_default()),
            "vhost" => text(&self.spec.name.vhost),
            _ => unknown(),
        }
    }
}

impl Listed for BindingSpec {
    const COLUMNS: &'static [&'static str] =
        &["source_name", "source_kind", "destination_name", "destination_kind", "routing_key", "arguments", "vhost"];
    const DEFAULT: &'static [&'static str] =
        &["source_name", "source_kind", "destination_name", "destination_kind", "routing_key", "arguments"];

    fn cell(&self, column: &str) -> Cell {
        match column {
            "source_name" => text(&self.source),
            "source_kind" => text("exchange"),
            "destination_name" => text(&self.destination),
            "destination_kind" => text(match self.target {
                Target::Queue => "queue",
                Target::Exchange => "exchange",
            }),
            "routing_key" => text(&self.key),
            "arguments" => arguments(&self.arguments),
            "vhost" => text(&self.vhost),
            _ => unknown(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::implicit_binding;
    use super::*;
    use crate::model::catalog::{Name, Owner, QueueRecord, QueueSpec};
    use crate::model::{ConnectionId, Incarnation, NodeId, QueueId, ShardId};

    fn queue() -> QueueRow {
        let spec = QueueSpec {
            name: Name { vhost: "/".into(), name: "hello".into() },
            durable: true,
            auto_delete: false,
            exclusive_owner: None,
            arguments: Table::from([("x-queue-type".into(), Value::Text(b"quorum".to_vec()))]),
        };
        QueueRow {
            record: QueueRecord { id: QueueId(9), spec, shard: ShardId(2), incarnation: Incarnation(0), backs: None },
            messages_ready: Some(3),
            messages_unacknowledged: Some(1),
            consumers: Some(2),
            leader: Some(NodeId(2)),
            members: vec![NodeId(1), NodeId(2), NodeId(3)],
            online: vec![NodeId(1), NodeId(2)],
            message_bytes: Some(500),
            message_bytes_unacknowledged: Some(120),
            policy: None,
            operator_policy: None,
            definition: Table::new(),
        }
    }

    fn texts<T: Listed>(item: T, columns: &[&str]) -> Vec<String> {
        let reply = list(&[item], columns.iter().map(|c| (*c).to_owned()).collect()).unwrap();
        reply.rows[0].cells.iter().map(|cell| cell.text.clone()).collect()
    }

    #[test]
    fn queues_show_rabbitmqctl_columns() {
        assert_eq!(texts(queue(), &[]), ["hello", "4"]);
        let columns = ["messages_unacknowledged", "durable", "type", "arguments", "state", "members"];
        assert_eq!(texts(queue(), &columns), ["1", "true", "quorum", r#"[{"x-queue-type","quorum"}]"#, "running", "[1,2,3]"]);
    }

    #[test]
    fn figures_that_no_leader_tells_are_empty_not_zero() {
        let row = QueueRow { messages_ready: None, messages_unacknowledged: None, leader: None, ..queue() };
        assert_eq!(texts(row, &["name", "messages", "state"]), ["hello", "", "down"]);
    }

    #[test]
    fn queues_are_picked_by_whether_they_have_a_leader_that_answers() {
        let silent = QueueRow { messages_ready: None, ..queue() };
        let down = QueueRow { leader: None, ..silent.clone() };
        let states = ["", "running", "down", "unresponsive"];
        let picked = |row: &QueueRow| states.map(|state| row.is_in(state));
        assert_eq!(picked(&queue()), [true, true, false, false]);
        assert_eq!(picked(&silent), [true, true, false, true]);
        assert_eq!(picked(&down), [true, false, true, true]);
    }

    #[test]
    fn every_column_of_a_queue_but_an_unset_policy_has_a_value() {
        let mut owned = queue();
        owned.record.spec.exclusive_owner = Some(Owner { node: NodeId(3), incarnation: Incarnation(1), connection: ConnectionId(7) });
        assert_eq!(texts(owned.clone(), &["pid", "owner_pid", "online", "message_bytes"]), ["<2.9.0>", "<3.7.0>", "[1,2]", "500"]);
        assert_eq!(texts(owned.clone(), &["message_bytes_ready", "message_bytes_unacknowledged"]), ["380", "120"]);
        for column in QueueRow::COLUMNS.iter().filter(|column| !column.ends_with("policy")) {
            assert_ne!(texts(owned.clone(), &[column]), [""], "{column}");
        }
        for column in QueueRow::UNTOLD {
            assert_eq!(texts(owned.clone(), &[column]), [""], "{column}");
        }
    }

    #[test]
    fn a_binding_to_the_default_exchange_reads_as_in_rabbitmqctl() {
        let binding = implicit_binding(&Name { vhost: "/".into(), name: "q".into() });
        assert_eq!(texts(binding, &[]), ["", "exchange", "q", "queue", "q", "[]"]);
    }

    #[test]
    fn an_unknown_column_is_refused_by_name() {
        let error = list(&[queue()], vec!["colour".into(), "name".into(), "size".into()]).unwrap_err();
        assert!(error.starts_with("Info key(s) colour,size are not supported") && error.contains("messages_ready"), "{error}");
    }
}
