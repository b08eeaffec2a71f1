//! Room `store`: see docs/architecture.md. `disk` is the file layer with a faulty twin for tests, `wal` the node's one write-ahead log,
//! `state` the checkpoints of applied state.

pub mod disk;
pub mod state;
pub mod wal;
