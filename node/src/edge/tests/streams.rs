//! Streams: what clients append becomes chunks, verdicts confirm publishing ids, readers get chunks as they lie in the log.

mod amqp;

use super::*;
use crate::edge::streams::{Bells, ReadError, Reader, Replica, StreamSource};
use crate::machine::DataMachine;
use crate::model::Offset;
use crate::model::catalog::Value;
use crate::model::entry::{AppendOp, EntryBuilder};
use crate::model::ports::Bodies;
use crate::model::settings::QueueSettings;
use crate::model::stored::{Lent, Place, StoredEntry};
use crate::model::stream::{Append, OffsetSpec, Published, StreamChunk, StreamSettings, StreamState, StreamTarget};
use futures::FutureExt;
use std::collections::BTreeSet;

const SHARD: u16 = 2;

impl Scene {
    fn stream(&self, stream: &str) -> QueueId {
        let arguments = [("x-queue-type".to_owned(), Value::Text(b"stream".to_vec()))].into();
        let spec = QueueSpec { name: name(stream), durable: true, auto_delete: false, exclusive_owner: None, arguments };
        self.declare(spec, ShardId(SHARD))
    }
}

fn published(entries: &[(u64, &str)]) -> Published {
    let mut bytes = Vec::new();
    for (id, body) in entries {
        bytes.extend(id.to_be_bytes());
        bytes.extend((body.len() as u32).to_be_bytes());
        bytes.extend(body.as_bytes());
    }
    Published { bytes: bytes.into(), is_filtered: false }
}

impl Client {
    fn append(&mut self, to: &Arc<StreamTarget>, entries: &[(u64, &str)]) {
        self.submit(Step::Append(Append { channel: 1, to: to.clone(), published: published(entries) }));
    }

    async fn nacked(&mut self) -> Vec<(u64, u64)> {
        match self.next().await {
            Event::Nacked { channel: 1, tickets } => tickets,
            other => panic!("not a nack: {other:?}"),
        }
    }
}

fn chunks(batch: &Batch) -> Vec<AppendOp> {
    assert!(crate::model::entry::is_batch(&batch.ops), "as a leader checks it");
    let chunk = |op| match op {
        Op::Append(op) => Some(op),
        _ => None,
    };
    ops(batch).into_iter().filter_map(chunk).collect()
}

fn bodies(chunk: &AppendOp) -> String {
    let (mut data, mut all) = (&chunk.data[..], String::new());
    while let Some((len, _)) = crate::model::stream::entry_size(data) {
        all.push_str(std::str::from_utf8(&data[4..len]).unwrap());
        data = &data[len..];
    }
    all
}

#[tokio::test]
async fn nameless_publishers_share_a_chunk_and_each_is_confirmed_its_own_ids() {
    let mut scene = Scene::new(default_config());
    let stream = scene.stream("s");
    let (mut one, mut two) = (scene.client(), scene.client());
    let (to, named) = (one.connection.stream_publisher("s", "").unwrap(), one.connection.stream_publisher("s", "me").unwrap());
    one.append(&to, &[(0, "a"), (1, "b"), (7, "c")]);
    two.append(&to, &[(1, "d")]);
    one.append(&named, &[(4, "x"), (5, "y")]);
    two.append(&named, &[(5, "z")]);
    one.append(&to, &[(2, "e")]);
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    let batch = leader.batch().await;
    let found: Vec<_> = chunks(&batch).iter().map(|c| (c.stream, c.publisher.is_some(), c.last_id(), bodies(c))).collect();
    let chunk = |named, last, bodies: &str| (stream, named, last, bodies.to_owned());
    assert_eq!(found, [chunk(false, None, "abcde"), chunk(true, Some(5), "xy"), chunk(true, Some(5), "z")], "ids ascend in a chunk");
    leader.verdict(1, &[]).await;
    let ranges = |events: Vec<Event>| {
        let tickets = events.into_iter().map(|event| match event {
            Event::Confirmed { tickets, .. } => tickets,
            other => panic!("{other:?}"),
        });
        tickets.flatten().flat_map(|(first, last)| first..=last).collect::<BTreeSet<_>>()
    };
    let first = vec![one.next().await];
    let all: BTreeSet<u64> = ranges(first).into_iter().chain(ranges(one.now())).collect();
    assert_eq!(all, [0, 1, 2, 4, 5, 7].into());
    let first = vec![two.next().await];
    assert_eq!(ranges(first).into_iter().chain(ranges(two.now())).collect::<BTreeSet<_>>(), [1, 5].into());
}

#[tokio::test]
async fn a_chunk_whose_stream_is_gone_is_nacked_and_its_neighbours_are_confirmed() {
    let mut scene = Scene::new(default_config());
    scene.stream("s");
    scene.stream("t");
    scene.queue("q", SHARD);
    let mut client = scene.client();
    let to = ["s", "t"].map(|name| client.connection.stream_publisher(name, "").unwrap());
    client.publish("", "q", 1);
    client.append(&to[0], &[(10, "gone"), (11, "gone")]);
    client.append(&to[1], &[(20, "there")]);
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    assert_eq!(chunks(&leader.batch().await).len(), 2);
    leader.verdict(1, &[1]).await;
    assert_eq!(client.confirmed().await, [(1, 1)]);
    assert_eq!(client.nacked().await, [(10, 11)]);
    assert_eq!(client.confirmed().await, [(20, 20)]);
}

#[tokio::test]
async fn a_chunk_without_a_verdict_goes_to_the_next_leader_as_it_was() {
    let mut scene = Scene::new(default_config());
    scene.stream("s");
    let mut client = scene.client();
    let to = client.connection.stream_publisher("s", "me").unwrap();
    client.append(&to, &[(1, "a"), (2, "b")]);
    let (mut first, _) = scene.leader(leader(1, 2), 9, 0).await;
    let batch = first.batch().await;
    client.append(&to, &[(3, "c")]);
    let next = first.batch().await;
    drop(first);
    scene.world.set_leader(ShardId(SHARD), Some(leader(2, 3)));
    let (mut second, _) = scene.leader(leader(2, 3), 9, 1).await;
    // Also what the shard has applied: its verdict is wanted.
    for (seq, before) in [(1, batch), (2, next)] {
        let again = second.batch().await;
        assert_eq!((again.seq, &again.ops), (BatchSeq(seq), &before.ops));
    }
    second.verdict(1, &[]).await;
    assert_eq!(client.confirmed().await, [(1, 2)]);
    second.verdict(2, &[]).await;
    assert_eq!(client.confirmed().await, [(3, 3)]);
}

#[tokio::test]
async fn what_nobody_answers_is_nacked_and_comes_to_a_later_leader_before_what_its_publisher_said_later() {
    let config = EdgeConfig { no_quorum_timeout: Duration::from_millis(300), ..default_config() };
    let mut scene = Scene::new(config);
    scene.world.refuse_paths.store(true, Ordering::SeqCst);
    scene.stream("s");
    let mut client = scene.client();
    let to = client.connection.stream_publisher("s", "me").unwrap();
    client.append(&to, &[(1, "a"), (2, "b")]);
    let blocked = |event: &Event| matches!(event, Event::Blocked(_));
    let mut event = client.next().await;
    while blocked(&event) {
        event = client.next().await;
    }
    assert_eq!(event, Event::Nacked { channel: 1, tickets: vec![(1, 2)] });
    scene.world.refuse_paths.store(false, Ordering::SeqCst);
    client.append(&to, &[(3, "c")]);
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    // Else its ids would be known to be there, by the third.
    assert_eq!(chunks(&leader.batch().await).iter().map(bodies).collect::<Vec<_>>(), ["ab"]);
    assert_eq!(chunks(&leader.batch().await).iter().map(bodies).collect::<Vec<_>>(), ["c"]);
    leader.verdict(1, &[]).await;
    leader.verdict(2, &[]).await;
    let mut event = client.next().await;
    while matches!(event, Event::Blocked(_) | Event::Unblocked) {
        event = client.next().await;
    }
    assert_eq!(event, Event::Confirmed { channel: 1, tickets: vec![(3, 3)] }, "the others were answered");
}

#[tokio::test]
async fn a_leader_that_greets_again_and_again_and_answers_nothing_does_not_put_off_the_nack() {
    let config = EdgeConfig { no_quorum_timeout: Duration::from_millis(300), ..default_config() };
    let mut scene = Scene::new(config);
    scene.stream("s");
    let mut client = scene.client();
    let to = client.connection.stream_publisher("s", "me").unwrap();
    client.append(&to, &[(1, "a"), (2, "b")]);
    let greet = async {
        loop {
            let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
            leader.batch().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let nacked = async {
        loop {
            match client.next().await {
                Event::Blocked(_) => {}
                event => return event,
            }
        }
    };
    tokio::select! {
        event = nacked => assert_eq!(event, Event::Nacked { channel: 1, tickets: vec![(1, 2)] }),
        () = greet => {}
    }
}

#[tokio::test]
async fn a_question_comes_behind_what_the_connection_appended_and_stored() {
    let mut scene = Scene::new(default_config());
    let stream = scene.stream("s");
    let mut client = scene.client();
    let to = client.connection.stream_publisher("s", "me").unwrap();
    client.append(&to, &[(1, "a")]);
    client.connection.store_offset(&to, "reader", Offset(5));
    let asked = tokio::spawn(client.connection.stream_state(&to, Some("me"), Some("reader")));
    let (mut leader, _) = scene.leader(leader(1, 2), 9, 0).await;
    let batch = leader.batch().await;
    assert!(ops(&batch).contains(&Op::Store { stream, reader: Bytes::from_static(b"reader"), offset: Offset(5) }));
    leader.quiet().await;
    leader.verdict(1, &[]).await;
    let ToLeader::Stream { request, stream: of, publisher, reader } = leader.next().await else { panic!("no question") };
    assert_eq!((of, publisher.as_deref(), reader.as_deref()), (stream, Some("me"), Some("reader")));
    let state = StreamState { publishing_id: Some(1), stored: Some(Offset(5)), ..StreamState::default() };
    leader.say(ToEdge::Stream { request, result: Ok(state.clone()) }).await;
    assert_eq!(asked.await.unwrap(), Ok(state));
}

#[tokio::test]
async fn publishers_end_with_another_leader_where_that_is_wanted() {
    for wanted in [false, true] {
        let scene = Scene::new(EdgeConfig { tells_leaders: wanted, ..default_config() });
        scene.stream("s");
        let client = scene.client();
        let info = client.connection.stream("s", None).unwrap();
        assert!(info.leader.is_some());
        let publisher = client.connection.stream_publisher("s", "").unwrap();
        let told = tokio::spawn(scene.edge.clone().tell_leaders(publisher.shard));
        let mut news = client.connection.catalog();
        tokio::task::yield_now().await;
        scene.world.set_leader(publisher.shard, None);
        timeout(PATIENCE, news.changed()).await.expect("in time").expect("the edge lives");
        assert!(client.connection.has_stream(&publisher), "nobody else leads it");
        scene.world.set_leader(publisher.shard, Some(leader(2, 2)));
        timeout(PATIENCE, news.changed()).await.expect("in time").expect("the edge lives");
        assert!(client.connection.has_stream(&publisher), "the same node leads it again");
        scene.world.set_leader(publisher.shard, Some(leader(3, 1)));
        timeout(PATIENCE, news.changed()).await.expect("in time").expect("the edge lives");
        assert_eq!(client.connection.has_stream(&publisher), !wanted);
        assert!(client.connection.has_stream(&info.target), "readers go on");
        told.abort();
    }
}

#[tokio::test]
async fn streams_are_made_found_and_deleted_by_who_may() {
    let scene = Scene::new(default_config());
    let client = scene.client();
    let arguments: Table =
        [("x-max-length-bytes".to_owned(), Value::Int(1000)), ("x-max-age".to_owned(), Value::Text(b"7D".to_vec()))].into();
    assert_eq!(client.connection.create_stream("s", arguments.clone()).await, Ok(true));
    assert_eq!(client.connection.create_stream("s", arguments).await, Ok(false));
    assert!(matches!(client.connection.create_stream("amq.s", Table::new()).await, Err(Refusal::Access(_))));
    let info = client.connection.stream("s", Some(crate::edge::Right::Read)).unwrap();
    let settings = StreamSettings { max_length_bytes: Some(1000), max_age_ms: Some(7 * 24 * 3600 * 1000), ..StreamSettings::default() };
    assert_eq!(info.settings, settings);
    scene.queue("q", SHARD);
    assert!(matches!(client.connection.stream("q", None), Err(Refusal::NotFound { .. })), "a queue is no stream");
    assert!(matches!(client.connection.stream_publisher("s", &"x".repeat(256)), Err(Refusal::Precondition(_))));
    assert_eq!(client.connection.delete_stream("s").await, Ok(()));
    assert!(matches!(client.connection.delete_stream("s").await, Err(Refusal::NotFound { .. })));
}

/// A shard by hand: its machine and its log, of which nothing is in memory unless `warm`.
struct Held {
    machine: Arc<Mutex<DataMachine>>,
    log: Arc<Log>,
    bells: Arc<Bells>,
}

#[derive(Default)]
struct Log {
    entries: Mutex<BTreeMap<u64, EntryBytes>>,
    warm: AtomicBool,
    /// Each entry that was read in a run, in a file.
    files: Mutex<Vec<Arc<Lent>>>,
    reads: AtomicU64,
}

struct Cold(Arc<Log>);

impl Bodies for Cold {
    fn cached(&self, index: u64) -> Option<EntryBytes> {
        self.0.entries.lock().get(&index).filter(|_| self.0.warm.load(Ordering::SeqCst)).cloned()
    }

    fn read(&self, index: u64) -> BoxFuture<'static, io::Result<EntryBytes>> {
        self.0.reads.fetch_add(1, Ordering::SeqCst);
        let found = self.0.entries.lock().get(&index).cloned().ok_or_else(|| io::ErrorKind::NotFound.into());
        async move {
            tokio::task::yield_now().await;
            found
        }
        .boxed()
    }

    /// Three at a time.
    fn read_run(&self, indices: Vec<u64>) -> BoxFuture<'static, io::Result<Vec<StoredEntry>>> {
        let reads: Vec<_> = indices.into_iter().take(3).map(|index| self.read(index)).collect();
        let log = self.0.clone();
        async move { Ok(futures::future::try_join_all(reads).await?.into_iter().map(|bytes| log.store(bytes)).collect()) }.boxed()
    }
}

impl Log {
    /// Behind three other bytes of a file.
    fn store(&self, bytes: EntryBytes) -> StoredEntry {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &[b"...", &bytes.flatten()[..]].concat()).unwrap();
        let file: Arc<Lent> = Arc::new(file);
        let place = Some(Place::new(&file, 3));
        self.files.lock().push(file);
        StoredEntry { bytes, place }
    }
}

impl StreamSource for Held {
    fn replica(&self, shard: ShardId) -> Option<Replica> {
        (shard == ShardId(SHARD)).then(|| Replica { machine: self.machine.clone(), bodies: Arc::new(Cold(self.log.clone())) })
    }

    fn holders(&self, _shard: ShardId) -> Vec<NodeId> {
        vec![ME, NodeId(2)]
    }
}

impl Held {
    fn of(scene: &Scene, stream: QueueId, settings: StreamSettings) -> Arc<Held> {
        let machine = Arc::new(Mutex::new(DataMachine::new(ShardId(SHARD))));
        let held = Arc::new(Held { machine, log: Arc::default(), bells: Arc::default() });
        scene.edge.set_streams(held.clone(), held.bells.clone());
        held.entry(|entry| {
            entry.advance(0, 9, &[stream], &[]);
            entry.settings(9, stream, &QueueSettings { stream: Some(settings), ..QueueSettings::default() });
        });
        held.entry(|entry| entry.hello(ME, Incarnation(1)));
        held
    }

    fn entry(&self, fill: impl FnOnce(&mut EntryBuilder)) {
        let mut machine = self.machine.lock();
        let index = machine.applied().index + 1;
        let mut builder = EntryBuilder::new(index);
        fill(&mut builder);
        let entry = builder.finish();
        let applied = machine.apply(LogId { leader: LeaderId { term: 1, voter: 1 }, index }, &entry).unwrap();
        let mut entries = self.log.entries.lock();
        entries.insert(index, entry);
        applied.freed.iter().for_each(|index| drop(entries.remove(index)));
        drop((machine, entries));
        for effect in applied.effects {
            match effect {
                crate::machine::Effect::Appended { stream } | crate::machine::Effect::Dropped { queue: stream } => self.bells.ring(stream),
                _ => {}
            }
        }
    }

    fn append(&self, stream: QueueId, publisher: Option<&str>, entries: &[(u64, &str)]) {
        let mut chunk = crate::model::entry::ChunkBuilder::new(stream, publisher.map(Into::into), 16);
        let mut all = published(entries);
        while let Some((entry, len)) = all.first() {
            chunk.push(&entry);
            all.advance(len);
        }
        let session = SessionId(2);
        let seq = BatchSeq(self.machine.lock().last_batch(session).unwrap().0 + 1);
        let ops = chunk.finish();
        self.entry(|entry| entry.batch(&Batch { session, seq, floor: BatchSeq(0), catalog_index: 9, ops }));
    }
}

fn text(chunk: &StreamChunk) -> String {
    if let Some(file) = &chunk.file {
        let mut read = vec![0; chunk.data.len()];
        assert_eq!((rustix::io::pread(file, &mut read, file.position()), file.len()), (Ok(read.len()), read.len()));
        assert_eq!(read, chunk.data, "the file holds something else");
    }
    assert_eq!(chunk.crc, crc32fast::hash(&chunk.data));
    assert_eq!(chunk.header()[4..8], chunk.records.to_be_bytes());
    let bodies = chunk.entries().map(|(entry, _)| std::str::from_utf8(&entry[4..]).unwrap());
    format!("{} {}", chunk.first, bodies.collect::<Vec<_>>().join(","))
}

async fn read(reader: &mut Reader) -> String {
    text(&timeout(PATIENCE, reader.next()).await.expect("a chunk in time").expect("a chunk"))
}

#[tokio::test]
async fn a_reader_gets_each_chunk_once_from_disk_or_memory_and_is_woken_by_new_ones() {
    let scene = Scene::new(default_config());
    let stream = scene.stream("s");
    let held = Held::of(&scene, stream, StreamSettings::default());
    let info = scene.edge.find_stream(&name("s")).unwrap();
    assert_eq!((info.target.stream, info.replicas), (stream, vec![ME, NodeId(2)]));
    (0..200).for_each(|n| held.append(stream, Some("p"), &[(n, "a"), (n + 1, &n.to_string())]));
    let mut reader = scene.edge.read_stream(&info.target, OffsetSpec::Offset(Offset(3))).unwrap();
    let first = timeout(PATIENCE, reader.next()).await.expect("a chunk in time").expect("a chunk");
    assert_eq!(text(&first), "3 2", "what was published twice is left out");
    assert!(first.file.is_some(), "it came from disk and can be sent from there");
    for n in 3..200 {
        assert_eq!(read(&mut reader).await, format!("{} {n}", n + 1));
    }
    let reads = held.log.reads.load(Ordering::SeqCst);
    assert!((198..=200).contains(&reads), "each entry is read once, not {reads} times in all");
    assert!(reader.next().now_or_never().is_none(), "that was all");
    held.log.warm.store(true, Ordering::SeqCst);
    let waiting = tokio::spawn(async move { (read(&mut reader).await, reader) });
    tokio::task::yield_now().await;
    held.append(stream, None, &[(0, "new"), (0, "er")]);
    let (found, mut reader) = waiting.await.unwrap();
    assert_eq!((found.as_str(), held.log.reads.load(Ordering::SeqCst)), ("201 new,er", reads));
    let waiting = tokio::spawn(async move { reader.next().await });
    tokio::task::yield_now().await;
    held.entry(|entry| entry.advance(9, 10, &[], &[stream]));
    assert!(matches!(waiting.await.unwrap(), Err(ReadError::Gone)));
    assert!(matches!(scene.edge.read_stream(&info.target, OffsetSpec::First), Err(ReadError::Gone)));
    let elsewhere = StreamTarget { shard: ShardId(1), ..info.target };
    assert!(matches!(scene.edge.read_stream(&elsewhere, OffsetSpec::First), Err(ReadError::NotHere)));
}

#[tokio::test]
async fn a_reader_goes_on_behind_what_retention_takes_from_under_it() {
    let scene = Scene::new(default_config());
    let stream = scene.stream("s");
    let settings = StreamSettings { segment_bytes: 1, max_length_bytes: Some(500), ..StreamSettings::default() };
    let held = Held::of(&scene, stream, settings);
    let target = scene.edge.find_stream(&name("s")).unwrap().target;
    let append = |n: u64| held.append(stream, None, &[(0, &n.to_string())]);
    (0..5).for_each(append);
    let mut reader = scene.edge.read_stream(&target, OffsetSpec::First).unwrap();
    assert_eq!(read(&mut reader).await, "0 0");
    (5..50).for_each(append);
    let first = held.machine.lock().stream(stream).unwrap().first();
    assert!(first > Offset(5), "what the reader has looked up is gone");
    let mut next = read(&mut reader).await;
    while next.starts_with(['1', '2', '3', '4']) && next.len() == 3 {
        // What was on its way from the disk may still come.
        next = read(&mut reader).await;
    }
    assert_eq!(next, format!("{first} {first}"));
}
