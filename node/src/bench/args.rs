//! The command line of `warren bench`.

use super::BenchError;
use super::client::{Dial, Field, Table};
use std::path::PathBuf;

/// Measure a broker: confirms, deliveries, latencies, and whether every message came exactly once and in order.
#[derive(Clone, Debug, clap::Args)]
pub struct BenchArgs {
    /// Addresses of the broker's nodes, used in turn: host:port or amqp(s)://user:password@host:port/vhost.
    #[arg(long, value_delimiter = ',', default_value = "127.0.0.1:5672")]
    pub uris: Vec<String>,
    /// Addresses of a second broker: both are measured in turn and the ratio is printed.
    #[arg(long, value_delimiter = ',')]
    pub against: Vec<String>,
    /// Authorities that the broker's certificate is verified by, PEM; with amqps:// addresses.
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Addresses for scenarios of the stream protocol.
    #[arg(long, value_delimiter = ',', default_value = "127.0.0.1:5552")]
    pub stream_uris: Vec<String>,
    /// The same of the second broker.
    #[arg(long, value_delimiter = ',')]
    pub against_stream: Vec<String>,
    /// How often each broker is measured.
    #[arg(long, default_value_t = 1)]
    pub rounds: u32,
    /// Named scenarios (comma separated, or `all`) instead of the load given by the other flags; `list` names them.
    #[arg(long, value_delimiter = ',')]
    pub scenario: Vec<String>,
    /// Name of the queue, or the beginning of the names. It is deleted before and after.
    #[arg(long, default_value = "bench")]
    pub queue: String,
    /// x-queue-type of the queues; `none` declares them without.
    #[arg(long, default_value = "quorum")]
    pub queue_type: String,
    /// Bytes of a body, at least 32.
    #[arg(long, default_value_t = 100)]
    pub size: usize,
    /// Connections that publish.
    #[arg(long, default_value_t = 1)]
    pub producers: usize,
    /// Connections that consume; 0 only publishes and counts what is in the queues at the end.
    #[arg(long, default_value_t = 1)]
    pub consumers: usize,
    /// Queues; producers and consumers are spread over them.
    #[arg(long, default_value_t = 1)]
    pub queues: usize,
    /// Messages of a producer that wait for their confirm.
    #[arg(long, default_value_t = 1000)]
    pub window: usize,
    /// Prefetch of a consumer.
    #[arg(long, default_value_t = 500)]
    pub prefetch: u16,
    /// Messages per second of each producer; 0 = as many as the window lets through.
    #[arg(long, default_value_t = 0)]
    pub rate: u64,
    /// Seconds of load; the first 30 % are not measured.
    #[arg(long, default_value_t = 8.0)]
    pub seconds: f64,
    /// Seconds to wait at the end for confirms and deliveries that are still due.
    #[arg(long, default_value_t = 20.0)]
    pub drain_seconds: f64,
    /// Nodes of the scenarios `rocketmq` and `rocketmq-polls`, used in turn: host:port or id:secret@host:port. Their topic is called
    /// like the queue, and must be there (`warren ctl add_topic`).
    #[arg(long, value_delimiter = ',', default_value = "127.0.0.1:8080")]
    pub rocketmq_uris: Vec<String>,
    /// Messages of the scenarios `memory` and `memory-delayed`.
    #[arg(long, default_value_t = 1_000_000)]
    pub messages: u64,
    /// Bytes of messages of the scenario `stream-replay`, in units of 10^9; each message has `--size` bytes.
    #[arg(long, default_value_t = 5.0)]
    pub gigabytes: f64,
    /// Queues of the scenario `idle-queues`.
    #[arg(long, default_value_t = 10_000)]
    pub idle_queues: usize,
    /// Connections of the scenario `idle-connections`, with ten channels each.
    #[arg(long, default_value_t = 1000)]
    pub idle_connections: usize,
    /// Seconds the scenario `memory` waits after the last confirm, and those of idle or waiting things before they look.
    #[arg(long, default_value_t = 60)]
    pub settle_seconds: u64,
    /// Processes whose VmRSS and CPU time are printed, as pids on this machine.
    #[arg(long, value_delimiter = ',')]
    pub pids: Vec<u32>,
    /// A directory on the broker's disk: its file system and the latency of fdatasync there are printed.
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// Print one JSON document to stdout; everything else goes to stderr.
    #[arg(long)]
    pub json: bool,
    /// No progress line.
    #[arg(long)]
    pub quiet: bool,
}

/// What is special about the queues of a load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing.
    #[default]
    Plain,
    /// Messages live for ten minutes.
    Ttl,
    /// Messages of ten priorities in turn.
    Priority,
    /// Each message dies at once in another queue, and comes from there.
    DeadLetter,
    /// Each message goes to all queues.
    Fanout,
    /// The queues are streams, written and read by the stream protocol.
    Stream,
}

/// One load, without the question whom it is put on.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Load {
    pub kind: Kind,
    pub queue: String,
    pub queue_type: Option<String>,
    pub size: usize,
    pub producers: usize,
    pub consumers: usize,
    pub queues: usize,
    pub window: usize,
    /// Messages written at once at most, so that a wide window does not become one burst.
    pub batch: usize,
    pub prefetch: u16,
    pub rate: u64,
    pub seconds: f64,
    pub drain_seconds: f64,
}

/// Priorities of messages, from 0.
pub(super) const PRIORITIES: usize = 10;

/// `Load::batch` where nothing else is said.
pub(super) const BATCH: usize = 256;

impl Load {
    /// Exchange and routing key of the n-th producer.
    pub(super) fn route_of(&self, client: usize) -> (String, String) {
        match self.kind {
            Kind::Plain | Kind::Ttl | Kind::Priority | Kind::Stream => (String::new(), self.queue_of(client)),
            Kind::DeadLetter => (String::new(), source_of(&self.queue_of(client))),
            Kind::Fanout => (self.exchange(), String::new()),
        }
    }

    /// The exchange of a fan-out.
    pub(super) fn exchange(&self) -> String {
        format!("{}-fanout", self.queue)
    }

    /// How often each message is there.
    pub(super) fn copies(&self) -> u64 {
        if self.kind == Kind::Fanout { self.queues as u64 } else { 1 }
    }

    /// Priority of a producer's n-th message. Messages of one priority stay in order.
    pub(super) fn priority_of(&self, number: u64) -> u8 {
        if self.kind == Kind::Priority { (number % PRIORITIES as u64) as u8 } else { 0 }
    }

    /// Arguments of the queues that are consumed.
    pub(super) fn arguments(&self) -> Table {
        let mut arguments: Table = self.queue_type.iter().map(|kind| ("x-queue-type".to_owned(), Field::Text(kind.clone()))).collect();
        match self.kind {
            Kind::Ttl => arguments.push(("x-message-ttl".to_owned(), Field::Int(600_000))),
            Kind::Priority => arguments.push(("x-max-priority".to_owned(), Field::Int(PRIORITIES as i64))),
            Kind::Plain | Kind::DeadLetter | Kind::Fanout | Kind::Stream => {}
        }
        arguments
    }

    /// The queue whose messages die into `queue`, and its arguments; only of such loads.
    pub(super) fn source(&self, queue: &str) -> Option<(String, Table)> {
        let mut arguments = self.arguments();
        arguments.push(("x-message-ttl".to_owned(), Field::Int(0)));
        arguments.push(("x-dead-letter-exchange".to_owned(), Field::Text(String::new())));
        arguments.push(("x-dead-letter-routing-key".to_owned(), Field::Text(queue.to_owned())));
        (self.kind == Kind::DeadLetter).then(|| (source_of(queue), arguments))
    }

    /// Name of the queue that the n-th producer or consumer uses.
    pub(super) fn queue_of(&self, client: usize) -> String {
        self.queue_name(client % self.queues)
    }

    /// Name of the n-th queue.
    pub(super) fn queue_name(&self, at: usize) -> String {
        if self.queues == 1 { self.queue.clone() } else { format!("{}-{at}", self.queue) }
    }

    /// Whether the queues are streams, which need an offset to be read from the beginning.
    pub(super) fn is_stream(&self) -> bool {
        self.queue_type.as_deref() == Some("stream")
    }
}

fn dials(uris: &[String], ca: Option<&PathBuf>) -> Vec<Dial> {
    uris.iter().map(|uri| Dial { ca: ca.cloned(), ..Dial::parse(uri) }).collect()
}

fn source_of(queue: &str) -> String {
    format!("{queue}-source")
}

impl BenchArgs {
    /// The load that the flags describe.
    pub(super) fn load(&self) -> Load {
        Load {
            kind: Kind::Plain,
            queue: self.queue.clone(),
            queue_type: Some(self.queue_type.clone()).filter(|kind| kind != "none"),
            size: self.size,
            producers: self.producers,
            consumers: self.consumers,
            queues: self.queues,
            window: self.window,
            batch: BATCH,
            prefetch: self.prefetch,
            rate: self.rate,
            seconds: self.seconds,
            drain_seconds: self.drain_seconds,
        }
    }

    /// The brokers: the first, and the one to compare with.
    pub(super) fn brokers(&self) -> (Vec<Dial>, Vec<Dial>) {
        (dials(&self.uris, self.tls_ca.as_ref()), dials(&self.against, None))
    }

    /// Where loads of this kind find them.
    pub(super) fn brokers_of(&self, kind: Kind) -> (Vec<Dial>, Vec<Dial>) {
        if kind == Kind::Stream { (dials(&self.stream_uris, None), dials(&self.against_stream, None)) } else { self.brokers() }
    }

    /// Refuse what cannot be run.
    pub(super) fn check(&self) -> Result<(), BenchError> {
        let refuse = |why: &str| Err(BenchError::Arguments(why.to_owned()));
        match () {
            () if self.uris.is_empty() => refuse("--uris names no broker"),
            () if self.uris.iter().any(|uri| uri.starts_with("amqps://")) != self.tls_ca.is_some() => {
                refuse("amqps:// addresses and --tls-ca go together: the broker's certificate is verified")
            }
            () if self.against.iter().any(|uri| uri.starts_with("amqps://")) => refuse("--against is measured in the clear"),
            () if self.size < super::message::HEAD => refuse("--size must be at least 32: a body carries its number, time and checksum"),
            () if self.queues == 0 || self.window == 0 || self.rounds == 0 => refuse("--queues, --window and --rounds must be at least 1"),
            () if self.window > 1 << 20 => refuse("--window must be at most 1048576"),
            () if self.producers == 0 => refuse("--producers must be at least 1"),
            () if self.consumers > 0 && self.consumers < self.queues.min(self.producers) => {
                refuse("--consumers: with fewer consumers than queues some queues are never read")
            }
            () if !(self.seconds.is_finite() && self.seconds >= 0.5) => refuse("--seconds must be at least 0.5"),
            () if !(self.drain_seconds.is_finite() && self.drain_seconds >= 0.0) => refuse("--drain-seconds must not be negative"),
            () => Ok(()),
        }
    }
}
