//! A reader of the stream protocol, which may be wanted before this node has heard of a new stream: the catalog has it, the shard's replica
//! here does not yet. Then it opens a little later.

use super::reader::{ReadError, Reader};
use crate::edge::{Connection, Edge};
use crate::model::ShardId;
use crate::model::stream::{OffsetSpec, StreamChunk, StreamTarget};
use std::sync::Arc;
use std::time::Duration;

/// Between two looks for a stream that this node has not heard of.
const UNKNOWN: Duration = Duration::from_millis(10);

/// Reads a stream. Dropping it ends the reading.
pub struct StreamReading(State);

enum State {
    Open(Box<Reader>),
    Opening { edge: Arc<Edge>, target: StreamTarget, from: OffsetSpec },
}

impl StreamReading {
    /// The next chunk, as soon as there is one. Cancel safe.
    ///
    /// # Errors
    /// The stream is gone, or cannot be read here.
    pub async fn next(&mut self) -> Result<StreamChunk, ReadError> {
        loop {
            match &mut self.0 {
                State::Open(reader) => return reader.next().await,
                State::Opening { edge, target, from } => match edge.read_stream(target, *from) {
                    Ok(reader) => self.0 = State::Open(Box::new(reader)),
                    Err(ReadError::Gone) if edge.knows_stream(target) => tokio::time::sleep(UNKNOWN).await,
                    Err(error) => return Err(error),
                },
            }
        }
    }
}

impl Edge {
    /// Whether the stream is in the catalog.
    pub(super) fn knows_stream(&self, target: &StreamTarget) -> bool {
        self.catalog.read().queue_by_id(target.stream).is_some()
    }

    fn has_another_leader(&self, target: &StreamTarget) -> bool {
        let Some(then) = target.leader else { return false };
        self.leaders.leadership(target.shard).borrow().is_some_and(|now| now.node() != then)
    }

    /// For ever: who waits for news of the catalog looks again when a shard has another leader.
    pub async fn tell_leaders(self: Arc<Edge>, shard: ShardId) {
        let mut leader_rx = self.leaders.leadership(shard);
        while leader_rx.changed().await.is_ok() {
            self.catalog_moved.send_replace(());
        }
    }
}

impl Connection {
    /// Begins to read a stream on this node; rights were checked when the client asked for it.
    ///
    /// # Errors
    /// The stream is gone, or not on this node.
    pub fn open_stream(&self, target: &StreamTarget, from: OffsetSpec) -> Result<StreamReading, ReadError> {
        match self.edge.read_stream(target, from) {
            Ok(reader) => Ok(StreamReading(State::Open(Box::new(reader)))),
            Err(ReadError::Gone) if self.edge.knows_stream(target) => {
                // What comes from now on is all that comes to a stream so young.
                let from = if from == OffsetSpec::Next { OffsetSpec::First } else { from };
                Ok(StreamReading(State::Opening { edge: self.edge.clone(), target: target.clone(), from }))
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the stream is still in the catalog, and led by whom its publisher wants it led.
    pub fn has_stream(&self, target: &StreamTarget) -> bool {
        self.edge.knows_stream(target) && !self.edge.has_another_leader(target)
    }
}
