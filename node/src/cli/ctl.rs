//! `warren ctl`: rabbitmqctl's commands and output over Warren's admin RPC. Exit codes as rabbitmqctl's (sysexits): 64 wrong usage, 65
//! refused for what was given, 67 no such user, 69 refused, no node or not serving, 70 failed, 75 no quorum. Here: the options, the
//! way to a node, errors. What each command does is in `ctl/`.

mod certificates;
mod changes;
mod checks;
mod commands;
mod listings;
mod replicas;
mod topics;
mod waiting;

use super::format::Formatter;
use super::variable;
use crate::config::{ClusterSecret, ConfigError, DataDir, default_cluster_dir, default_server_dir, peer_files};
use crate::management::client::{AdminClient, ClientError};
use crate::model::catalog::Refusal;
use crate::peer::auth::{AuthError, Secret};
use crate::peer::client::{DialError, dial_operator};
use crate::tls::{Files, Mutual, TlsError};
use clap::Args;
use commands::CtlCommand;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

pub(super) const USAGE: u8 = 64;
const DATA: u8 = 65;
const NO_USER: u8 = 67;
const UNAVAILABLE: u8 = 69;
const SOFTWARE: u8 = 70;
const TEMPORARY: u8 = 75;
/// Where a node listens for `ctl` unless told otherwise.
const DEFAULT_PEER_PORT: u16 = 7671;
/// Seconds to wait for an answer, and for `await_startup` and `await_online_nodes`.
const TIMEOUT_SECONDS: u64 = 60;
const STARTUP_SECONDS: u64 = 300;
/// And for `await_online_quorum_plus_one`.
const MAJORITIES_SECONDS: u64 = 120;

/// Options of `warren ctl`, with rabbitmqctl's letters.
#[derive(Debug, Args)]
pub(super) struct CtlArgs {
    /// Peer port of the node to ask, 7671 where none is named; rabbit@HOST is taken, too [default: a node of the cluster in the data directory, else 127.0.0.1:7671]
    #[arg(short = 'n', long, global = true, value_name = "HOST[:PORT]")]
    node: Option<String>,
    /// Directory of the cluster or node to ask: its ports and its secret are there [default: where `warren cluster` keeps its data]
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// File with the cluster secret [default: WARREN_CLUSTER_SECRET_FILE, else WARREN_CLUSTER_SECRET, else the data directory]
    #[arg(long, global = true, value_name = "FILE")]
    cluster_secret_file: Option<PathBuf>,
    /// Certificate to show a node that demands TLS, PEM [default: WARREN_PEER_TLS_CERT, else what the data directory names]
    #[arg(long, global = true, value_name = "FILE")]
    peer_tls_cert: Option<PathBuf>,
    /// Its key, PEM [default: WARREN_PEER_TLS_KEY, likewise]
    #[arg(long, global = true, value_name = "FILE")]
    peer_tls_key: Option<PathBuf>,
    /// Authority of the nodes' certificates, PEM [default: WARREN_PEER_TLS_CA, likewise]
    #[arg(long, global = true, value_name = "FILE")]
    peer_tls_ca: Option<PathBuf>,
    /// The vhost that is meant
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
    /// How to print
    #[arg(long, global = true, value_enum, default_value_t)]
    formatter: Formatter,
    /// Seconds to wait for the answer [default: 60; await_startup and await_online_nodes: 300; await_online_quorum_plus_one: 120]
    #[arg(short, long, global = true, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Without a meaning here: Erlang's
    #[arg(short = 'l', long = "longnames", global = true, hide = true)]
    _longnames: bool,
    #[command(subcommand)]
    command: CtlCommand,
}

#[derive(Debug, thiserror::Error)]
enum CtlError {
    #[error("Error:\n{0}")]
    Client(#[from] ClientError),
    #[error("Error: cannot reach a node at {address}: {error}")]
    Dial { address: String, error: DialError },
    #[error("Error: the node at {address} has another cluster secret")]
    WrongSecret { address: String },
    #[error("Error: {0}")]
    Config(#[from] ConfigError),
    #[error("Error: certificate for the nodes: {0}")]
    Tls(#[from] TlsError),
    #[error("Error: no cluster secret: set WARREN_CLUSTER_SECRET, or give --cluster-secret-file FILE or the cluster's --data-dir DIR")]
    NoSecret,
    #[error("Error: {0}")]
    Io(#[from] std::io::Error),
    /// A command's own words, as they are to be printed.
    #[error("{text}")]
    Failed { code: u8, text: String },
}

impl CtlError {
    fn failed(code: u8, text: impl Into<String>) -> CtlError {
        CtlError::Failed { code, text: text.into() }
    }

    /// What rabbitmqctl says of a word that cannot be.
    fn bad_argument(why: &str) -> CtlError {
        CtlError::failed(DATA, format!("Error (argument validation): Bad argument: {why}"))
    }

    /// What rabbitmqctl says and answers when the broker refuses.
    fn refused(refusal: &Refusal) -> CtlError {
        match refusal {
            Refusal::NotFound { kind, name, .. } if kind == "user" => {
                CtlError::failed(NO_USER, format!("Error:\nUser \"{name}\" does not exist"))
            }
            Refusal::NotFound { kind, name, .. } if kind == "vhost" => {
                CtlError::failed(DATA, format!("Virtual host '{name}' does not exist"))
            }
            Refusal::NotFound { kind, .. } if kind == "consumer group" => CtlError::failed(DATA, "Error:\nThe group does not exist"),
            Refusal::NotFound { kind, .. } if kind == "stream" => CtlError::failed(DATA, "Error:\nThe stream does not exist."),
            Refusal::NotFound { .. } => CtlError::failed(DATA, "Object (queue, stream, exchange, etc) was not found"),
            Refusal::Precondition(text) if text.ends_with("already exists") => CtlError::failed(SOFTWARE, format!("Error:\n{text}")),
            Refusal::Precondition(text) if text.contains("protected from deletion") => CtlError::failed(DATA, format!("Error:\n{text}")),
            Refusal::Unavailable(text) => CtlError::failed(TEMPORARY, format!("Error:\n{text}")),
            Refusal::Precondition(text)
            | Refusal::Inequivalent(text)
            | Refusal::Access(text)
            | Refusal::Locked(text)
            | Refusal::NotImplemented(text)
            | Refusal::NotAllowed(text) => CtlError::failed(UNAVAILABLE, format!("Error:\n{text}")),
        }
    }

    fn code(&self) -> u8 {
        match self {
            CtlError::NoSecret | CtlError::Config(_) | CtlError::Tls(_) => USAGE,
            CtlError::Client(ClientError::Refused { .. }) | CtlError::WrongSecret { .. } => DATA,
            CtlError::Client(ClientError::Unreachable { .. }) | CtlError::Dial { .. } | CtlError::Io(_) => UNAVAILABLE,
            CtlError::Failed { code, .. } => *code,
        }
    }
}

pub(super) fn run(args: CtlArgs) -> ExitCode {
    let asked = || -> Result<(), CtlError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(Box::pin(args.ask()))
    };
    let result = asked().map_err(|error| match error {
        CtlError::Client(ClientError::Refused { refusal: Some(refusal), .. }) => CtlError::refused(&refusal),
        CtlError::Client(ClientError::Refused { text, usage: true, .. }) => {
            CtlError::failed(USAGE, format!("Error (argument validation): {text}"))
        }
        other => other,
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = error.to_string();
            if !text.is_empty() {
                eprintln!("{text}");
            }
            ExitCode::from(error.code())
        }
    }
}

/// A closed pipe (`| head`) is no error worth a word.
fn print(text: &str) {
    use std::io::Write;
    let _ = std::io::stdout().write_all(text.as_bytes());
}

impl CtlArgs {
    fn is_chatty(&self) -> bool {
        !self.quiet && !self.silent && !self.formatter.is_for_machines()
    }

    /// A line that `--quiet` leaves out.
    fn inform(&self, line: &str) {
        if self.is_chatty() {
            print(&format!("{line}\n"));
        }
    }

    /// The outcome of a command that is no listing: nothing but with a machine's formatter.
    fn done(&self) {
        if self.formatter == Formatter::Json {
            print(&format!("{}\n", serde_json::json!({ "result": "ok" })));
        }
    }

    /// The same with something to say.
    fn say(&self, text: &str) {
        match self.formatter {
            Formatter::Json => print(&format!("{}\n", serde_json::json!({ "result": "ok", "message": text }))),
            Formatter::Table | Formatter::Csv | Formatter::PrettyTable if self.silent => {}
            Formatter::Table | Formatter::Csv | Formatter::PrettyTable => print(&format!("{text}\n")),
        }
    }

    fn timeout_seconds(&self) -> u64 {
        let default = match self.command {
            CtlCommand::AwaitStartup | CtlCommand::AwaitOnlineNodes { .. } => STARTUP_SECONDS,
            CtlCommand::AwaitOnlineQuorumPlusOne => MAJORITIES_SECONDS,
            _ => TIMEOUT_SECONDS,
        };
        self.timeout.unwrap_or(default).max(1)
    }

    /// The first node that answers: the one named, else those of the data directory.
    async fn connect(&self) -> Result<AdminClient, CtlError> {
        let dirs = self.dirs();
        let secret = Secret::new(self.secret(&dirs)?.bytes());
        let timeout = Duration::from_secs(self.timeout_seconds());
        let mut failure = None;
        let named = self.peer_tls()?;
        for Place { address, tls } in self.places(&dirs) {
            let tls = named.clone().or(tls).map(Mutual::load).transpose()?;
            match dial_operator(&address, &secret, tls.as_ref()).await {
                Ok(channel) => return Ok(AdminClient::new(&address, channel, timeout)),
                Err(error) => failure = failure.or(Some(dial_error(address, error))),
            }
        }
        Err(failure.expect("there is at least one address"))
    }

    fn dirs(&self) -> Vec<PathBuf> {
        let named = self.data_dir.clone().or_else(|| variable("WARREN_DATA_DIR").map(PathBuf::from));
        named.map_or_else(|| vec![default_cluster_dir(&variable), default_server_dir(&variable)], |dir| vec![dir])
    }

    fn secret(&self, dirs: &[PathBuf]) -> Result<ClusterSecret, CtlError> {
        if let Some(secret) = ClusterSecret::named(self.cluster_secret_file.as_deref(), &variable)? {
            return Ok(secret);
        }
        Ok(ClusterSecret::from_file(&kept_secret(dirs).ok_or(CtlError::NoSecret)?)?)
    }

    /// Named on the command line or in the environment.
    fn peer_tls(&self) -> Result<Option<Files>, ConfigError> {
        let or_variable = |flag: &Option<PathBuf>, name| flag.clone().or_else(|| variable(name).map(PathBuf::from));
        let certificate = or_variable(&self.peer_tls_cert, "WARREN_PEER_TLS_CERT");
        let key = or_variable(&self.peer_tls_key, "WARREN_PEER_TLS_KEY");
        peer_files(certificate, key, or_variable(&self.peer_tls_ca, "WARREN_PEER_TLS_CA"))
    }

    fn places(&self, dirs: &[PathBuf]) -> Vec<Place> {
        if let Some(address) = self.node.clone().or_else(|| variable("WARREN_NODE")) {
            // A directory is only meant for a named node if it is named as well.
            let is_meant = self.data_dir.is_some() || variable("WARREN_DATA_DIR").is_some();
            let tls = dirs.iter().filter(|_| is_meant).find_map(|dir| node_dirs(dir).iter().find_map(|node| DataDir::read_peer_tls(node)));
            return vec![Place { address: peer_address(&address), tls }];
        }
        let mut places: Vec<Place> = dirs.iter().flat_map(|dir| running_nodes(dir)).collect();
        if places.is_empty() {
            places.push(Place { address: format!("127.0.0.1:{DEFAULT_PEER_PORT}"), tls: None });
        }
        places
    }
}

/// `HOST:PORT`. A port that is not named is the default one, and what stands before an `@` is Erlang's: scripts name `rabbit@host`.
fn peer_address(node: &str) -> String {
    let host = node.rsplit_once('@').map_or(node, |(_, host)| host);
    match host.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok() => host.to_owned(),
        Some(_) | None => format!("{host}:{DEFAULT_PEER_PORT}"),
    }
}

/// A node's peer port, and what it shows others there.
struct Place {
    address: String,
    tls: Option<Files>,
}

fn dial_error(address: String, error: DialError) -> CtlError {
    match error {
        DialError::Auth(AuthError::Secret) => CtlError::WrongSecret { address },
        DialError::Status(status) if status.code() == tonic::Code::Unauthenticated => CtlError::WrongSecret { address },
        error => CtlError::Dial { address, error },
    }
}

/// A node's own directory, or those of a local cluster in order.
fn node_dirs(dir: &Path) -> Vec<PathBuf> {
    let mut nodes = vec![dir.to_owned()];
    let mut children: Vec<PathBuf> = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    children.sort();
    nodes.extend(children.into_iter().filter(|path| path.is_dir()));
    nodes
}

/// The secret of the nodes that run; one that an earlier cluster left is not theirs.
fn kept_secret(dirs: &[PathBuf]) -> Option<PathBuf> {
    let (running, others): (Vec<_>, Vec<_>) = dirs.iter().partition(|dir| !running_nodes(dir).is_empty());
    running.into_iter().chain(others).find_map(|dir| ClusterSecret::kept_by(dir))
}

/// The nodes that run in a data directory.
fn running_nodes(dir: &Path) -> Vec<Place> {
    let place = |node: PathBuf| {
        let address = address(DataDir::read_host(&node).as_deref(), DataDir::read_ports(&node)?.peer);
        Some(Place { address, tls: DataDir::read_peer_tls(&node) })
    };
    node_dirs(dir).into_iter().filter(|node| DataDir::is_locked(node)).filter_map(place).collect()
}

/// Where a node that listens on `host` is reached from its own machine.
fn address(host: Option<&str>, port: u16) -> String {
    let ip = host.and_then(|host| host.parse::<IpAddr>().ok());
    match (host, ip) {
        (_, Some(ip)) if !ip.is_unspecified() => SocketAddr::new(ip, port).to_string(),
        (Some(name), None) if !name.is_empty() => format!("{name}:{port}"),
        _ => format!("127.0.0.1:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Ports;

    #[test]
    fn the_secret_is_that_of_the_nodes_that_run() {
        let root = tempfile::tempdir().unwrap();
        let dirs = ["cluster", "server"].map(|name| root.path().join(name));
        for dir in &dirs {
            std::fs::create_dir_all(dir).unwrap();
            std::fs::write(DataDir::secret_path(dir), "x").unwrap();
        }
        assert_eq!(kept_secret(&dirs), Some(DataDir::secret_path(&dirs[0])));
        let _lock = DataDir::lock(&dirs[1]).unwrap();
        DataDir::write_ports(&dirs[1], "127.0.0.1", Ports::default()).unwrap();
        assert_eq!(kept_secret(&dirs), Some(DataDir::secret_path(&dirs[1])));
        assert_eq!(kept_secret(&[]), None);
    }

    #[test]
    fn a_node_may_be_named_as_rabbitmqs_scripts_do() {
        for (named, address) in [
            ("10.1.2.3:9", "10.1.2.3:9"),
            ("node-1", "node-1:7671"),
            ("rabbit@node-1", "node-1:7671"),
            ("rabbit@node-1:9", "node-1:9"),
            ("[::1]:9", "[::1]:9"),
            ("[::1]", "[::1]:7671"),
        ] {
            assert_eq!(peer_address(named), address);
        }
    }

    #[test]
    fn a_node_is_asked_where_it_listens() {
        let root = tempfile::tempdir().unwrap();
        let _lock = DataDir::lock(root.path()).unwrap();
        for (host, address) in [
            ("127.0.0.1", "127.0.0.1:7671"),
            ("10.1.2.3", "10.1.2.3:7671"),
            ("::1", "[::1]:7671"),
            ("node.example", "node.example:7671"),
            ("0.0.0.0", "127.0.0.1:7671"),
            ("::", "127.0.0.1:7671"),
        ] {
            DataDir::write_ports(root.path(), host, Ports { peer: 7671, ..Ports::default() }).unwrap();
            let places: Vec<_> = running_nodes(root.path()).into_iter().map(|place| place.address).collect();
            assert_eq!(places, [address], "{host}");
        }
    }
}
