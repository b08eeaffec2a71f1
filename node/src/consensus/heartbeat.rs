//! Heartbeats of all groups from this node to one other node on one stream, several in one frame. Each passes through the follower's
//! RaftCore and is answered one to one; the multiplexer never answers itself.

use super::boot::BootTime;
use super::types::Types;
use super::watch::Watch;
use super::wire;
use crate::model::{NodeId, ShardId};
use crate::peer::{Duplex, Frame, PeerError, StreamKind, Transport};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::StreamExt;
use openraft::raft::{AppendEntriesRequest, StreamAppendResult};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// So often the other tasks may run before a heartbeat goes: groups tick together (see `clock`), their heartbeats share a frame.
const COMPANY_TURNS: usize = 4;
/// Heartbeats that may wait: each group has at most one in flight.
const QUEUE: usize = 1024;
/// Of one node to one group: its leader has one in flight, and sends the next when it gave that one up.
const WAITING: usize = 8;

struct Beat {
    shard: ShardId,
    request: AppendEntriesRequest<Types>,
    answer_tx: oneshot::Sender<Answered>,
}

/// When the heartbeat left, and what the follower said.
type Answered = (BootTime, StreamAppendResult<Types>);

/// Sends heartbeats to one node.
pub struct HeartbeatMux {
    to: NodeId,
    beats_tx: mpsc::Sender<Beat>,
}

impl HeartbeatMux {
    /// Starts the sender's task; it ends with the handle.
    pub fn start(transport: Arc<dyn Transport>, to: NodeId, watch: &Arc<Watch>) -> Arc<HeartbeatMux> {
        let (beats_tx, beats_rx) = mpsc::channel(QUEUE);
        watch.spawn(format!("the sender of heartbeats to node {to}"), send(transport, to, beats_rx));
        Arc::new(HeartbeatMux { to, beats_tx })
    }

    /// One heartbeat and its answer.
    pub async fn beat(&self, shard: ShardId, request: AppendEntriesRequest<Types>, timeout: Duration) -> Result<Answered, PeerError> {
        let (answer_tx, answer_rx) = oneshot::channel();
        let gone = || PeerError::Unreachable { node: self.to, why: "heartbeat stream broke".into() };
        self.beats_tx.try_send(Beat { shard, request, answer_tx }).map_err(|_| gone())?;
        match tokio::time::timeout(timeout, answer_rx).await {
            Ok(answer) => answer.map_err(|_| gone()),
            Err(_) => Err(PeerError::Timeout { node: self.to, after: timeout }),
        }
    }
}

/// Frames are `(id u32 | len u32 | append head)*` up and `(id u32 | len u32 | answer)*` down.
fn put_record(to: &mut BytesMut, id: u32, bytes: &[u8]) {
    to.put_u32_le(id);
    to.put_u32_le(bytes.len() as u32);
    to.put_slice(bytes);
}

fn get_records(mut head: Bytes) -> Result<Vec<(u32, Bytes)>, PeerError> {
    let mut records = Vec::new();
    while !head.is_empty() {
        let (Ok(id), Ok(len)) = (head.try_get_u32_le(), head.try_get_u32_le()) else { return Err(PeerError::Malformed("heartbeat")) };
        if head.len() < len as usize {
            return Err(PeerError::Malformed("heartbeat length"));
        }
        records.push((id, head.split_to(len as usize)));
    }
    Ok(records)
}

async fn send(transport: Arc<dyn Transport>, to: NodeId, mut beats_rx: mpsc::Receiver<Beat>) {
    while let Some(first) = beats_rx.recv().await {
        // Without a connection the beat's answer is dropped here, which is an error at once.
        let Ok(path) = transport.open(to, StreamKind::Heartbeat).await else { continue };
        if let Err(error) = carry(path, first, &mut beats_rx).await {
            tracing::debug!(%to, %error, "heartbeat stream ended");
        }
    }
}

async fn carry(mut path: Duplex, first: Beat, beats_rx: &mut mpsc::Receiver<Beat>) -> Result<(), PeerError> {
    let mut waiting: HashMap<u32, (BootTime, oneshot::Sender<Answered>)> = HashMap::new();
    let (mut id, mut next) = (0u32, Some(first));
    loop {
        if let Some(first) = next.take() {
            for _ in 0..COMPANY_TURNS {
                tokio::task::yield_now().await;
            }
            let mut head = BytesMut::with_capacity(128);
            let (sent, mut beat) = (BootTime::now(), Some(first));
            while let Some(Beat { shard, request, answer_tx }) = beat {
                id = id.wrapping_add(1);
                put_record(&mut head, id, &wire::write_append(shard, request).head);
                waiting.insert(id, (sent, answer_tx));
                beat = beats_rx.try_recv().ok();
            }
            waiting.retain(|_, (_, tx)| !tx.is_closed());
            let frame = Frame { head: head.freeze(), body: Vec::new() };
            path.tx.try_send(frame).map_err(|_| PeerError::Refused("the heartbeat stream is stuck".into()))?;
        }
        tokio::select! {
            answer = path.rx.next() => {
                let frame = answer.unwrap_or(Err(PeerError::Refused("the heartbeat stream ended".into())))?;
                for (id, mut record) in get_records(frame.head)? {
                    if let Some((sent, tx)) = waiting.remove(&id) {
                        let _ = tx.send((sent, wire::read_appended(&mut record)?));
                    }
                }
            }
            beat = beats_rx.recv() => match beat {
                None => return Ok(()),
                some => next = some,
            },
        }
    }
}

/// Heartbeats that wait for this node's groups. A group that hangs would otherwise gather them, each with its task.
#[derive(Default)]
pub struct Beats(Arc<Mutex<HashMap<(NodeId, ShardId), usize>>>);

/// The place of one of them.
pub struct Turn {
    beats: Arc<Mutex<HashMap<(NodeId, ShardId), usize>>>,
    of: (NodeId, ShardId),
}

impl Beats {
    /// `None`: so many of this node wait for that group that one more says nothing new.
    pub fn turn(&self, from: NodeId, shard: ShardId) -> Option<Turn> {
        let mut beats = self.0.lock();
        let waiting = beats.entry((from, shard)).or_default();
        if *waiting == WAITING {
            return None;
        }
        *waiting += 1;
        Some(Turn { beats: self.0.clone(), of: (from, shard) })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(waiting) = self.beats.lock().get_mut(&self.of) {
            *waiting -= 1;
        }
    }
}

/// Splits an arrived frame into requests, each with the id that its answer carries.
pub fn read_beats(frame: Frame) -> Result<Vec<(u32, ShardId, AppendEntriesRequest<Types>)>, PeerError> {
    let mut beats = Vec::new();
    for (id, head) in get_records(frame.head)? {
        let (shard, request) = wire::read_append(Frame { head, body: Vec::new() })?;
        beats.push((id, shard, request));
    }
    Ok(beats)
}

/// The answer to one heartbeat.
pub fn write_beat_answer(id: u32, result: &StreamAppendResult<Types>) -> Frame {
    let mut head = BytesMut::with_capacity(48);
    put_record(&mut head, id, &wire::write_appended(result));
    Frame { head: head.freeze(), body: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_one_node_and_group_only_so_many_heartbeats_wait() {
        let (beats, node, shard) = (Beats::default(), NodeId(2), ShardId(1));
        let mut turns: Vec<Turn> = (0..WAITING).map(|_| beats.turn(node, shard).expect("there is room")).collect();
        assert!(beats.turn(node, shard).is_none());
        assert!(beats.turn(NodeId(3), shard).is_some() && beats.turn(node, ShardId(2)).is_some());
        turns.pop();
        assert!(beats.turn(node, shard).is_some(), "one was answered");
    }
}
