//! The cluster that is harmed: child processes as `warren cluster` starts them, with ways between them that can be cut. Used by `run`.

use super::VerifyError;
use super::links::Links;
use super::plan::Fault;
use crate::config::ClusterSecret;
use crate::launcher::directory::ClusterDir;
use crate::launcher::ports::NodePorts;
use crate::launcher::process::NodeProcess;
use crate::management::client::AdminClient;
use crate::peer::auth::Secret;
use crate::peer::client::dial_operator;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A cluster that has not healed by then never does.
const HEAL_PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(100);
const ADMIN_TIMEOUT: Duration = Duration::from_secs(20);

/// A running cluster. Dropping it kills the processes.
pub(super) struct Nodes {
    directory: ClusterDir,
    ports: Vec<NodePorts>,
    /// What each node is told of the others.
    lists: Vec<String>,
    secret_file: PathBuf,
    secret: Secret,
    processes: Vec<NodeProcess>,
    links: Links,
}

impl Nodes {
    /// Start them; does not wait. Call it on a thread that lives as long as they: they end with it.
    pub(super) async fn start(path: &Path, count: u16, port_offset: u16) -> Result<Nodes, VerifyError> {
        let directory = ClusterDir::open(path, Some(count), true)?;
        let ports: Vec<NodePorts> = (1..=count).map(|node| NodePorts::new(node, port_offset, false)).collect();
        ports.iter().try_for_each(NodePorts::check)?;
        let secret_file = directory.secret()?;
        let secret = ClusterSecret::from_file(&secret_file)?;
        let links = Links::new();
        let mut lists = Vec::new();
        for own in &ports {
            let mut list = Vec::new();
            for other in &ports {
                let target = SocketAddr::from((Ipv4Addr::LOCALHOST, other.peer));
                let address = if own.node == other.node { target } else { links.open(own.node, other.node, target).await? };
                list.push(format!("{}@{address}", other.node));
            }
            lists.push(list.join(","));
        }
        let secret = Secret::new(secret.bytes());
        let mut nodes = Nodes { directory, ports, lists, secret_file, secret, processes: Vec::new(), links };
        for node in 1..=count {
            let process = nodes.spawn(node)?;
            nodes.processes.push(process);
        }
        Ok(nodes)
    }

    fn spawn(&self, node: u16) -> Result<NodeProcess, VerifyError> {
        let at = usize::from(node) - 1;
        let more = vec![format!("--clock-off-file={}", self.clock_off_file(node).display())];
        Ok(NodeProcess::start(&self.ports[at], &self.lists[at], &self.directory, Some(&self.secret_file), more)?)
    }

    /// Says how far a node's clock is off, ms; where it is missing, not at all.
    fn clock_off_file(&self, node: u16) -> PathBuf {
        self.directory.node(node).join("clock-off")
    }

    /// Numbers of the nodes.
    pub(super) fn numbers(&self) -> Vec<u16> {
        self.ports.iter().map(|ports| ports.node).collect()
    }

    /// Where all nodes serve a protocol.
    pub(super) fn addresses(&self, port: impl Fn(&NodePorts) -> u16) -> Vec<String> {
        self.ports.iter().map(|ports| format!("127.0.0.1:{}", port(ports))).collect()
    }

    fn process(&mut self, node: u16) -> &mut NodeProcess {
        &mut self.processes[usize::from(node) - 1]
    }

    /// Do harm.
    pub(super) fn harm(&mut self, fault: Fault) -> Result<(), VerifyError> {
        match fault {
            Fault::Kill { node } => self.process(node).kill(),
            Fault::Pause { node } => self.process(node).freeze(),
            Fault::Wipe { node } => {
                self.process(node).kill();
                std::fs::remove_dir_all(self.directory.node(node))?;
            }
            Fault::Partition { from, to, both } => {
                self.links.cut(from, to);
                if both {
                    self.links.cut(to, from);
                }
            }
            Fault::Clock { node, off_ms } => std::fs::write(self.clock_off_file(node), off_ms.to_string())?,
        }
        Ok(())
    }

    /// Take the harm away; what it broke heals by itself.
    pub(super) fn mend(&mut self, fault: Fault) -> Result<(), VerifyError> {
        match fault {
            Fault::Kill { node } | Fault::Wipe { node } => *self.process(node) = self.spawn(node)?,
            Fault::Pause { node } => self.process(node).thaw(),
            Fault::Partition { .. } => self.links.mend(),
            Fault::Clock { node, .. } => std::fs::remove_file(self.clock_off_file(node))?,
        }
        Ok(())
    }

    /// Until all nodes serve and have all of their replicas.
    pub(super) async fn healed(&mut self) -> Result<(), VerifyError> {
        let until = Instant::now() + HEAL_PATIENCE;
        loop {
            let mut waiting = Vec::new();
            for process in &mut self.processes {
                if let Some(status) = process.ended()? {
                    return Err(process.failure(status).into());
                }
                match process.ready().await {
                    Err(why) => waiting.push(format!("node {}: {why}", process.node())),
                    Ok(()) if process.figure("warren_replicas_incomplete").await != Some(0.0) => {
                        waiting.push(format!("node {}: it has not all of its replicas", process.node()));
                    }
                    Ok(()) => {}
                }
            }
            if waiting.is_empty() {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(VerifyError::NotHealed { seconds: HEAL_PATIENCE.as_secs(), waiting: waiting.join("; ") });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// A conversation with a node.
    pub(super) async fn admin(&self, node: u16) -> Result<AdminClient, VerifyError> {
        let address = format!("127.0.0.1:{}", self.ports[usize::from(node) - 1].peer);
        let channel = dial_operator(&address, &self.secret, None).await;
        let channel = channel.map_err(|error| VerifyError::Admin(format!("{address}: {error}")))?;
        Ok(AdminClient::new(&address, channel, ADMIN_TIMEOUT))
    }
}
