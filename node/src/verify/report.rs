//! What a run found, as text and as JSON. Filled by `run`.

use super::ledger::Counts;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// The outcome of a run.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    pub(super) seed: u64,
    pub(super) nodes: u16,
    pub(super) seconds: u64,
    /// How often each kind of fault was injected.
    pub(super) faults: BTreeMap<&'static str, u64>,
    pub(super) protocols: Vec<Protocol>,
    pub(super) replicas: Replicas,
}

/// What a protocol's messages went through.
#[derive(Debug, Serialize)]
pub(super) struct Protocol {
    pub(super) name: &'static str,
    #[serde(flatten)]
    pub(super) counts: Counts,
}

/// What the replicas hold at the end.
#[derive(Debug, Default, Serialize)]
pub(super) struct Replicas {
    pub(super) shards: u64,
    /// Shards whose replicas do not come to the same state.
    pub(super) differing: u64,
    pub(super) examples: Vec<String>,
}

impl Report {
    /// Nothing went wrong, and each protocol has carried messages.
    pub(super) fn is_clean(&self) -> bool {
        let carried = self.protocols.iter().all(|protocol| protocol.counts.confirmed > 0 && protocol.counts.delivered > 0);
        carried && self.replicas.shards > 0 && self.replicas.differing == 0 && self.protocols.iter().all(|p| p.counts.wrong() == 0)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: Vec<String> = self.faults.iter().map(|(name, count)| format!("{name} {count}")).collect();
        writeln!(f, "seed {}, {} nodes, {} s; faults: {}", self.seed, self.nodes, self.seconds, faults.join(", "))?;
        write!(f, "{:<22}", "")?;
        self.protocols.iter().try_for_each(|protocol| write!(f, "{:>12}", protocol.name))?;
        type Row = (&'static str, fn(&Counts) -> u64);
        let rows: [Row; 11] = [
            ("published", |c| c.published),
            ("confirmed", |c| c.confirmed),
            ("refused", |c| c.refused),
            ("unknown", |c| c.unknown),
            ("delivered", |c| c.delivered),
            ("redelivered, marked", |c| c.redelivered),
            ("lost", |c| c.lost),
            ("ghosts", |c| c.ghosts),
            ("repeated", |c| c.repeated),
            ("reordered", |c| c.reordered),
            ("falsely new", |c| c.falsely_new),
        ];
        for (name, count) in rows {
            write!(f, "\n{name:<22}")?;
            self.protocols.iter().try_for_each(|protocol| write!(f, "{:>12}", count(&protocol.counts)))?;
        }
        writeln!(f, "\nreplicas of {} shards compared, {} differ", self.replicas.shards, self.replicas.differing)?;
        let of_protocols = self.protocols.iter().flat_map(|p| p.counts.examples.iter().map(move |text| format!("{}: {text}", p.name)));
        of_protocols.chain(self.replicas.examples.iter().cloned()).try_for_each(|text| writeln!(f, "  {text}"))?;
        if self.is_clean() {
            return writeln!(f, "clean");
        }
        writeln!(f, "NOT CLEAN; the same faults again: warren verify --seed {} --nodes {}", self.seed, self.nodes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let counts = Counts { published: 9, confirmed: 8, delivered: 8, redelivered: 1, unknown: 1, ..Counts::default() };
        let replicas = Replicas { shards: 4, ..Replicas::default() };
        Report { seed: 5, nodes: 3, protocols: vec![Protocol { name: "queues", counts }], replicas, ..Report::default() }
    }

    #[test]
    fn repetitions_that_are_marked_and_unknown_ends_are_clean() {
        assert!(report().is_clean());
        assert!(report().to_string().ends_with("clean\n"));
    }

    #[test]
    fn every_kind_of_wrong_makes_a_run_unclean() {
        let wrongs: [fn(&mut Report); 9] = [
            |r| r.protocols[0].counts.lost = 1,
            |r| r.protocols[0].counts.ghosts = 1,
            |r| r.protocols[0].counts.repeated = 1,
            |r| r.protocols[0].counts.reordered = 1,
            |r| r.protocols[0].counts.falsely_new = 1,
            |r| r.replicas.differing = 1,
            |r| r.replicas.shards = 0,
            |r| r.protocols[0].counts.confirmed = 0,
            |r| r.protocols[0].counts.delivered = 0,
        ];
        for (at, spoil) in wrongs.iter().enumerate() {
            let mut report = report();
            spoil(&mut report);
            assert!(!report.is_clean(), "{at}");
            assert!(report.to_string().contains("NOT CLEAN; the same faults again: warren verify --seed 5 --nodes 3"));
        }
    }
}
