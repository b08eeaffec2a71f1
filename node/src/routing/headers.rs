//! Headers exchange: the binding's arguments against the message's headers. `x-match` is `all` (default), `any`, `all-with-x` or
//! `any-with-x`; arguments that begin with `x-` count only for the last two; an argument without a value asks for presence.

use crate::model::catalog::{Table, Value};
use std::collections::BTreeMap;

const X_MATCH: &str = "x-match";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Match {
    All,
    Any,
}

#[derive(Clone, Debug)]
struct Pattern<T> {
    wanted: Match,
    fields: Vec<(String, Value)>,
    target: T,
}

impl<T> Pattern<T> {
    fn matches(&self, headers: &Table) -> bool {
        let mut fields = self.fields.iter().map(|(name, wanted)| match (wanted, headers.get(name)) {
            (_, None) => false,
            (Value::Void, Some(_)) => true,
            (wanted, Some(value)) => wanted == value,
        });
        match self.wanted {
            Match::All => fields.all(|m| m),
            Match::Any => fields.any(|m| m),
        }
    }
}

/// Targets by binding id.
#[derive(Clone, Debug)]
pub struct Headers<T>(BTreeMap<u64, Pattern<T>>);

impl<T> Default for Headers<T> {
    fn default() -> Headers<T> {
        Headers(BTreeMap::new())
    }
}

fn mode(arguments: &Table) -> Option<(Match, bool)> {
    match arguments.get(X_MATCH) {
        None => Some((Match::All, false)),
        Some(Value::Text(text)) => match text.as_slice() {
            b"all" => Some((Match::All, false)),
            b"any" => Some((Match::Any, false)),
            b"all-with-x" => Some((Match::All, true)),
            b"any-with-x" => Some((Match::Any, true)),
            _ => None,
        },
        Some(_) => None,
    }
}

/// Whether these arguments can be bound to a headers exchange; the text says why not.
pub fn check_arguments(arguments: &Table) -> Result<(), String> {
    match (mode(arguments), arguments.get(X_MATCH)) {
        (None, Some(Value::Text(text))) => Err(format!(
            "Invalid x-match field value <<\"{}\">>; expected all, any, all-with-x, or any-with-x",
            String::from_utf8_lossy(text)
        )),
        (None, Some(other)) => Err(format!("Invalid x-match field type {} (value {}); expected longstr", other.type_text(), other.text())),
        (None, None) => Ok(()),
        (Some(_), _) => Ok(()),
    }
}

impl<T> Headers<T> {
    /// Bind; arguments that `check_arguments` refuses count as `all`.
    pub fn insert(&mut self, id: u64, arguments: &Table, target: T) {
        let (wanted, with_x) = mode(arguments).unwrap_or((Match::All, false));
        let counts = |name: &str| name != X_MATCH && (with_x || !name.starts_with("x-"));
        let fields = arguments.iter().filter(|(name, _)| counts(name)).map(|(name, value)| (name.clone(), value.clone()));
        self.0.insert(id, Pattern { wanted, fields: fields.collect(), target });
    }

    /// Unbind.
    pub fn remove(&mut self, id: u64) {
        self.0.remove(&id);
    }

    /// Visits the target of each binding that matches.
    pub fn route(&self, headers: &Table, visit: &mut dyn FnMut(&T)) {
        self.0.values().filter(|p| p.matches(headers)).for_each(|p| visit(&p.target));
    }
}
