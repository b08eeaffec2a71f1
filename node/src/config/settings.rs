//! The options of a server as they are written down, before they are checked: one struct is the flags, the variables and the
//! file at once, so the three cannot drift apart. Used by `config` and, for flags, by `cli`.

use super::{ConfigError, Environment, LoginFromOption, SanTypeOption, Secret, VerifyOption};
use clap::{Args, Command, FromArgMatches, ValueEnum};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// One readable line each.
    #[default]
    Text,
    /// One JSON object each.
    Json,
}

/// Options of `warren server`. Each is also a variable (`--amqp-port` is `WARREN_AMQP_PORT`) and a key of the TOML file
/// (`amqp-port`): a flag wins over a variable, a variable over the file.
#[derive(Clone, Debug, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Settings {
    /// TOML file with any of these options
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// This node's number in the cluster [default: 1]
    #[arg(long, value_name = "N")]
    pub node_id: Option<u16>,
    /// Directory for everything that is kept [default: ~/.local/state/warren/server]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Address or name to listen on, for all ports [default: 127.0.0.1]
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,
    /// AMQP 0-9-1 port [default: 5672]
    #[arg(long, value_name = "PORT")]
    pub amqp_port: Option<u16>,
    /// AMQP 0-9-1 over TLS, served when there is a --tls-cert [default: 5671]
    #[arg(long, value_name = "PORT")]
    pub amqps_port: Option<u16>,
    /// Certificate that clients are shown over TLS, with its chain, PEM; read again when it changes
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Its key, PEM, not encrypted
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Authorities that clients' certificates are verified with, PEM
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Whether clients are asked for certificates [default: none]
    #[arg(long, value_name = "WHOM")]
    pub tls_verify: Option<VerifyOption>,
    /// With --tls-verify peer: refuse clients without a certificate [default: false]
    #[arg(long, value_name = "BOOL")]
    pub tls_fail_if_no_peer_cert: Option<bool>,
    /// Name in a client's certificate that is its user for SASL EXTERNAL [default: distinguished-name]
    #[arg(long, value_name = "NAME")]
    pub tls_login_from: Option<LoginFromOption>,
    /// Kind of alternative name, with --tls-login-from subject-alternative-name [default: dns]
    #[arg(long, value_name = "KIND")]
    pub tls_login_san_type: Option<SanTypeOption>,
    /// Certificate that this node shows other nodes, PEM; with key and authority all talk between nodes is mutual TLS
    #[arg(long, value_name = "FILE")]
    pub peer_tls_cert: Option<PathBuf>,
    /// Its key, PEM, not encrypted
    #[arg(long, value_name = "FILE")]
    pub peer_tls_key: Option<PathBuf>,
    /// Authority of the nodes' and operators' certificates, PEM
    #[arg(long, value_name = "FILE")]
    pub peer_tls_ca: Option<PathBuf>,
    /// Port of the RabbitMQ stream protocol [default: 5552]
    #[arg(long, value_name = "PORT")]
    pub stream_port: Option<u16>,
    /// Stream protocol over TLS, served when there is a --tls-cert [default: 5551]
    #[arg(long, value_name = "PORT")]
    pub stream_tls_port: Option<u16>,
    /// RocketMQ's HTTP protocol [default: 8080]
    #[arg(long, value_name = "PORT")]
    pub rocketmq_port: Option<u16>,
    /// The same over TLS, served when it is given and there is a --tls-cert [default: not served]
    #[arg(long, value_name = "PORT")]
    pub rocketmq_tls_port: Option<u16>,
    /// How long a delivered message of a rocket topic is invisible, unless the topic says otherwise [default: 300s]
    #[arg(long, value_name = "TIME")]
    pub rocketmq_invisible: Option<String>,
    /// The same for messages consumed in order [default: 60s]
    #[arg(long, value_name = "TIME")]
    pub rocketmq_ordered_invisible: Option<String>,
    /// The same for half messages that are checked [default: 10s]
    #[arg(long, value_name = "TIME")]
    pub rocketmq_half_invisible: Option<String>,
    /// Deliveries after the first before a message goes to the dead letters of its group [default: 288]
    #[arg(long, value_name = "N")]
    pub rocketmq_max_retries: Option<u32>,
    /// Make rocket topics when somebody publishes to them or consumes from them [default: false]
    #[arg(long, value_name = "BOOL")]
    pub rocketmq_auto_create_topics: Option<bool>,
    /// HTTP port for /ready and /metrics [default: 15672]
    #[arg(long, value_name = "PORT")]
    pub management_port: Option<u16>,
    /// Port for other nodes and `warren ctl` [default: this node's port in --cluster, else 7671]
    #[arg(long, value_name = "PORT")]
    pub peer_port: Option<u16>,
    /// All nodes, this one too: ID@HOST:PEER_PORT,... [default: this node alone]
    #[arg(long, value_name = "LIST")]
    pub cluster: Option<String>,
    /// This node is new and the others of --cluster are members: have it admitted by one of them [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub join: Option<bool>,
    /// Data shards of a new cluster [default: one per node, at least 3]
    #[arg(long, value_name = "N")]
    pub shards: Option<u16>,
    /// File with the secret that the nodes share; the variable WARREN_CLUSTER_SECRET holds the secret itself
    #[arg(long, value_name = "FILE")]
    pub cluster_secret_file: Option<PathBuf>,
    /// First user of a new cluster; RABBITMQ_DEFAULT_USER counts too [default: guest]
    #[arg(long, value_name = "NAME")]
    pub default_user: Option<String>,
    /// Its password, better given as a variable or in the file; RABBITMQ_DEFAULT_PASS counts too [default: guest]
    #[arg(long, value_name = "PASSWORD")]
    pub default_pass: Option<Secret>,
    /// First vhost of a new cluster; RABBITMQ_DEFAULT_VHOST counts too [default: /]
    #[arg(long, value_name = "NAME")]
    pub default_vhost: Option<String>,
    /// Users that may log in from this machine only, comma separated, or `none` [default: guest]
    #[arg(long, value_name = "NAMES")]
    pub loopback_users: Option<String>,
    /// Free disk space below which publishes stop [default: 1GiB]
    #[arg(long, value_name = "SIZE")]
    pub disk_floor: Option<String>,
    /// Memory of the process above which publishes stop [default: 60 % of the machine's or the container's]
    #[arg(long, value_name = "SIZE")]
    pub memory_limit: Option<String>,
    /// Largest body of a message that AMQP clients may publish, at most 16MiB [default: 16MiB]
    #[arg(long, value_name = "SIZE")]
    pub max_message_size: Option<String>,
    /// Log kept for nodes that lag or are away; beyond it they catch up by snapshot [default: 1GiB]
    #[arg(long, value_name = "SIZE")]
    pub catch_up_log: Option<String>,
    /// Log files beyond this are cleaned: messages that are left in old ones are written again [default: 2GiB]
    #[arg(long, value_name = "SIZE")]
    pub log_budget: Option<String>,
    /// Threads that serve clients; replication and the disk have their own [default: the CPUs less one, at least 1]
    #[arg(long, value_name = "N")]
    pub workers: Option<u16>,
    /// Without a majority for this long, publishes are nacked and declarations fail [default: 10s]
    #[arg(long, value_name = "TIME")]
    pub no_quorum_timeout: Option<String>,
    /// A client that holds a message for longer loses its channel, unless its queue or consumer says otherwise [default: 30m]
    #[arg(long, value_name = "TIME")]
    pub consumer_timeout: Option<String>,
    /// Host name that stream clients are told [default: --host, or the machine's name where that is 0.0.0.0]
    #[arg(long, value_name = "HOST")]
    pub advertised_host: Option<String>,
    /// AMQP port, likewise [default: --amqp-port]
    #[arg(long, value_name = "PORT")]
    pub advertised_amqp_port: Option<u16>,
    /// Stream port, likewise [default: --stream-port]
    #[arg(long, value_name = "PORT")]
    pub advertised_stream_port: Option<u16>,
    /// Stream port over TLS, likewise [default: --stream-tls-port]
    #[arg(long, value_name = "PORT")]
    pub advertised_stream_tls_port: Option<u16>,
    /// Tell stream clients of the node they are on only: it serves every stream, wherever that is led [default: false]
    #[arg(long, value_name = "BOOL")]
    pub stream_advertise_self: Option<bool>,
    /// End a stream's publishers with MetadataUpdate when another node leads it, so that clients look for the new leader [default: false]
    #[arg(long, value_name = "BOOL")]
    pub stream_leader_updates: Option<bool>,
    /// What is logged: a level (error, warn, info, debug, trace) or a filter such as info,warren::edge=debug [default: info]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
    /// Form of the log lines [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Log into this file, rotated, instead of standard error
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// Size at which the log file is rotated; four old ones are kept [default: 64MiB]
    #[arg(long, value_name = "SIZE")]
    pub log_file_size: Option<String>,
}

impl Settings {
    /// Flags over variables over RabbitMQ's own variables over the file.
    ///
    /// # Errors
    /// A variable or a file that makes no sense.
    pub fn layered(flags: Settings, environment: Environment<'_>) -> Result<Settings, ConfigError> {
        let variables = Settings::from_environment(environment)?;
        let mut settings = flags.over(variables).over(Settings::from_rabbitmq(environment));
        if let Some(path) = settings.config.take() {
            let mut file = Settings::from_file(&path)?;
            if environment(super::secret::SECRET_VARIABLE).is_some_and(|secret| !secret.is_empty()) {
                file.cluster_secret_file = None; // the variable wins over the file
            }
            settings = settings.over(file);
        }
        Ok(settings)
    }

    /// The variables, read by the same parser as the flags.
    fn from_environment(environment: Environment<'_>) -> Result<Settings, ConfigError> {
        let command = Settings::augment_args(Command::new("server").no_binary_name(true));
        let mut merged = Settings::default();
        for argument in command.get_arguments() {
            let Some(long) = argument.get_long() else { continue };
            let name = format!("WARREN_{}", long.to_uppercase().replace('-', "_"));
            let Some(value) = environment(&name).filter(|value| !value.is_empty()) else { continue };
            let one = command
                .clone()
                .try_get_matches_from([format!("--{long}={value}")])
                .and_then(|matches| Settings::from_arg_matches(&matches))
                .map_err(|error| ConfigError::Variable { name: name.clone(), why: reason(&error) })?;
            merged = merged.over(one);
        }
        Ok(merged)
    }

    /// The three variables of RabbitMQ's container image.
    fn from_rabbitmq(environment: Environment<'_>) -> Settings {
        let read = |name: &str| environment(name).filter(|value| !value.is_empty());
        Settings {
            default_user: read("RABBITMQ_DEFAULT_USER"),
            default_pass: read("RABBITMQ_DEFAULT_PASS").map(|pass| Secret::new(&pass)),
            default_vhost: read("RABBITMQ_DEFAULT_VHOST"),
            ..Settings::default()
        }
    }

    fn from_file(path: &Path) -> Result<Settings, ConfigError> {
        let wrong = |why: String| ConfigError::File { path: path.to_owned(), why };
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        toml::from_str(&text).map_err(|error| wrong(error.to_string()))
    }

    /// These settings where they are given, `lower` elsewhere.
    fn over(self, lower: Settings) -> Settings {
        Settings {
            config: self.config.or(lower.config),
            node_id: self.node_id.or(lower.node_id),
            data_dir: self.data_dir.or(lower.data_dir),
            host: self.host.or(lower.host),
            amqp_port: self.amqp_port.or(lower.amqp_port),
            amqps_port: self.amqps_port.or(lower.amqps_port),
            tls_cert: self.tls_cert.or(lower.tls_cert),
            tls_key: self.tls_key.or(lower.tls_key),
            tls_ca: self.tls_ca.or(lower.tls_ca),
            tls_verify: self.tls_verify.or(lower.tls_verify),
            tls_fail_if_no_peer_cert: self.tls_fail_if_no_peer_cert.or(lower.tls_fail_if_no_peer_cert),
            tls_login_from: self.tls_login_from.or(lower.tls_login_from),
            tls_login_san_type: self.tls_login_san_type.or(lower.tls_login_san_type),
            peer_tls_cert: self.peer_tls_cert.or(lower.peer_tls_cert),
            peer_tls_key: self.peer_tls_key.or(lower.peer_tls_key),
            peer_tls_ca: self.peer_tls_ca.or(lower.peer_tls_ca),
            stream_port: self.stream_port.or(lower.stream_port),
            stream_tls_port: self.stream_tls_port.or(lower.stream_tls_port),
            rocketmq_port: self.rocketmq_port.or(lower.rocketmq_port),
            rocketmq_tls_port: self.rocketmq_tls_port.or(lower.rocketmq_tls_port),
            rocketmq_invisible: self.rocketmq_invisible.or(lower.rocketmq_invisible),
            rocketmq_ordered_invisible: self.rocketmq_ordered_invisible.or(lower.rocketmq_ordered_invisible),
            rocketmq_half_invisible: self.rocketmq_half_invisible.or(lower.rocketmq_half_invisible),
            rocketmq_max_retries: self.rocketmq_max_retries.or(lower.rocketmq_max_retries),
            rocketmq_auto_create_topics: self.rocketmq_auto_create_topics.or(lower.rocketmq_auto_create_topics),
            management_port: self.management_port.or(lower.management_port),
            peer_port: self.peer_port.or(lower.peer_port),
            cluster: self.cluster.or(lower.cluster),
            join: self.join.or(lower.join),
            shards: self.shards.or(lower.shards),
            cluster_secret_file: self.cluster_secret_file.or(lower.cluster_secret_file),
            default_user: self.default_user.or(lower.default_user),
            default_pass: self.default_pass.or(lower.default_pass),
            default_vhost: self.default_vhost.or(lower.default_vhost),
            loopback_users: self.loopback_users.or(lower.loopback_users),
            disk_floor: self.disk_floor.or(lower.disk_floor),
            memory_limit: self.memory_limit.or(lower.memory_limit),
            max_message_size: self.max_message_size.or(lower.max_message_size),
            catch_up_log: self.catch_up_log.or(lower.catch_up_log),
            log_budget: self.log_budget.or(lower.log_budget),
            workers: self.workers.or(lower.workers),
            no_quorum_timeout: self.no_quorum_timeout.or(lower.no_quorum_timeout),
            consumer_timeout: self.consumer_timeout.or(lower.consumer_timeout),
            advertised_host: self.advertised_host.or(lower.advertised_host),
            advertised_amqp_port: self.advertised_amqp_port.or(lower.advertised_amqp_port),
            advertised_stream_port: self.advertised_stream_port.or(lower.advertised_stream_port),
            advertised_stream_tls_port: self.advertised_stream_tls_port.or(lower.advertised_stream_tls_port),
            stream_advertise_self: self.stream_advertise_self.or(lower.stream_advertise_self),
            stream_leader_updates: self.stream_leader_updates.or(lower.stream_leader_updates),
            log: self.log.or(lower.log),
            log_format: self.log_format.or(lower.log_format),
            log_file: self.log_file.or(lower.log_file),
            log_file_size: self.log_file_size.or(lower.log_file_size),
        }
    }
}

/// The one line of a clap error that says what is wrong, without the value: it may be a password.
fn reason(error: &clap::Error) -> String {
    use clap::error::ErrorKind;
    match error.kind() {
        ErrorKind::InvalidValue => "not one of the possible values; see `warren server --help`".into(),
        ErrorKind::ValueValidation => std::error::Error::source(error).map_or_else(|| "not a valid value".into(), ToString::to_string),
        _ => "not a valid value".into(),
    }
}
