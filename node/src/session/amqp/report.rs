//! What a session says of itself when connections, channels or consumers are listed.

use super::channel::Channel;
use super::transaction::Transaction;
use super::{Session, Slot};
use crate::model::ConsumerId;
use crate::model::report::{ChannelReport, ConsumerReport, Report};

impl Session {
    pub(super) fn report(&self) -> Report {
        let mut channels: Vec<ChannelReport> = self.channels.values().filter_map(open).map(Channel::report).collect();
        channels.sort_unstable_by_key(|c| c.number);
        Report {
            state: self.state.text(),
            protocol: "{0,9,1}",
            mechanism: self.mechanism,
            client_properties: self.client_properties.clone(),
            frame_max: self.shared.frame_max,
            channel_max: self.channel_max,
            heartbeat_seconds: self.heartbeat,
            channels,
            ..Report::default()
        }
    }
}

fn open(slot: &Slot) -> Option<&Channel> {
    match slot {
        Slot::Open(channel) => Some(channel),
        Slot::Closing { .. } | Slot::Haunted { .. } => None,
    }
}

impl Channel {
    fn report(&self) -> ChannelReport {
        let mut consumers: Vec<ConsumerReport> = self.consumers.iter().map(|(id, c)| c.report(*id)).collect();
        consumers.sort_unstable_by(|a, b| a.tag.cmp(&b.tag));
        ChannelReport {
            number: self.number,
            confirm: self.confirms.is_some(),
            transactional: self.tx.is_some(),
            uncommitted: self.tx.as_ref().map_or(0, Transaction::messages),
            uncommitted_acks: self.tx.as_ref().map_or(0, Transaction::settlements_kept),
            unacknowledged: self.unsettled.len(),
            unconfirmed: self.confirms.as_ref().map_or(0, |confirms| confirms.pending()),
            prefetch: self.prefetch.unwrap_or(0),
            consumers,
        }
    }
}

impl super::channel::Consumer {
    fn report(&self, id: ConsumerId) -> ConsumerReport {
        ConsumerReport {
            id,
            queue: self.asked.queue.clone(),
            tag: String::from_utf8_lossy(&self.tag).into_owned(),
            no_ack: self.no_ack,
            prefetch: self.asked.prefetch.unwrap_or(0),
            arguments: self.asked.arguments.clone(),
        }
    }
}
