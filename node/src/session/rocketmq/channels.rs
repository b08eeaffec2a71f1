//! Numbers of channels: each call of an agent has one of its own while it is under way. Used by `agent`.

/// Free and unused numbers.
#[derive(Debug)]
pub(super) struct Channels {
    free: Vec<u16>,
    next: u16,
}

impl Channels {
    pub fn new() -> Channels {
        Channels { free: Vec::new(), next: 1 }
    }

    /// One that nobody uses; `None`: all are in use.
    pub fn take(&mut self) -> Option<u16> {
        self.free.pop().or_else(|| {
            let channel = self.next;
            self.next = channel.checked_add(1)?;
            Some(channel)
        })
    }

    /// Nobody uses it any more.
    pub fn give_back(&mut self, channel: u16) {
        self.free.push(channel);
    }
}
