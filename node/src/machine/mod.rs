//! Replicated state, pure and deterministic: the same log gives the same state on every node. `shard` is a data shard (queues,
//! messages, edge sessions), `catalog` is shard 0. Driven by `consensus`, read by `serving`, `edge` and `management`.

mod capture;
#[cfg(test)]
mod capture_tests;
pub mod catalog;
mod checkpoint;
mod codec;
mod dead;
#[cfg(test)]
mod dead_tests;
mod deciding;
mod dedup;
#[cfg(test)]
mod dedup_tests;
#[cfg(test)]
mod entry_tests;
mod exits;
mod extents;
mod faults;
mod hash;
mod inlets;
mod letter_rows;
#[cfg(test)]
mod letters_tests;
mod limits;
#[cfg(test)]
mod limits_tests;
mod living;
#[cfg(test)]
mod living_tests;
mod notes;
mod queue;
#[cfg(test)]
mod reread;
mod seals;
mod sessions;
pub mod shard;
#[cfg(test)]
mod shard_tests;
mod stores;
#[cfg(test)]
mod stores_tests;
mod stream;
mod streams;
#[cfg(test)]
mod streams_tests;
mod transactions;
#[cfg(test)]
mod transactions_tests;

pub use capture::{CaptureId, Image, Progress};
pub use checkpoint::Delta;
pub use dead::{Dead, Routed, Waiting};
pub use living::{Left, Living, Survey};
pub use notes::AT_ONCE;
pub use queue::{Located, Queue, read_run};
pub use shard::{Applied, DataMachine, Effect, Fault, RestoreError};
pub use stream::{LocatedChunk, Stream};
pub use transactions::{Decided, Leaving, Prepared};
