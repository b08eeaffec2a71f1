//! The ways between the nodes: each node is told that its peers are at ports of this process, which passes bytes on. A way can be cut, one
//! direction at a time, as a network that loses all packets: both ends wait, and what was on its way arrives when it is mended.
//! Used by `nodes`.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const BUFFER_BYTES: usize = 64 << 10;

/// From a node to a node.
type Direction = (u16, u16);

/// All ways; they end with it.
#[derive(Debug)]
pub(super) struct Links {
    cut_tx: watch::Sender<BTreeSet<Direction>>,
}

impl Links {
    pub(super) fn new() -> Links {
        Links { cut_tx: watch::Sender::default() }
    }

    /// The address where node `from` finds node `to`, which listens at `target`.
    ///
    /// # Errors
    /// No port is free.
    pub(super) async fn open(&self, from: u16, to: u16, target: SocketAddr) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        tokio::spawn(serve(listener, (from, to), target, self.cut_tx.subscribe()));
        Ok(address)
    }

    /// No byte that `from` sends reaches `to` from now on.
    pub(super) fn cut(&self, from: u16, to: u16) {
        self.cut_tx.send_modify(|cut| _ = cut.insert((from, to)));
    }

    /// Everything passes again.
    pub(super) fn mend(&self) {
        self.cut_tx.send_modify(BTreeSet::clear);
    }
}

async fn serve(listener: TcpListener, way: Direction, target: SocketAddr, mut cut_rx: watch::Receiver<BTreeSet<Direction>>) {
    let (from, to) = way;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = over(&mut cut_rx) => return,
        };
        let Ok((near, _)) = accepted else { continue };
        let cut_rx = cut_rx.clone();
        tokio::spawn(async move {
            let Ok(far) = TcpStream::connect(target).await else { return };
            let _ = (near.set_nodelay(true), far.set_nodelay(true));
            let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
            let mut over_rx = cut_rx.clone();
            tokio::select! {
                () = carry(near_in, far_out, (from, to), cut_rx.clone()) => {}
                () = carry(far_in, near_out, (to, from), cut_rx) => {}
                () = over(&mut over_rx) => {}
            }
        });
    }
}

/// Until nobody can cut any more.
async fn over(cut_rx: &mut watch::Receiver<BTreeSet<Direction>>) {
    while cut_rx.changed().await.is_ok() {}
}

/// Passes bytes on while the way is not cut; returns at the end of the bytes, which is a message too and waits like one.
async fn carry(mut input: OwnedReadHalf, mut output: OwnedWriteHalf, way: Direction, mut cut_rx: watch::Receiver<BTreeSet<Direction>>) {
    let mut bytes = vec![0; BUFFER_BYTES];
    loop {
        let read = input.read(&mut bytes).await.unwrap_or(0);
        if cut_rx.wait_for(|cut| !cut.contains(&way)).await.is_err() || read == 0 {
            return;
        }
        if output.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Long enough that a byte would have come.
    const SILENCE: Duration = Duration::from_millis(200);

    /// Both ends of a connection from node 1 to node 2.
    async fn connected(links: &Links) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let way = links.open(1, 2, listener.local_addr().unwrap()).await.unwrap();
        let near = TcpStream::connect(way).await.unwrap();
        (near, listener.accept().await.unwrap().0)
    }

    async fn passes(from: &mut TcpStream, to: &mut TcpStream, byte: u8) {
        from.write_u8(byte).await.unwrap();
        assert_eq!(to.read_u8().await.unwrap(), byte);
    }

    async fn is_silent(socket: &mut TcpStream) -> bool {
        tokio::time::timeout(SILENCE, socket.read_u8()).await.is_err()
    }

    #[tokio::test]
    async fn one_direction_is_cut_and_what_waited_comes_when_it_is_mended() {
        let links = Links::new();
        let (mut near, mut far) = connected(&links).await;
        passes(&mut near, &mut far, 1).await;
        links.cut(1, 2);
        near.write_u8(2).await.unwrap();
        assert!(is_silent(&mut far).await);
        passes(&mut far, &mut near, 3).await;
        links.mend();
        assert_eq!(far.read_u8().await.unwrap(), 2);
        passes(&mut near, &mut far, 4).await;
    }

    #[tokio::test]
    async fn answers_are_cut_where_the_other_direction_is() {
        let links = Links::new();
        let (mut near, mut far) = connected(&links).await;
        links.cut(2, 1);
        passes(&mut near, &mut far, 1).await;
        far.write_u8(2).await.unwrap();
        assert!(is_silent(&mut near).await);
        links.mend();
        assert_eq!(near.read_u8().await.unwrap(), 2);
    }

    #[tokio::test]
    async fn an_end_is_passed_on_but_not_over_a_way_that_is_cut() {
        let links = Links::new();
        let (near, mut far) = connected(&links).await;
        links.cut(1, 2);
        drop(near);
        assert!(is_silent(&mut far).await);
        links.mend();
        assert!(far.read_u8().await.is_err());
    }

    #[tokio::test]
    async fn the_ways_end_with_their_owner() {
        let links = Links::new();
        let (mut near, _far) = connected(&links).await;
        drop(links);
        assert!(near.read_u8().await.is_err());
    }
}
