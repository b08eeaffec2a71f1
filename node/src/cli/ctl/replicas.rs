//! Health checks about the replicas of queues: which have no leader, and which would lose their majority with a node.

use super::commands::CtlCommand;
use super::{CtlArgs, CtlError};
use crate::cli::format::Formatter;
use crate::machine::catalog::Pattern;
use crate::management::client::AdminClient;
use serde_json::{Value as Json, json};
use std::time::Duration;
use tokio::time::Instant;
use warren_proto::admin::{ListRequest, Row, Shard, StatusReply};

/// Between two looks of `await_online_quorum_plus_one`.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
const ALONE: &str = "seems to be the only one in a single node cluster, the check does not apply";

/// Shards with this node as a member that would be without a majority of live nodes if it stopped.
fn critical_shards(status: &StatusReply) -> Vec<u32> {
    let is_up = |node: u32| status.members.iter().any(|m| m.node == node && m.up);
    let is_critical = |shard: &&Shard| {
        let others = shard.members.iter().filter(|n| **n != status.node && is_up(**n)).count();
        shard.members.contains(&status.node) && others < shard.members.len() / 2 + 1
    };
    status.shards.iter().filter(is_critical).map(|s| s.shard).collect()
}

/// A replicated queue of a listing with the columns of `LEADERLESS`, as RabbitMQ's JSON.
fn leaderless(row: &Row, pattern: &Pattern) -> Option<Json> {
    let told = |at: usize| row.cells.get(at).map_or("", |cell| cell.json.as_str());
    let word = |at: usize| serde_json::from_str::<String>(told(at)).unwrap_or_default();
    let (name, vhost) = (word(0), word(1));
    let is_replicated = told(3) == "true" && told(4) == "false";
    (is_replicated && pattern.matches(&name)).then(|| {
        let readable = format!("queue '{name}' in vhost '{vhost}'");
        json!({ "readable_name": readable, "name": name, "virtual_host": vhost, "type": word(2) })
    })
}

const LEADERLESS: [&str; 5] = ["name", "vhost", "type", "durable", "exclusive"];

fn lines(all: &[Json], what: &str) -> String {
    let line = |one: &Json| format!("{} {what}", one["readable_name"].as_str().unwrap_or_default());
    all.iter().map(line).collect::<Vec<_>>().join("\n")
}

impl CtlArgs {
    /// False: the command is none of these.
    pub(super) async fn check_replicas(&self, client: &mut AdminClient) -> Result<bool, CtlError> {
        match &self.command {
            CtlCommand::CheckForQuorumQueuesWithoutAnElectedLeader { pattern, across_all_vhosts } => {
                self.check_leaders(client, pattern, *across_all_vhosts).await?;
            }
            CtlCommand::CheckIfNodeIsQuorumCritical => self.check_majorities(&client.status().await?)?,
            CtlCommand::AwaitOnlineQuorumPlusOne => self.await_majorities(client).await?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    async fn check_leaders(&self, client: &mut AdminClient, pattern: &str, everywhere: bool) -> Result<(), CtlError> {
        let compiled = Pattern::compile(pattern).map_err(|why| CtlError::bad_argument(&format!("invalid regular expression: {why}")))?;
        self.inform(&match everywhere {
            true => format!("Checking leader replicas of quorum queues matching '{pattern}' in all vhosts ..."),
            false => format!("Checking leader replicas of quorum queues matching '{pattern}' in vhost {} ...", self.vhost),
        });
        let node = client.ping().await?.node;
        let mut found = Vec::new();
        for vhost in self.vhosts_meant(client, everywhere).await? {
            let (what, state, columns) = ("queues".to_owned(), "unresponsive".to_owned(), LEADERLESS.map(str::to_owned).into());
            match client.list(ListRequest { what, state, vhost, columns, ..ListRequest::default() }).await {
                Ok(listed) => found.extend(listed.rows.iter().filter_map(|row| leaderless(row, &compiled))),
                Err(error) if everywhere && error.is_no_vhost() => {}
                Err(error) => return Err(error.into()),
            }
        }
        if found.is_empty() {
            let text = format!("Node {node} reported all quorum queue as having responsive leader replicas");
            if !self.quiet || self.formatter == Formatter::Json {
                self.say(&text);
            }
            return Ok(());
        }
        let message = format!("Node {node} reported quorum queues with a missing (not elected) or unresponsive leader replica");
        let text = lines(&found, "does not have an elected leader replica or the replica was unresponsive");
        let text = if self.quiet { String::new() } else { text };
        Err(self.check_failed(text, json!({ "result": "error", "queues": found, "message": message })))
    }

    /// The vhost that is meant, or all.
    pub(super) async fn vhosts_meant(&self, client: &mut AdminClient, everywhere: bool) -> Result<Vec<String>, CtlError> {
        if !everywhere {
            return Ok(vec![self.vhost.clone()]);
        }
        let listed = client.list(ListRequest { what: "vhosts".into(), columns: vec!["name".into()], ..ListRequest::default() }).await?;
        let name = |row: Row| serde_json::from_str(&row.cells.first()?.json).ok();
        Ok(listed.rows.into_iter().filter_map(name).collect())
    }

    fn check_majorities(&self, status: &StatusReply) -> Result<(), CtlError> {
        let node = status.node;
        self.inform(&format!("Checking if node {node} is critical for quorum of any queues/streams ..."));
        let critical = critical_shards(status);
        match status.members.len() {
            1 if self.formatter == Formatter::Json => self.say(&format!("Target node {ALONE}")),
            1 => self.say(&format!("Node {node} {ALONE}")),
            _ if critical.is_empty() => self.say(&format!("Node {node} reported no queues/streams with minimum quorum")),
            _ => {
                let found: Vec<Json> = critical.iter().map(|shard| json!({ "readable_name": format!("shard {shard}") })).collect();
                let text = lines(&found, &format!("will become unavailable if node {node} stops"));
                let message = format!("Node {node} reported local queues with minimum online quorum");
                return Err(self.check_failed(text, json!({ "result": "error", "shards": critical, "message": message })));
            }
        }
        Ok(())
    }

    /// Until no shard needs the node for its majority.
    async fn await_majorities(&self, client: &mut AdminClient) -> Result<(), CtlError> {
        let seconds = self.timeout_seconds();
        self.inform(&format!(
            "Will wait for a quorum + 1 of nodes to be online for all quorum queues and streams for {seconds} seconds..."
        ));
        let until = Instant::now() + Duration::from_secs(seconds);
        loop {
            let status = client.status().await?;
            if status.members.len() == 1 {
                self.say(&format!("Target node {}", ALONE.replace("check", "command")));
                return Ok(());
            }
            if critical_shards(&status).is_empty() {
                self.done();
                return Ok(());
            }
            if Instant::now() >= until {
                let why = "time is up, no quorum + 1 online replicas came online for at least some quorum queues or streams";
                return Err(self.unhealthy(why.to_owned()));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_proto::admin::{Cell, Member};

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
        assert_eq!(critical_shards(&status([true, true, false], &[1, 2, 3])), [2]);
        assert!(critical_shards(&status([true, true, false], &[2, 3])).is_empty(), "no replica here");
        assert_eq!(critical_shards(&status([true, false, false], &[1])), [2]);
    }

    #[test]
    fn replicated_queues_count_that_match() {
        let row = |name: &str, durable: bool, exclusive: bool| {
            let cells = [json!(name), json!("/"), json!("quorum"), json!(durable), json!(exclusive)];
            Row { cells: cells.map(|json| Cell { text: String::new(), json: json.to_string() }).into() }
        };
        let found = |pattern: &str, row: Row| leaderless(&row, &Pattern::compile(pattern).unwrap());
        let told = found("^a", row("a\tb", true, false)).unwrap();
        assert_eq!(told["readable_name"], "queue 'a\tb' in vhost '/'");
        assert_eq!(lines(&[told], "is lost"), "queue 'a\tb' in vhost '/' is lost");
        assert!(found("^b", row("a", true, false)).is_none());
        assert!(found(".*", row("a", false, false)).is_none() && found(".*", row("a", true, true)).is_none());
    }
}
