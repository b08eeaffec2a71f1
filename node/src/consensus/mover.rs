//! Moving replicas (docs/decisions/0025). The node that leads the catalog plans one step at a time; the leader of the group carries it out and
//! tells the catalog; a node makes and gives up its own replicas by what the catalog says. Nothing is kept in between: each look at the
//! roster and at the group's own voters says what is next, whoever died meanwhile.

use super::catalog::CatalogClient;
use super::clock;
use super::core::Core;
use super::log::completion;
use super::placement::FIRST_GENERATION;
use super::planner;
use super::shard::Shard;
use super::start::Maker;
use super::types::{Oid, Ostored};
use super::wire::Ask;
use crate::model::admin::AdminCommand;
use crate::model::catalog::{CatalogCommand, Refusal};
use crate::model::ports::Proposer;
use crate::model::roster::{Roster, RosterChange};
use crate::model::{NodeId, ShardId, VoterId};
use crate::peer::transport::head_only;
use crate::peer::{Frame, PeerError};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::ChangeMembers;
use openraft::async_runtime::watch::WatchReceiver;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Between two looks; a change of the roster is looked at once.
const LOOK: Duration = Duration::from_millis(300);
/// A learner that lacks no more entries than this becomes a voter.
const LAG: u64 = 200;
/// One change of a group's voters, or one command of the catalog.
const CHANGE: Duration = Duration::from_secs(5);
/// One question to a node that is to get a replica.
const ASK: Duration = Duration::from_secs(1);

/// Tells the network where members are, from before this node is one.
pub(super) async fn keep_known(core: Arc<Core>) {
    let mut roster_rx = core.members.watch();
    loop {
        let roster = roster_rx.borrow_and_update().clone();
        if let Some(transport) = core.transport().filter(|_| roster.index > 0) {
            let others = roster.members.iter().filter(|(node, _)| **node != core.me);
            others.for_each(|(node, member)| transport.know(*node, &member.address));
            roster.gone.iter().for_each(|node| transport.forget(*node));
        }
        if roster_rx.changed().await.is_err() {
            return;
        }
    }
}

/// Makes the replicas that this node is to have, and gives up those that are elsewhere.
pub(super) async fn keep_replicas(core: Arc<Core>, maker: Maker) {
    let (mut roster_rx, mut said) = (core.members.watch(), BTreeMap::new());
    let is_fresh = core.leases.check();
    loop {
        let roster = roster_rx.borrow_and_update().clone();
        for shard in core.shard_ids().filter(|shard| *shard != ShardId::CATALOG && roster.index > 0) {
            let has_place = core.groups.read().contains_key(&shard);
            let result = match (roster.holds(shard, core.me), has_place) {
                (true, true) => Ok(()),
                (true, false) => maker.add(&core, shard).await.map_err(io::Error::other),
                // An old catalog may not know yet that a replica is this node's.
                (false, _) if is_fresh() => give_up(&core, shard).await,
                (false, _) => Ok(()),
            };
            let why = result.err().map(|error| error.to_string());
            if let Some(why) = why.filter(|why| said.insert(shard, why.clone()).as_ref() != Some(why)) {
                tracing::warn!(%shard, why, "this node's part in the shard cannot be changed yet");
            }
        }
        tokio::select! {
            changed = roster_rx.changed() => if changed.is_err() { return },
            () = clock::calm(if roster.index > 0 { LOOK } else { 10 * LOOK }) => {}
        }
    }
}

/// The group goes on without this node. What it held is marked as lost before anything of it goes, so that it can never count again.
async fn give_up(core: &Arc<Core>, shard: ShardId) -> io::Result<()> {
    let _nobody_is_told_otherwise = core.giving.lock().await;
    if core.members.roster().holds(shard, core.me) {
        return Ok(());
    }
    let in_the_making = core.group(shard).is_none() && core.groups.read().contains_key(&shard);
    let group = core.part(shard);
    if let Some(group) = &group {
        let _ = group.inner().raft.shutdown().await;
    }
    let log = core.journal.state(shard);
    // What was being made may be on its way to the disk: its log is looked at the next time.
    if in_the_making || (group.is_none() && log.last == log.purged) {
        return Ok(());
    }
    // Marked already by a process that died then; and damage may know more of votes than this mark.
    if group.is_some() || core.journal.damage(shard).is_none() {
        let (done, marked) = completion();
        core.journal.give_up(shard, done);
        marked.await?;
    }
    let applied = group.as_ref().and_then(|group| group.inner().holding.machine.restored()).max(log.purged);
    // What was not committed is forgotten first: the state that may come back one day need not be newer than that.
    core.journal.truncate_after(shard, applied.or(log.committed), Box::new(|_| ()));
    if let Some(last) = core.journal.state(shard).last {
        core.journal.purge(shard, last);
        core.journal.retain_only(shard, last.index, &[]);
    }
    if let Some(group) = group {
        group.inner().holding.machine.clear();
    }
    tracing::info!(%shard, "this node has no replica of the shard any more");
    Ok(())
}

/// Carries out what is planned for the groups that this node leads.
pub(super) async fn keep_moving(core: Arc<Core>) {
    let (mut roster_rx, mut said) = (core.members.watch(), BTreeMap::new());
    loop {
        let roster = roster_rx.borrow_and_update().clone();
        // Without a lease the catalog of this node may be old.
        if roster.index > 0 && core.leases.check()() {
            for group in core.all_groups().iter().filter(|group| group.leadership().borrow().is_me && group.lease_valid()) {
                let done = step(&core, group, &roster).await;
                if let Some(why) = done.err().filter(|why| said.insert(group.id(), why.clone()).as_ref() != Some(why)) {
                    tracing::info!(shard = %group.id(), why, "the members of the shard cannot be changed yet");
                }
            }
        }
        tokio::select! {
            changed = roster_rx.changed() => if changed.is_err() { return },
            () = clock::calm(if roster.index > 0 { LOOK } else { 10 * LOOK }) => {}
        }
    }
}

fn voter(node: NodeId) -> u64 {
    VoterId { node, generation: FIRST_GENERATION }.pack()
}

/// The next step towards the goal of a group that this node leads.
async fn step(core: &Core, group: &Shard, roster: &Roster) -> Result<(), String> {
    let shard = group.id();
    let goal: BTreeSet<u64> = roster.goal(shard).iter().map(|node| voter(*node)).collect();
    let (members, applied) = {
        let metrics = group.inner().raft.metrics();
        let metrics = metrics.borrow_watched();
        (metrics.membership_config.clone(), metrics.last_applied)
    };
    let (membership, me) = (members.membership(), group.inner().me);
    let configs = membership.get_joint_config();
    if goal.is_empty() {
        return Ok(());
    }
    if configs.len() == 1 && configs[0] == goal {
        let idle: BTreeSet<u64> = membership.nodes().map(|(id, _)| *id).filter(|id| !goal.contains(id)).collect();
        if !idle.is_empty() {
            return change(group, ChangeMembers::RemoveNodes(idle)).await;
        }
        if !is_committed(&members, applied) {
            return Err("no majority has the last change yet".into());
        }
        return arrived(core, shard, roster).await;
    }
    let voters: BTreeSet<u64> = configs.iter().flatten().copied().collect();
    let stays = configs.len() > 1 || goal.contains(&me);
    if !stays {
        // A leader that goes hands over first; where nobody stays, it stays until somebody has come.
        let heirs: Vec<VoterId> = goal.intersection(&voters).map(|id| VoterId::unpack(*id)).collect();
        if !heirs.is_empty() {
            let is_up = |node| core.transport().is_some_and(|transport| transport.link(node).up > 0);
            let is_fit = |node| is_up(node) && !core.slow_disks.is_slow(node);
            let heir = heir(heirs.into_iter().map(|heir| (heir.node, is_fit(heir.node), group.matching(heir))));
            let heir = heir.ok_or("none of the nodes that stay can lead it now")?;
            let _ = group.transfer_to(heir).await;
            return Ok(());
        }
    }
    for id in goal.difference(&voters) {
        let node = VoterId::unpack(*id);
        if !is_ready(core, node.node, shard, roster.index).await {
            return Err(format!("node {} is not ready for its replica", node.node));
        }
        if membership.get_node(id).is_none() {
            tracing::info!(%shard, node = %node.node, "a node gets a replica of the shard");
            let adding = group.inner().raft.add_learner(*id, openraft::EmptyNode {}, false);
            return timed(adding).await;
        }
        let last = core.journal.state(shard).last.map_or(0, |id| id.index);
        // One that never answered does not count, however short the log is.
        match group.matching(node) {
            Some(matching) if matching + LAG >= last => {}
            matching => return Err(format!("node {} has {} of {last} entries", node.node, matching.unwrap_or(0))),
        }
    }
    let next: BTreeSet<u64> = if stays { goal } else { goal.into_iter().chain([me]).collect() };
    tracing::info!(%shard, from = ?nodes(&voters), to = ?nodes(&next), "the voters of the shard change");
    change(group, ChangeMembers::ReplaceAllVoters(next)).await
}

/// A set of voters that no majority has may still give way to the one before, which needs those of its voters that go.
fn is_committed(members: &Ostored, applied: Option<Oid>) -> bool {
    members.log_id().as_ref().map(|id| id.index) <= applied.map(|id| id.index)
}

/// Who takes over from a leader that goes: of the fit ones who has most.
fn heir(those: impl Iterator<Item = (NodeId, bool, Option<u64>)>) -> Option<NodeId> {
    those.filter(|(_, is_fit, _)| *is_fit).max_by_key(|(.., matching)| *matching).map(|(node, ..)| node)
}

fn nodes(ids: &BTreeSet<u64>) -> Vec<u16> {
    ids.iter().map(|id| VoterId::unpack(*id).node.0).collect()
}

async fn change(group: &Shard, change: ChangeMembers<u64, openraft::EmptyNode>) -> Result<(), String> {
    timed(group.inner().raft.change_membership(change, false)).await
}

async fn timed<T, E: std::fmt::Display>(changing: impl Future<Output = Result<T, E>>) -> Result<(), String> {
    match tokio::time::timeout(CHANGE, changing).await {
        Ok(done) => done.map(drop).map_err(|error| error.to_string()),
        Err(_) => Err("no majority has answered in time".into()),
    }
}

/// The group is where it was to be: the catalog is told.
async fn arrived(core: &Core, shard: ShardId, roster: &Roster) -> Result<(), String> {
    match roster.groups.get(&shard).and_then(|place| place.goal.clone()) {
        Some(goal) => tell(core, RosterChange::Moved { shard, goal, basis: roster.index }).await,
        None => Ok(()),
    }
}

async fn tell(core: &Core, change: RosterChange) -> Result<(), String> {
    let Some(core) = core.myself.upgrade() else { return Ok(()) };
    let command = CatalogCommand::Admin(AdminCommand::Roster { change, founders: Vec::new() });
    let told = CatalogClient { core }.submit(&command, Instant::now() + CHANGE).await;
    told.map(drop).map_err(|error| error.to_string())
}

/// Plans the next move while this node leads the catalog.
pub(super) async fn keep_planning(core: Arc<Core>) {
    loop {
        let roster = core.members.roster();
        clock::calm(if roster.index > 0 { LOOK } else { 10 * LOOK }).await;
        let leads = core.group(ShardId::CATALOG).is_some_and(|catalog| catalog.leadership().borrow().is_me && catalog.lease_valid());
        let Some(transport) = core.transport().filter(|_| leads) else { continue };
        let is_up = |node| node == core.me || transport.link(node).up == 2;
        let Some((shard, goal)) = planner::plan(&roster, is_up) else { continue };
        let nodes: Vec<u16> = goal.iter().map(|node| node.0).collect();
        tracing::info!(%shard, from = ?roster.now(shard), to = ?nodes, "replicas are to be elsewhere");
        if let Err(why) = tell(&core, RosterChange::Goal { shard, goal, basis: roster.index }).await {
            tracing::warn!(%shard, why, "the catalog does not know the plan");
        }
    }
}

/// Before the first change of members: why this node may not ask for one yet. `configured` are the nodes of its own list, which is written down
/// as the beginning; `without` is who may be down for good. A node of an older version could not read the change and would stop.
pub(super) async fn may_change(core: &Core, configured: &[NodeId], without: Option<NodeId>) -> Result<(), Refusal> {
    if core.members.roster().index > 0 {
        return Ok(());
    }
    let (Some(transport), Some(catalog)) = (core.transport(), core.group(ShardId::CATALOG)) else {
        return Err(Refusal::Unavailable("this node is starting; try again".into()));
    };
    let formed: BTreeSet<NodeId> = catalog.voters().iter().map(|voter| voter.node).collect();
    if formed != configured.iter().copied().collect::<BTreeSet<NodeId>>() {
        let formed: Vec<String> = formed.iter().map(NodeId::to_string).collect();
        let (me, formed) = (core.me, formed.join(", "));
        return Err(Refusal::Unavailable(format!(
            "the cluster was formed by the nodes {formed}, and --cluster of node {me} lists others: correct it, restart the node, and try again"
        )));
    }
    let asks = formed.into_iter().filter(|node| *node != core.me && Some(*node) != without);
    let asks = asks.map(|node| async move { (node, transport.ask(node, ready_question(ShardId::CATALOG, 0), ASK).await) });
    let answers = futures::future::join_all(asks).await;
    match answers.into_iter().find_map(|(node, answer)| Some((node, answer.err()?))) {
        Some((node, error)) => Err(Refusal::Unavailable(format!(
            "node {node} does not say that it knows how members change ({error}): it is down, or its version is older; start it with this \
             version, and try again"
        ))),
        None => Ok(()),
    }
}

fn ready_question(shard: ShardId, index: u64) -> Frame {
    let mut head = BytesMut::from(&[Ask::Ready as u8][..]);
    head.put_u16_le(shard.0);
    head.put_u64_le(index);
    head_only(head.freeze())
}

/// Whether a node knows that it is to have a replica, and has one that will not be given up by something older.
async fn is_ready(core: &Core, node: NodeId, shard: ShardId, index: u64) -> bool {
    let Some(transport) = core.transport() else { return false };
    transport.ask(node, ready_question(shard, index), ASK).await.is_ok_and(|answer| answer.head.first() == Some(&1))
}

/// The other side.
pub(super) async fn answer_ready(core: &Core, mut head: Bytes) -> Result<Frame, PeerError> {
    let malformed = |_| PeerError::Malformed("ready");
    let (shard, index) = (ShardId(head.try_get_u16_le().map_err(malformed)?), head.try_get_u64_le().map_err(malformed)?);
    let _nothing_is_given_up = core.giving.lock().await;
    let roster = core.members.roster();
    let is_ready = roster.index >= index && roster.holds(shard, core.me) && core.group(shard).is_some();
    Ok(head_only(Bytes::from(vec![u8::from(is_ready)])))
}

#[cfg(test)]
mod tests {
    use super::super::types::{Lid, Omembership};
    use super::*;

    #[test]
    fn voters_that_no_majority_has_do_not_count_yet() {
        let at = |index| Oid { leader_id: Lid { term: 1, node_id: 1 }, index };
        let voters = BTreeSet::from([1, 2]);
        let nodes: BTreeMap<u64, openraft::EmptyNode> = voters.iter().map(|id| (*id, openraft::EmptyNode {})).collect();
        let members = Ostored::new(Some(at(7)), Omembership::new(vec![voters], nodes).expect("a set"));
        assert!(!is_committed(&members, None) && !is_committed(&members, Some(at(6))));
        assert!(is_committed(&members, Some(at(7))));
    }

    #[test]
    fn who_is_down_inherits_nothing_however_much_it_had() {
        let those = [(NodeId(2), true, Some(7)), (NodeId(3), true, Some(6)), (NodeId(4), false, Some(7))];
        assert_eq!(heir(those.into_iter()), Some(NodeId(2)));
        assert_eq!(heir([(NodeId(2), false, Some(7))].into_iter()), None);
    }
}
