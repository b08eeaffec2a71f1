//! Answers that clients are to read: what they take together in memory. While that is much, nobody is handed messages.

use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// All answers of a port that are not written yet.
pub(super) struct Outbox {
    bytes: AtomicUsize,
    most: usize,
}

struct Lent {
    document: Vec<u8>,
    outbox: Arc<Outbox>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.document
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.outbox.bytes.fetch_sub(self.document.len(), Ordering::Relaxed);
    }
}

impl Outbox {
    /// Empty; from `most` bytes on it is full.
    pub fn new(most: usize) -> Arc<Outbox> {
        Arc::new(Outbox { bytes: AtomicUsize::new(0), most })
    }

    /// Requests that are under way may still answer.
    pub fn is_full(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) >= self.most
    }

    /// A document, which counts until its last copy is gone.
    pub fn add(self: &Arc<Self>, document: String) -> Bytes {
        self.bytes.fetch_add(document.len(), Ordering::Relaxed);
        Bytes::from_owner(Lent { document: document.into_bytes(), outbox: self.clone() })
    }
}
