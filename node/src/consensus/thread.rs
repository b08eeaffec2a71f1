//! The thread that all of this room's tasks run on: one, so that a wake-up between them costs no other thread, and its own, so that
//! client load cannot starve elections.

use super::clock;
use std::io;
use std::thread;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// A running runtime. Dropping it drops all its tasks where they stand, soon and on their own thread.
pub(super) struct RaftThread {
    handle: Handle,
    _stop_tx: oneshot::Sender<()>,
}

impl RaftThread {
    pub(super) fn start() -> io::Result<RaftThread> {
        let (runtime, origin) = clock::build(Builder::new_current_thread().thread_name("raft-blocking").enable_all())?;
        let handle = runtime.handle().clone();
        let (stop_tx, stop_rx) = oneshot::channel::<()>();
        thread::Builder::new().name("raft".into()).spawn(move || {
            clock::begin(&runtime, origin);
            let _ = runtime.block_on(stop_rx);
            runtime.shutdown_background();
        })?;
        Ok(RaftThread { handle, _stop_tx: stop_tx })
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }
}
