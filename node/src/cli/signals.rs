//! SIGTERM and SIGINT as a future, for `node` (hand over, flush, exit 0) and the launcher. Listens from the moment it is made, so
//! no signal is lost between start and wait.

use std::io;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Asks of the operator to stop.
#[derive(Debug)]
pub struct Shutdown {
    terminate: Signal,
    interrupt: Signal,
}

impl Shutdown {
    /// Listen from now on; the default action of both signals is off.
    ///
    /// # Errors
    /// The system refuses a handler.
    pub fn listen() -> io::Result<Shutdown> {
        Ok(Shutdown { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Done at the next SIGTERM or SIGINT, with its name. Cancel safe; a later call waits for another one.
    pub async fn requested(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
