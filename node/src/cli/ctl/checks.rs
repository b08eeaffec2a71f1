//! The node's and the cluster's state, and health checks: exit code 0 or 69.

use super::certificates::Unit;
use super::commands::CtlCommand;
use super::{CtlArgs, CtlError, TEMPORARY, UNAVAILABLE, print};
use crate::cli::format::Formatter;
use crate::management::client::AdminClient;
use serde_json::{Value as Json, json};
use std::net::ToSocketAddrs;
use std::time::Duration;
use tokio::time::Instant;
use warren_proto::admin::{ListReply, ListRequest, PingReply, Shard, StatusReply};

/// Between two looks of `await_startup`.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// A port of a node.
struct Listener {
    node: String,
    interface: String,
    port: u16,
    protocol: String,
    purpose: String,
}

fn listeners(reply: &ListReply) -> Vec<Listener> {
    let cell = |row: &warren_proto::admin::Row, at: usize| row.cells.get(at).map(|c| c.text.clone()).unwrap_or_default();
    let listener = |row| Listener {
        node: cell(row, 0),
        interface: cell(row, 1),
        port: cell(row, 2).parse().unwrap_or_default(),
        protocol: cell(row, 3),
        purpose: cell(row, 4),
    };
    reply.rows.iter().map(listener).collect()
}

fn ports(listeners: &[Listener]) -> String {
    let mut ports: Vec<u16> = listeners.iter().map(|l| l.port).collect();
    ports.sort_unstable();
    ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl CtlArgs {
    /// Everything that is no listing and no change.
    pub(super) async fn check(&self, client: &mut AdminClient) -> Result<(), CtlError> {
        match &self.command {
            CtlCommand::Status => self.status(&client.status().await?),
            CtlCommand::ClusterStatus => self.cluster_status(client).await?,
            CtlCommand::Listeners => self.show_listeners(&self.listeners(client).await?),
            CtlCommand::Ping => {
                let reply = client.ping().await?;
                self.inform(&format!("Will ping node {}. Timeout: {} ms.", reply.node, self.timeout_seconds() * 1000));
                self.say("Ping succeeded");
            }
            CtlCommand::ServerVersion => {
                let reply = client.ping().await?;
                self.inform(&format!("Asking node {} for its version...", reply.node));
                print(&format!("{}\n", reply.version));
            }
            CtlCommand::CheckRunning | CtlCommand::IsRunning | CtlCommand::IsBooting => self.running(&client.ping().await?)?,
            CtlCommand::CheckIfMetadataStoreIsInitialized | CtlCommand::CheckIfMetadataStoreIsInitializedWithData => {
                self.check_catalog(&client.status().await?)?;
            }
            CtlCommand::CheckPortConnectivity { .. } | CtlCommand::CheckPortListener { .. } | CtlCommand::CheckProtocolListener { .. } => {
                let listeners = listeners(&self.listeners(client).await?);
                self.check_listeners(client, &listeners)?;
            }
            CtlCommand::CheckCertificateExpiration { within, unit } => {
                let unit = Unit::parse(unit)?;
                let request = ListRequest { what: "certificates".into(), ..ListRequest::default() };
                self.check_certificates(&client.list(request).await?, *within, &unit)?;
            }
            CtlCommand::CheckIfNodeIsMirrorSyncCritical | CtlCommand::NodeHealthCheck => {
                client.ping().await?;
                self.inform("This command is DEPRECATED and is a no-op.");
                self.done();
            }
            CtlCommand::CheckIfAnyDeprecatedFeaturesAreUsed => {
                client.ping().await?;
                self.say("Cluster reported no deprecated features in use");
            }
            _ if self.check_replicas(client).await? => {}
            _ => self.check_status(&client.status().await?)?,
        }
        Ok(())
    }

    /// The catalog is what RabbitMQ calls its metadata store.
    fn check_catalog(&self, status: &StatusReply) -> Result<(), CtlError> {
        let node = status.node;
        self.inform(&format!("Checking if metadata store on node {node} has finished initializing ..."));
        let is_there = status.shards.iter().any(|shard| shard.shard == 0 && shard.applied > 0);
        if !is_there {
            return Err(self.unhealthy(format!("Metadata store on node {node} reports to not yet have finished initialization")));
        }
        self.say(&format!("Metadata store on node {node} has completed its initialization"));
        Ok(())
    }

    /// A health check failed, and says so in RabbitMQ's other way: without a heading, with more for machines.
    pub(super) fn check_failed(&self, text: String, json: Json) -> CtlError {
        let text = match self.formatter {
            Formatter::Json => json.to_string(),
            Formatter::Table | Formatter::Csv | Formatter::PrettyTable if self.silent => String::new(),
            Formatter::Table | Formatter::Csv | Formatter::PrettyTable => text,
        };
        CtlError::failed(UNAVAILABLE, text)
    }

    /// A health check failed: its text is for people, the code for machines.
    pub(super) fn unhealthy(&self, text: String) -> CtlError {
        let text = match self.formatter {
            Formatter::Json => json!({ "result": "error", "message": text }).to_string(),
            Formatter::Table | Formatter::Csv | Formatter::PrettyTable if self.silent => String::new(),
            Formatter::Table | Formatter::Csv | Formatter::PrettyTable => format!("Error:\n{text}"),
        };
        CtlError::failed(UNAVAILABLE, text)
    }

    fn running(&self, reply: &PingReply) -> Result<(), CtlError> {
        let PingReply { node, waiting_for, .. } = reply;
        let serves = waiting_for.is_empty();
        match self.command {
            CtlCommand::IsBooting if serves => self.say(&format!("Warren on node {node} is fully booted (check with is_running)")),
            CtlCommand::IsBooting => self.say(&format!("Warren on node {node} is booting")),
            _ if serves => self.say(&format!("Warren on node {node} is fully booted and running")),
            CtlCommand::IsRunning => self.say(&format!("Warren on node {node} is not running or has not fully booted yet: {waiting_for}")),
            _ => return Err(self.unhealthy(format!("Warren on node {node} does not serve clients yet: {waiting_for}"))),
        }
        Ok(())
    }

    /// Tries until the node is there and serves.
    pub(super) async fn await_startup(&self) -> Result<(), CtlError> {
        let until = Instant::now() + Duration::from_secs(self.timeout_seconds());
        loop {
            let asked = async { self.connect().await?.ping().await.map_err(CtlError::from) };
            let why = match tokio::time::timeout_at(until, asked).await {
                Ok(Ok(reply)) if reply.waiting_for.is_empty() => {
                    self.done();
                    return Ok(());
                }
                Ok(Ok(reply)) => reply.waiting_for,
                Ok(Err(error)) if error.code() != UNAVAILABLE => return Err(error),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer".to_owned(),
            };
            if Instant::now() >= until {
                return Err(CtlError::failed(
                    TEMPORARY,
                    format!("Error:\nthe node does not serve clients after {} s: {why}", self.timeout_seconds()),
                ));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    fn check_status(&self, status: &StatusReply) -> Result<(), CtlError> {
        let node = status.node;
        let alarms = status.alarms.join("\n");
        match self.command {
            CtlCommand::Alarms if alarms.is_empty() => self.say(&format!("Node {node} reported no alarms, local or clusterwide")),
            CtlCommand::Alarms => self.say(&alarms),
            CtlCommand::CheckAlarms if alarms.is_empty() => self.say(&format!("Node {node} reported no alarms, local or clusterwide")),
            CtlCommand::CheckAlarms => return Err(self.unhealthy(alarms)),
            CtlCommand::CheckLocalAlarms if !status.local_alarm => self.say(&format!("Node {node} reported no local alarms")),
            CtlCommand::CheckLocalAlarms => return Err(self.unhealthy(alarms)),
            CtlCommand::CheckVirtualHosts => {
                let lost: Vec<String> = status.shards.iter().filter(|s| s.leader.is_none()).map(|s| s.shard.to_string()).collect();
                if !lost.is_empty() {
                    return Err(
                        self.unhealthy(format!("Some virtual hosts on node {node} are down: no leader of shards {}", lost.join(", ")))
                    );
                }
                self.say(&format!("Node {node} reported all vhosts as running"));
            }
            _ => {}
        }
        Ok(())
    }

    fn check_listeners(&self, client: &AdminClient, listeners: &[Listener]) -> Result<(), CtlError> {
        let node = listeners.first().map_or("", |listener| &listener.node);
        match &self.command {
            CtlCommand::CheckPortListener { port } => match listeners.iter().any(|l| l.port == *port) {
                true => self.say(&format!("A listener for port {port} is running on node {node}.")),
                false => {
                    let all: Vec<u16> = listeners.iter().map(|l| l.port).collect();
                    let found = format!("Found listeners that use the following ports: {}", ports(listeners));
                    let text = format!("No listener for port {port} is active on node {node}. {found}");
                    return Err(self.check_failed(text, json!({ "result": "error", "missing": port, "ports": all })));
                }
            },
            CtlCommand::CheckProtocolListener { protocol } => {
                let protocol = normalized(protocol);
                if listeners.iter().any(|l| l.protocol == protocol) {
                    self.say(&format!("A listener for protocol {protocol} is running on node {node}."));
                    return Ok(());
                }
                let mut found: Vec<&str> = listeners.iter().map(|l| l.protocol.as_str()).collect();
                found.sort_unstable();
                let found = format!("Found listeners for the following protocols: {}", found.join(", "));
                return Err(self.unhealthy(format!("No listener for protocol {protocol} is active on node {node}. {found}")));
            }
            _ => {
                let address = if let CtlCommand::CheckPortConnectivity { address } = &self.command { address.clone() } else { None };
                let using = address.as_ref().map_or("node hostname resolution".to_owned(), |ip| format!("{ip} for target IP address"));
                let host = address.unwrap_or_else(|| host_of(client.address()).to_owned());
                let patience = Duration::from_secs(self.timeout_seconds().min(30)) / (listeners.len() as u32 + 1);
                let failed: Vec<&Listener> = listeners.iter().filter(|l| !answers(&host, l.port, patience)).collect();
                if !failed.is_empty() {
                    let failed: String = failed.into_iter().map(listener_line).collect();
                    let text = format!("Connection to ports of the following listeners on node {node} failed: \n{}", failed.trim_end());
                    return Err(self.unhealthy(text));
                }
                self.say(&format!("Successfully connected to ports {} on node {node} (using {using})", ports(listeners)));
            }
        }
        Ok(())
    }

    fn show_listeners(&self, reply: &ListReply) {
        if self.formatter != Formatter::Table {
            return print(&self.formatter.render(reply, !self.silent && !self.no_table_headers));
        }
        print(&listener_lines(&listeners(reply)));
    }

    fn status(&self, status: &StatusReply) {
        match self.formatter {
            Formatter::Json => print(&format!("{}\n", status_json(status))),
            Formatter::Table | Formatter::Csv | Formatter::PrettyTable => print(&status_text(status)),
        }
    }

    async fn cluster_status(&self, client: &mut AdminClient) -> Result<(), CtlError> {
        let status = client.status().await?;
        let listeners = listeners(&self.listeners(client).await?);
        if self.formatter == Formatter::Json {
            print(&format!("{}\n", cluster_json(&status, &listeners)));
            return Ok(());
        }
        self.inform(&format!("Cluster status of node {} ...", status.node));
        let name = |m: &warren_proto::admin::Member| format!("{}@{}", m.node, m.address);
        let all: Vec<String> = status.members.iter().map(name).collect();
        let up: Vec<String> = status.members.iter().filter(|m| m.up).map(name).collect();
        let alarms = if status.alarms.is_empty() { "(none)".to_owned() } else { status.alarms.join("\n") };
        print(&format!(
            "Basics\n\nCluster name: {}\n\nDisk Nodes\n\n{}\n\n{}Running Nodes\n\n{}\n\nVersions\n\n{}: Warren {}\n\nAlarms\n\n{alarms}\n\n\
             Network Partitions\n\n(none)\n\nListeners\n\n{}",
            status.cluster_id,
            all.join("\n"),
            changing(&status),
            up.join("\n"),
            status.node,
            status.version,
            listener_lines(&listeners),
        ));
        Ok(())
    }
}

/// Members that come or go, and replicas that are moved; nothing when there are none.
fn changing(status: &StatusReply) -> String {
    let unsettled = status.members.iter().filter(|m| !m.stage.is_empty() && m.stage != "serving");
    let members = unsettled.map(|m| format!("{}@{}: {}", m.node, m.address, m.stage));
    let moving = status.shards.iter().filter(|s| !s.goal.is_empty());
    let moves = moving.map(|s| format!("replicas of shard {}: from nodes {:?} to {:?}", s.shard, s.members, s.goal));
    let lines: Vec<String> = members.chain(moves).collect();
    if lines.is_empty() { String::new() } else { format!("Changing\n\n{}\n\n", lines.join("\n")) }
}

fn host_of(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

/// Whether somebody accepts connections there.
fn answers(host: &str, port: u16, patience: Duration) -> bool {
    let mut addresses = (host, port).to_socket_addrs().into_iter().flatten();
    addresses.any(|address| std::net::TcpStream::connect_timeout(&address, patience).is_ok())
}

fn listener_line(listener: &Listener) -> String {
    let Listener { interface, port, protocol, purpose, .. } = listener;
    format!("Interface: {interface}, port: {port}, protocol: {protocol}, purpose: {purpose}\n")
}

fn listener_lines(listeners: &[Listener]) -> String {
    listeners.iter().map(listener_line).collect()
}

/// The name that listeners have for a protocol; rabbitmq-diagnostics takes others for it, too.
fn normalized(protocol: &str) -> String {
    let protocol = protocol.to_lowercase();
    let name = match protocol.as_str() {
        "amqp091" | "amqp0.9.1" | "amqp0-9-1" | "amqp0_9_1" => "amqp",
        "amqps" => "amqp/ssl",
        "http1" | "http1.1" | "http_api" | "management" | "management_ui" | "ui" => "http",
        "cli" | "distribution" => "clustering",
        _ => return protocol,
    };
    name.to_owned()
}

fn cluster_json(status: &StatusReply, listeners: &[Listener]) -> serde_json::Value {
    let name = |m: &warren_proto::admin::Member| format!("{}@{}", m.node, m.address);
    let listener = |l: &Listener| json!({ "interface": l.interface, "port": l.port, "protocol": l.protocol, "purpose": l.purpose });
    json!({
        "cluster_name": status.cluster_id,
        "disk_nodes": status.members.iter().map(name).collect::<Vec<_>>(),
        "running_nodes": status.members.iter().filter(|m| m.up).map(name).collect::<Vec<_>>(),
        "stages": status.members.iter().map(|m| (m.node.to_string(), json!(m.stage))).collect::<serde_json::Map<_, _>>(),
        "partitions": {},
        "alarms": status.alarms,
        "versions": { status.node.to_string(): status.version },
        "listeners": listeners.iter().map(listener).collect::<Vec<_>>(),
    })
}

fn status_json(status: &StatusReply) -> serde_json::Value {
    let shard = |s: &Shard| json!({ "shard": s.shard, "leader": s.leader, "term": s.term, "members": s.members, "goal": s.goal, "applied": s.applied });
    json!({
        "node": status.node,
        "version": status.version,
        "cluster_id": status.cluster_id,
        "serving": status.waiting_for.is_empty(),
        "waiting_for": status.waiting_for,
        "connections": status.connections,
        "queues": status.queues,
        "alarms": status.alarms,
        "members": status.members.iter().map(|m| json!({ "node": m.node, "address": m.address, "up": m.up })).collect::<Vec<_>>(),
        "shards": status.shards.iter().map(shard).collect::<Vec<_>>(),
    })
}

fn status_text(status: &StatusReply) -> String {
    let mut lines = vec![
        format!("Status of node {} ...", status.node),
        format!("Version: {}", status.version),
        format!("Cluster: {}", if status.cluster_id.is_empty() { "not formed yet" } else { &status.cluster_id }),
        match status.waiting_for.as_str() {
            "" => "Serving clients: yes".to_owned(),
            why => format!("Serving clients: no, {why}"),
        },
        format!("Connections: {}", status.connections),
        format!("Queues: {}", status.queues),
        format!("Alarms: {}", if status.alarms.is_empty() { "none".to_owned() } else { status.alarms.join("; ") }),
        String::new(),
        "node\taddress\tup".to_owned(),
    ];
    lines.extend(status.members.iter().map(|m| format!("{}\t{}\t{}", m.node, m.address, m.up)));
    lines.extend([String::new(), "shard\tleader\tterm\tmembers\tapplied".to_owned()]);
    lines.extend(status.shards.iter().map(shard_line));
    lines.join("\n") + "\n"
}

fn shard_line(shard: &Shard) -> String {
    let members: Vec<String> = shard.members.iter().map(ToString::to_string).collect();
    let leader = shard.leader.map_or_else(|| "none".to_owned(), |node| node.to_string());
    format!("{}\t{}\t{}\t{}\t{}", shard.shard, leader, shard.term, members.join(","), shard.applied)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_an_address_may_have_colons() {
        assert_eq!((host_of("a:7671"), host_of("::1:7671")), ("a", "::1"));
    }
}
