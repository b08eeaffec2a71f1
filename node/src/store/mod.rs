//! What is on disk: the file layer, the write-ahead log (one per node) and the state store (checkpoints). Knows no roles, no protocols.

pub mod disk;
pub mod state;
pub mod wal;
