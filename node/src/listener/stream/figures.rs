//! What all stream clients of a node do, in numbers: each connection adds what its session has done since the last time.

use crate::session::stream::Counts;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Sums over all connections, those that have ended too; read when `/metrics` is scraped.
#[derive(Debug, Default)]
pub struct Figures {
    publishers: AtomicU64,
    subscriptions: AtomicU64,
    published: AtomicU64,
    published_bytes: AtomicU64,
    confirmed: AtomicU64,
    errored: AtomicU64,
    chunks: AtomicU64,
    delivered: AtomicU64,
    delivered_bytes: AtomicU64,
}

impl Figures {
    /// As they are now.
    pub fn counts(&self) -> Counts {
        let read = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        Counts {
            publishers: read(&self.publishers),
            subscriptions: read(&self.subscriptions),
            published: read(&self.published),
            published_bytes: read(&self.published_bytes),
            confirmed: read(&self.confirmed),
            errored: read(&self.errored),
            chunks: read(&self.chunks),
            delivered: read(&self.delivered),
            delivered_bytes: read(&self.delivered_bytes),
        }
    }

    /// What has changed from `old` to `new`; publishers and subscriptions may have become fewer.
    fn add(&self, old: &Counts, new: &Counts) {
        let add = |figure: &AtomicU64, old: u64, new: u64| {
            if old != new {
                figure.fetch_add(new.wrapping_sub(old), Ordering::Relaxed);
            }
        };
        add(&self.publishers, old.publishers, new.publishers);
        add(&self.subscriptions, old.subscriptions, new.subscriptions);
        add(&self.published, old.published, new.published);
        add(&self.published_bytes, old.published_bytes, new.published_bytes);
        add(&self.confirmed, old.confirmed, new.confirmed);
        add(&self.errored, old.errored, new.errored);
        add(&self.chunks, old.chunks, new.chunks);
        add(&self.delivered, old.delivered, new.delivered);
        add(&self.delivered_bytes, old.delivered_bytes, new.delivered_bytes);
    }
}

/// A connection's part of the figures. Dropped with it: its publishers and subscriptions are gone then.
pub(super) struct Tally {
    figures: Arc<Figures>,
    told: Counts,
}

impl Tally {
    pub fn new(figures: Arc<Figures>) -> Tally {
        Tally { figures, told: Counts::default() }
    }

    /// The session has come so far.
    pub fn tell(&mut self, counts: Counts) {
        if self.told != counts {
            self.figures.add(&self.told, &counts);
            self.told = counts;
        }
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.tell(Counts { publishers: 0, subscriptions: 0, ..self.told });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_add_up_and_who_ends_takes_its_publishers_but_not_its_messages() {
        let figures = Arc::new(Figures::default());
        let (mut one, mut two) = (Tally::new(figures.clone()), Tally::new(figures.clone()));
        one.tell(Counts { publishers: 2, published: 10, ..Counts::default() });
        two.tell(Counts { publishers: 1, subscriptions: 3, published: 5, ..Counts::default() });
        one.tell(Counts { publishers: 1, published: 12, ..Counts::default() });
        assert_eq!(figures.counts(), Counts { publishers: 2, subscriptions: 3, published: 17, ..Counts::default() });
        drop((one, two));
        assert_eq!(figures.counts(), Counts { published: 17, ..Counts::default() });
    }
}
