//! What a broker sends, as owned values: for tests and for everything that is not the hot loop of the bench.

use super::table::Cursor;

/// A message that came, by basic.deliver, basic.get-ok or basic.return.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delivery {
    /// Consumer tag; empty for get and return.
    pub consumer: String,
    /// Delivery tag; 0 for a return.
    pub tag: u64,
    /// As the broker claims.
    pub redelivered: bool,
    /// Exchange it was published to.
    pub exchange: String,
    /// Routing key.
    pub key: String,
    /// Property flags and list as on the wire.
    pub properties: Vec<u8>,
    /// Body.
    pub body: Vec<u8>,
}

/// One thing the broker said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// basic.deliver.
    Deliver(u16, Delivery),
    /// basic.get-ok with the number of ready messages left.
    Got(u16, Delivery, u32),
    /// basic.get-empty.
    Empty(u16),
    /// basic.return.
    Returned {
        /// Channel.
        channel: u16,
        /// 312, 313.
        code: u16,
        /// The message.
        message: Delivery,
    },
    /// basic.ack (`nack`: basic.nack) for published messages.
    Confirm {
        /// Channel.
        channel: u16,
        /// Publish sequence number.
        tag: u64,
        /// And all before it.
        multiple: bool,
        /// Refused.
        nack: bool,
    },
    /// basic.cancel from the broker: the consumer tag.
    Cancelled(u16, String),
    /// connection.blocked.
    Blocked(String),
    /// connection.unblocked.
    Unblocked,
    /// channel.close.
    ChannelClose {
        /// Channel.
        channel: u16,
        /// Reply code.
        code: u16,
        /// Reply text.
        text: String,
    },
    /// connection.close.
    ConnectionClose {
        /// Reply code.
        code: u16,
        /// Reply text.
        text: String,
    },
    /// Any other method: (channel, class, method, arguments).
    Method(u16, u16, u16, Vec<u8>),
    /// A heartbeat.
    Heartbeat,
}

/// What a method frame is, before its content came.
#[derive(Debug)]
pub enum Parsed {
    /// Complete.
    Whole(Incoming),
    /// A header and perhaps bodies follow.
    Content(Incoming),
}

/// Parse a method frame's payload; `None` when it is malformed.
pub fn parse_method(channel: u16, payload: &[u8]) -> Option<Parsed> {
    let mut at = Cursor(payload);
    let id = (at.u16()?, at.u16()?);
    let whole = match id {
        (60, 60 | 71 | 50) => return parse_content(channel, id.1, at).map(Parsed::Content),
        (60, 72) => Incoming::Empty(channel),
        (60, 80) => Incoming::Confirm { channel, tag: at.uint(8)?, multiple: at.u8()? & 1 == 1, nack: false },
        (60, 120) => Incoming::Confirm { channel, tag: at.uint(8)?, multiple: at.u8()? & 1 == 1, nack: true },
        (60, 30) => Incoming::Cancelled(channel, at.short()?.to_owned()),
        (10, 60) => Incoming::Blocked(at.short()?.to_owned()),
        (10, 61) => Incoming::Unblocked,
        (10, 50) => Incoming::ConnectionClose { code: at.u16()?, text: at.short()?.to_owned() },
        (20, 40) => Incoming::ChannelClose { channel, code: at.u16()?, text: at.short()?.to_owned() },
        (class, method) => Incoming::Method(channel, class, method, at.0.to_vec()),
    };
    Some(Parsed::Whole(whole))
}

fn parse_content(channel: u16, method: u16, mut at: Cursor<'_>) -> Option<Incoming> {
    let mut message = Delivery::default();
    let mut code = 0;
    match method {
        50 => {
            code = at.u16()?;
            at.short()?;
        }
        _ => {
            if method == 60 {
                message.consumer = at.short()?.to_owned();
            }
            message.tag = at.uint(8)?;
            message.redelivered = at.u8()? & 1 == 1;
        }
    }
    message.exchange = at.short()?.to_owned();
    message.key = at.short()?.to_owned();
    Some(match method {
        50 => Incoming::Returned { channel, code, message },
        60 => Incoming::Deliver(channel, message),
        _ => Incoming::Got(channel, message, at.uint(4)? as u32),
    })
}

impl Incoming {
    /// The message whose content follows.
    pub fn message_mut(&mut self) -> Option<&mut Delivery> {
        match self {
            Incoming::Deliver(_, message) | Incoming::Got(_, message, _) | Incoming::Returned { message, .. } => Some(message),
            Incoming::Empty(_)
            | Incoming::Confirm { .. }
            | Incoming::Cancelled(..)
            | Incoming::Blocked(_)
            | Incoming::Unblocked
            | Incoming::ChannelClose { .. }
            | Incoming::ConnectionClose { .. }
            | Incoming::Method(..)
            | Incoming::Heartbeat => None,
        }
    }
}
