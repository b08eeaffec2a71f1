//! Takes: an edge asks for up to so many messages of a queue at once, for a client that fetches and does not subscribe. A take may wait for
//! messages, and it may want to be alone: then it gets some only while nobody holds any of the queue's, so that messages fetched by
//! many clients through many nodes are dealt with in order. Called by `requests` and `delivery`.

use super::delivery::{Next, Place};
use super::edges::PathId;
use super::queue::QueueState;
use super::server::ShardServer;
use crate::model::limits::TAKE_BYTES;
use crate::model::link::{Delivery, ToEdge};
use crate::model::{QueueId, SessionId};

/// A take that waits for its turn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Take {
    pub path: PathId,
    pub session: SessionId,
    pub request: u64,
    pub most: u32,
    /// Only while nobody holds messages of the queue.
    pub alone: bool,
    /// Answered when there are messages; else at once.
    pub patient: bool,
}

/// What a take found.
enum Found {
    Messages(Vec<Delivery>),
    Nothing,
    /// Bodies are being read, or the reserved mark is being moved.
    Later,
}

impl ShardServer {
    pub(super) fn take_in(&mut self, take: Take, queue: QueueId) {
        self.session_used(take.session);
        if let Some(state) = self.queues.get_mut(&queue) {
            // Asked again on a new path.
            state.takes.retain(|t| (t.session, t.request) != (take.session, take.request));
            state.takes.push_back(take);
            self.touch(queue);
            self.mark(queue);
        }
    }

    /// Answers the takes that can be answered, in their order.
    pub(super) fn pump_takes(&mut self, state: &mut QueueState, budget: &mut usize) {
        let (mut at, mut dry) = (0, false);
        while let Some(take) = state.takes.get(at).copied() {
            if *budget == 0 {
                return;
            }
            if self.path_mut(take.path).is_none() {
                // Its edge asks again when it is back.
                state.takes.remove(at);
                continue;
            }
            let locked = take.alone && state.checked.count() > 0;
            let found = if locked || dry { Found::Nothing } else { self.gather(state, take, budget) };
            match found {
                Found::Messages(messages) => {
                    state.takes.remove(at);
                    self.send(take.path, ToEdge::Took { request: take.request, result: Ok(messages) });
                }
                Found::Later => return,
                Found::Nothing => {
                    dry |= !locked;
                    if take.patient {
                        at += 1;
                    } else {
                        state.takes.remove(at);
                        self.send(take.path, ToEdge::Took { request: take.request, result: Ok(Vec::new()) });
                    }
                }
            }
        }
    }

    fn gather(&mut self, state: &mut QueueState, take: Take, budget: &mut usize) -> Found {
        let (mut messages, mut bytes) = (Vec::new(), 0);
        let most = take.most.max(1) as usize;
        while messages.len() < most && bytes < TAKE_BYTES {
            let (place, seq): (Place, _) = match self.next(state) {
                Next::Message(place, seq) => (place, seq),
                Next::Nothing if messages.is_empty() => return Found::Nothing,
                Next::Waiting if messages.is_empty() => return Found::Later,
                // It goes with the next entry, unless its letter finds no room: nobody is to wait for that.
                Next::Expired if messages.is_empty() => return if self.may_leave(state) { Found::Later } else { Found::Nothing },
                Next::Nothing | Next::Waiting | Next::Expired => break,
            };
            if seq > state.reserved || !state.may_hold(take.session) {
                if messages.is_empty() {
                    return Found::Later;
                }
                break;
            }
            let Some((seq, message)) = state.levels[place.level].pop(place.again) else { break };
            bytes += message.len();
            *budget = budget.saturating_sub(message.len().max(64));
            messages.push(self.check_out(state, take.session, (seq, message)));
        }
        Found::Messages(messages)
    }
}
