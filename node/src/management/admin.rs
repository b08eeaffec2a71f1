//! The admin service that `warren ctl` calls, on the peer port beside the peers' own. `node` hands [`service`] to `peer`, whose
//! connections have proven the cluster secret before any call gets here.

use super::Readiness;
use super::rows;
use super::source::{AdminSource, ShardStatus, Status as Report};
use crate::model::NodeId;
use crate::model::catalog::Refusal;
use std::sync::Arc;
use tonic::{Request, Response, Status};
use warren_proto::admin::admin_server::{Admin, AdminServer};
use warren_proto::admin::{self as wire, ListReply, ListRequest, PingReply, PingRequest, StatusReply, StatusRequest};

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

fn refused(refusal: Refusal) -> Status {
    let text = refusal.to_string();
    match refusal {
        Refusal::NotFound { .. } => Status::not_found(text),
        Refusal::Unavailable(_) => Status::unavailable(text),
        Refusal::Access(_) | Refusal::NotAllowed(_) => Status::permission_denied(text),
        Refusal::Inequivalent(_) | Refusal::Precondition(_) | Refusal::Locked(_) => Status::failed_precondition(text),
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListReply>, Status> {
        let ListRequest { what, vhost, columns } = request.into_inner();
        let listed = match what.as_str() {
            "queues" => rows::list(&self.source.queues(vhost).await.map_err(refused)?, columns),
            "exchanges" => rows::list(&self.source.exchanges(vhost).await.map_err(refused)?, columns),
            "bindings" => rows::list(&self.source.bindings(vhost).await.map_err(refused)?, columns),
            other => Err(format!("'{other}' cannot be listed; queues, exchanges and bindings can")),
        };
        listed.map(Response::new).map_err(Status::invalid_argument)
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        let report = self.source.status().await.map_err(refused)?;
        Ok(Response::new(status_reply(report, self.readiness.waiting_for())))
    }

    async fn ping(&self, _: Request<PingRequest>) -> Result<Response<PingReply>, Status> {
        let waiting_for = self.readiness.waiting_for().unwrap_or_default();
        Ok(Response::new(PingReply { node: self.node.0.into(), version: env!("CARGO_PKG_VERSION").into(), waiting_for }))
    }
}

fn status_reply(report: Report, waiting_for: Option<String>) -> StatusReply {
    let Report { node, cluster_id, members, shards, connections, queues, alarms } = report;
    let members = members.into_iter().map(|m| wire::Member { node: m.node.0.into(), address: m.address, up: m.up }).collect();
    StatusReply {
        node: node.0.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        cluster_id,
        members,
        shards: shards.into_iter().map(shard_reply).collect(),
        connections,
        queues,
        alarms,
        waiting_for: waiting_for.unwrap_or_default(),
    }
}

fn shard_reply(shard: ShardStatus) -> wire::Shard {
    wire::Shard {
        shard: shard.shard.0.into(),
        leader: shard.leader.map(|leader| leader.node().0.into()),
        term: shard.leader.map_or(0, |leader| leader.term),
        members: shard.members.iter().map(|node| node.0.into()).collect(),
        applied: shard.applied,
    }
}

#[cfg(test)]
mod tests;
