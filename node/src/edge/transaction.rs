//! tx.commit: every message is routed before anything happens, then each shard gets its messages and settlements in one batch, which
//! is one section of one entry: all of it or nothing. Across shards the parts are independent entries, and commit-ok comes when all of
//! them are applied; a publisher that dies in between may find some of them (rule 26 would close that).

use super::connection::Connection;
use super::copies::Copies;
use super::lane::{Committing, Fate, Home, Message, Run, Shared, Taken};
use super::mailbox::ChannelRef;
use super::publish::{Hold, NO_LEASE};
use crate::model::catalog::Refusal;
use crate::model::entry::StoredMessage;
use crate::model::step::{Commit, Outcome, Publish};
use crate::model::{QueueId, limits};
use bytes::Bytes;
use std::collections::BTreeMap;

/// Where a message goes.
struct Way {
    properties: Bytes,
    /// Positions in the connection's lanes, with the queues there.
    parts: Vec<(usize, Vec<QueueId>)>,
    /// No queue that clients see is among them.
    unseen: bool,
}

impl Connection {
    /// Commits, or gives the transaction back when it has to wait.
    pub(super) fn commit(&mut self, commit: Box<Commit>) -> Result<(), Box<Commit>> {
        let at = self.at(commit.channel);
        self.hold = None;
        if self.is_failed(commit.channel) {
            self.give_up(&commit);
            return Ok(());
        }
        match self.find_ways(&commit) {
            Ok((ways, index)) => self.carry_out(at, &commit, ways, index),
            Err(Some(refusal)) => {
                self.give_up(&commit);
                self.mailbox.reply(at, Err(refusal));
            }
            Err(None) => return Err(commit),
        }
        Ok(())
    }

    /// The ways of all messages and the catalog index they were found by. `Err(None)`: wait, `hold` says for what.
    fn find_ways(&mut self, commit: &Commit) -> Result<(Vec<Way>, u64), Option<Refusal>> {
        if commit.publishes.is_empty() {
            return Ok((Vec::new(), 0));
        }
        match self.check_node(true) {
            Ok(()) => {}
            Err(None) => return Err(Some(Refusal::Unavailable(NO_LEASE.to_string()))),
            Err(hold) => {
                self.hold = hold;
                return Err(None);
            }
        }
        let (mut ways, mut index) = (Vec::with_capacity(commit.publishes.len()), 0);
        for publish in &commit.publishes {
            let copies = Copies::read(&publish.properties).map_err(Some)?;
            index = self.route(publish, &copies).map_err(Some)?.max(index);
            self.enter_lanes();
            let mut start = 0;
            let parts = self.entered.iter().map(|(lane, end)| {
                let queues = self.targets[std::mem::replace(&mut start, *end)..*end].iter().map(|t| t.0).collect();
                (*lane, queues)
            });
            ways.push(Way {
                properties: copies.stored(&publish.properties).unwrap_or_else(|| publish.properties.clone()),
                parts: parts.collect(),
                unseen: self.unseen,
            });
        }
        if let Some(bytes) = largest(commit, &ways).filter(|bytes| *bytes > limits::TRANSACTION_ENTRY_BYTES) {
            let most = limits::TRANSACTION_ENTRY_BYTES;
            return Err(Some(Refusal::Precondition(format!("transaction takes {bytes} bytes in one shard, more than {most}"))));
        }
        let full = ways.iter().flat_map(|way| &way.parts).find(|(lane, _)| !self.lanes[*lane].lane.has_room());
        if let Some((lane, _)) = full {
            self.hold = Some(Hold::Room(self.lanes[*lane].lane.clone()));
            return Err(None);
        }
        Ok((ways, index))
    }

    fn carry_out(&mut self, at: ChannelRef, commit: &Commit, ways: Vec<Way>, index: u64) {
        let committing = Committing::new(self.mailbox.clone(), at);
        self.published += commit.publishes.len() as u64;
        let mut by_lane: BTreeMap<usize, Vec<Taken<'_>>> = BTreeMap::new();
        for held in commit.settlements.iter().flat_map(|(held, _)| held) {
            by_lane.entry(self.lane_at(held.shard)).or_default();
        }
        for (publish, way) in commit.publishes.iter().zip(&ways) {
            let mandatory = publish.mandatory && (!way.unseen || way.parts.is_empty());
            if publish.mandatory && !mandatory {
                self.edge.counters.returned.add(1);
                self.mailbox.returned(at, Publish { properties: way.properties.clone(), ..publish.clone() });
            }
            let shared = (way.parts.len() > 1 && mandatory).then(|| Shared::new(way.parts.len() as u32));
            let run = Run {
                mailbox: self.mailbox.clone(),
                at,
                ticket: 0,
                mandatory,
                rerouted: false,
                first: 0,
                count: 1,
                shared,
                commit: Some(committing.clone()),
            };
            if way.parts.is_empty() {
                self.unroutable(&run, publish, way);
            }
            for (lane, queues) in &way.parts {
                let (exchange, key, properties, body) = (&publish.exchange, &publish.routing_key, &way.properties, &publish.body);
                let message = Message { exchange, key, properties, body, source: None };
                by_lane.entry(*lane).or_default().push(Taken { queues, message, run: run.clone() });
            }
        }
        let mut settled = vec![0; commit.settlements.len()];
        for (lane, messages) in by_lane {
            let entered = &mut self.lanes[lane];
            entered.mark = entered.lane.transact(self.mailbox.id(), messages, (&commit.settlements, &mut settled), index, &committing);
        }
        for ((held, outcome), count) in commit.settlements.iter().zip(settled) {
            self.settled(held, *outcome, count);
        }
        committing.done();
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

/// What one message takes in an entry besides its texts and queues, bytes at most.
const MESSAGE_HEAD: usize = 64;

/// The most that any lane gets of it, bytes: names and queues count, a small message to many queues is a large one.
fn largest(commit: &Commit, ways: &[Way]) -> Option<usize> {
    let mut lanes: BTreeMap<usize, usize> = BTreeMap::new();
    for (publish, way) in commit.publishes.iter().zip(ways) {
        let message = MESSAGE_HEAD + publish.exchange.len() + publish.routing_key.len() + way.properties.len() + publish.body.len();
        for (lane, queues) in &way.parts {
            *lanes.entry(*lane).or_default() += message + size_of::<QueueId>() * queues.len();
        }
    }
    lanes.into_values().max()
}
