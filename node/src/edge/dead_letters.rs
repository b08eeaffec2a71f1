//! Dead letters of the shards that this node leads: their deaths are written into their headers, they are routed by the catalog, and those
//! for other shards travel in this node's lanes. When and in which order is decided by `serving`; the seam is `DeadLetterOffice`.

use super::Edge;
use super::headers::MessageSubject;
use super::lane::{Message, Run, Shared};
use super::mailbox::{ChannelRef, Mailbox};
use crate::machine::catalog::{Catalog, Envelope};
use crate::model::catalog::Owner;
use crate::model::deaths::{Death, Headers};
use crate::model::entry::{SettleReason, StoredView, Word};
use crate::model::ports::{Courier, DeadLetterOffice, Letter, LetterDone, RoutedLetter};
use crate::model::{ConnectionId, Incarnation, NodeId, QueueId, ShardId, TxId};
use bytes::Bytes;
use parking_lot::RwLock;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock, Weak};

/// Where dead letters go; closed until the edge is there.
pub struct Office {
    catalog: Arc<RwLock<Catalog>>,
    edge: OnceLock<Weak<Edge>>,
    /// Stands for the publisher in lanes; nobody reads it.
    mailbox: Arc<Mailbox>,
}

impl Office {
    /// Before the edge.
    pub fn new(catalog: Arc<RwLock<Catalog>>) -> Arc<Office> {
        let owner = Owner { node: NodeId(0), incarnation: Incarnation(0), connection: ConnectionId(0) };
        let mailbox = Arc::new(Mailbox::new(owner, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))));
        Arc::new(Office { catalog, edge: OnceLock::new(), mailbox })
    }

    /// From now on letters go out through this edge.
    pub fn open(&self, edge: &Arc<Edge>) {
        // Only the first counts; there is one edge.
        let _ = self.edge.set(Arc::downgrade(edge));
    }

    fn edge(&self) -> Option<Arc<Edge>> {
        self.edge.get().and_then(Weak::upgrade)
    }

    fn run(&self, done: LetterDone) -> Run {
        Run {
            mailbox: self.mailbox.clone(),
            at: ChannelRef { channel: 0, epoch: 0 },
            ticket: 0,
            mandatory: false,
            rerouted: false,
            first: 0,
            count: 1,
            shared: Some(Shared::letter(done)),
            commit: None,
        }
    }
}

impl Courier for Office {
    fn tell(&self, shard: ShardId, tx: TxId, word: Word, done: LetterDone) -> bool {
        let Some(edge) = self.edge() else { return false };
        edge.lane(shard).word(tx, word, self.run(done), None);
        true
    }
}

impl DeadLetterOffice for Office {
    fn route(&self, letter: &Letter) -> Option<RoutedLetter> {
        let edge = self.edge()?;
        // Without a lease this node's catalog may be old (rule 28).
        edge.port.routing_lease().then(|| route(&self.catalog.read(), letter, &|shard| edge.leads(shard)).unwrap_or_default())
    }

    fn forward(&self, (source, number): (ShardId, u64), target: ShardId, queues: &[QueueId], routed: &RoutedLetter, done: LetterDone) {
        let Some(edge) = self.edge() else { return };
        let lane = edge.lane(target);
        if lane.is_gone() {
            return done();
        }
        // The numbers of a shard in memory begin anew with its process: no other shard may remember them.
        let source = source.owner().is_none().then_some((source, number));
        let (exchange, key, properties, body) = (&routed.exchange, &routed.key, &routed.properties, &routed.body);
        let message = Message { exchange, key, properties, body, source };
        let run = self.run(done);
        let index = self.catalog.read().index();
        lane.enqueue(queues, &message, index, run);
    }
}

/// `None`: nothing takes it, its queue's exchange or the queue itself is gone.
fn route(catalog: &Catalog, letter: &Letter, near: &dyn Fn(ShardId) -> bool) -> Option<RoutedLetter> {
    let record = catalog.queue_by_id(letter.queue)?;
    let dead_letter = catalog.settings(record).dead_letter?;
    let name = &record.spec.name;
    let message = StoredView::parse(&letter.message)?;
    let mut written = Headers::of(message.properties);
    let mut keys = vec![message.key.to_vec()];
    keys.extend(written.keys("CC"));
    keys.extend(written.keys("BCC"));
    let (exchange, key) = (message.exchange, message.key);
    written.record(&Death { queue: &name.name, reason: letter.reason, time_ms: letter.time_ms, exchange, key });
    if let Some(own) = &dead_letter.routing_key {
        keys = vec![own.clone().into_bytes()];
        written.remove("CC");
    }
    let properties = written.write(false);
    let subject = MessageSubject::new(&properties);
    let slices: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
    let mut found = Vec::new();
    // A missing exchange takes nothing.
    let envelope = Envelope { vhost: &name.vhost, exchange: &dead_letter.exchange, keys: &slices, subject: &subject, near };
    let _ = catalog.route(&envelope, &mut found);
    found.sort_unstable_by_key(|(queue, shard)| (*shard, *queue));
    found.dedup();
    if letter.reason != SettleReason::Reject {
        found.retain(|(queue, _)| !catalog.queue_by_id(*queue).is_some_and(|q| written.is_cycle(&q.spec.name.name)));
    }
    let by_shard = found.chunk_by(|a, b| a.1 == b.1);
    Some(RoutedLetter {
        exchange: Bytes::from(dead_letter.exchange.into_bytes()),
        key: Bytes::from(keys.swap_remove(0)),
        properties: Bytes::from(properties),
        body: letter.message.slice(message.body_at..),
        targets: by_shard.map(|part| (part[0].1, part.iter().map(|t| t.0).collect())).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::catalog::{
        BindingSpec, CatalogCommand, CatalogReply, ExchangeKind, ExchangeSpec, Name, QueueSpec, Table, Target, Value,
    };
    use crate::model::entry::Ops;
    use crate::model::properties::{EXPIRATION, field};
    use crate::model::{LeaderId, LogId};

    struct Scene(Catalog);

    impl Scene {
        fn new() -> Scene {
            let mut scene = Scene(Catalog::new());
            let (vhost, user, password_hash) = ("/".into(), "guest".into(), String::new());
            scene.apply(CatalogCommand::Bootstrap { vhost, user, password_hash, shards: 3 });
            scene
        }

        fn apply(&mut self, command: CatalogCommand) -> CatalogReply {
            let index = self.0.index() + 1;
            self.0.apply(LogId { leader: LeaderId::default(), index }, &command)
        }

        fn queue(&mut self, queue: &str, shard: u16, arguments: &[(&str, &str)]) -> QueueId {
            let text = |v: &str| Value::Text(v.as_bytes().to_vec());
            let arguments = arguments.iter().map(|(k, v)| ((*k).to_owned(), text(v))).collect();
            let spec = QueueSpec { name: name(queue), durable: true, auto_delete: false, exclusive_owner: None, arguments };
            let command = CatalogCommand::DeclareQueue { spec, node: NodeId(1), incarnation: Incarnation(1), shard: ShardId(shard) };
            match self.apply(command) {
                CatalogReply::Queue { record, .. } => record.id,
                other => panic!("{other:?}"),
            }
        }

        fn bound_exchange(&mut self, exchange: &str, bindings: &[(&str, &str)]) {
            let (kind, arguments) = (ExchangeKind::Direct, Table::new());
            let spec = ExchangeSpec { name: name(exchange), kind, durable: true, auto_delete: false, internal: false, arguments };
            self.apply(CatalogCommand::DeclareExchange(spec));
            for (key, queue) in bindings {
                let binding = BindingSpec {
                    vhost: "/".into(),
                    source: exchange.into(),
                    target: Target::Queue,
                    destination: (*queue).into(),
                    key: (*key).into(),
                    arguments: Table::new(),
                };
                self.apply(CatalogCommand::Bind(binding));
            }
        }

        fn route(&self, queue: QueueId, reason: SettleReason, message: Bytes) -> RoutedLetter {
            route(&self.0, &Letter { queue, reason, time_ms: 5_000, message }, &|_| false).unwrap_or_default()
        }
    }

    fn name(name: &str) -> Name {
        Name { vhost: "/".into(), name: name.into() }
    }

    fn stored(key: &[u8], properties: &[u8]) -> Bytes {
        let mut ops = Ops::default();
        ops.enqueue(&[QueueId(1)], b"x", key, properties, b"body");
        let bytes = ops.take();
        bytes.slice(bytes.len() - (1 + 1 + 1 + key.len() + 4 + properties.len() + 4)..)
    }

    #[test]
    fn a_letter_keeps_its_key_unless_the_queue_names_one() {
        let mut scene = Scene::new();
        let plain = scene.queue("plain", 1, &[("x-dead-letter-exchange", "dlx")]);
        let keyed = scene.queue("keyed", 1, &[("x-dead-letter-exchange", "dlx"), ("x-dead-letter-routing-key", "other")]);
        let (one, two) = (scene.queue("one", 2, &[]), scene.queue("two", 3, &[]));
        scene.bound_exchange("dlx", &[("k", "one"), ("other", "one"), ("other", "two")]);
        let expiring = [&EXPIRATION.to_be_bytes()[..], b"\x0210"].concat();
        let routed = scene.route(plain, SettleReason::Expired, stored(b"k", &expiring));
        assert_eq!((&routed.exchange[..], &routed.key[..], &routed.body[..]), (&b"dlx"[..], &b"k"[..], &b"body"[..]));
        assert_eq!(routed.targets, [(ShardId(2), vec![one])]);
        assert_eq!(field(&routed.properties, EXPIRATION), None, "it does not expire again");
        let routed = scene.route(keyed, SettleReason::Reject, stored(b"k", &[0, 0]));
        assert_eq!(&routed.key[..], b"other");
        assert_eq!(routed.targets, [(ShardId(2), vec![one]), (ShardId(3), vec![two])]);
        assert_eq!(scene.route(plain, SettleReason::Reject, stored(b"nobody", &[0, 0])).targets, []);
    }

    #[test]
    fn a_letter_that_would_circle_by_itself_is_dropped_and_a_rejected_one_is_not() {
        let mut scene = Scene::new();
        let queue = scene.queue("q", 1, &[("x-dead-letter-exchange", "")]);
        assert_eq!(scene.route(queue, SettleReason::Expired, stored(b"q", &[0, 0])).targets, []);
        assert_eq!(scene.route(queue, SettleReason::Reject, stored(b"q", &[0, 0])).targets, [(ShardId(1), vec![queue])]);
    }

    #[test]
    fn without_an_exchange_nothing_takes_a_letter() {
        let mut scene = Scene::new();
        let queue = scene.queue("q", 1, &[("x-dead-letter-exchange", "missing")]);
        let plain = scene.queue("plain", 1, &[]);
        for id in [queue, plain, QueueId(999)] {
            assert_eq!(scene.route(id, SettleReason::Reject, stored(b"q", &[0, 0])).targets, []);
        }
    }
}
