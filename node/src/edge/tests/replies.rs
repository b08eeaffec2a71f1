//! Copies (CC, BCC) and direct reply-to.

use super::*;
use bytes::{BufMut, BytesMut};

/// Property flags and list with these headers, each a list of texts.
pub(super) fn with_lists(headers: &[(&str, &[&str])]) -> Bytes {
    let mut table = BytesMut::new();
    for (name, keys) in headers {
        table.put_u8(name.len() as u8);
        table.put_slice(name.as_bytes());
        table.put_u8(b'A');
        table.put_u32(keys.iter().map(|k| 5 + k.len() as u32).sum());
        for key in *keys {
            table.put_u8(b'S');
            table.put_u32(key.len() as u32);
            table.put_slice(key.as_bytes());
        }
    }
    let mut properties = BytesMut::new();
    properties.put_u16(0x2000);
    properties.put_u32(table.len() as u32);
    properties.put_slice(&table);
    properties.freeze()
}

fn publish_with(client: &mut Client, exchange: &str, key: &str, properties: Bytes) {
    client.submit(Step::Publish(Publish { properties, mandatory: true, ..publish(exchange, key, 0, b"body") }));
}

#[tokio::test]
async fn copies_go_to_further_keys_and_blind_ones_are_stored_by_another_name() {
    let mut scene = Scene::new(default_config());
    let (a, b, c) = (scene.queue("a", 1), scene.queue("b", 1), scene.queue("c", 1));
    let mut client = scene.client();
    publish_with(&mut client, "", "a", with_lists(&[("CC", &["b", "none", "a"]), ("BCC", &["c"])]));
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    let batch = leader.batch().await;
    let enqueue = &enqueues(&batch)[0];
    assert_eq!(enqueue.queues().collect::<Vec<_>>(), [a, b, c]);
    let stored = StoredMessage::parse(enqueue.message.clone()).expect("a message");
    assert_eq!(stored.properties, with_lists(&[("CC", &["b", "none", "a"]), ("\0CC", &["c"])]));
    leader.verdict(1, &[]).await;
    scene.fanout("x", &["a"]);
    publish_with(&mut client, "x", "", with_lists(&[("CC", &["b"])]));
    assert_eq!(enqueues(&leader.batch().await)[0].queues().collect::<Vec<_>>(), [a], "once, whatever the keys");
}

#[tokio::test]
async fn a_copy_header_of_another_type_is_refused_in_rabbitmqs_words() {
    let scene = Scene::new(default_config());
    let mut client = scene.client();
    publish_with(&mut client, "", "a", Bytes::from_static(b"\x20\x00\x00\x00\x00\x09\x02CCS\x00\x00\x00\x01x"));
    let text = "invalid message: {unacceptable_type_in_header,\"CC\",longstr}";
    assert_eq!(client.next().await, Event::ChannelError { channel: 1, refusal: Refusal::Precondition(text.into()), method: (60, 40) });
}

fn consume_replies(client: &mut Client) {
    client.ask(Request::Consume {
        queue: name("amq.rabbitmq.reply-to"),
        tag: "tag".into(),
        no_ack: true,
        exclusive: false,
        prefetch: None,
        arguments: Table::new(),
    });
}

#[tokio::test]
async fn a_reply_consumer_gets_an_address_that_routes_to_its_node() {
    let mut scene = Scene::new(default_config());
    scene.world.apply(&CatalogCommand::NodeUp { node: ME, incarnation: Incarnation(77) });
    let mut client = scene.client();
    consume_replies(&mut client);
    let (mut local, attach) = scene.leader(leader(77, 1), 9, 0).await;
    assert_eq!(local.shard, ShardId::local(ME));
    let spec = asked_with(attach);
    assert!(spec.queue.is_reply() && spec.no_ack);
    local.say(ToEdge::Consuming { consumer: spec.id, result: Ok(1) }).await;
    let Ok(Reply::ReplyTo { consumer, address }) = client.reply().await else { panic!("no address") };
    assert_eq!(consumer, spec.id);
    client.publish("", &address, 1);
    let batch = local.batch().await;
    assert_eq!(enqueues(&batch)[0].queues().collect::<Vec<_>>(), [spec.queue]);
    local.verdict(1, &[]).await;
    assert_eq!(client.confirmed().await, [(1, 1)]);
    // Its consumer is gone: unroutable.
    client.submit(Step::Publish(Publish { mandatory: true, ..publish("", &address, 2, b"late") }));
    local.batch().await;
    local.verdict(2, &[0]).await;
    let Event::Returned(back) = client.next().await else { panic!("not returned") };
    assert_eq!(&back.body[..], b"late");
    assert_eq!(client.confirmed().await, [(2, 2)]);
}

/// Whatever rights its client has, whether it is there or not.
#[tokio::test]
async fn an_address_cannot_be_bound() {
    let scene = Scene::new(default_config());
    let mut client = scene.client();
    let address = "amq.rabbitmq.reply-to.1.80000000000000ff";
    let refused = Refusal::Access("cannot bind or unbind to a volatile (direct reply-to) queue".into());
    for request in [Request::Bind(binding("amq.direct", address)), Request::Unbind(binding("none", address))] {
        client.ask(request);
        assert_eq!(client.reply().await, Err(refused.clone()));
    }
    for other in ["amq.rabbitmq.reply-to", "amq.rabbitmq.reply-too.1"] {
        client.ask(Request::Bind(binding("amq.direct", other)));
        assert!(matches!(client.reply().await, Err(Refusal::NotFound { .. })), "no address");
    }
}

#[tokio::test]
async fn an_address_exists_while_its_consumer_does() {
    let mut scene = Scene::new(default_config());
    scene.world.apply(&CatalogCommand::NodeUp { node: ME, incarnation: Incarnation(77) });
    let mut client = scene.client();
    let ask = |name: &str| {
        let name = self::name(name);
        let table = Table::new();
        Request::DeclareQueue(crate::model::step::DeclareQueue {
            name,
            passive: true,
            durable: false,
            exclusive: false,
            auto_delete: false,
            arguments: table,
        })
    };
    client.ask(ask("amq.rabbitmq.reply-to.1.80000000000000ff"));
    let (mut local, _) = scene.leader(leader(77, 1), 9, 0).await;
    for consumers in [1, 0] {
        let ToLeader::Stat { request, queues, .. } = local.next().await else { panic!("no stat") };
        let stats = vec![QueueStat { queue: queues[0], consumers, ..QueueStat::default() }];
        local.say(ToEdge::Stats { request, stats }).await;
        let found = client.reply().await;
        assert_eq!(found.is_ok(), consumers == 1, "{found:?}");
        if consumers == 1 {
            client.ask(ask("amq.rabbitmq.reply-to.1.80000000000000fe"));
        }
    }
    client.ask(ask("amq.rabbitmq.reply-to.9.80000000000000ff"));
    let Err(Refusal::NotFound { .. }) = client.reply().await else { panic!("a node that never was") };
}
