//! Bytes to typed frames and back, one folder per protocol. Pure and bounded: no sockets, no state beyond one frame.

pub mod amqp;
pub mod rocketmq;
pub mod rope;
pub mod stream;
