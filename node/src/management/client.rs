//! The client's side of the admin service, for `warren ctl`: connects, proves the secret for each call, returns the replies.

use super::admin::path;
use super::auth;
use crate::peer::auth::Secret;
use crate::peer::client::dial_operator;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Request, Status};
use warren_proto::admin::admin_client::AdminClient as Stub;
use warren_proto::admin::{ChallengeRequest, ListReply, ListRequest, PingReply, PingRequest, StatusReply, StatusRequest};

/// Why a node did not answer as hoped.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there, or it is no Warren node.
    #[error("cannot reach a node at {address}: {why}")]
    Unreachable {
        /// `host:port`.
        address: String,
        /// What happened.
        why: String,
    },
    /// The node does not know this secret.
    #[error("the node at {address} has another cluster secret")]
    WrongSecret {
        /// `host:port`.
        address: String,
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

/// A connection to one node.
pub struct AdminClient {
    address: String,
    secret: Vec<u8>,
    stub: Stub<Channel>,
}

impl AdminClient {
    /// Connect to a node's peer port; each call is given `timeout`.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`].
    pub async fn connect(address: &str, secret: &[u8], timeout: Duration) -> Result<AdminClient, ClientError> {
        let unreachable = |why: String| ClientError::Unreachable { address: address.to_owned(), why };
        let dialed = tokio::time::timeout(timeout, dial_operator(address, &Secret::new(secret))).await;
        let channel =
            dialed.map_err(|_| unreachable(format!("no answer within {timeout:?}")))?.map_err(|error| unreachable(deepest(&error)))?;
        Ok(AdminClient { address: address.to_owned(), secret: secret.to_vec(), stub: Stub::new(channel) })
    }

    /// Rows of queues, exchanges or bindings.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn list(&mut self, request: ListRequest) -> Result<ListReply, ClientError> {
        let request = self.proven(request, path::LIST).await?;
        let reply = self.stub.list(request).await;
        self.answer(reply)
    }

    /// The node and the cluster.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn status(&mut self) -> Result<StatusReply, ClientError> {
        let request = self.proven(StatusRequest {}, path::STATUS).await?;
        let reply = self.stub.status(request).await;
        self.answer(reply)
    }

    /// Whether the node answers and serves.
    ///
    /// # Errors
    /// As [`ClientError`] says.
    pub async fn ping(&mut self) -> Result<PingReply, ClientError> {
        let request = self.proven(PingRequest {}, path::PING).await?;
        let reply = self.stub.ping(request).await;
        self.answer(reply)
    }

    async fn proven<T>(&mut self, message: T, path: &str) -> Result<Request<T>, ClientError> {
        let challenge = self.stub.challenge(ChallengeRequest {}).await;
        let nonce = self.answer(challenge)?.nonce;
        let mut request = Request::new(message);
        auth::prove(request.metadata_mut(), &self.secret, &nonce, path).map_err(|status| self.error(&status))?;
        Ok(request)
    }

    fn answer<T>(&self, reply: Result<tonic::Response<T>, Status>) -> Result<T, ClientError> {
        reply.map(tonic::Response::into_inner).map_err(|status| self.error(&status))
    }

    fn error(&self, status: &Status) -> ClientError {
        use tonic::Code;
        let address = self.address.clone();
        match status.code() {
            Code::Unauthenticated => ClientError::WrongSecret { address },
            Code::Unimplemented | Code::Unknown | Code::Internal => ClientError::Unreachable { address, why: status.message().to_owned() },
            code => ClientError::Refused { text: status.message().to_owned(), usage: code == Code::InvalidArgument },
        }
    }
}

/// The innermost cause: "connection refused", not "transport error".
fn deepest(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
