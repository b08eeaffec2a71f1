//! `warren ctl`: rabbitmqctl's commands and output over Warren's admin RPC. Exit codes as rabbitmqctl's: 64 wrong usage, 65 refused,
//! 69 no node or not serving.

use super::format::Formatter;
use super::variable;
use crate::config::{ClusterSecret, ConfigError, DataDir, default_cluster_dir, default_server_dir};
use crate::management::client::{AdminClient, ClientError};
use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use warren_proto::admin::{ListRequest, Shard, StatusReply};

const USAGE: u8 = 64;
const REFUSED: u8 = 65;
const UNAVAILABLE: u8 = 69;
/// Where a node listens for `ctl` unless told otherwise.
const DEFAULT_PEER_PORT: u16 = 7671;

/// Options of `warren ctl`, with rabbitmqctl's letters.
#[derive(Debug, Args)]
pub(super) struct CtlArgs {
    /// Peer port of the node to ask [default: a node of the cluster in the data directory, else 127.0.0.1:7671]
    #[arg(short = 'n', long, global = true, value_name = "HOST:PORT")]
    node: Option<String>,
    /// Directory of the cluster or node to ask: its ports and its secret are there [default: where `warren cluster` keeps its data]
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// File with the cluster secret [default: WARREN_CLUSTER_SECRET, else the data directory]
    #[arg(long, global = true, value_name = "FILE")]
    cluster_secret_file: Option<PathBuf>,
    /// Vhost to list
    #[arg(short = 'p', long, global = true, default_value = "/")]
    vhost: String,
    /// No informational lines
    #[arg(short, long, global = true)]
    quiet: bool,
    /// No informational lines and no header
    #[arg(short, long, global = true)]
    silent: bool,
    /// No header
    #[arg(long, global = true)]
    no_table_headers: bool,
    /// How to print rows
    #[arg(long, global = true, value_enum, default_value_t)]
    formatter: Formatter,
    /// Seconds to wait for the answer
    #[arg(short, long, global = true, default_value_t = 60, value_name = "SECONDS")]
    timeout: u64,
    #[command(subcommand)]
    command: CtlCommand,
}

#[derive(Clone, Debug, Subcommand)]
#[command(rename_all = "snake_case")]
enum CtlCommand {
    /// Queues of a vhost; columns as rabbitmqctl names them [default: name messages]
    ListQueues { columns: Vec<String> },
    /// Exchanges of a vhost [default: name type]
    ListExchanges { columns: Vec<String> },
    /// Bindings of a vhost
    ListBindings { columns: Vec<String> },
    /// The node, the cluster, who leads which shard
    Status,
    /// Does the node answer?
    Ping,
    /// Does the node serve clients? Exit code 69 if not
    CheckRunning,
}

#[derive(Debug, thiserror::Error)]
enum CtlError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("no cluster secret: set WARREN_CLUSTER_SECRET, or give --cluster-secret-file FILE or the cluster's --data-dir DIR")]
    NoSecret,
    #[error("node {node} does not serve clients yet: {why}")]
    NotServing { node: u32, why: String },
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

impl CtlError {
    fn code(&self) -> u8 {
        match self {
            CtlError::Client(ClientError::Refused { usage: true, .. }) | CtlError::NoSecret | CtlError::Config(_) => USAGE,
            CtlError::Client(ClientError::Refused { usage: false, .. } | ClientError::WrongSecret { .. }) => REFUSED,
            CtlError::Client(ClientError::Unreachable { .. }) | CtlError::NotServing { .. } | CtlError::Io(_) => UNAVAILABLE,
        }
    }
}

pub(super) fn run(args: CtlArgs) -> ExitCode {
    let asked = || -> Result<(), CtlError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(Box::pin(ask(&args)))
    };
    match asked() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error}");
            ExitCode::from(error.code())
        }
    }
}

async fn ask(args: &CtlArgs) -> Result<(), CtlError> {
    args.banner();
    let mut client = args.connect().await?;
    match args.command.clone() {
        CtlCommand::ListQueues { columns } => args.list(&mut client, "queues", columns).await,
        CtlCommand::ListExchanges { columns } => args.list(&mut client, "exchanges", columns).await,
        CtlCommand::ListBindings { columns } => args.list(&mut client, "bindings", columns).await,
        CtlCommand::Status => {
            print(&status_text(&client.status().await?));
            Ok(())
        }
        CtlCommand::Ping => {
            let reply = client.ping().await?;
            args.inform(&format!("Ping succeeded: node {}, version {}", reply.node, reply.version));
            Ok(())
        }
        CtlCommand::CheckRunning => {
            let reply = client.ping().await?;
            if !reply.waiting_for.is_empty() {
                return Err(CtlError::NotServing { node: reply.node, why: reply.waiting_for });
            }
            args.inform(&format!("Warren is running on node {}", reply.node));
            Ok(())
        }
    }
}

/// A closed pipe (`| head`) is no error worth a word.
fn print(text: &str) {
    use std::io::Write;
    let _ = std::io::stdout().write_all(text.as_bytes());
}

impl CtlArgs {
    fn inform(&self, line: &str) {
        let wanted = !self.quiet && !self.silent && self.formatter == Formatter::Table;
        if wanted {
            print(&format!("{line}\n"));
        }
    }

    /// The lines that rabbitmqctl prints before it asks, each as it is there.
    fn banner(&self) {
        let vhost = &self.vhost;
        match &self.command {
            CtlCommand::ListQueues { .. } => {
                self.inform(&format!("Timeout: {}.0 seconds ...", self.timeout));
                self.inform(&format!("Listing queues for vhost {vhost} ..."));
            }
            CtlCommand::ListExchanges { .. } => self.inform(&format!("Listing exchanges for vhost {vhost} ...")),
            CtlCommand::ListBindings { .. } => self.inform(&format!("Listing bindings for vhost {vhost}...")),
            CtlCommand::Status | CtlCommand::Ping | CtlCommand::CheckRunning => {}
        }
    }

    async fn list(&self, client: &mut AdminClient, what: &str, columns: Vec<String>) -> Result<(), CtlError> {
        // rabbitmqctl takes columns separated by commas, too.
        let columns = columns.iter().flat_map(|word| word.split(',')).filter(|word| !word.is_empty()).map(str::to_owned).collect();
        let reply = client.list(ListRequest { what: what.into(), vhost: self.vhost.clone(), columns }).await?;
        print(&self.formatter.render(&reply, !self.silent && !self.no_table_headers));
        Ok(())
    }

    /// The first node that answers: the one named, else those of the data directory.
    async fn connect(&self) -> Result<AdminClient, CtlError> {
        let dirs = self.dirs();
        let secret = self.secret(&dirs)?;
        let timeout = Duration::from_secs(self.timeout.max(1));
        let mut failure = None;
        for address in self.addresses(&dirs) {
            match AdminClient::connect(&address, secret.bytes(), timeout).await {
                Ok(client) => return Ok(client),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        Err(failure.expect("there is at least one address").into())
    }

    fn dirs(&self) -> Vec<PathBuf> {
        let named = self.data_dir.clone().or_else(|| variable("WARREN_DATA_DIR").map(PathBuf::from));
        named.map_or_else(|| vec![default_cluster_dir(&variable), default_server_dir(&variable)], |dir| vec![dir])
    }

    fn secret(&self, dirs: &[PathBuf]) -> Result<ClusterSecret, CtlError> {
        if let Some(path) = &self.cluster_secret_file {
            return Ok(ClusterSecret::from_file(path)?);
        }
        if let Some(secret) = ClusterSecret::from_environment(&variable)? {
            return Ok(secret);
        }
        if let Some(path) = variable("WARREN_CLUSTER_SECRET_FILE") {
            return Ok(ClusterSecret::from_file(Path::new(&path))?);
        }
        let found = dirs.iter().find_map(|dir| ClusterSecret::kept_by(dir));
        Ok(ClusterSecret::from_file(&found.ok_or(CtlError::NoSecret)?)?)
    }

    fn addresses(&self, dirs: &[PathBuf]) -> Vec<String> {
        if let Some(node) = self.node.clone().or_else(|| variable("WARREN_NODE")) {
            return vec![node];
        }
        let mut ports: Vec<u16> = dirs.iter().flat_map(|dir| running_nodes(dir)).collect();
        if ports.is_empty() {
            ports.push(DEFAULT_PEER_PORT);
        }
        ports.iter().map(|port| format!("127.0.0.1:{port}")).collect()
    }
}

/// Peer ports of the nodes that run in a data directory: a node's own, or those of a local cluster in order.
fn running_nodes(dir: &Path) -> Vec<u16> {
    let mut nodes = vec![dir.to_owned()];
    let mut children: Vec<PathBuf> = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    children.sort();
    nodes.extend(children.into_iter().filter(|path| path.is_dir()));
    nodes.iter().filter(|node| DataDir::is_locked(node)).filter_map(|node| DataDir::read_ports(node)).map(|ports| ports.peer).collect()
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
