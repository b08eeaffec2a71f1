//! Forming the cluster and recognising it again (rule 1). A cluster is formed only when every configured node answered that its disk is
//! empty and wrote down the same UUID; only then groups are initialized. Every step can be repeated after a kill. An empty disk that
//! meets a cluster whose logs hold anything was wiped: it begins a new life as a disk that has forgotten everything (`rebuild`), unless so
//! many have lost theirs that what is left is no majority; then it waits for the operator.

use super::clock;
use super::core::Core;
use super::journal::Identity;
use super::log::completion;
use super::order;
use super::placement::FIRST_GENERATION;
use super::wire::Ask;
use crate::model::roster::Roster;
use crate::model::version::TooNew;
use crate::model::{Generation, NodeId};
use crate::peer::transport::head_only;
use crate::peer::{Card, Frame, PeerError};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const ROUND: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_millis(1000);
/// Between two log lines about the same obstacle.
const REPEAT: Duration = Duration::from_secs(10);

/// Why this disk cannot take part.
#[derive(Debug, thiserror::Error)]
pub enum FormationError {
    /// The data directory belongs to another node.
    #[error(
        "this data directory belongs to node {found}, not to node {configured}: start node {found} with it, or give node {configured} its own"
    )]
    OtherNode {
        /// Written on the disk.
        found: NodeId,
        /// As configured.
        configured: NodeId,
    },
    /// Two nodes were given different numbers of shards.
    #[error(
        "node {node} is configured with {theirs} shards and this node with {mine}: every node must be started with the same --shards to \
         form a cluster"
    )]
    Shards {
        /// The other.
        node: NodeId,
        /// Its number.
        theirs: u16,
        /// This node's.
        mine: u16,
    },
    /// The node was removed from the cluster.
    #[error(
        "node {node} was removed from this cluster, and its number is not given again. To bring the machine back, start it with an empty data \
         directory, another --node-id and --join"
    )]
    Removed {
        /// This node.
        node: NodeId,
    },
    /// A newer program has been here.
    #[error(transparent)]
    TooNew(#[from] TooNew),
    /// The identity could not be written.
    #[error("the cluster's identity cannot be written: {0}")]
    Io(#[from] io::Error),
    /// Formation was left running with no way on.
    #[error("{0}")]
    Stopped(String),
}

/// Where a node stands.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Report {
    cluster: Option<u128>,
    has_log: bool,
    shards: u16,
    /// The newest life of the asker's disk that it has heard of.
    life: Generation,
    /// The members, if they ever changed.
    roster: Option<Arc<Roster>>,
}

/// Answers `Ask::Formation` of a node.
pub(super) fn report(core: &Core, asker: NodeId) -> Frame {
    let mut head = BytesMut::with_capacity(24);
    let cluster = core.journal.identity().map(|i| i.cluster);
    head.put_u8(cluster.is_some().into());
    head.put_u128_le(cluster.unwrap_or(0));
    head.put_u8(core.has_log().into());
    head.put_u16_le(core.shards);
    head.put_u32_le(core.life(asker).0);
    let roster = core.members.roster();
    if roster.index > 0 {
        // Plain data, writing to memory cannot fail; who cannot read it has an older version.
        head.put_slice(&rmp_serde::to_vec_named(&*roster).unwrap_or_default());
    }
    head_only(head.freeze())
}

fn read_report(mut head: Bytes) -> Option<Report> {
    let formed = head.try_get_u8().ok()? != 0;
    let cluster = head.try_get_u128_le().ok()?;
    let has_log = head.try_get_u8().ok()? != 0;
    let (shards, life) = (head.try_get_u16_le().ok()?, Generation(head.try_get_u32_le().ok()?));
    let roster = rmp_serde::from_slice(&head).ok().map(Arc::new);
    Some(Report { cluster: formed.then_some(cluster), has_log, shards, life, roster })
}

/// Answers `Ask::Adopt`: an empty disk takes the UUID that the lowest node proposes.
pub(super) async fn adopt(core: &Core, from: Card, mut head: Bytes) -> Result<Frame, PeerError> {
    let malformed = |_| PeerError::Malformed("adopt");
    let (cluster, shards) = (head.try_get_u128_le().map_err(malformed)?, head.try_get_u16_le().map_err(malformed)?);
    match core.journal.identity() {
        Some(identity) if identity.cluster == cluster => return Ok(Frame::default()),
        Some(_) => return Err(PeerError::Refused(format!("node {} belongs to another cluster", core.me))),
        None => {}
    }
    if Some(&from.node) != core.nodes().first() || core.has_log() {
        return Err(PeerError::Refused(format!("node {} forms clusters only with the lowest configured node", core.me)));
    }
    if shards != core.shards {
        let differ = FormationError::Shards { node: from.node, theirs: shards, mine: core.shards };
        return Err(PeerError::Refused(format!("node {}: {differ}", core.me)));
    }
    save(core, cluster, FIRST_GENERATION).await.map_err(|e| PeerError::Refused(e.to_string()))?;
    Ok(Frame::default())
}

async fn save(core: &Core, cluster: u128, generation: Generation) -> io::Result<()> {
    let (done, saved) = completion();
    core.journal.save_identity(Identity { cluster, node: core.me, generation, shards: core.shards }, done);
    saved.await?;
    tracing::info!(cluster = %format_args!("{cluster:032x}"), node = %core.me, "this disk belongs to the cluster now");
    Ok(())
}

/// This empty disk takes the place of one that took part: it owns up to having forgotten everything before it belongs to the cluster.
async fn replace(core: &Core, cluster: u128, generation: Generation) -> io::Result<()> {
    // Of all groups, for who is where may have changed. The log keeps the order: these are durable before the identity is.
    for shard in core.shard_ids() {
        core.journal.forget(shard, Box::new(|_| ()));
    }
    save(core, cluster, generation).await?;
    tracing::warn!(
        %generation,
        "this data directory was empty, but the cluster knows this node: it serves again when the other nodes have given it what it lost"
    );
    Ok(())
}

/// The first disk of a node that joins: it never voted, so it has forgotten nothing, but it gets every replica from others.
async fn take_part(core: &Core, cluster: u128) -> io::Result<()> {
    for shard in core.shard_ids() {
        core.journal.give_up(shard, Box::new(|_| ()));
    }
    save(core, cluster, FIRST_GENERATION).await
}

/// Until this disk has an identity.
pub(super) async fn identify(core: &Arc<Core>, joins: bool) -> Result<(), FormationError> {
    let mut said = Said::default();
    // As it was heard before: who was removed has no group that could run.
    if core.members.roster().gone.contains(&core.me) {
        return Err(FormationError::Removed { node: core.me });
    }
    loop {
        if let Some(identity) = core.journal.identity() {
            return check(core, identity);
        }
        let reports = ask_all(core).await;
        if core.members.roster().gone.contains(&core.me) {
            return Err(FormationError::Removed { node: core.me });
        }
        let clusters: BTreeSet<u128> = reports.values().filter_map(|r| r.cluster).collect();
        let with_data = reports.values().filter(|r| r.has_log).count();
        if clusters.len() > 1 {
            said.error("the configured nodes belong to different clusters: check --cluster and the data directories");
        } else if let Some((node, other)) = reports.iter().find(|(_, r)| r.shards != core.shards) {
            // Not gone before the other one has asked too.
            tokio::time::sleep(PATIENCE).await;
            return Err(FormationError::Shards { node: *node, theirs: other.shards, mine: core.shards });
        } else if joins {
            // Its number is in the catalog, so somebody knows it as a member.
            match clusters.first().filter(|_| core.members.roster().index > 0 && core.members.contains(core.me)) {
                Some(cluster) => take_part(core, *cluster).await?,
                None => said.error("waiting for a member of the cluster that knows this node"),
            }
        } else if let Some(cluster) = clusters.first().filter(|_| with_data * 2 > core.nodes().len()) {
            let newest = reports.values().map(|r| r.life).max().unwrap_or(FIRST_GENERATION);
            replace(core, *cluster, Generation(newest.0 + 1)).await?;
            continue;
        } else if with_data > 0 {
            said.error(
                "this data directory is empty but the cluster has data: the disk was wiped or the wrong directory is mounted. This node \
                 takes part again when a majority of all nodes is there with its data; it never makes anything up. If more data \
                 directories are lost than that, restore them.",
            );
        } else if reports.len() == core.nodes().len() {
            if core.nodes().first() == Some(&core.me) {
                save(core, clusters.first().copied().unwrap_or_else(rand::random), FIRST_GENERATION).await?;
                continue;
            }
        } else {
            let missing = core.nodes().iter().filter(|n| !reports.contains_key(n)).map(|n| n.0).collect();
            said.say(Obstacle::Missing(missing));
        }
        tokio::time::sleep(ROUND).await;
    }
}

fn check(core: &Core, identity: Identity) -> Result<(), FormationError> {
    if identity.node != core.me {
        return Err(FormationError::OtherNode { found: identity.node, configured: core.me });
    }
    if let Some(transport) = core.transport() {
        transport.card_changed();
    }
    Ok(())
}

/// Initializes the groups that are this node's to initialize, once every node holds the same UUID; then watches for wiped majorities.
pub(super) async fn complete(core: Arc<Core>) {
    let mut said = Said::default();
    loop {
        let open = uninitialized(&core).await;
        let reports = ask_all(&core).await;
        let mine = core.journal.identity().map(|i| i.cluster);
        let changed = core.members.roster().index > 0;
        if core.members.roster().gone.contains(&core.me) {
            said.error(
                "this node was removed from the cluster: the others refuse it, and its number is not given again. To bring the machine back, \
                 start it with an empty data directory, another --node-id and --join",
            );
        }
        let agreed = !changed && reports.len() == core.nodes().len() && reports.values().all(|r| r.cluster == mine);
        let empty: Vec<NodeId> = reports.iter().filter(|(_, r)| r.cluster.is_none()).map(|(n, _)| *n).collect();
        if agreed {
            let mut are_done = true;
            for shard in open {
                are_done &= initialize(&core, &shard).await;
            }
            if are_done {
                return;
            }
        }
        let outlived = core.journal.identity().is_some_and(|mine| reports.values().any(|r| r.life > mine.generation));
        if outlived {
            said.error(
                "this data directory is an old one: this node went on with another, which has promised things that are not here. The other \
                 nodes refuse it. Start the node with its newer directory, or empty this one: it is filled again from the others",
            );
        }
        let data = reports.values().any(|r| r.has_log);
        if !changed && !data && core.nodes().first() == Some(&core.me) && reports.len() == core.nodes().len() {
            for node in &empty {
                propose(&core, *node, mine).await;
            }
        }
        if data && empty.len() * 2 > core.nodes().len() {
            said.error(
                "a majority of the nodes has empty disks: data may be lost. Nothing is done without you: restore their data directories",
            );
        }
        // Nothing is open and nobody is missing an identity that could be given: only the watch for wiped disks remains.
        let idle = data || uninitialized(&core).await.is_empty();
        clock::calm(if idle { Duration::from_secs(2) } else { ROUND }).await;
    }
}

async fn propose(core: &Core, node: NodeId, cluster: Option<u128>) {
    let (Some(cluster), Some(transport)) = (cluster, core.transport()) else { return };
    let mut head = BytesMut::with_capacity(19);
    head.put_u8(Ask::Adopt as u8);
    head.put_u128_le(cluster);
    head.put_u16_le(core.shards);
    if let Err(error) = transport.ask(node, head_only(head.freeze()), PATIENCE).await {
        tracing::info!(%node, %error, "cluster identity not taken yet");
    }
}

async fn uninitialized(core: &Core) -> Vec<super::shard::Shard> {
    let mut open = Vec::new();
    for group in core.all_groups() {
        let mine = group.voters().first().is_some_and(|v| v.node == core.me);
        // A group that does not answer is asked again.
        if mine && !order::in_time(group.inner().raft.is_initialized()).await.is_ok_and(|answer| answer.unwrap_or(true)) {
            open.push(group.clone());
        }
    }
    open
}

/// False when the group did not answer.
async fn initialize(core: &Core, group: &super::shard::Shard) -> bool {
    let members: BTreeMap<u64, openraft::EmptyNode> = group.voters().iter().map(|v| (v.pack(), openraft::EmptyNode {})).collect();
    match order::in_time(group.inner().raft.initialize(members)).await {
        Ok(Ok(())) => tracing::info!(shard = %group.id(), node = %core.me, "group initialized"),
        Ok(Err(error)) => tracing::info!(shard = %group.id(), %error, "group not initialized here"),
        Err(error) => {
            tracing::warn!(shard = %group.id(), %error, "group not initialized here");
            return false;
        }
    }
    true
}

/// What every reachable configured node says, this one included.
async fn ask_all(core: &Core) -> BTreeMap<NodeId, Report> {
    let mut reports = BTreeMap::new();
    reports.extend(read_report(report(core, core.me).head).map(|mine| (core.me, mine)));
    let Some(transport) = core.transport() else { return reports };
    let question = || head_only(Bytes::from_static(&[Ask::Formation as u8]));
    let asks = core.others().map(|node| {
        let answer = transport.ask(node, question(), PATIENCE);
        async move { (node, answer.await) }
    });
    for (node, answer) in futures::future::join_all(asks).await {
        if let Some(report) = answer.ok().and_then(|frame| read_report(frame.head)) {
            reports.insert(node, report);
        }
    }
    if let Some(roster) = newest(core.journal.identity().map(|mine| mine.cluster), &reports) {
        core.members.told(roster);
    }
    reports
}

/// The newest list of members of this node's cluster; of an empty disk, if all that answer are of one. Other clusters may have the same
/// secret, and a node may be at an address where another was.
fn newest(mine: Option<u128>, reports: &BTreeMap<NodeId, Report>) -> Option<&Arc<Roster>> {
    let clusters: BTreeSet<u128> = reports.values().filter_map(|report| report.cluster).collect();
    let cluster = mine.or_else(|| clusters.first().copied().filter(|_| clusters.len() == 1))?;
    let of_it = reports.values().filter(|report| report.cluster == Some(cluster));
    of_it.filter_map(|report| report.roster.as_ref()).max_by_key(|roster| roster.index)
}

/// Asks all nodes, for what they say of the members.
pub(super) async fn hear_of_members(core: &Core) {
    ask_all(core).await;
}

/// What stands in the way, said at once when it is another thing than before, and again now and then.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Obstacle {
    Error(&'static str),
    Missing(Vec<u16>),
}

#[derive(Default)]
struct Said(Option<(Instant, Obstacle)>);

impl Said {
    fn is_due(&self, obstacle: &Obstacle, now: Instant) -> bool {
        self.0.as_ref().is_none_or(|(at, last)| last != obstacle || now.duration_since(*at) >= REPEAT)
    }

    fn say(&mut self, obstacle: Obstacle) {
        let now = Instant::now();
        if !self.is_due(&obstacle, now) {
            return;
        }
        match &obstacle {
            Obstacle::Error(text) => tracing::error!("{text}"),
            Obstacle::Missing(missing) => tracing::info!(?missing, "forming the cluster: waiting for the other configured nodes"),
        }
        self.0 = Some((now, obstacle));
    }

    fn error(&mut self, text: &'static str) {
        self.say(Obstacle::Error(text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_cluster_says_nothing_of_the_members_of_this_one() {
        let report = |cluster, index| {
            let roster = (index > 0).then(|| Arc::new(Roster { index, ..Roster::default() }));
            Report { cluster, has_log: true, shards: 1, life: FIRST_GENERATION, roster }
        };
        let index = |mine, reports: [Report; 3]| newest(mine, &(1..).map(NodeId).zip(reports).collect()).map(|roster| roster.index);
        let (ours, theirs) = (Some(1), Some(2));
        assert_eq!(index(ours, [report(ours, 0), report(ours, 7), report(ours, 5)]), Some(7));
        assert_eq!(index(ours, [report(ours, 0), report(ours, 7), report(theirs, 50)]), Some(7));
        assert_eq!(index(None, [report(None, 0), report(ours, 7), report(None, 0)]), Some(7));
        assert_eq!(index(None, [report(None, 0), report(ours, 7), report(theirs, 50)]), None, "nobody knows which is meant");
    }

    #[test]
    fn another_obstacle_is_said_at_once_and_the_same_one_now_and_then() {
        let (now, wiped) = (Instant::now(), Obstacle::Error("wiped"));
        assert!(Said::default().is_due(&wiped, now));
        let said = Said(Some((now, Obstacle::Missing(vec![1, 2]))));
        assert!(!said.is_due(&Obstacle::Missing(vec![1, 2]), now));
        assert!(said.is_due(&Obstacle::Missing(vec![2]), now) && said.is_due(&wiped, now));
        assert!(said.is_due(&Obstacle::Missing(vec![1, 2]), now + REPEAT));
    }
}
