//! How the writer gets on, for those who must not wait for a lock to know.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Of one log.
pub(super) struct Pace {
    opened: Instant,
    /// When the write under way began, microseconds after `opened`, and one; 0: none is under way.
    began_us: AtomicU64,
    queued_bytes: AtomicUsize,
}

impl Pace {
    pub fn new() -> Pace {
        Pace { opened: Instant::now(), began_us: AtomicU64::new(0), queued_bytes: AtomicUsize::new(0) }
    }

    /// A batch goes to the disk.
    pub fn began(&self) {
        self.began_us.store(self.opened.elapsed().as_micros() as u64 + 1, Ordering::Relaxed);
    }

    /// It is durable.
    pub fn ended(&self) {
        self.began_us.store(0, Ordering::Relaxed);
    }

    /// How long the write and sync under way have been taking.
    pub fn writing_for(&self) -> Option<Duration> {
        let began_us = self.began_us.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.opened.elapsed().saturating_sub(Duration::from_micros(began_us)))
    }

    /// Entries of so many bytes are appended.
    pub fn queued(&self, bytes: usize) {
        self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// They are durable.
    pub fn settled(&self, bytes: usize) {
        // Never below zero: who waits for room would wait for ever.
        let less = |queued: usize| Some(queued.saturating_sub(bytes));
        let _ = self.queued_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// Bytes of entries that are not durable yet.
    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes.load(Ordering::Relaxed)
    }
}
