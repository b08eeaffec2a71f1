//! A lean AMQP 0-9-1 client over blocking sockets, for `warren bench` and for the tests that start real processes; and one of the stream
//! protocol (`stream`).
//! It shares no code with `wire` or `session`, so that a misreading of the specification there is not hidden by the same one here.
//! It never reconnects and never hides anything: what the broker sends is handed to the caller as it came.
//! Left out: AMQPLAIN, transactions, certificates of its own.

pub mod connection;
pub mod encode;
pub mod error;
pub mod frames;
pub mod incoming;
pub mod socket;
pub mod stream;
pub mod table;

pub use connection::{Connection, Dial, QueueOptions, QueueState};
pub use error::ClientError;
pub use incoming::{Delivery, Incoming};
pub use socket::Socket;
pub use table::{Field, Table};
