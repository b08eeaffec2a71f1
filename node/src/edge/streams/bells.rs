//! Who waits for news of a stream: readers at its end hang a bell here, whoever applies entries rings it. Nobody polls, and a stream that
//! nobody waits for costs a look at a counter.

use crate::model::QueueId;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use tokio::sync::Notify;

/// The bells of a node's streams.
#[derive(Debug, Default)]
pub struct Bells {
    bells: Mutex<HashMap<QueueId, Weak<Notify>>>,
    /// Of `bells`.
    count: AtomicUsize,
}

/// One stream's. It goes with the last reader that holds it.
#[derive(Debug)]
pub(super) struct Bell {
    stream: QueueId,
    notify: Arc<Notify>,
    bells: Arc<Bells>,
}

impl Bells {
    /// Chunks came to this stream, or it is gone. Never blocks.
    pub fn ring(&self, stream: QueueId) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        self.bells.lock().get(&stream).and_then(Weak::upgrade).inspect(|bell| bell.notify_waiters());
    }

    /// Another state took the place of the one that was there: whatever waits looks again.
    pub fn ring_all(&self) {
        self.bells.lock().values().filter_map(Weak::upgrade).for_each(|bell| bell.notify_waiters());
    }

    pub(super) fn of(self: &Arc<Self>, stream: QueueId) -> Bell {
        let mut bells = self.bells.lock();
        let notify = bells.get(&stream).and_then(Weak::upgrade).unwrap_or_default();
        bells.insert(stream, Arc::downgrade(&notify));
        self.count.store(bells.len(), Ordering::Release);
        drop(bells);
        Bell { stream, notify, bells: self.clone() }
    }
}

impl Bell {
    /// What is rung.
    pub fn notify(&self) -> &Notify {
        &self.notify
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        // Who rings or hangs another bell holds the lock, too.
        let mut bells = self.bells.bells.lock();
        if Arc::strong_count(&self.notify) == 1 {
            bells.remove(&self.stream);
            self.bells.count.store(bells.len(), Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn a_bell_wakes_who_waits_for_its_stream_and_goes_with_its_last_reader() {
        let bells = Arc::new(Bells::default());
        let (one, twin, other) = (bells.of(QueueId(1)), bells.of(QueueId(1)), bells.of(QueueId(2)));
        let mut waits: Vec<_> = [&one, &twin, &other].map(|bell| Box::pin(bell.notify().notified())).into();
        waits.iter_mut().for_each(|wait| {
            wait.as_mut().enable();
        });
        bells.ring(QueueId(1));
        let woken: Vec<bool> = waits.iter_mut().map(|wait| wait.as_mut().now_or_never().is_some()).collect();
        assert_eq!(woken, [true, true, false]);
        drop(waits);
        drop((one, other));
        assert_eq!(bells.count.load(Ordering::Relaxed), 1);
        drop(twin);
        assert!(bells.bells.lock().is_empty());
    }
}
