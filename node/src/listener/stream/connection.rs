//! One stream client's socket: reads, feeds the session, carries acts to the edge and what comes back to the session, writes everything of
//! a turn at once. Keeps the deadlines and heartbeats. Stops reading when publishes or answers have to wait, and takes no chunks while the
//! client does not take those it was sent.

use super::StreamConnection;
use super::figures::{Figures, Tally};
use super::readers::Readers;
use super::turns::Turns;
use crate::listener::line::Line;
use crate::listener::port::{Client, stopped};
use crate::listener::socket::read_file;
use crate::model::limits;
use crate::model::report::Encryption;
use crate::model::step::{Event, Step};
use crate::model::stream::StreamChunk;
use crate::model::stream_step::{Answer, Failure};
use crate::session::stream::{Act, Options, Out, Phase, Session};
use crate::wire::stream::frame;
use futures::future::BoxFuture;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// Acts handed over at a time.
const ACTS: usize = 256;
/// Without heartbeats buffers of an idle connection are given back after this.
const IDLE: Duration = Duration::from_secs(10);
/// First byte of a TLS client's hello (RFC 8446, section 5.1); here it would be a frame of 369 MB and more.
const TLS_HELLO: u8 = 22;

type Asking = BoxFuture<'static, Result<Answer, Failure>>;

/// A client.
pub(super) struct Connection<C: StreamConnection> {
    line: Line,
    encryption: Option<Arc<Encryption>>,
    peer: SocketAddr,
    edge: C,
    session: Session,
    out: Out,
    events: Vec<Event>,
    readers: Readers<C::Reader>,
    turns: Turns,
    tally: Tally,
    /// Streams may have gone, turns may have moved.
    catalog_rx: watch::Receiver<()>,
    /// Scratch space.
    idle: Vec<u8>,
    /// The question at the edge.
    asking: Option<Asking>,
    /// The front act was given back by the edge.
    held: bool,
    /// The input is not frames any more: throw it away.
    deaf: bool,
    tick_at: Instant,
    /// Of the handshake, then of closing.
    deadline: Option<Instant>,
    /// The client owes an answer since then.
    owes_since: Option<Instant>,
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
    #[error("no answer to a ConsumerUpdate")]
    Unanswered,
    #[error("the handshake or the closing took too long")]
    Late,
    #[error("the socket failed: {0}")]
    Failed(io::Error),
}

impl<C: StreamConnection> Connection<C> {
    pub(super) fn new(client: Client, edge: C, options: Options, figures: Arc<Figures>) -> Connection<C> {
        let Client { socket, peer, encryption, until, .. } = client;
        let catalog_rx = edge.catalog();
        Connection {
            line: Line::new(socket),
            encryption,
            peer,
            edge,
            session: Session::new(options),
            out: Out::default(),
            events: Vec::new(),
            readers: Readers::new(),
            turns: Turns::default(),
            tally: Tally::new(figures),
            catalog_rx,
            idle: Vec::new(),
            asking: None,
            held: false,
            deaf: false,
            tick_at: Instant::now() + IDLE,
            deadline: Some(until),
            owes_since: None,
        }
    }

    /// Serves the client to its end.
    pub(super) async fn run(mut self, mut shutdown: watch::Receiver<bool>) {
        let end = self.serve(&mut shutdown).await;
        match &end {
            End::Closed => tracing::debug!(peer = %self.peer, vhost = self.session.vhost(), "stream connection closed"),
            End::HungUp if self.session.phase() != Phase::Running => tracing::debug!(peer = %self.peer, "client hung up"),
            End::HungUp | End::Silent | End::Unanswered | End::Late | End::Failed(_) => {
                tracing::warn!(peer = %self.peer, vhost = self.session.vhost(), phase = ?self.session.phase(), %end, "stream connection lost");
            }
        }
        let Connection { line, edge, readers, tally, .. } = self;
        drop((edge, readers, tally));
        if let End::Closed = end {
            line.socket.linger().await;
        }
    }

    async fn serve(&mut self, shutdown: &mut watch::Receiver<bool>) -> End {
        let mut stopping = false;
        loop {
            self.turn();
            self.tally.tell(self.session.counts());
            let was_full = !self.has_room();
            if let Err(error) = self.line.write(&mut self.out.bytes) {
                return End::Failed(error);
            }
            self.watch_phase();
            let is_written = self.line.is_written(&self.out.bytes);
            if self.session.phase() == Phase::Closed && is_written && self.out.acts.is_empty() {
                return End::Closed;
            }
            if self.has_more(was_full) {
                tokio::task::yield_now().await;
                continue;
            }
            let (reads, has_room, wake_at) = (self.reads(), self.has_room(), self.wake_at());
            tokio::select! {
                ready = self.line.socket.readable(), if reads => match ready.and_then(|()| self.line.read()) {
                    Ok(0) => return End::HungUp,
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return End::Failed(error),
                },
                ready = self.line.socket.writable(), if !is_written => if let Err(error) = ready {
                    return End::Failed(error);
                },
                () = self.edge.changed(), if has_room => {}
                () = self.edge.writable(), if self.held => self.held = false,
                answer = answered(&mut self.asking), if self.asking.is_some() => {
                    self.asking = None;
                    self.session.on_answer(answer, &mut self.out);
                }
                woken = self.readers.wait(), if has_room && self.readers.any_waits() => if let Some((subscription, chunk)) = woken {
                    self.on_chunk(subscription, chunk);
                },
                Ok(()) = self.catalog_rx.changed() => self.look_into_catalog(),
                () = sleep_until(wake_at) => if let Some(end) = self.on_time(Instant::now(), reads) {
                    return end;
                },
                () = stopped(shutdown), if !stopping => {
                    stopping = true;
                    self.session.on_event(Event::Close("the broker is shut down".to_owned()), &mut self.out);
                }
            }
        }
    }

    /// Everything that can be done without waiting.
    fn turn(&mut self) {
        loop {
            self.act();
            let more_input = self.feed();
            self.act();
            let had_events = self.take_events();
            self.act();
            let had_chunks = self.take_chunks();
            let goes_on = had_events || had_chunks || more_input && !self.held && self.asking.is_none();
            if !goes_on || !self.has_room() {
                return;
            }
        }
    }

    /// There was no room for all there is, and now there is room.
    fn has_more(&self, was_full: bool) -> bool {
        self.has_room() && (was_full || !self.events.is_empty())
    }

    /// Frames to the session. True: it stopped for the sake of the acts, there may be more.
    fn feed(&mut self) -> bool {
        if self.deaf {
            self.line.input.clear();
            return false;
        }
        while self.out.acts.len() < ACTS {
            if !self.takes_frames() {
                return false;
            }
            match frame::next(&mut self.line.input, self.session.frame_max()) {
                Ok(Some(content)) => self.session.on_frame(&content, &mut self.out),
                Ok(None) => return false,
                Err(error) => {
                    if self.session.phase() == Phase::Handshake
                        && self.line.input.first() == Some(&TLS_HELLO)
                        && self.line.socket.is_plain()
                    {
                        tracing::error!(peer = %self.peer, "a TLS client on the port without it: use the one with TLS, or no TLS in the client");
                    }
                    self.session.on_too_large(error, &mut self.out);
                    self.deaf = true;
                    return false;
                }
            }
        }
        true
    }

    /// Acts in order; behind a publish that is held nothing but reports passes.
    fn act(&mut self) {
        while !self.held {
            let Some(act) = self.out.acts.pop_front() else { return };
            self.perform(act);
        }
        if self.out.acts.iter().any(|act| matches!(act, Act::Step(Step::Report(_)))) {
            let (reports, acts) = std::mem::take(&mut self.out.acts).into_iter().partition(|act| matches!(act, Act::Step(Step::Report(_))));
            self.out.acts = acts;
            for report in Vec::from(reports) {
                self.perform(report);
            }
        }
    }

    fn perform(&mut self, act: Act) {
        match act {
            Act::Step(mut step) => {
                self.complete(&mut step);
                if let Err(step) = self.edge.submit(step) {
                    self.out.acts.push_front(Act::Step(step));
                    self.held = true;
                }
            }
            Act::Ask(ask) => self.asking = Some(self.edge.ask(ask)),
            Act::Store { stream, reference, offset } => self.edge.store(&stream, &reference, offset),
            Act::Read(read) => match self.edge.read(&read.target, read.from) {
                Ok(reader) => self.readers.insert(read.subscription, reader),
                Err(failure) => {
                    tracing::debug!(peer = %self.peer, %failure, "a stream cannot be read");
                    self.session.on_reader_gone(read.subscription, &mut self.out);
                }
            },
            Act::Stop { subscription } => self.readers.remove(subscription),
            Act::Join(member) => self.turns.join(member, &mut self.edge),
            Act::Leave(member) => self.turns.leave(&member, &mut self.edge),
            Act::Yielded(member) => self.edge.yield_turn(&member),
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
        if !self.has_room() {
            return false;
        }
        // No messages are among them: those come as chunks.
        self.edge.take_events(&mut self.events, usize::MAX);
        let mut done = 0;
        while done < self.events.len() && self.has_room() {
            let event = std::mem::replace(&mut self.events[done], Event::Opened);
            self.session.on_event(event, &mut self.out);
            done += 1;
        }
        self.events.drain(..done);
        done > 0
    }

    /// Chunks at hand, as many as the client has credit for and there is room.
    fn take_chunks(&mut self) -> bool {
        let mut idle = std::mem::take(&mut self.idle);
        self.readers.idle(&mut idle);
        let mut any = false;
        for subscription in &idle {
            while self.session.wants_chunk(*subscription) && self.has_room() {
                let Some(chunk) = self.readers.take(*subscription) else { break };
                self.on_chunk(*subscription, chunk);
                any = true;
            }
        }
        self.idle = idle;
        any
    }

    fn on_chunk(&mut self, subscription: u8, chunk: Result<StreamChunk, Failure>) {
        match chunk {
            Ok(chunk) => self.session.on_chunk(subscription, &chunk, &mut self.out),
            Err(failure) => {
                tracing::debug!(peer = %self.peer, %failure, "a stream cannot be read any more");
                self.readers.remove(subscription);
                self.session.on_reader_gone(subscription, &mut self.out);
            }
        }
    }

    /// Streams that are gone take their publishers and subscriptions with them; turns may have moved.
    fn look_into_catalog(&mut self) {
        let gone: Vec<Arc<str>> =
            self.session.streams().filter(|(_, target)| !self.edge.has_stream(target)).map(|(stream, _)| stream.clone()).collect();
        gone.iter().for_each(|stream| self.session.on_gone(stream, &mut self.out));
        for (subscription, active) in self.turns.look(&mut self.edge) {
            self.session.on_turn(subscription, active, &mut self.out);
        }
    }

    fn has_room(&self) -> bool {
        self.out.bytes.len() < limits::CONNECTION_OUTPUT_BYTES && self.session.phase() != Phase::Closed
    }

    fn takes_frames(&self) -> bool {
        !self.held && self.session.wants_input() && self.has_room()
    }

    /// Whether the socket is read: there is use for the bytes, or only their end matters.
    fn reads(&self) -> bool {
        self.deaf || self.takes_frames()
    }

    // ---- time ----

    /// The handshake's deadline ends with it; closing has one of its own.
    fn watch_phase(&mut self) {
        match self.session.phase() {
            Phase::Handshake => {}
            Phase::Running => {
                let now = Instant::now();
                if self.deadline.take().is_some() {
                    self.line.heard = now;
                    self.tick_at = now + self.tick();
                }
                self.owes_since = if self.session.awaits_client() { self.owes_since.or(Some(now)) } else { None };
            }
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
        if self.owes_since.is_some_and(|since| now.duration_since(since) > limits::STREAM_ANSWER) {
            return Some(End::Unanswered);
        }
        let tick = self.tick();
        self.tick_at = now + tick;
        if self.session.heartbeat() > 0 && self.session.phase() == Phase::Running {
            if !reading {
                self.line.heard = now;
            }
            if now.duration_since(self.line.heard) > 4 * tick {
                return Some(End::Silent);
            }
            if now.duration_since(self.line.spoke) >= tick && self.out.bytes.is_empty() {
                self.out.bytes.heartbeat();
            }
        }
        // A client that takes nothing: the log's files are not held for it.
        if now.duration_since(self.line.spoke) >= tick
            && let Err(error) = self.out.bytes.settle(|bytes| read_file(bytes, bytes.len()))
        {
            return Some(End::Failed(error));
        }
        if now.duration_since(self.line.heard.max(self.line.spoke)) >= tick {
            self.slim();
        }
        None
    }

    /// An idle connection gives its buffers back.
    fn slim(&mut self) {
        self.out.bytes.shrink();
        self.out.acts.shrink_to_fit();
        self.events.shrink_to_fit();
        self.line.slim();
    }
}

async fn answered(asking: &mut Option<Asking>) -> Result<Answer, Failure> {
    match asking {
        Some(asking) => asking.await,
        None => std::future::pending().await,
    }
}
