//! The scenario `memory`: fill a queue, wait, and look at how much memory the given processes hold. Then everything is consumed and checked.

use super::args::{BenchArgs, Load};
use super::client::{Connection, Dial, QueueOptions};
use super::message::{HEAD, Stamp};
use super::seen::Seen;
use super::{BenchError, environment};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Messages between two looks at the confirms.
const BATCH: u64 = 500;

/// Run it on one broker; the JSON has `clean`, and `rss_kib` by pid.
pub(super) fn run(args: &BenchArgs, load: &Load, dial: &Dial) -> Result<Value, BenchError> {
    let failed = |error| BenchError::Client { address: dial.address.clone(), error };
    let mut connection = Connection::open_with_channel(dial).map_err(failed)?;
    connection.delete(1, &load.queue).map_err(failed)?;
    connection.declare(1, &load.queue, &QueueOptions { arguments: load.arguments(), ..QueueOptions::durable() }).map_err(failed)?;
    let run = rand::random();
    let began = Instant::now();
    fill(&mut connection, load, args.messages, run).map_err(failed)?;
    let filled_s = began.elapsed().as_secs_f64();
    eprintln!("  {} messages of {} bytes confirmed in {filled_s:.1} s; waiting {} s", args.messages, load.size, args.settle_seconds);
    drop(connection); // an idle connection without heartbeats may be cut
    std::thread::sleep(Duration::from_secs(args.settle_seconds));
    let mut rss = serde_json::Map::new();
    for pid in &args.pids {
        let (kib, _) = environment::process(*pid)?;
        eprintln!("  pid {pid}: VmRSS {:.1} MB", kib as f64 / 1024.0);
        rss.insert(pid.to_string(), json!(kib));
    }
    let mut connection = Connection::open_with_channel(dial).map_err(failed)?;
    let wrong = drain(&mut connection, load, args.messages, run).map_err(failed)?;
    connection.delete(1, &load.queue).map_err(failed)?;
    eprintln!("  consumed all again: {wrong} lost, repeated, reordered or changed");
    Ok(json!({ "messages": args.messages, "size": load.size, "filled_s": filled_s, "rss_kib": rss, "wrong": wrong, "clean": wrong == 0 }))
}

fn fill(connection: &mut Connection, load: &Load, messages: u64, run: u32) -> Result<(), super::client::ClientError> {
    use super::client::{ClientError, Incoming, encode};
    connection.confirm_select(1)?;
    let route = encode::Route { channel: 1, exchange: "", key: &load.queue, mandatory: false };
    let (mut body, mut out) = (vec![b'x'; load.size.max(HEAD)], Vec::new());
    let (mut sent, mut lowest, mut confirmed) = (0, 1, Seen::default());
    while confirmed.count() < messages {
        let room = load.window as u64 - (sent - confirmed.count());
        if sent < messages && room > load.window as u64 / 2 {
            let until = (sent + BATCH.min(room)).min(messages);
            out.clear();
            for number in sent + 1..=until {
                Stamp { run, producer: 0, number, sent_at: 0 }.write(&mut body);
                encode::publish(&mut out, route, &body, connection.frame_max);
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
