//! Log lines: one readable line (or JSON object) each, to standard error or to a file that rotates itself. Started once by
//! `cli`; every room just uses `tracing`. What is logged is the option `log`; libraries are quieter unless it names them.

mod rotation;

use crate::config::{LogFormat, ServerConfig};
use crate::model::panics::is_contained;
use rotation::RotatingFile;
use std::io;
use std::sync::Arc;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Two parts of openraft only ever say that somebody still spoke to a group that has ended: nothing at an ordered stop, and `node` tells
/// of a group that ended by a fault, with the cause.
const LIBRARIES: &str =
    "openraft=error,openraft::raft=off,openraft::core::heartbeat=off,sled=warn,h2=warn,hyper=warn,tonic=warn,tower=warn";

/// Start logging as the configuration says. A panic becomes a log line too, and ends the process unless it is contained.
///
/// # Errors
/// The log file cannot be opened.
pub fn start(config: &ServerConfig) -> io::Result<()> {
    let form = (filter(&config.log), config.log_format);
    match &config.log_file {
        Some(path) => install(form, Arc::new(RotatingFile::open(path, config.log_file_bytes)?)),
        None => install(form, io::stderr),
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

/// `text` was checked with the configuration. What it says of a library counts, for it comes last.
fn filter(text: &str) -> EnvFilter {
    EnvFilter::new(format!("{LIBRARIES},{text}"))
}

fn install<W>((filter, format): (EnvFilter, LogFormat), writer: W)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(false);
    let started = match format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    if let Err(error) = started {
        tracing::debug!(%error, "logging was started before");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::level_filters::LevelFilter;

    #[test]
    fn libraries_are_quieter_unless_they_are_named() {
        assert_eq!(filter("info").max_level_hint(), Some(LevelFilter::INFO));
        assert_eq!(filter("info,warren::edge=debug").max_level_hint(), Some(LevelFilter::DEBUG));
        let said = |text: &str| filter(text).to_string().split(',').map(str::to_owned).collect::<Vec<_>>();
        assert!(said("debug").contains(&"sled=warn".to_owned()), "{:?}", said("debug"));
        let named = said("info,sled=debug");
        assert!(named.contains(&"sled=debug".to_owned()) && !named.contains(&"sled=warn".to_owned()), "{named:?}");
    }
}
