//! openraft's log storage over the node's journal, one per group. Votes wait for the disk in the same FIFO as appends (P1); nothing
//! else here does.

use super::contact::Contact;
use super::holding::Work;
use super::journal::{Done, Journal, LogEntry, Payload, Vote};
use super::types::*;
use crate::model::{LogId, ShardId};
use futures::{Stream, TryStreamExt};
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{EntryPayload, OptionalSend};
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds, RangeInclusive};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// What stands behind a state of another node waits so long for its installation to take a step.
const INSTALLATION: Duration = Duration::from_secs(180);
/// Bytes of entries in one append request: openraft limits only their number (T8). Also what is read at a time to be applied.
const SLICE_BYTES: usize = 1 << 20;

/// A group's log. Also its own reader.
#[derive(Clone)]
pub struct GroupLog {
    shard: ShardId,
    journal: Arc<dyn Journal>,
    work: Arc<Work>,
    /// Hears of new voters before anybody is sent them.
    contact: Option<Arc<Contact>>,
}

impl GroupLog {
    /// The log of `shard`, whose machine does `work`.
    pub fn new(shard: ShardId, journal: Arc<dyn Journal>, work: Arc<Work>) -> GroupLog {
        GroupLog { shard, journal, work, contact: None }
    }

    /// The log of a group whose lease is counted by `contact`.
    pub fn with_contact(self, contact: Arc<Contact>) -> GroupLog {
        GroupLog { contact: Some(contact), ..self }
    }

    /// openraft counts a snapshot as installed when it hands it to the machine; the journal does when it is durable. What is behind it
    /// waits for that, else it would stand behind a hole (rule 6).
    async fn reaches(&self, index: u64, patience: Duration) -> io::Result<()> {
        let work = || self.work.steps();
        let (mut seen, mut since) = (work(), Instant::now());
        while self.journal.state(self.shard).last.is_some_and(|last| last.index < index) {
            tokio::time::sleep(Duration::from_millis(2)).await;
            let now = work();
            if now != seen {
                (seen, since) = (now, Instant::now());
            } else if since.elapsed() >= patience {
                let last = self.journal.state(self.shard).last;
                return Err(io::Error::other(format!(
                    "the log ends at {last:?} and does not get to {index}, behind which an entry belongs"
                )));
            }
        }
        Ok(())
    }

    /// First index, and the one behind the last.
    fn bounds(&self, range: &impl RangeBounds<u64>) -> (u64, u64) {
        let start = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(index) => index + 1,
            Bound::Excluded(index) => *index,
            Bound::Unbounded => self.journal.state(self.shard).last.map_or(0, |id| id.index + 1),
        };
        (start, end)
    }

    async fn read(&self, start: u64, end: u64, max_bytes: usize) -> io::Result<Vec<Oentry>> {
        if start >= end {
            return Ok(Vec::new());
        }
        let (journal, shard) = (self.journal.clone(), self.shard);
        let entries = if journal.cached(shard, start).is_some() {
            journal.read(shard, start..end, max_bytes)?
        } else {
            let read = move || journal.read(shard, start..end, max_bytes);
            tokio::task::spawn_blocking(read).await.map_err(io::Error::other)??
        };
        entries.into_iter().map(to_openraft).collect()
    }
}

/// Journal to openraft.
pub fn to_openraft(entry: LogEntry) -> io::Result<Oentry> {
    let payload = match entry.payload {
        Payload::Blank => EntryPayload::Blank,
        Payload::Normal(bytes) => EntryPayload::Normal(Command(bytes)),
        Payload::Trimmed(_) => return Err(io::Error::other(format!("of entry {} only a part is left", entry.id.index))),
        Payload::Membership(bytes) => {
            let members = read_membership(&bytes);
            EntryPayload::Membership(members.ok_or_else(|| io::Error::other("malformed membership entry in the log"))?)
        }
    };
    Ok(Oentry::new(to_oid(entry.id), payload))
}

/// openraft to journal.
pub fn to_journal(entry: Oentry) -> LogEntry {
    let payload = match entry.payload {
        EntryPayload::Blank => Payload::Blank,
        EntryPayload::Normal(command) => Payload::Normal(command.0),
        EntryPayload::Membership(members) => Payload::Membership(write_membership(&members)),
    };
    LogEntry { id: from_oid(entry.log_id), payload }
}

/// openraft waits for each answer, for ever: one that was dropped is an error.
struct Flushed {
    flushed: Option<IOFlushed<Types>>,
    work: Arc<Work>,
}

impl Flushed {
    fn new(flushed: IOFlushed<Types>, work: Arc<Work>) -> Flushed {
        work.appends();
        Flushed { flushed: Some(flushed), work }
    }

    fn tell(&mut self, result: io::Result<()>) {
        if let Some(flushed) = self.flushed.take() {
            flushed.io_completed(result);
            self.work.has_said();
        }
    }
}

impl Drop for Flushed {
    fn drop(&mut self) {
        self.tell(Err(io::Error::other("the log never said whether entries are on the disk")));
    }
}

/// A completion and the future that waits for it.
pub fn completion() -> (Done, impl Future<Output = io::Result<()>> + Send) {
    let (tx, rx) = oneshot::channel();
    let done: Done = Box::new(move |result| {
        let _ = tx.send(result);
    });
    (done, async move { rx.await.unwrap_or_else(|_| Err(io::Error::other("the log is closed"))) })
}

impl RaftLogReader<Types> for GroupLog {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<Oentry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = self.bounds(&range);
        self.read(start, end, usize::MAX).await
    }

    /// What is to be applied, slice by slice: after a start that may be all of the log. A short answer would be taken for all of it, and
    /// the rest never applied: it is an error here.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = Result<Oentry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (log, (start, end)) = (self.clone(), self.bounds(&range));
        let slices = futures::stream::try_unfold(start, move |next| {
            let log = log.clone();
            async move {
                if next >= end {
                    return Ok(None);
                }
                let entries = log.read(next, end, SLICE_BYTES).await?;
                let (first, last) = (entries.first(), entries.last());
                let (Some(first), Some(last)) = (first.map(|e| e.log_id.index), last.map(|e| e.log_id.index)) else {
                    return Err(io::Error::other(format!("the log lacks the committed entries {next}..{end}")));
                };
                if first != next || last + 1 - first != entries.len() as u64 {
                    return Err(io::Error::other(format!("the log has a hole among the committed entries {next}..{end}")));
                }
                Ok(Some((futures::stream::iter(entries.into_iter().map(Ok)), last + 1)))
            }
        });
        Box::pin(slices.try_flatten())
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Oentry>, io::Error> {
        self.read(start, end, SLICE_BYTES).await
    }

    /// The last entry of each leader, as the journal remembers them: an entry below the checkpoint that rotted hinders no start.
    async fn get_key_log_ids(&mut self, range: RangeInclusive<Oid>) -> Result<Vec<Oid>, io::Error> {
        let id = |index: u64| {
            let found = self.journal.log_id(self.shard, index);
            found.ok_or_else(|| io::Error::other(format!("entry {index} is not in the log of shard {}", self.shard)))
        };
        let (mut first, end) = (range.start().index, range.end().index + 1);
        let mut keys = Vec::new();
        while first < end {
            let leader = id(first)?.leader;
            let (mut known, mut beyond) = (first, end);
            while beyond - known > 1 {
                let middle = known + (beyond - known) / 2;
                if id(middle)?.leader == leader { known = middle } else { beyond = middle }
            }
            keys.push(to_oid(LogId { leader, index: known }));
            first = beyond;
        }
        Ok(keys)
    }

    async fn read_vote(&mut self) -> Result<Option<Ovote>, io::Error> {
        let vote = self.journal.state(self.shard).vote;
        Ok(vote.map(|v| Ovote { leader_id: to_lid(v.leader), committed: v.committed }))
    }
}

impl RaftLogStorage<Types> for GroupLog {
    type LogReader = GroupLog;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let state = self.journal.state(self.shard);
        let purged = state.purged.map(to_oid);
        Ok(LogState { last_purged_log_id: purged, last_log_id: state.last.map(to_oid).max(purged) })
    }

    async fn get_log_reader(&mut self) -> GroupLog {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Ovote) -> Result<(), io::Error> {
        let (done, saved) = completion();
        let vote = Vote { leader: from_lid(vote.leader_id), committed: vote.committed };
        self.journal.save_vote(self.shard, vote, done);
        saved.await
    }

    async fn save_committed(&mut self, committed: Option<Oid>) -> Result<(), io::Error> {
        if let Some(id) = committed {
            self.journal.save_committed(self.shard, from_oid(id));
        }
        Ok(())
    }

    /// What was committed elsewhere before it was on this disk (P6) is no ground for applying what is here: it is learnt again.
    async fn read_committed(&mut self) -> Result<Option<Oid>, io::Error> {
        let state = self.journal.state(self.shard);
        Ok(state.committed.filter(|committed| Some(*committed) <= state.last).map(to_oid))
    }

    async fn append<I>(&mut self, entries: I, flushed: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Oentry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let heard = |entry: &Oentry| {
            if let (EntryPayload::Membership(members), Some(contact)) = (&entry.payload, &self.contact) {
                contact.changed(members.get_joint_config().clone());
            }
        };
        let entries: Vec<LogEntry> = entries.into_iter().inspect(heard).map(to_journal).collect();
        if let Some(before) = entries.first().and_then(|first| first.id.index.checked_sub(1)) {
            self.reaches(before, INSTALLATION).await?;
        }
        let mut flushed = Flushed::new(flushed, self.work.clone());
        self.journal.append(self.shard, entries, Box::new(move |result| flushed.tell(result)));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<Oid>) -> Result<(), io::Error> {
        if let Some(last) = last {
            self.reaches(last.index, INSTALLATION).await?;
        }
        // Not awaited: the journal is a FIFO, a later append of the same index is behind this record.
        self.journal.truncate_after(self.shard, last.map(from_oid), Box::new(|_| ()));
        let membership = self.journal.state(self.shard).membership.and_then(|(_, bytes)| read_membership(&bytes));
        if let (Some(members), Some(contact)) = (membership, &self.contact) {
            contact.changed(members.get_joint_config().clone());
        }
        Ok(())
    }

    async fn purge(&mut self, upto: Oid) -> Result<(), io::Error> {
        self.journal.purge(self.shard, from_oid(upto));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consensus::tests::MemoryJournal;
    use crate::model::LeaderId;
    use crate::model::entry::EntryBytes;
    use bytes::Bytes;
    use futures::StreamExt;

    const SHARD: ShardId = ShardId(1);

    fn filled(indices: impl Iterator<Item = u64>, bytes: usize) -> (GroupLog, Arc<MemoryJournal>) {
        let journal = Arc::new(MemoryJournal::default());
        let entry = |index| LogEntry {
            id: LogId { leader: LeaderId { term: 1, voter: 1 }, index },
            payload: Payload::Normal(EntryBytes::from(Bytes::from(vec![0; bytes]))),
        };
        journal.append(SHARD, indices.map(entry).collect(), Box::new(|_| ()));
        (GroupLog::new(SHARD, journal.clone(), Arc::default()), journal)
    }

    #[tokio::test]
    async fn what_is_to_be_applied_is_read_slice_by_slice() {
        let (mut log, journal) = filled(1..=100, 100 << 10);
        let mut entries = std::pin::pin!(log.entries_stream(1..101).await);
        for index in 1..=100 {
            assert_eq!(entries.next().await.expect("more").expect("read").log_id.index, index);
            let ahead = journal.bytes_read() - index as usize * (100 << 10);
            assert!(ahead <= SLICE_BYTES, "{ahead} bytes are read and not applied yet");
        }
        assert!(entries.next().await.is_none());
    }

    #[tokio::test]
    async fn a_committed_entry_that_the_log_lacks_is_an_error_and_not_the_end() {
        for missing in [1, 30, 99] {
            let (mut log, _) = filled((1..100).filter(|index| *index != missing), 100 << 10);
            let entries: Vec<_> = log.entries_stream(1..100).await.collect().await;
            assert!(entries.last().is_some_and(Result::is_err), "{missing} is missing: {} entries", entries.len());
        }
    }

    #[tokio::test]
    async fn what_stands_behind_a_state_that_is_never_installed_does_not_wait_for_ever() {
        let (log, _) = filled(1..=3, 10);
        assert!(log.reaches(3, Duration::ZERO).await.is_ok());
        let error = log.reaches(4, Duration::from_millis(20)).await.expect_err("nothing is installed");
        assert!(error.to_string().contains("does not get to 4"), "{error}");
    }

    /// The library's own way, which reads entries.
    struct ByReading(GroupLog);

    impl RaftLogReader<Types> for ByReading {
        async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<Oentry>, io::Error>
        where
            RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
        {
            self.0.try_get_log_entries(range).await
        }

        async fn read_vote(&mut self) -> Result<Option<Ovote>, io::Error> {
            self.0.read_vote().await
        }
    }

    #[tokio::test]
    async fn the_last_entries_of_leaders_are_known_without_reading_any() {
        for terms in ["1", "11", "12", "1112", "1222", "123", "11122234", "1234444444", "11111115"] {
            let journal = Arc::new(MemoryJournal::default());
            let id = |(index, term): (usize, char)| {
                let term = u64::from(term.to_digit(10).expect("a digit"));
                LogId { leader: LeaderId { term, voter: 1 }, index: index as u64 + 1 }
            };
            let ids: Vec<LogId> = terms.chars().enumerate().map(id).collect();
            let entries = ids.iter().map(|id| LogEntry { id: *id, payload: Payload::Blank }).collect();
            journal.append(SHARD, entries, Box::new(|_| ()));
            let mut log = GroupLog::new(SHARD, journal, Arc::default());
            for first in 0..ids.len() {
                let range = || to_oid(ids[first])..=to_oid(ids[ids.len() - 1]);
                let by_reading = ByReading(log.clone()).get_key_log_ids(range()).await.expect("read");
                assert_eq!(log.get_key_log_ids(range()).await.expect("known"), by_reading, "{terms} from {first}");
            }
        }
    }
}
