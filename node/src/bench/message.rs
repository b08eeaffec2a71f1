//! The body of a bench message: run u32 | producer u32 | number u64 | sent_at u64 (ns of the bench's clock) | filler | crc32c u32 of all before.
//! Written by `producer`, read by `consumer`.

use std::time::Instant;

/// Smallest body.
pub(super) const HEAD: usize = 32;
const CRC: usize = 4;

/// What a body says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub run: u32,
    pub producer: u32,
    pub number: u64,
    pub sent_at: u64,
}

impl Stamp {
    /// Write into a body of at least `HEAD` bytes.
    pub(super) fn write(&self, body: &mut [u8]) {
        body[0..4].copy_from_slice(&self.run.to_le_bytes());
        body[4..8].copy_from_slice(&self.producer.to_le_bytes());
        body[8..16].copy_from_slice(&self.number.to_le_bytes());
        body[16..24].copy_from_slice(&self.sent_at.to_le_bytes());
        let end = body.len() - CRC;
        let crc = crc32c::crc32c(&body[..end]);
        body[end..].copy_from_slice(&crc.to_le_bytes());
    }

    /// Read; `None` when the body is not one of ours as it was written.
    pub(super) fn read(body: &[u8]) -> Option<Stamp> {
        if body.len() < HEAD {
            return None;
        }
        let (content, crc) = body.split_at(body.len() - CRC);
        if crc32c::crc32c(content).to_le_bytes() != crc {
            return None;
        }
        let u32_at = |at: usize| content[at..at + 4].try_into().map(u32::from_le_bytes).ok();
        let u64_at = |at: usize| content[at..at + 8].try_into().map(u64::from_le_bytes).ok();
        Some(Stamp { run: u32_at(0)?, producer: u32_at(4)?, number: u64_at(8)?, sent_at: u64_at(16)? })
    }
}

/// Nanoseconds since the bench began, the same for all its threads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock(pub Instant);

impl Clock {
    pub(super) fn now(&self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_body_is_not_read() {
        let stamp = Stamp { run: 1, producer: 2, number: 3, sent_at: 4 };
        let mut body = vec![b'x'; 100];
        stamp.write(&mut body);
        assert_eq!(Stamp::read(&body), Some(stamp));
        for at in 0..body.len() {
            let mut changed = body.clone();
            changed[at] ^= 1;
            assert_eq!(Stamp::read(&changed), None, "byte {at}");
        }
        assert_eq!(Stamp::read(&body[..50]), None);
    }
}
