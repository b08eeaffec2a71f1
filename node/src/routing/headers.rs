//! Headers exchange: the binding's arguments against the message's headers. `x-match` is `all` (default), `any`, `all-with-x` or
//! `any-with-x`; arguments that begin with `x-` count only for the last two; an argument without a value asks for presence.
//!
//! Bindings are found by what they ask for: one that wants all of its fields lies under that one of them which the fewest others lie
//! under, one that wants any lies under each. A message looks at the bindings under its own headers only.

use crate::model::catalog::{Table, Value};
use hashbrown::{Equivalent, HashMap};
use std::collections::BTreeSet;
use std::hash::Hash;

const X_MATCH: &str = "x-match";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Match {
    All,
    Any,
}

#[derive(Clone, Debug)]
struct Pattern<T> {
    wanted: Match,
    /// Of one that wants all, the one that it lies under comes first.
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

/// Bindings that ask for one header.
#[derive(Clone, Debug, Default)]
struct Asking {
    /// For this text.
    texts: HashMap<Box<[u8]>, BTreeSet<u64>>,
    /// For this number.
    numbers: HashMap<i64, BTreeSet<u64>>,
    /// For any other value, or none.
    others: BTreeSet<u64>,
}

/// What a value is looked up by.
enum Key<'a> {
    Text(&'a [u8]),
    Number(i64),
    Other,
}

impl Key<'_> {
    fn of(value: &Value) -> Key<'_> {
        match value {
            Value::Text(text) => Key::Text(text),
            Value::Int(number) => Key::Number(*number),
            Value::Void | Value::Bool(_) | Value::Float(_) | Value::Double(_) | Value::Decimal(..) => Key::Other,
            Value::Bytes(_) | Value::Timestamp(_) | Value::List(_) | Value::Table(_) => Key::Other,
        }
    }
}

fn take<K, Q>(from: &mut HashMap<K, BTreeSet<u64>>, key: &Q, id: u64)
where
    K: Hash + Eq,
    Q: Hash + Equivalent<K> + ?Sized,
{
    if from.get_mut(key).is_some_and(|ids| ids.remove(&id) && ids.is_empty()) {
        from.remove(key);
    }
}

impl Asking {
    /// How many ask for this.
    fn len(&self, wanted: &Value) -> usize {
        match Key::of(wanted) {
            Key::Text(text) => self.texts.get(text).map_or(0, BTreeSet::len),
            Key::Number(number) => self.numbers.get(&number).map_or(0, BTreeSet::len),
            Key::Other => self.others.len(),
        }
    }

    fn insert(&mut self, wanted: &Value, id: u64) {
        let ids = match Key::of(wanted) {
            Key::Text(text) => self.texts.entry(text.into()).or_default(),
            Key::Number(number) => self.numbers.entry(number).or_default(),
            Key::Other => &mut self.others,
        };
        ids.insert(id);
    }

    /// True when none is left.
    fn remove(&mut self, wanted: &Value, id: u64) -> bool {
        match Key::of(wanted) {
            Key::Text(text) => take(&mut self.texts, text, id),
            Key::Number(number) => take(&mut self.numbers, &number, id),
            Key::Other => _ = self.others.remove(&id),
        }
        self.texts.is_empty() && self.numbers.is_empty() && self.others.is_empty()
    }

    /// Those that a message with this value may match by it.
    fn candidates(&self, value: &Value) -> impl Iterator<Item = u64> + '_ {
        let exact = match Key::of(value) {
            Key::Text(text) => self.texts.get(text),
            Key::Number(number) => self.numbers.get(&number),
            Key::Other => None,
        };
        exact.into_iter().flatten().chain(&self.others).copied()
    }
}

/// Targets by binding id.
#[derive(Clone, Debug)]
pub struct Headers<T> {
    patterns: HashMap<u64, Pattern<T>>,
    /// By the name of the header.
    asking: HashMap<String, Asking>,
    /// Those that want nothing.
    bare: BTreeSet<u64>,
}

impl<T> Default for Headers<T> {
    fn default() -> Headers<T> {
        Headers { patterns: HashMap::new(), asking: HashMap::new(), bare: BTreeSet::new() }
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
        self.remove(id);
        let (wanted, with_x) = mode(arguments).unwrap_or((Match::All, false));
        let counts = |name: &str| name != X_MATCH && (with_x || !name.starts_with("x-"));
        let fields = arguments.iter().filter(|(name, _)| counts(name)).map(|(name, value)| (name.clone(), value.clone()));
        let mut fields: Vec<(String, Value)> = fields.collect();
        match wanted {
            Match::Any => fields.iter().for_each(|(name, value)| self.asking.entry(name.clone()).or_default().insert(value, id)),
            Match::All => {
                let others = |(name, value): &(String, Value)| self.asking.get(name).map_or(0, |asking| asking.len(value));
                match (0..fields.len()).min_by_key(|at| others(&fields[*at])) {
                    Some(rarest) => {
                        fields.swap(0, rarest);
                        self.asking.entry(fields[0].0.clone()).or_default().insert(&fields[0].1, id);
                    }
                    None => _ = self.bare.insert(id),
                }
            }
        }
        self.patterns.insert(id, Pattern { wanted, fields, target });
    }

    /// Unbind.
    pub fn remove(&mut self, id: u64) {
        let Some(pattern) = self.patterns.remove(&id) else { return };
        self.bare.remove(&id);
        let lies_under = match pattern.wanted {
            Match::All => pattern.fields.get(..1).unwrap_or_default(),
            Match::Any => &pattern.fields,
        };
        for (name, value) in lies_under {
            if self.asking.get_mut(name).is_some_and(|asking| asking.remove(value, id)) {
                self.asking.remove(name);
            }
        }
    }

    /// Visits the target of each binding that matches; one that wants any of its fields as often as it has some.
    pub fn route(&self, headers: &Table, visit: &mut dyn FnMut(&T)) {
        let by_header = headers.iter().filter_map(|(name, value)| Some((self.asking.get(name)?, value)));
        let candidates = self.bare.iter().copied().chain(by_header.flat_map(|(asking, value)| asking.candidates(value)));
        candidates.filter_map(|id| self.patterns.get(&id)).filter(|p| p.matches(headers)).for_each(|p| visit(&p.target));
    }
}
