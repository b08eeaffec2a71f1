//! Streams of a data shard against a naive model: a list of records and a list of chunks, nothing clever.

use super::reread::reread;
use super::*;
use crate::model::entry::{ChunkBuilder, EntryBuilder, EntryBytes, Op, Ops, OpsReader, SectionReply};
use crate::model::limits::{STREAM_PUBLISHERS, STREAM_READERS};
use crate::model::link::{Batch, RefusedEnqueue};
use crate::model::settings::QueueSettings;
use crate::model::stream::{CHUNK_HEAD, OffsetSpec, PublishedEntry, StreamSettings};
use crate::model::{BatchSeq, Incarnation, LeaderId, LogId, NodeId, Offset, QueueId, SessionId, ShardId};
use proptest::prelude::*;
use std::collections::BTreeMap;

const SHARD: ShardId = ShardId(3);
const S: QueueId = QueueId(8);

fn entry_of(id: u64, records: u16) -> Vec<u8> {
    match records {
        1 => [&10u32.to_be_bytes()[..], format!("{id:010}").as_bytes()].concat(),
        n => [&[0x80], &n.to_be_bytes()[..], &99u32.to_be_bytes(), &10u32.to_be_bytes(), format!("{id:010}").as_bytes()].concat(),
    }
}

/// A chunk of these (publishing id, records), whose ids ascend.
fn chunk(stream: QueueId, publisher: Option<&str>, entries: &[(u64, u16)]) -> Vec<u8> {
    let mut builder = ChunkBuilder::new(stream, publisher.map(Into::into), 16);
    for (id, records) in entries {
        let bytes = entry_of(*id, *records);
        let entry = PublishedEntry { id: *id, filter: None, records: u32::from(*records), entry: &bytes };
        assert!(builder.fits(&entry));
        builder.push(&entry);
    }
    builder.finish().to_vec()
}

/// A machine and its log.
struct Scene {
    machine: DataMachine,
    log: BTreeMap<u64, EntryBytes>,
    live: Vec<u64>,
    index: u64,
    seq: u64,
    disk: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Scene {
    /// One stream with these settings, session 2.
    fn new(settings: StreamSettings) -> Scene {
        let (machine, log) = (DataMachine::new(SHARD), BTreeMap::new());
        let mut scene = Scene { machine, log, live: Vec::new(), index: 0, seq: 0, disk: BTreeMap::new() };
        scene.settings(settings);
        scene.entry(0, |entry| entry.hello(NodeId(1), Incarnation(1)));
        scene
    }

    fn settings(&mut self, settings: StreamSettings) {
        let at = self.machine.catalog_index();
        self.entry(0, |entry| {
            entry.advance(at, at.max(8), if at == 0 { &[S] } else { &[] }, &[]);
            entry.settings(at.max(8), S, &QueueSettings { stream: Some(settings), ..QueueSettings::default() });
        });
    }

    fn entry(&mut self, time_ms: u64, fill: impl FnOnce(&mut EntryBuilder)) -> Applied {
        self.index += 1;
        let mut builder = EntryBuilder::new(time_ms);
        fill(&mut builder);
        let (entry, id) = (builder.finish(), LogId { leader: LeaderId { term: 1, voter: 7 }, index: self.index });
        let applied = self.machine.apply(id, &entry).unwrap();
        self.log.insert(self.index, entry);
        self.live.push(self.index);
        for freed in &applied.freed {
            let at = self.live.iter().position(|index| index == freed).expect("freed once");
            self.live.remove(at);
        }
        assert_eq!(self.live, self.machine.live_entries(), "what is not freed is live");
        applied
    }

    /// A batch; which of its chunks were refused.
    fn batch(&mut self, time_ms: u64, ops: Vec<u8>) -> Vec<(u32, RefusedEnqueue)> {
        self.seq += 1;
        let (seq, catalog_index) = (BatchSeq(self.seq), self.machine.catalog_index());
        let batch = Batch { session: SessionId(2), seq, floor: BatchSeq(0), catalog_index, ops: ops.into() };
        let applied = self.entry(time_ms, |entry| entry.batch(&batch));
        let [SectionReply::Batch { refused, .. }] = &applied.replies[..] else { panic!("{:?}", applied.replies) };
        refused.clone()
    }

    fn append(&mut self, time_ms: u64, publisher: Option<&str>, entries: &[(u64, u16)]) {
        assert_eq!(self.batch(time_ms, chunk(S, publisher, entries)), []);
    }

    fn stream(&self) -> &Stream {
        self.machine.stream(S).unwrap()
    }

    fn chunks(&self) -> Vec<LocatedChunk> {
        let mut found = Vec::new();
        self.stream().locate(Offset(0), usize::MAX, &mut found);
        found
    }

    /// Every record that is there, as its publishing id, with its offset.
    fn records(&self) -> Vec<(u64, u64)> {
        let mut records = Vec::new();
        for located in self.chunks() {
            assert!(self.live.contains(&located.index), "its entry is kept");
            let entry = &self.log[&located.index];
            let Some(Ok(Op::Append(op))) = OpsReader::at(entry, located.position as usize).next() else { panic!("{located:?}") };
            let mut data = &op.data[op.skip(located.skip).bytes..];
            let mut offset = located.first.0;
            assert_eq!(located.bytes as usize, CHUNK_HEAD + data.len());
            while let Some((len, n)) = crate::model::stream::entry_size(data) {
                let id = std::str::from_utf8(&data[len - 10..len]).unwrap().parse().unwrap();
                records.extend((0..u64::from(n)).map(|k| (id, offset + k)));
                (data, offset) = (&data[len..], offset + u64::from(n));
            }
            assert_eq!(offset, located.first.0 + u64::from(located.records));
        }
        records
    }
}

fn ids(scene: &Scene) -> Vec<u64> {
    scene.records().into_iter().map(|(id, _)| id).collect()
}

fn sized(segment_bytes: u64) -> StreamSettings {
    StreamSettings { segment_bytes, ..StreamSettings::default() }
}

#[test]
fn a_publisher_that_repeats_itself_is_stored_once_and_a_nameless_one_as_often_as_it_asks() {
    let mut scene = Scene::new(StreamSettings::default());
    scene.append(5, Some("p"), &[(1, 1), (2, 3), (3, 1)]);
    scene.append(6, Some("p"), &[(1, 1), (2, 3), (3, 1)]);
    scene.append(7, Some("p"), &[(2, 3), (3, 1), (4, 2), (9, 1)]);
    scene.append(8, Some("other"), &[(4, 1)]);
    scene.append(9, None, &[(4, 1)]);
    scene.append(9, None, &[(4, 1)]);
    assert_eq!(ids(&scene), [1, 2, 2, 2, 3, 4, 4, 9, 4, 4, 4]);
    let state = |publisher| scene.stream().state(Some(publisher), None);
    assert_eq!((state("p").publishing_id, state("other").publishing_id, state("nobody").publishing_id), (Some(9), Some(4), None));
    assert_eq!((state("p").first, state("p").next, state("p").last_chunk), (Offset(0), Offset(11), Some(Offset(10))));
}

#[test]
fn a_chunk_for_a_stream_that_is_gone_is_refused_with_its_ordinal_and_frees_its_entry() {
    let mut scene = Scene::new(StreamSettings::default());
    let both = [chunk(QueueId(99), None, &[(1, 1)]), chunk(S, None, &[(2, 1)])].concat();
    assert_eq!(scene.batch(1, both), [(0, RefusedEnqueue::UnknownQueue)]);
    assert_eq!(ids(&scene), [2]);
    let applied = scene.entry(2, |entry| entry.advance(8, 9, &[], &[S]));
    assert!(applied.effects.contains(&Effect::Dropped { queue: S }));
    assert!(scene.live.is_empty() && scene.machine.stream(S).is_none());
    assert_eq!(scene.batch(1, chunk(S, None, &[(2, 1)])), [(0, RefusedEnqueue::UnknownQueue)]);
}

#[test]
fn whole_segments_go_when_there_are_too_many_bytes_but_never_the_last_one() {
    // Each chunk has 48 + 14 bytes and two are a segment.
    let mut scene = Scene::new(StreamSettings { max_length_bytes: Some(200), ..sized(100) });
    (0..4).for_each(|id| scene.append(id, None, &[(id, 1)]));
    assert_eq!(ids(&scene), [0, 1, 2, 3], "two segments, 248 bytes: nothing is looked at before a third one begins");
    scene.append(4, None, &[(4, 1)]);
    assert_eq!(ids(&scene), [2, 3, 4]);
    scene.append(5, None, &[(5, 1)]);
    assert_eq!((ids(&scene), scene.stream().bytes()), (vec![2, 3, 4, 5], 248));
    scene.append(6, None, &[(6, 1)]);
    assert_eq!((ids(&scene), scene.stream().first()), (vec![4, 5, 6], Offset(4)));
    scene.settings(StreamSettings { max_length_bytes: Some(1), ..sized(100) });
    assert_eq!(ids(&scene), [6], "a policy counts at once");
    assert_eq!(scene.stream().find(OffsetSpec::Offset(Offset(0))), Offset(6), "who wants what is gone begins with what is there");
}

#[test]
fn segments_go_when_their_last_chunk_is_too_old() {
    let mut scene = Scene::new(StreamSettings { max_age_ms: Some(50), ..sized(100) });
    [10, 20, 30, 60].iter().for_each(|ms| scene.append(*ms, None, &[(*ms, 1)]));
    assert_eq!(ids(&scene), [10, 20, 30, 60]);
    scene.append(70, None, &[(70, 1)]);
    assert_eq!(ids(&scene), [10, 20, 30, 60, 70], "20 + 50 is not over yet");
    scene.append(71, None, &[(71, 1)]);
    assert_eq!(ids(&scene), [30, 60, 70, 71]);
    scene.entry(121, |_| ());
    assert_eq!(ids(&scene), [70, 71], "time passes for a stream that nobody appends to, too");
    scene.append(1000, None, &[(1000, 1)]);
    assert_eq!(ids(&scene), [1000]);
}

#[test]
fn readers_begin_where_they_want_to() {
    let mut scene = Scene::new(sized(100));
    [(10, 2), (20, 3), (20, 1), (40, 1)].iter().for_each(|(ms, records)| scene.append(*ms, None, &[(*ms, *records)]));
    let find = |spec| scene.stream().find(spec).0;
    assert_eq!((find(OffsetSpec::First), find(OffsetSpec::Last), find(OffsetSpec::Next)), (0, 6, 7));
    assert_eq!([0, 1, 2, 4, 5, 6, 7, 99].map(|n| find(OffsetSpec::Offset(Offset(n)))), [0, 0, 2, 2, 5, 6, 7, 7]);
    assert_eq!([0, 10, 11, 20, 21, 40, 41].map(|ms| find(OffsetSpec::Timestamp(ms))), [0, 0, 2, 2, 6, 6, 7]);
    let empty = Scene::new(StreamSettings::default());
    let all = [OffsetSpec::First, OffsetSpec::Last, OffsetSpec::Next, OffsetSpec::Offset(Offset(5)), OffsetSpec::Timestamp(5)];
    assert_eq!(all.map(|spec| empty.stream().find(spec)), [Offset(0); 5]);
}

#[test]
fn publishers_and_readers_that_are_silent_for_longest_are_forgotten_first() {
    let mut scene = Scene::new(StreamSettings::default());
    for n in 0..STREAM_PUBLISHERS as u64 {
        scene.append(0, Some(&format!("p{n}")), &[(5, 1)]);
    }
    scene.append(0, Some("p0"), &[(6, 1)]);
    scene.append(0, Some("one more"), &[(5, 1)]);
    let id = |scene: &Scene, name| scene.stream().state(Some(name), None).publishing_id;
    assert_eq!((id(&scene, "p0"), id(&scene, "p1"), id(&scene, "p2"), id(&scene, "one more")), (Some(6), None, Some(5), Some(5)));
    let mut ops = Ops::default();
    (0..STREAM_READERS as u64).for_each(|n| ops.store(S, &format!("r{n}"), Offset(n)));
    ops.store(S, "r0", Offset(7));
    ops.store(S, "one more", Offset(8));
    ops.store(QueueId(99), "r2", Offset(9));
    scene.batch(0, ops.take().to_vec());
    let stored = |name| scene.stream().state(None, Some(name)).stored;
    assert_eq!(["r0", "r1", "r2", "one more"].map(stored), [Some(Offset(7)), None, Some(Offset(2)), Some(Offset(8))]);
}

#[derive(Clone, Debug)]
enum Act {
    Append { publisher: Option<u8>, from: u64, entries: Vec<(u64, u16)>, ms: u64 },
    Store { reader: u8, offset: u64 },
    Settings { max_bytes: Option<u64>, max_age: Option<u64> },
    Reread,
}

fn act() -> impl Strategy<Value = Act> {
    let entries = prop::collection::vec((1u64..4, prop_oneof![4 => Just(1u16), 1 => 2u16..5]), 1..6);
    prop_oneof![
        12 => (prop::option::weighted(0.7, 0u8..3), 0u64..8, entries, 0u64..30)
            .prop_map(|(publisher, from, entries, ms)| Act::Append { publisher, from, entries, ms }),
        2 => (0u8..3, 0u64..50).prop_map(|(reader, offset)| Act::Store { reader, offset }),
        1 => (prop::option::of(100u64..900), prop::option::of(20u64..200)).prop_map(|(max_bytes, max_age)| Act::Settings { max_bytes, max_age }),
        2 => Just(Act::Reread),
    ]
}

/// Its chunks' bytes, the time of the last one, and records as (publishing id, offset).
type NaiveSegment = (u64, u64, Vec<(u64, u64)>);

#[derive(Default)]
struct Naive {
    now: u64,
    tail: u64,
    segments: Vec<NaiveSegment>,
    publishers: BTreeMap<u8, u64>,
    readers: BTreeMap<u8, u64>,
    max_bytes: Option<u64>,
    max_age: Option<u64>,
}

const SEGMENT: u64 = 150;

impl Naive {
    /// Every entry brings its time.
    fn age(&mut self) {
        while self.segments.len() > 1 && self.max_age.is_some_and(|age| self.segments[0].1 + age < self.now) {
            self.segments.remove(0);
        }
    }

    fn append(&mut self, publisher: Option<u8>, entries: &[(u64, u16)]) {
        self.age();
        let last = publisher.and_then(|p| self.publishers.get(&p).copied());
        let fresh: Vec<_> = entries.iter().filter(|(id, _)| publisher.is_none() || last.is_none_or(|last| *id > last)).collect();
        let Some((id, _)) = fresh.last() else { return };
        publisher.map(|p| self.publishers.insert(p, *id));
        if self.segments.last().is_none_or(|segment| segment.0 >= SEGMENT) {
            self.segments.push((0, self.now, Vec::new()));
        }
        self.retain();
        let segment = self.segments.last_mut().unwrap();
        segment.0 += CHUNK_HEAD as u64 + fresh.iter().map(|(id, n)| entry_of(*id, *n).len() as u64).sum::<u64>();
        segment.1 = self.now;
        for (id, records) in fresh {
            segment.2.extend((0..u64::from(*records)).map(|k| (*id, self.tail + k)));
            self.tail += u64::from(*records);
        }
    }

    fn retain(&mut self) {
        while self.segments.len() > 1 {
            let bytes: u64 = self.segments.iter().map(|segment| segment.0).sum();
            let old = self.max_age.is_some_and(|age| self.segments[0].1 + age < self.now);
            if !old && self.max_bytes.is_none_or(|max| bytes <= max) {
                return;
            }
            self.segments.remove(0);
        }
    }
}

proptest! {
    #[test]
    fn a_stream_is_what_a_list_of_records_would_be_and_survives_checkpoints_and_snapshots(acts in prop::collection::vec(act(), 1..60)) {
        let mut scene = Scene::new(sized(SEGMENT));
        let mut naive = Naive::default();
        for act in acts {
            match act {
                Act::Append { publisher, from, entries, ms } => {
                    naive.now += ms;
                    let base = publisher.and_then(|p| naive.publishers.get(&p)).copied().unwrap_or(5).saturating_sub(from);
                    let ids = entries.iter().scan(base, |id, (step, records)| {
                        *id += step;
                        Some((*id, *records))
                    });
                    let entries: Vec<_> = ids.collect();
                    naive.append(publisher, &entries);
                    scene.append(naive.now, publisher.map(|p| format!("p{p}")).as_deref(), &entries);
                }
                Act::Store { reader, offset } => {
                    naive.readers.insert(reader, offset);
                    let mut ops = Ops::default();
                    ops.store(S, &format!("r{reader}"), Offset(offset));
                    scene.batch(naive.now, ops.take().to_vec());
                }
                Act::Settings { max_bytes, max_age } => {
                    // The same again changes nothing.
                    if (naive.max_bytes, naive.max_age) != (max_bytes, max_age) {
                        (naive.max_bytes, naive.max_age) = (max_bytes, max_age);
                        naive.retain();
                    }
                    scene.settings(StreamSettings { max_length_bytes: max_bytes, max_age_ms: max_age, ..sized(SEGMENT) });
                }
                Act::Reread => {
                    let Scene { machine, disk, .. } = &mut scene;
                    reread(machine, disk);
                }
            }
            let expected: Vec<_> = naive.segments.iter().flat_map(|segment| segment.2.iter().copied()).collect();
            prop_assert_eq!(&scene.records(), &expected);
            super::living_tests::leave_of(&mut scene.machine, scene.log.iter_mut().map(|(index, entry)| (*index, entry)).collect());
            prop_assert_eq!(scene.records(), expected, "of what is left of the entries");
            prop_assert_eq!(scene.stream().next(), Offset(naive.tail));
            prop_assert_eq!(scene.stream().bytes(), naive.segments.iter().map(|segment| segment.0).sum::<u64>());
            for n in 0..3u8 {
                let state = scene.stream().state(Some(&format!("p{n}")), Some(&format!("r{n}")));
                prop_assert_eq!(state.publishing_id, naive.publishers.get(&n).copied());
                prop_assert_eq!(state.stored.map(|o| o.0), naive.readers.get(&n).copied());
            }
        }
        let Scene { machine, disk, .. } = &mut scene;
        reread(machine, disk);
    }

    #[test]
    fn a_capture_shows_a_stream_as_it_was_when_it_began(before in 1u64..600, after in 1u64..300) {
        let mut scene = Scene::new(StreamSettings { max_length_bytes: Some(3000), ..sized(1000) });
        (0..before).for_each(|id| scene.append(id, Some("p"), &[(id, 1)]));
        let (hash, live) = (scene.machine.state_hash(), scene.machine.live_entries());
        let capture = scene.machine.begin_snapshot();
        (before..before + after).for_each(|id| scene.append(id, Some("p"), &[(id, 1)]));
        let image = scene.machine.capture_rest(capture).unwrap();
        prop_assert_eq!(image.live_entries(), live);
        let copy = DataMachine::from_snapshot(SHARD, &image.into_snapshot()).unwrap();
        prop_assert_eq!(copy.state_hash(), hash);
    }
}
