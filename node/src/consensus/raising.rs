//! Raising the cluster's version (docs/decisions/0027): the node that leads the catalog asks all others which versions of the log their programs
//! apply, and raises what the catalog says to what all of them do.

use super::core::Core;
use super::start::Consensus;
use super::wire::Ask;
use super::{catalog::CatalogClient, clock};
use crate::model::catalog::CatalogCommand;
use crate::model::{NodeId, ShardId};
use crate::peer::transport::head_only;
use crate::peer::{Frame, PeerError};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::Instant;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(2);
/// One question.
const ASK: Duration = Duration::from_secs(1);
/// The command.
const COMMAND: Duration = Duration::from_secs(10);

impl Consensus {
    /// Until the cluster's version, as `current` reads it from the catalog, is the latest that this program applies.
    pub async fn keep_version(&self, current: impl Fn() -> u8) {
        let core = &self.core;
        let mut leadership_rx = self.leadership(ShardId::CATALOG);
        let mut said = None;
        while current() < core.supports {
            clock::calm(LOOK).await;
            if leadership_rx.wait_for(|leadership| leadership.is_me).await.is_err() {
                return;
            }
            let common = common(core).await;
            let version = match common {
                Ok(version) if version > current() => version,
                Ok(_) | Err(_) => {
                    if said.replace(common) != Some(common) {
                        tell(common, core.supports);
                    }
                    continue;
                }
            };
            let client = CatalogClient { core: core.clone() };
            match client.submit(&CatalogCommand::Raise { version }, Instant::now() + COMMAND).await {
                Ok(_) => tracing::info!(version, "all nodes know this version of the log: the cluster uses it from now on"),
                Err(error) => tracing::warn!(version, %error, "the version of the log cannot be raised yet"),
            }
        }
    }
}

fn tell(common: Result<u8, NodeId>, supported: u8) {
    match common {
        Ok(version) => tracing::info!(version, supported, "the cluster uses this version of the log until all nodes know the next"),
        Err(node) => {
            tracing::info!(%node, supported, "this node does not say which versions of the log it knows: the cluster uses the old one")
        }
    }
}

/// What all members apply; `Err`: one that does not say.
pub(super) async fn common(core: &Core) -> Result<u8, NodeId> {
    let (Some(transport), Some(catalog)) = (core.transport(), core.group(ShardId::CATALOG)) else { return Err(core.me) };
    let voters = catalog.voters();
    let nodes: BTreeSet<NodeId> = core.members.nodes().into_iter().chain(voters.iter().map(|voter| voter.node)).collect();
    let asks = nodes.into_iter().filter(|node| *node != core.me).map(|node| async move {
        let question = head_only(Bytes::from_static(&[Ask::Version as u8]));
        let answer: Result<Frame, PeerError> = transport.ask(node, question, ASK).await;
        answer.ok().and_then(|answer| answer.head.first().copied()).ok_or(node)
    });
    let answers = futures::future::join_all(asks).await;
    answers.into_iter().try_fold(core.supports, |least, version| Ok(least.min(version?)))
}

/// The other side.
pub(super) fn answer(core: &Core) -> Frame {
    head_only(Bytes::from(vec![core.supports]))
}
