//! What all loads have in common: the ledger of their protocol, the nodes' addresses, and how far the run is. Clients are threads; each
//! lives one life after another, on the next node when a connection ends. Used by `queues`, `streams`, `rocket` and `run`.

use super::ledger::Ledger;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A client that hears nothing for so long goes elsewhere. Longer than any fault, and than a node without a majority takes to refuse.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);
/// Between two lives.
const PAUSE: Duration = Duration::from_millis(100);

const PUBLISH: u8 = 0;
const DRAIN: u8 = 1;
const STOP: u8 = 2;

/// A protocol under load.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) ledger: Ledger,
    addresses: Vec<String>,
    stage: AtomicU8,
    lives: AtomicU32,
}

impl Load {
    /// `addresses`: where each node serves the protocol.
    pub(super) fn new(ledger: Ledger, addresses: Vec<String>) -> Arc<Load> {
        Arc::new(Load { ledger, addresses, stage: AtomicU8::new(PUBLISH), lives: AtomicU32::new(1) })
    }

    /// The address of a node; they are counted round and round.
    pub(super) fn address(&self, node: usize) -> &str {
        &self.addresses[node % self.addresses.len()]
    }

    pub(super) fn nodes(&self) -> usize {
        self.addresses.len()
    }

    /// New messages are wanted.
    pub(super) fn is_publishing(&self) -> bool {
        self.stage.load(Ordering::Relaxed) == PUBLISH
    }

    pub(super) fn is_over(&self) -> bool {
        self.stage.load(Ordering::Relaxed) == STOP
    }

    /// Publishers wait for their answers and end.
    pub(super) fn drain(&self) {
        self.stage.store(DRAIN, Ordering::Relaxed);
    }

    /// Everybody ends.
    pub(super) fn stop(&self) {
        self.stage.store(STOP, Ordering::Relaxed);
    }

    /// Start a client. `live` is given the number of the life and the node to connect to; an error is a life that was cut short.
    pub(super) fn client<E>(
        self: &Arc<Load>,
        first_node: usize,
        is_wanted: impl Fn(&Load) -> bool + Send + 'static,
        mut live: impl FnMut(&Load, u32, &str) -> Result<(), E> + Send + 'static,
    ) -> JoinHandle<()> {
        let load = self.clone();
        thread::spawn(move || {
            for node in first_node.. {
                if !is_wanted(&load) {
                    return;
                }
                let life = load.lives.fetch_add(1, Ordering::Relaxed);
                if live(&load, life, load.address(node)).is_err() {
                    thread::sleep(PAUSE);
                }
            }
        })
    }
}
