//! What may be wrong with what a machine is given: an entry that it cannot apply, a state that it cannot take back.

use crate::model::ShardId;
use crate::model::entry::Malformed;
use crate::model::version::TooNew;

/// The log and the machine do not fit: a bug or a newer version. The node must stop serving this shard; the machine is not to be
/// used any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The entry cannot be read.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Its version is not known.
    #[error(transparent)]
    TooNew(#[from] TooNew),
    /// Applied twice or out of order.
    #[error("entry {index} after {applied}")]
    Order {
        /// Its index.
        index: u64,
        /// Last applied.
        applied: u64,
    },
    /// Larger than an extent can point into.
    #[error("entry {index} is larger than 4 GiB")]
    TooLarge {
        /// Its index.
        index: u64,
    },
    /// A session id is an entry's index, so an entry has one hello.
    #[error("entry {index} has two hellos")]
    TwoHellos {
        /// Its index.
        index: u64,
    },
}

/// A checkpoint or snapshot that cannot be taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// Not what was written.
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// CRC.
    #[error("checksum does not match")]
    Checksum,
    /// Written by a newer version.
    #[error("format version {0} is unknown")]
    Version(u8),
    /// The state is of a version that is not known.
    #[error(transparent)]
    TooNew(#[from] TooNew),
    /// Of another shard.
    #[error("belongs to shard {0}")]
    OtherShard(ShardId),
}
