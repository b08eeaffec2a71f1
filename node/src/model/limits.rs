//! Every limit of the broker, in one place, each with its reason.

use std::time::Duration;

/// Largest message body, bytes (RabbitMQ's default `max_message_size`); a node may be told of a smaller one.
pub const MESSAGE_BYTES: usize = 16 << 20;
/// A lane closes a batch at this size: above it latency doubles for little throughput (measured knee 64-256 KiB).
pub const BATCH_BYTES: usize = 128 << 10;
/// Entries one shard leader keeps in flight: few in flight with big batches beat many groups (measured).
pub const ENTRIES_IN_FLIGHT: usize = 4;
/// An entry is closed at this size even when more batches wait; one batch of any size always fits alone.
pub const ENTRY_BYTES: usize = 256 << 10;
/// Batches an edge sends to one shard ahead of verdicts.
pub const BATCHES_IN_FLIGHT: usize = 8;
/// Bytes an edge holds for one shard, sent or not, before publishers of that shard are stopped (TCP back-pressure). What its leader was
/// sent and has not answered in time does not count: that is one batch of any size, or what may be in flight.
pub const LANE_BYTES: usize = 16 << 20;
/// Credit in bytes a consumer starts with, also at prefetch 0 (rule 16): bounds an edge's memory for one consumer.
pub const CONSUMER_BYTES: u64 = 1 << 20;
/// What clients that fetch are given at once, all queues together, unless the first message alone is larger.
pub const TAKE_BYTES: usize = 1 << 20;
/// Tail cache of the WAL, all shards of a node: deliveries of fresh messages never touch the disk.
pub const TAIL_CACHE_BYTES: usize = 64 << 20;
/// What the tail cache holds for longer than once to twice this, and nobody reads, goes: a backlog nobody consumes costs no memory.
pub const TAIL_CACHE_AGE: Duration = Duration::from_secs(3);
/// A leader takes no more entries while so many bytes of the node's log wait for its disk: followers commit without it (rule 9).
pub const UNFLUSHED_BYTES: usize = 64 << 20;
/// A write and sync of the log that take longer mean a disk that hangs: the node gives away what it leads (rule 9).
pub const SLOW_WRITE: Duration = Duration::from_secs(2);
/// A checkpoint that takes longer is reported: nothing waits for it but the log's files. Large ones on slow disks take some seconds.
pub const SLOW_CHECKPOINT: Duration = Duration::from_secs(10);
/// A node whose disk hung gets no leadership back before its disk has been well for so long.
pub const SLOW_DISK_CALM: Duration = Duration::from_secs(30);
/// Size of one WAL file.
pub const WAL_FILE_BYTES: u64 = 64 << 20;
/// Log kept by a node for replicas that lag or are away: beyond it they catch up by snapshot (rule 8).
pub const CATCH_UP_BYTES: u64 = 1 << 30;
/// Log files with data beyond this are cleaned: what is still alive in old ones is written again at the log's end.
pub const LOG_BUDGET_BYTES: u64 = 2 << 30;
/// A replica that is away for longer keeps no log at all: it catches up by snapshot (rule 8).
pub const AWAY: Duration = Duration::from_secs(600);
/// Largest frame of a snapshot under way, unless one entry is larger: bounds the memory of both sides.
pub const SNAPSHOT_CHUNK_BYTES: usize = 1 << 20;
/// A snapshot transfer without progress for this long ends, and what it pinned is free again (rule 8).
pub const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(30);
/// Channels per connection (RabbitMQ's default).
pub const CHANNEL_MAX: u16 = 2047;
/// AMQP frame size offered in tune (RabbitMQ's default).
pub const FRAME_MAX: u32 = 131_072;
/// AMQP frame size before tune (spec 4.2.3 / RabbitMQ).
pub const FRAME_MAX_BEFORE_TUNE: u32 = 8192;
/// Heartbeat offered in tune, seconds (RabbitMQ's default).
pub const HEARTBEAT_SECONDS: u16 = 60;
/// Stream protocol: largest frame offered in tune (RabbitMQ's default).
pub const STREAM_FRAME_MAX: u32 = 1 << 20;
/// Stream protocol: largest frame of a client that is not in a vhost yet (RabbitMQ's default).
pub const STREAM_FRAME_MAX_BEFORE_OPEN: u32 = 8192;
/// Stream protocol: a client that does not answer a ConsumerUpdate for this long is cut (RabbitMQ's default).
pub const STREAM_ANSWER: Duration = Duration::from_secs(60);
/// Consumers of a group on a stream, of which one is active: the catalog keeps each.
pub const GROUP_MEMBERS: usize = 1000;
/// Partitions of a super stream: each is a queue, made one after the other within one request.
pub const SUPER_STREAM_PARTITIONS: usize = 1000;
/// A client must get through connection.open within this time (RabbitMQ's default handshake timeout).
pub const HANDSHAKE: Duration = Duration::from_secs(10);
/// Of it, what the TLS handshake may take (RabbitMQ's default `ssl_handshake_timeout`).
pub const TLS_HANDSHAKE: Duration = Duration::from_secs(5);
/// TLS handshakes under way on a port: what a client may make the TLS library hold before it is known (64 KiB each) stays bounded.
/// Beyond it newcomers wait in the system's queue.
pub const TLS_HANDSHAKES: usize = 4096;
/// Questions by basic.get of one connection that are under way, or answered and not written: each may bring the largest message. Those of
/// further channels wait.
pub const GETS: usize = 16;
/// Frames of channels that wait for a reply are kept up to this many bytes, then the socket is not read.
pub const CONNECTION_BACKLOG_BYTES: usize = 256 << 10;
/// Messages that a connection has begun and not finished, properties and all, all channels together: a body that never ends must not eat
/// the memory.
pub const CONNECTION_ASSEMBLY_BYTES: usize = 64 << 20;
/// Messages of one transaction, bytes: they become one entry per shard, and an entry takes what the largest message takes.
pub const TRANSACTION_BYTES: usize = MESSAGE_BYTES;
/// What of a transaction may come to one shard, with names and queues, bytes: it is one entry, and an entry fits into half a log file.
pub const TRANSACTION_ENTRY_BYTES: usize = 24 << 20;
/// Client connections of one listener: beyond it new ones are closed at once (each costs a file descriptor and a task).
pub const CONNECTIONS: usize = 50_000;
/// A connection's read buffer grows to this while it is busy, and is given back when it is idle.
pub const READ_BUFFER_BYTES: usize = 128 << 10;
/// Connections to the management port at once; who comes later waits.
pub const MANAGEMENT_CONNECTIONS: usize = 64;
/// A question to the management port must have come by then,
pub const MANAGEMENT_HEADER: Duration = Duration::from_secs(5);
/// and its answer must be taken by then.
pub const MANAGEMENT_CONNECTION: Duration = Duration::from_secs(10);
/// How long a closed connection may take to say close-ok and to take what is still to be written.
pub const CLOSING: Duration = Duration::from_secs(1);
/// How long a client that has said goodbye waits for publishes of its that cannot go on: as long as publishes wait for a quorum, unless
/// the node's configuration says otherwise for those.
pub const LEAVING: Duration = Duration::from_secs(10);
/// Unwritten output of a connection above which its events wait (their consumers get no new byte credit).
pub const CONNECTION_OUTPUT_BYTES: usize = 1 << 20;
/// A routing lease: how long a node may route by its copy of the catalog without hearing from the catalog's leader (rule 28).
pub const ROUTING_LEASE: Duration = Duration::from_millis(1000);
/// A node whose clock is further from the median of the members' lets nothing end by time while it leads (rule 24).
pub const CLOCK_SLACK_MS: u64 = 1000;
/// Nodes of a cluster: each holds a replica of the catalog, and more replicas cost more than they give.
pub const NODES: usize = 5;
/// A process that the catalog's leader does not hear for this long is down: its in-memory queues are gone, their names are free. Longer
/// than failovers and short faults of the network, shorter than a client's patience (rule 29).
pub const NODE_DOWN: Duration = Duration::from_secs(5);
/// Messages reserved ahead of the cursor of a queue with consumers (rule on `Reserve`).
pub const RESERVE_AHEAD: u64 = 4096;
/// Letters that a shard's leader has under way to one target shard: what a slow one holds up, and how many rows with a fixed way a shard
/// keeps for a stuck source at most, 250 bytes each.
pub const LETTERS_UNDER_WAY: usize = 4096;
/// ... and their bytes, unless one letter is larger: bounds the memory of their bodies here and in the lane they travel in.
pub const LETTER_BYTES: usize = 16 << 20;
/// Letters of one queue that wait for targets. At this many, messages whose time ended or that are too many stay in their queue; what
/// consumers reject is taken in still, it costs the memory of a waiting message (rule 25).
pub const OUTBOX_LETTERS: u64 = 65_536;
/// ... or at this many bytes in their bodies: they hold files of the log.
pub const OUTBOX_BYTES: u64 = 256 << 20;
/// Messages that leave queues by themselves in one entry: the rest follows in the next ones, so that no entry stops its shard.
pub const LEAVING_PER_ENTRY: u64 = 4096;
/// A source whose letter was refused tries again after this time,
pub const LETTER_PAUSE_MIN: Duration = Duration::from_millis(100);
/// and up to this, doubled each time.
pub const LETTER_PAUSE_MAX: Duration = Duration::from_secs(5);
/// Messages that an exchange with history remembers at most: each new binding makes letters of all of them in one entry.
pub const HISTORY_MESSAGES: i64 = 100_000;
/// Deduplication values that a queue or an exchange remembers: some 100 bytes of memory each, on each replica.
pub const DEDUPLICATION_VALUES: u64 = 1_000_000;
/// Publishers whose publishing ids a queue remembers unless it says otherwise; the one that was silent for longest is forgotten first.
pub const PUBLISHERS: u64 = 1024;
/// ... at most: each costs some 100 bytes of memory on each replica, and its ranges.
pub const PUBLISHERS_MAX: u64 = 65_536;
/// Ranges of the publishing ids of a publisher that a queue remembers unless it says otherwise: beyond it the lowest is forgotten. An id of
/// it that comes once more is taken once more; one that never came is never taken for one that did.
pub const PUBLISHER_RANGES: u64 = 1024;
/// ... at most: an id that comes out of order moves half of them.
pub const PUBLISHER_RANGES_MAX: u64 = 16_384;
/// Ranges of all publishers of a queue, of 16 bytes each: a checkpoint writes all of them when one has changed.
pub const QUEUE_RANGES_MAX: u64 = 1 << 20;
/// Publishers whose last publishing id a stream remembers (osiris's limit); the one that was silent for longest is forgotten first.
pub const STREAM_PUBLISHERS: usize = 255;
/// Readers whose offset a stream remembers; the one that stored none for longest is forgotten first.
pub const STREAM_READERS: usize = 4096;
/// Longest name of a publisher or reader of a stream, bytes (RabbitMQ's limit).
pub const STREAM_REFERENCE_BYTES: usize = 255;
/// How long a consumer may hold a message unless it or its queue says otherwise (RabbitMQ's default).
pub const CONSUMER_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// A name on the wire is a short string (spec 4.2.5.3).
pub const NAME_BYTES: usize = 255;
/// An edge with no contact for this long may be declared gone (rule 18).
pub const EDGE_GONE: Duration = Duration::from_millis(1000);
/// An edge that did not hear a leader for this long hands out nothing of it (rule 19): half of `EDGE_GONE`, so that the answer to its
/// question may take the other half.
pub const EDGE_SILENCE: Duration = Duration::from_millis(500);
