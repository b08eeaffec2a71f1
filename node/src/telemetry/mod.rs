//! Log lines: one readable line (or JSON object) each, to standard error or to a file that rotates itself. Started once by
//! `cli`; every room just uses `tracing`. `WARREN_LOG` holds the filter (default: info, quieter for libraries).

mod rotation;

use crate::config::{LogFormat, ServerConfig};
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

/// Start logging as the configuration says. A panic becomes a log line too.
///
/// # Errors
/// The log file cannot be opened.
pub fn start(config: &ServerConfig) -> io::Result<()> {
    match &config.log_file {
        Some(path) => install(config.log_format, Arc::new(RotatingFile::open(path, config.log_file_bytes)?)),
        None => install(config.log_format, io::stderr),
    }
    let earlier = std::panic::take_hook();
    let into_file = config.log_file.is_some();
    std::panic::set_hook(Box::new(move |panic| {
        tracing::error!(%panic, "panic");
        if into_file {
            earlier(panic);
        }
    }));
    Ok(())
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
