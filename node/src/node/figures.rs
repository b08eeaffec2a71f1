//! What `/metrics` shows of a running node, read when it is scraped.

use super::running::Running;
use crate::consensus::BodyCounters;
use crate::edge::{Counter, Counters};
use crate::listener::stream::Figures;
use crate::management::{Kind, Metrics, Sample};
use crate::model::ShardId;
use crate::serving::Lateness;
use crate::session::stream::Counts;
use crate::store::wal::WalStats;
use std::sync::Arc;

type CounterRow = (&'static str, &'static str, fn(&Counters) -> &Counter);
type StreamRow = (&'static str, &'static str, Kind, fn(&Counts) -> u64);
type BodyRow = (&'static str, &'static str, fn(&BodyCounters) -> u64);
type LatenessRow = (&'static str, &'static str, fn(&Lateness) -> u64);
type WalRow = (&'static str, &'static str, Kind, fn(&WalStats) -> f64);

const EDGE: &[CounterRow] = &[
    ("warren_published", "Messages taken from clients", |c| &c.published),
    ("warren_confirmed", "Publishes confirmed", |c| &c.confirmed),
    ("warren_nacked", "Publishes refused or not confirmed in time", |c| &c.nacked),
    ("warren_returned", "Mandatory messages returned", |c| &c.returned),
    ("warren_unroutable", "Messages that no queue took", |c| &c.unroutable),
    ("warren_rerouted", "Messages routed again after their queue was gone", |c| &c.rerouted),
    ("warren_batches", "Batches sent to shard leaders", |c| &c.batches),
    ("warren_batches_remote", "Batches sent to leaders on other nodes", |c| &c.batches_remote),
    ("warren_delivered", "Messages delivered to consumers", |c| &c.delivered),
    ("warren_delivered_remote", "Messages delivered here by leaders on other nodes", |c| &c.delivered_remote),
    ("warren_got", "Messages fetched with basic.get", |c| &c.got),
    ("warren_acked", "Messages acknowledged", |c| &c.acked),
    ("warren_rejected", "Messages rejected", |c| &c.rejected),
    ("warren_requeued", "Messages given back", |c| &c.requeued),
    ("warren_connections_opened", "Client connections accepted", |c| &c.connections_opened),
    ("warren_connections_closed", "Client connections ended", |c| &c.connections_closed),
    ("warren_paths_opened", "Paths opened to shard leaders", |c| &c.paths_opened),
];

const STREAMS: &[StreamRow] = &[
    ("warren_stream_publishers", "Publishers of the stream protocol", Kind::Gauge, |c| c.publishers),
    ("warren_stream_consumers", "Subscriptions of the stream protocol", Kind::Gauge, |c| c.subscriptions),
    ("warren_stream_published", "Messages taken from stream clients, a sub-entry batch as one", Kind::Counter, |c| c.published),
    ("warren_stream_published_bytes", "Bytes of them", Kind::Counter, |c| c.published_bytes),
    ("warren_stream_confirmed", "Messages confirmed to stream clients", Kind::Counter, |c| c.confirmed),
    ("warren_stream_errored", "Messages that a PublishError was sent for", Kind::Counter, |c| c.errored),
    ("warren_stream_chunks", "Chunks sent to stream clients", Kind::Counter, |c| c.chunks),
    ("warren_stream_delivered", "Messages in them", Kind::Counter, |c| c.delivered),
    ("warren_stream_delivered_bytes", "Bytes of them", Kind::Counter, |c| c.delivered_bytes),
];

const WAL: &[WalRow] = &[
    ("warren_wal_bytes", "Bytes of all files of the write-ahead log", Kind::Gauge, |s| s.bytes as f64),
    ("warren_wal_files", "Files with data", Kind::Gauge, |s| s.files as f64),
    ("warren_wal_syncs", "fdatasync calls on the write path", Kind::Counter, |s| s.syncs as f64),
    ("warren_wal_batches", "Batches written", Kind::Counter, |s| s.batches as f64),
    ("warren_wal_records", "Records written", Kind::Counter, |s| s.records as f64),
    ("warren_wal_written_bytes", "Bytes written", Kind::Counter, |s| s.written_bytes as f64),
    ("warren_wal_sync_last_seconds", "Latency of the last fdatasync", Kind::Gauge, |s| s.sync_last.as_secs_f64()),
    ("warren_wal_sync_max_seconds", "Longest fdatasync since the start", Kind::Gauge, |s| s.sync_max.as_secs_f64()),
    ("warren_wal_write_under_way_seconds", "How long the write and fdatasync under way have been taking", Kind::Gauge, |s| {
        s.writing_for.map_or(0.0, |took| took.as_secs_f64())
    }),
    ("warren_wal_relocated_bytes", "Bytes of old messages written again to clean log files", Kind::Counter, |s| s.relocated_bytes as f64),
    ("warren_wal_cache_bytes", "Bytes of recent entries in memory", Kind::Gauge, |s| s.cache_bytes as f64),
    ("warren_wal_bad_reads", "Entries that the disk gave back damaged", Kind::Counter, |s| s.bad_reads as f64),
    ("warren_wal_damages", "Damaged places of the log that the start found", Kind::Gauge, |s| s.damages as f64),
    ("warren_wal_queued_bytes", "Bytes that wait to be written", Kind::Gauge, |s| s.queued_bytes as f64),
];

const BODIES: &[BodyRow] = &[
    ("warren_bodies_fetched", "Entries that were damaged on this disk and came from another node", BodyCounters::fetched),
    ("warren_bodies_missing", "Attempts to deliver an entry that no node could read", BodyCounters::missing),
];

const LATENESS: &[LatenessRow] = &[
    ("warren_delayed", "Delayed messages, of those that left together the first, that all their targets have", Lateness::seen),
    ("warren_delayed_late", "Those of them that came more than 100 ms after their time, or after this node began to lead", Lateness::late),
];

/// Registers everything; once.
pub(super) fn register(metrics: &Metrics, running: &Arc<Running>, streams: &Arc<Figures>) {
    for (name, help, kind, read) in STREAMS {
        let streams = streams.clone();
        metrics.observe(name, help, *kind, move || vec![Sample::plain(read(&streams.counts()) as f64)]);
    }
    for (name, help, read) in EDGE {
        let running = running.clone();
        metrics.observe(name, help, Kind::Counter, move || vec![Sample::plain(read(running.edge.counters()).get() as f64)]);
    }
    for (name, help, kind, read) in WAL {
        let wal = running.wal.clone();
        metrics.observe(name, help, *kind, move || vec![Sample::plain(read(&wal.stats()))]);
    }
    for (name, help, read) in BODIES {
        let on = running.clone();
        metrics.observe(name, help, Kind::Counter, move || vec![Sample::plain(read(on.consensus.bodies()) as f64)]);
    }
    let on = running.clone();
    let help = "Shards whose replica on this node takes part in nothing until another node gave it what this disk lacks";
    metrics.observe("warren_replicas_incomplete", help, Kind::Gauge, move || vec![Sample::plain(on.consensus.incomplete() as f64)]);
    for (name, help, read) in LATENESS {
        let lateness = running.lateness.clone();
        metrics.observe(name, help, Kind::Counter, move || vec![Sample::plain(read(&lateness) as f64)]);
    }
    let lateness = running.lateness.clone();
    let help = "The latest of the delayed messages that warren_delayed counts";
    let latest = move || vec![Sample::plain(lateness.max_ms() as f64 / 1000.0)];
    metrics.observe("warren_delayed_lateness_max_seconds", help, Kind::Gauge, latest);
    let on = running.clone();
    let help = "Replicas that were damaged on this disk and rebuilt from the leader since the start";
    metrics.observe("warren_replicas_rebuilt", help, Kind::Counter, move || vec![Sample::plain(on.consensus.rebuilt() as f64)]);
    let on = running.clone();
    let help = "How long the checkpoint under way has been taking";
    let taking = move || vec![Sample::plain(on.consensus.checkpointing_for().map_or(0.0, |took| took.as_secs_f64()))];
    metrics.observe("warren_checkpoint_under_way_seconds", help, Kind::Gauge, taking);
    let on = running.clone();
    let help = "Leaderships that this node gave away because a write to its disk did not end in time";
    let given = move || vec![Sample::plain(on.consensus.slow_disks().given_away() as f64)];
    metrics.observe("warren_slow_disk_leaderships_given_away", help, Kind::Counter, given);
    let on = running.clone();
    metrics.observe("warren_shard_is_leader", "1 where this node leads the shard", Kind::Gauge, move || leading(&on));
    let on = running.clone();
    metrics.observe("warren_shard_applied_index", "Last applied log index", Kind::Gauge, move || applied(&on));
    let on = running.clone();
    let help = "Bytes of the live messages in the log of this node";
    metrics.observe("warren_live_bytes", help, Kind::Gauge, move || vec![Sample::plain(live_bytes(&on) as f64)]);
    let on = running.clone();
    metrics
        .observe("warren_connections", "Client connections", Kind::Gauge, move || vec![Sample::plain(on.edge.connections().len() as f64)]);
    let on = running.clone();
    metrics.observe("warren_queues", "Queues of the cluster", Kind::Gauge, move || {
        vec![Sample::plain(on.catalog.read().queue_count() as f64)]
    });
    let on = running.clone();
    let alarm = move || vec![Sample::plain(f64::from(u8::from(on.alarm.lock().is_some())))];
    let clock = running.clock.clone();
    let offset = move || clock.offset_ms().map(|ms| Sample::plain(ms as f64 / 1000.0)).into_iter().collect();
    metrics.observe("warren_clock_offset_seconds", "This node's clock ahead of the members' median", Kind::Gauge, offset);
    metrics.observe("warren_alarm", "1 while publishes stop for lack of disk space or memory on some node", Kind::Gauge, alarm);
}

fn label(shard: ShardId) -> Vec<(&'static str, String)> {
    vec![("shard", shard.to_string())]
}

fn leading(running: &Running) -> Vec<Sample> {
    let shards = (0..=running.shards).map(ShardId);
    let is_me = |shard| running.consensus.leadership(shard).borrow().is_me;
    shards.map(|shard| Sample { labels: label(shard), value: f64::from(u8::from(is_me(shard))) }).collect()
}

fn live_bytes(running: &Running) -> u64 {
    let shards = (1..=running.shards).map(ShardId);
    shards.filter_map(|shard| Some(running.replicas.data(shard)?.lock().live_bytes())).sum()
}

fn applied(running: &Running) -> Vec<Sample> {
    let groups = running.consensus.shards();
    let index = |applied: Option<crate::model::LogId>| applied.map_or(0, |id| id.index) as f64;
    groups.iter().map(|g| Sample { labels: label(g.id()), value: index(*g.applied().borrow()) }).collect()
}
