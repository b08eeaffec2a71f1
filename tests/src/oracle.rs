//! The judge. Publishers tell it what they sent and what became of it, consumers what they got and when they settled it; at the end it
//! says what the broker did wrong. It knows nothing of brokers: its own tests feed it bad histories and see them named.
//!
//! A message is (publisher, number). A body is publisher u32 | number u64 | filler | crc32c u32 of all before.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};
use warren::bench::client::Delivery;

/// Most examples kept of one kind of wrong.
const EXAMPLES: usize = 5;
/// Smallest body.
pub const BODY_MIN: usize = 16;

/// A message's name.
pub type Message = (u32, u64);

/// Write the body of a message: `size` bytes, at least `BODY_MIN`.
pub fn body(message: Message, size: usize) -> Vec<u8> {
    let mut body = Vec::with_capacity(size.max(BODY_MIN));
    body.extend_from_slice(&message.0.to_le_bytes());
    body.extend_from_slice(&message.1.to_le_bytes());
    body.resize(size.max(BODY_MIN) - 4, message.1 as u8);
    body.extend_from_slice(&checksum(&body).to_le_bytes());
    body
}

/// Read it back; `None` when a byte is not as it was written.
pub fn read_body(body: &[u8]) -> Option<Message> {
    let (content, sum) = body.split_at_checked(body.len().checked_sub(4)?)?;
    if checksum(content).to_le_bytes() != sum || content.len() < BODY_MIN - 4 {
        return None;
    }
    let publisher = u32::from_le_bytes(content[..4].try_into().ok()?);
    Some((publisher, u64::from_le_bytes(content[4..12].try_into().ok()?)))
}

/// CRC-32C, bit by bit in a table of 16: slow, and nobody else's.
fn checksum(bytes: &[u8]) -> u32 {
    let mut table = [0u32; 16];
    for (at, entry) in table.iter_mut().enumerate() {
        *entry = (0..4).fold(at as u32, |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 });
    }
    let step = |crc: u32, byte: &u8| {
        let crc = crc ^ u32::from(*byte);
        let crc = crc >> 4 ^ table[(crc & 15) as usize];
        crc >> 4 ^ table[(crc & 15) as usize]
    };
    !bytes.iter().fold(!0, step)
}

/// Records a history.
#[derive(Debug, Default)]
pub struct Oracle {
    history: Mutex<History>,
}

#[derive(Debug, Default)]
struct History {
    sent: BTreeMap<Message, Sent>,
    /// By queue: when a publisher's numbers were last seen fresh, by consumer.
    last_fresh: BTreeMap<(u32, u32), u64>,
    /// Consumers whose connection ended; true: by a close that the broker answered, after which what they settled is settled.
    ended: BTreeMap<u32, bool>,
    found: Findings,
    /// What happened to each message, when that is wanted: since when, what, which consumer.
    stories: Option<(Instant, BTreeMap<Message, Story>)>,
}

type Story = Vec<(Duration, &'static str, u32)>;

impl History {
    fn tell(&mut self, message: Message, what: &'static str, consumer: u32) {
        if let Some((begun, stories)) = &mut self.stories {
            stories.entry(message).or_default().push((begun.elapsed(), what, consumer));
        }
    }
}

impl History {
    fn tell_holder(&mut self, consumer: u32, what: &'static str) {
        if self.stories.is_some() {
            let held: Vec<Message> = self.sent.iter().filter(|(_, sent)| sent.holder == Some(consumer)).map(|(m, _)| *m).collect();
            held.into_iter().for_each(|message| self.tell(message, what, consumer));
        }
    }
}

#[derive(Debug, Default)]
struct Sent {
    fate: Fate,
    times: u32,
    holder: Option<u32>,
    settled: bool,
    requeued: bool,
    /// Had it, neither gave it back nor ended, and then it came to somebody else: whether to allow that is a question of its own.
    former: Vec<u32>,
    /// One of those has acknowledged it. The broker may let it go for that at any time, whoever holds it then.
    stale_settle: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Fate {
    /// Neither confirmed nor refused: the connection broke, or it is still due.
    #[default]
    Unknown,
    Confirmed,
    Nacked,
}

/// A count with a few examples.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// How many.
    pub count: u64,
    /// The first of them.
    pub examples: Vec<Message>,
}

impl Found {
    fn add(&mut self, message: Message) {
        self.count += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(message);
        }
    }
}

/// The judgement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Messages sent.
    pub published: u64,
    /// Of these, confirmed.
    pub confirmed: u64,
    /// Of these, refused.
    pub nacked: u64,
    /// Of these, neither.
    pub unknown: u64,
    /// Deliveries.
    pub delivered: u64,
    /// Confirmed and never delivered.
    pub lost: Found,
    /// Delivered and never sent.
    pub ghosts: Found,
    /// Delivered again although settled, or while somebody alive holds it.
    pub duplicates: Found,
    /// Delivered again without the redelivered flag.
    pub false_fresh: Found,
    /// Delivered for the first time, unflagged, after a later one of its publisher to the same consumer.
    pub reordered: Found,
    /// Delivered again, flagged, after its holder ended or gave it back: allowed, but not where all clients survive.
    pub redelivered: Found,
    /// Flagged as redelivered though it was never delivered before: allowed, but not where all clients survive.
    pub cautious: Found,
    /// Bodies that are not as they were written.
    pub corrupt: u64,
    /// Confirmed or refused twice, or without having been sent.
    pub false_verdicts: Found,
}

impl Oracle {
    /// Remembers what happened to each message.
    pub fn with_stories() -> Oracle {
        let history = History { stories: Some((Instant::now(), BTreeMap::new())), ..History::default() };
        Oracle { history: Mutex::new(history) }
    }

    /// What happened to these.
    pub fn stories(&self, messages: &[Message]) -> Vec<String> {
        let history = self.lock();
        let Some((_, stories)) = &history.stories else { return Vec::new() };
        let told = messages.iter().filter_map(|message| Some((message, stories.get(message)?)));
        let line = |(at, what, consumer): &(Duration, &str, u32)| format!("{} ms {what} {consumer}", at.as_millis());
        told.map(|(message, story)| format!("{message:?}: {}", story.iter().map(line).collect::<Vec<_>>().join(", "))).collect()
    }

    /// A publisher is about to write this.
    pub fn published(&self, message: Message) {
        self.lock().sent.insert(message, Sent::default());
    }

    /// basic.ack came for it.
    pub fn confirmed(&self, message: Message) {
        self.verdict(message, Fate::Confirmed);
    }

    /// basic.nack came for it.
    pub fn nacked(&self, message: Message) {
        self.verdict(message, Fate::Nacked);
    }

    fn verdict(&self, message: Message, fate: Fate) {
        let mut guard = self.lock();
        let history = &mut *guard;
        match history.sent.get_mut(&message) {
            Some(sent) if sent.fate == Fate::Unknown => sent.fate = fate,
            Some(_) | None => history.found.false_verdicts.add(message),
        }
    }

    /// A consumer got something; the message it is, if it is one.
    pub fn delivered(&self, consumer: u32, delivery: &Delivery) -> Option<Message> {
        let message = read_body(&delivery.body);
        match message {
            Some(message) => self.got(consumer, message, delivery.redelivered),
            None => self.lock().found.corrupt += 1,
        }
        message
    }

    /// A consumer got this message. What reaches one that has ended reaches nobody.
    pub fn got(&self, consumer: u32, message: Message, redelivered: bool) {
        let mut guard = self.lock();
        let history = &mut *guard;
        if history.ended.contains_key(&consumer) {
            return;
        }
        history.found.delivered += 1;
        history.tell(message, if redelivered { "again to" } else { "fresh to" }, consumer);
        let Some(sent) = history.sent.get_mut(&message) else { return history.found.ghosts.add(message) };
        sent.times += 1;
        if sent.times == 1 {
            if redelivered {
                history.found.cautious.add(message);
            } else {
                let last = history.last_fresh.entry((consumer, message.0)).or_default();
                if message.1 < *last {
                    history.found.reordered.add(message);
                }
                *last = message.1.max(*last);
            }
        } else {
            // A settle on its way when its connection broke may be lost; any other settle is final.
            let let_go = match sent.holder.and_then(|holder| history.ended.get(&holder)) {
                None => false,
                Some(closed) => !(*closed && sent.settled),
            };
            if let Some(former) = sent.holder.filter(|holder| *holder != consumer && !let_go && !sent.requeued) {
                sent.former.push(former);
                sent.stale_settle |= sent.settled;
            }
            match (redelivered, let_go || sent.requeued) {
                (false, _) => history.found.false_fresh.add(message),
                (true, true) => history.found.redelivered.add(message),
                (true, false) => history.found.duplicates.add(message),
            }
        }
        (sent.holder, sent.settled, sent.requeued) = (Some(consumer), false, false);
    }

    /// A consumer acknowledged it.
    pub fn settled(&self, message: Message) {
        if let Some(sent) = self.lock().sent.get_mut(&message) {
            sent.settled = true;
        }
    }

    /// A consumer gave it back.
    pub fn requeued(&self, message: Message) {
        if let Some(sent) = self.lock().sent.get_mut(&message) {
            sent.requeued = true;
        }
    }

    /// This consumer is about to acknowledge it; false when it is no longer its to settle.
    pub fn settled_by(&self, consumer: u32, message: Message) -> bool {
        let holds = self.held_by(consumer, message, "settled by", |sent| sent.settled = true);
        if !holds {
            let mut guard = self.lock();
            let history = &mut *guard;
            let ended = history.ended.contains_key(&consumer);
            if let Some(sent) = history.sent.get_mut(&message).filter(|sent| !ended && sent.former.contains(&consumer)) {
                sent.stale_settle = true;
            }
        }
        holds
    }

    /// This consumer is about to give it back; false when it is no longer its to give.
    pub fn requeued_by(&self, consumer: u32, message: Message) -> bool {
        self.held_by(consumer, message, "given back by", |sent| sent.requeued = true)
    }

    fn held_by(&self, consumer: u32, message: Message, what: &'static str, then: impl FnOnce(&mut Sent)) -> bool {
        let mut guard = self.lock();
        let history = &mut *guard;
        history.tell(message, what, consumer);
        let ended = history.ended.contains_key(&consumer);
        let held = history.sent.get_mut(&message).filter(|sent| !ended && sent.holder == Some(consumer));
        held.map(then).is_some()
    }

    /// A consumer's connection broke; what it held, settled or not, may come again.
    pub fn ended(&self, consumer: u32) {
        let mut history = self.lock();
        history.tell_holder(consumer, "broke off:");
        history.ended.insert(consumer, false);
    }

    /// A consumer closed its connection and the broker answered; what it held and had not settled may come again.
    pub fn closed(&self, consumer: u32) {
        let mut history = self.lock();
        history.tell_holder(consumer, "let go by");
        // A connection that had broken by then was not answered.
        history.ended.entry(consumer).or_insert(true);
    }

    /// Confirmed messages that were not delivered yet.
    pub fn due(&self) -> usize {
        self.lock().sent.values().filter(|sent| sent.fate == Fate::Confirmed && sent.times == 0).count()
    }

    /// Confirmed messages that nobody who may has settled, with examples.
    pub fn unsettled(&self) -> Found {
        let mut found = Found::default();
        let history = self.lock();
        let open = history.sent.iter().filter(|(_, sent)| sent.fate == Fate::Confirmed && !sent.settled && !sent.stale_settle);
        open.for_each(|(message, _)| found.add(*message));
        found
    }

    /// Confirmed so far.
    pub fn confirmed_count(&self) -> u64 {
        self.lock().sent.values().filter(|sent| sent.fate == Fate::Confirmed).count() as u64
    }

    /// The judgement; ask when everything has been drained.
    pub fn findings(&self) -> Findings {
        let history = self.lock();
        let mut found = history.found.clone();
        for (message, sent) in &history.sent {
            found.published += 1;
            match sent.fate {
                Fate::Unknown => found.unknown += 1,
                Fate::Nacked => found.nacked += 1,
                Fate::Confirmed => found.confirmed += 1,
            }
            if sent.fate == Fate::Confirmed && sent.times == 0 {
                found.lost.add(*message);
            }
        }
        found
    }

    fn lock(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

impl Findings {
    /// What no broker may do, whatever fails.
    pub fn assert_safe(&self) {
        let wrong = [&self.lost, &self.ghosts, &self.duplicates, &self.false_fresh, &self.reordered, &self.false_verdicts];
        assert!(wrong.iter().all(|found| found.count == 0) && self.corrupt == 0, "the broker broke its promise: {self}");
        assert!(self.confirmed > 0, "nothing was confirmed: the test proves nothing: {self}");
    }

    /// And nothing that clients which survive would notice.
    pub fn assert_unnoticed(&self) {
        self.assert_safe();
        assert_eq!(self.redelivered.count + self.cautious.count, 0, "surviving clients saw redeliveries: {self}");
        assert_eq!(self.nacked + self.unknown, 0, "surviving publishers were refused or left without an answer: {self}");
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} published, {} confirmed, {} nacked, {} unknown, {} delivered",
            self.published, self.confirmed, self.nacked, self.unknown, self.delivered
        )?;
        let kinds = [
            ("lost", &self.lost),
            ("ghosts", &self.ghosts),
            ("duplicates", &self.duplicates),
            ("false redelivered=false", &self.false_fresh),
            ("reordered", &self.reordered),
            ("redelivered", &self.redelivered),
            ("flagged without cause", &self.cautious),
            ("false verdicts", &self.false_verdicts),
        ];
        for (name, found) in kinds.iter().filter(|(_, found)| found.count > 0) {
            write!(f, "; {} {name}, e.g. (publisher, number) {:?}", found.count, found.examples)?;
        }
        if self.corrupt > 0 { write!(f, "; {} corrupt", self.corrupt) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One publisher, messages 1..=n sent and confirmed.
    fn confirmed(n: u64) -> Oracle {
        let oracle = Oracle::default();
        for number in 1..=n {
            oracle.published((0, number));
            oracle.confirmed((0, number));
        }
        oracle
    }

    fn deliver_all(oracle: &Oracle, numbers: impl IntoIterator<Item = u64>) {
        for number in numbers {
            oracle.got(1, (0, number), false);
            oracle.settled((0, number));
        }
    }

    #[test]
    fn a_good_history_is_unnoticed() {
        let oracle = confirmed(10);
        deliver_all(&oracle, 1..=10);
        oracle.findings().assert_unnoticed();
        assert_eq!(oracle.due(), 0);
    }

    #[test]
    fn a_confirmed_message_that_never_comes_is_lost() {
        let oracle = confirmed(10);
        deliver_all(&oracle, (1..=10).filter(|n| *n != 7));
        assert_eq!(oracle.findings().lost, Found { count: 1, examples: vec![(0, 7)] });
    }

    #[test]
    fn an_unconfirmed_or_refused_message_may_come_or_not() {
        let oracle = confirmed(1);
        (2..=5).for_each(|number| oracle.published((0, number)));
        oracle.nacked((0, 4));
        oracle.nacked((0, 5));
        deliver_all(&oracle, [1, 2, 4]);
        let found = oracle.findings();
        found.assert_safe();
        assert_eq!((found.unknown, found.nacked), (2, 2));
    }

    #[test]
    fn a_message_nobody_sent_is_a_ghost() {
        let oracle = confirmed(1);
        deliver_all(&oracle, [1]);
        oracle.got(1, (9, 1), false);
        assert_eq!(oracle.findings().ghosts.count, 1);
    }

    #[test]
    fn a_settled_message_that_comes_again_is_a_duplicate() {
        let oracle = confirmed(3);
        deliver_all(&oracle, 1..=3);
        oracle.got(1, (0, 2), true);
        assert_eq!(oracle.findings().duplicates.count, 1);
    }

    #[test]
    fn a_message_that_two_live_consumers_hold_is_a_duplicate() {
        let oracle = confirmed(1);
        oracle.got(1, (0, 1), false);
        oracle.got(2, (0, 1), true);
        assert_eq!(oracle.findings().duplicates.count, 1);
    }

    #[test]
    fn a_second_delivery_without_the_flag_is_a_lie_even_when_the_holder_died() {
        let oracle = confirmed(1);
        oracle.got(1, (0, 1), false);
        oracle.ended(1);
        oracle.got(2, (0, 1), false);
        let found = oracle.findings();
        assert_eq!((found.false_fresh.count, found.redelivered.count), (1, 0));
    }

    #[test]
    fn a_flagged_second_delivery_after_the_holder_died_is_safe_but_noticed() {
        let oracle = confirmed(1);
        oracle.got(1, (0, 1), false);
        oracle.ended(1);
        oracle.got(2, (0, 1), true);
        let found = oracle.findings();
        found.assert_safe();
        assert_eq!(found.redelivered.count, 1);
        assert!(std::panic::catch_unwind(|| found.assert_unnoticed()).is_err());
    }

    #[test]
    fn what_was_settled_before_an_orderly_close_must_not_come_again() {
        let oracle = confirmed(2);
        oracle.got(1, (0, 1), false);
        oracle.settled((0, 1));
        oracle.got(1, (0, 2), false);
        oracle.closed(1);
        oracle.got(2, (0, 1), true);
        oracle.got(2, (0, 2), true);
        let found = oracle.findings();
        assert_eq!((found.duplicates.examples, found.redelivered.examples), (vec![(0, 1)], vec![(0, 2)]));
    }

    #[test]
    fn what_was_settled_just_before_the_connection_broke_may_come_again_whatever_the_client_did_then() {
        let oracle = confirmed(1);
        oracle.got(1, (0, 1), false);
        oracle.settled((0, 1));
        oracle.ended(1);
        oracle.closed(1);
        oracle.got(2, (0, 1), true);
        let found = oracle.findings();
        assert_eq!((found.duplicates.count, found.redelivered.count), (0, 1));
    }

    #[test]
    fn what_was_given_back_may_come_again_once() {
        let oracle = confirmed(1);
        oracle.got(1, (0, 1), false);
        oracle.requeued((0, 1));
        oracle.got(1, (0, 1), true);
        assert_eq!(oracle.findings().duplicates.count, 0);
        oracle.got(1, (0, 1), true);
        assert_eq!(oracle.findings().duplicates.count, 1);
    }

    #[test]
    fn a_former_holder_that_lives_may_settle_what_came_to_another() {
        let oracle = confirmed(2);
        for number in 1..=2 {
            oracle.got(1, (0, number), false);
        }
        assert!(oracle.settled_by(1, (0, 2)));
        for number in 1..=2 {
            oracle.got(2, (0, number), true);
            oracle.requeued_by(2, (0, number));
        }
        assert_eq!(oracle.unsettled().examples, vec![(0, 1)], "the second was settled by one that had it and lives");
        assert!(!oracle.settled_by(3, (0, 1)), "never had it");
        assert_eq!(oracle.unsettled().count, 1);
        assert!(!oracle.settled_by(1, (0, 1)), "is not its any more");
        assert_eq!(oracle.unsettled().count, 0);
        assert_eq!(oracle.findings().duplicates.count, 2, "where no client is taken for gone, that is not allowed all the same");
    }

    #[test]
    fn a_former_holder_that_ended_settles_nothing() {
        let oracle = confirmed(2);
        oracle.got(1, (0, 1), false);
        oracle.got(1, (0, 2), false);
        oracle.settled_by(1, (0, 2));
        oracle.ended(1);
        oracle.got(2, (0, 1), true);
        oracle.got(2, (0, 2), true);
        oracle.settled_by(1, (0, 1));
        oracle.requeued_by(2, (0, 1));
        oracle.closed(2);
        assert_eq!(oracle.unsettled().examples, vec![(0, 1), (0, 2)]);
    }

    #[test]
    fn a_later_message_before_an_earlier_one_is_reordering() {
        let oracle = confirmed(4);
        deliver_all(&oracle, [1, 3, 2, 4]);
        assert_eq!(oracle.findings().reordered, Found { count: 1, examples: vec![(0, 2)] });
    }

    #[test]
    fn the_flag_on_a_first_delivery_is_safe_but_noticed() {
        let oracle = confirmed(1);
        oracle.got(1, (0, 1), true);
        let found = oracle.findings();
        found.assert_safe();
        assert_eq!(found.cautious.count, 1);
    }

    #[test]
    fn a_second_verdict_and_one_for_nothing_are_false() {
        let oracle = confirmed(1);
        oracle.confirmed((0, 1));
        oracle.nacked((5, 5));
        assert_eq!(oracle.findings().false_verdicts.count, 2);
    }

    #[test]
    fn every_changed_byte_of_a_body_is_seen() {
        let message = (3, 1 << 40);
        let body = body(message, 64);
        assert_eq!((body.len(), read_body(&body)), (64, Some(message)));
        for at in 0..body.len() {
            let mut changed = body.clone();
            changed[at] ^= 0x10;
            assert_eq!(read_body(&changed), None, "byte {at}");
        }
        assert_eq!(read_body(&body[..63]), None);
        assert_eq!(read_body(b""), None);
    }

    #[test]
    fn the_checksum_is_crc32c() {
        assert_eq!(checksum(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn nothing_confirmed_proves_nothing() {
        assert!(std::panic::catch_unwind(|| Oracle::default().findings().assert_safe()).is_err());
    }
}
