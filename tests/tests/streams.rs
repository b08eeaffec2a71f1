//! The stream protocol as Python's rstream speaks it: through every node, with super streams and groups, and while the leader of a stream
//! is killed under load; and what is no stream protocol at all.
#![allow(clippy::unwrap_used)] // all of this file is tests

use bytes::BytesMut;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;
use warren::wire::stream::client::Request;
use warren::wire::stream::{FromClient, OffsetSpec};
use warren_tests::clients::{here, python, run};
use warren_tests::cluster::ClusterOptions;
use warren_tests::secured::Secured;
use warren_tests::stream_client::{StreamClient, Told};
use warren_tests::{Broker, Chance, Cluster, eventually, unique};

/// Streams of the load: they fall into all shards.
const STREAMS: usize = 6;
const PATIENCE: Duration = Duration::from_secs(60);
/// Clients stay on a node that lives, so a killed leader must go unnoticed.
const STAY: [&str; 2] = ["--stream-advertise-self", "true"];

fn program(name: &str) -> Command {
    let mut command = Command::new(python());
    command.arg(here().join("rstream").join(name)).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

fn addresses(cluster: &Cluster) -> Vec<String> {
    (0..cluster.len()).map(|at| format!("127.0.0.1:{}", cluster.ports(at).stream)).collect()
}

/// Processes behind `WARREN_TEST_URIS` have no ports for streams that a test knows, and cannot be harmed.
fn is_given(test: &str) -> bool {
    let given = std::env::var_os("WARREN_TEST_URIS").is_some();
    if given {
        println!("{test}: left out, it needs processes of its own");
    }
    given
}

#[test]
fn rstream_publishes_and_reads_through_every_node() {
    if is_given("rstream_publishes_and_reads") {
        return;
    }
    let broker = Broker::shared();
    let cluster = broker.cluster().expect("an own one");
    run(program("streams.py").args(addresses(cluster)));
}

#[test]
fn a_group_on_two_nodes_shares_the_partitions_of_a_super_stream() {
    if is_given("a_group_on_two_nodes") {
        return;
    }
    let broker = Broker::shared();
    let cluster = broker.cluster().expect("an own one");
    run(program("groups.py").args(addresses(cluster)));
}

#[test]
fn messages_cross_between_amqp_and_the_stream_protocol_both_ways() {
    if is_given("messages_cross") {
        return;
    }
    let broker = Broker::shared();
    let cluster = broker.cluster().expect("an own one");
    let streams = addresses(cluster);
    for at in 0..cluster.len() {
        run(program("crossing.py").args([&cluster.amqp(at), &streams[(at + 1) % streams.len()]]));
    }
}

#[test]
fn clients_with_tls_stay_with_tls() {
    if is_given("clients_with_tls") {
        return;
    }
    let secured = Secured::start();
    let ports = (0..secured.cluster.len()).map(|at| format!("127.0.0.1:{}", secured.cluster.ports(at).stream_tls));
    run(program("tls.py").arg(secured.ca()).args(ports));
}

#[test]
fn nothing_confirmed_is_lost_or_doubled_when_leaders_are_killed() {
    if is_given("nothing_confirmed_is_lost") {
        return;
    }
    let cluster = Cluster::start_with(&ClusterOptions { arguments: STAY.map(str::to_owned).into(), ..ClusterOptions::default() });
    let nodes = addresses(&cluster);
    let names = (0..STREAMS).map(|n| format!("load-{n}"));
    let mut load = program("load.py");
    load.args([&nodes[0], &nodes[2]]).args(names).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = load.spawn().expect("python starts");
    let mut output = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    output.read_line(&mut line).expect("it speaks");
    let mut killed = 0;
    if line == "publishing\n" {
        for victim in [1, 2] {
            killed += cluster.led_data_shards()[victim].len();
            cluster.kill(victim);
            sleep(Duration::from_secs(2));
            cluster.restart(victim);
            sleep(Duration::from_secs(1));
        }
    }
    drop(child.stdin.take());
    output.read_to_string(&mut line).expect("it speaks");
    let status = child.wait_with_output().expect("it ends");
    assert!(status.status.success(), "{line}{}", String::from_utf8_lossy(&status.stderr));
    assert!(killed > 0, "the nodes that were killed led nothing: it proves nothing");
    print!("{line}");
}

#[test]
fn a_publisher_hears_of_another_leader_where_that_is_wanted() {
    if is_given("a_publisher_hears_of_another_leader") {
        return;
    }
    let arguments = vec!["--stream-leader-updates=true".to_owned()];
    let cluster = Cluster::start_with(&ClusterOptions { arguments, ..ClusterOptions::default() });
    let stream = unique("moving");
    let address = |at: usize| addresses(&cluster)[at].clone();
    let mut client = StreamClient::connect(&address(0), PATIENCE).unwrap();
    client.ask(Request::Create { stream: &stream, arguments: vec![] }).unwrap();
    let leads = || cluster.queue_leader(&stream);
    assert!(eventually(PATIENCE, || leads().is_some()));
    let leader = leads().unwrap();
    let (other, reading) = ((leader + 1) % 3, (leader + 2) % 3);
    let mut client = StreamClient::connect(&address(other), PATIENCE).unwrap();
    client.ask(Request::DeclarePublisher { publisher: 1, reference: "", stream: &stream }).unwrap();
    let mut reader = StreamClient::connect(&address(reading), PATIENCE).unwrap();
    let (offset, properties) = (OffsetSpec::First, vec![]);
    reader.ask(Request::Subscribe { subscription: 1, stream: &stream, offset, credit: 10, properties }).unwrap();
    cluster.kill(leader);
    assert_eq!(client.next_told().unwrap(), Told::MetadataUpdate(stream.clone()));
    client.ask(Request::DeclarePublisher { publisher: 1, reference: "", stream: &stream }).unwrap();
    client.publish(1, &[(7, b"on".to_vec())]).unwrap();
    assert_eq!(client.next_told().unwrap(), Told::Confirmed(vec![7]));
    let Told::Chunk(chunk) = reader.next_told().unwrap() else { panic!("its reader hears of no leader") };
    assert_eq!(chunk.bodies, [b"on".to_vec()]);
}

/// Says all of it, then reads until the broker hangs up or is silent; whether it hung up.
fn talk(address: &str, said: &[u8]) -> bool {
    let mut socket = TcpStream::connect(address).expect("the port is open");
    socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a socket");
    // It may hang up while we speak.
    let _ = socket.write_all(said);
    let mut heard = [0; 4096];
    loop {
        match socket.read(&mut heard) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() == ErrorKind::ConnectionReset,
        }
    }
}

/// The way into a vhost.
fn login() -> BytesMut {
    let mut said = BytesMut::new();
    let mut ask = |correlation, request| FromClient::Request { correlation, request }.encode(&mut said);
    ask(1, Request::PeerProperties { properties: vec![] });
    ask(2, Request::SaslHandshake);
    ask(3, Request::SaslAuthenticate { mechanism: "PLAIN", response: b"\0guest\0guest" });
    FromClient::Tune { frame_max: 0, heartbeat: 0 }.encode(&mut said);
    FromClient::Request { correlation: 4, request: Request::Open { vhost: "/" } }.encode(&mut said);
    said
}

#[test]
fn garbage_at_the_port_ends_its_connection_and_harms_nobody() {
    if is_given("garbage_at_the_port") {
        return;
    }
    let broker = Broker::shared();
    let cluster = broker.cluster().expect("an own one");
    let (address, chance) = (&addresses(cluster)[0], &mut Chance::new("garbage at the stream port"));
    assert!(talk(address, b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"), "no client of ours");
    for _ in 0..20 {
        let (mut said, length) = (login(), chance.below(300));
        said.extend_from_slice(&(length as u32).to_be_bytes());
        said.extend_from_slice(&[0, chance.below(34) as u8, 0, 1]);
        said.extend_from_slice(&chance.bytes(length.saturating_sub(4)));
        talk(address, &said);
    }
    let mut oversized = login();
    oversized.extend_from_slice(&u32::MAX.to_be_bytes());
    talk(address, &oversized);
    let mut goodbye = login();
    FromClient::Request { correlation: 5, request: Request::Close { code: 1, reason: "" } }.encode(&mut goodbye);
    assert!(talk(address, &goodbye), "the node still knows how to say goodbye");
    assert_eq!((cluster.is_ready(0), cluster.panics()), (true, Vec::new()));
}
