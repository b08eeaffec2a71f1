//! The server driven in process through paths, over the local proposer: what an edge sends, what it gets.

#![allow(clippy::unwrap_used)]

mod aging;
mod chaos;
mod dead_letters;
mod delayed;
mod delivering;
mod handover;
mod publishing;
mod queues;
mod records;
mod replies;
mod sealing;
mod stale;
mod taking;
mod tending;
mod throughput;
mod transactions;

use super::handle::OwnClock;
use super::local::{LocalBodies, LocalProposer};
use super::*;
use crate::machine::shard::DataMachine;
use crate::model::catalog::{Name, Refusal};
use crate::model::entry::{EntryBytes, Ops, SettleReason, StoredMessage};
use crate::model::link::*;
use crate::model::ports::{Bodies, Clock, EdgeEnd, Leadership, ProposalOutcome, Proposer, Reading, path};
use crate::model::settings::{Overflow, QueueSettings};
use crate::model::*;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;

const Q: QueueId = QueueId(10);
const Q2: QueueId = QueueId(11);
const SOON: Duration = Duration::from_secs(30);
const QUIET: Duration = Duration::from_millis(60);

/// A catalog of the test's making: its index, its queues, those that were dropped; whether it has no change log; settings; its version,
/// unless that is the first.
#[derive(Default)]
struct TestCatalog(Mutex<(u64, Vec<QueueId>, Vec<QueueId>)>, AtomicBool, Mutex<Vec<(QueueId, QueueSettings)>>, AtomicU8);

impl CatalogFeed for TestCatalog {
    fn index(&self) -> u64 {
        self.0.lock().0
    }
    fn changes(&self, _shard: ShardId, from: u64, known: &dyn Fn() -> Option<Vec<QueueId>>) -> Option<CatalogChanges> {
        let (state, version) = (self.0.lock(), self.3.load(Ordering::Relaxed));
        if from >= state.0 {
            return Some(CatalogChanges { to: state.0, version, ..CatalogChanges::default() });
        }
        let settings = self.2.lock().clone();
        if !self.1.load(Ordering::Relaxed) {
            return Some(CatalogChanges {
                to: state.0,
                version,
                creates: state.1.clone(),
                drops: state.2.clone(),
                settings,
                replays: vec![],
            });
        }
        let known = known()?;
        let creates = state.1.iter().filter(|q| !known.contains(q)).copied().collect();
        let drops = known.into_iter().filter(|q| !state.1.contains(q)).collect();
        Some(CatalogChanges { to: state.0, version, creates, drops, settings, replays: vec![] })
    }
    fn facts(&self, queue: QueueId) -> Option<QueueFacts> {
        let state = self.0.lock();
        let name = Name { vhost: "/".into(), name: format!("q{queue}").into() };
        state.1.contains(&queue).then_some(QueueFacts { name, auto_delete: queue == Q2 })
    }
}

/// Lets the test fail or hold proposals.
struct Gate {
    inner: LocalProposer,
    server: ServerHandle,
    fail: AtomicUsize,
    held: Mutex<Option<VecDeque<(u64, LeaderId, EntryBytes)>>>,
    lease: AtomicBool,
}

impl Proposer for Gate {
    fn propose(&self, token: u64, leader: LeaderId, entry: EntryBytes) {
        if let Some(held) = &mut *self.held.lock() {
            return held.push_back((token, leader, entry));
        }
        if self.fail.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
            return self.server.outcome(token, ProposalOutcome::Failed("test".into()));
        }
        self.inner.propose(token, leader, entry);
    }
    fn lease_valid(&self) -> bool {
        self.lease.load(Ordering::Relaxed)
    }
}

/// Bodies that are never in memory; the entries in `bad` cannot be read.
struct Cold {
    bodies: Arc<LocalBodies>,
    bad: Arc<Mutex<Vec<u64>>>,
    slow: Arc<Slow>,
}

/// An entry whose read takes until it is let go, and how many others were read.
#[derive(Default)]
struct Slow {
    index: AtomicU64,
    go: tokio::sync::Notify,
    reads: AtomicUsize,
}

impl Bodies for Cold {
    fn cached(&self, _index: u64) -> Option<EntryBytes> {
        None
    }
    fn read(&self, index: u64) -> futures::future::BoxFuture<'static, std::io::Result<EntryBytes>> {
        if self.bad.lock().contains(&index) {
            return Box::pin(async { Err(std::io::ErrorKind::InvalidData.into()) });
        }
        self.slow.reads.fetch_add(1, Ordering::Relaxed);
        let (read, slow) = (self.bodies.read(index), self.slow.clone());
        Box::pin(async move {
            if slow.index.load(Ordering::Relaxed) == index {
                slow.go.notified().await;
            }
            read.await
        })
    }
}

/// The machine's clock until the test says otherwise.
#[derive(Default)]
struct TestClock(Mutex<Option<Reading>>);

impl Clock for TestClock {
    fn read(&self) -> Reading {
        (*self.0.lock()).unwrap_or_else(|| OwnClock.read())
    }
}

struct Shard {
    machine: Arc<Mutex<DataMachine>>,
    bodies: Arc<LocalBodies>,
    bad: Arc<Mutex<Vec<u64>>>,
    slow: Arc<Slow>,
    catalog: Arc<TestCatalog>,
    gate: Arc<Gate>,
    server: ServerHandle,
    events: mpsc::Receiver<ServerEvent>,
    office: Arc<dead_letters::TestOffice>,
    courier: Arc<transactions::TestCourier>,
    clock: Arc<TestClock>,
    lateness: Arc<Lateness>,
    term: u64,
    setup: Setup,
}

#[derive(Clone, Copy)]
struct Setup {
    /// Bodies are never in memory.
    cold: bool,
    shard: ShardId,
    edge_gone: Duration,
}

const SETUP: Setup = Setup { cold: false, shard: ShardId(1), edge_gone: Duration::from_millis(150) };

impl Shard {
    fn new() -> Shard {
        Shard::over(Arc::new(Mutex::new(DataMachine::new(ShardId(1)))), Arc::default(), Arc::default(), 1, SETUP)
    }

    fn cold() -> Shard {
        Shard::over(Arc::new(Mutex::new(DataMachine::new(ShardId(1)))), Arc::default(), Arc::default(), 1, Setup { cold: true, ..SETUP })
    }

    /// Has Q, and takes no edge for gone that is only slow.
    fn patient() -> Shard {
        let setup = Setup { edge_gone: Duration::from_secs(3600), ..SETUP };
        let shard = Shard::over(Arc::new(Mutex::new(DataMachine::new(ShardId(1)))), Arc::default(), Arc::default(), 1, setup);
        shard.declare(&[Q]);
        shard
    }

    fn with_queues(queues: &[QueueId]) -> Shard {
        let shard = Shard::new();
        shard.declare(queues);
        shard
    }

    /// Q with these settings.
    fn with(settings: QueueSettings) -> Shard {
        let shard = Shard::new();
        shard.catalog.2.lock().push((Q, settings));
        shard.declare(&[Q]);
        shard
    }

    fn over(machine: Arc<Mutex<DataMachine>>, bodies: Arc<LocalBodies>, catalog: Arc<TestCatalog>, term: u64, setup: Setup) -> Shard {
        Shard::with_clock(machine, bodies, catalog, term, setup, Arc::default())
    }

    fn with_clock(
        machine: Arc<Mutex<DataMachine>>,
        bodies: Arc<LocalBodies>,
        catalog: Arc<TestCatalog>,
        term: u64,
        setup: Setup,
        clock: Arc<TestClock>,
    ) -> Shard {
        let (server, mailbox) = mailbox();
        let gate = Arc::new(Gate {
            inner: LocalProposer::new(machine.clone(), bodies.clone(), server.clone()),
            server: server.clone(),
            fail: AtomicUsize::new(0),
            held: Mutex::new(None),
            lease: AtomicBool::new(true),
        });
        let (events_tx, events) = mpsc::channel(16);
        let mut config = ServerConfig::new(setup.shard, NodeId(1), catalog.clone());
        config.edge_gone = setup.edge_gone;
        config.tick = Duration::from_millis(15);
        let office = Arc::new(dead_letters::TestOffice::default());
        config.letters = office.clone();
        let courier = Arc::new(transactions::TestCourier::default());
        config.courier = courier.clone();
        config.clock = clock.clone();
        let lateness = config.lateness.clone();
        let bad = Arc::<Mutex<Vec<u64>>>::default();
        let slow = Arc::<Slow>::default();
        let cold = Cold { bodies: bodies.clone(), bad: bad.clone(), slow: slow.clone() };
        let read: Arc<dyn Bodies> = if setup.cold { Arc::new(cold) } else { bodies.clone() };
        spawn(config, mailbox, machine.clone(), gate.clone(), read, events_tx);
        let leader = Some(LeaderId { term, voter: 1 });
        server.leadership(Leadership { leader, is_me: true });
        Shard { machine, bodies, bad, slow, catalog, gate, server, events, office, courier, clock, lateness, term, setup }
    }

    /// Another leader over the same replicated state.
    fn fail_over(self) -> Shard {
        self.server.stop();
        Shard::with_clock(self.machine, self.bodies, self.catalog, self.term + 1, self.setup, self.clock)
    }

    fn declare(&self, queues: &[QueueId]) {
        let mut state = self.catalog.0.lock();
        state.0 += 1;
        state.1.extend(queues);
        drop(state);
        self.server.catalog_moved();
    }

    fn drop_queue(&self, queue: QueueId) {
        let mut state = self.catalog.0.lock();
        state.0 += 1;
        state.1.retain(|q| *q != queue);
        state.2.push(queue);
        drop(state);
        self.server.catalog_moved();
    }

    async fn edge(&self, node: u16) -> Edge {
        self.edge_of(node, 100 + u64::from(node)).await
    }

    async fn edge_of(&self, node: u16, incarnation: u64) -> Edge {
        let mut edge = self.arriving(node, incarnation).await;
        edge.attach(vec![], vec![]).await;
        edge
    }

    /// Welcomed and not attached yet.
    async fn arriving(&self, node: u16, incarnation: u64) -> Edge {
        let (end, leader_end) = path(NodeId(node));
        self.server.connected(leader_end);
        let hello = ToLeader::Hello { node: NodeId(node), incarnation: Incarnation(incarnation) };
        end.up_tx.send(hello).await.unwrap();
        let mut edge = Edge { end, session: SessionId(0), leader: LeaderId::default(), next: 1, incarnation };
        match edge.down().await {
            ToEdge::Welcome { leader, session, last } => (edge.leader, edge.session, edge.next) = (leader, session, last.0 + 1),
            other => panic!("{other:?}"),
        }
        edge
    }
}

struct Edge {
    end: EdgeEnd,
    session: SessionId,
    leader: LeaderId,
    next: u64,
    incarnation: u64,
}

impl Edge {
    async fn up(&self, message: ToLeader) {
        self.end.up_tx.send(message).await.unwrap();
    }

    /// The next word; what is on record is a matter of `records`.
    async fn down(&mut self) -> ToEdge {
        loop {
            let word = timeout(SOON, self.end.down_rx.recv()).await.expect("no answer in time").expect("path closed");
            if !matches!(word, ToEdge::Recorded { .. }) {
                return word;
            }
        }
    }

    async fn attach(&mut self, consumers: Vec<Attached>, loose: Vec<(QueueId, Ranges)>) {
        self.attach_asking(consumers, vec![], loose).await;
    }

    /// The same, with consumers whose start was not answered.
    async fn attach_asking(&mut self, consumers: Vec<Attached>, asked: Vec<Consumer>, loose: Vec<(QueueId, Ranges)>) {
        self.up(ToLeader::Attach { leader: self.leader, consumers, asked, loose }).await;
    }

    fn batch(&mut self, fill: impl FnOnce(&mut Ops)) -> Batch {
        let mut ops = Ops::default();
        fill(&mut ops);
        self.next += 1;
        Batch { session: self.session, seq: BatchSeq(self.next - 1), floor: BatchSeq(0), catalog_index: 0, ops: ops.take() }
    }

    fn messages(&mut self, queue: QueueId, bodies: std::ops::Range<usize>) -> Batch {
        self.batch(|ops| {
            bodies.for_each(|n| {
                ops.enqueue(&[queue], b"", b"key", &[0, 0], format!("m{n}").as_bytes());
            })
        })
    }

    async fn publish(&mut self, queue: QueueId, bodies: std::ops::Range<usize>) {
        let batch = self.messages(queue, bodies);
        let seq = batch.seq;
        self.up(ToLeader::Batch(batch)).await;
        assert_eq!(self.down().await, ToEdge::Verdict { seq, refused: vec![] });
    }

    async fn settle(&mut self, queue: QueueId, first: u64, last: u64) {
        let batch = self.batch(|ops| ops.settle(queue, SettleReason::Ack, &[(Seq(first), Seq(last))]));
        let seq = batch.seq;
        self.up(ToLeader::Batch(batch)).await;
        assert_eq!(self.down().await, ToEdge::Verdict { seq, refused: vec![] });
    }

    async fn consume(&mut self, id: u64, queue: QueueId, prefetch: Option<u32>) {
        self.up(ToLeader::Consume(consumer(id, queue, prefetch))).await;
        self.started(id).await;
    }

    /// A consumer's start is answered.
    async fn started(&mut self, id: u64) {
        let ToEdge::Consuming { consumer, result: Ok(_) } = self.down().await else { panic!("consumer {id} does not start") };
        assert_eq!(consumer, ConsumerId(id));
    }

    async fn credit(&self, id: u64, messages: u32, bytes: u64) {
        self.up(ToLeader::Credit { consumer: ConsumerId(id), messages, bytes }).await;
    }

    async fn give_back(&self, queue: QueueId, first: u64, last: u64, seen: bool) {
        self.up(ToLeader::Return { queue, ranges: vec![(Seq(first), Seq(last))], seen, failures: vec![] }).await;
    }

    /// The next `n` messages: consumer, seq, redelivered, body.
    async fn take(&mut self, n: usize) -> Vec<(u64, u64, bool, String)> {
        let mut got = Vec::new();
        while got.len() < n {
            let next = timeout(SOON, self.end.deliveries_rx.recv()).await;
            let deliveries = next.unwrap_or_else(|_| panic!("only {} of {n}: {got:?}", got.len())).expect("path closed");
            assert_eq!(deliveries.leader, self.leader);
            for d in deliveries.messages {
                let body = StoredMessage::parse(d.message).unwrap().body;
                got.push((deliveries.consumer.0, d.seq.0, d.redelivered, String::from_utf8(body.to_vec()).unwrap()));
            }
        }
        assert_eq!(got.len(), n, "{got:?}");
        got
    }

    async fn seqs(&mut self, n: usize) -> Vec<u64> {
        self.take(n).await.into_iter().map(|(_, seq, _, _)| seq).collect()
    }

    async fn nothing(&mut self) {
        if let Ok(got) = timeout(QUIET, self.end.deliveries_rx.recv()).await {
            panic!("{got:?}");
        }
    }

    async fn get(&mut self, queue: QueueId) -> Result<Option<(u64, bool, u64)>, Refusal> {
        self.up(ToLeader::Get { request: 7, queue, no_ack: false }).await;
        match self.down().await {
            ToEdge::Got { request: 7, result } => result.map(|got| got.map(|(d, left)| (d.seq.0, d.redelivered, left))),
            other => panic!("{other:?}"),
        }
    }

    async fn stat(&mut self, queue: QueueId) -> QueueStat {
        self.up(ToLeader::Stat { request: 8, queues: vec![queue], used: false }).await;
        match self.down().await {
            ToEdge::Stats { request: 8, stats } => stats[0].clone(),
            other => panic!("{other:?}"),
        }
    }
}

fn consumer(id: u64, queue: QueueId, prefetch: Option<u32>) -> Consumer {
    Consumer {
        id: ConsumerId(id),
        queue,
        no_ack: false,
        exclusive: false,
        prefetch,
        window_bytes: limits::CONSUMER_BYTES,
        tag: format!("c{id}"),
        priority: 0,
        order: id,
    }
}

fn attached(id: u64, queue: QueueId, prefetch: Option<u32>, unacked: Ranges) -> Attached {
    Attached { consumer: consumer(id, queue, prefetch), unacked, unwritten_bytes: 0 }
}
