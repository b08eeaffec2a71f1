//! Named loads, one broker or two in turn, and what is printed of them.

use super::args::{BATCH, BenchArgs, Kind, Load};
use super::client::Dial;
use super::report::{Figures, Outcome, median};
use super::{BenchError, environment, idle, load, memory, replay, rocketmq};
use serde_json::{Value, json};

/// A load with a name, and the one figure that it is judged by.
struct Scenario {
    name: &'static str,
    shape: Shape,
    figure: Figure,
}

/// What differs from the flags.
#[derive(Clone, Copy)]
struct Shape {
    kind: Kind,
    size: usize,
    window: usize,
    batch: usize,
    clients: usize,
    /// At least; each client has one.
    queues: usize,
    consumers: bool,
    rate: u64,
}

const BASE: Shape = Shape { kind: Kind::Plain, size: 100, window: 1000, batch: BATCH, clients: 1, queues: 1, consumers: true, rate: 0 };
const STREAM: Shape = Shape { kind: Kind::Stream, window: 10_000, batch: 100, ..BASE };
const FANOUT: Shape = Shape { kind: Kind::Fanout, size: 1024, window: 200, queues: 100, consumers: false, ..BASE };
/// What is not a load of AMQP; all but `rocketmq` want `--pids`.
const STILL: [&str; 7] = ["memory", "memory-delayed", "idle-queues", "idle-connections", "stream-replay", "rocketmq", "rocketmq-polls"];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Figure {
    ConfirmRate,
    ConsumeRate,
    /// Lower is better.
    EndToEndP99,
    /// Lower is better.
    ConfirmP99,
}

const SCENARIOS: [Scenario; 17] = [
    Scenario { name: "queue-100B", shape: BASE, figure: Figure::ConsumeRate },
    Scenario { name: "queue-1KB", shape: Shape { size: 1024, ..BASE }, figure: Figure::ConsumeRate },
    Scenario { name: "queue-16KB", shape: Shape { size: 16384, window: 200, ..BASE }, figure: Figure::ConsumeRate },
    Scenario { name: "queue-publish-only", shape: Shape { consumers: false, ..BASE }, figure: Figure::ConfirmRate },
    Scenario { name: "queue-3x3", shape: Shape { clients: 3, ..BASE }, figure: Figure::ConsumeRate },
    Scenario { name: "queue-20x20", shape: Shape { clients: 20, window: 50, ..BASE }, figure: Figure::ConsumeRate },
    Scenario { name: "queue-p99-at-2k", shape: Shape { rate: 2000, ..BASE }, figure: Figure::EndToEndP99 },
    Scenario { name: "queue-ttl", shape: Shape { kind: Kind::Ttl, ..BASE }, figure: Figure::ConsumeRate },
    Scenario { name: "queue-priority", shape: Shape { kind: Kind::Priority, ..BASE }, figure: Figure::ConsumeRate },
    Scenario { name: "queue-dead-letter", shape: Shape { kind: Kind::DeadLetter, ..BASE }, figure: Figure::ConsumeRate },
    Scenario { name: "fanout-100", shape: FANOUT, figure: Figure::ConfirmRate },
    Scenario { name: "queue-window-1", shape: Shape { window: 1, ..BASE }, figure: Figure::ConfirmRate },
    Scenario { name: "stream-100B", shape: STREAM, figure: Figure::ConsumeRate },
    Scenario { name: "stream-1KB", shape: Shape { size: 1024, ..STREAM }, figure: Figure::ConsumeRate },
    Scenario { name: "stream-3x3", shape: Shape { clients: 3, ..STREAM }, figure: Figure::ConsumeRate },
    Scenario { name: "stream-small-batches", shape: Shape { window: 200, batch: 10, ..STREAM }, figure: Figure::ConsumeRate },
    Scenario { name: "stream-p99-at-200", shape: Shape { rate: 200, ..STREAM }, figure: Figure::ConfirmP99 },
];

impl Figure {
    fn name(self) -> &'static str {
        match self {
            Figure::ConfirmRate => "confirms/s",
            Figure::ConsumeRate => "consumed/s",
            Figure::EndToEndP99 => "end-to-end p99 us",
            Figure::ConfirmP99 => "confirm p99 us",
        }
    }

    fn of(self, figures: &Figures) -> f64 {
        match self {
            Figure::ConfirmRate => figures.confirm_rate,
            Figure::ConsumeRate => figures.consume_rate,
            Figure::EndToEndP99 => figures.end_to_end_us.value_at_quantile(0.99) as f64,
            Figure::ConfirmP99 => figures.confirm_us.value_at_quantile(0.99) as f64,
        }
    }

    /// How many times better the first is.
    fn times_better(self, first: f64, second: f64) -> f64 {
        let lower = matches!(self, Figure::EndToEndP99 | Figure::ConfirmP99);
        let (above, below) = if lower { (second, first) } else { (first, second) };
        if below > 0.0 { above / below } else { 0.0 }
    }
}

/// A load of a stream, at the pace of the flags.
#[cfg(test)]
pub(super) fn stream_load(args: &BenchArgs) -> Load {
    Load { rate: args.rate, ..STREAM.load(args) }
}

/// Run everything that was asked for.
pub(super) fn run(args: &BenchArgs) -> Result<Outcome, BenchError> {
    if args.scenario.iter().any(|name| name == "list") {
        SCENARIOS.iter().for_each(|scenario| println!("{}", scenario.name));
        STILL.iter().for_each(|name| println!("{name}"));
        return Ok(Outcome::Clean);
    }
    args.check()?;
    let (first, second) = args.brokers();
    let runs = chosen(args)?;
    let environment = describe(args, &first, &second)?;
    let (mut results, mut wrong) = (Vec::new(), 0);
    for (name, load, figure) in &runs {
        let (result, bad) = match figure {
            Some(figure) => {
                let (first, second) = args.brokers_of(load.kind);
                compare(args, name, load, *figure, [&first, &second])?
            }
            None => be_still(args, name, load, &first)?,
        };
        results.push(result);
        wrong += bad;
    }
    if args.json {
        println!("{:#}", json!({ "environment": environment, "results": results }));
    }
    Ok(if wrong == 0 { Outcome::Clean } else { Outcome::Wrong(wrong) })
}

type Run = (String, Load, Option<Figure>);

fn chosen(args: &BenchArgs) -> Result<Vec<Run>, BenchError> {
    if args.scenario.is_empty() {
        let figure = if args.consumers > 0 { Figure::ConsumeRate } else { Figure::ConfirmRate };
        return Ok(vec![("custom".into(), args.load(), Some(figure))]);
    }
    let mut runs = Vec::new();
    for wanted in &args.scenario {
        if STILL.contains(&wanted.as_str()) {
            runs.push((wanted.clone(), args.load(), None));
            continue;
        }
        let found = SCENARIOS.iter().filter(|scenario| wanted == "all" || wanted == scenario.name);
        let before = runs.len();
        runs.extend(found.map(|scenario| (scenario.name.to_owned(), scenario.shape.load(args), Some(scenario.figure))));
        if runs.len() == before {
            return Err(BenchError::Arguments(format!("there is no scenario '{wanted}'; --scenario list names them")));
        }
    }
    Ok(runs)
}

impl Shape {
    fn load(&self, args: &BenchArgs) -> Load {
        let consumers = if self.consumers { self.clients } else { 0 };
        Load {
            kind: self.kind,
            size: self.size,
            window: self.window,
            batch: self.batch,
            producers: self.clients,
            consumers,
            queues: self.queues.max(self.clients),
            rate: self.rate,
            prefetch: 500,
            ..args.load()
        }
    }
}

fn describe(args: &BenchArgs, first: &[Dial], second: &[Dial]) -> Result<Value, BenchError> {
    let mut environment = environment::machine();
    environment["broker"] = json!(environment::versions(first)?);
    if !second.is_empty() {
        environment["against"] = json!(environment::versions(second)?);
    }
    if let Some(dir) = &args.data_dir {
        environment["disk"] = environment::disk(dir)?;
    }
    eprintln!("{environment}");
    if cfg!(debug_assertions) {
        eprintln!("this bench is a debug build: its figures are the bench's limit, not the broker's");
    }
    Ok(environment)
}

fn compare(args: &BenchArgs, name: &str, load: &Load, figure: Figure, brokers: [&[Dial]; 2]) -> Result<(Value, usize), BenchError> {
    let mut sides: [Vec<Figures>; 2] = [Vec::new(), Vec::new()];
    for round in 1..=args.rounds {
        for (side, broker) in brokers.iter().enumerate().filter(|(_, broker)| !broker.is_empty()) {
            eprintln!("{name}, round {round} of {}, {}", args.rounds, if side == 0 { "first broker" } else { "second broker" });
            let before = cpu_seconds(&args.pids);
            let figures = load::run(load, broker, !args.quiet)?;
            eprintln!("{}", figures.text());
            if let (Some(before), Some(after)) = (before, cpu_seconds(&args.pids)) {
                eprintln!("  CPU of the given processes: {:.2} s", after - before);
            }
            sides[side].push(figures);
        }
    }
    let wrong = sides.iter().flatten().filter(|figures| !figures.is_clean()).count();
    let values = sides.each_ref().map(|side| side.iter().map(|figures| figure.of(figures)).collect::<Vec<f64>>());
    let ratios: Vec<f64> = values[0].iter().zip(&values[1]).map(|(ours, theirs)| figure.times_better(*ours, *theirs)).collect();
    summary(args, name, figure, &values, &ratios);
    let runs = sides.each_ref().map(|side| side.iter().map(Figures::json).collect::<Vec<Value>>());
    let result = json!({
        "scenario": name, "figure": figure.name(), "first": values[0], "second": values[1],
        "times_better": ratios, "times_better_median": median(&ratios), "runs": { "first": runs[0], "second": runs[1] },
    });
    Ok((result, wrong))
}

fn summary(args: &BenchArgs, name: &str, figure: Figure, values: &[Vec<f64>; 2], ratios: &[f64]) {
    let mut line = format!("{name:<20} {:<18} {:>10.0}", figure.name(), median(&values[0]));
    if !ratios.is_empty() {
        let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let most = ratios.iter().copied().fold(0.0, f64::max);
        line += &format!("  second {:>10.0}  times better {:.2} ({least:.2} to {most:.2})", median(&values[1]), median(ratios));
    }
    if args.json { eprintln!("{line}") } else { println!("{line}") }
}

fn cpu_seconds(pids: &[u32]) -> Option<f64> {
    let each: Result<Vec<f64>, BenchError> = pids.iter().map(|pid| environment::process(*pid).map(|(_, cpu)| cpu)).collect();
    each.ok().filter(|each| !each.is_empty()).map(|each| each.iter().sum())
}

fn be_still(args: &BenchArgs, name: &str, load: &Load, broker: &[Dial]) -> Result<(Value, usize), BenchError> {
    eprintln!("{name}");
    let mut result = match name {
        "idle-queues" => idle::queues(args, load, broker)?,
        "idle-connections" => idle::connections(args, broker)?,
        "memory-delayed" => memory::delayed(args, load, &broker[0])?,
        "rocketmq" => rocketmq::requests(args, load)?,
        "rocketmq-polls" => rocketmq::polls(args, load)?,
        "stream-replay" => replay::run(args, load)?,
        _ => memory::run(args, load, &broker[0])?,
    };
    let wrong = usize::from(result["clean"] != json!(true));
    result["scenario"] = json!(name);
    Ok((result, wrong))
}
