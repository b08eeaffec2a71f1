use super::*;
use crate::model::admin::AdminCommand;
use crate::model::catalog::{CatalogCommand, CatalogReply, ExchangeKind, QueueSpec, Refusal, Renaming, Table, Value};
use crate::model::{ConnectionId, LeaderId};
use proptest::prelude::*;

const PROCESS: Incarnation = Incarnation(11);
const NODE: NodeId = NodeId(1);

pub(super) fn name(name: &str) -> Name {
    Name { vhost: "/".into(), name: name.into() }
}

pub(super) fn queue_spec(queue: &str) -> QueueSpec {
    QueueSpec { name: name(queue), durable: true, auto_delete: false, exclusive_owner: None, arguments: Table::new() }
}

pub(super) fn exchange_spec(exchange: &str, kind: ExchangeKind) -> ExchangeSpec {
    ExchangeSpec { name: name(exchange), kind, durable: true, auto_delete: false, internal: false, arguments: Table::new() }
}

pub(super) fn binding(source: &str, target: Target, destination: &str, key: &str) -> BindingSpec {
    let vhost: Arc<str> = "/".into();
    BindingSpec { vhost, source: source.into(), target, destination: destination.into(), key: key.into(), arguments: Table::new() }
}

pub(super) fn declare(spec: QueueSpec, shard: u16) -> CatalogCommand {
    CatalogCommand::DeclareQueue { spec, node: NODE, incarnation: PROCESS, shard: ShardId(shard) }
}

fn owner(connection: u64) -> Owner {
    Owner { node: NODE, incarnation: PROCESS, connection: ConnectionId(connection) }
}

pub(super) struct Fixture(pub(super) Catalog);

impl Fixture {
    pub(super) fn new() -> Fixture {
        let mut fixture = Fixture(Catalog::new());
        let password_hash = hash_password(b"guest", [1, 2, 3, 4]);
        fixture.done(CatalogCommand::Bootstrap { vhost: "/".into(), user: "guest".into(), password_hash, shards: 3 });
        fixture.done(CatalogCommand::NodeUp { node: NODE, incarnation: PROCESS });
        fixture
    }

    fn apply(&mut self, command: CatalogCommand) -> CatalogReply {
        let index = self.0.index() + 1;
        let command = decode_command(&encode_command(&command)).unwrap();
        self.0.apply(LogId { leader: LeaderId { term: 1, voter: 1 }, index }, &command)
    }

    pub(super) fn done(&mut self, command: CatalogCommand) {
        let reply = self.apply(command);
        assert!(!matches!(reply, CatalogReply::Refused(_)), "{reply:?}");
    }

    pub(super) fn queue(&mut self, queue: &str) -> QueueId {
        self.record(declare(queue_spec(queue), 1)).id
    }

    pub(super) fn record(&mut self, command: CatalogCommand) -> QueueRecord {
        match self.apply(command) {
            CatalogReply::Queue { record, .. } => record,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn refusal(&mut self, command: CatalogCommand) -> Refusal {
        let before = self.0.snapshot().len();
        match self.apply(command) {
            CatalogReply::Refused(refusal) => {
                assert_eq!(self.0.snapshot().len(), before, "a refusal changes nothing");
                refusal
            }
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn route(&self, exchange: &str, key: &str) -> Vec<u64> {
        let mut out = Vec::new();
        let headers = || Table::from([("k".into(), Value::Text(key.into()))]);
        assert_eq!(self.0.route_one("/", exchange, key.as_bytes(), &headers, &mut out), RouteResult::Routed);
        out.iter().map(|(id, _)| id.0).collect()
    }
}

#[test]
fn a_new_cluster_has_what_rabbitmq_has() {
    let catalog = Fixture::new().0;
    let names: Vec<_> = catalog.exchanges("/").iter().map(|x| x.name.name.to_string()).collect();
    assert_eq!(names, ["", "amq.direct", "amq.fanout", "amq.headers", "amq.match", "amq.rabbitmq.trace", "amq.topic"]);
    assert!(catalog.authenticate("guest", b"guest"));
    assert!(!catalog.authenticate("guest", b"Guest"));
    assert!(!catalog.authenticate("nobody", b"guest"));
    assert_eq!(catalog.permission("guest", "/").unwrap().write, ".*");
    assert!(catalog.permission("guest", "other").is_none());
    assert_eq!(catalog.shards().map(|s| s.0).collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn bootstrap_runs_once() {
    let mut f = Fixture::new();
    f.done(CatalogCommand::Bootstrap { vhost: "other".into(), user: "eve".into(), password_hash: String::new(), shards: 9 });
    assert_eq!(f.0.shards().count(), 3);
    assert!(f.0.user("eve").is_none() && !f.0.has_vhost("other"));
}

#[test]
fn an_equal_declare_answers_the_record() {
    let mut f = Fixture::new();
    let first = f.record(declare(queue_spec("q"), 2));
    assert_eq!((first.id, first.shard), (QueueId(3), ShardId(2)));
    assert_eq!(f.apply(declare(queue_spec("q"), 1)), CatalogReply::Queue { record: first, created: false });
    assert_eq!(f.0.queue(&name("q")).unwrap().id, QueueId(3));
    assert_eq!(f.0.least_loaded_shard(), Some(ShardId(1)));
}

#[test]
fn an_unequal_declare_is_refused_in_rabbitmqs_words() {
    let mut f = Fixture::new();
    let with = |key: &str, value: Value| {
        let mut spec = queue_spec("q");
        spec.arguments.insert(key.into(), value);
        spec
    };
    f.done(declare(with("x-max-length", Value::Int(10)), 1));
    let mut texts = Vec::new();
    let transient = QueueSpec { durable: false, ..with("x-max-length", Value::Int(10)) };
    for spec in [transient, queue_spec("q"), with("x-max-length", Value::Int(20)), with("x-max-length", Value::Text(b"10".to_vec()))] {
        texts.push(f.refusal(declare(spec, 1)).to_string());
    }
    let head = |key: &str| format!("inequivalent arg '{key}' for queue 'q' in vhost '/': received");
    assert_eq!(texts[0], head("durable") + " 'false' but current is 'true'");
    assert_eq!(texts[1], head("x-max-length") + " none but current is the value '10' of type 'signedint'");
    assert_eq!(texts[2], head("x-max-length") + " '20' but current is '10'");
    assert_eq!(texts[3], head("x-max-length") + " '10' but current is '10'");
    let mut classic = with("x-max-length", Value::Int(10));
    classic.arguments.insert("x-queue-type".into(), Value::Text(b"classic".to_vec()));
    classic.arguments.insert("unknown".into(), Value::Bool(true));
    f.done(declare(classic, 1));
}

#[test]
fn an_argument_that_has_an_effect_cannot_be_changed_by_a_redeclare() {
    let text = |text: &str| Value::Text(text.into());
    for (key, first, other) in [
        ("x-consumer-timeout", Value::Int(60_000), Value::Int(90_000)),
        ("x-queue-master-locator", text("client-local"), text("min-masters")),
        ("x-queue-leader-locator", text("client-local"), text("balanced")),
    ] {
        let mut f = Fixture::new();
        let with = |value: &Value| QueueSpec { arguments: Table::from([(key.to_owned(), value.clone())]), ..queue_spec("q") };
        f.done(declare(with(&first), 1));
        f.done(declare(with(&first), 1));
        for asked in [with(&other), queue_spec("q")] {
            let refusal = f.refusal(declare(asked, 1)).to_string();
            assert!(refusal.starts_with(&format!("inequivalent arg '{key}' for queue 'q' in vhost '/': received")), "{refusal}");
        }
    }
}

#[test]
fn exchange_declares_are_checked() {
    let mut f = Fixture::new();
    let declare = CatalogCommand::DeclareExchange;
    f.done(declare(exchange_spec("x", ExchangeKind::Topic)));
    f.done(declare(exchange_spec("x", ExchangeKind::Topic)));
    f.done(declare(exchange_spec("amq.topic", ExchangeKind::Topic)));
    let text = f.refusal(declare(exchange_spec("x", ExchangeKind::Direct))).to_string();
    assert_eq!(text, "inequivalent arg 'type' for exchange 'x' in vhost '/': received 'direct' but current is 'topic'");
    let text = f.refusal(declare(exchange_spec("amq.x", ExchangeKind::Direct)));
    assert_eq!(text, Refusal::Access("exchange name 'amq.x' contains reserved prefix 'amq.*'".into()));
    assert!(matches!(f.refusal(declare(exchange_spec("", ExchangeKind::Direct))), Refusal::Access(_)));
    let delete = |x: &str, if_unused| CatalogCommand::DeleteExchange { name: name(x), if_unused };
    let text = f.refusal(delete("amq.direct", false));
    assert_eq!(text, Refusal::Access("deletion of system exchange 'amq.direct' in vhost '/' not allowed".into()));
    f.queue("q");
    f.done(CatalogCommand::Bind(binding("x", Target::Queue, "q", "k")));
    assert_eq!(f.refusal(delete("x", true)), Refusal::Precondition("exchange 'x' in vhost '/' in use".into()));
    f.done(delete("x", false));
    f.done(delete("x", true));
    assert_eq!(f.0.bindings().count(), 0);
}

#[test]
fn an_exclusive_queue_lives_in_memory_and_goes_with_its_connection() {
    let mut f = Fixture::new();
    let mine = QueueSpec { exclusive_owner: Some(owner(1)), ..queue_spec("mine") };
    let record = f.record(declare(mine.clone(), 1));
    assert_eq!((record.shard, record.incarnation), (ShardId::local(NODE), PROCESS));
    let other = QueueSpec { exclusive_owner: Some(owner(2)), ..queue_spec("mine") };
    let text = "cannot obtain exclusive access to locked queue 'mine' in vhost '/'. It could be originally declared on another \
                connection or the exclusive property value does not match that of the original declaration.";
    for spec in [other, queue_spec("mine")] {
        assert_eq!(f.refusal(declare(spec, 1)), Refusal::Locked(text.into()));
    }
    assert_eq!(check_owner(&mine, Some(owner(1))), Ok(()));
    assert!(check_owner(&mine, None).is_err());
    f.done(CatalogCommand::ConnectionGone(owner(2)));
    assert!(f.0.queue(&name("mine")).is_some());
    f.done(CatalogCommand::ConnectionGone(owner(1)));
    assert!(f.0.queue(&name("mine")).is_none());
}

#[test]
fn a_restarted_node_loses_its_memory_and_late_declares_of_the_old_process_are_refused() {
    let mut f = Fixture::new();
    let transient = QueueSpec { durable: false, ..queue_spec("t") };
    f.done(declare(transient.clone(), 1));
    f.queue("durable");
    f.done(CatalogCommand::NodeUp { node: NODE, incarnation: PROCESS });
    assert!(f.0.queue(&name("t")).is_some(), "the same process again");
    f.done(CatalogCommand::NodeUp { node: NODE, incarnation: Incarnation(12) });
    assert!(f.0.queue(&name("t")).is_none());
    assert!(f.0.queue(&name("durable")).is_some());
    let restarted = f.refusal(declare(transient.clone(), 1));
    assert_eq!(restarted, Refusal::Unavailable("node 1 was restarted; declare the queue again".into()));
    f.done(CatalogCommand::NodeDown { node: NODE, incarnation: Incarnation(12) });
    let gone = f.refusal(declare(transient, 1));
    assert_eq!(gone, Refusal::Unavailable("node 1 was cut off and counts as down; declare the queue again".into()));
    assert_eq!(f.refusal(declare(queue_spec("far"), 99)), Refusal::Unavailable("there is no data shard 99".into()));
}

#[test]
fn a_late_word_of_the_process_before_takes_nothing_from_the_one_that_is_up() {
    let mut f = Fixture::new();
    let next = Incarnation(12);
    f.done(CatalogCommand::NodeUp { node: NODE, incarnation: next });
    let spec = QueueSpec { durable: false, ..queue_spec("t") };
    f.done(CatalogCommand::DeclareQueue { spec, node: NODE, incarnation: next, shard: ShardId(1) });
    f.done(CatalogCommand::NodeUp { node: NODE, incarnation: PROCESS });
    assert_eq!(f.0.incarnation(NODE), Some(next));
    assert!(f.0.queue(&name("t")).is_some());
}

#[test]
fn a_node_that_is_down_loses_its_memory_and_its_process_may_be_up_again() {
    let mut f = Fixture::new();
    let (up, down) = (
        |node, incarnation| CatalogCommand::NodeUp { node, incarnation },
        |node, incarnation| CatalogCommand::NodeDown { node, incarnation },
    );
    let mine = QueueSpec { exclusive_owner: Some(owner(1)), ..queue_spec("mine") };
    f.done(up(NodeId(2), Incarnation(21)));
    f.done(declare(mine.clone(), 1));
    f.queue("durable");
    f.done(CatalogCommand::Bind(binding("amq.fanout", Target::Queue, "mine", "")));
    f.done(down(NODE, Incarnation(10)));
    f.done(down(NodeId(2), PROCESS));
    assert!(f.0.queue(&name("mine")).is_some(), "another process, another node");
    f.done(down(NODE, PROCESS));
    assert!(f.0.queue(&name("mine")).is_none() && f.0.queue(&name("durable")).is_some());
    assert_eq!((f.0.bindings().count(), f.0.incarnation(NODE)), (0, None));
    let refused = f.refusal(declare(mine.clone(), 1)).to_string();
    assert_eq!(refused, "node 1 was cut off and counts as down; declare the queue again");
    let elsewhere = |connection| Owner { node: NodeId(2), incarnation: Incarnation(21), connection: ConnectionId(connection) };
    let moved = QueueSpec { exclusive_owner: Some(elsewhere(7)), ..queue_spec("mine") };
    let process = CatalogCommand::DeclareQueue { spec: moved, node: NodeId(2), incarnation: Incarnation(21), shard: ShardId(1) };
    assert_eq!(f.record(process).shard, ShardId::local(NodeId(2)), "the name is free");
    f.done(up(NODE, PROCESS));
    f.done(declare(QueueSpec { exclusive_owner: Some(owner(1)), ..queue_spec("again") }, 1));
    assert!(f.0.queue(&name("again")).is_some());
}

#[test]
fn what_is_not_durable_goes_with_the_last_process_that_was_up() {
    let mut f = Fixture::new();
    let (two, next) = ((NodeId(2), Incarnation(21)), Incarnation(12));
    f.done(CatalogCommand::NodeUp { node: two.0, incarnation: two.1 });
    f.queue("q");
    for durable in [true, false] {
        let exchange = if durable { "kept" } else { "passing" };
        f.done(CatalogCommand::DeclareExchange(ExchangeSpec { durable, ..exchange_spec(exchange, ExchangeKind::Fanout) }));
        f.done(CatalogCommand::Bind(binding(exchange, Target::Queue, "q", "")));
    }
    f.done(CatalogCommand::Bind(binding("kept", Target::Exchange, "passing", "")));
    assert_eq!(f.0.transient_exchanges(), [name("passing")]);
    // One after the other is started again.
    f.done(CatalogCommand::NodeUp { node: NODE, incarnation: next });
    f.done(CatalogCommand::NodeDown { node: two.0, incarnation: two.1 });
    f.done(CatalogCommand::NodeUp { node: two.0, incarnation: Incarnation(22) });
    assert_eq!(f.0.bindings().count(), 3);
    f.done(CatalogCommand::NodeDown { node: two.0, incarnation: Incarnation(22) });
    f.done(CatalogCommand::NodeDown { node: NODE, incarnation: PROCESS });
    assert!(f.0.exchange(&name("passing")).is_some(), "the present process is up");
    f.done(CatalogCommand::NodeDown { node: NODE, incarnation: next });
    assert!(f.0.exchange(&name("passing")).is_none() && f.0.exchange(&name("kept")).is_some());
    assert_eq!(f.0.exchanges("/").len(), 8, "those that every vhost has stay");
    assert_eq!(f.0.bindings().map(|b| &*b.source).collect::<Vec<_>>(), ["kept"]);
    assert!(f.0.queue(&name("q")).is_some());
}

#[test]
fn bindings_need_both_ends_and_are_idempotent() {
    let mut f = Fixture::new();
    let q = f.queue("q").0;
    let bind = |b: &BindingSpec| CatalogCommand::Bind(b.clone());
    let one = binding("amq.direct", Target::Queue, "q", "k");
    f.done(bind(&one));
    f.done(bind(&one));
    assert_eq!(f.route("amq.direct", "k"), [q]);
    assert_eq!(f.0.bindings().count(), 1);
    f.done(CatalogCommand::Unbind(one.clone()));
    f.done(CatalogCommand::Unbind(one));
    assert_eq!(f.route("amq.direct", "k"), [0; 0]);
    let text = f.refusal(bind(&binding("amq.direct", Target::Queue, "none", ""))).to_string();
    assert_eq!(text, "no queue 'none' in vhost '/'");
    let text = f.refusal(bind(&binding("none", Target::Queue, "none", ""))).to_string();
    assert_eq!(text, "no exchange 'none' in vhost '/'");
    assert!(matches!(f.refusal(bind(&binding("", Target::Queue, "q", "q"))), Refusal::Access(_)));
    let mut bad = binding("amq.match", Target::Queue, "q", "");
    bad.arguments.insert("x-match".into(), Value::Text(b"most".to_vec()));
    let text = "Invalid x-match field value <<\"most\">>; expected all, any, all-with-x, or any-with-x";
    assert_eq!(f.refusal(bind(&bad)), Refusal::Precondition(text.to_owned()));
}

#[test]
fn routing_finds_each_queue_once_through_cycles_of_exchanges() {
    let mut f = Fixture::new();
    let (a, b) = (f.queue("a").0, f.queue("b").0);
    for x in ["x", "y", "z"] {
        f.done(CatalogCommand::DeclareExchange(exchange_spec(x, ExchangeKind::Fanout)));
    }
    for (from, target, to) in [
        ("x", Target::Exchange, "y"),
        ("y", Target::Exchange, "z"),
        ("z", Target::Exchange, "x"),
        ("x", Target::Queue, "b"),
        ("y", Target::Queue, "a"),
        ("z", Target::Queue, "b"),
    ] {
        f.done(CatalogCommand::Bind(binding(from, target, to, "")));
    }
    assert_eq!(f.route("x", "any"), [a, b]);
    assert_eq!(f.route("", "a"), [a]);
    assert_eq!(f.route("", "none"), [0; 0]);
    let mut out = Vec::new();
    assert_eq!(f.0.route_one("/", "none", b"", &Table::new, &mut out), RouteResult::NoExchange);
    assert_eq!(f.0.route_one("none", "", b"", &Table::new, &mut out), RouteResult::NoExchange);
    assert_eq!(f.0.route_one("/", "amq.rabbitmq.trace", b"", &Table::new, &mut out), RouteResult::Internal);
}

#[test]
fn the_alternate_exchange_takes_what_finds_no_queue() {
    let mut f = Fixture::new();
    let (a, b) = (f.queue("a").0, f.queue("b").0);
    let mut spec = exchange_spec("x", ExchangeKind::Direct);
    spec.arguments.insert("alternate-exchange".into(), Value::Text(b"amq.fanout".to_vec()));
    f.done(CatalogCommand::DeclareExchange(spec));
    f.done(CatalogCommand::Bind(binding("x", Target::Queue, "a", "k")));
    f.done(CatalogCommand::Bind(binding("amq.fanout", Target::Queue, "b", "")));
    assert_eq!(f.route("x", "k"), [a]);
    assert_eq!(f.route("x", "other"), [b]);
}

#[test]
fn an_auto_delete_exchange_goes_with_its_last_binding_and_takes_others_along() {
    let mut f = Fixture::new();
    let q = f.queue("q");
    for x in ["x", "y", "z"] {
        let spec = ExchangeSpec { auto_delete: true, ..exchange_spec(x, ExchangeKind::Topic) };
        f.done(CatalogCommand::DeclareExchange(spec));
    }
    f.done(CatalogCommand::Bind(binding("x", Target::Exchange, "y", "#")));
    f.done(CatalogCommand::Bind(binding("y", Target::Exchange, "x", "#")));
    f.done(CatalogCommand::Bind(binding("y", Target::Queue, "q", "k")));
    f.done(CatalogCommand::Bind(binding("y", Target::Queue, "q", "#")));
    assert_eq!(f.route("x", "k"), [q.0]);
    f.done(CatalogCommand::Unbind(binding("y", Target::Exchange, "x", "#")));
    assert!(f.0.exchange(&name("y")).is_some());
    f.done(CatalogCommand::DeleteQueue { id: q });
    assert!(f.0.exchange(&name("y")).is_none() && f.0.exchange(&name("x")).is_none());
    assert!(f.0.exchange(&name("z")).is_some(), "never had a binding");
    assert_eq!(f.0.bindings().count(), 0);
}

#[test]
fn a_long_chain_of_auto_delete_exchanges_goes_without_a_deep_stack() {
    let mut f = Fixture::new();
    let q = f.queue("q");
    let chain = 20_000;
    for n in 0..chain {
        let spec = ExchangeSpec { auto_delete: true, ..exchange_spec(&format!("x{n}"), ExchangeKind::Fanout) };
        f.done(CatalogCommand::DeclareExchange(spec));
        let to = binding(&format!("x{n}"), Target::Exchange, &format!("x{}", n - 1), "");
        f.done(CatalogCommand::Bind(if n == 0 { binding("x0", Target::Queue, "q", "") } else { to }));
    }
    assert_eq!(f.route(&format!("x{}", 500), ""), [q.0]);
    f.done(CatalogCommand::DeleteQueue { id: q });
    assert_eq!(f.0.exchanges("/").len(), 7);
}

#[test]
fn a_deleted_vhost_takes_everything_along() {
    let mut f = Fixture::new();
    f.done(CatalogCommand::Admin(AdminCommand::AddVhost { vhost: "v".into(), facts: Default::default() }));
    let permission = f.0.permission("guest", "/").unwrap().clone();
    f.done(CatalogCommand::Admin(AdminCommand::SetPermissions { user: "guest".into(), vhost: "v".into(), permission }));
    let mut spec = queue_spec("q");
    spec.name.vhost = "v".into();
    let id = f.record(declare(spec, 1)).id;
    f.done(CatalogCommand::Bind(BindingSpec { vhost: "v".into(), ..binding("amq.topic", Target::Queue, "q", "#") }));
    let before = f.0.index();
    f.done(CatalogCommand::Admin(AdminCommand::DeleteVhost { vhost: "v".into() }));
    assert!(!f.0.has_vhost("v") && f.0.queue_by_id(id).is_none() && f.0.permission("guest", "v").is_none());
    assert_eq!(f.0.bindings().count(), 0);
    assert_eq!(f.0.changes_since(before, ShardId(1)), Some((vec![], vec![id])));
    let mut gone = queue_spec("q");
    gone.name.vhost = "v".into();
    assert!(matches!(f.refusal(declare(gone, 1)), Refusal::NotFound { .. }));
}

#[test]
fn changes_of_a_shard_are_told_since_an_index() {
    let mut f = Fixture::new();
    let a = f.queue("a");
    let after_a = f.0.index();
    let b = f.queue("b");
    f.done(CatalogCommand::DeleteQueue { id: a });
    let c = f.queue("c");
    f.done(CatalogCommand::DeleteQueue { id: c });
    f.done(declare(queue_spec("elsewhere"), 2));
    assert_eq!(f.0.changes_since(0, ShardId(1)), Some((vec![b], vec![])));
    assert_eq!(f.0.changes_since(after_a, ShardId(1)), Some((vec![b], vec![a])));
    assert_eq!(f.0.changes_since(f.0.index(), ShardId(1)), Some((vec![], vec![])));
    assert_eq!(f.0.changes_since(0, ShardId(3)), Some((vec![], vec![])));
    for _ in 0..4200 {
        let id = f.queue("often");
        f.done(CatalogCommand::DeleteQueue { id });
    }
    assert_eq!(f.0.changes_since(after_a, ShardId(1)), None);
    assert_eq!(f.0.difference(ShardId(1), [a]), (vec![b], vec![a]));
    let recent = f.0.index() - 100;
    assert_eq!(f.0.changes_since(recent, ShardId(1)), Some((vec![], vec![])));
}

#[test]
fn queues_are_renamed_together_or_not_at_all_and_keep_what_leads_to_them() {
    let mut f = Fixture::new();
    let (a, b) = (f.queue("a"), f.queue("b"));
    f.done(CatalogCommand::Bind(binding("amq.topic", Target::Queue, "a", "k.*")));
    f.done(CatalogCommand::Bind(binding("amq.direct", Target::Queue, "a", "k")));
    let before = f.0.index();
    let limited = || Table::from([("x-delivery-limit".to_owned(), Value::Int(7))]);
    let renaming = |id, name: &str| Renaming { id, name: name.into(), arguments: limited() };
    for wrong in [vec![renaming(a, "c"), renaming(b, "b")], vec![renaming(a, "c"), renaming(QueueId(999), "d")]] {
        assert!(matches!(f.apply(CatalogCommand::RenameQueues(wrong)), CatalogReply::Refused(Refusal::Precondition(_))));
        assert!(f.0.queue(&name("a")).is_some() && f.0.queue(&name("c")).is_none(), "nothing happened");
    }
    f.done(CatalogCommand::RenameQueues(vec![renaming(a, "c"), renaming(b, "d")]));
    assert_eq!([f.0.queue(&name("a")), f.0.queue(&name("b"))], [None, None]);
    assert_eq!([f.0.queue(&name("c")).unwrap().id, f.0.queue(&name("d")).unwrap().id], [a, b]);
    for (exchange, key) in [("amq.topic", "k.x"), ("amq.direct", "k"), ("", "c")] {
        let mut out = Vec::new();
        f.0.route_one("/", exchange, key.as_bytes(), &Table::new, &mut out);
        assert_eq!(out, [(a, ShardId(1))], "{exchange}");
    }
    assert_eq!(f.0.bindings_to(Target::Queue, &name("c")).count(), 2);
    let told = f.0.settings_since(before, ShardId(1), &[]);
    let limits: Vec<_> = told.iter().map(|(id, settings)| (*id, settings.delivery_limit)).collect();
    assert_eq!(limits, [(a, Some(7)), (b, Some(7))], "their shard hears of it");
    assert_eq!(Catalog::from_snapshot(&f.0.snapshot()).unwrap().state_hash(), f.0.state_hash());
}

fn command() -> impl Strategy<Value = CatalogCommand> {
    let queue = || prop::sample::select(vec!["a", "b", "c", "d"]);
    let exchange = || prop::sample::select(vec!["x", "y", "amq.topic", "amq.match", "amq.direct"]);
    let kind = || prop::sample::select(vec![ExchangeKind::Direct, ExchangeKind::Fanout, ExchangeKind::Topic, ExchangeKind::Headers]);
    let bind = move || {
        (exchange(), any::<bool>(), queue(), exchange(), prop::sample::select(vec!["k", "#", "k.*"]), any::<bool>()).prop_map(
            |(source, to_queue, q, x, key, arguments)| {
                let mut spec = if to_queue { binding(source, Target::Queue, q, key) } else { binding(source, Target::Exchange, x, key) };
                if arguments {
                    spec.arguments.insert("k".into(), Value::Text(key.into()));
                }
                spec
            },
        )
    };
    prop_oneof![
        4 => (queue(), any::<bool>(), prop::option::of(0u64..2), 0u16..4).prop_map(|(q, durable, connection, shard)| {
            declare(QueueSpec { durable, exclusive_owner: connection.map(owner), ..queue_spec(q) }, shard)
        }),
        3 => (exchange(), kind(), any::<bool>(), any::<bool>()).prop_map(|(x, kind, auto_delete, durable)| {
            CatalogCommand::DeclareExchange(ExchangeSpec { auto_delete, durable, ..exchange_spec(x, kind) })
        }),
        8 => bind().prop_map(CatalogCommand::Bind),
        3 => bind().prop_map(CatalogCommand::Unbind),
        2 => (0u64..40).prop_map(|id| CatalogCommand::DeleteQueue { id: QueueId(id) }),
        2 => prop::collection::vec((3u64..20, queue()), 1..3).prop_map(|all| {
            let renamed = |(id, name): (u64, &str)| Renaming { id: QueueId(id), name: name.into(), arguments: Table::new() };
            CatalogCommand::RenameQueues(all.into_iter().map(renamed).collect())
        }),
        1 => (exchange(), any::<bool>()).prop_map(|(x, if_unused)| CatalogCommand::DeleteExchange { name: name(x), if_unused }),
        1 => (0u64..2).prop_map(|c| CatalogCommand::ConnectionGone(owner(c))),
        2 => (11u64..13).prop_map(|i| CatalogCommand::NodeUp { node: NODE, incarnation: Incarnation(i) }),
        1 => (11u64..13).prop_map(|i| CatalogCommand::NodeDown { node: NODE, incarnation: Incarnation(i) }),
    ]
}

/// Routing by going through the list of bindings.
fn naive_route(catalog: &Catalog, exchange: &str, key: &str, seen: &mut BTreeSet<String>, out: &mut BTreeSet<u64>) {
    if !seen.insert(exchange.to_owned()) {
        return;
    }
    let Some(spec) = catalog.exchange(&name(exchange)) else { return };
    for b in catalog.bindings().filter(|b| &*b.source == exchange) {
        let matches = match spec.kind {
            ExchangeKind::Direct => &*b.key == key,
            ExchangeKind::Fanout => true,
            ExchangeKind::Topic => match &*b.key {
                "#" => true,
                "k.*" => key.strip_prefix("k.").is_some_and(|rest| !rest.contains('.')),
                other => other == key,
            },
            ExchangeKind::ConsistentHash | ExchangeKind::ModulusHash | ExchangeKind::Random | ExchangeKind::LocalRandom => {
                unreachable!("these pick one target")
            }
            ExchangeKind::Delayed | ExchangeKind::RecentHistory | ExchangeKind::Deduplication | ExchangeKind::RocketTopic => {
                unreachable!("these have tests of their own")
            }
            ExchangeKind::Headers => b.arguments.get("k").is_none_or(|v| *v == Value::Text(key.into())),
        };
        match b.target {
            _ if !matches => {}
            Target::Queue => {
                out.insert(catalog.queue(&name(&b.destination)).expect("a binding has its ends").id.0);
            }
            Target::Exchange => naive_route(catalog, &b.destination, key, seen, out),
        }
    }
}

proptest! {
    #[test]
    fn any_commands_keep_indexes_routing_and_snapshots_true(commands in prop::collection::vec(command(), 1..60)) {
        let mut f = Fixture::new();
        let mut shard_view: BTreeMap<ShardId, (u64, BTreeSet<QueueId>)> = BTreeMap::new();
        for (n, command) in commands.into_iter().enumerate() {
            f.apply(command);
            for exchange in ["x", "y", "amq.topic", "amq.match", "amq.direct"] {
                for key in ["k", "k.a", "#"] {
                    let mut wanted = BTreeSet::new();
                    naive_route(&f.0, exchange, key, &mut BTreeSet::new(), &mut wanted);
                    let mut out = Vec::new();
                    let headers = || Table::from([("k".into(), Value::Text(key.into()))]);
                    f.0.route_one("/", exchange, key.as_bytes(), &headers, &mut out);
                    prop_assert_eq!(out.len(), wanted.len(), "each once");
                    prop_assert_eq!(out.iter().map(|(id, _)| id.0).collect::<BTreeSet<_>>(), wanted);
                }
            }
            for shard in [ShardId(1), ShardId(2), ShardId::local(NODE)] {
                let (index, known) = shard_view.entry(shard).or_default();
                let wanted: BTreeSet<_> = f.0.queues().iter().filter(|r| r.shard == shard).map(|r| r.id).collect();
                prop_assert_eq!(f.0.queues_of(shard).collect::<BTreeSet<_>>(), wanted.clone());
                if n % 3 == 0 {
                    let (creates, drops) = f.0.changes_since(*index, shard).unwrap();
                    known.extend(creates);
                    prop_assert!(drops.iter().all(|d| known.remove(d)));
                    *index = f.0.index();
                    prop_assert_eq!(&*known, &wanted);
                }
            }
            let hash = f.0.state_hash();
            if n % 4 == 0 {
                let delta = f.0.capture().unwrap().into_delta();
                f.0.captured(delta.applied);
                prop_assert!(f.0.capture().is_none());
                f.0 = Catalog::restore(delta.puts).unwrap();
            } else if n % 4 == 2 {
                f.0 = Catalog::from_snapshot(&f.0.snapshot()).unwrap();
            }
            prop_assert_eq!(f.0.state_hash(), hash);
        }
    }
}

#[test]
fn a_damaged_snapshot_is_refused() {
    let f = Fixture::new();
    let mut bytes = f.0.snapshot();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    assert_eq!(Catalog::from_snapshot(&bytes).err(), Some(crate::machine::RestoreError::Checksum));
    assert!(Catalog::from_snapshot(&bytes[..3]).is_err());
    assert!(Catalog::restore(Vec::<(Vec<u8>, Vec<u8>)>::new()).is_ok_and(|c| c.index() == 0));
}

/// cargo test -p warren-node --lib -- --ignored --nocapture declares_and_routing_are_fast
#[test]
#[ignore = "a measurement"]
fn declares_and_routing_are_fast() {
    let mut f = Fixture::new();
    f.done(CatalogCommand::DeclareExchange(exchange_spec("x", ExchangeKind::Direct)));
    for round in 0..4 {
        let start = std::time::Instant::now();
        for n in 0..10_000 {
            let queue = format!("q{}", round * 10_000 + n);
            f.queue(&queue);
            f.done(CatalogCommand::Bind(binding("x", Target::Queue, &queue, &queue)));
        }
        println!("round {round}: {} ns per declare + bind", start.elapsed().as_nanos() / 10_000);
    }
    let mut out = Vec::with_capacity(4);
    for exchange in ["", "x"] {
        let start = std::time::Instant::now();
        for _ in 0..1_000_000 {
            out.clear();
            f.0.route_one("/", exchange, b"q12345", &Table::new, &mut out);
        }
        println!("route through '{exchange}': {} ns", start.elapsed().as_nanos() / 1_000_000);
    }
    let start = std::time::Instant::now();
    let bytes = f.0.snapshot().len();
    println!("snapshot of 40,000 queues and bindings: {bytes} bytes, {} ms", start.elapsed().as_millis());
}

#[test]
fn the_version_only_rises_and_is_written_only_once_it_has() {
    let mut f = Fixture::new();
    let has_version = |f: &Fixture| f.0.snapshot().windows(8).any(|bytes| bytes == b"\xa7version");
    assert_eq!((f.0.version(), has_version(&f)), (1, false), "what older programs read");
    for (raise, version) in [(2, 2), (1, 2), (4, 4), (3, 4)] {
        f.done(CatalogCommand::Raise { version: raise });
        assert_eq!(f.0.version(), version);
        assert_eq!(Catalog::from_snapshot(&f.0.snapshot()).unwrap().version(), version);
    }
    assert!(has_version(&f));
}
