//! Who may come in and stay: logins, vhosts, and how many connections and channels a vhost or a user may have in the whole cluster.
//! Texts are RabbitMQ's.

use super::Edge;
use super::mailbox::{ChannelRef, Identity, Mailbox};
use super::publish::NO_LEASE;
use crate::machine::catalog::Catalog;
use crate::model::NodeId;
use crate::model::catalog::Refusal;
use crate::model::report::Counted;
use crate::model::step::{Event, LoginRefused, Reply};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Before a node that did not answer is asked again.
const SILENCE: Duration = Duration::from_millis(100);

/// Whether this user may log in from there; answers which user of that name it is. The error is for the log.
pub(super) fn authenticate(
    catalog: &Catalog,
    user: &str,
    password: &[u8],
    from: IpAddr,
    loopback_users: &[String],
) -> Result<u64, LoginRefused> {
    if !catalog.authenticate(user, password) {
        return Err(format!("user '{user}' - invalid credentials").into());
    }
    vouched(catalog, user, from, loopback_users)
}

/// The same without a password: who it is has been proved in another way.
pub(super) fn vouched(catalog: &Catalog, user: &str, from: IpAddr, loopback_users: &[String]) -> Result<u64, LoginRefused> {
    if !is_loopback(from) && loopback_users.iter().any(|kept| kept == user) {
        return Err(LoginRefused { why: format!("user '{user}' can only connect via localhost"), is_remote: true });
    }
    catalog.user(user).map(|found| found.created).ok_or_else(|| format!("user '{user}' does not exist").into())
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
    let (name, created) = user;
    let is_same = catalog.user(name).is_some_and(|u| u.created == *created);
    if !is_same || catalog.permission(name, vhost).is_none() {
        return Err(Refusal::NotAllowed(format!("access to vhost '{vhost}' refused for user '{name}'")));
    }
    Ok(Identity { user: Some(user.clone()), vhost: vhost.into(), vhost_created })
}

/// Why somebody who came in must leave.
fn expelled(catalog: &Catalog, identity: &Identity) -> Option<String> {
    let Identity { user, vhost, vhost_created } = identity;
    if catalog.vhost_created(vhost) != Some(*vhost_created) {
        return Some(format!("vhost '{vhost}' is deleted"));
    }
    let (user, created) = user.as_ref()?;
    let stays = catalog.user(user).is_some_and(|u| u.created == *created);
    (!stays).then(|| format!("user '{user}' is deleted"))
}

/// Limits on connections that concern this one: what is counted, how many there may be, and what is said when there are more.
fn connection_limits(catalog: &Catalog, identity: &Identity) -> Vec<(Counted, u64, String)> {
    let Identity { user: Some((user, _)), vhost, .. } = identity else { return Vec::new() };
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
    /// before anybody asks, so a limit is never exceeded; of several who come at the same moment for the last place all may be refused.
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
                if let Err(refusal) = edge.check_limit(&counted, limit, text).await {
                    mailbox.is_inside.store(false, Ordering::SeqCst);
                    return mailbox.push(Event::OpenRefused(refusal));
                }
            }
            edge.admitted(&mailbox);
        });
    }

    /// The broker itself, wherever there is such a vhost.
    pub(super) fn admit_own(&self, mailbox: &Arc<Mailbox>, vhost: &str) {
        let created = self.catalog.read().vhost_created(vhost);
        let Some(vhost_created) = created else {
            return mailbox.push(Event::OpenRefused(Refusal::NotAllowed(format!("vhost {vhost} not found"))));
        };
        let _ = mailbox.identity.set(Identity { user: None, vhost: vhost.into(), vhost_created });
        self.admitted(mailbox);
    }

    fn admitted(&self, mailbox: &Arc<Mailbox>) {
        mailbox.push(Event::Opened);
        // Deleted between the check and now: `expel` may have looked before this one was there.
        let catalog = self.catalog.read();
        if let Some(why) = mailbox.identity.get().and_then(|identity| expelled(&catalog, identity)) {
            mailbox.push(Event::Close(why));
        }
    }

    /// Users, vhosts or limits may have changed: connections of those that are gone are closed. Costs next to nothing when none has.
    /// Who waits for news of the catalog looks again.
    pub fn expel(&self) {
        self.catalog_moved.send_replace(());
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

    /// A channel is opened, or not: its user may have only so many. Answered like any request.
    pub(super) fn admit_channel(self: &Arc<Self>, mailbox: &Arc<Mailbox>, at: ChannelRef) {
        mailbox.channels.fetch_add(1, Ordering::SeqCst);
        let user = mailbox.identity.get().and_then(|identity| identity.user.as_ref()).map(|user| user.0.clone());
        let limit = user.and_then(|user| Some((self.catalog.read().user_limit(&user, "max-channels")?, user)));
        let Some((limit, user)) = limit else {
            mailbox.reply(at, Ok(Reply::Done));
            return;
        };
        let (edge, mailbox) = (self.clone(), mailbox.clone());
        self.runtime.spawn(async move {
            let text = format!("number of channels opened for user '{user}' has reached the maximum allowed user limit of ({limit})");
            let allowed = edge.check_limit(&Counted::UserChannels(user), limit, text).await;
            mailbox.reply(at, allowed.map(|()| Reply::Done));
        });
    }

    /// Refused with `text` when there are more than `limit` on all nodes.
    async fn check_limit(&self, counted: &Counted, limit: u64, text: String) -> Result<(), Refusal> {
        if self.count_everywhere(counted).await? > limit { Err(Refusal::NotAllowed(text)) } else { Ok(()) }
    }

    /// How many there are on this node.
    pub fn count(&self, counted: &Counted) -> u64 {
        let count = |mailbox: &Mailbox| {
            let Some(identity) = mailbox.identity.get().filter(|_| mailbox.is_inside.load(Ordering::SeqCst)) else { return 0 };
            match counted {
                Counted::VhostConnections(vhost) => u64::from(identity.vhost == *vhost),
                Counted::UserConnections(user) => u64::from(identity.user() == Some(user)),
                Counted::UserChannels(user) if identity.user() == Some(user) => u64::from(mailbox.channels.load(Ordering::SeqCst)),
                Counted::UserChannels(_) => 0,
            }
        };
        self.connections.lock().values().map(|mailbox| count(mailbox)).sum()
    }

    /// How many there are on this node and on all others that are up. A silent one is asked again until it answers or counts as down: what
    /// nobody knows must not pass for nothing. Without a routing lease nobody knows who is up.
    async fn count_everywhere(&self, counted: &Counted) -> Result<u64, Refusal> {
        let Some(neighbours) = self.neighbours.get() else { return Ok(self.count(counted)) };
        let until = Instant::now() + self.config.no_quorum_timeout;
        let mut known: BTreeMap<NodeId, u64> = BTreeMap::new();
        loop {
            let is_fresh = self.port.routing_lease();
            let up: Vec<NodeId> = self.catalog.read().nodes().map(|(node, _)| node).filter(|node| *node != self.config.node).collect();
            known.retain(|node, _| up.contains(node));
            let silent: Vec<NodeId> = up.into_iter().filter(|node| !known.contains_key(node)).collect();
            match silent.first() {
                None if is_fresh => return Ok(self.count(counted) + known.values().sum::<u64>()),
                None if Instant::now() >= until => return Err(Refusal::NotAllowed(NO_LEASE.to_owned())),
                Some(node) if Instant::now() >= until => {
                    return Err(Refusal::NotAllowed(format!("limits cannot be checked: node {node} does not answer")));
                }
                Some(_) | None => {}
            }
            let answers = neighbours.count(counted.clone(), silent).await;
            if answers.is_empty() {
                tokio::time::sleep(SILENCE).await;
            }
            known.extend(answers);
        }
    }
}
