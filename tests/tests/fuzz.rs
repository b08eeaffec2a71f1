//! Garbage at the socket: random bytes, mutated frames, wrong channels, oversize frames, bodies that never end. The broker answers with
//! the right close or cuts, never panics, keeps its memory, and serves others all the while. Seeded; 200,000 frames or as many as 45 s
//! allow, or `WARREN_TEST_FRAMES` frames however long they take.
#![allow(clippy::unwrap_used)] // all of this file is tests

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use warren_tests::client::{Connection, Field, Incoming, QueueOptions, Socket, encode};
use warren_tests::polite::Polite;
use warren_tests::{Broker, Chance};

/// Frames of one connection at most.
const BURST: usize = 400;
/// Frames, and how long the test goes on even if not all were sent, unless a number is asked for.
const FRAMES: (u64, Duration) = (200_000, Duration::from_secs(45));

/// Memory is judged from this part of the frames on.
const WARM_UP: u64 = 20;
/// Memory that a node may keep when all is over.
const RSS_SLACK_KIB: u64 = 5 * 1024;

const KINDS: [&str; 5] = ["direct", "fanout", "topic", "headers", "no-kind"];

fn frames_wanted() -> (u64, Duration) {
    let asked = std::env::var("WARREN_TEST_FRAMES").ok().and_then(|text| text.parse().ok());
    asked.map_or(FRAMES, |frames| (frames, Duration::from_secs(1800)))
}

/// Frames that keep a connection open, so that what comes after them is read too.
fn tame_frame(chance: &mut Chance, out: &mut Vec<u8>, queue: &str) {
    let channel = chance.between(2, 1000) as u16;
    match chance.below(12) {
        0 => encode::confirm_select(out, 1),
        1 => encode::qos(out, 1, chance.below(100) as u16, false),
        2 => encode::get(out, 1, queue, true),
        3 => encode::queue_bind(out, 1, queue, "amq.direct", "k"),
        4 => encode::frame(out, encode::FRAME_HEARTBEAT, 0, b""),
        5 => encode::exchange_declare(out, 1, "amq.topic", "topic", 1),
        6 => {
            encode::channel_open(out, channel);
            encode::close(out, channel);
        }
        7 => {
            let most = *chance.pick(&[10, 5_000, 5_000, 5_000, 300_000]);
            let length = chance.below(most);
            let route = encode::Route { channel: 1, exchange: "amq.direct", key: "nowhere", mandatory: true };
            encode::publish(out, route, &vec![2; length], 4096);
        }
        _ => {
            let route = encode::Route { channel: 1, exchange: "", key: queue, mandatory: false };
            encode::publish(out, route, &vec![0; chance.below(300)], 131_072);
        }
    }
}

/// Frames that a client could send, on any channel, in any order.
fn frame(chance: &mut Chance, out: &mut Vec<u8>, queue: &str) {
    let channel = *chance.pick(&[0, 1, 1, 1, 1, 2, 3, 2047, 2048, 65535]);
    let tag = chance.between(0, 20);
    let name = (*chance.pick(&[queue, "", "amq.direct", "no-such-thing", "amq.rabbitmq.x"])).to_owned();
    let table =
        [("x-max-priority".to_owned(), Field::Int(tag as i64 - 5)), ("a".to_owned(), Field::Table(vec![("b".into(), Field::Bool(true))]))];
    match chance.below(20) {
        0 => encode::channel_open(out, channel),
        1 => encode::close(out, channel),
        2 => encode::confirm_select(out, channel),
        3 => encode::qos(out, channel, tag as u16, tag.is_multiple_of(2)),
        4 => encode::queue_declare(out, channel, &name, tag as u8, &table[..chance.below(3)]),
        5 => encode::queue_bind(out, channel, queue, &name, "k"),
        6 => encode::consume(out, channel, &name, "t", tag as u8 & 7, &[]),
        7 => encode::get(out, channel, &name, false),
        8 => encode::ack(out, channel, tag, tag.is_multiple_of(2)),
        9 => encode::nack(out, channel, tag, tag.is_multiple_of(2), tag.is_multiple_of(3)),
        10 => encode::exchange_declare(out, channel, &name, KINDS[chance.below(KINDS.len())], tag as u8),
        11 => encode::bare(out, channel, (chance.between(0, 100) as u16, chance.between(0, 130) as u16)),
        12 => encode::frame(out, encode::FRAME_HEADER, channel, &chance.bytes(14)),
        13 => encode::frame(out, encode::FRAME_BODY, channel, b"a body that nothing announced"),
        14 => encode::frame(out, encode::FRAME_HEARTBEAT, channel, b""),
        15 => {
            let length = chance.below(200);
            let bytes = chance.bytes(length);
            encode::frame(out, bytes.first().copied().unwrap_or(9), channel, &bytes);
        }
        16 => never_ending_body(out, channel, queue),
        _ => {
            let route = encode::Route { channel, exchange: "", key: queue, mandatory: tag.is_multiple_of(2) };
            encode::publish(out, route, &vec![0; chance.below(300)], 131_072);
        }
    }
}

fn never_ending_body(out: &mut Vec<u8>, channel: u16, queue: &str) {
    let route = encode::Route { channel, exchange: "", key: queue, mandatory: false };
    let mut whole = Vec::new();
    encode::publish(&mut whole, route, &[1; 64], 131_072);
    // 4 GiB are announced: the size stands after class and weight in the header frame, which follows the method frame
    let header_at = whole.iter().skip(1).position(|byte| *byte == encode::FRAME_END).map_or(0, |at| at + 2) + 7 + 4;
    whole[header_at..header_at + 8].copy_from_slice(&(4u64 << 30).to_be_bytes());
    out.extend_from_slice(&whole);
}

/// Flip, cut, insert or repeat some bytes.
fn mutate(chance: &mut Chance, bytes: &mut Vec<u8>) {
    for _ in 0..=chance.below(3) {
        let at = chance.below(bytes.len().max(1));
        match chance.below(5) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << chance.below(8),
            1 => bytes.truncate(at),
            2 => bytes.insert(at.min(bytes.len()), chance.bytes(1)[0]),
            3 if bytes.len() > 4 => bytes[at.min(3)] = 0xFF, // a type, channel or size that is far off
            _ => bytes.extend_from_within(..at.min(bytes.len())),
        }
    }
}

/// Frames, most of them as they should be; how many.
fn burst(chance: &mut Chance, queue: &str) -> (Vec<u8>, u64) {
    let (mut out, count) = (Vec::new(), chance.below(BURST) as u64 + 1);
    let (wild_one_in, mutated_one_in) = (*chance.pick(&[2, 30, 500]), *chance.pick(&[2, 30, 500]));
    for _ in 0..count {
        let mut one = Vec::new();
        if chance.one_in(wild_one_in) {
            frame(chance, &mut one, queue)
        } else {
            tame_frame(chance, &mut one, queue)
        }
        if chance.one_in(mutated_one_in) {
            mutate(chance, &mut one);
        }
        out.extend_from_slice(&one);
    }
    (out, count)
}

/// Send without waiting for anything, read what comes for a moment, leave.
fn throw(mut socket: Socket, bytes: &[u8], patience: Duration) {
    socket.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
    socket.set_read_timeout(Some(patience)).unwrap();
    if socket.write_all(bytes).is_ok() {
        let _ = socket.read(&mut [0; 65_536]);
    }
}

fn is_served(broker: &Broker, at: usize, queue: &str, within: Duration) -> Result<(), String> {
    let began = Instant::now();
    let mut client = broker.try_connect(at).map_err(|error| error.to_string())?;
    client.confirm_select(1).map_err(|error| error.to_string())?;
    client.publish(1, queue, b"still there?").map_err(|error| error.to_string())?;
    match client.event_within(within) {
        Ok(Some(Incoming::Confirm { nack: false, .. })) if began.elapsed() <= within => client.close().map_err(|error| error.to_string()),
        other => Err(format!("{other:?} after {:?}", began.elapsed())),
    }
}

#[test]
fn garbage_at_the_socket_hurts_nobody_else() {
    let test = "garbage_at_the_socket_hurts_nobody_else";
    let broker = Broker::shared();
    let mut chance = Chance::new(test);
    // What comes in through node 0 goes on to another one.
    let (queue, control_queue) = (broker.declare_led_elsewhere(0, "fuzz"), broker.declare_led_elsewhere(0, "fuzz-control"));
    let other_queue = broker.declare_led_elsewhere(0, "fuzz-others");
    let polite = Polite::start(&broker, 0, &other_queue, 50);
    let ((wanted, most), began) = (frames_wanted(), Instant::now());
    let (mut sent, mut connections, mut before) = (0, 0u64, Vec::new());
    while sent < wanted && began.elapsed() < most {
        let at = chance.below(broker.nodes());
        let (bytes, count) = burst(&mut chance, &queue);
        connections += 1;
        match chance.below(4) {
            0 => {
                let socket = TcpStream::connect(&broker.dial(at).address).expect("the broker takes connections");
                let mut raw = encode::PROTOCOL_HEADER.to_vec();
                let length = chance.below(2000);
                raw.extend_from_slice(&chance.bytes(length));
                mutate(&mut chance, &mut raw);
                throw(socket.into(), &raw, Duration::from_millis(1));
                sent += 1;
            }
            _ => {
                let mut connection = broker.connect(at);
                // Each costs two entries of the catalog, on disk on three nodes: far more than the frames.
                if chance.one_in(10) {
                    connection.declare(1, "", &QueueOptions { exclusive: true, ..QueueOptions::default() }).unwrap();
                }
                throw(connection.try_clone_socket().unwrap(), &bytes, Duration::from_millis(2));
                sent += count;
            }
        }
        if connections % 50 == 0 {
            let served = is_served(&broker, at, &control_queue, Duration::from_secs(20));
            assert_eq!(served, Ok(()), "after {connections} connections, seed {}", chance.seed());
        }
        // Short, so that nearly all of the garbage is judged; but every kind of it must have come, through each node: the first of a kind
        // makes what a node keeps to serve its like again (threads, buffers of sockets, blocks of the log).
        if before.is_empty() && sent >= wanted / WARM_UP {
            before = memory(&broker);
        }
    }
    println!("{test}: {sent} frames in {connections} connections, {:.0} s", began.elapsed().as_secs_f64());
    assert!(sent >= wanted || most == FRAMES.1, "{sent} of {wanted} frames within {most:?}");
    assert!(broker.cluster().is_none() || sent < wanted || !before.is_empty(), "nothing to judge memory by");
    polite.finish(Duration::from_secs(5));
    let mut client = broker.connect(0);
    for made in [&queue, &control_queue, &other_queue, "no-such-thing"] {
        client.delete(1, made).unwrap();
    }
    client.delete_exchange(1, "no-such-thing").unwrap();
    let mut after = Vec::new();
    let back = warren_tests::eventually(Duration::from_secs(60), || {
        after = memory(&broker);
        after.iter().zip(&before).all(|(after, before)| *after <= before + RSS_SLACK_KIB)
    });
    println!("{test}: VmRSS in KiB after a twentieth of them {before:?}, at the end {after:?}");
    assert!(back, "VmRSS in KiB after a twentieth of them {before:?}, at the end {after:?}, seed {}", chance.seed());
}

fn memory(broker: &Broker) -> Vec<u64> {
    broker.cluster().map(|cluster| (0..cluster.len()).map(|at| cluster.rss_kib(at)).collect()).unwrap_or_default()
}

/// Open a connection, send these bytes on it, and hear the code of the close.
fn close_code(broker: &Broker, fill: impl FnOnce(&mut Vec<u8>, &Connection)) -> Option<u16> {
    let mut connection: Connection = broker.connect(0);
    let mut out = Vec::new();
    fill(&mut out, &connection);
    connection.send(&out).unwrap();
    loop {
        match connection.event_within(Duration::from_secs(60)) {
            Ok(Some(Incoming::ConnectionClose { code, .. } | Incoming::ChannelClose { code, .. })) => return Some(code),
            Ok(Some(_)) => (),
            Ok(None) | Err(_) => return None,
        }
    }
}

type Breach = (&'static str, u16, fn(&mut Vec<u8>, &Connection));

const BREACHES: [Breach; 8] = [
    ("a frame larger than agreed", 501, |out, c| encode::frame(out, encode::FRAME_BODY, 1, &vec![0; c.frame_max as usize + 1])),
    ("a body that nothing announced", 505, |out, _| encode::frame(out, encode::FRAME_BODY, 1, b"x")),
    ("a channel that is not open", 504, |out, _| encode::confirm_select(out, 99)),
    ("an unknown method", 503, |out, _| encode::bare(out, 1, (60, 199))),
    ("a channel opened twice", 504, |out, _| encode::channel_open(out, 1)),
    ("an unknown delivery tag", 406, |out, _| encode::ack(out, 1, 77, false)),
    ("an unknown queue", 404, |out, _| encode::consume(out, 1, "no-such-queue", "", 0, &[])),
    ("a frame without its end octet", 501, |out, _| {
        encode::confirm_select(out, 1);
        *out.last_mut().expect("a frame has bytes") = 0;
    }),
];

#[test]
fn each_breach_of_the_protocol_is_answered_with_its_code() {
    let broker = Broker::shared();
    // RabbitMQ cuts the connection without a word at an unknown method.
    let breaches: Vec<&Breach> = BREACHES.iter().filter(|(_, code, _)| *code != 503 || broker.cluster().is_some()).collect();
    let answered: Vec<_> = breaches.iter().map(|(what, _, fill)| (*what, close_code(&broker, *fill))).collect();
    assert_eq!(answered, breaches.iter().map(|(what, code, _)| (*what, Some(*code))).collect::<Vec<_>>());
}

#[test]
fn another_protocol_is_told_which_one_is_spoken_here() {
    let broker = Broker::shared();
    for hello in [b"AMQP\x00\x01\x00\x00".as_slice(), b"AMQP\x00\x00\x0a\x00", b"GET / HTTP/1.1\r\n\r\n"] {
        let mut socket = TcpStream::connect(&broker.dial(0).address).unwrap();
        socket.write_all(hello).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer);
        assert_eq!(answer, encode::PROTOCOL_HEADER, "to {:?}", String::from_utf8_lossy(hello));
    }
}
