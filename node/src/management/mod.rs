//! The operator's side of a node: `/ready` and `/metrics` over HTTP, and the admin RPC behind `warren ctl` on the peer port.
//! `node` starts both; what they show comes through [`AdminSource`] and [`Metrics`], so this room knows no other room's inside.

pub mod admin;
pub mod auth;
pub mod client;
pub mod http;
mod metrics;
mod process;
mod readiness;
mod rows;
mod source;
mod term;

pub use metrics::{Kind, Metrics, Sample};
pub use readiness::Readiness;
pub use source::{AdminSource, MemberStatus, QueueRow, ShardStatus, Status, implicit_binding};
