//! Room `store`: see docs/architecture.md.

pub mod state;
