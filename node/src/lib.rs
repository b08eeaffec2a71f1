//! Warren, a clustered message broker. A folder is a room; `docs/architecture.md` says which room may import which.

pub mod bench;
pub mod cli;
pub mod config;
pub mod consensus;
pub mod edge;
pub mod launcher;
pub mod listener;
pub mod machine;
pub mod management;
pub mod model;
pub mod node;
pub mod peer;
pub mod records;
pub mod routing;
pub mod serving;
pub mod session;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod verify;
pub mod wire;
