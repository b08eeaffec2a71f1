//! One node of a local cluster as a child process: started, asked whether it is ready, ended. Used by `launcher` alone.

use super::ClusterError;
use super::directory::ClusterDir;
use super::ports::NodePorts;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Lines of the log shown when a node ends during the start.
const TAIL_LINES: usize = 12;
const READY_TIMEOUT: Duration = Duration::from_secs(1);
/// Metrics are longer than anything else that is asked for.
const ANSWER_BYTES: u64 = 4 << 20;

/// A node and its process. Dropping it kills the process.
#[derive(Debug)]
pub(crate) struct NodeProcess {
    ports: NodePorts,
    log: PathBuf,
    command: String,
    child: Child,
    end_reported: bool,
}

impl NodeProcess {
    /// Start the node. What it prints besides its log lines goes into the same file.
    pub(crate) fn start(
        ports: &NodePorts,
        cluster: &str,
        directory: &ClusterDir,
        secret: Option<&Path>,
        more: Vec<String>,
    ) -> io::Result<NodeProcess> {
        let log = directory.log(ports.node);
        let program = std::env::current_exe()?;
        let mut arguments = arguments(ports, cluster, &directory.node(ports.node), &log, secret);
        arguments.extend(more);
        let output = OpenOptions::new().create(true).append(true).open(&log)?;
        let child = Command::new(&program)
            .args(&arguments)
            .arg(format!("--die-with-parent={}", std::process::id()))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0) // Ctrl-C goes to the launcher alone, which passes it on
            .spawn()?;
        let command = [vec![program.display().to_string()], arguments].concat().join(" ");
        Ok(NodeProcess { ports: *ports, log, command, child, end_reported: false })
    }

    pub(crate) fn node(&self) -> u16 {
        self.ports.node
    }

    /// The command that starts this node by hand.
    pub(crate) fn command(&self) -> &str {
        &self.command
    }

    /// How the process ended, the first time this is asked after its end.
    pub(crate) fn ended(&mut self) -> io::Result<Option<String>> {
        if self.end_reported {
            return Ok(None);
        }
        let status = self.child.try_wait()?;
        self.end_reported = status.is_some();
        Ok(status.map(|status| status.to_string()))
    }

    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Ask the management port; the error says what the node waits for.
    pub(crate) async fn ready(&self) -> Result<(), String> {
        match tokio::time::timeout(READY_TIMEOUT, self.get("/ready")).await {
            Err(_) => Err("no answer from its management port".into()),
            Ok(Err(error)) => Err(error.to_string()),
            Ok(Ok(answer)) if answer.starts_with("HTTP/1.1 200") => Ok(()),
            Ok(Ok(answer)) => Err(answer.rsplit("\r\n\r\n").next().unwrap_or_default().trim().to_owned()),
        }
    }

    /// A figure of the node without labels, from its metrics.
    pub(crate) async fn figure(&self, name: &str) -> Option<f64> {
        let answer = tokio::time::timeout(READY_TIMEOUT, self.get("/metrics")).await.ok()?.ok()?;
        answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
    }

    async fn get(&self, path: &str) -> io::Result<String> {
        let mut socket = TcpStream::connect(("127.0.0.1", self.ports.management)).await?;
        socket.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes()).await?;
        let mut answer = Vec::new();
        socket.take(ANSWER_BYTES).read_to_end(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// The error for an end during the start.
    pub(crate) fn failure(&self, status: String) -> ClusterError {
        let text = fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n");
        ClusterError::Ended { node: self.ports.node, status, log: self.log.clone(), tail }
    }

    /// SIGTERM, if it still runs.
    pub(crate) fn terminate(&mut self) {
        self.signal(Signal::TERM);
    }

    /// SIGSTOP: it stands still until `thaw`.
    pub(crate) fn freeze(&mut self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub(crate) fn thaw(&mut self) {
        self.signal(Signal::CONT);
    }

    fn signal(&mut self, signal: Signal) {
        if self.is_running() {
            let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
            let _ = pid.map(|pid| kill_process(pid, signal)); // gone in between: the wait sees it
        }
    }

    /// SIGKILL, if it still runs, and wait for its end.
    pub(crate) fn kill(&mut self) {
        if self.is_running() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

fn arguments(ports: &NodePorts, cluster: &str, data_dir: &Path, log: &Path, secret: Option<&Path>) -> Vec<String> {
    let mut arguments = vec![
        "server".to_owned(),
        format!("--node-id={}", ports.node),
        format!("--data-dir={}", data_dir.display()),
        "--host=127.0.0.1".to_owned(),
        format!("--amqp-port={}", ports.amqp),
        format!("--amqps-port={}", ports.amqps),
        format!("--stream-tls-port={}", ports.stream_tls),
        format!("--stream-port={}", ports.stream),
        format!("--rocketmq-port={}", ports.rocketmq),
        format!("--management-port={}", ports.management),
        format!("--peer-port={}", ports.peer),
        format!("--cluster={cluster}"),
        format!("--log-file={}", log.display()),
    ];
    arguments.extend(secret.map(|path| format!("--cluster-secret-file={}", path.display())));
    arguments
}
