//! Who may do what: permissions as regular expressions over names and, on topic exchanges, over routing keys (RabbitMQ's rules and
//! words). Who may come in is in `admission`.

use crate::machine::catalog::{Catalog, Pattern};
use crate::model::admin::Permission;
use crate::model::catalog::Refusal;
use bytes::Bytes;
use parking_lot::RwLock;
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Compiled patterns kept at most; then they are forgotten and compiled again as they come.
const PATTERNS_MAX: usize = 1024;
/// Exchanges that a connection remembers as allowed; RabbitMQ's channels remember as many things.
const REMEMBERED: usize = 12;
/// Routing keys that it remembers for each of those with topic permissions: 60 KiB where all are as long as can be.
const KEYS_REMEMBERED: usize = 256;

/// What is done to a thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// It is made, changed or deleted.
    Configure,
    /// Messages are put into it.
    Write,
    /// Messages are taken from it.
    Read,
}

/// What it is done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Exchange,
    Queue,
}

impl Right {
    fn text(self) -> &'static str {
        match self {
            Right::Configure => "configure",
            Right::Write => "write",
            Right::Read => "read",
        }
    }

    fn pattern(self, permission: &Permission) -> &str {
        match self {
            Right::Configure => &permission.configure,
            Right::Write => &permission.write,
            Right::Read => &permission.read,
        }
    }
}

impl Kind {
    pub fn text(self) -> &'static str {
        match self {
            Kind::Exchange => "exchange",
            Kind::Queue => "queue",
        }
    }
}

/// A user in a vhost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Who<'a> {
    /// `None`: the broker itself, which may do everything.
    pub user: Option<&'a str>,
    pub vhost: &'a str,
}

/// What a connection may publish to, as long as no right has changed since: exchanges, and where its user has topic permissions the
/// routing keys, too.
#[derive(Debug, Default)]
pub(super) struct Writable {
    version: u64,
    exchanges: Vec<Allowed>,
    /// The place that the next one takes when all are taken.
    oldest: usize,
}

#[derive(Debug)]
struct Allowed {
    exchange: Bytes,
    /// Routing keys that may be used; `None`: this user has no topic permission on an exchange of that name.
    keys: Option<HashSet<Box<[u8]>>>,
}

impl Writable {
    /// Whether the client may publish to that exchange with these routing keys: one look into a table for what is known. The refusal is
    /// RabbitMQ's. `exchange` is `name` as it came.
    pub fn check<'a>(
        &mut self,
        patterns: &Patterns,
        catalog: &Catalog,
        who: Who<'_>,
        (exchange, name): (&Bytes, &str),
        keys: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<(), Refusal> {
        if self.version != catalog.access_version() {
            self.version = catalog.access_version();
            self.exchanges.clear();
        }
        let at = match self.exchanges.iter().position(|allowed| allowed.exchange == *exchange) {
            Some(at) => at,
            None => {
                patterns.check(catalog, who, Right::Write, (Kind::Exchange, name))?;
                self.remember(exchange, who.user.is_some_and(|user| catalog.has_topic_permission(user, who.vhost, name)))
            }
        };
        let Some(known) = &mut self.exchanges[at].keys else { return Ok(()) };
        // What kind of exchange bears that name may change without any right changing.
        if !catalog.is_topic(who.vhost, name) {
            return Ok(());
        }
        for key in keys {
            if known.contains(key) {
                continue;
            }
            patterns.check_topic(catalog, who, Right::Write, name, &String::from_utf8_lossy(key))?;
            if known.len() >= KEYS_REMEMBERED {
                known.clear();
            }
            known.insert(key.into());
        }
        Ok(())
    }

    fn remember(&mut self, exchange: &Bytes, restricted: bool) -> usize {
        let allowed = Allowed { exchange: Bytes::copy_from_slice(exchange), keys: restricted.then(HashSet::new) };
        if self.exchanges.len() < REMEMBERED {
            self.exchanges.push(allowed);
            return self.exchanges.len() - 1;
        }
        let at = self.oldest;
        self.exchanges[at] = allowed;
        self.oldest = (at + 1) % REMEMBERED;
        at
    }
}

/// Compiled permission patterns.
#[derive(Debug, Default)]
pub(super) struct Patterns(RwLock<HashMap<String, Option<Arc<Pattern>>>>);

impl Patterns {
    /// Whether `user` has the right; the refusal is RabbitMQ's.
    pub fn check(&self, catalog: &Catalog, who: Who<'_>, right: Right, (kind, name): (Kind, &str)) -> Result<(), Refusal> {
        let Who { user: Some(user), vhost } = who else { return Ok(()) };
        let name = if kind == Kind::Exchange && name.is_empty() { "amq.default" } else { name };
        let allowed = catalog.permission(user, vhost).is_some_and(|p| self.matches(right.pattern(p), name));
        if allowed {
            return Ok(());
        }
        let (right, kind) = (right.text(), kind.text());
        Err(Refusal::Access(format!("{right} access to {kind} '{name}' in vhost '{vhost}' refused for user '{user}'")))
    }

    /// Whether `user` may use this routing key of a topic exchange; `right` is write or read.
    pub fn check_topic(&self, catalog: &Catalog, who: Who<'_>, right: Right, exchange: &str, key: &str) -> Result<(), Refusal> {
        let Who { user: Some(user), vhost } = who else { return Ok(()) };
        let Some(permission) = catalog.topic_permission(user, vhost, exchange) else { return Ok(()) };
        let pattern = if right == Right::Write { &permission.write } else { &permission.read };
        let pattern = match pattern.contains('{') {
            true => Cow::Owned(pattern.replace("{username}", user).replace("{vhost}", vhost)),
            false => Cow::Borrowed(pattern.as_str()),
        };
        if self.matches(&pattern, key) {
            return Ok(());
        }
        let right = right.text();
        let topic = format!("topic '{exchange}' in vhost '{vhost}'");
        Err(Refusal::Access(format!("{right} access to topic '{key}' in exchange {topic} refused for user '{user}'")))
    }

    fn matches(&self, pattern: &str, name: &str) -> bool {
        match pattern {
            ".*" => return true,
            "" | "^$" => return name.is_empty(),
            _ => {}
        }
        if let Some(known) = self.0.read().get(pattern) {
            return known.as_ref().is_some_and(|r| r.matches(name));
        }
        let compiled = Pattern::compile(pattern).map(Arc::new);
        if let Err(why) = &compiled {
            tracing::error!(pattern, why, "this version cannot read a pattern of permissions, it allows nothing");
        }
        let compiled = compiled.ok();
        let matches = compiled.as_ref().is_some_and(|r| r.matches(name));
        let mut known = self.0.write();
        if known.len() >= PATTERNS_MAX {
            known.clear();
        }
        known.insert(pattern.to_string(), compiled);
        matches
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::LogId;
    use crate::model::admin::{AdminCommand, TopicPermission};
    use crate::model::catalog::{CatalogCommand, CatalogReply};

    #[test]
    fn patterns_match_anywhere_unless_anchored() {
        let patterns = Patterns::default();
        assert!(patterns.matches("orders", "eu.orders.new"));
        assert!(!patterns.matches("^orders", "eu.orders"));
        assert!(patterns.matches("^(a|b)$", "a"));
        assert!(!patterns.matches("", "x"), "an empty pattern permits nothing");
        assert!(!patterns.matches("(", "x"), "a broken pattern permits nothing");
        assert!(!patterns.matches("(", "x"), "also when it is known");
    }

    #[test]
    fn compiled_patterns_are_bounded() {
        let patterns = Patterns::default();
        for n in 0..3 * PATTERNS_MAX {
            assert!(patterns.matches(&format!("^{n}$"), &n.to_string()));
            assert!(patterns.0.read().len() <= PATTERNS_MAX);
        }
    }

    fn change_access(catalog: &mut Catalog, command: AdminCommand) {
        let id = LogId { index: catalog.index() + 1, ..Default::default() };
        assert_eq!(catalog.apply(id, &CatalogCommand::Admin(command)), CatalogReply::Done);
    }

    fn catalog(write: &str) -> Catalog {
        let mut catalog = Catalog::new();
        let (vhost, user) = ("/".to_owned(), "u".to_owned());
        change_access(&mut catalog, AdminCommand::AddVhost { vhost: vhost.clone(), facts: Default::default() });
        change_access(&mut catalog, AdminCommand::AddUser { user: user.clone(), password_hash: String::new() });
        let permission = Permission { configure: String::new(), write: write.into(), read: String::new() };
        change_access(&mut catalog, AdminCommand::SetPermissions { user, vhost, permission });
        catalog
    }

    const WHO: Who<'_> = Who { user: Some("u"), vhost: "/" };

    fn check(writable: &mut Writable, catalog: &Catalog, exchange: &str, key: &str) -> Result<(), Refusal> {
        let bytes = Bytes::copy_from_slice(exchange.as_bytes());
        writable.check(&Patterns::default(), catalog, WHO, (&bytes, exchange), [key.as_bytes()])
    }

    #[test]
    fn a_connection_remembers_a_few_exchanges_until_rights_change() {
        let mut catalog = catalog("^x");
        let mut writable = Writable::default();
        let knows = |writable: &Writable, n: usize| writable.exchanges.iter().any(|a| a.exchange == format!("x{n}"));
        (0..REMEMBERED + 1).for_each(|n| check(&mut writable, &catalog, &format!("x{n}"), "k").expect("allowed"));
        assert!(!knows(&writable, 0) && knows(&writable, 1) && knows(&writable, REMEMBERED));
        check(&mut writable, &catalog, "y", "k").expect_err("not allowed");
        change_access(&mut catalog, AdminCommand::ClearPermissions { user: "u".into(), vhost: "/".into() });
        check(&mut writable, &catalog, "x1", "k").expect_err("not any more");
    }

    #[test]
    fn it_remembers_some_routing_keys_where_topics_are_restricted() {
        let mut catalog = catalog(".*");
        let permission = TopicPermission { write: "^a".into(), read: String::new() };
        let set = |permission: &TopicPermission| AdminCommand::SetTopicPermissions {
            user: "u".into(),
            vhost: "/".into(),
            exchange: "amq.topic".into(),
            permission: permission.clone(),
        };
        change_access(&mut catalog, set(&permission));
        let mut writable = Writable::default();
        check(&mut writable, &catalog, "amq.direct", "b").expect("no topic exchange");
        assert!(writable.exchanges[0].keys.is_none());
        for n in 0..3 * KEYS_REMEMBERED {
            check(&mut writable, &catalog, "amq.topic", &format!("a.{n}")).expect("allowed");
            let keys = writable.exchanges[1].keys.as_ref().expect("restricted");
            assert!(keys.contains(format!("a.{n}").as_bytes()) && keys.len() <= KEYS_REMEMBERED);
        }
        check(&mut writable, &catalog, "amq.topic", "b").expect_err("not allowed");
        change_access(&mut catalog, set(&TopicPermission { write: "^b".into(), ..permission }));
        check(&mut writable, &catalog, "amq.topic", &format!("a.{}", 3 * KEYS_REMEMBERED - 1)).expect_err("not any more");
        check(&mut writable, &catalog, "amq.topic", "b").expect("allowed now");
    }
}
