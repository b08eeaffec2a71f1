//! tx.commit: every message is routed before anything happens, then each shard gets its messages and settlements in one batch, which
//! is one section of one entry. Over several replicated shards these are parts of one decision (rule 26); how it is made is in
//! `lane::committing`. Queues in memory get theirs when the rest is decided.

use super::connection::Connection;
use super::copies::Copies;
use super::lane::{Committing, Fate, Home, Lane, Late, Message, Run, Share, Shared, no_quorum};
use super::mailbox::ChannelRef;
use super::publish::NO_LEASE;
use super::streams::Record;
use crate::model::catalog::Refusal;
use crate::model::entry::{ChunkBuilder, Ops, StoredMessage};
use crate::model::step::{Commit, Held, Outcome, Publish};
use crate::model::stream::StreamTarget;
use crate::model::{QueueId, ShardId, TxId, limits};
use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where a message goes.
struct Way {
    properties: Bytes,
    /// Positions in the connection's lanes, with the queues there.
    parts: Vec<(usize, Vec<QueueId>)>,
    /// The same of streams.
    streams: Vec<(usize, Arc<StreamTarget>)>,
    /// No queue that clients see is among them.
    unseen: bool,
}

impl Way {
    fn lanes(&self) -> impl Iterator<Item = usize> {
        self.parts.iter().map(|part| part.0).chain(self.streams.iter().map(|stream| stream.0))
    }
}

/// Where all messages of a transaction go.
pub(super) struct Routes {
    /// Whose transaction it is; it is given back at most once before it is carried out.
    at: ChannelRef,
    ways: Vec<Way>,
    /// What they were found by.
    catalog_index: u64,
}

impl Connection {
    /// Commits, or gives the transaction back when it has to wait.
    pub(super) fn commit(&mut self, commit: Box<Commit>) -> Result<(), Box<Commit>> {
        let at = self.at(commit.channel);
        self.hold = None;
        let known = self.routes.take().filter(|routes| routes.at == at && routes.ways.len() == commit.publishes.len());
        if self.is_failed(commit.channel) {
            self.give_up(&commit);
            return Ok(());
        }
        match self.find_room(at, &commit, known) {
            Ok(routes) => self.carry_out(&commit, &routes),
            Err(Some(refusal)) => {
                self.give_up(&commit);
                self.mailbox.reply(at, Err(refusal));
            }
            Err(None) => return Err(commit),
        }
        Ok(())
    }

    /// The ways of all messages, which are found once, and room for them. `Err(None)`: wait, `hold` says for what.
    fn find_room(&mut self, at: ChannelRef, commit: &Commit, known: Option<Routes>) -> Result<Routes, Option<Refusal>> {
        let routes = match known {
            Some(routes) => routes,
            None if commit.publishes.is_empty() => return Ok(Routes { at, ways: Vec::new(), catalog_index: 0 }),
            None => {
                self.check_node(true).map_err(|hold| match hold {
                    None => Some(Refusal::Unavailable(NO_LEASE.to_string())),
                    Some(hold) => (self.hold = Some(hold), None).1,
                })?;
                self.find_ways(at, commit).map_err(Some)?
            }
        };
        let full = routes.ways.iter().flat_map(Way::lanes).find(|lane| !self.lanes[*lane].lane.has_room());
        if let Some(lane) = full {
            let full = self.lanes[lane].lane.clone();
            let shard = full.shard;
            if !self.waits_for_room(full, true) {
                return Err(Some(Refusal::Unavailable(no_quorum(shard))));
            }
            self.routes = Some(routes);
            return Err(None);
        }
        Ok(routes)
    }

    fn find_ways(&mut self, at: ChannelRef, commit: &Commit) -> Result<Routes, Refusal> {
        let (mut ways, mut catalog_index) = (Vec::with_capacity(commit.publishes.len()), 0);
        for publish in &commit.publishes {
            let copies = Copies::read(&publish.properties)?;
            catalog_index = self.route(publish, &copies)?.max(catalog_index);
            self.enter_lanes();
            ways.push(self.way(copies.stored(&publish.properties).unwrap_or_else(|| publish.properties.clone())));
        }
        let most = limits::TRANSACTION_ENTRY_BYTES;
        match sizes(commit, &ways).into_values().max().filter(|bytes| *bytes > most) {
            Some(bytes) => Err(Refusal::Precondition(format!("transaction takes {bytes} bytes in one shard, more than {most}"))),
            None => Ok(Routes { at, ways, catalog_index }),
        }
    }

    /// The way of the message that was routed last.
    fn way(&self, properties: Bytes) -> Way {
        let (mut parts, mut streams, mut start) = (Vec::with_capacity(self.entered.len()), Vec::new(), 0);
        for (lane, end) in &self.entered {
            let targets = &self.targets[std::mem::replace(&mut start, *end)..*end];
            let mut queues = Vec::with_capacity(targets.len());
            for (queue, _) in targets {
                match self.streams.iter().find(|stream| stream.stream == *queue) {
                    Some(stream) => streams.push((*lane, stream.clone())),
                    None => queues.push(*queue),
                }
            }
            if !queues.is_empty() {
                parts.push((*lane, queues));
            }
        }
        Way { properties, parts, streams, unseen: self.unseen }
    }

    fn carry_out(&mut self, commit: &Commit, routes: &Routes) {
        self.published += commit.publishes.len() as u64;
        let shards = self.shards_of(commit, routes);
        // Shards in memory have the highest numbers.
        let replicated = shards.keys().filter(|shard| shard.owner().is_none()).count();
        let decided = if replicated > usize::from(!commit.is_strict) { replicated } else { 0 };
        let parts: Vec<Arc<Lane>> = shards.values().take(decided).map(|lane| self.lanes[*lane].lane.clone()).collect();
        let config = &self.edge.config;
        let tx = TxId { node: config.node, incarnation: config.incarnation, number: self.edge.next_id() };
        let committing = Committing::new(self.mailbox.clone(), routes.at, tx, &parts, commit.is_strict);
        let mut shares = self.encode(commit, routes, &shards, &committing);
        let mut chunks = encode_chunks(commit, routes);
        let (mut settled, mut late) = (vec![0; commit.settlements.len()], Vec::new());
        for (shard, lane) in &shards {
            let mut share = shares.remove(lane).unwrap_or_default();
            let chunks = chunks.remove(lane).unwrap_or_default();
            let entered = &mut self.lanes[*lane];
            if share.part.is_some() && !chunks.is_empty() {
                // A part holds no chunks.
                let (lane, share) = (entered.lane.clone(), Share { ops: with_chunks(Ops::default(), &chunks), ..Share::default() });
                late.push(Late { lane, share, settlements: Vec::new(), catalog_index: routes.catalog_index });
            } else {
                share.ops = with_chunks(share.ops, &chunks);
            }
            if replicated > 0 && shard.owner().is_some() {
                let (lane, settlements) = (entered.lane.clone(), of_shard(&commit.settlements, *shard));
                settlements.iter().zip(&mut settled).for_each(|((held, _), count)| *count += held.len() as u64);
                late.push(Late { lane, share, settlements, catalog_index: routes.catalog_index });
            } else {
                committing.expect(1);
                entered.mark = entered.lane.transact(share, &commit.settlements, &mut settled, routes.catalog_index, &committing);
            }
        }
        for (held, _) in &commit.settlements {
            held.chunk_by(|a, b| a.shard == b.shard).filter(|group| group[0].shard == ShardId::STREAMS).for_each(|group| {
                self.settle_streams(group);
            });
        }
        committing.follow_with(late);
        for ((held, outcome), count) in commit.settlements.iter().zip(settled) {
            self.settled(held, *outcome, count);
        }
        committing.done();
    }

    /// All shards that it concerns, with the positions of their lanes.
    fn shards_of(&mut self, commit: &Commit, routes: &Routes) -> BTreeMap<ShardId, usize> {
        let mut shards = BTreeMap::new();
        for lane in routes.ways.iter().flat_map(Way::lanes) {
            shards.insert(self.lanes[lane].lane.shard, lane);
        }
        for held in commit.settlements.iter().flat_map(|(held, _)| held).filter(|held| held.shard != ShardId::STREAMS) {
            shards.entry(held.shard).or_insert_with(|| self.lane_at(held.shard));
        }
        shards
    }

    /// The messages of each lane; what no queue takes is given back.
    fn encode(
        &self,
        commit: &Commit,
        routes: &Routes,
        shards: &BTreeMap<ShardId, usize>,
        committing: &Arc<Committing>,
    ) -> BTreeMap<usize, Share> {
        let mut sizes = sizes(commit, &routes.ways);
        let decided = committing.decided();
        let mut shares: BTreeMap<usize, Share> = BTreeMap::new();
        for (at, lane) in shards.values().enumerate() {
            let mut ops = Ops::with_capacity(sizes.remove(lane).unwrap_or_default());
            let (part, runs) = match decided.split_first() {
                Some((decider, others)) if at < decided.len() => {
                    let start = ops.begin_part(committing.tx(), *decider, if at == 0 { others } else { &[] });
                    (Some(start), vec![committing.run(Some(committing.clone()))])
                }
                Some(_) | None => (None, Vec::new()),
            };
            shares.insert(*lane, Share { ops, part, runs });
        }
        for (publish, way) in commit.publishes.iter().zip(&routes.ways) {
            let plain =
                way.streams.is_empty() && way.parts.iter().all(|(lane, _)| shares.get(lane).is_some_and(|share| share.part.is_none()));
            let mandatory = publish.mandatory && (!way.unseen || way.parts.is_empty());
            if publish.mandatory && !mandatory {
                self.edge.counters.returned.add(1);
                self.mailbox.returned(routes.at, Publish { properties: way.properties.clone(), ..publish.clone() });
            }
            let mandatory = mandatory && plain;
            let shared = (way.parts.len() > 1 && mandatory).then(|| Shared::new(way.parts.len() as u32));
            let run = Run { mandatory, shared, ..committing.run(Some(committing.clone())) };
            if way.parts.is_empty() && way.streams.is_empty() {
                self.unroutable(&run, publish, way);
            }
            for (lane, queues) in &way.parts {
                let Some(share) = shares.get_mut(lane) else { continue };
                let first = share.ops.enqueue(queues, &publish.exchange, &publish.routing_key, &way.properties, &publish.body);
                let next = Run { first, ..run.clone() };
                if share.part.is_none() && !share.runs.last_mut().is_some_and(|last| last.extend(&next)) {
                    share.runs.push(next);
                }
            }
        }
        shares
    }

    fn unroutable(&self, run: &Run, publish: &Publish, way: &Way) {
        self.edge.counters.unroutable.add(1);
        let message = StoredMessage {
            exchange: publish.exchange.clone(),
            key: publish.routing_key.clone(),
            properties: way.properties.clone(),
            body: publish.body.clone(),
        };
        self.edge.ended(run.end(Fate::Unroutable, Some(&message)));
    }

    /// Nothing of it takes effect: what the client had settled is held no more.
    fn give_up(&mut self, commit: &Commit) {
        commit.settlements.iter().for_each(|(held, _)| self.settle(held, Outcome::Requeue));
    }
}

/// A record has at most so many times the bytes of its message: properties may be in it twice, each byte of a name as three.
const RECORD_FACTOR: usize = 2;

/// The chunks of each lane: one for each stream, with all messages that go there.
fn encode_chunks(commit: &Commit, routes: &Routes) -> BTreeMap<usize, Vec<Bytes>> {
    let mut open: BTreeMap<(usize, QueueId), Vec<ChunkBuilder>> = BTreeMap::new();
    let mut scratch = BytesMut::new();
    for (publish, way) in commit.publishes.iter().zip(&routes.ways).filter(|(_, way)| !way.streams.is_empty()) {
        let Publish { exchange, routing_key, body, .. } = publish;
        let message = Message { exchange, key: routing_key, properties: &way.properties, body, source: None };
        let record = Record::encode(&mut scratch, &message);
        for (lane, stream) in &way.streams {
            let chunks = open.entry((*lane, stream.stream)).or_default();
            match chunks.last_mut().filter(|chunk| chunk.fits(record.entry())) {
                Some(chunk) => chunk.push(record.entry()),
                None => {
                    let mut chunk = ChunkBuilder::new(stream.stream, None, stream.filter_bytes);
                    chunk.push(record.entry());
                    chunks.push(chunk);
                }
            }
        }
    }
    let mut chunks: BTreeMap<usize, Vec<Bytes>> = BTreeMap::new();
    for ((lane, _), built) in open {
        chunks.entry(lane).or_default().extend(built.into_iter().map(ChunkBuilder::finish));
    }
    chunks
}

fn with_chunks(mut ops: Ops, chunks: &[Bytes]) -> Ops {
    for chunk in chunks {
        ops.append_chunk(chunk);
    }
    ops
}

/// What one message takes in an entry besides its texts and queues, bytes at most.
const MESSAGE_HEAD: usize = 64;

/// What each lane gets of it, bytes at most: names and queues count, a small message to many queues is a large one.
fn sizes(commit: &Commit, ways: &[Way]) -> BTreeMap<usize, usize> {
    let mut lanes: BTreeMap<usize, usize> = BTreeMap::new();
    for (publish, way) in commit.publishes.iter().zip(ways) {
        let message = MESSAGE_HEAD + publish.exchange.len() + publish.routing_key.len() + way.properties.len() + publish.body.len();
        for (lane, queues) in &way.parts {
            *lanes.entry(*lane).or_default() += message + size_of::<QueueId>() * queues.len();
        }
        for (lane, _) in &way.streams {
            *lanes.entry(*lane).or_default() += RECORD_FACTOR * message;
        }
    }
    lanes
}

fn of_shard(settlements: &[(Vec<Held>, Outcome)], shard: ShardId) -> Vec<(Vec<Held>, Outcome)> {
    let here = |held: &[Held]| held.iter().filter(|h| h.shard == shard).copied().collect();
    settlements.iter().map(|(held, outcome)| (here(held), *outcome)).collect()
}
