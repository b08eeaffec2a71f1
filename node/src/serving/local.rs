//! A node's own shard: in-memory queues (exclusive or not durable). Entries are applied at once, their bytes stay in a map until no
//! live message points into them. The same server runs over it as over a replicated shard.

use super::handle::ServerHandle;
use crate::machine::shard::DataMachine;
use crate::model::entry::EntryBytes;
use crate::model::ports::{Bodies, Leadership, ProposalOutcome, Proposer};
use crate::model::{Generation, Incarnation, LeaderId, LogId, NodeId, VoterId};
use futures::FutureExt;
use futures::future::BoxFuture;
use hashbrown::HashMap;
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;

/// The leadership of a node over its own shard: from the start of the process to its end.
pub fn local_leadership(node: NodeId, incarnation: Incarnation) -> Leadership {
    let voter = VoterId { node, generation: Generation(0) }.pack();
    Leadership { leader: Some(LeaderId { term: incarnation.0, voter }), is_me: true }
}

/// The entries of a local shard that hold live messages.
#[derive(Debug, Default)]
pub struct LocalBodies(Mutex<HashMap<u64, EntryBytes>>);

impl LocalBodies {
    /// Entries in memory.
    pub fn len(&self) -> usize {
        self.0.lock().len()
    }

    /// None.
    pub fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }
}

impl Bodies for LocalBodies {
    fn cached(&self, index: u64) -> Option<EntryBytes> {
        self.0.lock().get(&index).cloned()
    }

    fn read(&self, index: u64) -> BoxFuture<'static, io::Result<EntryBytes>> {
        let found = self.cached(index).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no live message in this entry"));
        async move { found }.boxed()
    }
}

/// Applies at once.
#[derive(Debug)]
pub struct LocalProposer {
    machine: Arc<Mutex<DataMachine>>,
    bodies: Arc<LocalBodies>,
    server: ServerHandle,
}

impl LocalProposer {
    /// Over a machine; outcomes and effects go to `server`.
    pub fn new(machine: Arc<Mutex<DataMachine>>, bodies: Arc<LocalBodies>, server: ServerHandle) -> LocalProposer {
        LocalProposer { machine, bodies, server }
    }
}

impl Proposer for LocalProposer {
    fn propose(&self, token: u64, leader: LeaderId, entry: EntryBytes) {
        let mut machine = self.machine.lock();
        let id = LogId { leader, index: machine.applied().index + 1 };
        self.bodies.0.lock().insert(id.index, entry.clone());
        let applied = machine.apply(id, &entry);
        drop(machine);
        match applied {
            Ok(applied) => {
                let mut bodies = self.bodies.0.lock();
                applied.freed.iter().for_each(|index| drop(bodies.remove(index)));
                drop(bodies);
                self.server.applied(id, applied.effects);
                self.server.outcome(token, ProposalOutcome::Applied(id, applied.replies));
            }
            Err(fault) => {
                self.bodies.0.lock().remove(&id.index);
                tracing::error!(%fault, "entry of the node's own shard is refused");
                self.server.outcome(token, ProposalOutcome::Failed(fault.to_string()));
            }
        }
    }

    fn lease_valid(&self) -> bool {
        true
    }
}
