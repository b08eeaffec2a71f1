//! Streams by AMQP 0-9-1: every form of reading and what is refused, across each pair of nodes, what clients of the stream protocol have
//! packed, and a stream whose leader is killed again and again.
#![allow(clippy::unwrap_used)] // all of this file is tests

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;
use warren::wire::stream::client::Request;
use warren_tests::client::{Field, Incoming, QueueOptions};
use warren_tests::clients::{here, python, run};
use warren_tests::stream_client::{StreamClient, Told};
use warren_tests::{Broker, Cluster, eventually, unique};

/// Messages that are published while leaders die.
const MESSAGES: usize = 1500;
/// Leaders that are killed meanwhile.
const KILLS: usize = 3;

#[test]
fn streams_work_as_rabbitmqs_across_each_pair_of_nodes() {
    let broker = Broker::shared();
    let uris = broker.uris();
    for (at, sender) in uris.iter().enumerate() {
        let receiver = &uris[(at + 1) % uris.len()];
        println!("publishers on {sender}, consumers on {receiver}");
        run(Command::new(python()).arg(here().join("pika/streams.py")).args([sender, receiver]));
    }
}

/// Records of each sub-entry batch.
const PACKED: usize = 4;
/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// An AMQP 1.0 message with this body, with its length before it.
fn record(body: &str) -> Vec<u8> {
    let data = [&[0, 0x53, 0x75, 0xa0, body.len() as u8][..], body.as_bytes()].concat();
    [&(data.len() as u32).to_be_bytes()[..], &data].concat()
}

/// Packed as the number of the compression says.
fn packed(compression: u8, plain: &[u8]) -> Vec<u8> {
    match compression {
        0 => plain.to_vec(),
        1 => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(plain).unwrap();
            encoder.finish().unwrap()
        }
        2 => {
            let mut encoder = snap::write::FrameEncoder::new(Vec::new());
            encoder.write_all(plain).unwrap();
            encoder.into_inner().unwrap()
        }
        3 => {
            let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
            encoder.write_all(plain).unwrap();
            encoder.finish().unwrap()
        }
        _ => ruzstd::encoding::compress_to_vec(plain, ruzstd::encoding::CompressionLevel::Fastest),
    }
}

/// A sub-entry batch of records.
fn batch(compression: u8, bodies: &[String]) -> Vec<u8> {
    let plain: Vec<u8> = bodies.iter().flat_map(|body| record(body)).collect();
    let data = packed(compression, &plain);
    let (records, said, len) = (bodies.len() as u16, plain.len() as u32, data.len() as u32);
    [&[0x80 | compression << 4][..], &records.to_be_bytes(), &said.to_be_bytes(), &len.to_be_bytes(), &data].concat()
}

/// What an AMQP consumer that begins at `offset` gets, so many messages.
fn read_by_amqp(broker: &Broker, at: usize, stream: &str, offset: usize, count: usize) -> Vec<String> {
    let mut consumer = broker.connect(at);
    consumer.qos(1, 100).unwrap();
    let arguments = [("x-stream-offset".to_owned(), Field::Int(offset as i64))];
    consumer.consume(1, stream, "reader", &arguments).unwrap();
    let mut bodies = Vec::new();
    while bodies.len() < count {
        match consumer.event_within(PATIENCE).unwrap() {
            Some(Incoming::Deliver(_, message)) => {
                consumer.ack(1, message.tag, false).unwrap();
                bodies.push(String::from_utf8(message.body).unwrap());
            }
            Some(Incoming::Heartbeat) => {}
            other => panic!("after {bodies:?}: {other:?}"),
        }
    }
    bodies
}

#[test]
fn what_stream_clients_have_packed_is_read_by_amqp_on_each_node_from_any_offset() {
    let broker = Broker::shared();
    let Some(cluster) = broker.cluster() else { return };
    let stream = unique("packed");
    let mut client = StreamClient::connect(&format!("127.0.0.1:{}", cluster.ports(0).stream), PATIENCE).unwrap();
    client.ask(Request::Create { stream: &stream, arguments: vec![] }).unwrap();
    client.ask(Request::DeclarePublisher { publisher: 1, reference: "", stream: &stream }).unwrap();
    let (mut bodies, mut entries) = (Vec::new(), Vec::new());
    for compression in 0..=4 {
        // Long enough that what packs it has something to do.
        let inside: Vec<String> = (0..PACKED).map(|n| format!("{compression}-{n}-{}", "again ".repeat(20))).collect();
        let alone = format!("behind {compression}");
        entries.extend([batch(compression, &inside), record(&alone)]);
        bodies.extend(inside);
        bodies.push(alone);
    }
    let numbered: Vec<(u64, Vec<u8>)> = (1..).zip(entries).collect();
    client.publish_entries(1, &numbered).unwrap();
    let mut confirmed = 0;
    while confirmed < numbered.len() {
        match client.next_told().unwrap() {
            Told::Confirmed(ids) => confirmed += ids.len(),
            other => panic!("{other:?}"),
        }
    }
    for at in 0..cluster.len() {
        // The first message, one within each batch, and one behind each.
        let within = (0..5).flat_map(|n| [n * (PACKED + 1) + 2, n * (PACKED + 1) + PACKED]);
        for offset in [0].into_iter().chain(within) {
            let read = read_by_amqp(&broker, at, &stream, offset, bodies.len() - offset);
            assert!(read == bodies[offset..], "node {} from {offset} on: {read:?}", at + 1);
        }
    }
}

/// A program of `stream_load.py`, and what it says.
struct Program(Child, BufReader<ChildStdout>);

impl Program {
    fn start(what: &str, uri: &str, stream: &str) -> Program {
        let mut command = Command::new(python());
        command.arg(here().join("pika/stream_load.py")).args([what, uri, stream, &MESSAGES.to_string()]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Program(child, output)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.1.read_line(&mut line).unwrap();
        line
    }

    fn finish(mut self) {
        while !self.line().is_empty() {}
        assert!(self.0.wait().unwrap().success());
    }
}

/// A stream that another node than `at` leads.
fn declare_led_elsewhere(cluster: &Cluster, at: usize) -> String {
    let mut options = QueueOptions::durable();
    options.arguments.push(("x-queue-type".into(), Field::Text("stream".into())));
    let mut connection = Broker::Given(cluster.uris()).connect(at);
    for _ in 0..50 {
        let stream = unique("stream");
        connection.declare(1, &stream, &options).unwrap();
        if cluster.queue_leader(&stream).is_some_and(|leader| leader != at) {
            return stream;
        }
    }
    panic!("node {at} leads 50 streams of 50")
}

#[test]
fn what_is_confirmed_is_in_the_stream_once_and_in_order_whatever_leaders_die() {
    let test = "what_is_confirmed_is_in_the_stream_once_and_in_order_whatever_leaders_die";
    let Some(cluster) = Broker::to_harm(test) else { return };
    // The node of the clients lives.
    let at = 0;
    let stream = declare_led_elsewhere(&cluster, at);
    let mut follower = Program::start("follow", &cluster.amqp(at), &stream);
    assert_eq!(follower.line(), "reading\n");
    let mut publisher = Program::start("publish", &cluster.amqp(at), &stream);
    for kill in 0..KILLS {
        // It goes on under the leader of now, and then that one dies.
        let before = (publisher.line(), publisher.line());
        let mut leader = None;
        let is_led = eventually(Duration::from_secs(30), || {
            leader = cluster.queue_leader(&stream);
            leader.is_some()
        });
        assert!(is_led, "nobody leads {stream}");
        let Some(victim) = leader.filter(|leader| *leader != at) else { continue };
        println!("{test}: kill {kill} hits node {} after {before:?}", victim + 1);
        cluster.kill(victim);
        cluster.spawn(victim);
        cluster.await_ready(victim);
    }
    publisher.finish();
    follower.finish();
    for node in 0..cluster.len() {
        println!("{test}: reading on node {}", node + 1);
        Program::start("read", &cluster.amqp(node), &stream).finish();
    }
    let victims: Vec<usize> = (0..cluster.len()).collect();
    cluster.kill_all();
    victims.iter().for_each(|at| cluster.spawn(*at));
    victims.iter().for_each(|at| cluster.await_ready(*at));
    Program::start("read", &cluster.amqp(1), &stream).finish();
}
