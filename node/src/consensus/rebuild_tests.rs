//! Replicas whose log was damaged: they come back with everything, they do not vote or count before, and nobody makes up what too many
//! have lost. Three nodes of the production stack in one process.

use super::snapshot_tests::{World, all_bodies_are_there, durable, last};
use super::stack_tests::*;
use super::tests::until;
use super::*;
use crate::model::ports::Proposer;
use crate::model::{Generation, NodeId, ShardId};
use crate::store::disk::Disk;
use crate::store::disk::sim::Crash;
use std::time::Duration;

/// Flips a bit of the first place where `text` stands in the log of a node that is down, and wrecks so many bytes before it.
fn damage(world: &World, id: u16, text: &[u8], around: usize) {
    let sim = &world.disks.as_ref().expect("simulated")[usize::from(id) - 1];
    for name in sim.list().expect("listed").iter().filter(|name| name.ends_with(".wal")) {
        let bytes = sim.contents(name).expect("a file");
        let Some(at) = bytes.windows(text.len()).position(|here| here == text) else { continue };
        sim.flip_bit(name, at as u64 * 8);
        for byte in at.saturating_sub(around)..at {
            sim.flip_bit(name, byte as u64 * 8 + 3);
        }
        return;
    }
    panic!("the message is not on the disk of node {id}");
}

/// Three nodes with 59 batches of five live messages each, all of them equal.
async fn filled(world: &World) -> (Vec<Node>, crate::model::SessionId) {
    let mut nodes = world.start_all().await;
    let session = open_session(&mut nodes).await;
    publish(&mut nodes, session, 1, 50).await;
    // The last ones each in a write of its own: what wrecks several of them wrecks what tells where their records stand.
    for batch in 50..60 {
        publish(&mut nodes, session, batch, batch + 1).await;
        agree(&nodes, batch * 5).await;
        for node in &nodes {
            durable(node).await;
        }
    }
    // The catalog's beginning is everywhere, too.
    until(|| nodes.iter().all(|node| node.wal.state(ShardId::CATALOG).last.is_some_and(|last| last.index > 0))).await;
    // What is damaged must not be in the newest batch, which could be a torn one.
    for node in &nodes {
        durable(node).await;
    }
    (nodes, session)
}

fn take(nodes: &mut Vec<Node>, id: NodeId) -> Node {
    let at = nodes.iter().position(|node| node.id == id).expect("runs");
    nodes.remove(at)
}

async fn comes_back_with_everything(leads: bool, around: usize) {
    let mut world = World::with_large_files();
    let (mut nodes, session) = filled(&world).await;
    let (at, _) = leader(&nodes).await;
    let lost = nodes.remove(if leads { at } else { (at + 1) % 3 });
    let (id, before) = (lost.id, lost.wal.state(DATA));
    drop(lost);
    world.crash(id.0, Crash::Process);
    // What cannot be read at all is in the file that is being written, so that nothing later tells of votes.
    damage(&world, id.0, if around > 0 { b"message 57.2" } else { b"message 30.2" }, around);
    // Traffic goes on while it is rebuilt.
    let ((), back) = tokio::join!(publish(&mut nodes, session, 60, 130), world.start(id.0));
    let back = back.expect("boots");
    assert_eq!((back.consensus.rebuilt() > 0, back.consensus.incomplete(), back.wal.damage(DATA)), (true, 0, None));
    let (after, blind) = (back.wal.state(DATA), around > 0);
    assert!(after.last.map(|l| l.index) >= before.last.map(|l| l.index), "nothing that it acknowledged is missing");
    let term = |state: &journal::ShardLog| state.vote.map_or(0, |vote| vote.leader.term);
    assert!(term(&after) >= term(&before) + u64::from(blind), "{after:?} may vote again where it did before: {before:?}");
    assert_eq!(back.wal.damage(ShardId::CATALOG), None);
    nodes.push(back);
    agree(&nodes, 129 * 5).await;
    all_bodies_are_there(&nodes[2], &nodes[0]);
    // It counts again: with it and one other the shard goes on, and nothing is missing whoever leads.
    let (at, _) = leader(&nodes).await;
    let gone = if nodes[at].id == id { (at + 1) % 3 } else { at };
    drop(nodes.remove(gone));
    publish(&mut nodes, session, 130, 140).await;
    agree(&nodes, 139 * 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_with_a_flipped_bit_in_the_middle_of_its_log_is_rebuilt_and_counts_again() {
    comes_back_with_everything(false, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_former_leader_with_a_flipped_bit_in_the_middle_of_its_log_is_rebuilt_and_counts_again() {
    comes_back_with_everything(true, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_with_a_wrecked_stretch_of_its_log_is_rebuilt_and_votes_only_in_later_terms() {
    comes_back_with_everything(false, 3000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_former_leader_with_a_wrecked_stretch_of_its_log_is_rebuilt_and_votes_only_in_later_terms() {
    comes_back_with_everything(true, 3000).await;
}

/// Flips a bit of the first entry of a group's log, which says who its members are (docs/formats.md: kind 3, flag 0, shard; term 0).
fn damage_beginning(world: &World, id: u16) {
    const PAYLOAD_BEHIND_KIND: usize = 32;
    let sim = &world.disks.as_ref().expect("simulated")[usize::from(id) - 1];
    let [low, high] = DATA.0.to_le_bytes();
    for name in sim.list().expect("listed").iter().filter(|name| name.ends_with(".wal")) {
        let bytes = sim.contents(name).expect("a file");
        let begins = |here: &[u8]| here[..4] == [3, 0, low, high] && here[8..16] == [0; 8];
        if let Some(at) = bytes.windows(16).position(begins) {
            return sim.flip_bit(name, (at + PAYLOAD_BEHIND_KIND + 2) as u64 * 8);
        }
    }
    panic!("the log of node {id} does not begin there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_log_has_lost_its_first_entry_gets_its_state_and_counts_again() {
    let mut world = World::without_checkpoints();
    let (mut nodes, session) = filled(&world).await;
    let (at, _) = leader(&nodes).await;
    let lost = nodes.remove((at + 1) % 3);
    let id = lost.id;
    assert_eq!(lost.wal.state(DATA).purged, None, "the entry is needed");
    drop(lost);
    world.crash(id.0, Crash::Process);
    damage_beginning(&world, id.0);
    nodes.push(world.start(id.0).await.expect("boots"));
    publish(&mut nodes, session, 60, 70).await;
    agree(&nodes, 69 * 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_an_empty_disk_is_filled_again_counts_again_and_its_old_disk_is_refused() {
    let mut world = World::without_checkpoints();
    let (mut nodes, session) = filled(&world).await;
    let (at, _) = leader(&nodes).await;
    let lost = nodes.remove(at);
    let (id, before) = (lost.id, lost.wal.state(DATA));
    drop(lost);
    world.crash(id.0, Crash::Process);
    let old = world.wipe(id.0);
    let ((), back) = tokio::join!(publish(&mut nodes, session, 60, 130), world.start(id.0));
    let back = back.expect("boots");
    assert_eq!((back.consensus.rebuilt(), back.consensus.incomplete(), back.wal.damage(DATA)), (2, 0, None));
    assert_eq!(back.wal.identity().expect("adopted").generation, Generation(2));
    let (after, term) = (back.wal.state(DATA), |state: &journal::ShardLog| state.vote.map_or(0, |vote| vote.leader.term));
    assert!(after.last >= before.last && term(&after) > term(&before), "{after:?} may vote again where it did before: {before:?}");
    nodes.push(back);
    agree(&nodes, 129 * 5).await;
    all_bodies_are_there(&nodes[2], &nodes[0]);
    // It counts again: with it and one other the shard goes on.
    drop(nodes.remove(0));
    publish(&mut nodes, session, 130, 140).await;
    agree(&nodes, 139 * 5).await;
    // The old disk comes back: what was promised on the new one is not there.
    drop(take(&mut nodes, id));
    world.crash(id.0, Crash::Process);
    let new = world.replace(id.0, old);
    let left = nodes[0].id;
    let third = (1..=3).map(NodeId).find(|other| *other != id && *other != left).expect("three");
    let outlived = world.start_partly(id.0).await.expect("boots");
    let end = outlived.wal.state(DATA).last;
    // Whoever led with the new disk may go on for a while.
    let both = [&nodes[0], &outlived];
    until(|| !both.iter().any(leads)).await;
    assert!(tokio::time::timeout(Duration::from_secs(2), leads_catalog(&both)).await.is_err(), "no majority without it");
    nodes.push(world.start(third.0).await.expect("boots"));
    publish(&mut nodes, session, 140, 150).await;
    agree(&nodes, 149 * 5).await;
    assert_eq!(outlived.wal.state(DATA).last, end, "nobody sent it anything");
    drop(outlived);
    world.replace(id.0, new);
    nodes.push(world.start(id.0).await.expect("boots"));
    agree(&nodes, 149 * 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_disk_elects_nobody_while_one_that_knows_what_it_had_confirmed_is_away() {
    let mut world = World::without_checkpoints();
    let (mut nodes, session) = filled(&world).await;
    let (at, _) = leader(&nodes).await;
    let (away, wiped) = (nodes[(at + 1) % 3].id, nodes[(at + 2) % 3].id);
    drop(take(&mut nodes, away));
    world.crash(away.0, Crash::Process);
    publish(&mut nodes, session, 60, 70).await;
    agree(&nodes, 69 * 5).await;
    let best = nodes.iter().map(|node| node.id).find(|id| *id != wiped).expect("two run");
    nodes.clear();
    for id in [wiped, best] {
        world.crash(id.0, Crash::Process);
    }
    world.wipe(wiped.0);
    let lagging = world.start_partly(away.0).await.expect("boots");
    let filled = tokio::spawn(world.start(wiped.0));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(
        !lagging.consensus.shard(DATA).expect("member").leadership().borrow().is_me,
        "elected by a disk that forgot what was confirmed"
    );
    let best = world.start(best.0).await.expect("boots");
    let filled = filled.await.expect("no panic").expect("filled");
    let mut nodes = vec![lagging, filled, best];
    agree(&nodes, 69 * 5).await;
    publish(&mut nodes, session, 70, 75).await;
    agree(&nodes, 74 * 5).await;
}

/// All batches behind the damage are torn for the log: its state knows better.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_ends_before_its_checkpoint_is_damaged_and_not_torn() {
    let mut world = World::simulated();
    let (mut nodes, session) = filled(&world).await;
    let (at, _) = leader(&nodes).await;
    let lost = nodes.remove((at + 1) % 3);
    let id = lost.id;
    // A stop makes a checkpoint of all.
    lost.consensus.stop(Duration::from_secs(60)).await;
    drop(lost);
    world.crash(id.0, Crash::Process);
    world.cut_log(id.0, b"message 57.2");
    let ((), back) = tokio::join!(publish(&mut nodes, session, 60, 70), world.start(id.0));
    let back = back.expect("boots");
    assert!(back.consensus.rebuilt() > 0, "it had confirmed more than it has");
    nodes.push(back);
    agree(&nodes, 69 * 5).await;
}

fn leads(node: &&Node) -> bool {
    node.consensus.shard(ShardId::CATALOG).is_some_and(|catalog| catalog.leadership().borrow().is_me && catalog.lease_valid())
}

async fn leads_catalog(nodes: &[&Node]) {
    until(|| nodes.iter().any(leads)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_another_node_is_away_a_damaged_replica_does_not_help_to_elect_but_its_other_groups_go_on() {
    let mut world = World::without_checkpoints();
    let (mut nodes, session) = filled(&world).await;
    let (at, _) = leader(&nodes).await;
    // Only the leader and the one that gets damaged have the last messages.
    let (away, damaged) = (nodes[(at + 1) % 3].id, nodes[(at + 2) % 3].id);
    let confirmed = {
        drop(take(&mut nodes, away));
        world.crash(away.0, Crash::Process);
        publish(&mut nodes, session, 60, 70).await;
        agree(&nodes, 69 * 5).await;
        nodes.iter().map(last).max().unwrap_or(0)
    };
    nodes.iter().for_each(|node| assert!(last(node) >= confirmed));
    let leader_id = nodes.iter().map(|node| node.id).find(|id| *id != damaged).expect("two run");
    nodes.clear();
    for id in [damaged, leader_id] {
        world.crash(id.0, Crash::Process);
    }
    damage(&world, damaged.0, b"message 30.2", 0);
    // Without the leader that has everything: one lacks the last messages, the other does not know what it had.
    let (lagging, broken) = tokio::join!(world.start(away.0), world.start_partly(damaged.0));
    let (lagging, broken) = (lagging.expect("boots"), broken.expect("boots"));
    leads_catalog(&[&lagging, &broken]).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((broken.consensus.incomplete(), broken.consensus.shard(DATA).is_none()), (1, true));
    let leadership = *lagging.consensus.shard(DATA).expect("member").leadership().borrow();
    assert!(!leadership.is_me, "elected with the vote of a replica that had forgotten what was confirmed");
    // With it nothing is missing.
    let best = world.start(leader_id.0).await.expect("boots");
    let broken = in_data(broken).await.expect("rebuilt");
    let mut nodes = vec![lagging, broken, best];
    agree(&nodes, 69 * 5).await;
    publish(&mut nodes, session, 70, 75).await;
    agree(&nodes, 74 * 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_two_of_three_damaged_nobody_serves() {
    let mut world = World::without_checkpoints();
    let (mut nodes, _) = filled(&world).await;
    let ids: Vec<NodeId> = nodes.iter().map(|node| node.id).collect();
    nodes.clear();
    ids.iter().for_each(|id| world.crash(id.0, Crash::Process));
    damage(&world, 1, b"message 30.2", 0);
    damage(&world, 2, b"message 40.2", 0);
    let started = futures::future::join_all([world.start_partly(1), world.start_partly(2), world.start_partly(3)]).await;
    let nodes: Vec<Node> = started.into_iter().map(|node| node.expect("boots")).collect();
    leads_catalog(&nodes.iter().collect::<Vec<_>>()).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(nodes.iter().map(|node| node.consensus.incomplete()).collect::<Vec<_>>(), [1, 1, 0]);
    assert!(!nodes[2].consensus.shard(DATA).expect("whole").leadership().borrow().is_me);
}
