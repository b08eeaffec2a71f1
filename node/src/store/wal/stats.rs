//! What the WAL tells about itself; read by metrics and alarms.

use std::time::Duration;

/// Buckets of the sync histogram: bucket `i` counts syncs below `2^i * 64` microseconds, the last one all others.
pub const SYNC_BUCKETS: usize = 16;

/// A snapshot of the WAL's counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WalStats {
    /// Bytes of all files, spare ones too.
    pub bytes: u64,
    /// Files with data.
    pub files: usize,
    /// Files prepared ahead.
    pub spare_files: usize,
    /// Batches written since the start.
    pub batches: u64,
    /// Syncs of file contents on the write path.
    pub syncs: u64,
    /// Records written; divided by `batches`: the group commit factor.
    pub records: u64,
    /// Bytes written, padding too.
    pub written_bytes: u64,
    /// Latency of the last sync.
    pub sync_last: Duration,
    /// Longest sync.
    pub sync_max: Duration,
    /// See [`SYNC_BUCKETS`].
    pub sync_histogram: [u64; SYNC_BUCKETS],
    /// How long the write and sync under way have been taking (rule 9).
    pub writing_for: Option<Duration>,
    /// Bytes of the tail cache.
    pub cache_bytes: usize,
    /// Bytes queued and not yet synced.
    pub queued_bytes: usize,
    /// A spare file could not be prepared: space runs out. Entries still go into what is prepared.
    pub low_space: bool,
    /// Entries are held back until there is space.
    pub full: bool,
    /// Damaged places that the last start found.
    pub damages: u64,
    /// Bytes of entries that were written again because their file was to be used again.
    pub relocated_bytes: u64,
    /// Reads that found something else than was written.
    pub bad_reads: u64,
    /// A write or sync failed; nothing is accepted any more.
    pub dead: bool,
}

impl WalStats {
    pub(super) fn synced(&mut self, took: Duration) {
        self.syncs += 1;
        self.sync_last = took;
        self.sync_max = self.sync_max.max(took);
        let units = took.as_micros() as u64 / 64;
        let bucket = (64 - units.leading_zeros()) as usize;
        self.sync_histogram[bucket.min(SYNC_BUCKETS - 1)] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syncs_fall_into_the_bucket_of_their_latency() {
        let mut stats = WalStats::default();
        for micros in [0, 63, 64, 127, 128, 60_000_000] {
            stats.synced(Duration::from_micros(micros));
        }
        assert_eq!(stats.sync_histogram[..3], [2, 2, 1]);
        assert_eq!(stats.sync_histogram[SYNC_BUCKETS - 1], 1);
        assert_eq!(stats.sync_max, Duration::from_secs(60));
    }
}
