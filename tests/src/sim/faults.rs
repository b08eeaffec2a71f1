//! What goes wrong in a run: drawn from its seed beforehand, so that a failing run can show it, and done at the times drawn.

use super::world::World;
use crate::chance::Chance;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until};
use warren::store::disk::sim::Crash;

/// One thing that goes wrong. Nodes are counted from 0, times are milliseconds.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Processes end and come back; with their power also unsynced writes go; `forget`: the state store is deleted if the log has all.
    Kill { nodes: Vec<usize>, power: bool, down: u64, forget: bool },
    /// Connections from one to the other break, or both ways.
    Cut { from: usize, to: usize, both: bool, lasts: u64 },
    /// Frames from one to the other wait, or both ways.
    Stall { from: usize, to: usize, both: bool, lasts: u64 },
    /// A node is cut off from both others.
    Isolate { node: usize, lasts: u64 },
    /// Every frame takes up to this long.
    Delay { most: u64, lasts: u64 },
    /// Syncs of a node take this long.
    SlowSyncs { node: usize, takes: u64, lasts: u64 },
    /// Syncs of a node do not return.
    HangSyncs { node: usize, lasts: u64 },
    /// A sync fails: the node aborts and comes back by itself.
    FailSync { node: usize },
    /// A node gives its leaderships away.
    HandOver { node: usize },
}

impl Fault {
    fn draw(chance: &mut Chance) -> Fault {
        let node = chance.below(3);
        let (from, to) = (node, (node + 1 + chance.below(2)) % 3);
        let (both, lasts) = (chance.one_in(2), chance.between(100, 1500));
        match chance.below(14) {
            0..=4 => {
                let mut nodes = match chance.below(8) {
                    0..=4 => vec![node],
                    5 | 6 => vec![from, to],
                    _ => vec![0, 1, 2],
                };
                nodes.sort_unstable();
                Fault::Kill { nodes, power: !chance.one_in(3), down: chance.between(0, 900), forget: chance.one_in(4) }
            }
            5 => Fault::Cut { from, to, both, lasts },
            6 | 7 => Fault::Stall { from, to, both, lasts },
            8 => Fault::Isolate { node, lasts },
            9 => Fault::Delay { most: chance.between(1, 30), lasts },
            10 => Fault::SlowSyncs { node, takes: chance.between(2, 60), lasts },
            11 => Fault::HangSyncs { node, lasts },
            12 => Fault::FailSync { node },
            _ => Fault::HandOver { node },
        }
    }

    /// An edge may be away from a leader for so long that its consumers are taken for gone.
    pub fn parts(&self) -> bool {
        match self {
            Fault::Cut { .. } | Fault::Stall { .. } | Fault::Isolate { .. } | Fault::HangSyncs { .. } => true,
            Fault::Kill { .. } | Fault::Delay { .. } | Fault::SlowSyncs { .. } | Fault::FailSync { .. } | Fault::HandOver { .. } => false,
        }
    }
}

/// When what happens, milliseconds from the start of the load.
pub type Schedule = Vec<(u64, Fault)>;

/// Two to six faults within three seconds.
pub fn schedule(chance: &mut Chance) -> Schedule {
    let count = chance.between(2, 6);
    let mut schedule: Schedule = (0..count).map(|_| (chance.between(100, 3000), Fault::draw(chance))).collect();
    schedule.sort_by_key(|(at, _)| *at);
    schedule
}

/// All of it; returns when everything has been mended and started again.
pub async fn run(world: &Arc<World>, schedule: &Schedule) {
    let begun = Instant::now();
    let mut under_way = Vec::new();
    for (at, fault) in schedule {
        sleep_until(begun + Duration::from_millis(*at)).await;
        under_way.push(tokio::spawn(happen(world.clone(), fault.clone())));
    }
    for fault in under_way {
        let _ = fault.await;
    }
    world.network.heal();
    world.network.delay(Duration::ZERO);
    for host in &world.hosts {
        host.disk().hang_syncs(false);
        host.disk().slow_syncs(Duration::ZERO);
    }
}

async fn happen(world: Arc<World>, fault: Fault) {
    world.note(format!("{fault:?}"));
    let (network, id) = (&world.network, |n: usize| world.hosts[n].id);
    let pause = |ms| sleep(Duration::from_millis(ms));
    match fault {
        Fault::Kill { nodes, power, down, forget } => kill(&world, &nodes, power, down, forget).await,
        Fault::Cut { from, to, both, lasts } => {
            network.cut(id(from), id(to));
            if both {
                network.cut(id(to), id(from));
            }
            pause(lasts).await;
            network.mend(id(from), id(to));
        }
        Fault::Stall { from, to, both, lasts } => {
            network.stall(id(from), id(to));
            if both {
                network.stall(id(to), id(from));
            }
            pause(lasts).await;
            network.mend(id(from), id(to));
        }
        Fault::Isolate { node, lasts } => {
            let others: Vec<usize> = (0..3).filter(|n| *n != node).collect();
            for other in &others {
                network.cut(id(node), id(*other));
                network.cut(id(*other), id(node));
            }
            pause(lasts).await;
            others.iter().for_each(|other| network.mend(id(node), id(*other)));
        }
        Fault::Delay { most, lasts } => {
            network.delays(Duration::ZERO, Duration::from_millis(most));
            pause(lasts).await;
            network.delay(Duration::ZERO);
        }
        Fault::SlowSyncs { node, takes, lasts } => {
            world.hosts[node].disk().slow_syncs(Duration::from_millis(takes));
            pause(lasts).await;
            world.hosts[node].disk().slow_syncs(Duration::ZERO);
        }
        Fault::HangSyncs { node, lasts } => {
            world.hosts[node].disk().hang_syncs(true);
            pause(lasts).await;
            world.hosts[node].disk().hang_syncs(false);
        }
        Fault::FailSync { node } => world.hosts[node].disk().fail_syncs(1),
        Fault::HandOver { node } => {
            if let Some(node) = world.hosts[node].node() {
                node.consensus().hand_over_leadership(Duration::from_millis(1000)).await;
            }
        }
    }
}

async fn kill(world: &Arc<World>, nodes: &[usize], power: bool, down: u64, forget: bool) {
    let crash = if power { Crash::Power } else { Crash::Process };
    for node in nodes {
        let host = world.hosts[*node].clone();
        if !host.is_up() {
            continue;
        }
        let forget = forget && host.node().is_some_and(|node| node.log_reaches_back());
        host.kill(crash);
        tokio::spawn(async move {
            sleep(Duration::from_millis(down)).await;
            let _ = tokio::task::spawn_blocking(move || host.start_again(forget)).await;
        });
    }
    sleep(Duration::from_millis(down + 50)).await;
}
