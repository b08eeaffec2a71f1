//! The other nodes, asked over the admin service as an operator's tool asks: what only they know of themselves. Connections are made
//! when somebody asks and kept; a broken one is made anew at the next question.

use crate::config::ServerConfig;
use crate::consensus::Members;
use crate::edge;
use crate::listener::rocketmq::Elsewhere;
use crate::management::client::{AdminClient, ClientError};
use crate::model::NodeId;
use crate::model::report::Counted;
use crate::model::stream_step::Advertised;
use crate::peer::auth::Secret;
use crate::peer::client::dial_operator;
use crate::tls::Mutual;
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::OnceLock;
use std::time::Duration;
use warren_proto::admin::{CloseRequest, ListReply, ListRequest, PingReply};

/// For listings: longer than a node waits for its own sessions.
const PATIENCE: Duration = Duration::from_secs(5);
/// For counts that a client's login waits for.
const COUNT_PATIENCE: Duration = Duration::from_secs(1);

/// All nodes but this one.
pub(super) struct Neighbours {
    me: NodeId,
    /// As configured.
    addresses: BTreeMap<NodeId, String>,
    /// Who is a member, as soon as this node runs.
    members: OnceLock<Members>,
    secret: Secret,
    tls: Option<Mutual>,
    clients: Mutex<BTreeMap<NodeId, AdminClient>>,
}

impl Neighbours {
    pub(super) fn new(config: &ServerConfig, tls: Option<Mutual>) -> Neighbours {
        let others = config.cluster.iter().filter(|m| m.node != config.node);
        Neighbours {
            me: config.node,
            members: OnceLock::new(),
            addresses: others.map(|m| (m.node, format!("{}:{}", m.host, m.port))).collect(),
            secret: Secret::new(config.secret.bytes()),
            tls,
            clients: Mutex::default(),
        }
    }

    pub(super) async fn list(&self, request: ListRequest) -> Vec<ListReply> {
        let all = self.all();
        let replies = self.ask(&all, PATIENCE, |mut client| {
            let request = request.clone();
            async move { client.list(request).await }
        });
        replies.await.into_iter().map(|(_, reply)| reply).collect()
    }

    fn all(&self) -> Vec<NodeId> {
        match self.members.get() {
            Some(members) => members.nodes().into_iter().filter(|node| *node != self.me).collect(),
            None => self.addresses.keys().copied().collect(),
        }
    }

    /// From now on the members count, not who is configured.
    pub(super) fn follow(&self, members: &Members) {
        // A second call would name the same.
        let _ = self.members.set(members.clone());
    }

    /// Addresses that are configured win.
    fn address(&self, node: NodeId) -> Option<String> {
        let member = || Some(self.members.get()?.roster().members.get(&node)?.address.clone());
        self.addresses.get(&node).cloned().or_else(member)
    }

    pub(super) async fn close(&self, request: CloseRequest) -> u64 {
        let all = self.all();
        let replies = self.ask(&all, PATIENCE, |mut client| {
            let request = request.clone();
            async move { client.close_connections(request).await }
        });
        replies.await.iter().map(|(_, reply)| reply.connections).sum()
    }

    /// The answers of those of these nodes that answer in time, in their order.
    async fn ask<T, F>(&self, nodes: &[NodeId], patience: Duration, ask: impl Fn(AdminClient) -> F) -> Vec<(NodeId, T)>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let known = nodes.iter().filter_map(|node| Some((*node, self.address(*node)?)));
        let asked = known.map(|(node, address)| {
            let answer = self.ask_one(node, address, &ask);
            async move {
                match tokio::time::timeout(patience, answer).await {
                    Ok(Ok(answer)) => Some((node, answer)),
                    Ok(Err(why)) => {
                        tracing::debug!(%node, why, "left out: no answer");
                        None
                    }
                    Err(_) => {
                        tracing::warn!(%node, "left out: no answer in time");
                        None
                    }
                }
            }
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    async fn dial(&self, node: NodeId, address: &str) -> Result<AdminClient, String> {
        let channel = dial_operator(address, &self.secret, self.tls.as_ref()).await.map_err(|error| error.to_string())?;
        let client = AdminClient::new(address, channel, PATIENCE);
        self.clients.lock().insert(node, client.clone());
        Ok(client)
    }

    /// Over the connection there is, then over a new one.
    async fn ask_one<T, F>(&self, node: NodeId, address: String, ask: &impl Fn(AdminClient) -> F) -> Result<T, String>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let known = self.clients.lock().get(&node).cloned();
        if let Some(client) = known {
            match ask(client).await {
                Err(ClientError::Unreachable { .. }) => {}
                answered => return answered.map_err(|error| error.to_string()),
            }
        }
        self.clients.lock().remove(&node);
        let client = self.dial(node, &address).await?;
        ask(client).await.map_err(|error| error.to_string())
    }
}

impl Elsewhere for Neighbours {
    fn ask(&self, node: NodeId, errand: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        async move {
            let address = self.address(node).ok_or("no such node")?;
            // Once: nobody knows what became of an errand that was not answered, and it may not be done twice.
            let known = self.clients.lock().get(&node).cloned();
            let mut client = match known {
                Some(client) => client,
                None => self.dial(node, &address).await?,
            };
            let answered = client.errand(errand).await;
            if let Err(ClientError::Unreachable { .. }) = &answered {
                self.clients.lock().remove(&node);
            }
            answered.map_err(|error| error.to_string())
        }
        .boxed()
    }
}

impl edge::Neighbours for Neighbours {
    fn count(&self, counted: Counted, nodes: Vec<NodeId>) -> BoxFuture<'_, Vec<(NodeId, u64)>> {
        async move {
            let counts = self.ask(&nodes, COUNT_PATIENCE, |mut client| {
                let counted = counted.clone();
                async move { client.count(&counted).await }
            });
            counts.await
        }
        .boxed()
    }

    fn addresses(&self, nodes: Vec<NodeId>) -> BoxFuture<'_, Vec<(NodeId, Option<Advertised>)>> {
        async move {
            let known = nodes.iter().filter_map(|node| Some((*node, self.address(*node)?)));
            let asked = known.map(async |(node, address)| {
                let answer = self.ask_one(node, address, &|mut client: AdminClient| async move { client.ping().await });
                let told = tokio::time::timeout(COUNT_PATIENCE, answer).await.ok()?;
                Some((node, told.ok().and_then(for_streams)))
            });
            join_all(asked).await.into_iter().flatten().collect()
        }
        .boxed()
    }
}

/// Where stream clients are let in, if they are.
fn for_streams(reply: PingReply) -> Option<Advertised> {
    let (port, tls_port) = (reply.stream_port.try_into().ok()?, reply.stream_tls_port.try_into().ok()?);
    let serves = reply.waiting_for.is_empty() && !reply.stream_host.is_empty();
    serves.then_some(Advertised { host: reply.stream_host, port, tls_port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_clients_are_sent_to_nodes_that_let_them_in() {
        let reply = PingReply { stream_host: "a".into(), stream_port: 5552, ..PingReply::default() };
        assert_eq!(for_streams(reply.clone()), Some(Advertised { host: "a".into(), port: 5552, tls_port: 0 }));
        assert_eq!(for_streams(PingReply { waiting_for: "starting".into(), ..reply.clone() }), None);
        assert_eq!(for_streams(PingReply { stream_host: String::new(), ..reply }), None, "it does not know its address yet");
    }
}
