//! Client libraries of other languages: the programs they need, and a scene in which each shows the same: confirm, return, prefetch,
//! requeue, and how it comes back when its node is killed. Programs talk with the scene as `tests/clients/stage.py` says.

use crate::client::{Field, QueueOptions};
use crate::{Broker, Cluster, eventually, unique};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// What every client must show.
pub const STEPS: [&str; 5] = ["confirm", "return", "prefetch", "requeue", "reconnect"];
/// A client that is not done by then is ended. On an idle machine the slowest, Celery, takes a third of this.
const PATIENCE: Duration = Duration::from_secs(120);
/// The node that leads the queue, the one that clients use and that is killed, and the one that they may go to.
const LEADER: usize = 0;
const FIRST: usize = 1;
const SECOND: usize = 2;
/// Queues are spread over three shards: that none of so many is in one of them does not happen.
const QUEUES_TRIED: usize = 200;
/// Lines of a program's output that wait to be read.
const OUTPUT_LINES: usize = 64;

/// `tests/`.
pub fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Run a program that must succeed, and show what it says.
pub fn run(command: &mut Command) {
    let done = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = [String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr)].concat();
    assert!(done.status.success(), "{command:?}: {}\n{text}", done.status);
    print!("{text}");
}

/// Whether a stamp says that these requirements are installed.
fn is_installed(stamp: &Path, wanted: &str) -> bool {
    std::fs::read_to_string(stamp).is_ok_and(|installed| installed == wanted)
}

/// Python with the packages of `requirements.txt`, in `tests/.venv`; made when it is not there or does not fit.
pub fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let (venv, requirements) = (here().join(".venv"), here().join("requirements.txt"));
        let (python, stamp) = (venv.join("bin/python"), venv.join("requirements.txt"));
        let wanted = std::fs::read_to_string(&requirements).expect("requirements.txt can be read");
        if !is_installed(&stamp, &wanted) || !python.exists() {
            run(Command::new("python3").args(["-m", "venv"]).arg(&venv));
            run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"]).arg(&requirements));
            std::fs::write(&stamp, wanted).expect("the virtual environment can be written to");
        }
        python
    })
}

/// A Python client of `tests/clients`.
pub fn python_client(name: &str) -> Command {
    let mut command = Command::new(python());
    command.arg(here().join("clients").join(name)).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// A Node client of `tests/clients`, by its folder, its packages installed beside it; or why there is none.
///
/// # Errors
/// No Node, or no npm.
pub fn node_client(folder: &str) -> Result<Command, String> {
    let folder = here().join("clients").join(folder);
    let (stamp, lock) = (folder.join("node_modules/installed.json"), folder.join("package-lock.json"));
    require(&["node", "npm"])?;
    let wanted = std::fs::read_to_string(&lock).expect("package-lock.json can be read");
    if !is_installed(&stamp, &wanted) {
        run(Command::new("npm").args(["ci", "--silent", "--no-audit", "--no-fund"]).current_dir(&folder));
        std::fs::write(&stamp, wanted).expect("node_modules can be written to");
    }
    let mut command = Command::new("node");
    command.arg(folder.join("client.js"));
    Ok(command)
}

/// The Go client of `tests/clients/go`, built against the library's sources where Debian and Ubuntu install them; or why there is none.
///
/// # Errors
/// No Go, or no library.
pub fn go_client(built_into: &Path) -> Result<Command, String> {
    const SOURCES: &str = "/usr/share/gocode";
    require(&["go"])?;
    if !Path::new(SOURCES).join("src/github.com/rabbitmq/amqp091-go").exists() {
        return Err("the package golang-github-rabbitmq-amqp091-go-dev is not installed".to_owned());
    }
    let program = built_into.join("client");
    let mut build = Command::new("go");
    build.args(["build", "-o"]).arg(&program).arg(here().join("clients/go/main.go"));
    run(build.env("GO111MODULE", "off").env("GOPATH", SOURCES));
    Ok(Command::new(program))
}

/// The Rust program of this folder of `tests/clients`, built beside this workspace: what it needs of its libraries is none of ours.
pub fn rust_client(folder: &str) -> Command {
    let (folder, built_into) = (here().join("clients").join(folder), here().join("../target/clients").join(folder));
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "--quiet", "--locked", "--manifest-path"]).arg(folder.join("Cargo.toml"));
    run(build.arg("--target-dir").arg(&built_into));
    Command::new(built_into.join("debug/client"))
}

fn require(programs: &[&str]) -> Result<(), String> {
    let is_there =
        |program: &str| std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|dir| dir.join(program).is_file());
    match programs.iter().find(|program| !is_there(program)) {
        Some(program) => Err(format!("there is no {program}")),
        None => Ok(()),
    }
}

/// Say that a client is left out and why; a failure where `WARREN_TEST_CLIENTS=all` asks for all of them.
pub fn leave_out(test: &str, why: &str) {
    println!("{test}: left out, {why}");
    assert!(std::env::var("WARREN_TEST_CLIENTS").as_deref() != Ok("all"), "{test}: {why}, but WARREN_TEST_CLIENTS=all");
}

/// What the scenes of a process share. The first node is never killed, so that the shard which it leads stays where it is.
#[derive(Debug)]
struct Stage {
    cluster: Cluster,
    shard: String,
}

impl Stage {
    fn build(test: &str) -> Option<Stage> {
        let cluster = Broker::to_harm(test)?;
        let mut led = Vec::new();
        let is_spread = eventually(PATIENCE, || {
            led = cluster.led_data_shards();
            led.iter().all(|shards| shards.len() == 1)
        });
        assert!(is_spread, "the leaders are not spread: {led:?}");
        Some(Stage { shard: led[LEADER][0].to_string(), cluster })
    }

    /// A durable queue in the shard that stays.
    fn declare(&self, arguments: &[(&str, Field)]) -> String {
        let mut options = QueueOptions::durable();
        options.arguments.extend(arguments.iter().map(|(key, value)| ((*key).into(), value.clone())));
        let mut connection = Broker::Given(self.cluster.uris()).connect(LEADER);
        for _ in 0..QUEUES_TRIED {
            let queue = unique("client");
            connection.declare(1, &queue, &options).unwrap_or_else(|error| panic!("declare {queue}: {error}"));
            if self.cluster.queue_shard(&queue).as_deref() == Some(&self.shard) {
                assert_eq!(self.cluster.queue_leader(&queue), Some(LEADER), "the shard has moved");
                return queue;
            }
        }
        panic!("of {QUEUES_TRIED} queues none is in shard {}", self.shard)
    }
}

/// A durable queue, and two nodes that do not lead it. The tests of a process share a cluster and take turns on it.
#[derive(Debug)]
pub struct Scene {
    queue: String,
    _turn: MutexGuard<'static, ()>,
    stage: Arc<Stage>,
}

impl Scene {
    /// Wait for the turn, then a fresh queue with these arguments; `None` when there is only a given broker, which nobody may harm.
    pub fn start(test: &str, arguments: &[(&str, Field)]) -> Option<Scene> {
        static SHARED: Mutex<Weak<Stage>> = Mutex::new(Weak::new());
        static TURN: Mutex<()> = Mutex::new(());
        let mut shared = SHARED.lock().unwrap_or_else(|poison| poison.into_inner());
        let stage = match shared.upgrade() {
            Some(stage) => stage,
            None => Arc::new(Stage::build(test)?),
        };
        *shared = Arc::downgrade(&stage);
        drop(shared);
        let turn = TURN.lock().unwrap_or_else(|poison| poison.into_inner());
        let cluster = &stage.cluster;
        (0..cluster.len()).filter(|at| cluster.pid(*at).is_none()).for_each(|at| cluster.spawn(at));
        (0..cluster.len()).for_each(|at| cluster.await_ready(at));
        let queue = stage.declare(arguments);
        println!("{test}: {queue} is led by node {}, its clients talk to the others", LEADER + 1);
        Some(Scene { queue, _turn: turn, stage })
    }

    /// Where the clients connect, and where else they may.
    pub fn nodes(&self) -> [String; 2] {
        [self.stage.cluster.amqp(FIRST), self.stage.cluster.amqp(SECOND)]
    }

    /// The queue.
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// kill -9 of the node that the clients use first, which then starts again; it is not waited for.
    pub fn kill_first(&self) {
        self.stage.cluster.kill(FIRST);
        self.stage.cluster.spawn(FIRST);
    }

    /// Let a program play, to its end, with these arguments after the usual ones. It must show these steps.
    pub fn play(&self, mut program: Command, more: &[&str], steps: &[&str]) {
        let began = Instant::now();
        program.args(self.nodes()).arg(&self.queue).args(more);
        let mut child = Player::start(program);
        let mut shown = Vec::new();
        while let Some(line) = child.line(PATIENCE.saturating_sub(began.elapsed())) {
            println!("  {line}");
            match line.strip_prefix("ok ") {
                Some(step) => shown.push(step.to_owned()),
                None if line == "kill" => {
                    self.kill_first();
                    child.say("killed");
                }
                None => (),
            }
        }
        child.end();
        let missing: Vec<_> = steps.iter().filter(|step| !shown.iter().any(|other| other == *step)).collect();
        assert!(missing.is_empty(), "the client ended well without showing {missing:?}");
        println!("played for {:.1} s", began.elapsed().as_secs_f64());
    }

    /// Nothing is left in the queue, nobody holds anything, and the node that died serves again.
    pub fn finish(self) {
        let cluster = &self.stage.cluster;
        cluster.await_ready(FIRST);
        let mut left = None;
        let is_empty = eventually(Duration::from_secs(10), || {
            let rows = cluster.ctl(SECOND, &["-q", "list_queues", "name", "messages"]).stdout;
            left = rows.lines().find_map(|row| row.strip_prefix(&self.queue)?.strip_prefix('\t').map(str::to_owned));
            left.as_deref() == Some("0")
        });
        assert!(is_empty, "left in the queue: {left:?}");
    }
}

/// A running program, its output read line by line.
pub(crate) struct Player {
    child: Child,
    input: ChildStdin,
    output_rx: mpsc::Receiver<String>,
}

impl Player {
    pub(crate) fn start(mut program: Command) -> Player {
        let piped = program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().unwrap_or_else(|error| panic!("{program:?}: {error}"));
        let (output_tx, output_rx) = mpsc::sync_channel(OUTPUT_LINES);
        forward(child.stdout.take().expect("it is a pipe"), "", output_tx.clone());
        forward(child.stderr.take().expect("it is a pipe"), "| ", output_tx);
        let input = child.stdin.take().expect("it is a pipe");
        Player { child, input, output_rx }
    }

    /// The next line; `None` at the end of its output.
    pub(crate) fn line(&mut self, patience: Duration) -> Option<String> {
        match self.output_rx.recv_timeout(patience) {
            Ok(line) => Some(line),
            Err(mpsc::RecvTimeoutError::Disconnected) => None,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("the client does not come to an end"),
        }
    }

    pub(crate) fn say(&mut self, line: &str) {
        writeln!(self.input, "{line}").expect("the client listens");
    }

    pub(crate) fn end(mut self) {
        let status = self.child.wait().expect("an own child can be waited for");
        assert!(status.success(), "the client failed: {status}");
    }
}

impl Drop for Player {
    /// A program that is not done is asked to end what it started, then ended.
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = Command::new("sh").args(["-c", &format!("kill -TERM {}", self.child.id())]).status();
            eventually(Duration::from_secs(15), || !matches!(self.child.try_wait(), Ok(None)));
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Hand on the lines of a program until it closes its output.
fn forward(from: impl Read + Send + 'static, mark: &'static str, to_tx: mpsc::SyncSender<String>) {
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if to_tx.send(format!("{mark}{line}")).is_err() {
                return;
            }
        }
    });
}
