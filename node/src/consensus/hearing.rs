//! Whom the catalog's leader hears: each node asks it for a routing lease five times a second, so a process that does is alive and
//! reaches a majority. Kept by `lease` while this node leads the catalog; `node` says by it who is up and who is down.

use crate::model::{Incarnation, NodeId};
use std::collections::BTreeMap;
use tokio::time::Instant;

/// What a leader of the catalog has heard.
#[derive(Clone, Debug)]
pub struct Heard {
    /// Since when it leads: what was heard under another leadership counts for nothing.
    pub since: Instant,
    /// The newest process of each node, with the number of times that it was heard.
    pub processes: BTreeMap<NodeId, (Incarnation, u64)>,
}

/// Everybody who was heard under one leadership: the newest process of each node, with the number of times.
#[derive(Debug, Default)]
pub(super) struct Hearing(BTreeMap<NodeId, (Incarnation, u64)>);

impl Hearing {
    /// A process said something. False: those were the late words of one that a later process has followed; they count for nothing.
    pub(super) fn hear(&mut self, node: NodeId, incarnation: Incarnation) -> bool {
        let process = self.0.entry(node).or_insert((incarnation, 0));
        if process.0 > incarnation {
            return false;
        }
        if process.0 < incarnation {
            *process = (incarnation, 0);
        }
        process.1 += 1;
        true
    }

    pub(super) fn processes(&self) -> BTreeMap<NodeId, (Incarnation, u64)> {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_words_of_a_process_do_not_hide_the_one_that_followed_it() {
        let (mut hearing, node) = (Hearing::default(), NodeId(2));
        let heard = |hearing: &Hearing| hearing.processes()[&node];
        assert!(hearing.hear(node, Incarnation(1)) && hearing.hear(node, Incarnation(1)));
        assert_eq!(heard(&hearing), (Incarnation(1), 2));
        assert!(hearing.hear(node, Incarnation(3)));
        for late in [1, 2, 1] {
            assert!(!hearing.hear(node, Incarnation(late)));
        }
        assert!(hearing.hear(node, Incarnation(3)));
        assert_eq!(heard(&hearing), (Incarnation(3), 2));
    }
}
