//! The RabbitMQ stream protocol on the wire (PROTOCOL.adoc of rabbitmq_stream): frames, what clients say, what servers say, and the rope
//! of bytes that goes out. Used by `session::stream` and `listener::stream`; knows nothing of what a command means.

pub mod client;
pub mod code;
pub mod frame;
pub mod message;
pub mod output;
pub mod primitive;
pub mod server;

pub use client::FromClient;
pub use code::{Code, Key};
pub use frame::TooLarge;
pub use message::{Entry, Message, Messages};
pub use output::Output;
pub use primitive::{Malformed, OffsetSpec};
pub use server::FromServer;

#[cfg(test)]
mod tests;
