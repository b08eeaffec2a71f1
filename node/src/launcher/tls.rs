//! TLS options of `warren cluster`: all nodes get the same ones. Used by `launcher` alone.

use clap::Args;
use std::path::PathBuf;

/// As those of `warren server`, where they are checked.
#[derive(Clone, Debug, Default, PartialEq, Args)]
pub(super) struct TlsArgs {
    /// Certificate for clients, PEM: the nodes serve AMQP over TLS too, node N on port 5680+N
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Authorities that clients' certificates are verified with, PEM
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// Whether clients are asked for certificates: none or peer
    #[arg(long, value_name = "WHOM")]
    tls_verify: Option<String>,
    /// Refuse clients without a certificate: true or false
    #[arg(long, value_name = "BOOL")]
    tls_fail_if_no_peer_cert: Option<String>,
    /// Name in a client's certificate that is its user for SASL EXTERNAL
    #[arg(long, value_name = "NAME")]
    tls_login_from: Option<String>,
    /// Kind of alternative name that is meant
    #[arg(long, value_name = "KIND")]
    tls_login_san_type: Option<String>,
    /// Certificate of the nodes among themselves, for 127.0.0.1, PEM
    #[arg(long, value_name = "FILE")]
    peer_tls_cert: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, value_name = "FILE")]
    peer_tls_key: Option<PathBuf>,
    /// Its authority, PEM
    #[arg(long, value_name = "FILE")]
    peer_tls_ca: Option<PathBuf>,
}

impl TlsArgs {
    /// The nodes have a TLS port.
    pub(super) fn is_served(&self) -> bool {
        self.tls_cert.is_some()
    }

    /// Arguments of `warren server`, good in any working directory.
    pub(super) fn arguments(&self) -> Vec<String> {
        let file = |name: &str, path: &Option<PathBuf>| {
            let path = path.as_ref()?;
            Some(format!("--{name}={}", std::path::absolute(path).unwrap_or_else(|_| path.clone()).display()))
        };
        let word = |name: &str, value: &Option<String>| Some(format!("--{name}={}", value.as_ref()?));
        [
            file("tls-cert", &self.tls_cert),
            file("tls-key", &self.tls_key),
            file("tls-ca", &self.tls_ca),
            word("tls-verify", &self.tls_verify),
            word("tls-fail-if-no-peer-cert", &self.tls_fail_if_no_peer_cert),
            word("tls-login-from", &self.tls_login_from),
            word("tls-login-san-type", &self.tls_login_san_type),
            file("peer-tls-cert", &self.peer_tls_cert),
            file("peer-tls-key", &self.peer_tls_key),
            file("peer-tls-ca", &self.peer_tls_ca),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::TlsArgs;
    use crate::config::Settings;
    use clap::{Args, Command, FromArgMatches};
    use std::collections::BTreeSet;

    /// But for ports, which the cluster gives its nodes.
    fn long_names(command: &Command) -> BTreeSet<String> {
        let names = command.get_arguments().filter_map(|a| a.get_long());
        names.filter(|name| name.contains("tls-") && !name.ends_with("-port")).map(str::to_owned).collect()
    }

    #[test]
    fn every_tls_option_of_a_server_is_one_of_the_cluster_and_is_passed_on() {
        let cluster = TlsArgs::augment_args(Command::new("cluster").no_binary_name(true));
        let names = long_names(&cluster);
        assert_eq!(names, long_names(&Settings::augment_args(Command::new("server"))));
        let given: Vec<String> = names.iter().map(|name| format!("--{name}=/x")).collect();
        let args = TlsArgs::from_arg_matches(&cluster.get_matches_from(&given)).unwrap();
        let passed_on: BTreeSet<String> = args.arguments().into_iter().collect();
        assert_eq!(passed_on, given.into_iter().collect());
    }
}
