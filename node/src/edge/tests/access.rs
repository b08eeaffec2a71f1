//! Rights per operation, limits, and who must leave.

use super::replies::with_lists;
use super::*;
use crate::edge::streams::Addresses;
use crate::model::admin::{AdminCommand, Permission, TopicPermission};
use crate::model::catalog::Value;
use crate::model::properties;
use crate::model::report::Counted;
use crate::model::step::DeclareQueue;
use crate::model::stream_step::Advertised;

const NAMES: [(&str, &str); 3] = [("configure", "c"), ("write", "w"), ("read", "r")];

impl Scene {
    fn admin(&self, command: AdminCommand) {
        let reply = self.world.apply(&CatalogCommand::Admin(command)).1;
        assert_eq!(reply, CatalogReply::Done);
        self.edge.expel();
    }

    fn permit(&self, configure: &str, write: &str, read: &str) {
        let permission = Permission { configure: configure.into(), write: write.into(), read: read.into() };
        self.admin(AdminCommand::SetPermissions { user: "guest".into(), vhost: "/".into(), permission });
    }

    fn limit(&self, user: bool, limits: &[(&str, i64)]) {
        let limits = limits.iter().map(|(name, value)| ((*name).to_owned(), Value::Int(*value))).collect();
        self.admin(match user {
            true => AdminCommand::SetUserLimits { user: "guest".into(), limits },
            false => AdminCommand::SetVhostLimits { vhost: "/".into(), limits },
        });
    }

    /// What a login says last.
    async fn login(&self) -> (Client, Event) {
        let mut connection = self.edge.connect(ConnectionInfo { peer: "127.0.0.1:4000".parse().expect("an address") });
        connection.submit(Step::Authenticate { user: "guest".into(), password: b"guest".to_vec() }).expect("taken");
        connection.submit(Step::Open { vhost: "/".into() }).expect("taken");
        let mut client = Client { connection, events: Vec::new() };
        assert_eq!(client.next().await, Event::Authenticated);
        let last = client.next().await;
        (client, last)
    }
}

#[tokio::test]
async fn the_broker_itself_needs_no_right_and_counts_for_nobody_and_leaves_with_its_vhost() {
    let scene = Scene::new(default_config());
    scene.permit("^$", "^$", "^$");
    scene.limit(false, &[("max-connections", 1)]);
    let own = || Client { connection: scene.edge.connect_own("/"), events: Vec::new() };
    let mut client = own();
    assert_eq!(client.next().await, Event::Opened);
    client.ask(declare("q", &[]));
    assert!(matches!(client.next().await, Event::Reply { result: Ok(_), .. }));
    client.submit(Step::Publish(publish("amq.topic", "k", 1, b"b")));
    assert!(matches!(client.next().await, Event::Confirmed { .. }), "no queue, no refusal");
    let counted = [Counted::VhostConnections("/".into()), Counted::UserConnections("guest".into())];
    assert_eq!(counted.map(|counted| scene.edge.count(&counted)), [0, 0]);
    assert_eq!(scene.edge.connections()[0].user, None);
    scene.admin(AdminCommand::DeleteUser { user: "guest".into() });
    assert!(client.now().is_empty(), "whoever goes");
    scene.admin(AdminCommand::DeleteVhost { vhost: "/".into() });
    assert!(matches!(client.next().await, Event::Close(_)));
    assert!(matches!(own().next().await, Event::OpenRefused(_)));
}

fn declare(queue: &str, arguments: &[(&str, &str)]) -> Request {
    let arguments = arguments.iter().map(|(k, v)| ((*k).to_owned(), Value::Text(v.as_bytes().to_vec()))).collect();
    let name = name(queue);
    Request::DeclareQueue(DeclareQueue { name, passive: false, durable: true, exclusive: false, auto_delete: false, arguments })
}

fn exchange(exchange: &str, arguments: &[(&str, &str)]) -> Request {
    let arguments = arguments.iter().map(|(k, v)| ((*k).to_owned(), Value::Text(v.as_bytes().to_vec()))).collect();
    exchange_of(exchange, "topic", arguments)
}

fn exchange_of(exchange: &str, kind: &str, arguments: Table) -> Request {
    let kind = ExchangeKind::of_text(kind.as_bytes()).expect("a kind");
    let spec = ExchangeSpec { name: name(exchange), kind, durable: true, auto_delete: false, internal: false, arguments };
    Request::DeclareExchange { spec, passive: false }
}

fn look_exchange(thing: &str) -> Request {
    match exchange(thing, &[]) {
        Request::DeclareExchange { spec, .. } => Request::DeclareExchange { spec, passive: true },
        other => other,
    }
}

fn to_exchange(source: &str, destination: &str) -> BindingSpec {
    BindingSpec { target: Target::Exchange, ..binding(source, destination) }
}

fn consume(queue: &str) -> Request {
    let (tag, arguments) = ("t".into(), Table::new());
    Request::Consume { queue: name(queue), tag, no_ack: true, exclusive: false, prefetch: None, arguments }
}

/// Every operation with the rights it needs, in the order in which they are asked for. Names say who they belong to: `cq` may be
/// configured, and so on; each right is taken away in turn.
#[tokio::test]
async fn each_operation_needs_rabbitmqs_rights() {
    let get = |queue: &str| Request::Get { queue: name(queue), no_ack: true };
    let matrix: Vec<(Request, Vec<(&str, &str)>)> = vec![
        (declare("q", &[]), vec![("configure", "queue 'q'")]),
        (
            declare("q", &[("x-dead-letter-exchange", "dlx")]),
            vec![("configure", "queue 'q'"), ("read", "queue 'q'"), ("write", "exchange 'dlx'")],
        ),
        (Request::DeleteQueue { name: name("q"), if_unused: false, if_empty: false }, vec![("configure", "queue 'q'")]),
        (Request::PurgeQueue { name: name("q") }, vec![("read", "queue 'q'")]),
        (get("q"), vec![("read", "queue 'q'")]),
        (consume("q"), vec![("read", "queue 'q'")]),
        (exchange("x", &[]), vec![("configure", "exchange 'x'")]),
        (
            exchange("x", &[("alternate-exchange", "ae")]),
            vec![("configure", "exchange 'x'"), ("read", "exchange 'x'"), ("write", "exchange 'ae'")],
        ),
        (Request::DeleteExchange { name: name("x"), if_unused: false }, vec![("configure", "exchange 'x'")]),
        (Request::Bind(binding("x", "q")), vec![("write", "queue 'q'"), ("read", "exchange 'x'")]),
        (Request::Unbind(binding("x", "q")), vec![("write", "queue 'q'"), ("read", "exchange 'x'")]),
        (Request::Bind(to_exchange("x", "y")), vec![("write", "exchange 'y'"), ("read", "exchange 'x'")]),
        (Request::Unbind(to_exchange("x", "y")), vec![("write", "exchange 'y'"), ("read", "exchange 'x'")]),
    ];
    for (request, needed) in matrix {
        for missing in &needed {
            let scene = Scene::new(default_config());
            let pattern = |right: &str| if missing.0 == right { "^never$" } else { ".*" };
            scene.permit(pattern("configure"), pattern("write"), pattern("read"));
            let mut client = scene.client();
            client.ask(request.clone());
            let text = format!("{} access to {} in vhost '/' refused for user 'guest'", missing.0, missing.1);
            assert_eq!(client.reply().await, Err(Refusal::Access(text)), "{request:?}");
        }
        for (right, _) in NAMES.iter().filter(|(right, _)| needed.iter().all(|n| n.0 != *right)) {
            let scene = Scene::new(default_config());
            let pattern = |one: &str| if one == *right { "^never$" } else { ".*" };
            scene.permit(pattern("configure"), pattern("write"), pattern("read"));
            let mut client = scene.client();
            client.ask(request.clone());
            let refused = timeout(Duration::from_millis(50), client.reply()).await;
            assert!(!matches!(refused, Ok(Err(Refusal::Access(_)))), "{request:?} without {right}: {refused:?}");
        }
    }
}

/// A publish is looked at in the order of RabbitMQ's channel, whatever else is wrong with it.
#[tokio::test]
async fn of_all_that_is_wrong_with_a_publish_the_first_is_told() {
    let list = |text: &str, wrong: &[&str]| {
        let table = b"\x02CCS\0\0\0\x01k";
        let mut flags = 0u16;
        let mut fields = Vec::new();
        if wrong.contains(&"copies") {
            flags |= properties::HEADERS;
            fields.extend_from_slice(&(table.len() as u32).to_be_bytes());
            fields.extend_from_slice(table);
        }
        let mut short = |flag: u16, name: &str, value: &str| {
            if wrong.contains(&name) {
                flags |= flag;
                fields.push(value.len() as u8);
                fields.extend_from_slice(value.as_bytes());
            }
        };
        short(properties::REPLY_TO, "reply", "amq.rabbitmq.reply-to");
        short(properties::EXPIRATION, "expiration", text);
        short(1 << 4, "user", "somebody");
        [&flags.to_be_bytes()[..], &fields].concat()
    };
    let all = ["reply", "expiration", "copies", "user"];
    let topic = AdminCommand::SetTopicPermissions {
        user: "guest".into(),
        vhost: "/".into(),
        exchange: "amq.topic".into(),
        permission: TopicPermission { write: "^allowed".into(), read: ".*".into() },
    };
    let cases: [(&str, &str, &[&str], &str); 8] = [
        ("amq.topic", "right", &all, "write access to exchange 'amq.topic' in vhost '/' refused for user 'guest'"),
        ("none", "k", &all, "no exchange 'none' in vhost '/'"),
        ("amq.rabbitmq.trace", "k", &all, "cannot publish to internal exchange 'amq.rabbitmq.trace' in vhost '/'"),
        ("amq.topic", "k", &all, "fast reply consumer does not exist"),
        ("amq.topic", "k", &all[1..], "invalid expiration 'later': no_integer"),
        ("amq.topic", "k", &all[2..], "invalid message: {unacceptable_type_in_header,\"CC\",longstr}"),
        ("amq.topic", "k", &all[3..], "write access to topic 'k' in exchange topic 'amq.topic' in vhost '/' refused for user 'guest'"),
        ("amq.topic", "allowed", &all[3..], "user_id property set to 'somebody' but authenticated user was 'guest'"),
    ];
    for (exchange, key, wrong, why) in cases {
        for in_transaction in [false, true] {
            let scene = Scene::new(default_config());
            scene.admin(topic.clone());
            scene.permit(".*", if key == "right" { "^$" } else { ".*" }, ".*");
            let mut client = scene.client();
            let publish = Publish { properties: list("later", wrong).into(), ..publish(exchange, key, 1, b"b") };
            client.submit(if in_transaction { Step::Check(publish) } else { Step::Publish(publish) });
            let Event::ChannelError { refusal, .. } = client.next().await else { panic!("{exchange} {key}: not refused") };
            assert_eq!(refusal.to_string(), why, "{exchange} {key}");
        }
    }
}

/// RabbitMQ asks for rights, then for the queue that there is, and only of a new one whether its arguments make sense.
#[tokio::test]
async fn whether_arguments_make_sense_is_asked_last_and_of_new_queues_alone() {
    let scene = Scene::new(default_config());
    let mut client = scene.client();
    let odd = |queue: &str| declare(queue, &[("x-overflow", "later")]);
    let invalid = "invalid arg 'x-overflow' for queue 'new' in vhost '/': invalid_overflow";
    client.ask(odd("new"));
    assert_eq!(client.reply().await, Err(Refusal::Precondition(invalid.into())));
    client.ask(declare("old", &[("x-overflow", "drop-head")]));
    client.reply().await.expect("declared");
    client.ask(odd("old"));
    let inequivalent = "inequivalent arg 'x-overflow' for queue 'old' in vhost '/': received 'later' but current is 'drop-head'";
    assert_eq!(client.reply().await, Err(Refusal::Inequivalent(inequivalent.into())));
    client.ask(declare("new", &[("x-dead-letter-exchange", "dlx"), ("x-overflow", "later")]));
    assert_eq!(client.reply().await, Err(Refusal::Precondition(invalid.into())));
    scene.permit(".*", "^$", ".*");
    client.ask(declare("new", &[("x-dead-letter-exchange", "dlx"), ("x-overflow", "later")]));
    let dead_letters = "write access to exchange 'dlx' in vhost '/' refused for user 'guest'";
    assert_eq!(client.reply().await, Err(Refusal::Access(dead_letters.into())));
    scene.permit("^$", ".*", ".*");
    for queue in ["new", "old"] {
        client.ask(odd(queue));
        let text = format!("configure access to queue '{queue}' in vhost '/' refused for user 'guest'");
        assert_eq!(client.reply().await, Err(Refusal::Access(text)));
    }
    assert!(scene.world.catalog.read().queue(&name("new")).is_none());
}

/// The same of exchanges, whose arguments their types judge in the plugins' words.
#[tokio::test]
async fn whether_arguments_of_exchanges_make_sense_is_asked_last_and_of_new_ones_alone() {
    let int = Value::Int;
    let text = |text: &str| Value::Text(text.into());
    let number = "must be an integer greater than 0";
    let no_type = "Invalid argument, 'x-delayed-type' must be an existing exchange type";
    let cases = [
        ("x-delayed-message", vec![], no_type.to_owned()),
        ("x-delayed-message", vec![("x-delayed-type", int(1))], no_type.to_owned()),
        ("x-delayed-message", vec![("x-delayed-type", text("x-recent-history"))], no_type.to_owned()),
        ("x-delayed-message", vec![("x-delayed-type", text("odd"))], "unknown exchange type 'odd'".to_owned()),
        (
            "x-recent-history",
            vec![("x-recent-history-length", int(-1))],
            "Invalid argument -1, 'x-recent-history-length' must be a positive integer".to_owned(),
        ),
        ("x-message-deduplication", vec![], format!("Missing or invalid argument, 'x-cache-size' {number}")),
        (
            "x-message-deduplication",
            vec![("x-cache-size", int(1)), ("x-cache-ttl", int(0))],
            format!("Invalid argument, 'x-cache-ttl' {number}"),
        ),
        (
            "direct",
            vec![("alternate-exchange", int(1))],
            "invalid type 'signedint' for arg 'alternate-exchange' in exchange 'new' in vhost '/'".to_owned(),
        ),
    ];
    let scene = Scene::new(default_config());
    let mut client = scene.client();
    client.ask(exchange("old", &[]));
    client.reply().await.expect("declared");
    let table = |arguments: &[(&str, Value)]| arguments.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
    for (kind, arguments, why) in &cases {
        client.ask(exchange_of("new", kind, table(arguments)));
        assert_eq!(client.reply().await, Err(Refusal::Precondition(why.clone())), "{kind}");
        client.ask(exchange_of("old", kind, table(arguments)));
        let refusal = client.reply().await.expect_err("not the same").to_string();
        assert!(refusal.starts_with("inequivalent arg 'type' for exchange 'old'"), "{refusal}");
    }
    scene.permit("^$", ".*", ".*");
    for ((kind, arguments, _), exchange) in cases.iter().zip(["new", "old"].into_iter().cycle()) {
        client.ask(exchange_of(exchange, kind, table(arguments)));
        let text = format!("configure access to exchange '{exchange}' in vhost '/' refused for user 'guest'");
        assert_eq!(client.reply().await, Err(Refusal::Access(text)));
    }
    assert!(scene.world.catalog.read().exchange(&name("new")).is_none());
}

/// Of consumers it is asked behind the right to read, and of a queue that there is.
#[tokio::test]
async fn arguments_of_consumers_of_the_wrong_kind_are_refused_behind_everything_else() {
    let text = |text: &str| Value::Text(text.into());
    let asked = |queue: &str, argument: &str, value: &Value| match consume(queue) {
        Request::Consume { queue, tag, no_ack, exclusive, prefetch, .. } => {
            let arguments = [(argument.to_owned(), value.clone())].into();
            Request::Consume { queue, tag, no_ack, exclusive, prefetch, arguments }
        }
        other => other,
    };
    let cases = [
        ("x-priority", text("high"), "\"expected integer, got longstr\""),
        ("x-priority", Value::Bool(true), "\"expected integer, got bool\""),
        ("x-consumer-timeout", text("1h"), "\"expected integer, got longstr\""),
        ("x-consumer-timeout", Value::Int(-1), "{value_negative,-1}"),
        ("x-cancel-on-ha-failover", text("true"), "{unacceptable_type,longstr}"),
    ];
    let scene = Scene::new(default_config());
    let mut client = scene.client();
    client.ask(declare("q", &[]));
    client.reply().await.expect("declared");
    for (argument, value, why) in &cases {
        client.ask(asked("q", argument, value));
        let refused = format!("invalid arg '{argument}' for queue 'q' in vhost '/': {why}");
        assert_eq!(client.reply().await, Err(Refusal::Precondition(refused)));
        client.ask(asked("none", argument, value));
        assert!(matches!(client.reply().await, Err(Refusal::NotFound { .. })));
    }
    scene.permit(".*", ".*", "^$");
    for (argument, value, _) in &cases {
        client.ask(asked("q", argument, value));
        let text = "read access to queue 'q' in vhost '/' refused for user 'guest'";
        assert_eq!(client.reply().await, Err(Refusal::Access(text.into())));
    }
}

#[tokio::test]
async fn an_argument_that_is_not_compared_does_not_matter_to_a_queue_that_is_there() {
    let mut scene = Scene::new(default_config());
    let mut client = scene.client();
    client.ask(declare("q", &[]));
    client.reply().await.expect("declared");
    let id = scene.world.catalog.read().queue(&name("q")).expect("there").id;
    client.ask(declare("q", &[("x-delayed-retry-type", "all")]));
    let (mut leader, _) = scene.leader(leader(1, 2), 1, 0).await;
    let ToLeader::Stat { request, .. } = leader.next().await else { panic!("no stat") };
    leader.say(ToEdge::Stats { request, stats: vec![QueueStat { queue: id, ready: 7, ..QueueStat::default() }] }).await;
    assert_eq!(client.reply().await, Ok(Reply::Queue { name: "q".into(), messages: 7, consumers: 0 }));
}

/// Whatever it is; without any, whether a thing is there is not told.
#[tokio::test]
async fn looking_whether_something_is_there_needs_one_right_to_it() {
    let looks = |thing: &str| {
        let queue = match declare(thing, &[]) {
            Request::DeclareQueue(declare) => Request::DeclareQueue(DeclareQueue { passive: true, ..declare }),
            other => other,
        };
        let exchange = look_exchange(thing);
        [("queue", queue), ("exchange", exchange)]
    };
    let scene = Scene::new(default_config());
    let mut client = scene.client();
    for request in [exchange("there", &[]), declare("there", &[])] {
        client.ask(request);
        client.reply().await.expect("declared");
    }
    for (rights, allowed) in [(["^t", "^$", "^$"], true), (["^$", "^t", "^$"], true), (["^$", "^$", "^t"], true), (["^$"; 3], false)] {
        scene.permit(rights[0], rights[1], rights[2]);
        for (kind, look) in looks("there") {
            client.ask(look);
            let text = format!("configure access to {kind} 'there' in vhost '/' refused for user 'guest'");
            let refused = timeout(Duration::from_millis(50), client.reply()).await;
            assert_eq!(refused == Ok(Err(Refusal::Access(text))), !allowed, "{kind} with {rights:?}: {refused:?}");
        }
        for (kind, look) in looks("elsewhere") {
            client.ask(look);
            let text = format!("configure access to {kind} 'elsewhere' in vhost '/' refused for user 'guest'");
            assert_eq!(client.reply().await, Err(Refusal::Access(text)), "there or not");
        }
    }
    let mut client = scene.client();
    client.ask(look_exchange(""));
    assert_eq!(client.reply().await, Err(Refusal::Access("operation not permitted on the default exchange".into())), "asked first");
}

#[tokio::test]
async fn a_server_named_queue_needs_the_right_to_its_name() {
    let scene = Scene::new(default_config());
    scene.permit("^mine", ".*", ".*");
    let mut client = scene.client();
    client.ask(declare("", &[]));
    let refusal = client.reply().await.expect_err("refused").to_string();
    assert!(refusal.starts_with("configure access to queue 'amq.gen-"), "{refusal}");
    scene.permit("^amq\\.gen-", ".*", ".*");
    client.ask(declare("", &[]));
    client.reply().await.expect("allowed");
}

#[tokio::test]
async fn a_right_that_is_taken_away_is_gone_at_once_on_open_connections() {
    let scene = Scene::new(default_config());
    let mut client = scene.client();
    let unroutable = |client: &mut Client, ticket| {
        client.publish("amq.fanout", "k", ticket);
        client.now()
    };
    let confirmed = |n: u64| [Event::Confirmed { channel: 1, tickets: vec![(n, n)] }];
    assert_eq!(unroutable(&mut client, 1), confirmed(1));
    scene.permit(".*", "^other$", ".*");
    let text = "write access to exchange 'amq.fanout' in vhost '/' refused for user 'guest'";
    assert_eq!(unroutable(&mut client, 2), [Event::ChannelError { channel: 1, refusal: Refusal::Access(text.into()), method: (60, 40) }]);
}

#[tokio::test]
async fn topic_permissions_are_checked_for_each_routing_key() {
    let scene = Scene::new(default_config());
    scene.queue("q", 1);
    let permission = TopicPermission { write: "^{username}\\.".into(), read: "^eu\\.".into() };
    let (user, vhost, exchange) = ("guest".into(), "/".into(), "amq.topic".into());
    scene.admin(AdminCommand::SetTopicPermissions { user, vhost, exchange, permission });
    let mut client = scene.client();
    client.publish("amq.topic", "guest.x", 1);
    assert_eq!(client.now(), [Event::Confirmed { channel: 1, tickets: vec![(1, 1)] }]);
    client.publish("amq.direct", "free", 2);
    assert_eq!(client.now(), [Event::Confirmed { channel: 1, tickets: vec![(2, 2)] }], "not a topic exchange");
    let bind = |key: &str| Request::Bind(BindingSpec { key: key.into(), ..binding("amq.topic", "q") });
    client.ask(bind("eu.#"));
    assert_eq!(client.reply().await, Ok(Reply::Done));
    client.ask(bind("us.#"));
    let text = "read access to topic 'us.#' in exchange topic 'amq.topic' in vhost '/' refused for user 'guest'";
    assert_eq!(client.reply().await, Err(Refusal::Access(text.into())));
    client.publish("amq.topic", "other.x", 3);
    let text = "write access to topic 'other.x' in exchange topic 'amq.topic' in vhost '/' refused for user 'guest'";
    assert_eq!(client.now(), [Event::ChannelError { channel: 1, refusal: Refusal::Access(text.into()), method: (60, 40) }]);
}

/// Each key of a message is one; binding and unbinding ask the same, whatever is bound.
#[tokio::test]
async fn topic_permissions_hold_for_carbon_copies_and_every_way_to_bind() {
    let scene = Scene::new(default_config());
    scene.queue("q", 1);
    let permission = TopicPermission { write: "^eu\\.".into(), read: "^eu\\.".into() };
    let (user, vhost, exchange) = ("guest".into(), "/".into(), "amq.topic".into());
    scene.admin(AdminCommand::SetTopicPermissions { user, vhost, exchange, permission });
    let refused = |right: &str, key: &str| {
        let topic = "topic 'amq.topic' in vhost '/'";
        Refusal::Access(format!("{right} access to topic '{key}' in exchange {topic} refused for user 'guest'"))
    };
    let mut client = scene.client();
    for (destination, target) in [("q", Target::Queue), ("amq.fanout", Target::Exchange)] {
        let bound = |key: &str| BindingSpec { key: key.into(), target, ..binding("amq.topic", destination) };
        for request in [Request::Bind, Request::Unbind] {
            client.ask(request(bound("eu.#")));
            assert_eq!(client.reply().await, Ok(Reply::Done), "{destination}");
            client.ask(request(bound("us.#")));
            assert_eq!(client.reply().await, Err(refused("read", "us.#")), "{destination}");
        }
    }
    let copied = |header: &str, keys: &[&str], ticket| Publish {
        properties: with_lists(&[(header, keys)]),
        ..publish("amq.topic", "eu.x", ticket, b"b")
    };
    client.submit(Step::Publish(copied("CC", &["eu.y", "eu.z"], 1)));
    assert_eq!(client.now(), [Event::Confirmed { channel: 1, tickets: vec![(1, 1)] }]);
    for header in ["CC", "BCC"] {
        let mut client = scene.client();
        client.submit(Step::Publish(copied(header, &["eu.y", "us.z"], 1)));
        assert_eq!(client.now(), [Event::ChannelError { channel: 1, refusal: refused("write", "us.z"), method: (60, 40) }], "{header}");
    }
}

#[tokio::test]
async fn topics_are_restricted_as_soon_as_an_exchange_of_that_name_is_a_topic_exchange() {
    let scene = Scene::new(default_config());
    let (user, vhost, permission) = ("guest".into(), "/".into(), TopicPermission { write: "^a".into(), read: ".*".into() });
    scene.admin(AdminCommand::SetTopicPermissions { user, vhost, exchange: "x".into(), permission });
    let made = |kind| {
        let spec = ExchangeSpec { name: name("x"), kind, durable: true, auto_delete: false, internal: false, arguments: Table::new() };
        scene.world.apply(&CatalogCommand::DeleteExchange { name: name("x"), if_unused: false });
        assert_eq!(scene.world.apply(&CatalogCommand::DeclareExchange(spec)).1, CatalogReply::Done);
    };
    made(ExchangeKind::Direct);
    let mut client = scene.client();
    client.publish("x", "b", 1);
    assert_eq!(client.now(), [Event::Confirmed { channel: 1, tickets: vec![(1, 1)] }]);
    made(ExchangeKind::Topic);
    client.publish("x", "a", 2);
    client.publish("x", "a", 3);
    assert_eq!(client.now(), [Event::Confirmed { channel: 1, tickets: vec![(2, 3)] }]);
    client.publish("x", "b", 4);
    let text = "write access to topic 'b' in exchange topic 'x' in vhost '/' refused for user 'guest'";
    assert_eq!(client.now(), [Event::ChannelError { channel: 1, refusal: Refusal::Access(text.into()), method: (60, 40) }]);
}

#[tokio::test]
async fn connections_of_a_deleted_user_or_vhost_are_closed_and_of_their_successors_stay() {
    let scene = Scene::new(default_config());
    let mut client = scene.client();
    scene.admin(AdminCommand::AddVhost { vhost: "v".into(), facts: Default::default() });
    assert_eq!(client.now(), [], "nothing of it is gone");
    scene.world.apply(&CatalogCommand::Admin(AdminCommand::DeleteUser { user: "guest".into() }));
    let password_hash = hash_password(b"guest", [9; 4]);
    scene.admin(AdminCommand::AddUser { user: "guest".into(), password_hash });
    assert_eq!(client.now(), [Event::Close("user 'guest' is deleted".into())], "another user of the same name");
    scene.permit(".*", ".*", ".*");
    let mut client = scene.client();
    scene.admin(AdminCommand::DeleteVhost { vhost: "/".into() });
    assert_eq!(client.now(), [Event::Close("vhost '/' is deleted".into())]);
}

#[tokio::test]
async fn a_vhost_and_a_user_have_no_more_connections_than_they_may() {
    for (user, text) in [
        (false, "access to vhost '/' refused for user 'guest': connection limit (2) is reached"),
        (true, "connection refused for user 'guest': user connection limit (2) is reached"),
    ] {
        let scene = Scene::new(default_config());
        let (first, _) = scene.login().await;
        scene.limit(user, &[("max-connections", 2)]);
        let (_second, opened) = scene.login().await;
        assert_eq!(opened, Event::Opened);
        let (refused, event) = scene.login().await;
        assert_eq!(event, Event::OpenRefused(Refusal::NotAllowed(text.into())));
        drop(first);
        let (_third, opened) = scene.login().await;
        assert_eq!(opened, Event::Opened, "there is room again, although the refused one has not hung up yet");
        drop(refused);
        scene.limit(user, &[("max-connections", -1)]);
        assert_eq!(scene.login().await.1, Event::Opened, "a negative limit is none");
    }
}

/// So many on the other nodes, and the port for stream clients there; `None`: it does not answer.
struct Others(Mutex<BTreeMap<NodeId, Option<u64>>>);

impl Others {
    /// Nodes 2 and 3 of a scene.
    fn of(scene: &Scene, counts: [Option<u64>; 2]) -> Arc<Others> {
        for node in [2, 3] {
            scene.world.apply(&CatalogCommand::NodeUp { node: NodeId(node), incarnation: Incarnation(1) });
        }
        let others = Arc::new(Others(Mutex::new([NodeId(2), NodeId(3)].into_iter().zip(counts).collect())));
        scene.edge.set_neighbours(others.clone());
        others
    }
}

impl Neighbours for Others {
    fn count(&self, _: Counted, nodes: Vec<NodeId>) -> BoxFuture<'_, Vec<(NodeId, u64)>> {
        let answers = nodes.into_iter().filter_map(|node| Some((node, self.0.lock()[&node]?))).collect();
        Box::pin(std::future::ready(answers))
    }

    fn addresses(&self, nodes: Vec<NodeId>) -> BoxFuture<'_, Vec<(NodeId, Option<Advertised>)>> {
        let port = |node: NodeId| self.0.lock()[&node].map(|port| at(port as u16));
        let answers = nodes.into_iter().map(|node| (node, port(node))).collect();
        Box::pin(std::future::ready(answers))
    }
}

fn at(port: u16) -> Advertised {
    Advertised { host: "n".into(), port, tls_port: 0 }
}

#[tokio::test]
async fn stream_clients_are_not_sent_to_a_node_that_lets_nobody_in_any_more() {
    let scene = Scene::new(default_config());
    let others = Others::of(&scene, [Some(2), Some(3)]);
    scene.edge.set_addresses(Addresses::never_remembered(at(1)));
    let all = [1, 2, 3].map(NodeId).into();
    let expected = |ports: &[u16]| ports.iter().map(|port| (NodeId(*port), at(*port))).collect::<BTreeMap<_, _>>();
    assert_eq!(scene.edge.advertised(&all).await, expected(&[1, 2, 3]));
    others.0.lock().insert(NodeId(2), None);
    assert_eq!(scene.edge.advertised(&all).await, expected(&[1, 3]), "where it was is no place to go");
    others.0.lock().insert(NodeId(2), Some(2));
    assert_eq!(scene.edge.advertised(&all).await, expected(&[1, 2, 3]));
}

/// Leaves out every node so many times.
struct Late(Mutex<usize>);

impl Neighbours for Late {
    fn count(&self, _: Counted, _: Vec<NodeId>) -> BoxFuture<'_, Vec<(NodeId, u64)>> {
        Box::pin(std::future::ready(Vec::new()))
    }

    fn addresses(&self, nodes: Vec<NodeId>) -> BoxFuture<'_, Vec<(NodeId, Option<Advertised>)>> {
        let mut left = self.0.lock();
        let is_late = *left > 0;
        *left = left.saturating_sub(1);
        let answers = nodes.into_iter().filter(|_| !is_late).map(|node| (node, Some(at(node.0)))).collect();
        Box::pin(std::future::ready(answers))
    }
}

#[tokio::test]
async fn stream_clients_hear_of_a_node_whose_first_answer_is_late() {
    let scene = Scene::new(default_config());
    scene.world.apply(&CatalogCommand::NodeUp { node: NodeId(2), incarnation: Incarnation(1) });
    let late = Arc::new(Late(Mutex::new(2)));
    scene.edge.set_neighbours(late.clone());
    scene.edge.set_addresses(Addresses::never_remembered(at(1)));
    let all = [1, 2].map(NodeId).into();
    let expected = BTreeMap::from([(NodeId(1), at(1)), (NodeId(2), at(2))]);
    assert_eq!(scene.edge.advertised(&all).await, expected);
    *late.0.lock() = 1;
    assert_eq!(scene.edge.advertised(&all).await, expected, "what it answered before counts");
    assert_eq!(*late.0.lock(), 0, "and it is not waited for again");
}

impl Client {
    async fn is_silent(&mut self) -> bool {
        timeout(Duration::from_millis(250), self.next()).await.is_err()
    }
}

#[tokio::test]
async fn limits_count_the_other_nodes() {
    let scene = Scene::new(default_config());
    Others::of(&scene, [Some(1), Some(1)]);
    scene.limit(false, &[("max-connections", 3)]);
    let (_client, opened) = scene.login().await;
    assert_eq!(opened, Event::Opened);
    assert!(matches!(scene.login().await.1, Event::OpenRefused(_)));
}

#[tokio::test]
async fn who_comes_while_a_node_is_silent_waits_until_it_answers_or_is_down() {
    for (answer, opened) in [(Some(1), true), (Some(2), false), (None, true)] {
        let scene = Scene::new(default_config());
        let others = Others::of(&scene, [None, Some(1)]);
        scene.limit(false, &[("max-connections", 3)]);
        let mut connection = scene.edge.connect(ConnectionInfo { peer: "127.0.0.1:4000".parse().expect("an address") });
        connection.submit(Step::Authenticate { user: "guest".into(), password: b"guest".to_vec() }).expect("taken");
        connection.submit(Step::Open { vhost: "/".into() }).expect("taken");
        let mut client = Client { connection, events: Vec::new() };
        assert_eq!(client.next().await, Event::Authenticated);
        assert!(client.is_silent().await, "nobody knows how many there are");
        match answer {
            Some(_) => drop(others.0.lock().insert(NodeId(2), answer)),
            None => drop(scene.world.apply(&CatalogCommand::NodeDown { node: NodeId(2), incarnation: Incarnation(1) })),
        }
        assert_eq!(client.next().await == Event::Opened, opened, "{answer:?}");
    }
}

#[tokio::test]
async fn who_comes_while_a_node_is_silent_for_too_long_is_refused() {
    let scene = Scene::new(EdgeConfig { no_quorum_timeout: Duration::from_millis(600), ..default_config() });
    Others::of(&scene, [Some(0), None]);
    scene.limit(true, &[("max-connections", 3)]);
    let text = "limits cannot be checked: node 3 does not answer";
    assert_eq!(scene.login().await.1, Event::OpenRefused(Refusal::NotAllowed(text.into())));
    scene.world.apply(&CatalogCommand::NodeDown { node: NodeId(3), incarnation: Incarnation(1) });
    scene.world.lease.store(false, Ordering::SeqCst);
    let refused = scene.login().await.1;
    assert!(matches!(&refused, Event::OpenRefused(Refusal::NotAllowed(text)) if text.contains("no contact")), "{refused:?}");
    scene.world.lease.store(true, Ordering::SeqCst);
    assert_eq!(scene.login().await.1, Event::Opened);
}

#[tokio::test]
async fn a_user_has_no_more_channels_than_it_may() {
    let scene = Scene::new(default_config());
    let others = Others::of(&scene, [Some(0), Some(0)]);
    let (mut client, _) = scene.login().await;
    let open = |client: &mut Client, channel| client.submit(Step::Request { channel, request: Request::OpenChannel });
    let ok = |channel| Event::Reply { channel, result: Ok(Reply::Done) };
    open(&mut client, 1);
    assert_eq!(client.now(), [ok(1)], "nothing is limited, nobody is asked");
    scene.limit(true, &[("max-channels", 3)]);
    others.0.lock().insert(NodeId(3), Some(1));
    open(&mut client, 2);
    assert_eq!(client.next().await, ok(2));
    client.submit(Step::ChannelClosed { channel: 1, held: vec![] });
    open(&mut client, 3);
    assert_eq!(client.next().await, ok(3));
    open(&mut client, 4);
    let text = "number of channels opened for user 'guest' has reached the maximum allowed user limit of (3)";
    assert_eq!(client.next().await, Event::Reply { channel: 4, result: Err(Refusal::NotAllowed(text.into())) });
}

#[tokio::test]
async fn a_new_secret_is_not_looked_at_but_the_vhost_is() {
    let scene = Scene::new(default_config());
    let mut client = scene.client();
    client.submit(Step::UpdateSecret);
    assert_eq!(client.now(), [Event::SecretUpdated(Ok(()))]);
    scene.admin(AdminCommand::ClearPermissions { user: "guest".into(), vhost: "/".into() });
    client.submit(Step::UpdateSecret);
    let text = "access to vhost '/' refused for user 'guest'";
    assert_eq!(client.now(), [Event::SecretUpdated(Err(Refusal::NotAllowed(text.into())))]);
}

#[tokio::test]
async fn durable_queues_of_a_vhost_get_its_default_type() {
    let scene = Scene::new(default_config());
    let facts = crate::model::admin::VhostFacts { default_queue_type: Some("quorum".into()), ..Default::default() };
    scene.admin(AdminCommand::DeleteVhost { vhost: "/".into() });
    scene.admin(AdminCommand::AddVhost { vhost: "/".into(), facts });
    scene.permit(".*", ".*", ".*");
    let mut client = scene.client();
    client.ask(declare("plain", &[]));
    client.reply().await.expect("declared");
    client.ask(declare("typed", &[("x-queue-type", "classic")]));
    client.reply().await.expect("declared");
    let kind = |queue: &str| scene.world.catalog.read().queue(&name(queue)).expect("there").spec.arguments["x-queue-type"].clone();
    assert_eq!((kind("plain"), kind("typed")), (Value::Text(b"quorum".to_vec()), Value::Text(b"classic".to_vec())));
}

#[tokio::test]
async fn arguments_are_checked_for_the_type_that_the_vhost_gives() {
    let scene = Scene::new(default_config());
    let facts = crate::model::admin::VhostFacts { default_queue_type: Some("stream".into()), ..Default::default() };
    scene.admin(AdminCommand::DeleteVhost { vhost: "/".into() });
    scene.admin(AdminCommand::AddVhost { vhost: "/".into(), facts });
    scene.permit(".*", ".*", ".*");
    let mut client = scene.client();
    client.ask(declare("s", &[("x-overflow", "drop-head")]));
    let text = "invalid arg 'x-overflow' for queue 's' in vhost '/' of queue type rabbit_stream_queue";
    assert_eq!(client.reply().await, Err(Refusal::Precondition(text.into())));
    client.ask(declare("", &[]));
    let text = "Cannot declare a server-named queue for type rabbit_stream_queue";
    assert_eq!(client.reply().await, Err(Refusal::Precondition(text.into())));
    client.ask(declare("s", &[("x-max-age", "1h")]));
    client.reply().await.expect("declared");
    client.ask(declare("q", &[("x-queue-type", "classic"), ("x-overflow", "drop-head")]));
    client.reply().await.expect("declared");
}

#[tokio::test]
async fn reports_are_asked_of_every_session_and_those_that_are_silent_are_listed_too() {
    let scene = Scene::new(default_config());
    let (mut told, silent) = (scene.client(), scene.client());
    let edge = scene.edge.clone();
    let listed = tokio::spawn(async move { edge.reports().await });
    assert_eq!(told.next().await, Event::Report);
    let report = Report { state: "running", channel_max: 9, ..Report::default() };
    told.submit(Step::Report(Box::new(report.clone())));
    let listed = listed.await.expect("no panic");
    assert_eq!(listed.iter().map(|(_, report)| report.clone()).collect::<Vec<_>>(), [Some(report), None]);
    drop(silent);
}
