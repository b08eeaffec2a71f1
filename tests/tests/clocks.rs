//! A node whose clock is wrong, on machines of the simulator (rule 24): what ends by time does not end by such a clock, neither at once nor
//! under later leaders.
#![allow(clippy::unwrap_used)] // all of this file is tests

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::time::sleep;
use warren::model::catalog::{Table, Value};
use warren::model::step::{DeclareQueue, Publish, Reply, Request, Step};
use warren::model::{LeaderId, ShardId};
use warren::peer::memory::MemoryNetwork;
use warren::store::disk::sim::Crash;
use warren_tests::sim::client::{CHANNEL, Client, News, declare, name};
use warren_tests::sim::host::Host;

/// What must come true does within this time, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(60);
const HOUR_MS: i64 = 3_600_000;
/// The third node's.
const SHARD: ShardId = ShardId(2);

async fn declare_with_ttl(client: &mut Client, queue: &str, ttl_ms: i64) {
    let (name, arguments) = (name(queue), Table::from([("x-message-ttl".to_owned(), Value::Int(ttl_ms))]));
    let declare = DeclareQueue { name, passive: false, durable: true, exclusive: false, auto_delete: false, arguments };
    client.ask(Request::DeclareQueue(declare)).await.unwrap();
}

async fn ready(client: &mut Client, queue: &str) -> u64 {
    match client.ask(declare(queue, true)).await.unwrap() {
        Reply::Queue { messages, .. } => messages,
        other => panic!("{other:?}"),
    }
}

/// One confirmed message into each.
async fn publish(client: &mut Client, queues: &[String]) {
    for (queue, ticket) in queues.iter().zip(1..) {
        let publish = Publish {
            channel: CHANNEL,
            ticket: Some(ticket),
            mandatory: true,
            exchange: bytes::Bytes::new(),
            routing_key: queue.clone().into(),
            properties: bytes::Bytes::from_static(&[0, 0]),
            body: bytes::Bytes::from_static(b"body"),
        };
        assert!(client.publish(Step::Publish(publish)).await);
        let until = Instant::now() + PATIENCE;
        while !client.news(Duration::from_millis(50)).await.iter().any(|news| matches!(news, News::Confirmed(_))) {
            assert!(Instant::now() < until, "no confirm");
        }
    }
}

async fn until_empty(client: &mut Client, queues: impl IntoIterator<Item = &String>) {
    let until = Instant::now() + PATIENCE;
    for queue in queues {
        while ready(client, queue).await > 0 {
            assert!(Instant::now() < until, "the message in {queue} does not expire");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

fn led(host: &Host, shard: ShardId) -> Option<LeaderId> {
    host.node().and_then(|node| node.consensus().leadership(shard).borrow().as_me())
}

async fn until_led(host: &Host, shard: ShardId) -> LeaderId {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(leader) = led(host, shard) {
            return leader;
        }
        assert!(Instant::now() < until, "the preferred leader does not lead");
        sleep(Duration::from_millis(50)).await;
    }
}

/// The names of three queues, of which each shard gets one, and which of them is the third node's.
async fn one_per_shard(client: &mut Client, host: &Host, kind: &str, ttl_ms: i64) -> (Vec<String>, usize) {
    let queues: Vec<String> = (0..3).map(|n| format!("{kind}-{n}")).collect();
    for queue in &queues {
        declare_with_ttl(client, queue, ttl_ms).await;
    }
    let catalog = host.node().unwrap().replicas().catalog();
    let shards: Vec<ShardId> = queues.iter().map(|queue| catalog.read().queue(&name(queue)).unwrap().shard).collect();
    let odd = shards.iter().position(|shard| *shard == SHARD).expect("they spread");
    (queues, odd)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_an_hour_ahead_that_leads_after_a_restart_ends_nothing_early_and_ends_again_when_its_clock_is_right() {
    let (network, errors, dir) = (MemoryNetwork::new(1), Arc::default(), tempfile::tempdir().unwrap());
    let hosts: Vec<_> = (1..=3).map(|id| Host::new(id, 1, dir.path(), &network, &errors, &Arc::default())).collect();
    hosts.iter().for_each(Host::start);
    let mut client = tokio::time::timeout(PATIENCE, Client::connect(&hosts[0])).await.expect("it serves");
    let (long, odd) = one_per_shard(&mut client, &hosts[0], "ten-minutes", 600_000).await;
    let (short, odd_short) = one_per_shard(&mut client, &hosts[0], "a-second", 1000).await;
    publish(&mut client, &long).await;

    let third = hosts[2].clone();
    third.kill(Crash::Power);
    third.ahead_ms.store(HOUR_MS, Ordering::SeqCst);
    let again = third.clone();
    tokio::task::spawn_blocking(move || again.start_again(false)).await.unwrap();
    loop {
        let leader = until_led(&third, SHARD).await;
        publish(&mut client, &short).await;
        until_empty(&mut client, short.iter().enumerate().filter(|(n, _)| *n != odd_short).map(|(_, queue)| queue)).await;
        let left = ready(&mut client, &short[odd_short]).await;
        // On a busy machine another node may have led between.
        if led(&third, SHARD) == Some(leader) {
            assert!(left > 0, "its leader cannot know whether its time has ended");
            break;
        }
    }
    assert_eq!(ready(&mut client, &long[odd]).await, 1, "by a clock that is an hour ahead its time has ended");

    third.ahead_ms.store(0, Ordering::SeqCst);
    until_empty(&mut client, [&short[odd_short]]).await;
    for queue in &long {
        assert_eq!(ready(&mut client, queue).await, 1, "{queue}: nobody wrote that hour into the log");
    }
    drop(client);
    hosts.iter().for_each(|host| host.kill(Crash::Process));
    assert_eq!(*errors.lock().unwrap(), Vec::<String>::new());
}
