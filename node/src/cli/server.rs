//! `warren server`: configuration, lock of the data directory, logs, then `node::run`. Exit 0 after an ordered stop, 1 when the node
//! could not start or failed, 2 for wrong options.

use super::{ServerArgs, variable};
use crate::config::{DataDir, ServerConfig};
use crate::{node, telemetry};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use std::process::ExitCode;

/// Exit code for options that make no sense, as clap uses it.
const WRONG_OPTIONS: u8 = 2;

pub(super) fn run(args: ServerArgs) -> ExitCode {
    if let Some(parent) = args.die_with_parent
        && !tied_to_parent(parent)
    {
        return ExitCode::FAILURE;
    }
    let config = match ServerConfig::load(args.settings, &variable) {
        Ok(config) => ServerConfig { clock_off_file: args.clock_off_file, ..config },
        Err(error) => return failed(&error, ExitCode::from(WRONG_OPTIONS)),
    };
    let data_dir = match DataDir::lock(&config.data_dir) {
        Ok(data_dir) => data_dir,
        Err(error) => return failed(&error, ExitCode::FAILURE),
    };
    if let Err(error) = telemetry::start(&config) {
        return failed(&format!("log file: {error}"), ExitCode::FAILURE);
    }
    let code = serve(config);
    drop(data_dir);
    code
}

fn serve(config: ServerConfig) -> ExitCode {
    let runtime =
        match tokio::runtime::Builder::new_multi_thread().worker_threads(config.workers).enable_all().thread_name("warren").build() {
            Ok(runtime) => runtime,
            Err(error) => return failed(&error, ExitCode::FAILURE),
        };
    let ended = runtime.block_on(Box::pin(node::run(config)));
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, advice = error.advice(), "the node stopped");
            ExitCode::FAILURE
        }
    }
}

/// Ask the kernel to end this process with its parent; false when the parent is gone already.
fn tied_to_parent(parent: i32) -> bool {
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        eprintln!("warren: cannot follow the end of process {parent}: {error}");
    }
    getppid().map(Pid::as_raw_nonzero).is_some_and(|pid| pid.get() == parent)
}

fn failed(error: &dyn std::fmt::Display, code: ExitCode) -> ExitCode {
    eprintln!("warren: {error}");
    code
}
