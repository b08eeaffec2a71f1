//! Clients that misbehave must not hurt others: one that never reads, ten thousand channels, bodies that never end, half-open
//! sockets, slow handshakes.
#![allow(clippy::unwrap_used)] // all of this file is tests

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::sleep;
use std::time::{Duration, Instant};
use warren::model::limits;
use warren_tests::client::{ClientError, Connection, Dial, Incoming, QueueOptions, encode};
use warren_tests::load::{self, PublisherOptions};
use warren_tests::oracle::Oracle;
use warren_tests::polite::Polite;
use warren_tests::proxy::Proxy;
use warren_tests::{Broker, eventually, message_event, unique};

/// Memory that a node may keep after hostile clients are gone.
const RSS_SLACK_KIB: u64 = 5 * 1024;
/// A handshake must be done by then, with some slack (RabbitMQ's default is 10 s).
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(14);

/// These tests look at the memory of the nodes, so they take turns.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(|poison| poison.into_inner())
}

fn rss(broker: &Broker) -> Vec<u64> {
    broker.cluster().map(|cluster| (0..cluster.len()).map(|at| cluster.rss_kib(at)).collect()).unwrap_or_default()
}

/// Own cluster only: every node's memory is back to about what it was.
fn assert_memory_back(broker: &Broker, before: &[u64], slack_kib: u64) {
    let mut now = Vec::new();
    let back = eventually(Duration::from_secs(15), || {
        now = rss(broker);
        now.iter().zip(before).all(|(now, before)| *now <= before + slack_kib)
    });
    assert!(back, "VmRSS in KiB before {before:?}, after {now:?}");
}

/// A new queue in the same shard as `other`, where that can be known. New queues go where the fewest are, so those elsewhere stay until
/// one came there.
fn neighbour(broker: &Broker, other: &str) -> String {
    let mut elsewhere = Vec::new();
    let found = (0..50).find_map(|_| {
        let queue = unique("neighbour");
        broker.declare_durable(0, &queue);
        let Some(cluster) = broker.cluster() else { return Some(queue) };
        if cluster.queue_shard(&queue) == cluster.queue_shard(other) {
            return Some(queue);
        }
        elsewhere.push(queue);
        None
    });
    for queue in elsewhere {
        broker.connect(0).delete(1, &queue).unwrap();
    }
    found.unwrap_or_else(|| panic!("no queue gets into the shard of {other}"))
}

/// Publishes, gets and acknowledges one message after the other on one connection until told to stop; `done` counts them.
fn talk_to_itself(mut client: Connection, queue: &str, stop: &AtomicBool, done: &AtomicU32) {
    client.confirm_select(1).unwrap();
    client.consume(1, queue, "self", &[]).unwrap();
    let mut number = 0u32;
    while !stop.load(Ordering::Relaxed) {
        client.publish(1, queue, &number.to_be_bytes()).unwrap();
        let (mut confirmed, mut delivered) = (false, false);
        while !(confirmed && delivered) {
            match message_event(&mut client, Duration::from_secs(20)).unwrap() {
                Some(Incoming::Confirm { nack: false, .. }) => confirmed = true,
                Some(Incoming::Deliver(_, message)) => {
                    assert_eq!((message.redelivered, message.body.as_slice()), (false, number.to_be_bytes().as_slice()));
                    client.ack(1, message.tag, false).unwrap();
                    delivered = true;
                }
                other => panic!("message {number}, confirmed {confirmed}, delivered {delivered}: {other:?}"),
            }
        }
        number += 1;
        done.store(number, Ordering::Relaxed);
    }
    client.close().unwrap();
}

#[test]
fn a_consumer_that_never_reads_does_not_hurt_others() {
    let _alone = alone();
    let broker = Broker::shared();
    let big = unique("never-reads");
    broker.declare_durable(0, &big);
    let (small, own) = (neighbour(&broker, &big), neighbour(&broker, &big));
    let at = broker.node_away_from_leader(&big, 0);
    let before = rss(&broker);
    let mut deaf = broker.connect(at);
    let mut out = Vec::new();
    encode::consume(&mut out, 1, &big, "deaf", 0, &[]); // prefetch 0: as much as the broker likes to send
    deaf.send(&out).unwrap();
    let polite = Polite::start(&broker, at, &small, 300);
    let (stop, talked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let talking = {
        let (stop, talked, client, own_queue) = (stop.clone(), talked.clone(), broker.connect(at), own.clone());
        std::thread::spawn(move || talk_to_itself(client, &own_queue, &stop, &talked))
    };
    let oracle = Arc::new(Oracle::default());
    let options = PublisherOptions { size: 1 << 20, rate: 8, window: 4, drain: Duration::from_secs(30) };
    let publisher = load::publish(&oracle, &broker.dial(at), 7, &big, &options);
    sleep(Duration::from_secs(6));
    let goes_on = eventually(Duration::from_secs(30), || oracle.confirmed_count() >= 20);
    assert!(goes_on, "publishing to the deaf consumer's queue stood still: {}", oracle.findings());
    let goes_on = eventually(Duration::from_secs(30), || talked.load(Ordering::Relaxed) >= 30);
    assert!(goes_on, "a client that publishes and acknowledges on one connection came through {} times", talked.load(Ordering::Relaxed));
    let during = rss(&broker);
    let report = publisher.stop();
    assert!(report.closes.is_empty(), "{:?}", report.closes);
    let findings = oracle.findings();
    assert!(findings.confirmed >= 20 && findings.unknown == 0, "publishing to the deaf consumer's queue stood still: {findings}");
    polite.finish(Duration::from_secs(2));
    stop.store(true, Ordering::Relaxed);
    talking.join().expect("unharmed");
    println!("{} MiB published; VmRSS in KiB before {before:?}, during {during:?}", findings.confirmed);
    drop(deaf);
    let mut reader = broker.connect(at);
    reader.qos(1, 5).unwrap();
    reader.consume(1, &big, "reads", &[]).unwrap();
    let mut got = 0;
    while got < findings.confirmed {
        match message_event(&mut reader, Duration::from_secs(20)).unwrap() {
            Some(Incoming::Deliver(_, message)) => {
                assert!(message.redelivered || message.body.len() == 1 << 20);
                reader.ack(1, message.tag, false).unwrap();
                got += 1;
            }
            other => panic!("after {got} of {}: {other:?}", findings.confirmed),
        }
    }
    reader.close().unwrap();
    for queue in [&big, &small, &own] {
        broker.connect(at).delete(1, queue).unwrap();
    }
}

#[test]
fn ten_thousand_channels_open_work_and_leave_nothing_behind() {
    let _alone = alone();
    let broker = Broker::shared();
    let queue = unique("channels");
    broker.declare_durable(0, &queue);
    let other_queue = broker.declare_led_elsewhere(0, "channels-others");
    let polite = Polite::start(&broker, 0, &other_queue, 100);
    let open_all = |wanted: usize| {
        let mut connections: Vec<(Connection, u16)> = Vec::new();
        let mut open = 0;
        while open < wanted {
            let mut connection = Connection::open(&broker.dial(connections.len() % broker.nodes())).unwrap();
            let count = usize::from(connection.channel_max).min(2000).min(wanted - open) as u16;
            let mut out = Vec::new();
            (1..=count).for_each(|channel| encode::channel_open(&mut out, channel));
            connection.send(&out).unwrap();
            (1..=count).for_each(|_| drop(connection.answer((20, 11)).unwrap()));
            open += usize::from(count);
            connections.push((connection, count));
        }
        connections
    };
    drop(open_all(10_000)); // what a node keeps for later use is not a leak
    sleep(Duration::from_millis(500));
    let before = rss(&broker);
    let mut connections = open_all(10_000);
    let mut expected = 0;
    for (connection, count) in &mut connections {
        let mut out = Vec::new();
        for channel in 1..=*count {
            let route = encode::Route { channel, exchange: "", key: &queue, mandatory: false };
            encode::publish(&mut out, route, &channel.to_be_bytes(), connection.frame_max);
        }
        connection.send(&out).unwrap();
        expected += u32::from(*count);
    }
    let mut control = broker.connect(0);
    let mut ready = 0;
    let all = eventually(Duration::from_secs(60), || {
        ready = control.declare(1, &queue, &QueueOptions::look()).unwrap().messages;
        ready == expected
    });
    assert!(all, "{ready} of {expected} messages, one from each channel, are in the queue");
    for (connection, count) in &mut connections {
        connection.close_channel(*count).unwrap();
    }
    connections.into_iter().for_each(|(connection, _)| connection.close().unwrap());
    control.delete(1, &queue).unwrap();
    assert_memory_back(&broker, &before, RSS_SLACK_KIB);
    polite.finish(Duration::from_secs(5));
    control.delete(1, &other_queue).unwrap();
}

/// Messages are announced on channels `1..=channels`, all of them larger than what comes of them.
fn begin_bodies(connection: &mut Connection, queue: &str, channels: u16, (announced, sent): (usize, usize)) -> Result<(), ClientError> {
    let mut open = Vec::new();
    (2..=channels).for_each(|channel| encode::channel_open(&mut open, channel)); // 1 is open
    connection.send(&open)?;
    (2..=channels).try_for_each(|_| connection.answer((20, 11)).map(drop))?;
    let body = vec![7; sent];
    for channel in 1..=channels {
        let (mut out, route) = (Vec::new(), encode::Route { channel, exchange: "", key: queue, mandatory: false });
        encode::publish(&mut out, route, &body, connection.frame_max);
        // The size stands behind class and weight in the frame behind the method's.
        let method = usize::try_from(u32::from_be_bytes(out[3..7].try_into().unwrap())).unwrap();
        let size_at = 7 + method + 1 + 7 + 4;
        assert_eq!(out[size_at..size_at + 8], (sent as u64).to_be_bytes());
        out[size_at..size_at + 8].copy_from_slice(&(announced as u64).to_be_bytes());
        connection.send(&out)?;
    }
    Ok(())
}

/// The code with which the node ended the connection, if it did.
fn end_of(connection: &mut Connection) -> Option<u16> {
    loop {
        match connection.event_within(Duration::from_secs(30)) {
            Ok(Some(Incoming::ConnectionClose { code, .. })) => return Some(code),
            Ok(Some(_)) => (),
            Ok(None) | Err(_) => return None,
        }
    }
}

#[test]
fn bodies_that_never_end_are_bounded_for_each_connection_and_leave_nothing_behind() {
    let test = "bodies_that_never_end_are_bounded_for_each_connection_and_leave_nothing_behind";
    let _alone = alone();
    let broker = Broker::shared();
    if broker.cluster().is_none() {
        println!("{test}: left out, the limit is ours");
        return;
    }
    let (queue, other_queue) = (broker.declare_led_elsewhere(0, "endless"), broker.declare_led_elsewhere(0, "endless-others"));
    let polite = Polite::start(&broker, 0, &other_queue, 100);
    let begin = |channels, sizes| {
        let mut connection = broker.connect(0);
        begin_bodies(&mut connection, &queue, channels, sizes).unwrap();
        connection
    };
    let (large, piece) = (1 << 20, 500 << 10);
    let below = (limits::CONNECTION_ASSEMBLY_BYTES / piece - 1) as u16;
    let (mut control, mut ended) = (broker.connect(0), 0);
    let mut end_all = |clients: &mut [Connection]| {
        for client in clients.iter_mut() {
            let (mut rest, most) = (Vec::new(), client.frame_max as usize - 8);
            vec![7; large - piece].chunks(most).for_each(|piece| encode::frame(&mut rest, encode::FRAME_BODY, 1, piece));
            client.send(&rest).unwrap();
        }
        ended += clients.len() as u32;
        let mut ready = 0;
        let all = eventually(Duration::from_secs(60), || {
            ready = control.declare(1, &queue, &QueueOptions::look()).unwrap().messages;
            ready == ended
        });
        assert!(all, "{ready} of {ended} messages came to their end");
    };
    // What the nodes keep of the latest messages of this size, which came to their end, is not a leak.
    end_all(&mut [begin(2, (large, piece)), begin(2, (large, piece)), begin(2, (large, piece))]);
    let before = rss(&broker);
    let mut nearly: Vec<Connection> = (0..3).map(|_| begin(below, (large, piece))).collect();
    // What is only announced costs nothing.
    let announced = begin(2000, (limits::MESSAGE_BYTES, 1));
    let mut over = broker.connect(0);
    // It may be cut while it sends.
    let _ = begin_bodies(&mut over, &queue, below + 10, (large, piece));
    assert_eq!(end_of(&mut over), Some(506), "more than {} bytes of unfinished messages", limits::CONNECTION_ASSEMBLY_BYTES);
    let during = rss(&broker);
    println!("{test}: VmRSS in KiB before {before:?}, during {during:?}");
    // A buffer that grows has room for twice of what it holds.
    let bound = (2 * (nearly.len() + 1) * limits::CONNECTION_ASSEMBLY_BYTES / 1024) as u64;
    assert!(during[0] <= before[0] + bound, "VmRSS in KiB before {before:?}, during {during:?}");
    // Those below the limit can still end what they began.
    end_all(&mut nearly);
    drop((nearly, announced, over));
    control.delete(1, &queue).unwrap();
    assert_memory_back(&broker, &before, RSS_SLACK_KIB);
    polite.finish(Duration::from_secs(5));
    control.delete(1, &other_queue).unwrap();
}

/// Reads until the other side closes; how long that took, `None` if it did not within `most`.
fn closed_after(socket: &mut TcpStream, most: Duration) -> Option<Duration> {
    let began = Instant::now();
    let mut bytes = [0; 4096];
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    while began.elapsed() < most {
        match socket.read(&mut bytes) {
            Ok(0) => return Some(began.elapsed()),
            Ok(_) => (),
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => (),
            Err(_) => return Some(began.elapsed()),
        }
    }
    None
}

#[test]
fn slow_and_silent_handshakes_are_cut_and_do_not_hurt_others() {
    let _alone = alone();
    let broker = Broker::shared();
    let queue = unique("loris");
    broker.declare_durable(0, &queue);
    let before = rss(&broker);
    let polite = Polite::start(&broker, 0, &queue, 200);
    let connect = |_| TcpStream::connect(&broker.dial(0).address).unwrap();
    let mut silent: Vec<TcpStream> = (0..150).map(connect).collect();
    let mut slow: Vec<TcpStream> = (0..50).map(connect).collect();
    let mut stuck: Vec<TcpStream> = (0..50).map(connect).collect();
    stuck.iter_mut().for_each(|socket| socket.write_all(encode::PROTOCOL_HEADER).unwrap()); // never answers connection.start
    let mut start_ok = encode::PROTOCOL_HEADER.to_vec();
    encode::start_ok(&mut start_ok, "guest", "guest");
    let began = Instant::now();
    for byte in start_ok.iter().cycle() {
        // one byte at a time, as slowly as keeps the connection from being idle
        slow.retain_mut(|socket| socket.write_all(&[*byte]).is_ok());
        if slow.is_empty() || began.elapsed() > HANDSHAKE_LIMIT {
            break;
        }
        sleep(Duration::from_millis(250));
    }
    assert!(slow.is_empty(), "{} slow handshakes are still open after {:?}", slow.len(), began.elapsed());
    for (kind, sockets) in [("silent", &mut silent), ("stuck", &mut stuck)] {
        let open = sockets.iter_mut().filter_map(|socket| closed_after(socket, Duration::from_secs(1)).is_none().then_some(())).count();
        assert_eq!(open, 0, "{kind} connections are still open after {:?}", began.elapsed());
    }
    polite.finish(Duration::from_secs(2));
    assert_memory_back(&broker, &before, RSS_SLACK_KIB);
    broker.connect(0).delete(1, &queue).unwrap();
}

#[test]
fn a_client_that_falls_silent_is_cut_by_its_heartbeat_and_gives_back_what_it_held() {
    let _alone = alone();
    let broker = Broker::shared();
    let queue = unique("half-open");
    broker.declare_durable(0, &queue);
    let mut publisher = broker.connect(broker.nodes() - 1);
    publisher.confirm_select(1).unwrap();
    publisher.publish(1, &queue, b"held").unwrap();
    assert!(matches!(message_event(&mut publisher, Duration::from_secs(30)), Ok(Some(Incoming::Confirm { nack: false, .. }))));
    let mut silent = Connection::open_with_channel(&Dial { heartbeat_s: 1, ..broker.dial(0) }).unwrap();
    assert_eq!(silent.heartbeat_s, 1);
    let own = silent.declare(1, "", &QueueOptions { exclusive: true, ..QueueOptions::default() }).unwrap().name;
    silent.consume(1, &queue, "c", &[]).unwrap();
    assert!(matches!(message_event(&mut silent, Duration::from_secs(30)), Ok(Some(Incoming::Deliver(..)))));
    let began = Instant::now();
    // From here on it sends nothing, but keeps its socket open, as a machine that lost its power would.
    let mut other = broker.connect(1 % broker.nodes());
    let mut again = None;
    eventually(Duration::from_secs(30), || {
        again = other.get(1, &queue).unwrap();
        again.is_some()
    });
    let (message, _) = again.expect("the message never came back");
    assert!(message.redelivered);
    println!("given back after {} ms at a heartbeat of 1 s", began.elapsed().as_millis());
    other.ack(1, message.tag, false).unwrap();
    let gone = eventually(Duration::from_secs(30), || {
        broker.connect(0).declare(1, &own, &QueueOptions::look()).is_err_and(|e| e.code() == Some(404))
    });
    assert!(gone, "its exclusive queue is still there");
    other.delete(1, &queue).unwrap();
    drop(silent);
}

/// Heartbeats that came within `most`, while the client sends its own.
fn beat(client: &mut Connection, most: Duration) -> u32 {
    let (mut came, until) = (0, Instant::now() + most);
    let mut heartbeat = Vec::new();
    encode::frame(&mut heartbeat, encode::FRAME_HEARTBEAT, 0, b"");
    while Instant::now() < until {
        client.send(&heartbeat).unwrap();
        match client.event_within(Duration::from_millis(250)) {
            Ok(Some(Incoming::Heartbeat)) => came += 1,
            Ok(None | Some(Incoming::Blocked(_) | Incoming::Unblocked)) => (),
            other => panic!("{other:?}"),
        }
    }
    came
}

#[test]
fn a_connection_whose_packets_are_dropped_is_ended_by_heartbeats_on_both_sides_and_hurts_nobody_else() {
    let _alone = alone();
    let broker = Broker::shared();
    let queue = broker.declare_led_elsewhere(0, "half-open");
    let other_queue = broker.declare_led_elsewhere(0, "half-open-others");
    let polite = Polite::start(&broker, 0, &other_queue, 200);
    let proxy = Proxy::to(&broker.dial(0).address);
    let dial = Dial { address: proxy.address(), heartbeat_s: 1, ..broker.dial(0) };
    let mut client = Connection::open_with_channel(&dial).unwrap();
    client.consume(1, &queue, "c", &[]).unwrap();
    let mut publisher = broker.connect(0);
    publisher.publish(1, &queue, b"held").unwrap();
    assert!(matches!(message_event(&mut client, Duration::from_secs(30)), Ok(Some(Incoming::Deliver(..)))));
    // Idle, and alive by heartbeats alone: many times longer than either side waits for one.
    let came = beat(&mut client, Duration::from_secs(6));
    assert!(came >= 4, "{came} heartbeats in 6 s at an interval of 1 s");

    let died = Instant::now();
    proxy.die();
    // The client's side: two intervals without a frame, and it knows.
    beat(&mut client, Duration::from_millis(100)); // what was under way
    assert_eq!(beat(&mut client, Duration::from_secs(3)), 0, "nothing comes any more");
    // The node's side.
    assert!(eventually(Duration::from_secs(30), || proxy.closed_by_node().is_some()), "the node still takes it for alive");
    println!("ended by the node {} ms after the last packet", (proxy.closed_by_node().unwrap() - died).as_millis());
    let mut again = None;
    eventually(Duration::from_secs(30), || {
        again = publisher.get(1, &queue).unwrap();
        again.is_some()
    });
    let (message, _) = again.expect("what it held never came back");
    assert!(message.redelivered && message.body == b"held");
    publisher.ack(1, message.tag, false).unwrap();
    polite.finish(Duration::from_secs(2));
    drop(client);
    for queue in [queue, other_queue] {
        publisher.delete(1, &queue).unwrap();
    }
}
