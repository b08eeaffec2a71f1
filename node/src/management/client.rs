//! The client's side of the admin service, for `warren ctl`, over a connection that `peer` has authenticated.

use crate::model::admin::AdminCommand;
use crate::model::catalog::Refusal;
use crate::model::limits;
use crate::model::report::Counted;
use crate::model::rocketmq::Arrangement;
use std::future::Future;
use std::time::Duration;
use tonic::Status;
use tonic::transport::Channel;
use warren_proto::admin::admin_client::AdminClient as Stub;
use warren_proto::admin::{
    ArrangeRequest, AuthenticateReply, AuthenticateRequest, ChangeRequest, CloseReply, CloseRequest, CountRequest, ErrandRequest,
    ListReply, ListRequest, PingReply, PingRequest, QueueReply, QueueRequest, SaltRequest, StateHashesReply, StateHashesRequest,
    StatusReply, StatusRequest,
};

/// Largest answer, bytes: a message of any size, which may be in base64, with its properties.
const ANSWER_BYTES: usize = 3 * limits::MESSAGE_BYTES;

/// Why a node did not answer as hoped.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers there, or it is no Warren node.
    #[error("no answer from a node at {address}: {why}")]
    Unreachable {
        /// `host:port`.
        address: String,
        /// What happened.
        why: String,
    },
    /// The node understood and refused.
    #[error("{text}")]
    Refused {
        /// What the node says.
        text: String,
        /// The request itself was wrong (an unknown column).
        usage: bool,
        /// The broker's own refusal, if it is one.
        refusal: Option<Refusal>,
    },
}

impl ClientError {
    /// The vhost is not there, or not any more.
    pub fn is_no_vhost(&self) -> bool {
        matches!(self, ClientError::Refused { refusal: Some(Refusal::NotFound { kind, .. }), .. } if kind == "vhost")
    }
}

/// A conversation with one node.
#[derive(Clone)]
pub struct AdminClient {
    address: String,
    timeout: Duration,
    stub: Stub<Channel>,
}

impl AdminClient {
    /// Over an authenticated channel; `address` is for messages, `timeout` for each call.
    pub fn new(address: &str, channel: Channel, timeout: Duration) -> AdminClient {
        AdminClient { address: address.to_owned(), timeout, stub: Stub::new(channel).max_decoding_message_size(ANSWER_BYTES) }
    }

    /// Where it was dialled, `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Rows of queues, exchanges or bindings.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn list(&mut self, request: ListRequest) -> Result<ListReply, ClientError> {
        let mut stub = self.stub.clone();
        self.answer(stub.list(request)).await
    }

    /// Commits a change.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn change(&mut self, command: &AdminCommand) -> Result<(), ClientError> {
        let mut stub = self.stub.clone();
        let command = encoded(command).into();
        self.answer(stub.change(ChangeRequest { command })).await.map(drop)
    }

    /// Makes or removes a topic or a group.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn arrange(&mut self, arrangement: &Arrangement) -> Result<(), ClientError> {
        let mut stub = self.stub.clone();
        let arrangement = encoded(arrangement).into();
        self.answer(stub.arrange(ArrangeRequest { arrangement })).await.map(drop)
    }

    /// What only that node can do about deliveries.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn errand(&mut self, errand: Vec<u8>) -> Result<Vec<u8>, ClientError> {
        let mut stub = self.stub.clone();
        self.answer(stub.errand(ErrandRequest { errand: errand.into() })).await.map(|reply| reply.report.to_vec())
    }

    /// What a user's password is hashed with.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn salt(&mut self, user: &str) -> Result<Vec<u8>, ClientError> {
        let mut stub = self.stub.clone();
        self.answer(stub.salt(SaltRequest { user: user.into() })).await.map(|reply| reply.salt.to_vec())
    }

    /// Whether a proof shows the knowledge of a user's password.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn authenticate(&mut self, user: &str, nonce: &[u8], proof: &[u8]) -> Result<AuthenticateReply, ClientError> {
        let mut stub = self.stub.clone();
        let request = AuthenticateRequest { user: user.into(), nonce: nonce.to_vec().into(), proof: proof.to_vec().into() };
        self.answer(stub.authenticate(request)).await
    }

    /// Removes the ready messages of a queue.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn purge_queue(&mut self, request: QueueRequest) -> Result<QueueReply, ClientError> {
        let mut stub = self.stub.clone();
        self.answer(stub.purge_queue(request)).await
    }

    /// Deletes a queue.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn delete_queue(&mut self, request: QueueRequest) -> Result<QueueReply, ClientError> {
        let mut stub = self.stub.clone();
        self.answer(stub.delete_queue(request)).await
    }

    /// Closes client connections.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn close_connections(&mut self, request: CloseRequest) -> Result<CloseReply, ClientError> {
        let mut stub = self.stub.clone();
        self.answer(stub.close_connections(request)).await
    }

    /// How many there are on that node.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn count(&mut self, counted: &Counted) -> Result<u64, ClientError> {
        let mut stub = self.stub.clone();
        let counted = encoded(counted).into();
        self.answer(stub.count(CountRequest { counted })).await.map(|reply| reply.count)
    }

    /// The node and the cluster.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn status(&mut self) -> Result<StatusReply, ClientError> {
        let mut stub = self.stub.clone();
        self.answer(stub.status(StatusRequest {})).await
    }

    /// What the node's replicas hold.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn state_hashes(&mut self) -> Result<StateHashesReply, ClientError> {
        let mut stub = self.stub.clone();
        self.answer(stub.state_hashes(StateHashesRequest {})).await
    }

    /// Whether the node answers and serves.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn ping(&mut self) -> Result<PingReply, ClientError> {
        let mut stub = self.stub.clone();
        self.answer(stub.ping(PingRequest {})).await
    }

    async fn answer<T>(&self, call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, ClientError> {
        let late = || ClientError::Unreachable { address: self.address.clone(), why: format!("nothing for {} s", self.timeout.as_secs()) };
        let reply = tokio::time::timeout(self.timeout, call).await.map_err(|_| late())?;
        reply.map(tonic::Response::into_inner).map_err(|status| self.error(&status))
    }

    fn error(&self, status: &Status) -> ClientError {
        use tonic::Code;
        let text = status.message().to_owned();
        match status.code() {
            Code::Unimplemented | Code::Unknown | Code::Internal | Code::Cancelled | Code::Unauthenticated => {
                ClientError::Unreachable { address: self.address.clone(), why: text }
            }
            code => {
                let refusal = rmp_serde::from_slice(status.details()).ok();
                ClientError::Refused { text, usage: code == Code::InvalidArgument, refusal }
            }
        }
    }
}

fn encoded<T: serde::Serialize>(value: &T) -> Vec<u8> {
    rmp_serde::to_vec_named(value).expect("plain data, writing to memory cannot fail")
}
