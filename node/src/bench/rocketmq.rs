//! The scenarios `rocketmq` and `rocketmq-polls`: requests of RocketMQ's HTTP protocol over keep-alive connections, one at a time on each,
//! as its SDKs send them; and what requests that wait for messages cost. The topic is called like the queue (`--queue`) and must be there.

use super::args::{BenchArgs, Load};
use super::report::histogram;
use super::seen::Seen;
use super::{BenchError, environment};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hmac::{Hmac, Mac};
use serde_json::{Value, json};
use sha1::Sha1;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// Connections that publish, then as many that consume.
const CONNECTIONS: usize = 16;
/// Messages that one request may fetch: the protocol's most.
const BATCH: u32 = 16;
/// Requests that wait in `rocketmq-polls`.
const POLLS: usize = 100;
/// How long a consumer's request waits, s; those of `rocketmq-polls` wait for the protocol's longest time.
const WAIT_S: u64 = 1;
const LONGEST_WAIT_S: u64 = 30;
/// Longer, and nobody answers.
const PATIENCE: Duration = Duration::from_secs(60);
/// Who consumes.
pub(crate) const GROUP: &str = "GID_bench";

/// A node, and who signs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    address: String,
    id: String,
    secret: String,
}

impl Place {
    /// Of `host:port`, or `id:secret@host:port`.
    pub(crate) fn parse(uri: &str) -> Place {
        let (signer, address) = uri.rsplit_once('@').unwrap_or(("guest:guest", uri));
        let (id, secret) = signer.split_once(':').unwrap_or((signer, ""));
        Place { address: address.to_owned(), id: id.to_owned(), secret: secret.to_owned() }
    }

    fn failed(&self, error: io::Error) -> BenchError {
        BenchError::Io { what: self.address.clone(), error }
    }
}

/// One connection, one request at a time.
pub(crate) struct Client {
    place: Place,
    topic: String,
    socket: BufReader<TcpStream>,
    answer: Vec<u8>,
}

/// A message that a consumer was given.
pub(crate) struct Fetched {
    pub(crate) body: String,
    pub(crate) handle: String,
    /// Times that it was given to somebody, this one counted.
    pub(crate) times: u64,
}

/// Method, target and document.
struct Request<'a> {
    method: &'a str,
    target: String,
    document: &'a str,
}

impl Request<'_> {
    fn bytes(&self, place: &Place, date: &str) -> Vec<u8> {
        let Request { method, target, document } = self;
        let content_type = if document.is_empty() { "" } else { "text/xml;charset=UTF-8" };
        let mut mac = Hmac::<Sha1>::new_from_slice(place.secret.as_bytes()).expect("a key may have any length");
        mac.update(format!("{method}\n\n{content_type}\n{date}\nx-mq-version:2015-06-06\n{target}").as_bytes());
        let signature = STANDARD.encode(mac.finalize().into_bytes());
        let (host, id, length) = (&place.address, &place.id, document.len());
        let typed = if document.is_empty() { String::new() } else { format!("content-type: {content_type}\r\n") };
        let head = format!(
            "{method} {target} HTTP/1.1\r\nContent-Length: {length}\r\nConnection: Keep-Alive\r\n{typed}x-mq-version: 2015-06-06\r\n\
             host: {host}\r\ndate: {date}\r\nAuthorization: MQ {id}:{signature}\r\n\r\n"
        );
        [head.as_bytes(), document.as_bytes()].concat()
    }
}

fn broken(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

/// What stands between the tags of an element, for each of that name.
fn elements<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    text.split(open.as_str()).skip(1).filter_map(|rest| rest.split(close.as_str()).next()).collect()
}

impl Client {
    fn connect(place: &Place, topic: &str) -> io::Result<Client> {
        Client::connect_within(place, topic, PATIENCE)
    }

    /// With the longest time that an answer may take.
    pub(crate) fn connect_within(place: &Place, topic: &str, patience: Duration) -> io::Result<Client> {
        let socket = TcpStream::connect(&place.address)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(patience))?;
        socket.set_write_timeout(Some(patience))?;
        Ok(Client { place: place.clone(), topic: topic.to_owned(), socket: BufReader::new(socket), answer: Vec::new() })
    }

    /// Sends a request and waits for its answer.
    fn ask(&mut self, request: &Request<'_>) -> io::Result<(u16, &str)> {
        self.send(request)?;
        self.receive()
    }

    fn send(&mut self, request: &Request<'_>) -> io::Result<()> {
        let date = httpdate::fmt_http_date(SystemTime::now());
        self.socket.get_mut().write_all(&request.bytes(&self.place, &date))
    }

    fn receive(&mut self) -> io::Result<(u16, &str)> {
        let (mut status, mut length, mut line) = (None, 0, String::new());
        loop {
            line.clear();
            if self.socket.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let Some(_) = status else {
                status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
                status.ok_or_else(|| broken(format!("no status: {line}")))?;
                continue;
            };
            match line.trim_end().split_once(": ") {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = value.parse().unwrap_or(0),
                Some(_) => {}
                None => break,
            }
        }
        self.answer.resize(length, 0);
        self.socket.read_exact(&mut self.answer)?;
        let text = std::str::from_utf8(&self.answer).map_err(|_| broken("an answer that is no text"))?;
        Ok((status.unwrap_or(0), text))
    }

    pub(crate) fn publish(&mut self, body: &str) -> io::Result<()> {
        let document = format!("<Message xmlns=\"http://mq.aliyuncs.com/doc/v1/\"><MessageBody>{body}</MessageBody></Message>");
        let target = format!("/topics/{}/messages", self.topic);
        match self.ask(&Request { method: "POST", target, document: &document })? {
            (201, _) => Ok(()),
            (status, text) => Err(broken(format!("a publish was answered with {status}: {text}"))),
        }
    }

    fn poll(&self, wait_s: u64) -> Request<'static> {
        let target = format!("/topics/{}/messages?consumer={GROUP}&numOfMessages={BATCH}&waitseconds={wait_s}", self.topic);
        Request { method: "GET", target, document: "" }
    }

    /// Fetches messages, `times` as the broker counts.
    pub(crate) fn fetch(&mut self, wait_s: u64) -> io::Result<Vec<Fetched>> {
        let request = self.poll(wait_s);
        match self.ask(&request)? {
            (200, text) => {
                let one = |text: &str, name| elements(text, name).first().map(|found| (*found).to_owned());
                let fetched = |text: &&str| {
                    let times = one(text, "ConsumedTimes")?.parse().ok()?;
                    Some(Fetched { body: one(text, "MessageBody")?, handle: one(text, "ReceiptHandle")?, times })
                };
                let fetched: Option<Vec<Fetched>> = elements(text, "Message").iter().map(fetched).collect();
                fetched.ok_or_else(|| broken("a message without body, handle or count"))
            }
            (404, text) if text.contains("<Code>MessageNotExist</Code>") => Ok(Vec::new()),
            (status, text) => Err(broken(format!("a consumer was answered with {status}: {text}"))),
        }
    }

    /// Fetches messages: their bodies, and the document that acknowledges them.
    fn consume(&mut self, wait_s: u64) -> io::Result<(Vec<String>, String)> {
        let fetched = self.fetch(wait_s)?;
        let document = handles(&fetched);
        Ok((fetched.into_iter().map(|message| message.body).collect(), document))
    }

    /// Makes the group, and takes away what an earlier run has left.
    fn empty(&mut self) -> io::Result<()> {
        loop {
            let (left, handles) = self.consume(0)?;
            if left.is_empty() {
                return Ok(());
            }
            self.acknowledge(&handles)?;
        }
    }

    /// Acknowledges what `handles` lists.
    pub(crate) fn acknowledge(&mut self, document: &str) -> io::Result<()> {
        let target = format!("/topics/{}/messages?consumer={GROUP}", self.topic);
        match self.ask(&Request { method: "DELETE", target, document })? {
            (204, _) => Ok(()),
            (status, text) => Err(broken(format!("an acknowledgement was answered with {status}: {text}"))),
        }
    }
}

/// The document that acknowledges these.
pub(crate) fn handles(fetched: &[Fetched]) -> String {
    let handles: String = fetched.iter().map(|message| format!("<ReceiptHandle>{}</ReceiptHandle>", message.handle)).collect();
    format!("<ReceiptHandles>{handles}</ReceiptHandles>")
}

/// What one connection did.
struct Part {
    requests: u64,
    micros: Histogram<u64>,
    /// Message numbers by producer.
    seen: Vec<Seen>,
    wrong: u64,
}

impl Part {
    fn new(producers: usize) -> Part {
        Part { requests: 0, micros: histogram(), seen: vec![Seen::default(); producers], wrong: 0 }
    }

    fn timed<T>(&mut self, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let began = Instant::now();
        let done = act()?;
        self.requests += 1;
        self.micros.saturating_record(began.elapsed().as_micros() as u64);
        Ok(done)
    }

    /// Joined with another; messages that both have are wrong.
    fn add(mut self, other: &Part) -> Part {
        self.requests += other.requests;
        self.micros.add(&other.micros).expect("both have the same bounds");
        self.wrong += other.wrong + self.seen.iter_mut().zip(&other.seen).map(|(mine, theirs)| mine.merge(theirs)).sum::<u64>();
        self
    }

    fn messages(&self) -> u64 {
        self.seen.iter().map(Seen::count).sum()
    }

    fn json(&self, seconds: f64) -> Value {
        let quantile = |q| self.micros.value_at_quantile(q);
        json!({
            "requests_per_s": (self.requests as f64 / seconds).round(), "messages_per_s": (self.messages() as f64 / seconds).round(),
            "request_us": { "p50": quantile(0.5), "p99": quantile(0.99), "max": self.micros.max() },
        })
    }
}

/// A body of text: run, producer, number, and filler.
fn body(run: u32, producer: usize, number: u64, size: usize) -> String {
    let head = format!("{run:08x}-{producer}-{number}-");
    let filler = size.saturating_sub(head.len());
    head + &"x".repeat(filler)
}

/// Producer and number, if the body is of this run and as it was written.
fn parse(text: &str, run: u32, size: usize) -> Option<(usize, u64)> {
    let mut parts = text.split('-').skip(1);
    let (producer, number) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    (text == body(run, producer, number, size) && producer < CONNECTIONS).then_some((producer, number))
}

/// Runs `act` on each connection at the same time; the joined parts.
fn all(places: &[Place], topic: &str, act: impl Fn(&mut Client, usize) -> io::Result<Part> + Sync) -> Result<Part, BenchError> {
    let one = |at: usize| {
        let place = &places[at % places.len()];
        Client::connect(place, topic).and_then(|mut client| act(&mut client, at)).map_err(|error| place.failed(error))
    };
    thread::scope(|scope| {
        let one = &one;
        let threads: Vec<_> = (0..CONNECTIONS).map(|at| scope.spawn(move || one(at))).collect();
        let parts = threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        parts.collect::<Result<Vec<Part>, BenchError>>().map(|parts| parts.iter().fold(Part::new(CONNECTIONS), Part::add))
    })
}

fn places(args: &BenchArgs) -> Result<Vec<Place>, BenchError> {
    match args.rocketmq_uris.iter().map(|uri| Place::parse(uri)).collect::<Vec<_>>() {
        places if places.is_empty() => Err(BenchError::Arguments("--rocketmq-uris names no broker".to_owned())),
        places => Ok(places),
    }
}

/// Publishes for `--seconds`, then consumes and acknowledges all of it.
pub(super) fn requests(args: &BenchArgs, load: &Load) -> Result<Value, BenchError> {
    let (places, run): (_, u32) = (places(args)?, rand::random());
    let failed = |error| places[0].failed(error);
    Client::connect(&places[0], &load.queue).and_then(|mut client| client.empty()).map_err(failed)?;
    let (began, length) = (Instant::now(), Duration::from_secs_f64(load.seconds));
    let published = all(&places, &load.queue, |client, at| {
        let mut part = Part::new(CONNECTIONS);
        while began.elapsed() < length {
            let number = part.requests + 1;
            part.timed(|| client.publish(&body(run, at, number, load.size)))?;
            part.seen[at].insert(number);
        }
        Ok(part)
    })?;
    let publishing = published.json(began.elapsed().as_secs_f64());
    eprintln!("  {CONNECTIONS} connections publish {} bytes: {publishing}", load.size);
    let (began, wanted, got) = (Instant::now(), published.messages(), AtomicU64::new(0));
    let patience = length + Duration::from_secs_f64(load.drain_seconds);
    let consumed = all(&places, &load.queue, |client, _| {
        let mut part = Part::new(CONNECTIONS);
        while got.load(Ordering::Relaxed) < wanted && began.elapsed() < patience {
            let (bodies, handles) = part.timed(|| client.consume(WAIT_S))?;
            if bodies.is_empty() {
                continue;
            }
            part.timed(|| client.acknowledge(&handles))?;
            got.fetch_add(bodies.len() as u64, Ordering::Relaxed);
            for text in bodies {
                let fresh = parse(&text, run, load.size).is_some_and(|(producer, number)| part.seen[producer].insert(number));
                part.wrong += u64::from(!fresh);
            }
        }
        Ok(part)
    })?;
    let consuming = consumed.json(began.elapsed().as_secs_f64());
    let lost: u64 = published.seen.iter().zip(&consumed.seen).map(|(all, seen)| all.missing_in(seen)).sum();
    eprintln!("  {CONNECTIONS} connections consume and acknowledge up to {BATCH} at once: {consuming}");
    eprintln!("  {wanted} published, {lost} lost, {} repeated or changed", consumed.wrong);
    let clean = lost == 0 && consumed.wrong == 0 && wanted > 0;
    Ok(json!({ "size": load.size, "publish": publishing, "consume": consuming, "lost": lost, "wrong": consumed.wrong, "clean": clean }))
}

/// Compares the CPU time and the memory of the processes without and with requests that wait; `--settle-seconds` each.
pub(super) fn polls(args: &BenchArgs, load: &Load) -> Result<Value, BenchError> {
    let places = places(args)?;
    let failed = |error| places[0].failed(error);
    Client::connect(&places[0], &load.queue).and_then(|mut client| client.empty()).map_err(failed)?;
    let window = Duration::from_secs(args.settle_seconds);
    let before = environment::cpu_percent(&args.pids, window)?;
    let rss_before = environment::rss_kib(&args.pids)?;
    let (stop, got) = (AtomicBool::new(false), AtomicU64::new(0));
    let (after, rss_after, answered) = thread::scope(|scope| {
        let (stop, got, places) = (&stop, &got, &places);
        let one = move |at: usize| -> io::Result<u64> {
            let mut client = Client::connect(&places[at % places.len()], &load.queue)?;
            let mut asked = 0;
            while !stop.load(Ordering::Relaxed) {
                got.fetch_add(client.consume(LONGEST_WAIT_S)?.0.len() as u64, Ordering::Relaxed);
                asked += 1;
            }
            Ok(asked)
        };
        let threads: Vec<_> = (0..POLLS).map(|at| scope.spawn(move || one(at))).collect();
        // Until all of them wait.
        thread::sleep(Duration::from_secs(WAIT_S));
        let after = environment::cpu_percent(&args.pids, window);
        let rss = environment::rss_kib(&args.pids);
        stop.store(true, Ordering::Relaxed);
        let answered =
            threads.into_iter().map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).sum::<io::Result<u64>>();
        Ok::<_, BenchError>((after?, rss?, answered.map_err(failed)?))
    })?;
    eprintln!("  CPU of the given processes in percent of one core: {before:.1} without, {after:.1} with {POLLS} requests that wait");
    eprintln!("  their memory: {rss_before} KiB without, {rss_after} KiB with them");
    // Who is given something does not wait.
    let clean = got.into_inner() == 0;
    Ok(json!({
        "polls": POLLS, "answered": answered, "cpu_percent_before": before, "cpu_percent_after": after,
        "rss_kib_before": rss_before, "rss_kib_after": rss_after, "clean": clean,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_signed_as_the_sdk_signs_them() {
        let place = Place::parse("testAccessKeyId:testAccessKeySecret@127.0.0.1:8080");
        let target = "/topics/orders/messages?consumer=GID_a&ns=MQ_INST_1_abc".to_owned();
        let bytes = Request { method: "DELETE", target, document: "<ReceiptHandles/>" }.bytes(&place, "Thu, 07 Mar 2019 18:49:58 GMT");
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.contains("Authorization: MQ testAccessKeyId:A6li2XzNq/YfzNmPtaWc/0zxXLk=\r\n"), "{text}");
        assert!(text.ends_with("\r\n\r\n<ReceiptHandles/>") && text.contains("Content-Length: 17\r\n"), "{text}");
        assert_eq!(Place::parse("a:1"), Place { address: "a:1".into(), id: "guest".into(), secret: "guest".into() });
    }

    #[test]
    fn a_body_of_another_run_or_a_changed_one_is_not_read() {
        let text = body(7, 3, 12, 40);
        assert_eq!((text.len(), parse(&text, 7, 40)), (40, Some((3, 12))));
        assert_eq!((parse(&text, 8, 40), parse(&text[..39], 7, 40), parse("x", 7, 40)), (None, None, None));
        assert_eq!(elements("<M><A>1</A><A>2</A></M>", "A"), ["1", "2"]);
    }

    #[test]
    fn what_two_connections_got_is_wrong() {
        let part = |numbers: &[u64]| {
            let mut part = Part::new(1);
            numbers.iter().for_each(|n| assert!(part.seen[0].insert(*n)));
            part
        };
        let both = part(&[1, 2, 3]).add(&part(&[3, 4]));
        assert_eq!((both.wrong, both.messages()), (1, 4));
    }
}
