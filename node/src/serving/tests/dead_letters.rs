//! Dead letters on their way, and what counts failed deliveries.

use super::*;
use crate::model::letters::{Address, Letter, LetterFate, LetterMessage, RoutedRun, Source};
use crate::model::ports::{DeadLetterOffice, LetterAnswered};
use crate::model::settings::DeadLetter;

const OTHER: ShardId = ShardId(4);

/// A letter that left the shard.
pub(super) struct Sent {
    source: Source,
    target: ShardId,
    body: String,
    /// Place in what was sent together.
    at: u64,
    answered: LetterAnswered,
}

/// Letters go to Q2 here, and to another shard when `far` is set.
#[derive(Default)]
pub(super) struct TestOffice {
    pub closed: AtomicBool,
    pub far: AtomicBool,
    /// Routed by a catalog that is so much ahead.
    pub ahead: AtomicUsize,
    sent: Mutex<Vec<Sent>>,
}

impl DeadLetterOffice for TestOffice {
    fn route(&self, letters: &[Letter], address: &Address) -> Option<Vec<RoutedRun>> {
        let target = if self.far.load(Ordering::Relaxed) { (OTHER, vec![QueueId(99)]) } else { (ShardId(1), vec![Q2]) };
        let messages = letters.iter().map(|letter| self.write(letter, address)).collect();
        let catalog_index = self.ahead.load(Ordering::Relaxed) as u64;
        let routed = RoutedRun { catalog_index, messages, targets: vec![target] };
        (!self.closed.load(Ordering::Relaxed)).then_some(vec![routed])
    }

    fn write(&self, letter: &Letter, _address: &Address) -> LetterMessage {
        let StoredMessage { properties, body, .. } = StoredMessage::parse(letter.message.clone()).unwrap();
        LetterMessage { exchange: "dlx".into(), key: format!("{:?}", letter.reason).into(), properties, body }
    }

    fn forward(&self, first: Source, to: (ShardId, &[QueueId]), _index: u64, letters: &[LetterMessage], answered: LetterAnswered) {
        for (at, message) in (0..).zip(letters) {
            let source = Source { number: first.number + at * to.1.len() as u64, ..first };
            let body = String::from_utf8(message.body.to_vec()).unwrap();
            self.sent.lock().push(Sent { source, target: to.0, body, at, answered: answered.clone() });
        }
    }
}

impl TestOffice {
    /// Number and body of each letter sent so far, once there are `n`.
    async fn sent(&self, n: usize) -> Vec<(u64, String)> {
        for _ in 0..500 {
            let sent: Vec<_> = self.sent.lock().iter().map(|s| (s.source.number, s.body.clone())).collect();
            if sent.len() >= n {
                return sent;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never {n} letters");
    }

    fn answer(&self, nth: usize, fate: LetterFate) {
        let (at, answered) = {
            let sent = &self.sent.lock()[nth];
            (sent.at, sent.answered.clone())
        };
        answered((at, at), fate);
    }
}

/// Numbers of the letters that are somewhere on their way.
fn on_their_way(machine: &Arc<Mutex<DataMachine>>) -> Vec<u64> {
    let machine = machine.lock();
    let runs = machine.routed_letters();
    let mut numbers: Vec<u64> = runs.flat_map(|(first, run)| (first..).take(run.dead.at.count as usize)).collect();
    let mut from = 0;
    while let Some((number, _)) = machine.waiting_letters(Q, from) {
        numbers.push(number);
        from = number + 1;
    }
    numbers.sort_unstable();
    numbers
}

fn buried() -> QueueSettings {
    QueueSettings { dead_letter: Some(DeadLetter { exchange: "dlx".into(), routing_key: None }), ..QueueSettings::default() }
}

impl Edge {
    /// Fetches what waits, up to `last`, and rejects these of it.
    async fn reject(&mut self, first: u64, last: u64) {
        loop {
            self.up(ToLeader::Get { request: 6, queue: Q, no_ack: false }).await;
            match self.down().await {
                ToEdge::Got { request: 6, result: Ok(Some((delivery, _))) } if delivery.seq >= Seq(last) => break,
                ToEdge::Got { request: 6, result: Ok(Some(_)) } => {}
                other => panic!("{other:?}"),
            }
        }
        let batch = self.batch(|ops| ops.settle(Q, SettleReason::Reject, &[(Seq(first), Seq(last))]));
        let seq = batch.seq;
        self.up(ToLeader::Batch(batch)).await;
        assert_eq!(self.down().await, ToEdge::Verdict { seq, refused: vec![] });
    }

    /// The next message of Q2, once it is there: its key and body.
    async fn letter(&mut self) -> (String, String) {
        for _ in 0..500 {
            self.up(ToLeader::Get { request: 7, queue: Q2, no_ack: false }).await;
            if let ToEdge::Got { result: Ok(Some((delivery, _))), .. } = self.down().await {
                let message = StoredMessage::parse(delivery.message).unwrap();
                let text = |bytes: &bytes::Bytes| String::from_utf8(bytes.to_vec()).unwrap();
                return (text(&message.key), text(&message.body));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no letter");
    }
}

fn letter(reason: &str, body: &str) -> (String, String) {
    (reason.to_owned(), body.to_owned())
}

#[tokio::test]
async fn letters_go_to_queues_of_the_shard_in_order() {
    for shard in [Shard::with(buried()), {
        let cold = Shard::cold();
        cold.catalog.2.lock().push((Q, buried()));
        cold.declare(&[Q]);
        cold
    }] {
        shard.declare(&[Q2]);
        let mut edge = shard.edge(1).await;
        edge.publish(Q, 0..3).await;
        edge.reject(2, 3).await;
        assert_eq!(edge.letter().await, letter("Reject", "m1"));
        assert_eq!(edge.letter().await, letter("Reject", "m2"));
        assert!(on_their_way(&shard.machine).is_empty());
    }
}

#[tokio::test]
async fn letters_wait_while_they_cannot_be_routed_and_survive_failed_proposals() {
    let shard = Shard::with(QueueSettings { max_length: Some(1), ..buried() });
    shard.declare(&[Q2]);
    shard.office.closed.store(true, Ordering::Relaxed);
    let mut edge = shard.edge(1).await;
    edge.publish(Q, 0..4).await;
    assert_eq!(on_their_way(&shard.machine), [1, 2, 3]);
    shard.gate.fail.store(3, Ordering::Relaxed);
    shard.office.closed.store(false, Ordering::Relaxed);
    for body in ["m0", "m1", "m2"] {
        assert_eq!(edge.letter().await, letter("MaxLength", body));
    }
    assert_eq!(edge.get(Q2).await, Ok(None), "each once");
}

#[tokio::test]
async fn letters_for_another_shard_are_sent_until_it_has_them_with_the_same_number() {
    let shard = Shard::with(buried());
    shard.office.far.store(true, Ordering::Relaxed);
    let mut edge = shard.edge(1).await;
    edge.publish(Q, 0..2).await;
    edge.reject(1, 2).await;
    let sent = shard.office.sent(2).await;
    assert_eq!(sent, [(1, "m0".to_owned()), (2, "m1".to_owned())]);
    shard.office.answer(0, LetterFate::Taken);
    while on_their_way(&shard.machine) != [2] {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let shard = shard.fail_over();
    // Where it goes was fixed: the new leader only sends it.
    assert_eq!(shard.office.sent(1).await, [(2, "m1".to_owned())]);
    assert_eq!(shard.office.sent.lock()[0].target, OTHER);
    shard.office.answer(0, LetterFate::Taken);
    while !on_their_way(&shard.machine).is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_refused_letter_stops_those_behind_it_and_is_sent_again_with_its_number_until_it_is_taken() {
    let shard = Shard::with(buried());
    shard.office.far.store(true, Ordering::Relaxed);
    let mut edge = shard.edge(1).await;
    edge.publish(Q, 0..3).await;
    edge.reject(1, 1).await;
    assert_eq!(shard.office.sent(1).await, [(1, "m0".to_owned())]);
    shard.office.answer(0, LetterFate::Refused);
    edge.reject(2, 3).await;
    let first = (1, "m0".to_owned());
    assert_eq!(shard.office.sent(2).await, [first.clone(), first.clone()]);
    shard.office.answer(1, LetterFate::Refused);
    assert_eq!(shard.office.sent(3).await[2], first);
    shard.office.answer(2, LetterFate::Taken);
    assert_eq!(shard.office.sent(5).await[3..], [(2, "m1".to_owned()), (3, "m2".to_owned())]);
    [3, 4].into_iter().for_each(|nth| shard.office.answer(nth, LetterFate::Taken));
    while !on_their_way(&shard.machine).is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn letters_wait_for_room_in_a_queue_of_the_shard_that_refuses() {
    let shard = Shard::with(buried());
    shard.catalog.2.lock().push((Q2, QueueSettings { max_length: Some(1), overflow: Overflow::RejectPublish, ..QueueSettings::default() }));
    shard.declare(&[Q2]);
    let mut edge = shard.edge(1).await;
    edge.publish(Q, 0..3).await;
    edge.reject(1, 3).await;
    for (n, body) in ["m0", "m1", "m2"].into_iter().enumerate() {
        assert_eq!(edge.letter().await, letter("Reject", body));
        edge.settle(Q2, n as u64 + 1, n as u64 + 1).await;
    }
    assert!(on_their_way(&shard.machine).is_empty());
}

#[tokio::test]
async fn a_letter_for_a_queue_that_the_shard_has_not_heard_of_waits_until_it_has() {
    let shard = Shard::with(buried());
    let mut edge = shard.edge(1).await;
    edge.publish(Q, 0..1).await;
    // The next change of the catalog makes Q2.
    shard.office.ahead.store(shard.catalog.index() as usize + 1, Ordering::Relaxed);
    edge.reject(1, 1).await;
    tokio::time::sleep(QUIET).await;
    assert_eq!(on_their_way(&shard.machine), [1]);
    shard.declare(&[Q2]);
    assert_eq!(edge.letter().await, letter("Reject", "m0"));
    assert!(on_their_way(&shard.machine).is_empty());
}

#[tokio::test]
async fn failed_deliveries_are_counted_before_the_next_and_one_too_many_is_the_last() {
    let shard = Shard::with(QueueSettings { delivery_limit: Some(1), ..buried() });
    shard.declare(&[Q2]);
    let mut edge = shard.edge(1).await;
    edge.publish(Q, 0..2).await;
    for failures in [0, 1] {
        edge.up(ToLeader::Get { request: 7, queue: Q, no_ack: false }).await;
        let ToEdge::Got { result: Ok(Some((delivery, _))), .. } = edge.down().await else { panic!("nothing") };
        assert_eq!((delivery.seq, delivery.failures, delivery.redelivered), (Seq(1), failures, failures > 0));
        // Told twice, as after a change of leaders, it counts once.
        for _ in 0..2 {
            let before = if failures > 0 { vec![(Seq(1), failures)] } else { vec![] };
            let ranges = vec![(Seq(1), Seq(1))];
            edge.up(ToLeader::Return { queue: Q, ranges, seen: true, failures: before }).await;
        }
    }
    assert_eq!(edge.letter().await, letter("DeliveryLimit", "m0"));
    assert_eq!(edge.get(Q).await, Ok(Some((2, false, 0))));
}

#[tokio::test]
async fn a_get_is_answered_while_the_first_message_has_expired_and_its_letter_finds_no_room() {
    const FULL: u64 = limits::OUTBOX_LETTERS;
    let shard = Shard::with(QueueSettings { message_ttl_ms: Some(1), max_priority: Some(1), ..buried() });
    shard.office.closed.store(true, Ordering::Relaxed);
    let mut edge = shard.edge(1).await;
    let first = edge.batch(|ops| {
        (0..FULL).for_each(|_| {
            ops.enqueue(&[Q], b"", b"key", &[0, 0], b"");
        });
    });
    let seq = first.seq;
    edge.up(ToLeader::Batch(first)).await;
    assert_eq!(edge.down().await, ToEdge::Verdict { seq, refused: vec![] });
    while shard.machine.lock().buries(Q) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    edge.publish(Q, 0..1).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(edge.get(Q).await, Ok(None));
    assert_eq!(edge.stat(Q).await.ready, 1, "it waits for room");
}
