//! Streams on the client's side: finding, making and deleting them, publishing to them in chunks, asking how far they are, reading them. All
//! protocols use this; what a leader does is in `machine::streams` and in the lanes.
//!
//! Publishing and asking go to the shard's leader, wherever it is; reading is done on this node, from its own replica.

mod addresses;
mod arguments;
mod asks;
mod bells;
mod consumer;
mod cursor;
mod groups;
mod opening;
mod publishing;
mod reader;
mod source;
mod super_streams;

pub use addresses::Addresses;
pub use bells::Bells;
pub(super) use groups::Clerk;
pub use opening::StreamReading;
pub use reader::{ReadError, Reader};
pub use source::{Replica, StreamSource};

pub(super) use arguments::check_known;
pub(super) use consumer::{Consume, StreamConsumer};
pub(super) use publishing::{KnownStreams, Record, stream_target};

use super::access::{Kind, Right};
use super::connection::Connection;
use super::lane::{Answer, Run, named, no_quorum};
use super::mailbox::ChannelRef;
use super::names::{check_not_reserved, not_found};
use super::{Edge, Identity};
use crate::machine::catalog::queue_text;
use crate::model::catalog::{CatalogCommand, CatalogReply, Name, QueueSpec, Refusal, Table, Value};
use crate::model::limits::STREAM_REFERENCE_BYTES;
use crate::model::settings::QueueSettings;
use crate::model::stream::{Append, OffsetSpec, StreamInfo, StreamState, StreamTarget};
use crate::model::{Offset, QueueId};
use std::sync::Arc;

/// Where this node's streams are read.
pub(super) struct Reading {
    pub source: Arc<dyn StreamSource>,
    pub bells: Arc<Bells>,
}

impl Edge {
    /// From now on streams can be read here. Once.
    pub fn set_streams(&self, source: Arc<dyn StreamSource>, bells: Arc<Bells>) {
        let _ = self.reading.set(Reading { source, bells });
    }

    /// A stream of that name, whoever asks. `None`: there is none, or it is another kind of queue.
    pub fn find_stream(&self, name: &Name) -> Option<StreamInfo> {
        let (target, settings) = {
            let catalog = self.catalog.read();
            let record = catalog.queue(name)?;
            let settings = catalog.settings(record).stream?;
            let (stream, shard, catalog_index) = (record.id, record.shard, catalog.index());
            (StreamTarget { stream, shard, publisher: None, catalog_index, filter_bytes: settings.filter_bytes, leader: None }, settings)
        };
        let leader = self.leaders.leadership(target.shard).borrow().map(|leader| leader.node());
        let replicas = self.reading.get().map(|reading| reading.source.holders(target.shard)).unwrap_or_default();
        Some(StreamInfo { target, leader, replicas, settings })
    }

    /// Begins to read a stream on this node.
    ///
    /// # Errors
    /// The stream is not there, or not on this node.
    pub fn read_stream(&self, stream: &StreamTarget, from: OffsetSpec) -> Result<Reader, ReadError> {
        let reading = self.reading.get().ok_or(ReadError::NotHere)?;
        let replica = reading.source.replica(stream.shard).ok_or(ReadError::NotHere)?;
        Reader::new(stream.stream, replica, reading.bells.of(stream.stream), from)
    }

    pub(super) async fn stream_state(
        &self,
        (stream, after): (Arc<StreamTarget>, u64),
        publisher: Option<String>,
        reader: Option<String>,
    ) -> Result<StreamState, Refusal> {
        let lane = self.lane(stream.shard);
        let answer = lane.stream(self.next_id(), stream.stream, (publisher, reader), after);
        match answer.await {
            Ok(Ok(Answer::Stream(state))) => Ok(state),
            Ok(Err(refusal)) => Err(self.named_stream(stream.stream, refusal)),
            Ok(Ok(Answer::Stats(_) | Answer::Purged(_))) | Err(_) => Err(Refusal::Unavailable(no_quorum(stream.shard))),
        }
    }

    fn named_stream(&self, stream: QueueId, refusal: Refusal) -> Refusal {
        match self.catalog.read().queue_by_id(stream) {
            Some(record) => named(refusal, &record.spec.name),
            None => refusal,
        }
    }
}

fn check_settings(name: &Name, arguments: &Table) -> Result<(), Refusal> {
    let check = QueueSettings::check(&queue_text(name), arguments);
    check.map(drop).map_err(|why| Refusal::Precondition(why.to_string()))
}

/// What a connection does with streams. Names are those of its vhost.
impl Connection {
    fn identity(&self) -> Result<&Identity, Refusal> {
        self.mailbox.identity.get().ok_or_else(|| Refusal::NotAllowed("not in a vhost".to_string()))
    }

    fn may(&self, right: Right, name: &str) -> Result<(), Refusal> {
        let edge = &self.edge;
        edge.patterns.check(&edge.catalog.read(), self.identity()?.who(), right, (Kind::Queue, name))
    }

    /// A stream, if the client may do that with it.
    ///
    /// # Errors
    /// `NotFound`: no stream of that name (also when it is another kind of queue); `Access`: not allowed.
    pub fn stream(&self, name: &str, right: Option<Right>) -> Result<StreamInfo, Refusal> {
        right.map_or(Ok(()), |right| self.may(right, name))?;
        let name = self.identity()?.name(name);
        self.edge.find_stream(&name).ok_or_else(|| not_found(Kind::Queue, &name))
    }

    /// A stream to publish to as this publisher, at most 255 bytes; "" has no name.
    ///
    /// # Errors
    /// As `stream`; `Precondition`: the name is too long.
    pub fn stream_publisher(&self, stream: &str, publisher: &str) -> Result<Arc<StreamTarget>, Refusal> {
        if publisher.len() > STREAM_REFERENCE_BYTES {
            return Err(Refusal::Precondition(format!("the name of a publisher is longer than {STREAM_REFERENCE_BYTES} bytes")));
        }
        let StreamInfo { target, leader, .. } = self.stream(stream, Some(Right::Write))?;
        let publisher = (!publisher.is_empty()).then(|| publisher.into());
        let leader = leader.filter(|_| self.edge.config.tells_leaders);
        Ok(Arc::new(StreamTarget { publisher, leader, ..target }))
    }

    /// Makes a stream. `arguments`: those of a queue declare (`x-max-age`…), checked here. Resolves with whether it was made now: an equal
    /// one may have been there.
    ///
    /// # Errors
    /// `Inequivalent`: there is another queue of that name; `Precondition`: an argument; `Access`.
    pub fn create_stream(&self, name: &str, mut arguments: Table) -> impl Future<Output = Result<bool, Refusal>> + Send + 'static {
        arguments.insert("x-queue-type".to_owned(), Value::Text(b"stream".to_vec()));
        let checked = self.may(Right::Configure, name).and_then(|()| {
            check_not_reserved(Kind::Queue, name)?;
            let name = self.identity()?.name(name);
            check_settings(&name, &arguments)?;
            Ok(QueueSpec { name, durable: true, auto_delete: false, exclusive_owner: None, arguments })
        });
        let edge = self.edge.clone();
        async move {
            let (node, incarnation, spec) = (edge.config.node, edge.config.incarnation, checked?);
            let shard = edge.place(&spec);
            match edge.submit(CatalogCommand::DeclareQueue { spec, node, incarnation, shard }).await? {
                CatalogReply::Queue { created, .. } => Ok(created),
                CatalogReply::Done | CatalogReply::Refused(_) => {
                    Err(Refusal::Unavailable("the catalog's answer to a declare names no queue".to_string()))
                }
            }
        }
    }

    /// Deletes a stream.
    ///
    /// # Errors
    /// `NotFound`, `Access`.
    pub fn delete_stream(&self, name: &str) -> impl Future<Output = Result<(), Refusal>> + Send + 'static {
        let (edge, found) = (self.edge.clone(), self.stream(name, Some(Right::Configure)));
        async move { edge.submit(CatalogCommand::DeleteQueue { id: found?.target.stream }).await.map(drop) }
    }

    /// How far a stream is and what it remembers of a publisher and a reader, behind everything that this connection published before.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable`: its shard has no leader.
    pub fn stream_state(
        &self,
        stream: &Arc<StreamTarget>,
        publisher: Option<&str>,
        reader: Option<&str>,
    ) -> impl Future<Output = Result<StreamState, Refusal>> + Send + 'static {
        let after = self.lanes.iter().find(|entered| entered.lane.shard == stream.shard).map_or(0, |entered| entered.mark);
        let (edge, stream) = (self.edge.clone(), stream.clone());
        let (publisher, reader) = (publisher.map(str::to_owned), reader.map(str::to_owned));
        async move { edge.stream_state((stream, after), publisher, reader).await }
    }

    /// A reader of the stream is this far. Nobody is told; what is asked later by this connection comes behind it. A name of more than 255
    /// bytes is not stored.
    pub fn store_offset(&mut self, stream: &StreamTarget, reader: &str, offset: Offset) {
        if reader.len() > STREAM_REFERENCE_BYTES {
            return;
        }
        let at = self.lane_at(stream.shard);
        self.lanes[at].mark = self.lanes[at].lane.store(stream, reader, offset);
    }

    fn nack_all(&self, at: ChannelRef, mut append: Append) {
        while let Some((entry, len)) = append.published.first() {
            self.mailbox.nack(at, entry.id, entry.id);
            append.published.advance(len);
        }
    }

    /// Takes messages for a stream, or gives them back when they have to wait.
    pub(super) fn append_to_stream(&mut self, append: Append) -> Result<(), Append> {
        let at = self.at(append.channel);
        self.hold = None;
        match self.check_node(true) {
            Ok(()) => {}
            Err(None) => {
                self.nack_all(at, append);
                return Ok(());
            }
            Err(Some(hold)) => {
                self.hold = Some(hold);
                return Err(append);
            }
        }
        let lane = self.lane_at(append.to.shard);
        if !self.lanes[lane].lane.has_room() {
            // Were one of a publisher with a name left out while later ids arrive, who says it again would be told that it is known.
            let (full, answered) = (self.lanes[lane].lane.clone(), append.to.publisher.is_none());
            if self.waits_for_room(full, answered) {
                return Err(append);
            }
            self.nack_all(at, append);
            return Ok(());
        }
        let run = Run::of_stream(self.mailbox.clone(), at);
        let entered = &mut self.lanes[lane];
        let (mark, count) = entered.lane.append(&append.to, append.published, &run);
        entered.mark = mark;
        self.published += count;
        Ok(())
    }
}
