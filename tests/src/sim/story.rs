//! Where an answer may be that a client waits for: what its edge's lanes are doing, who leads, how far the replicas are, and what they
//! know of the edges.

use super::host::Host;
use super::world::World;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;
use warren::model::ShardId;

/// Twice, a second apart: what stands still differs from what goes round in circles.
pub async fn of_client(world: &World, host: &Arc<Host>) -> String {
    let first = now(world, host);
    sleep(Duration::from_secs(1)).await;
    format!("\n{first}\n    a second later:\n{}", now(world, host))
}

fn now(world: &World, host: &Arc<Host>) -> String {
    let mut lines = vec![format!("client of node {}", host.id)];
    let edge = host.life().borrow().edge.clone();
    lines.extend(edge.map(|edge| edge.story()).unwrap_or_default());
    let shards = host.node().map_or(0, |node| node.shards());
    let fault = |host: &Arc<Host>| Some(format!("node {}: {}", host.id, host.node()?.consensus().fault()?.what));
    lines.extend(world.hosts.iter().filter_map(fault));
    for shard in (0..=shards).map(ShardId) {
        lines.extend(world.hosts.iter().filter_map(|host| replica(host, shard)));
    }
    lines.iter().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

fn replica(host: &Host, shard: ShardId) -> Option<String> {
    let node = host.node()?;
    let leadership = *node.consensus().leadership(shard).borrow();
    let figures = node.consensus().shard(shard).map(|group| group.raft_figures());
    let sessions: Vec<String> = node.replicas().data(shard).map_or_else(Vec::new, |machine| {
        let machine = machine.lock();
        machine.sessions().map(|(id, node, process, last)| format!("{id} of node {node} ({process}) up to {last}")).collect()
    });
    Some(format!("shard {shard} on node {}: {leadership:?}, {figures:?}, sessions: {}", host.id, sessions.join(", ")))
}
