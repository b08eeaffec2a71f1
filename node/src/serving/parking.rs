//! Requests that wait at their queue until it is known whether they may go on, and those that are withdrawn: whoever was told that
//! something failed must not find it done later. Called by `requests`, `edges` and `proposing`.

use super::edges::PathId;
use super::sealing::Wish;
use super::server::ShardServer;
use crate::model::link::ToLeader;
use crate::model::{ConsumerId, QueueId, Seq, SessionId};

/// A request that waits.
#[derive(Debug)]
pub(super) struct Parked {
    pub path: PathId,
    pub session: SessionId,
    pub request: ToLeader,
}

impl Parked {
    /// Of somebody who wants to consume.
    pub fn consumes(&self) -> bool {
        matches!(self.request, ToLeader::Consume(_))
    }
}

/// The number of a question, by which its answer and its withdrawal name it.
fn number(request: &ToLeader) -> Option<u64> {
    match request {
        ToLeader::Get { request, .. }
        | ToLeader::Take { request, .. }
        | ToLeader::Purge { request, .. }
        | ToLeader::Seal { request, .. }
        | ToLeader::Stat { request, .. }
        | ToLeader::Stream { request, .. } => Some(*request),
        ToLeader::Hello { .. }
        | ToLeader::Batch(_)
        | ToLeader::Attach { .. }
        | ToLeader::Consume(_)
        | ToLeader::Cancel { .. }
        | ToLeader::Credit { .. }
        | ToLeader::Prefetch { .. }
        | ToLeader::Return { .. }
        | ToLeader::Withdraw { .. }
        | ToLeader::Ping { .. } => None,
    }
}

impl ShardServer {
    /// Nothing of this queue was ever handed out or decided: what a client asks about it needs nobody's word, and it gets no state.
    pub(super) fn is_untouched(&self, queue: QueueId) -> bool {
        let machine = self.machine.lock();
        !self.queues.contains_key(&queue) && machine.queue(queue).is_some_and(|q| q.reserved() == Seq(0) && !q.is_sealed())
    }

    /// What waited may go on, or waits for something else. Of a closed path consumers stay: until their edge is back with them, or gone,
    /// they count. It asks again for everything else.
    pub(super) fn retry_parked(&mut self, queue: QueueId) {
        let parked = self.queues.get_mut(&queue).map(|state| std::mem::take(&mut state.parked)).unwrap_or_default();
        for one in parked {
            if self.path_mut(one.path).is_some() {
                self.request(one.path, one.request);
            } else if let Some(state) = self.queues.get_mut(&queue).filter(|_| one.consumes()) {
                state.parked.push(one);
            }
        }
    }

    /// What waited may go on; if nobody is left of those who consumed or wanted to, an auto-delete queue ends (rule 22).
    pub(super) fn settle_parked(&mut self, queue: QueueId) {
        self.retry_parked(queue);
        let had_consumer = self.machine.lock().queue(queue).is_some_and(|q| q.had_consumer());
        if had_consumer || self.queues.get(&queue).is_some_and(|state| state.last_gone) {
            self.check_last_consumer(queue);
        }
    }

    /// A consumer that has not started is not wanted any more.
    pub(super) fn forget_consume(&mut self, id: PathId, consumer: ConsumerId) {
        let is_it = |path: PathId, r: &ToLeader| path == id && matches!(r, ToLeader::Consume(spec) if spec.id == consumer);
        self.early.retain(|(_, path, request)| !is_it(*path, request));
        let mut left = Vec::new();
        for state in self.queues.values_mut().filter(|state| !state.parked.is_empty()) {
            let before = state.parked.len();
            state.parked.retain(|one| !is_it(one.path, &one.request));
            left.extend((state.parked.len() < before).then_some(state.id));
        }
        left.into_iter().for_each(|queue| self.settle_parked(queue));
    }

    /// Whoever asked does not wait any more.
    pub(super) fn withdraw(&mut self, id: PathId, session: SessionId, queue: QueueId, request: u64) {
        let is_it = |asked: &ToLeader| number(asked) == Some(request);
        self.early.retain(|(_, path, asked)| *path != id || !is_it(asked));
        self.log.withdraw_purge(id, request);
        if let Some(state) = self.queues.get_mut(&queue) {
            state.gets.retain(|get| (get.session, get.request) != (session, request));
            state.takes.retain(|take| (take.session, take.request) != (session, request));
            state.parked.retain(|one| one.path != id || !is_it(&one.request));
            state.wishes.retain(|wish| !matches!(wish, Wish::Client { path, request: of, .. } if (*path, *of) == (id, request)));
        }
    }
}
