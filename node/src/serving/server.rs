//! The actor of one shard: takes what waits in its mailbox and its paths, acts on it, proposes, delivers, and sleeps. All volatile
//! state of the shard is here and dies with the leadership. One task per shard; it never blocks and never waits for one client.

use super::aging::Ages;
use super::delivery::Unreadable;
use super::edges::{Path, PathId, Session};
use super::handle::{Inbox, Mailbox, ServerConfig, ServerEvent, ServerHandle};
use super::letters::Letters;
use super::proposing::Log;
use super::queue::QueueState;
use super::transactions::Undecided;
use crate::machine::Located;
use crate::machine::shard::{DataMachine, Effect};
use crate::model::link::ToLeader;
use crate::model::ports::{Bodies, Leadership, PATH_CAPACITY, Proposer};
use crate::model::{ConsumerId, LeaderId, QueueId, SessionId, limits};
use hashbrown::{HashMap, HashSet};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};

/// Messages taken from one path before the others are looked at.
const TURN_MESSAGES: usize = 256;
/// An edge that was welcomed and does not attach is given this many times longer than one that is away; queues wait for it.
const ATTACH_PATIENCE: u32 = 5;

/// What a server works with.
pub(super) struct ShardServer {
    pub config: ServerConfig,
    pub machine: Arc<Mutex<DataMachine>>,
    pub proposer: Arc<dyn Proposer>,
    pub bodies: Arc<dyn Bodies>,
    pub handle: ServerHandle,
    /// This node leads under this id.
    pub lead: Option<LeaderId>,
    /// This node is elected and not ready yet: hellos wait.
    pub expecting: bool,
    pub paths: Vec<Path>,
    pub next_path: u64,
    pub sessions: BTreeMap<SessionId, Session>,
    pub queues: HashMap<QueueId, Box<QueueState>>,
    pub consumers: HashMap<(SessionId, ConsumerId), QueueId>,
    pub log: Log,
    /// Queues that may have something to deliver.
    pub dirty: VecDeque<QueueId>,
    /// Queues with a window in memory.
    pub loaded: Vec<QueueId>,
    /// Queues whose read failed or found no slot; tried again at the next tick or when a read ends.
    pub stalled: Vec<QueueId>,
    pub reads: usize,
    /// Queues whose next messages no replica could read.
    pub unreadable: BTreeMap<QueueId, Unreadable>,
    /// Requests for queues that the shard does not know and the catalog may: they wait until the shard is at this catalog index.
    pub early: Vec<(u64, PathId, ToLeader)>,
    pub events: VecDeque<ServerEvent>,
    pub located: Vec<Located>,
    /// Queues to look at again, by time.
    pub alarms: BTreeSet<(Instant, QueueId)>,
    /// When segments of streams become too old.
    pub ages: Ages,
    /// Queues with limits.
    pub limited: HashSet<QueueId>,
    /// A queue that nothing was delivered from is free again: deliver before the next entry.
    pub thawed: bool,
    /// Dead letters.
    pub letters: Letters,
    /// Transactions over several shards.
    pub undecided: Undecided,
    /// Given to the consumer started last.
    pub last_order: u64,
    mailbox: Mailbox,
    events_tx: mpsc::Sender<ServerEvent>,
    timer: Option<Pin<Box<Sleep>>>,
    next_tick: Option<Instant>,
}

/// Starts the server of a shard; it ends with [`ServerHandle::stop`].
pub fn spawn(
    config: ServerConfig,
    mailbox: Mailbox,
    machine: Arc<Mutex<DataMachine>>,
    proposer: Arc<dyn Proposer>,
    bodies: Arc<dyn Bodies>,
    events: mpsc::Sender<ServerEvent>,
) -> tokio::task::JoinHandle<()> {
    let server = ShardServer {
        config,
        machine,
        proposer,
        bodies,
        handle: mailbox.handle(),
        lead: None,
        expecting: false,
        paths: Vec::new(),
        next_path: 0,
        sessions: BTreeMap::new(),
        queues: HashMap::new(),
        consumers: HashMap::new(),
        log: Log::default(),
        dirty: VecDeque::new(),
        loaded: Vec::new(),
        stalled: Vec::new(),
        reads: 0,
        unreadable: BTreeMap::new(),
        early: Vec::new(),
        events: VecDeque::new(),
        located: Vec::new(),
        alarms: BTreeSet::new(),
        ages: Ages::default(),
        limited: HashSet::new(),
        thawed: false,
        letters: Letters::default(),
        undecided: Undecided::default(),
        last_order: 0,
        mailbox,
        events_tx: events,
        timer: None,
        next_tick: None,
    };
    tokio::spawn(server.run())
}

/// What woke the server.
#[derive(Default)]
struct Woken {
    inbox: Inbox,
    tick: bool,
    any: bool,
}

impl ShardServer {
    async fn run(mut self) {
        let mut more = false;
        loop {
            if more {
                tokio::task::yield_now().await;
            }
            let woken = poll_fn(|cx| self.poll_inputs(cx, more)).await;
            if woken.inbox.stop {
                return;
            }
            more = self.turn(woken);
        }
    }

    fn turn(&mut self, woken: Woken) -> bool {
        self.take_inbox(woken.inbox);
        self.take_paths();
        if woken.tick {
            self.tick();
        }
        self.ring_alarms();
        self.look_at_ages();
        self.work_on_letters();
        if std::mem::take(&mut self.thawed) {
            self.pump();
        }
        self.propose();
        let more = self.pump();
        self.propose();
        self.flush_events();
        self.sweep_paths();
        self.set_timer();
        more
    }

    fn poll_inputs(&mut self, cx: &mut Context<'_>, more: bool) -> Poll<Woken> {
        let mut woken = Woken { any: more, ..Woken::default() };
        if let Poll::Ready(inbox) = self.mailbox.poll_take(cx) {
            woken.inbox = inbox;
            woken.any = true;
        }
        for path in &mut self.paths {
            if path.batches.len() >= 4 * limits::BATCHES_IN_FLIGHT {
                continue;
            }
            if let Poll::Ready(n) = path.end.up_rx.poll_recv_many(cx, &mut path.inbox, TURN_MESSAGES) {
                path.closed |= n == 0;
                woken.any = true;
            }
        }
        if self.timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready()) {
            self.timer = None;
            woken.any = true;
            woken.tick = self.next_tick.is_some_and(|at| at <= Instant::now());
        }
        if woken.any { Poll::Ready(woken) } else { Poll::Pending }
    }

    fn take_inbox(&mut self, inbox: Inbox) {
        for end in inbox.ends {
            self.add_path(end);
        }
        if let Some(leadership) = inbox.leadership {
            self.lead_changed(leadership);
        }
        self.log.catalog_moved |= inbox.catalog_moved;
        if self.lead.is_some() {
            self.take_effects(&inbox.effects);
        }
        for (token, outcome) in inbox.outcomes {
            self.outcome(token, outcome);
        }
        for done in inbox.reads {
            self.read_done(done);
        }
        if self.lead.is_some() {
            inbox.letters.into_iter().for_each(|read| self.letter_was_read(read));
            inbox.letters_answered.into_iter().for_each(|(letters, shard, fate)| self.letters_answered(letters, shard, fate));
            inbox.told.into_iter().for_each(|(tx, shard)| self.was_told(tx, shard));
        }
    }

    fn take_effects(&mut self, effects: &[Effect]) {
        let (mut sessions, mut advanced, mut opened) = (false, false, Vec::new());
        for effect in effects {
            match effect {
                Effect::Enqueued { queue } => self.news(*queue),
                Effect::Configured { queue } | Effect::Timed { queue } => {
                    self.take_care_of(*queue);
                    self.ages.look = true;
                }
                Effect::Appended { .. } => self.ages.look = true,
                Effect::Died => self.letters.news = true,
                Effect::Transaction { tx } => self.transaction(*tx),
                Effect::Dropped { queue } => self.queue_dropped(*queue),
                Effect::SessionOpened { .. } | Effect::SessionGone { .. } => sessions = true,
                Effect::Advanced { .. } => advanced = true,
                Effect::Created { queue } if queue.is_reply() => opened.push(*queue),
                Effect::Settled { .. } | Effect::Reserved { .. } | Effect::Created { .. } => {}
            }
        }
        if sessions {
            self.sync_sessions();
        }
        if advanced {
            self.retry_early();
        }
        opened.into_iter().for_each(|queue| self.drop_unused_reply(queue));
    }

    fn take_paths(&mut self) {
        self.paths.iter_mut().filter(|p| !p.backlog.is_empty()).for_each(Path::flush_backlog);
        for at in 0..self.paths.len() {
            let id = self.paths[at].id;
            for message in std::mem::take(&mut self.paths[at].inbox) {
                self.take_message(id, message);
            }
        }
    }

    fn take_message(&mut self, id: PathId, message: ToLeader) {
        let Some(path) = self.path_mut(id) else { return };
        let greeted = path.session.is_some();
        match message {
            ToLeader::Hello { node, incarnation } => self.hello(id, node, incarnation),
            ToLeader::Batch(batch) if greeted => self.batch(id, batch),
            ToLeader::Attach { leader, consumers, loose } if greeted => self.attach(id, leader, consumers, loose),
            request if greeted => self.request(id, request),
            _ => self.dismiss(id),
        }
    }

    fn lead_changed(&mut self, leadership: Leadership) {
        let lead = leadership.as_me();
        self.expecting = lead.is_none() && leadership.leader.is_some_and(|l| l.node() == self.config.node);
        let changed = lead != self.lead;
        if changed {
            tracing::info!(shard = %self.config.shard, leader = ?leadership.leader, is_me = leadership.is_me, "leadership");
            self.forget();
            self.lead = lead;
        }
        let stale: Vec<PathId> = self
            .paths
            .iter()
            .filter(|p| if p.session.is_some() { changed } else { lead.is_none() && !self.expecting && p.hello.is_some() })
            .map(|p| p.id)
            .collect();
        stale.into_iter().for_each(|id| self.dismiss(id));
        if changed && lead.is_some() {
            self.begin();
        }
    }

    /// All volatile state goes with the leadership.
    fn forget(&mut self) {
        self.sessions.clear();
        self.queues.clear();
        self.consumers.clear();
        self.dirty.clear();
        self.loaded.clear();
        self.stalled.clear();
        self.unreadable.clear();
        self.early.clear();
        self.events.clear();
        self.alarms.clear();
        self.ages = Ages::default();
        self.limited.clear();
        self.letters = Letters::default();
        self.undecided = Undecided::default();
        self.log.forget();
    }

    fn begin(&mut self) {
        let machine = self.machine.lock();
        self.log.begin(machine.catalog_index(), machine.last_time_ms());
        let away = |node, incarnation| Session {
            node,
            incarnation,
            path: PathId::NONE,
            resolved: false,
            used: false,
            ticks_away: 0,
            going: false,
        };
        self.sessions = machine.sessions().map(|(id, node, incarnation, _)| (id, away(node, incarnation))).collect();
        let special: Vec<QueueId> = machine.queues().filter(|(_, q)| q.settings().is_some() || q.is_timed()).map(|(id, _)| id).collect();
        drop(machine);
        special.into_iter().for_each(|queue| self.take_care_of(queue));
        self.take_up_transactions();
        self.begin_letters();
        self.take_up_ends();
        self.ages.look = true;
        self.greet_waiting();
    }

    /// A queue's volatile state, made when it is first needed; `None` when the shard has no such queue.
    pub(super) fn queue_state(&mut self, id: QueueId) -> Option<&mut QueueState> {
        if !self.queues.contains_key(&id) {
            let state = QueueState::new(id, self.machine.lock().queue(id)?);
            self.queues.insert(id, Box::new(state));
            self.release_hold(id);
        }
        self.queues.get_mut(&id).map(|state| &mut **state)
    }

    /// The queue may have something to deliver.
    pub(super) fn mark(&mut self, queue: QueueId) {
        if let Some(state) = self.queues.get_mut(&queue)
            && !std::mem::replace(&mut state.dirty, true)
        {
            self.dirty.push_back(queue);
        }
    }

    fn tick(&mut self) {
        self.next_tick = None;
        self.expire_sessions();
        let stalled = std::mem::take(&mut self.stalled);
        stalled.into_iter().for_each(|queue| self.mark(queue));
        self.unload_idle();
        self.retry_transactions();
        let paths: Vec<PathId> = self.paths.iter().filter(|p| p.full).map(|p| p.id).collect();
        paths.into_iter().for_each(|id| self.path_has_room(id));
    }

    /// Counts ticks, not time: a leader that was stopped itself must not think that everybody else was away.
    fn expire_sessions(&mut self) {
        if self.lead.is_none() || !self.proposer.lease_valid() {
            return;
        }
        let limit = self.config.edge_gone.as_nanos().div_ceil(self.config.tick.as_nanos().max(1)) as u32;
        for (id, session) in &mut self.sessions {
            if session.going || (session.path != PathId::NONE && session.resolved) {
                continue;
            }
            session.ticks_away += 1;
            let patience = if session.path == PathId::NONE { limit } else { limit.saturating_mul(ATTACH_PATIENCE) };
            if session.ticks_away > patience {
                session.going = true;
                self.log.gones.push(*id);
            }
        }
    }

    /// A path that was full: when half of it is free again, its consumers are served.
    pub(super) fn path_has_room(&mut self, id: PathId) {
        let Some(path) = self.path_mut(id) else { return };
        if !path.full || path.end.deliveries_tx.capacity() < PATH_CAPACITY / 2 {
            return;
        }
        path.full = false;
        let queues: Vec<QueueId> = self.queues.values().filter(|q| q.consumers.iter().any(|c| c.path == id)).map(|q| q.id).collect();
        queues.into_iter().for_each(|queue| self.mark(queue));
    }

    fn unload_idle(&mut self) {
        let queues = &mut self.queues;
        self.loaded.retain(|id| {
            let Some(state) = queues.get_mut(id) else { return false };
            let reading = state.levels.iter().any(|l| l.fresh.runs.iter().chain(&l.again.runs).any(|run| run.reading));
            if std::mem::take(&mut state.used) || reading {
                return true;
            }
            state.forget_window();
            state.loaded = false;
            false
        });
    }

    /// Tells the node; an event that finds no room is repeated at the next tick.
    fn flush_events(&mut self) {
        while let Some(event) = self.events.front() {
            match self.events_tx.try_send(*event) {
                Err(mpsc::error::TrySendError::Full(_)) => return,
                Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => self.events.pop_front(),
            };
        }
    }

    fn set_timer(&mut self) {
        let waits = self.lead.is_some()
            && (self.sessions.values().any(|s| !s.going && (s.path == PathId::NONE || !s.resolved))
                || self.paths.iter().any(|p| p.full || !p.backlog.is_empty())
                || !self.loaded.is_empty()
                || !self.stalled.is_empty()
                || !self.undecided.stalled.is_empty()
                || !self.events.is_empty());
        self.next_tick = if waits { self.next_tick.or_else(|| Some(Instant::now() + self.config.tick)) } else { None };
        let alarm = self.alarms.first().map(|(at, _)| *at);
        let at = [self.next_tick, self.log.resume_at, alarm, self.ages.at, self.letters.wake_at].into_iter().flatten().min();
        match (at, &mut self.timer) {
            (None, timer) => *timer = None,
            (Some(at), Some(timer)) if timer.deadline() == at => {}
            (Some(at), Some(timer)) => timer.as_mut().reset(at),
            (Some(at), timer) => *timer = Some(Box::pin(tokio::time::sleep_until(at))),
        }
    }
}
