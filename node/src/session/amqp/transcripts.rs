//! Conversations: `>` what the client says, `<` what it hears, `=` what goes to the edge, `!` what the edge says.

use super::*;
use crate::model::catalog::{Refusal, Table, Value};
use crate::model::entry::{EntryBuilder, EntryBytes, Op, Ops, OpsReader, Section, read_entry};
use crate::model::link::{Batch, Delivery};
use crate::model::step::{Got, Held, Reply, Request};
use crate::model::{BatchSeq, ConsumerId, QueueId, Seq, SessionId, ShardId};
use crate::wire::amqp::output::Content;
use crate::wire::amqp::{ContentHeader, Output, frame};
use bytes::{Bytes, BytesMut};

/// A conversation and its record.
struct Talk {
    session: Session,
    out: Out,
    record: Vec<String>,
    /// The edge does not take `ChannelClosed` by itself.
    slow_edge: bool,
}

fn capabilities(names: &[&str]) -> Table {
    let set = names.iter().map(|n| ((*n).to_owned(), Value::Bool(true))).collect();
    Table::from([("capabilities".to_owned(), Value::Table(set))])
}

fn start_ok(response: &[u8], names: &[&str]) -> Method {
    Method::ConnectionStartOk {
        client_properties: capabilities(names),
        mechanism: "PLAIN".into(),
        response: crate::wire::amqp::Long(Bytes::copy_from_slice(response)),
        locale: "en_US".into(),
    }
}

fn tune_ok() -> Method {
    Method::ConnectionTuneOk { channel_max: 2047, frame_max: 4096, heartbeat: 60 }
}

fn open(vhost: &str) -> Method {
    Method::ConnectionOpen { virtual_host: vhost.into(), reserved_1: "".into(), reserved_2: false }
}

fn channel_open() -> Method {
    Method::ChannelOpen { reserved_1: "".into() }
}

fn close_method() -> Method {
    Method::ChannelClose { reply_code: 200, reply_text: "".into(), class_id: 0, method_id: 0 }
}

fn declare(queue: &str, arguments: &[(&str, Value)]) -> Method {
    let arguments = arguments.iter().map(|(n, v)| ((*n).to_owned(), v.clone())).collect();
    Method::QueueDeclare {
        ticket: 0,
        queue: queue.into(),
        passive: false,
        durable: true,
        exclusive: false,
        auto_delete: false,
        nowait: false,
        arguments,
    }
}

fn consume(queue: &str, tag: &str, no_ack: bool) -> Method {
    Method::BasicConsume {
        ticket: 0,
        queue: queue.into(),
        consumer_tag: tag.into(),
        no_local: false,
        no_ack,
        exclusive: false,
        nowait: false,
        arguments: Table::new(),
    }
}

fn get(queue: &str) -> Method {
    Method::BasicGet { ticket: 0, queue: queue.into(), no_ack: false }
}

fn publish(mandatory: bool, immediate: bool) -> Method {
    Method::BasicPublish { ticket: 0, exchange: "e".into(), routing_key: "k".into(), mandatory, immediate }
}

fn done(channel: u16) -> Event {
    Event::Reply { channel, result: Ok(Reply::Done) }
}

fn queue_reply(name: &str) -> Event {
    Event::Reply { channel: 1, result: Ok(Reply::Queue { name: name.into(), messages: 3, consumers: 1 }) }
}

/// A message as a leader would hand it out.
fn delivery(seq: u64, body: &[u8]) -> Delivery {
    let mut ops = Ops::default();
    ops.enqueue(&[QueueId(9)], b"e", b"k", &[0x10, 0, 2], body);
    let batch = Batch { session: SessionId(1), seq: BatchSeq(1), floor: BatchSeq(0), catalog_index: 0, ops: ops.take() };
    let mut builder = EntryBuilder::new(0);
    builder.batch(&batch);
    let entry: EntryBytes = builder.finish();
    let (_, sections) = read_entry(&entry).expect("entry");
    let Some(Section::Batch { ops, .. }) = sections.into_iter().next() else { panic!("no batch") };
    let ops: OpsReader = ops;
    let Some(Ok(Op::Enqueue(op))) = ops.into_iter().next() else { panic!("no message") };
    Delivery { queue: QueueId(9), seq: Seq(seq), redelivered: false, message: op.message }
}

fn deliver(seqs: &[u64]) -> Event {
    let messages = seqs.iter().map(|s| delivery(*s, format!("m{s}").as_bytes())).collect();
    Event::Deliver { channel: 1, consumer: ConsumerId(5), shard: ShardId(1), messages }
}

impl Talk {
    fn new() -> Talk {
        let options = Options { cluster_name: "warren".into(), seed: 1 };
        let mut talk = Talk { session: Session::new(options), out: Out::default(), record: Vec::new(), slow_edge: false };
        talk.session.on_header(PROTOCOL_HEADER, &mut talk.out);
        let start = talk.out.bytes.take();
        assert_eq!(&start[7..11], [0, 10, 0, 10]);
        talk
    }

    /// In a vhost, with channel 1.
    fn open() -> Talk {
        Talk::open_with(&["consumer_cancel_notify", "connection.blocked", "basic.nack"])
    }

    fn open_with(names: &[&str]) -> Talk {
        let mut talk = Talk::new();
        talk.say(0, start_ok(b"\0guest\0guest", names));
        talk.edge(Event::Authenticated);
        talk.say(0, tune_ok());
        talk.say(0, open("/"));
        talk.edge(Event::Opened);
        talk.say(1, channel_open());
        talk.record.clear();
        talk
    }

    /// With a consumer 5 on channel 1.
    fn consuming(no_ack: bool) -> Talk {
        let mut talk = Talk::open();
        talk.say(1, consume("q", "tag", no_ack));
        talk.edge(Event::Reply { channel: 1, result: Ok(Reply::Consuming { consumer: ConsumerId(5) }) });
        talk.record.clear();
        talk
    }

    fn frame(&mut self, kind: FrameKind, channel: u16, payload: &[u8]) {
        self.session.on_frame(Frame { kind, channel, payload: Bytes::copy_from_slice(payload) }, &mut self.out);
    }

    fn say(&mut self, channel: u16, method: Method) {
        self.record.push(format!("> {channel} {}", method.name()));
        let mut payload = BytesMut::new();
        method.encode(&mut payload);
        self.frame(FrameKind::Method, channel, &payload);
        self.session.end_batch(&mut self.out);
        self.heard();
    }

    /// Header and body frames.
    fn content(&mut self, channel: u16, body: &[u8]) {
        let mut output = Output::default();
        output.content(channel, &Content { properties: &[0x10, 0, 2], body: &Bytes::copy_from_slice(body), body_at: 0 }, 4096);
        let mut bytes = BytesMut::from(&output.take()[..]);
        while let Some(frame) = frame::next(&mut bytes, 4096).expect("frame") {
            self.session.on_frame(frame, &mut self.out);
        }
        self.session.end_batch(&mut self.out);
        self.heard();
    }

    fn publish(&mut self, channel: u16, body: &[u8]) {
        self.say(channel, publish(true, false));
        self.content(channel, body);
    }

    fn edge(&mut self, event: Event) {
        self.record.push(format!("! {}", name(&event)));
        self.session.on_event(event, &mut self.out);
        self.session.end_batch(&mut self.out);
        self.heard();
    }

    fn heard(&mut self) {
        while let Some(taken) = self.out.steps.pop_front() {
            self.record.push(format!("= {}", step(&taken)).trim_end().to_owned());
            match taken {
                Step::ChannelClosed { channel, .. } if !self.slow_edge => self.session.on_channel_closed(channel, &mut self.out),
                _ => {}
            }
        }
        let mut bytes = BytesMut::from(&self.out.bytes.take()[..]);
        while let Some(frame) = frame::next(&mut bytes, 4096).expect("our own frames") {
            let channel = frame.channel;
            self.record.push(format!("< {channel} {}", show(frame)));
        }
    }

    #[track_caller]
    fn reads(&mut self, expected: &str) {
        let expected: Vec<&str> = expected.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        assert_eq!(self.record, expected, "\n{}", self.record.join("\n"));
        self.record.clear();
    }
}

fn show(frame: Frame) -> String {
    match frame.kind {
        FrameKind::Method => {}
        FrameKind::Header => return format!("header {}", ContentHeader::decode(frame.payload).expect("header").body_size),
        FrameKind::Body => return format!("body {}", String::from_utf8_lossy(&frame.payload)),
        FrameKind::Heartbeat => return "heartbeat".to_owned(),
    }
    let method = Method::decode(frame.payload).expect("form").expect("known");
    let name = method.name();
    match method {
        Method::ChannelClose { reply_code, reply_text, class_id, method_id }
        | Method::ConnectionClose { reply_code, reply_text, class_id, method_id } => {
            format!("{name} {reply_code} {} ({class_id},{method_id})", String::from_utf8_lossy(&reply_text))
        }
        Method::BasicDeliver { delivery_tag, redelivered, .. } => format!("{name} {delivery_tag} redelivered={redelivered}"),
        Method::BasicGetOk { delivery_tag, message_count, .. } => format!("{name} {delivery_tag} remaining={message_count}"),
        Method::BasicAck { delivery_tag, multiple } => format!("{name} {delivery_tag} multiple={multiple}"),
        Method::BasicNack { delivery_tag, multiple, .. } => format!("{name} {delivery_tag} multiple={multiple}"),
        Method::BasicReturn { reply_code, reply_text, .. } => format!("{name} {reply_code} {}", String::from_utf8_lossy(&reply_text)),
        Method::QueueDeclareOk { queue, message_count, consumer_count } => format!("{name} {queue:?} {message_count} {consumer_count}"),
        Method::BasicCancel { consumer_tag, .. } | Method::BasicConsumeOk { consumer_tag } | Method::BasicCancelOk { consumer_tag } => {
            format!("{name} {consumer_tag:?}")
        }
        Method::ConnectionTune { channel_max, frame_max, heartbeat } => format!("{name} {channel_max} {frame_max} {heartbeat}"),
        Method::ConnectionBlocked { reason } => format!("{name} {reason:?}"),
        _ => name.to_owned(),
    }
}

fn seqs(held: &[Held]) -> String {
    held.iter().map(|h| h.seq.0.to_string()).collect::<Vec<_>>().join(",")
}

fn step(step: &Step) -> String {
    match step {
        Step::Authenticate { user, password } => format!("authenticate {user} {}", String::from_utf8_lossy(password)),
        Step::Open { vhost } => format!("open {vhost}"),
        Step::Publish(p) => format!("publish {} ticket={:?} mandatory={} {} bytes", p.channel, p.ticket, p.mandatory, p.body.len()),
        Step::Check { channel, exchange } => format!("check {channel} {}", String::from_utf8_lossy(exchange)),
        Step::Commit(commit) => {
            let settled = commit.settlements.iter().map(|(held, outcome)| format!(" {outcome:?} {}", seqs(held)));
            format!("commit {} {} publishes{}", commit.channel, commit.publishes.len(), settled.collect::<String>())
        }
        Step::Settle { held, outcome } => format!("{outcome:?} {}", seqs(held)),
        Step::Request { channel, request } => format!("request {channel} {}", ask(request)),
        Step::Written { consumer, bytes } => format!("written {consumer} {bytes}"),
        Step::ChannelPrefetch { channel, limit } => format!("prefetch {channel} {limit:?}"),
        Step::ChannelClosed { channel, held } => format!("closed {channel} holding {}", seqs(held)),
        Step::Leave => "leave".to_owned(),
    }
}

fn ask(request: &Request) -> String {
    match request {
        Request::DeclareExchange { spec, passive } => format!("declare exchange {} {:?} passive={passive}", spec.name.name, spec.kind),
        Request::DeleteExchange { name, .. } => format!("delete exchange {}", name.name),
        Request::DeclareQueue(declare) => format!("declare {} passive={}", declare.name.name, declare.passive),
        Request::DeleteQueue { name, .. } => format!("delete {}", name.name),
        Request::PurgeQueue { name } => format!("purge {}", name.name),
        Request::Bind(b) => format!("bind {} -> {:?} {} key={}", b.source, b.target, b.destination, b.key),
        Request::Unbind(b) => format!("unbind {} -> {:?} {} key={}", b.source, b.target, b.destination, b.key),
        Request::Consume { queue, tag, prefetch, .. } => format!("consume {} {tag} {prefetch:?}", queue.name),
        Request::Cancel { consumer } => format!("cancel {consumer}"),
        Request::Get { queue, .. } => format!("get {}", queue.name),
        Request::Barrier => "barrier".to_owned(),
    }
}

fn name(event: &Event) -> String {
    let debug = format!("{event:?}");
    debug.split([' ', '(']).next().unwrap_or_default().to_owned()
}

// ---- the handshake ----

#[test]
fn a_client_logs_in_and_opens_a_channel() {
    let mut talk = Talk::new();
    talk.say(0, start_ok(b"\0guest\0secret", &[]));
    assert!(!talk.session.wants_input());
    talk.edge(Event::Authenticated);
    talk.say(0, tune_ok());
    assert_eq!((talk.session.frame_max(), talk.session.heartbeat()), (4096, 60));
    talk.say(0, open("/"));
    talk.edge(Event::Opened);
    talk.say(1, channel_open());
    talk.reads(
        "> 0 connection.start-ok
         = authenticate guest secret
         ! Authenticated
         < 0 connection.tune 2047 131072 60
         > 0 connection.tune-ok
         > 0 connection.open
         = open /
         ! Opened
         < 0 connection.open-ok
         > 1 channel.open
         < 1 channel.open-ok",
    );
    assert_eq!(talk.session.phase(), Phase::Running);
}

#[test]
fn amqplain_logs_in() {
    let step = handshake::login(b"AMQPLAIN", b"\x05LOGINS\0\0\0\x01u\x08PASSWORDS\0\0\0\x01p").expect("known");
    assert_eq!(step, Some(Step::Authenticate { user: "u".into(), password: b"p".to_vec() }));
    assert_eq!(handshake::login(b"AMQPLAIN", b"\x05LOGINS\0").expect("known"), None);
}

#[test]
fn a_failed_login_is_told_only_to_those_who_understand() {
    let mut talk = Talk::new();
    talk.say(0, start_ok(b"\0guest\0wrong", &["authentication_failure_close"]));
    talk.edge(Event::AuthenticationFailed("no".into()));
    talk.reads(
        "> 0 connection.start-ok
         = authenticate guest wrong
         ! AuthenticationFailed
         < 0 connection.close 403 ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. For details see the broker logfile. (0,0)",
    );
    assert_eq!(talk.session.phase(), Phase::Closing);
    let mut talk = Talk::new();
    talk.say(0, start_ok(b"no nul", &[]));
    talk.reads("> 0 connection.start-ok");
    assert_eq!(talk.session.phase(), Phase::Closed);
}

#[test]
fn an_unknown_vhost_is_not_allowed() {
    let mut talk = Talk::new();
    talk.say(0, start_ok(b"\0guest\0guest", &[]));
    talk.edge(Event::Authenticated);
    talk.say(0, tune_ok());
    talk.say(0, open("nope"));
    talk.record.clear();
    talk.edge(Event::OpenRefused(Refusal::NotFound { kind: "vhost".into(), name: "nope".into(), vhost: "nope".into() }));
    talk.say(0, Method::ConnectionCloseOk {});
    talk.reads(
        "! OpenRefused
         < 0 connection.close 530 NOT_ALLOWED - vhost nope not found (10,40)
         > 0 connection.close-ok",
    );
    assert_eq!(talk.session.phase(), Phase::Closed);
}

#[test]
fn sizes_beyond_the_offer_are_not_allowed() {
    let refused = |channel_max, frame_max| handshake::check_tune(channel_max, frame_max).expect_err("refused").text;
    assert_eq!(refused(0, 131072), "negotiated channel_max = 0 (no limit) is higher than the maximum allowed value (2047)");
    assert_eq!(refused(2047, 100), "negotiated frame_max = 100 is lower than the minimum allowed value (4096)");
    assert_eq!(refused(2047, 200000), "negotiated frame_max = 200000 is higher than the maximum allowed value (131072)");
    assert!(handshake::check_tune(1, 4096).is_ok());
}

#[test]
fn another_protocol_gets_our_header() {
    let mut session = Session::new(Options { cluster_name: String::new(), seed: 1 });
    let mut out = Out::default();
    session.on_header(*b"AMQP\x00\x01\x00\x00", &mut out);
    assert_eq!(&out.bytes.take()[..], PROTOCOL_HEADER);
    assert_eq!(session.phase(), Phase::Closed);
}

// ---- channels ----

#[test]
fn a_channel_that_is_not_open_ends_the_connection() {
    let mut talk = Talk::open();
    talk.say(2, declare("q", &[]));
    talk.reads(
        "> 2 queue.declare
        < 0 connection.close 504 CHANNEL_ERROR - expected 'channel.open' (50,10)",
    );
    let mut talk = Talk::open();
    talk.say(1, channel_open());
    talk.reads(
        "> 1 channel.open
        < 0 connection.close 504 CHANNEL_ERROR - second 'channel.open' seen (20,10)",
    );
    let mut talk = Talk::open();
    talk.say(2048, channel_open());
    talk.reads(
        "> 2048 channel.open
        < 0 connection.close 530 NOT_ALLOWED - number of channels opened (1) has reached the negotiated channel_max (2047) (20,10)",
    );
}

#[test]
fn content_out_of_order_ends_the_connection() {
    let mut talk = Talk::open();
    talk.content(1, b"x");
    talk.reads("< 0 connection.close 505 UNEXPECTED_FRAME - expected method frame, got non method frame instead (0,0)");
    let mut talk = Talk::open();
    talk.say(1, publish(false, false));
    talk.say(1, get("q"));
    talk.reads(
        "> 1 basic.publish
         > 1 basic.get
         < 0 connection.close 505 UNEXPECTED_FRAME - expected content header for class 60, got non content header frame instead (60,40)",
    );
    let mut talk = Talk::open();
    talk.say(1, publish(false, false));
    talk.frame(FrameKind::Header, 1, &[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0]);
    talk.say(1, get("q"));
    talk.reads(
        "> 1 basic.publish
         > 1 basic.get
         < 0 connection.close 505 UNEXPECTED_FRAME - expected content body, got non content body frame instead (60,40)",
    );
    let mut talk = Talk::open();
    talk.say(1, publish(false, false));
    talk.frame(FrameKind::Header, 1, &[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]);
    talk.frame(FrameKind::Body, 1, b"too long");
    talk.heard();
    talk.reads(
        "> 1 basic.publish
         < 0 connection.close 501 FRAME_ERROR - content body larger than the size in the content header (60,40)",
    );
}

#[test]
fn a_message_beyond_the_limit_closes_the_channel_and_its_body_is_ignored() {
    let mut talk = Talk::open();
    talk.say(1, publish(false, false));
    talk.frame(FrameKind::Header, 1, &[0, 60, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0]);
    talk.frame(FrameKind::Body, 1, b"ignored");
    talk.heard();
    talk.say(1, Method::ChannelCloseOk {});
    talk.say(1, channel_open());
    talk.reads(
        "> 1 basic.publish
         = closed 1 holding
         < 1 channel.close 406 PRECONDITION_FAILED - message size 16777217 is larger than configured max size 16777216 (60,40)
         > 1 channel.close-ok
         > 1 channel.open
         < 1 channel.open-ok",
    );
}

#[test]
fn a_large_body_in_pieces_arrives_whole() {
    let mut talk = Talk::open();
    talk.publish(1, &vec![7; 10_000]);
    talk.reads(
        "> 1 basic.publish
        = publish 1 ticket=None mandatory=true 10000 bytes",
    );
    assert_eq!(talk.session.shared.assembling, 0);
}

#[test]
fn bodies_that_never_end_are_bounded() {
    let mut talk = Talk::open();
    for channel in 2..8 {
        talk.say(channel, channel_open());
        talk.say(channel, publish(false, false));
        talk.frame(FrameKind::Header, channel, &[0, 60, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]);
        talk.frame(FrameKind::Body, channel, &vec![0; (16 << 20) - 1]);
    }
    talk.heard();
    assert!(talk.record.iter().any(|l| l.contains("506 RESOURCE_ERROR")), "{:?}", talk.record);
    assert_eq!(talk.session.shared.assembling, 0);
}

#[test]
fn immediate_and_flow_and_tx_are_not_implemented() {
    let cases = [
        (publish(false, true), "immediate=true (60,40)"),
        (Method::ChannelFlow { active: false }, "active=false (20,20)"),
        (Method::TxSelect {}, "tx.select is not supported by this version (90,10)"),
        (Method::BasicRecover { requeue: false }, "requeue=false (60,110)"),
        (Method::BasicQos { prefetch_size: 1, prefetch_count: 0, global: false }, "prefetch_size!=0 (1) (60,10)"),
    ];
    for (method, text) in cases {
        let mut talk = Talk::open();
        let name = method.name();
        talk.say(1, method);
        talk.reads(&format!("> 1 {name}\n< 0 connection.close 540 NOT_IMPLEMENTED - {text}"));
    }
}

#[test]
fn methods_that_no_client_may_send_are_invalid() {
    for method in [Method::QueuePurgeOk { message_count: 1 }, Method::BasicGetEmpty { cluster_id: "".into() }] {
        let mut talk = Talk::open();
        let (class, id) = method.id();
        let name = method.name();
        talk.say(1, method);
        talk.reads(&format!("> 1 {name}\n< 0 connection.close 503 COMMAND_INVALID - unimplemented method ({class},{id})"));
    }
}

#[test]
fn malformed_methods_and_headers_are_syntax_errors() {
    let mut talk = Talk::open();
    talk.frame(FrameKind::Method, 1, &[0, 50, 0, 10, 0]);
    talk.heard();
    talk.reads("< 0 connection.close 502 SYNTAX_ERROR - malformed integer (0,0)");
    let mut talk = Talk::open();
    talk.say(1, publish(false, false));
    talk.frame(FrameKind::Header, 1, &[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0x80, 0]);
    talk.heard();
    talk.reads(
        "> 1 basic.publish
        < 0 connection.close 502 SYNTAX_ERROR - malformed property list (60,40)",
    );
}

#[test]
fn closing_a_channel_after_publishes_waits_for_their_fate() {
    let mut talk = Talk::open();
    talk.publish(1, b"x");
    talk.say(1, close_method());
    talk.edge(Event::ChannelError {
        channel: 1,
        refusal: Refusal::NotFound { kind: "exchange".into(), name: "e".into(), vhost: "/".into() },
        method: (60, 40),
    });
    talk.say(1, Method::ChannelCloseOk {});
    talk.say(1, channel_open());
    talk.reads(
        "> 1 basic.publish
         = publish 1 ticket=None mandatory=true 1 bytes
         > 1 channel.close
         = request 1 barrier
         ! ChannelError
         = closed 1 holding
         < 1 channel.close 404 NOT_FOUND - no exchange 'e' in vhost '/' (60,40)
         < 1 channel.close-ok
         > 1 channel.close-ok
         > 1 channel.open
         < 1 channel.open-ok",
    );
}

#[test]
fn an_answer_for_a_dead_channel_never_reaches_its_successor() {
    let mut talk = Talk::open();
    talk.slow_edge = true;
    talk.publish(1, b"x");
    talk.say(1, get("q"));
    talk.edge(Event::ChannelError { channel: 1, refusal: Refusal::Access("no".into()), method: (60, 40) });
    talk.say(1, Method::ChannelCloseOk {});
    talk.say(1, channel_open());
    talk.say(1, declare("q", &[]));
    talk.record.clear();
    let got = Got { shard: ShardId(1), delivery: delivery(4, b"m"), remaining: 0 };
    talk.edge(Event::Reply { channel: 1, result: Ok(Reply::Got(Some(got))) });
    talk.session.on_channel_closed(1, &mut talk.out);
    talk.heard();
    talk.edge(queue_reply("q"));
    talk.reads(
        "! Reply
         = Requeue 4
         = request 1 declare q passive=false
         < 1 channel.open-ok
         ! Reply
         < 1 queue.declare-ok \"q\" 3 1",
    );
    assert_eq!(talk.session.shared.backlog, 0);
}

// ---- requests ----

#[test]
fn commands_wait_in_order_behind_a_request() {
    let mut talk = Talk::open();
    talk.say(1, declare("q", &[]));
    talk.publish(1, b"x");
    talk.say(1, get("q"));
    assert!(talk.session.shared.backlog > 0);
    talk.edge(queue_reply("q"));
    talk.edge(Event::Reply { channel: 1, result: Ok(Reply::Got(None)) });
    talk.reads(
        "> 1 queue.declare
         = request 1 declare q passive=false
         > 1 basic.publish
         > 1 basic.get
         ! Reply
         = publish 1 ticket=None mandatory=true 1 bytes
         = request 1 get q
         < 1 queue.declare-ok \"q\" 3 1
         ! Reply
         < 1 basic.get-empty",
    );
    assert_eq!(talk.session.shared.backlog, 0);
}

#[test]
fn a_full_backlog_stops_the_input() {
    let mut talk = Talk::open();
    talk.say(1, declare("q", &[]));
    talk.publish(1, &vec![0; limits::CONNECTION_BACKLOG_BYTES]);
    assert!(!talk.session.wants_input());
    talk.edge(queue_reply("q"));
    assert!(talk.session.wants_input());
}

#[test]
fn an_empty_name_means_the_queue_declared_last() {
    let mut talk = Talk::open();
    talk.say(1, get(""));
    talk.reads(
        "> 1 basic.get
         = closed 1 holding
         < 1 channel.close 404 NOT_FOUND - no previously declared queue (60,70)",
    );
    let mut talk = Talk::open();
    talk.say(1, declare("", &[]));
    talk.edge(queue_reply("amq.gen-1"));
    let bind = |key: &str| Method::QueueBind {
        ticket: 0,
        queue: "".into(),
        exchange: "e".into(),
        routing_key: key.into(),
        nowait: true,
        arguments: Table::new(),
    };
    talk.say(1, bind(""));
    talk.edge(done(1));
    talk.say(1, bind("key"));
    talk.edge(done(1));
    talk.reads(
        "> 1 queue.declare
         = request 1 declare  passive=false
         ! Reply
         < 1 queue.declare-ok \"amq.gen-1\" 3 1
         > 1 queue.bind
         = request 1 bind e -> Queue amq.gen-1 key=amq.gen-1
         ! Reply
         > 1 queue.bind
         = request 1 bind e -> Queue amq.gen-1 key=key
         ! Reply",
    );
}

#[test]
fn refusals_become_rabbitmqs_codes() {
    let cases = [
        (
            Refusal::NotFound { kind: "queue".into(), name: "q".into(), vhost: "/".into() },
            "1 channel.close 404 NOT_FOUND - no queue 'q' in vhost '/'",
        ),
        (Refusal::Inequivalent("inequivalent arg".into()), "1 channel.close 406 PRECONDITION_FAILED - inequivalent arg"),
        (Refusal::Precondition("in use".into()), "1 channel.close 406 PRECONDITION_FAILED - in use"),
        (Refusal::Access("no".into()), "1 channel.close 403 ACCESS_REFUSED - no"),
        (Refusal::Locked("cannot obtain exclusive access".into()), "1 channel.close 405 RESOURCE_LOCKED - cannot obtain exclusive access"),
        (
            Refusal::Locked("queue 'q' in vhost '/' in exclusive use".into()),
            "1 channel.close 403 ACCESS_REFUSED - queue 'q' in vhost '/' in exclusive use",
        ),
        (Refusal::Unavailable("no quorum".into()), "1 channel.close 541 INTERNAL_ERROR - no quorum"),
        (Refusal::NotAllowed("no".into()), "0 connection.close 530 NOT_ALLOWED - no"),
    ];
    for (refusal, text) in cases {
        let mut talk = Talk::open();
        talk.say(1, declare("q", &[]));
        talk.edge(Event::Reply { channel: 1, result: Err(refusal) });
        assert_eq!(talk.record.last().expect("answer"), &format!("< {text} (50,10)"));
    }
}

#[test]
fn arguments_without_effect_yet_are_refused_by_name() {
    let refused = |method| {
        let mut talk = Talk::open();
        talk.say(1, method);
        talk.record.pop().expect("answer")
    };
    let text = refused(declare("q", &[("x-message-ttl", Value::Int(1))]));
    assert_eq!(
        text,
        "< 1 channel.close 406 PRECONDITION_FAILED - invalid arg 'x-message-ttl' for queue 'q' in vhost '/': not supported by this version (50,10)"
    );
    assert!(refused(declare("q", &[("x-queue-type", Value::Text(b"stream".to_vec()))])).contains("406"));
    assert!(refused(declare("q", &[("x-queue-type", Value::Text(b"odd".to_vec()))])).contains("406"));
    assert!(refused(declare("q", &[("x-queue-type", Value::Int(1))])).contains("406"));
    for (name, value) in [("x-queue-type", "quorum"), ("x-queue-type", "classic"), ("x-queue-mode", "lazy"), ("x-unknown", "1")] {
        let text = refused(declare("q", &[(name, Value::Text(value.into()))]));
        assert_eq!(text, "= request 1 declare q passive=false", "{name}");
    }
    let Method::BasicConsume { ticket, queue, consumer_tag, no_local, no_ack, exclusive, nowait, .. } = consume("q", "", false) else {
        panic!("consume")
    };
    let arguments = Table::from([("x-priority".to_owned(), Value::Int(10))]);
    let consume = Method::BasicConsume { ticket, queue, consumer_tag, no_local, no_ack, exclusive, nowait, arguments };
    assert!(refused(consume).contains("invalid arg 'x-priority' for consumer of queue 'q'"));
}

#[test]
fn an_unknown_exchange_type_is_invalid() {
    let declare = |kind: &str, passive| Method::ExchangeDeclare {
        ticket: 0,
        exchange: "x".into(),
        kind: kind.into(),
        passive,
        durable: true,
        auto_delete: false,
        internal: false,
        nowait: false,
        arguments: Table::new(),
    };
    let mut talk = Talk::open();
    talk.say(1, declare("", true));
    talk.edge(done(1));
    talk.say(1, declare("odd", false));
    talk.reads(
        "> 1 exchange.declare
         = request 1 declare exchange x Direct passive=true
         ! Reply
         < 1 exchange.declare-ok
         > 1 exchange.declare
         < 0 connection.close 503 COMMAND_INVALID - unknown exchange type 'odd' (40,10)",
    );
}

// ---- consuming ----

#[test]
fn deliveries_are_held_until_settled() {
    let mut talk = Talk::consuming(false);
    talk.edge(deliver(&[1, 2, 3, 4]));
    talk.record.retain(|l| !l.contains("header") && !l.contains("body"));
    talk.say(1, Method::BasicAck { delivery_tag: 2, multiple: true });
    talk.say(1, Method::BasicNack { delivery_tag: 4, multiple: false, requeue: true });
    talk.say(1, Method::BasicReject { delivery_tag: 3, requeue: false });
    talk.say(1, Method::BasicAck { delivery_tag: 3, multiple: false });
    talk.reads(
        &"! Deliver
         = written 5 84
         < 1 basic.deliver 1 redelivered=false
         < 1 basic.deliver 2 redelivered=false
         < 1 basic.deliver 3 redelivered=false
         < 1 basic.deliver 4 redelivered=false
         > 1 basic.ack
         = Ack 1,2
         > 1 basic.nack
         = Requeue 4
         > 1 basic.reject
         = Reject 3
         > 1 basic.ack
         = closed 1 holding
         < 1 channel.close 406 PRECONDITION_FAILED - unknown delivery tag 3 (60,80)"
            .replace("84", &(4 * delivery(1, b"m1").message.len()).to_string()),
    );
}

#[test]
fn acks_in_one_batch_become_one_step() {
    let mut talk = Talk::consuming(false);
    talk.edge(deliver(&[1, 2, 3]));
    talk.record.clear();
    for tag in 1..=3 {
        let mut payload = BytesMut::new();
        Method::BasicAck { delivery_tag: tag, multiple: false }.encode(&mut payload);
        talk.frame(FrameKind::Method, 1, &payload);
    }
    talk.heard();
    talk.reads("= Ack 1,2,3");
}

#[test]
fn deliveries_without_ack_are_settled_when_encoded() {
    let mut talk = Talk::consuming(true);
    talk.edge(deliver(&[1, 2]));
    talk.say(1, Method::BasicAck { delivery_tag: 0, multiple: true });
    let steps: Vec<_> = talk.record.iter().filter(|l| l.starts_with('=')).collect();
    assert_eq!(steps[0], "= Ack 1,2");
    assert!(steps[1].starts_with("= written 5"));
    assert_eq!(steps.len(), 2);
}

#[test]
fn a_delivery_for_a_dead_channel_goes_back() {
    let mut talk = Talk::consuming(true);
    talk.say(1, close_method());
    talk.record.clear();
    talk.edge(deliver(&[1]));
    assert_eq!(talk.record[1], "= Requeue 1");
    assert!(talk.record[2].starts_with("= written"));
}

#[test]
fn consumer_tags_are_made_reused_cancelled() {
    let mut talk = Talk::consuming(false);
    talk.say(1, consume("q", "", false));
    assert!(talk.record[1].starts_with("= request 1 consume q amq.ctag-"), "{}", talk.record[1]);
    talk.edge(Event::Reply { channel: 1, result: Ok(Reply::Consuming { consumer: ConsumerId(6) }) });
    talk.record.clear();
    talk.say(1, Method::BasicCancel { consumer_tag: "nobody".into(), nowait: false });
    talk.say(1, Method::BasicCancel { consumer_tag: "tag".into(), nowait: false });
    talk.edge(done(1));
    talk.edge(Event::ConsumerGone { channel: 1, consumer: ConsumerId(5) });
    talk.reads(
        "> 1 basic.cancel
         < 1 basic.cancel-ok \"nobody\"
         > 1 basic.cancel
         = request 1 cancel 5
         ! Reply
         < 1 basic.cancel-ok \"tag\"
         ! ConsumerGone",
    );
    let mut talk = Talk::consuming(false);
    talk.say(1, consume("q", "tag", false));
    talk.reads(
        "> 1 basic.consume
         < 0 connection.close 530 NOT_ALLOWED - attempt to reuse consumer tag 'tag' (60,20)",
    );
}

#[test]
fn a_lost_consumer_is_told_only_to_those_who_understand() {
    let mut talk = Talk::consuming(false);
    talk.edge(Event::ConsumerGone { channel: 1, consumer: ConsumerId(5) });
    talk.reads(
        "! ConsumerGone
        < 1 basic.cancel \"tag\"",
    );
    let mut talk = Talk::open_with(&[]);
    talk.say(1, consume("q", "tag", false));
    talk.edge(Event::Reply { channel: 1, result: Ok(Reply::Consuming { consumer: ConsumerId(5) }) });
    talk.record.clear();
    talk.edge(Event::ConsumerGone { channel: 1, consumer: ConsumerId(5) });
    talk.edge(Event::Blocked("alarm".into()));
    talk.reads(
        "! ConsumerGone
        ! Blocked",
    );
}

#[test]
fn recover_and_qos_and_get() {
    let mut talk = Talk::consuming(false);
    talk.edge(deliver(&[1, 2]));
    talk.record.clear();
    talk.say(1, Method::BasicRecover { requeue: true });
    talk.say(1, Method::BasicQos { prefetch_size: 0, prefetch_count: 7, global: true });
    talk.say(1, Method::BasicQos { prefetch_size: 0, prefetch_count: 10, global: false });
    talk.say(1, consume("q", "second", false));
    talk.edge(Event::Reply { channel: 1, result: Ok(Reply::Consuming { consumer: ConsumerId(6) }) });
    talk.say(1, get("q"));
    let got = Got { shard: ShardId(1), delivery: delivery(9, b"m9"), remaining: 3 };
    talk.edge(Event::Reply { channel: 1, result: Ok(Reply::Got(Some(got))) });
    talk.say(1, Method::BasicAck { delivery_tag: 3, multiple: false });
    talk.reads(
        "> 1 basic.recover
         = Requeue 1,2
         < 1 basic.recover-ok
         > 1 basic.qos
         = prefetch 1 Some(7)
         < 1 basic.qos-ok
         > 1 basic.qos
         < 1 basic.qos-ok
         > 1 basic.consume
         = request 1 consume q second Some(10)
         ! Reply
         < 1 basic.consume-ok \"second\"
         > 1 basic.get
         = request 1 get q
         ! Reply
         < 1 basic.get-ok 3 remaining=3
         < 1 header 2
         < 1 body m9
         > 1 basic.ack
         = Ack 9",
    );
}

// ---- publishing ----

#[test]
fn returns_come_before_their_confirm_and_confirms_are_folded() {
    let mut talk = Talk::open();
    talk.say(1, Method::ConfirmSelect { nowait: false });
    for _ in 0..4 {
        talk.publish(1, b"m");
    }
    talk.record.clear();
    let returned = crate::model::step::Publish {
        channel: 1,
        ticket: Some(1),
        mandatory: true,
        exchange: "e".into(),
        routing_key: "k".into(),
        properties: Bytes::from_static(&[0, 0]),
        body: "m".into(),
    };
    talk.session.on_event(Event::Returned(Box::new(returned)), &mut talk.out);
    talk.session.on_event(Event::Confirmed { channel: 1, tickets: vec![(1, 1)] }, &mut talk.out);
    talk.edge(Event::Confirmed { channel: 1, tickets: vec![(2, 2), (4, 4)] });
    talk.edge(Event::Nacked { channel: 1, tickets: vec![(3, 3)] });
    talk.reads(
        "! Confirmed
         < 1 basic.return 312 NO_ROUTE
         < 1 header 1
         < 1 body m
         < 1 basic.ack 2 multiple=true
         < 1 basic.ack 4 multiple=false
         ! Nacked
         < 1 basic.nack 3 multiple=false",
    );
}

#[test]
fn a_confirm_for_a_closed_channel_never_reaches_its_successor() {
    let mut talk = Talk::open();
    talk.say(1, Method::ConfirmSelect { nowait: true });
    talk.publish(1, b"m");
    talk.say(1, close_method());
    talk.edge(done(1));
    talk.say(1, channel_open());
    talk.say(1, Method::ConfirmSelect { nowait: true });
    talk.publish(1, b"m");
    talk.record.clear();
    talk.edge(Event::Confirmed { channel: 1, tickets: vec![(1, 1)] });
    talk.reads("! Confirmed");
}

// ---- the end ----

#[test]
fn a_leaving_client_gets_its_pending_work_done() {
    let mut talk = Talk::open();
    talk.say(1, declare("q", &[]));
    talk.publish(1, b"x");
    talk.say(0, Method::ConnectionClose { reply_code: 200, reply_text: "".into(), class_id: 0, method_id: 0 });
    assert!(!talk.session.wants_input());
    talk.edge(queue_reply("q"));
    assert_eq!(talk.session.phase(), Phase::Running, "what the client had is still there");
    talk.edge(Event::Left);
    talk.reads(
        "> 1 queue.declare
         = request 1 declare q passive=false
         > 1 basic.publish
         > 0 connection.close
         ! Reply
         = publish 1 ticket=None mandatory=true 1 bytes
         = leave
         < 1 queue.declare-ok \"q\" 3 1
         ! Left
         < 0 connection.close-ok",
    );
    assert_eq!(talk.session.phase(), Phase::Closed);
}

#[test]
fn the_broker_closes_with_a_reason() {
    let mut talk = Talk::open();
    talk.edge(Event::Blocked("no quorum".into()));
    talk.edge(Event::Unblocked);
    talk.edge(Event::Close("shutdown".into()));
    talk.say(1, declare("q", &[]));
    talk.say(0, Method::ConnectionCloseOk {});
    talk.reads(
        "! Blocked
         < 0 connection.blocked \"no quorum\"
         ! Unblocked
         < 0 connection.unblocked
         ! Close
         < 0 connection.close 320 CONNECTION_FORCED - shutdown (0,0)
         > 1 queue.declare
         > 0 connection.close-ok",
    );
    assert_eq!(talk.session.phase(), Phase::Closed);
}

#[test]
fn broken_frames_end_the_conversation() {
    let mut talk = Talk::open();
    talk.session.on_frame_error(FrameError::End { kind: 1, marker: 0 }, &mut talk.out);
    talk.heard();
    assert!(talk.record[0].starts_with("< 0 connection.close 501 FRAME_ERROR"));
}

proptest::proptest! {
    #[test]
    fn no_frames_in_any_order_panic_or_leak_the_accounts(frames in proptest::collection::vec((0usize..4, 0u16..4, proptest::collection::vec(proptest::prelude::any::<u8>(), 0..40), 0usize..60), 1..60)) {
        const METHODS: [(u8, u8); 12] = [(20, 10), (20, 40), (20, 41), (40, 10), (50, 10), (50, 20), (60, 20), (60, 40), (60, 70), (60, 80), (60, 90), (85, 10)];
        let kinds = [FrameKind::Method, FrameKind::Header, FrameKind::Body, FrameKind::Heartbeat];
        let mut talk = Talk::open();
        for (kind, channel, mut bytes, method) in frames {
            if kind == 0 && method < 48 {
                let (class, id) = METHODS[method % 12];
                bytes.splice(0..0, [0, class, 0, id, 0, 0]);
            }
            talk.frame(kinds[kind], channel, &bytes);
            for step in std::mem::take(&mut talk.out.steps) {
                match step {
                    Step::Request { channel, .. } => talk.session.on_event(done(channel), &mut talk.out),
                    Step::ChannelClosed { channel, .. } => talk.session.on_channel_closed(channel, &mut talk.out),
                    _ => {}
                }
            }
            talk.session.end_batch(&mut talk.out);
        }
        talk.session.on_event(Event::Close("end".into()), &mut talk.out);
        proptest::prop_assert_eq!(talk.session.shared.backlog, 0);
        proptest::prop_assert_eq!(talk.session.shared.assembling, 0);
    }
}

#[test]
fn mutated_conversations_end_in_a_close_or_nothing() {
    let mut output = Output::default();
    output.method(1, &channel_open());
    output.method(1, &declare("q", &[("a", Value::List(vec![Value::Int(1)]))]));
    output.method(1, &publish(true, false));
    output.content(1, &Content { properties: &[0x20, 0, 0, 0, 0, 3, 1, b'h', b'V'], body: &Bytes::from(vec![1; 9000]), body_at: 0 }, 4096);
    output.method(1, &consume("q", "t", false));
    output.method(1, &Method::BasicAck { delivery_tag: 1, multiple: true });
    output.method(1, &close_method());
    let valid = output.take();
    let mut random = tags::Tags::new(42);
    let (mut frames, mut round) = (0, 0);
    while frames < 20_000 {
        round += 1;
        let mut talk = Talk::open();
        let mut bytes = BytesMut::from(&valid[..]);
        for _ in 0..round % 5 {
            let at = random.number() as usize % bytes.len();
            bytes[at] = random.number() as u8;
        }
        while talk.session.phase() == Phase::Running {
            match frame::next(&mut bytes, 4096) {
                Ok(Some(frame)) => talk.session.on_frame(frame, &mut talk.out),
                Ok(None) => break,
                Err(error) => talk.session.on_frame_error(error, &mut talk.out),
            }
            frames += 1;
            while let Some(step) = talk.out.steps.pop_front() {
                match step {
                    Step::Request { channel, .. } => talk.session.on_event(done(channel), &mut talk.out),
                    Step::ChannelClosed { channel, .. } => talk.session.on_channel_closed(channel, &mut talk.out),
                    _ => {}
                }
            }
        }
        assert!(matches!(talk.session.phase(), Phase::Running | Phase::Closing | Phase::Closed));
        assert!(talk.session.shared.backlog < 64 << 10 && talk.session.shared.assembling < 64 << 10, "round {round}");
    }
}

#[test]
fn a_haunted_channel_whose_first_frame_closes_the_connection() {
    let mut talk = Talk::open();
    talk.slow_edge = true;
    talk.say(1, Method::BasicAck { delivery_tag: 9, multiple: false });
    talk.say(1, Method::ChannelCloseOk {});
    talk.say(1, get("q"));
    talk.say(1, get("q"));
    talk.session.on_channel_closed(1, &mut talk.out);
    assert!(talk.session.shared.backlog < 1 << 40);
}
