//! The command line: `warren server`, `cluster`, `ctl`, `bench`, `verify`. Parses, starts what was asked for and turns its end into an
//! exit code. The work is in `node`, `launcher`, `management`, `bench` and `verify`.

mod ctl;
mod format;
mod server;
mod signals;

pub use signals::Shutdown;

use crate::bench::{self, BenchArgs};
use crate::config::Settings;
use crate::launcher::ClusterArgs;
use crate::verify::VerifyArgs;
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Exit code for options that make no sense, as clap uses it.
const WRONG_OPTIONS: u8 = 2;

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
    /// Harm a local cluster of its own under load, and account for every message
    Verify(VerifyArgs),
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
    /// By how many ms the clock of this machine is off, for trials; looked at all the time
    #[arg(long, value_name = "FILE", hide = true)]
    clock_off_file: Option<PathBuf>,
}

/// `warren ctl` under the name of one of RabbitMQ's tools.
#[derive(Debug, Parser)]
#[command(version)]
struct Tool {
    #[command(flatten)]
    args: ctl::CtlArgs,
}

/// Names of the binary that mean `warren ctl`.
const TOOLS: [&str; 5] = ["rabbitmqctl", "rabbitmq-diagnostics", "rabbitmq-queues", "rabbitmq-streams", "rabbitmq-upgrade"];

/// Run the command line of this process.
pub fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    if is_tool(&words) {
        return match Tool::try_parse_from(&words) {
            Ok(tool) => ctl::run(tool.args),
            Err(error) => misunderstood(&error, ctl::USAGE),
        };
    }
    let is_ctl = words.get(1).is_some_and(|word| word == "ctl");
    let cli = match Cli::try_parse_from(&words) {
        Ok(cli) => cli,
        Err(error) => return misunderstood(&error, if is_ctl { ctl::USAGE } else { WRONG_OPTIONS }),
    };
    match cli.command {
        Command::Server(args) => server::run(*args),
        Command::Cluster(args) => crate::launcher::run(args),
        Command::Ctl(args) => ctl::run(args),
        Command::Bench(args) => bench::run(*args),
        Command::Verify(args) => crate::verify::run(&args),
    }
}

fn is_tool(words: &[OsString]) -> bool {
    let name = words.first().and_then(|path| Path::new(path).file_stem());
    name.is_some_and(|name| TOOLS.iter().any(|tool| name == *tool))
}

/// Help and version are no errors.
fn misunderstood(error: &clap::Error, code: u8) -> ExitCode {
    // A closed pipe is no error worth a word.
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(code) } else { ExitCode::SUCCESS }
}

/// One variable of the environment; what is empty or not UTF-8 counts as unset.
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        Tool::command().debug_assert();
    }

    #[test]
    fn rabbitmqs_tools_are_told_by_their_names() {
        let is = |name: &str| is_tool(&[OsString::from(name)]);
        assert!(is("rabbitmqctl") && is("/usr/sbin/rabbitmq-diagnostics") && is("./rabbitmq-queues"));
        assert!(!is("warren") && !is("/opt/rabbitmqctl/warren") && !is_tool(&[]));
    }

    #[test]
    fn the_image_has_all_of_rabbitmqs_tools() {
        let dockerfile = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/Dockerfile")).unwrap();
        let linked = dockerfile.lines().find_map(|line| line.split_once("for tool in ")?.1.split_once(';')).unwrap().0;
        assert_eq!(linked.split(' ').collect::<Vec<_>>(), TOOLS);
    }

    #[test]
    fn options_stand_before_or_after_the_command() {
        for line in [
            "rabbitmqctl -p v -q list_queues name",
            "rabbitmqctl -l -n rabbit@h -q list_queues --local -p v name",
            "rabbitmqctl list_queues -q name -p v",
            "rabbitmqctl --vhost v list_queues name",
        ] {
            let tool = Tool::try_parse_from(line.split(' ')).unwrap();
            assert!(format!("{:?}", tool.args).contains("vhost: \"v\""), "{line}");
        }
        let policy = ["rabbitmqctl", "set_policy", "p", "^a", r#"{"max-length":5}"#, "--priority", "-3", "--apply-to", "queues"];
        Tool::try_parse_from(policy).unwrap();
        for line in
            ["delete_queue q --if-empty --if-unused", "add_user u h --pre-hashed-password", "add_vhost v --default-queue-type quorum"]
        {
            Tool::try_parse_from(format!("rabbitmqctl {line}").split(' ')).unwrap();
        }
        assert!(Tool::try_parse_from(["rabbitmqctl", "no_such_command"]).is_err());
    }
}
