use super::*;
use crate::model::roster::Whereabouts;

fn roster() -> Roster {
    Roster::founded((1..=3).map(|n| (NodeId(n), format!("host{n}:7671"))), 3)
}

fn join_of(node: u16) -> RosterChange {
    RosterChange::Join { node: NodeId(node), address: format!("host{node}:7671") }
}

fn after(roster: Roster, change: &RosterChange, down: &[u16]) -> Roster {
    let index = roster.index + 1;
    let changed = changed(roster, change, |node| !down.contains(&node.0)).expect("done").expect("changed");
    Roster { index, ..changed }
}

fn why(roster: Roster, change: &RosterChange, down: &[u16]) -> String {
    match changed(roster, change, |node| !down.contains(&node.0)) {
        Err(Refusal::Precondition(why)) => why,
        other => panic!("{other:?}"),
    }
}

fn why_not_yet(roster: Roster, change: &RosterChange) -> String {
    match changed(roster, change, |_| true) {
        Err(Refusal::Unavailable(why)) => why,
        other => panic!("{other:?}"),
    }
}

/// All groups get where they are to be.
fn arrived(mut roster: Roster) -> Roster {
    while let Some(shard) = roster.moving() {
        let goal = roster.goal(shard).to_vec();
        let basis = roster.index;
        roster = after(roster, &RosterChange::Moved { shard, goal, basis }, &[]);
    }
    roster
}

#[test]
fn a_new_node_joins_serves_when_it_has_the_catalog_and_its_address_is_its_own() {
    let joining = after(roster(), &join_of(4), &[]);
    assert_eq!(joining.members[&NodeId(4)].stage, Stage::Joining);
    assert_eq!(joining.goal(ShardId::CATALOG).last(), Some(&NodeId(4)));
    assert!(why_not_yet(joining.clone(), &join_of(5)).contains("being moved"));
    let serving = arrived(joining);
    assert_eq!(serving.members[&NodeId(4)].stage, Stage::Serving);
    assert!(why(serving.clone(), &join_of(4), &[]).contains(Roster::MEMBER_ALREADY));
    let same = RosterChange::Join { node: NodeId(5), address: "host2:7671".into() };
    assert!(why(serving.clone(), &same, &[]).contains("node 2 has the address"));
    let full = arrived(after(serving, &join_of(5), &[]));
    assert!(why(full, &join_of(6), &[]).contains("at most 5"));
}

#[test]
fn a_node_is_removed_only_when_it_is_down_and_its_number_never_comes_back() {
    let remove = RosterChange::Remove { node: NodeId(3) };
    assert!(why(roster(), &remove, &[]).contains("runs"));
    assert!(why(roster(), &remove, &[2, 3]).contains("no majority"));
    let removed = after(roster(), &remove, &[3]);
    for shard in (0..=3).map(ShardId) {
        assert!(removed.now(shard).contains(&NodeId(3)), "its voters are still these");
        assert_eq!(removed.goal(shard).len(), 2);
    }
    let gone = arrived(removed);
    assert!(why(gone.clone(), &join_of(3), &[]).contains("not given again"));
    assert!(why(gone, &remove, &[3]).contains("removed from this cluster already"));
}

#[test]
fn a_goal_that_dies_is_given_up_and_the_group_stays_where_it_is() {
    let mut roster = arrived(after(roster(), &join_of(4), &[]));
    let shard = ShardId(1);
    let goal: Vec<NodeId> = roster.now(shard)[1..].iter().copied().chain([NodeId(4)]).collect();
    let (now, basis) = (roster.now(shard).to_vec(), roster.index);
    roster = after(roster, &RosterChange::Goal { shard, goal: goal.clone(), basis }, &[]);
    let removed = after(roster, &RosterChange::Remove { node: NodeId(4) }, &[4]);
    assert_eq!(removed.groups[&shard], Whereabouts { now: now.clone(), goal: Some(now) });
    let late = RosterChange::Moved { shard, goal, basis: removed.index };
    assert_eq!(changed(removed, &late, |_| true), Ok(None), "it was decided otherwise meanwhile");
}

#[test]
fn that_an_earlier_move_has_ended_says_nothing_of_one_to_the_same_nodes() {
    let mut roster = arrived(after(roster(), &join_of(4), &[]));
    let shard = ShardId(1);
    let to = |nodes: [u16; 3]| nodes.map(NodeId).to_vec();
    let (mut began, there) = (Vec::new(), to([2, 3, 4]));
    for goal in [there.clone(), to([2, 3, 1]), there.clone()] {
        let basis = roster.index;
        roster = after(roster, &RosterChange::Goal { shard, goal: goal.clone(), basis }, &[]);
        began.push(roster.index);
        if began.len() < 3 {
            roster = arrived(roster);
        }
    }
    let late = RosterChange::Moved { shard, goal: there.clone(), basis: began[0] };
    assert_eq!(changed(roster.clone(), &late, |_| true), Ok(None));
    let done = RosterChange::Moved { shard, goal: there, basis: began[2] };
    assert!(changed(roster, &done, |_| true).expect("done").is_some());
}

#[test]
fn a_number_that_another_machine_has_is_not_taken_for_the_same_node_again() {
    let serving = arrived(after(roster(), &join_of(4), &[]));
    let other = RosterChange::Join { node: NodeId(4), address: "elsewhere:7671".into() };
    let why = why(serving, &other, &[]);
    assert!(why.contains("at host4:7671") && !why.contains(Roster::MEMBER_ALREADY), "{why}");
}

#[test]
fn the_last_node_that_serves_cannot_leave() {
    let alone = Roster::founded([(NodeId(1), "host1:7671".into())], 3);
    assert!(why(alone, &RosterChange::Drain { node: NodeId(1) }, &[]).contains("nobody could take its replicas"));
}

#[test]
fn a_plan_by_an_older_roster_does_nothing() {
    let roster = arrived(after(roster(), &join_of(4), &[]));
    let goal = vec![NodeId(4)];
    let plan = |basis| RosterChange::Goal { shard: ShardId(1), goal: goal.clone(), basis };
    assert_eq!(changed(roster.clone(), &plan(roster.index - 1), |_| true), Ok(None));
    assert!(changed(roster.clone(), &plan(roster.index), |_| true).expect("done").is_some());
}

#[test]
fn a_node_leaves_when_those_that_are_left_are_a_majority() {
    let drain = RosterChange::Drain { node: NodeId(1) };
    assert!(why(roster(), &drain, &[2]).contains("no majority"));
    let leaving = after(roster(), &drain, &[]);
    assert_eq!(leaving.members[&NodeId(1)].stage, Stage::Leaving);
    assert_eq!(changed(leaving, &drain, |_| true), Ok(None));
    assert!(why(roster(), &RosterChange::Drain { node: NodeId(9) }, &[]).contains("no member"));
}
