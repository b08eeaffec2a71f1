//! Publisher confirms of one channel: numbers publishes, and folds what the edge confirmed into as few frames as RabbitMQ would.

use super::Out;
use crate::wire::amqp::Method;
use std::collections::BTreeMap;

/// Bits of a ticket that hold the publish sequence number; above them stands which life of the channel number it belongs to, so
/// that a confirm for a closed channel never reaches its successor.
const SEQUENCE_BITS: u32 = 40;

/// Inclusive ranges.
type Ranges = Vec<(u64, u64)>;

/// State of a channel in confirm mode.
#[derive(Debug)]
pub(super) struct Confirms {
    base: u64,
    /// Next publish sequence number, from 1.
    next: u64,
    /// Lowest number that is neither acked nor nacked.
    lowest: u64,
    /// Settled ranges above `lowest`.
    ahead: BTreeMap<u64, u64>,
    acks: Ranges,
    nacks: Ranges,
}

impl Confirms {
    /// For the `epoch`th channel of the connection.
    pub(super) fn new(epoch: u32) -> Confirms {
        let base = u64::from(epoch) << SEQUENCE_BITS;
        Confirms { base, next: 1, lowest: 1, ahead: BTreeMap::new(), acks: Ranges::new(), nacks: Ranges::new() }
    }

    /// The ticket of the next publish.
    pub(super) fn ticket(&mut self) -> u64 {
        self.next += 1;
        self.base + self.next - 1
    }

    /// Whether this ticket was given out by this life of the channel.
    pub(super) fn owns(&self, ticket: u64) -> bool {
        ticket > self.base && ticket - self.base < self.next
    }

    /// Publishes that wait for the edge's word.
    pub(super) fn pending(&self) -> u64 {
        self.next - self.lowest - self.ahead.iter().map(|(first, last)| last - first + 1).sum::<u64>()
    }

    /// Notes the edge's word; tickets of an earlier life are dropped.
    pub(super) fn record(&mut self, tickets: &[(u64, u64)], positive: bool) {
        for &(first, last) in tickets {
            if first <= last && self.owns(first) && self.owns(last) {
                let noted = if positive { &mut self.acks } else { &mut self.nacks };
                noted.push((first - self.base, last - self.base));
            }
        }
    }

    /// Writes what was noted: nacks one by one, then one ack for all below the lowest open number, then the rest one by one.
    pub(super) fn flush(&mut self, channel: u16, out: &mut Out) {
        if self.acks.is_empty() && self.nacks.is_empty() {
            return;
        }
        let (acks, nacks) = (std::mem::take(&mut self.acks), std::mem::take(&mut self.nacks));
        for tag in nacks.iter().flat_map(|&(first, last)| first..=last) {
            out.bytes.method(channel, &Method::BasicNack { delivery_tag: tag, multiple: false, requeue: false });
        }
        nacks.iter().chain(&acks).for_each(|&(first, last)| self.settle(first, last));
        let below = acks.iter().filter(|(_, last)| *last < self.lowest);
        if let Some(highest) = below.clone().map(|(_, last)| *last).max() {
            let count: u64 = below.map(|(first, last)| last - first + 1).sum();
            out.bytes.ack(channel, highest, count > 1);
        }
        let lowest = self.lowest;
        for tag in acks.iter().filter(|(_, last)| *last >= lowest).flat_map(|&(first, last)| first..=last) {
            out.bytes.ack(channel, tag, false);
        }
    }

    fn settle(&mut self, first: u64, last: u64) {
        if first > self.lowest {
            self.ahead.insert(first, last);
            return;
        }
        self.lowest = self.lowest.max(last + 1);
        while let Some(entry) = self.ahead.first_entry()
            && *entry.key() <= self.lowest
        {
            self.lowest = self.lowest.max(entry.remove() + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::amqp::frame;
    use bytes::BytesMut;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn frames(out: &mut Out) -> Vec<Method> {
        let mut bytes = BytesMut::from(&out.bytes.take()[..]);
        let mut methods = Vec::new();
        while let Some(frame) = frame::next(&mut bytes, 8192).expect("frames") {
            methods.push(Method::decode(frame.payload).expect("form").expect("known"));
        }
        methods
    }

    proptest! {
        #[test]
        fn a_publisher_ends_with_each_number_settled_once_and_rightly(order in Just((1u64..60).collect::<Vec<_>>()).prop_shuffle(), nacked in any::<u64>(), batch in 1usize..12) {
            let (mut confirms, mut out) = (Confirms::new(3), Out::default());
            let tickets: Vec<u64> = (1..60).map(|_| confirms.ticket()).collect();
            let mut open: BTreeSet<u64> = (1..60).collect();
            for chunk in order.chunks(batch) {
                for &n in chunk {
                    confirms.record(&[(tickets[n as usize - 1], tickets[n as usize - 1])], nacked >> n & 1 == 0);
                }
                confirms.flush(1, &mut out);
                for method in frames(&mut out) {
                    let settled: Vec<u64> = match method {
                        Method::BasicAck { delivery_tag, multiple: true } => open.range(..=delivery_tag).copied().collect(),
                        Method::BasicAck { delivery_tag, multiple: false } => vec![delivery_tag],
                        Method::BasicNack { delivery_tag, .. } => {
                            prop_assert!(nacked >> delivery_tag & 1 == 1);
                            prop_assert!(open.remove(&delivery_tag));
                            continue;
                        }
                        other => panic!("{other:?}"),
                    };
                    for tag in settled {
                        prop_assert!(nacked >> tag & 1 == 0, "acked a refused message");
                        prop_assert!(open.remove(&tag), "acked twice");
                    }
                }
                prop_assert!(chunk.iter().all(|n| !open.contains(n)));
            }
            prop_assert!(open.is_empty());
            prop_assert!(confirms.ahead.is_empty());
        }
    }

    #[test]
    fn a_run_of_confirms_is_one_frame() {
        let (mut confirms, mut out) = (Confirms::new(0), Out::default());
        for _ in 0..100 {
            confirms.ticket();
        }
        confirms.record(&[(1, 40)], true);
        confirms.record(&[(41, 99)], true);
        confirms.flush(1, &mut out);
        assert_eq!(frames(&mut out), [Method::BasicAck { delivery_tag: 99, multiple: true }]);
        confirms.record(&[(100, 100)], true);
        confirms.flush(1, &mut out);
        assert_eq!(frames(&mut out), [Method::BasicAck { delivery_tag: 100, multiple: false }]);
    }

    #[test]
    fn confirms_of_an_earlier_channel_are_dropped() {
        let (mut old, mut confirms, mut out) = (Confirms::new(1), Confirms::new(2), Out::default());
        let ticket = old.ticket();
        confirms.ticket();
        confirms.record(&[(ticket, ticket)], true);
        confirms.flush(1, &mut out);
        assert!(out.bytes.is_empty());
    }
}
