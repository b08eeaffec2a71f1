//! Who is up. The node that leads the catalog hears every process that lives (`Consensus::heard`) and tells the catalog: `NodeUp` for a
//! process that is not listed, be it new or only cut off for a while; `NodeDown` for a listed one that nobody hears. A process knows
//! that it is up when its own copy of the catalog lists it (`feed`), and serves clients only then.
//!
//! The first processes after a while without any must not be listed beside the dead ones of the run before, or that run would never
//! end: as long as a listed process may be alive and something depends on that, new ones wait until it is heard or down.

use crate::consensus::{Consensus, Heard};
use crate::machine::catalog::Catalog;
use crate::model::catalog::CatalogCommand;
use crate::model::limits::{NODE_DOWN, ROUTING_LEASE};
use crate::model::{Incarnation, NodeId, ShardId};
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);
/// One command: longer than the wait for leases of a new leader.
const COMMAND: Duration = Duration::from_secs(3);
/// A process that was not heard at so many looks is not taken for alive.
const QUIET: u32 = (ROUTING_LEASE.as_millis() / LOOK.as_millis()) as u32;
/// ... and at so many it is down.
const DOWN: u32 = (NODE_DOWN.as_millis() / LOOK.as_millis()) as u32;

/// For ever; does nothing while another node leads the catalog.
pub(super) async fn keep(consensus: Arc<Consensus>, catalog: Arc<RwLock<Catalog>>) {
    let mut watch = Watch::default();
    let mut leadership_rx = consensus.leadership(ShardId::CATALOG);
    loop {
        if leadership_rx.wait_for(|leadership| leadership.is_me).await.is_err() {
            return;
        }
        tokio::time::sleep(LOOK).await;
        let Some(heard) = consensus.heard() else { continue };
        let (listed, first) = {
            let catalog = catalog.read();
            (catalog.nodes().collect(), !catalog.is_bootstrapped())
        };
        if first {
            continue;
        }
        let run_matters = || !catalog.read().transient_exchanges().is_empty();
        // Each names the process that it means: their order does not matter.
        let commands = watch.look(&heard, &listed, run_matters);
        futures::future::join_all(commands.into_iter().map(|command| tell(&consensus, command))).await;
    }
}

async fn tell(consensus: &Consensus, command: CatalogCommand) {
    tracing::info!(?command, "membership");
    if let Err(error) = consensus.catalog().submit(&command, Instant::now() + COMMAND).await {
        tracing::warn!(?command, %error, "the catalog does not know yet who is up");
    }
}

type Process = (NodeId, Incarnation);

/// Counts looks, not time: a leader that was stopped itself must not think that everybody else was away.
#[derive(Debug, Default)]
struct Watch {
    leading_since: Option<Instant>,
    /// Times heard up to the last look, looks without a word since.
    seen: BTreeMap<Process, (u64, u32)>,
}

impl Watch {
    /// What the catalog must be told. `run_matters`: something goes when no process is up.
    fn look(&mut self, heard: &Heard, listed: &BTreeMap<NodeId, Incarnation>, run_matters: impl FnOnce() -> bool) -> Vec<CatalogCommand> {
        if self.leading_since.replace(heard.since) != Some(heard.since) {
            self.seen.clear();
        }
        self.count(heard, listed);
        let lives = |process: Process| self.seen.get(&process).is_some_and(|(times, quiet)| *times > 0 && *quiet < QUIET);
        let goes_on = listed.is_empty() || listed.iter().any(|(n, i)| lives((*n, *i))) || !run_matters();
        let mut commands = Vec::new();
        for (&node, &incarnation) in listed {
            let lost = self.seen.get(&(node, incarnation)).is_some_and(|(_, quiet)| *quiet >= DOWN);
            let replaced = heard.processes.get(&node).is_some_and(|(present, _)| *present > incarnation);
            // While the run goes on, the `NodeUp` of the next process says it too.
            if lost || (replaced && !goes_on) {
                commands.push(CatalogCommand::NodeDown { node, incarnation });
            }
        }
        for (&node, &(incarnation, _)) in &heard.processes {
            if goes_on && listed.get(&node).is_none_or(|known| *known < incarnation) && lives((node, incarnation)) {
                commands.push(CatalogCommand::NodeUp { node, incarnation });
            }
        }
        commands
    }

    fn count(&mut self, heard: &Heard, listed: &BTreeMap<NodeId, Incarnation>) {
        let before = std::mem::take(&mut self.seen);
        let present = heard.processes.iter().map(|(node, (incarnation, _))| (*node, *incarnation));
        for (node, incarnation) in present.chain(listed.iter().map(|(n, i)| (*n, *i))) {
            let times = heard.processes.get(&node).filter(|(present, _)| *present == incarnation).map_or(0, |p| p.1);
            let (earlier, quiet) = before.get(&(node, incarnation)).copied().unwrap_or_default();
            self.seen.insert((node, incarnation), (times, if times > earlier { 0 } else { quiet + 1 }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Node n runs as process 10 * n, later as 10 * n + 1.
    struct Scene {
        watch: Watch,
        heard: Heard,
        listed: BTreeMap<NodeId, Incarnation>,
        run_matters: bool,
    }

    fn up(node: u16, process: u64) -> CatalogCommand {
        CatalogCommand::NodeUp { node: NodeId(node), incarnation: Incarnation(process) }
    }

    fn down(node: u16, process: u64) -> CatalogCommand {
        CatalogCommand::NodeDown { node: NodeId(node), incarnation: Incarnation(process) }
    }

    impl Scene {
        fn new(listed: &[(u16, u64)]) -> Scene {
            let heard = Heard { since: Instant::now(), processes: BTreeMap::new() };
            let listed = listed.iter().map(|(n, i)| (NodeId(*n), Incarnation(*i))).collect();
            Scene { watch: Watch::default(), heard, listed, run_matters: true }
        }

        /// These are heard, then a look; the catalog takes what it is told.
        fn look(&mut self, heard: &[(u16, u64)]) -> Vec<CatalogCommand> {
            for (node, process) in heard {
                let (incarnation, times) = self.heard.processes.entry(NodeId(*node)).or_default();
                *times = if incarnation.0 == *process { *times + 1 } else { 1 };
                *incarnation = Incarnation(*process);
            }
            let commands = self.watch.look(&self.heard, &self.listed, || self.run_matters);
            for command in &commands {
                match command {
                    CatalogCommand::NodeUp { node, incarnation } => drop(self.listed.insert(*node, *incarnation)),
                    CatalogCommand::NodeDown { node, .. } => drop(self.listed.remove(node)),
                    other => panic!("{other:?}"),
                }
            }
            commands
        }

        /// What it is told within so many looks.
        fn looks(&mut self, looks: u32, heard: &[(u16, u64)]) -> Vec<CatalogCommand> {
            (0..looks).flat_map(|_| self.look(heard)).collect()
        }
    }

    #[test]
    fn nodes_of_a_new_cluster_are_up_when_they_are_heard() {
        let mut scene = Scene::new(&[]);
        assert_eq!(scene.look(&[(1, 10)]), [up(1, 10)]);
        assert_eq!(scene.look(&[(1, 10), (2, 20)]), [up(2, 20)]);
        assert_eq!(scene.looks(3 * DOWN, &[(1, 10), (2, 20)]), []);
    }

    #[test]
    fn a_node_that_is_not_heard_is_down_after_a_while_and_up_again_when_it_is() {
        let mut scene = Scene::new(&[(1, 10), (2, 20)]);
        assert_eq!(scene.looks(3, &[(1, 10), (2, 20)]), []);
        assert_eq!(scene.looks(DOWN - 1, &[(1, 10)]), []);
        assert_eq!(scene.look(&[(1, 10)]), [down(2, 20)]);
        assert_eq!(scene.looks(DOWN, &[(1, 10)]), []);
        assert_eq!(scene.look(&[(1, 10), (2, 20)]), [up(2, 20)], "the same process");
    }

    #[test]
    fn a_new_leader_gives_everybody_time_to_be_heard() {
        let mut scene = Scene::new(&[(1, 10), (2, 20)]);
        scene.looks(DOWN - 1, &[(1, 10)]);
        scene.heard = Heard { since: Instant::now() + LOOK, processes: BTreeMap::new() };
        assert_eq!(scene.looks(DOWN - 1, &[(1, 10)]), []);
        assert_eq!(scene.look(&[(1, 10)]), [down(2, 20)]);
    }

    #[test]
    fn a_restarted_node_is_up_at_once_while_another_one_lives() {
        let mut scene = Scene::new(&[(1, 10), (2, 20), (3, 30)]);
        assert_eq!(scene.look(&[(1, 11), (2, 21), (3, 30)]), [up(1, 11), up(2, 21)], "no run has ended");
        assert_eq!(scene.look(&[(1, 11), (2, 21), (3, 31)]), [up(3, 31)], "the last one of those that were first");
    }

    #[test]
    fn the_late_words_of_a_process_that_was_followed_say_nothing() {
        let mut scene = Scene::new(&[(1, 11)]);
        assert_eq!(scene.looks(3, &[(1, 10)]), []);
        assert_eq!(scene.looks(DOWN, &[(1, 11)]), []);
    }

    #[test]
    fn a_run_ends_when_every_process_of_it_is_replaced_or_down_and_before_the_next_begins() {
        let mut scene = Scene::new(&[(1, 10), (2, 20), (3, 30)]);
        assert_eq!(scene.look(&[(1, 11)]), [down(1, 10)]);
        assert_eq!(scene.look(&[(1, 11), (2, 21)]), [down(2, 20)]);
        assert_eq!(scene.looks(DOWN - 3, &[(1, 11), (2, 21)]), [], "node 3 may be alive");
        assert_eq!(scene.look(&[(1, 11), (2, 21)]), [down(3, 30)]);
        assert_eq!(scene.look(&[(1, 11), (2, 21)]), [up(1, 11), up(2, 21)]);
        assert_eq!(scene.look(&[(1, 11), (2, 21), (3, 31)]), [up(3, 31)]);
    }

    #[test]
    fn one_survivor_of_a_run_that_comes_late_carries_it_on() {
        let mut scene = Scene::new(&[(1, 10), (2, 20), (3, 30)]);
        assert_eq!(scene.look(&[(1, 11), (2, 21)]), [down(1, 10), down(2, 20)]);
        assert_eq!(scene.looks(DOWN / 2, &[(1, 11), (2, 21)]), []);
        assert_eq!(scene.look(&[(1, 11), (2, 21), (3, 30)]), [up(1, 11), up(2, 21)]);
    }

    #[test]
    fn nobody_waits_for_the_end_of_a_run_on_which_nothing_depends() {
        let mut scene = Scene { run_matters: false, ..Scene::new(&[(1, 10), (2, 20), (3, 30)]) };
        assert_eq!(scene.look(&[(1, 11), (2, 21)]), [up(1, 11), up(2, 21)]);
    }
}
