//! One client's socket: reads, feeds the session, carries steps to the edge and events back, writes everything of a turn at once. Keeps
//! the deadlines and heartbeats. Stops reading or taking events when the other side does not keep up.

use crate::listener::EdgeConnection;
use crate::listener::line::Line;
use crate::listener::port::stopped;
use crate::listener::secure::looks_like_tls;
use crate::listener::socket::Socket;
use crate::model::limits;
use crate::model::report::Encryption;
use crate::model::step::{Event, Step};
use crate::session::amqp::{Options, Out, Phase, Session};
use crate::wire::amqp::frame;
use bytes::Buf;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// Steps handed over at a time, so that a full read buffer of small frames does not pile up as steps.
const STEPS: usize = 256;
/// Without heartbeats buffers of an idle connection are given back after this.
const IDLE: Duration = Duration::from_secs(10);

/// A client.
#[derive(Debug)]
pub(super) struct Connection<C> {
    line: Line,
    encryption: Option<Arc<Encryption>>,
    peer: SocketAddr,
    edge: C,
    session: Session,
    out: Out,
    events: Vec<Event>,
    /// The input is not frames any more: throw it away.
    deaf: bool,
    /// The front step was given back by the edge.
    held: bool,
    /// Bytes that wait in the socket, as far as they were looked at while nothing is read.
    unread_bytes: u64,
    tick_at: Instant,
    /// Of the handshake, then of leaving or closing.
    deadline: Option<Instant>,
    /// How long a client that has said goodbye waits for publishes that are held.
    leaving: Duration,
}

/// Why a connection ends; for the log.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the conversation is over")]
    Closed,
    #[error("the client hung up")]
    HungUp,
    #[error("nothing was heard for two heartbeats")]
    Silent,
    #[error("the handshake or the end took too long")]
    Late,
    #[error("the socket failed: {0}")]
    Failed(io::Error),
}

impl<C: EdgeConnection> Connection<C> {
    /// `until`: the handshake's deadline. `leaving`: as in the port's settings.
    pub(super) fn new(socket: Socket, peer: SocketAddr, edge: C, options: Options, (until, leaving): (Instant, Duration)) -> Connection<C> {
        let now = Instant::now();
        Connection {
            line: Line::new(socket),
            encryption: None,
            peer,
            edge,
            session: Session::new(options),
            out: Out::default(),
            events: Vec::new(),
            deaf: false,
            held: false,
            unread_bytes: 0,
            tick_at: now + IDLE,
            deadline: Some(until),
            leaving,
        }
    }

    /// What TLS agreed on; for listings.
    pub(super) fn encrypted(self, encryption: Arc<Encryption>) -> Connection<C> {
        Connection { encryption: Some(encryption), ..self }
    }

    /// Serves the client to its end.
    pub(super) async fn run(mut self, mut shutdown: watch::Receiver<bool>) {
        let end = self.serve(&mut shutdown).await;
        match &end {
            End::Closed => tracing::debug!(peer = %self.peer, vhost = self.session.vhost(), "connection closed"),
            End::HungUp if self.session.phase() != Phase::Running => tracing::debug!(peer = %self.peer, "client hung up"),
            End::HungUp | End::Silent | End::Late | End::Failed(_) => {
                tracing::warn!(peer = %self.peer, vhost = self.session.vhost(), phase = ?self.session.phase(), %end, "connection lost");
            }
        }
        let Connection { line, edge, .. } = self;
        drop(edge);
        if let End::Closed = end {
            line.socket.linger().await;
        }
    }

    async fn serve(&mut self, shutdown: &mut watch::Receiver<bool>) -> End {
        let mut stopping = false;
        loop {
            self.turn();
            if let Err(error) = self.line.write(&mut self.out.bytes) {
                return End::Failed(error);
            }
            self.watch_phase();
            if self.session.phase() == Phase::Closed && self.line.is_written(&self.out.bytes) && self.out.steps.is_empty() {
                return End::Closed;
            }
            let reads = self.reads();
            tokio::select! {
                ready = self.line.socket.readable(), if reads => match ready.and_then(|()| self.line.read()) {
                    Ok(0) => return End::HungUp,
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return End::Failed(error),
                },
                ready = self.line.socket.writable(), if !self.line.is_written(&self.out.bytes) => if let Err(error) = ready {
                    return End::Failed(error);
                },
                () = self.edge.changed(), if self.takes_events() => {}
                () = self.edge.writable(), if self.held => self.held = false,
                () = sleep_until(self.wake_at()) => if let Some(end) = self.on_time(Instant::now(), reads) {
                    return end;
                },
                () = stopped(shutdown), if !stopping => {
                    stopping = true;
                    self.stop();
                }
            }
        }
    }

    /// The node stops. Who has said goodbye while a publish is held is not told that all went well.
    fn stop(&mut self) {
        if self.held && self.session.phase() == Phase::Leaving {
            (self.leaving, self.deadline) = (limits::CLOSING, None);
            return;
        }
        let reason = "broker forced connection closure with reason 'shutdown'";
        self.session.on_event(Event::Close(reason.to_owned()), &mut self.out);
    }

    /// Everything that can be done without waiting.
    fn turn(&mut self) {
        self.submit();
        loop {
            let more_input = self.feed();
            self.submit();
            let had_events = self.take_events();
            self.submit();
            let goes_on = had_events || more_input && !self.held;
            if !goes_on {
                return;
            }
        }
    }

    /// Frames to the session. True: it stopped for the sake of the steps, there may be more.
    fn feed(&mut self) -> bool {
        if self.deaf {
            self.line.input.clear();
            return false;
        }
        if self.session.wants_header() {
            let Some((header, _)) = self.line.input.split_first_chunk::<8>() else { return false };
            let header = *header;
            self.line.input.advance(header.len());
            if looks_like_tls(&header) && self.line.socket.is_plain() {
                tracing::warn!(peer = %self.peer, "a TLS client on the AMQP port: use the TLS port, or no TLS in the client");
            }
            self.session.on_header(header, &mut self.out);
        }
        let mut stopped = false;
        while !stopped && self.takes_frames() {
            match frame::next(&mut self.line.input, self.session.frame_max()) {
                Ok(Some(frame)) => self.session.on_frame(frame, &mut self.out),
                Ok(None) => break,
                Err(error) => {
                    self.session.on_frame_error(error, &mut self.out);
                    self.deaf = true;
                    break;
                }
            }
            stopped = self.out.steps.len() >= STEPS;
        }
        self.session.end_batch(&mut self.out);
        stopped
    }

    /// Steps to the edge, in order. Credit and settlements that no frame asked for pass a publish that is held: consuming goes on. What
    /// the client says after the publish does not.
    fn submit(&mut self) {
        if self.held {
            self.submit_past_held();
            return;
        }
        while let Some(mut step) = self.out.steps.pop_front() {
            self.complete(&mut step);
            let closed = if let Step::ChannelClosed { channel, .. } = &step { Some(*channel) } else { None };
            if let Err(step) = self.edge.submit(step) {
                self.out.steps.push_front(step);
                self.held = true;
                self.submit_past_held();
                return;
            }
            if let Some(channel) = closed {
                self.session.on_channel_closed(channel, &mut self.out);
            }
        }
    }

    fn submit_past_held(&mut self) {
        let passes = |step: &Step| matches!(step, Step::Settle { asked: false, .. } | Step::Written { .. } | Step::Report(_));
        if !self.out.steps.iter().any(passes) {
            return;
        }
        for mut step in std::mem::take(&mut self.out.steps) {
            self.complete(&mut step);
            let refused = if passes(&step) { self.edge.submit(step).err() } else { Some(step) };
            self.out.steps.extend(refused);
        }
    }

    /// What a report says of the socket.
    fn complete(&self, step: &mut Step) {
        if let Step::Report(report) = step {
            report.local = self.line.socket.local_addr();
            report.encryption = self.encryption.clone();
            (report.received_bytes, report.sent_bytes) = (self.line.received_bytes, self.line.sent_bytes);
        }
    }

    fn take_events(&mut self) -> bool {
        if !self.takes_events() {
            return false;
        }
        let room = limits::CONNECTION_OUTPUT_BYTES - self.out.bytes.len();
        self.edge.take_events(&mut self.events, room);
        let any = !self.events.is_empty();
        for event in self.events.drain(..) {
            self.session.on_event(event, &mut self.out);
        }
        self.session.end_batch(&mut self.out);
        any
    }

    fn takes_events(&self) -> bool {
        self.out.bytes.len() < limits::CONNECTION_OUTPUT_BYTES && self.session.phase() != Phase::Closed
    }

    fn takes_frames(&self) -> bool {
        !self.held && self.session.wants_input() && self.out.bytes.len() < limits::CONNECTION_OUTPUT_BYTES
    }

    /// Whether the socket is read: there is use for the bytes, or only their end matters.
    fn reads(&self) -> bool {
        self.deaf || self.session.wants_header() || self.takes_frames()
    }

    // ---- time ----

    /// The handshake's deadline ends with it; closing has one of its own, and so has leaving while publishes are held.
    fn watch_phase(&mut self) {
        match self.session.phase() {
            Phase::Handshake => {}
            Phase::Running => {
                if self.deadline.take().is_some() {
                    let now = Instant::now();
                    self.line.heard = now;
                    self.tick_at = now + self.tick();
                }
            }
            Phase::Leaving if self.held => {
                self.deadline.get_or_insert_with(|| Instant::now() + self.leaving);
            }
            Phase::Leaving => self.deadline = None,
            Phase::Closing | Phase::Closed => {
                let latest = Instant::now() + limits::CLOSING;
                self.deadline = Some(self.deadline.map_or(latest, |deadline| deadline.min(latest)));
            }
        }
    }

    fn wake_at(&self) -> Instant {
        self.deadline.map_or(self.tick_at, |deadline| deadline.min(self.tick_at))
    }

    /// Half a heartbeat.
    fn tick(&self) -> Duration {
        match self.session.heartbeat() {
            0 => IDLE,
            seconds => Duration::from_millis(u64::from(seconds) * 500),
        }
    }

    fn on_time(&mut self, now: Instant, reading: bool) -> Option<End> {
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            return Some(if self.session.phase() == Phase::Closed { End::Closed } else { End::Late });
        }
        if now < self.tick_at {
            return None;
        }
        let tick = self.tick();
        self.tick_at = now + tick;
        if self.session.heartbeat() > 0 && matches!(self.session.phase(), Phase::Running | Phase::Leaving) {
            if !reading {
                self.listen_without_reading(now);
            }
            if now.duration_since(self.line.heard) > 4 * tick {
                return Some(End::Silent);
            }
            if now.duration_since(self.line.spoke) >= tick && self.out.bytes.is_empty() {
                self.out.bytes.heartbeat();
            }
        }
        if now.duration_since(self.line.heard.max(self.line.spoke)) >= tick {
            self.slim();
        }
        None
    }

    /// Nothing is read. While a publish is held that is not the client's fault. While it does not take its output it is to show that it
    /// lives, by taking some of that, or by sending.
    fn listen_without_reading(&mut self, now: Instant) {
        let is_clogged = self.out.bytes.len() >= limits::CONNECTION_OUTPUT_BYTES && !self.held;
        let unread_bytes = self.line.socket.unread_bytes();
        if !is_clogged || unread_bytes != self.unread_bytes {
            self.line.heard = now;
        }
        self.line.heard = self.line.heard.max(self.line.spoke);
        self.unread_bytes = unread_bytes;
    }

    /// An idle connection gives its buffers back.
    fn slim(&mut self) {
        self.out.bytes.shrink();
        self.out.steps.shrink_to_fit();
        self.events.shrink_to_fit();
        self.line.slim();
    }
}
