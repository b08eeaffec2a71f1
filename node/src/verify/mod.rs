//! `warren verify`: a local cluster of its own under load of every protocol, harmed by a plan that a seed gives, and an account of every
//! message. Called by `cli`. Left out: steps of the clock, and clusters that somebody else has started.

mod ledger;
mod links;
mod load;
mod nodes;
mod plan;
mod queues;
mod report;
mod rocket;
mod run;
mod streams;

use clap::Args;
use plan::Kind;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Exit code of a run that could not come to its end.
const NOT_RUN: u8 = 2;

/// Options of `warren verify`.
#[derive(Clone, Debug, Args)]
pub struct VerifyArgs {
    /// How long faults are injected; the run takes longer by its start and end
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = duration)]
    duration: Duration,
    /// What the plan of faults is drawn from [default: another one each time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Number of nodes; an emptied disk is filled from a majority, so there must be three
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u16).range(3..=crate::model::limits::NODES as i64))]
    nodes: u16,
    /// Directory for data and logs [default: one in the directory for temporary files]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Added to every port
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=45_000))]
    port_offset: u16,
    /// Leave data and logs where they are; they stay, too, when the run is not clean
    #[arg(long)]
    keep: bool,
    /// Kinds of faults
    #[arg(long, value_enum, value_delimiter = ',', default_value = "kill,pause,wipe,partition,clock", value_name = "KINDS")]
    faults: Vec<Kind>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Why a run did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The nodes cannot be started.
    #[error(transparent)]
    Cluster(#[from] crate::launcher::ClusterError),
    /// The secret.
    #[error(transparent)]
    Secret(#[from] crate::config::ConfigError),
    /// The system refuses something.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// A node does not answer the tools of operators.
    #[error("{0}")]
    Admin(String),
    /// Queues, streams or topics cannot be made.
    #[error("{0}")]
    Setup(String),
    /// The cluster stays broken.
    #[error("the cluster has not healed after {seconds} s: {waiting}")]
    NotHealed {
        /// How long it was waited.
        seconds: u64,
        /// For what.
        waiting: String,
    },
    /// A signal.
    #[error("{0}: the run is given up")]
    Interrupted(&'static str),
}

/// A number with a unit: 500ms, 60s, 10m, 1h.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 = number.parse().map_err(|_| "write a time like 60s or 10m".to_owned())?;
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "s" | "" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        "h" => Ok(Duration::from_secs(number.saturating_mul(3600))),
        other => Err(format!("{other:?} is no unit; write ms, s, m or h")),
    }
}

/// Run; exit 0: clean, 1: not clean, 2: it did not come to its end.
pub fn run(args: &VerifyArgs) -> ExitCode {
    match run::run(args) {
        Ok(report) => {
            match serde_json::to_string_pretty(&report).ok().filter(|_| args.json) {
                Some(json) => println!("{json}"),
                None => print!("{report}"),
            }
            if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("verify: {error}");
            ExitCode::from(NOT_RUN)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_a_unit() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!((duration("500ms"), duration("2m")), (Ok(Duration::from_millis(500)), Ok(Duration::from_secs(120))));
        assert_eq!((duration("1h"), duration("7")), (Ok(Duration::from_secs(3600)), Ok(Duration::from_secs(7))));
        assert!(["", "s", "1 s", "1d", "-1s"].iter().all(|text| duration(text).is_err()));
    }
}
