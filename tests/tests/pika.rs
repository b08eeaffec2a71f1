//! Python clients with pika: the first five tutorials through every node and across each pair of nodes, and what RabbitMQ adds to
//! AMQP 0-9-1 across each pair.
#![allow(clippy::unwrap_used)] // all of this file is tests

use std::process::Command;
use warren_tests::Broker;
use warren_tests::certificates::{Authority, Written};
use warren_tests::clients::{here, python, run};
use warren_tests::secured::Secured;

/// Batches and deliveries that went to or came from leaders on other nodes, all nodes together.
fn crossings(broker: &Broker) -> f64 {
    let Some(cluster) = broker.cluster() else { return 0.0 };
    let of = |at: usize| {
        let metrics = cluster.metrics(at).expect("it serves");
        ["warren_batches_remote_total", "warren_delivered_remote_total"]
            .iter()
            .map(|name| metrics.sum(name).expect("a metric"))
            .sum::<f64>()
    };
    (0..cluster.len()).map(of).sum()
}

/// Does `work`, with names of its own each time, until it has crossed nodes: chance may lead all of its queues where its clients are.
fn crossing(broker: &Broker, work: impl Fn()) {
    const ATTEMPTS: usize = 10;
    let crossed = (0..ATTEMPTS).any(|_| {
        let before = crossings(broker);
        work();
        broker.cluster().is_none() || crossings(broker) > before + 1.0
    });
    assert!(crossed, "every client was on its queue's leader: it proves nothing");
}

#[test]
fn pikas_tutorials_work_on_every_node_and_across_nodes() {
    let broker = Broker::shared();
    let uris = broker.uris();
    for (at, sender) in uris.iter().enumerate() {
        for receiver in [sender, &uris[(at + 1) % uris.len()]] {
            println!("senders on {sender}, receivers on {receiver}");
            crossing(&broker, || run(Command::new(python()).arg(here().join("pika/tutorials.py")).args([sender, receiver])));
        }
    }
}

#[test]
fn queue_arguments_have_their_effect_through_other_nodes() {
    let broker = Broker::shared();
    let uris = broker.uris();
    let script = here().join("pika/queues.py");
    crossing(&broker, || run(Command::new(python()).arg(&script).args([&uris[0], &uris[1]])));
}

#[test]
fn rabbitmqs_extensions_work_across_nodes() {
    let broker = Broker::shared();
    let uris = broker.uris();
    for (at, sender) in uris.iter().enumerate() {
        let receiver = &uris[(at + 1) % uris.len()];
        println!("publishers on {sender}, consumers on {receiver}");
        run(Command::new(python()).arg(here().join("pika/extensions.py")).args([sender, receiver]));
    }
}

#[test]
fn tls_works_with_openssl_and_external_logs_in_by_certificate() {
    if std::env::var_os("WARREN_TEST_URIS").is_some() {
        println!("tls_works_with_openssl: left out, it needs processes of its own");
        return;
    }
    let secured = Secured::start();
    let (ours, theirs) = (secured.client_files(&secured.clients, "ours"), secured.client_files(&secured.clients, "theirs"));
    let stranger = secured.client_files(&Authority::new("another"), "stranger");
    let user = "CN=ours,O=Warren\\, tests";
    for words in [&["add_user", user, "unused"][..], &["clear_password", user], &["set_permissions", user, ".*", ".*", ".*"]] {
        let told = secured.cluster.ctl(0, words);
        assert_eq!(told.code, Some(0), "{words:?}: {told:?}");
    }
    let name = |written: &Written| written.certificate.with_extension("");
    for at in 0..3 {
        let script = here().join("pika/tls.py");
        let (sender, receiver) = (secured.amqps(at), secured.amqps((at + 1) % 3));
        println!("publishers on {sender}, consumers on {receiver}");
        let mut command = Command::new(python());
        command.arg(script).args([sender, receiver]).arg(secured.ca());
        run(command.args([name(&ours), name(&theirs), name(&stranger)]));
    }
}
