//! `warren bench`: a load generator for any AMQP 0-9-1 broker and any broker of RabbitMQ's stream protocol, and two brokers in turn with the
//! ratio. Called by `cli`.
//! It publishes with confirms, consumes with acknowledgements, and fails when a message was lost, repeated, reordered or changed.
//! It uses its own client (`client`), never the broker's codec. Requests of RocketMQ's HTTP protocol are a scenario of their own (`rocketmq`).

mod args;
pub mod client;
mod consumer;
mod environment;
mod idle;
mod load;
mod memory;
mod message;
mod producer;
mod replay;
mod report;
pub(crate) mod rocketmq;
mod scenario;
mod seen;
#[cfg(test)]
mod stream_tests;
#[cfg(test)]
mod tests;

pub use args::BenchArgs;

use report::Outcome;
use std::process::ExitCode;

/// Why a bench could not be run at all.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// An argument makes no sense.
    #[error("{0}")]
    Arguments(String),
    /// A broker refused or went away before the load began.
    #[error("{address}: {error}")]
    Client {
        /// Which broker.
        address: String,
        /// What it said.
        error: client::ClientError,
    },
    /// A file of the probe of the data directory, or of a process.
    #[error("{what}: {error}")]
    Io {
        /// What was tried.
        what: String,
        /// Why not.
        error: std::io::Error,
    },
}

/// Run what the arguments ask for; exit 0: all messages came once and in order, 1: they did not, 2: it could not be run.
pub fn run(args: BenchArgs) -> ExitCode {
    match scenario::run(&args) {
        Ok(Outcome::Clean) => ExitCode::SUCCESS,
        Ok(Outcome::Wrong(count)) => {
            eprintln!("{count} run(s) lost, repeated, reordered or changed messages, or were cut off");
            ExitCode::from(1)
        }
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::from(2)
        }
    }
}
