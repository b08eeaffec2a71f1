//! The server driven in process through paths, over the local proposer: what an edge sends, what it gets.

#![allow(clippy::unwrap_used)]

mod chaos;

use super::local::{LocalBodies, LocalProposer};
use super::*;
use crate::machine::shard::DataMachine;
use crate::model::catalog::{Name, Refusal};
use crate::model::entry::{EntryBytes, Ops, SettleReason, StoredMessage};
use crate::model::link::*;
use crate::model::ports::{Bodies, EdgeEnd, Leadership, ProposalOutcome, Proposer, path};
use crate::model::*;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;

const Q: QueueId = QueueId(10);
const Q2: QueueId = QueueId(11);
const SOON: Duration = Duration::from_secs(5);
const QUIET: Duration = Duration::from_millis(60);

/// A catalog of the test's making: its index, its queues, those that were dropped; and whether it has no change log.
#[derive(Default)]
struct TestCatalog(Mutex<(u64, Vec<QueueId>, Vec<QueueId>)>, AtomicBool);

impl CatalogFeed for TestCatalog {
    fn index(&self) -> u64 {
        self.0.lock().0
    }
    fn changes(&self, _shard: ShardId, from: u64, known: &dyn Fn() -> Option<Vec<QueueId>>) -> Option<CatalogChanges> {
        let state = self.0.lock();
        if from >= state.0 {
            return Some(CatalogChanges { to: state.0, ..CatalogChanges::default() });
        }
        if !self.1.load(Ordering::Relaxed) {
            return Some(CatalogChanges { to: state.0, creates: state.1.clone(), drops: state.2.clone() });
        }
        let known = known()?;
        let creates = state.1.iter().filter(|q| !known.contains(q)).copied().collect();
        Some(CatalogChanges { to: state.0, creates, drops: known.into_iter().filter(|q| !state.1.contains(q)).collect() })
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

/// Bodies that are never in memory.
struct Cold(Arc<LocalBodies>);

impl Bodies for Cold {
    fn cached(&self, _index: u64) -> Option<EntryBytes> {
        None
    }
    fn read(&self, index: u64) -> futures::future::BoxFuture<'static, std::io::Result<EntryBytes>> {
        self.0.read(index)
    }
}

struct Shard {
    machine: Arc<Mutex<DataMachine>>,
    bodies: Arc<LocalBodies>,
    catalog: Arc<TestCatalog>,
    gate: Arc<Gate>,
    server: ServerHandle,
    events: mpsc::Receiver<ServerEvent>,
    term: u64,
    setup: Setup,
}

#[derive(Clone, Copy)]
struct Setup {
    /// Bodies are never in memory.
    cold: bool,
    edge_gone: Duration,
}

const SETUP: Setup = Setup { cold: false, edge_gone: Duration::from_millis(150) };

impl Shard {
    fn new() -> Shard {
        Shard::over(Arc::new(Mutex::new(DataMachine::new(ShardId(1)))), Arc::default(), Arc::default(), 1, SETUP)
    }

    fn cold() -> Shard {
        Shard::over(Arc::new(Mutex::new(DataMachine::new(ShardId(1)))), Arc::default(), Arc::default(), 1, Setup { cold: true, ..SETUP })
    }

    fn with_queues(queues: &[QueueId]) -> Shard {
        let shard = Shard::new();
        shard.declare(queues);
        shard
    }

    fn over(machine: Arc<Mutex<DataMachine>>, bodies: Arc<LocalBodies>, catalog: Arc<TestCatalog>, term: u64, setup: Setup) -> Shard {
        let (server, mailbox) = mailbox();
        let gate = Arc::new(Gate {
            inner: LocalProposer::new(machine.clone(), bodies.clone(), server.clone()),
            server: server.clone(),
            fail: AtomicUsize::new(0),
            held: Mutex::new(None),
            lease: AtomicBool::new(true),
        });
        let (events_tx, events) = mpsc::channel(16);
        let mut config = ServerConfig::new(ShardId(1), NodeId(1), catalog.clone());
        config.edge_gone = setup.edge_gone;
        config.tick = Duration::from_millis(15);
        let read: Arc<dyn Bodies> = if setup.cold { Arc::new(Cold(bodies.clone())) } else { bodies.clone() };
        spawn(config, mailbox, machine.clone(), gate.clone(), read, events_tx);
        let leader = Some(LeaderId { term, voter: 1 });
        server.leadership(Leadership { leader, is_me: true });
        Shard { machine, bodies, catalog, gate, server, events, term, setup }
    }

    /// Another leader over the same replicated state.
    fn fail_over(self) -> Shard {
        self.server.stop();
        Shard::over(self.machine, self.bodies, self.catalog, self.term + 1, self.setup)
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

    async fn down(&mut self) -> ToEdge {
        timeout(SOON, self.end.down_rx.recv()).await.expect("no answer in time").expect("path closed")
    }

    async fn attach(&mut self, consumers: Vec<Attached>, loose: Vec<(QueueId, Ranges)>) {
        self.up(ToLeader::Attach { leader: self.leader, consumers, loose }).await;
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
        assert_eq!(self.down().await, ToEdge::Consuming { consumer: ConsumerId(id), result: Ok(()) });
    }

    async fn credit(&self, id: u64, messages: u32, bytes: u64) {
        self.up(ToLeader::Credit { consumer: ConsumerId(id), messages, bytes }).await;
    }

    async fn give_back(&self, queue: QueueId, first: u64, last: u64, seen: bool) {
        self.up(ToLeader::Return { queue, ranges: vec![(Seq(first), Seq(last))], seen }).await;
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
        self.up(ToLeader::Stat { request: 8, queues: vec![queue] }).await;
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
    }
}

fn attached(id: u64, queue: QueueId, prefetch: Option<u32>, unacked: Ranges) -> Attached {
    Attached { consumer: consumer(id, queue, prefetch), unacked, unwritten_bytes: 0 }
}

#[tokio::test]
async fn messages_are_delivered_in_order_once() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    edge.publish(Q, 0..5).await;
    edge.consume(1, Q, None).await;
    edge.publish(Q, 5..8).await;
    let got = edge.take(8).await;
    let expected: Vec<_> = (0..8).map(|n| (1, n as u64 + 1, false, format!("m{n}"))).collect();
    assert_eq!(got, expected);
    edge.nothing().await;
    let stat = edge.stat(Q).await;
    assert_eq!((stat.ready, stat.unacked, stat.consumers), (0, 8, 1));
    edge.settle(Q, 1, 8).await;
    let stat = edge.stat(Q).await;
    assert_eq!((stat.ready, stat.unacked, stat.bytes), (0, 0, 0));
    assert!(shard.bodies.is_empty(), "freed entries are forgotten");
}

#[tokio::test]
async fn prefetch_bounds_what_a_consumer_holds() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    edge.consume(1, Q, Some(3)).await;
    edge.publish(Q, 0..10).await;
    assert_eq!(edge.seqs(3).await, [1, 2, 3]);
    edge.nothing().await;
    edge.credit(1, 2, 0).await;
    assert_eq!(edge.seqs(2).await, [4, 5]);
    edge.nothing().await;
}

#[tokio::test]
async fn byte_credit_bounds_what_is_on_the_way() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    let mut spec = consumer(1, Q, None);
    spec.window_bytes = 25;
    edge.up(ToLeader::Consume(spec)).await;
    edge.down().await;
    edge.publish(Q, 0..9).await;
    assert_eq!(edge.seqs(2).await, [1, 2], "a message of 14 bytes may overdraw the window");
    edge.nothing().await;
    edge.credit(1, 0, 28).await;
    assert_eq!(edge.seqs(2).await, [3, 4]);
    edge.nothing().await;
}

#[tokio::test]
async fn consumers_of_several_edges_take_turns() {
    let shard = Shard::with_queues(&[Q]);
    let (mut one, mut two) = (shard.edge(1).await, shard.edge(2).await);
    one.consume(1, Q, None).await;
    two.consume(1, Q, None).await;
    tokio::time::sleep(QUIET).await;
    one.publish(Q, 0..10).await;
    let (a, b) = (one.seqs(5).await, two.seqs(5).await);
    let mut all = [a, b].concat();
    all.sort();
    assert_eq!(all, (1..=10).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_returned_message_comes_again_at_its_place() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    edge.consume(1, Q, Some(4)).await;
    edge.publish(Q, 0..8).await;
    edge.take(4).await;
    edge.give_back(Q, 2, 2, true).await;
    edge.give_back(Q, 4, 4, false).await;
    edge.credit(1, 3, 0).await;
    let got = edge.take(3).await;
    assert_eq!(got.iter().map(|g| (g.1, g.2)).collect::<Vec<_>>(), [(2, true), (4, false), (5, false)]);
}

#[tokio::test]
async fn a_batch_out_of_order_is_sent_back_once() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    let batches: Vec<Batch> = (0..4).map(|n| edge.messages(Q, n..n + 1)).collect();
    for batch in [&batches[1], &batches[2], &batches[0], &batches[1], &batches[2], &batches[3]] {
        edge.up(ToLeader::Batch(batch.clone())).await;
    }
    assert_eq!(edge.down().await, ToEdge::Rewind { from: BatchSeq(1) });
    for seq in 1..=4 {
        assert_eq!(edge.down().await, ToEdge::Verdict { seq: BatchSeq(seq), refused: vec![] });
    }
    assert_eq!(edge.stat(Q).await.ready, 4);
}

#[tokio::test]
async fn a_repeated_batch_gets_the_same_verdict_and_no_second_effect() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    let batch = edge.batch(|ops| {
        ops.enqueue(&[Q], b"", b"", &[0, 0], b"known");
        ops.enqueue(&[QueueId(99)], b"", b"", &[0, 0], b"unknown");
    });
    for _ in 0..2 {
        edge.up(ToLeader::Batch(batch.clone())).await;
        let refused = vec![(1, RefusedEnqueue::UnknownQueue)];
        assert_eq!(edge.down().await, ToEdge::Verdict { seq: BatchSeq(1), refused });
    }
    assert_eq!(edge.stat(Q).await.ready, 1);
}

/// Fault test 1 of the rules: of several proposals in flight exactly one is refused, the later ones are not.
async fn one_of_several_is_refused(position: usize) {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    *shard.gate.held.lock() = Some(VecDeque::new());
    let mut unanswered = VecDeque::new();
    for n in 0..limits::ENTRIES_IN_FLIGHT {
        let batch = edge.messages(Q, n..n + 1);
        unanswered.push_back(batch.clone());
        edge.up(ToLeader::Batch(batch)).await;
        while shard.gate.held.lock().as_ref().unwrap().len() <= n {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let held = shard.gate.held.lock().take().unwrap();
    for (at, (token, leader, entry)) in held.into_iter().enumerate() {
        match at == position {
            true => shard.server.outcome(token, ProposalOutcome::Failed("refused".into())),
            false => shard.gate.inner.propose(token, leader, entry),
        }
    }
    let mut rewinds = 0;
    while let Some(first) = unanswered.front().map(|batch| batch.seq) {
        match edge.down().await {
            ToEdge::Verdict { seq, refused } => {
                assert_eq!((seq, refused), (first, vec![]), "verdicts come in order");
                unanswered.pop_front();
            }
            ToEdge::Rewind { from } => {
                rewinds += 1;
                assert_eq!(from, first, "everything before the refused one has its verdict");
                for batch in &unanswered {
                    edge.up(ToLeader::Batch(batch.clone())).await;
                }
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(rewinds, 1);
    edge.consume(1, Q, None).await;
    let got: Vec<String> = edge.take(limits::ENTRIES_IN_FLIGHT).await.into_iter().map(|g| g.3).collect();
    assert_eq!(got, (0..limits::ENTRIES_IN_FLIGHT).map(|n| format!("m{n}")).collect::<Vec<_>>());
    edge.nothing().await;
}

#[tokio::test]
async fn a_refused_proposal_rewinds_at_every_position_and_nothing_is_lost_doubled_or_reordered() {
    for position in 0..limits::ENTRIES_IN_FLIGHT {
        one_of_several_is_refused(position).await;
    }
}

#[tokio::test]
async fn everything_the_leader_proposes_itself_survives_failures() {
    let shard = Shard::new();
    shard.gate.fail.store(3, Ordering::Relaxed);
    let mut edge = shard.edge(1).await;
    shard.gate.fail.store(2, Ordering::Relaxed);
    shard.declare(&[Q]);
    edge.consume(1, Q, None).await;
    shard.gate.fail.store(0, Ordering::Relaxed);
    edge.publish(Q, 0..1).await;
    assert_eq!(edge.seqs(1).await, [1]);
}

#[tokio::test]
async fn a_queue_exists_once_the_shard_follows_the_catalog() {
    let shard = Shard::new();
    let mut edge = shard.edge(1).await;
    let mut batch = edge.messages(Q, 0..1);
    batch.catalog_index = 1;
    let seq = batch.seq;
    edge.up(ToLeader::Batch(batch)).await;
    edge.nothing().await;
    shard.declare(&[Q]);
    assert_eq!(edge.down().await, ToEdge::Verdict { seq, refused: vec![] });
    edge.consume(1, Q, None).await;
    assert_eq!(edge.seqs(1).await, [1]);
    edge.up(ToLeader::Consume(consumer(2, QueueId(77), None))).await;
    let ToEdge::Consuming { result: Err(Refusal::NotFound { .. }), .. } = edge.down().await else { panic!() };
}

#[tokio::test]
async fn a_dropped_queue_ends_its_consumers() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    edge.consume(1, Q, None).await;
    shard.drop_queue(Q);
    assert_eq!(edge.down().await, ToEdge::Cancelled { consumer: ConsumerId(1), asked: false });
    let Err(Refusal::NotFound { .. }) = edge.get(Q).await else { panic!() };
}

#[tokio::test]
async fn get_takes_one_and_counts_the_rest() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    assert_eq!(edge.get(Q).await, Ok(None));
    edge.publish(Q, 0..3).await;
    assert_eq!(edge.get(Q).await, Ok(Some((1, false, 2))));
    edge.give_back(Q, 1, 1, true).await;
    assert_eq!(edge.get(Q).await, Ok(Some((1, true, 2))));
    assert_eq!(edge.get(Q).await, Ok(Some((2, false, 1))));
}

#[tokio::test]
async fn purge_takes_what_waits_and_leaves_what_is_held() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    edge.consume(1, Q, Some(2)).await;
    edge.publish(Q, 0..10).await;
    edge.take(2).await;
    edge.up(ToLeader::Purge { request: 3, queue: Q }).await;
    assert_eq!(edge.down().await, ToEdge::Purged { request: 3, result: Ok(8) });
    let stat = edge.stat(Q).await;
    assert_eq!((stat.ready, stat.unacked), (0, 2));
    edge.give_back(Q, 1, 1, true).await;
    edge.publish(Q, 10..11).await;
    edge.credit(1, 1, 0).await;
    assert_eq!(edge.seqs(1).await, [1]);
    edge.credit(1, 1, 0).await;
    assert_eq!(edge.seqs(1).await, [11]);
}

#[tokio::test]
async fn an_exclusive_consumer_is_alone() {
    let shard = Shard::with_queues(&[Q]);
    let (mut one, mut two) = (shard.edge(1).await, shard.edge(2).await);
    let exclusive = |id| Consumer { exclusive: true, ..consumer(id, Q, None) };
    one.up(ToLeader::Consume(exclusive(1))).await;
    assert_eq!(one.down().await, ToEdge::Consuming { consumer: ConsumerId(1), result: Ok(()) });
    two.up(ToLeader::Consume(consumer(1, Q, None))).await;
    let refusal = Refusal::Access("queue 'q10' in vhost '/' in exclusive use".into());
    assert_eq!(two.down().await, ToEdge::Consuming { consumer: ConsumerId(1), result: Err(refusal) });
    one.up(ToLeader::Cancel { consumer: ConsumerId(1) }).await;
    assert_eq!(one.down().await, ToEdge::Cancelled { consumer: ConsumerId(1), asked: true });
    two.consume(2, Q, None).await;
    one.up(ToLeader::Consume(exclusive(3))).await;
    let ToEdge::Consuming { result: Err(Refusal::Access(_)), .. } = one.down().await else { panic!() };
}

#[tokio::test]
async fn a_consumer_that_does_not_read_stops_nobody_else() {
    let shard = Shard::with_queues(&[Q, Q2]);
    let (mut slow, mut quick) = (shard.edge(1).await, shard.edge(2).await);
    slow.consume(1, Q, None).await;
    quick.consume(1, Q, None).await;
    slow.consume(2, Q2, None).await;
    let body = vec![0; 100_000];
    for _ in 0..60 {
        let batch = quick.batch(|ops| {
            ops.enqueue(&[Q], b"", b"", &[0, 0], &body);
        });
        quick.up(ToLeader::Batch(batch)).await;
    }
    let mut seen = 0;
    while seen < 60 - 12 {
        tokio::select! {
            down = quick.end.down_rx.recv() => assert!(matches!(down, Some(ToEdge::Verdict { .. }))),
            got = timeout(SOON, quick.end.deliveries_rx.recv()) => {
                let got = got.unwrap_or_else(|_| panic!("stopped after {seen}")).unwrap();
                seen += got.messages.len();
                let bytes = got.messages.iter().map(|m| m.message.len() as u64).sum();
                quick.credit(1, 0, bytes).await;
            }
        }
    }
}

#[tokio::test]
async fn surviving_edges_see_nothing_of_a_leader_change() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    edge.consume(1, Q, Some(5)).await;
    edge.publish(Q, 0..10).await;
    assert_eq!(edge.seqs(5).await, [1, 2, 3, 4, 5]);
    let shard = shard.fail_over();
    let mut again = shard.arriving(1, edge.incarnation).await;
    assert_eq!((again.session, again.next), (edge.session, edge.next));
    again.attach(vec![attached(1, Q, Some(5), vec![(Seq(1), Seq(5))])], vec![]).await;
    again.nothing().await;
    again.settle(Q, 1, 2).await;
    again.credit(1, 2, 0).await;
    let got = again.take(2).await;
    assert_eq!(got.iter().map(|g| (g.1, g.2)).collect::<Vec<_>>(), [(6, false), (7, false)]);
}

#[tokio::test]
async fn messages_are_held_until_every_holder_attached() {
    let shard = Shard::with_queues(&[Q]);
    let (mut one, mut two) = (shard.edge(1).await, shard.edge(2).await);
    one.consume(1, Q, Some(2)).await;
    two.consume(1, Q, Some(2)).await;
    tokio::time::sleep(QUIET).await;
    one.publish(Q, 0..6).await;
    let held_by_one = one.seqs(2).await;
    let held_by_two = two.seqs(2).await;
    let ranges = |seqs: Vec<u64>| seqs.into_iter().map(|s| (Seq(s), Seq(s))).collect::<Ranges>();
    let shard = shard.fail_over();
    let mut one = shard.arriving(1, one.incarnation).await;
    one.attach(vec![attached(1, Q, None, ranges(held_by_one))], vec![]).await;
    one.nothing().await;
    let mut two = shard.arriving(2, two.incarnation).await;
    one.nothing().await;
    two.attach(vec![], vec![(Q, ranges(held_by_two))]).await;
    let got = one.take(2).await;
    assert_eq!(got.iter().map(|g| (g.1, g.2)).collect::<Vec<_>>(), [(5, false), (6, false)]);
}

#[tokio::test]
async fn what_a_lost_edge_held_comes_as_redelivered() {
    let shard = Shard::with_queues(&[Q]);
    let (mut one, mut two) = (shard.edge(1).await, shard.edge(2).await);
    two.consume(1, Q, Some(2)).await;
    one.publish(Q, 0..3).await;
    assert_eq!(two.seqs(2).await, [1, 2]);
    let shard = shard.fail_over();
    let mut one = shard.arriving(1, one.incarnation).await;
    one.attach(vec![attached(1, Q, None, vec![])], vec![]).await;
    one.nothing().await;
    let got = one.take(3).await;
    assert_eq!(got.iter().map(|g| (g.1, g.2)).collect::<Vec<_>>(), [(1, true), (2, true), (3, true)]);
    one.publish(Q, 3..4).await;
}

#[tokio::test]
async fn an_edge_lost_under_this_leader_gives_back_after_a_while() {
    let shard = Shard::with_queues(&[Q]);
    let (mut one, mut two) = (shard.edge(1).await, shard.edge(2).await);
    two.consume(1, Q, Some(2)).await;
    one.publish(Q, 0..3).await;
    two.take(2).await;
    one.consume(1, Q, None).await;
    assert_eq!(one.seqs(1).await, [3]);
    drop(two);
    one.nothing().await;
    let got = one.take(2).await;
    assert_eq!(got.iter().map(|g| (g.1, g.2)).collect::<Vec<_>>(), [(1, true), (2, true)]);
}

#[tokio::test]
async fn a_newer_process_of_a_node_ends_the_older_session_at_once() {
    let shard = Shard::with_queues(&[Q]);
    let mut old = shard.edge(1).await;
    old.consume(1, Q, None).await;
    old.publish(Q, 0..2).await;
    old.take(2).await;
    let started = std::time::Instant::now();
    let mut new = shard.edge_of(1, 999).await;
    new.consume(1, Q, None).await;
    let got = new.take(2).await;
    assert_eq!(got.iter().map(|g| (g.1, g.2)).collect::<Vec<_>>(), [(1, true), (2, true)]);
    assert!(started.elapsed() < Duration::from_millis(150));
    assert_eq!(timeout(SOON, old.end.down_rx.recv()).await.unwrap(), None, "the old path is closed");
}

#[tokio::test]
async fn an_edge_that_returns_on_a_new_path_keeps_what_it_holds() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    edge.consume(1, Q, Some(4)).await;
    edge.publish(Q, 0..6).await;
    edge.take(4).await;
    let incarnation = edge.incarnation;
    drop(edge);
    let mut again = shard.arriving(1, incarnation).await;
    again.attach(vec![attached(1, Q, Some(4), vec![(Seq(1), Seq(3))])], vec![]).await;
    let got = again.take(1).await;
    assert_eq!((got[0].1, got[0].2), (4, false), "4 was dropped unwritten with the old path");
    again.nothing().await;
}

#[tokio::test]
async fn a_requeued_message_stays_redelivered_over_a_leader_change() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    edge.consume(1, Q, Some(2)).await;
    edge.publish(Q, 0..2).await;
    edge.take(2).await;
    edge.up(ToLeader::Cancel { consumer: ConsumerId(1) }).await;
    edge.down().await;
    edge.give_back(Q, 1, 2, true).await;
    edge.publish(Q, 2..3).await;
    let shard = shard.fail_over();
    let mut edge = shard.edge_of(1, edge.incarnation).await;
    edge.consume(2, Q, None).await;
    let got = edge.take(3).await;
    assert!(got[0].2 && got[1].2, "{got:?}");
}

#[tokio::test]
async fn the_last_consumer_of_an_auto_delete_queue_is_reported_never_mere_absence() {
    let mut shard = Shard::with_queues(&[Q, Q2]);
    let mut edge = shard.edge(1).await;
    edge.consume(1, Q, None).await;
    edge.consume(2, Q2, None).await;
    let mut shard = {
        tokio::time::sleep(QUIET).await;
        assert!(shard.events.try_recv().is_err());
        shard.fail_over()
    };
    let mut edge = shard.arriving(1, edge.incarnation).await;
    edge.attach(vec![attached(1, Q, None, vec![]), attached(2, Q2, None, vec![])], vec![]).await;
    tokio::time::sleep(QUIET).await;
    assert!(shard.events.try_recv().is_err());
    for id in [1, 2] {
        edge.up(ToLeader::Cancel { consumer: ConsumerId(id) }).await;
        edge.down().await;
    }
    let event = timeout(SOON, shard.events.recv()).await.unwrap();
    assert_eq!(event, Some(ServerEvent::LastConsumerGone { queue: Q2 }));
}

#[tokio::test]
async fn a_consumer_that_ended_while_its_edge_was_away_counts_as_cancelled() {
    let mut shard = Shard::with_queues(&[Q2]);
    let mut edge = shard.edge(1).await;
    edge.consume(1, Q2, None).await;
    let incarnation = edge.incarnation;
    drop(edge);
    let _edge = shard.edge_of(1, incarnation).await;
    let event = timeout(SOON, shard.events.recv()).await.unwrap();
    assert_eq!(event, Some(ServerEvent::LastConsumerGone { queue: Q2 }));
}

#[tokio::test]
async fn nothing_is_delivered_without_a_lease() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    shard.gate.lease.store(false, Ordering::Relaxed);
    edge.consume(1, Q, None).await;
    edge.publish(Q, 0..1).await;
    edge.nothing().await;
    shard.gate.lease.store(true, Ordering::Relaxed);
    assert_eq!(edge.seqs(1).await, [1]);
}

#[tokio::test]
async fn a_deposed_leader_says_so_and_ends_its_paths() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    edge.consume(1, Q, None).await;
    shard.server.leadership(Leadership { leader: Some(LeaderId { term: 2, voter: 2 }), is_me: false });
    assert_eq!(edge.down().await, ToEdge::NotLeader);
    assert_eq!(timeout(SOON, edge.end.down_rx.recv()).await.unwrap(), None);
    let (mut end, leader_end) = path(NodeId(3));
    shard.server.connected(leader_end);
    end.up_tx.send(ToLeader::Hello { node: NodeId(3), incarnation: Incarnation(1) }).await.unwrap();
    assert_eq!(timeout(SOON, end.down_rx.recv()).await.unwrap(), Some(ToEdge::NotLeader));
}

#[tokio::test]
async fn a_hello_before_the_leader_is_ready_waits_for_it() {
    let shard = Shard::with_queues(&[Q]);
    let leader = Some(LeaderId { term: 9, voter: 1 });
    shard.server.leadership(Leadership { leader, is_me: false });
    let (mut end, leader_end) = path(NodeId(3));
    shard.server.connected(leader_end);
    end.up_tx.send(ToLeader::Hello { node: NodeId(3), incarnation: Incarnation(1) }).await.unwrap();
    assert!(timeout(QUIET, end.down_rx.recv()).await.is_err());
    shard.server.leadership(Leadership { leader, is_me: true });
    let Ok(Some(ToEdge::Welcome { .. })) = timeout(SOON, end.down_rx.recv()).await else { panic!() };
}

#[tokio::test]
async fn bodies_from_disk_come_in_order_too() {
    let shard = Shard::cold();
    shard.declare(&[Q]);
    let mut edge = shard.edge(1).await;
    for n in 0..40 {
        edge.publish(Q, n * 10..(n + 1) * 10).await;
    }
    edge.consume(1, Q, Some(350)).await;
    assert_eq!(edge.seqs(350).await, (1..=350).collect::<Vec<_>>());
    edge.give_back(Q, 5, 6, true).await;
    edge.credit(1, 3, 0).await;
    assert_eq!(edge.seqs(3).await, [5, 6, 351]);
}

#[tokio::test]
async fn a_long_queue_is_delivered_through_renewed_reservations() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    for n in 0..10 {
        edge.publish(Q, n * 1000..(n + 1) * 1000).await;
    }
    edge.consume(1, Q, None).await;
    assert_eq!(edge.seqs(10_000).await, (1..=10_000).collect::<Vec<_>>());
    assert!(shard.machine.lock().queue(Q).unwrap().reserved() >= Seq(10_000));
}

#[tokio::test]
async fn more_answers_than_a_path_holds_wait_for_the_edge() {
    const MANY: u64 = crate::model::ports::PATH_CAPACITY as u64 + 500;
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    for id in 1..=MANY {
        edge.consume(id, Q, Some(1)).await;
    }
    shard.drop_queue(Q);
    tokio::time::sleep(QUIET).await;
    for id in 1..=MANY {
        assert_eq!(edge.down().await, ToEdge::Cancelled { consumer: ConsumerId(id), asked: false });
    }
    let Err(Refusal::NotFound { .. }) = edge.get(Q).await else { panic!() };
}

#[test]
fn the_catalog_says_which_queues_a_shard_should_have() {
    use crate::machine::catalog::Catalog;
    use crate::model::catalog::{CatalogCommand, QueueSpec, Table};
    let name = |name: &str| Name { vhost: "/".into(), name: name.into() };
    let mut catalog = Catalog::new();
    let mut index = 0;
    let mut apply = |command: CatalogCommand| {
        index += 1;
        catalog.apply(LogId { leader: LeaderId::default(), index }, &command);
    };
    apply(CatalogCommand::Bootstrap { vhost: "/".into(), user: "guest".into(), password_hash: String::new(), shards: 2 });
    for (queue, shard, auto_delete) in [("a", 1, false), ("b", 1, true), ("c", 2, false)] {
        let spec = QueueSpec { name: name(queue), durable: true, auto_delete, exclusive_owner: None, arguments: Table::new() };
        apply(CatalogCommand::DeclareQueue { spec, node: NodeId(1), incarnation: Incarnation(1), shard: ShardId(shard) });
    }
    apply(CatalogCommand::DeleteQueue { id: QueueId(2) });
    let feed = parking_lot::RwLock::new(catalog);
    let changes = feed.changes(ShardId(1), 2, &|| panic!("the change log reaches back"));
    assert_eq!(changes, Some(CatalogChanges { to: 5, creates: vec![QueueId(3)], drops: vec![QueueId(2)] }));
    assert_eq!(feed.facts(QueueId(3)), Some(QueueFacts { name: name("b"), auto_delete: true }));
    assert_eq!(feed.facts(QueueId(2)), None);
}

#[tokio::test]
async fn a_hello_of_a_dead_process_is_not_repeated() {
    let shard = Shard::with_queues(&[Q]);
    *shard.gate.held.lock() = Some(VecDeque::new());
    let (end, leader_end) = path(NodeId(1));
    shard.server.connected(leader_end);
    end.up_tx.send(ToLeader::Hello { node: NodeId(1), incarnation: Incarnation(5) }).await.unwrap();
    tokio::time::sleep(QUIET).await;
    drop(end);
    let arriving = shard.edge_of(1, 6);
    let release = async {
        tokio::time::sleep(QUIET).await;
        let held = shard.gate.held.lock().take().unwrap();
        held.into_iter().for_each(|(token, ..)| shard.server.outcome(token, ProposalOutcome::Failed("lost".into())));
    };
    let (mut edge, ()) = tokio::join!(arriving, release);
    edge.publish(Q, 0..1).await;
    tokio::time::sleep(QUIET).await;
    let sessions: Vec<_> = shard.machine.lock().sessions().map(|s| s.2).collect();
    assert_eq!(sessions, [Incarnation(6)]);
    edge.publish(Q, 1..2).await;
}

/// One edge publishes batches of 100 with a window of 8; another consumes with a prefetch and acknowledges.
async fn throughput(total: usize, prefetch: u32, backlog: bool) {
    let shard = Shard::with_queues(&[Q]);
    let (mut publisher, mut reader) = (shard.edge(1).await, shard.edge(2).await);
    if !backlog {
        reader.consume(1, Q, Some(prefetch)).await;
    }
    let (started, mut unanswered, mut sent) = (std::time::Instant::now(), 0, 0);
    let publish = async {
        while sent < total || unanswered > 0 {
            if sent < total && unanswered < limits::BATCHES_IN_FLIGHT {
                let batch = publisher.messages(Q, sent..sent + 100);
                publisher.up(ToLeader::Batch(batch)).await;
                (sent, unanswered) = (sent + 100, unanswered + 1);
                continue;
            }
            assert!(matches!(publisher.down().await, ToEdge::Verdict { .. }));
            unanswered -= 1;
        }
    };
    if backlog {
        publish.await;
        println!("{total} published in {:?}", started.elapsed());
        reader.consume(1, Q, Some(prefetch)).await;
        drain(&mut reader, total).await;
    } else {
        tokio::join!(publish, drain(&mut reader, total));
    }
    println!("{total} messages, prefetch {prefetch}, backlog {backlog}: {:?}", started.elapsed());
}

async fn drain(reader: &mut Edge, total: usize) {
    let mut got = 0;
    while got < total {
        tokio::select! {
            Some(_) = reader.end.down_rx.recv() => {}
            Some(deliveries) = reader.end.deliveries_rx.recv() => {
                let (first, last) = (deliveries.messages[0].seq.0, deliveries.messages[deliveries.messages.len() - 1].seq.0);
                let bytes = deliveries.messages.iter().map(|m| m.message.len() as u64).sum();
                got += deliveries.messages.len();
                reader.credit(1, deliveries.messages.len() as u32, bytes).await;
                let batch = reader.batch(|ops| ops.settle(Q, SettleReason::Ack, &[(Seq(first), Seq(last))]));
                reader.up(ToLeader::Batch(batch)).await;
            }
        }
    }
}

#[tokio::test]
#[ignore = "prints; for looking at"]
async fn throughput_grows_with_the_load_only() {
    for (total, prefetch, backlog) in [(100_000, 1000, false), (100_000, 1000, true), (400_000, 1000, true), (5_000, 1, true)] {
        throughput(total, prefetch, backlog).await;
    }
}

#[tokio::test]
async fn a_batch_behind_a_failed_advance_is_not_refused() {
    let shard = Shard::with_queues(&[Q]);
    let mut a = shard.edge(1).await;
    a.publish(Q, 0..1).await;
    *shard.gate.held.lock() = Some(VecDeque::new());
    shard.declare(&[Q2]);
    tokio::time::sleep(QUIET).await;
    assert_eq!(shard.gate.held.lock().as_ref().unwrap().len(), 1, "the advance");
    let index = shard.catalog.0.lock().0;
    let mut batch = a.messages(Q2, 0..1);
    batch.catalog_index = index;
    let seq = batch.seq;
    a.up(ToLeader::Batch(batch.clone())).await;
    tokio::time::sleep(QUIET).await;
    let mut held = shard.gate.held.lock().take().unwrap();
    assert_eq!(held.len(), 2);
    let (failed, ..) = held.pop_front().unwrap();
    shard.gate.server.outcome(failed, ProposalOutcome::Failed("lease".into()));
    let (token, leader, entry) = held.pop_front().unwrap();
    shard.gate.inner.propose(token, leader, entry);
    assert_eq!(a.down().await, ToEdge::Rewind { from: seq });
    a.up(ToLeader::Batch(batch)).await;
    assert_eq!(a.down().await, ToEdge::Verdict { seq, refused: vec![] });
    assert_eq!(a.stat(Q2).await.ready, 1);
    assert_eq!(token >> crate::model::ports::EPOCH_SHIFT, failed >> crate::model::ports::EPOCH_SHIFT);
    *shard.gate.held.lock() = Some(VecDeque::new());
    let batch = a.messages(Q, 1..2);
    a.up(ToLeader::Batch(batch)).await;
    tokio::time::sleep(QUIET).await;
    let (anew, ..) = shard.gate.held.lock().as_mut().unwrap().pop_front().unwrap();
    assert!(anew >= crate::model::ports::next_epoch(failed), "proposed by a server that knows of the failure");
}

#[tokio::test]
async fn a_queue_that_comes_and_goes_while_its_advance_is_on_the_way_is_dropped_without_a_change_log_too() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    edge.publish(Q, 0..1).await;
    shard.catalog.1.store(true, Ordering::Relaxed);
    *shard.gate.held.lock() = Some(VecDeque::new());
    shard.declare(&[Q2]);
    tokio::time::sleep(QUIET).await;
    assert_eq!(shard.gate.held.lock().as_ref().unwrap().len(), 1, "the advance that makes it");
    shard.drop_queue(Q2);
    tokio::time::sleep(QUIET).await;
    let held = shard.gate.held.lock().take().unwrap();
    held.into_iter().for_each(|(token, leader, entry)| shard.gate.inner.propose(token, leader, entry));
    let index = shard.catalog.0.lock().0;
    let followed = async {
        while shard.machine.lock().catalog_index() < index {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(SOON, followed).await.expect("the shard follows the catalog");
    let queues: Vec<_> = shard.machine.lock().queues().map(|(id, _)| id).collect();
    assert_eq!(queues, [Q]);
}

#[tokio::test]
async fn a_return_of_messages_held_in_part_marks_all_of_them_as_seen() {
    let shard = Shard::with_queues(&[Q]);
    let mut a = shard.edge(1).await;
    a.publish(Q, 0..4).await;
    a.consume(1, Q, Some(2)).await;
    a.take(2).await;
    let shard = shard.fail_over();
    let mut a = shard.arriving(1, 101).await;
    a.attach(vec![], vec![(Q, vec![(Seq(2), Seq(2))])]).await;
    a.give_back(Q, 1, 2, true).await;
    tokio::time::sleep(QUIET).await;
    a.consume(1, Q, None).await;
    let got: Vec<(u64, bool)> = a.take(4).await.into_iter().map(|m| (m.1, m.2)).collect();
    assert_eq!(got, [(1, true), (2, true), (3, false), (4, false)]);
}

/// An entry that the machine cannot read would stop the shard on all nodes, for good.
#[tokio::test]
async fn a_batch_that_cannot_be_read_ends_its_path_and_is_not_proposed() {
    let shard = Shard::with_queues(&[Q]);
    let mut good = shard.edge(1).await;
    let whole = good.messages(Q, 0..2).ops;
    good.next = 1;
    let mut reserve = Ops::default();
    reserve.reserve(Q, Seq(9), &[]);
    let mut settle = Ops::default();
    settle.settle(Q, SettleReason::Ack, &[(Seq(1), Seq(1))]);
    let settle = settle.take();
    let bad =
        [whole.slice(..whole.len() - 1), whole.slice(1..), reserve.take(), settle.slice(..9), b"\x01\x00\x00\x00\x00".as_slice().into()];
    for (n, ops) in bad.into_iter().enumerate() {
        let mut edge = shard.edge(2 + n as u16).await;
        let batch = Batch { session: edge.session, seq: BatchSeq(1), floor: BatchSeq(0), catalog_index: 0, ops };
        edge.up(ToLeader::Batch(batch)).await;
        assert!(timeout(SOON, edge.end.down_rx.recv()).await.expect("in time").is_none(), "the path ends");
    }
    good.publish(Q, 0..2).await;
    assert_eq!(good.stat(Q).await.ready, 2);
}

#[tokio::test]
async fn a_purge_that_is_proposed_twice_counts_once() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    edge.publish(Q, 0..3).await;
    shard.gate.fail.store(2, Ordering::Relaxed);
    edge.up(ToLeader::Purge { request: 5, queue: Q }).await;
    assert_eq!(edge.down().await, ToEdge::Purged { request: 5, result: Ok(3) });
    assert_eq!(edge.stat(Q).await.ready, 0);
}
