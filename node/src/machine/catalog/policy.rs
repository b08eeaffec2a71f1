//! Policies: which keys there are and what values they take, which policy a queue or exchange has, and what comes of a user's and an
//! operator's one together. Texts and rules are RabbitMQ's. Used by `check` before policies change, by `admin` when they do, and by
//! declares.

use super::pattern::Pattern;
use super::{Catalog, Vhost};
use crate::model::QueueId;
use crate::model::admin::{ApplyTo, Policy, PolicyKind};
use crate::model::catalog::{ExchangeSpec, QueueSpec, Refusal, Table, Value};
use crate::model::limits;
use crate::model::settings::{EXPIRY_MAX_MS, LOCATORS, SEGMENT_BYTES_MAX, is_max_age, is_name};
use crate::model::stream::FILTER_BYTES_MIN;
use std::sync::Arc;

/// The policies that a queue or an exchange has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Applied {
    /// Of users.
    pub user: Option<Arc<Policy>>,
    /// Of operators.
    pub operator: Option<Arc<Policy>>,
}

/// A policy, ready to be compared with names.
#[derive(Clone, Debug)]
pub(super) struct Compiled {
    pub(super) policy: Arc<Policy>,
    pattern: Option<Pattern>,
}

impl Compiled {
    /// Whoever proposed the policy has checked its pattern; one that this version cannot compile all the same matches nothing.
    pub(super) fn new(policy: Arc<Policy>) -> Compiled {
        let pattern = Pattern::compile(&policy.pattern);
        if let Err(why) = &pattern {
            tracing::error!(
                policy = policy.name,
                pattern = policy.pattern,
                why,
                "this version cannot read the pattern of a policy, it matches nothing"
            );
        }
        Compiled { policy, pattern: pattern.ok() }
    }

    fn matches(&self, name: &str) -> bool {
        self.pattern.as_ref().is_some_and(|pattern| pattern.matches(name))
    }
}

/// What a policy may be looked for.
#[derive(Clone, Copy)]
enum Thing<'a> {
    Queue(&'a QueueSpec),
    Exchange(&'a ExchangeSpec),
}

impl Thing<'_> {
    fn name(&self) -> &str {
        match self {
            Thing::Queue(spec) => &spec.name.name,
            Thing::Exchange(spec) => &spec.name.name,
        }
    }

    fn is_covered(&self, by: ApplyTo) -> bool {
        match self {
            Thing::Exchange(_) => matches!(by, ApplyTo::All | ApplyTo::Exchanges),
            Thing::Queue(spec) => match by {
                ApplyTo::All | ApplyTo::Queues => true,
                ApplyTo::ClassicQueues => !matches!(queue_type(&spec.arguments), "quorum" | "stream"),
                ApplyTo::QuorumQueues => queue_type(&spec.arguments) == "quorum",
                ApplyTo::Streams => queue_type(&spec.arguments) == "stream",
                ApplyTo::Exchanges => false,
            },
        }
    }

    /// Whether it may have a policy that says these things.
    fn takes(&self, definition: &Table) -> bool {
        let foreign: &[&str] = match self {
            Thing::Exchange(_) => &[],
            Thing::Queue(spec) => match queue_type(&spec.arguments) {
                "quorum" => &FOREIGN_TO_QUORUM,
                "stream" => &FOREIGN_TO_STREAMS,
                _ => &FOREIGN_TO_CLASSIC,
            },
        };
        !definition.keys().any(|key| foreign.contains(&key.as_str()))
    }
}

/// Keys that are not for classic queues (`unsupported_policies` of RabbitMQ's queue types). A policy with one of them is none for such a
/// queue, with all that it says: the next one that matches counts. Who set up RabbitMQ relies on it: limits that are meant for streams would
/// drop what waits in queues.
const FOREIGN_TO_CLASSIC: [&str; 8] = [
    "dead-letter-strategy",
    "delivery-limit",
    "initial-cluster-size",
    "max-age",
    "max-in-memory-bytes",
    "max-in-memory-length",
    "stream-max-segment-size-bytes",
    "target-group-size",
];

/// The same of quorum queues.
const FOREIGN_TO_QUORUM: [&str; 10] = [
    "ha-mode",
    "ha-params",
    "ha-promote-on-failure",
    "ha-promote-on-shutdown",
    "ha-sync-mode",
    "initial-cluster-size",
    "max-age",
    "queue-master-locator",
    "queue-mode",
    "stream-max-segment-size-bytes",
];

/// The same of streams.
const FOREIGN_TO_STREAMS: [&str; 18] = [
    "dead-letter-exchange",
    "dead-letter-routing-key",
    "dead-letter-strategy",
    "delivery-limit",
    "expires",
    "ha-mode",
    "ha-params",
    "ha-promote-on-failure",
    "ha-promote-on-shutdown",
    "ha-sync-mode",
    "max-in-memory-bytes",
    "max-in-memory-length",
    "max-length",
    "message-ttl",
    "overflow",
    "queue-master-locator",
    "queue-mode",
    "target-group-size",
];

/// `x-queue-type` as declared; a durable queue is replicated whatever it says.
pub fn queue_type(arguments: &Table) -> &str {
    match arguments.get("x-queue-type") {
        Some(Value::Text(kind)) => std::str::from_utf8(kind).unwrap_or("classic"),
        Some(_) | None => "classic",
    }
}

impl Vhost {
    fn policy_of(&self, kind: PolicyKind, thing: Thing<'_>) -> Option<Arc<Policy>> {
        let fits = |c: &&Compiled| thing.is_covered(c.policy.apply_to) && thing.takes(&c.policy.definition) && c.matches(thing.name());
        // Of equal ones the first by name.
        self.policies(kind)
            .values()
            .filter(fits)
            .max_by_key(|c| (c.policy.priority, std::cmp::Reverse(&c.policy.name)))
            .map(|c| c.policy.clone())
    }

    fn applied_to(&self, thing: Thing<'_>) -> Applied {
        Applied { user: self.policy_of(PolicyKind::User, thing), operator: self.policy_of(PolicyKind::Operator, thing) }
    }

    pub(super) fn applied_to_queue(&self, spec: &QueueSpec) -> Applied {
        self.applied_to(Thing::Queue(spec))
    }

    pub(super) fn applied_to_exchange(&self, spec: &ExchangeSpec) -> Applied {
        self.applied_to(Thing::Exchange(spec))
    }
}

impl Applied {
    /// No policy at all.
    pub fn is_empty(&self) -> bool {
        self.user.is_none() && self.operator.is_none()
    }

    /// What the two say together, by key.
    pub fn definition(&self) -> Table {
        let mut merged = self.user.as_ref().map(|p| p.definition.clone()).unwrap_or_default();
        for (key, theirs) in self.operator.iter().flat_map(|p| &p.definition) {
            let value = match merged.get(key) {
                Some(own) => merge(key, own, theirs),
                None => theirs.clone(),
            };
            merged.insert(key.clone(), value);
        }
        merged
    }

    /// What they say about one key.
    pub fn get(&self, key: &str) -> Option<Value> {
        let of = |policy: &Option<Arc<Policy>>| policy.as_ref().and_then(|p| p.definition.get(key).cloned());
        match (of(&self.user), of(&self.operator)) {
            (Some(own), Some(theirs)) => Some(merge(key, &own, &theirs)),
            (own, theirs) => own.or(theirs),
        }
    }
}

/// The lower number, but for `delivery-limit`, where a negative one is no limit: then the higher, as of `target-group-size`; else, and of
/// `queue-version`, what the operator says.
fn merge(key: &str, own: &Value, theirs: &Value) -> Value {
    match (own, theirs) {
        (Value::Int(a), Value::Int(b)) if key == "delivery-limit" && (*a < 0 || *b < 0) => Value::Int(*a.max(b)),
        (Value::Int(a), Value::Int(b)) if key == "target-group-size" => Value::Int(*a.max(b)),
        (Value::Int(a), Value::Int(b)) if key != "queue-version" => Value::Int(*a.min(b)),
        _ => theirs.clone(),
    }
}

impl Catalog {
    /// The policies of a queue.
    pub fn queue_policies(&self, id: QueueId) -> Option<&Applied> {
        self.queue_by_id(id).and_then(|record| self.queue_entry(&record.spec.name.vhost, &record.spec.name.name)).map(|q| &q.policies)
    }

    /// Whether a queue that is to be made is wished to be led where its client is. As in RabbitMQ a policy counts before an argument,
    /// and the older name where neither says the newer one.
    pub fn is_client_local(&self, spec: &QueueSpec) -> bool {
        let policies = self.vhosts.get(&spec.name.vhost).map(|vhost| vhost.applied_to_queue(spec)).unwrap_or_default();
        let says = |key: &str| policies.get(key).or_else(|| spec.arguments.get(&format!("x-{key}")).cloned());
        let wish = says("queue-leader-locator").or_else(|| says("queue-master-locator"));
        wish.is_some_and(|wish| is_one_of(&wish, &["client-local"]))
    }

    /// The policies of an exchange.
    pub fn exchange_policies(&self, name: &crate::model::catalog::Name) -> Option<&Applied> {
        self.exchange_entry(&name.vhost, &name.name).map(|x| &x.policies)
    }
}

/// What a key's value must be, and what RabbitMQ says of one that is not.
struct Key {
    name: &'static str,
    is_valid: fn(&Value) -> bool,
    wrong: &'static str,
    /// Operators may set it, too.
    operator: bool,
}

const fn key(name: &'static str, is_valid: fn(&Value) -> bool, wrong: &'static str, operator: bool) -> Key {
    Key { name, is_valid, wrong, operator }
}

fn is_text(value: &Value) -> bool {
    matches!(value, Value::Text(_))
}

fn is_integer(value: &Value) -> bool {
    matches!(value, Value::Int(_))
}

fn is_count(value: &Value) -> bool {
    matches!(value, Value::Int(n) if *n >= 0)
}

/// Milliseconds as queues take them.
fn is_time(value: &Value) -> bool {
    matches!(value, Value::Int(n) if (0..=EXPIRY_MAX_MS).contains(n))
}

fn is_expiry(value: &Value) -> bool {
    is_time(value) && *value != Value::Int(0)
}

fn is_age(value: &Value) -> bool {
    matches!(value, Value::Text(age) if is_max_age(age))
}

fn is_filter_size(value: &Value) -> bool {
    matches!(value, Value::Int(n) if (FILTER_BYTES_MIN.into()..=255).contains(n))
}

fn is_segment_size(value: &Value) -> bool {
    matches!(value, Value::Int(n) if (0..=SEGMENT_BYTES_MAX).contains(n))
}

fn is_overflow(value: &Value) -> bool {
    is_one_of(value, &["drop-head", "reject-publish", "reject-publish-dlx"])
}

fn is_strategy(value: &Value) -> bool {
    is_one_of(value, &["at-most-once", "at-least-once"])
}

fn is_mode(value: &Value) -> bool {
    is_one_of(value, &["default", "lazy"])
}

fn is_version(value: &Value) -> bool {
    matches!(value, Value::Int(1 | 2))
}

fn is_locator(value: &Value) -> bool {
    is_one_of(value, LOCATORS)
}

/// Of RabbitMQ before 4.0.
fn is_old_locator(value: &Value) -> bool {
    is_locator(value) || is_one_of(value, &["min-masters"])
}

fn is_size(value: &Value) -> bool {
    is_count(value) && *value != Value::Int(0)
}

fn is_publishers(value: &Value) -> bool {
    matches!(value, Value::Int(n) if (1..=limits::PUBLISHERS_MAX as i64).contains(n))
}

fn is_ranges(value: &Value) -> bool {
    matches!(value, Value::Int(n) if (1..=limits::PUBLISHER_RANGES_MAX as i64).contains(n))
}

/// Of mirrored queues: a number of replicas, or names of nodes.
fn is_ha_params(value: &Value) -> bool {
    match value {
        Value::List(nodes) => !nodes.is_empty() && nodes.iter().all(is_text),
        number => is_size(number),
    }
}

fn is_ha_mode(value: &Value) -> bool {
    is_one_of(value, &["all", "exactly", "nodes"])
}

fn is_ha_sync_mode(value: &Value) -> bool {
    is_one_of(value, &["manual", "automatic"])
}

fn is_ha_promotion(value: &Value) -> bool {
    is_one_of(value, &["always", "when-synced"])
}

fn is_one_of(value: &Value, words: &[&str]) -> bool {
    matches!(value, Value::Text(word) if words.iter().any(|w| w.as_bytes() == word))
}

/// The keys with an effect, on exchanges and new queues here, on queues by `QueueSettings::effective`; and those that are as much without
/// one as the arguments of their names: those of mirrored queues too, which set-ups made for RabbitMQ before 4.0 have. A policy with
/// another one is refused.
const KEYS: [Key; 29] = [
    key("alternate-exchange", is_text, "is not a valid alternate exchange name", false),
    key("cache-publisher-ranges", is_ranges, "is not a valid number of ranges of publishing ids", true),
    key("cache-publishers", is_publishers, "is not a valid number of publishers", true),
    key("consumer-timeout", is_count, "is not a valid consumer timeout", false),
    key("dead-letter-exchange", is_name, "is not a valid dead letter exchange name", false),
    key("dead-letter-routing-key", is_name, "is not a valid dead letter routing key", false),
    key("dead-letter-strategy", is_strategy, "is not a valid dead letter strategy", false),
    key("delivery-limit", is_integer, "is not a valid delivery limit", true),
    key("expires", is_expiry, "is not a valid queue expiry", true),
    key("ha-mode", is_ha_mode, "is not a valid ha-mode value", true),
    key("ha-params", is_ha_params, "is neither a number of nodes nor a list of their names", true),
    key("ha-promote-on-failure", is_ha_promotion, "is not a valid ha-promote-on-failure value", true),
    key("ha-promote-on-shutdown", is_ha_promotion, "is not a valid ha-promote-on-shutdown value", true),
    key("ha-sync-mode", is_ha_sync_mode, "is not a valid ha-sync-mode value", true),
    key("initial-cluster-size", is_count, "is not a valid cluster size", false),
    key("max-age", is_age, "is not a valid max age", false),
    key("max-in-memory-bytes", is_count, "is not a valid maximum memory in bytes", true),
    key("max-in-memory-length", is_count, "is not a valid maximum memory in bytes", true),
    key("max-length", is_count, "is not a valid maximum length", true),
    key("max-length-bytes", is_count, "is not a valid maximum length in bytes", true),
    key("message-ttl", is_time, "is not a valid message TTL", true),
    key("overflow", is_overflow, "is not a valid overflow value", true),
    key("queue-leader-locator", is_locator, "is not a valid queue leader locator value", false),
    key("queue-master-locator", is_old_locator, "is not a valid queue leader locator value", true),
    key("queue-mode", is_mode, "is not a valid queue-mode value", false),
    key("queue-version", is_version, "is not a valid queue-version value", true),
    key("stream-filter-size-bytes", is_filter_size, "is not a valid filter size. Valid range is 16-255", false),
    key("stream-max-segment-size-bytes", is_segment_size, "is not a valid segment size", false),
    key("target-group-size", is_size, "is not a valid qq target count value", true),
];

/// All keys that a policy may have.
pub fn policy_keys() -> impl Iterator<Item = &'static str> {
    KEYS.iter().map(|key| key.name)
}

/// Whether a policy makes sense; the refusal is RabbitMQ's.
pub(super) fn check(kind: PolicyKind, policy: &Policy) -> Result<(), Refusal> {
    let failed = |why: String| Refusal::Precondition(format!("Validation failed\n\n{why}\n"));
    check_definition(kind, &policy.definition).map_err(failed)?;
    let wrong = |why: String| failed(format!("pattern should be regular expression but is invalid: {why}"));
    Pattern::compile(&policy.pattern).map(drop).map_err(wrong)
}

fn check_definition(kind: PolicyKind, definition: &Table) -> Result<(), String> {
    if definition.is_empty() {
        return Err("no policy provided".to_owned());
    }
    let mut unknown = Vec::new();
    for (name, value) in definition {
        match KEYS.iter().find(|key| key.name == name && (key.operator || kind == PolicyKind::User)) {
            Some(key) if !(key.is_valid)(value) => return Err(format!("{} {}", term(value), key.wrong)),
            Some(_) => {}
            None => unknown.push(format!("{{<<\"{name}\">>,{}}}", term(value))),
        }
    }
    if unknown.is_empty() { Ok(()) } else { Err(format!("[{}] are not recognised policy settings", unknown.join(","))) }
}

/// A value as Erlang prints it.
pub(super) fn term(value: &Value) -> String {
    match value {
        Value::Void => "null".to_owned(),
        Value::Bool(flag) => flag.to_string(),
        Value::Int(number) => number.to_string(),
        Value::Float(number) => format!("{number:?}"),
        Value::Double(number) => format!("{number:?}"),
        Value::Decimal(scale, digits) => format!("{{{scale},{digits}}}"),
        Value::Text(bytes) | Value::Bytes(bytes) => format!("<<\"{}\">>", String::from_utf8_lossy(bytes)),
        Value::Timestamp(seconds) => seconds.to_string(),
        Value::List(values) => format!("[{}]", values.iter().map(term).collect::<Vec<_>>().join(",")),
        Value::Table(table) => {
            format!("#{{{}}}", table.iter().map(|(k, v)| format!("<<\"{k}\">> => {}", term(v))).collect::<Vec<_>>().join(","))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(definition: Table) -> Arc<Policy> {
        Arc::new(Policy { name: "p".into(), pattern: "".into(), apply_to: ApplyTo::All, definition, priority: 0 })
    }

    fn ints(pairs: &[(&str, i64)]) -> Table {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), Value::Int(*v))).collect()
    }

    #[test]
    fn an_operators_policy_lowers_what_a_users_says() {
        let user = policy(ints(&[("max-length", 10), ("message-ttl", 5), ("expires", 7)]));
        let operator = policy(ints(&[("max-length", 4), ("message-ttl", 50), ("delivery-limit", 3)]));
        let both = Applied { user: Some(user.clone()), operator: Some(operator.clone()) };
        assert_eq!(both.definition(), ints(&[("max-length", 4), ("message-ttl", 5), ("expires", 7), ("delivery-limit", 3)]));
        for (key, value) in both.definition() {
            assert_eq!(both.get(&key), Some(value), "{key}");
        }
        assert_eq!(Applied { user: Some(user.clone()), operator: None }.definition(), user.definition);
        assert_eq!(Applied { user: None, operator: Some(operator.clone()) }.definition(), operator.definition);
        assert_eq!(Applied::default().get("expires"), None);
    }

    #[test]
    fn a_negative_delivery_limit_is_no_limit_and_loses() {
        for (own, theirs, merged) in [(-1, 5, 5), (5, -1, 5), (3, 5, 3), (-2, -1, -1)] {
            assert_eq!(merge("delivery-limit", &Value::Int(own), &Value::Int(theirs)), Value::Int(merged));
        }
    }

    #[test]
    fn of_two_sizes_of_a_group_the_higher_counts() {
        assert_eq!(merge("target-group-size", &Value::Int(5), &Value::Int(3)), Value::Int(5));
    }

    #[test]
    fn of_words_the_operators_counts() {
        let text = |s: &str| Value::Text(s.into());
        assert_eq!(merge("overflow", &text("drop-head"), &text("reject-publish")), text("reject-publish"));
    }

    /// The rest has no effect but is shown.
    #[test]
    fn each_number_that_operators_may_set_is_merged_as_rabbitmq_does() {
        let lower = ["expires", "max-in-memory-bytes", "max-in-memory-length", "max-length", "max-length-bytes", "message-ttl"];
        let ours = ["cache-publisher-ranges", "cache-publishers", "delivery-limit", "ha-params"];
        let numbers: Vec<&str> = KEYS.iter().filter(|key| key.operator && (key.is_valid)(&Value::Int(2))).map(|key| key.name).collect();
        for key in &numbers {
            let merged = [(1, 2), (2, 1)].map(|(own, theirs)| merge(key, &Value::Int(own), &Value::Int(theirs)));
            let wanted = match *key {
                key if lower.contains(&key) || ours.contains(&key) => [1, 1],
                "queue-version" => [2, 1],
                "target-group-size" => [2, 2],
                other => panic!("{other}"),
            };
            assert_eq!(merged, wanted.map(Value::Int), "{key}");
        }
        assert!(lower.iter().all(|key| numbers.contains(key)), "{numbers:?}");
    }

    #[test]
    fn keys_that_are_not_for_a_type_of_queues_are_keys() {
        for foreign in FOREIGN_TO_CLASSIC.iter().chain(&FOREIGN_TO_QUORUM).chain(&FOREIGN_TO_STREAMS) {
            assert!(policy_keys().any(|key| key == *foreign), "{foreign}");
        }
    }

    /// What arguments may say without effect, policies may, too: an application's set-up does not fail on them.
    #[test]
    fn settings_without_effect_are_checked_and_taken() {
        let text = |s: &str| Value::Text(s.into());
        for (name, good, bad, why) in [
            ("dead-letter-strategy", text("at-least-once"), text("now"), "<<\"now\">> is not a valid dead letter strategy"),
            ("max-in-memory-bytes", Value::Int(0), Value::Int(-1), "-1 is not a valid maximum memory in bytes"),
            ("max-in-memory-length", Value::Int(7), Value::Int(-1), "-1 is not a valid maximum memory in bytes"),
            ("queue-leader-locator", text("balanced"), text("here"), "<<\"here\">> is not a valid queue leader locator value"),
            ("queue-master-locator", text("min-masters"), text("here"), "<<\"here\">> is not a valid queue leader locator value"),
            ("initial-cluster-size", Value::Int(3), Value::Int(-1), "-1 is not a valid cluster size"),
            ("target-group-size", Value::Int(3), Value::Int(0), "0 is not a valid qq target count value"),
            ("ha-mode", text("exactly"), text("some"), "<<\"some\">> is not a valid ha-mode value"),
            ("ha-params", Value::Int(2), Value::Int(0), "0 is neither a number of nodes nor a list of their names"),
            ("ha-params", Value::List(vec![text("n")]), text("n"), "<<\"n\">> is neither a number of nodes nor a list of their names"),
            ("ha-sync-mode", text("automatic"), text("now"), "<<\"now\">> is not a valid ha-sync-mode value"),
            ("ha-promote-on-failure", text("always"), text("now"), "<<\"now\">> is not a valid ha-promote-on-failure value"),
            ("ha-promote-on-shutdown", text("when-synced"), text("x"), "<<\"x\">> is not a valid ha-promote-on-shutdown value"),
            ("queue-mode", text("lazy"), text("busy"), "<<\"busy\">> is not a valid queue-mode value"),
            ("queue-version", Value::Int(2), Value::Int(3), "3 is not a valid queue-version value"),
        ] {
            let check = |value| check_definition(PolicyKind::User, &Table::from([(name.to_owned(), value)]));
            assert_eq!(check(good), Ok(()), "{name}");
            assert_eq!(check(bad), Err(why.to_owned()));
        }
    }

    #[test]
    fn definitions_are_refused_in_rabbitmqs_words() {
        let text = |s: &str| Value::Text(s.into());
        let one = |k: &str, v: Value| Table::from([(k.to_owned(), v)]);
        for (kind, definition, why) in [
            (PolicyKind::User, Table::new(), "no policy provided"),
            (PolicyKind::User, one("alternate-exchange", Value::Int(1)), "1 is not a valid alternate exchange name"),
            (PolicyKind::User, one("max-age", text("7d")), "<<\"7d\">> is not a valid max age"),
            (PolicyKind::User, one("stream-max-segment-size-bytes", Value::Int(3_000_000_001)), "3000000001 is not a valid segment size"),
            (PolicyKind::User, one("stream-filter-size-bytes", Value::Int(15)), "15 is not a valid filter size. Valid range is 16-255"),
            (PolicyKind::User, one("colour", text("red")), "[{<<\"colour\">>,<<\"red\">>}] are not recognised policy settings"),
            (
                PolicyKind::Operator,
                one("alternate-exchange", text("x")),
                "[{<<\"alternate-exchange\">>,<<\"x\">>}] are not recognised policy settings",
            ),
        ] {
            assert_eq!(check_definition(kind, &definition), Err(why.to_owned()));
        }
        let policy = Policy {
            name: "p".into(),
            pattern: "(".into(),
            apply_to: ApplyTo::All,
            definition: one("alternate-exchange", text("x")),
            priority: 0,
        };
        let refused = check(PolicyKind::User, &policy).expect_err("a broken pattern").to_string();
        assert!(refused.starts_with("Validation failed\n\npattern should be regular expression but is invalid: "), "{refused}");
    }
}
