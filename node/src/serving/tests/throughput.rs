//! How long much takes; for looking at.

use super::*;

/// One edge publishes batches of 100 with a window of 8; another consumes with a prefetch and acknowledges.
async fn throughput(total: usize, prefetch: u32, backlog: bool) {
    let shard = Shard::with_queues(&[Q]);
    let (mut publisher, mut reader) = (shard.edge(1).await, shard.edge(2).await);
    if !backlog {
        reader.consume(1, Q, Some(prefetch)).await;
    }
    let (started, mut unanswered, mut sent) = (std::time::Instant::now(), 0, 0);
    let publish = async {
        while sent < total || unanswered > 0 {
            if sent < total && unanswered < limits::BATCHES_IN_FLIGHT {
                let batch = publisher.messages(Q, sent..sent + 100);
                publisher.up(ToLeader::Batch(batch)).await;
                (sent, unanswered) = (sent + 100, unanswered + 1);
                continue;
            }
            assert!(matches!(publisher.down().await, ToEdge::Verdict { .. }));
            unanswered -= 1;
        }
    };
    if backlog {
        publish.await;
        println!("{total} published in {:?}", started.elapsed());
        reader.consume(1, Q, Some(prefetch)).await;
        drain(&mut reader, total).await;
    } else {
        tokio::join!(publish, drain(&mut reader, total));
    }
    println!("{total} messages, prefetch {prefetch}, backlog {backlog}: {:?}", started.elapsed());
}

async fn drain(reader: &mut Edge, total: usize) {
    let mut got = 0;
    while got < total {
        tokio::select! {
            Some(_) = reader.end.down_rx.recv() => {}
            Some(deliveries) = reader.end.deliveries_rx.recv() => {
                let (first, last) = (deliveries.messages[0].seq.0, deliveries.messages[deliveries.messages.len() - 1].seq.0);
                let bytes = deliveries.messages.iter().map(|m| m.message.len() as u64).sum();
                got += deliveries.messages.len();
                reader.credit(1, deliveries.messages.len() as u32, bytes).await;
                let batch = reader.batch(|ops| ops.settle(Q, SettleReason::Ack, &[(Seq(first), Seq(last))]));
                reader.up(ToLeader::Batch(batch)).await;
            }
        }
    }
}

#[tokio::test]
#[ignore = "prints; for looking at"]
async fn throughput_grows_with_the_load_only() {
    for (total, prefetch, backlog) in [(100_000, 1000, false), (100_000, 1000, true), (400_000, 1000, true), (5_000, 1, true)] {
        throughput(total, prefetch, backlog).await;
    }
}
