//! Delayed messages: never early, soon after their time, under another leader too.

use super::*;
use crate::model::store::Store;

fn delayed(ms: u32) -> Vec<u8> {
    let entry = [&b"\x07x-delayI"[..], &ms.to_be_bytes()].concat();
    [&[0x20, 0][..], &(entry.len() as u32).to_be_bytes(), &entry].concat()
}

/// Q is behind a delayed exchange; what leaves it goes to Q2.
fn shard() -> Shard {
    let shard = Shard::with(QueueSettings::of_store(Store::Delayed));
    shard.declare(&[Q2]);
    shard
}

impl Edge {
    async fn delay(&mut self, ms: u32, body: &str) {
        let batch = self.batch(|ops| {
            ops.enqueue(&[Q], b"", b"key", &delayed(ms), body.as_bytes());
        });
        let seq = batch.seq;
        self.up(ToLeader::Batch(batch)).await;
        assert_eq!(self.down().await, ToEdge::Verdict { seq, refused: vec![] });
    }
}

async fn bodies(edge: &mut Edge, n: usize) -> Vec<String> {
    edge.take(n).await.into_iter().map(|(_, _, _, body)| body).collect()
}

#[tokio::test]
async fn messages_come_in_the_order_of_their_times_and_none_before_its_time() {
    let shard = shard();
    let mut edge = shard.edge(1).await;
    edge.consume(1, Q2, None).await;
    // By a clock that goes when the test says so.
    let began = shard.clock.read();
    let set = |after: u64| {
        let clock_ms = began.clock_ms.map(|ms| ms + after);
        *shard.clock.0.lock() = Some(Reading { clock_ms, steady_ms: began.steady_ms + after, is_agreed: true, is_sure: true });
    };
    set(0);
    edge.delay(160, "late").await;
    edge.delay(40, "soon").await;
    // A delay ends with the millisecond that it ends in.
    set(40);
    edge.nothing().await;
    set(41);
    assert_eq!(bodies(&mut edge, 1).await, ["soon"]);
    set(160);
    edge.nothing().await;
    set(161);
    assert_eq!(bodies(&mut edge, 1).await, ["late"]);
    assert_eq!(shard.machine.lock().queue(Q).unwrap().live_count(), 0);
}

#[tokio::test]
async fn a_message_waits_for_the_leaders_clock_and_not_for_anything_else() {
    let shard = shard();
    let mut edge = shard.edge(1).await;
    edge.consume(1, Q2, None).await;
    let began = shard.clock.read();
    let set = |after: u64, is_sure: bool| {
        let clock_ms = began.clock_ms.map(|ms| ms + after);
        *shard.clock.0.lock() = Some(Reading { clock_ms, steady_ms: began.steady_ms + after, is_agreed: is_sure, is_sure });
    };
    set(0, true);
    edge.delay(60, "m").await;
    set(60, true);
    tokio::time::sleep(Duration::from_millis(250)).await;
    edge.nothing().await;
    set(61, false);
    tokio::time::sleep(Duration::from_millis(100)).await;
    edge.nothing().await;
    set(61, true);
    assert_eq!(bodies(&mut edge, 1).await, ["m"]);
}

#[tokio::test]
async fn what_was_delayed_under_one_leader_comes_under_the_next() {
    let shard = shard();
    let mut edge = shard.edge(1).await;
    shard.gate.held.lock().get_or_insert_default();
    let batch = edge.batch(|ops| {
        for (ms, body) in [(300, "due after"), (1, "due before")] {
            ops.enqueue(&[Q], b"", b"key", &delayed(ms), body.as_bytes());
        }
    });
    edge.up(ToLeader::Batch(batch)).await;
    while shard.gate.held.lock().as_ref().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let (token, leader, entry) = shard.gate.held.lock().as_mut().unwrap().pop_front().unwrap();
    shard.gate.inner.propose(token, leader, entry);
    edge.down().await;
    tokio::time::sleep(QUIET).await;
    // The leader has proposed nothing that lets them go, or nobody took it.
    let shard = shard.fail_over();
    let mut edge = shard.edge(2).await;
    edge.consume(1, Q2, None).await;
    assert_eq!(bodies(&mut edge, 2).await, ["due before", "due after"]);
    edge.nothing().await;
}

#[tokio::test]
async fn lateness_is_told_by_the_leaders_clock_and_from_the_leaders_beginning() {
    let shard = shard();
    let mut edge = shard.edge(1).await;
    edge.consume(1, Q2, None).await;
    let began = shard.clock.read();
    let at = |after: u64| {
        let clock_ms = began.clock_ms.map(|ms| ms + after);
        Some(Reading { clock_ms, steady_ms: began.steady_ms + after, is_agreed: true, is_sure: true })
    };
    *shard.clock.0.lock() = at(0);
    edge.delay(40, "in time").await;
    edge.delay(1000, "late").await;
    edge.delay(5000, "under another leader").await;
    let figures = |shard: &Shard| (shard.lateness.seen(), shard.lateness.late(), shard.lateness.max_ms());
    *shard.clock.0.lock() = at(61);
    assert_eq!(bodies(&mut edge, 1).await, ["in time"]);
    assert_eq!(figures(&shard), (1, 0, 20), "its millisecond was over at 41");
    *shard.clock.0.lock() = at(1301);
    assert_eq!(bodies(&mut edge, 1).await, ["late"]);
    assert_eq!(figures(&shard), (2, 1, 300));
    *shard.clock.0.lock() = at(60_000);
    let shard = shard.fail_over();
    let mut edge = shard.edge(2).await;
    edge.consume(1, Q2, None).await;
    assert!(bodies(&mut edge, 3).await.contains(&"under another leader".to_owned()));
    assert_eq!(figures(&shard), (1, 0, 0), "nobody could let it go before");
}

#[tokio::test]
async fn many_due_at_once_all_come_and_each_once() {
    let shard = shard();
    let mut edge = shard.edge(1).await;
    let many = limits::LEAVING_PER_ENTRY as usize + 1500;
    let batch = edge.batch(|ops| {
        for n in 0..many {
            ops.enqueue(&[Q], b"", b"key", &delayed(1 + n as u32 % 3), n.to_string().as_bytes());
        }
    });
    let seq = batch.seq;
    edge.up(ToLeader::Batch(batch)).await;
    assert_eq!(edge.down().await, ToEdge::Verdict { seq, refused: vec![] });
    let mut left = many as u64;
    while left > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        left = many as u64 - shard.machine.lock().queue(Q2).unwrap().tail().0;
    }
    edge.nothing().await;
    let machine = shard.machine.lock();
    assert_eq!((machine.queue(Q2).unwrap().live_count(), machine.queue(Q).unwrap().live_count()), (many as u64, 0));
}
