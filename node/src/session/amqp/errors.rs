//! The only file that knows AMQP reply codes: which refusal gets which, and whether it closes the channel or the connection.
//! Texts are RabbitMQ's: clients and their tests match on them.

use crate::model::catalog::Refusal;
use crate::wire::amqp::{Frame, FrameError, Malformed, frame};

/// Reply codes (spec 1.2), those in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ReplyCode {
    NoRoute,
    ConnectionForced,
    AccessRefused,
    NotFound,
    ResourceLocked,
    PreconditionFailed,
    FrameError,
    SyntaxError,
    CommandInvalid,
    ChannelError,
    UnexpectedFrame,
    ResourceError,
    NotAllowed,
    NotImplemented,
    InternalError,
}

impl ReplyCode {
    /// The number and the name that texts begin with.
    pub fn parts(self) -> (u16, &'static str) {
        match self {
            ReplyCode::NoRoute => (312, "NO_ROUTE"),
            ReplyCode::ConnectionForced => (320, "CONNECTION_FORCED"),
            ReplyCode::AccessRefused => (403, "ACCESS_REFUSED"),
            ReplyCode::NotFound => (404, "NOT_FOUND"),
            ReplyCode::ResourceLocked => (405, "RESOURCE_LOCKED"),
            ReplyCode::PreconditionFailed => (406, "PRECONDITION_FAILED"),
            ReplyCode::FrameError => (501, "FRAME_ERROR"),
            ReplyCode::SyntaxError => (502, "SYNTAX_ERROR"),
            ReplyCode::CommandInvalid => (503, "COMMAND_INVALID"),
            ReplyCode::ChannelError => (504, "CHANNEL_ERROR"),
            ReplyCode::UnexpectedFrame => (505, "UNEXPECTED_FRAME"),
            ReplyCode::ResourceError => (506, "RESOURCE_ERROR"),
            ReplyCode::NotAllowed => (530, "NOT_ALLOWED"),
            ReplyCode::NotImplemented => (540, "NOT_IMPLEMENTED"),
            ReplyCode::InternalError => (541, "INTERNAL_ERROR"),
        }
    }

    fn scope(self) -> Scope {
        match self {
            ReplyCode::NoRoute
            | ReplyCode::AccessRefused
            | ReplyCode::NotFound
            | ReplyCode::ResourceLocked
            | ReplyCode::PreconditionFailed => Scope::Channel,
            ReplyCode::ConnectionForced
            | ReplyCode::FrameError
            | ReplyCode::SyntaxError
            | ReplyCode::CommandInvalid
            | ReplyCode::ChannelError
            | ReplyCode::UnexpectedFrame
            | ReplyCode::ResourceError
            | ReplyCode::NotAllowed
            | ReplyCode::NotImplemented
            | ReplyCode::InternalError => Scope::Connection,
        }
    }
}

/// What a fault closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Its channel.
    Channel,
    /// Everything.
    Connection,
}

/// A reason to close, in the protocol's terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Reply code.
    pub code: ReplyCode,
    /// What it closes.
    pub scope: Scope,
    /// Text after the code's name.
    pub text: String,
    /// The method that failed; (0, 0) when none did.
    pub method: (u16, u16),
}

impl Fault {
    /// A fault with the scope that the code usually has.
    pub fn new(code: ReplyCode, text: impl Into<String>) -> Fault {
        Fault { code, scope: code.scope(), text: text.into(), method: (0, 0) }
    }

    /// The method that failed, unless one is named already.
    pub fn at(mut self, method: (u16, u16)) -> Fault {
        if self.method == (0, 0) {
            self.method = method;
        }
        self
    }

    /// The reply text: `NAME - text`.
    pub fn reply_text(&self) -> String {
        format!("{} - {}", self.code.parts().1, self.text)
    }

    /// 540.
    pub fn not_implemented(text: impl Into<String>) -> Fault {
        Fault::new(ReplyCode::NotImplemented, text)
    }

    /// 406.
    pub fn precondition(text: impl Into<String>) -> Fault {
        Fault::new(ReplyCode::PreconditionFailed, text)
    }

    /// 505.
    pub fn unexpected(text: impl Into<String>) -> Fault {
        Fault::new(ReplyCode::UnexpectedFrame, text)
    }

    /// 505 of a frame that has no business where it came.
    pub fn out_of_place(frame: &Frame) -> Fault {
        Fault::unexpected(format!("type {}, {}", frame.kind as u8, frame::snippet(&frame.payload)))
    }

    /// 403 of a failed login; the client learns no more than that.
    pub fn login_refused(mechanism: &str) -> Fault {
        let text = format!("Login was refused using authentication mechanism {mechanism}. For details see the broker logfile.");
        Fault { scope: Scope::Connection, ..Fault::new(ReplyCode::AccessRefused, text) }
    }

    /// Why connection.open failed: always 530.
    pub fn open_refused(refusal: Refusal) -> Fault {
        let text = match refusal {
            Refusal::NotFound { kind, name, .. } => format!("{kind} {name} not found"),
            Refusal::Inequivalent(text)
            | Refusal::Precondition(text)
            | Refusal::Access(text)
            | Refusal::Locked(text)
            | Refusal::NotImplemented(text)
            | Refusal::NotAllowed(text) => text,
            Refusal::Unavailable(text) => return Fault::new(ReplyCode::InternalError, text).at((10, 40)),
        };
        Fault::new(ReplyCode::NotAllowed, text).at((10, 40))
    }

    /// 541 for one channel: the rest of the connection may well work.
    fn unavailable(text: String) -> Fault {
        Fault { scope: Scope::Channel, ..Fault::new(ReplyCode::InternalError, text) }
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Fault {
        match refusal {
            Refusal::NotFound { .. } => Fault::new(ReplyCode::NotFound, refusal.to_string()),
            Refusal::Inequivalent(text) | Refusal::Precondition(text) => Fault::precondition(text),
            Refusal::Access(text) => Fault::new(ReplyCode::AccessRefused, text),
            Refusal::Locked(text) => Fault::new(ReplyCode::ResourceLocked, text),
            Refusal::Unavailable(text) => Fault::unavailable(text),
            Refusal::NotImplemented(text) => Fault::not_implemented(text),
            Refusal::NotAllowed(text) => Fault::new(ReplyCode::NotAllowed, text),
        }
    }
}

impl From<Malformed> for Fault {
    fn from(malformed: Malformed) -> Fault {
        Fault::new(ReplyCode::SyntaxError, malformed.to_string())
    }
}

impl From<FrameError> for Fault {
    fn from(error: FrameError) -> Fault {
        Fault::new(ReplyCode::FrameError, error.to_string())
    }
}
