//! A large backlog: fill a queue as fast as the broker confirms, and take it out again while every message is checked for its place and
//! its bytes. Nothing is kept per message, so that the test's own memory does not grow with the backlog.

use crate::client::encode::{self, Route};
use crate::client::{ClientError, Connection, Incoming};
use std::time::Duration;

/// Nothing from the broker for this long ends a run.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes that wait for their confirm.
const WINDOW_BYTES: u64 = 8 << 20;
/// Bytes that are written at once.
const WRITE_BYTES: u64 = 1 << 20;
/// A message's number at the beginning of its body.
const NUMBER: usize = 8;

/// Messages of a queue, numbered from 1.
#[derive(Clone, Debug)]
pub struct Backlog {
    /// Where it lies.
    pub queue: String,
    /// Bytes of a body, at least 8.
    pub size: usize,
    /// Messages.
    pub messages: u64,
}

impl Backlog {
    fn write(&self, number: u64, body: &mut [u8]) {
        body[..NUMBER].copy_from_slice(&number.to_le_bytes());
        body[NUMBER..].fill(number as u8);
    }

    fn check(&self, number: u64, body: &[u8]) -> Result<(), ClientError> {
        let found = body.first_chunk::<NUMBER>().map(|bytes| u64::from_le_bytes(*bytes));
        let whole = body.len() == self.size && body[NUMBER..].iter().all(|byte| *byte == number as u8);
        if found == Some(number) && whole {
            return Ok(());
        }
        Err(ClientError::Protocol(format!("message {number} was due, {found:?} came with {} bytes, whole: {whole}", body.len())))
    }

    /// Messages that make up so many bytes, at least one.
    fn of_bytes(&self, bytes: u64) -> u64 {
        (bytes / self.size as u64).max(1)
    }

    /// Publish everything through channel 1 and wait for all confirms.
    ///
    /// # Errors
    /// As the connection's; a refused message is one.
    pub fn fill(&self, connection: &mut Connection) -> Result<(), ClientError> {
        connection.confirm_select(1)?;
        connection.set_read_timeout(Some(PATIENCE))?;
        let route = Route { channel: 1, exchange: "", key: &self.queue, mandatory: true };
        let (mut body, mut out) = (vec![0; self.size], Vec::new());
        let (window, at_once) = (self.of_bytes(WINDOW_BYTES), self.of_bytes(WRITE_BYTES));
        let (mut sent, mut confirmed) = (0, 0);
        while confirmed < self.messages {
            if sent < self.messages && sent - confirmed <= window / 2 {
                out.clear();
                let until = (sent + at_once).min(self.messages);
                for number in sent + 1..=until {
                    self.write(number, &mut body);
                    encode::publish(&mut out, route, &body, connection.frame_max);
                }
                connection.send(&out)?;
                sent = until;
                continue;
            }
            match connection.next_event()? {
                // Confirms of one queue come in order here: one publisher, nothing refused.
                Incoming::Confirm { tag, multiple, nack: false, .. } if tag <= sent && (multiple || tag == confirmed + 1) => {
                    confirmed = confirmed.max(tag);
                }
                Incoming::Blocked(_) | Incoming::Unblocked | Incoming::Heartbeat => (),
                other => return Err(ClientError::Protocol(format!("while filling: {other:?}"))),
            }
        }
        Ok(())
    }

    /// Consume and acknowledge everything through channel 1, each message once, in order and unchanged.
    ///
    /// # Errors
    /// As the connection's; a message out of its place, repeated, changed or flagged as redelivered is one, and so is none for a minute.
    pub fn drain(&self, connection: &mut Connection) -> Result<(), ClientError> {
        connection.qos(1, 500)?;
        connection.consume(1, &self.queue, "drain", &[])?;
        connection.set_read_timeout(Some(PATIENCE))?;
        let mut number = 0;
        while number < self.messages {
            let message = match connection.next_event()? {
                Incoming::Deliver(_, message) => message,
                Incoming::Blocked(_) | Incoming::Unblocked | Incoming::Heartbeat => continue,
                other => return Err(ClientError::Protocol(format!("while draining: {other:?}"))),
            };
            number += 1;
            self.check(number, &message.body)?;
            if message.redelivered {
                return Err(ClientError::Protocol(format!("message {number} is flagged as redelivered, nobody had it")));
            }
            if number % 100 == 0 || number == self.messages {
                connection.ack(1, message.tag, true)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_out_of_its_place_or_changed_is_found() {
        let backlog = Backlog { queue: "q".into(), size: 32, messages: 300 };
        let mut body = vec![0; 32];
        backlog.write(259, &mut body);
        assert!(backlog.check(259, &body).is_ok());
        assert!(backlog.check(3, &body).is_err(), "the same fill byte, another number");
        assert!(backlog.check(259, &body[..31]).is_err());
        body[20] ^= 1;
        assert!(backlog.check(259, &body).is_err());
    }
}
