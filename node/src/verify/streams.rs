//! The stream protocol: streams, each with a publisher that has a name and sends again, on the next node, what it has no confirm for. At the
//! end the whole of each stream is read on every node.

use super::ledger::Message;
use super::load::{Load, PATIENCE};
use crate::bench::client::stream::{StreamConnection, bodies, command, key, message};
use crate::bench::client::{ClientError, Dial};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const STREAMS: u32 = 2;
const NAME: &str = "verify";
/// Messages of a Publish frame, and the time between two frames.
const BATCH: u64 = 10;
const PACE: Duration = Duration::from_millis(40);
/// Messages that may wait for their confirms.
const WINDOW: u64 = 400;
/// Chunks that a reader may be sent ahead.
const CREDIT: u16 = 10;
/// Beyond the last message a reader waits so long for what should not be there.
const AFTER: Duration = Duration::from_millis(300);

fn stream(n: u32) -> String {
    format!("verify-stream-{n}")
}

fn dial(address: &str) -> Dial {
    Dial { timeout: PATIENCE, ..Dial::guest(address) }
}

/// Make the streams.
///
/// # Errors
/// The broker's.
pub(super) fn create(load: &Load) -> Result<(), ClientError> {
    let mut connection = StreamConnection::open(&dial(load.address(0)))?;
    (0..STREAMS).try_for_each(|n| connection.create(&stream(n)))
}

/// Start the publishers.
pub(super) fn start(load: &Arc<Load>) -> Vec<JoinHandle<()>> {
    let publisher = |n: u32| {
        let sent = Arc::new(Sent::default());
        let asked = sent.clone();
        // All that was sent is stored in the end: a publisher lives until it knows that.
        let is_wanted = move |load: &Load| load.is_publishing() || !(load.is_over() || asked.is_decided());
        load.client(n as usize, is_wanted, move |load, _, address| publish(load, n, address, &sent))
    };
    (0..STREAMS).map(publisher).collect()
}

/// What a publisher keeps from one life to the next.
#[derive(Debug, Default)]
struct Sent {
    highest: AtomicU64,
    confirmed: AtomicU64,
}

impl Sent {
    fn is_decided(&self) -> bool {
        self.confirmed.load(Ordering::Relaxed) >= self.highest.load(Ordering::Relaxed)
    }

    /// All up to this one are stored.
    fn confirm(&self, load: &Load, publisher: u32, up_to: u64) {
        let before = self.confirmed.fetch_max(up_to, Ordering::Relaxed);
        (before + 1..=up_to).for_each(|number| load.ledger.confirmed(Message { publisher, number }));
    }
}

/// One life of a publisher.
fn publish(load: &Load, n: u32, address: &str, kept: &Sent) -> Result<(), ClientError> {
    let mut connection = StreamConnection::open(&dial(address))?;
    let mut sent = connection.publisher_sequence(&stream(n), NAME)?;
    kept.confirm(load, n, sent);
    connection.declare_publisher_named(&stream(n), NAME)?;
    let (mut next, mut heard) = (Instant::now(), Instant::now());
    loop {
        let is_wanted = load.is_publishing() || sent < kept.highest.load(Ordering::Relaxed);
        if !is_wanted && kept.is_decided() {
            return Ok(());
        }
        let confirmed = kept.confirmed.load(Ordering::Relaxed);
        if is_wanted && sent < confirmed + WINDOW && Instant::now() >= next {
            next = Instant::now() + PACE;
            let numbers = sent + 1..=sent + BATCH;
            sent += BATCH;
            kept.highest.fetch_max(sent, Ordering::Relaxed);
            connection.send(&frame(load, n, numbers))?;
        }
        connection.set_read_timeout(Some(PACE))?;
        let command = match connection.next_command() {
            Err(ClientError::Timeout) if heard.elapsed() < PATIENCE || sent <= confirmed => continue,
            other => other?,
        };
        heard = Instant::now();
        match (command.key, connection.content(&command)) {
            (key::CONFIRM, content) => {
                // publisher u8 | count u32 | ids u64; in order, so the last says it all
                let ids = content.get(5..).unwrap_or_default().chunks_exact(8);
                let last = ids.filter_map(|id| Some(u64::from_be_bytes(id.try_into().ok()?))).max();
                kept.confirm(load, n, last.unwrap_or(0));
            }
            (key::PUBLISH_ERROR | key::METADATA_UPDATE, _) => return Err(ClientError::Protocol("the publisher is turned away".into())),
            (_, _) => {}
        }
    }
}

fn frame(load: &Load, publisher: u32, numbers: std::ops::RangeInclusive<u64>) -> Vec<u8> {
    command(key::PUBLISH, |out| {
        out.push(1);
        out.extend_from_slice(&(BATCH as u32).to_be_bytes());
        for number in numbers {
            let at = out.len();
            message(out, load.ledger.publish(Message { publisher, number }).as_bytes());
            out[at..at + 8].copy_from_slice(&number.to_be_bytes());
        }
    })
}

/// Read everything on all nodes, within `patience` for each.
pub(super) fn read_all(load: &Load, patience: Duration) {
    for node in 0..load.nodes() {
        for n in 0..STREAMS {
            let wanted = load.ledger.highest(n);
            let until = Instant::now() + patience;
            let mut found = Vec::new();
            while found.len() < wanted as usize && Instant::now() < until {
                // A reader that is cut off begins again.
                found = read(load.address(node), &stream(n), wanted as usize, until);
            }
            found.iter().for_each(|body| load.ledger.read(node as u16 + 1, body));
        }
    }
}

/// The bodies from the first one on, until there are `wanted` and nothing follows, or time is up, or the connection ends.
fn read(address: &str, stream: &str, wanted: usize, until: Instant) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let Err(_end) = read_into(&mut found, address, stream, wanted, until);
    found
}

/// Ends with an error, if only because nothing comes any more.
fn read_into(
    found: &mut Vec<Vec<u8>>,
    address: &str,
    stream: &str,
    wanted: usize,
    until: Instant,
) -> Result<std::convert::Infallible, ClientError> {
    let mut connection = StreamConnection::open(&dial(address))?;
    connection.subscribe(stream, CREDIT)?;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        connection.set_read_timeout(Some(if found.len() >= wanted { AFTER } else { left.max(AFTER) }))?;
        let command = connection.next_command()?;
        if command.key == key::DELIVER {
            // What cannot be read is nobody's message.
            found.extend(bodies(connection.content(&command)).map(|body| body.unwrap_or_default().to_vec()));
            connection.credit()?;
        }
    }
}
