//! A polite publisher and consumer beside clients that misbehave: they must see nothing of them.

use crate::Broker;
use crate::load::{self, ConsumerOptions, ConsumerReport, PublisherOptions, PublisherReport, Running};
use crate::oracle::Oracle;
use std::sync::Arc;
use std::time::Duration;

/// A publisher and a consumer of one queue; they run until `finish`.
pub struct Polite {
    oracle: Arc<Oracle>,
    publisher: Running<PublisherReport>,
    consumer: Running<ConsumerReport>,
}

impl Polite {
    /// Both through node `at`, `rate` messages a second.
    pub fn start(broker: &Broker, at: usize, queue: &str, rate: u64) -> Polite {
        let oracle = Arc::new(Oracle::default());
        let consumer = load::consume(&oracle, &broker.dial(at), 1, queue, &ConsumerOptions::default());
        let publisher = load::publish(&oracle, &broker.dial(at), 1, queue, &PublisherOptions { rate, ..PublisherOptions::default() });
        Polite { oracle, publisher, consumer }
    }

    /// Nothing was lost or repeated, no connection was closed, and confirms never stood still for longer than `gap`.
    pub fn finish(self, gap: Duration) {
        let report = self.publisher.stop();
        let drained = load::drained(&self.oracle, Duration::from_secs(30));
        let closes = [report.closes, self.consumer.stop().closes].concat();
        assert!(closes.is_empty(), "{closes:?}");
        let findings = self.oracle.findings();
        println!("polite clients: {findings}; longest gap {} ms", report.longest_gap.as_millis());
        findings.assert_unnoticed();
        assert!(drained && report.longest_gap <= gap, "confirms stood still for {:?}", report.longest_gap);
    }
}
