//! The node's and the cluster's state, and health checks: exit code 0 or 69.

use super::certificates::Unit;
use super::commands::CtlCommand;
use super::{CtlArgs, CtlError, TEMPORARY, UNAVAILABLE, print};
use crate::cli::format::Formatter;
use crate::management::client::AdminClient;
use serde_json::json;
use std::net::ToSocketAddrs;
use std::time::Duration;
use tokio::time::Instant;
use warren_proto::admin::{ListReply, ListRequest, PingReply, Shard, StatusReply};

/// Between two looks of `await_startup`.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// A port of a node.
struct Listener {
    interface: String,
    port: u16,
    protocol: String,
    purpose: String,
}

fn listeners(reply: &ListReply) -> Vec<Listener> {
    let cell = |row: &warren_proto::admin::Row, at: usize| row.cells.get(at).map(|c| c.text.clone()).unwrap_or_default();
    let listener = |row| Listener {
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
            CtlCommand::CheckPortConnectivity { .. } | CtlCommand::CheckPortListener { .. } | CtlCommand::CheckProtocolListener { .. } => {
                let listeners = listeners(&self.listeners(client).await?);
                self.check_listeners(client, &listeners)?;
            }
            CtlCommand::CheckCertificateExpiration { within, unit } => {
                let unit = Unit::parse(unit)?;
                let request = ListRequest { what: "certificates".into(), ..ListRequest::default() };
                self.check_certificates(&client.list(request).await?, *within, &unit)?;
            }
            _ => self.check_status(&client.status().await?)?,
        }
        Ok(())
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
            _ => {
                let critical = critical_shards(status);
                if !critical.is_empty() {
                    return Err(self.unhealthy(format!("Node {node} is needed for a majority of shards {}", critical.join(", "))));
                }
                self.say(&format!("Every shard keeps a majority without node {node}"));
            }
        }
        Ok(())
    }

    fn check_listeners(&self, client: &AdminClient, listeners: &[Listener]) -> Result<(), CtlError> {
        match &self.command {
            CtlCommand::CheckPortListener { port } => match listeners.iter().any(|l| l.port == *port) {
                true => self.say(&format!("A listener for port {port} is running on the node.")),
                false => {
                    let found = ports(listeners);
                    let text =
                        format!("No listener for port {port} is active on the node. Found listeners that use the following ports: {found}");
                    return Err(self.unhealthy(text));
                }
            },
            CtlCommand::CheckProtocolListener { protocol } => match listeners.iter().any(|l| l.protocol == *protocol) {
                true => self.say(&format!("A listener for protocol {protocol} is running on the node.")),
                false => {
                    let found: Vec<&str> = listeners.iter().map(|l| l.protocol.as_str()).collect();
                    let found = found.join(", ");
                    let text = format!(
                        "No listener for protocol {protocol} is active on the node. Found listeners for the following protocols: {found}"
                    );
                    return Err(self.unhealthy(text));
                }
            },
            _ => {
                let address = if let CtlCommand::CheckPortConnectivity { address } = &self.command { address.clone() } else { None };
                let host = address.unwrap_or_else(|| host_of(client.address()).to_owned());
                let patience = Duration::from_secs(self.timeout_seconds().min(30)) / (listeners.len() as u32 + 1);
                let failed: Vec<String> = listeners
                    .iter()
                    .filter(|l| !answers(&host, l.port, patience))
                    .map(|l| format!("{} ({})", l.port, l.protocol))
                    .collect();
                if !failed.is_empty() {
                    return Err(self.unhealthy(format!("Connection to ports of the following listeners failed: {}", failed.join(", "))));
                }
                self.say(&format!("Successfully connected to ports {} on {host}", ports(listeners)));
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

/// Shards with this node as a member that would be without a majority of live nodes if it stopped.
fn critical_shards(status: &StatusReply) -> Vec<String> {
    let is_up = |node: u32| status.members.iter().any(|m| m.node == node && m.up);
    let is_critical = |shard: &&Shard| {
        let others = shard.members.iter().filter(|n| **n != status.node && is_up(**n)).count();
        shard.members.contains(&status.node) && others < shard.members.len() / 2 + 1
    };
    status.shards.iter().filter(is_critical).map(|s| s.shard.to_string()).collect()
}

fn listener_lines(listeners: &[Listener]) -> String {
    let line = |l: &Listener| format!("Interface: {}, port: {}, protocol: {}, purpose: {}\n", l.interface, l.port, l.protocol, l.purpose);
    listeners.iter().map(line).collect()
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
    use warren_proto::admin::Member;

    fn status(up: [bool; 3], members: &[u32]) -> StatusReply {
        let member = |(at, up): (usize, bool)| Member { node: at as u32 + 1, address: "h:1".into(), up, ..Member::default() };
        StatusReply {
            node: 1,
            members: up.into_iter().enumerate().map(member).collect(),
            shards: vec![Shard { shard: 2, members: members.to_vec(), ..Shard::default() }],
            ..StatusReply::default()
        }
    }

    #[test]
    fn a_node_is_critical_when_its_shards_need_it_for_a_majority() {
        assert!(critical_shards(&status([true; 3], &[1, 2, 3])).is_empty());
        assert_eq!(critical_shards(&status([true, true, false], &[1, 2, 3])), ["2"]);
        assert!(critical_shards(&status([true, true, false], &[2, 3])).is_empty(), "no replica here");
        assert_eq!(critical_shards(&status([true, false, false], &[1])), ["2"]);
    }

    #[test]
    fn the_host_of_an_address_may_have_colons() {
        assert_eq!((host_of("a:7671"), host_of("::1:7671")), ("a", "::1"));
    }
}
