//! Entries that are sent from the log's files: what a socket refers to stays as it was, however long its client does not read, while the
//! log gives files back and writes on, in this process and in the next.

use super::tests::*;
use super::*;
use crate::model::stored::FileBytes;
use crate::store::disk::{RealDisk, SimDisk};
use rustix::fs::sendfile;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::path::Path;

const LEN: usize = 40_000;

fn large() -> WalConfig {
    WalConfig { file_bytes: 128 << 10, budget_bytes: 1 << 20, catch_up_bytes: 128 << 10, batch_bytes: 64 << 10, ..config() }
}

fn open(dir: &Path) -> Wal {
    Wal::open(Arc::new(RealDisk::new(dir).unwrap()), large()).unwrap()
}

fn bytes_of(index: u64) -> Bytes {
    let Payload::Normal(rope) = entry(1, index, LEN).payload else { panic!("a normal entry") };
    rope.flatten()
}

fn add(wal: &Wal, range: Range<u64>) {
    for index in range {
        wait(|done| wal.append(DATA, vec![entry(1, index, LEN)], done)).unwrap();
    }
}

/// The first entries, sent and not read.
fn sent(wal: &Wal, indices: &[u64]) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (socket, _) = listener.accept().unwrap();
    for stored in wal.read_bodies(DATA, indices).unwrap() {
        let mut bytes: FileBytes = stored.place.expect("it is on disk").part(0..LEN).expect("its file is there");
        while !bytes.is_empty() {
            let mut position = bytes.position();
            let count = sendfile(&socket, &bytes, Some(&mut position), bytes.len()).unwrap();
            bytes.advance(count);
        }
    }
    client
}

fn names(dir: &Path, suffix: &str) -> usize {
    std::fs::read_dir(dir).unwrap().filter(|file| file.as_ref().unwrap().path().to_str().unwrap().ends_with(suffix)).count()
}

fn reads(client: &mut TcpStream, indices: &[u64]) {
    for index in indices {
        let mut read = vec![0; LEN];
        client.read_exact(&mut read).unwrap();
        assert!(read == bytes_of(*index), "entry {index} is not what was sent");
    }
}

#[test]
fn entries_from_disk_say_where_they_lie_and_those_in_memory_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let wal = Wal::open(Arc::new(RealDisk::new(dir.path()).unwrap()), WalConfig { tail_cache_bytes: 2 * LEN + 10, ..large() }).unwrap();
    add(&wal, 1..6);
    wait(|done| wal.append(DATA, vec![entry(1, 6, 100)], done)).unwrap();
    let stored = wal.read_bodies(DATA, &[1, 2, 3, 5, 6, 7]).unwrap();
    let places: Vec<bool> = stored.iter().map(|stored| stored.place.is_some()).collect();
    assert_eq!(places, [true, true, true, false, false], "up to the first one that is not there");
    for (stored, index) in stored.iter().zip([1, 2, 3, 5]) {
        assert_eq!(stored.bytes.flatten(), bytes_of(index));
    }
    let part = stored[1].place.as_ref().unwrap().part(100..300).unwrap();
    let mut read = [0; 200];
    rustix::io::pread(&part, &mut read, part.position()).unwrap();
    assert_eq!(read[..], bytes_of(2)[100..300]);
    drop(part);
    wal.purge(DATA, id(1, 6));
    wal.release(DATA, &[1, 2, 3]);
    add(&wal, 7..12);
    until("the file has gone", || stored[0].place.as_ref().unwrap().part(0..1).is_none());
    let simulated = super::tests::open(&SimDisk::new(1));
    (1..=4).for_each(|index| wait(|done| simulated.append(DATA, vec![entry(1, index, 3000)], done)).unwrap());
    assert!(simulated.read_bodies(DATA, &[1]).unwrap()[0].place.is_none());
}

#[test]
fn what_a_client_has_not_read_yet_is_not_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let wal = open(dir.path());
    add(&wal, 1..8);
    let mut client = sent(&wal, &[1, 2, 3, 4]);
    assert!(names(dir.path(), ".lent") > 0);
    wal.purge(DATA, id(1, 7));
    wal.release(DATA, &(1..=7).collect::<Vec<_>>());
    add(&wal, 8..40);
    until("the lent files are gone, with their names", || names(dir.path(), ".lent") == 0);
    add(&wal, 40..60);
    reads(&mut client, &[1, 2, 3, 4]);
}

#[test]
fn nor_by_the_next_process() {
    let dir = tempfile::tempdir().unwrap();
    let wal = open(dir.path());
    add(&wal, 1..8);
    let mut client = sent(&wal, &[1, 2, 3, 4]);
    drop(wal);
    let wal = open(dir.path());
    wal.purge(DATA, id(1, 7));
    wal.retain_only(DATA, 7, &[]);
    add(&wal, 8..40);
    until("the lent files are gone, with their names", || names(dir.path(), ".lent") == 0);
    add(&wal, 40..60);
    reads(&mut client, &[1, 2, 3, 4]);
}
