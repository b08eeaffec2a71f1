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

#[derive(Debug)]
struct Process {
    incarnation: Incarnation,
    /// The one before: its last words may come late.
    former: Option<Incarnation>,
    times: u64,
}

/// Everybody who was heard under one leadership.
#[derive(Debug, Default)]
pub(super) struct Hearing(BTreeMap<NodeId, Process>);

impl Hearing {
    pub(super) fn hear(&mut self, node: NodeId, incarnation: Incarnation) {
        let process = self.0.entry(node).or_insert(Process { incarnation, former: None, times: 0 });
        if process.former == Some(incarnation) {
            return;
        }
        if process.incarnation != incarnation {
            *process = Process { incarnation, former: Some(process.incarnation), times: 0 };
        }
        process.times += 1;
    }

    pub(super) fn processes(&self) -> BTreeMap<NodeId, (Incarnation, u64)> {
        self.0.iter().map(|(node, p)| (*node, (p.incarnation, p.times))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_words_of_a_process_do_not_hide_the_one_that_followed_it() {
        let (mut hearing, node) = (Hearing::default(), NodeId(2));
        let heard = |hearing: &Hearing| hearing.processes()[&node];
        hearing.hear(node, Incarnation(1));
        hearing.hear(node, Incarnation(1));
        assert_eq!(heard(&hearing), (Incarnation(1), 2));
        hearing.hear(node, Incarnation(2));
        hearing.hear(node, Incarnation(1));
        assert_eq!(heard(&hearing), (Incarnation(2), 1));
        hearing.hear(node, Incarnation(3));
        assert_eq!(heard(&hearing), (Incarnation(3), 1));
    }
}
