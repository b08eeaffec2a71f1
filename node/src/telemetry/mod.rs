//! Log lines: one readable line (or JSON object) each, to standard error or to a file that rotates itself. Started once by
//! `cli`; every room just uses `tracing`. `WARREN_LOG` holds the filter (default: info, quieter for libraries).

mod rotation;

use crate::config::{LogFormat, ServerConfig};
use crate::model::panics::is_contained;
use rotation::RotatingFile;
use std::io;
use std::sync::Arc;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// The variable with the filter, in the syntax of `tracing_subscriber::EnvFilter`.
pub const FILTER_VARIABLE: &str = "WARREN_LOG";
/// Two parts of openraft only ever say that somebody still spoke to a group that has ended: nothing at an ordered stop, and `node` tells
/// of a group that ended by a fault, with the cause.
const DEFAULT_FILTER: &str =
    "info,openraft=error,openraft::raft=off,openraft::core::heartbeat=off,sled=warn,h2=warn,hyper=warn,tonic=warn,tower=warn";

/// Start logging as the configuration says. A panic becomes a log line too, and ends the process unless it is contained.
///
/// # Errors
/// The log file cannot be opened.
pub fn start(config: &ServerConfig) -> io::Result<()> {
    match &config.log_file {
        Some(path) => install(config.log_format, Arc::new(RotatingFile::open(path, config.log_file_bytes)?)),
        None => install(config.log_format, io::stderr),
    }
    end_on_panic(config.log_file.is_some());
    Ok(())
}

/// From now on a panic is a log line (`tell`: and what it would have been without logging), and the end of the process: what it left half
/// done could be confirmed, or silently never be done again. Those of one client's conversation end that alone; sled's are damage of a
/// store that can be made anew, on its own threads too.
pub fn end_on_panic(tell: bool) {
    let earlier = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tracing::error!(%panic, "panic");
        if tell {
            earlier(panic);
        }
        let in_sled = panic.location().is_some_and(|at| at.file().contains("/sled-"));
        if !in_sled && !is_contained() {
            tracing::error!("a part that this node needs is gone; the process ends, and can be started again");
            std::process::abort();
        }
    }));
}

fn install<W>(format: LogFormat, writer: W)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_from_env(FILTER_VARIABLE).unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(false);
    let started = match format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    if let Err(error) = started {
        tracing::debug!(%error, "logging was started before");
    }
}
