//! Deletes queues that their shards have sealed (auto-delete queues whose last consumer went, queues that expired, queues that clients
//! delete on a condition), however long the catalog takes to answer. Started by `start`; the shard servers say which queues.

use crate::edge::CatalogPort;
use crate::model::QueueId;
use crate::model::catalog::CatalogCommand;
use crate::serving::ServerEvent;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Deletions at a time; the servers keep the other questions and ask again.
const DELETIONS: usize = 256;

/// Runs until the servers are gone; deletions end with it.
pub(super) async fn delete(port: Arc<dyn CatalogPort>, mut events_rx: mpsc::Receiver<ServerEvent>) {
    let mut deletions = JoinSet::new();
    loop {
        tokio::select! {
            event = events_rx.recv(), if deletions.len() < DELETIONS => match event {
                Some(ServerEvent::Sealed { queue }) => {
                    drop(deletions.spawn(delete_one(port.clone(), queue)));
                }
                None => return,
            },
            Some(_) = deletions.join_next() => {}
        }
    }
}

/// Until the catalog has answered, which deletes what is there; a command without an answer may still have been done. This node's copy of
/// the catalog is not asked: it may be behind the shard, and not have the queue yet.
async fn delete_one(port: Arc<dyn CatalogPort>, queue: QueueId) {
    let mut pause = PAUSE_MIN;
    loop {
        match port.submit(CatalogCommand::DeleteQueue { id: queue }).await {
            Ok(_) => return,
            Err(error) => tracing::warn!(%queue, %error, "a sealed queue could not be deleted yet"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::catalog::Catalog;
    use crate::model::catalog::{CatalogReply, Name, QueueSpec, Refusal, Table};
    use crate::model::{Incarnation, LeaderId, LogId, NodeId, ShardId};
    use futures::future::BoxFuture;
    use parking_lot::RwLock;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::sync::Notify;

    /// The leader of a shard may hear of a queue before its node's copy of the catalog does.
    #[tokio::test]
    async fn a_queue_that_this_nodes_catalog_does_not_have_is_deleted_where_it_is() {
        let port = Arc::new(Minority { catalog: Arc::default(), refusals: AtomicU32::new(0), done: Notify::new() });
        let (events_tx, events_rx) = mpsc::channel(1);
        let deleting = tokio::spawn(delete(port.clone(), events_rx));
        events_tx.send(ServerEvent::Sealed { queue: QueueId(99) }).await.expect("it listens");
        port.done.notified().await;
        drop(events_tx);
        deleting.await.expect("it ends with the servers");
    }

    /// Refuses the first commands.
    struct Minority {
        catalog: Arc<RwLock<Catalog>>,
        refusals: AtomicU32,
        done: Notify,
    }

    impl Minority {
        fn apply(&self, command: &CatalogCommand) -> (u64, CatalogReply) {
            let mut catalog = self.catalog.write();
            let index = catalog.index() + 1;
            (index, catalog.apply(LogId { leader: LeaderId::default(), index }, command))
        }
    }

    impl CatalogPort for Minority {
        fn submit(&self, command: CatalogCommand) -> BoxFuture<'static, Result<(u64, CatalogReply), Refusal>> {
            if self.refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
                return Box::pin(async { Err(Refusal::Unavailable("no majority".into())) });
            }
            let done = self.apply(&command);
            self.done.notify_one();
            Box::pin(async move { Ok(done) })
        }

        fn routing_lease(&self) -> bool {
            true
        }
    }

    #[tokio::test]
    async fn a_deletion_that_the_catalog_refuses_is_repeated() {
        let catalog: Arc<RwLock<Catalog>> = Arc::default();
        let port = Arc::new(Minority { catalog: catalog.clone(), refusals: AtomicU32::new(2), done: Notify::new() });
        let (vhost, user, password_hash) = ("/".into(), "guest".into(), String::new());
        port.apply(&CatalogCommand::Bootstrap { vhost, user, password_hash, shards: 1 });
        let name = Name { vhost: "/".into(), name: "q".into() };
        let spec = QueueSpec { name, durable: true, auto_delete: true, exclusive_owner: None, arguments: Table::new() };
        let declare = CatalogCommand::DeclareQueue { spec, node: NodeId(1), incarnation: Incarnation(1), shard: ShardId(1) };
        let (_, CatalogReply::Queue { record, .. }) = port.apply(&declare) else { panic!("not declared") };
        let (events_tx, events_rx) = mpsc::channel(1);
        let deleting = tokio::spawn(delete(port.clone(), events_rx));
        events_tx.send(ServerEvent::Sealed { queue: record.id }).await.expect("it listens");
        port.done.notified().await;
        assert!(catalog.read().queue_by_id(record.id).is_none());
        drop(events_tx);
        deleting.await.expect("it ends with the servers");
    }
}
