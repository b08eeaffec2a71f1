//! Requests against the catalog and the leaders; logins.

use super::*;
use crate::model::admin::{AdminCommand, ApplyTo, Permission, Policy, PolicyKind};
use crate::model::catalog::{QueueRecord, Value};
use crate::model::step::DeclareQueue;

fn declare(queue: &str) -> DeclareQueue {
    DeclareQueue { name: name(queue), passive: false, durable: true, exclusive: false, auto_delete: false, arguments: Table::new() }
}

fn stat(queue: QueueId, ready: u64, consumers: u32) -> QueueStat {
    QueueStat { queue, ready, consumers, ..QueueStat::default() }
}

impl Scene {
    fn record(&self, queue: &str) -> Option<Arc<QueueRecord>> {
        self.world.catalog.read().queue(&name(queue)).cloned()
    }
}

impl Leader {
    async fn stats(&mut self, stats: Vec<QueueStat>) {
        let ToLeader::Stat { request, .. } = self.next().await else { panic!("no stat") };
        self.say(ToEdge::Stats { request, stats }).await;
    }

    async fn sealing(&mut self, id: QueueId, if_: (bool, bool), result: Result<u64, Refusal>) {
        let ToLeader::Seal { request, queue, if_unused, if_empty } = self.next().await else { panic!("no seal") };
        assert_eq!((queue, (if_unused, if_empty)), (id, if_));
        self.say(ToEdge::Purged { request, result }).await;
    }
}

#[tokio::test]
async fn declares_are_placed_and_repeated_ones_count() {
    let mut scene = Scene::new(default_config());
    let mut client = scene.client();
    for queue in ["a", "b", "c"] {
        client.ask(Request::DeclareQueue(declare(queue)));
        assert_eq!(client.reply().await, Ok(Reply::Queue { name: queue.into(), messages: 0, consumers: 0 }));
    }
    let mut shards: Vec<_> = ["a", "b", "c"].iter().filter_map(|q| scene.record(q)).map(|r| r.shard.0).collect();
    shards.sort_unstable();
    assert_eq!(shards, [1, 2, 3], "spread over the shards");
    client.ask(Request::DeclareQueue(declare("a")));
    let (mut leader, _) = scene.leader(leader(1, 2), 1, 0).await;
    let id = scene.record("a").expect("declared").id;
    leader.stats(vec![stat(id, 4, 2)]).await;
    assert_eq!(client.reply().await, Ok(Reply::Queue { name: "a".into(), messages: 4, consumers: 2 }));
    client.ask(Request::DeclareQueue(DeclareQueue { passive: true, ..declare("nope") }));
    assert_eq!(client.reply().await.expect_err("missing").to_string(), "no queue 'nope' in vhost '/'");
}

/// By its argument, or by a policy that says otherwise.
#[tokio::test]
async fn a_queue_that_is_to_be_local_goes_to_a_shard_that_this_node_leads() {
    let scene = Scene::new(default_config());
    let mut client = scene.client();
    let locator = |key: &str, word: &str| Table::from([(key.to_owned(), Value::Text(word.into()))]);
    let local = |queue, key| DeclareQueue { arguments: locator(key, "client-local"), ..declare(queue) };
    let of = |scene: &Scene, queue: &str| scene.record(queue).expect("declared").shard.0;
    client.ask(Request::DeclareQueue(local("anywhere", "x-queue-leader-locator")));
    client.reply().await.expect("declared though this node leads nothing");
    scene.world.set_leader(ShardId(3), Some(leader(2, ME.0)));
    for (queue, key) in [("a", "x-queue-leader-locator"), ("b", "x-queue-master-locator"), ("c", "x-queue-leader-locator")] {
        client.ask(Request::DeclareQueue(local(queue, key)));
        client.reply().await.expect("declared");
        assert_eq!(of(&scene, queue), 3, "{queue}, {key}");
    }
    let definition = locator("queue-leader-locator", "balanced");
    let policy = Policy { name: "p".into(), pattern: "^d".into(), apply_to: ApplyTo::All, definition, priority: 0 };
    scene.world.apply(&CatalogCommand::Admin(AdminCommand::SetPolicy { kind: PolicyKind::User, vhost: "/".into(), policy }));
    client.ask(Request::DeclareQueue(local("d", "x-queue-leader-locator")));
    client.reply().await.expect("declared");
    assert_ne!(of(&scene, "d"), 3, "a policy wins");
}

/// The shard deletes queues whose condition holds; a declare that finds one of those waits, and makes another.
#[tokio::test]
async fn a_queue_that_is_deleted_while_it_is_declared_again_is_made_again() {
    let mut scene = Scene::new(default_config());
    let old = scene.queue("q", 1);
    let mut client = scene.client();
    client.ask(Request::DeclareQueue(declare("q")));
    let (mut leader, _) = scene.leader(leader(1, 2), 1, 0).await;
    let ToLeader::Stat { request, used: true, .. } = leader.next().await else { panic!("no stat") };
    scene.world.apply(&CatalogCommand::DeleteQueue { id: old });
    leader.say(ToEdge::Stats { request, stats: vec![] }).await;
    assert_eq!(client.reply().await, Ok(Reply::Queue { name: "q".into(), messages: 0, consumers: 0 }));
    assert_ne!(scene.record("q").expect("made again").id, old);
}

#[tokio::test]
async fn an_exclusive_queue_is_its_connections_alone_and_goes_with_it() {
    let scene = Scene::new(default_config());
    let (mut owner, mut other) = (scene.client(), scene.client());
    owner.ask(Request::DeclareQueue(DeclareQueue { exclusive: true, ..declare("") }));
    let Ok(Reply::Queue { name: made, .. }) = owner.reply().await else { panic!("refused") };
    assert!(made.starts_with("amq.gen-"), "{made}");
    assert_eq!(scene.record(&made).expect("there").shard, ShardId::local(ME));
    other.ask(Request::Get { queue: name(&made), no_ack: true });
    let Err(Refusal::Locked(text)) = other.reply().await else { panic!("not locked") };
    assert!(text.starts_with(&format!("cannot obtain exclusive access to locked queue '{made}' in vhost '/'")), "{text}");
    drop(owner);
    let gone = async {
        while scene.record(&made).is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, gone).await.expect("the queue goes");
}

#[tokio::test]
async fn an_exclusive_queue_is_not_durable_whatever_was_asked() {
    let mut scene = Scene::new(default_config());
    let mut client = scene.client();
    let exclusive = |durable| Request::DeclareQueue(DeclareQueue { durable, exclusive: true, ..declare("mine") });
    client.ask(exclusive(true));
    client.reply().await.expect("declared");
    let record = scene.record("mine").expect("there");
    assert_eq!((record.spec.durable, record.shard), (false, ShardId::local(ME)));
    client.ask(exclusive(false));
    let (mut leader, _) = scene.leader(leader(1, 1), 1, 0).await;
    leader.stats(vec![stat(record.id, 0, 0)]).await;
    assert_eq!(client.reply().await, Ok(Reply::Queue { name: "mine".into(), messages: 0, consumers: 0 }), "the same queue");
}

#[tokio::test]
async fn quorum_queues_and_streams_are_named_by_their_clients() {
    let scene = Scene::new(default_config());
    let mut client = scene.client();
    let unnamed = |kind: &str| {
        let arguments = Table::from([("x-queue-type".to_owned(), Value::Text(kind.into()))]);
        Request::DeclareQueue(DeclareQueue { arguments, ..declare("") })
    };
    for kind in ["quorum", "stream"] {
        client.ask(unnamed(kind));
        let text = format!("Cannot declare a server-named queue for type rabbit_{kind}_queue");
        assert_eq!(client.reply().await, Err(Refusal::Precondition(text)));
    }
    client.ask(unnamed("classic"));
    client.reply().await.expect("declared");
}

#[tokio::test]
async fn a_client_has_left_when_its_exclusive_queues_are_gone() {
    let mut scene = Scene::new(default_config());
    let id = scene.queue("q", 1);
    let mut client = scene.client();
    client.publish("", "q", 0);
    let (mut leader, _) = scene.leader(leader(1, 2), 1, 0).await;
    leader.batch().await;
    leader.verdict(1, &[]).await;
    let consumer = client.consume(&mut leader, "q", Some(9)).await;
    leader.deliver(consumer, id, &[1]).await;
    client.delivered().await;
    client.ask(Request::DeclareQueue(DeclareQueue { exclusive: true, ..declare("mine") }));
    client.reply().await.expect("declared");
    scene.world.refuse_commands.store(true, Ordering::SeqCst);
    client.submit(Step::Leave);
    assert_eq!(leader.next().await, ToLeader::Cancel { consumer });
    assert!(matches!(leader.next().await, ToLeader::Return { seen: true, .. }));
    assert!(client.now().is_empty(), "the catalog has not answered");
    scene.world.refuse_commands.store(false, Ordering::SeqCst);
    assert_eq!(client.next().await, Event::Left);
    assert!(scene.record("mine").is_none());
    client.submit(Step::Leave);
    drop(client);
    leader.quiet().await;
}

#[tokio::test]
async fn deletions_look_before_they_delete() {
    let mut scene = Scene::new(default_config());
    let id = scene.queue("q", 1);
    let mut client = scene.client();
    let (mut leader, _) = {
        client.ask(Request::DeleteQueue { name: name("q"), if_unused: true, if_empty: true });
        scene.leader(leader(1, 2), 1, 0).await
    };
    let refusal = Refusal::Precondition("queue 'q' in vhost '/' in use".into());
    leader.sealing(id, (true, true), Err(refusal.clone())).await;
    assert_eq!(client.reply().await, Err(refusal));
    assert!(scene.record("q").is_some());
    client.ask(Request::DeleteQueue { name: name("q"), if_unused: false, if_empty: true });
    leader.sealing(id, (false, true), Ok(3)).await;
    assert_eq!(client.reply().await, Ok(Reply::Count(3)));
    assert!(scene.record("q").is_none());
    let id = scene.queue("q", 1);
    client.ask(Request::DeleteQueue { name: name("q"), if_unused: false, if_empty: false });
    leader.stats(vec![stat(id, 5, 0)]).await;
    assert_eq!(client.reply().await, Ok(Reply::Count(5)));
    assert!(scene.record("q").is_none());
    client.ask(Request::DeleteQueue { name: name("q"), if_unused: false, if_empty: false });
    assert_eq!(client.reply().await, Ok(Reply::Count(0)), "a missing queue is deleted already");
}

/// The leader must not do later what its client was told has failed.
#[tokio::test]
async fn a_question_that_is_not_answered_in_time_is_withdrawn() {
    let mut scene = Scene::new(EdgeConfig { no_quorum_timeout: Duration::from_secs(3), ..default_config() });
    let queue = scene.queue("q", 1);
    let mut client = scene.client();
    client.ask(Request::DeleteQueue { name: name("q"), if_unused: true, if_empty: false });
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    let ToLeader::Seal { request, .. } = leader.next().await else { panic!("no seal") };
    assert_eq!(leader.next().await, ToLeader::Withdraw { request, queue });
    let Err(Refusal::Unavailable(_)) = client.reply().await else { panic!("nobody answered") };
}

#[tokio::test]
async fn a_purge_comes_after_the_clients_publishes() {
    let mut scene = Scene::new(default_config());
    let queue = scene.queue("q", 1);
    let mut client = scene.client();
    client.publish("", "q", 0);
    client.ask(Request::PurgeQueue { name: name("q") });
    let (mut leader, _) = scene.leader(leader(1, 2), 1, 0).await;
    leader.batch().await;
    leader.verdict(1, &[]).await;
    let ToLeader::Purge { request, queue: asked } = leader.next().await else { panic!("no purge") };
    assert_eq!(asked, queue);
    leader.say(ToEdge::Purged { request, result: Ok(1) }).await;
    assert_eq!(client.reply().await, Ok(Reply::Count(1)));
}

#[tokio::test]
async fn a_request_without_a_leader_fails_in_time_and_says_why() {
    let scene = Scene::new(EdgeConfig { no_quorum_timeout: Duration::from_millis(50), ..default_config() });
    scene.queue("q", 1);
    scene.world.set_leader(ShardId(1), None);
    let mut client = scene.client();
    client.ask(Request::Get { queue: name("q"), no_ack: true });
    let Err(Refusal::Unavailable(text)) = client.reply().await else { panic!("not refused") };
    assert!(text.contains("no leader with a quorum"), "{text}");
}

#[tokio::test]
async fn the_brokers_own_names_are_protected() {
    let scene = Scene::new(default_config());
    let mut client = scene.client();
    let exchange = |text: &str| ExchangeSpec {
        name: name(text),
        kind: ExchangeKind::Direct,
        durable: true,
        auto_delete: false,
        internal: false,
        arguments: Table::new(),
    };
    let refused = [
        (Request::DeclareQueue(declare("amq.mine")), "queue name 'amq.mine' contains reserved prefix 'amq.*'"),
        (
            Request::DeclareExchange { spec: exchange("amq.mine"), passive: false },
            "exchange name 'amq.mine' contains reserved prefix 'amq.*'",
        ),
        (Request::DeclareExchange { spec: exchange(""), passive: false }, "operation not permitted on the default exchange"),
        (
            Request::DeleteExchange { name: name("amq.direct"), if_unused: false },
            "deletion of system exchange 'amq.direct' in vhost '/' not allowed",
        ),
        (Request::Bind(binding("", "q")), "operation not permitted on the default exchange"),
    ];
    for (request, text) in refused {
        client.ask(request);
        assert_eq!(client.reply().await, Err(Refusal::Access(text.into())));
    }
    client.ask(Request::DeclareExchange { spec: exchange("amq.direct"), passive: false });
    assert_eq!(client.reply().await, Ok(Reply::Done), "an equal declare of a predeclared exchange");
    client.ask(Request::DeclareExchange { spec: exchange("nope"), passive: true });
    assert_eq!(client.reply().await.expect_err("missing").to_string(), "no exchange 'nope' in vhost '/'");
}

#[tokio::test]
async fn each_request_needs_its_right() {
    let scene = Scene::new(default_config());
    scene.queue("q", 1);
    let permission = Permission { configure: "^a".into(), write: "^b".into(), read: "^c".into() };
    scene.world.apply(&CatalogCommand::Admin(AdminCommand::SetPermissions { user: "guest".into(), vhost: "/".into(), permission }));
    let mut client = scene.client();
    let refused = [
        (Request::DeclareQueue(declare("x")), "configure access to queue 'x'"),
        (Request::DeleteQueue { name: name("q"), if_unused: false, if_empty: false }, "configure access to queue 'q'"),
        (Request::DeleteExchange { name: name("x"), if_unused: false }, "configure access to exchange 'x'"),
        (Request::PurgeQueue { name: name("q") }, "read access to queue 'q'"),
        (Request::Get { queue: name("q"), no_ack: true }, "read access to queue 'q'"),
        (Request::Bind(binding("c", "q")), "write access to queue 'q'"),
        (Request::Unbind(binding("x", "b")), "read access to exchange 'x'"),
    ];
    for (request, text) in refused {
        client.ask(request);
        assert_eq!(client.reply().await, Err(Refusal::Access(format!("{text} in vhost '/' refused for user 'guest'"))));
    }
}

#[tokio::test]
async fn logins_are_checked() {
    let scene = Scene::new(default_config());
    let from = |address: &str| scene.edge.connect(ConnectionInfo { peer: address.parse().expect("an address") });
    let login = |mut connection: Connection, password: &str, vhost: &str| {
        let password = password.as_bytes().to_vec();
        connection.submit(Step::Authenticate { user: "guest".into(), password }).expect("taken");
        connection.submit(Step::Open { vhost: vhost.into() }).expect("taken");
        let mut events = vec![];
        connection.take_events(&mut events, usize::MAX);
        events
    };
    let not_allowed = |text: &str| Event::OpenRefused(Refusal::NotAllowed(text.into()));
    assert!(matches!(&login(from("127.0.0.1:1"), "wrong", "/")[..], [Event::AuthenticationFailed(_), Event::OpenRefused(_)]));
    assert!(matches!(&login(from("127.0.0.1:1"), "wrong", "/")[0], Event::AuthenticationFailed(refused) if !refused.is_remote));
    let from_afar = login(from("10.0.0.1:1"), "guest", "/");
    assert!(matches!(&from_afar[0], Event::AuthenticationFailed(refused) if refused.is_remote), "guest is for this host");
    assert_eq!(login(from("[::1]:1"), "guest", "/"), [Event::Authenticated, Event::Opened]);
    assert_eq!(login(from("127.0.0.1:1"), "guest", "x"), [Event::Authenticated, not_allowed("vhost x not found")]);
    scene.world.apply(&CatalogCommand::Admin(AdminCommand::AddVhost { vhost: "y".into(), facts: Default::default() }));
    let refused = not_allowed("access to vhost 'y' refused for user 'guest'");
    assert_eq!(login(from("127.0.0.1:1"), "guest", "y"), [Event::Authenticated, refused]);
}

#[tokio::test]
async fn a_certificate_stands_for_a_user_that_exists_and_may_come_from_there() {
    let scene = Scene::new(default_config());
    let login = |user: &str, from: &str| {
        let mut connection = scene.edge.connect(ConnectionInfo { peer: from.parse().expect("an address") });
        connection.submit(Step::AuthenticateByCertificate { user: user.into() }).expect("taken");
        connection.submit(Step::Open { vhost: "/".into() }).expect("taken");
        let mut events = vec![];
        connection.take_events(&mut events, usize::MAX);
        events
    };
    assert_eq!(login("guest", "127.0.0.1:1"), [Event::Authenticated, Event::Opened]);
    assert!(matches!(&login("guest", "10.0.0.1:1")[..], [Event::AuthenticationFailed(_), Event::OpenRefused(_)]), "guest is for this host");
    assert!(matches!(&login("nobody", "127.0.0.1:1")[..], [Event::AuthenticationFailed(_), Event::OpenRefused(_)]));
}

#[tokio::test]
async fn users_are_kept_to_this_machine_by_name() {
    for (kept, welcome) in [(vec![], true), (vec!["ops".to_owned()], true), (vec!["ops".to_owned(), "guest".to_owned()], false)] {
        let scene = Scene::new(EdgeConfig { loopback_users: kept.clone(), ..default_config() });
        let mut connection = scene.edge.connect(ConnectionInfo { peer: "10.0.0.1:1".parse().expect("an address") });
        connection.submit(Step::Authenticate { user: "guest".into(), password: b"guest".to_vec() }).expect("taken");
        let mut events = vec![];
        connection.take_events(&mut events, usize::MAX);
        let expected = match welcome {
            true => Event::Authenticated,
            false => {
                let why = "user 'guest' can only connect via localhost".to_owned();
                Event::AuthenticationFailed(crate::model::step::LoginRefused { why, is_remote: true })
            }
        };
        assert_eq!(events, [expected], "{kept:?}");
    }
}

#[tokio::test]
async fn what_the_catalog_cannot_commit_is_refused_and_changes_nothing() {
    let scene = Scene::new(default_config());
    scene.queue("q", 1);
    let mut client = scene.client();
    let before = scene.world.catalog.read().state_hash();
    scene.world.refuse_commands.store(true, Ordering::SeqCst);
    let binding = BindingSpec {
        vhost: "/".into(),
        source: "amq.direct".into(),
        target: Target::Queue,
        destination: "q".into(),
        key: "k".into(),
        arguments: Table::new(),
    };
    for request in [
        Request::DeclareExchange { spec: exchange_spec("x"), passive: false },
        Request::DeclareQueue(declare("new")),
        Request::Bind(binding),
    ] {
        client.ask(request);
        assert_eq!(client.reply().await, Err(Refusal::Unavailable("no majority".into())));
    }
    assert_eq!(scene.world.catalog.read().state_hash(), before);
}

#[tokio::test]
async fn listings_ask_every_shard_once() {
    let mut scene = Scene::new(default_config());
    let (a, b, c) = (scene.queue("a", 1), scene.queue("b", 2), scene.queue("c", 1));
    let edge = scene.edge.clone();
    let asked = tokio::spawn(async move { edge.stats(&[c, b, a, QueueId(999)]).await });
    for _ in 0..2 {
        let (mut leader, _) = scene.leader(leader(1, 2), 1, 0).await;
        let known = if leader.shard == ShardId(1) { vec![stat(a, 1, 0), stat(c, 3, 0)] } else { vec![stat(b, 2, 0)] };
        leader.stats(known).await;
        tokio::spawn(async move { leader.next().await });
    }
    let stats = asked.await.expect("no panic");
    assert_eq!(stats, [stat(c, 3, 0), stat(b, 2, 0), stat(a, 1, 0)]);
}

#[tokio::test]
async fn of_queues_whose_leader_does_not_answer_no_counts_are_told() {
    let mut scene = Scene::new(default_config());
    let (silent, new) = (scene.queue("silent", 1), scene.queue("new", 2));
    let edge = scene.edge.clone();
    let asked = tokio::spawn(async move { edge.stats(&[silent, new]).await });
    let mut leaders = Vec::new();
    for _ in 0..2 {
        let (mut leader, _) = scene.leader(leader(1, 2), 1, 0).await;
        if leader.shard == ShardId(2) {
            // It has not made its queue yet.
            leader.stats(vec![]).await;
        }
        leaders.push(leader);
    }
    assert_eq!(asked.await.expect("no panic"), [stat(new, 0, 0)]);
}

#[tokio::test]
async fn connections_are_listed_and_can_be_closed() {
    let scene = Scene::new(default_config());
    let mut client = scene.client();
    let listed = scene.edge.connections();
    assert_eq!((listed.len(), listed[0].user.as_deref()), (1, Some("guest")));
    scene.edge.close_connections("bye", |c| c.vhost.as_deref() == Some("/"));
    assert_eq!(client.now(), [Event::Close("bye".into())]);
    drop(client);
    assert!(scene.edge.connections().is_empty());
    assert_eq!(scene.edge.counters().connections_closed.get(), 1);
}

#[tokio::test]
async fn without_a_routing_lease_requests_wait_and_are_refused_in_the_end() {
    let scene = Scene::new(EdgeConfig { no_quorum_timeout: Duration::from_millis(100), ..default_config() });
    let mut client = scene.client();
    scene.world.lease.store(false, Ordering::SeqCst);
    let passive = || Request::DeclareExchange { spec: exchange_spec("none"), passive: true };
    client.ask(passive());
    assert!(matches!(client.reply().await, Err(Refusal::Unavailable(_))), "no answer from an old catalog");
    client.ask(passive());
    assert!(client.now().is_empty());
    scene.world.lease.store(true, Ordering::SeqCst);
    assert!(matches!(client.reply().await, Err(Refusal::NotFound { .. })));
    scene.world.lease.store(false, Ordering::SeqCst);
    client.ask(Request::DeclareQueue(DeclareQueue { passive: true, ..declare("made-elsewhere") }));
    assert!(client.now().is_empty(), "this copy of the catalog does not count");
    scene.queue("made-elsewhere", 1);
    client.ask(Request::DeleteQueue { name: name("none"), if_unused: false, if_empty: false });
    assert!(matches!(client.reply().await, Err(Refusal::Unavailable(_))));
    assert!(matches!(client.reply().await, Err(Refusal::Unavailable(_))));
}

fn exchange_spec(exchange: &str) -> ExchangeSpec {
    let (durable, auto_delete, internal) = (true, false, false);
    ExchangeSpec { name: name(exchange), kind: ExchangeKind::Fanout, durable, auto_delete, internal, arguments: Table::new() }
}
