//! tx.commit: one batch per shard, one decision, one answer.

use super::*;
use crate::model::TxId;
use crate::model::entry::{SettleReason, Word};
use crate::model::step::Commit;

fn commit(publishes: Vec<Publish>, settlements: Vec<(Vec<Held>, Outcome)>) -> Step {
    Step::Commit(Box::new(Commit { channel: 1, publishes, settlements, is_strict: false }))
}

#[tokio::test]
async fn messages_and_settlements_of_one_shard_are_one_batch() {
    let mut scene = Scene::new(default_config());
    let queue = scene.queue("q", 1);
    let mut client = scene.client();
    client.publish("", "q", 0);
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    leader.batch().await;
    leader.verdict(1, &[]).await;
    let consumer = client.consume(&mut leader, "q", Some(10)).await;
    leader.deliver(consumer, queue, &[1, 2]).await;
    let held = client.delivered().await;
    let big = || Publish { body: vec![0; limits::BATCH_BYTES].into(), ..publish("", "q", 0, b"") };
    client.submit(commit(vec![big(), big(), publish("", "q", 0, b"last")], vec![(held, Outcome::Ack)]));
    let batch = loop {
        match leader.next().await {
            ToLeader::Batch(batch) => break batch,
            ToLeader::Credit { .. } => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(enqueues(&batch).len(), 3, "however large");
    let settle = Op::Settle { queue, reason: SettleReason::Ack, ranges: vec![(Seq(1), Seq(2))] };
    assert!(ops(&batch).contains(&settle), "{:?}", ops(&batch).last());
    assert!(client.now().is_empty(), "not before the verdict");
    leader.verdict(2, &[]).await;
    assert_eq!(client.reply().await, Ok(Reply::Done));
}

/// The parts in a batch: transaction, decider, others, messages.
fn parts(batch: &Batch) -> Vec<(TxId, ShardId, Vec<ShardId>, usize)> {
    let part = |op| match op {
        Op::Part(part) => Some(part),
        _ => None,
    };
    let messages = |ops: OpsReader| ops.filter(|op| matches!(op, Ok(Op::Enqueue(_)))).count();
    ops(batch).into_iter().filter_map(part).map(|p| (p.tx, p.decider, p.others, messages(p.ops))).collect()
}

impl Leader {
    /// The next batch, whatever comes before it.
    async fn next_batch(&mut self) -> Batch {
        loop {
            if let ToLeader::Batch(batch) = self.next().await {
                return batch;
            }
        }
    }

    /// The next batch is this word and nothing else; the verdict follows at once.
    async fn hears(&mut self, wanted: Word, seq: u64) {
        let batch = self.next_batch().await;
        let said = ops(&batch);
        let [Op::Word { word, .. }] = said.as_slice() else { panic!("{said:?}") };
        assert_eq!((*word, batch.seq), (wanted, BatchSeq(seq)));
        self.verdict(seq, &[]).await;
    }

    async fn refuse(&mut self, seq: u64, why: RefusedEnqueue) {
        self.say(ToEdge::Verdict { seq: BatchSeq(seq), refused: vec![(0, why)] }).await;
    }
}

/// Queues `a` in shard 1 and `b` in shard 2, and their leaders once a transaction over both has begun.
async fn over_two_shards() -> (Scene, Client, Leader, Leader) {
    let mut scene = Scene::new(default_config());
    scene.queue("a", 1);
    scene.queue("b", 2);
    let mut client = scene.client();
    client.submit(commit(vec![publish("", "b", 0, b"1"), publish("", "a", 0, b"2"), publish("", "b", 0, b"3")], vec![]));
    let (one, _) = scene.leader(leader(1, 2), 5, 0).await;
    let (other, _) = scene.leader(leader(1, 2), 6, 0).await;
    let (first, second) = if one.shard == ShardId(1) { (one, other) } else { (other, one) };
    (scene, client, first, second)
}

#[tokio::test]
async fn a_commit_over_two_shards_is_prepared_in_both_decided_in_the_lowest_and_answered_when_both_have_it() {
    let (_scene, mut client, mut first, mut second) = over_two_shards().await;
    let here = parts(&first.next_batch().await);
    let there = parts(&second.next_batch().await);
    let tx = here[0].0;
    assert_eq!((tx.node, tx.incarnation), (ME, Incarnation(77)));
    assert_eq!(here, [(tx, ShardId(1), vec![ShardId(2)], 1)]);
    assert_eq!(there, [(tx, ShardId(1), vec![], 2)]);
    first.verdict(1, &[]).await;
    first.quiet().await;
    second.verdict(1, &[]).await;
    let decide = first.next_batch().await;
    assert_eq!(ops(&decide), [Op::Word { tx, word: Word::Decide }]);
    second.quiet().await;
    assert!(client.now().is_empty());
    first.verdict(2, &[]).await;
    let end = second.next_batch().await;
    assert_eq!(ops(&end), [Op::Word { tx, word: Word::Commit }]);
    assert!(client.now().is_empty(), "not before all have it");
    second.verdict(2, &[]).await;
    assert_eq!(client.reply().await, Ok(Reply::Done));
    first.hears(Word::Forget, 3).await;
    second.quiet().await;
}

#[tokio::test]
async fn a_part_that_is_refused_gives_up_the_whole() {
    let (_scene, mut client, mut first, mut second) = over_two_shards().await;
    first.next_batch().await;
    second.next_batch().await;
    second.refuse(1, RefusedEnqueue::Full).await;
    second.quiet().await;
    first.verdict(1, &[]).await;
    first.hears(Word::Abort, 2).await;
    assert!(client.now().is_empty());
    second.hears(Word::Abort, 2).await;
    assert_eq!(client.reply().await, Err(Refusal::Precondition("partial tx completion".into())));
    first.hears(Word::Forget, 3).await;
}

#[tokio::test]
async fn a_message_whose_queue_is_being_deleted_goes_with_it_and_is_not_returned() {
    for why in [RefusedEnqueue::Sealed, RefusedEnqueue::UnknownQueue] {
        let mut scene = Scene::new(default_config());
        scene.queue("a", 1);
        let mut client = scene.client();
        let mandatory = Publish { mandatory: true, ..publish("", "a", 0, b"1") };
        client.submit(commit(vec![mandatory, publish("", "a", 0, b"2")], vec![]));
        let (mut only, _) = scene.leader(leader(1, 2), 5, 0).await;
        only.next_batch().await;
        only.refuse(1, why).await;
        assert_eq!(client.next().await, Event::Reply { channel: 1, result: Ok(Reply::Done) });
    }
}

#[tokio::test]
async fn what_a_transaction_had_settled_waits_again_when_it_was_given_up() {
    let mut scene = Scene::new(default_config());
    let queue = scene.queue("a", 1);
    scene.queue("b", 2);
    let mut client = scene.client();
    client.publish("", "a", 0);
    let (mut first, _) = scene.leader(leader(1, 2), 9, 0).await;
    first.batch().await;
    first.verdict(1, &[]).await;
    let consumer = client.consume(&mut first, "a", Some(10)).await;
    first.deliver(consumer, queue, &[1, 2]).await;
    let held = client.delivered().await;
    client.submit(commit(vec![publish("", "b", 0, b"1")], vec![(held, Outcome::Ack)]));
    let (mut second, _) = scene.leader(leader(1, 2), 6, 0).await;
    second.next_batch().await;
    second.verdict(1, &[]).await;
    let batch = first.next_batch().await;
    assert!(!crate::model::entry::Settling::of(&batch.ops).any, "they are part of the transaction: {:?}", ops(&batch));
    // A leader that comes now is told that they are held; the same batch comes again.
    drop(first);
    let (mut first, attach) = scene.leader(leader(2, 3), 9, 1).await;
    let ToLeader::Attach { loose, .. } = attach else { panic!("{attach:?}") };
    assert_eq!(loose, [(queue, vec![(Seq(1), Seq(2))])]);
    assert_eq!(first.next_batch().await.ops, batch.ops);
    first.verdict(2, &[]).await;
    let decide = first.next_batch().await;
    first.refuse(decide.seq.0, RefusedEnqueue::GivenUp).await;
    first.hears(Word::Abort, 4).await;
    second.hears(Word::Abort, 2).await;
    let Err(Refusal::Unavailable(why)) = client.reply().await else { panic!("no refusal") };
    assert!(why.contains("nothing of the transaction took effect"), "{why}");
    let back = loop {
        match first.next().await {
            ToLeader::Return { queue, ranges, seen, .. } => break (queue, ranges, seen),
            ToLeader::Batch(_) | ToLeader::Credit { .. } => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(back, (queue, vec![(Seq(1), Seq(2))], true));
}

fn in_memory(text: &str) -> QueueSpec {
    QueueSpec { name: name(text), durable: false, auto_delete: false, exclusive_owner: None, arguments: Table::new() }
}

#[tokio::test]
async fn queues_in_memory_get_their_messages_when_the_rest_is_decided() {
    let mut scene = Scene::new(default_config());
    scene.queue("a", 1);
    scene.declare(in_memory("m"), ShardId::local(ME));
    let mut client = scene.client();
    client.submit(commit(vec![publish("", "m", 0, b"1"), publish("", "a", 0, b"2")], vec![]));
    let (one, _) = scene.leader(leader(1, 2), 5, 0).await;
    let (other, _) = scene.leader(leader(1, 2), 6, 0).await;
    let (mut first, mut memory) = if one.shard == ShardId(1) { (one, other) } else { (other, one) };
    let batch = first.next_batch().await;
    assert_eq!(enqueues(&batch).len(), 1, "one replicated shard needs no decision");
    memory.quiet().await;
    first.verdict(1, &[]).await;
    assert_eq!(enqueues(&memory.next_batch().await).len(), 1);
    assert!(client.now().is_empty());
    memory.verdict(1, &[]).await;
    assert_eq!(client.reply().await, Ok(Reply::Done));
    first.quiet().await;
}

#[tokio::test]
async fn a_commit_of_nothing_but_acknowledgements_to_a_lost_owner_is_answered() {
    for is_known in [true, false] {
        let mut scene = Scene::new(default_config());
        let queue = scene.declare(in_memory("m"), ShardId::local(ME));
        let mut client = scene.client();
        client.publish("", "m", 0);
        let (mut owner, _) = scene.leader(leader(1, 2), 6, 0).await;
        owner.batch().await;
        owner.verdict(1, &[]).await;
        let consumer = client.consume(&mut owner, "m", Some(10)).await;
        owner.deliver(consumer, queue, &[1]).await;
        let held = client.delivered().await;
        scene.world.refuse_paths.store(true, Ordering::SeqCst);
        drop(owner);
        let gone = Event::ConsumerGone { channel: 1, consumer };
        if is_known {
            assert_eq!(client.next().await, gone);
        }
        client.submit(commit(vec![], vec![(held, Outcome::Ack)]));
        if !is_known {
            assert_eq!(client.next().await, gone);
        }
        assert_eq!(client.reply().await, Ok(Reply::Done));
    }
}

#[tokio::test]
async fn a_transaction_beyond_what_an_entry_holds_is_refused_whole() {
    let mut scene = Scene::new(default_config());
    let queue = scene.queue("q", 1);
    scene.queue("other", 2);
    let mut client = scene.client();
    client.publish("", "q", 0);
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    leader.batch().await;
    leader.verdict(1, &[]).await;
    let consumer = client.consume(&mut leader, "q", None).await;
    leader.deliver(consumer, queue, &[1]).await;
    let held = client.delivered().await;
    let body = Bytes::from(vec![0; limits::TRANSACTION_ENTRY_BYTES / 2]);
    let large = |key: &str| Publish { body: body.clone(), ..publish("", key, 0, b"") };
    client.submit(commit(vec![publish("", "other", 0, b"1"), large("q"), large("q")], vec![(held, Outcome::Ack)]));
    let Err(Refusal::Precondition(why)) = client.reply().await else { panic!("no refusal") };
    assert!(why.starts_with("transaction takes 251") && why.ends_with("bytes in one shard, more than 25165824"), "{why}");
    let ToLeader::Return { queue: back, seen: true, .. } = leader.next().await else { panic!("the message does not go back") };
    assert_eq!(back, queue);
    leader.quiet().await;
    let ways: Vec<u16> = scene.edge.lanes.read().iter().filter(|(_, lane)| !lane.has_room()).map(|(shard, _)| shard.0).collect();
    assert_eq!(ways, [0; 0], "nothing was put into a lane");
    // Half of it in each of two shards is fine.
    client.submit(commit(vec![large("other"), large("q")], vec![]));
    assert_eq!(parts(&leader.next_batch().await)[0].3, 1);
}

#[tokio::test]
async fn a_transaction_that_waits_for_room_keeps_the_way_it_was_given() {
    let mut scene = Scene::new(EdgeConfig { lane_bytes: 10, ..default_config() });
    let old = scene.queue("old", 1);
    scene.queue("new", 1);
    scene.fanout("x", &["old"]);
    let mut client = scene.client();
    client.publish("", "new", 0);
    let index = scene.world.catalog.read().index();
    let Err(given_back) = client.connection.submit(commit(vec![publish("x", "", 0, b"1")], vec![])) else { panic!("it does not wait") };
    scene.world.apply(&CatalogCommand::Bind(binding("x", "new")));
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    leader.batch().await;
    leader.verdict(1, &[]).await;
    timeout(PATIENCE, client.connection.writable()).await.expect("room");
    client.submit(given_back);
    let batch = leader.next_batch().await;
    assert_eq!(enqueues(&batch)[0].queues().collect::<Vec<_>>(), [old]);
    assert_eq!(batch.catalog_index, index);
}

#[tokio::test]
async fn an_empty_commit_and_one_that_nobody_takes_are_answered_at_once() {
    let scene = Scene::new(default_config());
    let mut client = scene.client();
    client.submit(commit(vec![], vec![]));
    assert_eq!(client.reply().await, Ok(Reply::Done));
    client.submit(commit(vec![Publish { mandatory: true, ..publish("", "none", 0, b"m") }], vec![]));
    let Event::Returned(back) = client.next().await else { panic!("not returned") };
    assert_eq!(&back.body[..], b"m");
    assert_eq!(client.reply().await, Ok(Reply::Done));
}

#[tokio::test]
async fn one_message_that_cannot_be_routed_stops_the_whole() {
    let mut scene = Scene::new(default_config());
    let queue = scene.queue("q", 1);
    let mut client = scene.client();
    client.publish("", "q", 0);
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    leader.batch().await;
    leader.verdict(1, &[]).await;
    let consumer = client.consume(&mut leader, "q", None).await;
    leader.deliver(consumer, queue, &[1]).await;
    let held = client.delivered().await;
    client.submit(commit(vec![publish("", "q", 0, b"1"), publish("none", "q", 0, b"2")], vec![(held, Outcome::Ack)]));
    let Err(Refusal::NotFound { .. }) = client.reply().await else { panic!("no refusal") };
    let ToLeader::Return { queue: back, seen: true, .. } = leader.next().await else { panic!("the message does not go back") };
    assert_eq!(back, queue);
    leader.quiet().await;
}

#[tokio::test]
async fn a_message_is_looked_at_when_it_is_taken_in_as_rabbitmq_does() {
    let scene = Scene::new(default_config());
    let mut client = scene.client();
    let check = |exchange: &str, properties: &'static [u8]| {
        Step::Check(Publish { properties: properties.into(), ..publish(exchange, "k", 0, b"") })
    };
    let plain = &[0, 0];
    client.submit(check("amq.fanout", plain));
    client.submit(check("", b"\x00\x10\x05guest"));
    client.submit(check("", b"\x20\x00\x00\x00\x00\x0e\x02CCA\x00\x00\x00\x06S\x00\x00\x00\x01q"));
    assert!(client.now().is_empty());
    let refused = |properties, exchange| match exchange {
        "none" => check("none", properties),
        other => check(other, properties),
    };
    let cases: [(Step, &str); 6] = [
        (refused(plain, "amq.rabbitmq.trace"), "cannot publish to internal exchange 'amq.rabbitmq.trace' in vhost '/'"),
        (refused(plain, "none"), "none"),
        (refused(b"\x01\x00\x03abc", "none"), "none"),
        (refused(b"\x01\x00\x03abc", ""), "invalid expiration 'abc': no_integer"),
        (refused(b"\x00\x10\x03eve", ""), "user_id property set to 'eve' but authenticated user was 'guest'"),
        (refused(b"\x20\x00\x00\x00\x00\x09\x02CCS\x00\x00\x00\x01q", ""), "invalid message: {unacceptable_type_in_header,\"CC\",longstr}"),
    ];
    for (step, wanted) in cases {
        client.submit(step);
        let Event::ChannelError { channel: 1, refusal, method: (60, 40) } = client.next().await else { panic!("no refusal: {wanted}") };
        let text = match refusal {
            Refusal::Access(text) | Refusal::Precondition(text) => text,
            Refusal::NotFound { name, .. } => name.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(text, wanted);
        client.submit(Step::ChannelClosed { channel: 1, held: vec![] });
    }
}

#[tokio::test]
async fn a_commit_waits_for_its_shard_and_is_not_given_up_halfway() {
    let mut config = default_config();
    config.no_quorum_timeout = Duration::from_millis(50);
    let mut scene = Scene::new(config);
    scene.queue("q", 1);
    scene.world.set_leader(ShardId(1), None);
    let mut client = scene.client();
    client.submit(commit(vec![publish("", "q", 0, b"1"), publish("", "q", 0, b"2")], vec![]));
    match client.next().await {
        Event::Blocked(_) => {}
        other => panic!("{other:?}"),
    }
    scene.world.set_leader(ShardId(1), Some(leader(2, 2)));
    let (mut leader, _) = scene.leader(leader(2, 2), 9, 0).await;
    assert_eq!(enqueues(&leader.batch().await).len(), 2);
    leader.verdict(1, &[]).await;
    let mut events = Vec::new();
    while events.len() < 2 {
        events.push(client.next().await);
    }
    assert!(events.contains(&Event::Reply { channel: 1, result: Ok(Reply::Done) }), "{events:?}");
    assert!(events.contains(&Event::Unblocked), "{events:?}");
}

#[tokio::test]
async fn a_message_whose_queue_went_during_the_commit_goes_with_it() {
    let mut scene = Scene::new(default_config());
    let old = scene.queue("a", 1);
    scene.fanout("x", &["a"]);
    let mut client = scene.client();
    client.submit(commit(vec![Publish { mandatory: true, ..publish("x", "", 0, b"1") }, publish("x", "", 0, b"2")], vec![]));
    let (mut first, _) = scene.leader(leader(1, 2), 5, 0).await;
    first.batch().await;
    scene.world.apply(&CatalogCommand::DeleteQueue { id: old });
    scene.queue("a", 1);
    scene.world.apply(&CatalogCommand::Bind(binding("x", "a")));
    first.verdict(1, &[0, 1]).await;
    assert_eq!(client.next().await, Event::Reply { channel: 1, result: Ok(Reply::Done) }, "it had a queue, so it is not returned");
    first.quiet().await;
}
