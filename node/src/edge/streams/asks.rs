//! What clients of the stream protocol ask, answered with their rights (RabbitMQ's rules) from the catalog, from leaders, and by commands.

use super::reader::ReadError;
use super::super_streams;
use crate::edge::Connection;
use crate::edge::access::{Kind, Right};
use crate::machine::catalog::Catalog;
use crate::model::catalog::{Refusal, Table, Value};
use crate::model::stream::{OffsetSpec, StreamChunk, StreamInfo, may_hold};
use crate::model::stream_step::{Advertised, Answer, Ask, Failure, Place, Places, Wanted};
use crate::model::{NodeId, Offset};
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::watch;

type Answered = Result<Answer, Failure>;

/// Chunks that are looked at, at most, for the first one that a filter lets through.
const RESOLVE_CHUNKS: usize = 1024;

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        match refusal {
            Refusal::NotFound { .. } => Failure::Missing,
            Refusal::Access(_) | Refusal::Locked(_) | Refusal::NotAllowed(_) => Failure::Refused,
            Refusal::Inequivalent(_) | Refusal::Precondition(_) | Refusal::NotImplemented(_) => Failure::Precondition,
            Refusal::Unavailable(_) => Failure::Unavailable,
        }
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Failure {
        match error {
            ReadError::Gone => Failure::Missing,
            ReadError::NotHere => Failure::Unavailable,
            ReadError::Io(_) => Failure::Internal,
        }
    }
}

/// A name as RabbitMQ takes it for something new: without line ends, not reserved, not empty.
pub(super) fn new_name(name: &str) -> Result<Arc<str>, Failure> {
    let name: String = name.chars().filter(|c| !matches!(c, '\n' | '\r')).collect();
    if name.is_empty() || name.starts_with("amq.") { Err(Failure::Precondition) } else { Ok(name.into()) }
}

/// Arguments of Create as those of a queue; what is not known is passed over, as by RabbitMQ.
pub(super) fn arguments(given: &[(String, String)]) -> Result<Table, Failure> {
    let mut table = Table::new();
    for (key, value) in given {
        let value = match key.as_str() {
            "max-age" | "queue-leader-locator" => Value::Text(value.clone().into_bytes()),
            "max-length-bytes" | "stream-max-segment-size-bytes" | "initial-cluster-size" | "stream-filter-size-bytes" => {
                Value::Int(value.parse().map_err(|_| Failure::Precondition)?)
            }
            _ => continue,
        };
        table.insert(format!("x-{key}"), value);
    }
    Ok(table)
}

impl Connection {
    /// Answers a question. What it does takes effect also when nobody waits for the answer any more.
    pub fn ask(&mut self, ask: Ask) -> BoxFuture<'static, Answered> {
        match ask {
            Ask::Write { stream, reference } => now(self.write(&stream, reference)),
            Ask::Read { stream } => now(self.stream_to(Right::Read, &stream).map(|info| Answer::Target(Arc::new(info.target)))),
            Ask::PublishingId { stream, reference } => self.state(&stream, Some(&reference), None),
            Ask::StoredOffset { stream, reference } => self.state(&stream, None, Some(&reference)),
            Ask::State { stream } => self.state(&stream, None, None),
            Ask::Resolve { stream, from, wanted } => self.resolve(&stream, from, wanted),
            Ask::Create { stream, arguments } => self.create(&stream, &arguments),
            Ask::Delete { stream } => {
                let deleted = self.delete_stream(&stream);
                Box::pin(async move { Ok(deleted.await.map(|()| Answer::Done)?) })
            }
            Ask::Places { streams } => self.places(streams),
            Ask::Route { routing_key, super_stream } => now(self.route_to_streams(&super_stream, &routing_key)),
            Ask::Partitions { super_stream } => now(self.partitions(&super_stream)),
            Ask::CreateSuper { name, partitions, arguments } => self.create_super(&name, &partitions, &arguments),
            Ask::DeleteSuper { name } => self.delete_super(&name),
        }
    }

    /// A reader of the stream is this far, if the client may read it.
    pub fn store_stream_offset(&mut self, stream: &str, reader: &str, offset: u64) {
        match self.stream(stream, Some(Right::Read)) {
            Ok(info) => self.store_offset(&info.target, reader, Offset(offset)),
            Err(refusal) => tracing::debug!(stream, reader, %refusal, "offset not stored"),
        }
    }

    /// Tells when the catalog has changed: a stream may be gone.
    pub fn catalog(&self) -> watch::Receiver<()> {
        self.edge.catalog_moved.subscribe()
    }

    fn stream_to(&self, right: Right, stream: &str) -> Result<StreamInfo, Failure> {
        Ok(self.stream(stream, Some(right))?)
    }

    fn write(&self, stream: &str, reference: Option<Arc<str>>) -> Answered {
        let target = self.stream_publisher(stream, reference.as_deref().unwrap_or_default())?;
        if self.edge.is_blocked.load(std::sync::atomic::Ordering::Acquire) {
            return Err(Failure::Precondition);
        }
        Ok(Answer::Target(target))
    }

    fn state(&self, stream: &str, publisher: Option<&str>, reader: Option<&str>) -> BoxFuture<'static, Answered> {
        match self.stream_to(Right::Read, stream) {
            Ok(info) => {
                let state = self.stream_state(&Arc::new(info.target), publisher, reader);
                Box::pin(async move { Ok(Answer::State(state.await?)) })
            }
            Err(failure) => now(Err(failure)),
        }
    }

    fn create(&self, stream: &str, given: &[(String, String)]) -> BoxFuture<'static, Answered> {
        let checked = new_name(stream).and_then(|name| Ok((name, arguments(given)?)));
        match checked {
            Ok((name, arguments)) => {
                let made = self.create_stream(&name, arguments);
                Box::pin(async move { if made.await? { Ok(Answer::Done) } else { Err(Failure::Exists) } })
            }
            Err(failure) => now(Err(failure)),
        }
    }

    fn resolve(&self, stream: &str, from: OffsetSpec, wanted: Option<Arc<Wanted>>) -> BoxFuture<'static, Answered> {
        let info = match self.stream_to(Right::Read, stream) {
            Ok(info) => info,
            Err(failure) => return now(Err(failure)),
        };
        let reader = match self.edge.read_stream(&info.target, from) {
            Ok(reader) => reader,
            Err(error) => return now(Err(error.into())),
        };
        let Some(wanted) = wanted else { return now(Ok(Answer::Resolved(reader.position()))) };
        Box::pin(async move {
            let mut reader = reader;
            for _ in 0..RESOLVE_CHUNKS {
                let position = reader.position();
                // The end, or a chunk that has to be read from disk first.
                let Some(chunk) = reader.next().now_or_never() else { return Ok(Answer::Resolved(position)) };
                if lets_through(&wanted, &chunk?) {
                    return Ok(Answer::Resolved(position));
                }
            }
            Ok(Answer::Resolved(reader.position()))
        })
    }

    // ---- places ----

    fn places(&self, streams: Vec<Arc<str>>) -> BoxFuture<'static, Answered> {
        let found: Vec<_> = streams.into_iter().map(|stream| (stream.clone(), self.visible(&stream))).collect();
        let nodes: BTreeSet<NodeId> = found
            .iter()
            .filter_map(|(_, info)| info.as_ref().ok())
            .flat_map(|info| info.leader.into_iter().chain(info.replicas.iter().copied()))
            .collect();
        let edge = self.edge.clone();
        Box::pin(async move {
            let addresses = edge.advertised(&nodes).await;
            Ok(Answer::Places(placed(found, &addresses, edge.config.node)))
        })
    }

    /// A stream that the client may read or write.
    fn visible(&self, stream: &str) -> Result<StreamInfo, Failure> {
        match self.stream(stream, Some(Right::Read)) {
            Err(Refusal::Access(_)) => self.stream_to(Right::Write, stream),
            found => Ok(found?),
        }
    }

    // ---- super streams ----

    fn check_exchange(&self, catalog: &Catalog, right: Right, exchange: &str) -> Result<(), Failure> {
        Ok(self.edge.patterns.check(catalog, self.identity()?.who(), right, (Kind::Exchange, exchange))?)
    }

    fn check_streams<'a>(
        &self,
        catalog: &Catalog,
        rights: &[Right],
        streams: impl IntoIterator<Item = &'a Arc<str>>,
    ) -> Result<(), Failure> {
        let who = self.identity()?.who();
        let any = |stream: &Arc<str>| {
            let mut refused = None;
            for right in rights {
                match self.edge.patterns.check(catalog, who, *right, (Kind::Queue, stream)) {
                    Ok(()) => return Ok(()),
                    Err(refusal) => refused = Some(refusal),
                }
            }
            refused.map_or(Ok(()), |refusal| Err(refusal.into()))
        };
        streams.into_iter().try_for_each(any)
    }

    fn route_to_streams(&self, super_stream: &str, routing_key: &str) -> Answered {
        let catalog = self.edge.catalog.read();
        self.check_exchange(&catalog, Right::Write, super_stream)?;
        let streams = super_streams::route(&catalog, &self.identity()?.name(super_stream), routing_key)?;
        self.check_streams(&catalog, &[Right::Write], &streams)?;
        Ok(Answer::Streams(streams))
    }

    fn partitions(&self, super_stream: &str) -> Answered {
        let catalog = self.edge.catalog.read();
        if self.check_exchange(&catalog, Right::Read, super_stream).is_err() {
            self.check_exchange(&catalog, Right::Write, super_stream)?;
        }
        let streams = super_streams::partitions(&catalog, &self.identity()?.name(super_stream))?;
        self.check_streams(&catalog, &[Right::Read, Right::Write], &streams)?;
        Ok(Answer::Streams(streams))
    }

    /// Whether the client may make or delete this super stream: an exchange, its streams, and the bindings between them.
    fn may_manage(&self, name: &str, partitions: &[Arc<str>]) -> Result<(), Failure> {
        let catalog = self.edge.catalog.read();
        self.check_exchange(&catalog, Right::Configure, name)?;
        self.check_streams(&catalog, &[Right::Configure], partitions)?;
        self.check_exchange(&catalog, Right::Read, name)?;
        self.check_streams(&catalog, &[Right::Write], partitions)
    }

    fn create_super(&self, name: &str, partitions: &[(Arc<str>, Arc<str>)], given: &[(String, String)]) -> BoxFuture<'static, Answered> {
        let streams: Vec<Arc<str>> = partitions.iter().map(|(stream, _)| stream.clone()).collect();
        let planned = new_name(name).and_then(|name| {
            self.may_manage(&name, &streams)?;
            let exchange = self.identity()?.name(&name);
            super_streams::Plan::new(&self.edge.catalog.read(), exchange, partitions, arguments(given)?)
        });
        let edge = self.edge.clone();
        Box::pin(async move { planned?.carry_out(&edge).await.map(|()| Answer::Done) })
    }

    fn delete_super(&self, name: &str) -> BoxFuture<'static, Answered> {
        let found = self.identity().map(|identity| identity.name(name)).map_err(Failure::from).and_then(|exchange| {
            self.check_exchange(&self.edge.catalog.read(), Right::Configure, name)?;
            let streams = super_streams::partitions(&self.edge.catalog.read(), &exchange)?;
            self.may_manage(name, &streams)?;
            Ok((exchange, streams))
        });
        let edge = self.edge.clone();
        Box::pin(async move {
            let (exchange, streams) = found?;
            super_streams::delete(&edge, exchange, &streams).await?;
            Ok(Answer::Streams(streams))
        })
    }
}

fn now(answer: Answered) -> BoxFuture<'static, Answered> {
    ready(answer).boxed()
}

fn lets_through(wanted: &Wanted, chunk: &StreamChunk) -> bool {
    may_hold(&chunk.filter, &wanted.values, wanted.unfiltered)
}

/// Streams with their nodes as clients reach them. Where this node stands for all others it is everybody's leader: it serves as well.
fn placed(found: Vec<(Arc<str>, Result<StreamInfo, Failure>)>, addresses: &BTreeMap<NodeId, Advertised>, own: NodeId) -> Places {
    let stands_for_all = addresses.len() == 1 && addresses.contains_key(&own);
    let reference = |node: &NodeId| addresses.keys().position(|known| known == node).and_then(|at| u16::try_from(at).ok());
    let place = |info: StreamInfo| {
        let leader = if stands_for_all { Some(0) } else { info.leader.as_ref().and_then(reference) };
        let replicas = info.replicas.iter().filter(|node| Some(**node) != info.leader).filter_map(reference).filter(|r| Some(*r) != leader);
        Place { leader, replicas: replicas.collect() }
    };
    let brokers = addresses.values().cloned().collect();
    Places { brokers, streams: found.into_iter().map(|(stream, info)| (stream, info.map(place))).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::stream::{StreamSettings, StreamTarget};
    use crate::model::{QueueId, ShardId};

    fn pairs(given: &[(&str, &str)]) -> Vec<(String, String)> {
        given.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn arguments_become_those_of_a_queue_and_numbers_must_be_numbers() {
        let table = arguments(&pairs(&[("max-length-bytes", "2000000000"), ("max-age", "7D"), ("unheard-of", "x")])).expect("sound");
        let expected =
            [("x-max-age".to_owned(), Value::Text(b"7D".to_vec())), ("x-max-length-bytes".to_owned(), Value::Int(2_000_000_000))];
        assert_eq!(table, Table::from(expected));
        assert_eq!(arguments(&pairs(&[("max-length-bytes", "much")])), Err(Failure::Precondition));
    }

    #[test]
    fn new_names_lose_line_ends_and_are_not_the_brokers() {
        assert_eq!(new_name("a\r\nb"), Ok("ab".into()));
        assert_eq!(new_name("\n"), Err(Failure::Precondition));
        assert_eq!(new_name("amq.x"), Err(Failure::Precondition));
    }

    #[test]
    fn streams_stand_where_their_nodes_are_known_and_one_node_may_stand_for_all() {
        let target =
            StreamTarget { stream: QueueId(1), shard: ShardId(1), publisher: None, catalog_index: 1, filter_bytes: 16, leader: None };
        let replicas = [1, 2, 3].map(NodeId).into();
        let info = StreamInfo { target, leader: Some(NodeId(2)), replicas, settings: StreamSettings::default() };
        let found = || vec![("s".into(), Ok(info.clone())), ("x".into(), Err(Failure::Missing))];
        let address = |node: u16| (NodeId(node), Advertised { host: format!("n{node}"), port: 1, tls_port: 0 });
        let places = placed(found(), &BTreeMap::from([address(2), address(3)]), NodeId(3));
        assert_eq!(places.streams[0].1, Ok(Place { leader: Some(0), replicas: vec![1] }), "node 1 is down");
        assert_eq!(places.streams[1].1, Err(Failure::Missing));
        let places = placed(found(), &BTreeMap::from([address(3)]), NodeId(3));
        assert_eq!(places.streams[0].1, Ok(Place { leader: Some(0), replicas: vec![] }));
    }
}
