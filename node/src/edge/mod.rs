//! The client's side on the node it is connected to. A protocol's listener gets a [`Connection`] from [`Edge::connect`], submits `Step`s
//! and takes `Event`s; the edge routes publishes by the local catalog, batches them into lanes (one per shard) towards the shards'
//! leaders, and turns requests into catalog commands or questions to leaders. What a leader does with them is in `serving`.

mod access;
mod admission;
mod arguments;
mod connection;
mod copies;
mod counters;
mod dead_letters;
mod gets;
mod headers;
mod lane;
mod mailbox;
mod names;
mod pool;
mod ports;
mod publish;
mod pulse;
mod ranges;
mod replies;
mod requests;
mod rocketmq;
mod streams;
mod taking;
#[cfg(test)]
mod tests;
mod transaction;

pub use self::access::Right;
pub use self::connection::Connection;
pub use self::counters::{Counter, Counters};
pub use self::dead_letters::Office;
pub use self::ports::{CatalogPort, LeaderFinder, Neighbours};
pub use self::rocketmq::{May, RocketDefaults};
pub use self::streams::{Addresses, Bells, ReadError, Reader, Replica, StreamReading, StreamSource};

use self::access::Patterns;
use self::lane::{Answer, Ask, Lane};
use self::mailbox::{Blocker, Identity, Mailbox};
use self::pulse::Pulse;
use self::streams::Reading;
use crate::machine::catalog::Catalog;
use crate::model::catalog::{CatalogCommand, CatalogReply, Owner, Refusal};
use crate::model::link::QueueStat;
use crate::model::ports::Paths;
use crate::model::report::{ConnectionStat, Report};
use crate::model::step::Event;
use crate::model::{ConnectionId, Incarnation, NodeId, QueueId, ShardId, limits};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

/// Counts for listings are given up after this time.
const STATS_TIMEOUT: Duration = Duration::from_secs(2);

/// What an edge is told at its start.
#[derive(Clone, Debug)]
pub struct EdgeConfig {
    /// This node.
    pub node: NodeId,
    /// This process.
    pub incarnation: Incarnation,
    /// Publishes without a verdict are nacked, requests fail after this time.
    pub no_quorum_timeout: Duration,
    /// How long clients may hold messages, where neither consumer nor queue says so.
    pub consumer_timeout: Duration,
    /// Bytes held for one shard before its publishers wait.
    pub lane_bytes: usize,
    /// Bytes in flight to one consumer.
    pub consumer_bytes: u64,
    /// A leader on another node that has not spoken under its lease for so long may not be the leader any more: what it gave is not handed
    /// to clients until it has (rules 19 and 20).
    pub silence: Duration,
    /// Users that may log in from this machine only.
    pub loopback_users: Vec<String>,
    /// Publishers of a stream end when another node leads it (decision 0023).
    pub tells_leaders: bool,
}

impl EdgeConfig {
    /// With the defaults of `limits` and a no-quorum timeout of 10 s.
    pub fn new(node: NodeId, incarnation: Incarnation) -> EdgeConfig {
        EdgeConfig {
            node,
            incarnation,
            no_quorum_timeout: Duration::from_secs(10),
            consumer_timeout: limits::CONSUMER_TIMEOUT,
            lane_bytes: limits::LANE_BYTES,
            consumer_bytes: limits::CONSUMER_BYTES,
            silence: limits::EDGE_SILENCE,
            loopback_users: vec!["guest".into()],
            tells_leaders: false,
        }
    }
}

/// What a listener knows of a new client.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionInfo {
    /// The client's address.
    pub peer: SocketAddr,
}

/// The edge of this node.
pub struct Edge {
    config: EdgeConfig,
    catalog: Arc<RwLock<Catalog>>,
    port: Arc<dyn CatalogPort>,
    leaders: Arc<dyn LeaderFinder>,
    paths: Arc<dyn Paths>,
    lanes: RwLock<HashMap<ShardId, Arc<Lane>>>,
    connections: Mutex<HashMap<ConnectionId, Arc<Mailbox>>>,
    /// Ids of connections, consumers and requests: unique in this process.
    last_id: AtomicU64,
    is_blocked: AtomicBool,
    blocked: Mutex<Option<String>>,
    unblocked: Notify,
    lease_lost: Mutex<Option<Instant>>,
    patterns: Patterns,
    neighbours: OnceLock<Arc<dyn Neighbours>>,
    reading: OnceLock<Reading>,
    addresses: OnceLock<Addresses>,
    /// The catalog has changed.
    catalog_moved: watch::Sender<()>,
    /// The catalog's access version when connections were last looked at.
    expelled_at: AtomicU64,
    pulse: Arc<Pulse>,
    counters: Counters,
    runtime: Handle,
    tasks: Mutex<Vec<AbortHandle>>,
    this: Weak<Edge>,
}

impl Edge {
    /// An edge without connections. To be called within a tokio runtime: lanes run there.
    pub fn new(
        config: EdgeConfig,
        catalog: Arc<RwLock<Catalog>>,
        port: Arc<dyn CatalogPort>,
        leaders: Arc<dyn LeaderFinder>,
        paths: Arc<dyn Paths>,
    ) -> Arc<Edge> {
        let pulse = Arc::new(Pulse::new());
        let beating = Handle::current().spawn(beat(Arc::downgrade(&pulse)));
        Arc::new_cyclic(|this| Edge {
            config,
            catalog,
            port,
            leaders,
            paths,
            lanes: RwLock::default(),
            connections: Mutex::default(),
            last_id: AtomicU64::new(0),
            is_blocked: AtomicBool::new(false),
            blocked: Mutex::default(),
            unblocked: Notify::new(),
            lease_lost: Mutex::default(),
            patterns: Patterns::default(),
            neighbours: OnceLock::new(),
            reading: OnceLock::new(),
            addresses: OnceLock::new(),
            catalog_moved: watch::channel(()).0,
            expelled_at: AtomicU64::new(0),
            pulse,
            counters: Counters::default(),
            runtime: Handle::current(),
            tasks: Mutex::new(vec![beating.abort_handle()]),
            this: this.clone(),
        })
    }

    /// From now on limits count what is on the other nodes, too. Once.
    pub fn set_neighbours(&self, neighbours: Arc<dyn Neighbours>) {
        let _ = self.neighbours.set(neighbours);
    }

    /// A client came.
    pub fn connect(self: &Arc<Self>, info: ConnectionInfo) -> Connection {
        let owner = Owner { node: self.config.node, incarnation: self.config.incarnation, connection: ConnectionId(self.next_id()) };
        let mailbox = Arc::new(Mailbox::new(owner, info.peer));
        self.connections.lock().insert(owner.connection, mailbox.clone());
        self.counters.connections_opened.add(1);
        Connection::new(self.clone(), mailbox)
    }

    /// A connection of the broker's own: in that vhost already (or refused, when there is none), allowed everything there and counted
    /// against nobody's limits. For what it does on behalf of many users, whose rights are checked by whoever asks.
    pub fn connect_own(self: &Arc<Self>, vhost: &str) -> Connection {
        let connection = self.connect(ConnectionInfo { peer: SocketAddr::from(([127, 0, 0, 1], 0)) });
        self.admit_own(&connection.mailbox, vhost);
        connection
    }

    /// Counts of queues as their leaders see them, in the order asked for. Queues that the catalog does not have are left out, and those of
    /// shards that do not answer within 2 s; one that its shard has not made yet has zeros.
    pub async fn stats(&self, queues: &[QueueId]) -> Vec<QueueStat> {
        let mut shards: BTreeMap<ShardId, Vec<QueueId>> = BTreeMap::new();
        let known: Vec<QueueId> = {
            let catalog = self.catalog.read();
            let records = queues.iter().filter_map(|id| catalog.queue_by_id(*id));
            records.map(|r| (shards.entry(r.shard).or_default().push(r.id), r.id).1).collect()
        };
        let asked = shards.into_iter().map(|(shard, queues)| async move {
            let ask = Ask { queues: queues.clone(), used: false };
            self.stat(shard, ask, 0, STATS_TIMEOUT).await.map(|stats| (queues, stats))
        });
        let mut found: HashMap<QueueId, QueueStat> = HashMap::new();
        for (queues, stats) in futures::future::join_all(asked).await.into_iter().flatten() {
            found.extend(queues.into_iter().map(|queue| (queue, QueueStat { queue, ..QueueStat::default() })));
            found.extend(stats.into_iter().map(|stat| (stat.queue, stat)));
        }
        known.iter().filter_map(|id| found.remove(id)).collect()
    }

    /// Everybody who is connected, by id.
    pub fn connections(&self) -> Vec<ConnectionStat> {
        let mut all: Vec<_> = self.connections.lock().values().map(|m| stat_of(m)).collect();
        all.sort_unstable_by_key(|c| c.id);
        all
    }

    /// The same with what their sessions say; without that where a session does not answer within 2 s.
    pub async fn reports(&self) -> Vec<(ConnectionStat, Option<Report>)> {
        let mailboxes: Vec<Arc<Mailbox>> = self.connections.lock().values().cloned().collect();
        let until = tokio::time::Instant::now() + STATS_TIMEOUT;
        let asked = mailboxes.iter().map(|m| tokio::time::timeout_at(until, m.ask_report()));
        let answers = futures::future::join_all(asked).await;
        let answered = answers.into_iter().map(|answer| answer.ok().and_then(Result::ok));
        let mut all: Vec<_> = mailboxes.iter().map(|m| stat_of(m)).zip(answered).collect();
        all.sort_unstable_by_key(|(stat, _)| stat.id);
        all
    }

    /// Ask the connections that `which` picks to close (320): shutdown, an operator's wish. How many.
    pub fn close_connections(&self, why: &str, which: impl Fn(&ConnectionStat) -> bool) -> u64 {
        let picked: Vec<_> = self.connections.lock().values().filter(|m| which(&stat_of(m))).cloned().collect();
        picked.iter().for_each(|m| m.push(Event::Close(why.to_string())));
        picked.len() as u64
    }

    /// All publishers wait for the given reason (a disk alarm), or no longer. Each is told when it publishes, as by RabbitMQ; who only consumes
    /// hears nothing. Consuming and acknowledging go on.
    pub fn set_blocked(&self, reason: Option<String>) {
        let mut blocked = self.blocked.lock();
        self.is_blocked.store(reason.is_some(), Ordering::Release);
        if reason.is_none() {
            self.connections.lock().values().for_each(|mailbox| mailbox.unblock(Blocker::Node));
        }
        let wake = reason.is_none();
        *blocked = reason;
        drop(blocked);
        if wake {
            self.unblocked.notify_waiters();
        }
    }

    /// Whether a client that publishes must wait now; then it is told why.
    fn holds_back(&self, mailbox: &Mailbox) -> bool {
        if !self.is_blocked.load(Ordering::Acquire) {
            return false;
        }
        let blocked = self.blocked.lock();
        if let Some(why) = &*blocked {
            mailbox.block(Blocker::Node, why);
        }
        blocked.is_some()
    }

    /// What this edge did since its start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What its lanes are doing and how often they opened a path, in words: for whoever wonders where an answer is.
    pub fn story(&self) -> Vec<String> {
        let lanes: Vec<Arc<Lane>> = self.lanes.read().values().cloned().collect();
        let ended = self.tasks.lock().iter().filter(|task| task.is_finished()).count();
        let (paths, batches) = (self.counters.paths_opened.get(), self.counters.batches.get());
        let sums = format!("{paths} paths opened, {batches} batches sent, {ended} tasks ended");
        std::iter::once(sums).chain(lanes.iter().map(|lane| lane.story())).collect()
    }

    fn next_id(&self) -> u64 {
        self.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn lane(&self, shard: ShardId) -> Arc<Lane> {
        if let Some(lane) = self.lanes.read().get(&shard) {
            return lane.clone();
        }
        let mut lanes = self.lanes.write();
        let lane = lanes.entry(shard).or_insert_with(|| {
            let lane = Arc::new(Lane::new(shard, self.config.clone(), self.pulse.clone()));
            let leaders = self.leaders.leadership(shard);
            let task = lane::run(lane.clone(), self.this.clone(), leaders, self.paths.clone());
            self.tasks.lock().push(self.runtime.spawn(task).abort_handle());
            lane
        });
        lane.clone()
    }

    /// Counts of those queues that the shard has.
    async fn stat(&self, shard: ShardId, ask: Ask, after: u64, timeout: Duration) -> Result<Vec<QueueStat>, Refusal> {
        let lane = self.lane(shard);
        if lane.is_gone() {
            return Err(Refusal::Unavailable(lane::no_quorum(shard)));
        }
        let answer = lane.stat(self.next_id(), ask, after, timeout);
        match answer.await {
            Ok(Ok(Answer::Stats(stats))) => Ok(stats),
            Ok(Err(refusal)) => Err(refusal),
            Ok(Ok(Answer::Purged(_) | Answer::Stream(_))) | Err(_) => Err(Refusal::Unavailable(lane::no_quorum(shard))),
        }
    }

    /// A catalog command, answered when all nodes see its effect.
    async fn submit(&self, command: CatalogCommand) -> Result<CatalogReply, Refusal> {
        let submitted = tokio::time::timeout(self.config.no_quorum_timeout, self.port.submit(command));
        match submitted.await {
            Ok(Ok((_, CatalogReply::Refused(refusal)))) => Err(refusal),
            Ok(Ok((_, reply))) => Ok(reply),
            Ok(Err(refusal)) => Err(refusal),
            Err(_) => {
                Err(Refusal::Unavailable("the catalog has no leader with a quorum; declare again when enough nodes are back".to_string()))
            }
        }
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.tasks.lock().iter().for_each(AbortHandle::abort);
    }
}

async fn beat(pulse: Weak<Pulse>) {
    while let Some(pulse) = pulse.upgrade() {
        pulse.beat();
        drop(pulse);
        tokio::time::sleep(pulse::BEAT).await;
    }
}

fn stat_of(mailbox: &Mailbox) -> ConnectionStat {
    let identity = mailbox.identity.get();
    ConnectionStat {
        id: mailbox.id(),
        peer: mailbox.peer,
        since: mailbox.since,
        user: identity.and_then(|i| i.user.as_ref()).map(|user| user.0.clone()),
        vhost: identity.map(|i| i.vhost.clone()),
        blocked: mailbox.is_blocked(),
    }
}
