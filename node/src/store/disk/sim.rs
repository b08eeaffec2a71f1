//! `SimDisk`: a disk in memory that lies as real ones do, from a seed. It keeps what was synced apart from what is only in the page
//! cache; a power cut drops, tears and reorders the latter by 512-byte sectors. Used by crash tests and the cluster simulator.

use super::{Disk, DiskFile};
use parking_lot::{Condvar, Mutex};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, HashMap};
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Duration;

/// What a disk writes atomically, bytes.
const SECTOR: usize = 512;

/// What a crash takes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The process dies; the page cache stays, unsynced writes stay unsynced.
    Process,
    /// Power is lost: each unsynced sector is kept or lost, unsynced names are kept up to a random one.
    Power,
}

/// A simulated disk; clones share it. After `crash` the old handles fail with `BrokenPipe` and the returned disk goes on.
#[derive(Clone)]
pub struct SimDisk {
    core: Arc<Core>,
    life: u64,
}

struct Core {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    rng: StdRng,
    life: u64,
    names: BTreeMap<String, u64>,
    synced_names: BTreeMap<String, u64>,
    name_ops: Vec<NameOp>,
    files: HashMap<u64, Inode>,
    next_inode: u64,
    capacity: u64,
    fail_syncs: u32,
    hang_syncs: bool,
    /// Of files with a temporary name.
    hang_temporary: bool,
    sync_takes: Duration,
    syncs: u64,
    cut_after_writes: Option<u64>,
    /// Writes of nothing but zeros, which prepare files, are not counted.
    cut_says_something: bool,
}

#[derive(Clone)]
enum NameOp {
    Link(String, u64),
    Remove(String),
    Rename(String, String),
}

#[derive(Default)]
struct Inode {
    synced: Vec<u8>,
    cached: Vec<u8>,
    dirty: Vec<(usize, Vec<u8>)>,
}

struct SimFile {
    core: Arc<Core>,
    life: u64,
    inode: u64,
}

impl SimDisk {
    /// An empty disk without limit.
    pub fn new(seed: u64) -> SimDisk {
        let state = State {
            rng: StdRng::seed_from_u64(seed),
            life: 0,
            names: BTreeMap::new(),
            synced_names: BTreeMap::new(),
            name_ops: Vec::new(),
            files: HashMap::new(),
            next_inode: 1,
            capacity: u64::MAX,
            fail_syncs: 0,
            hang_syncs: false,
            hang_temporary: false,
            sync_takes: Duration::ZERO,
            syncs: 0,
            cut_after_writes: None,
            cut_says_something: false,
        };
        SimDisk { core: Arc::new(Core { state: Mutex::new(state), changed: Condvar::new() }), life: 0 }
    }

    /// End this life of the machine (or of the process) and begin the next.
    pub fn crash(&self, crash: Crash) -> SimDisk {
        let mut state = self.core.state.lock();
        state.life += 1;
        (state.hang_syncs, state.hang_temporary) = (false, false);
        state.fail_syncs = 0;
        state.cut_after_writes = None;
        if crash == Crash::Power {
            state.lose_power();
        }
        self.core.changed.notify_all();
        SimDisk { core: self.core.clone(), life: state.life }
    }

    /// Every operation of this life fails after `writes` more writes; call `crash` to go on.
    pub fn stop_after_writes(&self, writes: u64) {
        let mut state = self.core.state.lock();
        (state.cut_after_writes, state.cut_says_something) = (Some(writes), false);
    }

    /// The same, where only writes count that are not all zeros: what prepares files says nothing.
    pub fn stop_after_words(&self, writes: u64) {
        let mut state = self.core.state.lock();
        (state.cut_after_writes, state.cut_says_something) = (Some(writes), true);
    }

    /// `stop_after_writes` has come true.
    pub fn is_stopped(&self) -> bool {
        self.core.state.lock().cut_after_writes == Some(0)
    }

    /// Takes `stop_after_writes` back; false when it is too late.
    pub fn stop_no_more(&self) -> bool {
        let mut state = self.core.state.lock();
        let is_alive = state.cut_after_writes != Some(0);
        if is_alive {
            state.cut_after_writes = None;
        }
        is_alive
    }

    /// The next `count` syncs fail; pages are marked clean all the same, as Linux does.
    pub fn fail_syncs(&self, count: u32) {
        self.core.state.lock().fail_syncs = count;
    }

    /// Syncs of files that are being prepared hang while `hang` is set.
    pub fn hang_files_in_preparation(&self, hang: bool) {
        self.core.state.lock().hang_temporary = hang;
        self.core.changed.notify_all();
    }

    /// Syncs hang while `hang` is set.
    pub fn hang_syncs(&self, hang: bool) {
        self.core.state.lock().hang_syncs = hang;
        self.core.changed.notify_all();
    }

    /// Each sync takes this long, also after a crash.
    pub fn slow_syncs(&self, takes: Duration) {
        self.core.state.lock().sync_takes = takes;
    }

    /// Files may take this many bytes together; growth beyond fails with `StorageFull`.
    pub fn set_capacity(&self, bytes: u64) {
        self.core.state.lock().capacity = bytes;
    }

    /// Flip one bit of a file, on the platter and in the cache.
    pub fn flip_bit(&self, name: &str, bit: u64) {
        let mut state = self.core.state.lock();
        let Some(inode) = state.names.get(name).copied().and_then(|id| state.files.get_mut(&id)) else { return };
        let (byte, mask) = ((bit / 8) as usize, 1 << (bit % 8));
        for image in [&mut inode.synced, &mut inode.cached] {
            if let Some(b) = image.get_mut(byte) {
                *b ^= mask;
            }
        }
    }

    /// A file as the page cache shows it.
    pub fn contents(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.core.state.lock();
        state.names.get(name).and_then(|id| state.files.get(id)).map(|f| f.cached.clone())
    }

    /// Syncs of file contents so far.
    pub fn syncs(&self) -> u64 {
        self.core.state.lock().syncs
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.core.state.lock();
        state.alive(self.life)?;
        f(&mut state)
    }

    fn handle(&self, inode: u64) -> Arc<dyn DiskFile> {
        Arc::new(SimFile { core: self.core.clone(), life: self.life, inode })
    }
}

impl State {
    fn hangs_temporary(&self, inode: u64) -> bool {
        self.hang_temporary && self.names.iter().any(|(name, of)| *of == inode && name.ends_with(".tmp"))
    }

    fn alive(&self, life: u64) -> io::Result<()> {
        if self.life == life && self.cut_after_writes != Some(0) { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    }

    fn lose_power(&mut self) {
        let keep = self.rng.random_range(0..=self.name_ops.len());
        let ops: Vec<NameOp> = self.name_ops.drain(..).take(keep).collect();
        ops.iter().for_each(|op| apply_name(&mut self.synced_names, op));
        self.names = self.synced_names.clone();
        let mut inodes: Vec<u64> = self.files.keys().copied().collect();
        inodes.sort_unstable();
        for id in inodes {
            if !self.names.values().any(|n| *n == id) {
                self.files.remove(&id);
                continue;
            }
            let chance = [0.0, 0.1, 0.5, 0.9, 1.0][self.rng.random_range(0..5)];
            let file = self.files.get_mut(&id).expect("the key was just listed");
            file.lose_power(&mut self.rng, chance);
        }
    }

    fn used(&self) -> u64 {
        self.files.values().map(|f| f.cached.len() as u64).sum()
    }
}

impl Inode {
    fn lose_power(&mut self, rng: &mut StdRng, chance: f64) {
        for (position, bytes) in std::mem::take(&mut self.dirty) {
            let mut at = 0;
            while at < bytes.len() {
                let to_edge = SECTOR - (position + at) % SECTOR;
                let end = bytes.len().min(at + to_edge);
                if rng.random_bool(chance) {
                    put(&mut self.synced, position + at, &bytes[at..end]);
                }
                at = end;
            }
        }
        self.cached = self.synced.clone();
    }
}

fn put(image: &mut Vec<u8>, position: usize, bytes: &[u8]) {
    let end = position + bytes.len();
    if image.len() < end {
        image.resize(end, 0);
    }
    image[position..end].copy_from_slice(bytes);
}

fn apply_name(names: &mut BTreeMap<String, u64>, op: &NameOp) {
    match op {
        NameOp::Link(name, inode) => {
            names.insert(name.clone(), *inode);
        }
        NameOp::Remove(name) => {
            names.remove(name);
        }
        NameOp::Rename(from, to) => {
            if let Some(inode) = names.remove(from) {
                names.insert(to.clone(), inode);
            }
        }
    }
}

impl Disk for SimDisk {
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.with(|s| {
            let inode = s.next_inode;
            s.next_inode += 1;
            s.files.insert(inode, Inode::default());
            let op = NameOp::Link(name.into(), inode);
            apply_name(&mut s.names, &op);
            s.name_ops.push(op);
            Ok(self.handle(inode))
        })
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.with(|s| s.names.get(name).map(|inode| self.handle(*inode)).ok_or_else(|| io::ErrorKind::NotFound.into()))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.with(|s| Ok(s.names.keys().cloned().collect()))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.with(|s| {
            let inode = *s.names.get(name).ok_or(io::ErrorKind::NotFound)?;
            let op = NameOp::Remove(name.into());
            apply_name(&mut s.names, &op);
            s.name_ops.push(op);
            if !s.synced_names.values().any(|i| *i == inode) {
                s.files.remove(&inode);
            }
            Ok(())
        })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.with(|s| {
            s.names.get(from).ok_or(io::ErrorKind::NotFound)?;
            let op = NameOp::Rename(from.into(), to.into());
            apply_name(&mut s.names, &op);
            s.name_ops.push(op);
            Ok(())
        })
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.with(|s| {
            s.name_ops.clear();
            s.synced_names = s.names.clone();
            let live: Vec<u64> = s.names.values().copied().collect();
            s.files.retain(|id, _| live.contains(id));
            Ok(())
        })
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.with(|s| Ok(s.capacity.saturating_sub(s.used())))
    }
}

impl SimFile {
    fn with<T>(&self, f: impl FnOnce(&mut Inode) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.core.state.lock();
        state.alive(self.life)?;
        f(state.files.get_mut(&self.inode).ok_or(io::ErrorKind::NotFound)?)
    }
}

impl DiskFile for SimFile {
    fn write_all_vectored_at(&self, parts: &[IoSlice<'_>], position: u64) -> io::Result<()> {
        let bytes: Vec<u8> = parts.iter().flat_map(|p| p.iter().copied()).collect();
        let mut state = self.core.state.lock();
        state.alive(self.life)?;
        let (used, capacity) = (state.used(), state.capacity);
        let counts = !state.cut_says_something || bytes.iter().any(|byte| *byte != 0);
        let cut = state.cut_after_writes.as_mut().filter(|_| counts).is_some_and(|left| {
            *left -= 1;
            *left == 0
        });
        let file = state.files.get_mut(&self.inode).ok_or(io::ErrorKind::NotFound)?;
        let growth = (position + bytes.len() as u64).saturating_sub(file.cached.len() as u64);
        if growth > 0 && used + growth > capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        put(&mut file.cached, position as usize, &bytes);
        file.dirty.push((position as usize, bytes));
        if cut { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
    }

    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        self.with(|f| {
            let start = f.cached.len().min(position as usize);
            let n = buffer.len().min(f.cached.len() - start);
            buffer[..n].copy_from_slice(&f.cached[start..start + n]);
            Ok(n)
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        let takes = self.core.state.lock().sync_takes;
        if !takes.is_zero() {
            std::thread::sleep(takes);
        }
        let mut state = self.core.state.lock();
        while state.life == self.life && (state.hang_syncs || state.hangs_temporary(self.inode)) {
            self.core.changed.wait(&mut state);
        }
        state.alive(self.life)?;
        state.syncs += 1;
        let fails = state.fail_syncs > 0;
        state.fail_syncs = state.fail_syncs.saturating_sub(1);
        let file = state.files.get_mut(&self.inode).ok_or(io::ErrorKind::NotFound)?;
        let dirty = std::mem::take(&mut file.dirty);
        if fails {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        for (position, bytes) in dirty {
            put(&mut file.synced, position, &bytes);
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        self.with(|f| Ok(f.cached.len() as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(file: &Arc<dyn DiskFile>, position: u64, bytes: &[u8]) {
        file.write_all_vectored_at(&[IoSlice::new(bytes)], position).unwrap();
    }

    #[test]
    fn a_power_cut_keeps_what_was_synced_and_may_tear_the_rest() {
        let mut torn = 0;
        for seed in 0..50 {
            let disk = SimDisk::new(seed);
            let file = disk.create("f").unwrap();
            write(&file, 0, &[1; 2048]);
            file.sync_data().unwrap();
            disk.sync_dir().unwrap();
            write(&file, 1024, &[2; 1024]);
            let after = disk.crash(Crash::Power);
            assert!(file.sync_data().is_err(), "old handles are dead");
            let bytes = after.contents("f").unwrap();
            assert_eq!(bytes[..1024], [1; 1024]);
            torn += usize::from(bytes[1024] != bytes[1536]);
        }
        assert!(torn > 0);
    }

    #[test]
    fn after_a_failed_sync_the_next_sync_proves_nothing() {
        let disk = SimDisk::new(1);
        let file = disk.create("f").unwrap();
        disk.sync_dir().unwrap();
        write(&file, 0, &[3; 512]);
        disk.fail_syncs(1);
        assert!(file.sync_data().is_err());
        file.sync_data().unwrap();
        assert_eq!(disk.contents("f").unwrap(), [3; 512], "the cache still shows it");
        assert!(disk.crash(Crash::Power).contents("f").unwrap().is_empty());
    }

    #[test]
    fn a_killed_process_leaves_the_cache_and_names_return_without_a_directory_sync() {
        let disk = SimDisk::new(2);
        let file = disk.create("f").unwrap();
        write(&file, 0, b"x");
        let disk = disk.crash(Crash::Process);
        assert_eq!(disk.contents("f").unwrap(), b"x");
        disk.set_capacity(1);
        let error = disk.open("f").unwrap().write_all_vectored_at(&[IoSlice::new(b"yy")], 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
