//! What the log says about a group apart from its entries: vote, purge point, last entry, memberships. The same transitions run
//! when a caller asks, when the writer encodes and when recovery reads, so that the three cannot differ.

use super::entry::{Damage, Payload, ShardLog, Vote};
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
    /// A snapshot whose installation has begun.
    #[serde(default)]
    pub pending: Option<Pending>,
    /// The last installed snapshot.
    #[serde(default)]
    pub installed: Option<LogId>,
    /// Records were lost and the group is not rebuilt yet.
    #[serde(default)]
    pub damaged: Option<Damage>,
}

/// A snapshot whose installation has begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pending {
    /// The state after this entry.
    pub upto: LogId,
    /// The members of the group then.
    pub membership: Option<(LogId, Bytes)>,
}

pub(super) type Groups = BTreeMap<ShardId, Group>;

impl Group {
    /// An entry was appended; one that a purge has overtaken counts for nothing.
    pub fn entry(&mut self, id: LogId, payload: &Payload) {
        if self.purged.is_some_and(|p| p.index >= id.index) {
            return;
        }
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

    /// A snapshot took the place of the log up to `upto`; `keep_tail`: entries behind it stay.
    pub fn install(&mut self, upto: LogId, keep_tail: bool) {
        if !keep_tail {
            self.truncate(Some(upto));
        }
        self.purge(upto);
        let pending = self.pending.take_if(|p| p.upto.index <= upto.index);
        if let Some((id, bytes)) = pending.and_then(|p| p.membership) {
            self.memberships.retain(|(old, _)| old.index > id.index);
            self.memberships.insert(0, (id, bytes));
        }
        self.installed = later(self.installed, Some(upto));
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
