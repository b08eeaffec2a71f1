//! Columns of connections, channels, consumers, replicas and listeners, as rabbitmqctl shows them. Connections and channels are named
//! by pids like `<1.7.2>`: node, connection, channel. Used by `admin`.

use super::rows::{Listed, arguments, plain, text, unknown};
use super::source::{Active, ConnectionRow, ListenerRow, ReplicaRow};
use crate::model::report::{CertificateReport, ChannelReport, ConsumerReport, Encryption, Report};
use crate::model::{ConnectionId, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::UNIX_EPOCH;
use warren_proto::admin::Cell;

/// RabbitMQ's words for what a consumer is about.
const UP: &str = "up";
const WAITING: &str = "waiting";

/// How tools name a connection.
pub(super) fn pid(node: NodeId, connection: ConnectionId) -> String {
    format!("<{}.{}.0>", node.0, connection.0)
}

impl ConnectionRow {
    /// How tools name it.
    pub(super) fn pid(&self) -> String {
        pid(self.node, self.stat.id)
    }

    fn name(&self) -> String {
        let local = self.report.as_ref().and_then(|r| r.local);
        format!("{} -> {}", self.stat.peer, local.map_or_else(|| "?".to_owned(), |local| local.to_string()))
    }

    fn state(&self) -> &'static str {
        match &self.report {
            _ if self.stat.blocked => "blocked",
            Some(report) => report.state,
            None => "unresponsive",
        }
    }

    fn told(&self, cell: impl Fn(&Report) -> Cell) -> Cell {
        self.report.as_ref().map_or_else(unknown, cell)
    }

    /// Empty without TLS.
    fn encrypted(&self, word: impl Fn(&Encryption) -> &str) -> Cell {
        self.told(|r| text(r.encryption.as_deref().map(&word).unwrap_or_default()))
    }

    /// Empty without a client's certificate.
    fn certified(&self, word: impl Fn(&CertificateReport) -> &str) -> Cell {
        self.encrypted(|e| e.certificate.as_ref().map(&word).unwrap_or_default())
    }

    fn local(&self, cell: impl Fn(SocketAddr) -> Cell) -> Cell {
        self.report.as_ref().and_then(|r| r.local).map_or_else(unknown, cell)
    }
}

impl Listed for ConnectionRow {
    const COLUMNS: &'static [&'static str] = &[
        "pid",
        "name",
        "port",
        "host",
        "peer_port",
        "peer_host",
        "ssl",
        "ssl_protocol",
        "ssl_key_exchange",
        "ssl_cipher",
        "ssl_hash",
        "peer_cert_subject",
        "peer_cert_issuer",
        "peer_cert_validity",
        "state",
        "channels",
        "protocol",
        "auth_mechanism",
        "user",
        "vhost",
        "timeout",
        "frame_max",
        "channel_max",
        "client_properties",
        "recv_oct",
        "send_oct",
        "connected_at",
        "node",
    ];
    const UNTOLD: &'static [&'static str] = &["container_id", "peer_cert_serial_number", "recv_cnt", "send_cnt", "send_pend"];
    const DEFAULT: &'static [&'static str] = &["user", "peer_host", "peer_port", "state"];

    fn cell(&self, column: &str) -> Cell {
        match column {
            "pid" => text(&self.pid()),
            "name" => text(&self.name()),
            "port" => self.local(|local| plain(local.port())),
            "host" => self.local(|local| text(&local.ip().to_string())),
            "peer_port" => plain(self.stat.peer.port()),
            "peer_host" => text(&self.stat.peer.ip().to_string()),
            "ssl" => self.told(|r| plain(r.encryption.is_some())),
            "ssl_protocol" => self.encrypted(|e| e.protocol),
            "ssl_key_exchange" => self.encrypted(|e| e.key_exchange),
            "ssl_cipher" => self.encrypted(|e| e.cipher),
            "ssl_hash" => self.encrypted(|e| e.hash),
            "peer_cert_subject" => self.certified(|c| &c.subject),
            "peer_cert_issuer" => self.certified(|c| &c.issuer),
            "peer_cert_validity" => self.certified(|c| &c.validity),
            "state" => text(self.state()),
            "channels" => self.told(|r| plain(r.channels.len())),
            "protocol" => self.told(|r| text(r.protocol)),
            "auth_mechanism" => self.told(|r| text(r.mechanism)),
            "user" => text(self.stat.user.as_deref().unwrap_or_default()),
            "vhost" => text(self.stat.vhost.as_deref().unwrap_or_default()),
            "timeout" => self.told(|r| plain(r.heartbeat_seconds)),
            "frame_max" => self.told(|r| plain(r.frame_max)),
            "channel_max" => self.told(|r| plain(r.channel_max)),
            "client_properties" => self.told(|r| arguments(&r.client_properties)),
            "recv_oct" => self.told(|r| plain(r.received_bytes)),
            "send_oct" => self.told(|r| plain(r.sent_bytes)),
            "connected_at" => {
                let since = self.stat.since.duration_since(UNIX_EPOCH).unwrap_or_default();
                plain(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
            }
            "node" => plain(self.node.0),
            _ => unknown(),
        }
    }
}

/// A channel of a connection.
pub(super) struct ChannelRow<'a> {
    connection: &'a ConnectionRow,
    channel: &'a ChannelReport,
}

/// All channels of these connections.
pub(super) fn channels(connections: &[ConnectionRow]) -> Vec<ChannelRow<'_>> {
    let of = |connection| move |channel| ChannelRow { connection, channel };
    connections.iter().flat_map(|c| c.report.iter().flat_map(|r| &r.channels).map(of(c))).collect()
}

impl ChannelRow<'_> {
    fn pid(&self) -> String {
        format!("<{}.{}.{}>", self.connection.node.0, self.connection.stat.id.0, self.channel.number)
    }
}

impl Listed for ChannelRow<'_> {
    const COLUMNS: &'static [&'static str] = &[
        "pid",
        "connection",
        "name",
        "number",
        "user",
        "vhost",
        "transactional",
        "confirm",
        "consumer_count",
        "messages_unacknowledged",
        "messages_uncommitted",
        "acks_uncommitted",
        "messages_unconfirmed",
        "prefetch_count",
    ];
    const DEFAULT: &'static [&'static str] = &["pid", "user", "consumer_count", "messages_unacknowledged"];

    fn cell(&self, column: &str) -> Cell {
        let ChannelRow { connection, channel } = self;
        match column {
            "pid" => text(&self.pid()),
            "connection" => text(&connection.pid()),
            "name" => text(&format!("{} ({})", connection.name(), channel.number)),
            "number" => plain(channel.number),
            "user" => text(connection.stat.user.as_deref().unwrap_or_default()),
            "vhost" => text(connection.stat.vhost.as_deref().unwrap_or_default()),
            "transactional" => plain(channel.transactional),
            "confirm" => plain(channel.confirm),
            "consumer_count" => plain(channel.consumers.len()),
            "messages_unacknowledged" => plain(channel.unacknowledged),
            "messages_uncommitted" => plain(channel.uncommitted),
            "acks_uncommitted" => plain(channel.uncommitted_acks),
            "messages_unconfirmed" => plain(channel.unconfirmed),
            "prefetch_count" => plain(channel.prefetch),
            _ => unknown(),
        }
    }
}

/// A consumer of a channel.
pub(super) struct ConsumerRow<'a> {
    channel: ChannelRow<'a>,
    consumer: &'a ConsumerReport,
    activity: &'static str,
}

/// All consumers in a vhost. `active`: the single active ones of queues that have one.
pub(super) fn consumers<'a>(connections: &'a [ConnectionRow], vhost: &str, active: &BTreeMap<Arc<str>, Active>) -> Vec<ConsumerRow<'a>> {
    let mut rows = Vec::new();
    for connection in in_vhost(connections, vhost) {
        for channel in connection.report.iter().flat_map(|r| &r.channels) {
            rows.extend(channel.consumers.iter().map(|consumer| {
                let activity = match active.get(&consumer.queue) {
                    None => UP,
                    Some(one) if *one == Some((connection.node, consumer.id)) => "single_active",
                    Some(_) => WAITING,
                };
                ConsumerRow { channel: ChannelRow { connection, channel }, consumer, activity }
            }));
        }
    }
    rows
}

/// Queues that somebody in a vhost consumes from.
pub(super) fn consumed(connections: &[ConnectionRow], vhost: &str) -> BTreeSet<Arc<str>> {
    let channels = in_vhost(connections, vhost).flat_map(|c| &c.report).flat_map(|r| &r.channels);
    channels.flat_map(|c| &c.consumers).map(|c| c.queue.clone()).collect()
}

/// Connections that are in a vhost.
pub(super) fn in_vhost<'a>(connections: &'a [ConnectionRow], vhost: &str) -> impl Iterator<Item = &'a ConnectionRow> {
    connections.iter().filter(move |c| c.stat.vhost.as_deref() == Some(vhost))
}

impl Listed for ConsumerRow<'_> {
    const COLUMNS: &'static [&'static str] =
        &["queue_name", "channel_pid", "consumer_tag", "ack_required", "prefetch_count", "active", "activity_status", "arguments"];
    const DEFAULT: &'static [&'static str] =
        &["queue_name", "channel_pid", "consumer_tag", "ack_required", "prefetch_count", "active", "arguments"];

    fn cell(&self, column: &str) -> Cell {
        match column {
            "queue_name" => text(&self.consumer.queue),
            "channel_pid" => text(&self.channel.pid()),
            "consumer_tag" => text(&self.consumer.tag),
            "ack_required" => plain(!self.consumer.no_ack),
            "prefetch_count" => plain(self.consumer.prefetch),
            "active" => plain(self.activity != WAITING),
            "activity_status" => text(self.activity),
            "arguments" => arguments(&self.consumer.arguments),
            _ => unknown(),
        }
    }
}

impl Listed for ReplicaRow {
    const COLUMNS: &'static [&'static str] =
        &["Node Name", "Raft State", "Membership", "Last Log Index", "Last Applied", "Commit Index", "Snapshot Index", "Term"];
    const DEFAULT: &'static [&'static str] = Self::COLUMNS;

    fn cell(&self, column: &str) -> Cell {
        match column {
            "Node Name" => plain(self.node.0),
            "Raft State" => text(self.raft.state),
            "Membership" => text("voter"),
            "Last Log Index" => plain(self.raft.last_index),
            "Last Applied" => plain(self.raft.applied),
            "Commit Index" => plain(self.raft.committed),
            "Snapshot Index" => plain(self.raft.purged),
            "Term" => plain(self.raft.term),
            _ => unknown(),
        }
    }
}

impl Listed for ListenerRow {
    const COLUMNS: &'static [&'static str] = &["node", "interface", "port", "protocol", "purpose"];
    const DEFAULT: &'static [&'static str] = Self::COLUMNS;

    fn cell(&self, column: &str) -> Cell {
        match column {
            "node" => plain(self.node.0),
            "interface" => text(&self.interface),
            "port" => plain(self.port),
            "protocol" => text(self.protocol),
            "purpose" => text(self.purpose),
            _ => unknown(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::rows::list;
    use super::*;
    use crate::model::catalog::Table;
    use crate::model::report::ConnectionStat;
    use crate::model::{ConnectionId, ConsumerId, NodeId};

    fn connection() -> ConnectionRow {
        let consumer =
            ConsumerReport { id: ConsumerId(4), queue: "q".into(), tag: "t".into(), no_ack: false, prefetch: 7, arguments: Table::new() };
        let channel = ChannelReport {
            number: 3,
            unacknowledged: 2,
            transactional: true,
            uncommitted: 5,
            uncommitted_acks: 6,
            consumers: vec![consumer],
            ..ChannelReport::default()
        };
        let local = Some("127.0.0.1:5672".parse().unwrap());
        let report = Report { local, state: "running", channels: vec![channel], ..Report::default() };
        let stat = ConnectionStat {
            id: ConnectionId(9),
            peer: "10.0.0.1:4000".parse().unwrap(),
            since: UNIX_EPOCH,
            user: Some("guest".into()),
            vhost: Some("/".into()),
            blocked: false,
        };
        ConnectionRow { node: NodeId(2), stat, report: Some(report) }
    }

    fn texts<T: Listed>(items: &[T], columns: &[&str]) -> Vec<String> {
        let reply = list(items, columns.iter().map(|c| (*c).to_owned()).collect()).unwrap();
        reply.rows.iter().flat_map(|row| row.cells.iter().map(|cell| cell.text.clone())).collect()
    }

    #[test]
    fn connections_channels_and_consumers_read_as_in_rabbitmqctl() {
        let all = [connection()];
        assert_eq!(texts(&all, &[]), ["guest", "10.0.0.1", "4000", "running"]);
        assert_eq!(texts(&all, &["pid", "name", "channels"]), ["<2.9.0>", "10.0.0.1:4000 -> 127.0.0.1:5672", "1"]);
        assert_eq!(texts(&channels(&all), &[]), ["<2.9.3>", "guest", "1", "2"]);
        assert_eq!(texts(&channels(&all), &["transactional", "messages_uncommitted", "acks_uncommitted"]), ["true", "5", "6"]);
        let none = BTreeMap::new();
        assert_eq!(texts(&consumers(&all, "/", &none), &[]), ["q", "<2.9.3>", "t", "true", "7", "true", "[]"]);
        assert!(consumers(&all, "other", &none).is_empty() && consumed(&all, "other").is_empty());
    }

    #[test]
    fn a_consumer_is_up_or_the_single_active_one_or_waits() {
        let all = [connection()];
        assert_eq!(consumed(&all, "/"), BTreeSet::from(["q".into()]));
        let told = |active: &BTreeMap<Arc<str>, Active>| texts(&consumers(&all, "/", active), &["active", "activity_status"]);
        assert_eq!(told(&BTreeMap::new()), ["true", "up"]);
        for (node, id, wanted) in [(2, 4, ["true", "single_active"]), (3, 4, ["false", "waiting"]), (2, 5, ["false", "waiting"])] {
            assert_eq!(told(&BTreeMap::from([("q".into(), Some((NodeId(node), ConsumerId(id))))])), wanted);
        }
        assert_eq!(told(&BTreeMap::from([("q".into(), None)])), ["false", "waiting"]);
    }

    #[test]
    fn what_tls_agreed_on_is_shown_and_nothing_without_it() {
        let columns = ["ssl", "ssl_protocol", "ssl_key_exchange", "ssl_cipher", "ssl_hash", "peer_cert_subject", "peer_cert_validity"];
        assert_eq!(texts(&[connection()], &columns), ["false", "", "", "", "", "", ""]);
        let certificate = CertificateReport { subject: "CN=c".into(), issuer: "CN=ca".into(), validity: "a - b".into() };
        let (protocol, key_exchange, cipher, hash) = ("tlsv1.2", "ecdhe_rsa", "aes_256_gcm", "aead");
        let mut encryption = Encryption { protocol, key_exchange, cipher, hash, certificate: None };
        let with = |encryption: &Encryption| {
            let mut row = connection();
            row.report.as_mut().unwrap().encryption = Some(encryption.clone().into());
            [row]
        };
        assert_eq!(texts(&with(&encryption), &columns), ["true", protocol, key_exchange, cipher, hash, "", ""]);
        encryption.certificate = Some(certificate);
        assert_eq!(texts(&with(&encryption), &["peer_cert_subject", "peer_cert_issuer", "peer_cert_validity"]), ["CN=c", "CN=ca", "a - b"]);
    }

    #[test]
    fn a_connection_whose_session_is_silent_is_listed_with_what_is_known() {
        let all = [ConnectionRow { report: None, ..connection() }];
        assert_eq!(texts(&all, &["state", "channels", "frame_max"]), ["unresponsive", "", ""]);
        let mut all = [connection()];
        all[0].stat.blocked = true;
        assert_eq!(texts(&all, &["state"]), ["blocked"]);
    }
}
