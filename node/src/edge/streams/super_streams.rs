//! Super streams: a direct exchange whose bindings lead to streams, its partitions, in the order that the bindings say. Made and deleted
//! step by step, as in RabbitMQ; a making that fails takes back what it made.

use super::asks::new_name;
use crate::edge::Edge;
use crate::machine::catalog::{Catalog, Envelope, RouteResult};
use crate::model::QueueId;
use crate::model::catalog::{BindingSpec, CatalogCommand, CatalogReply, ExchangeKind, ExchangeSpec, Name, QueueSpec, Table, Target, Value};
use crate::model::limits;
use crate::model::stream_step::Failure;
use crate::routing::{HashProperty, Subject};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The binding argument that numbers partitions.
const ORDER: &str = "x-stream-partition-order";

/// A message without properties.
struct Plain;

impl Subject for Plain {
    fn headers(&self) -> &Table {
        static NONE: Table = Table::new();
        &NONE
    }

    fn property(&self, _: HashProperty) -> Option<&[u8]> {
        None
    }

    fn properties(&self) -> &[u8] {
        &[0, 0]
    }

    fn random(&self) -> u64 {
        rand::random()
    }
}

fn exchange<'a>(catalog: &'a Catalog, name: &Name) -> Result<&'a ExchangeSpec, Failure> {
    catalog.exchange(name).map(|spec| &**spec).ok_or(Failure::Missing)
}

fn is_stream(catalog: &Catalog, name: &Name) -> bool {
    catalog.queue(name).is_some_and(|record| catalog.settings(record).stream.is_some())
}

/// The streams that a routing key leads to.
pub(super) fn route(catalog: &Catalog, name: &Name, routing_key: &str) -> Result<Vec<Arc<str>>, Failure> {
    let mut targets = Vec::new();
    let keys: &[&[u8]] = &[routing_key.as_bytes()];
    let envelope = Envelope { vhost: &name.vhost, exchange: &name.name, keys, subject: &Plain, near: &|_| false };
    match catalog.route(&envelope, &mut targets) {
        RouteResult::Routed | RouteResult::OnlyRemembered => {}
        RouteResult::NoExchange | RouteResult::Internal => return Err(Failure::Missing),
    }
    let records = targets.iter().filter_map(|(id, _)| catalog.queue_by_id(*id));
    Ok(records.filter(|record| catalog.settings(record).stream.is_some()).map(|record| record.spec.name.name.clone()).collect())
}

/// The streams behind an exchange, in their order; those without a number come last.
pub(super) fn partitions(catalog: &Catalog, name: &Name) -> Result<Vec<Arc<str>>, Failure> {
    exchange(catalog, name)?;
    let stream = |binding: &BindingSpec| Name { vhost: name.vhost.clone(), name: binding.destination.clone() };
    let mut bound: Vec<(i64, Arc<str>)> = catalog
        .bindings_from(name)
        .filter(|binding| binding.target == Target::Queue && is_stream(catalog, &stream(binding)))
        .map(|binding| (order(&binding.arguments).unwrap_or(i64::MAX), binding.destination.clone()))
        .collect();
    bound.sort();
    Ok(bound.into_iter().map(|(_, stream)| stream).collect())
}

/// The place of a partition in its super stream: as its binding says, else the number at the end of its name.
pub(in crate::edge) fn partition_index(catalog: &Catalog, name: &Name, stream: &str) -> Option<u32> {
    let binding = catalog.bindings_from(name).find(|binding| binding.target == Target::Queue && *binding.destination == *stream)?;
    match order(&binding.arguments) {
        Some(order) => u32::try_from(order).ok(),
        None => stream.rsplit_once('-')?.1.parse().ok(),
    }
}

fn order(arguments: &Table) -> Option<i64> {
    match arguments.get(ORDER)? {
        Value::Int(order) => Some(*order),
        Value::Text(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        _ => None,
    }
}

/// What makes a super stream, checked.
pub(super) struct Plan {
    exchange: ExchangeSpec,
    queues: Vec<QueueSpec>,
    bindings: Vec<BindingSpec>,
}

impl Plan {
    pub fn new(catalog: &Catalog, exchange: Name, partitions: &[(Arc<str>, Arc<str>)], mut arguments: Table) -> Result<Plan, Failure> {
        let vhost = exchange.vhost.clone();
        let is_known = catalog.exchange(&exchange).is_some();
        let names = partitions.iter().map(|(stream, _)| new_name(stream)).collect::<Result<Vec<_>, _>>()?;
        if names.len() > limits::SUPER_STREAM_PARTITIONS || names.iter().collect::<BTreeSet<_>>().len() < names.len() {
            return Err(Failure::Precondition);
        }
        let in_vhost = |name: &Arc<str>| Name { vhost: vhost.clone(), name: name.clone() };
        if is_known || names.iter().any(|stream| catalog.queue(&in_vhost(stream)).is_some()) {
            return Err(Failure::Exists);
        }
        arguments.entry("x-queue-leader-locator".to_owned()).or_insert_with(|| Value::Text(b"balanced".to_vec()));
        arguments.insert("x-queue-type".to_owned(), Value::Text(b"stream".to_vec()));
        let queue = |name: &Arc<str>| QueueSpec {
            name: in_vhost(name),
            durable: true,
            auto_delete: false,
            exclusive_owner: None,
            arguments: arguments.clone(),
        };
        let queues: Vec<QueueSpec> = names.iter().map(queue).collect();
        if let Some(queue) = queues.first() {
            super::check_settings(&queue.name, &queue.arguments)?;
        }
        let binding = |number: i64, stream: &Arc<str>, key: &Arc<str>| BindingSpec {
            vhost: vhost.clone(),
            source: exchange.name.clone(),
            target: Target::Queue,
            destination: stream.clone(),
            key: key.clone(),
            arguments: Table::from([(ORDER.to_owned(), Value::Int(number))]),
        };
        let bindings = (0..).zip(&names).zip(partitions).map(|((number, stream), (_, key))| binding(number, stream, key)).collect();
        let exchange = ExchangeSpec {
            name: exchange,
            kind: ExchangeKind::Direct,
            durable: true,
            auto_delete: false,
            internal: false,
            arguments: Table::from([("x-super-stream".to_owned(), Value::Bool(true))]),
        };
        Ok(Plan { exchange, queues, bindings })
    }

    pub async fn carry_out(self, edge: &Edge) -> Result<(), Failure> {
        let name = self.exchange.name.clone();
        edge.submit(CatalogCommand::DeclareExchange(self.exchange)).await?;
        let mut made = Vec::new();
        let done = make(edge, self.queues, self.bindings, &mut made).await;
        if done.is_err() {
            undo(edge, name, &made).await;
        }
        done
    }
}

async fn make(edge: &Edge, queues: Vec<QueueSpec>, bindings: Vec<BindingSpec>, made: &mut Vec<QueueId>) -> Result<(), Failure> {
    let (node, incarnation) = (edge.config.node, edge.config.incarnation);
    for spec in queues {
        // Each goes to the shard with the fewest queues, unless it is to be local: partitions spread.
        let shard = edge.place(&spec);
        match edge.submit(CatalogCommand::DeclareQueue { spec, node, incarnation, shard }).await? {
            CatalogReply::Queue { record, created: true } => made.push(record.id),
            CatalogReply::Queue { created: false, .. } => return Err(Failure::Exists),
            CatalogReply::Done | CatalogReply::Refused(_) => return Err(Failure::Internal),
        }
    }
    for binding in bindings {
        edge.submit(CatalogCommand::Bind(binding)).await?;
    }
    Ok(())
}

async fn undo(edge: &Edge, exchange: Name, made: &[QueueId]) {
    let queues = made.iter().map(|id| CatalogCommand::DeleteQueue { id: *id });
    for command in queues.chain([CatalogCommand::DeleteExchange { name: exchange, if_unused: false }]) {
        if let Err(refusal) = edge.submit(command).await {
            tracing::warn!(%refusal, "part of a super stream that could not be made stays");
        }
    }
}

/// Deletes the exchange, then its partitions. What is gone meanwhile is no fault.
pub(super) async fn delete(edge: &Edge, exchange: Name, partitions: &[Arc<str>]) -> Result<(), Failure> {
    let vhost = exchange.vhost.clone();
    let ids: Vec<QueueId> = {
        let catalog = edge.catalog.read();
        let named = partitions.iter().map(|stream| Name { vhost: vhost.clone(), name: stream.clone() });
        named.filter_map(|name| catalog.queue(&name).map(|record| record.id)).collect()
    };
    edge.submit(CatalogCommand::DeleteExchange { name: exchange, if_unused: false }).await?;
    for id in ids {
        edge.submit(CatalogCommand::DeleteQueue { id }).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Incarnation, LogId, NodeId, ShardId};

    fn apply(catalog: &mut Catalog, command: &CatalogCommand) {
        let id = LogId { index: catalog.index() + 1, ..LogId::default() };
        let reply = catalog.apply(id, command);
        assert!(!matches!(reply, CatalogReply::Refused(_)), "{reply:?}");
    }

    fn catalog() -> Catalog {
        let mut catalog = Catalog::new();
        let bootstrap = CatalogCommand::Bootstrap { vhost: "/".into(), user: "u".into(), password_hash: String::new(), shards: 3 };
        apply(&mut catalog, &bootstrap);
        catalog
    }

    fn named(name: &str) -> Name {
        Name { vhost: "/".into(), name: name.into() }
    }

    fn names(names: &[&str]) -> Vec<Arc<str>> {
        names.iter().map(|name| (*name).into()).collect()
    }

    fn plan(catalog: &Catalog, name: &str, partitions: &[(&str, &str)]) -> Result<Plan, Failure> {
        let partitions: Vec<(Arc<str>, Arc<str>)> = partitions.iter().map(|(stream, key)| ((*stream).into(), (*key).into())).collect();
        Plan::new(catalog, named(name), &partitions, Table::new())
    }

    fn make(catalog: &mut Catalog, plan: Plan) {
        apply(catalog, &CatalogCommand::DeclareExchange(plan.exchange));
        for spec in plan.queues {
            let declare = CatalogCommand::DeclareQueue { spec, node: NodeId(1), incarnation: Incarnation(1), shard: ShardId(1) };
            apply(catalog, &declare);
        }
        plan.bindings.into_iter().for_each(|binding| apply(catalog, &CatalogCommand::Bind(binding)));
    }

    #[test]
    fn partitions_stand_in_the_order_in_which_they_were_named_and_keys_lead_to_them() {
        let mut catalog = catalog();
        let streams = [("orders-b", "eu"), ("orders-a", "us"), ("orders-c", "asia")];
        let planned = plan(&catalog, "orders", &streams).expect("sound");
        make(&mut catalog, planned);
        let orders = named("orders");
        assert_eq!(partitions(&catalog, &orders).expect("there"), names(&["orders-b", "orders-a", "orders-c"]));
        assert_eq!(route(&catalog, &orders, "us").expect("there"), names(&["orders-a"]));
        assert_eq!(route(&catalog, &orders, "nowhere").expect("there"), names(&[]));
        assert_eq!(partition_index(&catalog, &orders, "orders-a"), Some(1));
        assert_eq!(partition_index(&catalog, &orders, "elsewhere"), None);
        assert_eq!(partitions(&catalog, &named("nothing")), Err(Failure::Missing));
        assert_eq!(route(&catalog, &named("nothing"), "us"), Err(Failure::Missing));
    }

    #[test]
    fn a_super_stream_is_made_of_what_is_new_and_has_a_name() {
        let mut catalog = catalog();
        let planned = plan(&catalog, "orders", &[("orders-0", "0")]).expect("sound");
        make(&mut catalog, planned);
        let why = |name: &str, partitions: &[(&str, &str)]| plan(&catalog, name, partitions).err();
        assert_eq!(why("orders", &[("new", "0")]), Some(Failure::Exists), "the exchange");
        assert_eq!(why("another", &[("orders-0", "0")]), Some(Failure::Exists), "a stream");
        assert_eq!(why("another", &[("x", "0"), ("x", "1")]), Some(Failure::Precondition), "twice");
        assert_eq!(why("another", &[("amq.x", "0")]), Some(Failure::Precondition), "reserved");
        let many: Vec<String> = (0..=limits::SUPER_STREAM_PARTITIONS).map(|n| format!("s{n}")).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|name| (&**name, "k")).collect();
        assert_eq!(why("another", &many), Some(Failure::Precondition), "too many");
    }
}
