//! Direct reply-to: a queue in a node's own shard for one consumer of that node, made when the consumer starts and dropped when it
//! ends. The catalog does not know it (`edge::replies` finds it by parsing its address), so the server itself advances the shard.

use super::edges::PathId;
use super::server::ShardServer;
use crate::model::QueueId;
use crate::model::link::ToLeader;

/// Queues to make and to drop with the next entry.
#[derive(Debug, Default)]
pub(super) struct Replies {
    pub creates: Vec<QueueId>,
    pub drops: Vec<QueueId>,
}

impl Replies {
    /// These too: their entry had no effect.
    pub fn add(&mut self, other: Replies) {
        self.creates.extend(other.creates);
        self.drops.extend(other.drops);
    }

    pub fn is_empty(&self) -> bool {
        self.creates.is_empty() && self.drops.is_empty()
    }
}

impl ShardServer {
    /// Whether the request starts a reply consumer, whose queue is made first. Only this node's own clients have some here.
    pub(super) fn opens_reply(&mut self, id: PathId, request: &ToLeader) -> bool {
        let ToLeader::Consume(spec) = request else { return false };
        let node = self.config.node;
        let local = self.config.shard.owner() == Some(node) && self.path_mut(id).is_some_and(|path| path.end.node == node);
        if !local || !spec.queue.is_reply() {
            return false;
        }
        self.log.replies.creates.push(spec.queue);
        true
    }

    /// The consumer may have ended before its queue was there.
    pub(super) fn drop_unused_reply(&mut self, queue: QueueId) {
        if self.queue_state(queue).is_some_and(|state| state.consumers.is_empty()) {
            self.log.replies.drops.push(queue);
        }
    }
}
