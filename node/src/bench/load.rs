//! One run: declares the queues, starts producers and consumers, watches them, and adds up what they saw.

use super::args::{Kind, Load};
use super::client::stream::StreamConnection;
use super::client::{ClientError, Connection, Dial, QueueOptions};
use super::consumer::{self, Consumed};
use super::message::Clock;
use super::producer::{self, Published};
use super::report::{self, Figures};
use super::seen::Seen;
use super::{BenchError, report::histogram};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The part of a run that is not measured, because queues and caches are still cold.
const WARM_UP: f64 = 0.3;

/// What the threads of a run share.
#[derive(Debug)]
pub(super) struct Shared {
    /// Tells messages of this run from those of another.
    pub run: u32,
    pub clock: Clock,
    /// Clients that are connected.
    ready: AtomicUsize,
    /// The warm-up is over and the load is on.
    pub measuring: AtomicBool,
    /// Producers: no more.
    pub stop: AtomicBool,
    /// Consumers: no more.
    pub done: AtomicBool,
    pub published: AtomicU64,
    pub confirmed: AtomicU64,
    pub nacked: AtomicU64,
    pub consumed: AtomicU64,
}

impl Shared {
    fn new() -> Shared {
        let zero = || AtomicU64::new(0);
        Shared {
            run: rand::random(),
            clock: Clock(Instant::now()),
            ready: AtomicUsize::new(0),
            measuring: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            done: AtomicBool::new(false),
            published: zero(),
            confirmed: zero(),
            nacked: zero(),
            consumed: zero(),
        }
    }

    /// A client is connected.
    pub(super) fn ready(&self) {
        self.ready.fetch_add(1, Relaxed);
    }
}

/// Put a load on a broker. `progress` prints a line each second to stderr.
pub(super) fn run(load: &Load, broker: &[Dial], progress: bool) -> Result<Figures, BenchError> {
    declare(load, &broker[0])?;
    let shared = Arc::new(Shared::new());
    let consumers = spawn(load, broker, 1, load.consumers, &shared, consumer::run);
    await_ready(&shared, load.consumers);
    let producers = spawn(load, broker, 0, load.producers, &shared, producer::run);
    let rates = watch(load, &shared, progress, || producers.iter().all(JoinHandle::is_finished));
    shared.stop.store(true, Relaxed);
    let published = join(producers);
    await_consumed(load, &shared);
    shared.done.store(true, Relaxed);
    let consumed = join(consumers);
    let mut figures = add_up(load, published, consumed);
    figures.confirm_rate = rates.0;
    figures.consume_rate = rates.1;
    if load.consumers == 0 {
        count_ready(load, &broker[0], &mut figures)?;
    }
    delete(load, &broker[0])?;
    Ok(figures)
}

type Client<T> = fn(&Load, &Dial, usize, &Arc<Shared>) -> Result<T, ClientError>;

fn spawn<T: Send + 'static>(
    load: &Load,
    broker: &[Dial],
    shift: usize,
    count: usize,
    shared: &Arc<Shared>,
    client: Client<T>,
) -> Vec<JoinHandle<Result<T, String>>> {
    let start = |at: usize| {
        let (load, dial, shared) = (load.clone(), broker[(at + shift) % broker.len()].clone(), shared.clone());
        thread::spawn(move || client(&load, &dial, at, &shared).map_err(|error| format!("{}: {error}", dial.address)))
    };
    (0..count).map(start).collect()
}

fn join<T>(threads: Vec<JoinHandle<Result<T, String>>>) -> Vec<Result<T, String>> {
    threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err("a client's thread panicked".into()))).collect()
}

fn await_ready(shared: &Shared, clients: usize) {
    let until = Instant::now() + Duration::from_secs(30);
    while shared.ready.load(Relaxed) < clients && Instant::now() < until {
        thread::sleep(Duration::from_millis(2));
    }
}

/// Let it run; confirms and deliveries per second after the warm-up.
fn watch(load: &Load, shared: &Shared, progress: bool, over: impl Fn() -> bool) -> (f64, f64) {
    let began = Instant::now();
    let warm = Duration::from_secs_f64(load.seconds * WARM_UP);
    let end = Duration::from_secs_f64(load.seconds);
    let counts = || [shared.published.load(Relaxed), shared.confirmed.load(Relaxed), shared.consumed.load(Relaxed)];
    let mut base: Option<(Instant, [u64; 3])> = None;
    let (mut line_at, mut line) = (Instant::now(), counts());
    while began.elapsed() < end && !over() {
        thread::sleep(Duration::from_millis(20).min(end.saturating_sub(began.elapsed())));
        if base.is_none() && began.elapsed() >= warm {
            base = Some((Instant::now(), counts()));
            shared.measuring.store(true, Relaxed);
        }
        if progress && line_at.elapsed() >= Duration::from_secs(1) {
            let now = counts();
            report::progress(began.elapsed(), line_at.elapsed(), line, now, shared.nacked.load(Relaxed));
            (line_at, line) = (Instant::now(), now);
        }
    }
    shared.measuring.store(false, Relaxed);
    let (from, first) = base.unwrap_or((began, [0; 3]));
    let (took, last) = (from.elapsed().as_secs_f64().max(0.001), counts());
    ((last[1] - first[1]) as f64 / took, (last[2] - first[2]) as f64 / took)
}

fn await_consumed(load: &Load, shared: &Shared) {
    let until = Instant::now() + Duration::from_secs_f64(load.drain_seconds);
    let due = || shared.consumed.load(Relaxed) < shared.confirmed.load(Relaxed);
    while load.consumers > 0 && due() && Instant::now() < until {
        thread::sleep(Duration::from_millis(10));
    }
}

fn add_up(load: &Load, published: Vec<Result<Published, String>>, consumed: Vec<Result<Consumed, String>>) -> Figures {
    let mut figures = Figures::new(load);
    let mut seen: BTreeMap<u32, Seen> = BTreeMap::new();
    for consumer in consumed {
        match consumer {
            Ok(one) => add_consumer(&mut figures, &mut seen, one),
            Err(error) => figures.failures.push(error),
        }
    }
    for producer in published {
        match producer {
            Ok(one) => add_producer(&mut figures, &seen, one, load),
            Err(error) => figures.failures.push(error),
        }
    }
    figures
}

fn add_consumer(figures: &mut Figures, seen: &mut BTreeMap<u32, Seen>, one: Consumed) {
    for (producer, (numbers, _)) in one.seen {
        figures.consumed += numbers.count();
        let twice = seen.entry(producer).or_default().merge(&numbers);
        figures.consumed -= twice;
        figures.repeated += twice;
    }
    figures.repeated += one.repeated;
    figures.reordered += one.reordered;
    figures.redelivered += one.redelivered;
    figures.corrupt += one.corrupt;
    figures.end_to_end_us.add(one.latency_us).unwrap_or_else(|_| figures.failures.push("latencies do not add up".into()));
    figures.failures.extend(one.failure);
}

fn add_producer(figures: &mut Figures, seen: &BTreeMap<u32, Seen>, one: Published, load: &Load) {
    let none = Seen::default();
    figures.published += one.sent;
    figures.confirmed += one.confirmed.count();
    figures.nacked += one.nacked;
    figures.unconfirmed += one.sent - one.confirmed.count() - one.nacked;
    figures.bogus_confirms += one.bogus;
    figures.longest_gap_us = figures.longest_gap_us.max(one.longest_gap / 1000);
    if load.consumers > 0 {
        figures.lost += one.confirmed.missing_in(seen.get(&one.producer).unwrap_or(&none));
    }
    figures.confirm_us.add(one.latency_us).unwrap_or_else(|_| figures.failures.push("latencies do not add up".into()));
    figures.failures.extend(one.failure);
}

fn control(dial: &Dial) -> Result<Connection, BenchError> {
    Connection::open_with_channel(dial).map_err(|error| BenchError::Client { address: dial.address.clone(), error })
}

fn refused(dial: &Dial, error: ClientError) -> BenchError {
    BenchError::Client { address: dial.address.clone(), error }
}

/// Streams of these names, new and with leaders.
pub(super) fn declare_streams(names: &[String], dial: &Dial) -> Result<(), BenchError> {
    let make = || {
        let mut connection = StreamConnection::open(dial)?;
        for name in names {
            connection.delete(name)?;
            connection.create(name)?;
        }
        let until = Instant::now() + dial.timeout;
        while !names.iter().map(|name| connection.leader(name)).all(|leader| matches!(leader, Ok(Some(_)))) {
            if Instant::now() >= until {
                return Err(ClientError::Protocol("the streams have no leaders".into()));
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    };
    make().map_err(|error| refused(dial, error))
}

pub(super) fn delete_streams(names: &[String], dial: &Dial) -> Result<(), BenchError> {
    let gone = || {
        let mut connection = StreamConnection::open(dial)?;
        names.iter().try_for_each(|name| connection.delete(name))
    };
    gone().map_err(|error| refused(dial, error))
}

fn names(load: &Load) -> Vec<String> {
    (0..load.queues).map(|at| load.queue_name(at)).collect()
}

fn declare(load: &Load, dial: &Dial) -> Result<(), BenchError> {
    if load.kind == Kind::Stream {
        return declare_streams(&names(load), dial);
    }
    delete(load, dial)?;
    let mut connection = control(dial)?;
    let mut made = || {
        if load.kind == Kind::Fanout {
            connection.declare_exchange(1, &load.exchange(), "fanout")?;
        }
        for name in (0..load.queues).map(|at| load.queue_name(at)) {
            connection.declare(1, &name, &QueueOptions { arguments: load.arguments(), ..QueueOptions::durable() })?;
            if load.kind == Kind::Fanout {
                connection.bind(1, &name, &load.exchange(), "")?;
            }
            if let Some((source, arguments)) = load.source(&name) {
                connection.declare(1, &source, &QueueOptions { arguments, ..QueueOptions::durable() })?;
            }
        }
        Ok(())
    };
    made().map_err(|error| BenchError::Client { address: dial.address.clone(), error })
}

fn delete(load: &Load, dial: &Dial) -> Result<(), BenchError> {
    if load.kind == Kind::Stream {
        return delete_streams(&names(load), dial);
    }
    let mut connection = control(dial)?;
    let mut gone = || {
        for name in (0..load.queues).map(|at| load.queue_name(at)) {
            let source = load.source(&name).map(|(source, _)| source);
            source.iter().chain([&name]).try_for_each(|name| connection.delete(1, name).map(drop))?;
        }
        if load.kind == Kind::Fanout {
            connection.delete_exchange(1, &load.exchange())?;
        }
        Ok(())
    };
    gone().map_err(|error| BenchError::Client { address: dial.address.clone(), error })
}

/// Without consumers: what was confirmed must be in the queues. Some brokers count with a delay, so look for a while.
fn count_ready(load: &Load, dial: &Dial, figures: &mut Figures) -> Result<(), BenchError> {
    let mut connection = control(dial)?;
    let until = Instant::now() + Duration::from_secs_f64(load.drain_seconds);
    loop {
        let mut ready = 0;
        for at in 0..load.queues {
            let state = connection.declare(1, &load.queue_name(at), &QueueOptions::look());
            ready += u64::from(state.map_err(|error| BenchError::Client { address: dial.address.clone(), error })?.messages);
        }
        figures.lost = (figures.confirmed * load.copies()).saturating_sub(ready);
        figures.repeated = ready.saturating_sub(figures.published * load.copies());
        if (figures.lost == 0 && figures.repeated == 0) || Instant::now() >= until {
            figures.end_to_end_us = histogram();
            return Ok(());
        }
        thread::sleep(Duration::from_millis(200));
    }
}
