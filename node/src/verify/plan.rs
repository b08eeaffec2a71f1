//! Which faults come when, drawn from a seed: the same seed, duration, nodes and kinds give the same plan. Faults never overlap, and each
//! is followed by its mending and a quiet time, so that the cluster always heals. Pure; `faults` carries it out.

use clap::ValueEnum;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use std::time::Duration;

/// What can be done to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Kind {
    /// kill -9, and a restart
    Kill,
    /// SIGSTOP, and SIGCONT
    Pause,
    /// kill -9, and a restart with an empty data directory
    Wipe,
    /// no byte passes between two nodes, in one direction or both
    Partition,
    /// a node's clock is set, by an hour or less, and set back
    Clock,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Kill => "kill",
            Kind::Pause => "pause",
            Kind::Wipe => "wipe",
            Kind::Partition => "partition",
            Kind::Clock => "clock",
        }
    }
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Kill {
        node: u16,
    },
    Pause {
        node: u16,
    },
    Wipe {
        node: u16,
    },
    /// Bytes from the first to the second stay away, with `both` the other way too.
    Partition {
        from: u16,
        to: u16,
        both: bool,
    },
    /// A node's clock is off by so much.
    Clock {
        node: u16,
        off_ms: i64,
    },
}

impl Fault {
    pub(super) fn kind(self) -> Kind {
        match self {
            Fault::Kill { .. } => Kind::Kill,
            Fault::Pause { .. } => Kind::Pause,
            Fault::Wipe { .. } => Kind::Wipe,
            Fault::Partition { .. } => Kind::Partition,
            Fault::Clock { .. } => Kind::Clock,
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::Kill { node } => write!(f, "kill -9 of node {node}"),
            Fault::Pause { node } => write!(f, "node {node} stands still"),
            Fault::Wipe { node } => write!(f, "kill -9 of node {node}, its disk is wiped"),
            Fault::Partition { from, to, both: false } => write!(f, "nothing passes from node {from} to node {to}"),
            Fault::Partition { from, to, both: true } => write!(f, "nothing passes between nodes {from} and {to}"),
            Fault::Clock { node, off_ms } => write!(f, "the clock of node {node} is off by {off_ms} ms"),
        }
    }
}

/// A fault, how long it lasts, and how long it is quiet after the cluster has healed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) fault: Fault,
    pub(super) length: Duration,
    pub(super) quiet: Duration,
}

/// Longest and shortest time of a fault, and of the quiet after it, ms.
const LENGTH_MS: std::ops::RangeInclusive<u64> = 500..=4_000;
const QUIET_MS: std::ops::RangeInclusive<u64> = 500..=2_500;
/// How far a clock is off: at least half of one of these. Less than a second is no fault to the cluster.
const CLOCK_OFF_MS: [i64; 4] = [800, 5_000, 60_000, 3_600_000];

/// Steps that take `duration` or more. Each kind comes once before any comes again.
pub(super) fn plan(seed: u64, duration: Duration, nodes: u16, kinds: &[Kind]) -> Vec<Step> {
    let mut chance = StdRng::seed_from_u64(seed);
    let mut kinds: Vec<Kind> = kinds.to_vec();
    kinds.sort();
    kinds.dedup();
    let (mut steps, mut planned) = (Vec::new(), Duration::ZERO);
    while planned < duration && !kinds.is_empty() {
        kinds.shuffle(&mut chance);
        for kind in &kinds {
            let step = Step {
                fault: draw(*kind, nodes, &mut chance),
                length: Duration::from_millis(chance.random_range(LENGTH_MS)),
                quiet: Duration::from_millis(chance.random_range(QUIET_MS)),
            };
            planned += step.length + step.quiet;
            steps.push(step);
        }
    }
    steps
}

fn draw(kind: Kind, nodes: u16, chance: &mut StdRng) -> Fault {
    let node = chance.random_range(1..=nodes);
    match kind {
        Kind::Kill => Fault::Kill { node },
        Kind::Pause => Fault::Pause { node },
        Kind::Wipe => Fault::Wipe { node },
        Kind::Partition => {
            let to = (node - 1 + chance.random_range(1..nodes)) % nodes + 1;
            Fault::Partition { from: node, to, both: chance.random() }
        }
        Kind::Clock => {
            let most_ms = CLOCK_OFF_MS[chance.random_range(0..CLOCK_OFF_MS.len())];
            let off_ms = chance.random_range(most_ms / 2..=most_ms);
            Fault::Clock { node, off_ms: if chance.random() { off_ms } else { -off_ms } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Kind; 5] = [Kind::Kill, Kind::Pause, Kind::Wipe, Kind::Partition, Kind::Clock];
    const LENGTH: Duration = Duration::from_secs(300);

    #[test]
    fn a_seed_gives_its_plan_again_and_another_one_another() {
        assert_eq!(plan(7, LENGTH, 3, &ALL), plan(7, LENGTH, 3, &ALL));
        assert_eq!(
            plan(7, LENGTH, 3, &ALL),
            plan(7, LENGTH, 3, &[Kind::Wipe, Kind::Partition, Kind::Kill, Kind::Clock, Kind::Pause, Kind::Kill])
        );
        assert_ne!(plan(7, LENGTH, 3, &ALL), plan(8, LENGTH, 3, &ALL));
    }

    #[test]
    fn every_fault_ends_and_is_followed_by_quiet() {
        for seed in 0..100 {
            let steps = plan(seed, LENGTH, 3, &ALL);
            assert!(steps.iter().map(|step| step.length + step.quiet).sum::<Duration>() >= LENGTH);
            for step in steps {
                assert!(LENGTH_MS.contains(&(step.length.as_millis() as u64)) && QUIET_MS.contains(&(step.quiet.as_millis() as u64)));
                let nodes = match step.fault {
                    Fault::Kill { node } | Fault::Pause { node } | Fault::Wipe { node } => vec![node],
                    Fault::Partition { from, to, .. } => vec![from, to],
                    Fault::Clock { node, off_ms } => {
                        assert!((400..=3_600_000).contains(&off_ms.abs()), "{off_ms}");
                        vec![node]
                    }
                };
                assert!(nodes.iter().all(|node| (1..=3).contains(node)) && (nodes.len() == 1 || nodes[0] != nodes[1]), "{nodes:?}");
            }
        }
    }

    #[test]
    fn each_kind_comes_once_before_any_comes_again_and_no_other_comes() {
        for seed in 0..20 {
            let steps = plan(seed, Duration::from_secs(1), 5, &ALL);
            let mut kinds: Vec<Kind> = steps.iter().map(|step| step.fault.kind()).collect();
            kinds.sort();
            assert_eq!(kinds, ALL);
            assert!(plan(seed, LENGTH, 5, &[Kind::Pause]).iter().all(|step| step.fault.kind() == Kind::Pause));
        }
        assert_eq!(plan(1, LENGTH, 3, &[]), []);
    }
}
