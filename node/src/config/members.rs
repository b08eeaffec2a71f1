//! The list of a cluster's nodes, as in `--cluster 1@alpha:7671,2@beta:7671`. Parsed and checked here for `config`; names are
//! resolved by `peer`, again at every connect.

use super::{ConfigError, NODE_ID_MAX};
use crate::model::{NodeId, limits};
use std::fmt;

/// A node and where its peers find it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Which node.
    pub node: NodeId,
    /// Name or address; an IPv6 address without brackets.
    pub host: String,
    /// Peer port.
    pub port: u16,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "{}@[{}]:{}", self.node, self.host, self.port),
            false => write!(f, "{}@{}:{}", self.node, self.host, self.port),
        }
    }
}

fn wrong(why: String) -> ConfigError {
    ConfigError::Value { option: "cluster", why }
}

fn member(text: &str) -> Option<Member> {
    let (node, address) = text.trim().split_once('@')?;
    let (host, port) = address.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let node = node.parse().ok().filter(|id| (1..=NODE_ID_MAX).contains(id))?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    (!host.is_empty()).then(|| Member { node: NodeId(node), host: host.to_owned(), port })
}

/// Parse a list.
pub(super) fn parse(list: &str) -> Result<Vec<Member>, ConfigError> {
    let mut members = Vec::new();
    for text in list.split(',').filter(|text| !text.trim().is_empty()) {
        let found = member(text)
            .ok_or_else(|| wrong(format!("{text:?} is not ID@HOST:PEER_PORT; write a list like 1@alpha:7671,2@beta:7671,3@gamma:7671")))?;
        if members.iter().any(|m: &Member| m.node == found.node) {
            return Err(wrong(format!("node {} is listed twice", found.node)));
        }
        if let Some(other) = members.iter().find(|m| m.host == found.host && m.port == found.port) {
            return Err(wrong(format!("nodes {} and {} have the same address", other.node, found.node)));
        }
        members.push(found);
    }
    if members.len() > limits::NODES {
        return Err(wrong(format!("{} nodes are listed; a cluster has at most {}", members.len(), limits::NODES)));
    }
    members.sort_by_key(|m| m.node);
    Ok(members)
}

/// The list with this node in it; an empty one becomes this node alone.
pub(super) fn with_self(mut listed: Vec<Member>, node: NodeId, host: &str, port: u16) -> Result<Vec<Member>, ConfigError> {
    if listed.is_empty() {
        listed.push(Member { node, host: host.to_owned(), port });
    }
    if listed.iter().any(|m| m.node == node) {
        return Ok(listed);
    }
    let ids: Vec<String> = listed.iter().map(|m| m.node.to_string()).collect();
    Err(wrong(format!("this is node {node}, but the list has only {}; correct --node-id or add it to --cluster", ids.join(", "))))
}
