//! Versions of what the logs say (docs/decisions/0027): what entries and commands mean, not how files are laid out. The catalog holds the
//! cluster's version, which is raised when all nodes support the next; entries of data shards carry the one they were written in.

/// What this program can apply. A change of what an entry means takes the next number, and is written only by who sees that number, or a
/// later one, in the catalog.
pub const SUPPORTED: u8 = 1;
/// Of a cluster whose version was never raised.
pub const FIRST: u8 = 1;

/// What the cluster uses is too new for this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the cluster uses version {used} of its log, this program knows versions up to {supported}: start a newer one on this node")]
pub struct TooNew {
    /// By the cluster.
    pub used: u8,
    /// By this program.
    pub supported: u8,
}

/// # Errors
/// It is too new.
pub fn check(used: u8, supported: u8) -> Result<(), TooNew> {
    if used > supported { Err(TooNew { used, supported }) } else { Ok(()) }
}
