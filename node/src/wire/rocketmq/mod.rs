//! RocketMQ's HTTP protocol ("MQ HTTP", version 2015-06-06) as bytes: request targets, signatures, XML documents, the syntax of
//! properties. Values in, values out; what they mean is in `session::rocketmq`.

pub mod properties;
pub mod signature;
pub mod target;
pub mod xml;
