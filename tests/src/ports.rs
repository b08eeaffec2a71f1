//! Free ports for a cluster, below the range that the system hands out to connecting sockets.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

const FIRST: u32 = 10_200;
const LAST: u32 = 32_000;

/// Ports of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// AMQP.
    pub amqp: u16,
    /// AMQP over TLS, where it is served.
    pub amqps: u16,
    /// Streams.
    pub stream: u16,
    /// RocketMQ over HTTP.
    pub rocketmq: u16,
    /// Streams over TLS, where they are served.
    pub stream_tls: u16,
    /// Management HTTP.
    pub management: u16,
    /// Peers.
    pub peer: u16,
}

/// Ports for so many nodes, all free a moment ago; no two calls of a process give the same.
pub fn take(nodes: usize) -> Vec<Ports> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let spread = std::process::id().wrapping_mul(97);
    let mut free = Vec::with_capacity(nodes * 7);
    while free.len() < nodes * 7 {
        let at = spread.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % (LAST - FIRST);
        let port = (FIRST + at) as u16;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            free.push(port);
        }
    }
    let ports = |p: &[u16]| Ports { amqp: p[0], amqps: p[1], stream: p[2], stream_tls: p[3], management: p[4], peer: p[5], rocketmq: p[6] };
    free.chunks(7).map(ports).collect()
}
