//! The catalog as bytes: commands for the log, snapshots, checkpoints, the state hash. MessagePack maps with named fields, so that a
//! field can be added later. Called by `consensus`.

use super::changes::History;
use super::groups::{Group, Groups};
use super::policy::Compiled;
use super::{Catalog, User, Vhost};
use crate::machine::hash::StateHasher;
use crate::machine::{Delta, RestoreError};
use crate::model::admin::{Limits, Policy, PolicyKind, VhostFacts};
use crate::model::catalog::{BindingSpec, CatalogCommand, ExchangeSpec, QueueRecord};
use crate::model::consumer_group::GroupName;
use crate::model::rocketmq::AccessKey;
use crate::model::roster::Roster;
use crate::model::{Incarnation, LogId, NodeId, ShardId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

const VERSION: u8 = 1;
const MAGIC: &[u8; 4] = b"WCAT";
const HEAD: usize = 5;
/// A checkpoint's values stay below the size at which the store keeps each in a file of its own (128 KiB).
const PIECE_BYTES: usize = 48 << 10;

/// The state as it is written, sharing its parts with the catalog that it was captured from.
#[derive(Serialize, Deserialize)]
pub struct Image {
    applied: LogId,
    shards: u16,
    vhosts: Vec<VhostImage>,
    users: BTreeMap<String, User>,
    #[serde(default)]
    access_keys: BTreeMap<String, AccessKey>,
    nodes: BTreeMap<NodeId, Incarnation>,
    exchanges: Vec<Arc<ExchangeSpec>>,
    queues: Vec<Arc<QueueRecord>>,
    histories: BTreeMap<ShardId, History>,
    bindings: Vec<(u64, Arc<BindingSpec>)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    groups: Vec<(GroupName, Group)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    roster: Option<Arc<Roster>>,
    #[serde(default, skip_serializing_if = "is_first")]
    version: u8,
}

/// The cluster's version was never raised.
fn is_first(version: &u8) -> bool {
    *version == 0
}

#[derive(Serialize, Deserialize)]
struct VhostImage {
    name: Arc<str>,
    created: u64,
    facts: VhostFacts,
    limits: Limits,
    user_policies: Vec<Arc<Policy>>,
    operator_policies: Vec<Arc<Policy>>,
}

/// A command as the log keeps it.
pub fn encode_command(command: &CatalogCommand) -> Bytes {
    Bytes::from(rmp_serde::to_vec_named(command).expect("a command is plain data, writing to memory cannot fail"))
}

/// The way back; `None`: not a command, or one of a newer version.
pub fn decode_command(bytes: &[u8]) -> Option<CatalogCommand> {
    rmp_serde::from_slice(bytes).ok()
}

impl Image {
    /// The state after this entry.
    pub fn applied(&self) -> LogId {
        self.applied
    }

    /// All of the state in one piece: magic, version, MessagePack, crc32c.
    pub fn into_snapshot(mut self) -> Vec<u8> {
        self.vhosts.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        self.exchanges.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        self.queues.sort_unstable_by_key(|queue| queue.id);
        let mut out = MAGIC.to_vec();
        out.push(VERSION);
        rmp_serde::encode::write_named(&mut out, &self).expect("plain data, writing to memory cannot fail");
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// What the store must hold: all of the state in pieces.
    pub fn into_delta(self) -> Delta {
        let applied = self.applied;
        let puts = self.into_snapshot().chunks(PIECE_BYTES).enumerate().map(|(n, piece)| (piece_key(n as u32), piece.to_vec())).collect();
        Delta { applied, full: true, puts, deletes: Vec::new() }
    }
}

impl Catalog {
    /// All of the state as bytes.
    pub fn snapshot(&self) -> Vec<u8> {
        self.image().into_snapshot()
    }

    /// The way back from `snapshot`.
    pub fn from_snapshot(bytes: &[u8]) -> Result<Catalog, RestoreError> {
        let (body, crc) = bytes.split_last_chunk::<4>().ok_or(RestoreError::Malformed("short snapshot"))?;
        if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
            return Err(RestoreError::Checksum);
        }
        let (head, body) = body.split_at_checked(HEAD).ok_or(RestoreError::Malformed("short snapshot"))?;
        if &head[..4] != MAGIC {
            return Err(RestoreError::Malformed("not a catalog snapshot"));
        }
        if head[4] != VERSION {
            return Err(RestoreError::Version(head[4]));
        }
        let image: Image = rmp_serde::from_slice(body).map_err(|_| RestoreError::Malformed("catalog"))?;
        Catalog::from_image(image)
    }

    /// What a checkpoint must store, when the catalog moved since the last one that was `captured`.
    pub fn capture(&self) -> Option<Image> {
        (self.checkpointed != Some(self.applied)).then(|| self.image())
    }

    /// A checkpoint of this state is on its way.
    pub fn captured(&mut self, applied: LogId) {
        self.checkpointed = Some(applied);
    }

    /// The stored checkpoint is lost: the next call of `checkpoint` gives one.
    pub fn forget_checkpoint(&mut self) {
        self.checkpointed = None;
    }

    /// The state that a store's keys and values hold; without any, a new catalog.
    pub fn restore<K, V>(pairs: impl IntoIterator<Item = (K, V)>) -> Result<Catalog, RestoreError>
    where
        K: AsRef<[u8]>,
        V: AsRef<[u8]>,
    {
        let pieces: BTreeMap<Vec<u8>, V> = pairs.into_iter().map(|(k, v)| (k.as_ref().to_vec(), v)).collect();
        if pieces.is_empty() {
            return Ok(Catalog::new());
        }
        let whole: Vec<u8> = pieces.values().flat_map(|v| v.as_ref()).copied().collect();
        let mut catalog = Catalog::from_snapshot(&whole)?;
        catalog.checkpointed = Some(catalog.applied);
        Ok(catalog)
    }

    /// Equal on all replicas that applied the same entries.
    pub fn state_hash(&self) -> u64 {
        let mut hasher = StateHasher::new();
        hasher.bytes(&self.snapshot());
        hasher.finish()
    }

    /// Only shares: sorted and encoded is it when nobody waits for the catalog.
    pub fn image(&self) -> Image {
        Image {
            applied: self.applied,
            shards: self.shards,
            vhosts: self.vhosts.iter().map(|(name, vhost)| vhost_image(name, vhost)).collect(),
            users: self.users.clone(),
            access_keys: self.access_keys.clone(),
            nodes: self.nodes.clone(),
            exchanges: self.vhosts.values().flat_map(|v| v.exchanges.values()).map(|x| x.spec.clone()).collect(),
            queues: self.queues.values().cloned().collect(),
            histories: self.by_shard.iter().map(|(shard, queues)| (*shard, queues.history.clone())).collect(),
            bindings: self.bindings.iter().map(|(id, spec)| (*id, spec.clone())).collect(),
            groups: self.groups.image(),
            roster: self.roster.clone(),
            version: self.raised,
        }
    }

    fn from_image(image: Image) -> Result<Catalog, RestoreError> {
        let mut catalog = Catalog {
            applied: image.applied,
            shards: image.shards,
            users: image.users,
            access_keys: image.access_keys,
            nodes: image.nodes,
            groups: Groups::from_image(image.groups),
            roster: image.roster,
            raised: image.version,
            access_version: image.applied.index,
            ..Catalog::default()
        };
        for (shard, history) in image.histories {
            catalog.by_shard.entry(shard).or_default().history = history;
        }
        for record in &image.queues {
            catalog.by_shard.entry(record.shard).or_default().queues.insert(record.id);
        }
        for vhost in image.vhosts {
            catalog.vhosts.insert(vhost.name.clone(), restored(vhost));
        }
        image.exchanges.iter().for_each(|spec| catalog.put_exchange(ExchangeSpec::clone(spec)));
        image.queues.into_iter().for_each(|record| catalog.put_queue(record));
        for (id, spec) in image.bindings {
            catalog.bind(id, &spec).map_err(|_| RestoreError::Malformed("binding without ends"))?;
        }
        Ok(catalog)
    }
}

fn vhost_image(name: &Arc<str>, vhost: &Vhost) -> VhostImage {
    let policies = |kind| vhost.policies(kind).values().map(|c| c.policy.clone()).collect();
    VhostImage {
        name: name.clone(),
        created: vhost.created,
        facts: vhost.facts.clone(),
        limits: vhost.limits.clone(),
        user_policies: policies(PolicyKind::User),
        operator_policies: policies(PolicyKind::Operator),
    }
}

/// A vhost with its policies, without what is in it.
fn restored(image: VhostImage) -> Vhost {
    let compiled = |policies: Vec<Arc<Policy>>| policies.into_iter().map(|policy| (policy.name.clone(), Compiled::new(policy))).collect();
    Vhost {
        created: image.created,
        facts: image.facts,
        limits: image.limits,
        user_policies: compiled(image.user_policies),
        operator_policies: compiled(image.operator_policies),
        ..Vhost::default()
    }
}

fn piece_key(n: u32) -> Vec<u8> {
    let mut key = vec![b'c'];
    key.extend_from_slice(&n.to_be_bytes());
    key
}
