//! RocketMQ's HTTP protocol with the unmodified Python SDK: what it promises through all nodes, beside AMQP, and while nodes are killed.
//! And what no SDK sends, over a bare socket.
#![allow(clippy::unwrap_used)] // all of this file is tests

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use warren_tests::certificates::{Authority, Subject};
use warren_tests::clients::{here, python, run};
use warren_tests::cluster::{ClusterOptions, READY_WITHIN, binary};
use warren_tests::ctl::Ctl;
use warren_tests::{Broker, Chance, Cluster, eventually, ports};

/// Rounds of a kill and a restart.
const KILLS: usize = 3;
/// How long clients publish meanwhile.
const LOAD: Duration = Duration::from_secs(24);

fn endpoints(cluster: &Cluster) -> Vec<String> {
    (0..cluster.len()).map(|at| format!("http://127.0.0.1:{}", cluster.ports(at).rocketmq)).collect()
}

fn program(name: &str, arguments: &[String]) -> Command {
    let mut command = Command::new(python());
    command.arg(here().join("mq_http").join(name)).args(arguments).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

fn topics(cluster: &Cluster) {
    let ctl = Ctl { cluster, at: 0 };
    ctl.done(&["add_topic", "plain", "--partitions", "1", "--invisible-ms", "2000", "--max-retries", "2"]);
    ctl.done(&["add_topic", "ordered", "--partitions", "8", "--invisible-ms", "2000", "--ordered-invisible-ms", "3000"]);
    ctl.done(&["add_topic", "halves", "--invisible-ms", "2000"]);
}

#[test]
fn the_sdk_gets_what_it_is_promised_through_all_nodes() {
    let Some(cluster) = Broker::to_harm("rocketmq") else { return };
    topics(&cluster);
    let ctl = Ctl { cluster: &cluster, at: 1 };
    ctl.done(&["add_topic", "plain", "--partitions", "1", "--invisible-ms", "2000", "--max-retries", "2"]);
    ctl.refused(&["add_topic", "plain", "--partitions", "2"], 69, "inequivalent arg");
    ctl.done(&["add_vhost", "other"]);
    ctl.done(&["-p", "other", "set_permissions", "guest", ".*", ".*", ".*"]);
    ctl.done(&["-p", "other", "add_topic", "plain", "--partitions", "1"]);
    ctl.done(&["add_user", "reader", "password"]);
    ctl.done(&["set_permissions", "reader", "^$", "^$", ".*"]);
    ctl.done(&["add_access_key", "reader", "reader-secret"]);
    ctl.done(&["add_user", "teller", "password"]);
    ctl.done(&["set_permissions", "teller", "^$", "^halves$", "^$"]);
    ctl.done(&["add_access_key", "teller", "teller-secret"]);
    let mut arguments = endpoints(&cluster);
    arguments.push(format!("amqp://guest:guest@{}/%2F", cluster.amqp(1)));
    arguments.push(format!("127.0.0.1:{}", cluster.ports(2).stream));
    run(&mut program("semantics.py", &arguments));
    let listed = ctl.done(&["list_topics", "-s", "name", "partitions"]);
    assert!(listed.contains("ordered\t8\n") && listed.contains("plain\t1\n"), "{listed}");
    let listed = ctl.done(&["list_groups", "-s"]);
    assert!(listed.lines().any(|line| line.starts_with("plain\tGID_partial\t")), "{listed}");
    let listed = ctl.done(&["list_access_keys", "-s"]);
    assert!(listed.contains("reader\treader\n") && !listed.contains("reader-secret"), "{listed}");
    ctl.done(&["add_group", "GID_partial", "plain", "--max-retries", "2"]);
    ctl.refused(&["add_group", "GID_partial", "plain", "--max-retries", "7"], 69, "received 7 but current is 2");
    ctl.done(&["delete_group", "GID_partial", "plain"]);
    let listed = ctl.done(&["list_groups", "-s"]);
    assert!(!listed.lines().any(|line| line.starts_with("plain\tGID_partial\t")), "{listed}");
    assert!(listed.contains("%DLQ%GID_partial\tGID_partial\t"), "its dead letters stay: {listed}");
    ctl.done(&["delete_topic", "plain"]);
    assert!(!ctl.done(&["list_queues", "-s", "name"]).contains("plain@"));
}

/// What `handles.py` says when it does that.
fn handle(cluster: &Cluster, what: &str, at: usize, with: &str) -> String {
    let done = program("handles.py", &[what.into(), endpoints(cluster)[at].clone(), with.into()]).output().unwrap();
    assert!(done.status.success(), "{what} {with}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).trim().to_owned()
}

/// The handle and the body of the one message that comes.
fn taken(cluster: &Cluster, at: usize) -> (String, String) {
    let said = handle(cluster, "take", at, "60");
    let words: Vec<&str> = said.split(' ').collect();
    assert_eq!(words.len(), 3, "one message comes: {said}");
    (words[0].to_owned(), words[2].to_owned())
}

#[test]
fn a_handle_survives_its_leader_and_is_worth_nothing_when_the_node_that_gave_it_is_gone() {
    let Some(cluster) = Broker::to_harm("receipt handles") else { return };
    let ctl = Ctl { cluster: &cluster, at: 0 };
    ctl.done(&["add_topic", "held", "--partitions", "1", "--invisible-ms", "600000"]);
    ctl.done(&["add_group", "GID_held", "held"]);
    let mut leader = None;
    assert!(eventually(READY_WITHIN, || {
        leader = cluster.queue_leader("held@GID_held");
        leader.is_some()
    }));
    let leader = leader.unwrap();
    let (holder, third) = ((leader + 1) % 3, (leader + 2) % 3);
    handle(&cluster, "publish", third, "one");
    handle(&cluster, "publish", third, "two");
    let (one, two) = (taken(&cluster, holder), taken(&cluster, holder));
    assert_eq!((one.1.as_str(), two.1.as_str()), ("one", "two"));
    cluster.kill(leader);
    assert_eq!(handle(&cluster, "ack", third, &one.0), "good", "another node leads, another one is asked");
    assert_eq!(handle(&cluster, "ack", holder, &one.0), "bad", "once");
    cluster.restart(leader);
    cluster.await_ready(leader);
    cluster.kill(holder);
    let again = taken(&cluster, third);
    assert_eq!(again.1, "two", "long before its time is over");
    assert_eq!(handle(&cluster, "ack", leader, &two.0), "bad", "it must not end what somebody else was given");
    assert_eq!(handle(&cluster, "ack", leader, &again.0), "good");
    assert_eq!(handle(&cluster, "take", third, "3"), "", "nothing is left");
}

#[test]
fn what_came_before_there_was_a_group_is_the_first_ones_whichever_node_dies() {
    let Some(cluster) = Broker::to_harm("early messages") else { return };
    let ctl = Ctl { cluster: &cluster, at: 0 };
    let kept = |at| Ctl { cluster: &cluster, at }.done(&["list_queues", "-s", "name", "messages"]);
    ctl.done(&["add_topic", "held", "--partitions", "1", "--invisible-ms", "600000"]);
    handle(&cluster, "publish", 0, "one");
    handle(&cluster, "publish", 1, "two");
    assert!(eventually(READY_WITHIN, || kept(0).contains("held@\t2\n")), "{}", kept(0));
    cluster.kill(2);
    let (one, two) = (taken(&cluster, 1), taken(&cluster, 0));
    assert_eq!((one.1.as_str(), two.1.as_str()), ("one", "two"), "the first consume makes the group");
    assert_eq!(handle(&cluster, "ack", 0, &one.0), "good");
    assert_eq!(handle(&cluster, "ack", 1, &two.0), "good");
    handle(&cluster, "publish", 1, "three");
    assert!(eventually(READY_WITHIN, || kept(1).contains("held@GID_held\t1\n")), "{}", kept(1));
    assert!(!kept(1).lines().any(|line| line.starts_with("held@\t")), "nothing is kept beside: {}", kept(1));
    cluster.restart(2);
    cluster.await_ready(2);
    ctl.done(&["delete_group", "GID_held", "held"]);
    handle(&cluster, "publish", 2, "four");
    ctl.done(&["add_group", "GID_other", "held"]);
    ctl.done(&["add_group", "GID_held", "held"]);
    assert!(eventually(READY_WITHIN, || kept(2).contains("held@GID_other\t1\n")), "{}", kept(2));
    assert_eq!(handle(&cluster, "take", 2, "3"), "", "the second group begins when it is made");
    ctl.done(&["delete_topic", "held"]);
    assert!(!kept(0).lines().any(|line| line.starts_with("held@")), "{}", kept(0));
}

#[test]
fn a_publish_that_nobody_can_confirm_is_answered_when_its_node_stops() {
    let Some(cluster) = Broker::to_harm("a stop under a publish") else { return };
    let ctl = Ctl { cluster: &cluster, at: 0 };
    ctl.done(&["add_topic", "held", "--partitions", "1"]);
    ctl.done(&["add_group", "GID_held", "held"]);
    let opened = || cluster.metrics(0).and_then(|metrics| metrics.sum("warren_connections_opened_total")).unwrap_or(0.0);
    let before = opened();
    cluster.kill(1);
    cluster.kill(2);
    let publish = program("handles.py", &["try".into(), endpoints(&cluster)[0].clone(), "lost?".into()]).stdout(Stdio::piped()).spawn();
    assert!(eventually(Duration::from_secs(15), || opened() > before), "it is under way");
    cluster.stop(0, Duration::from_secs(30)).expect("it ends");
    let told = publish.unwrap().wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&told.stdout).trim(), "ServiceUnavailable", "{told:?}");
}

#[test]
fn what_no_sdk_sends_is_answered_in_its_order_and_harms_nobody() {
    let cluster = Cluster::start_with(&ClusterOptions { nodes: 1, ..ClusterOptions::default() });
    Ctl { cluster: &cluster, at: 0 }.done(&["add_topic", "fuzz", "--partitions", "2"]);
    Ctl { cluster: &cluster, at: 0 }.done(&["add_topic", "fuzzed", "--partitions", "2"]);
    let seed = Chance::new("what_no_sdk_sends_is_answered_in_its_order_and_harms_nobody").seed();
    run(&mut program("garbage.py", &["127.0.0.1".into(), cluster.ports(0).rocketmq.to_string(), seed.to_string(), "400".into()]));
}

#[test]
fn what_the_server_is_told_holds_where_topics_say_nothing() {
    let told =
        ["--rocketmq-auto-create-topics=true", "--rocketmq-invisible=2s", "--rocketmq-ordered-invisible=3s", "--rocketmq-max-retries=1"];
    let options = ClusterOptions { nodes: 1, arguments: told.map(str::to_owned).into(), ..ClusterOptions::default() };
    let cluster = Cluster::start_with(&options);
    run(&mut program("settings.py", &endpoints(&cluster)));
    let ctl = Ctl { cluster: &cluster, at: 0 };
    let listed = ctl.done(&["list_topics", "-s", "name", "partitions"]);
    assert!(["consumed", "published", "twins"].iter().all(|topic| listed.contains(&format!("{topic}\t8\n"))), "{listed}");
    let published = |secret: &str| {
        let arguments = [&endpoints(&cluster)[0], "twins", "courier", secret].map(str::to_owned);
        let told = program("key.py", &arguments).output().unwrap();
        String::from_utf8_lossy(&told.stdout).trim().to_owned()
    };
    ctl.done(&["add_user", "courier", "password"]);
    ctl.done(&["set_permissions", "courier", "^$", "^twins$", "^$"]);
    ctl.done(&["add_access_key", "courier", "secret"]);
    assert_eq!((published("secret"), published("other")), ("good".into(), "SignatureDoesNotMatch".into()));
    ctl.done(&["delete_access_key", "courier"]);
    assert_eq!(published("secret"), "InvalidAccessKeyId");
}

#[test]
fn the_bench_of_this_protocol_finds_what_it_published() {
    let Some(cluster) = Broker::to_harm("bench of rocketmq") else { return };
    Ctl { cluster: &cluster, at: 0 }.done(&["add_topic", "bench", "--partitions", "8"]);
    let ports: Vec<String> = (0..cluster.len()).map(|at| format!("127.0.0.1:{}", cluster.ports(at).rocketmq)).collect();
    let mut bench = Command::new(binary());
    bench.args([
        "bench",
        "--scenario",
        "rocketmq",
        "--seconds",
        "1",
        "--drain-seconds",
        "60",
        "--uris",
        &cluster.amqp(0),
        "--rocketmq-uris",
    ]);
    run(bench.arg(ports.join(",")));
}

/// A program that runs beside the test.
struct Beside(Child);

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program that judges by itself, while a node at a time is killed and comes back.
fn judged_under_kills(program_name: &str, name: &str) {
    let Some(cluster) = Broker::to_harm(&format!("rocketmq with kills, {program_name}")) else { return };
    topics(&cluster);
    let mut arguments = endpoints(&cluster);
    arguments.push(LOAD.as_secs().to_string());
    let began = Instant::now();
    let mut chance = Chance::new(name);
    let mut clients = Beside(program(program_name, &arguments).spawn().unwrap());
    for _ in 0..KILLS {
        sleep(Duration::from_secs(3));
        let at = chance.below(cluster.len());
        println!("{:.1} s: node {} is killed", began.elapsed().as_secs_f64(), at + 1);
        cluster.kill(at);
        sleep(Duration::from_secs(2));
        cluster.restart(at);
        cluster.await_ready(at);
    }
    let status = clients.0.wait().unwrap();
    assert!(status.success(), "{status}");
}

#[test]
fn nothing_is_lost_or_out_of_order_while_nodes_are_killed() {
    judged_under_kills("faults.py", "nothing_is_lost_or_out_of_order_while_nodes_are_killed");
}

#[test]
fn half_messages_become_what_was_decided_while_nodes_are_killed() {
    judged_under_kills("halves.py", "half_messages_become_what_was_decided_while_nodes_are_killed");
}

/// Sends bytes, and reads one answer: status and everything after the status line.
fn told(cluster: &Cluster, request: &[u8]) -> (u16, String) {
    let mut socket = TcpStream::connect(("127.0.0.1", cluster.ports(0).rocketmq)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket.write_all(request).unwrap();
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(n) = socket.read(&mut piece) {
        answer.extend_from_slice(&piece[..n]);
        let text = String::from_utf8_lossy(&answer);
        if n == 0 || text.contains("</Error>") || text.contains("\r\n\r\n") && text.contains("content-length: 0") {
            break;
        }
    }
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    (status, text)
}

fn request(line: &str, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("{line} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len()).into_bytes()
}

#[test]
fn strange_requests_are_answered_with_the_protocols_errors_and_others_over_tls_too() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new("servers");
    let (ca, server) = (authority.write(dir.path(), "servers"), authority.issue(&Subject::at("server", "127.0.0.1")));
    let server = server.write(dir.path(), "server");
    let port = ports::take(1)[0].rocketmq;
    let arguments = [
        format!("--tls-cert={}", server.certificate.display()),
        format!("--tls-key={}", server.key.display()),
        format!("--rocketmq-tls-port={port}"),
    ];
    let options = ClusterOptions { nodes: 1, arguments: arguments.into(), ..ClusterOptions::default() };
    let cluster = Cluster::start_with(&options);
    run(&mut program("over_tls.py", &["127.0.0.1".into(), port.to_string(), ca.display().to_string()]));
    let consume = "GET /topics/t/messages?consumer=g&numOfMessages=1";
    let date = ("Date", "Thu, 07 Mar 2019 18:49:58 GMT");
    let cases: [(Vec<u8>, u16, &str); 7] = [
        (request("GET /", &[], ""), 400, "InvalidRequestURL"),
        (request("GET /topics/t/messages?consumer", &[], ""), 400, "InvalidQueryString"),
        (request(consume, &[date], ""), 400, "MissingAuthorizationHeader"),
        (request(consume, &[("Authorization", "MQ guest:x")], ""), 400, "MissingDateHeader"),
        (request(consume, &[date, ("Authorization", "Basic x")], ""), 400, "InvalidAuthorizationHeader"),
        (request(consume, &[("Date", "now"), ("Authorization", "MQ guest:x")], ""), 400, "InvalidDateHeader"),
        (request(consume, &[date, ("Authorization", "MQ guest:x")], ""), 408, "TimeExpired"),
    ];
    for (bytes, status, code) in cases {
        let (found, text) = told(&cluster, &bytes);
        assert_eq!(found, status, "{text}");
        assert!(text.contains(&format!("<Code>{code}</Code>")) && text.contains("\r\nx-mq-request-id: "), "{text}");
    }
    let large = format!("POST /topics/t/messages HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n<Message>", 1u64 << 40);
    let (status, text) = told(&cluster, large.as_bytes());
    assert!(status == 400 && text.contains("<Code>InvalidArgument</Code>"), "{text}");
    for garbage in [&b"\0\0\0\0\r\n\r\n"[..], b"GET /topics/t/messages HTTP/9.9\r\n\r\n", &[0xff; 64]] {
        told(&cluster, garbage);
    }
    assert_eq!(told(&cluster, &request(consume, &[], "")).0, 400, "it serves on");
}
