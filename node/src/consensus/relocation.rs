//! Keeps the log small although some messages stay for long (rule 8): where files with data take more than their budget, closed files of
//! which less than half is alive are cleaned, what is alive in them is written again at the log's end. Only purged entries move, and only
//! what is settled in a durable checkpoint stays behind (docs/decisions/0019). Hot queues never pay: their entries are gone before.

use super::bodies;
use super::core::Core;
use super::log::completion;
use super::retry::Retry;
use crate::machine::{Left, Living};
use crate::model::entry::{EntryBytes, trimmed};
use crate::model::{LogId, ShardId};
use crate::store::wal::{Moved, OldFile};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Between two looks at the log's size.
const LOOK: Duration = Duration::from_secs(1);
/// ... when the last ones found nothing to do.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// When nothing was applied, purged or stored since a look that found nothing, the next one is after this time.
const UNCHANGED: Duration = Duration::from_secs(60);
/// A file that is free within this time, as fast as it empties now, is not cleaned.
const SOON: Duration = Duration::from_secs(30);
/// Entries that are looked at together, unless one file has more: bounds the memory (some 100 bytes each).
const ENTRIES: u64 = 65_536;
/// What is written at once: a confirm waits for it at most.
const PORTION_BYTES: usize = 256 << 10;
/// ... and its entries at most.
const PORTION_ENTRIES: usize = 1024;
/// Pace of writing, beside which publishes must not be felt.
const BYTES_PER_SECOND: u64 = 64 << 20;
/// A checkpoint and a spare file are waited for so long, then another time.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);
/// What an entry costs in a file beside its messages, bytes: the head of its record, its length; and each run of messages, with what
/// says how many were passed over before it.
const ENTRY_COST: u64 = 64;
const RUN_COST: u64 = 40;

/// How far the groups of this node are.
type Progress = Vec<(ShardId, [Option<LogId>; 3])>;

/// What is alive of the entries that were looked at.
type Alive = BTreeMap<ShardId, Living>;

/// Runs for ever.
pub(super) async fn keep(core: Arc<Core>) {
    let mut retry = Retry::new(LOOK, LONGEST_PAUSE);
    let (mut seen, mut in_vain): (Seen, Option<(Instant, Progress)>) = Default::default();
    loop {
        sleep(retry.pause()).await;
        if !core.journal.is_over_budget() {
            (seen, in_vain) = Default::default();
            retry.reset();
            continue;
        }
        let progress = progress(&core);
        if in_vain.as_ref().is_some_and(|(at, then)| at.elapsed() < UNCHANGED && *then == progress) {
            continue;
        }
        let (found, began) = (clean_all(&core, &mut seen).await, Instant::now());
        in_vain = (found == Found::default()).then_some((began, progress));
        if found.cleaned > 0 {
            retry.reset();
            tracing::info!(files = found.cleaned, "old log files cleaned: what is alive in them was written again");
        }
    }
}

/// What came of a look at all files.
#[derive(Default, PartialEq)]
struct Found {
    cleaned: usize,
    /// Files with little alive that may soon be free by themselves.
    waiting: usize,
}

/// What was alive in files with little alive, and when.
#[derive(Default)]
struct Seen(BTreeMap<u32, (Instant, u64)>);

impl Seen {
    /// A file that is being consumed is free before long: hot queues pay nothing. Needs two looks.
    fn stays(&mut self, file: u32, live: u64, now: Instant) -> bool {
        let Some((then, before)) = self.0.insert(file, (now, live)) else { return false };
        let left = |bytes: u64, time: Duration| bytes as f64 * time.as_secs_f64();
        left(before.saturating_sub(live), SOON) <= left(live, now - then)
    }
}

fn progress(core: &Core) -> Progress {
    let of = |group: &super::shard::Shard| {
        let holding = &group.inner().holding;
        let purged = core.journal.state(group.id()).purged;
        (group.id(), [holding.machine.restored(), purged, *holding.checkpointed.lock()])
    };
    core.all_groups().iter().map(of).collect()
}

/// Looks at all closed files once.
async fn clean_all(core: &Core, seen: &mut Seen) -> Found {
    let (mut found, mut after) = (Found::default(), 0);
    while core.journal.is_over_budget() {
        let journal = core.journal.clone();
        let Ok(old) = tokio::task::spawn_blocking(move || journal.old_files(after, ENTRIES)).await else { break };
        let some = clean_some(core, old.files, seen).await;
        found = Found { cleaned: found.cleaned + some.cleaned, waiting: found.waiting + some.waiting };
        match old.upto {
            Some(upto) => after = upto,
            None => break,
        }
    }
    found
}

/// Cleans those of which less than half is alive, the emptiest first, until the log is small enough.
async fn clean_some(core: &Core, files: Vec<OldFile>, seen: &mut Seen) -> Found {
    let alive = survey_all(core, &files).await;
    let mut poor: Vec<(u64, OldFile)> = files.into_iter().filter_map(|file| Some((live_bytes(&file, &alive)?, file))).collect();
    poor.retain(|(live, file)| 0 < *live && live * 2 < file.bytes);
    poor.sort_by_key(|(live, _)| *live);
    let (mut found, now) = (Found::default(), Instant::now());
    for (live, file) in poor {
        if !seen.stays(file.seq, live, now) {
            found.waiting += 1;
            continue;
        }
        if !core.journal.is_over_budget() {
            break;
        }
        match clean(core, &file, &alive).await {
            Ok(()) => found.cleaned += 1,
            Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
            Err(error) => tracing::warn!(file = file.seq, live, %error, "an old log file cannot be cleaned now"),
        }
    }
    found
}

/// Bytes that are to be written again; `None` when it is not known. 0: the file is free as soon as a checkpoint says so.
fn live_bytes(file: &OldFile, alive: &Alive) -> Option<u64> {
    let mut bytes = 0;
    for (shard, index, len) in &file.entries {
        let len = u64::from(*len) + ENTRY_COST;
        bytes += match alive.get(shard)?.entries.get(index) {
            None => 0,
            Some(Left::Whole) => len,
            Some(Left::Messages(runs, bytes)) => len.min(ENTRY_COST + bytes + RUN_COST * runs.len() as u64),
        };
    }
    Some(bytes)
}

async fn survey_all(core: &Core, files: &[OldFile]) -> Alive {
    let mut indices: BTreeMap<ShardId, Vec<u64>> = BTreeMap::new();
    for (shard, index, _) in files.iter().flat_map(|file| &file.entries) {
        indices.entry(*shard).or_default().push(*index);
    }
    let surveys = indices.into_iter().map(|(shard, indices)| async move { Some((shard, survey(core, shard, indices).await?)) });
    futures::future::join_all(surveys).await.into_iter().flatten().collect()
}

/// What is alive at a state of the group that is durable as a checkpoint.
async fn survey(core: &Core, shard: ShardId, mut indices: Vec<u64>) -> Option<Living> {
    indices.sort_unstable();
    let holding = core.group(shard)?.inner().holding.clone();
    let machine = holding.machine.clone();
    let living = tokio::task::spawn_blocking(move || machine.living(&indices)).await.ok()??;
    let is_durable = || *holding.checkpointed.lock() >= Some(living.applied);
    in_time(is_durable).await.then_some(living)
}

async fn in_time(is_so: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        if Instant::now() >= deadline {
            return false;
        }
        sleep(POLL).await;
    }
    true
}

/// Writes what is alive in a file again, portion by portion.
async fn clean(core: &Core, file: &OldFile, alive: &Alive) -> io::Result<()> {
    // Half a file fits in there. What is left of the open one belongs to those who settle messages, when there is no other.
    if !in_time(|| core.journal.has_spare()).await {
        return Err(io::ErrorKind::StorageFull.into());
    }
    let mut portion = Portion::default();
    for (shard, index, _) in &file.entries {
        let Some(left) = alive.get(shard).and_then(|living| living.entries.get(index)) else { continue };
        let Some(moved) = read(core, *shard, *index, file.seq, left.clone()).await? else { continue };
        if portion.shard != *shard || portion.is_full() {
            std::mem::take(&mut portion).write(core).await?;
            portion.shard = *shard;
        }
        portion.bytes += moved.left.len();
        portion.entries.push(moved);
    }
    portion.write(core).await
}

/// What is left of an entry, read from this disk, or from another replica when it rotted here; `None`: it has gone meanwhile.
async fn read(core: &Core, shard: ShardId, index: u64, from: u32, left: Left) -> io::Result<Option<Moved>> {
    let (Some(group), Some(id)) = (core.group(shard), core.journal.log_id(shard, index)) else { return Ok(None) };
    let entry = match bodies::read(group.inner(), index).await {
        Ok(entry) => entry,
        Err(_) if core.journal.log_id(shard, index).is_none() => return Ok(None),
        Err(error) => return Err(error),
    };
    let left = tokio::task::spawn_blocking(move || trim(&entry, left)).await.map_err(io::Error::other)?;
    Ok(Some(Moved { id, from, left }))
}

/// Copied, so that a small rest does not hold the memory of its entry.
fn trim(entry: &EntryBytes, left: Left) -> EntryBytes {
    let left = match left {
        Left::Whole => trimmed::whole(entry),
        Left::Messages(wanted, _) => trimmed::trim(entry, wanted),
    };
    left.flatten().into()
}

/// What is written at once.
#[derive(Default)]
struct Portion {
    shard: ShardId,
    entries: Vec<Moved>,
    bytes: usize,
}

impl Portion {
    fn is_full(&self) -> bool {
        self.bytes >= PORTION_BYTES || self.entries.len() >= PORTION_ENTRIES
    }

    /// Durable when this returns, and not faster than the pace.
    async fn write(self, core: &Core) -> io::Result<()> {
        if self.entries.is_empty() {
            return Ok(());
        }
        let (done, written) = completion();
        core.journal.relocate(self.shard, self.entries, done);
        written.await?;
        sleep(Duration::from_secs_f64(self.bytes as f64 / BYTES_PER_SECOND as f64)).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_empties_is_left_to_itself_and_one_that_stays_is_not() {
        let (mut seen, now) = (Seen::default(), Instant::now());
        let second = Duration::from_secs(1);
        assert!(!seen.stays(1, 3000, now), "who knows");
        assert!(!seen.stays(1, 2800, now + second), "empty in 14 seconds");
        assert!(seen.stays(1, 2790, now + 2 * second), "in five minutes");
        assert!(seen.stays(1, 2790, now + 3 * second));
        assert!(!seen.stays(1, 10, now + 60 * second));
        assert!(!seen.stays(2, 10, now + 60 * second), "another file");
    }
}
