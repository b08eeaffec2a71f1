//! The catalog (shard 0).
