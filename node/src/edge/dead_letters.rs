//! Dead letters of the shards that this node leads: their deaths are written into their headers, they are routed by the catalog, and those
//! for other shards travel in this node's lanes. When and in which order is decided by `serving`; the seam is `DeadLetterOffice`.

use super::Edge;
use super::headers::MessageSubject;
use super::lane::{Letters, Message, Run, Shared};
use super::mailbox::{ChannelRef, Mailbox};
use super::streams::{Record, stream_target};
use crate::machine::catalog::{Catalog, Envelope};
use crate::model::catalog::Owner;
use crate::model::deaths::{Death, Headers};
use crate::model::entry::{SettleReason, StoredMessage, StoredView, Word};
use crate::model::letters::{Address, Letter, LetterFate, LetterMessage, RoutedRun, Source, Targets};
use crate::model::limits::NAME_BYTES;
use crate::model::ports::{Courier, DeadLetterOffice, LetterAnswered, WordHeard};
use crate::model::properties::BLIND_COPIES;
use crate::model::{ConnectionId, Incarnation, NodeId, QueueId, ShardId, TxId};
use bytes::{Bytes, BytesMut};
use parking_lot::RwLock;
use smallvec::SmallVec;
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

    fn run(&self, answered: LetterAnswered) -> Run {
        Run {
            mailbox: self.mailbox.clone(),
            at: ChannelRef { channel: 0, epoch: 0 },
            ticket: 0,
            mandatory: false,
            rerouted: false,
            first: 0,
            count: 1,
            shared: None,
            letters: Some(Letters::new(answered)),
            commit: None,
            strict: false,
        }
    }
}

impl Courier for Office {
    fn tell(&self, shard: ShardId, tx: TxId, word: Word, heard: WordHeard) -> bool {
        let Some(edge) = self.edge() else { return false };
        edge.lane(shard).word(tx, word, self.run(Arc::new(move |_, _| heard())), None);
        true
    }
}

impl DeadLetterOffice for Office {
    fn route(&self, letters: &[Letter], address: &Address) -> Option<Vec<RoutedRun>> {
        let edge = self.edge()?;
        // Without a lease this node's catalog may be old (rule 28).
        edge.port.routing_lease().then(|| route(&self.catalog.read(), letters, address, &|shard| edge.leads(shard)))
    }

    fn write(&self, letter: &Letter, address: &Address) -> LetterMessage {
        match was_kept(letter.reason) {
            true => kept(letter),
            false => Draft::of(letter, address, &Texts::of(address)).message,
        }
    }

    fn forward(
        &self,
        source: Source,
        (target, queues): (ShardId, &[QueueId]),
        catalog_index: u64,
        letters: &[LetterMessage],
        answered: LetterAnswered,
    ) {
        let all = (0, (letters.len() as u64).saturating_sub(1));
        let Some(edge) = self.edge() else { return answered(all, LetterFate::Refused) };
        if let Some(shard) = target.of_streams() {
            return self.append(&edge, shard, queues, letters, answered);
        }
        let lane = edge.lane(target);
        if lane.is_gone() {
            return answered(all, LetterFate::Taken);
        }
        lane.enqueue_letters(queues, (source, letters), catalog_index, &self.run(answered));
    }
}

/// What all letters to an address have in common.
struct Texts {
    exchange: Bytes,
    /// Instead of their own keys; a key is a short string.
    key: Option<Bytes>,
}

impl Texts {
    fn of(address: &Address) -> Texts {
        let key = address.routing_key.as_ref().map(|key| Bytes::copy_from_slice(&key.as_bytes()[..key.len().min(NAME_BYTES)]));
        Texts { exchange: Bytes::copy_from_slice(address.exchange.as_bytes()), key }
    }
}

impl Office {
    /// Letters for streams: at least once.
    fn append(&self, edge: &Edge, shard: ShardId, streams: &[QueueId], letters: &[LetterMessage], answered: LetterAnswered) {
        let targets: Vec<_> = {
            let catalog = self.catalog.read();
            streams.iter().filter_map(|id| stream_target(&catalog, catalog.queue_by_id(*id)?)).collect()
        };
        if targets.is_empty() {
            return answered((0, (letters.len() as u64).saturating_sub(1)), LetterFate::Taken);
        }
        let run = self.run(answered);
        let mut scratch = BytesMut::new();
        for (n, LetterMessage { exchange, key, properties, body }) in (0..).zip(letters) {
            let shared = (targets.len() > 1).then(|| Shared::new(targets.len() as u32));
            let run = Run { shared, first: 0, ..run.one(n) };
            let record = Record::encode(&mut scratch, &Message { exchange, key, properties, body, source: None });
            for target in &targets {
                edge.lane(shard).append_record(target, record.entry(), &run);
            }
        }
    }
}

/// A letter written anew.
struct Draft<'a> {
    of: &'a Letter,
    before: StoredView<'a>,
    message: LetterMessage,
    /// It is routed by these too.
    copies: Vec<Vec<u8>>,
    headers: Headers<'a>,
}

impl<'a> Draft<'a> {
    /// What can not be read as a message is empty.
    fn of(letter: &'a Letter, address: &Address, texts: &Texts) -> Draft<'a> {
        let empty = StoredView { exchange: b"", key: b"", properties: &[0, 0], body_at: letter.message.len() };
        let before = StoredView::parse(&letter.message).unwrap_or(empty);
        let mut headers = Headers::of(before.properties);
        let (exchange, key) = (before.exchange, before.key);
        let death = Death { queue: &address.queue, reason: letter.reason, time_ms: letter.time_ms, exchange, key };
        let (key, copies) = match &texts.key {
            Some(own) => {
                headers.record(&death);
                headers.remove("CC");
                headers.remove(BLIND_COPIES);
                (own.clone(), Vec::new())
            }
            None => {
                let mut copies = headers.keys("CC");
                copies.extend(headers.keys(BLIND_COPIES));
                headers.record(&death);
                (letter.message.slice_ref(key), copies)
            }
        };
        let (exchange, properties) = (texts.exchange.clone(), Bytes::from(headers.write(false)));
        let message = LetterMessage { exchange, key, properties, body: letter.message.slice(before.body_at..) };
        Draft { of: letter, before, message, copies, headers }
    }

    /// The same for another letter, if nothing but its body differs. False: it does.
    fn again(&mut self, letter: &Letter) -> bool {
        let said = |view: &StoredView<'a>| (view.exchange, view.key, view.properties);
        let same = (self.of.reason, self.of.time_ms) == (letter.reason, letter.time_ms);
        let Some(view) = StoredView::parse(&letter.message) else { return false };
        let same = same && (view.exchange, view.key, view.properties) == said(&self.before);
        if same {
            self.message.body = letter.message.slice(view.body_at..);
        }
        same
    }
}

/// Whether such letters come from an exchange that keeps messages: it delayed, deduplicated or remembered them.
fn was_kept(reason: SettleReason) -> bool {
    match reason {
        SettleReason::Due | SettleReason::Replay | SettleReason::First => true,
        SettleReason::Ack
        | SettleReason::Reject
        | SettleReason::Purge
        | SettleReason::Expired
        | SettleReason::MaxLength
        | SettleReason::DeliveryLimit => false,
    }
}

/// Those side by side with the same targets are one run. The queue they left is not asked: it may be gone.
fn route(catalog: &Catalog, letters: &[Letter], address: &Address, near: &dyn Fn(ShardId) -> bool) -> Vec<RoutedRun> {
    let mut runs: Vec<RoutedRun> = Vec::new();
    let mut clerk = Clerk { catalog, address, texts: Texts::of(address), near, draft: None, found: Vec::new() };
    for letter in letters {
        let message = match was_kept(letter.reason) {
            true => clerk.route_kept(letter),
            false => clerk.route_dead(letter),
        };
        match runs.last_mut() {
            Some(run) if are(&run.targets, &clerk.found) => run.messages.push(message),
            _ => runs.push(RoutedRun { catalog_index: catalog.index(), messages: vec![message], targets: by_shard(&clerk.found) }),
        }
    }
    runs
}

/// Routes letters with one address, one after the other.
struct Clerk<'a> {
    catalog: &'a Catalog,
    address: &'a Address,
    texts: Texts,
    near: &'a dyn Fn(ShardId) -> bool,
    /// The last letter written: the next one is mostly like it.
    draft: Option<Draft<'a>>,
    /// Where the last one goes, by shard.
    found: Vec<(QueueId, ShardId)>,
}

impl<'a> Clerk<'a> {
    fn route_dead(&mut self, letter: &'a Letter) -> LetterMessage {
        let message = self.find_dead(letter);
        self.sort();
        message
    }

    fn find_dead(&mut self, letter: &'a Letter) -> LetterMessage {
        if !self.draft.as_mut().is_some_and(|draft| draft.again(letter)) {
            self.draft = None;
        }
        let Draft { message, copies, headers, .. } = self.draft.get_or_insert_with(|| Draft::of(letter, self.address, &self.texts));
        let subject = MessageSubject::new(&message.properties);
        let keys: SmallVec<[&[u8]; 4]> = std::iter::once(&message.key[..]).chain(copies.iter().map(Vec::as_slice)).collect();
        // A missing exchange takes nothing; an internal one takes letters, it only refuses clients.
        let Address { vhost, exchange, .. } = self.address;
        let envelope = Envelope { vhost, exchange, keys: &keys, subject: &subject, near: self.near };
        self.found.clear();
        self.catalog.route_any(&envelope, &mut self.found);
        if letter.reason != SettleReason::Reject {
            let queue = |id| self.catalog.queue_by_id(id);
            self.found.retain(|(id, _)| !queue(*id).is_some_and(|q| headers.is_cycle(&q.spec.name.name)));
        }
        message.clone()
    }

    /// A message that an exchange kept: its delay is over, it came for the first time, or a new binding gets it.
    fn route_kept(&mut self, letter: &Letter) -> LetterMessage {
        let message = kept(letter);
        let mut keys = vec![message.key.to_vec()];
        let headers = Headers::of(&message.properties);
        keys.extend(headers.keys("CC"));
        keys.extend(headers.keys(BLIND_COPIES));
        let subject = MessageSubject::new(&message.properties);
        let slices: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        let Address { vhost, exchange, .. } = self.address;
        let envelope = Envelope { vhost, exchange, keys: &slices, subject: &subject, near: self.near };
        self.found.clear();
        match letter.reason == SettleReason::Replay {
            true => self.catalog.route_replay(letter.time_ms, &envelope, &mut self.found),
            false => self.catalog.route_released(&envelope, &mut self.found),
        }
        self.sort();
        message
    }

    /// Streams take letters apart from the queues of their shard.
    fn sort(&mut self) {
        let streams = self.found.iter_mut().filter(|(queue, _)| self.catalog.is_stream(*queue));
        streams.for_each(|(_, shard)| *shard = ShardId::streams_of(*shard));
        self.found.sort_unstable_by_key(|(queue, shard)| (*shard, *queue));
        self.found.dedup();
    }
}

/// It goes as it was published, but for its delay.
fn kept(letter: &Letter) -> LetterMessage {
    let empty = || StoredMessage { exchange: Bytes::new(), key: Bytes::new(), properties: Bytes::from_static(&[0, 0]), body: Bytes::new() };
    let StoredMessage { exchange, key, mut properties, body } = StoredMessage::parse(letter.message.clone()).unwrap_or_else(empty);
    if letter.reason == SettleReason::Due {
        let mut headers = Headers::of(&properties);
        headers.end_delay();
        properties = Bytes::from(headers.write(true));
    }
    LetterMessage { exchange, key, properties, body }
}

/// Whether these targets are just those found.
fn are(targets: &Targets, found: &[(QueueId, ShardId)]) -> bool {
    targets.iter().flat_map(|(shard, queues)| queues.iter().map(|queue| (*queue, *shard))).eq(found.iter().copied())
}

fn by_shard(found: &[(QueueId, ShardId)]) -> Targets {
    found.chunk_by(|a, b| a.1 == b.1).map(|part| (part[0].1, part.iter().map(|t| t.0).collect())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::catalog::{
        BindingSpec, CatalogCommand, CatalogReply, ExchangeKind, ExchangeSpec, Name, QueueSpec, Table, Target, Value,
    };
    use crate::model::entry::Ops;
    use crate::model::properties::{EXPIRATION, HEADERS, field};
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
            self.bound(exchange, false, bindings);
        }

        fn bound(&mut self, exchange: &str, internal: bool, bindings: &[(&str, &str)]) {
            let (kind, arguments) = (ExchangeKind::Direct, Table::new());
            self.declare(ExchangeSpec { name: name(exchange), kind, durable: true, auto_delete: false, internal, arguments }, bindings);
        }

        fn exchange(&mut self, exchange: &str, kind: ExchangeKind, arguments: Table, bindings: &[(&str, &str)]) {
            let spec = ExchangeSpec { name: name(exchange), kind, durable: true, auto_delete: false, internal: false, arguments };
            self.declare(spec, bindings);
        }

        /// The queue behind an exchange.
        fn store(&self) -> QueueId {
            let all = self.0.shards().flat_map(|shard| self.0.queues_of(shard).collect::<Vec<_>>());
            all.into_iter().find(|id| self.0.queue_by_id(*id).is_some_and(|r| r.backs.is_some())).expect("one keeps messages")
        }

        fn declare(&mut self, spec: ExchangeSpec, bindings: &[(&str, &str)]) {
            let exchange = spec.name.name.clone();
            self.apply(CatalogCommand::DeclareExchange(spec));
            for (key, queue) in bindings {
                let binding = BindingSpec {
                    vhost: "/".into(),
                    source: exchange.clone(),
                    target: Target::Queue,
                    destination: (*queue).into(),
                    key: (*key).into(),
                    arguments: Table::new(),
                };
                self.apply(CatalogCommand::Bind(binding));
            }
        }

        /// What letters of a queue go by.
        fn address(&self, queue: QueueId) -> Address {
            self.0.queue_by_id(queue).and_then(|record| self.0.settings(record).address()).expect("its messages may leave it")
        }

        fn route(&self, queue: QueueId, reason: SettleReason, message: Bytes) -> RoutedRun {
            self.route_one(&self.address(queue), &Letter { reason, time_ms: 5_000, message })
        }

        fn route_one(&self, address: &Address, letter: &Letter) -> RoutedRun {
            route(&self.0, std::slice::from_ref(letter), address, &|_| false).remove(0)
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
        assert_eq!(
            (&routed.messages[0].exchange[..], &routed.messages[0].key[..], &routed.messages[0].body[..]),
            (&b"dlx"[..], &b"k"[..], &b"body"[..])
        );
        assert_eq!(routed.targets, [(ShardId(2), vec![one])]);
        assert_eq!(field(&routed.messages[0].properties, EXPIRATION), None, "it does not expire again");
        let routed = scene.route(keyed, SettleReason::Reject, stored(b"k", &[0, 0]));
        assert_eq!(&routed.messages[0].key[..], b"other");
        assert_eq!(routed.targets, [(ShardId(2), vec![one]), (ShardId(3), vec![two])]);
        assert_eq!(scene.route(plain, SettleReason::Reject, stored(b"nobody", &[0, 0])).targets, []);
    }

    #[test]
    fn letters_side_by_side_with_the_same_targets_are_one_run() {
        let mut scene = Scene::new();
        let queue = scene.queue("q", 1, &[("x-dead-letter-exchange", "dlx")]);
        let (one, two) = (scene.queue("one", 2, &[]), scene.queue("two", 3, &[]));
        scene.bound_exchange("dlx", &[("a", "one"), ("b", "one"), ("c", "two")]);
        let letter = |key: &[u8]| Letter { reason: SettleReason::Reject, time_ms: 5_000, message: stored(key, &[0, 0]) };
        let letters: Vec<Letter> = [b"a", b"b", b"c", b"x", b"y", b"a"].iter().map(|key| letter(*key)).collect();
        let runs = route(&scene.0, &letters, &scene.address(queue), &|_| false);
        let keys = |run: &RoutedRun| run.messages.iter().map(|m| m.key[0] as char).collect::<String>();
        let found: Vec<(String, Targets)> = runs.iter().map(|run| (keys(run), run.targets.clone())).collect();
        let to = |shard, queue| vec![(ShardId(shard), vec![queue])];
        let expected = [("ab", to(2, one)), ("c", to(3, two)), ("xy", Targets::new()), ("a", to(2, one))];
        assert_eq!(found, expected.map(|(keys, targets)| (keys.to_owned(), targets)));
    }

    #[test]
    fn letters_side_by_side_are_written_as_each_would_be_alone() {
        let mut scene = Scene::new();
        let queue = scene.queue("q", 1, &[("x-dead-letter-exchange", "dlx")]);
        let one = scene.queue("one", 2, &[]);
        scene.bound_exchange("dlx", &[("k", "one"), ("l", "one")]);
        let expiring = [&EXPIRATION.to_be_bytes()[..], b"\x0210"].concat();
        let letter = |key: &[u8], properties: &[u8], body: &[u8], time_ms| {
            let mut ops = Ops::default();
            ops.enqueue(&[QueueId(1)], b"x", key, properties, body);
            let bytes = ops.take();
            let message = bytes.slice(bytes.len() - (1 + 1 + 1 + key.len() + 4 + properties.len() + body.len())..);
            Letter { reason: SettleReason::Expired, time_ms, message }
        };
        let plain = |body: &[u8]| letter(b"k", &[0, 0], body, 5_000);
        let others = [letter(b"k", &expiring, b"3", 5_000), letter(b"l", &expiring, b"4", 5_000), letter(b"l", &expiring, b"5", 9_000)];
        let letters: Vec<Letter> = [plain(b"1"), plain(b"22")].into_iter().chain(others).chain([plain(b"6")]).collect();
        let address = scene.address(queue);
        let runs = route(&scene.0, &letters, &address, &|_| false);
        assert_eq!(runs.iter().map(|run| &run.targets).collect::<Vec<_>>(), [&vec![(ShardId(2), vec![one])]]);
        let alone: Vec<LetterMessage> = letters.iter().map(|letter| scene.route_one(&address, letter).messages.remove(0)).collect();
        assert_eq!(runs[0].messages, alone);
        let different: std::collections::BTreeSet<_> = alone.iter().map(|m| (m.key.clone(), m.properties.clone())).collect();
        assert_eq!(different.len(), 4, "of two alike, one that expires, one by another key, one at another time");
        assert_eq!(alone.iter().map(|m| &m.body[..]).collect::<Vec<_>>(), [&b"1"[..], b"22", b"3", b"4", b"5", b"6"]);
    }

    #[test]
    fn a_message_whose_delay_is_over_goes_where_its_exchange_routes_it_as_it_came_but_for_the_delay() {
        let mut scene = Scene::new();
        let one = scene.queue("one", 2, &[]);
        let arguments = Table::from([("x-delayed-type".to_owned(), Value::Text(b"topic".to_vec()))]);
        scene.exchange("d", ExchangeKind::Delayed, arguments, &[("a.*", "one")]);
        let entry = b"\x07x-delayI\0\0\0\x05";
        let properties = [&(HEADERS | EXPIRATION).to_be_bytes()[..], &[0, 0, 0, entry.len() as u8], &entry[..], b"\x0210"].concat();
        let letter = |key| Letter { reason: SettleReason::Due, time_ms: 9, message: stored(key, &properties) };
        let address = scene.address(scene.store());
        let routed = scene.route_one(&address, &letter(b"a.b"));
        assert_eq!(routed.targets, [(ShardId(2), vec![one])]);
        let LetterMessage { exchange, key, properties: written, body } = &routed.messages[0];
        assert_eq!((&exchange[..], &key[..], &body[..]), (&b"x"[..], &b"a.b"[..], &b"body"[..]));
        assert_eq!(field(written, HEADERS), Some(&b"\x07x-delayI\xff\xff\xff\xfb"[..]));
        assert_eq!(field(written, EXPIRATION), Some(&b"10"[..]), "its time to live begins now");
        let office = Office::new(Arc::new(RwLock::new(Catalog::new())));
        assert_eq!(office.write(&letter(b"a.b"), &address), routed.messages[0], "whoever sends it again sends the same");
        assert_eq!(scene.route_one(&address, &letter(b"nobody")).targets, []);
    }

    #[test]
    fn what_is_remembered_goes_to_the_new_binding_alone_and_unchanged() {
        let mut scene = Scene::new();
        let (one, _two) = (scene.queue("one", 2, &[]), scene.queue("two", 3, &[]));
        scene.exchange("h", ExchangeKind::RecentHistory, Table::new(), &[("", "two"), ("", "one")]);
        let (reason, message) = (SettleReason::Replay, stored(b"k", &[0, 0]));
        let (address, letter) = (scene.address(scene.store()), Letter { reason, time_ms: scene.0.index(), message });
        let routed = scene.route_one(&address, &letter);
        assert_eq!((routed.targets, &routed.messages[0].properties[..]), (vec![(ShardId(2), vec![one])], &[0, 0][..]));
        let gone = Letter { time_ms: 1, ..letter };
        assert_eq!(scene.route_one(&address, &gone).targets, []);
    }

    #[test]
    fn what_came_for_the_first_time_is_not_kept_again() {
        let mut scene = Scene::new();
        let one = scene.queue("one", 1, &[]);
        scene.exchange("u", ExchangeKind::Deduplication, Table::from([("x-cache-size".to_owned(), Value::Int(5))]), &[("", "one")]);
        let entry = b"\x16x-deduplication-headerI\0\0\0\x05";
        let properties = [&HEADERS.to_be_bytes()[..], &[0, 0, 0, entry.len() as u8], &entry[..]].concat();
        let routed = scene.route(scene.store(), SettleReason::First, stored(b"k", &properties));
        assert_eq!((routed.targets, &routed.messages[0].properties[..]), (vec![(ShardId(1), vec![one])], &properties[..]));
    }

    #[test]
    fn a_letter_that_would_circle_by_itself_is_dropped_and_a_rejected_one_is_not() {
        let mut scene = Scene::new();
        let queue = scene.queue("q", 1, &[("x-dead-letter-exchange", "")]);
        assert_eq!(scene.route(queue, SettleReason::Expired, stored(b"q", &[0, 0])).targets, []);
        assert_eq!(scene.route(queue, SettleReason::Reject, stored(b"q", &[0, 0])).targets, [(ShardId(1), vec![queue])]);
    }

    #[test]
    fn a_letter_goes_by_the_keys_of_blind_copies_too() {
        let mut scene = Scene::new();
        let queue = scene.queue("q", 1, &[("x-dead-letter-exchange", "dlx")]);
        let (own, blind) = (scene.queue("own", 2, &[]), scene.queue("blind", 2, &[]));
        scene.bound_exchange("dlx", &[("k", "own"), ("b", "blind")]);
        let table = b"\x03\0CCA\0\0\0\x06S\0\0\0\x01b";
        let properties = [&[0x20, 0][..], &(table.len() as u32).to_be_bytes(), table].concat();
        let routed = scene.route(queue, SettleReason::Reject, stored(b"k", &properties));
        assert_eq!(routed.targets, [(ShardId(2), vec![own, blind])]);
        assert!(crate::model::properties::has_hidden(&routed.messages[0].properties), "at its next death too");
    }

    #[test]
    fn a_stream_takes_letters_apart_from_the_queues_of_its_shard() {
        let mut scene = Scene::new();
        let queue = scene.queue("q", 1, &[("x-dead-letter-exchange", "dlx")]);
        let (plain, near) = (scene.queue("plain", 1, &[]), scene.queue("near", 1, &[("x-queue-type", "stream")]));
        let far = scene.queue("far", 2, &[("x-queue-type", "stream")]);
        scene.bound_exchange("dlx", &[("k", "plain"), ("k", "near"), ("k", "far")]);
        let routed = scene.route(queue, SettleReason::Reject, stored(b"k", &[0, 0]));
        let streams_of = |shard| ShardId::streams_of(ShardId(shard));
        assert_eq!(routed.targets, [(ShardId(1), vec![plain]), (streams_of(1), vec![near]), (streams_of(2), vec![far])]);
        assert_eq!(streams_of(2).of_streams(), Some(ShardId(2)));
        assert_eq!((ShardId(2).of_streams(), ShardId::local(NodeId(3)).of_streams(), streams_of(2).owner()), (None, None, None));
    }

    #[test]
    fn an_internal_exchange_takes_letters() {
        let mut scene = Scene::new();
        let queue = scene.queue("q", 1, &[("x-dead-letter-exchange", "inside")]);
        let target = scene.queue("target", 2, &[]);
        scene.bound("inside", true, &[("k", "target")]);
        assert_eq!(scene.route(queue, SettleReason::Reject, stored(b"k", &[0, 0])).targets, [(ShardId(2), vec![target])]);
    }

    #[test]
    fn a_letter_goes_the_same_way_and_is_the_same_whatever_became_of_its_queue() {
        let mut scene = Scene::new();
        let queue = scene.queue("q", 1, &[("x-dead-letter-exchange", "dlx"), ("x-dead-letter-routing-key", "k".repeat(300).as_str())]);
        let target = scene.queue("target", 2, &[]);
        scene.bound_exchange("dlx", &[("k".repeat(NAME_BYTES).as_str(), "target")]);
        let letter = Letter { reason: SettleReason::Expired, time_ms: 5_000, message: stored(b"own", &[0, 0]) };
        let address = scene.address(queue);
        let routed = scene.route_one(&address, &letter);
        assert_eq!(routed.targets, [(ShardId(2), vec![target])]);
        assert_eq!(routed.catalog_index, scene.0.index());
        assert_eq!(routed.messages[0].key.len(), NAME_BYTES, "a key is a short string");
        scene.apply(CatalogCommand::DeleteQueue { id: queue });
        let again = scene.route_one(&address, &letter);
        assert_eq!((&again.messages, &again.targets), (&routed.messages, &routed.targets));
        let office = Office::new(Arc::new(RwLock::new(Catalog::new())));
        assert_eq!(office.write(&letter, &address), routed.messages[0]);
    }

    #[test]
    fn without_an_exchange_nothing_takes_a_letter() {
        let mut scene = Scene::new();
        let queue = scene.queue("q", 1, &[("x-dead-letter-exchange", "missing")]);
        assert_eq!(scene.route(queue, SettleReason::Reject, stored(b"q", &[0, 0])).targets, []);
    }
}
