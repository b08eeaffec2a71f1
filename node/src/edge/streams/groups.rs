//! A connection's members of consumer groups: their comings and goings as commands to the catalog, in order, and whose turn it is as this
//! node's copy of the catalog says.

use super::super_streams;
use crate::edge::Connection;
use crate::edge::connection::drop_exclusive;
use crate::edge::mailbox::Mailbox;
use crate::model::catalog::{CatalogCommand, Refusal};
use crate::model::consumer_group::{GroupChange, GroupMember, GroupName, Turn};
use crate::model::stream_step::Member;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::mpsc;

/// Changes that wait for the catalog: four for each of 256 subscriptions. A client that makes more has to wait for its own commands.
const CHANGES: usize = 1024;
/// Before a change that could not be made is tried again.
const PAUSE: Duration = Duration::from_millis(200);

type Change = (GroupName, GroupMember, GroupChange);

/// Takes a connection's changes to the catalog, one after the other.
pub(in crate::edge) struct Clerk(mpsc::Sender<Change>);

impl Connection {
    /// A subscription is a member of its group now, as soon as the catalog knows.
    pub fn join_group(&mut self, member: &Member) {
        let partition = member.super_stream.as_ref().and_then(|name| {
            let identity = self.mailbox.identity.get()?;
            let catalog = self.edge.catalog.read();
            let stream = catalog.queue_by_id(member.target.stream)?.spec.name.name.clone();
            super_streams::partition_index(&catalog, &identity.name(name), &stream)
        });
        // What the catalog keeps of this connection must go with it.
        self.mailbox.has_exclusive.store(true, Ordering::SeqCst);
        self.change_group(member, GroupChange::Join { partition });
    }

    /// Not any more.
    pub fn leave_group(&mut self, member: &Member) {
        self.change_group(member, GroupChange::Leave);
    }

    /// It has stopped reading: the turn may move.
    pub fn yield_turn(&mut self, member: &Member) {
        self.change_group(member, GroupChange::Yielded);
    }

    /// Whose turn it is; `None`: the catalog does not know this member.
    pub fn turn(&self, member: &Member) -> Option<Turn> {
        self.edge.catalog.read().turn(&group(member), self.group_member(member))
    }

    fn group_member(&self, member: &Member) -> GroupMember {
        GroupMember { owner: self.mailbox.owner, subscription: member.subscription }
    }

    fn change_group(&mut self, member: &Member, change: GroupChange) {
        let all = (group(member), self.group_member(member), change);
        let clerk = self.clerk.get_or_insert_with(|| {
            let (changes_tx, changes_rx) = mpsc::channel(CHANGES);
            self.edge.runtime.spawn(carry(self.edge.this.clone(), self.mailbox.clone(), changes_rx));
            Clerk(changes_tx)
        });
        if clerk.0.try_send(all).is_err() {
            let why = "more changes of consumer groups than the cluster takes";
            self.mailbox.push(crate::model::step::Event::Close(why.to_owned()));
        }
    }
}

fn group(member: &Member) -> GroupName {
    GroupName { stream: member.target.stream, name: member.group.clone() }
}

/// Until the connection is gone; then its members go by themselves.
async fn carry(edge: Weak<crate::edge::Edge>, mailbox: Arc<Mailbox>, mut changes_rx: mpsc::Receiver<Change>) {
    while let Some((group, member, change)) = changes_rx.recv().await {
        let is_join = matches!(change, GroupChange::Join { .. });
        while !mailbox.is_closed() {
            let Some(edge) = edge.upgrade() else { return };
            let command = CatalogCommand::Group { group: group.clone(), member, change: change.clone() };
            match edge.submit(command).await {
                Ok(_) => break,
                Err(Refusal::Unavailable(why)) => {
                    tracing::debug!(connection = %mailbox.id(), why, "a consumer group waits for the catalog")
                }
                Err(refusal) => {
                    tracing::warn!(connection = %mailbox.id(), group = %group.name, %refusal, "consumer group unchanged");
                    break;
                }
            }
            drop(edge);
            tokio::time::sleep(PAUSE).await;
        }
        if is_join && mailbox.is_closed() {
            // The client left meanwhile: its farewell may have come before this.
            tokio::spawn(drop_exclusive(edge.clone(), mailbox.clone()));
        }
    }
}
