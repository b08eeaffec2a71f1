//! Replicas that move while messages come, and processes that die on the way: nodes of the production stack in one process.

use super::snapshot_tests::{World, all_bodies_are_there};
use super::stack_tests::*;
use super::*;
use crate::model::admin::AdminCommand;
use crate::model::catalog::{CatalogCommand, CatalogReply, Refusal};
use crate::model::roster::{Roster, RosterChange, Stage};
use crate::model::{Generation, Incarnation, NodeId, SessionId, ShardId, VoterId};
use crate::store::disk::sim::Crash;
use openraft::async_runtime::watch::WatchReceiver;
use std::time::Duration;
use tokio::time::Instant;

const PATIENCE: Duration = Duration::from_secs(60);

fn founders() -> Vec<(NodeId, String)> {
    (1..=3).map(|node| (NodeId(node), format!("node {node}"))).collect()
}

async fn submit(node: &Node, command: CatalogCommand) -> Result<(), Refusal> {
    match node.consensus.catalog().submit(&command, Instant::now() + PATIENCE).await.expect("an answer").1 {
        CatalogReply::Refused(refusal) => Err(refusal),
        CatalogReply::Done | CatalogReply::Queue { .. } => Ok(()),
    }
}

async fn change(node: &Node, change: RosterChange) -> Result<(), Refusal> {
    submit(node, CatalogCommand::Admin(AdminCommand::Roster { change, founders: founders() })).await
}

async fn up(node: &Node, id: u16) {
    submit(node, CatalogCommand::NodeUp { node: NodeId(id), incarnation: Incarnation(1) }).await.expect("listed");
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Three nodes with messages, and a fourth that has joined.
async fn joined(world: &World) -> (Vec<Node>, SessionId) {
    let mut nodes = world.start_all().await;
    let bootstrap = CatalogCommand::Bootstrap { vhost: "/".into(), user: "guest".into(), password_hash: String::new(), shards: 1 };
    submit(&nodes[0], bootstrap).await.expect("bootstrapped");
    for id in 1..=3 {
        up(&nodes[0], id).await;
    }
    let session = open_session(&mut nodes).await;
    publish(&mut nodes, session, 1, 110).await;
    change(&nodes[0], RosterChange::Join { node: NodeId(4), address: "node 4".into() }).await.expect("admitted");
    let new = world.start_member(4, Members::founded((1..=4).map(NodeId), 1), true).await.expect("boots");
    nodes.push(new);
    up(&nodes[0], 4).await;
    let serves = |node: &Node| node.consensus.members().roster().members.get(&NodeId(4)).is_some_and(|new| new.stage == Stage::Serving);
    until("all know that the new node serves", || nodes.iter().all(serves)).await;
    (nodes, session)
}

/// Where the data shard is to be.
async fn order(node: &Node, goal: &[u16]) {
    let goal: Vec<NodeId> = goal.iter().copied().map(NodeId).collect();
    let basis = node.consensus.members().roster().index;
    change(node, RosterChange::Goal { shard: DATA, goal, basis }).await.expect("planned");
    assert!(node.consensus.members().roster().index > basis, "planned by an old roster");
}

fn is_at(node: &Node, nodes: &[u16]) -> bool {
    let roster = node.consensus.members().roster();
    roster.moving().is_none() && roster.now(DATA).iter().map(|node| node.0).eq(nodes.iter().copied())
}

async fn arrived(nodes: &[Node], at: &[u16]) {
    let holds = |node: &Node| node.consensus.shard(DATA).is_some() == at.contains(&node.id.0);
    until("the shard is where it is to be", || nodes.iter().all(|node| is_at(node, at) && holds(node))).await;
}

fn those(nodes: Vec<Node>, at: &[u16]) -> (Vec<Node>, Vec<Node>) {
    nodes.into_iter().partition(|node| at.contains(&node.id.0))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_goes_to_a_new_node_and_back_while_messages_come() {
    let mut world = World::of(4);
    let (mut nodes, session) = joined(&world).await;
    assert!(nodes[3].consensus.shard(DATA).is_none() && nodes[3].consensus.shard(ShardId::CATALOG).is_some());
    order(&nodes[0], &[2, 3, 4]).await;
    publish(&mut nodes, session, 110, 140).await;
    arrived(&nodes, &[2, 3, 4]).await;
    publish(&mut nodes, session, 140, 160).await;
    let (mut at, mut old) = those(nodes, &[2, 3, 4]);
    agree(&at, 159 * 5).await;
    all_bodies_are_there(&at[2], &at[0]);
    assert_eq!(at[2].consensus.rebuilt(), 0, "what is new was not damaged");
    let left = &old[0];
    let log = left.wal.state(DATA);
    assert!(log.last == log.purged && left.wal.damage(DATA).is_some(), "what it held can never count again: {log:?}");
    assert_eq!(left.consensus.fault(), None);
    // The new one counts: with one old one it is a majority.
    let (gone, roster) = (at.remove(0), Roster::clone(&at[0].consensus.members().roster()));
    let id = gone.id.0;
    drop(gone);
    world.crash(id, Crash::Process);
    publish(&mut at, session, 160, 170).await;
    at.push(world.start_member(id, Members::new(roster), false).await.expect("boots"));
    agree(&at, 169 * 5).await;
    // And back, in the same process.
    at.append(&mut old);
    order(&at[0], &[4, 3, 1]).await;
    publish(&mut at, session, 170, 190).await;
    arrived(&at, &[4, 3, 1]).await;
    let (mut at, _old) = those(at, &[4, 3, 1]);
    publish(&mut at, session, 190, 200).await;
    agree(&at, 199 * 5).await;
    let back = at.iter().position(|node| node.id.0 == 1).expect("there");
    all_bodies_are_there(&at[back], &at[(back + 1) % 3]);
}

/// Sets of voters and members, as a leader knows them.
fn members_of(shard: &Shard) -> (usize, usize) {
    let metrics = shard.inner().raft.metrics();
    let metrics = metrics.borrow_watched();
    let membership = metrics.membership_config.membership();
    (membership.get_joint_config().len(), membership.nodes().count())
}

/// Kills whoever leads the shard, or the node that is to come, as soon as the move is so far.
async fn dies_on_the_way(kills_new: bool, is_far: impl Fn(usize, usize) -> bool) {
    let mut world = World::of(4);
    let (mut nodes, session) = joined(&world).await;
    let (at, _) = leader(&nodes).await;
    let leading = nodes[at].consensus.shard(DATA).expect("leads");
    let goes = (1..=3).find(|id| *id != nodes[at].id.0).expect("another");
    let goal: Vec<u16> = [1, 2, 3, 4].into_iter().filter(|id| *id != goes).collect();
    order(&nodes[at], &goal).await;
    until("the move is so far", || {
        let (configs, members) = members_of(&leading);
        is_far(configs, members) || is_at(&nodes[at], &goal)
    })
    .await;
    drop(leading);
    let victim = nodes.remove(if kills_new { 3 } else { at });
    let id = victim.id.0;
    drop(victim);
    world.crash(id, Crash::Process);
    let (mut at, _) = those(nodes, &[1, 2, 3, 4]);
    publish(&mut at, session, 110, 130).await;
    // A process keeps the members beside its log.
    let roster = Roster::clone(&at[0].consensus.members().roster());
    at.push(world.start_member(id, Members::new(roster), false).await.expect("boots"));
    arrived(&at, &goal).await;
    publish(&mut at, session, 130, 140).await;
    let (at, _old) = those(at, &goal);
    agree(&at, 139 * 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_dies_when_the_new_node_is_a_learner() {
    dies_on_the_way(false, |_, members| members > 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_dies_between_two_sets_of_voters() {
    dies_on_the_way(false, |configs, _| configs > 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_new_node_dies_when_it_is_a_learner() {
    dies_on_the_way(true, |_, members| members > 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_new_node_dies_between_two_sets_of_voters() {
    dies_on_the_way(true, |configs, _| configs > 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_removed_is_refused_and_the_rest_goes_on_without_it() {
    let mut world = World::of(4);
    let (mut nodes, session) = joined(&world).await;
    let dead = nodes.remove(0);
    drop(dead);
    world.crash(1, Crash::Process);
    let down = CatalogCommand::NodeDown { node: NodeId(1), incarnation: Incarnation(1) };
    assert!(change(&nodes[0], RosterChange::Remove { node: NodeId(1) }).await.is_err(), "it is still listed as up");
    submit(&nodes[0], down).await.expect("listed");
    change(&nodes[0], RosterChange::Remove { node: NodeId(1) }).await.expect("removed");
    // Its replica is made anew on the fourth node, which was none of the shard's.
    publish(&mut nodes, session, 110, 140).await;
    let holders = |node: &Node| node.consensus.members().roster().now(DATA).len();
    until("the replica is made anew", || nodes.iter().all(|node| holders(node) == 3 && node.consensus.shard(DATA).is_some())).await;
    let back = world.start_partly(1).await.expect("boots");
    until("it hears that it is gone", || back.consensus.members().roster().gone.contains(&NodeId(1))).await;
    agree(&nodes, 139 * 5).await;
    publish(&mut nodes, session, 140, 150).await;
    agree(&nodes, 149 * 5).await;
    let leads = back.consensus.shard(DATA).is_some_and(|shard| shard.leadership().borrow().is_me);
    assert!(!leads && back.consensus.heard().is_none(), "it leads nothing");
    // A process keeps what it heard.
    let roster = Roster::clone(&back.consensus.members().roster());
    drop(back);
    world.crash(1, Crash::Process);
    assert!(world.start_member(1, Members::new(roster), false).await.is_none(), "it says so and ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_comes_back_with_members_in_its_log_that_nobody_else_has_heard_of() {
    let mut world = World::simulated();
    let mut nodes = world.start_all().await;
    let session = open_session(&mut nodes).await;
    publish(&mut nodes, session, 1, 10).await;
    let (at, _) = leader(&nodes).await;
    let alone = nodes.remove(at);
    let shard = alone.consensus.shard(DATA).expect("leads");
    until("a checkpoint says what is applied", || shard.inner().holding.checkpointed.lock().is_some()).await;
    let others: Vec<u16> = nodes.iter().map(|node| node.id.0).collect();
    drop(nodes);
    others.iter().for_each(|id| world.crash(*id, Crash::Process));
    let new = VoterId { node: NodeId(4), generation: Generation(1) }.pack();
    let is_logged = || {
        let log = alone.wal.state(DATA);
        log.membership.is_some_and(|(id, _)| id.index > 0) && alone.wal.flushed(DATA) == log.last
    };
    tokio::select! {
        done = shard.inner().raft.add_learner(new, openraft::EmptyNode {}, false) => panic!("nobody is there to agree: {done:?}"),
        () = until("it is in its own log", is_logged) => {}
    }
    drop(shard);
    let id = alone.id.0;
    drop(alone);
    world.crash(id, Crash::Process);
    let nodes = futures::future::join_all(others.iter().map(|id| world.start(*id))).await;
    let mut nodes: Vec<Node> = nodes.into_iter().map(|node| node.expect("boots")).collect();
    publish(&mut nodes, session, 10, 20).await;
    nodes.push(world.start(id).await.expect("boots"));
    agree(&nodes, 19 * 5).await;
    assert_eq!(nodes[2].consensus.fault(), None);
}

/// It is marked in the log, durably, as it is before anything of it goes.
async fn mark_as_given_up(node: &Node, shard: ShardId) {
    let (done_tx, done_rx) = tokio::sync::oneshot::channel();
    node.wal.give_up(shard, move |done| {
        let _ = done_tx.send(done.is_ok());
    });
    assert!(done_rx.await.expect("an answer"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_marked_before_a_crash_holds_no_log_after_it() {
    let mut world = World::of(4);
    let (mut nodes, session) = joined(&world).await;
    let (at, _) = leader(&nodes).await;
    let goes = (1..=3).find(|id| *id != nodes[at].id.0).expect("another");
    let goal: Vec<u16> = [1, 2, 3, 4].into_iter().filter(|id| *id != goes).collect();
    let victim = nodes.remove(usize::from(goes) - 1);
    mark_as_given_up(&victim, DATA).await;
    drop(victim);
    world.crash(goes, Crash::Process);
    order(&nodes[0], &goal).await;
    publish(&mut nodes, session, 110, 130).await;
    until("the shard has moved", || nodes.iter().all(|node| is_at(node, &goal))).await;
    let roster = Roster::clone(&nodes[0].consensus.members().roster());
    let back = world.start_member(goes, Members::new(roster), false).await.expect("boots");
    assert!(back.consensus.shard(DATA).is_none() && back.wal.state(DATA).last.is_some());
    until("its log is given up", || back.wal.state(DATA).last == back.wal.state(DATA).purged).await;
    assert!(back.wal.damage(DATA).is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_node_that_dies_before_it_knows_the_members_finds_a_leader_that_it_was_not_told_of() {
    let mut world = World::of(4);
    let (mut nodes, _) = joined(&world).await;
    let new = nodes.remove(3);
    mark_as_given_up(&new, ShardId::CATALOG).await;
    drop(new);
    world.crash(4, Crash::Process);
    world.dirs[3] = tempfile::tempdir().expect("a directory");
    let leads = nodes[0].consensus.leadership(ShardId::CATALOG).borrow().leader.expect("a leader").node();
    let other = (1..=3).map(NodeId).find(|id| *id != leads).expect("another");
    let new = world.start_member(4, Members::founded([other, NodeId(4)], 1), false).await.expect("boots");
    assert_eq!(new.consensus.incomplete(), 0, "nor does it take for its own what is not");
    assert_eq!(new.consensus.members().nodes(), (1..=4).map(NodeId).collect::<Vec<_>>());
}

/// What is refused may come to be: nothing of it is for good.
async fn asked(node: &Node, configured: &[u16], without: Option<u16>) -> Result<(), String> {
    let configured: Vec<NodeId> = configured.iter().copied().map(NodeId).collect();
    node.consensus.may_change_members(&configured, without.map(NodeId)).await.map_err(|refusal| match refusal {
        crate::model::catalog::Refusal::Unavailable(why) => why,
        other => panic!("{other:?}"),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_change_of_members_waits_until_all_say_that_they_know_what_it_is() {
    let mut world = World::simulated();
    let mut nodes = world.start_all().await;
    leader(&nodes).await;
    let all_know = asked(&nodes[0], &[3, 2, 1], None).await;
    assert_eq!(all_know, Ok(()));
    let other_list = asked(&nodes[0], &[1, 2, 3, 4], None).await.expect_err("a list of others");
    assert!(other_list.contains("formed by the nodes 1, 2, 3,"), "{other_list}");
    drop(nodes.pop());
    world.crash(3, Crash::Process);
    let silent = asked(&nodes[0], &[1, 2, 3], None).await.expect_err("one does not answer");
    assert!(silent.contains("node 3 does not say"), "{silent}");
    assert_eq!(asked(&nodes[0], &[1, 2, 3], Some(3)).await, Ok(()), "it is the one that goes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_node_whose_disk_is_lost_is_filled_again_and_gets_a_replica_like_any_other() {
    let mut world = World::of(4);
    let (mut nodes, session) = joined(&world).await;
    drop(nodes.pop());
    world.wipe(4);
    nodes.push(world.start_member(4, Members::founded((1..=4).map(NodeId), 1), false).await.expect("boots"));
    assert_eq!(nodes[3].consensus.members().roster(), nodes[0].consensus.members().roster());
    order(&nodes[0], &[2, 3, 4]).await;
    publish(&mut nodes, session, 110, 140).await;
    arrived(&nodes, &[2, 3, 4]).await;
    let (mut at, _old) = those(nodes, &[2, 3, 4]);
    publish(&mut at, session, 140, 150).await;
    agree(&at, 149 * 5).await;
    all_bodies_are_there(&at[2], &at[0]);
}
