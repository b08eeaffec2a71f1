//! Messages of AMQP for streams: each becomes a record once, whatever number of streams takes it, and an entry of their open chunks.

use crate::edge::lane::Message;
use crate::machine::catalog::Catalog;
use crate::model::catalog::QueueRecord;
use crate::model::stream::{PublishedEntry, StreamTarget};
use crate::model::{QueueId, ShardId};
use crate::records::{Published, append_record, filter_value};
use bytes::{BufMut, BytesMut};
use std::collections::HashMap;
use std::sync::Arc;

/// Streams that a connection remembers; with more it forgets all of them.
const KNOWN: usize = 256;

/// Streams that a connection published to.
#[derive(Default)]
pub(in crate::edge) struct KnownStreams {
    /// Policies, and with them settings, were these.
    version: u64,
    known: HashMap<QueueId, Arc<StreamTarget>>,
}

impl KnownStreams {
    /// Fills `out` with the streams among `targets`. Costs a look at nothing where there are no streams.
    pub fn among(&mut self, catalog: &Catalog, targets: &[(QueueId, ShardId)], out: &mut Vec<Arc<StreamTarget>>) {
        out.clear();
        for (id, _) in targets.iter().filter(|(id, _)| catalog.is_stream(*id)) {
            if self.version != catalog.access_version() || self.known.len() >= KNOWN {
                (self.version, self.known) = (catalog.access_version(), HashMap::new());
            }
            let known = self.known.get(id).cloned();
            let target = known.or_else(|| Some(Arc::new(stream_target(catalog, catalog.queue_by_id(*id)?)?)));
            if let Some(target) = target {
                out.push(self.known.entry(*id).or_insert(target).clone());
            }
        }
    }
}

/// What publishing to a stream needs, without a publisher's name. `None`: it is another kind of queue.
pub(in crate::edge) fn stream_target(catalog: &Catalog, record: &QueueRecord) -> Option<StreamTarget> {
    let filter_bytes = catalog.settings(record).stream?.filter_bytes;
    Some(StreamTarget {
        stream: record.id,
        shard: record.shard,
        publisher: None,
        catalog_index: catalog.index(),
        filter_bytes,
        leader: None,
    })
}

/// A message as an entry of a chunk.
#[derive(Clone, Copy)]
pub(in crate::edge) struct Record<'a>(PublishedEntry<'a>);

impl<'a> Record<'a> {
    /// Encodes it into `scratch`.
    pub fn encode(scratch: &'a mut BytesMut, message: &Message<'a>) -> Record<'a> {
        scratch.clear();
        scratch.put_u32(0);
        let Message { exchange, key, properties, body, .. } = *message;
        append_record(scratch, &Published { exchange, key, properties, body });
        let len = (scratch.len() - 4) as u32;
        scratch[..4].copy_from_slice(&len.to_be_bytes());
        Record(PublishedEntry { id: 0, filter: filter_value(properties), records: 1, entry: scratch })
    }

    /// The entry. Publishers by AMQP have no names, so its id says nothing.
    pub fn entry(&self) -> &PublishedEntry<'a> {
        &self.0
    }
}
