//! Direct reply-to: queues that come and go with their consumer.

use super::*;

const REPLY: QueueId = QueueId(1 << 63 | 7);

/// The shard of node 1's memory.
fn local() -> Shard {
    let shard = ShardId::local(NodeId(1));
    Shard::over(Arc::new(Mutex::new(DataMachine::new(shard))), Arc::default(), Arc::default(), 1, Setup { shard, ..SETUP })
}

fn exists(shard: &Shard) -> bool {
    shard.machine.lock().queue(REPLY).is_some()
}

async fn gone(shard: &Shard) {
    let wait = async {
        while exists(shard) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(SOON, wait).await.expect("the queue goes");
}

async fn refused(edge: &mut Edge) {
    let batch = edge.messages(REPLY, 0..1);
    let seq = batch.seq;
    edge.up(ToLeader::Batch(batch)).await;
    assert_eq!(edge.down().await, ToEdge::Verdict { seq, refused: vec![(0, RefusedEnqueue::UnknownQueue)] });
}

#[tokio::test]
async fn a_reply_queue_comes_and_goes_with_its_consumer() {
    let shard = local();
    let (mut asking, mut answering) = (shard.edge(1).await, shard.edge(2).await);
    refused(&mut answering).await;
    asking.consume(1, REPLY, None).await;
    answering.publish(REPLY, 0..2).await;
    assert_eq!(asking.seqs(2).await, [1, 2]);
    shard.declare(&[Q]);
    answering.publish(REPLY, 2..3).await;
    assert_eq!(asking.seqs(1).await, [3], "the catalog's changes leave it alone");
    asking.up(ToLeader::Cancel { consumer: ConsumerId(1) }).await;
    assert_eq!(asking.down().await, ToEdge::Cancelled { consumer: ConsumerId(1), asked: true });
    gone(&shard).await;
    refused(&mut answering).await;
}

#[tokio::test]
async fn a_reply_queue_goes_with_its_edge() {
    let shard = local();
    let mut asking = shard.edge(1).await;
    asking.consume(1, REPLY, None).await;
    drop(asking);
    gone(&shard).await;
}

#[tokio::test]
async fn a_consumer_that_ends_before_its_queue_is_there_leaves_none_behind() {
    let shard = local();
    let mut asking = shard.edge(1).await;
    *shard.gate.held.lock() = Some(VecDeque::new());
    asking.up(ToLeader::Consume(consumer(1, REPLY, None))).await;
    asking.up(ToLeader::Cancel { consumer: ConsumerId(1) }).await;
    assert_eq!(asking.down().await, ToEdge::Cancelled { consumer: ConsumerId(1), asked: true });
    let held = shard.gate.held.lock().take().expect("held");
    held.into_iter().for_each(|(token, leader, entry)| shard.gate.inner.propose(token, leader, entry));
    asking.consume(2, QueueId(REPLY.0 + 1), None).await;
    gone(&shard).await;
}

#[tokio::test]
async fn a_failed_entry_is_proposed_again() {
    let shard = local();
    let mut asking = shard.edge(1).await;
    shard.gate.fail.store(2, Ordering::Relaxed);
    asking.consume(1, REPLY, None).await;
    assert!(exists(&shard));
}

#[tokio::test]
async fn only_a_nodes_own_clients_have_reply_queues_in_its_shard() {
    let shard = local();
    let mut other = shard.edge(2).await;
    other.up(ToLeader::Consume(consumer(1, REPLY, None))).await;
    let ToEdge::Consuming { result: Err(Refusal::NotFound { .. }), .. } = other.down().await else { panic!() };
    let shard = Shard::new();
    let mut edge = shard.edge(1).await;
    edge.up(ToLeader::Consume(consumer(1, REPLY, None))).await;
    let ToEdge::Consuming { result: Err(Refusal::NotFound { .. }), .. } = edge.down().await else { panic!() };
}
