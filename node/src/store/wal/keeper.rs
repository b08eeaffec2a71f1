//! The keeper's thread: prepares files ahead, reuses those nobody needs, writes sidecars. Never on the confirm path.

use super::file::{ReadyFile, file_name, lent_name, prepare, sidecar_name};
use super::sidecar::Sidecar;
use super::state::{Shared, State};
use crate::store::disk::{Disk, DiskFile};
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Pause after each MiB of zeros unless the writer waits for the file: the log's own syncs must not wait behind them.
const ZEROING_PAUSE: Duration = Duration::from_millis(8);
/// Time between two attempts to get space, and between two looks at a file that a reader still holds.
const RETRY: Duration = Duration::from_millis(200);
/// This part of a file stays free beside a new one.
const SPACE_LEFT: u64 = 2;

enum Job {
    Sidecar(Sidecar),
    /// The sidecar of a file that is to be read again at the next start.
    Doubt(u32),
    /// A file that nobody needs: its old number and the number it gets, `None` to remove it.
    Recycle(u32, Arc<dyn DiskFile>, Option<u32>),
    Create(u32),
    Stop,
}

pub(super) struct Keeper {
    pub shared: Arc<Shared>,
    pub disk: Arc<dyn Disk>,
}

impl Keeper {
    pub fn run(self) {
        loop {
            let result = match self.next_job() {
                Job::Sidecar(sidecar) => {
                    if let Err(error) = sidecar.save(&*self.disk) {
                        tracing::warn!(file = sidecar.lap.seq, %error, "no index beside a closed log file; it will be scanned at the next start");
                    }
                    Ok(())
                }
                Job::Doubt(seq) => {
                    let _ = self.disk.remove(&sidecar_name(seq)); // may be gone already, or never have been there
                    let _ = self.disk.sync_dir(); // the next bad read tries again
                    Ok(())
                }
                Job::Recycle(old, file, new) => self.recycle(old, file, new),
                Job::Create(seq) => self.create(seq),
                Job::Stop => return,
            };
            self.report(result);
        }
    }

    fn next_job(&self) -> Job {
        let mut state = self.shared.lock();
        loop {
            if state.stats.dead {
                return state.doubtful.pop().map_or(Job::Stop, Job::Doubt);
            }
            if let Some(job) = self.pick(&mut state) {
                return job;
            }
            if state.has_unneeded() {
                self.shared.keep.wait_for(&mut state, RETRY);
            } else {
                self.shared.keep.wait(&mut state);
            }
        }
    }

    fn pick(&self, state: &mut State) -> Option<Job> {
        let config = &self.shared.config;
        // Sidecars first: they are lost when their file is recycled, which is fine, but never the other way round.
        while let Some(sidecar) = state.sidecars.pop() {
            if state.files.contains_key(&sidecar.lap.seq) {
                return Some(Job::Sidecar(sidecar));
            }
        }
        if let Some(seq) = state.doubtful.pop() {
            return Some(Job::Doubt(seq));
        }
        let current = state.current;
        let free = state.files.range(..current).find(|(_, held)| held.needed == 0 && Arc::strong_count(&held.file) == 1);
        if let Some(old) = free.map(|(seq, _)| *seq) {
            let held = state.files.remove(&old).expect("it was just found under the same lock");
            let total = (state.files.len() + state.ready.len() + 1) as u64 * config.file_bytes;
            let wanted = state.ready.len() < config.spare_files || total <= config.budget_bytes;
            let new = (wanted && !held.file.is_lent()).then(|| take_seq(state));
            return Some(Job::Recycle(old, held.file.file.clone(), new));
        }
        (state.ready.len() < config.spare_files).then(|| Job::Create(take_seq(state)))
    }

    fn recycle(&self, old: u32, file: Arc<dyn DiskFile>, new: Option<u32>) -> io::Result<()> {
        let _ = self.disk.remove(&sidecar_name(old)); // may never have been written; a stale one is recognised by its salt
        let Some(seq) = new.filter(|_| file.len().is_ok_and(|len| len == self.shared.config.file_bytes)) else {
            self.disk.remove(&file_name(old))?;
            let _ = self.disk.remove(&lent_name(old)); // most were never lent
            return self.disk.sync_dir();
        };
        self.disk.rename(&file_name(old), &file_name(seq))?;
        self.disk.sync_dir()?;
        self.add(ReadyFile { seq, file });
        Ok(())
    }

    fn create(&self, seq: u32) -> io::Result<()> {
        let pause = || {
            if !self.shared.lock().starved {
                std::thread::sleep(ZEROING_PAUSE);
            }
        };
        let bytes = self.shared.config.file_bytes;
        // The state store's checkpoints, which free log files, need what is left.
        if self.disk.free_bytes()? < bytes + bytes / SPACE_LEFT {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let file = prepare(&*self.disk, seq, bytes, pause)?;
        self.add(file);
        Ok(())
    }

    fn add(&self, file: ReadyFile) {
        let mut state = self.shared.lock();
        state.ready.push_back(file);
        state.stats.low_space = false;
        self.shared.prepared.notify_all();
    }

    fn report(&self, result: io::Result<()>) {
        let mut state = self.shared.lock();
        if let Err(error) = result {
            if !state.stats.low_space {
                tracing::warn!(%error, spare = state.ready.len(), "cannot prepare another log file");
            }
            state.stats.low_space = true;
            self.shared.hurry_when_short(&state);
            self.shared.prepared.notify_all();
            if !state.stats.dead {
                self.shared.keep.wait_for(&mut state, RETRY);
            }
        }
    }
}

fn take_seq(state: &mut State) -> u32 {
    state.next_seq += 1;
    state.next_seq - 1
}
