//! What a run found, as text and as JSON.

use super::args::Load;
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use std::time::Duration;

/// Whether all runs were clean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every message came once, in order, unchanged.
    Clean,
    /// So many runs were not.
    Wrong(usize),
}

/// An empty histogram of microseconds, 1 us to 10 minutes, three digits.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000, 3).expect("the bounds are constants in range")
}

/// One run in figures. Rates per second after the warm-up; latencies of the same time.
#[derive(Clone, Debug)]
pub(super) struct Figures {
    pub load: Load,
    pub published: u64,
    pub confirmed: u64,
    pub nacked: u64,
    /// Neither confirmed nor refused by the end.
    pub unconfirmed: u64,
    pub consumed: u64,
    pub confirm_rate: f64,
    pub consume_rate: f64,
    pub confirm_us: Histogram<u64>,
    pub end_to_end_us: Histogram<u64>,
    /// Longest time between two confirms of a producer, after the warm-up.
    pub longest_gap_us: u64,
    /// Confirmed and never consumed.
    pub lost: u64,
    pub repeated: u64,
    pub reordered: u64,
    pub redelivered: u64,
    pub corrupt: u64,
    pub bogus_confirms: u64,
    /// Connections that broke, closes by the broker.
    pub failures: Vec<String>,
}

impl Figures {
    pub(super) fn new(load: &Load) -> Figures {
        Figures {
            load: load.clone(),
            published: 0,
            confirmed: 0,
            nacked: 0,
            unconfirmed: 0,
            consumed: 0,
            confirm_rate: 0.0,
            consume_rate: 0.0,
            confirm_us: histogram(),
            end_to_end_us: histogram(),
            longest_gap_us: 0,
            lost: 0,
            repeated: 0,
            reordered: 0,
            redelivered: 0,
            corrupt: 0,
            bogus_confirms: 0,
            failures: Vec::new(),
        }
    }

    /// Nothing lost, repeated, reordered, changed or cut off.
    pub(super) fn is_clean(&self) -> bool {
        let wrong = [self.lost, self.repeated, self.reordered, self.redelivered, self.corrupt, self.bogus_confirms, self.unconfirmed];
        wrong.iter().all(|count| *count == 0) && self.failures.is_empty() && self.confirmed > 0
    }

    /// The run on a few lines.
    pub(super) fn text(&self) -> String {
        let p = |h: &Histogram<u64>, q: f64| millis(h.value_at_quantile(q));
        let line = |name: &str, h: &Histogram<u64>| {
            format!(
                "  {name:<11} p50 {}  p95 {}  p99 {}  p99.9 {}  max {} ms",
                p(h, 0.5),
                p(h, 0.95),
                p(h, 0.99),
                p(h, 0.999),
                millis(h.max())
            )
        };
        let mut lines = vec![format!(
            "  confirmed {:.0}/s, consumed {:.0}/s, longest gap between confirms {} ms",
            self.confirm_rate,
            self.consume_rate,
            millis(self.longest_gap_us)
        )];
        lines.push(line("confirm", &self.confirm_us));
        if self.load.consumers > 0 {
            lines.push(line("end to end", &self.end_to_end_us));
        }
        lines.push(format!(
            "  {} published, {} confirmed, {} nacked, {} unconfirmed, {} consumed; lost {}, repeated {}, reordered {}, redelivered {}, changed {}, false confirms {}",
            self.published, self.confirmed, self.nacked, self.unconfirmed, self.consumed, self.lost, self.repeated, self.reordered, self.redelivered, self.corrupt, self.bogus_confirms
        ));
        lines.extend(self.failures.iter().map(|failure| format!("  ! {failure}")));
        lines.join("\n")
    }

    /// The run as JSON.
    pub(super) fn json(&self) -> Value {
        json!({
            "load": {
                "queue_type": self.load.queue_type, "size": self.load.size, "producers": self.load.producers, "consumers": self.load.consumers,
                "queues": self.load.queues, "window": self.load.window, "prefetch": self.load.prefetch, "rate": self.load.rate, "seconds": self.load.seconds,
            },
            "published": self.published, "confirmed": self.confirmed, "nacked": self.nacked, "unconfirmed": self.unconfirmed, "consumed": self.consumed,
            "confirm_rate": self.confirm_rate, "consume_rate": self.consume_rate, "longest_gap_us": self.longest_gap_us,
            "confirm_us": percentiles(&self.confirm_us), "end_to_end_us": percentiles(&self.end_to_end_us),
            "lost": self.lost, "repeated": self.repeated, "reordered": self.reordered, "redelivered": self.redelivered, "corrupt": self.corrupt,
            "false_confirms": self.bogus_confirms, "failures": self.failures, "clean": self.is_clean(),
        })
    }
}

fn percentiles(h: &Histogram<u64>) -> Value {
    let at = |q: f64| h.value_at_quantile(q);
    json!({ "p50": at(0.5), "p90": at(0.9), "p95": at(0.95), "p99": at(0.99), "p999": at(0.999), "max": h.max(), "count": h.len() })
}

fn millis(us: u64) -> String {
    format!("{:.2}", us as f64 / 1000.0)
}

/// The line of a second: published, confirmed, consumed.
pub(super) fn progress(at: Duration, took: Duration, before: [u64; 3], now: [u64; 3], nacked: u64) {
    let rate = |n: usize| (now[n] - before[n]) as f64 / took.as_secs_f64();
    let waiting = now[1].saturating_sub(now[2]);
    eprintln!(
        "  {:>4.0} s  published {:>8.0}/s  confirmed {:>8.0}/s  consumed {:>8.0}/s  confirmed and not consumed {waiting}  nacked {nacked}",
        at.as_secs_f64(),
        rate(0),
        rate(1),
        rate(2)
    );
}

/// The middle value, or the mean of the two in the middle; 0 of none.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (n, half) = (sorted.len(), sorted.len() / 2);
    match n {
        0 => 0.0,
        _ if n % 2 == 1 => sorted[half],
        _ => (sorted[half - 1] + sorted[half]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_a_few() {
        assert_eq!((median(&[]), median(&[3.0]), median(&[9.0, 1.0, 2.0]), median(&[4.0, 2.0])), (0.0, 3.0, 2.0, 3.0));
    }
}
