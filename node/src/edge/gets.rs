//! basic.get of one connection: so many at once, the others wait for their turn, and their channels with them. An answer is in this node's
//! memory until the session takes it, and a client may ask on every channel and read nothing. Called by `connection`.

use crate::model::limits;
use crate::model::step::Request;
use std::collections::VecDeque;

#[derive(Debug, Default)]
pub(super) struct Gets {
    /// Channels whose answer the session has not taken.
    asked: Vec<u16>,
    waiting: VecDeque<(u16, Request)>,
}

impl Gets {
    /// The request comes back when it may be asked now.
    pub fn admit(&mut self, channel: u16, request: Request) -> Option<Request> {
        if self.asked.len() < limits::GETS {
            self.asked.push(channel);
            return Some(request);
        }
        self.waiting.push_back((channel, request));
        None
    }

    pub fn is_idle(&self) -> bool {
        self.asked.is_empty()
    }

    /// The session has the answer to that channel's request.
    pub fn answered(&mut self, channel: u16) {
        self.asked.retain(|asked| *asked != channel);
    }

    /// Nobody waits for that channel's answer any more.
    pub fn closed(&mut self, channel: u16) {
        self.answered(channel);
        self.waiting.retain(|waiting| waiting.0 != channel);
    }

    /// One that waited and may be asked now, with its channel.
    pub fn next(&mut self) -> Option<(u16, Request)> {
        if self.asked.len() >= limits::GETS {
            return None;
        }
        let next = self.waiting.pop_front()?;
        self.asked.push(next.0);
        Some(next)
    }
}
