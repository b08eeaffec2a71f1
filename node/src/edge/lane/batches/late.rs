//! What waits too long for a verdict: publishers are told no, and what a leader was sent and says nothing of takes no room from those who
//! come later. How much that can be is bounded by what goes out ahead of verdicts.

use super::{Batches, Closed, Run};
use std::time::Instant;

impl Batches {
    /// Bytes that count when it is asked whether there is room for more.
    pub fn waiting_bytes(&self) -> usize {
        self.bytes() - self.late_bytes
    }

    /// Tickets of publishes that are older than `before`: nacked from now on, their batches keep their numbers.
    pub fn nack_older(&mut self, before: Instant) -> Vec<Run> {
        if self.open_since <= before && self.has_open_runs() {
            self.close();
        }
        let mut nacked = Vec::new();
        let (mut were, mut are) = (0, 0);
        for batch in self.closed.iter_mut().take_while(|b| b.since <= before) {
            were += batch.bytes();
            let mut tickets = Vec::new();
            batch.all_runs_mut().for_each(|runs| tickets.extend(runs.extract_if(.., |run| run.is_ticketed())));
            // The leader may have it, and may want it once more: it stays as it is.
            batch.late = batch.sent_under.is_some();
            if !tickets.is_empty() {
                batch.nacked = true;
                if batch.sent_under.is_none() {
                    batch.make_void();
                }
            }
            nacked.extend(tickets);
            are += batch.bytes();
        }
        self.closed_bytes = self.closed_bytes + are - were;
        self.count_late();
        self.merge_empty();
        nacked
    }

    /// Batches that came to nothing before any leader was sent them go: while a shard has no quorum for long, one would be made with each
    /// round of refusals. The one before stands for them, so that marks behind them are reached when they were.
    fn merge_empty(&mut self) {
        if !self.closed.iter().any(Closed::is_empty) {
            return;
        }
        let all = std::mem::take(&mut self.closed);
        for batch in all {
            match self.closed.back_mut() {
                _ if !batch.is_empty() => self.closed.push_back(batch),
                Some(before) => before.stands_for += batch.stands_for,
                None => {
                    self.standing -= batch.stands_for;
                    self.done += batch.stands_for;
                }
            }
        }
    }

    pub(super) fn count_late(&mut self) {
        self.late_bytes = self.closed.iter().filter(|batch| batch.late).map(Closed::bytes).sum();
    }
}

impl Closed {
    fn is_empty(&self) -> bool {
        let is_said = self.sent_under.is_some() || !self.ops.is_empty() || !self.settles.is_empty();
        !is_said && !self.has_runs() && self.commits.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{LEADER, run};
    use super::super::{BYTES_IN_FLIGHT, Batches, Message};
    use crate::model::entry::SettleReason;
    use crate::model::{BatchSeq, LeaderId, QueueId, Seq, SessionId, limits};
    use std::time::Instant;

    /// Messages, each a batch of its own; `ticket` 0: nobody waits for an answer.
    fn fill(batches: &mut Batches, bytes: usize, tickets: impl Iterator<Item = u64>, now: Instant) {
        let body = vec![7; bytes];
        let message = Message { exchange: b"", key: b"q", properties: &[0, 0], body: &body, source: None };
        for ticket in tickets {
            let ops = message.alone(&[QueueId(1)]).expect("a large one");
            batches.enqueue_alone(ops, 1, run(ticket), now);
        }
    }

    fn send(batches: &mut Batches, leader: LeaderId, now: Instant) -> u64 {
        (0..).take_while(|_| batches.next(leader, now).is_some()).count() as u64
    }

    #[test]
    fn what_was_sent_and_gets_no_verdict_takes_no_room_until_another_leader_is_sent_it() {
        let now = Instant::now();
        for (bytes, tickets, sent) in [(16 << 20, [1, 2], 1), (16 << 20, [0, 0], 1), (limits::BATCH_BYTES, [1, 2], 2)] {
            let mut batches = Batches::new(now, true);
            batches.welcome(SessionId(9), BatchSeq(0), now);
            fill(&mut batches, bytes, tickets.into_iter(), now);
            assert_eq!(send(&mut batches, LEADER, now), sent);
            assert_eq!(batches.waiting_bytes(), batches.bytes(), "not late yet");
            batches.nack_older(now);
            let unsent = if tickets[1] == 0 { bytes } else { 0 };
            let waiting = batches.waiting_bytes();
            assert!((unsent..unsent + 1000).contains(&waiting), "{waiting} bytes count, {unsent} were not sent");
            assert!(batches.bytes() - waiting <= BYTES_IN_FLIGHT.max(bytes + 1000), "however long it lasts");
            let other = LeaderId { term: 2, voter: 2 };
            batches.welcome(SessionId(9), BatchSeq(0), now);
            while !batches.is_empty() {
                send(&mut batches, other, now);
                assert_eq!(batches.waiting_bytes(), batches.bytes(), "what it is sent counts");
                batches.verdict(BatchSeq(batches.first), now).expect("in turn");
            }
            assert!(batches.is_empty() && batches.waiting_bytes() == 0);
        }
    }

    #[test]
    fn what_came_to_nothing_before_it_was_sent_leaves_nothing_and_marks_behind_it_are_reached_in_their_turn() {
        let now = Instant::now();
        let mut batches = Batches::new(now, true);
        let settle = |batches: &mut Batches, n| batches.settle(QueueId(1), SettleReason::Ack, Seq(n), now);
        let refuse = |batches: &mut Batches, ticket| {
            fill(batches, limits::BATCH_BYTES, ticket..=ticket, now);
            let mark = batches.mark();
            assert_eq!(batches.nack_older(now).len(), 1);
            mark
        };
        let first = refuse(&mut batches, 1);
        assert!(batches.is_past(first) && batches.closed.is_empty(), "nothing was before it");
        fill(&mut batches, limits::BATCH_BYTES, std::iter::once(0), now);
        let second = batches.mark();
        let marks: Vec<u64> = (2..1000).map(|ticket| refuse(&mut batches, ticket)).collect();
        assert_eq!(batches.closed.len(), 1, "what waits in silence is left");
        settle(&mut batches, 1);
        batches.welcome(SessionId(9), BatchSeq(0), now);
        assert!(!batches.is_past(second) && !batches.is_past(marks[0]));
        assert_eq!(send(&mut batches, LEADER, now), 2, "and the settle");
        batches.verdict(BatchSeq(1), now).expect("in turn");
        assert!(batches.is_past(second) && marks.iter().all(|mark| batches.is_past(*mark)));
        assert!(!batches.is_past(batches.mark()));
        batches.verdict(BatchSeq(2), now).expect("in turn");
        assert!(batches.is_past(batches.mark()) && batches.is_empty());
    }

    #[test]
    fn what_is_late_counts_no_more_once_it_has_its_verdict() {
        let now = Instant::now();
        let mut batches = Batches::new(now, true);
        batches.welcome(SessionId(9), BatchSeq(0), now);
        fill(&mut batches, limits::BATCH_BYTES, 1..=3, now);
        assert_eq!((send(&mut batches, LEADER, now), batches.nack_older(now).len()), (3, 3));
        for left in (0..3).rev() {
            batches.verdict(BatchSeq(3 - left), now).expect("in turn");
            assert_eq!((batches.closed.len() as u64, batches.waiting_bytes()), (left, 0));
        }
        fill(&mut batches, limits::BATCH_BYTES, 4..=4, now);
        assert!(batches.waiting_bytes() > limits::BATCH_BYTES);
    }
}
