//! The bench's streams against a broker of half a page that breaks its promises on purpose: each breach must be named, and a good run must pass.

use super::client::stream::{command, key};
use super::report::Figures;
use super::{BenchArgs, load, scenario};
use clap::Parser;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;

/// What goes wrong, at the 100th message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Breach {
    None,
    Lose,
    Repeat,
    Swap,
    Corrupt,
    Refuse,
    ConfirmTwice,
}

const AT: u64 = 100;

/// One stream, one reader, no memory.
#[derive(Clone)]
struct Careless {
    breach: Breach,
    address: SocketAddr,
    reader: Arc<Mutex<Option<TcpStream>>>,
    /// Nobody has asked to read yet: whoever does is told that there is no replica.
    replica_is_late: Arc<AtomicBool>,
    /// An entry that waits for the next one, to be overtaken.
    held: Arc<Mutex<Option<Vec<u8>>>>,
}

impl Careless {
    /// Its address.
    fn start(breach: Breach) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let replica_is_late = Arc::new(AtomicBool::new(true));
        let broker = Careless { breach, address, reader: Arc::default(), replica_is_late, held: Arc::default() };
        thread::spawn(move || {
            for socket in listener.incoming() {
                let broker = broker.clone();
                thread::spawn(move || broker.serve(socket.unwrap()));
            }
        });
        address.to_string()
    }

    fn serve(&self, mut socket: TcpStream) -> Option<()> {
        let mut number = 0;
        loop {
            let mut size = [0; 4];
            socket.read_exact(&mut size).ok()?;
            let mut frame = vec![0; u32::from_be_bytes(size) as usize];
            socket.read_exact(&mut frame).ok()?;
            let out = match (u16::from_be_bytes([frame[0], frame[1]]), &frame[4..]) {
                (key::PUBLISH, messages) => self.published(&messages[5..], &mut number),
                (key::CREDIT | 0x14, _) => continue,
                (asked, content) => {
                    let late = asked == key::SUBSCRIBE && self.replica_is_late.swap(false, Relaxed);
                    if asked == key::SUBSCRIBE && !late {
                        *self.reader.lock().unwrap() = Some(socket.try_clone().unwrap());
                    }
                    self.answer(asked, &content[..4], if late { 6 } else { 1 })
                }
            };
            socket.write_all(&out).ok()?;
        }
    }

    fn answer(&self, asked: u16, correlation: &[u8], code: u8) -> Vec<u8> {
        let mut out = command(asked | 0x8000, |out| {
            out.extend_from_slice(correlation);
            if asked == key::METADATA {
                out.extend_from_slice(b"\0\0\0\x01\0\x07\0\x09127.0.0.1");
                out.extend_from_slice(&u32::from(self.address.port()).to_be_bytes());
                out.extend_from_slice(b"\0\0\0\x01\0\x05bench\0\x01\0\x07\0\0\0\0");
            } else {
                out.extend_from_slice(&[0, code]);
            }
        });
        if asked == 0x13 {
            out.extend(command(0x14, |out| out.extend_from_slice(&[0, 16, 0, 0, 0, 0, 0, 60])));
        }
        out
    }

    /// Each message is a chunk of its own.
    fn published(&self, mut messages: &[u8], number: &mut u64) -> Vec<u8> {
        let mut out = Vec::new();
        while let [_, _, _, _, _, _, _, _, a, b, c, d, ..] = messages {
            let len = 12 + u32::from_be_bytes([*a, *b, *c, *d]) as usize;
            let (id, entry) = messages[..len].split_at(8);
            messages = &messages[len..];
            *number += 1;
            let is_at = *number == AT;
            let refused = is_at && self.breach == Breach::Refuse;
            out.extend(command(if refused { key::PUBLISH_ERROR } else { key::CONFIRM }, |out| {
                let n = 1 + u32::from(is_at && self.breach == Breach::ConfirmTwice);
                out.push(1);
                out.extend_from_slice(&n.to_be_bytes());
                (0..n).for_each(|_| out.extend_from_slice(id));
                if refused {
                    out.extend_from_slice(&[0, 17]);
                }
            }));
            self.deliver(is_at, entry.to_vec());
        }
        out
    }

    fn deliver(&self, is_at: bool, mut entry: Vec<u8>) {
        let mut entries = Vec::new();
        match self.breach {
            Breach::Lose | Breach::Refuse if is_at => return,
            Breach::Swap if is_at => return *self.held.lock().unwrap() = Some(entry),
            Breach::Corrupt if is_at => entry[20] ^= 1,
            Breach::Repeat if is_at => entries.push(entry.clone()),
            _ => (),
        }
        entries.push(entry);
        entries.extend(self.held.lock().unwrap().take());
        if let Some(socket) = self.reader.lock().unwrap().as_mut() {
            let deliver = command(key::DELIVER, |out| {
                out.extend_from_slice(&[1, 0x50, 0, 0, entries.len() as u8]);
                out.resize(out.len() + 44, 0);
                entries.iter().for_each(|entry| out.extend_from_slice(entry));
            });
            drop(socket.write_all(&deliver));
        }
    }
}

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: BenchArgs,
}

fn figures(breach: Breach, rate: &str) -> Figures {
    let uri = Careless::start(breach);
    let line = ["bench", "--stream-uris", &uri, "--seconds", "0.5", "--drain-seconds", "0.5", "--rate", rate, "--quiet"];
    let args = Line::parse_from(line).args;
    let load = scenario::stream_load(&args);
    load::run(&load, &args.brokers_of(load.kind).0, false).unwrap()
}

#[test]
fn a_good_broker_of_streams_passes_at_any_pace() {
    for rate in ["0", "2000"] {
        let figures = figures(Breach::None, rate);
        assert!(figures.is_clean(), "{}", figures.text());
        assert!(figures.published > 300 && figures.consumed == figures.published, "{}", figures.text());
    }
}

/// A breach and the figure that must name it.
type Named = (Breach, fn(&Figures) -> u64);

#[test]
fn each_breach_of_a_stream_is_named() {
    let count: [Named; 6] = [
        (Breach::Lose, |f| f.lost),
        (Breach::Repeat, |f| f.repeated),
        (Breach::Swap, |f| f.reordered),
        (Breach::Corrupt, |f| f.corrupt),
        (Breach::Refuse, |f| f.nacked),
        (Breach::ConfirmTwice, |f| f.bogus_confirms),
    ];
    for (breach, named) in count {
        let figures = figures(breach, "2000");
        assert_eq!(named(&figures), 1, "{breach:?}: {}", figures.text());
        assert!(!figures.is_clean() || breach == Breach::Refuse, "{breach:?}");
    }
}
