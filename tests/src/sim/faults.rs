//! What goes wrong in a run: drawn from its seed beforehand, so that a failing run can show it, and done at the times drawn.

use super::world::World;
use crate::chance::Chance;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until};
use warren::store::disk::sim::Crash;
use warren::store::disk::{Disk, SimDisk};

/// One thing that goes wrong. Nodes are counted from 0, times are milliseconds.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Processes end and come back; with their power also unsynced writes go; `forget`: the state store is deleted if the log has all.
    Kill { nodes: Vec<usize>, power: bool, down: u64, forget: bool },
    /// A node loses its power, and a bit of its log has flipped when it comes back: of the synced batch that `place` chooses, not of the newest.
    Rot { node: usize, place: usize, bit: u64, down: u64 },
    /// Connections from one to the other break, or both ways.
    Cut { from: usize, to: usize, both: bool, lasts: u64 },
    /// Frames from one to the other wait, or both ways.
    Stall { from: usize, to: usize, both: bool, lasts: u64 },
    /// A node is cut off from both others.
    Isolate { node: usize, lasts: u64 },
    /// Every frame takes up to this long.
    Delay { most: u64, lasts: u64 },
    /// Of a thousand frames so many are lost: votes and their answers, appends, forwarded batches, deliveries.
    Lose { per_thousand: u32, lasts: u64 },
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
        match chance.below(16) {
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
            13 | 14 => Fault::Lose { per_thousand: chance.between(2, 60) as u32, lasts },
            _ => Fault::HandOver { node },
        }
    }

    /// An edge may be away from a leader for so long that its consumers are taken for gone.
    pub fn parts(&self) -> bool {
        match self {
            Fault::Cut { .. } | Fault::Stall { .. } | Fault::Isolate { .. } | Fault::HangSyncs { .. } | Fault::Lose { .. } => true,
            Fault::Kill { .. }
            | Fault::Rot { .. }
            | Fault::Delay { .. }
            | Fault::SlowSyncs { .. }
            | Fault::FailSync { .. }
            | Fault::HandOver { .. } => false,
        }
    }
}

/// When what happens, milliseconds from the start of the load.
pub type Schedule = Vec<(u64, Fault)>;

/// Two to seven faults within three seconds.
pub fn schedule(chance: &mut Chance) -> Schedule {
    let count = chance.between(2, 6);
    let mut schedule: Schedule = (0..count).map(|_| (chance.between(100, 3000), Fault::draw(chance))).collect();
    if chance.one_in(3) {
        // Once at most: nobody can mend two damaged logs of three.
        let (node, place, bit, down) = (chance.below(3), chance.below(1 << 20), chance.between(0, 1 << 20), chance.between(0, 500));
        schedule.push((chance.between(500, 3000), Fault::Rot { node, place, bit, down }));
    }
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
    world.network.lose(0);
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
        Fault::Rot { node, place, bit, down } => rot(&world, node, (place, bit), down).await,
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
        Fault::Lose { per_thousand, lasts } => {
            network.lose(per_thousand);
            pause(lasts).await;
            network.lose(0);
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

async fn rot(world: &Arc<World>, node: usize, (place, bit): (usize, u64), down: u64) {
    let host = world.hosts[node].clone();
    if !host.is_up() {
        return;
    }
    host.kill(Crash::Power);
    let disk = host.disk();
    let batches = batches(&disk);
    // Whose disk this is stands in the first ones, and the newest one cannot be told from a torn one.
    if batches.len() > 10 {
        let (name, position, len) = &batches[4 + place % (batches.len() - 5)];
        disk.flip_bit(name, position * 8 + bit % (len * 8));
        world.note(format!("rot at byte {position} of {name}"));
    }
    sleep(Duration::from_millis(down)).await;
    let _ = tokio::task::spawn_blocking(move || host.start_again(false)).await;
}

/// Batches of a log in order (docs/formats.md): file, place, bytes.
fn batches(disk: &SimDisk) -> Vec<(String, u64, u64)> {
    let mut found = Vec::new();
    for name in disk.list().unwrap_or_default().into_iter().filter(|name| name.ends_with(".wal")) {
        let bytes = disk.contents(&name).unwrap_or_default();
        let number =
            |at: usize, size: usize| bytes.get(at..at + size).map_or(0, |b| b.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b)));
        let of_its_lap = bytes.starts_with(b"WARRENWL") && name.strip_suffix(".wal").and_then(|n| n.parse().ok()) == Some(number(12, 4));
        let is_batch =
            |at: &usize| bytes[*at..].starts_with(b"WBAT") && number(at + 8, 8) == number(16, 8) && number(at + 40, 8) == *at as u64;
        let places = (512..bytes.len()).step_by(512).filter(|_| of_its_lap).filter(is_batch);
        found.extend(places.map(|at| (number(at + 24, 8), name.clone(), at as u64, number(at + 20, 4))));
    }
    found.sort_unstable();
    found.into_iter().map(|(_, name, at, len)| (name, at, len)).collect()
}
