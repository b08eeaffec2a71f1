//! Direct reply-to: addresses of consumers that answers are sent to without a queue in the catalog. An address names the node and a
//! queue that its local shard makes with the consumer and drops with it (`serving::replies`), so routing to it is parsing, and
//! everything else, credit and the end of a node included, is as with any in-memory queue.

use crate::model::step::REPLY_TO;
use crate::model::{NodeId, QueueId};
use std::sync::Arc;

/// `amq.rabbitmq.reply-to.NODE.QUEUE`: the queue in 16 hexadecimal digits, 63 bits of it random.
pub(super) fn address(queue: QueueId, node: NodeId) -> Arc<str> {
    format!("{REPLY_TO}.{node}.{:016x}", queue.0).into()
}

/// A queue that nobody else has and nobody can guess.
pub(super) fn new_queue() -> QueueId {
    QueueId::reply(rand::random())
}

/// The queue and its node behind an address.
pub(super) fn parse(address: &[u8]) -> Option<(QueueId, NodeId)> {
    let rest = str::from_utf8(address).ok()?.strip_prefix(REPLY_TO)?.strip_prefix('.')?;
    let (node, queue) = rest.split_once('.')?;
    let queue = QueueId(u64::from_str_radix(queue, 16).ok().filter(|_| queue.len() == 16)?);
    queue.is_reply().then_some((queue, NodeId(node.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_leads_back_to_its_queue() {
        let queue = new_queue();
        assert_ne!(queue, new_queue());
        assert_eq!(parse(address(queue, NodeId(3)).as_bytes()), Some((queue, NodeId(3))));
        for other in [
            "amq.rabbitmq.reply-to",
            "amq.rabbitmq.reply-to.",
            "amq.rabbitmq.reply-to.1.00000000000000ff",
            "amq.rabbitmq.reply-to.x.y",
            "q",
        ] {
            assert_eq!(parse(other.as_bytes()), None, "{other}");
        }
    }
}
