//! One run, from the start of the nodes to the report: load, faults, quiet, the end of the load, the account, the comparison of replicas.

use super::ledger::Ledger;
use super::load::Load;
use super::nodes::Nodes;
use super::plan::{Step, plan};
use super::report::{Protocol, Replicas, Report};
use super::{VerifyArgs, VerifyError, queues, rocket, streams};
use crate::cli::Shutdown;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Before the first fault.
const WARM_UP: Duration = Duration::from_secs(1);
/// What is confirmed comes within this time after the last fault.
const DRAIN_PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(200);
/// Examples of replicas that differ.
const EXAMPLES: usize = 10;

/// Run as asked; the nodes are gone when this returns.
pub(super) fn run(args: &VerifyArgs) -> Result<Report, VerifyError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let path = args.data_dir.clone().unwrap_or_else(|| std::env::temp_dir().join(format!("warren-verify-{}", std::process::id())));
    let seed = args.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    eprintln!("seed {seed}, data and logs in {}", path.display());
    // On this thread, which lives as long as the nodes that it starts.
    let done = runtime.block_on(Box::pin(until_told(args, seed, &path)));
    if done.as_ref().is_ok_and(Report::is_clean) && !args.keep {
        remove(&path, args)?;
    }
    done
}

/// The data of the nodes; with the directory, if it was made for this run.
fn remove(path: &Path, args: &VerifyArgs) -> Result<(), VerifyError> {
    match args.data_dir {
        None => std::fs::remove_dir_all(path)?,
        Some(_) => (1..=args.nodes).try_for_each(|node| std::fs::remove_dir_all(path.join(format!("node-{node}"))))?,
    }
    Ok(())
}

async fn until_told(args: &VerifyArgs, seed: u64, path: &Path) -> Result<Report, VerifyError> {
    let mut shutdown = Shutdown::listen()?;
    tokio::select! {
        report = verify(args, seed, path) => report,
        signal = shutdown.requested() => Err(VerifyError::Interrupted(signal)),
    }
}

/// The protocols under load, and their clients.
struct Loads {
    queues: Arc<Load>,
    streams: Arc<Load>,
    rocket: Arc<Load>,
    publishers: Vec<JoinHandle<()>>,
    consumers: Vec<JoinHandle<()>>,
}

impl Loads {
    async fn start(nodes: &Nodes, seed: u64) -> Result<Loads, VerifyError> {
        let queues = Load::new(Ledger::new(seed), nodes.addresses(|ports| ports.amqp));
        let streams = Load::new(Ledger::new(seed), nodes.addresses(|ports| ports.stream));
        let rocket = Load::new(Ledger::new(seed), nodes.addresses(|ports| ports.rocketmq));
        queues::declare(&queues).map_err(|error| VerifyError::Setup(format!("queues: {error}")))?;
        streams::create(&streams).map_err(|error| VerifyError::Setup(format!("streams: {error}")))?;
        let arranged = rocket::arrange(&mut nodes.admin(1).await?).await;
        arranged.map_err(|error| VerifyError::Setup(format!("topic: {error}")))?;
        let (mut publishers, mut consumers) = queues::start(&queues);
        let (of_topic, from_topic) = rocket::start(&rocket);
        publishers.extend(of_topic.into_iter().chain(streams::start(&streams)));
        consumers.extend(from_topic);
        Ok(Loads { queues, streams, rocket, publishers, consumers })
    }

    fn all(&self) -> [(&'static str, &Arc<Load>); 3] {
        [("queues", &self.queues), ("streams", &self.streams), ("rocketmq", &self.rocket)]
    }

    /// Published and confirmed so far.
    fn progress(&self) -> String {
        let one = |(name, load): (&str, &Arc<Load>)| {
            let counts = load.ledger.counts(&[]);
            format!("{name} {}/{}", counts.confirmed, counts.published)
        };
        self.all().map(one).join(", ")
    }

    /// End the publishers, let the consumers get what is confirmed, end them all, read the streams.
    async fn finish(&self) {
        self.all().iter().for_each(|(_, load)| load.drain());
        let until = Instant::now() + DRAIN_PATIENCE;
        while self.publishers.iter().any(|publisher| !publisher.is_finished()) && Instant::now() < until {
            tokio::time::sleep(POLL).await;
        }
        let until = Instant::now() + DRAIN_PATIENCE;
        while self.queues.ledger.due() + self.rocket.ledger.due() > 0 && Instant::now() < until {
            tokio::time::sleep(POLL).await;
        }
        self.all().iter().for_each(|(_, load)| load.stop());
        while self.publishers.iter().chain(&self.consumers).any(|client| !client.is_finished()) {
            tokio::time::sleep(POLL).await;
        }
        let streams = self.streams.clone();
        let _ = tokio::task::spawn_blocking(move || streams::read_all(&streams, DRAIN_PATIENCE)).await;
    }
}

async fn verify(args: &VerifyArgs, seed: u64, path: &Path) -> Result<Report, VerifyError> {
    let mut nodes = Nodes::start(path, args.nodes, args.port_offset).await?;
    nodes.healed().await?;
    let loads = Loads::start(&nodes, seed).await?;
    tokio::time::sleep(WARM_UP).await;
    let began = Instant::now();
    let steps = plan(seed, args.duration, args.nodes, &args.faults);
    let faults = inject(&mut nodes, &loads, &steps, began, args).await?;
    tokio::time::sleep(args.duration.saturating_sub(began.elapsed())).await;
    eprintln!("{:7.1} s  the load ends; {}", began.elapsed().as_secs_f64(), loads.progress());
    loads.finish().await;
    let replicas = compare(&nodes).await?;
    let protocols = loads.all().map(|(name, load)| {
        let places = if name == "streams" { nodes.numbers() } else { Vec::new() };
        Protocol { name, counts: load.ledger.counts(&places) }
    });
    Ok(Report { seed, nodes: args.nodes, seconds: began.elapsed().as_secs(), faults, protocols: protocols.into(), replicas })
}

/// Carry out the plan: every kind of fault once, and then until the time is over.
async fn inject(
    nodes: &mut Nodes,
    loads: &Loads,
    steps: &[Step],
    began: Instant,
    args: &VerifyArgs,
) -> Result<BTreeMap<&'static str, u64>, VerifyError> {
    let mut faults = BTreeMap::new();
    for step in steps {
        let kind = step.fault.kind().name();
        if began.elapsed() >= args.duration && faults.len() >= kinds(steps) {
            break;
        }
        let (at, length) = (began.elapsed().as_secs_f64(), step.length.as_secs_f64());
        eprintln!("{at:7.1} s  {} for {length:.1} s; confirmed/published: {}", step.fault, loads.progress());
        nodes.harm(step.fault)?;
        tokio::time::sleep(step.length).await;
        nodes.mend(step.fault)?;
        nodes.healed().await?;
        tokio::time::sleep(step.quiet).await;
        *faults.entry(kind).or_default() += 1;
    }
    Ok(faults)
}

fn kinds(steps: &[Step]) -> usize {
    steps.iter().map(|step| step.fault.kind()).collect::<std::collections::BTreeSet<_>>().len()
}

/// Until the replicas of each shard have come to the same state.
async fn compare(nodes: &Nodes) -> Result<Replicas, VerifyError> {
    let until = Instant::now() + DRAIN_PATIENCE;
    loop {
        let mut states: BTreeMap<u32, Vec<(u64, u64)>> = BTreeMap::new();
        for node in nodes.numbers() {
            let reply = nodes.admin(node).await?.state_hashes().await;
            for found in reply.map_err(|error| VerifyError::Admin(error.to_string()))?.replicas {
                states.entry(found.shard).or_default().push((found.applied, found.hash));
            }
        }
        let differing = states.iter().filter(|(_, states)| states.iter().any(|state| *state != states[0]));
        let examples: Vec<String> = differing.map(|(shard, states)| format!("shard {shard}, (applied, state hash): {states:?}")).collect();
        if examples.is_empty() || Instant::now() > until {
            let (shards, differing) = (states.len() as u64, examples.len() as u64);
            return Ok(Replicas { shards, differing, examples: examples.into_iter().take(EXAMPLES).collect() });
        }
        tokio::time::sleep(POLL).await;
    }
}
