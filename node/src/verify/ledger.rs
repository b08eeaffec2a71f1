//! The account of every message of one protocol. Clients write down what they send, what becomes of it and what they get; at the end the
//! ledger says what the broker did wrong. It knows nothing of brokers: its tests feed it bad histories and see each one counted.
//! Used by the loads; what they read into it is shown by `report`.

use parking_lot::Mutex;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// Most examples kept of what went wrong.
const EXAMPLES: usize = 10;

/// A message: the conversation that published it, and its number there. Order is promised within a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Message {
    pub(super) publisher: u32,
    pub(super) number: u64,
}

/// What stands in a body. The seed keeps messages of another run out.
pub(super) fn body(seed: u64, message: Message) -> String {
    format!("verify-{seed}-{}-{}-end", message.publisher, message.number)
}

/// Read it back; `None`: not as it was written.
pub(super) fn read_body(seed: u64, body: &[u8]) -> Option<Message> {
    let mut words = std::str::from_utf8(body).ok()?.split('-').skip(2);
    let message = Message { publisher: words.next()?.parse().ok()?, number: words.next()?.parse().ok()? };
    (self::body(seed, message).as_bytes() == body).then_some(message)
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Fate {
    #[default]
    Unknown,
    Confirmed,
    Refused,
}

#[derive(Debug, Default)]
struct Entry {
    fate: Fate,
    /// Came without the mark of a repetition, or with it, or read at a place.
    came: bool,
    acknowledged: bool,
}

/// The account; shared by the threads of a load.
#[derive(Debug)]
pub(super) struct Ledger {
    seed: u64,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    entries: BTreeMap<Message, Entry>,
    /// Confirmed messages that have not come yet.
    due: HashSet<Message>,
    /// The last first delivery of a publisher to a consumer.
    last: BTreeMap<(u32, u32), u64>,
    /// What was read at each place where everything must be.
    read: BTreeMap<u16, BTreeSet<Message>>,
    counts: Counts,
}

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Counts {
    pub(super) published: u64,
    pub(super) confirmed: u64,
    /// The broker said that it did not take it; it may have come all the same.
    pub(super) refused: u64,
    /// No answer: the connection ended first.
    pub(super) unknown: u64,
    pub(super) delivered: u64,
    /// Delivered again and marked so: allowed.
    pub(super) redelivered: u64,
    /// Confirmed, and it never came.
    pub(super) lost: u64,
    /// Came, and nobody published it, or not with this content.
    pub(super) ghosts: u64,
    /// Came as new after it had been acknowledged; in a stream: stands there twice.
    pub(super) repeated: u64,
    /// Came as new after a later one of the same publisher.
    pub(super) reordered: u64,
    /// Came as new although it had come before.
    pub(super) falsely_new: u64,
    /// What went wrong first.
    pub(super) examples: Vec<String>,
}

impl Counts {
    /// How much went wrong.
    pub(super) fn wrong(&self) -> u64 {
        self.lost + self.ghosts + self.repeated + self.reordered + self.falsely_new
    }

    fn note(&mut self, what: &str, message: Message) {
        self.note_text(format!("{what}: message {} of publisher {}", message.number, message.publisher));
    }

    fn note_text(&mut self, text: String) {
        if self.examples.len() < EXAMPLES {
            self.examples.push(text);
        }
    }
}

impl Ledger {
    pub(super) fn new(seed: u64) -> Ledger {
        Ledger { seed, inner: Mutex::default() }
    }

    /// It is about to be sent, perhaps not for the first time; its body.
    pub(super) fn publish(&self, message: Message) -> String {
        self.inner.lock().entries.entry(message).or_default();
        body(self.seed, message)
    }

    /// The broker has it.
    pub(super) fn confirmed(&self, message: Message) {
        let mut inner = self.inner.lock();
        let Some(entry) = inner.entries.get_mut(&message) else { return };
        entry.fate = Fate::Confirmed;
        if !entry.came {
            inner.due.insert(message);
        }
    }

    /// The broker has not taken it, or cannot say.
    pub(super) fn refused(&self, message: Message) {
        if let Some(entry) = self.inner.lock().entries.get_mut(&message).filter(|entry| entry.fate == Fate::Unknown) {
            entry.fate = Fate::Refused;
        }
    }

    /// A consumer was given something; the message that it is, if it is one. `alone`: the consumer, where it is promised that it gets what
    /// one publisher sent in order.
    pub(super) fn delivered(&self, alone: Option<u32>, body: &[u8], is_marked: bool) -> Option<Message> {
        let mut guard = self.inner.lock();
        let Inner { entries, due, last, counts, .. } = &mut *guard;
        counts.delivered += 1;
        let (message, entry) = known(self.seed, entries, counts, body)?;
        due.remove(&message);
        let came = std::mem::replace(&mut entry.came, true);
        match (is_marked, came) {
            (true, true) => counts.redelivered += 1,
            (true, false) => {} // one was on its way and nobody got it
            (false, true) if entry.acknowledged => {
                counts.repeated += 1;
                counts.note("repeated", message);
            }
            (false, true) => {
                counts.falsely_new += 1;
                counts.note("falsely new", message);
            }
            (false, false) => {
                let Some(consumer) = alone else { return Some(message) };
                let last = last.entry((consumer, message.publisher)).or_default();
                if message.number < *last {
                    counts.reordered += 1;
                    counts.note(&format!("reordered, after {last}"), message);
                }
                *last = message.number.max(*last);
            }
        }
        Some(message)
    }

    /// A consumer has acknowledged it.
    pub(super) fn acknowledged(&self, message: Message) {
        if let Some(entry) = self.inner.lock().entries.get_mut(&message) {
            entry.acknowledged = true;
        }
    }

    /// A stream's reader on a node came to this. A reader reads from the first message on, once.
    pub(super) fn read(&self, node: u16, body: &[u8]) {
        let mut guard = self.inner.lock();
        let Inner { entries, due, last, read, counts } = &mut *guard;
        counts.delivered += 1;
        let Some((message, entry)) = known(self.seed, entries, counts, body) else { return };
        due.remove(&message);
        entry.came = true;
        if !read.entry(node).or_default().insert(message) {
            counts.repeated += 1;
            counts.note(&format!("repeated on node {node}"), message);
            return;
        }
        let last = last.entry((node.into(), message.publisher)).or_default();
        if message.number < *last {
            counts.reordered += 1;
            counts.note(&format!("reordered on node {node}"), message);
        }
        *last = message.number.max(*last);
    }

    /// Confirmed messages that have not come yet.
    pub(super) fn due(&self) -> usize {
        self.inner.lock().due.len()
    }

    /// Number of the last message of a publisher that is confirmed, 0 when there is none.
    pub(super) fn highest(&self, publisher: u32) -> u64 {
        let inner = self.inner.lock();
        let (first, last) = (Message { publisher, number: 0 }, Message { publisher, number: u64::MAX });
        let mut of_publisher = inner.entries.range(first..=last).rev();
        of_publisher.find(|(_, entry)| entry.fate == Fate::Confirmed).map_or(0, |(message, _)| message.number)
    }

    /// The account so far. With `nodes`, everything must have been read on each of them.
    pub(super) fn counts(&self, nodes: &[u16]) -> Counts {
        let inner = self.inner.lock();
        let mut counts = inner.counts.clone();
        for (message, entry) in &inner.entries {
            counts.published += 1;
            match entry.fate {
                Fate::Unknown => counts.unknown += 1,
                Fate::Refused => counts.refused += 1,
                Fate::Confirmed => counts.confirmed += 1,
            }
            if entry.fate != Fate::Confirmed {
                continue;
            }
            let is_missing = |node: &&u16| !inner.read.get(node).is_some_and(|read| read.contains(message));
            if let Some(node) = nodes.iter().find(is_missing) {
                counts.lost += 1;
                counts.note(&format!("lost on node {node}"), *message);
            } else if nodes.is_empty() && !entry.came {
                counts.lost += 1;
                counts.note("lost", *message);
            }
        }
        counts
    }
}

fn known<'a>(seed: u64, entries: &'a mut BTreeMap<Message, Entry>, counts: &mut Counts, body: &[u8]) -> Option<(Message, &'a mut Entry)> {
    let found = read_body(seed, body).and_then(|message| Some((message, entries.get_mut(&message)?)));
    if found.is_none() {
        counts.ghosts += 1;
        counts.note_text(format!("ghost: {} bytes", body.len()));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: u64 = 3;

    fn message(number: u64) -> Message {
        Message { publisher: 1, number }
    }

    fn confirmed(numbers: u64) -> Ledger {
        let ledger = Ledger::new(SEED);
        for number in 1..=numbers {
            ledger.publish(message(number));
            ledger.confirmed(message(number));
        }
        ledger
    }

    fn deliver(ledger: &Ledger, number: u64, is_marked: bool) {
        ledger.delivered(Some(7), body(SEED, message(number)).as_bytes(), is_marked);
    }

    fn read(ledger: &Ledger, node: u16, numbers: &[u64]) {
        numbers.iter().for_each(|number| ledger.read(node, body(SEED, message(*number)).as_bytes()));
    }

    /// lost, ghosts, repeated, reordered, falsely new.
    fn wrong(ledger: &Ledger, nodes: &[u16]) -> [u64; 5] {
        let counts = ledger.counts(nodes);
        let found = [counts.lost, counts.ghosts, counts.repeated, counts.reordered, counts.falsely_new];
        assert_eq!(counts.wrong(), found.iter().sum::<u64>());
        found
    }

    #[test]
    fn a_good_history_is_all_zero() {
        let ledger = confirmed(3);
        ledger.publish(message(4));
        ledger.publish(message(5));
        ledger.refused(message(5));
        assert_eq!(ledger.due(), 3);
        for number in 1..=3 {
            deliver(&ledger, number, false);
            ledger.acknowledged(message(number));
        }
        assert_eq!((wrong(&ledger, &[]), ledger.due()), ([0; 5], 0));
        let counts = ledger.counts(&[]);
        assert_eq!((counts.published, counts.confirmed, counts.refused, counts.unknown, counts.delivered), (5, 3, 1, 1, 3));
    }

    #[test]
    fn a_confirmed_message_that_never_comes_is_lost() {
        let ledger = confirmed(2);
        deliver(&ledger, 2, false);
        assert_eq!(wrong(&ledger, &[]), [1, 0, 0, 0, 0]);
        assert_eq!(ledger.counts(&[]).examples, ["lost: message 1 of publisher 1"]);
    }

    #[test]
    fn what_nobody_sent_or_what_was_changed_is_a_ghost() {
        let ledger = confirmed(1);
        deliver(&ledger, 1, false);
        deliver(&ledger, 9, false);
        ledger.delivered(Some(7), b"verify-3-1-1-en", false);
        ledger.delivered(Some(7), body(SEED + 1, message(1)).as_bytes(), false);
        assert_eq!(wrong(&ledger, &[]), [0, 3, 0, 0, 0]);
    }

    #[test]
    fn an_acknowledged_message_that_comes_as_new_is_repeated() {
        let ledger = confirmed(1);
        deliver(&ledger, 1, false);
        ledger.acknowledged(message(1));
        deliver(&ledger, 1, false);
        assert_eq!(wrong(&ledger, &[]), [0, 0, 1, 0, 0]);
    }

    #[test]
    fn a_message_that_comes_as_new_twice_is_falsely_new() {
        let ledger = confirmed(1);
        deliver(&ledger, 1, true);
        deliver(&ledger, 1, false);
        assert_eq!(wrong(&ledger, &[]), [0, 0, 0, 0, 1]);
    }

    #[test]
    fn a_repetition_that_is_marked_is_allowed() {
        let ledger = confirmed(2);
        for number in [1, 2, 1] {
            deliver(&ledger, number, number == 1);
        }
        assert_eq!((wrong(&ledger, &[]), ledger.counts(&[]).redelivered), ([0; 5], 1));
    }

    #[test]
    fn an_earlier_message_that_comes_as_new_after_a_later_one_is_reordered() {
        let ledger = confirmed(3);
        [1, 3, 2].iter().for_each(|number| deliver(&ledger, *number, false));
        assert_eq!(wrong(&ledger, &[]), [0, 0, 0, 1, 0]);
        let shared = confirmed(3);
        for number in [1, 3, 2] {
            shared.delivered(None, body(SEED, message(number)).as_bytes(), false);
        }
        assert_eq!(wrong(&shared, &[]), [0; 5]);
    }

    #[test]
    fn a_stream_must_be_whole_in_order_and_once_on_each_node() {
        let ledger = confirmed(3);
        read(&ledger, 1, &[1, 2, 3]);
        ledger.publish(message(4));
        assert_eq!((ledger.highest(1), ledger.highest(2)), (3, 0));
        assert_eq!((wrong(&ledger, &[1]), wrong(&ledger, &[1, 2])), ([0; 5], [3, 0, 0, 0, 0]));
        read(&ledger, 2, &[1, 3, 2, 3]);
        ledger.read(2, b"what");
        assert_eq!(wrong(&ledger, &[1, 2]), [0, 1, 1, 1, 0]);
    }
}
