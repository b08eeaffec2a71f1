//! Takes of a lane: several messages of a queue at once, for a task of this edge that waits for them. Whatever comes when nobody waits any
//! more goes back unseen. Called by `edge::taking`.

use super::answers::Home;
use super::requests::{Asked, Sink};
use super::{Lane, named};
use crate::edge::mailbox::{ChannelRef, Mailbox};
use crate::edge::ranges::RangeSet;
use crate::model::QueueId;
use crate::model::catalog::{Name, Refusal};
use crate::model::link::{Delivery, ToLeader};
use crate::model::step::TookOne;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// What is taken, and for whom.
#[derive(Debug)]
pub(in crate::edge) struct Order {
    pub queue: QueueId,
    pub name: Name,
    pub most: u32,
    pub alone: bool,
    pub patient: bool,
    /// How long the client may hold the messages.
    pub timeout: Duration,
    /// How long the leader may take to answer.
    pub patience: Duration,
}

/// What came of it: messages, which wait in the mailbox of the connection (`Mailbox::keep_taken`).
pub(in crate::edge) type Taken = Result<Came, Refusal>;

/// How many, and how large they are together.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::edge) struct Came {
    pub count: u32,
    pub bytes: usize,
}

impl Lane {
    /// Asks the leader; the messages are held by the connection from the moment they are here.
    pub fn take(&self, id: u64, order: Order, mailbox: &Arc<Mailbox>, at: ChannelRef) -> oneshot::Receiver<Taken> {
        let (answer_tx, answer_rx) = oneshot::channel();
        let Order { queue, name, most, alone, patient, timeout, patience } = order;
        let sink = Sink::Take { mailbox: mailbox.clone(), at, name, timeout, answer_tx };
        let message = ToLeader::Take { request: id, queue, most, alone, patient };
        self.state.lock().requests.add(id, message, Some(queue), sink, 0, patience);
        self.wake.notify_one();
        answer_rx
    }

    /// Nobody waits for that take any more.
    pub fn withdraw(&self, id: u64, queue: QueueId) {
        let mut state = self.state.lock();
        if state.requests.take(id).is_none() {
            return;
        }
        if state.leader.is_some() {
            state.outgoing.push(ToLeader::Withdraw { request: id, queue });
        }
        drop(state);
        self.wake.notify_one();
    }

    /// Messages that no client has seen go back.
    pub fn give_back_unseen(&self, mailbox: &Mailbox, messages: &[Delivery]) {
        let mut state = self.state.lock();
        let mut back: BTreeMap<QueueId, RangeSet> = BTreeMap::new();
        for message in messages {
            if state.consumers.release(mailbox.id(), None, message.queue, message.seq) {
                back.entry(message.queue).or_default().insert(message.seq);
            }
        }
        state.give_back(back, false);
        drop(state);
        self.wake.notify_one();
    }

    pub(super) fn took(&self, home: &dyn Home, request: u64, result: Result<Vec<Delivery>, Refusal>) {
        let mut state = self.state.lock();
        if let Err(Refusal::NotFound { .. }) = &result {
            let known = state.requests.queue_of(request).is_some_and(|q| home.knows(q));
            if known && state.requests.retry(request, Instant::now()) {
                return;
            }
        }
        let asked = state.requests.take(request);
        let messages = result.as_ref().map_or(&[][..], Vec::as_slice);
        let places: Vec<_> = messages.iter().map(|m| (m.queue, m.seq)).collect();
        let came = Came { count: places.len() as u32, bytes: messages.iter().map(|m| m.message.len()).sum() };
        state.came(messages);
        let Some(Asked { sink: Sink::Take { mailbox, at, name, timeout, answer_tx }, .. }) = asked else {
            return state.give_back_messages(messages);
        };
        if mailbox.is_closed() {
            return state.give_back_messages(messages);
        }
        if !messages.is_empty() {
            let shard = self.shard;
            mailbox.keep_taken(request, messages.iter().map(|delivery| TookOne { shard, delivery: delivery.clone() }).collect());
        }
        if answer_tx.send(result.map(|_| came).map_err(|refusal| named(refusal, &name))).is_err() {
            let back: Vec<Delivery> = mailbox.taken(request).into_iter().map(|one| one.delivery).collect();
            return state.give_back_messages(&back);
        }
        if !places.is_empty() {
            state.getters.entry(mailbox.id()).or_insert_with(|| mailbox.clone());
            places.iter().for_each(|place| state.consumers.taken(*place, mailbox.clone(), at, timeout));
            drop(state);
            places.iter().for_each(|_| home.got());
        }
    }
}
