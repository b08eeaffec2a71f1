//! An agent's task: it drives one connection to the edge, takes commands from requests and lets time pass. Requests hold a [`Desk`].

use crate::edge::Connection;
use crate::model::catalog::Refusal;
use crate::model::step::{Event, Step};
use crate::session::rocketmq::agent::{Agent, Command, Outcome, Output};
use crate::session::rocketmq::moment::Moment;
use rustix::time::{ClockId, clock_gettime};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot};

/// Commands that wait for an agent; beyond it requests wait.
const COMMANDS: usize = 1024;
/// Commands taken before the edge is looked at.
const TURN: usize = 256;
/// An agent that nobody needs for so long ends.
const IDLE: Duration = Duration::from_secs(300);
/// Longest sleep: timers stand still while the machine is suspended, what is held for clients does not.
const SLEEP_MAX: Duration = Duration::from_secs(5);

/// What time it is, ms since the epoch.
pub(super) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// The same, beside a clock that nobody sets and that goes on while the machine is suspended.
pub(super) fn now() -> Moment {
    let since_boot = clock_gettime(ClockId::Boottime);
    let steady_ms = since_boot.tv_sec.unsigned_abs() * 1000 + since_boot.tv_nsec.unsigned_abs() / 1_000_000;
    Moment { steady_ms, wall_ms: now_ms() }
}

enum Errand {
    Do { id: u64, command: Command, answer_tx: oneshot::Sender<Outcome> },
    Abandon { id: u64 },
}

/// Where an agent takes commands.
pub(super) struct Desk {
    vhost: Arc<str>,
    errands_tx: mpsc::Sender<Errand>,
    ids: AtomicU64,
}

/// Whoever waits for an outcome; going away without it says so.
struct Waiting<'d> {
    desk: &'d Desk,
    id: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        // Without room it goes on to its end, and what it fetched comes back when its time is over.
        let _ = self.desk.errands_tx.try_send(Errand::Abandon { id: self.id });
    }
}

impl Desk {
    /// A new agent at its desk; `ended` is called when it is gone.
    pub fn start(
        connection: Connection,
        vhost: Arc<str>,
        agent: (Agent, Option<Step>),
        ended: impl FnOnce() + Send + 'static,
    ) -> Arc<Desk> {
        let (errands_tx, errands_rx) = mpsc::channel(COMMANDS);
        let (agent, first) = agent;
        let worker = Worker { connection, agent, errands_rx, waiting: HashMap::new(), held_back: VecDeque::new(), events: Vec::new() };
        tokio::spawn(async move {
            worker.run(first).await;
            ended();
        });
        Arc::new(Desk { vhost, errands_tx, ids: AtomicU64::new(0) })
    }

    /// Where its agent works.
    pub fn vhost(&self) -> &str {
        &self.vhost
    }

    /// It takes no more commands.
    pub fn is_closed(&self) -> bool {
        self.errands_tx.is_closed()
    }

    /// Has it done. `None`: the agent is gone, and did nothing of it.
    pub async fn ask(&self, command: Command) -> Option<Outcome> {
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let (answer_tx, answer_rx) = oneshot::channel();
        self.errands_tx.send(Errand::Do { id, command, answer_tx }).await.ok()?;
        let waiting = Waiting { desk: self, id };
        let outcome = answer_rx.await;
        std::mem::forget(waiting);
        let gone = || Outcome::Refused(Refusal::Unavailable("this node stopped serving that user meanwhile".to_owned()));
        Some(outcome.unwrap_or_else(|_| gone()))
    }
}

struct Worker {
    connection: Connection,
    agent: Agent,
    errands_rx: mpsc::Receiver<Errand>,
    waiting: HashMap<u64, oneshot::Sender<Outcome>>,
    /// Publishes that the edge gave back, in order.
    held_back: VecDeque<Step>,
    events: Vec<Event>,
}

impl Worker {
    async fn run(mut self, first: Option<Step>) {
        let mut out = Output { steps: first.into_iter().collect(), done: Vec::new() };
        loop {
            self.carry_out(&mut out);
            if self.agent.is_ended() || !self.wait(&mut out).await {
                return;
            }
            for _ in 0..TURN {
                let Ok(errand) = self.errands_rx.try_recv() else { break };
                self.take(errand, &mut out);
            }
            self.agent.tick(now(), &mut out);
        }
    }

    /// False: it is time to go.
    async fn wait(&mut self, out: &mut Output) -> bool {
        let pause = match self.agent.due_ms() {
            Some(due_ms) => Duration::from_millis(due_ms.saturating_sub(now().steady_ms)).min(SLEEP_MAX),
            None if self.agent.is_idle() => IDLE,
            None => SLEEP_MAX,
        };
        tokio::select! {
            errand = self.errands_rx.recv() => match errand {
                Some(errand) => self.take(errand, out),
                None => return false,
            },
            () = self.connection.changed() => {}
            () = self.connection.writable(), if !self.held_back.is_empty() => {
                self.forget(out);
                let steps = std::mem::take(&mut self.held_back);
                steps.into_iter().for_each(|step| self.submit(step, out));
            }
            // Whoever came at this very moment is not sent away.
            () = tokio::time::sleep(pause) => return !(self.agent.is_idle() && pause == IDLE && self.errands_rx.is_empty()),
        }
        // What ends a call goes first: then nothing comes of it any more.
        self.carry_out(out);
        // The agent has all it is given in its hands at once.
        self.connection.take_events(&mut self.events, usize::MAX);
        for event in std::mem::take(&mut self.events) {
            self.agent.event(event, now(), out);
        }
        true
    }

    fn take(&mut self, errand: Errand, out: &mut Output) {
        match errand {
            Errand::Do { id, command, answer_tx } => {
                self.waiting.insert(id, answer_tx);
                self.agent.command(id, command, now(), out);
            }
            Errand::Abandon { id } => {
                self.waiting.remove(&id);
                self.agent.abandon(id, out);
                self.forget(out);
            }
        }
    }

    /// What waits to be published, and nobody waits for any more, is not published.
    fn forget(&mut self, out: &mut Output) {
        for step in std::mem::take(&mut self.held_back) {
            let answer_tx = self.agent.caller(&step).and_then(|id| self.waiting.get(&id));
            if answer_tx.is_some_and(|answer_tx| !answer_tx.is_closed()) {
                self.held_back.push_back(step);
            } else {
                self.agent.unsent(&step, Refusal::Unavailable("whoever asked for it is gone".to_owned()), out);
            }
        }
    }

    fn carry_out(&mut self, out: &mut Output) {
        std::mem::take(&mut out.steps).into_iter().for_each(|step| self.submit(step, out));
        for (id, outcome) in out.done.drain(..) {
            if let Some(answer_tx) = self.waiting.remove(&id) {
                // The request may be gone: what it was given comes back when its time is over.
                let _ = answer_tx.send(outcome);
            }
        }
    }

    /// Publishes keep their order; nothing else waits behind them. During an alarm none waits: its document would stay in memory.
    fn submit(&mut self, step: Step, out: &mut Output) {
        let is_publish = matches!(&step, Step::Publish(_)) || matches!(&step, Step::Commit(commit) if !commit.publishes.is_empty());
        if is_publish && !self.held_back.is_empty() {
            return self.held_back.push_back(step);
        }
        if let Err(step) = self.connection.submit(step) {
            if self.connection.is_blocked() {
                let why = "a node is low on memory or disk space; nothing was published";
                self.agent.unsent(&step, Refusal::Unavailable(why.to_owned()), out);
            } else {
                self.held_back.push_back(step);
            }
        }
    }
}
