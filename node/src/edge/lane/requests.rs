//! Questions to a leader that wait for an answer. Each is answered exactly once: by the leader, or as unavailable at its deadline. On a
//! new path all are asked again. Pure.

use super::takes::Taken;
use crate::edge::mailbox::{ChannelRef, Mailbox};
use crate::model::QueueId;
use crate::model::catalog::{Name, Refusal};
use crate::model::link::{Consumer, QueueStat, ToLeader};
use crate::model::stream::StreamState;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// A leader may hear of a queue a moment after this node: "not found" is asked again for so long while the catalog has it.
const NOT_FOUND_PATIENCE: Duration = Duration::from_secs(1);
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// A leader's answer to a request task.
#[derive(Debug)]
pub(in crate::edge) enum Answer {
    Stats(Vec<QueueStat>),
    Purged(u64),
    Stream(StreamState),
}

/// Who is answered.
#[derive(Debug)]
pub(super) enum Sink {
    Task(oneshot::Sender<Result<Answer, Refusal>>),
    Take { mailbox: Arc<Mailbox>, at: ChannelRef, name: Name, timeout: Duration, answer_tx: oneshot::Sender<Taken> },
    Get { mailbox: Arc<Mailbox>, at: ChannelRef, no_ack: bool, name: Name, timeout: Duration },
    Consume { mailbox: Arc<Mailbox>, at: ChannelRef, name: Name },
}

#[derive(Debug)]
pub(super) struct Asked {
    pub message: ToLeader,
    pub queue: Option<QueueId>,
    pub sink: Sink,
    /// Asked only when the batches up to this mark have their verdict, so that a client finds what it published before.
    after: u64,
    since: Instant,
    not_before: Option<Instant>,
    deadline: Instant,
    sent: bool,
}

impl Asked {
    /// The queue at which the leader may keep the question: it is to forget it when nobody waits any more.
    pub fn to_withdraw(&self) -> Option<QueueId> {
        self.queue.filter(|_| self.sent && !matches!(self.sink, Sink::Consume { .. }))
    }
}

#[derive(Debug, Default)]
pub(super) struct Requests {
    asked: BTreeMap<u64, Asked>,
    unsent: usize,
}

impl Requests {
    pub fn add(&mut self, id: u64, message: ToLeader, queue: Option<QueueId>, sink: Sink, after: u64, timeout: Duration) {
        let since = Instant::now();
        let asked = Asked { message, queue, sink, after, since, not_before: None, deadline: since + timeout, sent: false };
        self.asked.insert(id, asked);
        self.unsent += 1;
    }

    pub fn is_empty(&self) -> bool {
        self.asked.is_empty()
    }

    /// What can be asked now.
    pub fn collect(&mut self, now: Instant, is_past: impl Fn(u64) -> bool, out: &mut Vec<ToLeader>) {
        if self.unsent == 0 {
            return;
        }
        for asked in self.asked.values_mut().filter(|a| !a.sent) {
            if is_past(asked.after) && asked.not_before.is_none_or(|t| t <= now) {
                asked.sent = true;
                self.unsent -= 1;
                out.push(asked.message.clone());
            }
        }
    }

    /// Consumers that are asked for: the attach asks for them, and nobody else does on this path.
    pub fn take_consumes(&mut self) -> Vec<Consumer> {
        let mut specs = Vec::new();
        for asked in self.asked.values_mut().filter(|asked| !asked.sent) {
            if let ToLeader::Consume(spec) = &asked.message {
                (asked.sent, asked.not_before) = (true, None);
                self.unsent -= 1;
                specs.push(spec.clone());
            }
        }
        specs
    }

    pub fn take(&mut self, id: u64) -> Option<Asked> {
        let asked = self.asked.remove(&id)?;
        self.unsent -= usize::from(!asked.sent);
        Some(asked)
    }

    /// The leader does not know the queue (yet): ask again after a pause. False when patience is at its end.
    pub fn retry(&mut self, id: u64, now: Instant) -> bool {
        let Some(asked) = self.asked.get_mut(&id) else { return false };
        let again = asked.sent && now < asked.since + NOT_FOUND_PATIENCE && now < asked.deadline;
        if again {
            asked.sent = false;
            asked.not_before = Some(now + RETRY_PAUSE);
            self.unsent += 1;
        }
        again
    }

    pub fn queue_of(&self, id: u64) -> Option<QueueId> {
        self.asked.get(&id).and_then(|a| a.queue)
    }

    /// The path is gone.
    pub fn path_lost(&mut self) {
        self.asked.values_mut().for_each(|a| a.sent = false);
        self.unsent = self.asked.len();
    }

    /// When the next retry is due.
    pub fn due(&self) -> Option<Instant> {
        if self.unsent == 0 {
            return None;
        }
        self.asked.values().filter(|a| !a.sent).filter_map(|a| a.not_before).min()
    }

    /// Those whose time is over (or all of them).
    pub fn expired(&mut self, now: Option<Instant>) -> Vec<(u64, Asked)> {
        let late: Vec<_> = self.asked.iter().filter(|(_, a)| now.is_none_or(|now| a.deadline <= now)).map(|(id, _)| *id).collect();
        late.into_iter().filter_map(|id| self.take(id).map(|asked| (id, asked))).collect()
    }
}
