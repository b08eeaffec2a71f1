//! A data shard's place on this node as `serving` knows it: its group may leave and come back while whoever serves it stays.

use super::shard::{OutcomeSink, Shard};
use crate::model::LeaderId;
use crate::model::entry::EntryBytes;
use crate::model::ports::{Bodies, ProposalOutcome, Proposer};
use crate::model::stored::StoredEntry;
use arc_swap::ArcSwapOption;
use futures::FutureExt;
use futures::future::BoxFuture;
use std::io;
use std::sync::Arc;

/// Proposes and reads through whatever group is there.
pub struct Seat {
    group: ArcSwapOption<Shard>,
    sink: OutcomeSink,
}

impl Seat {
    /// Outcomes go to `sink`.
    pub fn new(sink: OutcomeSink) -> Arc<Seat> {
        Arc::new(Seat { group: ArcSwapOption::empty(), sink })
    }

    /// A group takes it; call it before the group runs.
    pub fn take(&self, group: &Shard) {
        group.on_outcome(self.sink.clone());
        self.group.store(Some(Arc::new(group.clone())));
    }

    /// The group is gone.
    pub fn leave(&self) {
        self.group.store(None);
    }
}

impl Proposer for Seat {
    fn propose(&self, token: u64, leader: LeaderId, entry: EntryBytes) {
        match &*self.group.load() {
            Some(group) => group.propose(token, leader, entry),
            None => (self.sink)(token, ProposalOutcome::Failed("this node has no replica of the shard".into())),
        }
    }

    fn lease_valid(&self) -> bool {
        self.group.load().as_ref().is_some_and(|group| group.lease_valid())
    }
}

impl Bodies for Seat {
    fn cached(&self, index: u64) -> Option<EntryBytes> {
        self.group.load().as_ref()?.cached(index)
    }

    fn read(&self, index: u64) -> BoxFuture<'static, io::Result<EntryBytes>> {
        match &*self.group.load() {
            Some(group) => group.read(index),
            None => async { Err(no_replica()) }.boxed(),
        }
    }

    fn read_run(&self, indices: Vec<u64>) -> BoxFuture<'static, io::Result<Vec<StoredEntry>>> {
        match &*self.group.load() {
            Some(group) => group.read_run(indices),
            None => async { Err(no_replica()) }.boxed(),
        }
    }
}

fn no_replica() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "this node has no replica of the shard")
}
