//! What the figures were made on: versions, cores, kernel, and the disk under a data directory. A figure without these means nothing.

use super::BenchError;
use super::client::{Connection, Dial};
use super::report::median;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Writes that the disk probe makes.
const PROBES: usize = 200;

/// What a broker says it is, of each of its nodes, once if they agree.
pub(super) fn versions(broker: &[Dial]) -> Result<Vec<String>, BenchError> {
    let mut names = Vec::new();
    for dial in broker {
        let connection = Connection::open(dial).map_err(|error| BenchError::Client { address: dial.address.clone(), error })?;
        let name = name(|property| connection.server_text(property));
        if !names.contains(&name) {
            names.push(name);
        }
        connection.close().map_err(|error| BenchError::Client { address: dial.address.clone(), error })?;
    }
    Ok(names)
}

/// `product version`. Warren says that it is the RabbitMQ whose behaviour it has, and beside that what it is.
fn name<'a>(property: impl Fn(&str) -> &'a str) -> String {
    match property("warren_version") {
        "" => format!("{} {}", property("product"), property("version")),
        version => format!("Warren {version}"),
    }
}

/// The machine: bench version, cores, kernel.
pub(super) fn machine() -> Value {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_else(|_| std::env::consts::OS.to_owned());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let build = if cfg!(debug_assertions) { "debug" } else { "release" };
    json!({ "bench": env!("CARGO_PKG_VERSION"), "build": build, "cores": cores, "kernel": kernel.trim() })
}

/// The disk under a directory: file system, and what writing 4 KiB and waiting for fdatasync costs there.
pub(super) fn disk(dir: &Path) -> Result<Value, BenchError> {
    let failed = |error: io::Error| BenchError::Io { what: format!("probing {}", dir.display()), error };
    let kind = rustix::fs::statfs(dir).map_err(|error| failed(error.into()))?.f_type;
    let mut costs = probe(dir).map_err(failed)?;
    costs.sort_by(f64::total_cmp);
    Ok(json!({
        "file_system": file_system(kind as u64),
        "fdatasync_us": { "p50": median(&costs).round(), "p99": costs[PROBES * 99 / 100].round(), "max": costs[PROBES - 1].round() },
    }))
}

fn probe(dir: &Path) -> io::Result<Vec<f64>> {
    let path = dir.join(format!(".bench-probe-{}", std::process::id()));
    let mut file = File::create(&path)?;
    let one = [0x5a; 4096];
    let mut write = || {
        let began = Instant::now();
        file.write_all(&one)?;
        file.sync_data()?;
        Ok(began.elapsed().as_secs_f64() * 1e6)
    };
    let costs = (0..PROBES).map(|_| write()).collect();
    fs::remove_file(&path)?;
    costs
}

/// Names of the usual magic numbers (statfs(2)).
fn file_system(magic: u64) -> String {
    let known = match magic as u32 {
        0xEF53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683E => "btrfs",
        0x0102_1994 => "tmpfs (memory: fdatasync costs nothing here)",
        0x794C_7630 => "overlayfs",
        0x2FC1_2FC1 => "zfs",
        0x6969 => "nfs",
        0x6573_5546 => "fuse",
        _ => return format!("unknown (0x{magic:x})"),
    };
    known.to_owned()
}

/// Resident memory of a process in KiB, and the CPU time it has used in seconds.
pub(super) fn process(pid: u32) -> Result<(u64, f64), BenchError> {
    let read = |name: &str| {
        let path = format!("/proc/{pid}/{name}");
        fs::read_to_string(&path).map_err(|error| BenchError::Io { what: path, error })
    };
    let status = read("status")?;
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    let stat = read("stat")?;
    // After the name in parentheses: state, then numbers; utime and stime are fields 14 and 15 of the whole line, in ticks of 10 ms.
    let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = after.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok((rss.unwrap_or(0), ticks as f64 / 100.0))
}

/// Resident memory of processes together, KiB.
pub(super) fn rss_kib(pids: &[u32]) -> Result<u64, BenchError> {
    pids.iter().map(|pid| process(*pid).map(|(rss, _)| rss)).sum()
}

/// CPU time of the processes over `window`, in percent of one core.
pub(super) fn cpu_percent(pids: &[u32], window: Duration) -> Result<f64, BenchError> {
    let total = || pids.iter().map(|pid| process(*pid).map(|(_, cpu)| cpu)).sum::<Result<f64, BenchError>>();
    let (began, before) = (Instant::now(), total()?);
    if !pids.is_empty() {
        thread::sleep(window);
    }
    Ok(100.0 * (total()? - before) / began.elapsed().as_secs_f64().max(0.001))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warren_is_called_by_its_name() {
        let rabbitmq = |property: &str| match property {
            "product" => "RabbitMQ",
            "version" => "4.1.0",
            _ => "",
        };
        assert_eq!(name(rabbitmq), "RabbitMQ 4.1.0");
        assert_eq!(name(|property: &str| if property == "warren_version" { "0.1.0" } else { rabbitmq(property) }), "Warren 0.1.0");
    }

    #[test]
    fn a_directory_has_a_file_system_and_a_latency() {
        let dir = tempfile::tempdir().unwrap();
        let disk = disk(dir.path()).unwrap();
        assert!(disk["fdatasync_us"]["p50"].as_f64().unwrap() >= 0.0);
        assert!(!disk["file_system"].as_str().unwrap().is_empty());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "the probe removes its file");
    }

    #[test]
    fn this_process_uses_memory() {
        assert!(process(std::process::id()).unwrap().0 > 1000);
        assert!(process(u32::MAX).is_err());
    }
}
