//! Streams of a data shard, entry by entry.
