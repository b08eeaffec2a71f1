//! `Request::Take`: some messages out of several queues, for clients that fetch and do not subscribe. Queues that have messages are asked
//! in turn; when none has, all are asked to answer as soon as one has, and the first answer counts. What came and is not wanted goes back
//! unseen. A task per request, at most one per channel. The messages themselves wait in the mailbox, from the moment they are here until
//! the session sees them, so that they go back when this node loses contact with their leader meanwhile (rule 20).

use super::access::Right;
use super::lane::takes::{Came, Order, Taken};
use super::lane::{Ask, Home, Lane};
use super::requests::Asking;
use crate::model::QueueId;
use crate::model::catalog::{Name, QueueRecord, Refusal};
use crate::model::limits::TAKE_BYTES;
use crate::model::step::Take;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

/// A leader that is asked to wait may answer so much later than the client wants to: longer, and nobody leads.
const SLACK: Duration = Duration::from_secs(10);

/// How long a shard may keep the others waiting.
const SILENT: Duration = Duration::from_secs(1);

type Source = (Arc<QueueRecord>, Arc<Lane>);

/// Takes that were answered with messages, and what those are together.
#[derive(Default)]
struct Found {
    takes: Vec<u64>,
    all: Came,
}

impl Found {
    fn add(&mut self, take: u64, came: Came) {
        if came.count > 0 {
            self.takes.push(take);
            self.all.count += came.count;
            self.all.bytes += came.bytes;
        }
    }

    fn is_empty(&self) -> bool {
        self.takes.is_empty()
    }

    /// How many more are wanted.
    fn left(&self, take: &Take) -> u32 {
        if self.all.bytes < TAKE_BYTES { take.most.saturating_sub(self.all.count) } else { 0 }
    }
}

impl Asking {
    /// Answers with messages; with none when there are none, or none came in time.
    pub(super) async fn take(self, take: Take) {
        match self.try_take(&take).await {
            Ok(found) => {
                let unwanted = self.mailbox.reply_taken(self.at, &found.takes).err().unwrap_or_default();
                unwanted
                    .iter()
                    .for_each(|one| self.edge.lane(one.shard).give_back_unseen(&self.mailbox, std::slice::from_ref(&one.delivery)));
            }
            Err(refusal) => drop(self.mailbox.reply(self.at, Err(refusal))),
        }
    }

    async fn try_take(&self, take: &Take) -> Result<Found, Refusal> {
        let sources = take.queues.iter().map(|name| self.source(name)).collect::<Result<Vec<Source>, Refusal>>()?;
        let until = Instant::now() + Duration::from_millis(take.patience_ms);
        let (found, failure) = self.take_ready(take, &sources).await;
        if !found.is_empty() || take.patience_ms == 0 {
            return if found.is_empty() { failure.map_or(Ok(found), Err) } else { Ok(found) };
        }
        Ok(self.wait_for_some(take, &sources, until).await)
    }

    fn source(&self, name: &Name) -> Result<Source, Refusal> {
        let record = self.queue(name, Some(Right::Read))?;
        let lane = self.lane(record.shard)?;
        Ok((record, lane))
    }

    /// From queues that have messages now, one after the other, until there are enough. Also the last refusal.
    async fn take_ready(&self, take: &Take, sources: &[Source]) -> (Found, Option<Refusal>) {
        let mut found = Found::default();
        let (ready, mut failure) = self.ready(sources).await;
        let first = self.edge.next_id() as usize;
        for n in 0..ready.len() {
            let source = ready[(first + n) % ready.len()];
            let most = found.left(take);
            if most == 0 {
                break;
            }
            let (id, answer) = self.ask(take, source, most, false);
            match answer.await {
                Ok(Ok(came)) => found.add(id, came),
                Ok(Err(refusal)) => failure = Some(refusal),
                Err(_) => {}
            }
        }
        (found, failure)
    }

    /// Those of several queues that have messages which wait. One alone is not asked first; a shard that is silent holds up the others
    /// for no longer than [`SILENT`].
    async fn ready<'s>(&self, sources: &'s [Source]) -> (Vec<&'s Source>, Option<Refusal>) {
        if sources.len() == 1 {
            return (sources.iter().collect(), None);
        }
        let mut shards: Vec<_> = sources.iter().map(|s| s.0.shard).collect();
        shards.sort_unstable();
        shards.dedup();
        let asked = shards.into_iter().map(|shard| {
            let queues: Vec<QueueId> = sources.iter().filter(|s| s.0.shard == shard).map(|s| s.0.id).collect();
            self.edge.stat(shard, Ask { queues, used: false }, 0, self.edge.config.no_quorum_timeout.min(SILENT))
        });
        let (mut with, mut failure) = (Vec::new(), None);
        for answer in futures::future::join_all(asked).await {
            match answer {
                Ok(stats) => with.extend(stats.into_iter().filter(|s| s.ready > 0).map(|s| s.queue)),
                Err(refusal) => failure = Some(refusal),
            }
        }
        (sources.iter().filter(|s| with.contains(&s.0.id)).collect(), failure)
    }

    fn ask(&self, take: &Take, (record, lane): &Source, most: u32, patient: bool) -> (u64, oneshot::Receiver<Taken>) {
        let id = self.edge.next_id();
        let patience = if patient { Duration::from_millis(take.patience_ms) + SLACK } else { self.edge.config.no_quorum_timeout };
        let order = Order {
            queue: record.id,
            name: record.spec.name.clone(),
            most,
            alone: take.alone,
            patient,
            timeout: self.edge.hold_timeout(record.id),
            patience,
        };
        (id, lane.take(id, order, &self.mailbox, self.at))
    }

    /// The first that has some; all are asked at once.
    async fn wait_for_some(&self, take: &Take, sources: &[Source], until: Instant) -> Found {
        let mut ids = Vec::with_capacity(sources.len());
        let mut answers: FuturesUnordered<_> = sources
            .iter()
            .map(|source| {
                let (id, answer) = self.ask(take, source, take.most, true);
                ids.push(id);
                async move { (id, answer.await) }
            })
            .collect();
        let mut found = Found::default();
        let first = async {
            while let Some((id, answer)) = answers.next().await {
                if let Ok(Ok(came)) = answer
                    && came.count > 0
                {
                    return Some((id, came));
                }
            }
            // Nobody can answer: the client has its time all the same.
            std::future::pending().await
        };
        let gone = self.mailbox.closed(self.at);
        let came = timeout_at(until, async {
            tokio::select! {
                came = first => came,
                () = gone => None,
            }
        });
        if let Some((id, came)) = came.await.ok().flatten() {
            found.add(id, came);
        }
        sources.iter().zip(ids).for_each(|((record, lane), id)| lane.withdraw(id, record.id));
        // What was answered before it was withdrawn.
        while let Some((id, answer)) = answers.next().await {
            let Ok(Ok(came)) = answer else { continue };
            if came.count <= found.left(take) {
                found.add(id, came);
            } else {
                let more = self.mailbox.taken(id);
                more.iter().for_each(|one| self.edge.lane(one.shard).give_back_unseen(&self.mailbox, std::slice::from_ref(&one.delivery)));
            }
        }
        found
    }
}
