//! The only room that names openraft: all Raft groups of this node over one write-ahead log, forming the cluster, leadership, and the
//! catalog's commands from any node. Runs on its own runtime, so that client load cannot starve elections.

mod alarm;
mod bodies;
mod boot;
mod catalog;
mod checkpoint;
mod clock;
mod contact;
mod core;
mod failover;
mod fetch;
mod formation;
mod hearing;
mod heartbeat;
pub mod holding;
pub mod journal;
mod lease;
mod log;
pub mod machine;
mod members;
mod mover;
mod network;
mod order;
pub mod placement;
mod planner;
mod raising;
mod rebuild;
mod relocation;
pub mod replica;
mod retry;
mod seat;
mod service;
pub mod shard;
mod slow_disk;
mod start;
mod thread;
mod time;
mod transfer;
mod types;
mod watch;
mod watchdog;
mod wire;

pub use self::core::Timing;
pub use bodies::BodyCounters;
pub use catalog::{CatalogClient, CatalogError};
pub use formation::FormationError;
pub use hearing::Heard;
pub use machine::{Arrived, Departing, Fault, Machine};
pub use members::Members;
pub use replica::{Observer, Replicas, SharedData};
pub use seat::Seat;
pub use shard::{OutcomeSink, Shard};
pub use slow_disk::SlowDisks;
pub use start::{Consensus, ConsensusConfig, Machines, Wire};
pub use time::{ClusterClock, Sources};
pub use types::Reply;
pub use watch::Loss;

#[cfg(test)]
mod formation_tests;
#[cfg(test)]
mod mover_tests;
#[cfg(test)]
mod raising_tests;
#[cfg(test)]
mod rebuild_tests;
#[cfg(test)]
mod relocation_tests;
#[cfg(test)]
mod slow_disk_tests;
#[cfg(test)]
mod snapshot_tests;
#[cfg(test)]
mod stack_tests;
#[cfg(test)]
mod tests;
