//! What changes of the roster do to it. The first one writes down who formed the cluster. Called by `administer`; whether the members that
//! are left run is judged by the processes that the catalog lists as up.

use super::Catalog;
use super::apply::{DONE, Outcome};
use crate::model::catalog::Refusal;
use crate::model::limits::NODES;
use crate::model::roster::{Roster, RosterChange, RosterMember, Stage};
use crate::model::{NodeId, ShardId};
use std::sync::Arc;

fn refused<T>(why: String) -> Result<T, Refusal> {
    Err(Refusal::Precondition(why))
}

/// Refused for now: it passes by itself.
fn later<T>(why: String) -> Result<T, Refusal> {
    Err(Refusal::Unavailable(why))
}

impl Catalog {
    /// Who is a member; `None`: those who formed the cluster.
    pub fn roster(&self) -> Option<&Arc<Roster>> {
        self.roster.as_ref()
    }

    pub(super) fn change_roster(&mut self, index: u64, change: &RosterChange, founders: &[(NodeId, String)]) -> Outcome {
        let roster = match &self.roster {
            Some(roster) => Roster::clone(roster),
            None => Roster::founded(founders.iter().cloned(), self.shards),
        };
        let is_up = |node: NodeId| self.nodes.contains_key(&node);
        if let Some(changed) = changed(roster, change, is_up)? {
            self.roster = Some(Arc::new(Roster { index, ..changed }));
        }
        DONE
    }
}

/// `None`: it is so already, or it was decided by an older roster.
fn changed(roster: Roster, change: &RosterChange, is_up: impl Fn(NodeId) -> bool) -> Result<Option<Roster>, Refusal> {
    match change {
        RosterChange::Join { node, address } => join(roster, *node, address).map(Some),
        RosterChange::Drain { node } => drain(roster, *node, is_up),
        RosterChange::Remove { node } => remove(roster, *node, is_up).map(Some),
        RosterChange::Goal { shard, goal, basis } => Ok(planned(roster, *shard, goal, *basis)),
        RosterChange::Moved { shard, goal, basis } => Ok(moved(roster, *shard, goal, *basis)),
    }
}

fn is_calm(roster: &Roster) -> Result<(), Refusal> {
    match roster.moving() {
        Some(shard) => {
            later(format!("a replica of shard {shard} is being moved; try again when `warren ctl cluster_status` shows no move"))
        }
        None => Ok(()),
    }
}

fn member(roster: &Roster, node: NodeId) -> Result<&RosterMember, Refusal> {
    roster.members.get(&node).ok_or_else(|| {
        Refusal::Precondition(format!("node {node} is no member of this cluster; `warren ctl cluster_status` lists the members"))
    })
}

fn join(mut roster: Roster, node: NodeId, address: &str) -> Result<Roster, Refusal> {
    if roster.gone.contains(&node) {
        return refused(format!("node {node} was removed from this cluster and its number is not given again; choose another --node-id"));
    }
    match roster.members.get(&node) {
        Some(member) if member.address == address => return refused(format!("node {node} {}", Roster::MEMBER_ALREADY)),
        Some(member) => {
            let known = &member.address;
            return refused(format!(
                "there is a node {node} in this cluster, at {known}: choose another --node-id; if it is this one with a new address, start it \
                 without --join"
            ));
        }
        None => {}
    }
    if let Some((other, _)) = roster.members.iter().find(|(_, member)| member.address == address) {
        return refused(format!("node {other} has the address {address} already; give node {node} its own in --cluster"));
    }
    if roster.members.len() >= NODES {
        return refused(format!("a cluster has at most {NODES} nodes; remove one with `warren ctl forget_cluster_node` first"));
    }
    is_calm(&roster)?;
    roster.members.insert(node, RosterMember { address: address.to_owned(), stage: Stage::Joining });
    if let Some(catalog) = roster.groups.get_mut(&ShardId::CATALOG) {
        catalog.goal = Some(catalog.now.iter().copied().chain([node]).collect());
    }
    Ok(roster)
}

fn drain(mut roster: Roster, node: NodeId, is_up: impl Fn(NodeId) -> bool) -> Result<Option<Roster>, Refusal> {
    match member(&roster, node)?.stage {
        Stage::Leaving => return Ok(None),
        Stage::Joining => return later(format!("node {node} is still joining; try again when it is serving, or stop it and forget it")),
        Stage::Serving => {}
    }
    is_calm(&roster)?;
    let left: Vec<NodeId> = roster.at(Stage::Serving).filter(|other| *other != node).collect();
    if left.is_empty() {
        return refused(format!("no node but {node} serves, so nobody could take its replicas; let others join first"));
    }
    let up = left.iter().filter(|node| is_up(**node)).count();
    if up * 2 <= left.len() {
        let left = left.len();
        return refused(format!(
            "{up} of the {left} nodes that would be left run, which is no majority; start them, or let others join first"
        ));
    }
    if let Some(member) = roster.members.get_mut(&node) {
        member.stage = Stage::Leaving;
    }
    Ok(Some(roster))
}

fn remove(mut roster: Roster, node: NodeId, is_up: impl Fn(NodeId) -> bool) -> Result<Roster, Refusal> {
    if roster.gone.contains(&node) {
        return refused(format!("node {node} was removed from this cluster already"));
    }
    member(&roster, node)?;
    if is_up(node) {
        return refused(format!("node {node} runs; drain it with `warren ctl drain {node}`, stop it, and then forget it"));
    }
    for (shard, place) in &roster.groups {
        let up = place.now.iter().filter(|node| is_up(**node)).count();
        if place.now.contains(&node) && up * 2 <= place.now.len() {
            let all = place.now.len();
            return refused(format!(
                "{up} of the {all} nodes with a replica of shard {shard} run, which is no majority: without one the replica on node {node} \
                 cannot be made anew elsewhere. Start the other nodes first"
            ));
        }
    }
    roster.members.remove(&node);
    roster.gone.insert(node);
    for place in roster.groups.values_mut() {
        let is_goal = place.goal.as_ref().is_some_and(|goal| goal.contains(&node));
        if is_goal || (place.goal.is_none() && place.now.contains(&node)) {
            place.goal = Some(place.now.iter().copied().filter(|other| *other != node).collect());
        }
    }
    Ok(roster)
}

fn planned(mut roster: Roster, shard: ShardId, goal: &[NodeId], basis: u64) -> Option<Roster> {
    let members = goal.iter().all(|node| roster.members.contains_key(node));
    if roster.index != basis || roster.moving().is_some() || goal.is_empty() || !members {
        return None;
    }
    let place = roster.groups.get_mut(&shard).filter(|place| place.now != goal)?;
    place.goal = Some(goal.to_vec());
    Some(roster)
}

fn moved(mut roster: Roster, shard: ShardId, goal: &[NodeId], basis: u64) -> Option<Roster> {
    if roster.index != basis {
        return None;
    }
    let place = roster.groups.get_mut(&shard).filter(|place| place.goal.as_deref() == Some(goal))?;
    place.now = goal.to_vec();
    place.goal = None;
    if shard == ShardId::CATALOG {
        let arrived = roster.members.iter_mut().filter(|(node, member)| member.stage == Stage::Joining && goal.contains(node));
        arrived.for_each(|(_, member)| member.stage = Stage::Serving);
    }
    Some(roster)
}

#[cfg(test)]
#[path = "roster_tests.rs"]
mod tests;
