//! Groups of consumers on a stream of which one is active (single active consumer). The catalog keeps them, so that all nodes know whose
//! turn it is and no leader change forgets it; `edge` tells it who comes and goes.

use super::QueueId;
use super::catalog::Owner;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A group: a name on a stream.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GroupName {
    /// The stream.
    pub stream: QueueId,
    /// The consumers' common name.
    pub name: Arc<str>,
}

/// A consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GroupMember {
    /// Its connection.
    pub owner: Owner,
    /// Its number there.
    pub subscription: u8,
}

/// What a member may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Turn {
    /// Nothing.
    Waiting,
    /// Read.
    Active,
    /// It was active and must stop; the next one becomes active when it has said that it did.
    Yielding,
}

/// A group as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupState {
    /// Which.
    pub name: GroupName,
    /// Its stream's place in a super stream.
    pub partition: Option<u32>,
    /// In the order in which they came.
    pub members: Vec<(GroupMember, Turn)>,
}

/// A change of a group. Each is idempotent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GroupChange {
    /// Somebody comes. `partition`: the stream's place in a super stream, by which turns are spread over the members; without it the
    /// first who came is active.
    Join {
        /// The stream's place.
        partition: Option<u32>,
    },
    /// It goes.
    Leave,
    /// It has stopped reading, as it was told.
    Yielded,
}
