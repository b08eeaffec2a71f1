//! Streams by AMQP 0-9-1: every form of reading and what is refused, across each pair of nodes, and a stream whose leader is killed again
//! and again.
#![allow(clippy::unwrap_used)] // all of this file is tests

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;
use warren_tests::client::{Field, QueueOptions};
use warren_tests::clients::{here, python, run};
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
