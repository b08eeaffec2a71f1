//! The registry behind `/metrics`. `node` registers what the rooms count: either prometheus-client types, or a closure that is
//! asked at each scrape (for relaxed atomics and states that are kept anyway), so counting costs the hot path nothing extra.

use super::process;
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use std::fmt;
use std::sync::Arc;

/// What a number means to Prometheus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; `_total` is appended to its name.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// One number with its labels, e.g. `shard="1"`.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Label names and values.
    pub labels: Vec<(&'static str, String)>,
    /// The number.
    pub value: f64,
}

impl Sample {
    /// A number without labels.
    pub fn plain(value: f64) -> Sample {
        Sample { labels: Vec::new(), value }
    }
}

/// All metrics of this process.
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
}

impl Metrics {
    /// The process's own figures are in it from the start: memory, files, CPU time, version.
    pub fn new() -> Arc<Metrics> {
        let metrics = Arc::new(Metrics { registry: Mutex::new(Registry::default()) });
        process::register(&metrics);
        metrics
    }

    /// Register prometheus-client metrics. Names begin with `warren_`.
    pub fn register(&self, add: impl FnOnce(&mut Registry)) {
        add(&mut self.registry.lock());
    }

    /// Register a metric that `read` yields at each scrape. It must not block.
    pub fn observe<F>(&self, name: &'static str, help: &'static str, kind: Kind, read: F)
    where
        F: Fn() -> Vec<Sample> + Send + Sync + 'static,
    {
        self.register(|registry| registry.register_collector(Box::new(Observed { name, help, kind, read: Box::new(read) })));
    }

    /// Everything in the OpenMetrics text format.
    pub fn render(&self) -> String {
        let mut out = String::new();
        if let Err(error) = text::encode(&mut out, &self.registry.lock()) {
            tracing::error!(%error, "metrics cannot be written");
        }
        out
    }
}

struct Observed {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    read: Box<dyn Fn() -> Vec<Sample> + Send + Sync>,
}

impl fmt::Debug for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Observed({})", self.name)
    }
}

impl Observed {
    fn encode_value(&self, value: f64, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        match self.kind {
            Kind::Counter => encoder.encode_counter::<[(&str, &str); 0], f64, f64>(&value, None),
            Kind::Gauge => encoder.encode_gauge(&value),
        }
    }
}

impl Collector for Observed {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
        };
        let mut family = encoder.encode_descriptor(self.name, self.help, None, kind)?;
        let samples = (self.read)();
        if let [only] = samples.as_slice()
            && only.labels.is_empty()
        {
            return self.encode_value(only.value, family);
        }
        for sample in samples {
            self.encode_value(sample.value, family.encode_family(&sample.labels.as_slice())?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_observed_shows_with_its_labels_and_the_process_shows_itself() {
        let metrics = Metrics::new();
        metrics.observe("warren_shard_is_leader", "1 where this node leads", Kind::Gauge, || {
            vec![Sample { labels: vec![("shard", "1".into())], value: 1.0 }]
        });
        metrics.observe("warren_published_messages", "Messages from clients", Kind::Counter, || vec![Sample::plain(7.0)]);
        let text = metrics.render();
        assert!(text.contains("warren_shard_is_leader{shard=\"1\"} 1.0\n"), "{text}");
        assert!(text.contains("warren_published_messages_total 7.0\n"), "{text}");
        let rss = text.lines().find_map(|line| line.strip_prefix("process_resident_memory_bytes ")).expect("RSS is shown");
        assert!(rss.parse::<f64>().unwrap() > 100_000.0, "{rss}");
        assert!(text.ends_with("# EOF\n"));
    }
}
