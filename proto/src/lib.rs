//! Warren's RPC between nodes and from `warren ctl`: code generated from `proto/*.proto`, nothing else.

/// Node to node.
#[allow(clippy::all, missing_docs)]
pub mod peer {
    tonic::include_proto!("warren.peer");
}

/// `warren ctl` to a node.
#[allow(clippy::all, missing_docs)]
pub mod admin {
    tonic::include_proto!("warren.admin");
}
