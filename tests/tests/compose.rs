//! The cluster of `docker-compose.yml`: started, published to through one container, its leader's container killed, consumed through
//! another. Needs a Docker engine: `.ci/compose` provides one and fails when this did not run.
#![allow(clippy::unwrap_used)] // all of this file is tests

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;
use warren_tests::client::{Connection, Dial, Incoming, QueueOptions};
use warren_tests::cluster::binary;
use warren_tests::management;
use warren_tests::{eventually, message_event, unique};

const AMQP: [u16; 3] = [5672, 5673, 5674];
const MANAGEMENT: [u16; 3] = [15672, 15673, 15674];
const PEER: [u16; 3] = [7671, 7672, 7673];
const MESSAGES: u32 = 500;

/// A started compose project; dropping it removes containers and volumes.
struct Compose {
    project: String,
}

impl Compose {
    fn up() -> Compose {
        let compose = Compose { project: unique("warren-test") };
        compose.run(&["up", "-d", "--build"]);
        compose
    }

    fn try_run(&self, arguments: &[&str]) -> Output {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests lie in the workspace");
        let mut command = match Command::new("docker").args(["compose", "version"]).output() {
            Ok(found) if found.status.success() => {
                let mut command = Command::new("docker");
                command.arg("compose");
                command
            }
            _ => Command::new("docker-compose"),
        };
        command.args(["-p", &self.project]).args(arguments).current_dir(root).output().expect("docker compose runs")
    }

    fn run(&self, arguments: &[&str]) -> String {
        let done = self.try_run(arguments);
        let errors = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success(), "docker compose {arguments:?}: {errors}");
        String::from_utf8_lossy(&done.stdout).into_owned()
    }

    /// Names of the three services in the order of their nodes.
    fn services(&self) -> Vec<String> {
        let mut names: Vec<String> = self.run(&["config", "--services"]).lines().map(str::to_owned).collect();
        names.sort();
        assert_eq!(names.len(), 3, "{names:?}");
        names
    }

    /// The node that leads a queue, counted from 0, as `warren ctl` in a container tells.
    fn leader_of(&self, service: &str, queue: &str) -> Option<usize> {
        let rows = self.run(&["exec", "-T", service, "/usr/local/bin/warren", "ctl", "-q", "list_queues", "name", "leader"]);
        let leader: usize = rows.lines().find_map(|row| row.strip_prefix(queue)?.strip_prefix('\t'))?.trim().parse().ok()?;
        leader.checked_sub(1)
    }
}

impl Drop for Compose {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let logs = self.try_run(&["logs", "--tail", "40"]);
            println!("{}", String::from_utf8_lossy(&logs.stdout));
        }
        self.try_run(&["down", "-v", "-t", "5"]);
    }
}

/// `warren ctl` on the host, with the secret of the compose file.
fn asked_from_outside(port: u16) {
    let secret = std::env::var("WARREN_CLUSTER_SECRET").unwrap_or_else(|_| "for-trying-out-only".to_owned());
    let node = format!("127.0.0.1:{port}");
    let mut ctl = Command::new(binary());
    let told = ctl.args(["ctl", "-q", "--node", &node, "check_running"]).env("WARREN_CLUSTER_SECRET", secret).output().unwrap();
    assert!(told.status.success(), "{node}: {}", String::from_utf8_lossy(&told.stderr));
}

fn connect(at: usize) -> Connection {
    let address = format!("127.0.0.1:{}", AMQP[at]);
    Connection::open_with_channel(&Dial::guest(&address)).unwrap_or_else(|error| panic!("{address}: {error}"))
}

#[test]
#[ignore = "needs a Docker engine and the ports of docker-compose.yml; .ci/compose runs it"]
fn a_queue_outlives_the_container_of_its_leader() {
    let compose = Compose::up();
    let ready = eventually(Duration::from_secs(60), || MANAGEMENT.iter().all(|port| management::is_ready(*port)));
    assert!(ready, "not all containers serve");
    PEER.into_iter().for_each(asked_from_outside);
    let queue = unique("compose");
    connect(0).declare(1, &queue, &QueueOptions::durable()).unwrap();
    let services = compose.services();
    let leader = compose.leader_of(&services[0], &queue).expect("ctl tells the leader of the queue");
    // Neither the publisher nor the consumer is where the queue is led.
    let mut publisher = connect((leader + 2) % 3);
    publisher.confirm_select(1).unwrap();
    for number in 0..MESSAGES {
        publisher.publish(1, &queue, &number.to_be_bytes()).unwrap();
    }
    let mut confirmed = 0;
    while confirmed < u64::from(MESSAGES) {
        match message_event(&mut publisher, Duration::from_secs(10)).unwrap() {
            Some(Incoming::Confirm { tag, multiple, nack: false, .. }) => confirmed = if multiple { tag } else { confirmed + 1 },
            other => panic!("after {confirmed} confirms: {other:?}"),
        }
    }
    assert_eq!(compose.leader_of(&services[0], &queue), Some(leader), "the leader has moved: it proves nothing");
    compose.run(&["kill", "-s", "SIGKILL", &services[leader]]);
    let mut consumer = connect((leader + 1) % 3);
    consumer.consume(1, &queue, "c", &[]).unwrap();
    for number in 0..MESSAGES {
        match message_event(&mut consumer, Duration::from_secs(20)).unwrap() {
            Some(Incoming::Deliver(_, message)) => {
                assert_eq!((message.body.as_slice(), message.redelivered), (number.to_be_bytes().as_slice(), false));
                consumer.ack(1, message.tag, false).unwrap();
            }
            other => panic!("after {number} messages: {other:?}"),
        }
    }
    consumer.close().unwrap();
}
