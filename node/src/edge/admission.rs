//! Who may come in and stay: logins, vhosts, and how many connections and channels a vhost or a user may have in the whole cluster.
//! Texts are RabbitMQ's.

use super::mailbox::{ChannelRef, Identity, Mailbox};
use super::{Blocker, Edge};
use crate::machine::catalog::Catalog;
use crate::model::catalog::Refusal;
use crate::model::report::Counted;
use crate::model::step::Event;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const CHANNEL_OPEN: (u16, u16) = (20, 10);

/// Whether this user may log in from there; answers which user of that name it is. The error is for the log.
pub(super) fn authenticate(catalog: &Catalog, user: &str, password: &[u8], from: IpAddr, loopback_users: &[String]) -> Result<u64, String> {
    if !catalog.authenticate(user, password) {
        return Err(format!("user '{user}' - invalid credentials"));
    }
    vouched(catalog, user, from, loopback_users)
}

/// The same without a password: who it is has been proved in another way.
pub(super) fn vouched(catalog: &Catalog, user: &str, from: IpAddr, loopback_users: &[String]) -> Result<u64, String> {
    if !is_loopback(from) && loopback_users.iter().any(|kept| kept == user) {
        return Err(format!("user '{user}' can only connect via localhost"));
    }
    catalog.user(user).map(|found| found.created).ok_or_else(|| format!("user '{user}' does not exist"))
}

fn is_loopback(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_loopback(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.to_ipv4_mapped().is_some_and(|v4| v4.is_loopback()),
    }
}

/// Whether this user may enter the vhost; answers who it is there.
pub(super) fn open(catalog: &Catalog, user: &(Arc<str>, u64), vhost: &str) -> Result<Identity, Refusal> {
    let Some(vhost_created) = catalog.vhost_created(vhost) else {
        return Err(Refusal::NotAllowed(format!("vhost {vhost} not found")));
    };
    let (user, user_created) = (user.0.clone(), user.1);
    let is_same = catalog.user(&user).is_some_and(|u| u.created == user_created);
    if !is_same || catalog.permission(&user, vhost).is_none() {
        return Err(Refusal::NotAllowed(format!("access to vhost '{vhost}' refused for user '{user}'")));
    }
    Ok(Identity { user, vhost: vhost.into(), user_created, vhost_created })
}

/// Why somebody who came in must leave.
fn expelled(catalog: &Catalog, identity: &Identity) -> Option<String> {
    let Identity { user, vhost, user_created, vhost_created } = identity;
    if catalog.vhost_created(vhost) != Some(*vhost_created) {
        return Some(format!("vhost '{vhost}' is deleted"));
    }
    let stays = catalog.user(user).is_some_and(|u| u.created == *user_created);
    (!stays).then(|| format!("user '{user}' is deleted"))
}

/// Limits on connections that concern this one: what is counted, how many there may be, and what is said when there are more.
fn connection_limits(catalog: &Catalog, identity: &Identity) -> Vec<(Counted, u64, String)> {
    let Identity { user, vhost, .. } = identity;
    let mut limits = Vec::new();
    if let Some(limit) = catalog.vhost_limit(vhost, "max-connections") {
        let text = format!("access to vhost '{vhost}' refused for user '{user}': connection limit ({limit}) is reached");
        limits.push((Counted::VhostConnections(vhost.clone()), limit, text));
    }
    if let Some(limit) = catalog.user_limit(user, "max-connections") {
        let text = format!("connection refused for user '{user}': user connection limit ({limit}) is reached");
        limits.push((Counted::UserConnections(user.clone()), limit, text));
    }
    limits
}

impl Edge {
    /// Lets a client into a vhost, or not: at once where nothing is limited, else after the other nodes were asked. It is counted
    /// before anybody asks, so a limit is not exceeded while all nodes answer; of several who come at the same moment for the last place all may be refused.
    pub(super) fn admit(self: &Arc<Self>, mailbox: &Arc<Mailbox>, identity: Identity) {
        let limits = connection_limits(&self.catalog.read(), &identity);
        // A second open finds it set: the session asks once.
        let _ = mailbox.identity.set(identity);
        mailbox.is_inside.store(true, Ordering::SeqCst);
        if limits.is_empty() {
            return self.admitted(mailbox);
        }
        let (edge, mailbox) = (self.clone(), mailbox.clone());
        self.runtime.spawn(async move {
            for (counted, limit, text) in limits {
                if edge.count_everywhere(counted).await > limit {
                    mailbox.is_inside.store(false, Ordering::SeqCst);
                    return mailbox.push(Event::OpenRefused(Refusal::NotAllowed(text)));
                }
            }
            edge.admitted(&mailbox);
        });
    }

    fn admitted(&self, mailbox: &Arc<Mailbox>) {
        mailbox.push(Event::Opened);
        if let Some(why) = &*self.blocked.lock() {
            mailbox.block(Blocker::Node, why);
        }
        // Deleted between the check and now: `expel` may have looked before this one was there.
        let catalog = self.catalog.read();
        if let Some(why) = mailbox.identity.get().and_then(|identity| expelled(&catalog, identity)) {
            mailbox.push(Event::Close(why));
        }
    }

    /// Users, vhosts or limits may have changed: connections of those that are gone are closed. Costs nothing when none has.
    pub fn expel(&self) {
        let catalog = self.catalog.read();
        let version = catalog.access_version();
        if self.expelled_at.swap(version, Ordering::SeqCst) == version {
            return;
        }
        for mailbox in self.connections.lock().values() {
            if let Some(why) = mailbox.identity.get().and_then(|identity| expelled(&catalog, identity)) {
                tracing::info!(peer = %mailbox.peer, why, "closing connection");
                mailbox.push(Event::Close(why));
            }
        }
    }

    /// A channel was opened: its user may have only so many.
    pub(super) fn admit_channel(self: &Arc<Self>, mailbox: &Arc<Mailbox>, at: ChannelRef) {
        mailbox.channels.fetch_add(1, Ordering::SeqCst);
        let Some(identity) = mailbox.identity.get() else { return };
        let Some(limit) = self.catalog.read().user_limit(&identity.user, "max-channels") else { return };
        let (edge, mailbox, user) = (self.clone(), mailbox.clone(), identity.user.clone());
        self.runtime.spawn(async move {
            if edge.count_everywhere(Counted::UserChannels(user.clone())).await > limit {
                let text = format!("number of channels opened for user '{user}' has reached the maximum allowed user limit of ({limit})");
                let refusal = Refusal::NotAllowed(text);
                mailbox.push_at(at, |channel| Event::ChannelError { channel, refusal, method: CHANNEL_OPEN });
            }
        });
    }

    /// How many there are on this node.
    pub fn count(&self, counted: &Counted) -> u64 {
        let count = |mailbox: &Mailbox| {
            let Some(identity) = mailbox.identity.get().filter(|_| mailbox.is_inside.load(Ordering::SeqCst)) else { return 0 };
            match counted {
                Counted::VhostConnections(vhost) => u64::from(identity.vhost == *vhost),
                Counted::UserConnections(user) => u64::from(identity.user == *user),
                Counted::UserChannels(user) if identity.user == *user => u64::from(mailbox.channels.load(Ordering::SeqCst)),
                Counted::UserChannels(_) => 0,
            }
        };
        self.connections.lock().values().map(|mailbox| count(mailbox)).sum()
    }

    async fn count_everywhere(&self, counted: Counted) -> u64 {
        let here = self.count(&counted);
        match self.neighbours.get() {
            Some(neighbours) => here + neighbours.count(counted).await,
            None => here,
        }
    }
}
