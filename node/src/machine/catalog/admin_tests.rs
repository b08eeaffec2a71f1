//! Users, vhosts, permissions, limits and policies in the catalog.

use super::*;
use crate::model::QueueId;
use crate::model::admin::{AdminCommand, ApplyTo, VhostPatch};
use crate::model::catalog::{CatalogCommand, CatalogReply, QueueSpec, Refusal, Table};
use crate::model::{LeaderId, LogId};

const PROCESS: Incarnation = Incarnation(11);
const NODE: NodeId = NodeId(1);

struct Fixture(Catalog);

impl Fixture {
    fn new() -> Fixture {
        let mut fixture = Fixture(Catalog::new());
        let password_hash = hash_password(b"guest", [1, 2, 3, 4]);
        fixture.apply(CatalogCommand::Bootstrap { vhost: "/".into(), user: "guest".into(), password_hash, shards: 3 });
        fixture.apply(CatalogCommand::NodeUp { node: NODE, incarnation: PROCESS });
        fixture
    }

    /// Through the log's bytes, as always.
    fn apply(&mut self, command: CatalogCommand) -> CatalogReply {
        let index = self.0.index() + 1;
        let command = decode_command(&encode_command(&command)).unwrap();
        self.0.apply(LogId { leader: LeaderId { term: 1, voter: 1 }, index }, &command)
    }

    /// Checked as before it is proposed, then applied; then once more, as by somebody who got no answer.
    fn done(&mut self, command: AdminCommand) {
        assert_eq!(self.0.check(&command), Ok(()));
        assert_eq!(self.apply(CatalogCommand::Admin(command.clone())), CatalogReply::Done);
        assert_eq!(self.apply(CatalogCommand::Admin(command)), CatalogReply::Done);
    }

    #[track_caller]
    fn refused(&mut self, command: AdminCommand, text: &str) {
        if let Err(refusal) = self.0.check(&command) {
            return assert_eq!(refusal.to_string(), text);
        }
        let before = Catalog { applied: LogId::default(), ..self.0.clone() }.snapshot();
        match self.apply(CatalogCommand::Admin(command)) {
            CatalogReply::Refused(refusal) => assert_eq!(refusal.to_string(), text),
            other => panic!("{other:?}"),
        }
        assert!(Catalog { applied: LogId::default(), ..self.0.clone() }.snapshot() == before, "a refusal changes nothing");
    }

    fn queue(&mut self, name: &str, arguments: Table) -> Result<QueueId, Refusal> {
        let spec = QueueSpec { name: at("/", name), durable: true, auto_delete: false, exclusive_owner: None, arguments };
        match self.apply(CatalogCommand::DeclareQueue { spec, node: NODE, incarnation: PROCESS, shard: ShardId(1) }) {
            CatalogReply::Queue { record, .. } => Ok(record.id),
            CatalogReply::Refused(refusal) => Err(refusal),
            CatalogReply::Done => panic!("no queue"),
        }
    }

    fn policy(&mut self, kind: PolicyKind, policy: Policy) {
        self.done(AdminCommand::SetPolicy { kind, vhost: "/".into(), policy });
    }

    /// Names of the policies of a queue: the users' one, the operators' one.
    fn policies_of(&self, queue: QueueId) -> (Option<String>, Option<String>) {
        let applied = self.0.queue_policies(queue).unwrap();
        (applied.user.as_ref().map(|p| p.name.clone()), applied.operator.as_ref().map(|p| p.name.clone()))
    }

    /// A restart from the snapshot: everything must still be there.
    fn restarted(&mut self) {
        let restored = Catalog::from_snapshot(&self.0.snapshot()).unwrap();
        assert_eq!(restored.state_hash(), self.0.state_hash());
        self.0 = restored;
    }
}

fn at(vhost: &str, name: &str) -> Name {
    Name { vhost: vhost.into(), name: name.into() }
}

fn user(user: &str) -> AdminCommand {
    AdminCommand::AddUser { user: user.into(), password_hash: hash_password(b"pw", [5; 4]) }
}

fn vhost(vhost: &str) -> AdminCommand {
    AdminCommand::AddVhost { vhost: vhost.into(), facts: VhostFacts::default() }
}

fn all() -> Permission {
    Permission { configure: ".*".into(), write: ".*".into(), read: ".*".into() }
}

fn grant(user: &str, vhost: &str, permission: Permission) -> AdminCommand {
    AdminCommand::SetPermissions { user: user.into(), vhost: vhost.into(), permission }
}

fn ints(pairs: &[(&str, i64)]) -> Table {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), Value::Int(*value))).collect()
}

fn alternate(exchange: &str) -> Table {
    Table::from([("alternate-exchange".to_owned(), Value::Text(exchange.into()))])
}

fn policy(name: &str, pattern: &str, priority: i64) -> Policy {
    Policy { name: name.into(), pattern: pattern.into(), apply_to: ApplyTo::All, definition: alternate("amq.fanout"), priority }
}

#[test]
fn the_first_users_key_goes_with_its_password() {
    let mut f = Fixture::new();
    let changed = |password: &[u8]| AdminCommand::SetPassword { user: "guest".into(), password_hash: hash_password(password, [8; 4]) };
    f.done(user("ann"));
    f.done(AdminCommand::SetPassword { user: "ann".into(), password_hash: hash_password(b"new", [7; 4]) });
    assert_eq!(f.0.access_key("guest").map(|key| key.secret.as_str()), Some("guest"), "that was another user");
    f.done(changed(b"secret"));
    assert_eq!(f.0.access_key("guest"), None);
    let key = AccessKey { secret: "chosen".into(), user: "guest".into() };
    f.done(AdminCommand::AddAccessKey { id: "guest".into(), key: key.clone() });
    f.done(changed(b"another"));
    assert_eq!(f.0.access_key("guest"), Some(&key), "a secret that somebody chose stays");
}

#[test]
fn users_come_change_and_go() {
    let mut f = Fixture::new();
    f.done(user("ann"));
    f.done(user("ann"));
    let other = AdminCommand::AddUser { user: "ann".into(), password_hash: hash_password(b"pw", [6; 4]) };
    f.refused(other, "User \"ann\" already exists");
    assert!(f.0.authenticate("ann", b"pw") && !f.0.authenticate("ann", b"PW"));
    f.done(AdminCommand::SetPassword { user: "ann".into(), password_hash: hash_password(b"new", [7; 4]) });
    assert!(f.0.authenticate("ann", b"new") && !f.0.authenticate("ann", b"pw"));
    f.done(AdminCommand::SetUserTags { user: "ann".into(), tags: vec!["monitoring".into(), "policymaker".into()] });
    f.restarted();
    assert_eq!(f.0.user("ann").unwrap().tags, ["monitoring", "policymaker"]);
    f.done(AdminCommand::SetPassword { user: "ann".into(), password_hash: String::new() });
    assert!(!f.0.authenticate("ann", b"new") && !f.0.authenticate("ann", b""), "no password lets nobody in");
    let first = f.0.user("ann").unwrap().created;
    f.done(AdminCommand::DeleteUser { user: "ann".into() });
    f.refused(AdminCommand::DeleteUser { user: "ann".into() }, "no user 'ann' in vhost ''");
    assert!(f.0.user("ann").is_none());
    f.done(user("ann"));
    assert_ne!(f.0.user("ann").unwrap().created, first, "another user of the same name");
    f.refused(AdminCommand::SetPassword { user: "bob".into(), password_hash: String::new() }, "no user 'bob' in vhost ''");
}

#[test]
fn a_blank_password_never_matches() {
    let mut f = Fixture::new();
    f.done(AdminCommand::AddUser { user: "x".into(), password_hash: hash_password(b"", [1; 4]) });
    assert!(!f.0.authenticate("x", b""));
}

#[test]
fn permissions_are_per_vhost_and_go_with_it() {
    let mut f = Fixture::new();
    f.done(user("ann"));
    f.done(vhost("v"));
    f.refused(grant("bob", "v", all()), "no user 'bob' in vhost ''");
    f.refused(grant("ann", "w", all()), "no vhost 'w' in vhost 'w'");
    let broken = Permission { write: "(".into(), ..all() };
    assert!(matches!(f.0.check(&grant("ann", "v", broken)), Err(Refusal::Precondition(_))));
    f.done(grant("ann", "v", all()));
    let topic = TopicPermission { write: "^a".into(), read: "^b".into() };
    let topics = |exchange: &str, permission: &TopicPermission| AdminCommand::SetTopicPermissions {
        user: "ann".into(),
        vhost: "v".into(),
        exchange: exchange.into(),
        permission: permission.clone(),
    };
    f.done(topics("amq.topic", &topic));
    f.done(topics("other", &topic));
    f.restarted();
    assert_eq!(f.0.permission("ann", "v"), Some(&all()));
    assert_eq!(f.0.topic_permission("ann", "v", "amq.topic"), Some(&topic));
    assert_eq!(f.0.topic_permission("ann", "v", "other"), None, "there is no such exchange");
    let clear = |exchange: Option<&str>| AdminCommand::ClearTopicPermissions {
        user: "ann".into(),
        vhost: "v".into(),
        exchange: exchange.map(str::to_owned),
    };
    f.done(clear(Some("amq.topic")));
    assert_eq!(f.0.user("ann").unwrap().topic_permissions.len(), 1);
    f.done(clear(None));
    assert!(f.0.user("ann").unwrap().topic_permissions.is_empty());
    f.done(AdminCommand::ClearPermissions { user: "ann".into(), vhost: "v".into() });
    assert_eq!(f.0.permission("ann", "v"), None);
    f.done(grant("ann", "v", all()));
    f.done(topics("amq.topic", &topic));
    f.done(AdminCommand::DeleteVhost { vhost: "v".into() });
    let left = f.0.user("ann").unwrap();
    assert!(left.permissions.is_empty() && left.topic_permissions.is_empty());
}

#[test]
fn a_vhost_keeps_what_it_was_created_with() {
    let mut f = Fixture::new();
    let facts = VhostFacts {
        description: "d".into(),
        tags: vec!["t".into()],
        default_queue_type: Some("quorum".into()),
        protected_from_deletion: false,
    };
    f.done(AdminCommand::AddVhost { vhost: "v".into(), facts: facts.clone() });
    f.done(vhost("v"));
    f.restarted();
    assert_eq!(f.0.vhost_facts("v"), Some(&facts));
    let first = f.0.vhost_created("v");
    f.done(AdminCommand::DeleteVhost { vhost: "v".into() });
    f.done(vhost("v"));
    assert_ne!(f.0.vhost_created("v"), first, "another vhost of the same name");
}

#[test]
fn what_is_said_of_a_vhost_changes_and_a_protected_one_stays() {
    let mut f = Fixture::new();
    let facts = VhostFacts { description: "d".into(), tags: vec!["t".into()], ..VhostFacts::default() };
    f.done(AdminCommand::AddVhost { vhost: "v".into(), facts });
    let created = f.0.vhost_created("v");
    let update = |vhost: &str, patch: VhostPatch| AdminCommand::UpdateVhost { vhost: vhost.into(), patch };
    let delete = || AdminCommand::DeleteVhost { vhost: "v".into() };
    f.done(update("v", VhostPatch { default_queue_type: Some("quorum".into()), ..VhostPatch::default() }));
    f.done(update("v", VhostPatch { tags: Some(vec![]), protected_from_deletion: Some(true), ..VhostPatch::default() }));
    f.restarted();
    let expected =
        VhostFacts { description: "d".into(), tags: vec![], default_queue_type: Some("quorum".into()), protected_from_deletion: true };
    assert_eq!((f.0.vhost_facts("v"), f.0.vhost_created("v")), (Some(&expected), created));
    let why = "Cannot delete this virtual host: it is protected from deletion. To lift the protection, inspect and update its metadata";
    f.refused(delete(), why);
    f.done(update("v", VhostPatch { description: Some("e".into()), ..VhostPatch::default() }));
    f.refused(delete(), why);
    f.done(update("v", VhostPatch { protected_from_deletion: Some(false), ..VhostPatch::default() }));
    assert_eq!(f.0.check(&delete()), Ok(()));
    assert_eq!(f.apply(CatalogCommand::Admin(delete())), CatalogReply::Done);
    assert!(!f.0.has_vhost("v"));
    f.refused(update("v", VhostPatch::default()), "no vhost 'v' in vhost 'v'");
}

#[test]
fn limits_are_checked_merged_and_cleared() {
    let mut f = Fixture::new();
    let set = |limits: Table| AdminCommand::SetUserLimits { user: "guest".into(), limits };
    f.done(set(ints(&[("max-connections", 5)])));
    f.done(set(ints(&[("max-channels", -1)])));
    f.restarted();
    assert_eq!((f.0.user_limit("guest", "max-connections"), f.0.user_limit("guest", "max-channels")), (Some(5), None));
    f.refused(set(ints(&[("max-queues", 1)])), "Unrecognised terms [{<<\"max-queues\">>,1}] in user-limits");
    let text = Table::from([("max-channels".to_owned(), Value::Text(b"x".to_vec()))]);
    f.refused(set(text), "max-channels should be a number, actually was <<\"x\">>");
    f.done(AdminCommand::ClearUserLimits { user: "guest".into(), limit: "max-connections".into() });
    assert_eq!(f.0.user("guest").unwrap().limits.len(), 1);
    f.done(AdminCommand::ClearUserLimits { user: "guest".into(), limit: "all".into() });
    assert!(f.0.user("guest").unwrap().limits.is_empty());
    let vhost = |limits: Table| AdminCommand::SetVhostLimits { vhost: "/".into(), limits };
    f.done(vhost(ints(&[("max-connections", 5), ("max-queues", 2)])));
    f.done(vhost(ints(&[("max-queues", 2)])));
    assert_eq!((f.0.vhost_limit("/", "max-connections"), f.0.vhost_limit("/", "max-queues")), (None, Some(2)), "replaced");
    f.refused(vhost(ints(&[("colour", 1)])), "Validation failed\n\nUnrecognised terms [{<<\"colour\">>,1}] in limits\n");
}

#[test]
fn a_vhost_takes_no_more_queues_than_its_limit() {
    let mut f = Fixture::new();
    f.queue("a", Table::new()).unwrap();
    f.done(AdminCommand::SetVhostLimits { vhost: "/".into(), limits: ints(&[("max-queues", 2)]) });
    f.queue("b", Table::new()).unwrap();
    let text = "cannot declare queue 'c': queue limit in vhost '/' (2) is reached";
    assert_eq!(f.queue("c", Table::new()), Err(Refusal::Precondition(text.into())));
    f.queue("a", Table::new()).expect("one that is there already");
    f.done(AdminCommand::ClearVhostLimits { vhost: "/".into() });
    f.queue("c", Table::new()).unwrap();
}

#[test]
fn the_policy_with_the_highest_priority_counts_for_old_and_new_queues() {
    let mut f = Fixture::new();
    let old = f.queue("orders.old", Table::new()).unwrap();
    f.policy(PolicyKind::User, policy("low", "^orders", 1));
    assert_eq!(f.policies_of(old), (Some("low".into()), None));
    f.policy(PolicyKind::User, policy("high", r"^(?!amq\.)", 5));
    f.policy(PolicyKind::User, policy("elsewhere", "^other", 9));
    let new = f.queue("orders.new", Table::new()).unwrap();
    assert_eq!((f.policies_of(old), f.policies_of(new)), ((Some("high".into()), None), (Some("high".into()), None)));
    f.restarted();
    assert_eq!(f.policies_of(old), (Some("high".into()), None));
    let clear = |name: &str| AdminCommand::ClearPolicy { kind: PolicyKind::User, vhost: "/".into(), name: name.into() };
    f.done(clear("high"));
    assert_eq!(f.policies_of(new), (Some("low".into()), None));
    f.refused(clear("high"), "Parameter does not exist");
    f.done(clear("low"));
    assert_eq!(f.policies_of(new), (None, None));
}

#[test]
fn a_policy_applies_to_what_it_says() {
    let mut f = Fixture::new();
    let quorum = Table::from([("x-queue-type".to_owned(), Value::Text(b"quorum".to_vec()))]);
    let (classic, quorum) = (f.queue("classic", Table::new()).unwrap(), f.queue("quorum", quorum).unwrap());
    for (apply_to, on_classic, on_quorum, on_exchange) in [
        (ApplyTo::All, true, true, true),
        (ApplyTo::Queues, true, true, false),
        (ApplyTo::ClassicQueues, true, false, false),
        (ApplyTo::QuorumQueues, false, true, false),
        (ApplyTo::Streams, false, false, false),
        (ApplyTo::Exchanges, false, false, true),
    ] {
        f.policy(PolicyKind::User, Policy { apply_to, ..policy("p", ".*", 0) });
        let exchange = f.0.exchange_policies(&at("/", "amq.direct")).unwrap().user.is_some();
        let seen = (f.policies_of(classic).0.is_some(), f.policies_of(quorum).0.is_some(), exchange);
        assert_eq!(seen, (on_classic, on_quorum, on_exchange), "{apply_to:?}");
    }
}

#[test]
fn a_policy_with_a_key_that_is_not_for_a_type_of_queues_is_not_theirs() {
    let mut f = Fixture::new();
    let of = |kind: &str| Table::from([("x-queue-type".to_owned(), Value::Text(kind.into()))]);
    let queues = ["classic", "quorum", "stream"].map(|kind| f.queue(kind, of(kind)).unwrap());
    let unnamed = f.queue("of no type", Table::new()).unwrap();
    let text = |key: &str, value: &str| Table::from([(key.to_owned(), Value::Text(value.into()))]);
    let with_size = |table: Table| table.into_iter().chain(ints(&[("max-length-bytes", 5)])).collect::<Table>();
    for (name, priority, definition) in [
        ("wide", 0, ints(&[("max-length-bytes", 1000)])),
        ("for streams", 5, with_size(text("max-age", "7D"))),
        ("for quorum queues", 7, with_size(ints(&[("delivery-limit", 3)]))),
        ("for classic queues", 9, with_size(text("queue-mode", "lazy"))),
    ] {
        f.policy(PolicyKind::User, Policy { definition, ..policy(name, ".*", priority) });
    }
    f.policy(PolicyKind::Operator, Policy { definition: ints(&[("expires", 4000)]), ..policy("op", ".*", 0) });
    let seen = |f: &Fixture| queues.map(|queue| f.policies_of(queue));
    let some = |name: &str| Some(name.to_owned());
    let wanted = [(some("for classic queues"), some("op")), (some("for quorum queues"), some("op")), (some("for streams"), None)];
    assert_eq!(seen(&f), wanted);
    assert_eq!(f.policies_of(unnamed), wanted[0]);
    f.restarted();
    assert_eq!(seen(&f), wanted);
    for name in ["for classic queues", "for quorum queues", "for streams"] {
        f.done(AdminCommand::ClearPolicy { kind: PolicyKind::User, vhost: "/".into(), name: name.into() });
    }
    assert!(seen(&f).iter().all(|(user, _)| *user == some("wide")));
}

#[test]
fn a_policy_gives_an_exchange_its_alternate_at_once_but_an_argument_wins() {
    let mut f = Fixture::new();
    let caught = f.queue("caught", Table::new()).unwrap();
    let bind = |source: &str| BindingSpec {
        vhost: "/".into(),
        source: source.into(),
        target: Target::Queue,
        destination: "caught".into(),
        key: "".into(),
        arguments: Table::new(),
    };
    f.apply(CatalogCommand::Bind(bind("amq.fanout")));
    let routed = |f: &Fixture| {
        let mut out = Vec::new();
        f.0.route_one("/", "amq.direct", b"nowhere", &Table::new, &mut out);
        out.into_iter().map(|(id, _)| id).collect::<Vec<_>>()
    };
    assert_eq!(routed(&f), []);
    f.policy(PolicyKind::User, policy("p", "^amq.direct$", 0));
    assert_eq!(routed(&f), [caught]);
    f.restarted();
    assert_eq!(routed(&f), [caught]);
    f.done(AdminCommand::ClearPolicy { kind: PolicyKind::User, vhost: "/".into(), name: "p".into() });
    assert_eq!(routed(&f), []);
}

#[test]
fn what_was_allowed_holds_until_the_access_version_moves() {
    let mut f = Fixture::new();
    let version = f.0.access_version();
    f.queue("q", Table::new()).unwrap();
    assert_eq!(f.0.access_version(), version);
    f.done(grant("guest", "/", all()));
    assert!(f.0.access_version() > version);
}

#[test]
fn policies_set_queues_and_their_shards_are_told_once() {
    let mut f = Fixture::new();
    let (hit, missed) = (f.queue("orders", ints(&[("x-max-length", 50)])).unwrap(), f.queue("other", Table::new()).unwrap());
    let settings = |f: &Fixture, id: QueueId| f.0.settings(f.0.queue_by_id(id).unwrap());
    let before = f.0.index();
    let definition = ints(&[("max-length", 10), ("message-ttl", 60)]);
    f.policy(PolicyKind::User, Policy { definition, ..policy("p", "^orders$", 0) });
    assert_eq!((settings(&f, hit).max_length, settings(&f, hit).message_ttl_ms), (Some(10), Some(60)));
    assert!(settings(&f, missed).is_plain());
    assert_eq!(f.0.settings_since(before, ShardId(1), &[]), [(hit, settings(&f, hit))]);
    f.policy(PolicyKind::Operator, Policy { definition: ints(&[("max-length", 4)]), ..policy("op", "^orders$", 0) });
    assert_eq!(settings(&f, hit).max_length, Some(4), "the operator's is lower");
    let told = f.0.index();
    f.policy(PolicyKind::User, policy("elsewhere", "^nothing", 0));
    assert!(f.0.settings_since(told, ShardId(1), &[]).is_empty(), "nothing changed for any queue");
    f.restarted();
    assert_eq!(settings(&f, hit).max_length, Some(4));
    for (kind, name) in [(PolicyKind::User, "p"), (PolicyKind::Operator, "op")] {
        f.done(AdminCommand::ClearPolicy { kind, vhost: "/".into(), name: name.into() });
    }
    assert_eq!(settings(&f, hit).max_length, Some(50));
}

#[test]
fn a_policy_that_this_version_cannot_read_refuses_no_entry_and_no_snapshot_and_matches_nothing() {
    let mut f = Fixture::new();
    let odd = Policy { definition: Table::from([("of-a-later-version".to_owned(), Value::Void)]), ..policy("odd", "(", 9) };
    let command = AdminCommand::SetPolicy { kind: PolicyKind::User, vhost: "/".into(), policy: odd };
    let why = f.0.check(&command).unwrap_err().to_string();
    assert!(why.contains("are not recognised policy settings"), "{why}");
    assert_eq!(f.apply(CatalogCommand::Admin(command)), CatalogReply::Done, "others have applied it");
    f.policy(PolicyKind::User, policy("even", "^q", 1));
    let queue = f.queue("q(", Table::new()).unwrap();
    assert_eq!(f.policies_of(queue), (Some("even".into()), None));
    f.restarted();
    assert_eq!(f.policies_of(queue), (Some("even".into()), None));
    assert_eq!(f.0.policies(PolicyKind::User, "/").map(|p| &*p.pattern).collect::<Vec<_>>(), ["^q", "("]);
}
