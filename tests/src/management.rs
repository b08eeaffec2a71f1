//! The management port from outside: is a node ready, what are its metrics. A few lines of HTTP/1.1, so that no library stands between.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// GET; status and body, `None` when there is no answer.
pub fn get(port: u16, path: &str) -> Option<(u16, String)> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut socket = TcpStream::connect_timeout(&address, Duration::from_millis(500)).ok()?;
    socket.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    write!(socket, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).ok()?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Some((status, if chunked { unchunk(body) } else { body.to_owned() }))
}

fn unchunk(body: &str) -> String {
    let (mut rest, mut whole) = (body, String::new());
    while let Some((size, tail)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        if size == 0 || size > tail.len() {
            break;
        }
        whole.push_str(&tail[..size]);
        rest = tail[size..].trim_start_matches("\r\n");
    }
    whole
}

/// Whether the node says that it serves.
pub fn is_ready(port: u16) -> bool {
    get(port, "/ready").is_some_and(|(status, _)| status == 200)
}

/// One line of `/metrics`.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Value.
    pub value: f64,
}

/// All metrics of a node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics(pub Vec<Sample>);

impl Metrics {
    /// Ask a node; `None` when it does not answer.
    pub fn of(port: u16) -> Option<Metrics> {
        get(port, "/metrics").filter(|(status, _)| *status == 200).map(|(_, text)| Metrics::parse(&text))
    }

    /// Read the text format; lines that are none are skipped.
    pub fn parse(text: &str) -> Metrics {
        Metrics(text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect())
    }

    /// Samples of this name.
    pub fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Sample> {
        self.0.iter().filter(move |sample| sample.name == name)
    }

    /// The sum over all samples of this name, `None` when there is none.
    pub fn sum(&self, name: &str) -> Option<f64> {
        self.named(name).map(|sample| sample.value).reduce(|a, b| a + b)
    }

    /// Shards that this node leads: `warren_shard_is_leader{shard="N"} 1`.
    pub fn led_shards(&self) -> Vec<u64> {
        let led = self.named("warren_shard_is_leader").filter(|sample| sample.value > 0.0);
        led.filter_map(|sample| sample.labels.get("shard")?.parse().ok()).collect()
    }
}

fn sample(line: &str) -> Option<Sample> {
    let (series, rest) = match line.find('}') {
        Some(end) => line.split_at(end + 1),
        None => line.split_at(line.find(' ')?),
    };
    let value = rest.split_whitespace().next()?.parse().ok()?;
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    let mut pairs = BTreeMap::new();
    let mut left = labels.trim_end_matches('}');
    while let Some((key, tail)) = left.split_once("=\"") {
        let end = tail.find('"')?;
        pairs.insert(key.trim_start_matches(',').to_owned(), tail[..end].to_owned());
        left = &tail[end + 1..];
    }
    Some(Sample { name: name.trim().to_owned(), labels: pairs, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_read_with_their_labels() {
        let text = "# HELP x y\n# TYPE x gauge\nwarren_shard_is_leader{shard=\"0\"} 0.0\nwarren_shard_is_leader{shard=\"2\"} 1\n\
                    labelled{vhost=\"/\",name=\"a b\"} 2\nprocess_threads 12\n# EOF\n";
        let metrics = Metrics::parse(text);
        assert_eq!(metrics.led_shards(), [2]);
        assert_eq!(metrics.named("labelled").next().and_then(|sample| sample.labels.get("name")).map(String::as_str), Some("a b"));
        assert_eq!(metrics.sum("process_threads"), Some(12.0));
        assert_eq!(metrics.sum("nothing"), None);
    }

    #[test]
    fn a_chunked_body_is_joined() {
        assert_eq!(unchunk("3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"), "abcde");
    }
}
