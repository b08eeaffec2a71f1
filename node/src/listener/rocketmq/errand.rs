//! What nodes ask each other about deliveries: only the node that handed one out can settle it. Values as MessagePack; the composition
//! root carries them over the admin service.

use crate::model::NodeId;
use crate::model::catalog::{Name, Refusal};
use crate::session::rocketmq::answers::Handed;
use crate::session::rocketmq::handle::Slot;
use crate::session::rocketmq::request::Verdict;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

/// Asked by a node on behalf of a client that it has checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Errand {
    /// Deliveries are acknowledged, or half messages decided.
    Settle { agent: u32, slots: Vec<Slot>, topic: Name, group: String, verdict: Settling },
    /// Half messages that are to be checked.
    Check { topic: Name, most: u32, invisible_ms: u64 },
}

/// A [`Verdict`] as it travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Settling {
    Ack,
    Commit,
    Rollback,
}

impl From<Verdict> for Settling {
    fn from(verdict: Verdict) -> Settling {
        match verdict {
            Verdict::Ack => Settling::Ack,
            Verdict::Commit => Settling::Commit,
            Verdict::Rollback => Settling::Rollback,
        }
    }
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Report {
    Settled(Vec<bool>),
    Checked(Vec<Handed>),
    Refused(Refusal),
}

/// The way to other nodes.
pub trait Elsewhere: Send + Sync + 'static {
    /// What that node says to it; the error is for the log.
    fn ask(&self, node: NodeId, errand: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, String>>;
}

pub(super) fn encode(value: &impl Serialize) -> Vec<u8> {
    rmp_serde::to_vec_named(value).expect("plain data, writing to memory cannot fail")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errands_survive_the_way() {
        let topic = Name { vhost: "/".into(), name: "t".into() };
        let slots = vec![Slot { number: 1, secret: u64::MAX }];
        let errand = Errand::Settle { agent: 7, slots, topic, group: "g".into(), verdict: Settling::Commit };
        assert_eq!(rmp_serde::from_slice::<Errand>(&encode(&errand)).expect("the same"), errand);
        let report = Report::Refused(Refusal::Unavailable("no".into()));
        assert_eq!(rmp_serde::from_slice::<Report>(&encode(&report)).expect("the same"), report);
    }
}
