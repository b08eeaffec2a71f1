//! A client's conversation in the stream protocol as a pure state machine: no sockets, no clock, no tasks. The listener feeds frames,
//! events, answers and chunks, and carries away acts and bytes. Semantics that need the cluster (existence, permissions, places) are the
//! edge's. Where nothing else is said it answers as RabbitMQ's `rabbit_stream_reader` does.

mod answers;
mod codes;
mod counts;
mod handshake;
mod out;
mod publishers;
mod reports;
mod subscriptions;

#[cfg(test)]
mod transcripts;

pub use counts::Counts;
pub use out::{Act, Out, Read};

use crate::model::limits;
use crate::model::step::{Event, LoginRefused, Step};
use crate::model::stream::StreamTarget;
use crate::model::stream_step::{Advertised, Answer, Ask, Failure};
use crate::wire::stream::client::{Pair, Request};
use crate::wire::stream::{Code, FromClient, Key, Malformed, TooLarge};
use bytes::Bytes;
use handshake::Login;
use hashbrown::HashMap;
use publishers::{Declaring, Publisher};
use std::sync::Arc;
use subscriptions::{Subscribing, Subscription, Update};

/// What a session needs to know of its surroundings.
#[derive(Clone, Debug)]
pub struct Options {
    /// Shown to clients.
    pub cluster_name: Arc<str>,
    /// Where clients are told that they are.
    pub advertised: Advertised,
    /// The client speaks TLS: it is told of ports with TLS.
    pub over_tls: bool,
    /// The user that the client's certificate stands for, if one was verified: then EXTERNAL is offered.
    pub certificate_name: Option<Arc<str>>,
}

/// What the listener must know of a session's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not yet in a vhost: the handshake's deadline runs.
    Handshake,
    /// In a vhost.
    Running,
    /// Close was sent: wait for the answer, not for long.
    Closing,
    /// Write what is left, then close the socket.
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing was said.
    New,
    /// PeerProperties were exchanged.
    Introduced,
    /// The client knows how to log in.
    Greeted,
    /// The edge looks at its login.
    Authenticating {
        correlation: u32,
    },
    /// Tune was offered.
    Tuning,
    /// And answered.
    Tuned,
    /// The edge looks at its vhost.
    Opening {
        correlation: u32,
    },
    Running,
    Closing,
    Closed,
}

impl State {
    /// As RabbitMQ lists it.
    fn text(self) -> &'static str {
        match self {
            State::New => "tcp_connected",
            State::Introduced => "peer_properties_exchanged",
            State::Greeted | State::Authenticating { .. } => "authenticating",
            State::Tuning => "tuning",
            State::Tuned | State::Opening { .. } => "tuned",
            State::Running => "running",
            State::Closing => "close_sent",
            State::Closed => "closed",
        }
    }
}

/// What the question at the edge is about.
#[derive(Clone, Debug)]
enum Asked {
    /// A publisher is declared.
    Publisher(Declaring),
    /// A subscription is made.
    Subscription(Subscribing),
    /// Any other request; streams that go with success.
    Plain(Key, Vec<Arc<str>>),
}

/// A client's conversation.
#[derive(Debug)]
pub struct Session {
    options: Options,
    state: State,
    login: Option<Login>,
    /// A later login of the same user, under way.
    renewing: Option<u32>,
    client_properties: Vec<(String, String)>,
    vhost: Arc<str>,
    frame_max: u32,
    heartbeat: u16,
    delivers_version_2: bool,
    publishers: HashMap<u8, Publisher>,
    subscriptions: HashMap<u8, Subscription>,
    /// The question at the edge, with the number of the client's request.
    asked: Option<(u32, Asked)>,
    /// Numbers of our own requests.
    correlation: u32,
    updates: Vec<Update>,
    /// Scratch space of confirms.
    ids: Vec<u64>,
    counts: Counts,
}

impl Session {
    /// Waits for PeerProperties.
    pub fn new(options: Options) -> Session {
        Session {
            options,
            state: State::New,
            login: None,
            renewing: None,
            client_properties: Vec::new(),
            vhost: "".into(),
            frame_max: limits::STREAM_FRAME_MAX,
            heartbeat: 0,
            delivers_version_2: false,
            publishers: HashMap::new(),
            subscriptions: HashMap::new(),
            asked: None,
            correlation: 0,
            updates: Vec::new(),
            ids: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// Where it stands.
    pub fn phase(&self) -> Phase {
        match self.state {
            State::Running => Phase::Running,
            State::Closing => Phase::Closing,
            State::Closed => Phase::Closed,
            State::New
            | State::Introduced
            | State::Greeted
            | State::Authenticating { .. }
            | State::Tuning
            | State::Tuned
            | State::Opening { .. } => Phase::Handshake,
        }
    }

    /// Whether it takes frames now. False: an answer must come first.
    pub fn wants_input(&self) -> bool {
        match self.state {
            State::Authenticating { .. } | State::Opening { .. } | State::Closed => false,
            State::Running => self.asked.is_none() && self.renewing.is_none(),
            State::New | State::Introduced | State::Greeted | State::Tuning | State::Tuned | State::Closing => true,
        }
    }

    /// Largest content of a frame from the client: little before it is in a vhost, what was agreed on after that.
    pub fn frame_max(&self) -> u32 {
        match self.phase() {
            Phase::Handshake => limits::STREAM_FRAME_MAX_BEFORE_OPEN,
            Phase::Running | Phase::Closing | Phase::Closed => self.frame_max,
        }
    }

    /// Seconds between signs of life; 0 = none wanted.
    pub fn heartbeat(&self) -> u16 {
        self.heartbeat
    }

    /// The vhost, once open.
    pub fn vhost(&self) -> &str {
        &self.vhost
    }

    /// A frame's content.
    pub fn on_frame(&mut self, frame: &Bytes, out: &mut Out) {
        let said = match FromClient::decode(frame) {
            Ok(said) => said,
            Err(malformed) => return self.on_malformed(malformed, out),
        };
        match self.state {
            State::Running => {
                if let Err(malformed) = self.on_said(said, frame, out) {
                    self.on_malformed(malformed, out);
                }
            }
            State::Closed => {}
            State::Closing => self.on_said_late(said, out),
            _before_open => self.on_said_early(said, out),
        }
    }

    /// A frame beyond the agreed size: nothing after it can be understood.
    pub fn on_too_large(&mut self, error: TooLarge, out: &mut Out) {
        tracing::debug!(%error, "frame refused");
        self.fail(Code::FrameTooLarge, "frame too large", out);
    }

    fn on_malformed(&mut self, malformed: Malformed, out: &mut Out) {
        tracing::debug!(%malformed, state = self.state.text(), "frame refused");
        self.fail(Code::UnknownFrame, "unknown frame", out);
    }

    /// The client did what it must not: a Close, or the end without a word where it is not in a vhost.
    fn fail(&mut self, code: Code, reason: &str, out: &mut Out) {
        match self.state {
            State::Running => {
                let correlation = self.next_correlation();
                out.bytes.close(correlation, code, reason);
                self.state = State::Closing;
            }
            State::Closing => {}
            _before_open => self.state = State::Closed,
        }
    }

    fn next_correlation(&mut self) -> u32 {
        self.correlation = self.correlation.wrapping_add(1);
        self.correlation
    }

    // ---- before a vhost ----

    fn on_said_early(&mut self, said: FromClient<'_>, out: &mut Out) {
        match (self.state, said) {
            (_, FromClient::Heartbeat) => {}
            (State::New, FromClient::Request { correlation, request: Request::PeerProperties { properties } }) => {
                self.client_properties = properties.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
                out.bytes.pairs(Key::PeerProperties, correlation, &handshake::properties(&self.options));
                self.state = State::Introduced;
            }
            (State::Introduced, FromClient::Request { correlation, request: Request::SaslHandshake }) => {
                out.bytes.texts(Key::SaslHandshake, correlation, Code::Ok, handshake::mechanisms(&self.options));
                self.state = State::Greeted;
            }
            (State::Greeted, FromClient::Request { correlation, request: Request::SaslAuthenticate { mechanism, response } }) => {
                match Login::read(mechanism, response, &self.options) {
                    Ok(login) => {
                        out.step(login.step());
                        self.login = Some(login);
                        self.state = State::Authenticating { correlation };
                    }
                    Err(code) => self.end_login(correlation, code, out),
                }
            }
            (State::Tuning, FromClient::Tune { frame_max, heartbeat }) => {
                self.frame_max = handshake::frame_max(frame_max);
                self.heartbeat = u16::try_from(heartbeat).unwrap_or(u16::MAX);
                self.state = State::Tuned;
            }
            (State::Tuned, FromClient::Request { correlation, request: Request::Open { vhost } }) => {
                self.vhost = vhost.into();
                out.step(Step::Open { vhost: vhost.to_owned() });
                self.state = State::Opening { correlation };
            }
            (_, _) => self.state = State::Closed,
        }
    }

    fn end_login(&mut self, correlation: u32, code: Code, out: &mut Out) {
        out.bytes.respond(Key::SaslAuthenticate, correlation, code);
        self.state = State::Closed;
    }

    fn on_authenticated(&mut self, out: &mut Out) {
        if let State::Authenticating { correlation } = self.state {
            out.bytes.respond(Key::SaslAuthenticate, correlation, Code::Ok);
            out.bytes.tune(limits::STREAM_FRAME_MAX, limits::HEARTBEAT_SECONDS.into());
            self.state = State::Tuning;
        } else if self.renewing.is_some() {
            // The password is right; whether the user may still be in its vhost is another question.
            out.step(Step::UpdateSecret);
        }
    }

    fn on_login_refused(&mut self, refused: &LoginRefused, out: &mut Out) {
        let code = if refused.is_remote { Code::SaslAuthenticationFailureLoopback } else { Code::AuthenticationFailure };
        let renewing = self.renewing.take();
        if let State::Authenticating { correlation } = self.state {
            self.end_login(correlation, code, out);
        } else if let Some(correlation) = renewing {
            self.end_login(correlation, code, out);
        }
    }

    fn on_secret_updated(&mut self, is_allowed: bool, out: &mut Out) {
        match self.renewing.take() {
            Some(correlation) if is_allowed => out.bytes.respond(Key::SaslAuthenticate, correlation, Code::Ok),
            Some(correlation) => self.end_login(correlation, Code::VhostAccessFailure, out),
            None => {}
        }
    }

    /// A login in a vhost: the same user by the same mechanism shows a new password.
    fn renew(&mut self, correlation: u32, mechanism: &str, response: &[u8], out: &mut Out) {
        let first = self.login.as_ref();
        if first.is_some_and(|login| login.mechanism != mechanism) {
            return self.end_login(correlation, Code::SaslCannotChangeMechanism, out);
        }
        match Login::read(mechanism, response, &self.options) {
            Ok(login) if first.is_some_and(|first| first.user != login.user) => {
                self.end_login(correlation, Code::SaslCannotChangeUsername, out);
            }
            Ok(login) => {
                out.step(login.step());
                self.renewing = Some(correlation);
            }
            Err(code) => self.end_login(correlation, code, out),
        }
    }

    fn on_opened(&mut self, out: &mut Out) {
        if let State::Opening { correlation } = self.state {
            let Advertised { host, .. } = &self.options.advertised;
            let port = self.options.advertised.port(self.options.over_tls).to_string();
            out.bytes.pairs(Key::Open, correlation, &[("advertised_host", host), ("advertised_port", &port)]);
            self.state = State::Running;
        }
    }

    fn on_open_refused(&mut self, out: &mut Out) {
        if let State::Opening { correlation } = self.state {
            out.bytes.respond(Key::Open, correlation, Code::VhostAccessFailure);
            self.state = State::Closed;
        }
    }

    // ---- in a vhost ----

    fn on_said(&mut self, said: FromClient<'_>, frame: &Bytes, out: &mut Out) -> Result<(), Malformed> {
        match said {
            FromClient::Publish { publisher, messages } => return self.publish(publisher, messages, frame, out),
            FromClient::Credit { subscription, credit } => self.credit(subscription, credit, out),
            FromClient::StoreOffset { reference, stream, offset } => {
                if reference.len() <= limits::STREAM_REFERENCE_BYTES {
                    out.act(Act::Store { stream: stream.into(), reference: reference.into(), offset });
                }
            }
            FromClient::Heartbeat => {}
            FromClient::ConsumerUpdated { correlation, offset, .. } => self.consumer_updated(correlation, offset, out),
            FromClient::Request { correlation, request } => self.on_request(correlation, request, out),
            FromClient::Tune { .. } | FromClient::Closed { .. } => self.fail(Code::UnknownFrame, "unknown frame", out),
        }
        Ok(())
    }

    fn on_request(&mut self, correlation: u32, request: Request<'_>, out: &mut Out) {
        match request {
            Request::DeclarePublisher { publisher, reference, stream } => {
                let reference = (!reference.is_empty()).then(|| reference.into());
                self.declare_publisher(correlation, Declaring { publisher, stream: stream.into(), reference }, out);
            }
            Request::DeletePublisher { publisher } => self.delete_publisher(correlation, publisher, out),
            Request::Subscribe { subscription, stream, offset, credit, properties } => {
                let subscribing = Subscribing::read(subscription, stream, (offset, credit), &properties);
                self.subscribe(correlation, subscribing, out);
            }
            Request::Unsubscribe { subscription } => self.unsubscribe(correlation, subscription, out),
            Request::SaslAuthenticate { mechanism, response } => self.renew(correlation, mechanism, response, out),
            Request::Close { code, reason } => {
                tracing::debug!(code, reason, "the client closes");
                out.bytes.respond(Key::Close, correlation, Code::Ok);
                self.state = State::Closed;
            }
            Request::ExchangeCommandVersions { commands } => {
                out.bytes.versions(correlation, &handshake::versions());
                self.delivers_version_2 = commands.iter().any(|c| c.key == Key::Deliver as u16 && c.max >= 2);
            }
            Request::PeerProperties { .. } | Request::SaslHandshake | Request::Open { .. } => {
                self.fail(Code::UnknownFrame, "unknown frame", out);
            }
            question => self.on_question(correlation, question, out),
        }
    }

    /// Requests that the edge answers.
    fn on_question(&mut self, correlation: u32, request: Request<'_>, out: &mut Out) {
        let key = request.key();
        let mut going = Vec::new();
        let ask = match request {
            Request::QueryPublisherSequence { reference, stream } => {
                Ask::PublishingId { stream: stream.into(), reference: reference.into() }
            }
            Request::QueryOffset { reference, stream } => Ask::StoredOffset { stream: stream.into(), reference: reference.into() },
            Request::Create { stream, arguments } => Ask::Create { stream: stream.into(), arguments: owned(&arguments) },
            Request::Delete { stream } => {
                going.push(stream.into());
                Ask::Delete { stream: stream.into() }
            }
            Request::Metadata { streams } => Ask::Places { streams: streams.into_iter().map(Into::into).collect() },
            Request::Route { routing_key, super_stream } => {
                Ask::Route { routing_key: routing_key.into(), super_stream: super_stream.into() }
            }
            Request::Partitions { super_stream } => Ask::Partitions { super_stream: super_stream.into() },
            Request::StreamStats { stream } => Ask::State { stream: stream.into() },
            Request::CreateSuperStream { name, partitions, binding_keys, arguments } => {
                if partitions.len() != binding_keys.len() {
                    return out.bytes.respond(key, correlation, codes::of(Failure::Precondition));
                }
                let partitions = partitions.into_iter().map(Into::into).zip(binding_keys.into_iter().map(Into::into)).collect();
                Ask::CreateSuper { name: name.into(), partitions, arguments: owned(&arguments) }
            }
            Request::DeleteSuperStream { name } => Ask::DeleteSuper { name: name.into() },
            Request::ResolveOffsetSpec { stream, offset, properties } => {
                let wanted = subscriptions::wanted(&properties);
                Ask::Resolve { stream: stream.into(), from: subscriptions::from(offset), wanted }
            }
            Request::DeclarePublisher { .. }
            | Request::DeletePublisher { .. }
            | Request::Subscribe { .. }
            | Request::Unsubscribe { .. }
            | Request::PeerProperties { .. }
            | Request::SaslHandshake
            | Request::SaslAuthenticate { .. }
            | Request::Open { .. }
            | Request::Close { .. }
            | Request::ExchangeCommandVersions { .. } => return,
        };
        self.ask(correlation, Asked::Plain(key, going), ask, out);
    }

    fn ask(&mut self, correlation: u32, asked: Asked, ask: Ask, out: &mut Out) {
        self.asked = Some((correlation, asked));
        out.act(Act::Ask(ask));
    }

    /// What comes after our Close.
    fn on_said_late(&mut self, said: FromClient<'_>, out: &mut Out) {
        match said {
            FromClient::Closed { .. } => self.state = State::Closed,
            FromClient::Request { correlation, request: Request::Close { .. } } => {
                out.bytes.respond(Key::Close, correlation, Code::Ok);
                self.state = State::Closed;
            }
            _ignored => {}
        }
    }

    // ---- the edge's word ----

    /// Something happened at the edge.
    pub fn on_event(&mut self, event: Event, out: &mut Out) {
        match event {
            Event::Confirmed { channel, tickets } if self.state == State::Running => self.confirmed(channel, &tickets, out),
            Event::Nacked { channel, tickets } if self.state == State::Running => self.nacked(channel, &tickets, out),
            Event::Authenticated => self.on_authenticated(out),
            Event::AuthenticationFailed(refused) => self.on_login_refused(&refused, out),
            Event::Opened => self.on_opened(out),
            Event::OpenRefused(_) => self.on_open_refused(out),
            Event::SecretUpdated(allowed) => self.on_secret_updated(allowed.is_ok(), out),
            Event::Close(text) => self.fail(Code::InternalError, &text, out),
            Event::Report => out.step(Step::Report(Box::new(self.report()))),
            // Publishers wait because the socket is not read; the protocol has no word for it.
            Event::Blocked(_) | Event::Unblocked => {}
            _of_no_concern => {}
        }
    }

    /// The answer to the last `Act::Ask`.
    pub fn on_answer(&mut self, answer: Result<Answer, Failure>, out: &mut Out) {
        let Some((correlation, asked)) = self.asked.take() else { return };
        if self.state != State::Running {
            return;
        }
        let over_tls = self.options.over_tls;
        match (asked, answer) {
            (Asked::Publisher(declaring), Ok(Answer::Target(target))) => {
                self.publisher_declared(declaring, target);
                out.bytes.respond(Key::DeclarePublisher, correlation, Code::Ok);
            }
            (Asked::Subscription(subscribing), Ok(Answer::Target(target))) => {
                out.bytes.respond(Key::Subscribe, correlation, Code::Ok);
                self.subscribed(subscribing, target, out);
            }
            (Asked::Publisher(_), other) => answers::write(Key::DeclarePublisher, correlation, other, over_tls, &mut out.bytes),
            (Asked::Subscription(_), other) => answers::write(Key::Subscribe, correlation, other, over_tls, &mut out.bytes),
            (Asked::Plain(key, going), answer) => {
                let mut gone = if answer.is_ok() { going } else { Vec::new() };
                if let (Key::DeleteSuperStream, Ok(Answer::Streams(partitions))) = (key, &answer) {
                    gone.clone_from(partitions);
                }
                answers::write(key, correlation, answer, over_tls, &mut out.bytes);
                gone.iter().for_each(|stream| self.on_gone(stream, out));
            }
        }
    }

    /// A stream is gone, or cannot be served: its publishers and subscriptions end and the client hears of it, if it had any.
    pub fn on_gone(&mut self, stream: &str, out: &mut Out) {
        let publishers: Vec<u8> = self.publishers.iter().filter(|(_, p)| *p.stream == *stream).map(|(number, _)| *number).collect();
        let subscriptions: Vec<u8> = self.subscriptions.iter().filter(|(_, s)| *s.stream == *stream).map(|(number, _)| *number).collect();
        for number in &publishers {
            self.publishers.remove(number);
            out.step(Step::ChannelClosed { channel: (*number).into(), held: Vec::new() });
        }
        for number in &subscriptions {
            self.end_subscription(*number, out);
        }
        if !publishers.is_empty() || !subscriptions.is_empty() {
            out.bytes.metadata_update(stream, Code::StreamNotAvailable);
        }
    }

    /// Streams that it has publishers or subscriptions of, some of them more than once.
    pub fn streams(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<StreamTarget>)> {
        let publishers = self.publishers.values().map(|p| (&p.stream, &p.target));
        publishers.chain(self.subscriptions.values().map(|s| (&s.stream, &s.target)))
    }

    /// A subscription's reader has ended.
    pub fn on_reader_gone(&mut self, subscription: u8, out: &mut Out) {
        if let Some(stream) = self.subscriptions.get(&subscription).map(|s| s.stream.clone()) {
            self.on_gone(&stream, out);
        }
    }
}

fn owned(pairs: &[Pair<'_>]) -> Vec<(String, String)> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}
