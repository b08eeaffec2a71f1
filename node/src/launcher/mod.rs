//! `warren cluster`: a local cluster as child processes on 127.0.0.1. Prints where to connect, says when all nodes serve, stops all on
//! Ctrl-C or SIGTERM. It restarts nothing, and its nodes die with it. Called by `cli`; it knows nodes only as processes.

pub(crate) mod directory;
pub(crate) mod ports;
pub(crate) mod process;
mod tls;

use crate::cli::Shutdown;
use crate::config::{ClusterSecret, Environment, default_cluster_dir};
use crate::model::limits::NODES;
use clap::Args;
use directory::ClusterDir;
use ports::NodePorts;
use process::NodeProcess;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tls::TlsArgs;

/// A node that is told to stop gets this long before it is killed.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// A first start takes less; afterwards the launcher says what it waits for and goes on waiting.
const START_USUAL: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(50);

/// Options of `warren cluster`.
#[derive(Clone, Debug, Args)]
pub struct ClusterArgs {
    /// Number of nodes [default: as the directory has, else 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=NODES as i64))]
    nodes: Option<u16>,
    /// Directory for data and logs [default: ~/.local/state/warren/cluster]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Added to every port, to run beside another broker
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=45_000))]
    port_offset: u16,
    /// Delete the data of this directory first, if `warren cluster` made it
    #[arg(long)]
    fresh: bool,
    #[command(flatten)]
    tls: TlsArgs,
}

/// Why the cluster does not run.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The directory is somebody else's.
    #[error("{path} is not empty and was not made by `warren cluster`; it stays untouched: choose another --data-dir")]
    Foreign {
        /// Which.
        path: PathBuf,
    },
    /// It was made with another number of nodes.
    #[error("{path} holds a cluster of {has} nodes; start it with --nodes {has}, or give it up with --fresh --nodes {wanted}")]
    OtherSize {
        /// Which.
        path: PathBuf,
        /// Nodes it was made with.
        has: u16,
        /// Nodes asked for.
        wanted: u16,
    },
    /// The lock of the directory or of a node in it is taken.
    #[error(transparent)]
    DataDir(#[from] crate::config::DataDirError),
    /// The secret.
    #[error(transparent)]
    Secret(#[from] crate::config::ConfigError),
    /// A port is taken.
    #[error("port {port} ({role} of node {node}) cannot be used: {error}; stop what listens there, or move all ports with --port-offset N")]
    Port {
        /// Which.
        port: u16,
        /// What for.
        role: &'static str,
        /// Whose.
        node: u16,
        /// What the system says.
        error: io::Error,
    },
    /// A node ended before the cluster was up.
    #[error("node {node} ended during the start ({status}); the end of its log {log}:\n{tail}")]
    Ended {
        /// Which.
        node: u16,
        /// How.
        status: String,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// Anything else the system refuses.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Run until told to stop.
pub fn run(args: ClusterArgs) -> ExitCode {
    // One thread on purpose: children die with the thread that started them, and this one lives as long as the process.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.into()),
    };
    match runtime.block_on(Box::pin(supervise(args))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &ClusterError) -> ExitCode {
    eprintln!("warren: {error}");
    ExitCode::FAILURE
}

async fn supervise(args: ClusterArgs) -> Result<(), ClusterError> {
    let mut shutdown = Shutdown::listen()?;
    let path = args.data_dir.clone().unwrap_or_else(|| default_cluster_dir(&crate::cli::variable));
    let directory = ClusterDir::open(&path, args.nodes, args.fresh)?;
    let nodes: Vec<NodePorts> = (1..=directory.nodes()).map(|node| NodePorts::new(node, args.port_offset, args.tls.is_served())).collect();
    nodes.iter().try_for_each(NodePorts::check)?;
    let secret = secret(&directory, &crate::cli::variable)?;
    let mut processes = Vec::new();
    for node in &nodes {
        processes.push(NodeProcess::start(node, &ports::cluster_list(&nodes), &directory, secret.as_deref(), args.tls.arguments())?);
    }
    say(&ports::table(&nodes, &directory));
    let ended = tokio::select! {
        started = watch(&mut processes) => started,
        signal = shutdown.requested() => {
            say(&format!("{signal}: stopping\n"));
            Ok(())
        }
    };
    tokio::select! {
        () = stop(&mut processes) => {}
        _ = shutdown.requested() => processes.iter_mut().for_each(NodeProcess::kill),
    }
    directory.running_nodes().for_each(|(node, pid)| say(&format!("node {node} (pid {pid}) was started by hand and is left running\n")));
    ended
}

/// The file with the secret that nodes are to be given; `None`: the environment, which they inherit, names one.
fn secret(directory: &ClusterDir, environment: Environment<'_>) -> Result<Option<PathBuf>, ClusterError> {
    match ClusterSecret::named(None, environment)? {
        Some(_) => Ok(None),
        None => directory.secret().map(Some),
    }
}

fn say(text: &str) {
    let mut out = io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Wait until all serve, then report every end. Returns only when the start failed.
async fn watch(processes: &mut [NodeProcess]) -> Result<(), ClusterError> {
    wait_until_all_serve(processes).await?;
    say("Server startup complete\n");
    loop {
        for process in processes.iter_mut() {
            if let Some(status) = process.ended()? {
                say(&format!("node {} ended ({status}); start it again with:\n  {}\n", process.node(), process.command()));
            }
        }
        tokio::time::sleep(4 * POLL).await;
    }
}

async fn wait_until_all_serve(processes: &mut [NodeProcess]) -> Result<(), ClusterError> {
    let start = Instant::now();
    let mut told = false;
    loop {
        let mut waiting = Vec::new();
        for process in processes.iter_mut() {
            if let Some(status) = process.ended()? {
                return Err(process.failure(status));
            }
            if let Err(why) = process.ready().await {
                waiting.push(format!("node {}: {why}", process.node()));
            }
        }
        if waiting.is_empty() {
            return Ok(());
        }
        if start.elapsed() > START_USUAL && !told {
            told = true;
            say(&format!("still waiting for\n  {}\n", waiting.join("\n  ")));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// SIGTERM to all, SIGKILL to those that are still there after the grace.
async fn stop(processes: &mut [NodeProcess]) {
    processes.iter_mut().for_each(NodeProcess::terminate);
    let deadline = Instant::now() + STOP_GRACE;
    while processes.iter_mut().any(NodeProcess::is_running) && Instant::now() < deadline {
        tokio::time::sleep(POLL / 5).await;
    }
    processes.iter_mut().for_each(NodeProcess::kill);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_get_a_secret_of_the_directory_unless_the_environment_names_one() {
        let root = tempfile::tempdir().unwrap();
        let directory = ClusterDir::open(&root.path().join("cluster"), Some(1), false).unwrap();
        let file = root.path().join("secret");
        std::fs::write(&file, "of all nodes").unwrap();
        let file = file.display().to_string();
        let given = |variables: &[(&str, &str)]| {
            let read = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
            secret(&directory, &read)
        };
        assert_eq!(given(&[("WARREN_CLUSTER_SECRET_FILE", &file)]).unwrap(), None);
        assert_eq!(given(&[("WARREN_CLUSTER_SECRET", "of all nodes")]).unwrap(), None);
        let own = given(&[("WARREN_CLUSTER_SECRET_FILE", ""), ("WARREN_CLUSTER_SECRET", "")]).unwrap();
        assert_eq!(own, Some(directory.secret().unwrap()));
        assert!(given(&[("WARREN_CLUSTER_SECRET", "short")]).is_err());
        assert!(given(&[("WARREN_CLUSTER_SECRET_FILE", "/no/such/file")]).is_err());
    }
}
