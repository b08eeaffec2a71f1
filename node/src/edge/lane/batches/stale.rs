//! What this edge had to say when its session ended, and may not say in the next one (rule 19): others have been given what its clients
//! held. What they had acknowledged is done with and stays so; what they had rejected is another client's to reject.

use super::{Batches, Settles};
use crate::model::entry::{SettleReason, keep_rejects};

impl Batches {
    /// Another session than before: what the shard has not applied by now it never will under the old one, and so may be changed.
    /// Nothing of it is rejected any more.
    pub(super) fn drop_rejects(&mut self) {
        let rejected = self.settles.extract_if(.., |(_, reason), _| *reason == SettleReason::Reject);
        let dropped: u64 = rejected.map(|(_, set)| set.count()).sum();
        self.settle_count -= dropped;
        if self.open_settles.iter().any(is_reject) {
            self.close();
        }
        for batch in self.closed.iter_mut().filter(|batch| batch.settles.iter().any(is_reject)) {
            batch.settles.retain(|settles| !is_reject(settles));
            if let Some(ops) = keep_rejects(&batch.ops, |_, _| Vec::new()) {
                self.closed_bytes -= batch.ops.len() - ops.len();
                batch.ops = ops;
            }
        }
        self.count_late();
    }
}

fn is_reject((_, reason, _): &Settles) -> bool {
    *reason == SettleReason::Reject
}

#[cfg(test)]
mod tests {
    use super::super::tests::{LEADER, run};
    use super::super::{Batches, Message};
    use super::*;
    use crate::edge::lane::Committing;
    use crate::edge::mailbox::{ChannelRef, Mailbox};
    use crate::model::catalog::Owner;
    use crate::model::entry::{Ops, Settling};
    use crate::model::{BatchSeq, ConnectionId, Incarnation, NodeId, QueueId, Seq, SessionId, TxId};
    use std::sync::Arc;
    use std::time::Instant;

    const Q: QueueId = QueueId(1);

    fn transaction() -> Arc<Committing> {
        let (node, incarnation) = (NodeId(1), Incarnation(1));
        let owner = Owner { node, incarnation, connection: ConnectionId(1) };
        let mailbox = Arc::new(Mailbox::new(owner, std::net::SocketAddr::from(([127, 0, 0, 1], 1))));
        Committing::new(mailbox, ChannelRef { channel: 1, epoch: 0 }, TxId { node, incarnation, number: 1 }, &[], false)
    }

    /// Rejects in a batch that was sent, in a transaction in the open one, and on their way into it; beside each an acknowledgement.
    fn filled(now: Instant) -> Batches {
        let mut batches = Batches::new(now, true);
        batches.welcome(SessionId(9), BatchSeq(0), now);
        let both = |batches: &mut Batches, seq| {
            batches.settle(Q, SettleReason::Ack, Seq(seq), now);
            batches.settle(Q, SettleReason::Reject, Seq(seq + 1), now);
        };
        both(&mut batches, 1);
        let message = Message { exchange: b"", key: b"q", properties: &[0, 0], body: b"b", source: None };
        batches.enqueue(&[Q], &message, 1, run(1), now);
        assert!(Settling::of(&batches.next(LEADER, now).unwrap().ops).rejects);
        let mut ops = Ops::default();
        let settles = vec![(Q, SettleReason::Ack, vec![(Seq(3), Seq(3))]), (Q, SettleReason::Reject, vec![(Seq(4), Seq(4))])];
        settles.iter().for_each(|(queue, reason, ranges)| ops.settle(*queue, *reason, ranges));
        batches.transact(ops, vec![run(2)], settles, 1, &transaction(), now);
        both(&mut batches, 5);
        batches
    }

    fn settling(batches: &Batches) -> Vec<u64> {
        batches.settling().remove(&Q).map_or(Vec::new(), |set| set.to_ranges()).iter().flat_map(|r| r.0.0..=r.1.0).collect()
    }

    #[test]
    fn rejects_outlive_a_leader_and_not_the_session() {
        let now = Instant::now();
        for (session, rejects) in [(9, true), (20, false)] {
            let mut batches = filled(now);
            assert_eq!(settling(&batches), [1, 2, 3, 4, 5, 6]);
            batches.welcome(SessionId(session), BatchSeq(0), now);
            assert_eq!(settling(&batches), if rejects { vec![1, 2, 3, 4, 5, 6] } else { vec![1, 3, 5] });
            for seq in 1..=2 {
                let batch = batches.next(LEADER, now).unwrap();
                assert_eq!((batch.seq, batch.session, Settling::of(&batch.ops).rejects), (BatchSeq(seq), SessionId(session), rejects));
            }
            assert!(batches.next(LEADER, now).is_none());
            (1..=2).for_each(|seq| drop(batches.verdict(BatchSeq(seq), now).unwrap()));
            assert!(batches.is_empty() && batches.bytes() == 0, "what is counted is what there is");
            batches.settle(Q, SettleReason::Reject, Seq(7), now);
            assert!(Settling::of(&batches.next(LEADER, now).unwrap().ops).rejects, "what is rejected from now on");
        }
    }
}
