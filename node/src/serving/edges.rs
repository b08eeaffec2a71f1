//! Edges: their paths (which come and go) and their sessions (replicated, rules 14 and 18). Hello, welcome, attach, and what
//! happens when an edge is gone. Called by `server` with what the paths bring.

use super::queue::{Consumer, SEEN_MARK};
use super::server::ShardServer;
use crate::model::link::{Attached, Batch, Consumer as Spec, Ranges, ToEdge, ToLeader};
use crate::model::ports::{LeaderEnd, PATH_CAPACITY};
use crate::model::{BatchSeq, Incarnation, LeaderId, NodeId, QueueId, SessionId};
use hashbrown::HashSet;
use std::collections::VecDeque;
use tokio::sync::mpsc::error::TrySendError;

/// Answers that may wait for room on a path, beyond the path's own capacity: a dropped queue ends all its consumers at once.
const BACKLOG: usize = 16 * PATH_CAPACITY;

/// What a session holds of a queue.
type Holdings = (QueueId, Ranges);

/// A path, unique per server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct PathId(pub u64);

impl PathId {
    /// No path: the edge is away.
    pub const NONE: PathId = PathId(0);
}

/// A path from an edge.
#[derive(Debug)]
pub(super) struct Path {
    pub id: PathId,
    pub end: LeaderEnd,
    pub hello: Option<(NodeId, Incarnation)>,
    pub session: Option<SessionId>,
    /// Received and not yet looked at.
    pub inbox: Vec<ToLeader>,
    /// Batches that wait for an entry.
    pub batches: VecDeque<Batch>,
    /// The next batch number that is not out of order.
    pub next: BatchSeq,
    /// The edge was told to resend from `next`.
    pub rewound: bool,
    /// Answers that found no room.
    pub backlog: VecDeque<ToEdge>,
    /// Deliveries that fit in this turn.
    pub room: usize,
    /// A delivery found no room.
    pub full: bool,
    pub closed: bool,
}

/// An edge's session as the machine has it, and what this leader knows of it.
#[derive(Debug)]
pub(super) struct Session {
    pub node: NodeId,
    pub incarnation: Incarnation,
    pub path: PathId,
    /// Attached under this leader, or born under it.
    pub resolved: bool,
    /// Has had consumers or messages under this leader.
    pub used: bool,
    /// Ticks without a path.
    pub ticks_away: u32,
    /// `Gone` is wanted or proposed.
    pub going: bool,
}

impl Path {
    /// Sends what there is room for. A path that reads nothing at all is broken and ends.
    pub fn flush_backlog(&mut self) {
        while let Some(message) = self.backlog.pop_front() {
            match self.end.down_tx.try_send(message) {
                Ok(()) => {}
                Err(TrySendError::Full(message)) => {
                    self.backlog.push_front(message);
                    self.closed |= self.backlog.len() > BACKLOG;
                    return;
                }
                Err(TrySendError::Closed(_)) => {
                    self.closed = true;
                    return;
                }
            }
        }
    }
}

impl ShardServer {
    pub(super) fn add_path(&mut self, end: LeaderEnd) {
        self.next_path += 1;
        self.paths.push(Path {
            id: PathId(self.next_path),
            end,
            hello: None,
            session: None,
            inbox: Vec::new(),
            batches: VecDeque::new(),
            next: BatchSeq(1),
            rewound: false,
            backlog: VecDeque::new(),
            room: 0,
            full: false,
            closed: false,
        });
    }

    pub(super) fn path_mut(&mut self, id: PathId) -> Option<&mut Path> {
        self.paths.iter_mut().find(|p| p.id == id && !p.closed)
    }

    /// Sends down, in order.
    pub(super) fn send(&mut self, id: PathId, message: ToEdge) {
        if let Some(path) = self.path_mut(id) {
            path.backlog.push_back(message);
            path.flush_backlog();
        }
    }

    pub(super) fn send_session(&mut self, session: SessionId, message: ToEdge) {
        if let Some(path) = self.sessions.get(&session).map(|s| s.path) {
            self.send(path, message);
        }
    }

    /// Ends a path after telling the edge that the leader is elsewhere.
    pub(super) fn dismiss(&mut self, id: PathId) {
        self.send(id, ToEdge::NotLeader);
        self.close(id);
    }

    pub(super) fn close(&mut self, id: PathId) {
        if let Some(path) = self.path_mut(id) {
            path.closed = true;
        }
    }

    /// Removes ended paths; their edges are away from now on.
    pub(super) fn sweep_paths(&mut self) {
        if self.paths.iter().all(|p| !p.closed) {
            return;
        }
        let (gone, open): (Vec<Path>, Vec<Path>) = std::mem::take(&mut self.paths).into_iter().partition(|p| p.closed);
        self.paths = open;
        for path in gone {
            let Some(session) = path.session.and_then(|id| self.sessions.get_mut(&id)) else { continue };
            if session.path == path.id {
                session.path = PathId::NONE;
                session.ticks_away = 0;
            }
        }
    }

    pub(super) fn hello(&mut self, id: PathId, node: NodeId, incarnation: Incarnation) {
        if let Some(path) = self.path_mut(id) {
            path.hello = Some((node, incarnation));
            path.session = None;
            path.batches.clear();
        }
        match self.lead {
            Some(_) => self.welcome_known(id, node, incarnation),
            None if self.expecting => {}
            None => self.dismiss(id),
        }
    }

    /// Under a new leadership: all who said hello and still wait.
    pub(super) fn greet_waiting(&mut self) {
        let waiting: Vec<_> =
            self.paths.iter().filter(|p| p.session.is_none() && !p.closed).filter_map(|p| Some((p.id, p.hello?))).collect();
        waiting.into_iter().for_each(|(id, (node, incarnation))| self.welcome_known(id, node, incarnation));
    }

    /// A process without a session is welcomed once its hello, which the next entry takes up, is applied.
    fn welcome_known(&mut self, id: PathId, node: NodeId, incarnation: Incarnation) {
        let known = self.sessions.iter().find(|(_, s)| (s.node, s.incarnation) == (node, incarnation)).map(|(id, _)| *id);
        if let Some(session) = known {
            self.welcome(id, session);
        }
    }

    /// A process that waits for a session: the newest of its node, and only while its path is open, for a hello fences the node's
    /// other processes.
    pub(super) fn waiting_hello(&self) -> Option<(NodeId, Incarnation)> {
        let open = || self.paths.iter().filter(|p| !p.closed);
        let newest = |node| open().rev().find_map(|p| p.hello.filter(|h| h.0 == node));
        open().filter(|p| p.session.is_none()).find_map(|p| p.hello.filter(|h| newest(h.0) == Some(*h) && !self.log.greeting.contains(h)))
    }

    fn welcome(&mut self, id: PathId, session_id: SessionId) {
        let Some(leader) = self.lead else { return };
        let Some(last) = self.machine.lock().last_batch(session_id) else { return };
        let Some(session) = self.sessions.get_mut(&session_id) else { return };
        let old = std::mem::replace(&mut session.path, id);
        session.ticks_away = 0;
        if session.going {
            let before = self.log.gones.len();
            self.log.gones.retain(|gone| *gone != session_id);
            session.going = before == self.log.gones.len();
        }
        if let Some(path) = self.path_mut(id) {
            path.session = Some(session_id);
            path.rewound = false;
            path.next = BatchSeq(last.0 + 1);
        }
        self.log.void(session_id, BatchSeq(0));
        if old != id {
            self.close(old);
        }
        self.send(id, ToEdge::Welcome { leader, session: session_id, last });
    }

    /// Compares with the machine: new sessions are welcomed, lost ones give back what they held.
    pub(super) fn sync_sessions(&mut self) {
        let rows: Vec<_> = self.machine.lock().sessions().collect();
        let lost: Vec<SessionId> = self.sessions.keys().copied().filter(|id| rows.iter().all(|row| row.0 != *id)).collect();
        for (id, node, incarnation, _) in rows {
            let fresh = Session { node, incarnation, path: PathId::NONE, resolved: true, used: false, ticks_away: 0, going: false };
            if self.sessions.contains_key(&id) {
                continue;
            }
            self.sessions.insert(id, fresh);
            let path = self.paths.iter().rev().find(|p| p.hello == Some((node, incarnation)) && p.session.is_none() && !p.closed);
            if let Some(path) = path.map(|p| p.id) {
                self.welcome(path, id);
            }
        }
        if !lost.is_empty() {
            lost.into_iter().for_each(|id| self.session_gone(id));
            self.release_holds();
        }
    }

    fn session_gone(&mut self, id: SessionId) {
        let Some(session) = self.sessions.remove(&id) else { return };
        tracing::info!(shard = %self.config.shard, session = %id, node = %session.node, "edge session ended");
        self.close(session.path);
        let queues: Vec<QueueId> = if session.used { self.queues.keys().copied().collect() } else { Vec::new() };
        let consumed = if session.used { self.forget_users(id) } else { HashSet::new() };
        for queue in queues {
            if self.queues.get_mut(&queue).is_some_and(|state| state.give_back_all(id, true)) || consumed.contains(&queue) {
                self.mark(queue);
            }
        }
    }

    /// Whoever consumes, waits or asks on a session's behalf is forgotten. Queues that may have lost their last consumer with it are
    /// looked at when the holds are released; which had consumers.
    fn forget_users(&mut self, session: SessionId) -> HashSet<QueueId> {
        self.consumers.retain(|(owner, _), _| *owner != session);
        let machine = self.machine.lock();
        let mut consumed = HashSet::new();
        for state in self.queues.values_mut() {
            let before = state.consumers.len();
            state.consumers.retain(|c| c.session != session);
            if state.consumers.len() < before {
                consumed.insert(state.id);
                state.last_gone = true;
            }
            if state.parked.iter().any(|one| one.session == session && one.consumes()) {
                state.last_gone |= machine.queue(state.id).is_some_and(|q| q.had_consumer());
            }
            state.parked.retain(|one| one.session != session);
            state.gets.retain(|g| g.session != session);
            state.takes.retain(|t| t.session != session);
        }
        consumed
    }

    /// Queues whose holders are all heard of flow again (rule 18); requests that waited for it run.
    pub(super) fn release_holds(&mut self) {
        let held: Vec<QueueId> = self.queues.values().filter(|q| q.held || q.last_gone || !q.parked.is_empty()).map(|q| q.id).collect();
        held.into_iter().for_each(|queue| self.release_hold(queue));
    }

    pub(super) fn release_hold(&mut self, queue: QueueId) {
        let Some(state) = self.queues.get_mut(&queue) else { return };
        if state.held {
            let unheard = |s: &SessionId| self.sessions.get(s).is_some_and(|s| !s.resolved);
            if state.holders.iter().any(unheard) {
                return;
            }
            let lost = state.holders.iter().any(|s| *s == SEEN_MARK || !self.sessions.contains_key(s));
            state.release(lost);
            self.mark(queue);
        }
        self.retry_parked(queue);
        if self.queues.get(&queue).is_some_and(|q| q.last_gone) {
            self.check_last_consumer(queue);
        }
    }

    /// An edge tells of its consumers, those that run and those that it asks for still, and of what else it holds.
    pub(super) fn attach(
        &mut self,
        id: PathId,
        leader: LeaderId,
        (consumers, asked): (Vec<Attached>, Vec<Spec>),
        loose: Vec<(QueueId, Ranges)>,
    ) {
        if self.lead != Some(leader) {
            return self.dismiss(id);
        }
        let Some(session_id) = self.path_mut(id).and_then(|p| p.session) else { return self.close(id) };
        let Some(session) = self.sessions.get_mut(&session_id) else { return self.close(id) };
        session.used = true;
        session.resolved = true;
        let before = self.detach(session_id);
        for attached in consumers {
            self.attach_consumer(id, session_id, attached);
        }
        for (queue, ranges) in loose {
            self.attach_held(session_id, queue, &ranges);
        }
        self.give_back_unattached(session_id, before);
        // Before anybody counts who is left.
        asked.into_iter().for_each(|spec| self.request(id, ToLeader::Consume(spec)));
        self.release_holds();
    }

    /// Takes a session's consumers and messages off the tables; returns what it held.
    fn detach(&mut self, session: SessionId) -> Vec<Holdings> {
        self.forget_users(session);
        let mut before = Vec::new();
        for state in self.queues.values_mut() {
            let held = state.take_held(session);
            if !held.is_empty() {
                before.push((state.id, held));
            }
        }
        before
    }

    fn attach_consumer(&mut self, path: PathId, session: SessionId, attached: Attached) {
        let Attached { consumer: spec, unacked, unwritten_bytes } = attached;
        let queue = spec.queue;
        if !self.attach_held(session, queue, &unacked) {
            return self.send(path, ToEdge::Cancelled { consumer: spec.id, asked: false });
        }
        if self.is_replaced(session, &spec) {
            if let Some(state) = self.queues.get_mut(&queue) {
                unacked.iter().filter(|(first, last)| first <= last).for_each(|(a, b)| state.give_back(session, *a, *b, true));
            }
            return self.send(path, ToEdge::Cancelled { consumer: spec.id, asked: false });
        }
        let count = unacked.iter().map(|(first, last)| (last.0 + 1).saturating_sub(first.0)).sum();
        self.consumers.insert((session, spec.id), queue);
        if let Some(state) = self.queues.get_mut(&queue) {
            state.has_still((session, spec.id), &unacked);
            state.add_consumer(Consumer::new(spec, session, path, count, unwritten_bytes));
        }
        self.mark(queue);
    }

    /// While its edge counted as gone others began to consume, and it or one of them is to be alone.
    fn is_replaced(&self, session: SessionId, spec: &Spec) -> bool {
        let excludes = |c: &Consumer| c.session != session && (spec.exclusive || c.spec.exclusive);
        self.queues.get(&spec.queue).is_some_and(|state| state.consumers.iter().any(excludes))
    }

    /// False when there is no such queue. What came to the edge as redelivered it gives back as seen, so nothing is marked here.
    fn attach_held(&mut self, session: SessionId, queue: QueueId, ranges: &Ranges) -> bool {
        let Some(state) = self.queue_state(queue) else { return false };
        for (first, last) in ranges.iter().filter(|(first, last)| first <= last) {
            state.check_out_held(session, *first, *last);
        }
        self.mark(queue);
        true
    }

    /// What the edge dropped unwritten with its old path was not seen by a client.
    fn give_back_unattached(&mut self, session: SessionId, before: Vec<Holdings>) {
        for (queue, ranges) in before {
            let Some(state) = self.queues.get_mut(&queue) else { continue };
            for (first, last) in ranges {
                for (a, b) in state.checked.gaps(first, last) {
                    state.put_back(a, b, false);
                }
            }
            tracing::debug!(queue = %queue, session = %session, "edge came back on another path");
            self.mark(queue);
        }
    }
}
