//! What a server runs with: flags win over `WARREN_*` variables, those over the TOML file, those over the defaults.
//! `cli` loads it once at start and hands it to `node`; nothing else reads flags or the environment. A mistake is an error that
//! says what to do about it.

mod data_dir;
mod members;
mod memory;
mod quantity;
mod reserve;
mod rocketmq;
mod secret;
mod settings;
mod tls;

pub use data_dir::{DataDir, DataDirError, Ports, default_cluster_dir, default_server_dir};
pub use members::Member;
pub use reserve::Reserve;
pub use rocketmq::Rocketmq;
pub use secret::{ClusterSecret, Secret};
pub use settings::{LogFormat, Settings};
pub use tls::{Amqps, LoginFromOption, SanTypeOption, VerifyOption, peer_files};

use crate::model::NodeId;
use crate::model::limits::MESSAGE_BYTES;
use crate::model::stream_step::Advertised as StreamAddress;
use crate::tls::Files;
use std::path::PathBuf;
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// Reads one variable of the environment; tests hand in their own.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Highest node id: ids share a 15-bit space with the pseudo shards of in-memory queues.
const NODE_ID_MAX: u16 = 0x7fff;
/// Most data shards; more cost idle work and win nothing.
const SHARDS_MAX: u16 = 256;

/// Settings that a server cannot start with.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read or is not what it should be.
    #[error("configuration file {path}: {why}")]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong, with the place where it is known.
        why: String,
    },
    /// A `WARREN_*` variable has no sense.
    #[error("environment variable {name}: {why}")]
    Variable {
        /// Which.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// A value does not fit, whatever source it came from.
    #[error("{option}: {why}")]
    Value {
        /// The option, as in the file and (with `--`) on the command line.
        option: &'static str,
        /// What is wrong and what would be right.
        why: String,
    },
    /// More than one node and no secret.
    #[error(
        "a cluster of {nodes} nodes needs a cluster secret, the same on every node: set WARREN_CLUSTER_SECRET or give \
         --cluster-secret-file FILE (make one with: head -c 32 /dev/urandom | base64 > FILE; chmod 600 FILE)"
    )]
    NoSecret {
        /// Members.
        nodes: usize,
    },
    /// The secret cannot be read or made.
    #[error("cluster secret {path}: {why}")]
    SecretFile {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// Addresses that a node tells clients instead of those it listens on, for mapped ports and other networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertised {
    /// Host name or address.
    pub host: String,
    /// AMQP 0-9-1.
    pub amqp_port: u16,
    /// RabbitMQ streams.
    pub stream_port: u16,
    /// The same over TLS.
    pub stream_tls_port: u16,
}

/// First user and vhost, made when the cluster is formed and never again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstUser {
    /// User name.
    pub user: String,
    /// Password in the clear; hashed before it goes into the catalog.
    pub password: Secret,
    /// Vhost on which the user has all permissions.
    pub vhost: String,
}

/// Everything that one server runs with, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerConfig {
    /// This node.
    pub node: NodeId,
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// Address or name that all listeners bind.
    pub host: String,
    /// AMQP 0-9-1 port.
    pub amqp_port: u16,
    /// AMQP 0-9-1 over TLS, if it is served.
    pub amqps: Option<Amqps>,
    /// RabbitMQ streams.
    pub stream_port: u16,
    /// The same over TLS, served where AMQP is.
    pub stream_tls_port: u16,
    /// Stream clients are told of the node they are on only, not of leaders and replicas.
    pub stream_advertise_self: bool,
    /// Publishers of streams hear of another leader.
    pub stream_leader_updates: bool,
    /// This node comes to a cluster that is there.
    pub joins: bool,
    /// RocketMQ's HTTP protocol.
    pub rocketmq: Rocketmq,
    /// HTTP: `/ready`, `/metrics`.
    pub management_port: u16,
    /// Other nodes and `warren ctl`.
    pub peer_port: u16,
    /// All nodes of the cluster, this one too, ascending by id.
    pub cluster: Vec<Member>,
    /// Data shards; counts when the cluster is formed, afterwards the catalog knows.
    pub shards: u16,
    /// Shared by all nodes; a node on its own makes one for `warren ctl`.
    pub secret: ClusterSecret,
    /// Nodes and operators prove themselves by certificates as well, and what they say is encrypted.
    pub peer_tls: Option<Files>,
    /// First user and vhost.
    pub first: FirstUser,
    /// Users that may log in from loopback addresses only.
    pub loopback_users: Vec<String>,
    /// Free bytes on the data disk below which publishes stop.
    pub disk_floor_bytes: u64,
    /// Resident bytes of the process above which publishes stop.
    pub memory_limit_bytes: u64,
    /// Largest body of a message from AMQP clients, bytes.
    pub max_message_bytes: u64,
    /// Bytes of log kept for nodes that lag or are away.
    pub catch_up_log_bytes: u64,
    /// Bytes of log files beyond which old ones are cleaned.
    pub log_budget_bytes: u64,
    /// Threads that serve clients.
    pub workers: usize,
    /// After this long without a majority, publishes are nacked and declarations fail.
    pub no_quorum_timeout: Duration,
    /// How long clients may hold messages, where neither consumer nor queue says so.
    pub consumer_timeout: Duration,
    /// What clients are told.
    pub advertised: Advertised,
    /// What is logged, in the syntax of `tracing_subscriber::EnvFilter`.
    pub log: String,
    /// Form of the log lines.
    pub log_format: LogFormat,
    /// Log here instead of on standard error, rotated.
    pub log_file: Option<PathBuf>,
    /// The log file is rotated at this size.
    pub log_file_bytes: u64,
    /// Says by how many ms the machine's clock is off, for trials.
    pub clock_off_file: Option<PathBuf>,
}

impl ServerConfig {
    /// The nodes of `--cluster` with their addresses.
    pub fn founders(&self) -> Vec<(NodeId, String)> {
        self.cluster.iter().map(|m| (m.node, format!("{}:{}", m.host, m.port))).collect()
    }

    /// Where stream clients reach this node.
    pub fn stream_address(&self) -> StreamAddress {
        let tls_port = if self.amqps.is_some() { self.advertised.stream_tls_port } else { 0 };
        StreamAddress { host: self.advertised.host.clone(), port: self.advertised.stream_port, tls_port }
    }

    /// Join the layers and check the result. Makes `DATA_DIR/secret` for a node on its own that has none.
    ///
    /// # Errors
    /// [`ConfigError`] says which option or file is wrong and how to mend it.
    pub fn load(flags: Settings, environment: Environment<'_>) -> Result<ServerConfig, ConfigError> {
        let settings = Settings::layered(flags, environment)?;
        let peer_port_of_member = |cluster: &[Member], node| cluster.iter().find(|m: &&Member| m.node == node).map(|m| m.port);
        let node = node_id(settings.node_id.unwrap_or(1))?;
        let host = settings.host.clone().unwrap_or_else(|| "127.0.0.1".into());
        let listed = settings.cluster.as_deref().map(members::parse).transpose()?.unwrap_or_default();
        let peer_port = settings.peer_port.or(peer_port_of_member(&listed, node)).unwrap_or(7671);
        let cluster = members::with_self(listed, node, &host, peer_port)?;
        let data_dir = settings.data_dir.clone().unwrap_or_else(|| default_server_dir(environment));
        let secret = secret::resolve(&settings, &data_dir, cluster.len(), environment)?;
        let amqp_port = settings.amqp_port.unwrap_or(5672);
        let stream_port = settings.stream_port.unwrap_or(5552);
        let stream_tls_port = settings.stream_tls_port.unwrap_or(5551);
        Ok(ServerConfig {
            node,
            amqp_port,
            amqps: tls::amqps(&settings)?,
            stream_port,
            stream_tls_port,
            stream_advertise_self: settings.stream_advertise_self.unwrap_or(false),
            stream_leader_updates: settings.stream_leader_updates.unwrap_or(false),
            joins: settings.join.unwrap_or(false),
            rocketmq: rocketmq::checked(&settings)?,
            management_port: settings.management_port.unwrap_or(15672),
            peer_port,
            shards: shards(settings.shards, cluster.len())?,
            cluster,
            secret,
            peer_tls: peer_files(settings.peer_tls_cert.clone(), settings.peer_tls_key.clone(), settings.peer_tls_ca.clone())?,
            first: first_user(&settings)?,
            loopback_users: loopback_users(settings.loopback_users.as_deref()),
            disk_floor_bytes: quantity::bytes("disk-floor", settings.disk_floor.as_deref().unwrap_or("1GiB"))?,
            memory_limit_bytes: match settings.memory_limit.as_deref() {
                Some(limit) => quantity::bytes("memory-limit", limit)?,
                None => memory::default_limit_bytes(),
            },
            max_message_bytes: max_message(settings.max_message_size.as_deref())?,
            catch_up_log_bytes: quantity::bytes("catch-up-log", settings.catch_up_log.as_deref().unwrap_or("1GiB"))?,
            log_budget_bytes: quantity::bytes("log-budget", settings.log_budget.as_deref().unwrap_or("2GiB"))?,
            workers: workers(settings.workers)?,
            no_quorum_timeout: quantity::duration("no-quorum-timeout", settings.no_quorum_timeout.as_deref().unwrap_or("10s"))?,
            consumer_timeout: quantity::duration("consumer-timeout", settings.consumer_timeout.as_deref().unwrap_or("30m"))?,
            advertised: Advertised {
                host: settings.advertised_host.clone().unwrap_or_else(|| reachable(&host)),
                amqp_port: settings.advertised_amqp_port.unwrap_or(amqp_port),
                stream_port: settings.advertised_stream_port.unwrap_or(stream_port),
                stream_tls_port: settings.advertised_stream_tls_port.unwrap_or(stream_tls_port),
            },
            log: log_filter(settings.log.as_deref().unwrap_or("info"))?,
            log_format: settings.log_format.unwrap_or_default(),
            log_file: settings.log_file.clone(),
            log_file_bytes: quantity::bytes("log-file-size", settings.log_file_size.as_deref().unwrap_or("64MiB"))?,
            clock_off_file: None,
            host,
            data_dir,
        })
    }
}

fn max_message(asked: Option<&str>) -> Result<u64, ConfigError> {
    let (option, most) = ("max-message-size", MESSAGE_BYTES as u64);
    match asked.map_or(Ok(most), |size| quantity::bytes(option, size))? {
        size if (1..=most).contains(&size) => Ok(size),
        size => Err(ConfigError::Value { option, why: format!("{size} bytes; between 1 B and 16MiB are possible") }),
    }
}

fn log_filter(text: &str) -> Result<String, ConfigError> {
    match EnvFilter::builder().parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(ConfigError::Value { option: "log", why: format!("{text}: {error}") }),
    }
}

/// More threads than this only take turns.
const MAX_WORKERS: u16 = 256;

/// One core is left to replication and the disk: with as many workers as cores, messages wait for threads that wait for each other.
fn workers(asked: Option<u16>) -> Result<usize, ConfigError> {
    match asked {
        None => Ok(std::thread::available_parallelism().map_or(1, |cores| cores.get() - 1).clamp(1, usize::from(MAX_WORKERS))),
        Some(n @ 1..=MAX_WORKERS) => Ok(usize::from(n)),
        Some(n) => Err(ConfigError::Value { option: "workers", why: format!("{n} threads; between 1 and {MAX_WORKERS} are possible") }),
    }
}

/// The address that clients can use: where all interfaces are served, the machine's name.
fn reachable(host: &str) -> String {
    let is_any = host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_unspecified());
    let name = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok().map(|name| name.trim().to_owned());
    is_any.then(name).flatten().unwrap_or_else(|| host.to_owned())
}

fn node_id(id: u16) -> Result<NodeId, ConfigError> {
    if (1..=NODE_ID_MAX).contains(&id) {
        return Ok(NodeId(id));
    }
    Err(ConfigError::Value { option: "node-id", why: format!("{id} is not a node id; ids go from 1 to {NODE_ID_MAX}") })
}

fn shards(wanted: Option<u16>, nodes: usize) -> Result<u16, ConfigError> {
    let per_node = u16::try_from(nodes).unwrap_or(SHARDS_MAX).max(3);
    let shards = wanted.unwrap_or(per_node);
    if (1..=SHARDS_MAX).contains(&shards) {
        return Ok(shards);
    }
    Err(ConfigError::Value {
        option: "shards",
        why: format!("{shards} shards; between 1 and {SHARDS_MAX} are possible, one per node is right"),
    })
}

fn first_user(settings: &Settings) -> Result<FirstUser, ConfigError> {
    let user = settings.default_user.clone().unwrap_or_else(|| "guest".into());
    if user.is_empty() {
        return Err(ConfigError::Value { option: "default-user", why: "a user needs a name".into() });
    }
    let password = settings.default_pass.clone().unwrap_or_else(|| Secret::new("guest"));
    let vhost = settings.default_vhost.clone().unwrap_or_else(|| "/".into());
    if vhost.is_empty() {
        return Err(ConfigError::Value { option: "default-vhost", why: "a vhost needs a name; RabbitMQ's default is /".into() });
    }
    Ok(FirstUser { user, password, vhost })
}

fn loopback_users(listed: Option<&str>) -> Vec<String> {
    match listed {
        None => vec!["guest".into()],
        Some("none" | "") => Vec::new(),
        Some(names) => names.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect(),
    }
}

#[cfg(test)]
mod tests;
