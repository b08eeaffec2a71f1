//! Which right each method needs, as real clients meet it through every node. Names say what their user lacks: `no-c-…` may not be configured,
//! `no-w-…` not be written to, `no-r-…` not be read from, with `none-…` nothing may be done; all other rights it has.
#![allow(clippy::unwrap_used)] // all of this file is tests

use std::time::Duration;
use warren_tests::client::encode::{self, Route, method, short_string};
use warren_tests::client::{Connection, Field, Incoming, Table, table::put_table};
use warren_tests::{Broker, Ctl, message_event, refusal, unique};

const PATIENCE: Duration = Duration::from_secs(10);

/// What a client sends, the method that answers when it is allowed, and else what is refused: right and thing.
struct Case {
    frames: Vec<u8>,
    answer: (u16, u16),
    refused: Option<(&'static str, &'static str)>,
}

fn case(answer: (u16, u16), refused: Option<(&'static str, &'static str)>, fill: impl FnOnce(&mut Vec<u8>)) -> Case {
    let mut frames = Vec::new();
    fill(&mut frames);
    Case { frames, answer, refused }
}

fn text(key: &str, value: &str) -> Table {
    vec![(key.to_owned(), Field::Text(value.to_owned()))]
}

/// Ticket and a name, as most methods begin.
fn named(out: &mut Vec<u8>, name: &str) {
    out.extend_from_slice(&[0, 0]);
    short_string(out, name);
}

fn declare(queue: &str, arguments: &Table, refused: Option<(&'static str, &'static str)>) -> Case {
    case((50, 11), refused, |out| encode::queue_declare(out, 1, queue, 2, arguments))
}

/// Bit 0: passive.
fn look(queue: &str, refused: Option<(&'static str, &'static str)>) -> Case {
    case((50, 11), refused, |out| encode::queue_declare(out, 1, queue, 1, &[]))
}

fn look_exchange(exchange: &str, refused: Option<(&'static str, &'static str)>) -> Case {
    case((40, 11), refused, |out| encode::exchange_declare(out, 1, exchange, "direct", 1))
}

fn declare_exchange(exchange: &str, arguments: &Table, refused: Option<(&'static str, &'static str)>) -> Case {
    case((40, 11), refused, |out| {
        method(out, 1, (40, 10), |out| {
            named(out, exchange);
            short_string(out, "direct");
            out.push(2);
            put_table(out, arguments);
        });
    })
}

/// A binding of any kind: its method, destination, source.
fn bound(id: (u16, u16), destination: &str, source: &str, key: &str, refused: Option<(&'static str, &'static str)>) -> Case {
    let answer = match id {
        (40, 40) => (40, 51),
        (class, method) => (class, method + 1),
    };
    case(answer, refused, |out| {
        method(out, 1, id, |out| {
            named(out, destination);
            short_string(out, source);
            short_string(out, key);
            // queue.unbind has no bit for nowait.
            if id != (50, 50) {
                out.push(0);
            }
            put_table(out, &[]);
        });
    })
}

fn publish(exchange: &str, key: &str, refused: Option<(&'static str, &'static str)>) -> Case {
    case((60, 80), refused, |out| encode::publish(out, Route { channel: 1, exchange, key, mandatory: false }, b"x", 4096))
}

/// In a transaction, which is committed.
fn publish_in_transaction(exchange: &str, key: &str, refused: Option<(&'static str, &'static str)>) -> Case {
    case(COMMITTED, refused, |out| {
        encode::bare(out, 1, (90, 10));
        encode::publish(out, Route { channel: 1, exchange, key, mandatory: false }, b"x", 4096);
        encode::bare(out, 1, (90, 20));
    })
}

fn get(queue: &str, refused: Option<(&'static str, &'static str)>) -> Case {
    case((60, 72), refused, |out| encode::get(out, 1, queue, true))
}

fn consume(queue: &str, refused: Option<(&'static str, &'static str)>) -> Case {
    case((60, 21), refused, |out| encode::consume(out, 1, queue, "tag", 2, &[]))
}

fn purge(queue: &str, refused: Option<(&'static str, &'static str)>) -> Case {
    case((50, 31), refused, |out| encode::queue_purge(out, 1, queue))
}

fn delete(queue: &str, refused: Option<(&'static str, &'static str)>) -> Case {
    case((50, 41), refused, |out| encode::queue_delete(out, 1, queue))
}

fn delete_exchange(exchange: &str, refused: Option<(&'static str, &'static str)>) -> Case {
    case((40, 21), refused, |out| encode::exchange_delete(out, 1, exchange))
}

const COMMITTED: (u16, u16) = (90, 21);
const BINDS: [(u16, u16); 2] = [(50, 20), (50, 50)];
const EXCHANGE_BINDS: [(u16, u16); 2] = [(40, 30), (40, 40)];

fn matrix() -> Vec<Case> {
    let none = Table::new();
    let (dead, other) = (text("x-dead-letter-exchange", "x"), text("x-dead-letter-exchange", "no-w-x"));
    let (alternate, elsewhere) = (text("alternate-exchange", "x"), text("alternate-exchange", "no-w-x"));
    let mut cases = vec![
        declare("no-c-q", &none, Some(("configure", "queue 'no-c-q'"))),
        declare("no-w-q", &none, None),
        declare("no-r-q", &none, None),
        declare("new", &other, Some(("write", "exchange 'no-w-x'"))),
        declare("no-r-new", &dead, Some(("read", "queue 'no-r-new'"))),
        declare("no-w-new", &dead, None),
        look("no-c-q", None),
        look("no-w-q", None),
        look("no-r-q", None),
        look_exchange("no-c-x", None),
        look_exchange("no-w-x", None),
        look_exchange("no-r-x", None),
        look("none-q", Some(("configure", "queue 'none-q'"))),
        look("none-and-not-there", Some(("configure", "queue 'none-and-not-there'"))),
        look_exchange("none-x", Some(("configure", "exchange 'none-x'"))),
        declare_exchange("no-c-x", &none, Some(("configure", "exchange 'no-c-x'"))),
        declare_exchange("no-r-new", &none, None),
        declare_exchange("no-r-newer", &alternate, Some(("read", "exchange 'no-r-newer'"))),
        declare_exchange("new", &elsewhere, Some(("write", "exchange 'no-w-x'"))),
        declare_exchange("no-w-new", &alternate, None),
        publish("no-w-x", "k", Some(("write", "exchange 'no-w-x'"))),
        publish("no-c-x", "k", None),
        publish("no-r-x", "k", None),
        publish("", "no-w-q", None),
        publish_in_transaction("no-w-x", "k", Some(("write", "exchange 'no-w-x'"))),
        publish_in_transaction("no-c-x", "k", None),
        publish_in_transaction("no-r-x", "k", None),
        publish_in_transaction("", "no-w-q", None),
        get("no-r-q", Some(("read", "queue 'no-r-q'"))),
        get("no-c-q", None),
        consume("no-r-q", Some(("read", "queue 'no-r-q'"))),
        consume("no-w-q", None),
        consume("amq.rabbitmq.reply-to", None),
        purge("no-r-q", Some(("read", "queue 'no-r-q'"))),
        purge("no-c-q", None),
        delete("no-c-q", Some(("configure", "queue 'no-c-q'"))),
        delete("no-r-new", None),
        delete("no-w-new", None),
        delete_exchange("no-c-x", Some(("configure", "exchange 'no-c-x'"))),
        delete_exchange("no-r-new", None),
        delete_exchange("no-w-new", None),
    ];
    for id in BINDS {
        cases.push(bound(id, "no-w-q", "x", "k", Some(("write", "queue 'no-w-q'"))));
        cases.push(bound(id, "no-c-q", "no-r-x", "k", Some(("read", "exchange 'no-r-x'"))));
        cases.push(bound(id, "no-r-q", "no-w-x", "k", None));
        cases.push(bound(id, "no-c-q", "no-c-x", "k", None));
    }
    for id in EXCHANGE_BINDS {
        cases.push(bound(id, "no-w-x", "x", "k", Some(("write", "exchange 'no-w-x'"))));
        cases.push(bound(id, "x", "no-r-x", "k", Some(("read", "exchange 'no-r-x'"))));
        cases.push(bound(id, "no-r-x", "no-w-x", "k", None));
    }
    cases
}

/// A user with those rights in a vhost of its own, with a queue and an exchange of each kind of name.
struct Scene<'a> {
    ctl: Ctl<'a>,
    user: String,
    vhost: String,
}

impl<'a> Scene<'a> {
    fn new(ctl: Ctl<'a>) -> Scene<'a> {
        let (user, vhost) = (unique("user"), unique("rights"));
        ctl.done(&["add_vhost", &vhost]);
        ctl.done(&["add_user", &user, "secret"]);
        let scene = Scene { ctl, user, vhost };
        scene.grant(&["", "", ""].map(|_| ".*"));
        let mut client = scene.client(0);
        for lacks in ["", "no-c-", "no-w-", "no-r-", "none-"] {
            client.declare(1, &format!("{lacks}q"), &warren_tests::client::QueueOptions::durable()).unwrap();
            client.declare_exchange(1, &format!("{lacks}x"), "direct").unwrap();
        }
        // Nobody needs a right to his own reply address.
        scene.grant(&["^(?!no-c-|none-)", "^(?!no-w-|none-)", "^(?!no-r-|none-|amq\\.rabbitmq\\.)"]);
        scene
    }

    fn grant(&self, patterns: &[&str; 3]) {
        self.ctl.done(&[&["-p", &self.vhost, "set_permissions", &self.user][..], patterns].concat());
    }

    fn client(&self, at: usize) -> Connection {
        Connection::open_with_channel(&self.ctl.dial(at, &self.user, &self.vhost)).unwrap()
    }
}

impl Drop for Scene<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.ctl.done(&["delete_vhost", &self.vhost]);
            self.ctl.done(&["delete_user", &self.user]);
        }
    }
}

#[test]
fn each_method_needs_its_rights_on_every_node() {
    let broker = Broker::shared();
    let Some(cluster) = broker.cluster() else { return };
    let scene = Scene::new(Ctl { cluster, at: 0 });
    for at in 0..cluster.len() {
        matrix().into_iter().enumerate().for_each(|(n, case)| scene.meets(at, n, case));
    }
}

impl Scene<'_> {
    /// A client of a node does what a case says, and is answered so.
    fn meets(&self, at: usize, n: usize, Case { frames, answer, refused }: Case) {
        let mut client = self.client(at);
        if answer != COMMITTED {
            client.confirm_select(1).unwrap();
        }
        client.send(&frames).unwrap();
        let answered = match answer {
            (60, 72) | (60, 80) => match message_event(&mut client, PATIENCE).unwrap() {
                Some(Incoming::Empty(_) | Incoming::Confirm { nack: false, .. }) => Ok(()),
                Some(Incoming::Got(..)) => Ok(()),
                Some(Incoming::ChannelClose { code, text, .. }) => Err((code, text)),
                other => panic!("node {at}, case {n}, {answer:?}: {other:?}"),
            },
            _ => client.answer(answer).map(drop).map_err(|error| refusal::<()>(Err(error))),
        };
        let wanted = match refused {
            None => Ok(()),
            Some((right, thing)) => {
                let (user, vhost) = (&self.user, &self.vhost);
                Err((403, format!("ACCESS_REFUSED - {right} access to {thing} in vhost '{vhost}' refused for user '{user}'")))
            }
        };
        assert_eq!(answered, wanted, "node {at}, case {n}, answered by {answer:?}");
    }
}

/// What is only about the conversation, and acknowledging what one has.
fn free() -> Vec<(u16, (u16, u16), Vec<u8>)> {
    let short = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
    let secret = [&[0, 0, 0][..], &short("new secret")].concat();
    vec![
        (0, (10, 70), [secret, short("reason")].concat()),
        (1, (20, 20), vec![1]),
        (1, (30, 10), [short("/data"), vec![0]].concat()),
        (1, (60, 10), vec![0, 0, 0, 0, 0, 1, 0]),
        (1, (60, 30), [short("no consumer"), vec![0]].concat()),
        (1, (60, 110), vec![1]),
        (1, (85, 10), vec![0]),
        (2, (90, 10), vec![]),
        (2, (90, 20), vec![]),
        (2, (90, 30), vec![]),
        (2, (20, 40), [&[0, 200][..], &short("bye"), &[0, 0, 0, 0]].concat()),
    ]
}

#[test]
fn who_has_no_right_at_all_may_do_what_concerns_nothing_of_the_vhost() {
    let broker = Broker::shared();
    let Some(cluster) = broker.cluster() else { return };
    let scene = Scene::new(Ctl { cluster, at: 0 });
    scene.grant(&["", "", ""]);
    for at in 0..cluster.len() {
        let mut client = scene.client(at);
        client.open_channel(2).unwrap();
        for (channel, id, fields) in free() {
            let mut frames = Vec::new();
            method(&mut frames, channel, id, |out| out.extend_from_slice(&fields));
            client.send(&frames).unwrap();
            client.answer((id.0, id.1 + 1)).unwrap_or_else(|error| panic!("node {at}, {id:?}: {error}"));
        }
        let mut frames = Vec::new();
        encode::queue_declare(&mut frames, 1, "", 0, &[]);
        client.send(&frames).unwrap();
        let (code, text) = refusal(client.answer((50, 11)));
        assert_eq!(code, 403);
        assert!(text.starts_with("ACCESS_REFUSED - configure access to queue 'amq.gen-"), "{text}");
    }
}

#[test]
fn routing_keys_of_a_topic_exchange_need_theirs() {
    let broker = Broker::shared();
    let Some(cluster) = broker.cluster() else { return };
    let scene = Scene::new(Ctl { cluster, at: 0 });
    let (user, vhost) = (&scene.user, &scene.vhost);
    scene.client(0).declare_exchange(1, "topics", "topic").unwrap();
    scene.ctl.done(&["-p", vhost, "set_topic_permissions", user, "topics", "^{username}\\.w", "^{vhost}\\.r"]);
    let refused = |right: &str, key: &str| {
        let text = format!(
            "ACCESS_REFUSED - {right} access to topic '{key}' in exchange topic 'topics' in vhost '{vhost}' refused for user '{user}'"
        );
        (403, text)
    };
    for at in 0..cluster.len() {
        let mut client = scene.client(at);
        client.confirm_select(1).unwrap();
        let mut publish = |key: &str| {
            client.publish_to(Route { channel: 1, exchange: "topics", key, mandatory: false }, b"x").unwrap();
            match message_event(&mut client, PATIENCE).unwrap() {
                Some(Incoming::Confirm { nack: false, .. }) => None,
                Some(Incoming::ChannelClose { code, text, .. }) => Some((code, text)),
                other => panic!("{other:?}"),
            }
        };
        let good = format!("{user}.write");
        assert_eq!((publish(&good), publish(&good)), (None, None));
        assert_eq!(publish("other.write"), Some(refused("write", "other.write")));
        for (id, destination) in BINDS.map(|id| (id, "q")).into_iter().chain(EXCHANGE_BINDS.map(|id| (id, "x"))) {
            let ask = |key: &str| {
                let Case { frames, answer, .. } = bound(id, destination, "topics", key, None);
                let mut client = scene.client(at);
                client.send(&frames).unwrap();
                client.answer(answer)
            };
            ask(&format!("{vhost}.read")).unwrap();
            assert_eq!(refusal(ask("#")), refused("read", "#"), "{id:?}");
        }
    }
}
