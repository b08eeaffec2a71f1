//! Connections that have proved nothing yet: so many and no more. When all places are taken, the oldest connection of the address that has
//! the most of them is cut: whoever fills the port drives out his own, and not the other nodes. Used by `server`.

use parking_lot::Mutex;
use rustix::net::{Shutdown, shutdown};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// All of them.
pub(super) struct Strangers {
    places: usize,
    present: Mutex<Present>,
}

#[derive(Default)]
struct Present {
    last: u64,
    /// By number: older ones first. The descriptor is another one of the same socket, good for nothing but its end.
    sockets: BTreeMap<u64, (IpAddr, OwnedFd)>,
}

/// A stranger's place; free again when it is dropped.
pub(super) struct Place {
    strangers: Arc<Strangers>,
    number: u64,
}

impl Strangers {
    pub(super) fn new(places: usize) -> Strangers {
        Strangers { places, present: Mutex::default() }
    }

    /// A place for a new connection, if need be another one's.
    ///
    /// # Errors
    /// No descriptors left.
    pub(super) fn admit(self: &Arc<Self>, socket: &impl AsFd, from: IpAddr) -> io::Result<Place> {
        let socket = socket.as_fd().try_clone_to_owned()?;
        let mut present = self.present.lock();
        while present.sockets.len() >= self.places {
            present.cut_one();
        }
        present.last += 1;
        let number = present.last;
        present.sockets.insert(number, (from, socket));
        drop(present);
        Ok(Place { strangers: self.clone(), number })
    }
}

impl Present {
    fn cut_one(&mut self) {
        let mut counts = HashMap::<IpAddr, usize>::new();
        self.sockets.values().for_each(|(from, _)| *counts.entry(*from).or_default() += 1);
        let Some(most) = counts.values().max().copied() else { return };
        let oldest = self.sockets.iter().find(|(_, (from, _))| counts.get(from) == Some(&most)).map(|(number, _)| *number);
        let Some((from, socket)) = oldest.and_then(|number| self.sockets.remove(&number)) else { return };
        tracing::warn!(%from, "too many connections without a proof, the oldest of this address is cut");
        // It may have ended already.
        let _ = shutdown(socket, Shutdown::Both);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.strangers.present.lock().sockets.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    fn is_cut(socket: &mut UnixStream) -> bool {
        socket.set_read_timeout(Some(Duration::from_millis(10))).expect("a timeout");
        matches!(socket.read(&mut [0]), Ok(0))
    }

    #[test]
    fn who_takes_all_places_loses_his_own_and_a_free_place_is_free() {
        let strangers = Arc::new(Strangers::new(4));
        let (noisy, node) = (IpAddr::from([10, 0, 0, 66]), IpAddr::from([10, 0, 0, 1]));
        let come = |from| {
            let (near, far) = UnixStream::pair().expect("a pair");
            (strangers.admit(&near, from).expect("a place"), near, far)
        };
        let mut nodes_own = come(node);
        let mut others: Vec<_> = (0..3).map(|_| come(noisy)).collect();
        assert!(!others.iter_mut().any(|(_, _, far)| is_cut(far)));
        others.push(come(noisy));
        assert!(is_cut(&mut others[0].2) && !is_cut(&mut others[1].2));
        let mut another = come(node);
        assert!(is_cut(&mut others[1].2) && !is_cut(&mut others[2].2));
        assert!(!is_cut(&mut nodes_own.2) && !is_cut(&mut another.2));
        // Who has proved itself, or is gone, takes no place: those that were cut have none already.
        drop(others.drain(..3));
        let mut more = come(noisy);
        assert!(!is_cut(&mut others[0].2) && !is_cut(&mut more.2));
    }
}
