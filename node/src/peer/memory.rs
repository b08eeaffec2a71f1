//! A network in memory with the same seams as the real one, for tests and the simulator: nodes join it, links are cut and healed one
//! direction at a time, frames are delayed. Cutting a link breaks its streams like a reset connection.

use super::transport::{Card, Duplex, Frame, Handler, LinkState, PeerError, STREAM_CAPACITY, StreamKind, Transport};
use crate::model::NodeId;
use futures::StreamExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

#[derive(Default)]
struct Net {
    nodes: HashMap<NodeId, Arc<dyn Handler>>,
    /// Were there once and are gone: dialing them is refused.
    gone: HashSet<NodeId>,
    cut: HashSet<(NodeId, NodeId)>,
    delay: Duration,
}

/// The network; cheap to clone.
#[derive(Clone)]
pub struct MemoryNetwork {
    net: Arc<Mutex<Net>>,
    changes_tx: watch::Sender<u64>,
}

impl Default for MemoryNetwork {
    fn default() -> MemoryNetwork {
        MemoryNetwork { net: Arc::default(), changes_tx: watch::channel(0).0 }
    }
}

impl MemoryNetwork {
    /// A node's process starts.
    pub fn join(&self, node: NodeId, handler: Arc<dyn Handler>) -> Arc<dyn Transport> {
        let mut net = self.net.lock();
        net.gone.remove(&node);
        net.nodes.insert(node, handler);
        drop(net);
        self.changed();
        Arc::new(MemoryTransport { me: node, network: self.clone() })
    }

    /// A node's process dies: its streams break, dialing it is refused.
    pub fn kill(&self, node: NodeId) {
        let mut net = self.net.lock();
        net.nodes.remove(&node);
        net.gone.insert(node);
        drop(net);
        self.changed();
    }

    /// Nothing passes from `from` to `to` any more, in silence.
    pub fn cut(&self, from: NodeId, to: NodeId) {
        self.net.lock().cut.insert((from, to));
        self.changed();
    }

    /// Everything passes again.
    pub fn heal(&self) {
        self.net.lock().cut.clear();
        self.changed();
    }

    /// Every frame takes this long.
    pub fn delay(&self, delay: Duration) {
        self.net.lock().delay = delay;
    }

    fn changed(&self) {
        self.changes_tx.send_modify(|n| *n += 1);
    }

    fn passes(&self, from: NodeId, to: NodeId) -> bool {
        let net = self.net.lock();
        net.nodes.contains_key(&from) && net.nodes.contains_key(&to) && !net.cut.contains(&(from, to))
    }

    /// Both directions pass: a connection lives.
    fn connected(&self, a: NodeId, b: NodeId) -> bool {
        self.passes(a, b) && self.passes(b, a)
    }

    fn reach(&self, from: NodeId, to: NodeId) -> Result<(Arc<dyn Handler>, Card, Duration), PeerError> {
        let gone = |why: &str| PeerError::Unreachable { node: to, why: why.into() };
        let net = self.net.lock();
        let me = net.nodes.get(&from).ok_or_else(|| gone("this node is dead"))?.clone();
        let handler = net.nodes.get(&to).cloned().ok_or_else(|| gone("connection refused"))?;
        let (cut, delay) = (net.cut.contains(&(from, to)) || net.cut.contains(&(to, from)), net.delay);
        drop(net);
        if cut { Err(gone("cut")) } else { Ok((handler, me.card(), delay)) }
    }

    /// Moves frames one way until the link breaks.
    async fn carry(self, from: NodeId, to: NodeId, mut rx: mpsc::Receiver<Frame>, tx: mpsc::Sender<Frame>) {
        let mut changes_rx = self.changes_tx.subscribe();
        loop {
            tokio::select! {
                biased;
                _ = changes_rx.changed() => if !self.connected(from, to) { return },
                frame = rx.recv() => {
                    let Some(frame) = frame else { return };
                    let delay = self.net.lock().delay;
                    if !delay.is_zero() {
                        tokio::time::sleep(delay).await;
                    }
                    if !self.connected(from, to) || tx.send(frame).await.is_err() {
                        return;
                    }
                }
                () = tx.closed() => return,
            }
        }
    }
}

struct MemoryTransport {
    me: NodeId,
    network: MemoryNetwork,
}

impl Transport for MemoryTransport {
    fn ask(&self, to: NodeId, frame: Frame, timeout: Duration) -> BoxFuture<'static, Result<Frame, PeerError>> {
        let (network, me) = (self.network.clone(), self.me);
        Box::pin(async move {
            let (handler, card, delay) = network.reach(me, to)?;
            let answer = async {
                if !delay.is_zero() {
                    tokio::time::sleep(delay).await;
                }
                let answer = handler.ask(card, frame).await;
                if !delay.is_zero() {
                    tokio::time::sleep(delay).await;
                }
                network.reach(me, to)?;
                answer
            };
            tokio::time::timeout(timeout, answer).await.unwrap_or(Err(PeerError::Timeout { node: to, after: timeout }))
        })
    }

    fn open(&self, to: NodeId, kind: StreamKind) -> BoxFuture<'static, Result<Duplex, PeerError>> {
        let (network, me) = (self.network.clone(), self.me);
        Box::pin(async move {
            let (handler, card, _) = network.reach(me, to)?;
            let pair = || mpsc::channel(STREAM_CAPACITY);
            let ((tx, near_rx), (far_tx, far_rx)) = (pair(), pair());
            let ((back_tx, back_near_rx), (back_far_tx, back_rx)) = (pair(), pair());
            tokio::spawn(network.clone().carry(me, to, near_rx, far_tx));
            tokio::spawn(network.carry(to, me, back_near_rx, back_far_tx));
            handler.stream(card, kind, ReceiverStream::new(far_rx).map(Ok).boxed(), back_tx);
            Ok(Duplex { tx, rx: ReceiverStream::new(back_rx).map(Ok).boxed() })
        })
    }

    fn link(&self, to: NodeId) -> LinkState {
        let up = if self.network.connected(self.me, to) { 2 } else { 0 };
        let net = self.network.net.lock();
        let refused = net.gone.contains(&to) && !net.cut.contains(&(self.me, to));
        LinkState { up, refused, seen: net.gone.contains(&to) || net.nodes.contains_key(&to) }
    }

    fn link_changes(&self) -> watch::Receiver<u64> {
        self.network.changes_tx.subscribe()
    }

    fn card_changed(&self) {
        self.network.changed();
    }

    fn shutdown(&self) {
        self.network.kill(self.me);
    }
}
