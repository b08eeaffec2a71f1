//! Support for tests that start real Warren processes: a cluster of them, clients that never reconnect, and an oracle that judges.
//!
//! Variables: `WARREN_TEST_URIS=a,b,c` runs what makes sense against a running broker instead of an own cluster;
//! `WARREN_TEST_SEED` repeats a run; `WARREN_TEST_SECONDS` is the length of each fault loop (60);
//! `WARREN_TEST_BINARY` names a `warren` to use instead of building one; `WARREN_TEST_KEEP=1` keeps data directories and logs;
//! `WARREN_TEST_CLIENTS=all` fails when a client cannot be had (Node, Go), instead of leaving it out.

pub mod backlog;
pub mod broker;
pub mod certificates;
pub mod chance;
pub mod clients;
pub mod cluster;
pub mod ctl;
pub mod load;
pub mod management;
pub mod oracle;
pub mod polite;
pub mod ports;
pub mod proxy;
pub mod secured;
pub mod sim;
pub mod small_disk;
pub mod stream_client;
pub mod stream_clients;

pub use backlog::Backlog;
pub use broker::Broker;
pub use chance::Chance;
pub use cluster::{Cluster, ClusterOptions};
pub use ctl::{Ctl, refusal};
pub use warren::bench::client;

use std::time::{Duration, Instant};

/// Length of a fault loop: `WARREN_TEST_SECONDS`, else 60.
pub fn fault_seconds() -> Duration {
    let given = std::env::var("WARREN_TEST_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(given.unwrap_or(60))
}

/// Ask every 20 ms until it holds; false when it did not within `most`.
pub fn eventually(most: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + most;
    loop {
        if holds() {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The next event that is about a message; `None` when there was none for `patience`. On a starved machine a node's routing lease may lapse
/// at any time: then it says that it is blocked, and goes on a moment later.
///
/// # Errors
/// As the connection's.
pub fn message_event(connection: &mut client::Connection, patience: Duration) -> Result<Option<client::Incoming>, client::ClientError> {
    use client::Incoming;
    loop {
        match connection.event_within(patience) {
            Ok(Some(Incoming::Blocked(_) | Incoming::Unblocked | Incoming::Heartbeat)) => (),
            other => return other,
        }
    }
}

/// A name that no other test uses.
pub fn unique(what: &str) -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{what}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
