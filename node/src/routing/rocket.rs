//! Rocket topic: a topic exchange with partitions. A binding with the argument `x-partition` takes the messages of that partition,
//! whatever their routing key; any other binding is one of a topic exchange. The partition follows from the header `__SHARDINGKEY`, and is any
//! one for a message without it.

use super::{Subject, Targets, Topic, hash};
use crate::model::catalog::{Table, Value};
use crate::model::properties::header;
use crate::model::rocketmq::{PARTITION, PARTITIONS_MAX, SHARDING_KEY, partitions};
use std::collections::BTreeMap;

/// Targets by partition and by pattern.
#[derive(Clone, Debug)]
pub struct Rocket<T> {
    partitions: u32,
    parts: BTreeMap<u32, Targets<T>>,
    patterns: Topic<T>,
    /// Bindings of partitions, by id.
    placed: BTreeMap<u64, u32>,
}

/// Whether an exchange can be declared with these arguments; the text says why not.
pub fn check_partitions(arguments: &Table) -> Result<(), String> {
    match arguments.get(crate::model::rocketmq::PARTITIONS) {
        None => Ok(()),
        Some(Value::Int(n)) if (1..=i64::from(PARTITIONS_MAX)).contains(n) => Ok(()),
        Some(other) => Err(format!("Invalid argument {}, 'x-partitions' must be 1 to {PARTITIONS_MAX}", other.text())),
    }
}

impl<T: Ord> Rocket<T> {
    /// For an exchange with these arguments.
    pub fn new(arguments: &Table) -> Rocket<T> {
        Rocket { partitions: partitions(arguments), parts: BTreeMap::new(), patterns: Topic::default(), placed: BTreeMap::new() }
    }

    /// Bind. A partition that the topic does not have gets nothing.
    pub fn insert(&mut self, id: u64, key: &[u8], arguments: &Table, target: T) {
        match arguments.get(PARTITION) {
            Some(Value::Int(n)) => {
                let part = u32::try_from(*n).unwrap_or(u32::MAX);
                self.placed.insert(id, part);
                self.parts.entry(part).or_default().insert(target);
            }
            Some(_) | None => self.patterns.insert(key, target),
        }
    }

    /// Unbind.
    pub fn remove(&mut self, id: u64, key: &[u8], target: &T) {
        let Some(part) = self.placed.remove(&id) else { return self.patterns.remove(key, target) };
        if let Some(targets) = self.parts.get_mut(&part) {
            targets.remove(target);
            if targets.is_empty() {
                self.parts.remove(&part);
            }
        }
    }

    /// Visits the targets of the message's partition, and those whose pattern one of the keys matches.
    pub fn route(&self, keys: &[&[u8]], subject: &dyn Subject, visit: &mut dyn FnMut(&T)) {
        if !self.parts.is_empty()
            && let Some(targets) = self.parts.get(&self.partition(subject))
        {
            targets.visit(visit);
        }
        keys.iter().for_each(|key| self.patterns.route(key, visit));
    }

    fn partition(&self, subject: &dyn Subject) -> u32 {
        if self.partitions == 1 {
            return 0;
        }
        let hash = match header(subject.properties(), SHARDING_KEY) {
            Some([b'S', _, _, _, _, key @ ..]) => hash::of_bytes(key),
            Some(other) => hash::of_bytes(other),
            None => subject.random(),
        };
        (hash % u64::from(self.partitions)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::properties::HEADERS;
    use crate::model::rocketmq::{PARTITIONS, partition_arguments};
    use crate::routing::HashProperty;
    use std::collections::BTreeSet;

    struct Message(Vec<u8>, u64);

    impl Subject for Message {
        fn headers(&self) -> &Table {
            unreachable!("a rocket topic reads the one header it needs")
        }
        fn property(&self, _: HashProperty) -> Option<&[u8]> {
            None
        }
        fn properties(&self) -> &[u8] {
            &self.0
        }
        fn random(&self) -> u64 {
            self.1
        }
    }

    fn keyed(key: &str) -> Message {
        let mut body = vec![SHARDING_KEY.len() as u8];
        body.extend_from_slice(SHARDING_KEY.as_bytes());
        body.push(b'S');
        body.extend_from_slice(&(key.len() as u32).to_be_bytes());
        body.extend_from_slice(key.as_bytes());
        let mut list = HEADERS.to_be_bytes().to_vec();
        list.extend_from_slice(&(body.len() as u32).to_be_bytes());
        list.extend_from_slice(&body);
        Message(list, 0)
    }

    fn topic(n: u32) -> Rocket<u32> {
        let mut topic = Rocket::new(&Table::from([(PARTITIONS.to_owned(), Value::Int(n.into()))]));
        (0..n).for_each(|p| topic.insert(p.into(), b"#", &partition_arguments(p), p));
        topic
    }

    fn routed(topic: &Rocket<u32>, key: &str, message: &Message) -> Vec<u32> {
        let mut found = Vec::new();
        topic.route(&[key.as_bytes()], message, &mut |t| found.push(*t));
        found
    }

    #[test]
    fn a_sharding_key_has_one_partition_and_many_keys_have_all() {
        let topic = topic(8);
        let mut used = BTreeSet::new();
        for n in 0..200 {
            let message = keyed(&format!("key-{n}"));
            let found = routed(&topic, "tag", &message);
            assert_eq!(found.len(), 1);
            assert_eq!(found, routed(&topic, "another tag", &message));
            used.extend(found);
        }
        assert_eq!(used.len(), 8);
    }

    #[test]
    fn without_a_key_any_partition_takes_it() {
        let topic = topic(4);
        let at = |random| routed(&topic, "", &Message(vec![0, 0], random));
        assert_eq!((at(0), at(5), at(7)), (vec![0], vec![1], vec![3]));
    }

    #[test]
    fn other_bindings_are_those_of_a_topic_exchange() {
        let mut topic = topic(1);
        topic.insert(100, b"a.*", &Table::new(), 7);
        assert_eq!(routed(&topic, "a.b", &keyed("k")), [0, 7]);
        assert_eq!(routed(&topic, "b", &keyed("k")), [0]);
        topic.remove(0, b"#", &0);
        topic.remove(100, b"a.*", &7);
        assert!(routed(&topic, "a.b", &keyed("k")).is_empty());
    }

    #[test]
    fn the_number_of_partitions_is_limited() {
        let of = |value| check_partitions(&Table::from([(PARTITIONS.to_owned(), value)]));
        assert!(of(Value::Int(1)).is_ok() && of(Value::Int(64)).is_ok());
        assert!(of(Value::Int(0)).is_err() && of(Value::Int(65)).is_err() && of(Value::Bool(true)).is_err());
    }
}
