//! Conversations without sockets: frames in, steps out; events in, frames out. One folder per protocol.

pub mod amqp;
pub mod rocketmq;
mod sasl;
pub mod stream;
