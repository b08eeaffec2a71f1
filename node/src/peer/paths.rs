//! Edge paths over the network: two streams per path, one for batches and verdicts, one for deliveries, on separate connections
//! (rule 16). The edge's node calls `connect`; the leader's node joins the two streams and hands a `LeaderEnd` to its acceptor.

use super::link_codec::{self, Opening};
use super::transport::{Frame, PeerError, StreamKind, Transport};
use crate::model::link::{Deliveries, Delivery, ToEdge, ToLeader};
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
/// ... until their messages come to so many bytes: a frame that is too large breaks its connection (`client::FRAME_BYTES`), and one value
/// of any size fits.
const JOINED_BYTES: usize = 1 << 20;
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
    tokio::spawn(pump_out(up_rx, edge.tx, up_bytes, |values| link_codec::write_up(values.drain(..))));
    tokio::spawn(pump_in(edge.rx, down_tx, link_codec::read_down));
    tokio::spawn(async move {
        // The stream to the leader carries only the opening, and is kept open for the other direction.
        let _open = deliver.tx;
        pump_in(deliver.rx, deliveries_tx, link_codec::read_deliveries).await;
    });
    Ok(edge_end)
}

/// Bytes of a value's messages.
fn up_bytes(value: &ToLeader) -> usize {
    if let ToLeader::Batch(batch) = value { batch.ops.len() } else { 0 }
}

fn down_bytes(value: &ToEdge) -> usize {
    match value {
        ToEdge::Got { result: Ok(Some((message, _))), .. } => message.message.len(),
        ToEdge::Took { result: Ok(messages), .. } => messages_bytes(messages),
        _ => 0,
    }
}

fn delivered_bytes(value: &Deliveries) -> usize {
    messages_bytes(&value.messages)
}

fn messages_bytes(messages: &[Delivery]) -> usize {
    messages.iter().map(|message| message.message.len()).sum()
}

/// Values into frames, as many at once as wait and go into one.
async fn pump_out<T>(
    mut from: mpsc::Receiver<T>,
    to: mpsc::Sender<Frame>,
    bytes: impl Fn(&T) -> usize,
    write: impl Fn(&mut Vec<T>) -> Frame,
) {
    let mut values = Vec::with_capacity(VALUES_PER_FRAME);
    loop {
        let first = tokio::select! {
            first = from.recv() => first,
            () = to.closed() => None,
        };
        let Some(mut last) = first else { return };
        let mut joined = 0;
        loop {
            joined += bytes(&last);
            values.push(last);
            if joined >= JOINED_BYTES || values.len() == VALUES_PER_FRAME {
                break;
            }
            let Ok(next) = from.try_recv() else { break };
            last = next;
        }
        if to.send(write(&mut values)).await.is_err() {
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
    tokio::spawn(pump_out(down_rx, edge.tx, down_bytes, |values| link_codec::write_down(values.drain(..))));
    tokio::spawn(async move {
        let _open = deliver.rx;
        pump_out(deliveries_rx, deliver.tx, delivered_bytes, |values| link_codec::write_deliveries(values.drain(..))).await;
    });
    accept(shard, leader_end);
}

#[cfg(test)]
mod tests {
    use super::super::client::FRAME_BYTES;
    use super::*;
    use crate::model::link::Batch;
    use crate::model::{BatchSeq, ConsumerId, LeaderId, QueueId, Seq, SessionId, limits};
    use bytes::Bytes;

    /// Everything that `values` becomes, as it waits when the pump begins.
    async fn frames<T: Send + 'static>(values: Vec<T>, bytes: impl Fn(&T) -> usize, write: impl Fn(&mut Vec<T>) -> Frame) -> Vec<Frame> {
        let (value_tx, value_rx) = mpsc::channel(values.len());
        let (frame_tx, mut frame_rx) = mpsc::channel(values.len());
        for value in values {
            assert!(value_tx.send(value).await.is_ok());
        }
        drop(value_tx);
        pump_out(value_rx, frame_tx, bytes, write).await;
        let mut frames = Vec::new();
        while let Some(frame) = frame_rx.recv().await {
            frames.push(frame);
        }
        frames
    }

    fn len(frame: &Frame) -> usize {
        frame.head.len() + frame.body.iter().map(Bytes::len).sum::<usize>()
    }

    #[tokio::test]
    async fn large_messages_travel_in_frames_of_their_own_in_every_direction_and_small_ones_together() {
        let large = Bytes::from(vec![7; limits::MESSAGE_BYTES]);
        let delivery = |seq, message: &Bytes| Delivery {
            queue: QueueId(1),
            seq: Seq(seq),
            redelivered: false,
            failures: 0,
            failed_ms: 0,
            message: message.clone(),
        };
        for (message, count, most) in [(large, 5, 1), (Bytes::from_static(b"small"), 100, VALUES_PER_FRAME)] {
            let batch = |n| Batch { session: SessionId(1), seq: BatchSeq(n), floor: BatchSeq(0), catalog_index: 0, ops: message.clone() };
            let deliveries = |n| Deliveries { leader: LeaderId::default(), consumer: ConsumerId(1), messages: vec![delivery(n, &message)] };
            let got = |n| ToEdge::Got { request: n, result: Ok(Some((delivery(n, &message), 0))) };
            let took = |n| ToEdge::Took { request: n, result: Ok(vec![delivery(n, &message)]) };
            let up = frames((0..count).map(batch).map(ToLeader::Batch).collect(), up_bytes, |v| link_codec::write_up(v.drain(..))).await;
            let down: Vec<ToEdge> = (0..count).map(|n| if n % 2 == 0 { got(n) } else { took(n) }).collect();
            let down = frames(down, down_bytes, |v| link_codec::write_down(v.drain(..))).await;
            let delivered: Vec<Deliveries> = (0..count).map(deliveries).collect();
            let delivered = frames(delivered, delivered_bytes, |v| link_codec::write_deliveries(v.drain(..))).await;
            for frames in [&up, &down, &delivered] {
                assert!(frames.iter().all(|frame| len(frame) < FRAME_BYTES / 2), "of a size that is taken");
                assert_eq!(frames.len(), (count as usize).div_ceil(most));
            }
            let read = up.into_iter().flat_map(|frame| link_codec::read_up(frame).expect("well formed"));
            let seqs: Vec<u64> = read.map(|value| if let ToLeader::Batch(batch) = value { batch.seq.0 } else { 0 }).collect();
            assert_eq!(seqs, (0..count).collect::<Vec<_>>(), "all of them, in order");
        }
    }
}
