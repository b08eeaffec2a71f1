//! What clients do with names: a queue that one node declared is there on every node at once, one that was deleted is nowhere
//! (rule 28); and one name is deleted and declared again from all nodes while others publish to it and consume (rule 27).

use super::client::{Client, Failed, declare, delete};
use super::publisher::{Publisher, Target, over};
use super::world::{Phase, World};
use crate::chance::Chance;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;
use warren::model::catalog::Refusal;
use warren::model::step::Reply;

/// A client of some node; `None` when the load ends before one serves.
async fn some_client(world: &World, chance: &mut Chance) -> Option<Client> {
    tokio::select! {
        client = Client::connect(chance.pick(&world.hosts)) => Some(client),
        () = over(world, Phase::Drain) => None,
    }
}

/// Declares a name on one node and looks for it on the others, again and again.
pub async fn look(world: Arc<World>, mut chance: Chance) {
    let mut number = 0;
    while world.phase() == Phase::Load {
        number += 1;
        let queue = format!("looked-for-{number}");
        let mut clients = Vec::new();
        for _ in 0..3 {
            match some_client(&world, &mut chance).await {
                Some(client) => clients.push(client),
                None => return,
            }
        }
        if let Some(wrong) = look_once(&mut clients, &queue).await {
            world.error(format!("{queue}: {wrong}"));
        } else {
            world.checked();
        }
        sleep(Duration::from_millis(chance.between(5, 40))).await;
    }
}

/// What is wrong. Anything may be refused or cut short while things go wrong; an answer that is given must be right.
async fn look_once(clients: &mut [Client], queue: &str) -> Option<String> {
    if clients[0].ask(declare(queue, false)).await.is_err() {
        return None;
    }
    match clients[1].ask(declare(queue, true)).await {
        Err(Failed::Refused(refusal @ Refusal::NotFound { .. })) => {
            return Some(format!("declared on one node, and on another: {refusal}"));
        }
        Err(Failed::Silent) => return Some("a passive declare is not answered".into()),
        Ok(_) => {}
        Err(Failed::Dead | Failed::Refused(_)) => return None,
    }
    match clients[1].ask(delete(queue)).await {
        Err(Failed::Silent) => return Some("a delete is not answered".into()),
        Ok(_) => {}
        Err(Failed::Dead | Failed::Refused(_)) => return None,
    }
    match clients[2].ask(declare(queue, true)).await {
        Ok(_) => Some("deleted on one node, and still there on another".into()),
        Err(Failed::Silent) => Some("a passive declare is not answered".into()),
        Err(Failed::Dead | Failed::Refused(_)) => None,
    }
}

/// Deletes `churned` and declares it again, from any node.
pub async fn churn(world: Arc<World>, mut chance: Chance) {
    while world.phase() == Phase::Load {
        let Some(mut client) = some_client(&world, &mut chance).await else { return };
        let request = if chance.one_in(3) { delete("churned") } else { declare("churned", false) };
        if let Err(Failed::Silent) = client.ask(request).await {
            world.error("declare or delete of churned is not answered");
        }
        sleep(Duration::from_millis(chance.between(5, 120))).await;
    }
}

/// When nothing is wrong any more: through each node a queue can be declared, and what is published to `target` is confirmed.
pub async fn serves(world: &Arc<World>, node: usize, target: Target, patience: Duration) {
    let until = tokio::time::Instant::now() + patience;
    let wanted = 5;
    loop {
        let tried = tokio::time::timeout_at(until, async {
            let mut client = Client::connect(&world.hosts[node]).await;
            for queue in target.queues() {
                match client.ask(declare(queue, false)).await {
                    Ok(Reply::Queue { .. }) => {}
                    other => return Err(format!("declare of {queue} is answered by {other:?}")),
                }
            }
            let mut publisher = Publisher::new(world, client, target);
            for _ in 0..wanted {
                publisher.publish(100).await;
            }
            while publisher.open() > 0 && publisher.client.is_alive() {
                publisher.verdicts(world, Duration::from_millis(100)).await;
            }
            if publisher.confirmed == wanted { Ok(()) } else { Err(format!("{} of {wanted} are confirmed", publisher.confirmed)) }
        });
        match tried.await {
            Ok(Ok(())) => return,
            Ok(Err(why)) => world.note(format!("node {} does not serve {target:?} yet: {why}", node + 1)),
            Err(_) => {
                let story = super::story::of_client(world, &world.hosts[node]).await;
                return world.error(format!("node {} does not serve {target:?} although nothing is wrong any more: {story}", node + 1));
            }
        }
        sleep(Duration::from_millis(100)).await;
    }
}
