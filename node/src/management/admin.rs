//! The admin service that `warren ctl` calls, on the peer port beside the peers' own. `node` hands [`service`] to the tonic server,
//! outside the peers' authentication: it has its own (`auth`).

use super::Readiness;
use super::auth::Challenger;
use super::rows;
use super::source::{AdminSource, ShardStatus, Status as Report};
use crate::model::NodeId;
use crate::model::catalog::Refusal;
use std::sync::Arc;
use tonic::{Request, Response, Status};
use warren_proto::admin::admin_server::{Admin, AdminServer};
use warren_proto::admin::{self as wire, ListReply, ListRequest, PingReply, PingRequest, StatusReply, StatusRequest};

/// Paths of the methods, as proofs name them.
pub(super) mod path {
    pub(in super::super) const LIST: &str = "/warren.admin.Admin/List";
    pub(in super::super) const STATUS: &str = "/warren.admin.Admin/Status";
    pub(in super::super) const PING: &str = "/warren.admin.Admin/Ping";
}

/// The service of one node.
pub struct AdminService {
    node: NodeId,
    source: Arc<dyn AdminSource>,
    readiness: Arc<Readiness>,
    challenger: Challenger,
}

/// Ready to be added to a tonic server.
pub fn service(node: NodeId, source: Arc<dyn AdminSource>, readiness: Arc<Readiness>, secret: &[u8]) -> AdminServer<AdminService> {
    AdminServer::new(AdminService { node, source, readiness, challenger: Challenger::new(secret) })
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
    async fn challenge(&self, _: Request<wire::ChallengeRequest>) -> Result<Response<wire::ChallengeReply>, Status> {
        Ok(Response::new(wire::ChallengeReply { nonce: self.challenger.challenge().to_vec().into() }))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListReply>, Status> {
        self.challenger.check(request.metadata(), path::LIST)?;
        let ListRequest { what, vhost, columns } = request.into_inner();
        let listed = match what.as_str() {
            "queues" => rows::list(&self.source.queues(vhost).await.map_err(refused)?, columns),
            "exchanges" => rows::list(&self.source.exchanges(vhost).await.map_err(refused)?, columns),
            "bindings" => rows::list(&self.source.bindings(vhost).await.map_err(refused)?, columns),
            other => Err(format!("'{other}' cannot be listed; queues, exchanges and bindings can")),
        };
        listed.map(Response::new).map_err(Status::invalid_argument)
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        self.challenger.check(request.metadata(), path::STATUS)?;
        let report = self.source.status().await.map_err(refused)?;
        Ok(Response::new(status_reply(report, self.readiness.waiting_for())))
    }

    async fn ping(&self, request: Request<PingRequest>) -> Result<Response<PingReply>, Status> {
        self.challenger.check(request.metadata(), path::PING)?;
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
