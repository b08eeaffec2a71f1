//! Groups that end or hang without an error: the node knows, says which and why, and the others serve on.

use super::*;
use crate::consensus::watchdog::Asked;
use futures::FutureExt;
use tokio::task::unconstrained;

/// A group that hangs is given up after some tenths of a second.
fn watchful() -> Timing {
    Timing { watch_ms: 64, ..Timing::default() }
}

async fn lost(cluster: &Cluster, id: NodeId) -> Loss {
    until(|| cluster.nodes[&id].consensus.fault().is_some()).await;
    cluster.nodes[&id].consensus.fault().expect("seen")
}

/// The others elect a leader and serve; they are well.
async fn others_serve(mut cluster: Cluster, old: NodeId, mut token: u64) {
    cluster.nodes[&old].consensus.kill();
    cluster.kill(old);
    token = next_epoch(token);
    while !applied(&cluster.propose(token).await) {
        token = next_epoch(token);
    }
    assert!(cluster.nodes.values().all(|node| node.consensus.fault().is_none()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_whose_core_hangs_is_given_up() {
    let mut cluster = Cluster::started_with(3, 1, watchful()).await;
    assert!(applied(&cluster.propose(0).await));
    let (leader, _) = cluster.leader(DATA).await;
    let victim = *cluster.nodes.keys().find(|id| **id != leader).expect("three nodes");
    // An append on its way would be dropped without a word, too: another fault.
    cluster.until_all_applied(DATA, &flat(0..1)).await;
    cluster.journals[&victim].silent.store(true, Ordering::SeqCst);
    // Its vote, for itself or for the other, is never said to be saved.
    assert!(cluster.nodes[&leader].consensus.shard(DATA).expect("member").transfer_to(victim).await);
    let loss = lost(&cluster, victim).await;
    assert!(loss.what.contains("has not answered in") && loss.may_pass, "{loss:?}");
    others_serve(cluster, victim, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_never_hears_that_its_log_is_on_the_disk_is_given_up() {
    let mut cluster = Cluster::started_with(1, 1, watchful()).await;
    assert!(applied(&cluster.propose(0).await));
    let (id, leader) = cluster.leader(DATA).await;
    cluster.journals[&id].silent.store(true, Ordering::SeqCst);
    cluster.nodes[&id].consensus.shard(DATA).expect("member").propose(1, leader, entry(1));
    let loss = lost(&cluster, id).await;
    assert!(loss.what.contains("shard 1 has not heard that its log is on the disk") && loss.may_pass, "{loss:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_for_which_the_mailbox_had_no_room_is_asked_again() {
    let cluster = Cluster::started(1, 1).await;
    let (id, _) = cluster.leader(DATA).await;
    let group = cluster.nodes[&id].consensus.shard(DATA).expect("member");
    let ask = |question: Box<dyn FnOnce() + Send>| unconstrained(group.inner().raft.external_request(|_| question())).now_or_never();
    let (go_on_tx, go_on_rx) = std::sync::mpsc::channel::<()>();
    ask(Box::new(move || _ = go_on_rx.recv()));
    while ask(Box::new(|| ())).is_some() {}
    let mut asked = Asked::new(&group);
    assert_eq!(asked.look(true), None);
    drop(go_on_tx);
    until(|| ask(Box::new(|| ())).is_some()).await;
    assert!(!asked.is_answered());
    assert_eq!(asked.look(true), None);
    until(|| asked.is_answered()).await;
}

/// It saves one vote after the other, and no entry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_wrong_with_a_node_that_stays_alone() {
    let mut cluster = Cluster::started_with(3, 1, watchful()).await;
    assert!(applied(&cluster.propose(0).await));
    let (leader, _) = cluster.leader(DATA).await;
    let alone = *cluster.nodes.keys().find(|id| **id != leader).expect("three nodes");
    for id in [1, 2, 3].map(NodeId).into_iter().filter(|id| *id != alone) {
        cluster.nodes[&id].consensus.kill();
        cluster.kill(id);
    }
    let consensus = &cluster.nodes[&alone].consensus;
    until(|| consensus.shard(DATA).expect("member").raft_figures().term > 1).await;
    let campaigns = consensus.watched();
    until(|| consensus.watched() > campaigns + 20).await;
    assert_eq!(consensus.fault(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_never_applies_what_is_committed_is_given_up() {
    let mut cluster = Cluster::started_with(3, 1, watchful()).await;
    assert!(applied(&cluster.propose(0).await));
    let (leader, _) = cluster.leader(DATA).await;
    let victim = *cluster.nodes.keys().find(|id| **id != leader).expect("three nodes");
    cluster.until_all_applied(DATA, &flat(0..1)).await;
    let journal = cluster.journals[&victim].clone();
    journal.stuck.store(true, Ordering::SeqCst);
    assert!(applied(&cluster.propose(1).await));
    let loss = lost(&cluster, victim).await;
    journal.stuck.store(false, Ordering::SeqCst);
    assert!(loss.what.contains("has not applied what is committed") && loss.may_pass, "{loss:?}");
    others_serve(cluster, victim, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_whose_machine_panics_has_ended_although_its_core_goes_on() {
    let mut cluster = Cluster::started(3, 1).await;
    assert!(applied(&cluster.propose(0).await));
    let (leader, _) = cluster.leader(DATA).await;
    let victim = *cluster.nodes.keys().find(|id| **id != leader).expect("three nodes");
    cluster.nodes[&victim].tapes.lock()[&DATA].panics.store(true, Ordering::SeqCst);
    assert!(applied(&cluster.propose(1).await));
    let loss = lost(&cluster, victim).await;
    assert!(loss.what.contains("shard 1 has stopped") && loss.may_pass, "{loss:?}");
    others_serve(cluster, victim, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_that_the_log_drops_without_a_word_ends_the_group() {
    let mut cluster = Cluster::started(1, 1).await;
    assert!(applied(&cluster.propose(0).await));
    let (id, leader) = cluster.leader(DATA).await;
    let journal = cluster.journals[&id].clone();
    journal.silent.store(true, Ordering::SeqCst);
    cluster.nodes[&id].consensus.shard(DATA).expect("member").propose(1, leader, entry(1));
    until(|| !journal.unsaid.lock().is_empty()).await;
    journal.unsaid.lock().clear();
    let loss = lost(&cluster, id).await;
    assert!(loss.what.contains("shard 1 has stopped") && loss.what.contains("the log never said"), "{loss:?}");
}
