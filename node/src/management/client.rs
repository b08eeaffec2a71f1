//! The client's side of the admin service, for `warren ctl`, over a connection that `peer` has authenticated.

use std::future::Future;
use std::time::Duration;
use tonic::Status;
use tonic::transport::Channel;
use warren_proto::admin::admin_client::AdminClient as Stub;
use warren_proto::admin::{ListReply, ListRequest, PingReply, PingRequest, StatusReply, StatusRequest};

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
    },
}

/// A conversation with one node.
pub struct AdminClient {
    address: String,
    timeout: Duration,
    stub: Stub<Channel>,
}

impl AdminClient {
    /// Over an authenticated channel; `address` is for messages, `timeout` for each call.
    pub fn new(address: &str, channel: Channel, timeout: Duration) -> AdminClient {
        AdminClient { address: address.to_owned(), timeout, stub: Stub::new(channel) }
    }

    /// Rows of queues, exchanges or bindings.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn list(&mut self, request: ListRequest) -> Result<ListReply, ClientError> {
        let mut stub = self.stub.clone();
        self.answer(stub.list(request)).await
    }

    /// The node and the cluster.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn status(&mut self) -> Result<StatusReply, ClientError> {
        let mut stub = self.stub.clone();
        self.answer(stub.status(StatusRequest {})).await
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
            code => ClientError::Refused { text, usage: code == Code::InvalidArgument },
        }
    }
}
