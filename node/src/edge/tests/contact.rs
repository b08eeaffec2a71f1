//! What a leader gave is handed to clients only while it is known to lead (rules 19 and 20), and only as much as is written at once.

use super::*;
use crate::model::step::Take;

/// A client that consumes from queue `q` of shard 1, whose leader is in this process.
struct Local {
    scene: Scene,
    client: Client,
    leader: Leader,
    queue: QueueId,
    consumer: ConsumerId,
    lease: Arc<AtomicBool>,
}

async fn local() -> Local {
    let (scene, lease) = (Scene::new(default_config()), Arc::new(AtomicBool::new(true)));
    let valid = lease.clone();
    *scene.world.leader_lease.lock() = Some(Lease::new(move || valid.load(Ordering::SeqCst)));
    let Consumer { scene, client, leader, queue, consumer } = consumer(scene).await;
    Local { scene, client, leader, queue, consumer, lease }
}

struct Consumer {
    scene: Scene,
    client: Client,
    leader: Leader,
    queue: QueueId,
    consumer: ConsumerId,
}

async fn consumer(mut scene: Scene) -> Consumer {
    let queue = scene.queue("q", 1);
    let mut client = scene.client();
    client.publish("", "q", 1);
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    leader.batch().await;
    leader.verdict(1, &[]).await;
    client.confirmed().await;
    let consumer = client.consume(&mut leader, "q", None).await;
    Consumer { scene, client, leader, queue, consumer }
}

fn seqs(held: &[Held]) -> Vec<u64> {
    held.iter().map(|h| h.seq.0).collect()
}

fn messages(events: &[Event]) -> Vec<u64> {
    let of = |event: &Event| match event {
        Event::Deliver { messages, .. } => messages.iter().map(|m| m.seq.0).collect(),
        _ => Vec::new(),
    };
    events.iter().flat_map(of).collect()
}

/// A take that its leader answers with these messages.
async fn take(client: &mut Client, leader: &mut Leader, queue: QueueId, seqs: &[u64]) {
    client.ask(Request::Take(Take { queues: vec![name("q")], most: 16, alone: false, patience_ms: 0 }));
    let request = loop {
        if let ToLeader::Take { request, .. } = leader.next().await {
            break request;
        }
    };
    let message = |seq: &u64| Delivery { queue, seq: Seq(*seq), redelivered: false, failures: 0, failed_ms: 0, message: stored() };
    leader.say(ToEdge::Took { request, result: Ok(seqs.iter().map(message).collect()) }).await;
    taken(leader).await;
}

fn took(reply: Result<Reply, Refusal>) -> Vec<u64> {
    match reply {
        Ok(Reply::Took(took)) => took.iter().map(|one| one.delivery.seq.0).collect(),
        other => panic!("nothing taken: {other:?}"),
    }
}

#[tokio::test]
async fn what_a_take_was_given_waits_for_the_lease_too() {
    let Local { scene: _scene, mut client, mut leader, queue, lease, .. } = local().await;
    lease.store(false, Ordering::SeqCst);
    take(&mut client, &mut leader, queue, &[1, 2]).await;
    assert_eq!(client.now(), vec![], "nothing is handed out");
    lease.store(true, Ordering::SeqCst);
    assert_eq!(took(client.reply().await), [1, 2]);
}

#[tokio::test]
async fn what_a_take_was_given_and_nobody_saw_goes_to_others_when_the_edge_was_declared_gone() {
    let Local { mut scene, mut client, mut leader, queue, lease, .. } = local().await;
    take(&mut client, &mut leader, queue, &[1]).await;
    assert_eq!(took(client.reply().await), [1], "seen: it is held");
    lease.store(false, Ordering::SeqCst);
    take(&mut client, &mut leader, queue, &[2, 3]).await;
    *scene.world.leader_lease.lock() = None;
    scene.world.set_leader(ShardId(1), Some(super::leader(2, 3)));
    let (_new, attach) = scene.leader(super::leader(2, 3), 20, 0).await;
    let ToLeader::Attach { loose, .. } = attach else { panic!("no attach: {attach:?}") };
    assert_eq!(loose, [], "the session under which the first one was taken has ended");
    assert_eq!(took(client.reply().await), [0u64; 0], "there is nothing, as far as this node knows");
}

#[tokio::test]
async fn what_was_fetched_for_a_channel_that_closes_goes_back() {
    let Local { scene: _scene, mut client, mut leader, queue, .. } = local().await;
    take(&mut client, &mut leader, queue, &[1, 2]).await;
    client.ask(Request::Get { queue: name("q"), no_ack: false });
    let request = loop {
        if let ToLeader::Get { request, .. } = leader.next().await {
            break request;
        }
    };
    leader.say(fetched(request, queue, 3)).await;
    taken(&mut leader).await;
    client.submit(Step::ChannelClosed { channel: 1, held: Vec::new() });
    let mut back = Vec::new();
    while back.len() < 3 {
        if let ToLeader::Return { seen: false, ranges, .. } = leader.next().await {
            back.extend(ranges.iter().flat_map(|(first, last)| first.0..=last.0));
        }
    }
    assert_eq!(back, [1, 2, 3]);
    assert_eq!(client.now(), vec![]);
}

/// Until the lane's task has taken what was sent.
async fn taken(leader: &mut Leader) {
    leader.verdict(99, &[]).await;
    while leader.end.down_tx.capacity() < leader.end.down_tx.max_capacity()
        || leader.end.deliveries_tx.capacity() < leader.end.deliveries_tx.max_capacity()
    {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
}

fn fetched(request: u64, queue: QueueId, seq: u64) -> ToEdge {
    let delivery = Delivery { queue, seq: Seq(seq), redelivered: false, failures: 0, failed_ms: 0, message: stored() };
    ToEdge::Got { request, result: Ok(Some((delivery, 0))) }
}

#[tokio::test]
async fn nothing_of_a_leader_without_its_lease_is_handed_out() {
    let Local { scene: _scene, mut client, mut leader, queue, consumer, lease } = local().await;
    client.submit(Step::ChannelPrefetch { channel: 1, limit: Some(2) });
    leader.next().await;
    leader.deliver(consumer, queue, &[1, 2, 3]).await;
    let held = client.delivered().await;
    assert_eq!(seqs(&held), [1, 2]);
    lease.store(false, Ordering::SeqCst);
    client.settle(&held[..1], Outcome::Ack);
    client.ask(Request::Get { queue: name("q"), no_ack: false });
    let request = loop {
        if let ToLeader::Get { request, .. } = leader.next().await {
            break request;
        }
    };
    leader.say(fetched(request, queue, 4)).await;
    taken(&mut leader).await;
    assert_eq!(client.now(), vec![], "neither what was parked nor what was fetched");
    lease.store(true, Ordering::SeqCst);
    assert_eq!(seqs(&client.delivered().await), [3]);
    assert!(matches!(client.reply().await, Ok(Reply::Got(Some(got))) if got.delivery.seq == Seq(4)));
}

#[tokio::test]
async fn what_was_held_back_goes_to_others_when_the_edge_was_declared_gone() {
    let Local { mut scene, mut client, mut leader, queue, consumer, lease } = local().await;
    leader.deliver(consumer, queue, &[1]).await;
    client.delivered().await;
    lease.store(false, Ordering::SeqCst);
    leader.deliver(consumer, queue, &[2]).await;
    client.ask(Request::Get { queue: name("q"), no_ack: false });
    let ToLeader::Get { request, .. } = leader.next().await else { panic!("no get") };
    leader.say(fetched(request, queue, 3)).await;
    taken(&mut leader).await;
    assert_eq!(client.now(), vec![]);
    *scene.world.leader_lease.lock() = None;
    scene.world.set_leader(ShardId(1), Some(super::leader(2, 3)));
    let (_new, attach) = scene.leader(super::leader(2, 3), 20, 0).await;
    let ToLeader::Attach { consumers, loose, .. } = attach else { panic!("no attach: {attach:?}") };
    assert_eq!((consumers[0].unacked.clone(), loose), (vec![(Seq(1), Seq(1))], vec![]));
    assert_eq!(client.reply().await, Ok(Reply::Got(None)), "the queue has nothing for it, as far as this node knows");
    assert_eq!(client.now(), vec![]);
}

#[tokio::test]
async fn after_a_silence_of_a_leader_elsewhere_it_is_asked_before_anything_is_handed_out() {
    let silence = Duration::from_millis(400);
    let scene = Scene::new(EdgeConfig { silence, ..default_config() });
    let Consumer { scene: _scene, mut client, mut leader, queue, consumer } = consumer(scene).await;
    tokio::time::sleep(silence * 2).await;
    leader.deliver(consumer, queue, &[1]).await;
    let ToLeader::Ping { mut number } = leader.next().await else { panic!("no ping") };
    assert_eq!(client.now(), vec![], "it may have been on its way for long");
    // On a slow machine an answer may come too late; then it is asked again.
    let events = loop {
        leader.say(ToEdge::Pong { number }).await;
        tokio::select! {
            () = client.connection.changed() => {}
            more = leader.next() => match more {
                ToLeader::Ping { number: again } => number = again,
                other => panic!("{other:?}"),
            },
        }
        let events = client.now();
        if !events.is_empty() {
            break events;
        }
    };
    assert_eq!(messages(&events), [1]);
}

#[tokio::test]
async fn only_what_is_written_at_once_is_taken_and_the_rest_can_still_go_back() {
    let scene = Scene::new(default_config());
    let Consumer { mut scene, mut client, mut leader, queue, consumer } = consumer(scene).await;
    leader.deliver(consumer, queue, &[1, 2, 3]).await;
    taken(&mut leader).await;
    let mut events = Vec::new();
    client.connection.take_events(&mut events, 1);
    assert_eq!(messages(&events), [1], "one of any size");
    client.connection.take_events(&mut events, 2 * stored().len());
    assert_eq!(messages(&events), [1, 2]);
    drop(leader);
    let (_again, attach) = scene.leader(super::leader(1, 2), 20, 0).await;
    let ToLeader::Attach { consumers, .. } = attach else { panic!("no attach: {attach:?}") };
    assert_eq!(consumers[0].unacked, [(Seq(1), Seq(2))]);
    assert_eq!(client.now(), vec![]);
}
