//! What a session has done, in numbers. Its listener adds them up for the node's figures.

use super::Session;

/// Numbers of one session, or of all that a node has had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Publishers that it has now.
    pub publishers: u64,
    /// Subscriptions that it has now.
    pub subscriptions: u64,
    /// Messages that came to be stored; a sub-entry batch is one.
    pub published: u64,
    /// Bytes of them, with their heads.
    pub published_bytes: u64,
    /// Messages that were confirmed.
    pub confirmed: u64,
    /// Messages that a PublishError was about.
    pub errored: u64,
    /// Chunks that were sent.
    pub chunks: u64,
    /// Messages in them.
    pub delivered: u64,
    /// Bytes of their data.
    pub delivered_bytes: u64,
}

impl Session {
    /// What it has done until now.
    pub fn counts(&self) -> Counts {
        let (publishers, subscriptions) = (self.publishers.len() as u64, self.subscriptions.len() as u64);
        Counts { publishers, subscriptions, ..self.counts }
    }
}
