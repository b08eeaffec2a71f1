//! Which parts of old entries still belong to the state: what of them must stay readable when they leave their file of the log. Copied out
//! as a checkpoint is, while entries go on being applied. Called by `consensus`.

use super::capture::{CaptureId, Image};
use super::dead::Dead;
use super::queue::Queue;
use super::shard::DataMachine;
use super::stream::Stream;
use crate::model::LogId;
use crate::model::entry::trimmed::Wanted;
use std::collections::BTreeMap;

/// What is left of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Left {
    /// Something that only the whole entry has.
    Whole,
    /// These messages, and their bytes as they are stored; of entries that are settled in part by the mean.
    Messages(Vec<Wanted>, u64),
}

/// Entries of which something belongs to the state, by index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Living {
    /// The state after this entry. Later states need no more of these entries.
    pub applied: LogId,
    /// Only of entries that were asked for; those that are not here have nothing.
    pub entries: BTreeMap<u64, Left>,
}

/// What is known when a survey begins.
#[derive(Clone, Debug)]
pub struct Survey {
    /// The copying that is under way, as of a checkpoint.
    pub capture: CaptureId,
    /// How much refers to each entry that was asked for, ascending.
    pub(super) references: Vec<(u64, u32)>,
    /// What refers to entries beside queues: the entry, messages, their bytes.
    others: Vec<(u64, Vec<Wanted>, u64)>,
}

#[derive(Clone, Debug, Default)]
struct Found {
    references: u32,
    wanted: Vec<Wanted>,
    bytes: u64,
}

impl Found {
    /// One thing that refers to the entry, with its messages.
    fn add(&mut self, wanted: Vec<Wanted>, bytes: u64) {
        self.references = self.references.saturating_sub(1);
        self.wanted.extend(wanted);
        self.bytes += bytes;
    }
}

impl DataMachine {
    /// Stored bytes of all live messages and chunks of streams; a message that is in several queues counts in each.
    pub fn live_bytes(&self) -> u64 {
        self.queues.values().map(Queue::live_bytes).sum::<u64>() + self.streams.values().map(Stream::bytes).sum::<u64>()
    }

    /// Begins to look for what is left of these entries (ascending). The survey is over when its capture is.
    pub fn begin_survey(&mut self, indices: &[u64]) -> Survey {
        // Not an empty range, which a map takes for a mistake.
        let range = indices.first().copied().unwrap_or(0)..=indices.last().copied().unwrap_or(0);
        let mut wanted = indices.iter().copied().peekable();
        let mut references = Vec::with_capacity(indices.len());
        for (index, count) in self.entries.range(range.clone()) {
            while wanted.next_if(|next| next < index).is_some() {}
            references.extend(wanted.next_if_eq(index).map(|index| (index, *count)));
        }
        let one = |Dead { queue, at, bytes, .. }: &Dead| {
            (at.index, vec![Wanted { position: at.position, queue: *queue, skip: at.skip, count: at.count }], *bytes)
        };
        let others = self.exits.dead.all().map(one).chain(self.transactions.messages());
        let others = others.filter(|(index, ..)| range.contains(index)).collect();
        Survey { capture: self.begin_whole(), references, others }
    }
}

impl Image {
    /// The end of a survey, over the image that its capture gave.
    pub fn living(&self, survey: Survey) -> Living {
        let found = survey.references.into_iter().map(|(index, references)| (index, Found { references, ..Found::default() }));
        let mut found: BTreeMap<u64, Found> = found.collect();
        for (index, wanted, bytes) in survey.others {
            if let Some(found) = found.get_mut(&index) {
                found.add(wanted, bytes);
            }
        }
        let range = found.first_key_value().map_or(1, |(index, _)| *index)..=found.last_key_value().map_or(0, |(index, _)| *index);
        for (queue, captured) in self.extents() {
            captured.live_runs(range.clone(), |index, runs| {
                let Some(found) = found.get_mut(&index) else { return };
                let (mut wanted, mut bytes) = (Vec::new(), 0);
                for (position, skip, count, stored) in runs {
                    wanted.push(Wanted { position, queue, skip, count });
                    bytes += stored;
                }
                found.add(wanted, bytes);
            });
        }
        for (stream, chunk) in self.stream_chunks().filter(|(_, chunk)| range.contains(&chunk.index)) {
            if let Some(found) = found.get_mut(&chunk.index) {
                found.add(vec![Wanted { position: chunk.position, queue: stream, skip: 0, count: 1 }], chunk.bytes.into());
            }
        }
        // What refers to an entry and was not found is of a kind that is not known here.
        let left = |found: Found| if found.references > 0 { Left::Whole } else { Left::Messages(found.wanted, found.bytes) };
        Living { applied: self.applied(), entries: found.into_iter().map(|(index, found)| (index, left(found))).collect() }
    }
}
