//! Conversations from the client's side, word by word: what it says, what it hears, what the edge is asked.

use super::*;
use crate::model::stream::{Append, OffsetSpec, Published, StreamChunk, StreamState};
use crate::model::stream_step::{Member, Place, Places};
use crate::model::{Offset, QueueId, ShardId};
use crate::wire::stream::server::Answer as Told;
use crate::wire::stream::{FromServer, frame, server};
use bytes::BytesMut;
use proptest::prelude::*;

/// A session with what it wants done.
struct Talk {
    session: Session,
    out: Out,
}

/// A frame from the broker, kept.
struct Heard(Bytes);

impl Heard {
    fn read(&self) -> FromServer<'_> {
        FromServer::decode(&self.0).expect("what the broker says is well formed")
    }
}

fn options() -> Options {
    let advertised = Advertised { host: "alpha".into(), port: 5552, tls_port: 5551 };
    Options { cluster_name: "test".into(), advertised, over_tls: false, certificate_name: None }
}

fn target(stream: u64) -> Arc<StreamTarget> {
    Arc::new(StreamTarget { stream: QueueId(stream), shard: ShardId(1), publisher: None, catalog_index: 1, filter_bytes: 16, leader: None })
}

fn content(said: &FromClient<'_>) -> Bytes {
    let mut bytes = BytesMut::new();
    said.encode(&mut bytes);
    frame::next(&mut bytes, u32::MAX).expect("no limit").expect("whole")
}

impl Talk {
    fn new() -> Talk {
        Talk { session: Session::new(options()), out: Out::default() }
    }

    /// One that is in its vhost.
    fn open() -> Talk {
        let mut talk = Talk::new();
        talk.ask(1, Request::PeerProperties { properties: vec![("product", "test")] });
        talk.ask(2, Request::SaslHandshake);
        talk.ask(3, Request::SaslAuthenticate { mechanism: "PLAIN", response: b"\0guest\0secret" });
        talk.event(Event::Authenticated);
        talk.say(&FromClient::Tune { frame_max: 0, heartbeat: 30 });
        talk.ask(4, Request::Open { vhost: "/" });
        talk.event(Event::Opened);
        talk.hears();
        talk.acts();
        assert_eq!(talk.session.phase(), Phase::Running);
        talk
    }

    /// In a vhost, with publisher 1 of stream "s".
    fn publishing() -> Talk {
        let mut talk = Talk::open();
        talk.ask(5, Request::DeclarePublisher { publisher: 1, reference: "r", stream: "s" });
        talk.answer(Ok(Answer::Target(target(7))));
        talk.hears_code(Key::DeclarePublisher, 5, Code::Ok);
        talk.acts();
        talk
    }

    /// In a vhost, with subscription 1 of stream "s" and this much credit.
    fn reading(credit: u16, properties: Vec<Pair<'_>>) -> Talk {
        let mut talk = Talk::open();
        let offset = crate::wire::stream::OffsetSpec::First;
        talk.ask(5, Request::Subscribe { subscription: 1, stream: "s", offset, credit, properties });
        talk.answer(Ok(Answer::Target(target(7))));
        talk.hears_code(Key::Subscribe, 5, Code::Ok);
        talk
    }

    fn say(&mut self, said: &FromClient<'_>) {
        self.session.on_frame(&content(said), &mut self.out);
    }

    fn ask(&mut self, correlation: u32, request: Request<'_>) {
        self.say(&FromClient::Request { correlation, request });
    }

    fn event(&mut self, event: Event) {
        self.session.on_event(event, &mut self.out);
    }

    fn answer(&mut self, answer: Result<Answer, Failure>) {
        self.session.on_answer(answer, &mut self.out);
    }

    fn hears(&mut self) -> Vec<Heard> {
        let mut bytes = BytesMut::from(self.out.bytes.take());
        std::iter::from_fn(|| frame::next(&mut bytes, u32::MAX).expect("no limit")).map(Heard).collect()
    }

    /// Exactly one frame, a response without more than its code.
    fn hears_code(&mut self, key: Key, correlation: u32, code: Code) {
        let heard = self.hears();
        assert_eq!(heard.len(), 1);
        assert_eq!(heard[0].read(), FromServer::Response { key, correlation, code: code as u16, answer: Told::Bare });
    }

    fn hears_close(&mut self, expected: Code) {
        let heard = self.hears();
        assert!(matches!(heard[0].read(), FromServer::Close { code, .. } if code == expected as u16), "{:?}", heard[0].read());
        assert_eq!((heard.len(), self.session.phase()), (1, Phase::Closing));
    }

    fn acts(&mut self) -> Vec<Act> {
        self.out.acts.drain(..).collect()
    }

    /// A question and a refusal of the edge, and what the client hears.
    fn refused(&mut self, request: Request<'_>, failure: Failure, code: Code) {
        let key = request.key();
        self.ask(9, request);
        assert!(matches!(self.acts()[..], [Act::Ask(_)]), "{key:?}");
        assert!(!self.session.wants_input(), "one question at a time");
        self.answer(Err(failure));
        let heard = self.hears();
        let FromServer::Response { code: heard, correlation: 9, .. } = heard[0].read() else { panic!("{:?}", heard[0].read()) };
        assert_eq!(heard, code as u16, "{key:?}");
    }
}

#[test]
fn a_client_gets_into_its_vhost() {
    let mut talk = Talk::new();
    assert_eq!((talk.session.phase(), talk.session.frame_max()), (Phase::Handshake, 8192));
    talk.ask(1, Request::PeerProperties { properties: vec![("product", "test")] });
    let heard = talk.hears();
    let FromServer::Response { key: Key::PeerProperties, correlation: 1, code: 1, answer: Told::Pairs(pairs) } = heard[0].read() else {
        panic!("PeerProperties")
    };
    assert!(pairs.contains(&("product", "RabbitMQ")) && pairs.contains(&("version", "4.1.0")));
    talk.ask(2, Request::SaslHandshake);
    let heard = talk.hears();
    let mechanisms = Told::Texts(vec!["PLAIN"]);
    assert_eq!(heard[0].read(), FromServer::Response { key: Key::SaslHandshake, correlation: 2, code: 1, answer: mechanisms });
    talk.ask(3, Request::SaslAuthenticate { mechanism: "PLAIN", response: b"\0guest\0secret" });
    let login = Step::Authenticate { user: "guest".into(), password: b"secret".to_vec() };
    assert_eq!(talk.acts(), [Act::Step(login)]);
    assert!(!talk.session.wants_input());
    talk.event(Event::Authenticated);
    let heard = talk.hears();
    assert_eq!(heard[0].read(), FromServer::Response { key: Key::SaslAuthenticate, correlation: 3, code: 1, answer: Told::Bare });
    assert_eq!(heard[1].read(), FromServer::Tune { frame_max: 1 << 20, heartbeat: 60 });
    talk.say(&FromClient::Heartbeat);
    talk.say(&FromClient::Tune { frame_max: 500_000, heartbeat: 30 });
    talk.ask(4, Request::Open { vhost: "/" });
    assert_eq!(talk.acts(), [Act::Step(Step::Open { vhost: "/".into() })]);
    assert_eq!(talk.session.frame_max(), 8192, "not yet in a vhost");
    talk.event(Event::Opened);
    let heard = talk.hears();
    let pairs = Told::Pairs(vec![("advertised_host", "alpha"), ("advertised_port", "5552")]);
    assert_eq!(heard[0].read(), FromServer::Response { key: Key::Open, correlation: 4, code: 1, answer: pairs });
    assert_eq!((talk.session.phase(), talk.session.frame_max(), talk.session.heartbeat()), (Phase::Running, 500_000, 30));
}

#[test]
fn a_client_that_speaks_out_of_turn_before_its_vhost_is_cut_without_a_word() {
    type Speaking = fn(&mut Talk);
    let cases: [(&str, Speaking); 4] = [
        ("no introduction", |talk| talk.ask(1, Request::SaslHandshake)),
        ("a publisher", |talk| talk.ask(1, Request::DeclarePublisher { publisher: 1, reference: "", stream: "s" })),
        ("no command", |talk| talk.session.on_frame(&Bytes::from_static(b"GET / HTTP/1.1"), &mut talk.out)),
        ("too large", |talk| talk.session.on_too_large(TooLarge { size: 8193, max: 8192 }, &mut talk.out)),
    ];
    for (name, speak) in cases {
        let mut talk = Talk::new();
        speak(&mut talk);
        assert_eq!(talk.session.phase(), Phase::Closed, "{name}");
        assert!(talk.hears().is_empty() && talk.acts().is_empty(), "{name}");
    }
}

#[test]
fn logins_and_vhosts_that_are_refused_have_their_codes() {
    let greeted = || {
        let mut talk = Talk::new();
        talk.ask(1, Request::PeerProperties { properties: vec![] });
        talk.ask(2, Request::SaslHandshake);
        talk.hears();
        talk
    };
    let mut talk = greeted();
    talk.ask(3, Request::SaslAuthenticate { mechanism: "SCRAM", response: b"" });
    talk.hears_code(Key::SaslAuthenticate, 3, Code::SaslMechanismNotSupported);
    assert_eq!(talk.session.phase(), Phase::Closed);
    let mut talk = greeted();
    talk.ask(3, Request::SaslAuthenticate { mechanism: "EXTERNAL", response: b"" });
    talk.hears_code(Key::SaslAuthenticate, 3, Code::SaslMechanismNotSupported);
    let mut talk = greeted();
    talk.ask(3, Request::SaslAuthenticate { mechanism: "PLAIN", response: b"guest" });
    talk.hears_code(Key::SaslAuthenticate, 3, Code::SaslError);
    let mut talk = greeted();
    talk.ask(3, Request::SaslAuthenticate { mechanism: "PLAIN", response: b"\0guest\0wrong" });
    talk.event(Event::AuthenticationFailed("why".to_owned().into()));
    talk.hears_code(Key::SaslAuthenticate, 3, Code::AuthenticationFailure);
    assert_eq!(talk.session.phase(), Phase::Closed);
    let mut talk = greeted();
    talk.ask(3, Request::SaslAuthenticate { mechanism: "PLAIN", response: b"\0guest\0guest" });
    talk.event(Event::AuthenticationFailed(LoginRefused { why: "from afar".to_owned(), is_remote: true }));
    talk.hears_code(Key::SaslAuthenticate, 3, Code::SaslAuthenticationFailureLoopback);
    assert_eq!(talk.session.phase(), Phase::Closed);
    let mut talk = greeted();
    talk.ask(3, Request::SaslAuthenticate { mechanism: "PLAIN", response: b"\0guest\0guest" });
    talk.event(Event::Authenticated);
    talk.say(&FromClient::Tune { frame_max: 0, heartbeat: 0 });
    talk.ask(4, Request::Open { vhost: "nowhere" });
    talk.hears();
    talk.event(Event::OpenRefused(crate::model::catalog::Refusal::NotAllowed("vhost nowhere not found".into())));
    talk.hears_code(Key::Open, 4, Code::VhostAccessFailure);
    assert_eq!(talk.session.phase(), Phase::Closed);
}

#[test]
fn with_a_certificate_external_is_offered() {
    let options = Options { certificate_name: Some("cn".into()), over_tls: true, ..options() };
    let mut talk = Talk { session: Session::new(options), out: Out::default() };
    talk.ask(1, Request::PeerProperties { properties: vec![] });
    talk.ask(2, Request::SaslHandshake);
    let heard = talk.hears();
    assert!(matches!(heard[1].read(), FromServer::Response { answer: Told::Texts(names), .. } if names == ["PLAIN", "EXTERNAL"]));
    talk.ask(3, Request::SaslAuthenticate { mechanism: "EXTERNAL", response: b"" });
    assert_eq!(talk.acts(), [Act::Step(Step::AuthenticateByCertificate { user: "cn".into() })]);
    talk.event(Event::Authenticated);
    talk.say(&FromClient::Tune { frame_max: 0, heartbeat: 30 });
    talk.ask(4, Request::Open { vhost: "/" });
    talk.hears();
    talk.event(Event::Opened);
    let heard = talk.hears();
    let FromServer::Response { answer: Told::Pairs(pairs), .. } = heard[0].read() else { panic!("Open") };
    assert_eq!(pairs[1], ("advertised_port", "5551"), "TLS clients stay with TLS");
}

#[test]
fn a_later_login_changes_the_password_not_the_user_and_not_the_mechanism() {
    let mut talk = Talk::open();
    talk.ask(5, Request::SaslAuthenticate { mechanism: "PLAIN", response: b"\0guest\0new" });
    assert!(matches!(talk.acts()[..], [Act::Step(Step::Authenticate { .. })]) && !talk.session.wants_input());
    talk.event(Event::Authenticated);
    assert_eq!(talk.acts(), [Act::Step(Step::UpdateSecret)]);
    talk.event(Event::SecretUpdated(Ok(())));
    talk.hears_code(Key::SaslAuthenticate, 5, Code::Ok);
    assert_eq!((talk.session.phase(), talk.session.wants_input()), (Phase::Running, true));
    talk.ask(6, Request::SaslAuthenticate { mechanism: "PLAIN", response: b"\0other\0new" });
    talk.hears_code(Key::SaslAuthenticate, 6, Code::SaslCannotChangeUsername);
    assert_eq!(talk.session.phase(), Phase::Closed);
    let mut talk = Talk::open();
    talk.ask(5, Request::SaslAuthenticate { mechanism: "EXTERNAL", response: b"" });
    talk.hears_code(Key::SaslAuthenticate, 5, Code::SaslCannotChangeMechanism);
}

#[test]
fn what_is_no_command_in_a_vhost_is_answered_with_close() {
    let mut talk = Talk::open();
    talk.session.on_frame(&Bytes::from_static(b"\0\x7f\0\x01"), &mut talk.out);
    talk.hears_close(Code::UnknownFrame);
    talk.ask(9, Request::StreamStats { stream: "s" });
    assert!(talk.hears().is_empty() && talk.acts().is_empty(), "nothing counts after that");
    talk.say(&FromClient::Closed { correlation: 1, code: 1 });
    assert_eq!(talk.session.phase(), Phase::Closed);
    let mut talk = Talk::open();
    talk.session.on_too_large(TooLarge { size: 2 << 20, max: 1 << 20 }, &mut talk.out);
    talk.hears_close(Code::FrameTooLarge);
    let mut talk = Talk::open();
    talk.ask(5, Request::Open { vhost: "/" });
    talk.hears_close(Code::UnknownFrame);
}

#[test]
fn goodbye_is_answered_and_the_broker_says_goodbye_too() {
    let mut talk = Talk::open();
    talk.ask(5, Request::Close { code: 1, reason: "OK" });
    talk.hears_code(Key::Close, 5, Code::Ok);
    assert_eq!(talk.session.phase(), Phase::Closed);
    let mut talk = Talk::open();
    talk.event(Event::Close("the broker is shut down".into()));
    talk.hears_close(Code::InternalError);
    talk.ask(6, Request::Close { code: 1, reason: "OK" });
    talk.hears_code(Key::Close, 6, Code::Ok);
    assert_eq!(talk.session.phase(), Phase::Closed);
}

#[test]
fn a_failure_of_the_edge_is_a_code() {
    let mut talk = Talk::open();
    let offset = crate::wire::stream::OffsetSpec::Next;
    let create = || Request::Create { stream: "s", arguments: vec![("max-age", "7D")] };
    talk.refused(create(), Failure::Exists, Code::StreamAlreadyExists);
    talk.refused(create(), Failure::Precondition, Code::PreconditionFailed);
    talk.refused(create(), Failure::Refused, Code::AccessRefused);
    talk.refused(create(), Failure::Internal, Code::InternalError);
    talk.refused(Request::Delete { stream: "s" }, Failure::Missing, Code::StreamDoesNotExist);
    talk.refused(Request::DeclarePublisher { publisher: 1, reference: "", stream: "s" }, Failure::Missing, Code::StreamDoesNotExist);
    let subscribe = Request::Subscribe { subscription: 1, stream: "s", offset, credit: 1, properties: vec![] };
    talk.refused(subscribe, Failure::Unavailable, Code::StreamNotAvailable);
    talk.refused(Request::QueryPublisherSequence { reference: "r", stream: "s" }, Failure::Refused, Code::AccessRefused);
    talk.refused(Request::QueryOffset { reference: "r", stream: "s" }, Failure::Missing, Code::StreamDoesNotExist);
    talk.refused(Request::Route { routing_key: "k", super_stream: "s" }, Failure::Missing, Code::StreamDoesNotExist);
    talk.refused(Request::Partitions { super_stream: "s" }, Failure::Refused, Code::AccessRefused);
    talk.refused(Request::StreamStats { stream: "s" }, Failure::Missing, Code::StreamDoesNotExist);
    talk.refused(Request::ResolveOffsetSpec { stream: "s", offset, properties: vec![] }, Failure::NoOffset, Code::NoOffset);
    talk.refused(Request::DeleteSuperStream { name: "s" }, Failure::Missing, Code::StreamDoesNotExist);
    assert_eq!(talk.session.phase(), Phase::Running);
}

#[test]
fn answers_of_the_edge_reach_the_client() {
    let mut talk = Talk::open();
    let state = StreamState {
        first: Offset(10),
        next: Offset(20),
        last_chunk: Some(Offset(15)),
        publishing_id: Some(99),
        stored: Some(Offset(12)),
        ..StreamState::default()
    };
    talk.ask(5, Request::QueryPublisherSequence { reference: "r", stream: "s" });
    talk.answer(Ok(Answer::State(state.clone())));
    talk.ask(6, Request::QueryOffset { reference: "r", stream: "s" });
    talk.answer(Ok(Answer::State(state.clone())));
    talk.ask(7, Request::QueryOffset { reference: "r", stream: "s" });
    talk.answer(Ok(Answer::State(StreamState { stored: None, ..state.clone() })));
    talk.ask(8, Request::StreamStats { stream: "s" });
    talk.answer(Ok(Answer::State(state)));
    talk.ask(9, Request::Partitions { super_stream: "s" });
    talk.answer(Ok(Answer::Streams(vec!["s-0".into(), "s-1".into()])));
    let places = Places {
        brokers: vec![
            Advertised { host: "alpha".into(), port: 5552, tls_port: 0 },
            Advertised { host: "beta".into(), port: 5553, tls_port: 5561 },
        ],
        streams: vec![("s".into(), Ok(Place { leader: Some(1), replicas: vec![0] })), ("x".into(), Err(Failure::Missing))],
    };
    talk.ask(10, Request::Metadata { streams: vec!["s", "x"] });
    talk.answer(Ok(Answer::Places(places)));
    let heard = talk.hears();
    let response = |key, correlation, code: Code, answer| FromServer::Response { key, correlation, code: code as u16, answer };
    assert_eq!(heard[0].read(), response(Key::QueryPublisherSequence, 5, Code::Ok, Told::Number(99)));
    assert_eq!(heard[1].read(), response(Key::QueryOffset, 6, Code::Ok, Told::Number(12)));
    assert_eq!(heard[2].read(), response(Key::QueryOffset, 7, Code::NoOffset, Told::Number(0)));
    let FromServer::Response { answer: Told::Stats(stats), .. } = heard[3].read() else { panic!("StreamStats") };
    let wanted = [("first_chunk_id", 10), ("committed_chunk_id", 15), ("committed_offset", 19), ("last_chunk_id", 15)];
    assert!(wanted.iter().all(|stat| stats.contains(stat)), "{stats:?}");
    assert_eq!(heard[4].read(), response(Key::Partitions, 9, Code::Ok, Told::Texts(vec!["s-0", "s-1"])));
    let FromServer::Metadata { correlation: 10, brokers, streams } = heard[5].read() else { panic!("Metadata") };
    assert_eq!(brokers[1], server::Broker { reference: 1, host: "beta", port: 5553 });
    assert_eq!(streams[0], server::StreamMetadata { stream: "s", code: 1, leader: 1, replicas: vec![0] });
    assert_eq!(streams[1], server::StreamMetadata { stream: "x", code: 2, leader: 65535, replicas: vec![] });
}

// ---- publishing ----

fn messages(ids: &[u64]) -> Vec<u8> {
    ids.iter().flat_map(|id| [&id.to_be_bytes()[..], b"\0\0\0\x02hi"].concat()).collect()
}

fn publish(talk: &mut Talk, publisher: u8, bytes: &[u8]) {
    talk.say(&FromClient::Publish { publisher, messages: crate::wire::stream::Messages::new(1, bytes) });
}

#[test]
fn messages_go_to_the_edge_uncopied_and_confirms_name_their_ids() {
    let mut talk = Talk::publishing();
    let frame = content(&FromClient::Publish { publisher: 1, messages: crate::wire::stream::Messages::new(1, &messages(&[5, 6])) });
    talk.session.on_frame(&frame, &mut talk.out);
    let acts = talk.acts();
    let [Act::Step(Step::Append(Append { channel: 1, to, published }))] = &acts[..] else { panic!("{acts:?}") };
    assert_eq!(*to, target(7));
    assert_eq!(*published, Published { bytes: messages(&[5, 6]).into(), is_filtered: false });
    assert_eq!(published.bytes.as_ptr(), frame[frame.len() - published.bytes.len()..].as_ptr(), "a slice of the frame");
    talk.event(Event::Confirmed { channel: 1, tickets: vec![(5, 6), (9, 9)] });
    assert_eq!(talk.hears()[0].read(), FromServer::PublishConfirm { publisher: 1, ids: vec![5, 6, 9] });
    talk.event(Event::Nacked { channel: 1, tickets: vec![(7, 8)] });
    assert_eq!(talk.hears()[0].read(), FromServer::PublishError { publisher: 1, errors: vec![(7, 6), (8, 6)] });
}

#[test]
fn a_publisher_that_is_not_there_gets_errors_for_its_messages() {
    let mut talk = Talk::publishing();
    publish(&mut talk, 2, &messages(&[1, 2]));
    assert_eq!(talk.hears()[0].read(), FromServer::PublishError { publisher: 2, errors: vec![(1, 18), (2, 18)] });
    talk.ask(6, Request::DeletePublisher { publisher: 1 });
    talk.hears_code(Key::DeletePublisher, 6, Code::Ok);
    assert_eq!(talk.acts(), [Act::Step(Step::ChannelClosed { channel: 1, held: vec![] })]);
    talk.event(Event::Confirmed { channel: 1, tickets: vec![(5, 6)] });
    assert!(talk.hears().is_empty(), "a confirm for a publisher of before");
    talk.ask(7, Request::DeletePublisher { publisher: 1 });
    talk.hears_code(Key::DeletePublisher, 7, Code::PublisherDoesNotExist);
}

#[test]
fn a_number_and_a_name_of_a_publisher_are_used_once() {
    let mut talk = Talk::publishing();
    let long = "x".repeat(256);
    for (publisher, reference) in [(1, "other"), (2, "r"), (2, &*long)] {
        talk.ask(6, Request::DeclarePublisher { publisher, reference, stream: "s" });
        talk.hears_code(Key::DeclarePublisher, 6, Code::PreconditionFailed);
        assert!(talk.acts().is_empty());
    }
    talk.ask(7, Request::DeclarePublisher { publisher: 2, reference: "r", stream: "another" });
    let ask = Ask::Write { stream: "another".into(), reference: Some("r".into()) };
    assert_eq!(talk.acts(), [Act::Ask(ask)]);
}

#[test]
fn a_batch_that_cannot_be_right_is_refused_with_all_behind_it() {
    let mut talk = Talk::publishing();
    let batch = |compression: u8, records: u16, uncompressed: u32| {
        let head = [&[0x80 | compression << 4][..], &records.to_be_bytes(), &uncompressed.to_be_bytes(), &1_u32.to_be_bytes(), b"z"];
        [&2_u64.to_be_bytes()[..], &head.concat()].concat()
    };
    for bad in [batch(5, 1, 8), batch(1, 0, 8), batch(1, 3, 8), batch(1, 1, (64 << 20) + 1)] {
        publish(&mut talk, 1, &[messages(&[1]), bad, messages(&[3])].concat());
        let acts = talk.acts();
        assert!(matches!(&acts[..], [Act::Step(Step::Append(append))] if append.published.bytes == messages(&[1])), "{acts:?}");
        assert_eq!(talk.hears()[0].read(), FromServer::PublishError { publisher: 1, errors: vec![(2, 17), (3, 17)] });
    }
    publish(&mut talk, 1, &batch(4, 2, 8));
    assert!(matches!(talk.acts()[..], [Act::Step(Step::Append(_))]) && talk.hears().is_empty());
    publish(&mut talk, 1, &messages(&[1])[..9]);
    talk.hears_close(Code::UnknownFrame);
    assert!(talk.acts().is_empty());
}

// ---- reading ----

fn chunk(first: u64, filter: &[u8]) -> StreamChunk {
    let (filter, data) = (Bytes::copy_from_slice(filter), Bytes::from_static(b"\0\0\0\x02hi"));
    StreamChunk { first: Offset(first), entries: 1, records: 1, time_ms: 3, crc: 4, filter, data, file: None }
}

fn deliver(talk: &mut Talk, chunk: &StreamChunk) -> Option<(u64, Option<u64>)> {
    talk.session.on_chunk(1, chunk, &mut talk.out);
    talk.hears().first().map(|heard| match heard.read() {
        FromServer::Deliver { subscription: 1, committed, head, data: b"\0\0\0\x02hi" } => (head.first, committed),
        other => panic!("{other:?}"),
    })
}

#[test]
fn chunks_come_as_far_as_there_is_credit() {
    let mut talk = Talk::reading(1, vec![]);
    let acts = talk.acts();
    let read = Read { subscription: 1, target: target(7), from: OffsetSpec::First, wanted: None };
    assert_eq!(acts[1..], [Act::Read(read)]);
    assert!(talk.session.wants_chunk(1) && !talk.session.wants_chunk(2));
    assert_eq!(deliver(&mut talk, &chunk(0, b"")), Some((0, None)));
    assert!(!talk.session.wants_chunk(1));
    talk.say(&FromClient::Credit { subscription: 1, credit: 2 });
    assert!(talk.session.wants_chunk(1) && talk.hears().is_empty());
    talk.say(&FromClient::Credit { subscription: 1, credit: -2 });
    assert!(!talk.session.wants_chunk(1));
    talk.say(&FromClient::Credit { subscription: 9, credit: 1 });
    assert_eq!(talk.hears()[0].read(), FromServer::CreditError { code: 4, subscription: 9 });
}

#[test]
fn who_understands_version_2_of_deliver_gets_it() {
    let mut talk = Talk::open();
    let commands = vec![crate::wire::stream::client::Versions { key: Key::Deliver as u16, min: 1, max: 2 }];
    talk.ask(5, Request::ExchangeCommandVersions { commands });
    let heard = talk.hears();
    let FromServer::Response { answer: Told::Versions(versions), .. } = heard[0].read() else { panic!("versions") };
    assert!(versions.iter().any(|v| v.key == Key::Publish as u16 && (v.min, v.max) == (1, 2)) && versions.len() == 20);
    let offset = crate::wire::stream::OffsetSpec::First;
    talk.ask(6, Request::Subscribe { subscription: 1, stream: "s", offset, credit: 5, properties: vec![] });
    talk.answer(Ok(Answer::Target(target(7))));
    talk.hears();
    assert_eq!(deliver(&mut talk, &chunk(8, b"")), Some((8, Some(8))));
}

#[test]
fn a_chunk_without_what_is_wanted_costs_no_credit() {
    let mut talk = Talk::reading(1, vec![("filter.0", "eu"), ("filter.1", "us"), ("match-unfiltered", "false")]);
    let mut asia = crate::model::stream::Filter::new(16);
    asia.insert(Some(b"asia"));
    assert_eq!(deliver(&mut talk, &chunk(0, asia.bytes())), None);
    assert_eq!(deliver(&mut talk, &chunk(1, b"")), None, "nobody named a filter value there");
    assert!(talk.session.wants_chunk(1));
    asia.insert(Some(b"us"));
    assert_eq!(deliver(&mut talk, &chunk(2, asia.bytes())), Some((2, None)));
    let mut talk = Talk::reading(1, vec![("filter.0", "eu"), ("match-unfiltered", "true")]);
    assert_eq!(deliver(&mut talk, &chunk(1, b"")), Some((1, None)));
}

#[test]
fn subscriptions_have_numbers_and_end() {
    let mut talk = Talk::reading(1, vec![]);
    let offset = crate::wire::stream::OffsetSpec::Next;
    let subscribe = |subscription, properties| Request::Subscribe { subscription, stream: "s", offset, credit: 1, properties };
    talk.ask(6, subscribe(1, vec![]));
    talk.hears_code(Key::Subscribe, 6, Code::SubscriptionIdAlreadyExists);
    talk.ask(7, subscribe(2, vec![("single-active-consumer", "true")]));
    talk.hears_code(Key::Subscribe, 7, Code::PreconditionFailed);
    talk.ask(8, subscribe(2, vec![("name", &"x".repeat(256))]));
    talk.hears_code(Key::Subscribe, 8, Code::PreconditionFailed);
    talk.acts();
    talk.ask(9, Request::Unsubscribe { subscription: 1 });
    talk.hears_code(Key::Unsubscribe, 9, Code::Ok);
    assert_eq!(talk.acts(), [Act::Stop { subscription: 1 }]);
    assert_eq!(deliver(&mut talk, &chunk(0, b"")), None);
    talk.ask(10, Request::Unsubscribe { subscription: 1 });
    talk.hears_code(Key::Unsubscribe, 10, Code::SubscriptionIdDoesNotExist);
}

#[test]
fn offsets_are_stored_without_a_word() {
    let mut talk = Talk::open();
    talk.say(&FromClient::StoreOffset { reference: "r", stream: "s", offset: 7 });
    assert_eq!(talk.acts(), [Act::Store { stream: "s".into(), reference: "r".into(), offset: 7 }]);
    talk.say(&FromClient::StoreOffset { reference: &"r".repeat(256), stream: "s", offset: 7 });
    assert!(talk.acts().is_empty() && talk.hears().is_empty());
}

#[test]
fn a_stream_that_goes_takes_its_publishers_and_subscriptions_along() {
    let mut talk = Talk::reading(1, vec![]);
    talk.ask(6, Request::DeclarePublisher { publisher: 3, reference: "", stream: "s" });
    talk.answer(Ok(Answer::Target(target(7))));
    talk.hears();
    talk.acts();
    talk.ask(7, Request::Delete { stream: "s" });
    talk.answer(Ok(Answer::Done));
    let heard = talk.hears();
    assert_eq!(heard[0].read(), FromServer::Response { key: Key::Delete, correlation: 7, code: 1, answer: Told::Bare });
    assert_eq!((heard[1].read(), heard.len()), (FromServer::MetadataUpdate { code: 6, stream: "s" }, 2));
    let acts = talk.acts();
    assert!(acts.contains(&Act::Stop { subscription: 1 }), "{acts:?}");
    assert!(acts.contains(&Act::Step(Step::ChannelClosed { channel: 3, held: vec![] })));
    publish(&mut talk, 3, &messages(&[1]));
    assert_eq!(talk.hears()[0].read(), FromServer::PublishError { publisher: 3, errors: vec![(1, 18)] });
    talk.session.on_gone("s", &mut talk.out);
    assert!(talk.hears().is_empty(), "said once");
}

// ---- groups ----

const GROUP: [Pair<'static>; 3] = [("single-active-consumer", "true"), ("name", "g"), ("super-stream", "all")];

fn update(talk: &mut Talk, active: bool) -> u32 {
    talk.session.on_turn(1, active, &mut talk.out);
    let heard = talk.hears();
    match heard[0].read() {
        FromServer::ConsumerUpdate { correlation, subscription: 1, active: told } if told == active => correlation,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_member_of_a_group_reads_when_it_is_its_turn_from_where_the_client_says() {
    let mut talk = Talk::reading(5, GROUP.to_vec());
    let member = Member { subscription: 1, target: target(7), group: "g".into(), super_stream: Some("all".into()) };
    assert_eq!(talk.acts()[1..], [Act::Join(member.clone())]);
    assert!(!talk.session.wants_chunk(1));
    let correlation = update(&mut talk, true);
    assert!(talk.session.awaits_client() && talk.acts().is_empty(), "the client says first where to begin");
    let offset = Some(crate::wire::stream::OffsetSpec::Offset(42));
    talk.say(&FromClient::ConsumerUpdated { correlation, code: 1, offset });
    let read = Read { subscription: 1, target: target(7), from: OffsetSpec::Offset(Offset(42)), wanted: None };
    assert_eq!(talk.acts(), [Act::Read(read)]);
    assert!(talk.session.wants_chunk(1) && !talk.session.awaits_client());
    let correlation = update(&mut talk, false);
    assert_eq!(talk.acts(), [Act::Stop { subscription: 1 }], "nothing is sent from now on");
    assert_eq!(deliver(&mut talk, &chunk(0, b"")), None);
    talk.say(&FromClient::ConsumerUpdated { correlation, code: 1, offset: None });
    assert_eq!(talk.acts(), [Act::Yielded(member.clone())]);
    talk.say(&FromClient::Credit { subscription: 1, credit: 1 });
    assert_eq!(talk.hears()[0].read(), FromServer::CreditError { code: 17, subscription: 1 });
    talk.ask(9, Request::Unsubscribe { subscription: 1 });
    assert_eq!(talk.acts(), [Act::Stop { subscription: 1 }, Act::Leave(member)]);
}

#[test]
fn an_answer_that_comes_when_the_turn_is_over_starts_nothing() {
    let mut talk = Talk::reading(5, GROUP.to_vec());
    talk.acts();
    let first = update(&mut talk, true);
    let second = update(&mut talk, false);
    talk.acts();
    talk.say(&FromClient::ConsumerUpdated { correlation: first, code: 1, offset: None });
    assert!(talk.acts().is_empty() && !talk.session.wants_chunk(1));
    talk.say(&FromClient::ConsumerUpdated { correlation: second, code: 1, offset: None });
    assert!(matches!(talk.acts()[..], [Act::Yielded(_)]));
    talk.say(&FromClient::ConsumerUpdated { correlation: second, code: 1, offset: None });
    assert!(talk.acts().is_empty(), "an answer to nothing");
}

proptest! {
    #[test]
    fn any_frames_never_panic(
        frames in proptest::collection::vec((0_u16..34, any::<bool>(), proptest::collection::vec(any::<u8>(), 0..40)), 0..30),
        opened in any::<bool>(),
    ) {
        let mut talk = if opened { Talk::reading(3, GROUP.to_vec()) } else { Talk::new() };
        for (key, response, rest) in frames {
            let key = key | if response { 0x8000 } else { 0 };
            let frame = [&key.to_be_bytes()[..], &[0, 1], &rest].concat();
            talk.session.on_frame(&frame.into(), &mut talk.out);
            talk.hears();
            if talk.acts().iter().any(|act| matches!(act, Act::Ask(_))) {
                talk.answer(Err(Failure::Missing));
            }
            talk.session.on_turn(1, response, &mut talk.out);
        }
    }
}
