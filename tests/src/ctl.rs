//! `warren ctl` as tests use it: told to one node of a cluster, with what it must answer.

use crate::client::{ClientError, Dial};
use crate::cluster::{Cluster, Told};

/// An operator at one node.
#[derive(Clone, Copy, Debug)]
pub struct Ctl<'a> {
    /// Where.
    pub cluster: &'a Cluster,
    /// The node that is told, from 0.
    pub at: usize,
}

impl Ctl<'_> {
    /// What it prints; it must succeed.
    #[track_caller]
    pub fn done(&self, words: &[&str]) -> String {
        let told = self.told(words);
        assert_eq!(told.code, Some(0), "{words:?}: {told:?}");
        told.stdout
    }

    /// It must fail with this exit code and say this.
    #[track_caller]
    pub fn refused(&self, words: &[&str], code: i32, text: &str) {
        let told = self.told(words);
        assert_eq!(told.code, Some(code), "{words:?}: {told:?}");
        assert!(told.stderr.contains(text), "{words:?}: {told:?}");
    }

    fn told(&self, words: &[&str]) -> Told {
        self.cluster.ctl(self.at, words)
    }

    /// A user with the password `secret` at a node.
    pub fn dial(&self, at: usize, user: &str, vhost: &str) -> Dial {
        let guest = Dial::guest(&self.cluster.amqp(at % self.cluster.len()));
        Dial { user: user.into(), password: "secret".into(), vhost: vhost.into(), ..guest }
    }
}

/// Code and text with which the broker closed the channel or the connection.
#[track_caller]
pub fn refusal<T: std::fmt::Debug>(result: Result<T, ClientError>) -> (u16, String) {
    match result {
        Err(ClientError::ConnectionClosed { code, text } | ClientError::ChannelClosed { code, text, .. }) => (code, text),
        other => panic!("not refused: {other:?}"),
    }
}
