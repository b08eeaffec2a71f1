//! Who may do what: permissions as regular expressions over names and, on topic exchanges, over routing keys (RabbitMQ's rules and
//! words). Who may come in is in `admission`.

use crate::machine::catalog::{Catalog, Pattern};
use crate::model::admin::Permission;
use crate::model::catalog::Refusal;
use bytes::Bytes;
use parking_lot::RwLock;
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

/// Compiled patterns kept at most; then they are forgotten and compiled again as they come.
const PATTERNS_MAX: usize = 1024;
/// Exchanges that a connection remembers as allowed; RabbitMQ's channels remember as many things.
const REMEMBERED: usize = 12;

/// What is done to a thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Right {
    Configure,
    Write,
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
    pub user: &'a str,
    pub vhost: &'a str,
}

/// Exchanges that a connection may publish to, as long as no right has changed since.
#[derive(Debug, Default)]
pub(super) struct Writable {
    version: u64,
    exchanges: Vec<Bytes>,
    /// The place that the next one takes when all are taken.
    oldest: usize,
}

impl Writable {
    pub fn knows(&self, catalog: &Catalog, exchange: &Bytes) -> bool {
        self.version == catalog.access_version() && self.exchanges.contains(exchange)
    }

    pub fn remember(&mut self, catalog: &Catalog, exchange: &Bytes) {
        if self.version != catalog.access_version() {
            self.version = catalog.access_version();
            self.exchanges.clear();
        }
        let exchange = Bytes::copy_from_slice(exchange);
        if self.exchanges.len() < REMEMBERED {
            self.exchanges.push(exchange);
        } else {
            self.exchanges[self.oldest] = exchange;
            self.oldest = (self.oldest + 1) % REMEMBERED;
        }
    }
}

/// Compiled permission patterns.
#[derive(Debug, Default)]
pub(super) struct Patterns(RwLock<HashMap<String, Option<Arc<Pattern>>>>);

impl Patterns {
    /// Whether `user` has the right; the refusal is RabbitMQ's.
    pub fn check(&self, catalog: &Catalog, who: Who<'_>, right: Right, (kind, name): (Kind, &str)) -> Result<(), Refusal> {
        let Who { user, vhost } = who;
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
        let Who { user, vhost } = who;
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
        let compiled = Pattern::compile(pattern).ok().map(Arc::new);
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

    #[test]
    fn a_connection_remembers_a_few_exchanges_until_rights_change() {
        let mut catalog = Catalog::new();
        let exchange = |n: usize| Bytes::from(format!("x{n}"));
        let mut writable = Writable::default();
        (0..REMEMBERED + 1).for_each(|n| writable.remember(&catalog, &exchange(n)));
        assert!(!writable.knows(&catalog, &exchange(0)) && writable.knows(&catalog, &exchange(1)));
        let command = crate::model::admin::AdminCommand::DeleteUser { user: "x".into() };
        let id = crate::model::LogId { index: 9, ..Default::default() };
        catalog.apply(id, &crate::model::catalog::CatalogCommand::Admin(command));
        assert!(!writable.knows(&catalog, &exchange(1)));
        writable.remember(&catalog, &exchange(1));
        assert!(writable.knows(&catalog, &exchange(1)) && !writable.knows(&catalog, &exchange(2)));
    }
}
