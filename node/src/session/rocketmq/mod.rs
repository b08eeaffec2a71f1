//! RocketMQ's HTTP protocol as conversations without sockets: a request becomes a value or a fault, a message of the broker becomes what
//! the client is shown, and an [`agent::Agent`] turns what clients of one user in one vhost want into steps for the edge. The listener
//! does the rest: sockets, time, which agent, which node.

pub mod agent;
pub mod answers;
mod channels;
pub mod faults;
mod halves;
pub mod handle;
mod holding;
mod joints;
pub mod message;
pub mod moment;
pub mod request;
#[cfg(test)]
mod tests;
