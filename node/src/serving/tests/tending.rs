//! Queues that are more than plain ones: limits, times to live, expiry, priorities, consumers that take precedence.

use super::*;
use crate::model::properties::{EXPIRATION, PRIORITY};

fn limit(max_length: u64) -> QueueSettings {
    QueueSettings { max_length: Some(max_length), ..QueueSettings::default() }
}

fn ttl(ms: u64) -> QueueSettings {
    QueueSettings { message_ttl_ms: Some(ms), ..QueueSettings::default() }
}

impl Edge {
    /// Until the queue has this many ready messages.
    async fn until_ready(&mut self, ready: u64) -> QueueStat {
        for _ in 0..500 {
            let stat = self.stat(Q).await;
            if stat.ready == ready {
                return stat;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never {ready} ready messages: {:?}", self.stat(Q).await);
    }

    async fn until_active(&mut self, consumer: (NodeId, ConsumerId)) {
        for _ in 0..500 {
            if self.stat(Q).await.active == Some(consumer) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("not {consumer:?} but {:?}", self.stat(Q).await.active);
    }

    async fn publish_with(&mut self, properties: &[u8], body: &str) {
        let batch = self.batch(|ops| {
            ops.enqueue(&[Q], b"", b"key", properties, body.as_bytes());
        });
        let seq = batch.seq;
        self.up(ToLeader::Batch(batch)).await;
        assert_eq!(self.down().await, ToEdge::Verdict { seq, refused: vec![] });
    }

    async fn start(&mut self, spec: Consumer) {
        let id = spec.id.0;
        self.up(ToLeader::Consume(spec)).await;
        self.started(id).await;
    }

    async fn cancel(&mut self, id: u64) {
        self.up(ToLeader::Cancel { consumer: ConsumerId(id) }).await;
        assert_eq!(self.down().await, ToEdge::Cancelled { consumer: ConsumerId(id), asked: true });
    }
}

#[tokio::test]
async fn a_full_queue_drops_its_oldest_messages() {
    let shard = Shard::with(limit(3));
    let mut edge = shard.edge(1).await;
    edge.publish(Q, 0..10).await;
    assert_eq!(edge.stat(Q).await.ready, 3);
    assert_eq!(edge.get(Q).await, Ok(Some((8, false, 2))));
    edge.publish(Q, 10..12).await;
    assert_eq!(edge.stat(Q).await.ready, 3);
    assert_eq!(edge.get(Q).await, Ok(Some((10, false, 2))));
}

#[tokio::test]
async fn what_consumers_hold_does_not_count_and_is_not_dropped() {
    let shard = Shard::with(limit(3));
    let mut edge = shard.edge(1).await;
    edge.consume(1, Q, Some(2)).await;
    edge.publish(Q, 0..2).await;
    assert_eq!(edge.seqs(2).await, [1, 2]);
    edge.publish(Q, 2..10).await;
    let stat = edge.stat(Q).await;
    assert_eq!((stat.ready, stat.unacked), (3, 2));
    // What comes back finds the queue full: the oldest goes, which is itself.
    edge.give_back(Q, 1, 1, true).await;
    assert_eq!(edge.until_ready(3).await.unacked, 1);
    edge.settle(Q, 2, 2).await;
    edge.credit(1, 2, 0).await;
    assert_eq!(edge.seqs(2).await, [8, 9]);
}

#[tokio::test]
async fn a_consumer_that_takes_messages_at_once_loses_none_to_a_short_limit() {
    let shard = Shard::with(limit(1));
    let mut edge = shard.edge(1).await;
    edge.consume(1, Q, Some(10)).await;
    edge.publish(Q, 0..1).await;
    assert_eq!(edge.seqs(1).await, [1]);
    edge.publish(Q, 1..10).await;
    assert_eq!(edge.seqs(9).await, (2..=10).collect::<Vec<_>>());
    edge.publish(Q, 10..14).await;
    assert_eq!(edge.until_ready(1).await.unacked, 10);
}

#[tokio::test]
async fn a_full_queue_that_refuses_says_which_messages() {
    let shard = Shard::with(QueueSettings { overflow: Overflow::RejectPublish, ..limit(3) });
    let mut edge = shard.edge(1).await;
    let batch = edge.messages(Q, 0..5);
    let seq = batch.seq;
    edge.up(ToLeader::Batch(batch)).await;
    let refused = vec![(3, RefusedEnqueue::Full), (4, RefusedEnqueue::Full)];
    assert_eq!(edge.down().await, ToEdge::Verdict { seq, refused });
    assert_eq!(edge.stat(Q).await.ready, 3);
    assert_eq!(edge.get(Q).await, Ok(Some((1, false, 2))));
    edge.publish(Q, 5..6).await;
}

#[tokio::test]
async fn a_queue_that_refuses_holds_its_limit_exactly_while_consumers_hold_messages() {
    let shard = Shard::with(QueueSettings { overflow: Overflow::RejectPublish, ..limit(3) });
    let mut edge = shard.edge(1).await;
    edge.consume(1, Q, Some(2)).await;
    edge.publish(Q, 0..2).await;
    assert_eq!(edge.seqs(2).await, [1, 2]);
    let batch = edge.messages(Q, 2..9);
    let seq = batch.seq;
    edge.up(ToLeader::Batch(batch)).await;
    let refused = (3..7).map(|ordinal| (ordinal, RefusedEnqueue::Full)).collect();
    assert_eq!(edge.down().await, ToEdge::Verdict { seq, refused });
    let stat = edge.stat(Q).await;
    assert_eq!((stat.ready, stat.unacked), (3, 2));
    // What comes back is over the limit, and stays: nothing leaves a queue that refuses.
    edge.cancel(1).await;
    edge.give_back(Q, 1, 2, true).await;
    assert_eq!(edge.until_ready(5).await.unacked, 0);
    tokio::time::sleep(QUIET).await;
    assert_eq!(edge.stat(Q).await.ready, 5);
}

#[tokio::test]
async fn a_part_of_a_transaction_is_measured_without_what_consumers_hold() {
    let shard = Shard::with(QueueSettings { overflow: Overflow::RejectPublish, ..limit(2) });
    let mut edge = shard.edge(1).await;
    edge.consume(1, Q, Some(2)).await;
    edge.publish(Q, 0..2).await;
    assert_eq!(edge.seqs(2).await, [1, 2]);
    for (number, messages, refused) in [(1, 3, vec![(0, RefusedEnqueue::Full)]), (2, 2, vec![])] {
        let tx = TxId { node: NodeId(1), incarnation: Incarnation(edge.incarnation), number };
        let batch = edge.batch(|ops| {
            let start = ops.begin_part(tx, ShardId(4), &[]);
            for _ in 0..messages {
                ops.enqueue(&[Q], b"", b"key", &[0, 0], b"of the transaction");
            }
            ops.end_part(start);
        });
        let seq = batch.seq;
        edge.up(ToLeader::Batch(batch)).await;
        assert_eq!(edge.down().await, ToEdge::Verdict { seq, refused }, "{messages} into two places");
    }
}

#[tokio::test]
async fn a_queue_that_refuses_bytes_takes_no_more_at_once_than_consumers_can() {
    let settings = QueueSettings { overflow: Overflow::RejectPublish, max_length_bytes: Some(1000), ..QueueSettings::default() };
    let shard = Shard::with(settings);
    let mut edge = shard.edge(1).await;
    edge.consume(1, Q, Some(1)).await;
    let batch = edge.batch(|ops| {
        for _ in 0..5 {
            ops.enqueue(&[Q], b"", b"key", &[0, 0], &[7; 600]);
        }
    });
    let seq = batch.seq;
    edge.up(ToLeader::Batch(batch)).await;
    let refused = (1..5).map(|ordinal| (ordinal, RefusedEnqueue::Full)).collect();
    assert_eq!(edge.down().await, ToEdge::Verdict { seq, refused }, "the first is the consumer's, no other fits");
}

#[tokio::test]
async fn a_message_whose_time_ended_goes_and_is_not_delivered_any_more() {
    let shard = Shard::with(ttl(300));
    let mut edge = shard.edge(1).await;
    edge.publish(Q, 0..3).await;
    assert_eq!(edge.get(Q).await.unwrap().unwrap().0, 1);
    let stat = edge.until_ready(0).await;
    assert_eq!(stat.unacked, 1, "who holds a message keeps it");
    assert_eq!(edge.get(Q).await, Ok(None));
    // Given back it is over as well.
    edge.give_back(Q, 1, 1, true).await;
    assert_eq!(edge.until_ready(0).await.unacked, 0);
}

#[tokio::test]
async fn an_expiration_of_its_own_ends_a_message_of_a_plain_queue_at_the_head_only() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    let soon = [&EXPIRATION.to_be_bytes()[..], b"\x0220"].concat();
    edge.publish_with(&[0, 0], "stays").await;
    edge.publish_with(&soon, "behind").await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert_eq!(edge.stat(Q).await.ready, 2, "only the head expires");
    assert_eq!(edge.get(Q).await.unwrap().unwrap().0, 1);
    assert_eq!(edge.until_ready(0).await.unacked, 1);
}

#[tokio::test]
async fn a_message_without_time_goes_to_a_waiting_consumer_or_nowhere() {
    let shard = Shard::with(ttl(0));
    let mut edge = shard.edge(1).await;
    edge.publish(Q, 0..2).await;
    edge.until_ready(0).await;
    assert_eq!(edge.get(Q).await, Ok(None));
    edge.consume(1, Q, Some(2)).await;
    edge.publish(Q, 2..3).await;
    assert_eq!(edge.seqs(1).await, [3]);
}

#[tokio::test]
async fn messages_that_expired_before_a_leader_change_go_under_the_next_leader() {
    let shard = Shard::with(ttl(30));
    shard.edge(1).await.publish(Q, 0..2).await;
    let shard = shard.fail_over();
    let mut edge = shard.edge(1).await;
    edge.until_ready(0).await;
}

#[tokio::test]
async fn an_unused_queue_asks_for_its_end_and_a_used_one_does_not() {
    let mut shard = Shard::with(QueueSettings { expires_ms: Some(60), ..QueueSettings::default() });
    let mut edge = shard.edge(1).await;
    edge.consume(1, Q, None).await;
    assert!(timeout(Duration::from_millis(150), shard.events.recv()).await.is_err(), "it has a consumer");
    edge.cancel(1).await;
    let event = timeout(SOON, shard.events.recv()).await.expect("it expires").unwrap();
    assert_eq!(event, ServerEvent::Sealed { queue: Q });
}

/// Ten thousand queues of all kinds in which nothing happens: the shard's task sleeps, and nothing wakes the thread that would run it.
#[tokio::test]
async fn idle_queues_wake_nobody() {
    let expiring = QueueSettings { expires_ms: Some(2 * 3_600_000), ..QueueSettings::default() };
    let counted = QueueSettings { delivery_limit: Some(20), ..QueueSettings::default() };
    let kinds = [QueueSettings::default(), limit(5), ttl(1000), expiring, counted, single()];
    let queues: Vec<QueueId> = (100..10_100).map(QueueId).collect();
    let shard = Shard::new();
    shard.catalog.2.lock().extend(queues.iter().zip(kinds.iter().cycle()).map(|(queue, kind)| (*queue, kind.clone())));
    shard.declare(&queues);
    let parked = || tokio::runtime::Handle::current().metrics().worker_park_count(0);
    let sleeps = async {
        loop {
            let before = parked();
            tokio::time::sleep(Duration::from_millis(300)).await;
            if shard.machine.lock().queues().count() == queues.len() && parked() - before <= 2 {
                return;
            }
        }
    };
    // A busy machine takes its time to declare them.
    timeout(Duration::from_secs(60), sleeps).await.expect("only this test's own timers wake the thread");
}

#[test]
fn an_alarm_is_early_only_where_the_clock_may_be_set() {
    let now = tokio::time::Instant::now();
    let later = |seconds| Some(now + Duration::from_secs(seconds));
    let alarm = |by_clock, unused| super::super::tending::alarm_at(now, by_clock, unused);
    assert_eq!(alarm(None, None), None);
    assert_eq!(alarm(None, later(7200)), later(7200), "an idle queue is looked at when its time is over");
    assert_eq!(alarm(later(7200), later(3600)), later(10));
    assert_eq!(alarm(later(5), later(3600)), later(5));
    assert_eq!(alarm(later(7200), later(2)), later(2));
}

#[tokio::test]
async fn higher_priorities_come_first_also_when_given_back() {
    let shard = Shard::with(QueueSettings { max_priority: Some(5), ..QueueSettings::default() });
    let mut edge = shard.edge(1).await;
    for priority in [0u8, 5, 3, 9, 5] {
        let list = [&PRIORITY.to_be_bytes()[..], &[priority]].concat();
        edge.publish_with(&list, "m").await;
    }
    // Beyond the highest counts as the highest.
    let mut order = Vec::new();
    for _ in 0..3 {
        order.push(edge.get(Q).await.unwrap().unwrap().0);
    }
    assert_eq!(order, [2, 4, 5]);
    edge.give_back(Q, 4, 4, true).await;
    assert_eq!(edge.get(Q).await, Ok(Some((4, true, 2))));
    assert_eq!(edge.get(Q).await, Ok(Some((3, false, 1))));
    let shard = shard.fail_over();
    let mut edge = shard.arriving(1, 101).await;
    edge.attach(vec![], vec![(Q, vec![(Seq(2), Seq(2))])]).await;
    let mut order = Vec::new();
    for _ in 0..4 {
        order.push(edge.get(Q).await.unwrap().unwrap().0);
    }
    assert_eq!(order, [4, 5, 3, 1]);
}

#[tokio::test]
async fn consumers_of_a_higher_priority_are_served_first() {
    let shard = Shard::with_queues(&[Q]);
    let mut edge = shard.edge(1).await;
    edge.start(Consumer { priority: 0, ..consumer(1, Q, Some(10)) }).await;
    edge.start(Consumer { priority: 5, ..consumer(2, Q, Some(2)) }).await;
    edge.start(Consumer { priority: -1, ..consumer(3, Q, Some(10)) }).await;
    edge.publish(Q, 0..4).await;
    let mut got: Vec<_> = edge.take(4).await.into_iter().map(|m| (m.1, m.0)).collect();
    got.sort_unstable();
    assert_eq!(got, [(1, 2), (2, 2), (3, 1), (4, 1)]);
}

fn single() -> QueueSettings {
    QueueSettings { single_active_consumer: true, ..QueueSettings::default() }
}

#[tokio::test]
async fn one_consumer_is_active_and_the_next_follows_when_it_goes() {
    let shard = Shard::with(single());
    let (mut one, mut two) = (shard.edge(1).await, shard.edge(2).await);
    one.consume(1, Q, None).await;
    two.consume(2, Q, None).await;
    one.publish(Q, 0..4).await;
    assert_eq!(one.seqs(4).await, [1, 2, 3, 4]);
    two.nothing().await;
    one.cancel(1).await;
    one.publish(Q, 4..5).await;
    assert_eq!(two.seqs(1).await, [5]);
    one.up(ToLeader::Consume(Consumer { exclusive: true, ..consumer(9, Q, None) })).await;
    let ToEdge::Consuming { result: Err(Refusal::Access(_)), .. } = one.down().await else { panic!("exclusive and single active") };
}

#[tokio::test]
async fn the_next_active_consumer_is_chosen_also_when_there_is_nothing_to_deliver() {
    let shard = Shard::with(single());
    let (mut one, mut two) = (shard.edge(1).await, shard.edge(2).await);
    one.consume(1, Q, None).await;
    two.consume(2, Q, None).await;
    two.until_active((NodeId(1), ConsumerId(1))).await;
    one.cancel(1).await;
    two.until_active((NodeId(2), ConsumerId(2))).await;
}

#[tokio::test]
async fn the_active_consumer_stays_active_under_another_leader_until_its_edge_is_gone() {
    let shard = Shard::with(single());
    let mut one = shard.edge(1).await;
    one.consume(1, Q, Some(1)).await;
    one.publish(Q, 0..3).await;
    assert_eq!(one.seqs(1).await, [1]);
    let shard = shard.fail_over();
    let mut one = shard.arriving(1, 101).await;
    one.attach(vec![attached(1, Q, Some(1), vec![(Seq(1), Seq(1))])], vec![]).await;
    let mut two = shard.edge(2).await;
    two.consume(2, Q, None).await;
    two.nothing().await;
    one.settle(Q, 1, 1).await;
    one.credit(1, 1, 0).await;
    assert_eq!(one.seqs(1).await, [2]);
    drop(one);
    assert_eq!(two.seqs(2).await, [2, 3]);
}

/// As in quorum queues: the present one keeps what it has and gets nothing more.
#[tokio::test]
async fn a_consumer_of_a_higher_priority_becomes_active_when_the_present_one_has_settled() {
    let shard = Shard::with(single());
    let (mut one, mut two) = (shard.edge(1).await, shard.edge(2).await);
    one.consume(1, Q, None).await;
    one.publish(Q, 0..2).await;
    assert_eq!(one.seqs(2).await, [1, 2]);
    two.start(Consumer { priority: 9, ..consumer(2, Q, None) }).await;
    one.publish(Q, 2..3).await;
    one.nothing().await;
    two.nothing().await;
    one.settle(Q, 1, 1).await;
    two.nothing().await;
    one.settle(Q, 2, 2).await;
    assert_eq!(two.seqs(1).await, [3]);
    two.until_active((NodeId(2), ConsumerId(2))).await;
    // One of the same priority waits. When the better one goes, the first comes back.
    one.start(Consumer { priority: 9, ..consumer(3, Q, None) }).await;
    one.publish(Q, 3..4).await;
    assert_eq!(two.seqs(1).await, [4]);
}

/// What another consumer of the same node left with its client, or basic.get gave out, keeps nobody waiting.
#[tokio::test]
async fn a_consumer_of_a_higher_priority_waits_only_for_what_the_present_one_holds_itself() {
    let shard = Shard::with(single());
    let (mut one, mut two) = (shard.edge(1).await, shard.edge(2).await);
    one.consume(1, Q, None).await;
    one.consume(3, Q, None).await;
    one.publish(Q, 0..1).await;
    assert_eq!(one.take(1).await[0].0, 1);
    one.cancel(1).await;
    two.until_active((NodeId(1), ConsumerId(3))).await;
    one.publish(Q, 1..2).await;
    assert_eq!(one.take(1).await[0].0, 3);
    two.start(Consumer { priority: 9, ..consumer(2, Q, None) }).await;
    one.publish(Q, 2..3).await;
    two.nothing().await;
    one.settle(Q, 2, 2).await;
    assert_eq!(two.seqs(1).await, [3], "the first is still with the one that is cancelled");
}

#[tokio::test]
async fn the_active_consumer_goes_on_when_the_better_one_goes_before_its_turn() {
    let shard = Shard::with(single());
    let (mut one, mut two) = (shard.edge(1).await, shard.edge(2).await);
    one.consume(1, Q, None).await;
    one.publish(Q, 0..1).await;
    assert_eq!(one.seqs(1).await, [1]);
    two.start(Consumer { priority: 9, ..consumer(2, Q, None) }).await;
    one.publish(Q, 1..2).await;
    one.nothing().await;
    two.cancel(2).await;
    assert_eq!(one.seqs(1).await, [2]);
}

/// Rule 24. The machine's last entry was of the right time; the new leader's process starts with a clock that is an hour ahead.
#[tokio::test]
async fn a_leader_that_is_not_sure_of_the_time_lets_nothing_end_and_writes_no_guess_into_the_log() {
    const MINUTE: u64 = 60_000;
    let shard = Shard::with(ttl(10 * MINUTE));
    let began = OwnClock.read();
    shard.edge(1).await.publish(Q, 0..2).await;
    let clock = shard.clock.clone();
    let set = |after: Option<u64>, is_sure| {
        let clock_ms = after.map(|ms| began.clock_ms.unwrap() + ms);
        *clock.0.lock() = Some(Reading { clock_ms, steady_ms: began.steady_ms + after.unwrap_or(0), is_agreed: is_sure, is_sure });
    };
    set(None, false);
    let shard = shard.fail_over();
    assert!(timeout(QUIET, shard.arriving(2, 102)).await.is_err(), "the time is waited for");
    set(Some(MINUTE), false);
    let mut edge = shard.edge(1).await;
    assert_eq!(edge.stat(Q).await.ready, 2);
    assert!(shard.machine.lock().last_time_ms() <= began.clock_ms.unwrap() + MINUTE + 1);
    // Their time has ended, by a clock that may be wrong: they stay, and can be had.
    set(Some(60 * MINUTE), false);
    edge.publish(Q, 2..3).await;
    assert_eq!(edge.get(Q).await.unwrap().unwrap().0, 1);
    assert_eq!(edge.stat(Q).await.ready, 2);
    set(Some(60 * MINUTE), true);
    assert_eq!(edge.until_ready(1).await.unacked, 1, "the second is gone, the last one has time");
}

/// Whoever does not hear the time for long goes on without it: acknowledgements must not wait for ever.
#[tokio::test]
async fn a_leader_that_never_learns_the_time_serves_without() {
    let shard = Shard::with(ttl(60_000));
    shard.edge(1).await.publish(Q, 0..2).await;
    let last = shard.machine.lock().last_time_ms();
    *shard.clock.0.lock() = Some(Reading::default());
    let shard = shard.fail_over();
    let mut edge = shard.edge(1).await;
    edge.settle(Q, 1, 1).await;
    assert_eq!((edge.stat(Q).await.ready, shard.machine.lock().last_time_ms()), (1, last));
}
