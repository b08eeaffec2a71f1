//! Which node of a local cluster listens where, and the table of it. Used by `launcher` alone.

use super::ClusterError;
use super::directory::ClusterDir;
use std::net::TcpListener;

/// The ports of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodePorts {
    pub(crate) node: u16,
    pub(crate) amqp: u16,
    pub(crate) amqps: u16,
    /// There is a certificate for that port.
    pub(crate) has_tls: bool,
    pub(crate) stream: u16,
    pub(crate) rocketmq: u16,
    pub(crate) stream_tls: u16,
    pub(crate) management: u16,
    pub(crate) peer: u16,
}

impl NodePorts {
    /// Node `node`, from 1, with all ports moved by `offset`.
    pub(crate) fn new(node: u16, offset: u16, has_tls: bool) -> NodePorts {
        let port = |base: u16| base + node + offset;
        NodePorts {
            node,
            amqp: port(5671),
            amqps: port(5680),
            has_tls,
            stream: port(5551),
            rocketmq: port(8079),
            stream_tls: port(5560),
            management: port(15671),
            peer: port(7670),
        }
    }

    /// Whether the ports that will be bound are free, so that the error names the port and not just a node that ended.
    pub(crate) fn check(&self) -> Result<(), ClusterError> {
        let always = [
            (self.amqp, "AMQP"),
            (self.stream, "streams"),
            (self.rocketmq, "RocketMQ over HTTP"),
            (self.management, "management"),
            (self.peer, "peers"),
        ];
        let with_tls = [(self.amqps, "AMQP over TLS"), (self.stream_tls, "streams over TLS")];
        for (port, role) in always.into_iter().chain(with_tls.into_iter().filter(|_| self.has_tls)) {
            TcpListener::bind(("127.0.0.1", port)).map_err(|error| ClusterError::Port { port, role, node: self.node, error })?;
        }
        Ok(())
    }
}

/// The value of `--cluster`.
pub(crate) fn cluster_list(nodes: &[NodePorts]) -> String {
    nodes.iter().map(|n| format!("{}@127.0.0.1:{}", n.node, n.peer)).collect::<Vec<_>>().join(",")
}

/// What is printed at start.
pub(crate) fn table(nodes: &[NodePorts], directory: &ClusterDir) -> String {
    let mut text =
        format!("{:<6}{:<25}{:<18}{:<24}{:<26}{:<18}{}\n", "node", "AMQP 0-9-1", "streams", "RocketMQ", "management", "peers, ctl", "data");
    for n in nodes {
        let amqp = format!("amqp://127.0.0.1:{}", n.amqp);
        let management = format!("http://127.0.0.1:{}", n.management);
        let rocketmq = format!("http://127.0.0.1:{}", n.rocketmq);
        let peer = format!("127.0.0.1:{}", n.peer);
        let streams = format!("127.0.0.1:{}", n.stream);
        let data = directory.node(n.node);
        text += &format!("{:<6}{amqp:<25}{streams:<18}{rocketmq:<24}{management:<26}{peer:<18}{}\n", n.node, data.display());
        if n.has_tls {
            let amqps = format!("amqps://127.0.0.1:{}", n.amqps);
            text += &format!("{:<6}{amqps:<25}127.0.0.1:{} (TLS)\n", "", n.stream_tls);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_one_has_the_protocols_own_ports() {
        let ports = NodePorts::new(1, 0, false);
        assert_eq!((ports.amqp, ports.stream, ports.rocketmq, ports.management, ports.peer), (5672, 5552, 8080, 15672, 7671));
        let ports = NodePorts::new(3, 100, true);
        assert_eq!((ports.amqp, ports.amqps), (5774, 5783));
    }

    #[test]
    fn a_taken_port_is_named() {
        let mut ports = NodePorts::new(1, 0, false);
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        ports.amqp = taken.local_addr().unwrap().port();
        let error = ports.check().unwrap_err().to_string();
        assert!(error.contains(&ports.amqp.to_string()) && error.contains("--port-offset"), "{error}");
    }
}
