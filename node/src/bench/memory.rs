//! The scenario `memory`: fill a queue, wait, and look at how much memory the given processes hold. Then everything is consumed and checked.
//! The scenario `memory-delayed`: the same with messages that an exchange delays by hours; they go with it.

use super::args::{BenchArgs, Load};
use super::client::{Connection, Dial, Field, QueueOptions};
use super::message::{HEAD, Stamp};
use super::seen::Seen;
use super::{BenchError, environment};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Messages between two looks at the confirms.
const BATCH: u64 = 500;

/// The messages of `memory-delayed` wait from one to two hours, ms, each its own time.
const DELAY_MS: u64 = 3_600_000;

fn delay(number: u64) -> [(String, Field); 1] {
    [("x-delay".to_owned(), Field::Int((DELAY_MS + number * 7919 % DELAY_MS) as i64))]
}

/// What `fill` sends.
struct Filling<'a> {
    exchange: &'a str,
    key: &'a str,
    is_delayed: bool,
    messages: u64,
    run: u32,
}

/// Delayed messages; the JSON has `bytes_each`: what they added to the memory of the given processes, by the number of processes.
pub(super) fn delayed(args: &BenchArgs, load: &Load, dial: &Dial) -> Result<Value, BenchError> {
    let failed = |error| BenchError::Client { address: dial.address.clone(), error };
    let exchange = format!("{}-delayed", load.queue);
    let kind = [("x-delayed-type".to_owned(), Field::Text("direct".to_owned()))];
    let mut connection = Connection::open_with_channel(dial).map_err(failed)?;
    connection.delete_exchange(1, &exchange).map_err(failed)?;
    connection.declare_exchange_with(1, &exchange, "x-delayed-message", &kind).map_err(failed)?;
    let before = resident(args)?;
    let filling = Filling { exchange: &exchange, key: &load.queue, is_delayed: true, messages: args.messages, run: rand::random() };
    let began = Instant::now();
    fill(&mut connection, load, &filling).map_err(failed)?;
    let filled_s = began.elapsed().as_secs_f64();
    eprintln!("  {} messages of {} bytes confirmed in {filled_s:.1} s; waiting {} s", args.messages, load.size, args.settle_seconds);
    drop(connection);
    std::thread::sleep(Duration::from_secs(args.settle_seconds));
    let after = resident(args)?;
    let mut each = serde_json::Map::new();
    for ((pid, before), (_, after)) in before.iter().zip(&after) {
        let bytes = (*after as f64 - *before as f64) * 1024.0 / args.messages.max(1) as f64;
        eprintln!(
            "  pid {pid}: VmRSS {:.1} MB, before {:.1} MB: {bytes:.0} bytes for each message",
            *after as f64 / 1024.0,
            *before as f64 / 1024.0
        );
        each.insert(pid.to_string(), json!(bytes));
    }
    let mut connection = Connection::open_with_channel(dial).map_err(failed)?;
    connection.delete_exchange(1, &exchange).map_err(failed)?;
    Ok(json!({ "messages": args.messages, "size": load.size, "filled_s": filled_s, "bytes_each": each, "clean": true }))
}

/// VmRSS of the given processes, KiB.
fn resident(args: &BenchArgs) -> Result<Vec<(u32, u64)>, BenchError> {
    args.pids.iter().map(|pid| Ok((*pid, environment::process(*pid)?.0))).collect()
}

/// Run it on one broker; the JSON has `clean`, and `rss_kib` by pid.
pub(super) fn run(args: &BenchArgs, load: &Load, dial: &Dial) -> Result<Value, BenchError> {
    let failed = |error| BenchError::Client { address: dial.address.clone(), error };
    let mut connection = Connection::open_with_channel(dial).map_err(failed)?;
    connection.delete(1, &load.queue).map_err(failed)?;
    connection.declare(1, &load.queue, &QueueOptions { arguments: load.arguments(), ..QueueOptions::durable() }).map_err(failed)?;
    let run = rand::random();
    let began = Instant::now();
    let filling = Filling { exchange: "", key: &load.queue, is_delayed: false, messages: args.messages, run };
    fill(&mut connection, load, &filling).map_err(failed)?;
    let filled_s = began.elapsed().as_secs_f64();
    eprintln!("  {} messages of {} bytes confirmed in {filled_s:.1} s; waiting {} s", args.messages, load.size, args.settle_seconds);
    drop(connection); // an idle connection without heartbeats may be cut
    std::thread::sleep(Duration::from_secs(args.settle_seconds));
    let mut rss = serde_json::Map::new();
    for (pid, kib) in resident(args)? {
        eprintln!("  pid {pid}: VmRSS {:.1} MB", kib as f64 / 1024.0);
        rss.insert(pid.to_string(), json!(kib));
    }
    let mut connection = Connection::open_with_channel(dial).map_err(failed)?;
    let wrong = drain(&mut connection, load, args.messages, run).map_err(failed)?;
    connection.delete(1, &load.queue).map_err(failed)?;
    eprintln!("  consumed all again: {wrong} lost, repeated, reordered or changed");
    Ok(json!({ "messages": args.messages, "size": load.size, "filled_s": filled_s, "rss_kib": rss, "wrong": wrong, "clean": wrong == 0 }))
}

fn fill(connection: &mut Connection, load: &Load, filling: &Filling<'_>) -> Result<(), super::client::ClientError> {
    use super::client::{ClientError, Incoming, encode};
    connection.confirm_select(1)?;
    let Filling { exchange, key, is_delayed, messages, run } = *filling;
    let route = encode::Route { channel: 1, exchange, key, mandatory: false };
    let (mut body, mut out) = (vec![b'x'; load.size.max(HEAD)], Vec::new());
    let (mut sent, mut lowest, mut confirmed) = (0, 1, Seen::default());
    while confirmed.count() < messages {
        let room = load.window as u64 - (sent - confirmed.count());
        if sent < messages && room > load.window as u64 / 2 {
            let until = (sent + BATCH.min(room)).min(messages);
            out.clear();
            for number in sent + 1..=until {
                Stamp { run, producer: 0, number, sent_at: 0 }.write(&mut body);
                match is_delayed {
                    true => encode::publish_with(&mut out, route, &delay(number), &body, connection.frame_max),
                    false => encode::publish(&mut out, route, &body, connection.frame_max),
                }
            }
            connection.send(&out)?;
            sent = until;
            continue;
        }
        connection.set_read_timeout(Some(Duration::from_secs(60)))?;
        match connection.next_event()? {
            Incoming::Confirm { tag, multiple, nack: false, .. } if tag <= sent => {
                let first = if multiple { lowest } else { tag };
                (first..=tag).for_each(|number| _ = confirmed.insert(number));
                lowest = if multiple { lowest.max(tag + 1) } else { lowest };
            }
            Incoming::Blocked(_) | Incoming::Unblocked | Incoming::Heartbeat => (),
            other => return Err(ClientError::Protocol(format!("while filling: {other:?}"))),
        }
    }
    Ok(())
}

fn drain(connection: &mut Connection, load: &Load, messages: u64, run: u32) -> Result<u64, super::client::ClientError> {
    use super::client::{ClientError, Incoming};
    connection.qos(1, 1000)?;
    connection.consume(1, &load.queue, "", &[])?;
    connection.set_read_timeout(Some(Duration::from_secs(30)))?;
    let (mut seen, mut last, mut wrong) = (Seen::default(), 0, 0);
    for at in 1..=messages {
        let message = loop {
            match connection.next_event() {
                Ok(Incoming::Deliver(_, message)) => break message,
                Ok(Incoming::Heartbeat | Incoming::Blocked(_) | Incoming::Unblocked) => (),
                Err(ClientError::Timeout) => return Ok(wrong + messages - seen.count()),
                Ok(other) => return Err(ClientError::Protocol(format!("while draining: {other:?}"))),
                Err(error) => return Err(error),
            }
        };
        match Stamp::read(&message.body).filter(|stamp| stamp.run == run) {
            Some(stamp) => {
                wrong += u64::from(!seen.insert(stamp.number) || stamp.number < last || message.redelivered);
                last = stamp.number;
            }
            None => wrong += 1,
        }
        if at % 500 == 0 || at == messages {
            connection.ack(1, message.tag, true)?;
        }
    }
    Ok(wrong)
}
