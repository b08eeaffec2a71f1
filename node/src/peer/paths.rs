//! Edge paths over the network: two streams per path, one for batches and verdicts, one for deliveries, on separate connections
//! (rule 16). The edge's node calls `connect`; the leader's node joins the two streams and hands a `LeaderEnd` to its acceptor.

use super::link_codec::{self, Opening};
use super::transport::{Frame, PeerError, StreamKind, Transport};
use crate::model::ports::{EdgeEnd, LeaderEnd, path};
use crate::model::{NodeId, ShardId};
use futures::stream::BoxStream;
use futures::{StreamExt, TryFutureExt};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Called with each new path's end on the leader's node. Must not block.
pub type Acceptor = Arc<dyn Fn(ShardId, LeaderEnd) + Send + Sync>;

type Frames = BoxStream<'static, Result<Frame, PeerError>>;

/// Values that ride in one frame when they wait anyway.
const VALUES_PER_FRAME: usize = 64;
/// A half whose other half does not come is dropped.
const HALF_LIFE: Duration = Duration::from_secs(5);

/// A path to `shard` on `leader`'s node. Its tasks run on the caller's runtime and end with either end.
pub async fn connect(transport: &dyn Transport, me: NodeId, shard: ShardId, leader: NodeId) -> io::Result<EdgeEnd> {
    let opening = Opening { path: rand::random(), shard };
    let open = |kind| transport.open(leader, kind).map_err(io::Error::other);
    let (edge, deliver) = futures::try_join!(open(StreamKind::Edge), open(StreamKind::Deliver))?;
    for tx in [edge.tx.clone(), deliver.tx.clone()] {
        tx.send(opening.write()).await.map_err(|_| io::Error::other("the path broke while it was opened"))?;
    }
    let (edge_end, near) = path(me);
    let LeaderEnd { up_rx, down_tx, deliveries_tx, .. } = near;
    tokio::spawn(pump_out(up_rx, edge.tx, |values| link_codec::write_up(values.drain(..))));
    tokio::spawn(pump_in(edge.rx, down_tx, link_codec::read_down));
    tokio::spawn(async move {
        // The stream to the leader carries only the opening, and is kept open for the other direction.
        let _open = deliver.tx;
        pump_in(deliver.rx, deliveries_tx, link_codec::read_deliveries).await;
    });
    Ok(edge_end)
}

/// Values into frames, as many at once as wait.
async fn pump_out<T>(mut from: mpsc::Receiver<T>, to: mpsc::Sender<Frame>, write: impl Fn(&mut Vec<T>) -> Frame) {
    let mut values = Vec::with_capacity(VALUES_PER_FRAME);
    loop {
        let n = tokio::select! {
            n = from.recv_many(&mut values, VALUES_PER_FRAME) => n,
            () = to.closed() => 0,
        };
        if n == 0 || to.send(write(&mut values)).await.is_err() {
            return;
        }
    }
}

/// Frames into values.
async fn pump_in<T>(mut from: Frames, to: mpsc::Sender<T>, read: impl Fn(Frame) -> Result<Vec<T>, PeerError>) {
    loop {
        let frame = tokio::select! {
            frame = from.next() => frame,
            () = to.closed() => return,
        };
        let values = match frame {
            Some(frame) => frame.and_then(&read),
            None => return,
        };
        match values {
            Ok(values) => {
                for value in values {
                    if to.send(value).await.is_err() {
                        return;
                    }
                }
            }
            Err(error) => return tracing::debug!(%error, "path ended"),
        }
    }
}

struct Half {
    kind: StreamKind,
    shard: ShardId,
    rx: Frames,
    tx: mpsc::Sender<Frame>,
    since: Instant,
}

/// The leader's node: joins the two streams of each path.
pub struct Joiner {
    accept: Acceptor,
    halves: Arc<Mutex<HashMap<(NodeId, u64), Half>>>,
}

impl Joiner {
    /// Hands complete paths to `accept`.
    pub fn new(accept: Acceptor) -> Joiner {
        Joiner { accept, halves: Arc::default() }
    }

    /// A stream of kind `Edge` or `Deliver` has arrived from `node`.
    pub fn joined(&self, node: NodeId, kind: StreamKind, mut rx: Frames, tx: mpsc::Sender<Frame>) {
        let (accept, halves) = (self.accept.clone(), self.halves.clone());
        tokio::spawn(async move {
            let Ok(Some(Ok(first))) = tokio::time::timeout(HALF_LIFE, rx.next()).await else { return };
            let Ok(Opening { path, shard }) = Opening::read(first) else { return };
            let half = Half { kind, shard, rx, tx, since: Instant::now() };
            let other = {
                let mut halves = halves.lock();
                halves.retain(|_, h| h.since.elapsed() < HALF_LIFE);
                match halves.remove(&(node, path)) {
                    Some(other) => other,
                    None => {
                        halves.insert((node, path), half);
                        return;
                    }
                }
            };
            let (edge, deliver) = if half.kind == StreamKind::Edge { (half, other) } else { (other, half) };
            if (edge.kind, deliver.kind) == (StreamKind::Edge, StreamKind::Deliver) && edge.shard == deliver.shard {
                serve(node, edge, deliver, &accept);
            }
        });
    }
}

fn serve(node: NodeId, edge: Half, deliver: Half, accept: &Acceptor) {
    let shard = edge.shard;
    let (near, leader_end) = path(node);
    let EdgeEnd { up_tx, down_rx, deliveries_rx, .. } = near;
    tokio::spawn(pump_in(edge.rx, up_tx, link_codec::read_up));
    tokio::spawn(pump_out(down_rx, edge.tx, |values| link_codec::write_down(values.drain(..))));
    tokio::spawn(async move {
        let _open = deliver.rx;
        pump_out(deliveries_rx, deliver.tx, |values| link_codec::write_deliveries(values.drain(..))).await;
    });
    accept(shard, leader_end);
}
