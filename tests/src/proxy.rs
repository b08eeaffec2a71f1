//! A way to a node that can go dead: from then on it takes what both sides send and passes nothing on, and closes nothing, as a network
//! that drops all packets. TCP notices nothing of it for many minutes.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(20);

/// A listener on loopback; what connects to it speaks with the node behind it. Connections end with it.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    dead: AtomicBool,
    over: AtomicBool,
    /// Microseconds after `began` when the node closed a connection of a dead way; 0: not yet.
    closed_us: AtomicU64,
    began: Instant,
}

impl Proxy {
    /// To the node at this address.
    pub fn to(node: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("a listener has an address");
        let state = State { dead: false.into(), over: false.into(), closed_us: AtomicU64::new(0), began: Instant::now() };
        let (state, node) = (Arc::new(state), node.to_owned());
        let shared = state.clone();
        listener.set_nonblocking(true).expect("a listener can be polled");
        thread::spawn(move || {
            while !shared.over.load(Relaxed) {
                match listener.accept() {
                    Ok((client, _)) => join(client, &node, &shared),
                    Err(_) => thread::sleep(POLL),
                }
            }
        });
        Proxy { address, state }
    }

    /// Where to connect to.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Nothing passes any more.
    pub fn die(&self) {
        self.state.dead.store(true, Relaxed);
    }

    /// When the node closed a connection of the dead way.
    pub fn closed_by_node(&self) -> Option<Instant> {
        match self.state.closed_us.load(Relaxed) {
            0 => None,
            us => Some(self.state.began + Duration::from_micros(us)),
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.over.store(true, Relaxed);
    }
}

fn join(client: TcpStream, node: &str, state: &Arc<State>) {
    let Ok(server) = TcpStream::connect(node) else { return };
    for (from, to, of_node) in [(&client, &server, false), (&server, &client, true)] {
        let (from, to, state) = (from.try_clone().expect("a socket"), to.try_clone().expect("a socket"), state.clone());
        thread::spawn(move || carry(from, to, of_node, &state));
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, of_node: bool, state: &State) {
    let _ = from.set_read_timeout(Some(POLL));
    let mut bytes = vec![0; 64 << 10];
    while !state.over.load(Relaxed) {
        let ended = match from.read(&mut bytes) {
            Ok(0) => true,
            Ok(count) => !state.dead.load(Relaxed) && to.write_all(&bytes[..count]).is_err(),
            Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        };
        if ended && state.dead.load(Relaxed) {
            if of_node {
                state.closed_us.store(state.began.elapsed().as_micros() as u64, Relaxed);
            }
            return; // the other side hears nothing of it
        }
        if ended {
            let _ = to.shutdown(std::net::Shutdown::Both);
            return;
        }
    }
    let _ = from.shutdown(std::net::Shutdown::Both);
}
