//! Python clients with pika: the first five tutorials through every node and across each pair of nodes, and what RabbitMQ adds to
//! AMQP 0-9-1 across each pair.
#![allow(clippy::unwrap_used)] // all of this file is tests

use std::process::Command;
use warren_tests::Broker;
use warren_tests::clients::{here, python, run};

#[test]
fn pikas_tutorials_work_on_every_node_and_across_nodes() {
    let broker = Broker::shared();
    let uris = broker.uris();
    for (at, sender) in uris.iter().enumerate() {
        for receiver in [sender, &uris[(at + 1) % uris.len()]] {
            println!("senders on {sender}, receivers on {receiver}");
            run(Command::new(python()).arg(here().join("pika/tutorials.py")).args([sender, receiver]));
        }
    }
}

#[test]
fn queue_arguments_have_their_effect_through_other_nodes() {
    let broker = Broker::shared();
    let uris = broker.uris();
    let script = here().join("pika/queues.py");
    run(Command::new(python()).arg(script).args([&uris[0], &uris[1]]));
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
