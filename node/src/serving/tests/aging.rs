//! Streams that nobody appends to: their segments go when they are too old, by the leader's clock.

use super::*;
use crate::model::entry::ChunkBuilder;
use crate::model::stream::{PublishedEntry, StreamSettings};

const AGE_MS: u64 = 100;

impl Shard {
    /// By a clock that goes when the test says so, ms after `began`.
    fn set_clock(&self, began: Reading, after: u64, is_sure: bool) {
        let clock_ms = began.clock_ms.map(|ms| ms + after);
        *self.clock.0.lock() = Some(Reading { clock_ms, steady_ms: began.steady_ms + after, is_agreed: is_sure, is_sure });
    }

    /// Offset of the first record of Q that is there.
    fn first(&self) -> u64 {
        self.machine.lock().stream(Q).unwrap().first().0
    }

    async fn until_first(&self, first: u64) {
        let gone = async {
            while self.first() != first {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(timeout(SOON, gone).await.is_ok(), "the stream begins with {}", self.first());
    }
}

impl Edge {
    /// One record each, and a segment, too.
    async fn append(&mut self, records: usize) {
        for _ in 0..records {
            let batch = self.batch(|ops| {
                let mut chunk = ChunkBuilder::new(Q, None, 16);
                chunk.push(&PublishedEntry { id: 0, filter: None, records: 1, entry: b"\0\0\0\x02hi" });
                ops.append_chunk(&chunk.finish());
            });
            let seq = batch.seq;
            self.up(ToLeader::Batch(batch)).await;
            assert_eq!(self.down().await, ToEdge::Verdict { seq, refused: vec![] });
        }
    }
}

/// Q is a stream whose chunks are segments each, which are kept for `AGE_MS`. No session ends: that would be an entry.
fn shard() -> Shard {
    let stream = StreamSettings { max_age_ms: Some(AGE_MS), segment_bytes: 1, ..StreamSettings::default() };
    let setup = Setup { edge_gone: Duration::from_secs(3600), ..SETUP };
    let shard = Shard::over(Arc::new(Mutex::new(DataMachine::new(ShardId(1)))), Arc::default(), Arc::default(), 1, setup);
    shard.catalog.2.lock().push((Q, QueueSettings { stream: Some(stream), ..QueueSettings::default() }));
    shard.declare(&[Q]);
    shard
}

#[tokio::test]
async fn segments_of_a_stream_that_is_idle_go_in_time_and_not_before() {
    let shard = shard();
    let began = shard.clock.read();
    shard.set_clock(began, 0, true);
    let mut edge = shard.edge(1).await;
    edge.append(2).await;
    shard.set_clock(began, 50, true);
    edge.append(2).await;
    shard.set_clock(began, AGE_MS, true);
    tokio::time::sleep(Duration::from_millis(2 * AGE_MS)).await;
    assert_eq!(shard.first(), 0, "none is older than it may be");
    shard.set_clock(began, AGE_MS + 1, false);
    tokio::time::sleep(Duration::from_millis(2 * AGE_MS)).await;
    assert_eq!(shard.first(), 0, "nobody knows what time it is");
    shard.set_clock(began, AGE_MS + 1, true);
    shard.until_first(2).await;
    let applied = shard.machine.lock().applied();
    tokio::time::sleep(Duration::from_millis(2 * AGE_MS)).await;
    assert_eq!(shard.machine.lock().applied(), applied, "nothing is written while nothing is due");
    shard.set_clock(began, 10 * AGE_MS, true);
    shard.until_first(3).await;
    let applied = shard.machine.lock().applied();
    tokio::time::sleep(Duration::from_millis(2 * AGE_MS)).await;
    assert_eq!((shard.first(), shard.machine.lock().applied()), (3, applied), "the last segment stays");
}

#[tokio::test]
async fn a_new_leader_and_a_proposal_that_failed_forget_no_age() {
    let shard = shard();
    let began = shard.clock.read();
    shard.set_clock(began, 0, true);
    let mut edge = shard.edge(1).await;
    edge.append(3).await;
    let shard = shard.fail_over();
    shard.gate.fail.store(2, Ordering::Relaxed);
    shard.set_clock(began, AGE_MS + 1, true);
    shard.until_first(2).await;
}
