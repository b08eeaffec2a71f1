//! A client's AMQP 0-9-1 conversation as a pure state machine: no sockets, no clock, no tasks. The listener feeds frames and events and
//! carries away steps and bytes. Semantics that need the cluster (existence, permissions, locks) are the edge's.

mod channel;
mod channels;
mod confirms;
mod deliveries;
pub mod errors;
mod handshake;
mod out;
mod replies;
mod report;
mod requests;
mod tags;
mod transaction;
mod unsettled;

#[cfg(test)]
mod transcripts;

use crate::model::catalog::Table;
use crate::model::limits;
use crate::model::step::{Event, Step};
use crate::wire::amqp::{Frame, FrameError, FrameKind, Method, PROTOCOL_HEADER, Short};
use channel::Channel;
use errors::{Fault, ReplyCode, Scope};
use handshake::Capabilities;
use hashbrown::HashMap;
pub use out::Out;
use std::sync::Arc;

const UPDATE_SECRET: (u16, u16) = (10, 70);

/// What a session needs to know of its surroundings.
#[derive(Clone, Debug)]
pub struct Options {
    /// Shown to clients.
    pub cluster_name: String,
    /// Randomness for consumer tags.
    pub seed: u64,
    /// The user that the client's certificate stands for, if one was verified: then EXTERNAL is offered.
    pub certificate_name: Option<Arc<str>>,
    /// Largest body of a message, bytes; `limits::MESSAGE_BYTES` at most.
    pub max_message_bytes: u64,
}

/// What the listener must know of a session's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not yet in a vhost: the handshake's deadline runs.
    Handshake,
    /// In a vhost.
    Running,
    /// The client said goodbye, and is answered when all that it sent before has taken effect.
    Leaving,
    /// connection.close was sent: wait for close-ok, not for long.
    Closing,
    /// Write what is left, then close the socket.
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Header,
    Start,
    Authenticating {
        mechanism: &'static str,
    },
    Tune,
    Open,
    Opening,
    Running,
    /// The client asked to close; channels finish what they began.
    Leaving,
    /// They have; the edge clears up.
    Parting,
    Closing,
    Closed,
}

impl State {
    /// As RabbitMQ's error texts call it.
    fn text(self) -> &'static str {
        match self {
            State::Header => "pre_init",
            State::Start => "starting",
            State::Authenticating { .. } => "securing",
            State::Tune => "tuning",
            State::Open | State::Opening => "opening",
            State::Running | State::Leaving | State::Parting => "running",
            State::Closing => "closing",
            State::Closed => "closed",
        }
    }
}

/// What the channels of a connection share.
#[derive(Debug)]
struct Shared {
    vhost: Arc<str>,
    frame_max: u32,
    max_message_bytes: u64,
    tags: tags::Tags,
    /// Bytes of commands that wait behind requests.
    backlog: usize,
    /// Bytes of messages that are not complete.
    assembling: usize,
    /// Channels on which a message began since the last batch's end.
    begun: Vec<u16>,
}

impl Shared {
    fn begun(&mut self, channel: u16) {
        if self.begun.last() != Some(&channel) {
            self.begun.push(channel);
        }
    }

    fn check_assembling(&self) -> Result<(), Fault> {
        if self.assembling <= limits::CONNECTION_ASSEMBLY_BYTES {
            return Ok(());
        }
        let text = format!("more than {} bytes of unfinished messages", limits::CONNECTION_ASSEMBLY_BYTES);
        Err(Fault::new(ReplyCode::ResourceError, text))
    }
}

/// A channel number in use.
#[derive(Debug)]
enum Slot {
    Open(Box<Channel>),
    /// We closed it; `stale`: the edge does not know yet, answers to the closed channel may still come.
    Closing {
        stale: bool,
    },
    /// Closed on both sides, but the edge does not know yet; what the client sends for a new channel waits.
    Haunted {
        frames: Vec<Frame>,
    },
}

/// A client's conversation.
#[derive(Debug)]
pub struct Session {
    options: Options,
    state: State,
    capabilities: Capabilities,
    /// What the client says of itself, and how it logged in; for listings.
    client_properties: Table,
    mechanism: &'static str,
    shared: Shared,
    channel_max: u16,
    heartbeat: u16,
    epochs: u32,
    channels: HashMap<u16, Slot>,
    /// Channels with confirms to write at the end of the batch.
    unflushed: Vec<u16>,
}

impl Session {
    /// Waits for the protocol header.
    pub fn new(options: Options) -> Session {
        let shared = Shared {
            vhost: "".into(),
            frame_max: limits::FRAME_MAX_BEFORE_TUNE,
            max_message_bytes: options.max_message_bytes,
            tags: tags::Tags::new(options.seed),
            backlog: 0,
            assembling: 0,
            begun: Vec::new(),
        };
        Session {
            options,
            state: State::Header,
            capabilities: Capabilities::default(),
            client_properties: Table::new(),
            mechanism: "",
            shared,
            channel_max: limits::CHANNEL_MAX,
            heartbeat: 0,
            epochs: 0,
            channels: HashMap::new(),
            unflushed: Vec::new(),
        }
    }

    /// Where it stands.
    pub fn phase(&self) -> Phase {
        match self.state {
            State::Header | State::Start | State::Authenticating { .. } | State::Tune | State::Open | State::Opening => Phase::Handshake,
            State::Running => Phase::Running,
            State::Leaving | State::Parting => Phase::Leaving,
            State::Closing => Phase::Closing,
            State::Closed => Phase::Closed,
        }
    }

    /// The protocol header was not read yet.
    pub fn wants_header(&self) -> bool {
        self.state == State::Header
    }

    /// Whether it takes frames now. False: stop reading the socket (a backlog is full, or an answer must come first).
    pub fn wants_input(&self) -> bool {
        match self.state {
            State::Header | State::Authenticating { .. } | State::Opening | State::Leaving | State::Parting | State::Closed => false,
            State::Start | State::Tune | State::Open | State::Closing => true,
            State::Running => self.shared.backlog <= limits::CONNECTION_BACKLOG_BYTES,
        }
    }

    /// Largest whole frame, either way.
    pub fn frame_max(&self) -> u32 {
        self.shared.frame_max
    }

    /// Seconds between signs of life; 0 = none wanted.
    pub fn heartbeat(&self) -> u16 {
        self.heartbeat
    }

    /// The vhost, once open; for logs.
    pub fn vhost(&self) -> &str {
        &self.shared.vhost
    }

    /// The first eight bytes. Anything but our header is answered with ours (spec 4.2.2).
    pub fn on_header(&mut self, header: [u8; 8], out: &mut Out) {
        if header == PROTOCOL_HEADER {
            out.bytes.method(0, &handshake::start(&self.options));
            self.state = State::Start;
        } else {
            out.bytes.raw(&PROTOCOL_HEADER);
            self.state = State::Closed;
        }
    }

    /// A frame.
    pub fn on_frame(&mut self, frame: Frame, out: &mut Out) {
        let channel = frame.channel;
        let result = match (self.state, channel) {
            (State::Closed | State::Leaving | State::Parting | State::Header, _) => Ok(()),
            (_, 0) => self.on_connection_frame(frame, out),
            (State::Closing, _) => Ok(()),
            (State::Running, _) => self.on_channel_frame(frame, out),
            (State::Start | State::Authenticating { .. } | State::Tune | State::Open | State::Opening, _) => {
                Err(Fault::out_of_place(&frame))
            }
        };
        if let Err(fault) = result {
            self.fail(channel, fault, out);
        }
    }

    /// Bytes that are no frame: nothing after them can be understood.
    pub fn on_frame_error(&mut self, error: FrameError, out: &mut Out) {
        match self.state {
            State::Closing => self.state = State::Closed,
            _ => self.close(error.into(), out),
        }
    }

    /// The edge's word.
    pub fn on_event(&mut self, event: Event, out: &mut Out) {
        match event {
            Event::Authenticated => self.on_authenticated(out),
            Event::AuthenticationFailed(_) => self.on_login_refused(out),
            Event::Opened => self.on_opened(out),
            Event::OpenRefused(refusal) if self.state == State::Opening => self.close(Fault::open_refused(refusal), out),
            Event::OpenRefused(_) => {}
            Event::SecretUpdated(Ok(())) => self.notify(true, &Method::ConnectionUpdateSecretOk {}, out),
            Event::SecretUpdated(Err(refusal)) if self.state == State::Running => {
                self.close(Fault { method: UPDATE_SECRET, ..Fault::open_refused(refusal) }, out);
            }
            Event::SecretUpdated(Err(_)) => {}
            Event::Close(text) => self.close(Fault::new(ReplyCode::ConnectionForced, text), out),
            Event::Report => out.step(Step::Report(Box::new(self.report()))),
            Event::Blocked(reason) => {
                self.notify(self.capabilities.blocked, &Method::ConnectionBlocked { reason: Short::from(reason.as_str()) }, out)
            }
            Event::Left if self.state == State::Parting => self.close_ok(out),
            Event::Left => {}
            Event::Unblocked => self.notify(self.capabilities.blocked, &Method::ConnectionUnblocked {}, out),
            channel_event if matches!(self.state, State::Running | State::Leaving) => self.on_channel_event(channel_event, out),
            _after_the_end => {}
        }
    }

    /// The edge has taken `Step::ChannelClosed`: from now on everything it says of this number is about the next channel.
    pub fn on_channel_closed(&mut self, number: u16, out: &mut Out) {
        match self.channels.get_mut(&number) {
            Some(Slot::Closing { stale }) => *stale = false,
            Some(Slot::Haunted { frames }) => {
                let frames = std::mem::take(frames);
                self.channels.remove(&number);
                for frame in frames {
                    if matches!(self.state, State::Closing | State::Closed) {
                        return;
                    }
                    self.shared.backlog = self.shared.backlog.saturating_sub(frame.payload.len() + size_of::<Frame>());
                    self.on_frame(frame, out);
                }
            }
            Some(Slot::Open(_)) | None => {}
        }
    }

    /// All frames or events at hand were fed: writes confirms, lets go of the read buffer.
    pub fn end_batch(&mut self, out: &mut Out) {
        out.end_batch();
        while let Some(number) = self.unflushed.pop() {
            if let Some(Slot::Open(channel)) = self.channels.get_mut(&number) {
                channel.flush_confirms(out);
            }
        }
        while let Some(number) = self.shared.begun.pop() {
            if let Some(Slot::Open(channel)) = self.channels.get_mut(&number) {
                channel.detach();
            }
        }
    }

    fn notify(&self, wanted: bool, method: &Method, out: &mut Out) {
        if wanted && self.state == State::Running {
            out.bytes.method(0, method);
        }
    }

    // ---- the connection ----

    fn on_connection_frame(&mut self, frame: Frame, out: &mut Out) -> Result<(), Fault> {
        match frame.kind {
            FrameKind::Heartbeat => return Ok(()),
            FrameKind::Method => {}
            FrameKind::Header | FrameKind::Body if self.state == State::Closing => return Ok(()),
            FrameKind::Header | FrameKind::Body => return Err(Fault::out_of_place(&frame)),
        }
        let method = match Method::decode(frame.payload) {
            Ok(Some(method)) => method,
            _ if self.state == State::Closing => return Ok(()),
            Ok(None) => return Err(Fault::new(ReplyCode::CommandInvalid, "unimplemented method")),
            Err(malformed) => return Err(malformed.into()),
        };
        let id = method.id();
        self.on_connection_method(method, out).map_err(|fault| fault.at(id))
    }

    fn on_connection_method(&mut self, method: Method, out: &mut Out) -> Result<(), Fault> {
        match (method, self.state) {
            (Method::ConnectionCloseOk {}, State::Closing) => self.state = State::Closed,
            (Method::ConnectionClose { .. }, State::Closing) => out.bytes.method(0, &Method::ConnectionCloseOk {}),
            (_, State::Closing) => {}
            (Method::ConnectionClose { .. }, _) => self.leave(out),
            (Method::ConnectionStartOk { client_properties, mechanism, response, .. }, State::Start) => {
                self.capabilities = Capabilities::of(&client_properties);
                self.client_properties = client_properties;
                let mechanism = handshake::mechanism(&mechanism, &self.options)?;
                self.mechanism = mechanism.name();
                self.state = State::Authenticating { mechanism: mechanism.name() };
                out.step(handshake::login(mechanism, &response)?);
            }
            (Method::ConnectionTuneOk { channel_max, frame_max, heartbeat }, State::Tune) => {
                handshake::check_tune(channel_max, frame_max)?;
                self.shared.frame_max = frame_max;
                self.channel_max = channel_max;
                self.heartbeat = heartbeat;
                self.state = State::Open;
            }
            (Method::ConnectionOpen { virtual_host, .. }, State::Open) => {
                let vhost = str::from_utf8(&virtual_host).map_err(|_| Fault::new(ReplyCode::NotAllowed, "vhost is not UTF-8"))?;
                self.shared.vhost = vhost.into();
                out.step(Step::Open { vhost: vhost.to_owned() });
                self.state = State::Opening;
            }
            (Method::ConnectionUpdateSecret { .. }, State::Running) => out.step(Step::UpdateSecret),
            (_, state) => {
                return Err(Fault::new(ReplyCode::ChannelError, format!("unexpected method in connection state {}", state.text())));
            }
        }
        Ok(())
    }

    fn on_authenticated(&mut self, out: &mut Out) {
        if let State::Authenticating { .. } = self.state {
            out.bytes.method(0, &handshake::tune());
            self.state = State::Tune;
        }
    }

    fn on_login_refused(&mut self, out: &mut Out) {
        let State::Authenticating { mechanism } = self.state else { return };
        if self.capabilities.authentication_failure_close {
            self.close(Fault::login_refused(mechanism), out);
        } else {
            self.state = State::Closed;
        }
    }

    fn on_opened(&mut self, out: &mut Out) {
        if self.state == State::Opening {
            out.bytes.method(0, &Method::ConnectionOpenOk { reserved_1: Short::default() });
            self.state = State::Running;
        }
    }

    /// The client says goodbye: what it sent before still counts.
    fn leave(&mut self, out: &mut Out) {
        self.state = State::Leaving;
        self.leave_when_idle(out);
    }

    fn leave_when_idle(&mut self, out: &mut Out) {
        let idle = |slot: &Slot| match slot {
            Slot::Open(channel) => channel.is_idle(),
            Slot::Closing { .. } | Slot::Haunted { .. } => true,
        };
        if self.state == State::Leaving && self.channels.values().all(idle) {
            self.end_batch(out);
            out.step(Step::Leave);
            self.state = State::Parting;
        }
    }

    fn close_ok(&mut self, out: &mut Out) {
        out.bytes.method(0, &Method::ConnectionCloseOk {});
        self.state = State::Closed;
    }

    /// Closes the connection; channels end with it.
    fn close(&mut self, fault: Fault, out: &mut Out) {
        match self.state {
            State::Closing | State::Closed => return,
            State::Header => {
                self.state = State::Closed;
                return;
            }
            State::Leaving | State::Parting => return self.close_ok(out),
            _ if !self.is_told(&fault) => {
                tracing::info!(code = fault.code.parts().0, text = %fault.text, state = self.state.text(), "ending a handshake");
                self.state = State::Closed;
                return;
            }
            _ => {}
        }
        tracing::info!(code = fault.code.parts().0, text = %fault.text, method = ?fault.method, "closing connection");
        self.end_batch(out);
        let (class_id, method_id) = fault.method;
        let reply_text = Short::from(fault.reply_text().as_str());
        out.bytes.method(0, &Method::ConnectionClose { reply_code: fault.code.parts().0, reply_text, class_id, method_id });
        self.state = State::Closing;
        self.channels.clear();
        self.shared.backlog = 0;
        self.shared.assembling = 0;
    }

    /// Before the vhost is named RabbitMQ says why it goes only to those whose login or whose sizes it refuses.
    fn is_told(&self, fault: &Fault) -> bool {
        match self.state {
            State::Start | State::Authenticating { .. } => fault.code == ReplyCode::AccessRefused,
            State::Tune => fault.code == ReplyCode::NotAllowed,
            State::Header | State::Open | State::Opening => true,
            State::Running | State::Leaving | State::Parting | State::Closing | State::Closed => true,
        }
    }

    fn fail(&mut self, channel: u16, fault: Fault, out: &mut Out) {
        match fault.scope {
            Scope::Channel if channel != 0 => self.close_channel(channel, fault, out),
            Scope::Channel | Scope::Connection => self.close(fault, out),
        }
    }
}
