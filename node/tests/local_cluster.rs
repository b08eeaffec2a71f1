//! `warren cluster`, `warren server` and `warren ctl` as real processes: starts, endings, refusals, and that nothing is left behind.
//! What the cluster does for clients is tested in the `tests` crate.
#![allow(clippy::unwrap_used)] // a failure of a step is a failed test

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use warren::bench::client::{Connection, Dial, Incoming, QueueOptions};

const WARREN: &str = env!("CARGO_BIN_EXE_warren");
/// What the product promises for a first start.
const START: Duration = Duration::from_secs(15);

/// A launcher on a directory and ports of its own; ended with the test.
struct Launcher {
    child: Child,
    lines_rx: mpsc::Receiver<String>,
    dir: PathBuf,
    offset: u16,
}

fn warren() -> Command {
    let mut command = Command::new(WARREN);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("WARREN_")) {
        command.env_remove(name);
    }
    command
}

/// An offset at which the ports of three nodes are free: of each 30, the `test`th 10, so that tests do not race for one. Below the
/// range from which the system gives ports to clients.
fn free_offset(test: u16) -> u16 {
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let first = 2_000 + (std::process::id() % 300) as u16 * 30 + 10 * test;
    (first..16_000)
        .step_by(30)
        .find(|offset| [5671, 15671, 7670].iter().all(|base| (1..=3).all(|node| is_free(base + node + offset))))
        .expect("some ports are free")
}

impl Launcher {
    fn start(dir: &Path, offset: u16) -> Launcher {
        let mut command = warren();
        command.args(["cluster", "--data-dir"]).arg(dir).args(["--port-offset", &offset.to_string()]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let (lines_tx, lines_rx) = mpsc::sync_channel(1000);
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| lines_tx.send(line)));
        Launcher { child, lines_rx, dir: dir.to_owned(), offset }
    }

    /// The lines up to one that contains `text`, that one too.
    fn says(&self, text: &str) -> Vec<String> {
        let deadline = Instant::now() + START;
        let mut lines = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines_rx.recv_timeout(left) else { panic!("{text:?} was not said, only {lines:#?}\n{}", self.logs()) };
            lines.push(line);
            if lines.last().is_some_and(|line| line.contains(text)) {
                return lines;
            }
        }
    }

    fn logs(&self) -> String {
        (1..=3).map(|node| fs::read_to_string(self.dir.join(format!("node-{node}.log"))).unwrap_or_default()).collect()
    }

    /// A client of a node, counted from 1.
    fn client(&self, node: u16) -> Connection {
        let address = format!("127.0.0.1:{}", 5671 + node + self.offset);
        Connection::open_with_channel(&Dial::guest(&address)).unwrap_or_else(|error| panic!("{address}: {error}\n{}", self.logs()))
    }

    fn signal(&self, signal: &str) {
        send(signal, self.child.id());
    }

    fn pids(&self) -> Vec<u32> {
        (1..=3).map(|node| fs::read_to_string(self.dir.join(format!("node-{node}/pid"))).unwrap().trim().parse().unwrap()).collect()
    }

    fn ctl(&self, arguments: &[&str]) -> Output {
        warren().arg("ctl").arg("--data-dir").arg(&self.dir).args(arguments).output().unwrap()
    }

    /// Exit code of the launcher and how long it took to end.
    fn end(&mut self) -> (Option<i32>, Duration) {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(20) {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status.code(), start.elapsed());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the launcher does not end");
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn send(signal: &str, pid: u32) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success(), "kill {signal} {pid}");
}

fn is_alive(pid: u32) -> bool {
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    state.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + START;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come true");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_cluster_starts_answers_refuses_a_second_launcher_and_stops() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Launcher::start(dir.path(), free_offset(0));
    let amqp = (5672 + cluster.offset).to_string();
    let said = cluster.says("Server startup complete");
    assert!(said.iter().any(|line| line.contains(&format!("amqp://127.0.0.1:{amqp}"))), "{said:#?}");
    assert_eq!(cluster.logs().matches("Server startup complete").count(), 3, "each node says it in its own log");
    let ports = fs::read_to_string(dir.path().join("node-1/ports")).unwrap();
    assert!(ports.contains(&format!("amqp={amqp}\n")), "{ports}");

    let listed = cluster.ctl(&["list_queues", "name", "messages"]);
    assert!(listed.status.success(), "{}", text(&listed.stderr));
    assert!(text(&listed.stdout).starts_with("Timeout: 60.0 seconds ...\nListing queues for vhost / ...\n"), "{}", text(&listed.stdout));
    assert_eq!(text(&cluster.ctl(&["-q", "list_queues"]).stdout), "", "nothing to list, nothing said");
    assert_eq!(cluster.ctl(&["list_queues", "colour"]).status.code(), Some(64));
    assert!(cluster.ctl(&["check_running"]).status.success());
    let node = format!("127.0.0.1:{}", 7671 + cluster.offset);
    let stranger = warren().env("WARREN_CLUSTER_SECRET", "something else").args(["ctl", "status", "--node", &node]).output().unwrap();
    assert_eq!(stranger.status.code(), Some(65), "{}", text(&stranger.stderr));

    let second = warren().args(["cluster", "--fresh", "--data-dir"]).arg(dir.path()).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).contains(&format!("in use by process {}", cluster.child.id())), "{}", text(&second.stderr));

    let pids = cluster.pids();
    cluster.signal("-TERM");
    let (code, took) = cluster.end();
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(6), "{took:?}");
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
}

#[test]
fn a_killed_node_is_reported_with_the_command_that_starts_it_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Launcher::start(dir.path(), free_offset(1));
    cluster.says("Server startup complete");
    send("-KILL", cluster.pids()[1]);
    let said = cluster.says(" server ");
    let (report, command) = (&said[said.len() - 2], said.last().unwrap().trim());
    assert!(report.contains("node 2 ended"), "{report}");
    let mut words = command.split(' ');
    let mut again = warren_at(words.next().unwrap()).args(words).stderr(Stdio::null()).spawn().unwrap();
    let peer = format!("127.0.0.1:{}", 7672 + cluster.offset);
    wait_until("the node answers again", || cluster.ctl(&["--node", &peer, "check_running"]).status.success());
    cluster.signal("-INT");
    assert_eq!(cluster.end().0, Some(0));
    assert!(again.try_wait().unwrap().is_none(), "a node started by hand stays");
    send("-TERM", again.id());
    assert_eq!(again.wait().unwrap().code(), Some(0), "SIGTERM is an ordered end");
}

fn warren_at(program: &str) -> Command {
    assert_eq!(fs::canonicalize(program).unwrap(), fs::canonicalize(WARREN).unwrap());
    warren()
}

#[test]
fn nodes_die_with_a_killed_launcher_and_the_data_is_taken_up_again() {
    let dir = tempfile::tempdir().unwrap();
    let offset = free_offset(2);
    let mut cluster = Launcher::start(dir.path(), offset);
    cluster.says("Server startup complete");
    let pids = cluster.pids();
    let secret = fs::read(dir.path().join("secret")).unwrap();
    let mut publisher = cluster.client(1);
    publisher.declare(1, "kept", &QueueOptions::durable()).unwrap();
    publisher.confirm_select(1).unwrap();
    publisher.publish(1, "kept", b"over a second start").unwrap();
    wait_until("the message is confirmed", || {
        matches!(publisher.event_within(Duration::from_secs(10)).unwrap(), Some(Incoming::Confirm { nack: false, .. }))
    });
    cluster.signal("-KILL");
    cluster.end();
    wait_until("all nodes are gone", || pids.iter().all(|pid| !is_alive(*pid)));

    let mut again = Launcher::start(dir.path(), offset);
    again.says("Server startup complete");
    assert_eq!(fs::read(dir.path().join("secret")).unwrap(), secret);
    let mut reader = again.client(2);
    let (message, _) = reader.get(1, "kept").unwrap().expect("what was confirmed is there");
    assert_eq!((message.body.as_slice(), message.redelivered), (b"over a second start".as_slice(), false));
    reader.ack(1, message.tag, false).unwrap();
    again.pids().iter().for_each(|pid| send("-KILL", *pid));
    again.says("node 3 ended");
    again.signal("-TERM");
    let (code, took) = again.end();
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(1), "all were dead already: {took:?}");
}

#[test]
fn a_server_says_what_is_missing() {
    let mut command = warren();
    command.args(["server", "--data-dir", "/proc/nowhere", "--cluster", "1@a:1,2@b:1"]);
    let refused = command.output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("WARREN_CLUSTER_SECRET"), "{}", text(&refused.stderr));
    assert_eq!(text(&refused.stdout), "", "errors go to standard error");
}
