//! The scenarios `idle-queues` and `idle-connections`: much that does nothing, and what it costs the processes given by `--pids`.

use super::args::{BenchArgs, Load};
use super::client::{ClientError, Connection, Dial, QueueOptions};
use super::{BenchError, environment};
use serde_json::{Value, json};
use std::thread;
use std::time::{Duration, Instant};

/// Connections that declare and delete at the same time.
const DECLARERS: usize = 16;
/// What declaring queues left to do (checkpoints) is over after this time.
const SETTLED: Duration = Duration::from_secs(5);
/// Channels of an idle connection.
const CHANNELS: u16 = 10;

/// Declares queues, and compares the CPU time of the processes before and after; `--settle-seconds` each.
pub(super) fn queues(args: &BenchArgs, load: &Load, broker: &[Dial]) -> Result<Value, BenchError> {
    let window = Duration::from_secs(args.settle_seconds);
    let before = environment::cpu_percent(&args.pids, window)?;
    let began = Instant::now();
    let options = QueueOptions { arguments: load.arguments(), ..QueueOptions::durable() };
    each_queue(args, load, broker, |connection, name| connection.declare(1, name, &options).map(drop))?;
    let per_second = args.idle_queues as f64 / began.elapsed().as_secs_f64().max(0.001);
    eprintln!("  {} queues declared, {per_second:.0}/s; waiting {} s", args.idle_queues, args.settle_seconds);
    if !args.pids.is_empty() {
        thread::sleep(SETTLED);
    }
    let after = environment::cpu_percent(&args.pids, window)?;
    eprintln!("  CPU of the given processes in percent of one core: {before:.1} without the queues, {after:.1} with them");
    let began = Instant::now();
    each_queue(args, load, broker, |connection, name| connection.delete(1, name).map(drop))?;
    let deleted = args.idle_queues as f64 / began.elapsed().as_secs_f64().max(0.001);
    Ok(json!({
        "queues": args.idle_queues, "declared_per_s": per_second, "deleted_per_s": deleted,
        "cpu_percent_before": before, "cpu_percent_after": after, "clean": true,
    }))
}

/// Does something to all queues over several connections.
fn each_queue(
    args: &BenchArgs,
    load: &Load,
    broker: &[Dial],
    act: impl Fn(&mut Connection, &str) -> Result<(), ClientError> + Sync,
) -> Result<(), BenchError> {
    let one = |at: usize| {
        let dial = &broker[at % broker.len()];
        let run = || {
            let mut connection = Connection::open_with_channel(dial)?;
            (at..args.idle_queues).step_by(DECLARERS).try_for_each(|n| act(&mut connection, &format!("{}-idle-{n}", load.queue)))
        };
        run().map_err(|error| BenchError::Client { address: dial.address.clone(), error })
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..DECLARERS).map(|at| scope.spawn(move || one(at))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// Opens connections with channels, and compares the memory of the processes before and after.
pub(super) fn connections(args: &BenchArgs, broker: &[Dial]) -> Result<Value, BenchError> {
    let before = environment::rss_kib(&args.pids)?;
    let open = |at: usize| {
        let dial = &broker[at % broker.len()];
        let opened = Connection::open_with_channel(dial).and_then(|mut connection| {
            (2..=CHANNELS).try_for_each(|channel| connection.open_channel(channel))?;
            Ok(connection)
        });
        opened.map_err(|error| BenchError::Client { address: dial.address.clone(), error })
    };
    let held: Vec<Connection> = (0..args.idle_connections).map(open).collect::<Result<_, _>>()?;
    thread::sleep(Duration::from_secs(args.settle_seconds));
    let after = environment::rss_kib(&args.pids)?;
    let each = after.saturating_sub(before) as f64 / held.len().max(1) as f64;
    eprintln!("  {} connections with {CHANNELS} channels each: {each:.1} KiB each in the given processes", held.len());
    Ok(
        json!({ "connections": held.len(), "channels": CHANNELS, "kib_each": each, "rss_kib_before": before, "rss_kib_after": after, "clean": true }),
    )
}
