//! The readers of a connection's subscriptions: those that have a chunk at hand give it at once, the others wait together, each until its
//! stream has something. A subscription without credit costs nothing.

use super::StreamReader;
use crate::model::stream::StreamChunk;
use crate::model::stream_step::Failure;
use futures::future::{AbortHandle, Abortable, BoxFuture};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use hashbrown::HashMap;

type Chunk = Result<StreamChunk, Failure>;

/// What a waiting reader came back with.
struct Woken<R> {
    subscription: u8,
    life: u64,
    reader: R,
    chunk: Chunk,
}

enum Reader<R> {
    Here(R),
    Waiting { life: u64, abort: AbortHandle },
}

/// Readers by subscription.
pub(super) struct Readers<R> {
    readers: HashMap<u8, Reader<R>>,
    waiting: FuturesUnordered<Abortable<BoxFuture<'static, Woken<R>>>>,
    lives: u64,
}

impl<R: StreamReader> Readers<R> {
    pub fn new() -> Readers<R> {
        Readers { readers: HashMap::new(), waiting: FuturesUnordered::new(), lives: 0 }
    }

    pub fn insert(&mut self, subscription: u8, reader: R) {
        self.remove(subscription);
        self.readers.insert(subscription, Reader::Here(reader));
    }

    pub fn remove(&mut self, subscription: u8) {
        if let Some(Reader::Waiting { abort, .. }) = self.readers.remove(&subscription) {
            abort.abort();
        }
    }

    /// Subscriptions whose reader does not wait yet.
    pub fn idle(&self, idle: &mut Vec<u8>) {
        idle.clear();
        idle.extend(self.readers.iter().filter(|(_, reader)| matches!(reader, Reader::Here(_))).map(|(subscription, _)| *subscription));
    }

    /// The next chunk, if there is one at hand; else its reader begins to wait.
    pub fn take(&mut self, subscription: u8) -> Option<Chunk> {
        let Some(Reader::Here(reader)) = self.readers.get_mut(&subscription) else { return None };
        if let Some(chunk) = reader.next().now_or_never() {
            return Some(chunk);
        }
        self.lives += 1;
        let life = self.lives;
        let (abort, registration) = AbortHandle::new_pair();
        let waiting = Reader::Waiting { life, abort };
        if let Some(Reader::Here(mut reader)) = self.readers.insert(subscription, waiting) {
            let woken = async move {
                let chunk = reader.next().await;
                Woken { subscription, life, reader, chunk }
            };
            self.waiting.push(Abortable::new(woken.boxed(), registration));
        }
        None
    }

    /// Somebody waits.
    pub fn any_waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The first chunk that comes to a waiting reader; `None`: it was for one that is gone. Cancel safe.
    pub async fn wait(&mut self) -> Option<(u8, Chunk)> {
        let Woken { subscription, life, reader, chunk } = self.waiting.next().await?.ok()?;
        let slot = self.readers.get_mut(&subscription)?;
        let is_same = matches!(&*slot, Reader::Waiting { life: same, .. } if *same == life);
        if is_same {
            *slot = Reader::Here(reader);
        }
        is_same.then_some((subscription, chunk))
    }
}
