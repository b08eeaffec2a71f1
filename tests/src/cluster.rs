//! A cluster of real `warren server` processes in a temporary directory: started, killed, frozen, restarted and wiped by the tests.
//! Only one lives at a time in a test process. Dropping it kills its own processes, by pid, and shows their logs when the test failed.

use crate::management::{self, Metrics};
use crate::ports::{self, Ports};
use crate::small_disk::SmallDisk;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A cluster serves within this time, and a restarted node too, on a busy machine as well. What is promised of a first start is shorter;
/// `formation` holds it.
pub const READY_WITHIN: Duration = Duration::from_secs(60);
/// How much of a log is shown when a test failed.
const LOG_TAIL: u64 = 6_000;
const SECRET: &str = "a secret of the tests, long enough for everyone";

/// The right to run a cluster: one at a time in a process.
#[derive(Debug)]
struct Turn;

static TAKEN: Mutex<bool> = Mutex::new(false);
static GIVEN_BACK: Condvar = Condvar::new();

impl Turn {
    fn take() -> Turn {
        let mut taken = TAKEN.lock().unwrap_or_else(|poison| poison.into_inner());
        while *taken {
            taken = GIVEN_BACK.wait(taken).unwrap_or_else(|poison| poison.into_inner());
        }
        *taken = true;
        Turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *TAKEN.lock().unwrap_or_else(|poison| poison.into_inner()) = false;
        GIVEN_BACK.notify_one();
    }
}

/// How to start a cluster.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// Nodes.
    pub nodes: usize,
    /// More arguments for each `warren server`; `{node}` in them is its id.
    pub arguments: Vec<String>,
    /// Variables for `warren ctl`.
    pub ctl_environment: Vec<(String, String)>,
    /// Each data directory is a file system of its own with so many bytes.
    pub disk_bytes: Option<u64>,
}

impl Default for ClusterOptions {
    fn default() -> ClusterOptions {
        ClusterOptions { nodes: 3, arguments: Vec::new(), ctl_environment: Vec::new(), disk_bytes: None }
    }
}

/// What an operator's tool said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Exit code.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// A running cluster. Nodes are counted from 0 here; node `at` has the id `at + 1`.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    ctl_environment: Vec<(String, String)>,
    /// At its end no log may tell of a panic.
    calm: bool,
    /// Unmounted before the directory goes.
    disks: Vec<SmallDisk>,
    dir: Option<TempDir>,
    _turn: Turn,
}

#[derive(Debug)]
struct Node {
    ports: Ports,
    data_dir: PathBuf,
    log: PathBuf,
    arguments: Vec<String>,
    process: Mutex<Option<Child>>,
}

impl Cluster {
    /// Three nodes that serve.
    pub fn start() -> Cluster {
        Cluster::start_with(&ClusterOptions::default())
    }

    /// Three nodes that serve and that nobody harms: whatever clients do to them, none may have panicked when the cluster ends.
    pub fn start_calm() -> Cluster {
        let mut cluster = Cluster::start();
        cluster.calm = true;
        cluster
    }

    /// Nodes that serve.
    pub fn start_with(options: &ClusterOptions) -> Cluster {
        Cluster::try_start(options).unwrap_or_else(|why| panic!("{why}"))
    }

    /// Nodes that serve, or why there can be no disks for them.
    ///
    /// # Errors
    /// As `prepare`.
    pub fn try_start(options: &ClusterOptions) -> Result<Cluster, String> {
        let cluster = Cluster::prepare(options)?;
        let began = Instant::now();
        cluster.start_all();
        println!("{} nodes serve after {:.1} s", options.nodes, began.elapsed().as_secs_f64());
        Ok(cluster)
    }

    /// Empty data directories, nothing started.
    ///
    /// # Errors
    /// Only about `ClusterOptions::disk_bytes`; all else panics.
    pub fn prepare(options: &ClusterOptions) -> Result<Cluster, String> {
        let turn = Turn::take();
        let dir = tempfile::Builder::new().prefix("warren-test-").tempdir().expect("a temporary directory");
        let ports = ports::take(options.nodes);
        let list: Vec<String> = ports.iter().enumerate().map(|(at, p)| format!("{}@127.0.0.1:{}", at + 1, p.peer)).collect();
        let nodes = ports.iter().enumerate().map(|(at, ports)| Node::new(at, *ports, dir.path(), &list.join(","), &options.arguments));
        let nodes: Vec<Node> = nodes.collect();
        let disks = nodes.iter().filter_map(|node| Some(SmallDisk::mount(&node.data_dir, options.disk_bytes?)));
        let disks = disks.collect::<Result<_, _>>()?;
        Ok(Cluster { nodes, ctl_environment: options.ctl_environment.clone(), calm: false, disks, dir: Some(dir), _turn: turn })
    }

    /// Start all nodes, none of which runs, and wait until they serve.
    pub fn start_all(&self) {
        (0..self.len()).for_each(|at| self.spawn(at));
        (0..self.len()).for_each(|at| self.await_ready(at));
    }

    /// The disk of a node of a cluster with `disk_bytes`.
    pub fn disk(&self, at: usize) -> &SmallDisk {
        &self.disks[at]
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Never: a cluster has nodes.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// AMQP address of a node.
    pub fn amqp(&self, at: usize) -> String {
        format!("127.0.0.1:{}", self.nodes[at].ports.amqp)
    }

    /// AMQP addresses of all.
    pub fn uris(&self) -> Vec<String> {
        (0..self.len()).map(|at| self.amqp(at)).collect()
    }

    /// Ports of a node.
    pub fn ports(&self, at: usize) -> Ports {
        self.nodes[at].ports
    }

    /// Where a node keeps its data.
    pub fn data_dir(&self, at: usize) -> &Path {
        &self.nodes[at].data_dir
    }

    /// Start the process of a node that does not run; does not wait.
    pub fn spawn(&self, at: usize) {
        let node = &self.nodes[at];
        let mut process = node.lock();
        assert!(process.is_none(), "node {at} runs already");
        *process = Some(spawn(node.command()));
    }

    /// One more node, that joins those there are; not started yet. Its place.
    pub fn add_node(&mut self, more: &[String]) -> usize {
        let (at, ports) = (self.len(), ports::take(1)[0]);
        let peers = self.nodes.iter().map(|node| node.ports.peer).chain([ports.peer]);
        let list: Vec<String> = peers.enumerate().map(|(at, peer)| format!("{}@127.0.0.1:{peer}", at + 1)).collect();
        let dir = self.dir.as_ref().expect("until the end").path();
        let more = [&["--join".to_owned()], more].concat();
        self.nodes.push(Node::new(at, ports, dir, &list.join(","), &more));
        at
    }

    /// Start and wait until it serves.
    pub fn restart(&self, at: usize) {
        self.spawn(at);
        self.await_ready(at);
    }

    /// Wait until it serves.
    pub fn await_ready(&self, at: usize) {
        let ready = crate::eventually(READY_WITHIN, || management::is_ready(self.nodes[at].ports.management) || self.has_ended(at));
        assert!(ready, "node {at} does not serve after {} s", READY_WITHIN.as_secs());
        assert!(!self.has_ended(at), "node {at} ended instead of serving: {}", self.log_tail(at));
    }

    /// Whether it says that it serves.
    pub fn is_ready(&self, at: usize) -> bool {
        management::is_ready(self.nodes[at].ports.management)
    }

    /// kill -9, and wait until the process is gone.
    pub fn kill(&self, at: usize) {
        if let Some(mut child) = self.nodes[at].lock().take() {
            child.kill().expect("an own child can be killed");
            child.wait().expect("an own child can be waited for");
        }
    }

    /// kill -9 of all, as close together as possible.
    pub fn kill_all(&self) {
        let mut children: Vec<Child> = self.nodes.iter().filter_map(|node| node.lock().take()).collect();
        children.iter_mut().for_each(|child| child.kill().expect("an own child can be killed"));
        children.iter_mut().for_each(|child| drop(child.wait()));
    }

    /// Freeze it (SIGSTOP).
    pub fn freeze(&self, at: usize) {
        self.signal(at, "STOP");
    }

    /// Let it go on (SIGCONT).
    pub fn thaw(&self, at: usize) {
        self.signal(at, "CONT");
    }

    /// SIGTERM.
    pub fn tell_to_stop(&self, at: usize) {
        self.signal(at, "TERM");
    }

    /// SIGHUP.
    pub fn hang_up(&self, at: usize) {
        self.signal(at, "HUP");
    }

    /// SIGTERM, and how it ended within `most`.
    pub fn stop(&self, at: usize, most: Duration) -> Option<ExitStatus> {
        self.tell_to_stop(at);
        let mut status = None;
        crate::eventually(most, || {
            status = self.nodes[at].lock().as_mut().and_then(|child| child.try_wait().ok().flatten());
            status.is_some()
        });
        if status.is_some() {
            self.nodes[at].lock().take();
        }
        status
    }

    fn signal(&self, at: usize, name: &str) {
        let Some(pid) = self.pid(at) else { return };
        let sent = Command::new("sh").args(["-c", &format!("kill -{name} {pid}")]).status();
        assert!(sent.is_ok_and(|status| status.success()), "signal {name} to node {at}");
    }

    /// Process id.
    pub fn pid(&self, at: usize) -> Option<u32> {
        self.nodes[at].lock().as_ref().map(Child::id)
    }

    /// Whether its process ended by itself.
    pub fn has_ended(&self, at: usize) -> bool {
        self.nodes[at].lock().as_mut().is_some_and(|child| child.try_wait().ok().flatten().is_some())
    }

    /// Forget a process that ended by itself, so that the node can be started again.
    pub fn bury(&self, at: usize) {
        self.kill(at);
    }

    /// Remove the data directory of a node that does not run.
    pub fn wipe(&self, at: usize) {
        assert!(self.nodes[at].lock().is_none(), "node {at} runs");
        fs::remove_dir_all(&self.nodes[at].data_dir).expect("the data directory can be removed");
    }

    /// Flip a bit of every copy of `bytes` in the log of a node that does not run; how many there were.
    pub fn rot(&self, at: usize, bytes: &[u8]) -> usize {
        assert!(self.nodes[at].lock().is_none(), "node {at} runs");
        let files = fs::read_dir(self.nodes[at].data_dir.join("wal")).expect("a log");
        let rot = |path: PathBuf| {
            let mut content = fs::read(&path).expect("a log file can be read");
            if !content.starts_with(b"WARRENWL") {
                return 0; // prepared, never used
            }
            let places: Vec<usize> =
                content.windows(bytes.len()).enumerate().filter(|(_, here)| *here == bytes).map(|(at, _)| at).collect();
            places.iter().for_each(|place| content[*place] ^= 0x40);
            if !places.is_empty() {
                fs::write(&path, content).expect("a log file can be written");
            }
            places.len()
        };
        files.map(|file| file.expect("a file").path()).filter(|path| path.extension().is_some_and(|e| e == "wal")).map(rot).sum()
    }

    /// Take the data directory of a node that does not run away, so that it starts as an empty one.
    pub fn set_aside(&self, at: usize) {
        assert!(self.nodes[at].lock().is_none(), "node {at} runs");
        fs::rename(&self.nodes[at].data_dir, self.nodes[at].aside()).expect("the data directory can be moved");
    }

    /// Give a node that does not run the directory that was set aside, in place of what it has made since.
    pub fn put_back(&self, at: usize) {
        self.wipe(at);
        fs::rename(self.nodes[at].aside(), &self.nodes[at].data_dir).expect("the data directory can be moved");
    }

    /// The identity of the cluster that a node belongs to, as `warren ctl status` tells.
    pub fn identity(&self, at: usize) -> Option<String> {
        self.pid(at)?;
        let status = self.ctl(at, &["status"]).stdout;
        status.lines().find_map(|line| line.strip_prefix("Cluster: ")).map(str::to_owned)
    }

    /// Its metrics; `None` when it does not answer.
    pub fn metrics(&self, at: usize) -> Option<Metrics> {
        Metrics::of(self.nodes[at].ports.management)
    }

    /// The node that says it leads the shard.
    pub fn leader_of(&self, shard: u64) -> Option<usize> {
        (0..self.len()).find(|at| self.metrics(*at).is_some_and(|metrics| metrics.led_shards().contains(&shard)))
    }

    /// The data shards that each node leads (shard 0 is the catalog).
    pub fn led_data_shards(&self) -> Vec<Vec<u64>> {
        let led = |at| self.metrics(at).map(|metrics| metrics.led_shards()).unwrap_or_default();
        (0..self.len()).map(|at| led(at).into_iter().filter(|shard| *shard != 0).collect()).collect()
    }

    /// The node that leads a queue, as `warren ctl list_queues name leader shard` on any node tells, and as its own metrics confirm: it
    /// leads the queue's own shard.
    pub fn queue_leader(&self, queue: &str) -> Option<usize> {
        let (told, shard) = (0..self.len()).find_map(|at| self.told_leader(at, queue))?;
        self.metrics(told)?.led_shards().contains(&shard).then_some(told)
    }

    fn told_leader(&self, at: usize, queue: &str) -> Option<(usize, u64)> {
        let row = self.told(at, queue, &["leader", "shard"])?;
        let (leader, shard) = row.split_once('\t')?;
        Some((leader.parse::<usize>().ok()?.checked_sub(1)?, shard.parse().ok()?))
    }

    /// The shard of a queue, as `warren ctl list_queues name shard` tells.
    pub fn queue_shard(&self, queue: &str) -> Option<String> {
        (0..self.len()).find_map(|at| self.told(at, queue, &["shard"]))
    }

    fn told(&self, at: usize, queue: &str, columns: &[&str]) -> Option<String> {
        self.pid(at)?;
        let rows = self.ctl(at, &[&["-q", "list_queues", "name"], columns].concat()).stdout;
        rows.lines().find_map(|row| row.strip_prefix(queue)?.strip_prefix('\t')).map(|value| value.trim().to_owned())
    }

    /// What `warren ctl` says when it asks this node.
    pub fn ctl(&self, at: usize, arguments: &[&str]) -> Told {
        let mut words = vec!["ctl"];
        words.extend_from_slice(arguments);
        self.tool(at, binary(), &words, "")
    }

    /// The same with other variables than this cluster's operators have.
    pub fn ctl_with(&self, at: usize, arguments: &[&str], environment: &[(String, String)]) -> Told {
        self.run_tool(at, binary(), &[&["ctl"], arguments].concat(), "", environment)
    }

    /// Variables of this cluster's operators.
    pub fn ctl_environment(&self) -> &[(String, String)] {
        &self.ctl_environment
    }

    /// The same of a binary by another name, with something to read on its standard input.
    pub fn tool(&self, at: usize, program: &Path, arguments: &[&str], input: &str) -> Told {
        self.run_tool(at, program, arguments, input, &self.ctl_environment)
    }

    fn run_tool(&self, at: usize, program: &Path, arguments: &[&str], input: &str, environment: &[(String, String)]) -> Told {
        let node = format!("127.0.0.1:{}", self.nodes[at].ports.peer);
        let own = [("WARREN_NODE".to_owned(), node), ("WARREN_CLUSTER_SECRET".to_owned(), SECRET.to_owned())];
        run_tool(program, arguments, input, &[&own, environment].concat())
    }

    /// What `warren ctl` says that is not told the node but its data directory, on the same machine.
    pub fn ctl_in_dir(&self, at: usize, arguments: &[&str]) -> Told {
        let dir = self.nodes[at].data_dir.display().to_string();
        let words = [&["ctl", "--data-dir", &dir], arguments].concat();
        run_tool(binary(), &words, "", &[("WARREN_CLUSTER_SECRET".to_owned(), SECRET.to_owned())])
    }

    /// What `warren ctl` says that knows nothing but these variables.
    pub fn ctl_amid(&self, variables: &[(&str, &str)], arguments: &[&str]) -> Told {
        let variables: Vec<_> = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        run_tool(binary(), &[&["ctl"], arguments].concat(), "", &variables)
    }

    /// What all nodes know.
    pub fn secret() -> &'static str {
        SECRET
    }

    /// Resident memory, KiB.
    pub fn rss_kib(&self, at: usize) -> u64 {
        self.memory_kib(at, "VmRSS:")
    }

    /// The most resident memory that its process ever had, KiB.
    pub fn rss_peak_kib(&self, at: usize) -> u64 {
        self.memory_kib(at, "VmHWM:")
    }

    fn memory_kib(&self, at: usize, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid(at).unwrap_or(0))).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    }

    /// What a node has logged at this level (`ERROR`), all its processes.
    pub fn logged(&self, at: usize, level: &str) -> Vec<String> {
        let text = self.log_text(at);
        text.lines().filter(|line| line.split_whitespace().nth(1) == Some(level)).map(str::to_owned).collect()
    }

    /// Panics of all nodes, as their logs tell. One in a client's conversation ends nothing else: only the log knows of it.
    pub fn panics(&self) -> Vec<String> {
        let of = |at| panics_in(&self.log_text(at)).iter().map(|line| format!("node {}: {line}", at + 1)).collect::<Vec<_>>();
        (0..self.len()).flat_map(of).collect()
    }

    fn log_text(&self, at: usize) -> String {
        fs::read(&self.nodes[at].log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The end of a node's log.
    pub fn log_tail(&self, at: usize) -> String {
        let read = || {
            let mut file = File::open(&self.nodes[at].log)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
            let mut tail = Vec::new();
            file.read_to_end(&mut tail).map(|_| String::from_utf8_lossy(&tail).into_owned())
        };
        read().unwrap_or_else(|error: std::io::Error| error.to_string())
    }
}

/// What the panic hook logs, and what a panic before it is set prints.
fn panics_in(log: &str) -> Vec<&str> {
    log.lines().filter(|line| line.contains("panicked")).collect()
}

fn run_tool(program: &Path, arguments: &[&str], input: &str, environment: &[(String, String)]) -> Told {
    let mut command = Command::new(program);
    command.args(arguments).envs(environment.iter().map(|(name, value)| (name, value)));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("warren starts");
    let mut stdin = child.stdin.take().expect("its standard input is a pipe");
    // It may have ended without reading.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().expect("an own child can be waited for");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Told { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

impl Node {
    fn new(at: usize, ports: Ports, dir: &Path, cluster: &str, more: &[String]) -> Node {
        let data_dir = dir.join(format!("node-{}", at + 1));
        let mut arguments: Vec<String> = ["server", "--host", "127.0.0.1", "--cluster", cluster].map(str::to_owned).into();
        let flags = [
            ("--node-id", (at + 1).to_string()),
            ("--data-dir", data_dir.display().to_string()),
            ("--amqp-port", ports.amqp.to_string()),
            ("--amqps-port", ports.amqps.to_string()),
            ("--stream-port", ports.stream.to_string()),
            ("--rocketmq-port", ports.rocketmq.to_string()),
            ("--stream-tls-port", ports.stream_tls.to_string()),
            ("--management-port", ports.management.to_string()),
            ("--peer-port", ports.peer.to_string()),
            ("--die-with-parent", std::process::id().to_string()),
        ];
        arguments.extend(flags.into_iter().flat_map(|(name, value)| [name.to_owned(), value]));
        arguments.extend(more.iter().map(|argument| argument.replace("{node}", &(at + 1).to_string())));
        Node { ports, data_dir, log: dir.join(format!("node-{}.log", at + 1)), arguments, process: Mutex::new(None) }
    }

    fn aside(&self) -> PathBuf {
        self.data_dir.with_extension("aside")
    }

    fn command(&self) -> Command {
        let log = OpenOptions::new().create(true).append(true).open(&self.log).expect("the log can be written");
        let mut command = Command::new(binary());
        command.args(&self.arguments).env("WARREN_CLUSTER_SECRET", SECRET).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a file handle can be cloned")).stderr(log);
        command
    }

    fn lock(&self) -> MutexGuard<'_, Option<Child>> {
        self.process.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.kill_all();
        let (failed, panics) = (thread::panicking(), self.panics());
        if failed {
            panics.iter().for_each(|line| println!("---- a panic of {line}"));
            (0..self.len()).for_each(|at| println!("---- end of the log of node {}:\n{}", at + 1, self.log_tail(at)));
        }
        if std::env::var("WARREN_TEST_KEEP").is_ok()
            && let Some(dir) = self.dir.take()
        {
            println!("kept {}", dir.keep().display());
        }
        // A test that fails already may not panic once more.
        let panics = if self.calm { panics } else { Vec::new() };
        assert!(failed || panics.is_empty(), "nodes that nobody harmed have panicked: {panics:#?}");
    }
}

/// Start a process from a thread that lives as long as this process: a child tied to its parent is tied to the thread that made it.
fn spawn(command: Command) -> Child {
    type Order = (Command, mpsc::SyncSender<std::io::Result<Child>>);
    static SPAWNER: OnceLock<mpsc::SyncSender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (order_tx, order_rx) = mpsc::sync_channel::<Order>(1);
        thread::spawn(move || order_rx.into_iter().for_each(|(mut command, answer_tx)| drop(answer_tx.send(command.spawn()))));
        order_tx
    });
    let (answer_tx, answer_rx) = mpsc::sync_channel(1);
    spawner.send((command, answer_tx)).expect("the spawner never ends");
    answer_rx.recv().expect("the spawner answers").expect("warren starts")
}

/// The `warren` of this build: `WARREN_TEST_BINARY`, or built once in the profile of the tests.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| std::env::var_os("WARREN_TEST_BINARY").map_or_else(build, PathBuf::from))
}

fn build() -> PathBuf {
    let exe = std::env::current_exe().expect("a test knows its own path");
    let profile_dir = exe.parent().and_then(Path::parent).expect("a test lies in <target>/<profile>/deps");
    let target_dir = profile_dir.parent().expect("a profile's directory lies in the target directory");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--quiet", "-p", "warren-node", "--bin", "warren", "--target-dir"]).arg(target_dir);
    if profile_dir.ends_with("release") {
        command.arg("--release");
    }
    // What cargo tells a test of itself would make dependencies with build scripts that look at it, and all behind them, be built again.
    let told = |name: &OsString| ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|begin| name.to_string_lossy().starts_with(begin));
    std::env::vars_os().map(|(name, _)| name).filter(told).for_each(|name| _ = command.env_remove(name));
    let began = Instant::now();
    let built = command.current_dir(env!("CARGO_MANIFEST_DIR")).status().expect("cargo runs");
    assert!(built.success(), "building warren failed");
    if began.elapsed() > Duration::from_secs(1) {
        println!("building warren took {:.0} s of this test's time", began.elapsed().as_secs_f64());
    }
    profile_dir.join("warren")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_found_in_a_log_as_the_hook_and_as_the_system_tell_it() {
        let log = "2026-01-01T00:00:00Z ERROR warren::telemetry: panic panic=panicked at node/src/edge/mod.rs:1:2:\nindex out of bounds\n\
                   2026-01-01T00:00:00Z  INFO warren: serves\n\nthread 'edge' (7) panicked at node/src/edge/mod.rs:1:2:\n\
                   2026-01-01T00:00:00Z ERROR warren::listener::port: a connection's task panicked error=task 9 panicked\n";
        assert_eq!(panics_in(log).len(), 3);
        assert!(panics_in("2026-01-01T00:00:00Z ERROR warren::store: the log is damaged\n").is_empty());
    }
}
