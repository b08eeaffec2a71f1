//! What the log says about a group apart from its entries: vote, purge point, last entry, memberships. The same transitions run
//! when a caller asks, when the writer encodes and when recovery reads, so that the three cannot differ.

use super::entry::{Payload, ShardLog, Vote};
use crate::model::{LogId, ShardId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// State of one group; also its row in a file's META record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Group {
    pub vote: Option<Vote>,
    pub purged: Option<LogId>,
    pub last: Option<LogId>,
    pub committed: Option<LogId>,
    /// All membership entries after `purged` and the newest one before, ascending.
    pub memberships: Vec<(LogId, Bytes)>,
}

pub(super) type Groups = BTreeMap<ShardId, Group>;

impl Group {
    pub fn entry(&mut self, id: LogId, payload: &Payload) {
        self.last = Some(id);
        if let Payload::Membership(bytes) = payload {
            self.memberships.push((id, bytes.clone()));
        }
    }

    /// Entries after `keep` go; never below the purge point.
    pub fn truncate(&mut self, keep: Option<LogId>) {
        self.last = later(keep, self.purged);
        let limit = self.last.map(|id| id.index);
        self.memberships.retain(|(id, _)| Some(id.index) <= limit);
    }

    /// False: not later than the present purge point, nothing happened.
    pub fn purge(&mut self, upto: LogId) -> bool {
        if self.purged.is_some_and(|p| p.index >= upto.index) {
            return false;
        }
        self.purged = Some(upto);
        self.last = later(self.last, self.purged);
        let passed = self.memberships.iter().take_while(|(id, _)| id.index <= upto.index).count();
        self.memberships.drain(..passed.saturating_sub(1));
        true
    }

    pub fn log(&self) -> ShardLog {
        ShardLog {
            vote: self.vote,
            purged: self.purged,
            last: self.last,
            committed: self.committed,
            membership: self.memberships.last().cloned(),
        }
    }
}

/// The one with the higher index.
pub(super) fn later(a: Option<LogId>, b: Option<LogId>) -> Option<LogId> {
    if b.map(|id| id.index) > a.map(|id| id.index) { b } else { a }
}
