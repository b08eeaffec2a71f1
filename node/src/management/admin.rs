//! The admin service that `warren ctl` calls, on the peer port beside the peers' own. `node` hands [`service`] to `peer`, whose
//! connections have proven the cluster secret before any call gets here.

use super::Readiness;
use super::client_rows::{channels, consumed, consumers};
use super::operator_rows::LimitsRow;
use super::rows::list;
use super::source::{AdminSource, ConnectionRow, Holder, QueueRow, ShardStatus, StateHash, Status as Report};
use super::stream_group_rows::{ask_names, members, names, tracking};
use super::stream_rows::{self, count_readers, is_stream};
use crate::model::NodeId;
use crate::model::admin::PolicyKind;
use crate::model::catalog::{Name, Refusal};
use crate::model::stream_step::Advertised;
use std::sync::Arc;
use tonic::{Code, Request, Response, Status};
use warren_proto::admin::admin_server::{Admin, AdminServer};
use warren_proto::admin::{
    self as wire, ArrangeRequest, AuthenticateReply, AuthenticateRequest, ChangeReply, ChangeRequest, CloseReply, CloseRequest, CountReply,
    CountRequest, ErrandReply, ErrandRequest, ListReply, ListRequest, PingReply, PingRequest, QueueReply, QueueRequest, SaltReply,
    SaltRequest, StateHashesReply, StateHashesRequest, StatusReply, StatusRequest,
};

/// The service of one node.
pub struct AdminService {
    node: NodeId,
    source: Arc<dyn AdminSource>,
    readiness: Arc<Readiness>,
}

/// Ready to be added to a tonic server.
pub fn service(node: NodeId, source: Arc<dyn AdminSource>, readiness: Arc<Readiness>) -> AdminServer<AdminService> {
    AdminServer::new(AdminService { node, source, readiness })
}

/// The refusal itself travels in the details, so that `ctl` can tell what is missing.
fn refused(refusal: Refusal) -> Status {
    let code = match &refusal {
        Refusal::NotFound { .. } => Code::NotFound,
        Refusal::Unavailable(_) => Code::Unavailable,
        Refusal::Access(_) | Refusal::NotAllowed(_) => Code::PermissionDenied,
        Refusal::NotImplemented(_) => Code::Unimplemented,
        Refusal::Inequivalent(_) | Refusal::Precondition(_) | Refusal::Locked(_) => Code::FailedPrecondition,
    };
    let details = rmp_serde::to_vec_named(&refusal).unwrap_or_default();
    Status::with_details(code, refusal.to_string(), details.into())
}

/// What a request to list came to: a wrong one is the caller's fault.
enum Unlisted {
    Refused(Refusal),
    Wrong(String),
}

impl From<Refusal> for Unlisted {
    fn from(refusal: Refusal) -> Unlisted {
        Unlisted::Refused(refusal)
    }
}

impl From<String> for Unlisted {
    fn from(why: String) -> Unlisted {
        Unlisted::Wrong(why)
    }
}

type Listed = Result<ListReply, Unlisted>;

fn named(vhost: &str, name: &str) -> Name {
    Name { vhost: vhost.into(), name: name.into() }
}

fn set<T: Into<Vec<String>>>(columns: Vec<String>, default: T) -> Vec<String> {
    if columns.is_empty() { default.into() } else { columns }
}

fn words(columns: &[&str]) -> Vec<String> {
    columns.iter().map(|column| (*column).to_owned()).collect()
}

impl AdminService {
    /// What the catalog and the shards' leaders know: any node has all of it.
    async fn list_shared(&self, request: ListRequest) -> Listed {
        let ListRequest { what, vhost, columns, of, local, state, .. } = request;
        let source = &*self.source;
        let some = |name: String| (!name.is_empty()).then_some(name);
        Ok(match what.as_str() {
            "queues" => {
                let mut queues = source.queues(vhost.clone()).await?;
                queues.retain(|queue| !local || queue.leader == Some(self.node));
                queues.retain(|queue| queue.is_in(&state));
                if columns.iter().any(|column| column == "consumers") {
                    self.count_readers(&mut queues, vhost).await?;
                }
                list(&queues, columns)?
            }
            "exchanges" => list(&source.exchanges(vhost).await?, columns)?,
            "bindings" => list(&source.bindings(vhost).await?, columns)?,
            "users" => list(&source.users()?, columns)?,
            "vhosts" => list(&source.vhosts()?, columns)?,
            "permissions" => {
                list(&source.permissions(Holder::Vhost(vhost))?, set(columns, words(&["user", "configure", "write", "read"])))?
            }
            "user_permissions" => {
                list(&source.permissions(Holder::User(of))?, set(columns, words(&["vhost", "configure", "write", "read"])))?
            }
            "topic_permissions" => {
                list(&source.topic_permissions(Holder::Vhost(vhost))?, set(columns, words(&["user", "exchange", "write", "read"])))?
            }
            "user_topic_permissions" => {
                list(&source.topic_permissions(Holder::User(of))?, set(columns, words(&["vhost", "exchange", "write", "read"])))?
            }
            "policies" => list(&source.policies(PolicyKind::User, vhost)?, columns)?,
            "operator_policies" => list(&source.policies(PolicyKind::Operator, vhost)?, columns)?,
            "vhost_limits" => list(&limits(source.vhost_limits(some(vhost))?), set(columns, words(&["vhost", "limits"])))?,
            "user_limits" => list(&limits(source.user_limits(some(of))?), set(columns, words(&["user", "limits"])))?,
            "topics" => list(&source.topics(vhost)?, columns)?,
            "groups" => list(&source.groups(vhost).await?, columns)?,
            "stream_consumer_groups" => list(&source.stream_groups(vhost)?, columns)?,
            "access_keys" => list(&source.access_keys()?, columns)?,
            "listeners" => list(&source.listeners(), columns)?,
            "certificates" => list(&source.certificates()?, columns)?,
            "environment" => list(&source.settings(), columns)?,
            other => return Err(Unlisted::Wrong(format!("'{other}' cannot be listed"))),
        })
    }

    /// Consumers of streams, which no leader knows: each node tells its own.
    async fn count_readers(&self, queues: &mut [QueueRow], vhost: String) -> Result<(), Unlisted> {
        if queues.iter().any(is_stream) {
            let request = ListRequest { what: "readers".to_owned(), vhost, local: true, ..ListRequest::default() };
            let own = self.list_own(&request).await?;
            let mut listed = self.source.elsewhere(request).await;
            listed.push(own);
            count_readers(queues, &listed);
        }
        Ok(())
    }

    /// What each node knows of itself only.
    async fn list_own(&self, request: &ListRequest) -> Listed {
        let columns = request.columns.clone();
        let source = &*self.source;
        Ok(match request.what.as_str() {
            "connections" => list(&source.connections().await?, columns)?,
            "channels" => list(&channels(&source.connections().await?), columns)?,
            "consumers" => {
                let connections = source.connections().await?;
                let active = source.active(request.vhost.clone(), consumed(&connections, &request.vhost)).await?;
                list(&consumers(&connections, &request.vhost, &active), columns)?
            }
            "readers" => list(&stream_rows::readers(&source.connections().await?, &request.vhost), columns)?,
            "stream_connections" => list(&stream_rows::connections(&source.connections().await?), columns)?,
            "stream_publishers" => list(&stream_rows::publishers(&source.connections().await?, &request.vhost), columns)?,
            "stream_consumers" => list(&stream_rows::subscriptions(&source.connections().await?, &request.vhost), columns)?,
            _replicas => {
                let replica = source.replica(named(&request.vhost, &request.of))?;
                list(replica.as_slice(), columns)?
            }
        })
    }

    /// Members of a group: the catalog knows them, the nodes that they are connected to know the connections' names.
    async fn list_members(&self, request: ListRequest) -> Listed {
        let ListRequest { vhost, columns, of, reference, .. } = request;
        let groups = self.source.stream_groups(vhost.clone())?;
        let group = groups.iter().find(|group| group.stream == of && *group.state.name.name == *reference);
        let missing = || Refusal::NotFound { kind: "consumer group".into(), name: reference.clone(), vhost };
        let group = group.ok_or_else(missing)?;
        let own = self.list_own(&ask_names()).await?;
        let mut listed = self.source.elsewhere(ask_names()).await;
        listed.push(own);
        Ok(list(&members(group, &names(listed)), columns)?)
    }

    /// What a stream remembers: a node with a replica knows.
    async fn list_tracking(&self, request: ListRequest) -> Listed {
        if let Some(memory) = self.source.stream_memory(named(&request.vhost, &request.of))? {
            return Ok(list(&tracking(&request.what, &memory), request.columns)?);
        }
        let asked = if request.local { Vec::new() } else { self.source.elsewhere(ListRequest { local: true, ..request }).await };
        let none = || Refusal::Unavailable("The stream is not available.".to_owned());
        Ok(asked.into_iter().next().ok_or_else(none)?)
    }

    async fn list_everywhere(&self, request: ListRequest) -> Listed {
        let mut own = self.list_own(&request).await?;
        if !request.local {
            let others = self.source.elsewhere(ListRequest { local: true, ..request }).await;
            own.rows.extend(others.into_iter().flat_map(|reply| reply.rows));
        }
        Ok(own)
    }
}

fn limits(rows: Vec<(String, crate::model::admin::Limits)>) -> Vec<LimitsRow> {
    rows.into_iter().map(|(of, limits)| LimitsRow { of, limits }).collect()
}

fn decoded<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, Status> {
    rmp_serde::from_slice(bytes).map_err(|error| Status::invalid_argument(format!("not understood by this version: {error}")))
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListReply>, Status> {
        let request = request.into_inner();
        let listed = match request.what.as_str() {
            "connections" | "channels" | "consumers" | "replicas" | "readers" | "stream_connections" | "stream_publishers"
            | "stream_consumers" => self.list_everywhere(request).await,
            "stream_group_consumers" => self.list_members(request).await,
            "stream_tracking" | "stream_tracking_offset" | "stream_tracking_writer" => self.list_tracking(request).await,
            _ => self.list_shared(request).await,
        };
        listed.map(Response::new).map_err(|error| match error {
            Unlisted::Refused(refusal) => refused(refusal),
            Unlisted::Wrong(why) => Status::invalid_argument(why),
        })
    }

    async fn change(&self, request: Request<ChangeRequest>) -> Result<Response<ChangeReply>, Status> {
        let command = decoded(&request.into_inner().command)?;
        self.source.change(command).await.map_err(refused)?;
        Ok(Response::new(ChangeReply {}))
    }

    async fn arrange(&self, request: Request<ArrangeRequest>) -> Result<Response<ChangeReply>, Status> {
        let arrangement = decoded(&request.into_inner().arrangement)?;
        self.source.arrange(arrangement).await.map_err(refused)?;
        Ok(Response::new(ChangeReply {}))
    }

    async fn errand(&self, request: Request<ErrandRequest>) -> Result<Response<ErrandReply>, Status> {
        let report = self.source.errand(request.into_inner().errand.to_vec()).await.map_err(refused)?;
        Ok(Response::new(ErrandReply { report: report.into() }))
    }

    async fn authenticate(&self, request: Request<AuthenticateRequest>) -> Result<Response<AuthenticateReply>, Status> {
        let AuthenticateRequest { user, nonce, proof } = request.into_inner();
        let refusal = self.source.authenticate(&user, &nonce, &proof).map_err(refused)?;
        Ok(Response::new(AuthenticateReply { refused: refusal.unwrap_or_default() }))
    }

    async fn salt(&self, request: Request<SaltRequest>) -> Result<Response<SaltReply>, Status> {
        let salt = self.source.salt(&request.into_inner().user).map_err(refused)?;
        Ok(Response::new(SaltReply { salt: salt.to_vec().into() }))
    }

    async fn purge_queue(&self, request: Request<QueueRequest>) -> Result<Response<QueueReply>, Status> {
        let QueueRequest { vhost, queue, .. } = request.into_inner();
        let messages = self.source.purge(named(&vhost, &queue)).await.map_err(refused)?;
        Ok(Response::new(QueueReply { messages }))
    }

    async fn delete_queue(&self, request: Request<QueueRequest>) -> Result<Response<QueueReply>, Status> {
        let QueueRequest { vhost, queue, if_empty, if_unused } = request.into_inner();
        let messages = self.source.delete_queue(named(&vhost, &queue), if_unused, if_empty).await.map_err(refused)?;
        Ok(Response::new(QueueReply { messages }))
    }

    async fn close_connections(&self, request: Request<CloseRequest>) -> Result<Response<CloseReply>, Status> {
        let request = request.into_inner();
        let picked = |row: &ConnectionRow| {
            let is_named = request.pid.is_empty() || row.pid() == request.pid;
            let is_users = request.user.is_empty() || row.stat.user.as_deref() == Some(&*request.user);
            is_named && is_users && (request.vhost.is_empty() || row.stat.vhost.as_deref() == Some(&*request.vhost))
        };
        let mut connections = self.source.close(&request.reason, &picked).map_err(refused)?;
        if !request.local {
            connections += self.source.close_elsewhere(CloseRequest { local: true, ..request }).await;
        }
        Ok(Response::new(CloseReply { connections }))
    }

    async fn count(&self, request: Request<CountRequest>) -> Result<Response<CountReply>, Status> {
        let count = self.source.count(&decoded(&request.into_inner().counted)?).map_err(refused)?;
        Ok(Response::new(CountReply { count }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        let report = self.source.status().await.map_err(refused)?;
        Ok(Response::new(status_reply(report, self.readiness.waiting_for())))
    }

    async fn state_hashes(&self, _: Request<StateHashesRequest>) -> Result<Response<StateHashesReply>, Status> {
        // The state may be large, and reading it is work for the processor alone.
        let source = self.source.clone();
        let hashes = tokio::task::spawn_blocking(move || source.state_hashes()).await;
        let hashes = hashes.map_err(|error| Status::internal(error.to_string()))?.map_err(refused)?;
        let replica = |found: StateHash| wire::StateHash { shard: found.shard.0.into(), applied: found.applied, hash: found.hash };
        Ok(Response::new(StateHashesReply { replicas: hashes.into_iter().map(replica).collect() }))
    }

    async fn ping(&self, _: Request<PingRequest>) -> Result<Response<PingReply>, Status> {
        let waiting_for = self.readiness.waiting_for().unwrap_or_default();
        let (node, version) = (self.node.0.into(), env!("CARGO_PKG_VERSION").into());
        let Advertised { host, port, tls_port } = self.source.advertised();
        let (stream_port, stream_tls_port) = (port.into(), tls_port.into());
        Ok(Response::new(PingReply { node, version, waiting_for, stream_host: host, stream_port, stream_tls_port }))
    }
}

fn status_reply(report: Report, waiting_for: Option<String>) -> StatusReply {
    let Report { node, cluster_id, members, shards, connections, queues, alarms, local_alarm } = report;
    let members = members
        .into_iter()
        .map(|m| wire::Member { node: m.node.0.into(), address: m.address, up: m.up, stage: m.stage.text().into() })
        .collect();
    StatusReply {
        node: node.0.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        cluster_id,
        members,
        shards: shards.into_iter().map(shard_reply).collect(),
        connections,
        queues,
        alarms,
        local_alarm,
        waiting_for: waiting_for.unwrap_or_default(),
    }
}

fn shard_reply(shard: ShardStatus) -> wire::Shard {
    wire::Shard {
        shard: shard.shard.0.into(),
        leader: shard.leader.map(|leader| leader.node().0.into()),
        term: shard.leader.map_or(0, |leader| leader.term),
        members: shard.members.iter().map(|node| node.0.into()).collect(),
        goal: shard.goal.iter().map(|node| node.0.into()).collect(),
        applied: shard.applied,
    }
}

#[cfg(test)]
mod tests;
