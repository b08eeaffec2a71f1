//! Conversations: `>` what the client says, `<` what it hears, `=` what goes to the edge, `!` what the edge says.

mod asking;
mod channels;
mod consuming;
mod ending;
mod garbage;
mod login;
mod nowait;
mod publishing;
mod replies;
mod transactions;

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
    /// channel.open is not answered by itself.
    keeps_opens: bool,
}

fn capabilities(names: &[&str]) -> Table {
    let set = names.iter().map(|n| ((*n).to_owned(), Value::Bool(true))).collect();
    Table::from([("capabilities".to_owned(), Value::Table(set))])
}

fn start_ok(response: &[u8], names: &[&str]) -> Method {
    start_ok_with("PLAIN", response, names)
}

fn start_ok_with(mechanism: &str, response: &[u8], names: &[&str]) -> Method {
    Method::ConnectionStartOk {
        client_properties: capabilities(names),
        mechanism: mechanism.into(),
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
    Delivery { queue: QueueId(9), seq: Seq(seq), redelivered: false, failures: 0, failed_ms: 0, message: op.message }
}

fn deliver(seqs: &[u64]) -> Event {
    let messages = seqs.iter().map(|s| delivery(*s, format!("m{s}").as_bytes())).collect();
    Event::Deliver { channel: 1, consumer: ConsumerId(5), shard: ShardId(1), messages }
}

fn options() -> Options {
    Options { cluster_name: "warren".into(), seed: 1, certificate_name: None, max_message_bytes: limits::MESSAGE_BYTES as u64 }
}

impl Talk {
    fn new() -> Talk {
        Talk::as_holder(None)
    }

    /// Of a verified certificate that stands for this user.
    fn as_holder(certificate_name: Option<&str>) -> Talk {
        Talk::with(Options { certificate_name: certificate_name.map(Arc::from), ..options() })
    }

    fn with(options: Options) -> Talk {
        let mut talk =
            Talk { session: Session::new(options), out: Out::default(), record: Vec::new(), slow_edge: false, keeps_opens: false };
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
        Talk::new().opened(names)
    }

    fn opened(self, names: &[&str]) -> Talk {
        let mut talk = self;
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
            let opens = matches!(taken, Step::Request { request: Request::OpenChannel, .. });
            if !opens || self.keeps_opens {
                self.record.push(format!("= {}", step(&taken)).trim_end().to_owned());
            }
            match taken {
                Step::Request { channel, .. } if opens && !self.keeps_opens => self.session.on_event(done(channel), &mut self.out),
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
        Step::AuthenticateByCertificate { user } => format!("authenticate {user} by certificate"),
        Step::Open { vhost } => format!("open {vhost}"),
        Step::Publish(p) => format!("publish {} ticket={:?} mandatory={} {} bytes", p.channel, p.ticket, p.mandatory, p.body.len()),
        Step::Append(append) => format!("append {} {:?}", append.channel, append.published.count()),
        Step::Check(publish) => format!("check {} {}", publish.channel, String::from_utf8_lossy(&publish.exchange)),
        Step::Commit(commit) => {
            let settled = commit.settlements.iter().map(|(held, outcome)| format!(" {outcome:?} {}", seqs(held)));
            format!("commit {} {} publishes{}", commit.channel, commit.publishes.len(), settled.collect::<String>())
        }
        Step::Settle { held, outcome, .. } => format!("{outcome:?} {}", seqs(held)),
        Step::Request { channel, request } => format!("request {channel} {}", ask(request)),
        Step::Written { consumer, bytes } => format!("written {consumer} {bytes}"),
        Step::ChannelPrefetch { channel, limit } => format!("prefetch {channel} {limit:?}"),
        Step::ChannelClosed { channel, held } => format!("closed {channel} holding {}", seqs(held)),
        Step::UpdateSecret => "update secret".to_owned(),
        Step::Report(report) => format!("report {} with {} channels", report.state, report.channels.len()),
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
        Request::Take(take) => format!("take {:?}", take.queues),
        Request::Barrier => "barrier".to_owned(),
        Request::OpenChannel => "open".to_owned(),
    }
}

fn name(event: &Event) -> String {
    let debug = format!("{event:?}");
    debug.split([' ', '(']).next().unwrap_or_default().to_owned()
}
