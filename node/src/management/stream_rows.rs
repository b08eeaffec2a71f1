//! Columns of what rabbitmq-streams lists: connections, publishers and consumers of the stream protocol. Used by `admin`.

use super::client_rows::in_vhost;
use super::rows::{Listed, QUEUE_TYPE, arguments, count, plain, text, unknown};
use super::source::{ConnectionRow, QueueRow};
use crate::model::catalog::Value;
use crate::model::report::{PublisherReport, Report, SubscriptionReport};
use std::collections::HashMap;
use warren_proto::admin::{Cell, ListReply};

/// A connection that speaks the stream protocol.
pub(super) struct StreamConnectionRow<'a>(&'a ConnectionRow);

/// Those of these connections.
pub(super) fn connections(all: &[ConnectionRow]) -> Vec<StreamConnectionRow<'_>> {
    let speaks = |report: &Report| report.protocol == "stream";
    all.iter().filter(|row| row.report.as_ref().is_some_and(speaks)).map(StreamConnectionRow).collect()
}

impl Listed for StreamConnectionRow<'_> {
    const COLUMNS: &'static [&'static str] = &[
        "conn_name",
        "pid",
        "node",
        "port",
        "peer_port",
        "host",
        "peer_cert_issuer",
        "peer_cert_subject",
        "peer_cert_validity",
        "peer_host",
        "user",
        "vhost",
        "subscriptions",
        "ssl",
        "ssl_cipher",
        "ssl_hash",
        "ssl_key_exchange",
        "ssl_protocol",
        "connection_state",
        "auth_mechanism",
        "heartbeat",
        "frame_max",
        "client_properties",
        "connected_at",
    ];
    const UNTOLD: &'static [&'static str] = &["peer_cert_serial_number"];
    const DEFAULT: &'static [&'static str] = &["conn_name"];

    fn cell(&self, column: &str) -> Cell {
        match column {
            "conn_name" => self.0.cell("name"),
            "connection_state" => self.0.cell("state"),
            "heartbeat" => self.0.cell("timeout"),
            "subscriptions" => count(self.0.report.as_ref().map(|report| report.subscriptions.len() as u64)),
            same => self.0.cell(same),
        }
    }
}

/// A publisher.
pub(super) struct PublisherRow<'a> {
    connection: &'a ConnectionRow,
    publisher: &'a PublisherReport,
}

/// All of a vhost.
pub(super) fn publishers<'a>(connections: &'a [ConnectionRow], vhost: &str) -> Vec<PublisherRow<'a>> {
    let of = |connection: &'a ConnectionRow| {
        let all = connection.report.iter().flat_map(|report| &report.publishers);
        all.map(move |publisher| PublisherRow { connection, publisher })
    };
    in_vhost(connections, vhost).flat_map(of).collect()
}

impl Listed for PublisherRow<'_> {
    const COLUMNS: &'static [&'static str] =
        &["connection_pid", "node", "publisher_id", "stream", "reference", "messages_published", "messages_confirmed", "messages_errored"];
    const DEFAULT: &'static [&'static str] =
        &["publisher_id", "stream", "reference", "messages_published", "messages_confirmed", "messages_errored"];

    fn cell(&self, column: &str) -> Cell {
        let PublisherRow { connection, publisher } = self;
        match column {
            "connection_pid" => text(&connection.pid()),
            "node" => plain(connection.node.0),
            "publisher_id" => plain(publisher.id),
            "stream" => text(&publisher.stream),
            "reference" => text(publisher.reference.as_deref().unwrap_or_default()),
            "messages_published" => plain(publisher.published),
            "messages_confirmed" => plain(publisher.confirmed),
            "messages_errored" => plain(publisher.errored),
            _ => unknown(),
        }
    }
}

/// A subscription.
pub(super) struct SubscriptionRow<'a> {
    connection: &'a ConnectionRow,
    subscription: &'a SubscriptionReport,
}

/// All of a vhost.
pub(super) fn subscriptions<'a>(connections: &'a [ConnectionRow], vhost: &str) -> Vec<SubscriptionRow<'a>> {
    let of = |connection: &'a ConnectionRow| {
        let all = connection.report.iter().flat_map(|report| &report.subscriptions);
        all.map(move |subscription| SubscriptionRow { connection, subscription })
    };
    in_vhost(connections, vhost).flat_map(of).collect()
}

impl Listed for SubscriptionRow<'_> {
    const COLUMNS: &'static [&'static str] = &[
        "connection_pid",
        "node",
        "subscription_id",
        "stream",
        "messages_consumed",
        "offset",
        "offset_lag",
        "credits",
        "active",
        "activity_status",
        "properties",
    ];
    const DEFAULT: &'static [&'static str] =
        &["subscription_id", "stream", "messages_consumed", "offset", "offset_lag", "credits", "active", "activity_status", "properties"];

    fn cell(&self, column: &str) -> Cell {
        let SubscriptionRow { connection, subscription: of } = self;
        match column {
            "connection_pid" => text(&connection.pid()),
            "node" => plain(connection.node.0),
            "subscription_id" => plain(of.id),
            "stream" => text(&of.stream),
            "messages_consumed" => plain(of.delivered),
            "offset" => count(of.next.map(|next| next.0.saturating_sub(1))),
            "offset_lag" => count(of.next.zip(of.end).map(|(next, end)| end.0.saturating_sub(next.0))),
            "credits" => plain(of.credit),
            "active" => plain(of.is_active),
            "activity_status" => text(match (of.is_of_group, of.is_active) {
                (false, _) => "up",
                (true, true) => "single_active",
                (true, false) => "waiting",
            }),
            "properties" => arguments(&of.properties),
            _ => unknown(),
        }
    }
}

// ---- readers of both protocols, for list_queues ----

/// Something that consumes, by the name of its queue.
pub(super) struct ReaderRow<'a>(&'a str);

/// The only column.
const QUEUE: &str = "queue";

/// All of a vhost, of queues too.
pub(super) fn readers<'a>(connections: &'a [ConnectionRow], vhost: &str) -> Vec<ReaderRow<'a>> {
    let reports = in_vhost(connections, vhost).flat_map(|connection| &connection.report);
    let of = |report: &'a Report| {
        let consumers = report.channels.iter().flat_map(|channel| &channel.consumers).map(|consumer| ReaderRow(&consumer.queue));
        consumers.chain(report.subscriptions.iter().map(|subscription| ReaderRow(&subscription.stream)))
    };
    reports.flat_map(of).collect()
}

impl Listed for ReaderRow<'_> {
    const COLUMNS: &'static [&'static str] = &[QUEUE];
    const DEFAULT: &'static [&'static str] = Self::COLUMNS;

    fn cell(&self, _: &str) -> Cell {
        text(self.0)
    }
}

/// Whether it is a stream: nobody but the nodes that they are connected to knows its consumers.
pub(super) fn is_stream(row: &QueueRow) -> bool {
    matches!(row.record.spec.arguments.get(QUEUE_TYPE), Some(Value::Text(kind)) if kind == b"stream")
}

/// Fills in the consumers of streams as the nodes list their readers.
pub(super) fn count_readers(rows: &mut [QueueRow], listed: &[ListReply]) {
    let mut readers: HashMap<&str, u64> = HashMap::new();
    // The JSON of the name, as a cell has it.
    for cell in listed.iter().flat_map(|reply| &reply.rows).filter_map(|row| row.cells.first()) {
        *readers.entry(&cell.json).or_default() += 1;
    }
    for row in rows.iter_mut().filter(|row| is_stream(row)) {
        row.consumers = Some(readers.get(&*text(&row.record.spec.name.name).json).copied().unwrap_or(0));
    }
}

#[cfg(test)]
mod tests {
    use super::super::rows::list;
    use super::*;
    use crate::model::catalog::Table;
    use crate::model::report::{ChannelReport, ConnectionStat, ConsumerReport};
    use crate::model::{ConnectionId, ConsumerId, NodeId, Offset, QueueId, ShardId};
    use std::time::UNIX_EPOCH;

    fn subscription(id: u8) -> SubscriptionReport {
        SubscriptionReport {
            id,
            stream: "s".into(),
            target: (QueueId(1), ShardId(1)),
            end: Some(Offset(30)),
            delivered: 20,
            next: Some(Offset(25)),
            credit: -1,
            is_active: true,
            is_of_group: false,
            properties: Table::from([("name".to_owned(), Value::Text(b"n".to_vec()))]),
        }
    }

    fn connection(report: Report) -> ConnectionRow {
        let (peer, since) = ("10.0.0.1:4000".parse().unwrap(), UNIX_EPOCH);
        let (user, vhost) = (Some("guest".into()), Some("/".into()));
        let stat = ConnectionStat { id: ConnectionId(9), peer, since, user, vhost, blocked: false };
        ConnectionRow { node: NodeId(2), stat, report: Some(report) }
    }

    fn both() -> [ConnectionRow; 2] {
        let publisher = PublisherReport { id: 3, stream: "s".into(), reference: Some("r".into()), published: 7, confirmed: 5, errored: 2 };
        let waiting = SubscriptionReport { is_active: false, is_of_group: true, next: None, ..subscription(1) };
        let subscriptions = vec![subscription(0), waiting];
        let streams = Report { protocol: "stream", state: "running", publishers: vec![publisher], subscriptions, ..Report::default() };
        let consumer = |queue: &str| ConsumerReport {
            id: ConsumerId(1),
            queue: queue.into(),
            tag: "t".into(),
            no_ack: false,
            prefetch: 1,
            arguments: Table::new(),
        };
        let channel = ChannelReport { consumers: vec![consumer("s"), consumer("q")], ..ChannelReport::default() };
        [connection(streams), connection(Report { protocol: "{0,9,1}", channels: vec![channel], ..Report::default() })]
    }

    fn texts<T: Listed>(items: &[T], columns: &[&str]) -> Vec<String> {
        let reply = list(items, columns.iter().map(|c| (*c).to_owned()).collect()).unwrap();
        reply.rows.iter().flat_map(|row| row.cells.iter().map(|cell| cell.text.clone())).collect()
    }

    #[test]
    fn connections_publishers_and_consumers_read_as_in_rabbitmq_streams() {
        let all = both();
        assert_eq!(texts(&connections(&all), &["pid", "connection_state", "subscriptions"]), ["<2.9.0>", "running", "2"]);
        assert_eq!(texts(&publishers(&all, "/"), &[]), ["3", "s", "r", "7", "5", "2"]);
        let (one, two) = (
            ["0", "s", "20", "24", "5", "-1", "true", "up", "[{\"name\",\"n\"}]"],
            ["1", "s", "20", "", "", "-1", "false", "waiting", "[{\"name\",\"n\"}]"],
        );
        assert_eq!(texts(&subscriptions(&all, "/"), &[]), [one, two].concat());
        assert!(publishers(&all, "other").is_empty() && subscriptions(&all, "other").is_empty());
    }

    #[test]
    fn readers_are_those_of_both_protocols() {
        let all = both();
        assert_eq!(texts(&readers(&all, "/"), &[]), ["s", "s", "s", "q"]);
        assert!(readers(&all, "other").is_empty());
    }
}
