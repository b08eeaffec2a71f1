//! What a session says of itself when somebody lists connections, publishers or consumers.

use super::Session;
use crate::model::catalog::{Table, Value};
use crate::model::report::{PublisherReport, Report, SubscriptionReport};

fn text(text: &str) -> Value {
    Value::Text(text.as_bytes().to_vec())
}

fn table(pairs: &[(String, String)]) -> Table {
    pairs.iter().map(|(k, v)| (k.clone(), text(v))).collect()
}

impl Session {
    pub(super) fn report(&self) -> Report {
        let publishers = self.publishers.iter().map(|(id, publisher)| PublisherReport {
            id: *id,
            stream: publisher.stream.clone(),
            reference: publisher.reference.clone(),
            published: publisher.published,
            confirmed: publisher.confirmed,
            errored: publisher.errored,
        });
        let subscriptions = self.subscriptions.iter().map(|(id, subscription)| SubscriptionReport {
            id: *id,
            stream: subscription.stream.clone(),
            target: (subscription.target.stream, subscription.target.shard),
            end: None,
            delivered: subscription.delivered,
            next: subscription.next,
            credit: subscription.credit,
            is_active: subscription.group.as_ref().is_none_or(|group| group.active),
            is_of_group: subscription.group.is_some(),
            properties: table(&subscription.properties),
        });
        let (mut publishers, mut subscriptions): (Vec<_>, Vec<_>) = (publishers.collect(), subscriptions.collect());
        publishers.sort_unstable_by_key(|publisher| publisher.id);
        subscriptions.sort_unstable_by_key(|subscription| subscription.id);
        Report {
            state: self.state.text(),
            protocol: "stream",
            mechanism: self.login.as_ref().map_or("", |login| login.mechanism),
            client_properties: table(&self.client_properties),
            frame_max: self.frame_max,
            heartbeat_seconds: self.heartbeat,
            publishers,
            subscriptions,
            ..Report::default()
        }
    }
}
