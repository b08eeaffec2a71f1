//! Questions to the leader of a lane's shard that a task waits for. Called by `edge`.

use super::requests::{Answer, Sink};
use super::{Ask, Lane};
use crate::model::QueueId;
use crate::model::catalog::Refusal;
use crate::model::link::ToLeader;
use std::time::Duration;
use tokio::sync::oneshot;

impl Lane {
    /// Ask for counts (of no queues: of all of the shard).
    pub fn stat(&self, id: u64, ask: Ask, after: u64, timeout: Duration) -> oneshot::Receiver<Result<Answer, Refusal>> {
        let waits_at = ask.queues.first().copied().filter(|_| ask.used);
        self.ask(id, ToLeader::Stat { request: id, queues: ask.queues, used: ask.used }, waits_at, after, timeout)
    }

    /// Drop all ready messages of a queue.
    pub fn purge(&self, id: u64, queue: QueueId, after: u64) -> oneshot::Receiver<Result<Answer, Refusal>> {
        self.ask(id, ToLeader::Purge { request: id, queue }, Some(queue), after, self.config.no_quorum_timeout)
    }

    /// Have the shard end a queue if nobody uses it, if it is empty.
    pub fn seal(
        &self,
        id: u64,
        queue: QueueId,
        (if_unused, if_empty): (bool, bool),
        after: u64,
    ) -> oneshot::Receiver<Result<Answer, Refusal>> {
        self.ask(id, ToLeader::Seal { request: id, queue, if_unused, if_empty }, Some(queue), after, self.config.no_quorum_timeout)
    }

    /// Ask how far a stream is, and what it remembers of a publisher and a reader.
    pub fn stream(
        &self,
        id: u64,
        stream: QueueId,
        (publisher, reader): (Option<String>, Option<String>),
        after: u64,
    ) -> oneshot::Receiver<Result<Answer, Refusal>> {
        let message = ToLeader::Stream { request: id, stream, publisher, reader };
        self.ask(id, message, Some(stream), after, self.config.no_quorum_timeout)
    }

    fn ask(
        &self,
        id: u64,
        message: ToLeader,
        queue: Option<QueueId>,
        after: u64,
        timeout: Duration,
    ) -> oneshot::Receiver<Result<Answer, Refusal>> {
        let (answer_tx, answer_rx) = oneshot::channel();
        self.state.lock().requests.add(id, message, queue, Sink::Task(answer_tx), after, timeout);
        self.wake.notify_one();
        answer_rx
    }
}
