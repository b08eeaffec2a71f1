//! A network in memory with the same seams as the real one, for tests and the simulator: nodes join it, links are cut, stalled and
//! healed one direction at a time, frames take their time or are lost. Cutting a link breaks its streams like a reset connection; a stalled one
//! looks alive and keeps its frames, in order, until it is healed.

use super::transport::{Card, Duplex, Frame, Handler, LinkState, PeerError, STREAM_CAPACITY, StreamKind, Transport};
use crate::model::NodeId;
use futures::StreamExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

/// Which start of a process.
type Life = u64;

#[derive(Clone)]
struct Process {
    life: Life,
    handler: Arc<dyn Handler>,
    /// Where its answers are made: they end with it.
    runtime: Handle,
}

struct Net {
    nodes: HashMap<NodeId, Process>,
    lives: Life,
    /// Were there once and are gone: dialing them is refused.
    gone: HashSet<NodeId>,
    cut: HashSet<(NodeId, NodeId)>,
    stalled: HashSet<(NodeId, NodeId)>,
    delay_most: Duration,
    delay_least: Duration,
    lags: HashMap<NodeId, Duration>,
    /// Of a thousand frames so many are lost.
    losses: u32,
    rng: StdRng,
}

/// The network; cheap to clone.
#[derive(Clone)]
pub struct MemoryNetwork {
    net: Arc<Mutex<Net>>,
    changes_tx: watch::Sender<u64>,
}

impl Default for MemoryNetwork {
    fn default() -> MemoryNetwork {
        MemoryNetwork::new(0)
    }
}

/// A process that speaks, or is spoken to.
type End = (NodeId, Life);

impl MemoryNetwork {
    /// Delays are drawn from `seed`.
    pub fn new(seed: u64) -> MemoryNetwork {
        let net = Net {
            nodes: HashMap::new(),
            lives: 0,
            gone: HashSet::new(),
            cut: HashSet::new(),
            stalled: HashSet::new(),
            delay_most: Duration::ZERO,
            delay_least: Duration::ZERO,
            lags: HashMap::new(),
            losses: 0,
            rng: StdRng::seed_from_u64(seed),
        };
        MemoryNetwork { net: Arc::new(Mutex::new(net)), changes_tx: watch::channel(0).0 }
    }

    /// A node's process starts; to be called within the runtime that its answers are to be made on.
    pub fn join(&self, node: NodeId, handler: Arc<dyn Handler>) -> Arc<dyn Transport> {
        let mut net = self.net.lock();
        net.gone.remove(&node);
        net.lives += 1;
        let life = net.lives;
        net.nodes.insert(node, Process { life, handler, runtime: Handle::current() });
        drop(net);
        self.changed();
        Arc::new(MemoryTransport { me: (node, life), network: self.clone() })
    }

    /// A node's process dies: its streams break, dialing it is refused.
    pub fn kill(&self, node: NodeId) {
        self.end(node, None);
    }

    fn end(&self, node: NodeId, life: Option<Life>) {
        let mut net = self.net.lock();
        if net.nodes.get(&node).is_some_and(|process| life.is_none_or(|life| life == process.life)) {
            net.nodes.remove(&node);
            net.gone.insert(node);
        }
        drop(net);
        self.changed();
    }

    /// Nothing passes from `from` to `to` any more; streams between the two break.
    pub fn cut(&self, from: NodeId, to: NodeId) {
        self.net.lock().cut.insert((from, to));
        self.changed();
    }

    /// Nothing passes from `from` to `to` until `heal`, in silence; streams live and deliver later.
    pub fn stall(&self, from: NodeId, to: NodeId) {
        self.net.lock().stalled.insert((from, to));
        self.changed();
    }

    /// Everything passes again.
    pub fn heal(&self) {
        let mut net = self.net.lock();
        net.cut.clear();
        net.stalled.clear();
        drop(net);
        self.changed();
    }

    /// Everything passes again between these two.
    pub fn mend(&self, a: NodeId, b: NodeId) {
        let mut net = self.net.lock();
        for way in [(a, b), (b, a)] {
            net.cut.remove(&way);
            net.stalled.remove(&way);
        }
        drop(net);
        self.changed();
    }

    /// Every frame takes this long.
    pub fn delay(&self, delay: Duration) {
        self.delays(delay, delay);
    }

    /// Every frame takes a time between these.
    pub fn delays(&self, least: Duration, most: Duration) {
        let mut net = self.net.lock();
        (net.delay_least, net.delay_most) = (least, most.max(least));
    }

    /// Requests to append to the logs of this node take this long: its machines, the catalog's among them, lag behind. Heartbeats do not.
    pub fn lag(&self, node: NodeId, lag: Duration) {
        self.net.lock().lags.insert(node, lag);
    }

    /// Of a thousand frames so many are lost, each with what it travels on: a lost question is never answered, a lost answer leaves its
    /// asker in doubt about what was done, and a stream from which a frame is missing breaks.
    pub fn lose(&self, per_thousand: u32) {
        self.net.lock().losses = per_thousand;
    }

    fn changed(&self) {
        self.changes_tx.send_modify(|n| *n += 1);
    }

    /// Both processes live and neither direction is cut: a connection lives.
    fn connected(&self, a: End, b: End) -> bool {
        let net = self.net.lock();
        let lives = |end: End| net.nodes.get(&end.0).is_some_and(|process| process.life == end.1);
        lives(a) && lives(b) && !net.cut.contains(&(a.0, b.0)) && !net.cut.contains(&(b.0, a.0))
    }

    fn is_stalled(&self, from: End, to: End) -> bool {
        self.net.lock().stalled.contains(&(from.0, to.0))
    }

    fn reach(&self, from: End, to: NodeId) -> Result<(Process, Card), PeerError> {
        let gone = |why: &str| PeerError::Unreachable { node: to, why: why.into() };
        let net = self.net.lock();
        let me = net.nodes.get(&from.0).filter(|me| me.life == from.1).ok_or_else(|| gone("this node is dead"))?.clone();
        let process = net.nodes.get(&to).cloned().ok_or_else(|| gone("connection refused"))?;
        let cut = net.cut.contains(&(from.0, to)) || net.cut.contains(&(to, from.0));
        drop(net);
        let outlived = || me.handler.is_outlived(&process.handler.card());
        if cut || outlived() { Err(gone("cut")) } else { Ok((process, me.handler.card())) }
    }

    /// The way of one frame; false: it was lost, or the connection broke meanwhile.
    async fn pass(&self, from: End, to: End) -> bool {
        let (delay, lost) = {
            let mut net = self.net.lock();
            let (least, most, losses) = (net.delay_least, net.delay_most, net.losses);
            let delay = if most.is_zero() { most } else { net.rng.random_range(least..=most) };
            (delay, losses > 0 && net.rng.random_ratio(losses, 1000))
        };
        if lost {
            return false;
        }
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let mut changes_rx = self.changes_tx.subscribe();
        while self.connected(from, to) {
            changes_rx.borrow_and_update();
            if !self.is_stalled(from, to) {
                return true;
            }
            if changes_rx.changed().await.is_err() {
                return false;
            }
        }
        false
    }

    async fn lagging(&self, to: NodeId) {
        let lag = self.net.lock().lags.get(&to).copied().unwrap_or_default();
        if !lag.is_zero() {
            tokio::time::sleep(lag).await;
        }
    }

    /// Moves frames one way until the link breaks; `requests`: what is to be appended over there. True: a frame is missing.
    async fn carry(self, from: End, to: End, requests: bool, mut rx: mpsc::Receiver<Frame>, tx: mpsc::Sender<Frame>) -> bool {
        let mut changes_rx = self.changes_tx.subscribe();
        // It may have broken before this task first ran.
        if !self.connected(from, to) {
            return true;
        }
        loop {
            tokio::select! {
                biased;
                _ = changes_rx.changed() => if !self.connected(from, to) { return true },
                frame = rx.recv() => {
                    let Some(frame) = frame else { return false };
                    if requests {
                        self.lagging(to.0).await;
                    }
                    if !self.pass(from, to).await {
                        return true;
                    }
                    if tx.send(frame).await.is_err() {
                        return false;
                    }
                }
                () = tx.closed() => return false,
            }
        }
    }
}

/// The two ways of a stream: one that misses a frame takes the other with it, one that was ended does not.
async fn both(there: impl Future<Output = bool>, back: impl Future<Output = bool>) {
    let (mut there, mut back) = (std::pin::pin!(there), std::pin::pin!(back));
    tokio::select! {
        broken = &mut there => if !broken { back.await; },
        broken = &mut back => if !broken { there.await; },
    }
}

struct MemoryTransport {
    me: End,
    network: MemoryNetwork,
}

impl Transport for MemoryTransport {
    fn ask(&self, to: NodeId, frame: Frame, timeout: Duration) -> BoxFuture<'static, Result<Frame, PeerError>> {
        let (network, me) = (self.network.clone(), self.me);
        Box::pin(async move {
            let (process, card) = network.reach(me, to)?;
            let (far, broken) = ((to, process.life), || PeerError::Unreachable { node: to, why: "the connection broke".into() });
            let answer = async {
                if !network.pass(me, far).await {
                    return Err(broken());
                }
                let answer = process.runtime.spawn(async move { process.handler.ask(card, frame).await });
                let answer = answer.await.map_err(|_| broken())?;
                if network.pass(far, me).await { answer } else { Err(broken()) }
            };
            tokio::time::timeout(timeout, answer).await.unwrap_or(Err(PeerError::Timeout { node: to, after: timeout }))
        })
    }

    fn open(&self, to: NodeId, kind: StreamKind) -> BoxFuture<'static, Result<Duplex, PeerError>> {
        let (network, me) = (self.network.clone(), self.me);
        Box::pin(async move {
            let (process, card) = network.reach(me, to)?;
            let far = (to, process.life);
            let pair = || mpsc::channel(STREAM_CAPACITY);
            let ((tx, near_rx), (far_tx, far_rx)) = (pair(), pair());
            let ((back_tx, back_near_rx), (back_far_tx, back_rx)) = (pair(), pair());
            let there = network.clone().carry(me, far, kind == StreamKind::Append, near_rx, far_tx);
            let back = network.carry(far, me, false, back_near_rx, back_far_tx);
            tokio::spawn(both(there, back));
            let _there = process.runtime.enter();
            process.handler.stream(card, kind, ReceiverStream::new(far_rx).map(Ok).boxed(), back_tx);
            Ok(Duplex { tx, rx: ReceiverStream::new(back_rx).map(Ok).boxed() })
        })
    }

    fn link(&self, to: NodeId) -> LinkState {
        let net = self.network.net.lock();
        let far = net.nodes.get(&to).map(|process| (to, process.life));
        let refused = net.gone.contains(&to) && !net.cut.contains(&(self.me.0, to));
        let seen = net.gone.contains(&to) || far.is_some();
        drop(net);
        let up = if far.is_some_and(|far| self.network.connected(self.me, far)) { 2 } else { 0 };
        LinkState { up, refused, seen }
    }

    fn link_changes(&self) -> watch::Receiver<u64> {
        self.network.changes_tx.subscribe()
    }

    fn card_changed(&self) {
        self.network.changed();
    }

    fn shutdown(&self) {
        self.network.end(self.me.0, Some(self.me.1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream::BoxStream;

    /// Answers with what it was asked, and sends streams back.
    struct Echo(Card);

    impl Handler for Echo {
        fn card(&self) -> Card {
            self.0
        }

        fn ask(&self, _: Card, frame: Frame) -> BoxFuture<'static, Result<Frame, PeerError>> {
            Box::pin(async move { Ok(frame) })
        }

        fn stream(&self, _: Card, _: StreamKind, mut rx: BoxStream<'static, Result<Frame, PeerError>>, tx: mpsc::Sender<Frame>) {
            tokio::spawn(async move {
                while let Some(Ok(frame)) = rx.next().await
                    && tx.send(frame).await.is_ok()
                {}
            });
        }
    }

    const ONE: NodeId = NodeId(1);
    const TWO: NodeId = NodeId(2);

    fn echo(node: NodeId) -> Arc<dyn Handler> {
        let identity = (crate::model::Generation(1), crate::model::Incarnation(u64::from(node.0)));
        Arc::new(Echo(Card { node, generation: identity.0, incarnation: identity.1, cluster: None }))
    }

    fn frame(text: &'static [u8]) -> Frame {
        crate::peer::transport::head_only(bytes::Bytes::from_static(text))
    }

    #[tokio::test]
    async fn a_stalled_link_looks_alive_and_delivers_when_it_is_healed() {
        let network = MemoryNetwork::new(1);
        let (one, _two) = (network.join(ONE, echo(ONE)), network.join(TWO, echo(TWO)));
        let mut path = one.open(TWO, StreamKind::Append).await.expect("opens");
        network.stall(TWO, ONE);
        assert_eq!(one.link(TWO).up, 2);
        path.tx.send(frame(b"a")).await.expect("taken");
        assert!(tokio::time::timeout(Duration::from_millis(30), path.rx.next()).await.is_err(), "nothing comes back");
        let asked = one.ask(TWO, frame(b"b"), Duration::from_millis(30)).await;
        assert!(matches!(asked, Err(PeerError::Timeout { .. })), "{asked:?}");
        network.heal();
        let come = path.rx.next().await.expect("the stream lives").expect("a frame");
        assert_eq!(come.head, frame(b"a").head);
    }

    #[tokio::test]
    async fn what_is_lost_is_not_answered_or_answered_in_vain_and_breaks_its_stream() {
        let network = MemoryNetwork::new(3);
        let (one, _two) = (network.join(ONE, echo(ONE)), network.join(TWO, echo(TWO)));
        network.lose(200);
        let mut unanswered = 0;
        for _ in 0..200 {
            unanswered += u32::from(one.ask(TWO, frame(b"a"), Duration::from_secs(1)).await.is_err());
        }
        assert!((30..150).contains(&unanswered), "{unanswered} of 200");
        let mut path = one.open(TWO, StreamKind::Append).await.expect("opens");
        let mut sent = 0;
        while path.tx.send(frame(b"a")).await.is_ok() && sent < 1000 {
            sent += 1;
        }
        assert!(sent < 1000, "a stream that lost a frame goes on");
        let mut came = 0;
        while let Some(Ok(_)) = path.rx.next().await {
            came += 1;
        }
        assert!(came < sent, "{came} of {sent}");
        network.lose(0);
        assert!(one.ask(TWO, frame(b"b"), Duration::from_secs(1)).await.is_ok());
    }

    #[tokio::test]
    async fn a_process_that_ended_reaches_nobody_although_its_successor_is_there() {
        let network = MemoryNetwork::new(2);
        let (old, _two) = (network.join(ONE, echo(ONE)), network.join(TWO, echo(TWO)));
        let path = old.open(TWO, StreamKind::Append).await.expect("opens");
        network.kill(ONE);
        let new = network.join(ONE, echo(ONE));
        assert!(old.ask(TWO, frame(b"a"), Duration::from_secs(1)).await.is_err());
        assert!(old.open(TWO, StreamKind::Append).await.is_err());
        path.tx.closed().await;
        old.shutdown();
        assert_eq!(new.ask(TWO, frame(b"b"), Duration::from_secs(1)).await.expect("an answer").head, frame(b"b").head);
    }
}
