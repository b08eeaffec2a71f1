//! A transaction on its way: tx.commit is answered when every batch that holds a part of it has its verdict. Made by
//! `edge::transaction`; batches count it down.

use crate::edge::mailbox::{ChannelRef, Mailbox};
use crate::model::catalog::Refusal;
use crate::model::step::Reply;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

#[derive(Debug)]
pub(in crate::edge) struct Committing {
    mailbox: Arc<Mailbox>,
    at: ChannelRef,
    /// Batches without a verdict, and its maker until it has handed out all parts.
    parts: AtomicU32,
    failed: AtomicBool,
}

impl Committing {
    /// Answered on that channel after `done` by its maker and by each part.
    pub fn new(mailbox: Arc<Mailbox>, at: ChannelRef) -> Arc<Committing> {
        Arc::new(Committing { mailbox, at, parts: AtomicU32::new(1), failed: AtomicBool::new(false) })
    }

    /// One more batch holds a part.
    pub fn add(&self) {
        self.parts.fetch_add(1, Ordering::AcqRel);
    }

    /// A message of it was refused.
    pub fn fail(&self) {
        self.failed.store(true, Ordering::Release);
    }

    /// A part is done; the last one answers.
    pub fn done(&self) {
        if self.parts.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        let partial = self.failed.load(Ordering::Acquire);
        let result = if partial { Err(Refusal::Precondition("partial tx completion".to_string())) } else { Ok(Reply::Done) };
        self.mailbox.reply(self.at, result);
    }
}
