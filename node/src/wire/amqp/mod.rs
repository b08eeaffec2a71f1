//! AMQP 0-9-1 on the wire: frames, methods, field tables, content headers, and the rope of bytes that goes out. Used by
//! `session::amqp` and `listener::amqp`; knows nothing of what a method means.

pub mod content;
pub mod frame;
pub mod method;
pub mod output;
pub mod primitive;
pub mod table;

pub use content::{ContentHeader, Properties, Property};
pub use frame::{Frame, FrameError, FrameKind, PROTOCOL_HEADER};
pub use method::Method;
pub use output::Output;
pub use primitive::{Long, Malformed, Short};

#[cfg(test)]
mod tests;
