//! Streams in a run: publishers that go on under their names wherever they are after a node's death and repeat what was not confirmed,
//! and a reader on each node. The judge: every node gives the same records at the same offsets, each publishing id once and in order, and
//! nothing that was confirmed is missing.

use super::client::{Client, News};
use super::host::Host;
use super::publisher::over;
use super::story;
use super::world::{Phase, World};
use crate::chance::Chance;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use warren::edge::ReadError;
use warren::model::catalog::{Table, Value};
use warren::model::step::Step;
use warren::model::stream::{Append, OffsetSpec, Published, StreamChunk};
use warren::model::{NodeId, Offset};

/// The stream of every run.
const STREAM: &str = "log";
/// The number of a publisher's events.
const PUBLISHER: u16 = 7;

/// What is known of the stream.
#[derive(Debug, Default)]
struct Known {
    /// Publisher and publishing id of each record, by offset: as the first reader had it.
    log: Vec<(u32, u64)>,
    confirmed: BTreeSet<(u32, u64)>,
    /// Not known to be there or not.
    nacked: BTreeSet<(u32, u64)>,
    /// How far the reader on each node is.
    read: BTreeMap<NodeId, u64>,
}

/// Hears all that publishers and readers of the stream hear.
#[derive(Debug, Default)]
pub struct Judge(Mutex<Known>);

impl Judge {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Records that were read.
    pub fn records(&self) -> u64 {
        self.known().log.len() as u64
    }

    /// A reader on this node got a chunk. What is wrong with it.
    fn read(&self, node: NodeId, expected: u64, chunk: &StreamChunk) -> Result<(), String> {
        if chunk.crc != crc32fast::hash(&chunk.data) || chunk.first.0 != expected {
            return Err(format!("node {node} gives a chunk from {} with CRC {} where {expected} is due", chunk.first, chunk.crc));
        }
        let (mut known, mut at) = (self.known(), expected as usize);
        for (entry, records) in chunk.entries() {
            let content = &entry[entry.len() - 12..];
            let number = |bytes: &[u8]| bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
            let id = (number(&content[..4]) as u32, number(&content[4..]));
            for _ in 0..records {
                match known.log.get(at) {
                    Some(seen) if *seen == id => {}
                    Some(seen) => return Err(format!("node {node} gives {id:?} at offset {at}, where another gave {seen:?}")),
                    None => known.log.push(id),
                }
                at += 1;
            }
        }
        if at as u64 != chunk.next().0 {
            return Err(format!("node {node}: {} records from {} reach {at}", chunk.records, chunk.first));
        }
        known.read.insert(node, at as u64);
        Ok(())
    }

    /// What is wrong with the stream as a whole.
    fn findings(&self) -> Vec<String> {
        let known = self.known();
        let (mut last, mut findings) = (BTreeMap::<u32, u64>::new(), Vec::new());
        let entries = known.log.iter().enumerate().filter(|(at, id)| *at == 0 || known.log[at - 1] != **id);
        for (at, (publisher, id)) in entries {
            let before = last.insert(*publisher, *id).unwrap_or(0);
            if before >= *id {
                findings.push(format!("offset {at}: publisher {publisher}'s {id} after its {before}"));
            }
            let skipped = before + 1..*id;
            findings
                .extend(skipped.filter(|id| !known.nacked.contains(&(*publisher, *id))).map(|id| format!("{publisher}'s {id} is missing")));
        }
        let there: BTreeSet<_> = known.log.iter().copied().collect();
        let lost = known.confirmed.iter().filter(|id| !there.contains(id) && !known.nacked.contains(id));
        let mut worst: Vec<_> = lost.map(|(publisher, id)| format!("publisher {publisher}'s {id} was confirmed and is lost")).collect();
        worst.truncate(10);
        findings.truncate(10);
        [worst, findings].concat()
    }
}

/// Small segments, no retention: at the end everything is to be there.
pub async fn declare(world: &World) {
    let client = Client::connect(&world.hosts[0]).await;
    let arguments: Table = [("x-stream-max-segment-size-bytes".to_owned(), Value::Int(50_000))].into();
    if !matches!(client.connection.create_stream(STREAM, arguments).await, Ok(true)) {
        world.error("the stream cannot be made");
    }
}

/// A publisher and the ids it has not heard of, until the load ends.
pub async fn publish(world: Arc<World>, mut chance: Chance) {
    let (publisher, mut next) = (world.id(), 1);
    let mut open = BTreeSet::new();
    // On a busy machine all of the load may be over before the stream can be reached: something is said all the same.
    while world.phase() == Phase::Load || next == 1 || !open.is_empty() {
        let client = tokio::select! {
            client = Client::connect(chance.pick(&world.hosts)) => client,
            () = over(&world, Phase::End) => return,
        };
        let name = publisher.to_string();
        let Ok(target) = client.connection.stream_publisher(STREAM, &name) else {
            // This node's catalog is behind, or its leader is not known.
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        let asked = client.connection.stream_state(&target, Some(&name), None);
        let state = tokio::select! {
            state = asked => state,
            () = client.dead() => continue,
        };
        let Ok(stored) = state.map(|state| state.publishing_id.unwrap_or(0)) else {
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        let known = world.stream.known().confirmed.range((publisher, 0)..=(publisher, u64::MAX)).next_back().map_or(0, |last| last.1);
        if stored < known {
            world.error(format!("publisher {publisher}'s {known} is confirmed, and {stored} the last that is known of it"));
        }
        // Everything without an answer again, and now and then what has one.
        let mut again = open.first().copied().unwrap_or(next).min(if chance.one_in(3) { known.max(1) } else { u64::MAX });
        let mut talk = Talk { world: &world, publisher, client, open: &mut open, failed: false };
        while talk.client.is_alive() && !talk.failed {
            if world.phase() != Phase::Load && next > 1 && again >= next {
                break;
            }
            let count = chance.between(1, 20);
            let (sub, first) = (chance.one_in(5), again);
            again += count;
            // What the node may not have taken before it died is said again by the next one: it counts from here on.
            next = next.max(again);
            if !talk.append(&target, first..again, sub).await {
                break;
            }
            talk.news(Duration::from_millis(chance.between(1, 20))).await;
        }
        let until = Instant::now() + Duration::from_secs(30);
        while talk.client.is_alive() && !talk.failed && !talk.open.is_empty() && Instant::now() < until {
            talk.news(Duration::from_millis(100)).await;
        }
        if talk.client.is_alive() && !talk.failed && !talk.open.is_empty() {
            let story = story::of_client(&world, &talk.client.host).await;
            return world.error(format!("publisher {publisher} of the stream waits for {:?} and gets nothing: {story}", talk.open));
        }
    }
}

/// One connection's worth of publishing.
struct Talk<'a> {
    world: &'a World,
    publisher: u32,
    client: Client,
    open: &'a mut BTreeSet<u64>,
    failed: bool,
}

impl Talk<'_> {
    /// False: the node is dead.
    async fn append(&mut self, to: &Arc<warren::model::stream::StreamTarget>, ids: std::ops::Range<u64>, sub: bool) -> bool {
        let mut bytes = Vec::new();
        for id in ids.clone() {
            bytes.extend(id.to_be_bytes());
            let padding = vec![b'.'; (id % 150) as usize];
            let len = (padding.len() + 12) as u32;
            // Batches of three are opaque to the broker: what is in them is the clients' business.
            match sub && id % 3 == 0 {
                true => bytes.extend([&[0x90, 0, 3][..], &9u32.to_be_bytes(), &len.to_be_bytes()].concat()),
                false => bytes.extend(len.to_be_bytes()),
            }
            bytes.extend(padding);
            bytes.extend([&self.publisher.to_be_bytes()[..], &id.to_be_bytes()].concat());
        }
        self.open.extend(ids);
        let published = Published { bytes: bytes.into(), is_filtered: false };
        self.client.publish(Step::Append(Append { channel: PUBLISHER, to: to.clone(), published })).await
    }

    async fn news(&mut self, most: Duration) {
        for news in self.client.news(most).await {
            let (nacked, ranges) = match news {
                News::Confirmed(ranges) => (false, ranges),
                News::Nacked(ranges) => (true, ranges),
                odd => return self.world.error(format!("a publisher of the stream is told {odd:?}")),
            };
            let mut known = self.world.stream.known();
            for id in ranges.into_iter().flat_map(|(first, last)| first..=last) {
                self.open.remove(&id);
                self.failed |= nacked;
                let _ = if nacked { known.nacked.insert((self.publisher, id)) } else { known.confirmed.insert((self.publisher, id)) };
            }
        }
    }
}

/// Reads all of the stream on one node, over all of its lives, until the run ends.
pub async fn read(world: Arc<World>, host: Arc<Host>) {
    let mut next = 0;
    loop {
        tokio::select! {
            () = read_life(&world, &host, &mut next) => {}
            () = over(&world, Phase::End) => return,
        }
    }
}

/// Until the node dies.
async fn read_life(world: &World, host: &Arc<Host>, next: &mut u64) {
    let client = Client::connect(host).await;
    let Ok(stream) = client.connection.stream(STREAM, None) else { return sleep(Duration::from_millis(20)).await };
    let edge = host.life().borrow().edge.clone();
    let Some(edge) = edge else { return };
    let mut reader = match edge.read_stream(&stream.target, OffsetSpec::Offset(Offset(*next))) {
        Ok(reader) => reader,
        Err(ReadError::Gone) => return sleep(Duration::from_millis(20)).await,
        Err(error) => return world.error(format!("node {} does not read the stream: {error}", host.id)),
    };
    drop(edge);
    loop {
        let chunk = tokio::select! {
            chunk = reader.next() => chunk,
            () = client.dead() => return,
        };
        // A replica that has come back may be behind, and so may its chunks be.
        match chunk {
            Ok(chunk) if chunk.next().0 <= *next => {}
            Ok(chunk) if client.is_alive() => match world.stream.read(host.id, *next, &chunk) {
                Ok(()) => *next = chunk.next().0,
                Err(why) => {
                    world.error(why);
                    drop(reader);
                    return over(world, Phase::End).await;
                }
            },
            Ok(_) => return,
            Err(error) if client.is_alive() => {
                world.note(format!("node {} could not read the stream: {error}", host.id));
                return sleep(Duration::from_millis(50)).await;
            }
            Err(_) => return,
        }
    }
}

/// Everything confirmed has come to the readers on all nodes.
pub async fn settle(world: &World, patience: Duration) {
    let all = async {
        loop {
            let is_read = {
                let known = world.stream.known();
                known.read.len() == world.hosts.len() && known.read.values().all(|at| *at == known.log.len() as u64)
            };
            if is_read && world.stream.findings().is_empty() {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    if timeout(patience, all).await.is_err() {
        let read = world.stream.known().read.clone();
        world.error(format!("the stream is read up to {read:?} of {}: {}", world.stream.records(), world.stream.findings().join("; ")));
    }
    if world.stream.records() == 0 {
        world.error("nothing came to the stream");
    }
}

/// After all nodes have restarted: each has the whole stream, from its disk.
pub async fn reread(world: &World, patience: Duration) {
    let (known, count) = (|world: &World| world.stream.known().log.clone(), world.stream.records());
    let before = known(world);
    for host in &world.hosts {
        let mut next = 0;
        let read = timeout(patience, async {
            while next < count && world.errors_so_far() == 0 {
                tokio::select! {
                    () = read_life(world, host, &mut next) => {}
                    () = sleep(Duration::from_millis(50)) => {}
                }
            }
        });
        if read.await.is_err() || known(world) != before {
            world.error(format!("node {} has {next} of {count} records of the stream after the restart", host.id));
        }
    }
}
