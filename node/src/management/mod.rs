//! The operator's side of a node: `/ready` and `/metrics` over HTTP, and the admin RPC behind `warren ctl` on the peer port.
//! `node` starts both; what they show comes through [`AdminSource`] and [`Metrics`], so this room knows no other room's inside.

pub mod admin;
pub mod client;
mod client_rows;
pub mod http;
mod metrics;
mod operator_rows;
mod process;
mod readiness;
mod rocket_rows;
mod rows;
mod source;
mod stream_group_rows;
mod stream_rows;
mod term;

pub use metrics::{Kind, Metrics, Sample};
pub use readiness::Readiness;
pub use source::{
    AccessKeyRow, Active, AdminSource, CertificateFile, CertificateRow, ConnectionRow, ExchangeRow, Granted, GroupRow, Holder, ListenerRow,
    MemberStatus, PolicyRow, QueueRow, ReplicaRow, SettingRow, ShardStatus, StateHash, Status, StreamGroupRow, TopicRow, UserRow, VhostRow,
    implicit_binding,
};
