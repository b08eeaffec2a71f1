//! What the edge counts: relaxed atomics, read by `management`. `*_remote` say how much crossed nodes, so that a test can prove it did.

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, n: u64) {
        if n > 0 {
            self.0.fetch_add(n, Ordering::Relaxed);
        }
    }
}

/// Messages, unless said otherwise, since this process started.
#[derive(Debug, Default)]
pub struct Counters {
    /// Accepted from clients.
    pub published: Counter,
    /// Confirmed to clients.
    pub confirmed: Counter,
    /// Nacked to clients.
    pub nacked: Counter,
    /// Mandatory messages that went back to their publishers.
    pub returned: Counter,
    /// Not routed anywhere when they were published.
    pub unroutable: Counter,
    /// Routed a second time because their queue was gone.
    pub rerouted: Counter,
    /// Batches sent to leaders, resends included.
    pub batches: Counter,
    /// Of those, to leaders on other nodes.
    pub batches_remote: Counter,
    /// Handed to consumers.
    pub delivered: Counter,
    /// Of those, from leaders on other nodes.
    pub delivered_remote: Counter,
    /// Fetched with get.
    pub got: Counter,
    /// Acknowledged.
    pub acked: Counter,
    /// Rejected without requeue.
    pub rejected: Counter,
    /// Given back to their queues by clients.
    pub requeued: Counter,
    /// Connections opened.
    pub connections_opened: Counter,
    /// Connections closed.
    pub connections_closed: Counter,
    /// Paths to leaders opened (the first one included).
    pub paths_opened: Counter,
}
