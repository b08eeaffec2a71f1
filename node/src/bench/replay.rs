//! The scenario `stream-replay`: fills a stream, looks at how much memory the given processes hold at most meanwhile and after a pause, then
//! reads all of it with one reader through another node and checks it.

use super::args::{BenchArgs, Load};
use super::client::stream::{self, StreamConnection, command, key};
use super::client::{ClientError, Dial};
use super::consumer::CREDIT;
use super::message::{HEAD, Stamp};
use super::producer::{Line, stream_producer};
use super::{BenchError, environment, load};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Messages of a Publish, at most, and bytes.
const BATCH: u64 = 100;
/// Messages without a confirm.
const WINDOW: u64 = 10_000;
/// Memory is looked at after so many bytes.
const LOOK_BYTES: u64 = 32 << 20;
/// Nothing came for so long: the rest is lost.
const PATIENCE: Duration = Duration::from_secs(30);

/// Most VmRSS by pid, KiB.
type Most = BTreeMap<u32, u64>;

/// Runs it on one broker; the JSON has `clean`, rates in MB/s (10^6 bytes of bodies), and `rss_kib` by pid.
pub(super) fn run(args: &BenchArgs, load: &Load) -> Result<Value, BenchError> {
    let dials = args.brokers_of(super::args::Kind::Stream).0;
    let dial = dials.first().ok_or_else(|| BenchError::Arguments("--stream-uris names no broker".into()))?;
    let size = load.size.max(HEAD);
    let messages = (args.gigabytes * 1e9 / size as f64) as u64;
    load::declare_streams(std::slice::from_ref(&load.queue), dial)?;
    let mut stream = Replay { load, size, messages, run: rand::random(), most: Most::new() };
    let began = Instant::now();
    stream.fill(args, dial)?;
    let (filled_s, bytes) = (began.elapsed().as_secs_f64(), (messages * size as u64) as f64);
    eprintln!("  {messages} messages of {size} bytes confirmed, {:.0} MB/s; waiting {} s", bytes / filled_s / 1e6, args.settle_seconds);
    std::thread::sleep(Duration::from_secs(args.settle_seconds));
    let mut settled = Most::new();
    look(&args.pids, &mut settled)?;
    let began = Instant::now();
    let wrong = stream.read(args, dials.get(1).unwrap_or(dial))?;
    let read_s = began.elapsed().as_secs_f64();
    eprintln!("  read again, {:.0} MB/s: {wrong} lost, repeated, reordered or changed", bytes / read_s / 1e6);
    for (pid, kib) in &stream.most {
        let after = settled.get(pid).copied().unwrap_or(0);
        eprintln!("  pid {pid}: VmRSS {:.1} MB at most, {:.1} MB after the pause", *kib as f64 / 1024.0, after as f64 / 1024.0);
    }
    let (most, settled) = (text_keys(&stream.most), text_keys(&settled));
    load::delete_streams(std::slice::from_ref(&load.queue), dial)?;
    Ok(json!({
        "messages": messages, "size": size, "filled_s": filled_s, "filled_mb_s": bytes / filled_s / 1e6, "read_s": read_s,
        "read_mb_s": bytes / read_s / 1e6, "rss_kib": most, "rss_kib_after": settled, "wrong": wrong, "clean": wrong == 0,
    }))
}

fn text_keys(of: &Most) -> BTreeMap<String, u64> {
    of.iter().map(|(pid, kib)| (pid.to_string(), *kib)).collect()
}

fn look(pids: &[u32], most: &mut Most) -> Result<(), BenchError> {
    for pid in pids {
        let (kib, _) = environment::process(*pid)?;
        let known = most.entry(*pid).or_default();
        *known = kib.max(*known);
    }
    Ok(())
}

struct Replay<'a> {
    load: &'a Load,
    size: usize,
    messages: u64,
    run: u32,
    most: Most,
}

impl Replay<'_> {
    fn fill(&mut self, args: &BenchArgs, dial: &Dial) -> Result<(), BenchError> {
        let failed = |error| BenchError::Client { address: dial.address.clone(), error };
        let mut connection = stream_producer(self.load, dial, 0).map_err(failed)?;
        let (mut pattern, body) = (Vec::new(), vec![b'x'; self.size]);
        let at = stream::message(&mut pattern, &body);
        let (mut sent, mut settled, mut refused, mut look_at) = (0, 0, 0, 0);
        while settled < self.messages {
            let room = (WINDOW - (sent - settled)).min(BATCH).min(self.messages - sent);
            if room == BATCH || room > 0 && sent + room == self.messages {
                let publish = command(key::PUBLISH, |out| {
                    out.push(1);
                    out.extend_from_slice(&(room as u32).to_be_bytes());
                    for number in sent + 1..=sent + room {
                        pattern[..8].copy_from_slice(&number.to_be_bytes());
                        Stamp { run: self.run, producer: 0, number, sent_at: 0 }.write(&mut pattern[at..]);
                        out.extend_from_slice(&pattern);
                    }
                });
                connection.send(&publish).map_err(failed)?;
                sent += room;
                continue;
            }
            let before = settled;
            let mut each = |confirm: super::producer::Confirm| {
                settled += 1;
                refused += u64::from(!confirm.is_stored());
            };
            connection.confirms(PATIENCE, &mut each).map_err(failed)?;
            if settled == before || refused > 0 {
                return Err(failed(ClientError::Protocol(format!("{refused} messages refused, {settled} of {sent} answered"))));
            }
            if settled * self.size as u64 >= look_at {
                look_at += LOOK_BYTES;
                look(&args.pids, &mut self.most)?;
            }
        }
        Ok(())
    }

    /// Reads everything; how many are lost, repeated, reordered or changed.
    fn read(&mut self, args: &BenchArgs, dial: &Dial) -> Result<u64, BenchError> {
        let failed = |error| BenchError::Client { address: dial.address.clone(), error };
        let mut connection = StreamConnection::open(dial).map_err(failed)?;
        connection.subscribe(&self.load.queue, CREDIT).map_err(failed)?;
        connection.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        let (mut next, mut wrong, mut look_at) = (1, 0, 0);
        while next <= self.messages {
            let command = match connection.next_command() {
                Ok(command) if command.key == key::DELIVER => command,
                Ok(command) => return Err(failed(ClientError::Protocol(format!("a reader got command {:#06x}", command.key)))),
                Err(ClientError::Timeout) => return Ok(wrong + (self.messages + 1 - next)),
                Err(error) => return Err(failed(error)),
            };
            for body in stream::bodies(connection.content(&command)) {
                let stamp = body.and_then(Stamp::read).filter(|stamp| stamp.run == self.run);
                wrong += u64::from(stamp.is_none_or(|stamp| stamp.number != next));
                next = stamp.map_or(next, |stamp| stamp.number) + 1;
            }
            connection.credit().map_err(failed)?;
            if next * self.size as u64 >= look_at {
                look_at += LOOK_BYTES;
                look(&args.pids, &mut self.most)?;
            }
        }
        Ok(wrong)
    }
}
