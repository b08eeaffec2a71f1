//! Moving leadership on purpose: forced failover when a leader's process died (section 5 of the storage plan, T4, rule 10), leaders back to
//! their preferred nodes, handing over before a stop, and telling nodes outside a group who leads it.

use super::clock;
use super::core::Core;
use super::order;
use super::placement::FIRST_GENERATION;
use super::shard::Shard;
use super::types::from_lid;
use super::wire::Ask;
use crate::model::ports::Proposer;
use crate::model::{LeaderId, NodeId, ShardId, VoterId};
use crate::peer::transport::head_only;
use bytes::{BufMut, BytesMut};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::raft::TransferLeaderRequest;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// The next survivor tries this much later: usually it finds the vote changed already.
const STAGGER: Duration = Duration::from_millis(30);
/// Attempts older than this are forgotten.
const CALM: Duration = Duration::from_secs(10);
const BALANCE: Duration = Duration::from_secs(5);
/// Leadership goes back only to a node that has been connected for this long.
const STABLE: Duration = Duration::from_secs(10);
/// ... and whose log is at most this many entries behind.
const LAG: u64 = 1000;
const HINTS: Duration = Duration::from_millis(1000);

struct Attempts {
    last_leader: LeaderId,
    count: u32,
    at: Instant,
}

/// Watches connections; when a node's process is gone, campaigns for the shards that it led.
pub(super) async fn watch_processes(core: Arc<Core>) {
    let Some(transport) = core.transport().cloned() else { return };
    let mut changes_rx = transport.link_changes();
    let mut attempts: BTreeMap<ShardId, Attempts> = BTreeMap::new();
    let mut connected: BTreeSet<NodeId> = BTreeSet::new();
    loop {
        for node in core.others() {
            let up = transport.link(node).up == 2;
            if up && connected.insert(node) {
                resume(&core, node).await;
            } else if !up {
                connected.remove(&node);
            }
        }
        for node in core.others().filter(|n| transport.link(*n).process_gone()) {
            for group in core.all_groups() {
                consider(&core, &group, node, &mut attempts);
            }
        }
        if changes_rx.changed().await.is_err() {
            return;
        }
    }
}

/// A node is back: replication to it goes on at once instead of after its backoff (P12).
async fn resume(core: &Core, node: NodeId) {
    for group in core.all_groups() {
        // It may be about to become a voter.
        let voter = VoterId { node, generation: FIRST_GENERATION };
        let _ = order::in_time(group.inner().raft.trigger().reset_backoff([voter.pack()])).await;
    }
}

fn present_leader(group: &Shard) -> Option<(super::types::Ovote, LeaderId)> {
    let metrics = group.inner().raft.server_metrics();
    let server = metrics.borrow_watched();
    server.vote.committed.then(|| (server.vote, from_lid(server.vote.leader_id)))
}

fn consider(core: &Arc<Core>, group: &Shard, dead: NodeId, attempts: &mut BTreeMap<ShardId, Attempts>) {
    let Some((vote, leader)) = present_leader(group) else { return };
    // Who is to become a voter is none yet.
    let votes = group.voters().iter().any(|voter| voter.node == core.me);
    if leader.node() != dead || leader.term == 0 || !votes {
        return;
    }
    let now = Instant::now();
    let known = attempts.get(&group.id());
    if known.is_some_and(|a| a.last_leader == leader) {
        return;
    }
    let count = known.filter(|a| a.at.elapsed() < CALM).map_or(0, |a| a.count + 1);
    attempts.insert(group.id(), Attempts { last_leader: leader, count, at: now });
    let before = |node| node != dead && (node < core.me || (core.slow_disks.is_own_slow() && node != core.me));
    let rank = group.voters().iter().filter(|v| before(v.node)).count() as u32;
    let backoff = if count == 0 { Duration::ZERO } else { (STAGGER * 2u32.pow(count.min(6))).min(core.timing.lease()) };
    let (core, group) = (core.clone(), group.clone());
    tokio::spawn(async move {
        tokio::time::sleep(STAGGER * rank + backoff).await;
        let still = present_leader(&group).is_some_and(|(now, _)| now == vote);
        let gone = core.transport().is_some_and(|t| t.link(dead).process_gone());
        if !still || !gone {
            return;
        }
        tracing::info!(shard = %group.id(), leader = ?leader, "the leader's process is gone: campaigning at once");
        group.inner().forced.store(true, Ordering::Relaxed);
        let request = TransferLeaderRequest::new(vote, group.inner().me, None);
        match order::in_time(group.inner().raft.handle_transfer_leader(request)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(shard = %group.id(), %error, "campaign failed"),
            Err(error) => tracing::warn!(shard = %group.id(), %error, "campaign failed"),
        }
    });
}

/// Gives leadership back to each shard's preferred node while the cluster is calm. Every leader looks after its own shards.
pub(super) async fn balance(core: Arc<Core>) {
    let Some(transport) = core.transport().cloned() else { return };
    let mut up_since: BTreeMap<NodeId, Instant> = BTreeMap::new();
    loop {
        clock::calm(BALANCE).await;
        for node in core.others() {
            match transport.link(node).up {
                2 => drop(up_since.entry(node).or_insert_with(Instant::now)),
                _ => drop(up_since.remove(&node)),
            }
        }
        let stable = |node| up_since.get(&node).is_some_and(|at: &Instant| at.elapsed() >= STABLE);
        // One at a time: the next one when this has settled.
        if let Some((group, to)) =
            core.all_groups().into_iter().find_map(|g| misplaced(&core, &g).filter(|to| stable(*to)).map(|to| (g, to)))
        {
            tracing::info!(shard = %group.id(), %to, "leadership goes back to the preferred node");
            group.transfer_to(to).await;
        }
    }
}

pub(super) fn misplaced(core: &Core, group: &Shard) -> Option<NodeId> {
    let preferred = group.preferred()?;
    let is_fit = preferred.node != core.me && !core.slow_disks.is_slow(preferred.node);
    if !is_fit || !group.leadership().borrow().is_me || !group.lease_valid() {
        return None;
    }
    let last = group.inner().journal.state(group.id()).last?.index;
    let matching = group.matching(preferred)?;
    (last.saturating_sub(matching) <= LAG).then_some(preferred.node)
}

/// Before a stop: every shard that this node leads goes to another connected member, if there is one. Waits at most `patience`.
pub(super) async fn hand_over(core: &Core, patience: Duration) {
    let deadline = Instant::now() + patience;
    let Some(transport) = core.transport() else { return };
    let mut leaving = Vec::new();
    for group in core.all_groups() {
        if !group.leadership().borrow().is_me {
            continue;
        }
        let others = group.voters().into_iter().filter(|v| v.node != core.me && transport.link(v.node).up > 0);
        let Some(best) = others.max_by_key(|v| (!core.slow_disks.is_slow(v.node), group.matching(*v))) else { continue };
        if tokio::time::timeout_at(deadline, group.transfer_to(best.node)).await.is_err() {
            return;
        }
        leaving.push(group.leadership());
    }
    for mut leadership_rx in leaving {
        let _ = tokio::time::timeout_at(deadline, leadership_rx.wait_for(|l| !l.is_me)).await;
    }
}

/// Tells all nodes which groups this one leads (those outside a group know it only so) and how far every member of it is (the others
/// purge their logs by that), and whether this node's disk is slow: at once on a change, and now and then.
pub(super) async fn tell(core: Arc<Core>) {
    let Some(transport) = core.transport().cloned() else { return };
    let (mut watched, mut whole_rx) = (Vec::new(), core.whole.subscribe());
    let mut known = *whole_rx.borrow();
    loop {
        // Some join later, some leave.
        let now = *whole_rx.borrow_and_update();
        if std::mem::replace(&mut known, now) != now || watched.is_empty() {
            watched = core.all_groups().into_iter().map(|g| (g.leadership(), g)).collect();
        }
        let is_slow = core.slow_disks.is_own_slow();
        let mut letter = BytesMut::from(&[Ask::Led as u8, u8::from(is_slow)][..]);
        for (leadership_rx, group) in &mut watched {
            let now = *leadership_rx.borrow_and_update();
            if let Some(leader) = now.leader.filter(|_| now.is_me) {
                letter.put_u16_le(group.id().0);
                letter.put_u64_le(leader.term);
                letter.put_u64_le(leader.voter);
                letter.put_u64_le(super::checkpoint::slowest(&core, group).unwrap_or(0));
            }
        }
        if letter.len() > 2 || is_slow {
            let letter = letter.freeze();
            core.others().for_each(|node| drop(tokio::spawn(transport.ask(node, head_only(letter.clone()), HINTS))));
        }
        let changes = watched.iter_mut().map(|(rx, _)| Box::pin(rx.changed()));
        tokio::select! {
            (changed, ..) = futures::future::select_all(changes) => if changed.is_err() { return },
            changed = whole_rx.changed() => if changed.is_err() { return },
            () = core.slow_disks.news.notified() => {}
            () = clock::calm(HINTS) => {}
        }
    }
}
