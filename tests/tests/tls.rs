//! Real nodes with TLS on a port for clients and mutual TLS among themselves.
#![allow(clippy::unwrap_used)] // all of this file is tests

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use warren_tests::certificates::{Authority, Issued};
use warren_tests::client::Dial;
use warren_tests::load::{self, ConsumerOptions, PublisherOptions};
use warren_tests::oracle::Oracle;
use warren_tests::secured::Secured;
use warren_tests::{Broker, Cluster, eventually, unique};

/// Files are looked at every two seconds; a busy machine may need longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Lines of a node's log with this text.
fn told(cluster: &Cluster, at: usize, level: &str, text: &str) -> usize {
    cluster.logged(at, level).iter().filter(|line| line.contains(text)).count()
}

/// A node sees all three.
fn sees_all(cluster: &Cluster, at: usize) -> bool {
    eventually(PATIENCE, || cluster.ctl(at, &["status"]).stdout.matches("\ttrue\n").count() == 3)
}

fn own_processes(test: &str) -> bool {
    let own = std::env::var_os("WARREN_TEST_URIS").is_none();
    if !own {
        println!("{test}: left out, it needs processes of its own");
    }
    own
}

#[test]
fn nodes_form_a_cluster_over_mutual_tls_and_refuse_operators_without_certificates() {
    if !own_processes("nodes_form_a_cluster_over_mutual_tls") {
        return;
    }
    let secured = Secured::start();
    let cluster = &secured.cluster;
    assert!((0..3).all(|at| sees_all(cluster, at)));
    let listeners = cluster.ctl(0, &["listeners"]).stdout;
    let amqps = format!("Interface: 127.0.0.1, port: {}, protocol: amqp/ssl, purpose: AMQP 0-9-1 over TLS", cluster.ports(0).amqps);
    assert!(listeners.contains(&amqps), "{listeners}");
    let soon = ["check_certificate_expiration", "--within", "1", "--unit", "weeks"];
    let checked = cluster.ctl(0, &soon);
    assert_eq!((checked.code, checked.stdout.as_str()), (Some(0), "No certificates are expiring within 1 week.\n"), "{checked:?}");
    let checked = cluster.ctl(0, &["--formatter", "json", "check_certificate_expiration", "--within", "9000", "--unit", "years"]);
    assert_eq!(checked.code, Some(69), "{checked:?}");
    let said: serde_json::Value = serde_json::from_str(&checked.stderr).unwrap();
    let expiring: Vec<(&str, usize, usize)> = said["expired"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            let count = |column: &str| row[column].as_array().unwrap().len();
            (row["protocol"].as_str().unwrap(), count("certfile_expires_on"), count("cacertfile_expires_on"))
        })
        .collect();
    assert_eq!(expiring, [("clustering", 1, 1), ("amqp/ssl", 1, 1), ("stream/ssl", 1, 1)], "{checked:?}");
    // The secret without a certificate.
    let bare = cluster.ctl_with(1, &["status"], &[]);
    assert_eq!(bare.code, Some(69), "{bare:?}");
    assert!(bare.stderr.contains("demands TLS"), "{bare:?}");
    // A certificate of somebody else's authority.
    let theirs = secured.client_files(&Authority::new("theirs"), "stranger");
    let ca = cluster.ctl_environment().iter().find(|(name, _)| name.ends_with("_CA")).unwrap().1.clone();
    let files = [("CERT", theirs.certificate), ("KEY", theirs.key), ("CA", ca.into())];
    let environment = files.map(|(what, path)| (format!("WARREN_PEER_TLS_{what}"), path.display().to_string()));
    let stranger = cluster.ctl_with(1, &["status"], &environment);
    assert_eq!(stranger.code, Some(69), "{stranger:?}");
    assert!(stranger.stderr.contains("UnknownCA"), "{stranger:?}");
    assert!(eventually(PATIENCE, || told(cluster, 1, "WARN", "refused") > 0), "the node says it, too");
    // Clients on the wrong port hear an end, and the log says what is wrong with them.
    let mut plain = TcpStream::connect(secured.amqps(2)).unwrap();
    plain.write_all(b"AMQP\0\0\x09\x01").unwrap();
    assert_eq!(plain.read_to_end(&mut Vec::new()).unwrap(), 0);
    let mut over_tls = TcpStream::connect(cluster.amqp(2)).unwrap();
    over_tls.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]).unwrap();
    let mut answer = Vec::new();
    over_tls.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"AMQP\0\0\x09\x01");
    for text in ["a client without TLS on the TLS port", "a TLS client on the AMQP port"] {
        assert!(eventually(PATIENCE, || told(cluster, 2, "WARN", text) > 0), "{text}");
    }
    // What the nodes leave in their directories is enough on the same machine.
    let local = cluster.ctl_in_dir(2, &["ping"]);
    assert_eq!(local.code, Some(0), "{local:?}");
}

#[test]
fn clients_over_tls_are_served_by_every_node_and_listed_as_such() {
    if !own_processes("clients_over_tls_are_served_by_every_node") {
        return;
    }
    let secured = Secured::start();
    let cluster = &secured.cluster;
    let queue = unique("tls");
    Broker::Given(cluster.uris()).declare_durable(0, &queue);
    let leader = cluster.queue_leader(&queue).unwrap();
    let (near, far) = ((leader + 1) % 3, (leader + 2) % 3);
    let oracle = Arc::new(Oracle::default());
    let (publisher, consumer) = (secured.relay(near), secured.relay(far));
    let consumer = (load::consume(&oracle, &Dial::parse(&consumer.address()), 1, &queue, &ConsumerOptions::default()), consumer);
    let options = PublisherOptions { rate: 300, size: 5_000, ..PublisherOptions::default() };
    let publisher = (load::publish(&oracle, &Dial::parse(&publisher.address()), 1, &queue, &options), publisher);
    assert!(eventually(PATIENCE, || publisher.0.count() >= 300), "confirms come");
    let rows = cluster.ctl(leader, &["-s", "list_connections", "node", "ssl", "ssl_protocol", "ssl_hash", "peer_cert_subject"]).stdout;
    let mut rows: Vec<&str> = rows.lines().collect();
    rows.sort_unstable();
    let mut expected = [near, far].map(|at| format!("{}\ttrue\ttlsv1.3\taead\t", at + 1));
    expected.sort_unstable();
    assert_eq!(rows, expected);
    // A leader that dies is not noticed over TLS either; its node finds the others again with its certificate.
    cluster.kill(leader);
    let before = publisher.0.count();
    assert!(eventually(PATIENCE, || publisher.0.count() >= before + 300), "a new leader confirms");
    cluster.restart(leader);
    let closes = publisher.0.stop().closes;
    assert!(load::drained(&oracle, PATIENCE));
    let closes = [closes, consumer.0.stop().closes].concat();
    assert!(closes.is_empty(), "{closes:?}");
    oracle.findings().assert_unnoticed();
}

#[test]
fn the_bench_measures_over_tls_and_verifies_whom_it_speaks_to() {
    if !own_processes("the_bench_measures_over_tls") {
        return;
    }
    let secured = Secured::start();
    let uri = format!("amqps://{}", secured.amqps(1));
    let bench = |arguments: &[&str]| {
        let mut command = Command::new(warren_tests::cluster::binary());
        let queue = unique("bench");
        command.args(["bench", "--uris", &uri, "--queue", &queue, "--seconds", "0.5", "--window", "50", "--quiet"]).args(arguments);
        let told = command.output().unwrap();
        (told.status.code(), String::from_utf8_lossy(&told.stderr).into_owned())
    };
    let ca = secured.ca().display().to_string();
    // One thread for each connection, and two: bodies of one record and of several.
    for arguments in [["--tls-ca", &ca, "--size", "100"], ["--tls-ca", &ca, "--size", "40000"]] {
        let flat_out = bench(&arguments);
        assert_eq!(flat_out.0, Some(0), "{}", flat_out.1);
        let paced = bench(&[arguments.as_slice(), &["--rate", "50"]].concat());
        assert_eq!(paced.0, Some(0), "{}", paced.1);
    }
    let listed = secured.cluster.ctl(0, &["-s", "list_connections", "ssl"]).stdout;
    assert_eq!(listed, "", "all are gone");
    // Somebody else's authority.
    let theirs = Authority::new("theirs").write(secured.ca().parent().unwrap(), "theirs").display().to_string();
    let stranger = bench(&["--tls-ca", &theirs]);
    assert_eq!(stranger.0, Some(2), "{}", stranger.1);
    assert!(stranger.1.contains("UnknownIssuer"), "{}", stranger.1);
    assert_eq!(bench(&[]).0, Some(2), "not without an authority");
}

#[test]
fn certificates_and_authorities_are_replaced_under_load_without_a_lost_connection() {
    if !own_processes("certificates_and_authorities_are_replaced_under_load") {
        return;
    }
    let secured = Secured::start();
    let cluster = &secured.cluster;
    let queue = unique("rotate");
    Broker::Given(cluster.uris()).declare_durable(0, &queue);
    let oracle = Arc::new(Oracle::default());
    let relay = secured.relay(0);
    let dial = Dial::parse(&relay.address());
    let consumer = load::consume(&oracle, &dial, 1, &queue, &ConsumerOptions::default());
    let publisher = load::publish(&oracle, &dial, 1, &queue, &PublisherOptions::default());

    // What clients are shown: twice a new certificate, after each one that is no good.
    for name in ["server-1", "server-2"] {
        let good = secured.server(name);
        secured.show_clients(&good);
        let is_shown = |at| eventually(PATIENCE, || secured.shown(at).is_some_and(|shown| shown.starts_with(&format!("CN={name},"))));
        assert!((0..3).all(is_shown), "{name}");
        let complaints = || [0, 1, 2].map(|at| told(cluster, at, "ERROR", "the old one stays"));
        let before = complaints();
        secured.show_clients(&Issued { certificate: "garbage".into(), ..good.clone() });
        let is_told = || complaints().iter().zip(before).all(|(now, before)| *now > before);
        assert!(eventually(PATIENCE, is_told), "garbage is told");
        assert!((0..3).all(is_shown), "{name} after garbage");
        secured.show_clients(&good);
    }
    // SIGHUP asks for a look and ends nobody.
    let is_answered = || {
        cluster.hang_up(0);
        told(cluster, 0, "INFO", "have not changed") > 0
    };
    assert!(eventually(PATIENCE, is_answered), "SIGHUP is answered in the log");

    // What nodes show each other, with another authority: first all believe both, then all show the new one's, then the old one goes.
    let loaded = || [0, 1, 2].map(|at| told(cluster, at, "INFO", &format!("node-{}.pem", at + 1)));
    let step = |change: &dyn Fn()| {
        let before = loaded();
        change();
        assert!(eventually(PATIENCE, || loaded().iter().zip(before).all(|(now, before)| *now > before)), "all nodes have looked");
    };
    let (old, new) = (&secured.nodes, Authority::new("new"));
    step(&|| secured.trust_peers(&[old, &new]));
    step(&|| secured.issue_peers(&new));
    step(&|| secured.trust_peers(&[&new]));
    // New connections between nodes are made with it, and no others: a node is killed and comes back.
    cluster.kill(2);
    cluster.restart(2);
    assert!((0..3).all(|at| sees_all(cluster, at)));
    let before = publisher.count();
    assert!(eventually(PATIENCE, || publisher.count() >= before + 200), "confirms go on");

    let closes = publisher.stop().closes;
    assert!(load::drained(&oracle, PATIENCE));
    let closes = [closes, consumer.stop().closes].concat();
    assert!(closes.is_empty(), "{closes:?}");
    oracle.findings().assert_unnoticed();
}
