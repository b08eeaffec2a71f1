//! The command line: `warren server`, `cluster`, `ctl`, `bench`. Parses, starts what was asked for and turns its end into an
//! exit code. The work is in `node`, `launcher`, `management` and `bench`.

mod ctl;
mod format;
mod server;
mod signals;

pub use signals::Shutdown;

use crate::bench::{self, BenchArgs};
use crate::config::Settings;
use crate::launcher::ClusterArgs;
use clap::{Args, Parser, Subcommand};
use std::process::ExitCode;

/// Warren, a clustered message broker.
#[derive(Debug, Parser)]
#[command(name = "warren", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one node
    Server(Box<ServerArgs>),
    /// Run a local cluster as child processes on 127.0.0.1
    Cluster(ClusterArgs),
    /// Ask a running node, as rabbitmqctl does
    Ctl(ctl::CtlArgs),
    /// Measure this or any other AMQP 0-9-1 broker
    Bench(Box<BenchArgs>),
}

/// Every option is also a variable (--amqp-port is WARREN_AMQP_PORT) and a key of the file given with --config (amqp-port). A flag
/// wins over a variable, a variable over the file.
#[derive(Debug, Args)]
struct ServerArgs {
    #[command(flatten)]
    settings: Settings,
    /// Die when this process, the parent, is gone (given by `warren cluster`)
    #[arg(long, hide = true, value_name = "PID")]
    die_with_parent: Option<i32>,
}

/// Run the command line of this process.
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Server(args) => server::run(*args),
        Command::Cluster(args) => crate::launcher::run(args),
        Command::Ctl(args) => ctl::run(args),
        Command::Bench(args) => bench::run(*args),
    }
}

/// One variable of the environment; what is not UTF-8 counts as unset.
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
