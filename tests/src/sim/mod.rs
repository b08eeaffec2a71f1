//! The simulator: three nodes of the production composition in one process, over disks that forget and a network that breaks, with
//! clients that talk to their edges and judges that hear everything. One seed is one run: faults, sizes, choices and delays are drawn
//! from it; the threads of the system are not, so a seed that failed once may have to run several times to fail again.

pub mod client;
mod consumer;
mod faults;
pub mod host;
mod lagging;
mod names;
mod publisher;
mod story;
mod streams;
mod world;

use self::client::Failed;
use self::faults::{Fault, Schedule};
use self::publisher::Target;
use self::world::{FANOUT, Kind, Phase, QUEUES, World};
use crate::chance::Chance;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use warren::model::ShardId;
use warren::model::catalog::{ExchangeKind, Refusal};
use warren::model::step::Request;
use warren::store::disk::sim::Crash;

/// Recovery, with a lot for a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a good run was.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Messages confirmed, all queues.
    pub confirmed: u64,
    /// Deliveries.
    pub delivered: u64,
    /// Records of the stream, as each node gave them.
    pub records: u64,
    /// Names declared, seen, deleted and missed as they should.
    pub names: u64,
    /// Bytes of messages that left old files of the logs.
    pub relocated_bytes: u64,
    /// Runs on so busy a machine that a second was none: an edge may be taken for gone in them though nothing is wrong.
    pub starved: u64,
}

/// A run that showed something wrong: everything its reader needs.
#[derive(Debug)]
pub struct Failure(pub String);

/// One run; takes about seven seconds. Blocks.
///
/// # Errors
/// With the seed, the faults, what happened and the line that runs it again.
pub fn run(seed: u64) -> Result<Summary, Failure> {
    let mut chance = Chance::of(seed);
    let schedule = faults::schedule(&mut chance);
    let world = in_world(seed, |world| simulate(world, &schedule, chance));
    judge(&world, &schedule)
}

/// Three nodes whose catalogs lag behind each other by times of their own, and clients on all that declare, bind, publish to, delete and
/// declare again the same names (rules 27 and 28, fault test 10). Returns how often one node's catalog was behind. Blocks.
///
/// # Errors
/// As `run`.
pub fn lag(seed: u64) -> Result<u64, Failure> {
    let (mut chance, mut behind) = (Chance::of(seed), 0);
    let lonely = chance.below(3);
    let world = in_world(seed, async |world| behind = lagging::run(&world, lonely, chance).await);
    judge(&world, &vec![(0, Fault::Isolate { node: lonely, lasts: 0 })]).map(|_| behind)
}

/// The world after `then` has happened in it, its nodes dead.
fn in_world<F: Future<Output = ()>>(seed: u64, then: impl FnOnce(Arc<World>) -> F) -> Arc<World> {
    let dir = tempfile::tempdir().expect("a directory");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name("clients").enable_all().build();
    let runtime = runtime.expect("threads are to be had");
    let world = World::new(seed, dir.path());
    runtime.block_on(async {
        tokio::spawn(world::watch_clock(world.starved.clone()));
        tokio::spawn(world.clone().watch_sessions());
        world.hosts.iter().for_each(host::Host::start);
        then(world.clone()).await;
    });
    for host in &world.hosts {
        host.kill(Crash::Process);
    }
    runtime.shutdown_timeout(Duration::from_secs(5));
    world
}

async fn simulate(world: Arc<World>, schedule: &Schedule, mut chance: Chance) {
    if timeout(PATIENCE, declare_all(&world)).await.is_err() {
        return world.error("the cluster was not formed");
    }
    streams::declare(&world).await;
    let mut next = || Chance::of(chance.between(0, u64::MAX));
    let mut tasks = Vec::new();
    for (queue, kind) in QUEUES {
        let publishers = if kind == Kind::Ordered { 2 } else { 1 };
        let consumers = if kind == Kind::Wild { 2 } else { 1 };
        tasks.extend((0..publishers).map(|_| tokio::spawn(publisher::run(world.clone(), Target::Queue(queue), next()))));
        tasks.extend((0..consumers).map(|_| tokio::spawn(consumer::run(world.clone(), queue, kind, next()))));
    }
    tasks.push(tokio::spawn(publisher::run(world.clone(), Target::Fanout, next())));
    let stream_publishers: Vec<_> = (0..2).map(|_| tokio::spawn(streams::publish(world.clone(), next()))).collect();
    tasks.extend(world.hosts.iter().map(|host| tokio::spawn(streams::read(world.clone(), host.clone()))));
    tasks.push(tokio::spawn(names::look(world.clone(), next())));
    tasks.push(tokio::spawn(names::churn(world.clone(), next())));
    tasks.push(tokio::spawn(names::churn(world.clone(), next())));

    faults::run(&world, schedule).await;
    sleep(Duration::from_millis(300)).await;
    world.phase_tx.send_replace(Phase::Drain);
    world.note("nothing is wrong any more");
    // A node that a failed sync took down starts by itself; all others have been started.
    settle(&world).await;
    all_groups_run(&world);
    // They repeat what is in the stream already: its readers go on until they are done.
    all_end(&world, stream_publishers).await;
    streams::settle(&world, PATIENCE).await;
    world.phase_tx.send_replace(Phase::End);
    all_end(&world, tasks).await;
    agree(&world, 0).await;
    all_groups_run(&world);
    if chance.one_in(3) {
        restart_all(&world).await;
    }
}

/// Clients that end by themselves.
async fn all_end(world: &World, tasks: Vec<JoinHandle<()>>) {
    for task in tasks {
        match timeout(PATIENCE, task).await {
            Ok(Ok(())) => {}
            Ok(Err(panic)) => world.error(format!("a client broke: {panic}")),
            Err(_) => world.error("a client does not end"),
        }
    }
}

/// A node that runs says that all of its groups do: a replica that ended may be hidden by the others.
fn all_groups_run(world: &World) {
    for host in &world.hosts {
        if let Some(fault) = host.node().and_then(|node| node.consensus().fault()) {
            world.error(format!("node {}: {}", host.id, fault.what));
        }
    }
}

/// Queues, exchange, bindings, through the node that serves first.
async fn declare_all(world: &World) {
    let mut client = client::Client::connect(&world.hosts[0]).await;
    let mut requests: Vec<Request> = QUEUES.iter().map(|(queue, _)| client::declare(queue, false)).collect();
    requests.push(client::declare_exchange(FANOUT.0, ExchangeKind::Fanout));
    requests.extend(FANOUT.1.iter().map(|queue| client::bind(FANOUT.0, queue, "")));
    for request in requests {
        loop {
            match client.ask(request.clone()).await {
                Ok(_) => break,
                // The nodes have only begun to find each other.
                Err(Failed::Refused(Refusal::Unavailable(_))) => sleep(Duration::from_millis(50)).await,
                Err(failed) => return world.error(format!("a declaration at the start failed: {failed:?}")),
            }
        }
    }
}

/// Every node serves every queue again, and everything confirmed comes.
async fn settle(world: &Arc<World>) {
    let targets = || QUEUES.iter().map(|(queue, _)| Target::Queue(queue)).chain([Target::Fanout]);
    let nodes = 0..world.hosts.len();
    let asked: Vec<_> = nodes.flat_map(|node| targets().map(move |target| (node, target))).collect();
    let served = asked.into_iter().map(|(node, target)| {
        let world = world.clone();
        tokio::spawn(async move { names::serves(&world, node, target, PATIENCE).await })
    });
    for served in served.collect::<Vec<_>>() {
        let _ = served.await;
    }
    world.note("all nodes serve");
    let until = Instant::now() + PATIENCE;
    for (queue, _) in QUEUES.iter().filter(|(_, kind)| *kind != Kind::Churned) {
        while world.judges[queue].due() > 0 || world.judges[queue].unsettled().count > 0 {
            if Instant::now() > until {
                let (due, found) = (world.judges[queue].due(), world.judges[queue].unsettled());
                let stories = world.judges[queue].stories(&found.examples).join("; ");
                world.error(format!("{queue}: of what was confirmed {due} never came, {} are not settled: {stories}", found.count));
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
    world.note("everything has come");
}

/// What each replica of a shard has: applied index and hash.
fn states(world: &World, shard: ShardId) -> Option<Vec<(u64, u64)>> {
    let nodes: Option<Vec<_>> = world.hosts.iter().map(|host| host.node()).collect();
    let states = nodes?.into_iter().map(|node| {
        let replicas = node.replicas();
        if shard == ShardId::CATALOG {
            let catalog = replicas.catalog();
            let catalog = catalog.read();
            return Some((catalog.applied().index, catalog.state_hash()));
        }
        let machine = replicas.data(shard)?;
        let machine = machine.lock();
        Some((machine.applied().index, machine.state_hash()))
    });
    states.collect()
}

/// Messages in the queues of all kinds but churned, as the first node has applied it.
fn live(world: &World) -> Option<u64> {
    let node = world.hosts[0].node()?;
    let catalog = node.replicas().catalog();
    let queues: Vec<_> = {
        let catalog = catalog.read();
        let kept = |name: &str| QUEUES.iter().any(|(queue, kind)| *queue == name && *kind != Kind::Churned);
        catalog.queues().iter().filter(|q| kept(&q.spec.name.name)).map(|q| (q.shard, q.id)).collect()
    };
    let count = |(shard, id)| Some(node.replicas().data(shard)?.lock().queue(id).map_or(0, |queue| queue.live_count()));
    queues.into_iter().map(count).sum()
}

/// What is settled is gone, `due` messages are left, and all replicas of each shard come to the same state.
async fn agree(world: &World, due: u64) {
    let shards = world.hosts[0].node().map_or(0, |node| node.shards());
    let until = Instant::now() + PATIENCE;
    while live(world).is_none_or(|live| live != due) {
        if Instant::now() > until {
            world.error(format!("{due} messages are due in the queues of node 1, {:?} are there", live(world)));
            break;
        }
        sleep(Duration::from_millis(20)).await;
    }
    for shard in (0..=shards).map(ShardId) {
        loop {
            let states = states(world, shard);
            if states.as_ref().is_some_and(|all| all.iter().all(|one| *one == all[0])) {
                break;
            }
            if Instant::now() > until {
                world.error(format!("the replicas of shard {shard} do not agree (applied index, hash): {states:?}"));
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Power fails everywhere; what comes back is what was there.
async fn restart_all(world: &Arc<World>) {
    world.note("power fails everywhere");
    for host in &world.hosts {
        host.kill(Crash::Power);
    }
    for host in &world.hosts {
        let host = host.clone();
        let _ = tokio::task::spawn_blocking(move || host.start_again(false)).await;
    }
    for node in 0..world.hosts.len() {
        names::serves(world, node, Target::Queue("wild-1"), PATIENCE).await;
    }
    let wanted = 5 * world.hosts.len() as u64;
    let mut client = client::Client::connect(&world.hosts[0]).await;
    for (queue, kind) in QUEUES.iter().filter(|(_, kind)| *kind != Kind::Churned) {
        let expected = if *queue == "wild-1" { wanted } else { 0 };
        let until = Instant::now() + PATIENCE;
        loop {
            match client.ask(client::declare(queue, true)).await {
                Ok(warren::model::step::Reply::Queue { messages, .. }) if messages == expected => break,
                // Its shard may have no leader yet where refusals come soon.
                Err(Failed::Refused(Refusal::Unavailable(_))) if Instant::now() < until => sleep(Duration::from_millis(50)).await,
                other => {
                    world.error(format!("{queue} ({kind:?}) after the restart: {expected} messages are due, {other:?}"));
                    break;
                }
            }
        }
    }
    drop(client);
    agree(world, wanted).await;
    streams::reread(world, PATIENCE).await;
}

fn judge(world: &World, schedule: &Schedule) -> Result<Summary, Failure> {
    let starved = world.starved.load(Ordering::Relaxed);
    // Only then may others get what a living client holds.
    let parted = world.parted.load(Ordering::Relaxed);
    if parted && !starved && !schedule.iter().any(|(_, fault)| fault.parts()) {
        world.error("an edge was taken for gone, though nothing kept it from its leaders");
    }
    let mut summary = Summary {
        records: world.stream.records(),
        names: world.checks.load(Ordering::Relaxed),
        starved: starved.into(),
        relocated_bytes: world.hosts.iter().map(|host| host.relocated_bytes.load(Ordering::Relaxed)).sum(),
        ..Summary::default()
    };
    let mut findings = Vec::new();
    for (queue, kind) in QUEUES {
        let found = world.judges[queue].findings();
        summary.confirmed += found.confirmed;
        summary.delivered += found.delivered;
        let mut wrong = found.ghosts.count + found.false_fresh.count + found.false_verdicts.count + found.corrupt;
        // The messages of the last restart have no consumer.
        let restarted = 5 * world.hosts.len() as u64;
        wrong += found.lost.count.saturating_sub(if queue == "wild-1" { restarted } else { 0 }) * u64::from(kind != Kind::Churned);
        wrong += found.reordered.count * u64::from(kind == Kind::Ordered);
        wrong += found.duplicates.count * u64::from(!parted);
        findings.push(format!("{queue}: {}{found}", if wrong > 0 { "WRONG: " } else { "" }));
        if wrong > 0 {
            for kind in [&found.ghosts, &found.false_fresh, &found.false_verdicts, &found.lost, &found.reordered, &found.duplicates] {
                findings.extend(world.judges[queue].stories(&kind.examples));
            }
            world.error(format!("{queue}: the broker broke its promise"));
        }
    }
    let errors = world.errors.lock().unwrap_or_else(|poison| poison.into_inner()).clone();
    if errors.is_empty() {
        return Ok(summary);
    }
    let seed = world.seed;
    let lines = |title: &str, lines: &[String]| format!("\n{title}\n  {}", lines.join("\n  "));
    let faults: Vec<String> = schedule.iter().map(|(at, fault): &(u64, Fault)| format!("{at} ms: {fault:?}")).collect();
    Err(Failure(format!(
        "seed {seed} failed; again with WARREN_TEST_SEED={seed} cargo test -p warren-tests --test simulator{}{}{}{}",
        lines("wrong:", &errors),
        lines("faults, from the start of the load:", &faults),
        lines("what happened, from the start:", &world.notes()),
        lines("queues:", &findings),
    )))
}
