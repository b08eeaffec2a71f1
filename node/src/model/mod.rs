//! The nouns that every room shares: ids, specs, messages, the values that cross rooms. Data only: no IO, no clocks.

pub mod admin;
pub mod catalog;
pub mod consumer_group;
pub mod deaths;
pub mod deduplication;
pub mod entry;
pub mod ids;
pub mod letters;
pub mod limits;
pub mod link;
pub mod panics;
pub mod ports;
pub mod properties;
pub mod report;
pub mod rocketmq;
pub mod roster;
pub mod settings;
pub mod shortage;
pub mod step;
pub mod store;
pub mod stored;
pub mod stream;
pub mod stream_step;
pub mod version;

pub use ids::*;
