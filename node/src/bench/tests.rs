//! The bench against a broker of a page that breaks its promises on purpose: each breach must be named, and a good run must pass.

use super::client::encode::{self, FRAME_BODY, FRAME_METHOD};
use super::client::frames::{Frame, FrameBuffer};
use super::report::Figures;
use super::{BenchArgs, load, run};
use clap::Parser;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// What goes wrong, at the 100th message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Breach {
    None,
    Lose,
    Repeat,
    Swap,
    /// The message comes behind the tenth after it.
    SwapTen,
    Corrupt,
    Redeliver,
    ConfirmTwice,
    Refuse,
    CutConsumer,
    LateConfirms,
}

const AT: u64 = 100;

/// One queue, one consumer, no memory.
#[derive(Clone)]
struct Careless {
    breach: Breach,
    consumer: Arc<Mutex<Option<TcpStream>>>,
    /// A body that waits for the next one, to be overtaken.
    held: Arc<Mutex<Option<Vec<u8>>>>,
    ready: Arc<Mutex<u32>>,
    /// Last bytes of content headers.
    heads: Arc<Mutex<Vec<u8>>>,
}

impl Careless {
    /// Its address, and the last bytes of the content headers that it got.
    fn start(breach: Breach) -> (String, Arc<Mutex<Vec<u8>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let broker = Careless { breach, consumer: Arc::default(), held: Arc::default(), ready: Arc::default(), heads: Arc::default() };
        let heads = broker.heads.clone();
        thread::spawn(move || {
            for socket in listener.incoming() {
                let broker = broker.clone();
                thread::spawn(move || broker.serve(socket.unwrap()));
            }
        });
        (address, heads)
    }

    fn serve(&self, mut socket: TcpStream) -> Option<()> {
        socket.set_nodelay(true).ok()?;
        socket.read_exact(&mut [0; 8]).ok()?;
        let mut out = Vec::new();
        encode::method(&mut out, 0, (10, 10), |out| {
            out.extend_from_slice(&[0, 9, 0, 0, 0, 0]);
            encode::long_string(out, b"PLAIN");
            encode::long_string(out, b"en_US");
        });
        socket.write_all(&out).ok()?;
        let (mut frames, mut number) = (FrameBuffer::default(), 0);
        loop {
            let frame = frames.next(&mut socket).ok()?;
            out.clear();
            self.answer(&frame, frames.bytes(&frame.payload), &mut number, &mut out, &socket);
            socket.write_all(&out).ok()?;
        }
    }

    fn answer(&self, frame: &Frame, payload: &[u8], number: &mut u64, out: &mut Vec<u8>, socket: &TcpStream) {
        if frame.kind == FRAME_BODY {
            *number += 1;
            self.deliver(*number, payload);
            return self.confirm(*number, out);
        }
        if frame.kind == encode::FRAME_HEADER {
            self.heads.lock().unwrap().extend(payload.last());
        }
        if frame.kind != FRAME_METHOD {
            return;
        }
        let ready = self.ready.lock().unwrap().to_be_bytes();
        let (id, rest): ((u16, u16), &[u8]) = match (payload[1], payload[3]) {
            (10, 11) => ((10, 30), &[7, 255, 0, 2, 0, 0, 0, 60]),
            (10, 40) => ((10, 41), &[0]),
            (10, 50) => ((10, 51), &[]),
            (20, 10) => ((20, 11), &[0, 0, 0, 0]),
            (50, 10) => ((50, 11), &[&[1, b'q'][..], &ready, &[0, 0, 0, 0]].concat()),
            (50, 40) => ((50, 41), &[0, 0, 0, 0]),
            (60, 10) => ((60, 11), &[]),
            (60, 20) => {
                *self.consumer.lock().unwrap() = Some(socket.try_clone().unwrap());
                ((60, 21), &[1, b'c'])
            }
            (85, 10) => ((85, 11), &[]),
            _ => return,
        };
        encode::method(out, frame.channel, id, |out| out.extend_from_slice(rest));
    }

    fn confirm(&self, number: u64, out: &mut Vec<u8>) {
        match self.breach {
            Breach::ConfirmTwice if number == AT => (0..2).for_each(|_| encode::ack(out, 1, number, false)),
            Breach::Refuse if number == AT => encode::nack(out, 1, number, false, false),
            // Out of order, one by one, and `multiple` over what was confirmed before: all of that is allowed.
            Breach::LateConfirms => match number % 4 {
                2 => encode::ack(out, 1, number, false),
                0 => encode::ack(out, 1, number, true),
                _ => (),
            },
            _ => encode::ack(out, 1, number, false),
        }
    }

    fn deliver(&self, number: u64, body: &[u8]) {
        *self.ready.lock().unwrap() += u32::from(number != AT || self.breach != Breach::Lose);
        let mut consumer = self.consumer.lock().unwrap();
        let Some(socket) = consumer.as_mut() else { return };
        let mut out = Vec::new();
        let mut body = body.to_vec();
        match self.breach {
            Breach::Lose if number == AT => return,
            Breach::Swap | Breach::SwapTen if number == AT => return *self.held.lock().unwrap() = Some(body),
            Breach::Corrupt if number == AT => body[20] ^= 1,
            Breach::CutConsumer if number == AT => drop(socket.shutdown(std::net::Shutdown::Both)),
            Breach::Repeat if number == AT => push(&mut out, &body, false),
            _ => (),
        }
        push(&mut out, &body, self.breach == Breach::Redeliver && number == AT);
        let is_time = self.breach != Breach::SwapTen || number == AT + 10;
        if let Some(late) = self.held.lock().unwrap().take_if(|_| is_time) {
            push(&mut out, &late, false);
        }
        drop(socket.write_all(&out));
    }
}

fn push(out: &mut Vec<u8>, body: &[u8], redelivered: bool) {
    encode::method(out, 1, (60, 60), |out| {
        encode::short_string(out, "c");
        out.extend_from_slice(&1u64.to_be_bytes());
        out.push(u8::from(redelivered));
        encode::short_string(out, "");
        encode::short_string(out, "q");
    });
    let mut header = [0; 14];
    header[1] = 60;
    header[4..12].copy_from_slice(&(body.len() as u64).to_be_bytes());
    encode::frame(out, encode::FRAME_HEADER, 1, &header);
    encode::frame(out, FRAME_BODY, 1, body);
}

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: BenchArgs,
}

fn args(breach: Breach) -> BenchArgs {
    args_for(&Careless::start(breach).0)
}

fn args_for(uri: &str) -> BenchArgs {
    Line::parse_from(["bench", "--uris", uri, "--seconds", "0.5", "--drain-seconds", "0.5", "--rate", "2000", "--quiet"]).args
}

fn figures(breach: Breach) -> Figures {
    let args = args(breach);
    load::run(&args.load(), &args.brokers().0, false).unwrap()
}

#[test]
fn a_good_broker_passes() {
    let figures = figures(Breach::None);
    assert!(figures.is_clean(), "{}", figures.text());
    assert!(figures.published > 500 && figures.consumed == figures.published);
}

/// A breach and the figure that must name it.
type Named = (Breach, fn(&Figures) -> u64);

#[test]
fn each_breach_is_named() {
    let count: [Named; 7] = [
        (Breach::Lose, |f| f.lost),
        (Breach::Repeat, |f| f.repeated),
        (Breach::Swap, |f| f.reordered),
        (Breach::Corrupt, |f| f.corrupt),
        (Breach::Redeliver, |f| f.redelivered),
        (Breach::ConfirmTwice, |f| f.bogus_confirms),
        (Breach::CutConsumer, |f| f.failures.len() as u64),
    ];
    for (breach, named) in count {
        let figures = figures(breach);
        assert_eq!(named(&figures), 1, "{breach:?}: {}", figures.text());
        assert!(!figures.is_clean(), "{breach:?}");
    }
}

/// One of another priority may overtake.
#[test]
fn messages_with_priorities_have_each_in_turn_and_those_of_one_stay_in_order() {
    for (breach, reordered) in [(Breach::Swap, 0), (Breach::SwapTen, 1)] {
        let (uri, heads) = Careless::start(breach);
        let args = args_for(&uri);
        let load = super::args::Load { kind: super::args::Kind::Priority, ..args.load() };
        let figures = load::run(&load, &args.brokers().0, false).unwrap();
        assert_eq!((figures.reordered, figures.lost), (reordered, 0), "{breach:?}: {}", figures.text());
        assert_eq!(heads.lock().unwrap()[..12], [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]);
    }
}

#[test]
fn a_refused_message_is_counted_and_not_missed() {
    let figures = figures(Breach::Refuse);
    assert_eq!((figures.nacked, figures.lost, figures.unconfirmed), (1, 0, 0), "{}", figures.text());
}

#[test]
fn confirms_may_come_late_out_of_order_and_together() {
    for (rate, window) in [(0, 8), (2000, 64)] {
        let mut args = args(Breach::LateConfirms);
        (args.rate, args.window) = (rate, window);
        let figures = load::run(&args.load(), &args.brokers().0, false).unwrap();
        assert_eq!((figures.bogus_confirms, figures.lost, figures.repeated), (0, 0, 0), "{}", figures.text());
        assert!(figures.confirmed > 300 && figures.unconfirmed < 4, "{}", figures.text());
    }
}

#[test]
fn without_consumers_what_is_in_the_queue_is_counted() {
    for (breach, lost) in [(Breach::None, 0), (Breach::Lose, 1)] {
        let mut args = args(breach);
        args.consumers = 0;
        let figures = load::run(&args.load(), &args.brokers().0, false).unwrap();
        assert_eq!(figures.lost, lost, "{breach:?}: {}", figures.text());
    }
}

#[test]
fn the_exit_code_says_whether_the_run_was_clean() {
    let code = |breach| format!("{:?}", run(args(breach)));
    assert_eq!(code(Breach::None), format!("{:?}", std::process::ExitCode::SUCCESS));
    assert_eq!(code(Breach::Lose), format!("{:?}", std::process::ExitCode::from(1)));
    let nobody = Line::parse_from(["bench", "--uris", "127.0.0.1:1"]).args;
    assert_eq!(format!("{:?}", run(nobody)), format!("{:?}", std::process::ExitCode::from(2)));
}

#[test]
fn arguments_that_make_no_sense_are_refused() {
    for line in
        [&["--size", "31"][..], &["--window", "0"], &["--seconds", "NaN"], &["--consumers", "1", "--queues", "3", "--producers", "3"]]
    {
        let args = Line::parse_from([&["bench"], line].concat()).args;
        assert!(args.check().is_err(), "{line:?}");
    }
}

#[test]
fn a_load_says_where_its_messages_go_and_how_often_they_are_there() {
    use super::args::Kind;
    let of = |kind| super::args::Load { kind, queues: 3, ..args(Breach::None).load() };
    let (plain, dead, fanout) = (of(Kind::Plain), of(Kind::DeadLetter), of(Kind::Fanout));
    let route = |load: &super::args::Load| load.route_of(4);
    assert_eq!(route(&plain), (String::new(), "bench-1".to_string()));
    assert_eq!(route(&dead), (String::new(), "bench-1-source".to_string()));
    assert_eq!(route(&fanout), ("bench-fanout".to_string(), String::new()));
    assert_eq!([plain.copies(), dead.copies(), fanout.copies()], [1, 1, 3]);
    let (source, arguments) = dead.source("bench-1").unwrap();
    assert_eq!(source, route(&dead).1);
    assert!(
        arguments.iter().any(|(name, value)| name == "x-dead-letter-routing-key" && *value == super::client::Field::Text("bench-1".into()))
    );
    assert!(plain.source("bench-1").is_none());
    assert_ne!(of(Kind::Ttl).arguments(), of(Kind::Priority).arguments());
}
