//! Who may do what: users, vhosts, and permissions as regular expressions over names (RabbitMQ's rules and words).

use crate::machine::catalog::Catalog;
use crate::model::catalog::{Permission, Refusal};
use parking_lot::RwLock;
use regex::Regex;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

/// Compiled patterns kept at most; beyond it they are compiled each time.
const PATTERNS_MAX: usize = 1024;

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

/// Compiled permission patterns.
#[derive(Debug, Default)]
pub(super) struct Patterns(RwLock<HashMap<String, Option<Arc<Regex>>>>);

impl Patterns {
    /// Whether `user` has the right; the refusal is RabbitMQ's.
    pub fn check(&self, catalog: &Catalog, user: &str, vhost: &str, right: Right, (kind, name): (Kind, &str)) -> Result<(), Refusal> {
        let name = if kind == Kind::Exchange && name.is_empty() { "amq.default" } else { name };
        let allowed = catalog.permission(user, vhost).is_some_and(|p| self.matches(right.pattern(p), name));
        if allowed {
            return Ok(());
        }
        let (right, kind) = (right.text(), kind.text());
        Err(Refusal::Access(format!("{right} access to {kind} '{name}' in vhost '{vhost}' refused for user '{user}'")))
    }

    fn matches(&self, pattern: &str, name: &str) -> bool {
        match pattern {
            ".*" => return true,
            "" | "^$" => return name.is_empty(),
            _ => {}
        }
        if let Some(known) = self.0.read().get(pattern) {
            return known.as_ref().is_some_and(|r| r.is_match(name));
        }
        let compiled = Regex::new(pattern).ok().map(Arc::new);
        let matches = compiled.as_ref().is_some_and(|r| r.is_match(name));
        let mut known = self.0.write();
        if known.len() < PATTERNS_MAX {
            known.insert(pattern.to_string(), compiled);
        }
        matches
    }
}

/// Whether this user may log in from there. The error is for the log.
pub(super) fn authenticate(catalog: &Catalog, user: &str, password: &[u8], from: IpAddr, loopback_users: &[String]) -> Result<(), String> {
    if !catalog.authenticate(user, password) {
        return Err(format!("user '{user}': unknown or wrong password"));
    }
    if !is_loopback(from) && loopback_users.iter().any(|kept| kept == user) {
        return Err(format!("user '{user}' can only connect via localhost"));
    }
    Ok(())
}

fn is_loopback(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_loopback(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.to_ipv4_mapped().is_some_and(|v4| v4.is_loopback()),
    }
}

/// Whether this user may enter the vhost.
pub(super) fn open(catalog: &Catalog, user: &str, vhost: &str) -> Result<(), Refusal> {
    if !catalog.has_vhost(vhost) {
        return Err(Refusal::NotAllowed(format!("vhost {vhost} not found")));
    }
    if catalog.permission(user, vhost).is_none() {
        return Err(Refusal::NotAllowed(format!("access to vhost '{vhost}' refused for user '{user}'")));
    }
    Ok(())
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
}
