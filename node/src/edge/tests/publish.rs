//! Publishes: batches, tickets, resends, refusals, back-pressure.

use super::*;
use crate::model::admin::AdminCommand;

#[tokio::test]
async fn a_publish_is_confirmed_by_its_batchs_verdict() {
    let mut scene = Scene::new(default_config());
    let queue = scene.queue("q", 2);
    let mut client = scene.client();
    client.publish("", "q", 1);
    client.publish("", "q", 2);
    let (mut leader, attach) = scene.leader(leader(1, 2), 9, 0).await;
    assert_eq!((leader.shard, leader.node), (ShardId(2), NodeId(2)));
    assert_eq!(attach, ToLeader::Attach { leader: leader.id, consumers: vec![], asked: vec![], loose: vec![] });
    let batch = leader.batch().await;
    assert_eq!((batch.session, batch.seq, batch.floor), (SessionId(9), BatchSeq(1), BatchSeq(0)));
    assert_eq!(batch.catalog_index, scene.world.catalog.read().index());
    assert_eq!(enqueues(&batch)[0].queues().collect::<Vec<_>>(), [queue]);
    assert!(client.now().is_empty(), "no confirm without a verdict");
    leader.verdict(1, &[]).await;
    assert_eq!(client.confirmed().await, [(1, 2)]);
    client.publish("", "q", 3);
    let batch = leader.batch().await;
    assert_eq!((batch.seq, batch.floor), (BatchSeq(2), BatchSeq(1)));
}

#[tokio::test]
async fn a_fanout_to_two_shards_confirms_once_when_both_answered() {
    let mut scene = Scene::new(default_config());
    scene.queue("a", 1);
    scene.queue("b", 2);
    scene.queue("c", 2);
    scene.fanout("x", &["a", "b", "c"]);
    let mut client = scene.client();
    client.publish("x", "", 1);
    let (mut first, _) = scene.leader(leader(1, 2), 5, 0).await;
    let (mut second, _) = scene.leader(leader(1, 2), 6, 0).await;
    let (a, b) = (first.batch().await, second.batch().await);
    let mut queues = [enqueues(&a)[0].queues().count(), enqueues(&b)[0].queues().count()];
    queues.sort_unstable();
    assert_eq!(queues, [1, 2]);
    first.verdict(1, &[]).await;
    first.quiet().await;
    assert!(client.now().is_empty());
    second.verdict(1, &[]).await;
    assert_eq!(client.confirmed().await, [(1, 1)]);
    assert!(client.now().is_empty());
}

#[tokio::test]
async fn a_new_leader_gets_unanswered_batches_again_and_each_confirms_once() {
    let (mut scene, mut client) = Scene::with_queue("q", 1);
    client.publish("", "q", 1);
    let (mut old, _) = scene.leader(leader(1, 2), 9, 0).await;
    assert_eq!(keys(&old.batch().await).len(), 1);
    client.publish("", "q", 2);
    let lost = old.batch().await;
    assert_eq!(lost.seq, BatchSeq(2));
    old.verdict(1, &[]).await;
    assert_eq!(client.confirmed().await, [(1, 1)]);
    scene.world.set_leader(ShardId(1), Some(leader(2, 3)));
    let (mut new, _) = scene.leader(leader(2, 3), 9, 2).await;
    assert_eq!(new.node, NodeId(3));
    // Applied already: resent all the same, for its stored verdict.
    assert_eq!(new.batch().await, Batch { floor: BatchSeq(1), ..lost });
    new.verdict(2, &[]).await;
    new.verdict(2, &[]).await;
    assert_eq!(client.confirmed().await, [(2, 2)]);
    client.publish("", "q", 3);
    assert_eq!(new.batch().await.seq, BatchSeq(3));
    new.verdict(3, &[]).await;
    assert_eq!(client.confirmed().await, [(3, 3)]);
    assert!(client.now().is_empty());
}

#[tokio::test]
async fn a_rewind_resends_from_there() {
    let (mut scene, mut client) = Scene::with_queue("q", 1);
    client.publish("", "q", 1);
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    let first = leader.batch().await;
    client.publish("", "q", 2);
    let second = leader.batch().await;
    leader.say(ToEdge::Rewind { from: BatchSeq(1) }).await;
    assert_eq!(leader.batch().await, first);
    assert_eq!(leader.batch().await, second);
    leader.say(ToEdge::Rewind { from: BatchSeq(1) }).await;
    assert_eq!(leader.batch().await, first, "also the second time, after a pause");
    leader.verdict(1, &[]).await;
    leader.verdict(2, &[]).await;
    assert_eq!(client.confirmed().await[0].0, 1);
}

#[tokio::test]
async fn a_new_session_gets_new_numbers() {
    let (mut scene, mut client) = Scene::with_queue("q", 1);
    client.publish("", "q", 1);
    let (mut old, _) = scene.leader(leader(1, 2), 9, 0).await;
    old.batch().await;
    old.verdict(1, &[]).await;
    assert_eq!(client.confirmed().await, [(1, 1)]);
    client.publish("", "q", 2);
    assert_eq!(old.batch().await.seq, BatchSeq(2));
    drop(old);
    let (mut new, _) = scene.leader(leader(1, 2), 33, 0).await;
    let batch = new.batch().await;
    assert_eq!((batch.session, batch.seq, batch.floor), (SessionId(33), BatchSeq(1), BatchSeq(0)));
    new.verdict(1, &[]).await;
    assert_eq!(client.confirmed().await, [(2, 2)]);
}

/// Else numbers would be used again that the shard knows: messages would count as repeated, and be confirmed, and be nowhere.
#[tokio::test]
async fn a_welcome_of_an_earlier_leadership_is_not_believed() {
    let (mut scene, mut client) = Scene::with_queue("q", 1);
    client.publish("", "q", 1);
    scene.world.set_leader(ShardId(1), Some(leader(2, 3)));
    let (mut second, _) = scene.leader(leader(2, 3), 9, 0).await;
    second.batch().await;
    second.verdict(1, &[]).await;
    assert_eq!(client.confirmed().await, [(1, 1)]);
    client.publish("", "q", 2);
    second.batch().await;
    scene.world.set_leader(ShardId(1), Some(leader(3, 2)));
    let mut behind = scene.path().await;
    behind.say(ToEdge::Welcome { leader: leader(1, 2), session: SessionId(9), last: BatchSeq(0) }).await;
    assert_eq!(timeout(PATIENCE, behind.end.up_rx.recv()).await.expect("in time"), None, "the edge leaves");
    let (mut third, _) = scene.leader(leader(3, 2), 9, 1).await;
    assert_eq!(third.batch().await.seq, BatchSeq(2));
    third.verdict(2, &[]).await;
    assert_eq!(client.confirmed().await, [(2, 2)]);
}

#[tokio::test]
async fn the_window_bounds_batches_in_flight() {
    let (mut scene, mut client) = Scene::with_queue("q", 1);
    client.publish("", "q", 1);
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    leader.batch().await;
    for ticket in 2..=8 {
        client.publish("", "q", ticket);
        leader.batch().await;
    }
    client.publish("", "q", 9);
    client.publish("", "q", 10);
    leader.quiet().await;
    leader.verdict(1, &[]).await;
    let batch = leader.batch().await;
    assert_eq!((batch.seq, keys(&batch).len()), (BatchSeq(9), 2), "what waited shares a batch");
}

#[tokio::test]
async fn a_message_whose_queue_is_gone_is_routed_again_once() {
    let mut scene = Scene::new(default_config());
    let old = scene.queue("q", 1);
    let mut client = scene.client();
    client.publish("", "q", 1);
    let (mut one, _) = scene.leader(leader(1, 2), 9, 0).await;
    one.batch().await;
    scene.world.apply(&CatalogCommand::DeleteQueue { id: old });
    let new = scene.queue("q", 2);
    one.verdict(1, &[0]).await;
    let (mut two, _) = scene.leader(leader(1, 2), 4, 0).await;
    let batch = two.batch().await;
    assert_eq!(enqueues(&batch)[0].queues().collect::<Vec<_>>(), [new]);
    assert!(client.now().is_empty());
    scene.world.apply(&CatalogCommand::DeleteQueue { id: new });
    two.verdict(1, &[0]).await;
    assert_eq!(client.confirmed().await, [(1, 1)], "the second time it is unroutable");
    assert_eq!(scene.edge.counters().rerouted.get(), 1);
}

#[tokio::test]
async fn a_refused_message_of_a_fanout_does_not_reach_its_other_queues_twice() {
    let mut scene = Scene::new(default_config());
    let a = scene.queue("a", 1);
    scene.queue("b", 2);
    scene.fanout("x", &["a", "b"]);
    let mut client = scene.client();
    client.publish("x", "", 1);
    let (first, _) = scene.leader(leader(1, 2), 5, 0).await;
    let (second, _) = scene.leader(leader(1, 2), 6, 0).await;
    let (mut one, mut two) = if first.shard == ShardId(1) { (first, second) } else { (second, first) };
    one.batch().await;
    two.batch().await;
    scene.world.apply(&CatalogCommand::DeleteQueue { id: a });
    two.verdict(1, &[]).await;
    one.verdict(1, &[0]).await;
    assert_eq!(client.confirmed().await, [(1, 1)]);
    two.quiet().await;
}

/// The paths to the leaders of shards 1 and 2, whichever comes first.
async fn both_leaders(scene: &mut Scene) -> (Leader, Leader) {
    let (first, _) = scene.leader(leader(1, 2), 5, 0).await;
    let (second, _) = scene.leader(leader(1, 2), 6, 0).await;
    if first.shard == ShardId(1) { (first, second) } else { (second, first) }
}

async fn queues_of_next(leader: &mut Leader) -> Vec<QueueId> {
    enqueues(&leader.batch().await).iter().flat_map(EnqueueOp::queues).collect()
}

#[tokio::test]
async fn a_fanout_that_was_refused_in_two_shards_reaches_each_of_the_new_queues_once() {
    for ticket in [1, 0] {
        let mut scene = Scene::new(default_config());
        let (a, b) = (scene.queue("a", 1), scene.queue("b", 2));
        scene.fanout("x", &["a", "b"]);
        let mut client = scene.client();
        client.publish("x", "", ticket);
        let (mut one, mut two) = both_leaders(&mut scene).await;
        assert_eq!((queues_of_next(&mut one).await, queues_of_next(&mut two).await), (vec![a], vec![b]));
        for id in [a, b] {
            scene.world.apply(&CatalogCommand::DeleteQueue { id });
        }
        let (a, b) = (scene.queue("a", 1), scene.queue("b", 2));
        for queue in ["a", "b"] {
            scene.world.apply(&CatalogCommand::Bind(binding("x", queue)));
        }
        one.verdict(1, &[0]).await;
        assert_eq!((queues_of_next(&mut one).await, queues_of_next(&mut two).await), (vec![a], vec![b]));
        // What is made after that only the other part can still reach.
        let c = scene.queue("c", 1);
        scene.world.apply(&CatalogCommand::Bind(binding("x", "c")));
        two.verdict(1, &[0]).await;
        assert_eq!(queues_of_next(&mut one).await, [c]);
        two.quiet().await;
        two.verdict(2, &[]).await;
        one.verdict(2, &[]).await;
        one.quiet().await;
        assert_eq!(client.now(), []);
        one.verdict(3, &[]).await;
        if ticket > 0 {
            assert_eq!(client.confirmed().await, [(1, 1)]);
        }
        one.quiet().await;
        assert_eq!(client.now(), []);
    }
}

/// Such a queue has no number of the catalog's, so it looks new to whoever compares.
#[tokio::test]
async fn a_copy_that_is_routed_again_does_not_reach_a_direct_reply_to_consumer_twice() {
    let mut scene = Scene::new(default_config());
    let q = scene.queue("q", 1);
    let shard = ShardId::local(ME);
    scene.world.set_leader(shard, Some(leader(77, 1)));
    let address = crate::edge::replies::address(QueueId::reply(7), ME);
    let len = |n: usize| (n as u32).to_be_bytes();
    let mut client = scene.client();
    // Headers with CC: the address.
    let table = [&b"\x02CCA"[..], &len(5 + address.len()), b"S", &len(address.len()), address.as_bytes()].concat();
    let properties = [&[0x20, 0][..], &len(table.len()), &table].concat();
    client.submit(Step::Publish(Publish { properties: properties.into(), ..publish("", "q", 1, b"body") }));
    let (first, _) = scene.leader(leader(1, 2), 5, 0).await;
    let (second, _) = scene.leader(leader(77, 1), 6, 0).await;
    let (mut one, mut local) = if first.shard == ShardId(1) { (first, second) } else { (second, first) };
    assert_eq!((queues_of_next(&mut one).await, queues_of_next(&mut local).await), (vec![q], vec![QueueId::reply(7)]));
    scene.world.apply(&CatalogCommand::DeleteQueue { id: q });
    let q = scene.queue("q", 1);
    one.verdict(1, &[0]).await;
    assert_eq!(queues_of_next(&mut one).await, [q]);
    local.quiet().await;
}

#[tokio::test]
async fn part_of_a_run_is_refused_the_rest_confirms() {
    let mut scene = Scene::new(default_config());
    let gone = scene.queue("gone", 1);
    scene.queue("q", 1);
    let mut client = scene.client();
    for (ticket, key) in [(1, "q"), (2, "gone"), (3, "gone"), (4, "q")] {
        let mandatory = Publish { mandatory: true, ..publish("", key, ticket, b"body") };
        client.submit(Step::Publish(mandatory));
    }
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    leader.batch().await;
    scene.world.apply(&CatalogCommand::DeleteQueue { id: gone });
    leader.verdict(1, &[1, 2]).await;
    assert_eq!(client.confirmed().await, [(1, 1), (4, 4)]);
    for ticket in [2, 3] {
        let Event::Returned(returned) = client.next().await else { panic!("no return") };
        assert_eq!((returned.ticket, &returned.routing_key[..], &returned.body[..]), (Some(ticket), &b"gone"[..], &b"body"[..]));
        assert_eq!(client.confirmed().await, [(ticket, ticket)]);
    }
}

#[tokio::test]
async fn an_unroutable_mandatory_message_returns_before_its_confirm() {
    let scene = Scene::new(default_config());
    let mut client = scene.client();
    let mandatory = Publish { mandatory: true, ..publish("", "nowhere", 1, b"body") };
    client.submit(Step::Publish(mandatory.clone()));
    client.publish("", "nowhere", 2);
    let expected = [Event::Returned(Box::new(mandatory)), Event::Confirmed { channel: 1, tickets: vec![(1, 2)] }];
    assert_eq!(client.now(), expected);
    assert_eq!(scene.edge.counters().published.get(), 2);
}

#[tokio::test]
async fn a_missing_exchange_closes_the_channel_and_silences_it() {
    let scene = Scene::new(default_config());
    let mut client = scene.client();
    client.publish("nope", "k", 1);
    client.publish("", "nowhere", 2);
    let refusal = Refusal::NotFound { kind: "exchange".into(), name: "nope".into(), vhost: "/".into() };
    assert_eq!(client.now(), [Event::ChannelError { channel: 1, refusal, method: (60, 40) }]);
    client.submit(Step::ChannelClosed { channel: 1, held: vec![] });
    client.publish("", "nowhere", 1);
    assert_eq!(client.now(), [Event::Confirmed { channel: 1, tickets: vec![(1, 1)] }]);
}

#[tokio::test]
async fn a_confirm_for_a_closed_channel_does_not_reach_its_successor() {
    let (mut scene, mut client) = Scene::with_queue("q", 1);
    client.publish("", "q", 1);
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    leader.batch().await;
    client.submit(Step::ChannelClosed { channel: 1, held: vec![] });
    leader.verdict(1, &[]).await;
    client.publish("", "q", 7);
    leader.batch().await;
    leader.verdict(2, &[]).await;
    assert_eq!(client.confirmed().await, [(7, 7)]);
}

#[tokio::test]
async fn no_right_to_write_is_refused_in_rabbitmqs_words() {
    let scene = Scene::new(default_config());
    let mut client = scene.client();
    let permission = crate::model::admin::Permission { configure: ".*".into(), write: "^mine".into(), read: ".*".into() };
    client.publish("", "nowhere", 1);
    assert_eq!(client.confirmed().await, [(1, 1)]);
    scene.world.apply(&CatalogCommand::Admin(AdminCommand::SetPermissions { user: "guest".into(), vhost: "/".into(), permission }));
    client.publish("amq.fanout", "k", 2);
    let text = "write access to exchange 'amq.fanout' in vhost '/' refused for user 'guest'";
    assert_eq!(client.now(), [Event::ChannelError { channel: 1, refusal: Refusal::Access(text.into()), method: (60, 40) }]);
}

#[tokio::test]
async fn a_full_lane_holds_publishes_and_writable_wakes() {
    let mut scene = Scene::new(EdgeConfig { lane_bytes: 1000, ..default_config() });
    scene.queue("q", 1);
    let mut client = scene.client();
    let big = publish("", "q", 1, &[7; 1200]);
    client.submit(Step::Publish(big));
    let held = client.connection.submit(Step::Publish(publish("", "q", 2, b"x"))).expect_err("held");
    assert!(timeout(Duration::from_millis(30), client.connection.writable()).await.is_err());
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    leader.batch().await;
    leader.verdict(1, &[]).await;
    timeout(PATIENCE, client.connection.writable()).await.expect("room");
    client.connection.submit(held).expect("taken now");
    leader.batch().await;
}

/// Those that fill it have no tickets: they wait for as long as it takes.
#[tokio::test]
async fn a_lane_full_of_silent_messages_refuses_those_who_wait_for_an_answer_in_time() {
    let timeout_ms = Duration::from_millis(1100);
    let mut scene = Scene::new(EdgeConfig { lane_bytes: 1000, no_quorum_timeout: timeout_ms, ..default_config() });
    scene.queue("q", 1);
    scene.world.set_leader(ShardId(1), None);
    let (mut silent, mut client) = (scene.client(), scene.client());
    silent.submit(Step::Publish(publish("", "q", 0, &[7; 1200])));
    let began = std::time::Instant::now();
    let mut held = client.connection.submit(Step::Publish(publish("", "q", 1, b"x"))).expect_err("held");
    while let Err(again) = {
        timeout(PATIENCE, client.connection.writable()).await.expect("room, or its time is over");
        client.connection.submit(held)
    } {
        held = again;
    }
    assert!(began.elapsed() >= timeout_ms);
    let events: Vec<Event> = client.now().into_iter().filter(|event| !matches!(event, Event::Blocked(_))).collect();
    assert_eq!(events, [Event::Nacked { channel: 1, tickets: vec![(1, 1)] }]);
    client.publish("", "q", 2);
    assert_eq!(client.next().await, Event::Nacked { channel: 1, tickets: vec![(2, 2)] }, "it has not moved since");
    let again = silent.connection.submit(Step::Publish(publish("", "q", 0, b"y"))).expect_err("held");
    assert!(timeout(Duration::from_millis(30), silent.connection.writable()).await.is_err());
    scene.world.set_leader(ShardId(1), Some(leader(1, 2)));
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    assert_eq!(keys(&leader.batch().await), ["q"]);
    leader.verdict(1, &[]).await;
    timeout(PATIENCE, silent.connection.writable()).await.expect("room");
    silent.connection.submit(again).expect("taken");
    client.publish("", "q", 3);
    leader.batch().await;
}

/// Else whoever publishes after it would be neither confirmed nor told no, for as long as that leader leads nobody.
#[tokio::test]
async fn a_nacked_batch_that_its_leader_may_have_takes_no_room_from_later_publishes() {
    let config = EdgeConfig { lane_bytes: 1000, no_quorum_timeout: Duration::from_millis(1100), ..default_config() };
    let mut scene = Scene::new(config);
    scene.queue("q", 1);
    let mut client = scene.client();
    client.submit(Step::Publish(publish("", "q", 1, &[7; 1200])));
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    let sent = leader.batch().await;
    let held = client.connection.submit(Step::Publish(publish("", "q", 2, b"x"))).expect_err("held");
    assert!(matches!(client.next().await, Event::Blocked(_)));
    assert_eq!(client.next().await, Event::Nacked { channel: 1, tickets: vec![(1, 1)] });
    timeout(PATIENCE, client.connection.writable()).await.expect("room");
    client.connection.submit(held).expect("taken now");
    assert_eq!(client.next().await, Event::Nacked { channel: 1, tickets: vec![(2, 2)] }, "in its time");
    leader.say(ToEdge::Rewind { from: BatchSeq(1) }).await;
    loop {
        let batch = leader.batch().await;
        if batch.seq == sent.seq {
            assert_eq!(batch, sent, "to the same leader the same");
            break;
        }
    }
}

#[tokio::test]
async fn a_blocked_node_tells_those_who_publish_and_holds_their_publishes() {
    let scene = Scene::new(default_config());
    let mut client = scene.client();
    scene.edge.set_blocked(Some("disk".into()));
    assert_eq!(client.now(), [], "it may only consume");
    let mut late = scene.edge.connect(ConnectionInfo { peer: "127.0.0.1:1".parse().expect("an address") });
    late.submit(Step::Authenticate { user: "guest".into(), password: b"guest".to_vec() }).expect("taken");
    late.submit(Step::Open { vhost: "/".into() }).expect("taken");
    let mut events = vec![];
    late.take_events(&mut events, usize::MAX);
    assert_eq!(events[1..], [Event::Opened]);
    let held = client.connection.submit(Step::Publish(publish("", "q", 1, b""))).expect_err("held");
    assert_eq!(client.now(), [Event::Blocked("disk".into())]);
    assert!(timeout(Duration::from_millis(20), client.connection.writable()).await.is_err());
    scene.edge.set_blocked(None);
    timeout(PATIENCE, client.connection.writable()).await.expect("unblocked");
    client.connection.submit(held).expect("taken");
    assert_eq!(client.now()[0], Event::Unblocked);
    let mut events = vec![];
    late.take_events(&mut events, usize::MAX);
    assert_eq!(events, []);
}

#[tokio::test]
async fn without_a_routing_lease_publishes_wait_and_are_nacked_in_the_end() {
    let scene = Scene::new(EdgeConfig { no_quorum_timeout: Duration::from_millis(100), ..default_config() });
    let mut client = scene.client();
    scene.world.lease.store(false, Ordering::SeqCst);
    let held = client.connection.submit(Step::Publish(publish("", "nowhere", 1, b""))).expect_err("held");
    assert_eq!(
        client.now(),
        [Event::Blocked("this node has no contact with a majority of the cluster; it serves again when it has".into())]
    );
    timeout(PATIENCE, client.connection.writable()).await.expect("time is over");
    client.connection.submit(held).expect("taken");
    assert_eq!(client.now(), [Event::Nacked { channel: 1, tickets: vec![(1, 1)] }]);
    scene.world.lease.store(true, Ordering::SeqCst);
    assert_eq!(client.next().await, Event::Unblocked, "without another publish");
    client.publish("", "nowhere", 2);
    assert_eq!(client.confirmed().await, [(2, 2)]);
}

#[tokio::test]
async fn without_a_quorum_publishers_are_told_then_nacked_and_never_confirmed() {
    let mut scene = Scene::new(EdgeConfig { no_quorum_timeout: Duration::from_millis(4000), ..default_config() });
    scene.queue("q", 1);
    scene.world.set_leader(ShardId(1), None);
    let mut client = scene.client();
    client.publish("", "q", 1);
    client.publish("", "q", 0);
    let Event::Blocked(why) = client.next().await else { panic!("not blocked") };
    assert!(why.contains("shard 1 has no leader"), "{why}");
    assert_eq!(client.next().await, Event::Nacked { channel: 1, tickets: vec![(1, 1)] });
    scene.world.set_leader(ShardId(1), Some(leader(1, 2)));
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    let batch = leader.batch().await;
    assert_eq!(keys(&batch), ["q"], "only the message without a ticket is left");
    leader.verdict(1, &[]).await;
    assert_eq!(client.next().await, Event::Unblocked);
    client.publish("", "q", 2);
    assert_eq!(leader.batch().await.seq, BatchSeq(2), "numbers stay dense");
    leader.verdict(2, &[]).await;
    assert_eq!(client.confirmed().await, [(2, 2)]);
}

#[tokio::test]
async fn a_nacked_batch_that_was_sent_is_void_for_the_next_leader() {
    let mut scene = Scene::new(EdgeConfig { no_quorum_timeout: Duration::from_millis(1100), ..default_config() });
    scene.queue("q", 1);
    let mut client = scene.client();
    client.publish("", "q", 1);
    let (mut old, _) = scene.leader(leader(1, 2), 9, 0).await;
    old.batch().await;
    assert!(matches!(client.next().await, Event::Blocked(_)));
    assert!(matches!(client.next().await, Event::Nacked { .. }));
    scene.world.set_leader(ShardId(1), Some(leader(2, 3)));
    let (mut new, _) = scene.leader(leader(2, 3), 9, 0).await;
    let batch = new.batch().await;
    assert_eq!((batch.seq, batch.ops.len()), (BatchSeq(1), 0));
    new.verdict(1, &[]).await;
    assert_eq!(client.next().await, Event::Unblocked);
    assert!(client.now().is_empty());
}

/// The old leader's copy may have been applied: its verdict names the messages as they were.
#[tokio::test]
async fn the_messages_of_a_void_batch_keep_their_ordinals() {
    let mut scene = Scene::new(EdgeConfig { no_quorum_timeout: Duration::from_millis(1100), ..default_config() });
    scene.queue("first", 1);
    scene.queue("second", 1);
    let mut client = scene.client();
    for (queue, ticket) in [("first", 1), ("second", 0), ("first", 2), ("second", 0)] {
        client.publish("", queue, ticket);
    }
    let (mut old, _) = scene.leader(leader(1, 2), 9, 0).await;
    assert_eq!(keys(&old.batch().await), ["first", "second", "first", "second"]);
    assert!(matches!(client.next().await, Event::Blocked(_)));
    for ticket in 1..=2 {
        assert_eq!(client.next().await, Event::Nacked { channel: 1, tickets: vec![(ticket, ticket)] });
    }
    scene.world.set_leader(ShardId(1), Some(leader(2, 3)));
    let (mut new, _) = scene.leader(leader(2, 3), 9, 0).await;
    let void = new.batch().await;
    assert_eq!((void.seq, enqueues(&void).len(), keys(&void)), (BatchSeq(1), 4, vec!["second".to_string(), "second".into()]));
    assert!(crate::model::entry::is_batch(&void.ops));
    // Of the copy that was applied the first and the last message were refused: only the last one is still wanted.
    new.verdict(1, &[0, 3]).await;
    let again = new.batch().await;
    assert_eq!((again.seq, keys(&again)), (BatchSeq(2), vec!["second".to_string()]));
    new.verdict(2, &[]).await;
    assert_eq!(client.next().await, Event::Unblocked);
    assert!(client.now().is_empty());
}

#[tokio::test]
async fn a_large_message_is_a_batch_of_its_own() {
    let mut scene = Scene::new(default_config());
    scene.queue("q", 1);
    let mut client = scene.client();
    let large: &'static [u8] = vec![7; limits::BATCH_BYTES].leak();
    client.publish("", "q", 1);
    client.submit(Step::Publish(publish("", "q", 2, large)));
    client.publish("", "q", 3);
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    for (seq, bytes) in [(1, 0), (2, limits::BATCH_BYTES), (3, 0)] {
        let batch = leader.batch().await;
        assert_eq!((batch.seq, keys(&batch)), (BatchSeq(seq), vec!["q".to_string()]), "in the order of publishing");
        assert_eq!(batch.ops.len() >= limits::BATCH_BYTES, bytes > 0);
        leader.verdict(seq, &[]).await;
        assert_eq!(client.confirmed().await, [(seq, seq)]);
    }
}

#[tokio::test]
async fn a_vanished_owner_of_an_in_memory_queue_counts_as_unroutable() {
    let mut scene = Scene::new(default_config());
    let spec = QueueSpec { name: name("t"), durable: false, auto_delete: false, exclusive_owner: None, arguments: Table::new() };
    let id = scene.declare(spec, ShardId(1));
    let shard = ShardId::local(ME);
    scene.world.set_leader(shard, Some(leader(77, 1)));
    let mut client = scene.client();
    client.publish("", "t", 1);
    let (mut owner, _) = scene.leader(leader(77, 1), 3, 0).await;
    owner.batch().await;
    owner.verdict(1, &[]).await;
    assert_eq!(client.confirmed().await, [(1, 1)]);
    let consumer = client.consume(&mut owner, "t", None).await;
    owner.deliver(consumer, id, &[1]).await;
    client.delivered().await;
    client.submit(Step::Publish(Publish { mandatory: true, ..publish("", "t", 2, b"body") }));
    owner.batch().await;
    scene.world.refuse_paths.store(true, Ordering::SeqCst);
    drop(owner);
    assert_eq!(client.next().await, Event::ConsumerGone { channel: 1, consumer });
    assert!(matches!(client.next().await, Event::Returned(_)));
    assert_eq!(client.confirmed().await, [(2, 2)]);
    client.publish("", "t", 3);
    assert_eq!(client.confirmed().await, [(3, 3)], "at once, nothing waits for it");
    scene.world.refuse_paths.store(false, Ordering::SeqCst);
    let (mut back, seen) = scene.leader(leader(77, 1), 3, 2).await;
    assert_eq!(seen, ToLeader::Return { queue: id, ranges: vec![(Seq(1), Seq(1))], seen: true, failures: vec![] }, "its client had it");
    let attach = back.next().await;
    assert_eq!(attach, ToLeader::Attach { leader: back.id, consumers: vec![], asked: vec![], loose: vec![] });
    client.publish("", "t", 4);
    assert_eq!(back.batch().await.seq, BatchSeq(3));
}

#[tokio::test]
async fn of_a_message_to_several_queues_the_part_of_a_vanished_owner_counts_as_unroutable() {
    let mut scene = Scene::new(default_config());
    let spec = QueueSpec { name: name("t"), durable: false, auto_delete: false, exclusive_owner: None, arguments: Table::new() };
    scene.declare(spec, ShardId(1));
    scene.queue("q", 1);
    scene.fanout("x", &["t", "q"]);
    scene.world.set_leader(ShardId::local(ME), None);
    let mut client = scene.client();
    client.submit(Step::Publish(Publish { mandatory: true, ..publish("x", "", 1, b"body") }));
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    leader.batch().await;
    leader.verdict(1, &[]).await;
    assert_eq!(client.confirmed().await, [(1, 1)], "taken by the other one: not returned, and not for ever without an answer");
}

/// As in RabbitMQ the exchange is looked at first.
#[tokio::test]
async fn an_expiration_that_is_none_closes_the_channel() {
    let scene = Scene::new(default_config());
    let expiring = |exchange: &str| Publish { properties: Bytes::from_static(b"\x01\x00\x03abc"), ..publish(exchange, "k", 1, b"") };
    let not_found = Refusal::NotFound { kind: "exchange".into(), name: "none".into(), vhost: "/".into() };
    let internal = Refusal::Access("cannot publish to internal exchange 'amq.rabbitmq.trace' in vhost '/'".into());
    let invalid = || Refusal::Precondition("invalid expiration 'abc': no_integer".into());
    for (exchange, refusal) in [("none", not_found), ("amq.rabbitmq.trace", internal), ("", invalid()), ("amq.fanout", invalid())] {
        let mut client = scene.client();
        client.submit(Step::Publish(expiring(exchange)));
        assert_eq!(client.now(), [Event::ChannelError { channel: 1, refusal, method: (60, 40) }], "{exchange}");
    }
}

#[tokio::test]
async fn a_publisher_names_nobody_but_itself() {
    let scene = Scene::new(default_config());
    let mut client = scene.client();
    let named = |properties: &'static [u8]| Publish { properties: Bytes::from_static(properties), ..publish("", "nowhere", 1, b"") };
    client.submit(Step::Publish(named(b"\x00\x10\x05guest")));
    assert_eq!(client.confirmed().await, [(1, 1)]);
    client.submit(Step::Publish(named(b"\x00\x10\x03eve")));
    let refusal = Refusal::Precondition("user_id property set to 'eve' but authenticated user was 'guest'".into());
    assert_eq!(client.now(), [Event::ChannelError { channel: 1, refusal, method: (60, 40) }]);
    let tags = vec!["impersonator".to_string()];
    scene.world.apply(&CatalogCommand::Admin(AdminCommand::SetUserTags { user: "guest".into(), tags }));
    let mut other = scene.client();
    other.submit(Step::Publish(named(b"\x00\x10\x03eve")));
    assert_eq!(other.confirmed().await, [(1, 1)]);
}

#[tokio::test]
async fn a_refused_message_whose_queue_exists_is_sent_again_and_then_nacked_but_never_confirmed() {
    let mut scene = Scene::new(default_config());
    let queue = scene.queue("q", 1);
    let mut client = scene.client();
    client.publish("", "q", 1);
    client.publish("", "q", 2);
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    let batch = leader.batch().await;
    assert!(scene.world.catalog.read().queue_by_id(queue).is_some() && batch.catalog_index >= queue.0);
    leader.verdict(1, &[0, 1]).await;
    assert_eq!(keys(&leader.batch().await), ["q", "q"], "again");
    assert_eq!(client.now(), vec![], "not confirmed: the queue exists and does not have it");
    leader.verdict(2, &[1]).await;
    assert_eq!(client.next().await, Event::Confirmed { channel: 1, tickets: vec![(1, 1)] });
    assert_eq!(client.next().await, Event::Nacked { channel: 1, tickets: vec![(2, 2)] });
}

#[tokio::test]
async fn an_edge_that_was_declared_gone_resends_under_the_old_numbers() {
    let (mut scene, mut client) = Scene::with_queue("q", 1);
    let mut old = None;
    for ticket in 1..=3 {
        client.publish("", "q", ticket);
        if old.is_none() {
            old = Some(scene.leader(leader(1, 2), 9, 0).await.0);
        }
        let leader = old.as_mut().expect("a leader");
        assert_eq!(leader.batch().await.seq, BatchSeq(ticket));
        if ticket == 1 {
            leader.verdict(1, &[]).await;
            assert_eq!(client.confirmed().await, [(1, 1)]);
        }
    }
    drop(old);
    let (mut again, _) = scene.leader(leader(1, 2), 20, 2).await;
    let resent = again.batch().await;
    assert_eq!((resent.seq, resent.session), (BatchSeq(2), SessionId(20)), "applied before, and known to be");
    again.verdict(2, &[]).await;
    assert_eq!(client.confirmed().await, [(2, 2)]);
    assert_eq!(again.batch().await.seq, BatchSeq(3));
}

#[tokio::test]
async fn a_message_that_a_full_queue_refuses_is_nacked_and_not_routed_again() {
    let mut scene = Scene::new(default_config());
    scene.queue("q", 1);
    let mut client = scene.client();
    (1..=3).for_each(|ticket| client.publish("", "q", ticket));
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    leader.batch().await;
    leader.say(ToEdge::Verdict { seq: BatchSeq(1), refused: vec![(1, RefusedEnqueue::Full)] }).await;
    let nacked = loop {
        match client.next().await {
            Event::Nacked { tickets, .. } => break tickets,
            Event::Confirmed { .. } => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(nacked, [(2, 2)]);
    leader.quiet().await;
}

#[tokio::test]
async fn a_message_for_a_queue_that_is_being_deleted_is_unroutable() {
    let (mut scene, mut client) = Scene::with_queue("q", 1);
    client.publish("", "q", 1);
    let (mut leader, _) = scene.leader(leader(1, 2), 1, 0).await;
    leader.batch().await;
    leader.say(ToEdge::Verdict { seq: BatchSeq(1), refused: vec![(0, RefusedEnqueue::Sealed)] }).await;
    assert_eq!(client.next().await, Event::Confirmed { channel: 1, tickets: vec![(1, 1)] });
    leader.quiet().await;
}
