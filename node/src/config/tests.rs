use super::*;
use clap::{Args, Command, FromArgMatches};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

fn flags(arguments: &[&str]) -> Settings {
    let command = Settings::augment_args(Command::new("server").no_binary_name(true));
    Settings::from_arg_matches(&command.try_get_matches_from(arguments).unwrap()).unwrap()
}

/// A configuration from flags and variables, with a data directory of its own.
fn load(arguments: &[&str], variables: &[(&str, &str)]) -> Result<ServerConfig, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let mut variables: BTreeMap<String, String> = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    variables.entry("HOME".into()).or_insert_with(|| dir.path().display().to_string());
    ServerConfig::load(flags(arguments), &|name| variables.get(name).cloned())
}

const THREE: &str = "--cluster=1@127.0.0.1:7671,2@127.0.0.1:7672,3@127.0.0.1:7673";

#[test]
fn without_any_option_a_node_runs_alone_on_the_usual_ports() {
    let config = load(&[], &[]).unwrap();
    assert_eq!((config.node, config.host.as_str()), (NodeId(1), "127.0.0.1"));
    assert_eq!((config.amqp_port, config.stream_port, config.management_port, config.peer_port), (5672, 5552, 15672, 7671));
    let rocketmq = &config.rocketmq;
    assert_eq!((rocketmq.port, rocketmq.max_retries, rocketmq.auto_create_topics), (8080, 288, false));
    assert_eq!((rocketmq.invisible_ms, rocketmq.ordered_invisible_ms, rocketmq.half_invisible_ms), (300_000, 60_000, 10_000));
    assert!(rocketmq.tls_port.is_none() && load(&["--rocketmq-tls-port=8443"], &[]).is_err(), "TLS needs a certificate");
    assert!(load(&["--rocketmq-invisible=13m"], &[]).is_ok() && load(&["--rocketmq-invisible=721m"], &[]).is_err());
    assert_eq!((config.cluster.len(), config.shards), (1, 3));
    assert_eq!((config.first.user.as_str(), config.first.password.expose(), config.first.vhost.as_str()), ("guest", "guest", "/"));
    assert_eq!(config.consumer_timeout, Duration::from_secs(30 * 60));
    assert_eq!((config.disk_floor_bytes, config.no_quorum_timeout), (1 << 30, Duration::from_secs(10)));
    assert_eq!((config.catch_up_log_bytes, config.log_budget_bytes), (1 << 30, 2 << 30));
    assert!((1 << 20..1 << 50).contains(&config.memory_limit_bytes), "a part of this machine's memory");
    assert_eq!(load(&["--memory-limit=3MiB"], &[]).unwrap().memory_limit_bytes, 3 << 20);
    assert_eq!(config.loopback_users, ["guest"]);
}

#[test]
fn messages_may_be_limited_to_less_than_16_mib() {
    assert_eq!(load(&[], &[]).unwrap().max_message_bytes, 16 << 20);
    assert_eq!(load(&[], &[("WARREN_MAX_MESSAGE_SIZE", "64KiB")]).unwrap().max_message_bytes, 64 << 10);
    for wrong in ["0", "17MiB", "much"] {
        let error = load(&[&format!("--max-message-size={wrong}")], &[]).unwrap_err().to_string();
        assert!(error.contains("max-message-size"), "{error}");
    }
}

#[test]
fn workers_are_the_cores_less_one_or_what_was_asked_for() {
    let cores = std::thread::available_parallelism().unwrap().get();
    assert_eq!(load(&[], &[]).unwrap().workers, (cores - 1).clamp(1, 256));
    assert_eq!(load(&["--workers=7"], &[("WARREN_WORKERS", "3")]).unwrap().workers, 7);
    for wrong in ["0", "257"] {
        let error = load(&[], &[("WARREN_WORKERS", wrong)]).unwrap_err().to_string();
        assert!(error.contains("workers") && error.contains("between 1 and 256"), "{error}");
    }
}

#[test]
fn what_is_logged_is_an_option_like_others() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("warren.toml");
    fs::write(&file, "log = \"warn\"\n").unwrap();
    let named = format!("--config={}", file.display());
    assert_eq!(load(&[], &[]).unwrap().log, "info");
    assert_eq!(load(&[&named], &[]).unwrap().log, "warn");
    assert_eq!(load(&[&named], &[("WARREN_LOG", "info,warren::edge=debug")]).unwrap().log, "info,warren::edge=debug");
    assert_eq!(load(&[&named, "--log=trace"], &[("WARREN_LOG", "debug")]).unwrap().log, "trace");
    let error = load(&["--log=warren=loud"], &[]).unwrap_err().to_string();
    assert!(error.contains("log") && error.contains("warren=loud"), "{error}");
}

#[test]
fn a_flag_wins_over_a_variable_and_a_variable_over_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("warren.toml");
    fs::write(&file, "amqp-port = 1001\nstream-port = 1002\nmanagement-port = 1003\ndefault-user = \"file\"\n").unwrap();
    let config = load(
        &["--amqp-port=3001", &format!("--config={}", file.display())],
        &[("WARREN_AMQP_PORT", "2001"), ("WARREN_STREAM_PORT", "2002"), ("RABBITMQ_DEFAULT_USER", "rabbit")],
    );
    let config = config.unwrap();
    assert_eq!((config.amqp_port, config.stream_port, config.management_port), (3001, 2002, 1003));
    assert_eq!(config.first.user, "rabbit", "RabbitMQ's variables win over the file");
}

#[test]
fn the_file_may_be_named_by_a_variable() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("w.toml");
    fs::write(&file, "node-id = 7\n").unwrap();
    assert_eq!(load(&[], &[("WARREN_CONFIG", file.to_str().unwrap())]).unwrap().node, NodeId(7));
}

#[test]
fn members_are_parsed_with_names_and_brackets_and_this_node_finds_its_port() {
    let secret = ("WARREN_CLUSTER_SECRET", "not a short one");
    let config = load(&["--node-id=2", "--cluster=3@[::1]:73, 1@alpha:71,2@beta.example:72"], &[secret]).unwrap();
    let members: Vec<String> = config.cluster.iter().map(ToString::to_string).collect();
    assert_eq!(members, ["1@alpha:71", "2@beta.example:72", "3@[::1]:73"]);
    assert_eq!(config.peer_port, 72);
    let five = "--cluster=1@a:1,2@b:1,3@c:1,4@d:1,5@e:1";
    assert_eq!(load(&[five], &[secret]).unwrap().shards, 5, "a shard per node");
}

#[test]
fn a_wrong_list_says_how_a_right_one_looks() {
    for (list, word) in [
        ("alpha:7671", "ID@HOST:PEER_PORT"),
        ("1@alpha", "ID@HOST:PEER_PORT"),
        ("1@alpha:0", "ID@HOST:PEER_PORT"),
        ("0@alpha:1", "ID@HOST:PEER_PORT"),
        ("1@a:1,1@b:1", "listed twice"),
        ("1@a:1,2@a:1", "same address"),
        ("2@a:1,3@b:1", "--node-id"),
        ("1@a:1,2@b:1,3@c:1,4@d:1,5@e:1,6@f:1", "6 nodes are listed; a cluster has at most 5"),
    ] {
        let error = load(&[&format!("--cluster={list}")], &[("WARREN_CLUSTER_SECRET", "long enough")]).unwrap_err().to_string();
        assert!(error.starts_with("cluster: ") && error.contains(word), "{list}: {error}");
    }
}

#[test]
fn several_nodes_need_a_secret_and_it_never_shows() {
    let error = load(&[THREE], &[]).unwrap_err().to_string();
    assert!(error.contains("WARREN_CLUSTER_SECRET") && error.contains("--cluster-secret-file"), "{error}");
    let config = load(&[THREE], &[("WARREN_CLUSTER_SECRET", "hush-hush-hush"), ("WARREN_DEFAULT_PASS", "hush-too")]).unwrap();
    assert_eq!(config.secret.bytes(), b"hush-hush-hush");
    assert!(!format!("{config:?}").contains("hush"), "{config:?}");
    assert!(load(&[THREE], &[("WARREN_CLUSTER_SECRET", "short")]).unwrap_err().to_string().contains("shorter"));
}

#[test]
fn the_secret_comes_from_a_flag_then_the_variable_then_the_file_then_the_data_directory() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let flag = format!("--cluster-secret-file={}", write("flag", "from the flag\n"));
    let config = format!("--config={}", write("w.toml", &format!("cluster-secret-file = {:?}", write("named", "from the file"))));
    let data_dir = format!("--data-dir={}", dir.path().join("node-1").display());
    let variable = ("WARREN_CLUSTER_SECRET", "from the variable");
    let secret = |arguments: &[&str], variables: &[(&str, &str)]| {
        let config = load(&[&[THREE, &data_dir], arguments].concat(), variables).unwrap();
        String::from_utf8(config.secret.bytes().to_vec()).unwrap()
    };
    let named = write("variable", "from the variable's file");
    let file_variable = ("WARREN_CLUSTER_SECRET_FILE", &*named);
    let nothing = ("WARREN_CLUSTER_SECRET_FILE", "");
    assert_eq!(secret(&[&flag, &config], &[variable, file_variable]), "from the flag");
    assert_eq!(secret(&[&config], &[variable, file_variable]), "from the variable's file");
    assert_eq!(secret(&[&config], &[variable, nothing]), "from the variable");
    assert_eq!(secret(&[&config], &[variable]), "from the variable");
    assert_eq!(secret(&[&config], &[]), "from the file");
    write("secret", "from the cluster's directory");
    write("warren-cluster", "nodes=3");
    assert_eq!(secret(&[], &[]), "from the cluster's directory");
}

/// Nodes, the launcher and `warren ctl` on one machine in one environment mean the same secret.
#[test]
fn everybody_finds_the_same_secret_in_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let (path, another) = (dir.path().join("file"), dir.path().join("another"));
    fs::write(&path, "from the file").unwrap();
    fs::write(&another, "from another file").unwrap();
    let file = path.display().to_string();
    let named = |given: Option<&Path>, variables: &[(&str, &str)]| {
        let read = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        let secret = ClusterSecret::named(given, &read).unwrap()?;
        Some(String::from_utf8(secret.bytes().to_vec()).unwrap())
    };
    let (text, from_file) = (("WARREN_CLUSTER_SECRET", "from the variable"), ("WARREN_CLUSTER_SECRET_FILE", &*file));
    assert_eq!(named(Some(&another), &[text, from_file]).as_deref(), Some("from another file"));
    assert_eq!(named(None, &[text, from_file]).as_deref(), Some("from the file"));
    assert_eq!(named(None, &[from_file]).as_deref(), Some("from the file"));
    assert_eq!(named(None, &[text, ("WARREN_CLUSTER_SECRET_FILE", "")]).as_deref(), Some("from the variable"));
    assert_eq!(named(None, &[("WARREN_CLUSTER_SECRET", ""), ("WARREN_CLUSTER_SECRET_FILE", "")]), None);
}

#[test]
fn a_node_alone_makes_its_own_secret_and_keeps_it() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = format!("--data-dir={}", dir.path().display());
    let first = load(&[&data_dir], &[]).unwrap().secret;
    assert_eq!(load(&[&data_dir], &[]).unwrap().secret, first);
    assert_eq!(first.bytes().len(), 64);
}

#[test]
fn wrong_values_name_the_option_the_variable_or_the_file() {
    let error = |arguments: &[&str], variables: &[(&str, &str)]| load(arguments, variables).unwrap_err().to_string();
    assert!(error(&["--disk-floor=lots"], &[]).starts_with("disk-floor: \"lots\""));
    assert!(error(&["--no-quorum-timeout=0s"], &[]).contains("10s"));
    assert!(error(&["--node-id=0"], &[]).contains("from 1 to"));
    assert!(error(&["--shards=0"], &[]).starts_with("shards:"));
    assert!(error(&[], &[("WARREN_AMQP_PORT", "amqp")]).contains("WARREN_AMQP_PORT"));
    assert!(error(&["--config=/nowhere/w.toml"], &[]).contains("/nowhere/w.toml"));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("w.toml");
    fs::write(&file, "amqp-prot = 1\n").unwrap();
    let unknown = error(&[&format!("--config={}", file.display())], &[]);
    assert!(unknown.contains("amqp-prot") && unknown.contains("amqp-port"), "{unknown}");
}

#[test]
fn sizes_and_times_are_read_as_people_write_them() {
    let read = |text| quantity::bytes("x", text).ok();
    assert_eq!(
        [read("1GiB"), read("500MB"), read("7"), read("2 kib"), read("x"), read("")],
        [Some(1 << 30), Some(500_000_000), Some(7), Some(2048), None, None]
    );
    assert_eq!(quantity::duration("x", "1500ms").unwrap(), Duration::from_millis(1500));
    assert!(quantity::bytes("x", "99999999999GiB").is_err(), "too large to count");
}

#[test]
fn guest_may_be_let_in_from_anywhere() {
    assert!(load(&["--loopback-users=none"], &[]).unwrap().loopback_users.is_empty());
    assert_eq!(load(&["--loopback-users=guest,admin"], &[]).unwrap().loopback_users, ["guest", "admin"]);
}

#[test]
fn clients_are_told_an_address_they_can_use() {
    assert_eq!(load(&[], &[]).unwrap().advertised.host, "127.0.0.1");
    let everywhere = load(&["--host=0.0.0.0", "--amqp-port=5700"], &[]).unwrap().advertised;
    assert_ne!(everywhere.host, "0.0.0.0");
    assert_eq!(everywhere.amqp_port, 5700);
    let mapped = load(&["--host=::", "--advertised-host=broker.example", "--advertised-amqp-port=1"], &[]).unwrap().advertised;
    assert_eq!((mapped.host.as_str(), mapped.amqp_port), ("broker.example", 1));
}

/// The commented file with every `# key = value` line switched on.
fn deployed_file() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/warren.toml");
    let text = fs::read_to_string(path).unwrap();
    let is_option = |line: &str| line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '));
    text.lines().filter_map(|line| line.strip_prefix("# ")).filter(|line| is_option(line)).map(|line| format!("{line}\n")).collect()
}

#[test]
fn the_commented_file_has_every_option_and_every_layer_carries_it() {
    let text = deployed_file();
    let settings: Settings = toml::from_str(&text).unwrap();
    let mut written: Vec<&str> = text.lines().filter_map(|line| line.split(" = ").next()).collect();
    let command = Settings::augment_args(Command::new("server"));
    let mut options: Vec<&str> = command.get_arguments().filter_map(|a| a.get_long()).filter(|name| *name != "config").collect();
    written.sort_unstable();
    options.sort_unstable();
    assert_eq!(written, options);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("w.toml");
    fs::write(&file, &text).unwrap();
    let named = Settings { config: Some(file), ..Settings::default() };
    assert_eq!(Settings::layered(named, &|_| None).unwrap(), settings, "an option is lost between the layers");
}

#[test]
fn the_commented_file_shows_the_defaults() {
    let shown = toml::from_str::<toml::Table>(&deployed_file()).unwrap();
    let differ_on_purpose = ["data-dir", "cluster", "cluster-secret-file", "log-file", "memory-limit", "workers", "rocketmq-tls-port"];
    let is_file =
        |key: &str| key.contains("tls-") && ["-cert", "-key", "-ca"].iter().any(|end| key.ends_with(end)) && !key.contains("fail");
    let differs = |key: &str| differ_on_purpose.contains(&key) || is_file(key);
    let text: String = shown.iter().filter(|(key, _)| !differs(key)).map(|(k, v)| format!("{k} = {v}\n")).collect();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("w.toml");
    fs::write(&file, text).unwrap();
    let data_dir = format!("--data-dir={}", dir.path().display());
    assert_eq!(load(&[&data_dir, &format!("--config={}", file.display())], &[]).unwrap(), load(&[&data_dir], &[]).unwrap());
}

#[test]
fn tls_for_clients_needs_what_belongs_together() {
    use crate::tls::{Files, LoginFrom, SanType, Verify};
    let (cert, key, ca) = ("--tls-cert=/c.pem", "--tls-key=/k.pem", "--tls-ca=/a.pem");
    assert_eq!(load(&["--amqps-port=5", "--tls-verify=none"], &[]).unwrap().amqps, None);
    let plain = load(&[cert, key], &[]).unwrap().amqps.unwrap();
    assert_eq!((plain.port, plain.verify, plain.login_from), (5671, Verify::None, LoginFrom::DistinguishedName));
    assert_eq!(plain.files, Files { certificate: "/c.pem".into(), key: "/k.pem".into(), ca: None });
    let variables = [("WARREN_TLS_LOGIN_FROM", "subject_alternative_name"), ("WARREN_TLS_LOGIN_SAN_TYPE", "email")];
    let asks = load(&[cert, key, ca, "--tls-verify=peer", "--tls-fail-if-no-peer-cert=true"], &variables).unwrap().amqps.unwrap();
    assert_eq!((asks.verify, asks.login_from), (Verify::Peer { required: true }, LoginFrom::SubjectAlternativeName(SanType::Email)));
    for (arguments, option) in [
        (&[cert][..], "tls-key"),
        (&[key], "tls-cert"),
        (&[ca], "tls-cert"),
        (&["--tls-verify=peer"], "tls-cert"),
        (&[cert, key, "--tls-verify=peer"], "tls-ca"),
        (&[cert, key, ca, "--tls-fail-if-no-peer-cert=true"], "tls-fail-if-no-peer-cert"),
        (&["--peer-tls-cert=/c", "--peer-tls-key=/k"], "peer-tls-cert"),
    ] {
        let error = load(arguments, &[]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{option}: ")), "{arguments:?}: {error}");
    }
    let peers = load(&["--peer-tls-cert=/c", "--peer-tls-key=/k", "--peer-tls-ca=/a"], &[]).unwrap().peer_tls;
    assert_eq!(peers, Some(Files { certificate: "/c".into(), key: "/k".into(), ca: Some("/a".into()) }));
}

#[test]
fn the_files_of_the_nodes_certificates_are_remembered_for_operators() {
    use crate::tls::Files;
    let dir = tempfile::tempdir().unwrap();
    let files = Files { certificate: "/x/c = 1.pem".into(), key: "k.pem".into(), ca: Some("/x/a.pem".into()) };
    DataDir::write_peer_tls(dir.path(), Some(&files)).unwrap();
    let here = std::env::current_dir().unwrap();
    assert_eq!(DataDir::read_peer_tls(dir.path()), Some(Files { key: here.join("k.pem"), ..files }));
    DataDir::write_peer_tls(dir.path(), None).unwrap();
    DataDir::write_peer_tls(dir.path(), None).unwrap();
    assert_eq!(DataDir::read_peer_tls(dir.path()), None);
}

#[test]
fn a_data_directory_has_one_user_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node-1");
    let held = DataDir::lock(&path).unwrap();
    let error = DataDir::lock(&path).unwrap_err().to_string();
    assert!(error.contains("in use by process") && error.contains("--data-dir"), "{error}");
    assert!(DataDir::is_locked(&path));
    assert_eq!(DataDir::pid(&path), Some(std::process::id()));
    drop(held);
    assert!(!DataDir::is_locked(&path));
    DataDir::lock(&path).unwrap();
}

#[test]
fn ports_are_read_back_as_they_were_written() {
    let dir = tempfile::tempdir().unwrap();
    let (stream_tls, rocketmq_tls) = (5551, 8081);
    let ports = Ports { amqp: 5672, amqps: 5671, stream: 0, stream_tls, rocketmq: 8080, rocketmq_tls, management: 15672, peer: 7671 };
    assert_eq!(DataDir::read_ports(dir.path()), None);
    DataDir::write_ports(dir.path(), "::1", ports).unwrap();
    assert_eq!(DataDir::read_ports(dir.path()), Some(ports));
    assert_eq!(DataDir::read_host(dir.path()).as_deref(), Some("::1"));
}

#[test]
fn the_lock_of_a_process_that_is_just_dying_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node-1");
    let dying = DataDir::lock(&path).unwrap();
    let end = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(100));
        drop(dying);
    });
    DataDir::refuse_locked(&path).unwrap();
    DataDir::lock(&path).unwrap();
    end.join().unwrap();
}
