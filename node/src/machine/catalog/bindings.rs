//! Bindings, and the end of things that have some: what depends on an exchange or a queue goes with it. Called by `apply`.

use super::policy::{Applied, queue_type};
use super::{Catalog, Destination, Exchange, QueueEntry};
use crate::model::QueueId;
use crate::model::catalog::{BindingSpec, ExchangeKind, ExchangeSpec, Name, QueueRecord, Refusal, Renaming, Target};
use crate::routing::RoutingTable;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The canonical bytes of a binding: equal bindings have equal bytes.
fn identity(spec: &BindingSpec) -> Box<[u8]> {
    rmp_serde::to_vec(spec).expect("a binding is plain data, writing to memory cannot fail").into_boxed_slice()
}

pub(super) fn not_found(kind: &str, vhost: &str, name: &str) -> Refusal {
    Refusal::NotFound { kind: kind.to_owned(), name: name.to_owned(), vhost: vhost.to_owned() }
}

impl Catalog {
    /// Adds a binding under `id`; nothing when it is there.
    pub(super) fn bind(&mut self, id: u64, spec: &BindingSpec) -> Result<(), Refusal> {
        let vhost = self.vhosts.get_mut(&spec.vhost).ok_or_else(|| not_found("vhost", &spec.vhost, &spec.vhost))?;
        if !vhost.exchanges.contains_key(&spec.source) {
            return Err(not_found("exchange", &spec.vhost, &spec.source));
        }
        let destination = match spec.target {
            Target::Queue => vhost.queues.get(&spec.destination).map(|q| Destination::Queue(q.record.id, q.record.shard)),
            Target::Exchange => vhost.exchanges.get(&spec.destination).map(|x| Destination::Exchange(x.spec.name.name.clone())),
        };
        let kind = match spec.target {
            Target::Queue => "queue",
            Target::Exchange => "exchange",
        };
        let destination = destination.ok_or_else(|| not_found(kind, &spec.vhost, &spec.destination))?;
        let identity = identity(spec);
        if self.binding_ids.contains_key(&identity) {
            return Ok(());
        }
        if let Some(source) = vhost.exchanges.get_mut(&spec.source) {
            source.table.insert(id, spec.key.as_bytes(), &spec.arguments, destination);
            source.outgoing.insert(id);
            if let Some((queue, shard)) = source.store.filter(|_| source.spec.kind == ExchangeKind::RecentHistory) {
                self.by_shard.entry(shard).or_default().bound(id, queue);
            }
        }
        if let Some(incoming) = self.incoming(spec) {
            incoming.insert(id);
        }
        self.binding_ids.insert(identity, id);
        self.bindings.insert(id, Arc::new(spec.clone()));
        Ok(())
    }

    /// Takes a binding away; nothing when it is not there.
    pub(super) fn unbind(&mut self, spec: &BindingSpec) {
        if let Some(id) = self.binding_ids.get(&identity(spec)) {
            let id = *id;
            self.drop_bindings([id]);
        }
    }

    /// Adds an exchange without bindings.
    pub(super) fn put_exchange(&mut self, spec: ExchangeSpec) {
        let (vhost, name) = (spec.name.vhost.clone(), spec.name.name.clone());
        let vhost = self.vhosts.entry(vhost).or_default();
        let policies = vhost.applied_to_exchange(&spec);
        let mut exchange = Exchange {
            table: RoutingTable::new(spec.routes_as(), &spec.arguments),
            spec: Arc::new(spec),
            alternate: None,
            policies: Applied::default(),
            outgoing: BTreeSet::new(),
            incoming: BTreeSet::new(),
            store: None,
        };
        exchange.set_policies(policies);
        vhost.exchanges.insert(name, exchange);
    }

    /// Adds a queue without bindings. The shard's change log is the caller's.
    pub(super) fn put_queue(&mut self, record: Arc<QueueRecord>) {
        if let Some(owner) = record.spec.exclusive_owner {
            self.by_owner.entry(owner).or_default().insert(record.id);
        }
        let Name { vhost, name } = record.spec.name.clone();
        self.queues.insert(record.id, record.clone());
        if queue_type(&record.spec.arguments) == "stream" {
            self.streams.insert(record.id);
        }
        let vhost = self.vhosts.entry(vhost).or_default();
        if let Some(exchange) = &record.backs {
            if let Some(exchange) = vhost.exchanges.get_mut(exchange) {
                exchange.store = Some((record.id, record.shard));
            }
            return;
        }
        let policies = vhost.applied_to_queue(&record.spec);
        vhost.queues.insert(name, QueueEntry { record, policies, incoming: BTreeSet::new() });
    }

    /// Takes an exchange away with its bindings, and the auto-delete exchanges that lose their last one by it.
    pub(super) fn drop_exchange(&mut self, name: &Name) {
        let mut leaving = vec![name.clone()];
        while let Some(name) = leaving.pop() {
            let Some(exchange) = self.exchange_entry(&name.vhost, &name.name) else { continue };
            let ids: Vec<u64> = exchange.outgoing.iter().chain(&exchange.incoming).copied().collect();
            leaving.extend(ids.into_iter().filter_map(|id| self.drop_binding(id)));
            let gone = self.vhosts.get_mut(&name.vhost).and_then(|vhost| vhost.exchanges.remove(&name.name));
            if let Some((queue, _)) = gone.and_then(|exchange| exchange.store) {
                self.drop_queue(self.applied.index, queue);
            }
        }
    }

    /// Takes a queue away with its bindings.
    pub(super) fn drop_queue(&mut self, index: u64, id: QueueId) {
        let Some(record) = self.queues.remove(&id) else { return };
        self.streams.remove(&id);
        let Name { vhost, name } = &record.spec.name;
        let incoming = self.queue_entry(vhost, name).map(|q| q.incoming.clone()).unwrap_or_default();
        self.drop_bindings(incoming);
        if let Some(vhost) = self.vhosts.get_mut(vhost) {
            vhost.queues.remove(name);
        }
        if let Some(owner) = record.spec.exclusive_owner
            && let Some(queues) = self.by_owner.get_mut(&owner)
        {
            queues.remove(&id);
            if queues.is_empty() {
                self.by_owner.remove(&owner);
            }
        }
        self.by_shard.entry(record.shard).or_default().dropped(index, id);
        self.groups.drop_stream(id);
    }

    /// Gives a queue another name and other arguments. Its bindings keep their numbers: nothing is new to what they lead to.
    pub(super) fn rename_queue(&mut self, index: u64, renaming: &Renaming) {
        let Some(mut record) = self.queues.get(&renaming.id).map(|record| QueueRecord::clone(record)) else { return };
        let old = std::mem::replace(&mut record.spec.name.name, renaming.name.clone());
        record.spec.arguments = renaming.arguments.clone();
        let vhost = record.spec.name.vhost.clone();
        let incoming = self.queue_entry(&vhost, &old).map(|q| q.incoming.clone()).unwrap_or_default();
        let bindings: Vec<_> = incoming.iter().filter_map(|id| Some((*id, self.bindings.get(id)?.clone()))).collect();
        incoming.into_iter().for_each(|id| drop(self.drop_binding(id)));
        if let Some(vhost) = self.vhosts.get_mut(&vhost) {
            vhost.queues.remove(&old);
        }
        self.put_queue(Arc::new(record));
        for (id, spec) in bindings {
            let spec = BindingSpec { destination: renaming.name.clone(), ..BindingSpec::clone(&spec) };
            self.bind(id, &spec).expect("both ends are there: the one was, the other has just been put");
        }
        self.configured(index, renaming.id);
    }

    fn incoming(&mut self, spec: &BindingSpec) -> Option<&mut BTreeSet<u64>> {
        let vhost = self.vhosts.get_mut(&spec.vhost)?;
        match spec.target {
            Target::Queue => vhost.queues.get_mut(&spec.destination).map(|q| &mut q.incoming),
            Target::Exchange => vhost.exchanges.get_mut(&spec.destination).map(|x| &mut x.incoming),
        }
    }

    fn drop_bindings(&mut self, ids: impl IntoIterator<Item = u64>) {
        let leaving: Vec<Name> = ids.into_iter().filter_map(|id| self.drop_binding(id)).collect();
        leaving.iter().for_each(|name| self.drop_exchange(name));
    }

    /// Answers the auto-delete exchange that has lost its last binding by it.
    fn drop_binding(&mut self, id: u64) -> Option<Name> {
        let spec = self.bindings.remove(&id)?;
        self.binding_ids.remove(&identity(&spec));
        let destination = self.destination(&spec);
        if let Some(incoming) = self.incoming(&spec) {
            incoming.remove(&id);
        }
        let source = self.vhosts.get_mut(&spec.vhost)?.exchanges.get_mut(&spec.source)?;
        source.outgoing.remove(&id);
        if let Some((_, shard)) = source.store {
            self.by_shard.entry(shard).or_default().unbound(id);
        }
        if let Some(destination) = destination {
            source.table.remove(id, spec.key.as_bytes(), &destination);
        }
        (source.spec.auto_delete && source.outgoing.is_empty()).then(|| source.spec.name.clone())
    }

    fn destination(&self, spec: &BindingSpec) -> Option<Destination> {
        match spec.target {
            Target::Queue => self.queue_entry(&spec.vhost, &spec.destination).map(|q| Destination::Queue(q.record.id, q.record.shard)),
            Target::Exchange => Some(Destination::Exchange(spec.destination.clone())),
        }
    }
}
