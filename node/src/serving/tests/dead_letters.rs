//! Dead letters on their way, and what counts failed deliveries.

use super::*;
use crate::model::ports::{DeadLetterOffice, Letter, LetterDone, RoutedLetter};
use crate::model::settings::DeadLetter;

const OTHER: ShardId = ShardId(4);

type Sent = ((ShardId, u64), ShardId, String, LetterDone);

/// Letters go to Q2 here, and to another shard when `far` is set.
#[derive(Default)]
pub(super) struct TestOffice {
    pub closed: AtomicBool,
    pub far: AtomicBool,
    sent: Mutex<Vec<Sent>>,
}

impl DeadLetterOffice for TestOffice {
    fn route(&self, letter: &Letter) -> Option<RoutedLetter> {
        let message = StoredMessage::parse(letter.message.clone()).unwrap();
        let target = if self.far.load(Ordering::Relaxed) { (OTHER, vec![QueueId(99)]) } else { (ShardId(1), vec![Q2]) };
        let StoredMessage { properties, body, .. } = message;
        let (exchange, key) = ("dlx".into(), format!("{:?}", letter.reason).into());
        let routed = RoutedLetter { exchange, key, properties, body, targets: vec![target] };
        (!self.closed.load(Ordering::Relaxed)).then_some(routed)
    }

    fn forward(&self, letter: (ShardId, u64), target: ShardId, _queues: &[QueueId], routed: &RoutedLetter, done: LetterDone) {
        self.sent.lock().push((letter, target, String::from_utf8(routed.body.to_vec()).unwrap(), done));
    }
}

impl TestOffice {
    async fn sent(&self, n: usize) -> Vec<(u64, String)> {
        for _ in 0..500 {
            let sent: Vec<_> = self.sent.lock().iter().map(|s| (s.0.1, s.2.clone())).collect();
            if sent.len() >= n {
                return sent;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never {n} letters");
    }
}

fn buried() -> QueueSettings {
    QueueSettings { dead_letter: Some(DeadLetter { exchange: "dlx".into(), routing_key: None }), ..QueueSettings::default() }
}

impl Edge {
    async fn reject(&mut self, first: u64, last: u64) {
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
        assert_eq!(shard.machine.lock().dead_from(0).count(), 0);
    }
}

#[tokio::test]
async fn letters_wait_while_they_cannot_be_routed_and_survive_failed_proposals() {
    let shard = Shard::with(QueueSettings { max_length: Some(1), ..buried() });
    shard.declare(&[Q2]);
    shard.office.closed.store(true, Ordering::Relaxed);
    let mut edge = shard.edge(1).await;
    edge.publish(Q, 0..4).await;
    assert_eq!(shard.machine.lock().dead_from(0).count(), 3);
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
    shard.office.sent.lock()[0].3();
    let done = |machine: &Arc<Mutex<DataMachine>>| machine.lock().dead_from(0).map(|d| d.0).collect::<Vec<_>>();
    while done(&shard.machine) != [2] {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let shard = shard.fail_over();
    // Where it goes was fixed: the new leader only sends it.
    assert_eq!(shard.office.sent(1).await, [(2, "m1".to_owned())]);
    assert_eq!(shard.office.sent.lock()[0].1, OTHER);
    shard.office.sent.lock()[0].3();
    while !done(&shard.machine).is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
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
        edge.give_back(Q, 1, 1, true).await;
    }
    assert_eq!(edge.letter().await, letter("DeliveryLimit", "m0"));
    assert_eq!(edge.get(Q).await, Ok(Some((2, false, 0))));
}
