//! `warren ctl` against real nodes: what one node is told holds on all, at once, for clients too.
#![allow(clippy::unwrap_used)] // all of this file is tests

use std::time::Duration;
use warren_tests::client::{ClientError, Connection, Dial, Field, Incoming, QueueOptions, encode::Route};
use warren_tests::cluster::binary;
use warren_tests::{Broker, Cluster, Ctl, eventually, message_event, refusal, unique};

const PATIENCE: Duration = Duration::from_secs(10);

/// How the broker closes a connection that does not ask for anything.
fn end_of(connection: &mut Connection) -> Option<(u16, String)> {
    match message_event(connection, PATIENCE) {
        Ok(Some(Incoming::ConnectionClose { code, text })) => Some((code, text)),
        Err(ClientError::ConnectionClosed { code, text }) => Some((code, text)),
        _ => None,
    }
}

#[test]
fn users_and_rights_that_one_node_is_told_hold_on_all() {
    let broker = Broker::shared();
    let Some(cluster) = broker.cluster() else { return };
    let (first, last) = (Ctl { cluster, at: 0 }, Ctl { cluster, at: cluster.len() - 1 });
    let (user, vhost) = (unique("ann"), unique("v"));
    assert_eq!(first.done(&["add_vhost", &vhost]), format!("Adding vhost \"{vhost}\" ...\n"));
    let added = first.done(&["add_user", &user, "secret"]);
    assert!(added.starts_with(&format!("Adding user \"{user}\" ...\nDone. Don't forget to grant the user permissions")), "{added}");
    last.refused(&["add_user", &user, "other"], 70, &format!("Error:\nUser \"{user}\" already exists"));
    let text = format!("NOT_ALLOWED - access to vhost '{vhost}' refused for user '{user}'");
    for at in 0..cluster.len() {
        assert_eq!(refusal(Connection::open_with_channel(&first.dial(at, &user, &vhost))), (530, text.clone()));
    }
    first.done(&["-p", &vhost, "set_permissions", &user, "^mine", ".*", "^mine"]);
    assert_eq!(last.done(&["-q", "list_permissions", "-p", &vhost]), format!("user\tconfigure\twrite\tread\n{user}\t^mine\t.*\t^mine\n"));
    assert_eq!(last.done(&["-s", "list_user_permissions", &user]), format!("{vhost}\t^mine\t.*\t^mine\n"));
    let mut client = Connection::open_with_channel(&first.dial(1, &user, &vhost)).unwrap();
    client.declare(1, "mine", &QueueOptions::durable()).unwrap();
    let (code, text) = refusal(client.declare(1, "theirs", &QueueOptions::durable()));
    assert_eq!(
        (code, text),
        (403, format!("ACCESS_REFUSED - configure access to queue 'theirs' in vhost '{vhost}' refused for user '{user}'"))
    );
    first.done(&["set_user_tags", &user, "monitoring", "policymaker"]);
    assert!(last.done(&["list_users"]).contains(&format!("\n{user}\t[monitoring, policymaker]\n")));
    last.done(&["authenticate_user", &user, "secret"]);
    last.refused(&["authenticate_user", &user, "wrong"], 65, &format!("failed to authenticate user \"{user}\""));
    let changed = cluster.tool(0, binary(), &["ctl", "change_password", &user], "new secret\n");
    assert_eq!(changed.code, Some(0), "{changed:?}");
    last.done(&["authenticate_user", &user, "new secret"]);
    // An open connection has no right to publish any more, at once.
    let mut client = Connection::open_with_channel(&Dial { password: "new secret".into(), ..first.dial(0, &user, &vhost) }).unwrap();
    last.done(&["-p", &vhost, "set_permissions", &user, "", "", ""]);
    client.publish(1, "mine", b"x").unwrap();
    let Some(Incoming::ChannelClose { code, text, .. }) = message_event(&mut client, PATIENCE).unwrap() else { panic!("not refused") };
    assert_eq!(
        (code, text),
        (403, format!("ACCESS_REFUSED - write access to exchange 'amq.default' in vhost '{vhost}' refused for user '{user}'"))
    );
    assert_eq!(last.done(&["-q", "close_all_user_connections", &user, "a break"]), "Closed 2 connections\n");
    assert_eq!(end_of(&mut client), Some((320, "CONNECTION_FORCED - a break".to_owned())));
    let mut client = Connection::open_with_channel(&Dial { password: "new secret".into(), ..first.dial(0, &user, &vhost) }).unwrap();
    last.done(&["delete_user", &user]);
    assert_eq!(end_of(&mut client), Some((320, format!("CONNECTION_FORCED - user '{user}' is deleted"))));
    first.refused(&["delete_user", &user], 67, &format!("User \"{user}\" does not exist"));
    first.done(&["delete_vhost", &vhost]);
    last.refused(&["list_queues", "-p", &vhost], 65, &format!("Virtual host '{vhost}' does not exist"));
}

/// On a cluster of its own: other tests look who has rights in their vhosts.
#[test]
fn rights_are_set_in_all_vhosts_at_once() {
    let Some(cluster) = Broker::to_harm("rights_are_set_in_all_vhosts_at_once") else { return };
    let (first, last) = (Ctl { cluster: &cluster, at: 0 }, Ctl { cluster: &cluster, at: cluster.len() - 1 });
    first.done(&["add_vhost", "other"]);
    last.done(&["add_user", "ann", "secret"]);
    first.done(&["set_permissions_globally", "ann", "^c", "^w", "^r"]);
    assert_eq!(last.done(&["-s", "list_user_permissions", "ann"]), "/\t^c\t^w\t^r\nother\t^c\t^w\t^r\n");
    first.refused(&["set_permissions_globally", "eve", ".*", ".*", ".*"], 67, "User \"eve\" does not exist");
}

#[test]
fn what_one_node_is_told_of_a_vhost_all_nodes_say_and_keep_to() {
    let broker = Broker::shared();
    let Some(cluster) = broker.cluster() else { return };
    let (first, last) = (Ctl { cluster, at: 0 }, Ctl { cluster, at: cluster.len() - 1 });
    let vhost = unique("told");
    first.done(&["add_vhost", &vhost, "-d", "before", "--tags", "a,b"]);
    let described = first.done(&["update_vhost_metadata", &vhost, "--description", "after", "--default-queue-type", "quorum"]);
    assert_eq!(described, format!("Updating metadata of vhost \"{vhost}\" ...\n"));
    let said = |ctl: &Ctl<'_>| {
        let rows =
            ctl.done(&["-s", "list_vhosts", "name", "description", "tags", "default_queue_type", "protected_from_deletion", "metadata"]);
        rows.lines().find_map(|row| row.strip_prefix(&format!("{vhost}\t"))).map(str::to_owned).expect("the vhost")
    };
    let metadata = "#{default_queue_type => quorum, description => after, tags => [a, b]}";
    assert_eq!(said(&last), format!("after\t[a, b]\tquorum\tfalse\t{metadata}"));
    last.done(&["set_vhost_tags", &vhost, "c"]);
    last.done(&["enable_vhost_deletion_protection", &vhost]);
    let metadata = "#{default_queue_type => quorum, description => after, protected_from_deletion => true, tags => [c]}";
    assert_eq!(said(&first), format!("after\t[c]\tquorum\ttrue\t{metadata}"));
    let protected =
        "Error:\nCannot delete this virtual host: it is protected from deletion. To lift the protection, inspect and update its metadata\n";
    first.refused(&["delete_vhost", &vhost], 65, protected);
    // What is declared from now on is of the type that the vhost says, through any node.
    first.done(&["set_permissions", "-p", &vhost, "guest", ".*", ".*", ".*"]);
    let guest = Dial { vhost: vhost.clone(), ..Dial::guest(&cluster.amqp(cluster.len() - 1)) };
    let mut client = Connection::open_with_channel(&guest).unwrap();
    client.declare(1, "q", &QueueOptions::durable()).unwrap();
    assert_eq!(first.done(&["-s", "-p", &vhost, "list_queues", "name", "type"]), "q\tquorum\n");
    let kinds = "Bad argument: Default queue type must be one of: quorum, stream, classic. Provided: odd\n";
    first.refused(&["update_vhost_metadata", &vhost, "--default-queue-type", "odd"], 65, kinds);
    first.refused(&["update_vhost_metadata", &vhost], 64, "not enough arguments");
    first.refused(&["update_vhost_metadata", "nowhere", "--description", "x"], 65, "Virtual host 'nowhere' does not exist");
    first.done(&["update_vhost_metadata", &vhost, "--protected-from-deletion=false"]);
    last.done(&["delete_vhost", &vhost]);
    first.done(&["await_online_nodes", &cluster.len().to_string()]);
    first.refused(&["await_online_nodes", "0"], 65, "Bad argument: Argument must be a positive integer\n");
    let more = (cluster.len() + 1).to_string();
    let text = "Error:\nError: timed out while waiting. Not enough nodes joined 1's cluster.\n";
    first.refused(&["-t", "5", "await_online_nodes", &more], 70, text);
    last.done(&["check_certificate_expiration"]);
}

#[test]
fn a_deleted_vhost_closes_its_connections_on_every_node() {
    let broker = Broker::shared();
    let Some(cluster) = broker.cluster() else { return };
    let ctl = Ctl { cluster, at: 0 };
    let vhost = unique("doomed");
    ctl.done(&["add_vhost", &vhost]);
    ctl.done(&["set_permissions", "-p", &vhost, "guest", ".*", ".*", ".*"]);
    let guest = |at| Dial { vhost: vhost.clone(), ..Dial::guest(&cluster.amqp(at)) };
    let mut clients: Vec<Connection> = (0..cluster.len()).map(|at| Connection::open_with_channel(&guest(at)).unwrap()).collect();
    ctl.done(&["delete_vhost", &vhost]);
    for client in &mut clients {
        assert_eq!(end_of(client), Some((320, format!("CONNECTION_FORCED - vhost '{vhost}' is deleted"))));
    }
    let text = format!("NOT_ALLOWED - vhost {vhost} not found");
    assert_eq!(refusal(Connection::open_with_channel(&guest(1 % cluster.len()))), (530, text));
}

#[test]
fn limits_hold_over_all_nodes() {
    let broker = Broker::shared();
    let Some(cluster) = broker.cluster() else { return };
    let ctl = Ctl { cluster, at: 0 };
    let vhost = unique("limited");
    ctl.done(&["add_vhost", &vhost]);
    ctl.done(&["set_permissions", "-p", &vhost, "guest", ".*", ".*", ".*"]);
    ctl.done(&["set_vhost_limits", "-p", &vhost, r#"{"max-connections": 2, "max-queues": 1}"#]);
    assert_eq!(ctl.done(&["-q", "list_vhost_limits", "-p", &vhost]), "{\"max-connections\":2,\"max-queues\":1}\n");
    let guest = |at: usize| Dial { vhost: vhost.clone(), ..Dial::guest(&cluster.amqp(at % cluster.len())) };
    let mut clients: Vec<Connection> = (0..2).map(|at| Connection::open_with_channel(&guest(at)).unwrap()).collect();
    let text = format!("NOT_ALLOWED - access to vhost '{vhost}' refused for user 'guest': connection limit (2) is reached");
    assert_eq!(refusal(Connection::open_with_channel(&guest(2))), (530, text));
    clients[0].declare(1, "one", &QueueOptions::durable()).unwrap();
    let text = format!("PRECONDITION_FAILED - cannot declare queue 'two': queue limit in vhost '{vhost}' (1) is reached");
    assert_eq!(refusal(clients[1].declare(1, "two", &QueueOptions::durable())), (406, text));
    clients.pop().unwrap().close().unwrap();
    assert!(eventually(PATIENCE, || Connection::open_with_channel(&guest(2)).is_ok()), "there is room again");
    ctl.refused(&["set_vhost_limits", "-p", &vhost, "nonsense"], 69, "Could not parse JSON document");
    ctl.done(&["delete_vhost", &vhost]);
}

#[test]
fn limits_of_a_user_hold_over_all_nodes() {
    let broker = Broker::shared();
    let Some(cluster) = broker.cluster() else { return };
    let (first, last) = (Ctl { cluster, at: 0 }, Ctl { cluster, at: cluster.len() - 1 });
    let user = unique("bounded");
    first.done(&["add_user", &user, "secret"]);
    first.done(&["set_permissions", &user, ".*", ".*", ".*"]);
    let definition = r#"{"max-connections": 2, "max-channels": 3}"#;
    let told = first.done(&["set_user_limits", &user, definition]);
    assert_eq!(told, format!("Setting user limits to \"{definition}\" for user \"{user}\" ...\n"));
    let limits = r#"{"max-channels":3,"max-connections":2}"#;
    assert_eq!(last.done(&["-q", "list_user_limits", "--user", &user]), format!("{limits}\n"));
    assert!(last.done(&["-q", "list_user_limits", "--global"]).contains(&format!("{user}\t{limits}\n")));
    let dial = |at: usize| first.dial(at, &user, "/");
    let mut clients: Vec<Connection> = (0..2).map(|at| Connection::open_with_channel(&dial(at)).unwrap()).collect();
    let text = format!("NOT_ALLOWED - connection refused for user '{user}': user connection limit (2) is reached");
    assert_eq!(refusal(Connection::open_with_channel(&dial(2))), (530, text));
    // Two channels are open, on two nodes; a third is the last one.
    clients[0].open_channel(2).unwrap();
    let text = format!("NOT_ALLOWED - number of channels opened for user '{user}' has reached the maximum allowed user limit of (3)");
    assert_eq!(refusal(clients[1].open_channel(2)), (530, text));
    last.done(&["clear_user_limits", &user, "max-channels"]);
    let limits = r#"{"max-connections":2}"#;
    assert_eq!(first.done(&["-q", "list_user_limits", "--user", &user]), format!("{limits}\n"));
    let mut second = None;
    assert!(eventually(PATIENCE, || (second = Connection::open_with_channel(&dial(1)).ok(), second.is_some()).1), "there is room again");
    (2..6).for_each(|channel| second.as_mut().unwrap().open_channel(channel).unwrap());
    last.done(&["clear_user_limits", &user, "all"]);
    assert_eq!(first.done(&["-q", "list_user_limits", "--user", &user]), "");
    Connection::open_with_channel(&dial(2)).unwrap();
    first.refused(&["set_user_limits", &user, r#"{"max-queues": 1}"#], 69, "Unrecognised terms [{<<\"max-queues\">>,1}] in user-limits");
    first.refused(&["set_user_limits", "nobody-there", definition], 67, "User \"nobody-there\" does not exist");
    first.done(&["delete_user", &user]);
}

#[test]
fn rights_are_taken_again_and_what_is_left_is_listed() {
    let broker = Broker::shared();
    let Some(cluster) = broker.cluster() else { return };
    let (first, last) = (Ctl { cluster, at: 0 }, Ctl { cluster, at: cluster.len() - 1 });
    let (user, vhost) = (unique("eve"), unique("taken"));
    let in_vhost = |ctl: &Ctl<'_>, words: &[&str]| ctl.done(&[&["-q", "-p", &vhost][..], words].concat());
    first.done(&["add_vhost", &vhost]);
    let hash = last.done(&["-q", "hash_password", "secret"]);
    assert_eq!(first.done(&["-q", "add_user", &user, hash.trim(), "--pre-hashed-password"]), "");
    last.done(&["authenticate_user", &user, "secret"]);
    let undecoded = "Error:\nCould not Base64 decode provided password hash value";
    first.refused(&["add_user", &unique("eve"), "secret", "--pre-hashed-password"], 65, undecoded);
    in_vhost(&first, &["set_permissions", &user, ".*", ".*", ".*"]);
    for exchange in ["amq.topic", "news"] {
        in_vhost(&first, &["set_topic_permissions", &user, exchange, "^eu\\.", "^us\\."]);
    }
    let header = "user\texchange\twrite\tread\n";
    let rows = ["amq.topic", "news"].map(|exchange| format!("{user}\t{exchange}\t^eu\\\\.\t^us\\\\.\n"));
    assert_eq!(in_vhost(&last, &["list_topic_permissions"]), format!("{header}{}{}", rows[0], rows[1]));
    let of_user = last.done(&["-s", "list_user_topic_permissions", &user]);
    assert_eq!(of_user, ["amq.topic", "news"].map(|exchange| format!("{vhost}\t{exchange}\t^eu\\\\.\t^us\\\\.\n")).concat());
    assert_eq!(in_vhost(&last, &["clear_topic_permissions", &user, "news"]), "");
    assert_eq!(in_vhost(&first, &["list_topic_permissions"]), format!("{header}{}", rows[0]));
    in_vhost(&last, &["clear_topic_permissions", &user]);
    assert_eq!(in_vhost(&first, &["list_topic_permissions"]), "");
    let mut client = Connection::open_with_channel(&first.dial(1, &user, &vhost)).unwrap();
    client.declare(1, "q", &QueueOptions::durable()).unwrap();
    client.bind(1, "q", "amq.direct", "key").unwrap();
    let bindings = in_vhost(&last, &["list_bindings", "source_name", "destination_name", "destination_kind", "routing_key"]);
    let rows = "\tq\tqueue\tq\namq.direct\tq\tqueue\tkey\n";
    assert_eq!(bindings, format!("source_name\tdestination_name\tdestination_kind\trouting_key\n{rows}"));
    assert!(in_vhost(&last, &["list_bindings"]).contains("amq.direct\texchange\tq\tqueue\tkey\t[]\n"));
    in_vhost(&last, &["clear_permissions", &user]);
    let text = format!("ACCESS_REFUSED - configure access to queue 'q' in vhost '{vhost}' refused for user '{user}'");
    assert_eq!(refusal(client.delete(1, "q")), (403, text));
    assert_eq!(first.done(&["-s", "list_user_permissions", &user]), "");
    first.done(&["delete_user", &user]);
    first.done(&["delete_vhost", &vhost]);
}

#[test]
fn operator_policies_limits_and_states_of_vhosts_are_listed_and_cleared() {
    let broker = Broker::shared();
    let Some(cluster) = broker.cluster() else { return };
    let (first, last) = (Ctl { cluster, at: 0 }, Ctl { cluster, at: cluster.len() - 1 });
    let vhost = unique("stated");
    let in_vhost = |ctl: &Ctl<'_>, words: &[&str]| ctl.done(&[&["-q", "-p", &vhost][..], words].concat());
    first.done(&["add_vhost", &vhost]);
    in_vhost(&first, &["set_permissions", "guest", ".*", ".*", ".*"]);
    in_vhost(&first, &["set_operator_policy", "small", "^q", r#"{"max-length":5}"#, "--apply-to", "queues", "--priority", "2"]);
    let row = format!("{vhost}\tsmall\t^q\tqueues\t{{\"max-length\":5}}\t2\n");
    assert_eq!(in_vhost(&last, &["list_operator_policies"]), format!("vhost\tname\tpattern\tapply-to\tdefinition\tpriority\n{row}"));
    assert_eq!(in_vhost(&last, &["list_policies"]), "", "it is no policy of a user");
    in_vhost(&last, &["clear_operator_policy", "small"]);
    assert_eq!(in_vhost(&first, &["list_operator_policies"]), "");
    let guest = |at: usize| Dial { vhost: vhost.clone(), ..Dial::guest(&cluster.amqp(at % cluster.len())) };
    in_vhost(&first, &["set_vhost_limits", r#"{"max-connections": 0}"#]);
    assert_eq!(refusal(Connection::open_with_channel(&guest(1))).0, 530);
    in_vhost(&last, &["clear_vhost_limits"]);
    assert_eq!(in_vhost(&first, &["list_vhost_limits"]), "");
    let states: Vec<String> = (1..=cluster.len()).map(|node| format!("{{{node}, running}}")).collect();
    let state = format!("{vhost}\tfalse\t[{}]", states.join(", "));
    let listed = last.done(&["-s", "list_vhosts", "name", "tracing", "cluster_state"]);
    assert!(listed.lines().any(|line| line == state), "{listed}");
    let mut clients: Vec<Connection> = (0..cluster.len()).map(|at| Connection::open_with_channel(&guest(at)).unwrap()).collect();
    let closed = last.done(&["-p", &vhost, "close_all_connections", "going home"]);
    let count = cluster.len();
    assert_eq!(closed, format!("Closing all connections in vhost {vhost}, reason: going home...\nClosed {count} connections\n"));
    for client in &mut clients {
        assert_eq!(end_of(client), Some((320, "CONNECTION_FORCED - going home".to_owned())));
    }
    first.done(&["delete_vhost", &vhost]);
}

#[test]
fn a_node_says_what_it_is_and_how_it_is() {
    let broker = Broker::shared();
    let Some(cluster) = broker.cluster() else { return };
    let version = Ctl { cluster, at: 0 }.done(&["version"]);
    for at in 0..cluster.len() {
        let (ctl, node) = (Ctl { cluster, at }, at + 1);
        assert_eq!(ctl.done(&["alarms"]), format!("Node {node} reported no alarms, local or clusterwide\n"));
        assert_eq!(ctl.done(&["is_running"]), format!("Warren on node {node} is fully booted and running\n"));
        assert_eq!(ctl.done(&["is_booting"]), format!("Warren on node {node} is fully booted (check with is_running)\n"));
        assert_eq!(ctl.done(&["server_version"]), format!("Asking node {node} for its version...\n{version}"));
    }
}

/// In one environment `warren ctl` proves the secret that `warren server` would take.
#[test]
fn the_secret_that_a_file_holds_comes_before_the_variable_and_what_is_empty_is_unset() {
    let broker = Broker::shared();
    let Some(cluster) = broker.cluster() else { return };
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        std::fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name).display().to_string()
    };
    let (right, wrong) = (file("right", Cluster::secret()), file("wrong", "another secret, as long as that"));
    let (node, data_dir) = (format!("127.0.0.1:{}", cluster.ports(0).peer), cluster.data_dir(0).display().to_string());
    let (right, wrong, node, data_dir) = (&*right, &*wrong, &*node, &*data_dir);
    for (variables, code) in [
        ([("WARREN_CLUSTER_SECRET_FILE", right), ("WARREN_CLUSTER_SECRET", "another secret"), ("WARREN_NODE", node)], 0),
        ([("WARREN_CLUSTER_SECRET_FILE", wrong), ("WARREN_CLUSTER_SECRET", Cluster::secret()), ("WARREN_NODE", node)], 65),
        ([("WARREN_CLUSTER_SECRET_FILE", ""), ("WARREN_CLUSTER_SECRET", Cluster::secret()), ("WARREN_NODE", node)], 0),
        ([("WARREN_CLUSTER_SECRET_FILE", right), ("WARREN_NODE", ""), ("WARREN_DATA_DIR", data_dir)], 0),
    ] {
        let told = cluster.ctl_amid(&variables, &["ping"]);
        assert_eq!(told.code, Some(code), "{variables:?}: {told:?}");
    }
}

#[test]
fn connections_channels_and_consumers_of_all_nodes_are_listed_by_each() {
    let broker = Broker::shared();
    let Some(cluster) = broker.cluster() else { return };
    let queue = unique("listed");
    broker.declare_durable(0, &queue);
    let mut consumers: Vec<Connection> = (0..cluster.len()).map(|at| broker.connect(at)).collect();
    for (at, consumer) in consumers.iter_mut().enumerate() {
        consumer.qos(1, 7).unwrap();
        consumer.consume(1, &queue, &format!("tag-{at}"), &[]).unwrap();
    }
    for at in 0..cluster.len() {
        let ctl = Ctl { cluster, at };
        let rows = ctl.done(&["-q", "list_consumers", "queue_name", "consumer_tag", "ack_required", "prefetch_count", "channel_pid"]);
        let mine: Vec<Vec<&str>> = rows.lines().map(|row| row.split('\t').collect()).filter(|row: &Vec<&str>| row[0] == queue).collect();
        let tags: Vec<String> = mine.iter().map(|row| row[1..4].join(" ")).collect();
        let mut sorted = tags.clone();
        sorted.sort();
        assert_eq!(sorted, (0..cluster.len()).map(|at| format!("tag-{at} true 7")).collect::<Vec<_>>(), "asked of node {at}: {rows}");
        let channels = ctl.done(&["-q", "list_channels", "pid", "user", "consumer_count"]);
        for row in &mine {
            assert!(channels.contains(&format!("{}\tguest\t1\n", row[4])), "{channels}");
        }
        let connections = ctl.done(&["--formatter", "json", "list_connections", "pid", "state", "node", "vhost"]);
        let listed: serde_json::Value = serde_json::from_str(&connections).unwrap();
        let nodes: std::collections::BTreeSet<u64> = listed.as_array().unwrap().iter().filter_map(|row| row["node"].as_u64()).collect();
        assert_eq!(nodes, (1..=cluster.len() as u64).collect(), "{connections}");
    }
    // Closed through another node than its own.
    let ctl = Ctl { cluster, at: cluster.len() - 1 };
    ctl.refused(&["list_consumers", "queue_name", "colour"], 64, "Error (argument validation): Info key(s) colour are not supported\n");
    let rows = ctl.done(&["-s", "list_consumers", "consumer_tag", "queue_name", "channel_pid"]);
    let pid = rows.lines().find_map(|row| row.strip_prefix(&format!("tag-0\t{queue}\t"))).unwrap().replace(".1>", ".0>");
    ctl.done(&["close_connection", &pid, "maintenance"]);
    assert_eq!(end_of(&mut consumers[0]), Some((320, "CONNECTION_FORCED - maintenance".to_owned())));
    broker.connect(0).delete(1, &queue).unwrap();
}

#[test]
fn the_single_active_consumer_is_told_from_those_that_wait_by_every_node() {
    let broker = Broker::shared();
    let Some(cluster) = broker.cluster() else { return };
    let queue = unique("alone");
    let single = [("x-single-active-consumer".to_owned(), Field::Bool(true))];
    broker.connect(0).declare(1, &queue, &QueueOptions { arguments: single.into(), ..QueueOptions::durable() }).unwrap();
    let mut consumers: Vec<Connection> = (0..cluster.len()).map(|at| broker.connect(at)).collect();
    for (at, consumer) in consumers.iter_mut().enumerate() {
        consumer.consume(1, &queue, &format!("tag-{at}"), &[]).unwrap();
    }
    let told = |at: usize| {
        let rows = Ctl { cluster, at }.done(&["-q", "list_consumers", "queue_name", "consumer_tag", "active", "activity_status"]);
        let mut mine: Vec<String> = rows.lines().filter_map(|row| row.strip_prefix(&format!("{queue}\t"))).map(str::to_owned).collect();
        mine.sort();
        mine
    };
    let wanted = |first: usize| -> Vec<String> {
        let row = |at| if at == first { format!("tag-{at}\ttrue\tsingle_active") } else { format!("tag-{at}\tfalse\twaiting") };
        (first..cluster.len()).map(row).collect()
    };
    for at in 0..cluster.len() {
        assert!(eventually(PATIENCE, || told(at) == wanted(0)), "asked of node {at}: {:?}", told(at));
    }
    consumers.remove(0).close().unwrap();
    assert!(eventually(PATIENCE, || told(0) == wanted(1)), "{:?}", told(0));
    broker.connect(0).delete(1, &queue).unwrap();
}

#[test]
fn policies_take_effect_on_other_nodes_and_are_listed() {
    let broker = Broker::shared();
    let Some(cluster) = broker.cluster() else { return };
    let (first, last) = (Ctl { cluster, at: 0 }, Ctl { cluster, at: cluster.len() - 1 });
    let (exchange, queue, policy) = (unique("source"), unique("caught"), unique("policy"));
    let mut client = broker.connect(cluster.len() - 1);
    client.declare_exchange(1, &exchange, "direct").unwrap();
    client.declare(1, &queue, &QueueOptions::durable()).unwrap();
    client.bind(1, &queue, "amq.fanout", "").unwrap();
    client.confirm_select(1).unwrap();
    let mut routed = || {
        client.publish_to(Route { channel: 1, exchange: &exchange, key: "nowhere", mandatory: true }, b"x").unwrap();
        let mut returned = false;
        loop {
            match message_event(&mut client, PATIENCE).unwrap() {
                Some(Incoming::Returned { .. }) => returned = true,
                Some(Incoming::Confirm { nack: false, .. }) => return !returned,
                other => panic!("{other:?}"),
            }
        }
    };
    assert!(!routed());
    let definition = r#"{"alternate-exchange":"amq.fanout"}"#;
    first.done(&["set_policy", &policy, &format!("^{exchange}$"), definition, "--apply-to", "exchanges", "--priority", "5"]);
    assert!(routed(), "the policy holds on every node when it is answered");
    let listed = last.done(&["-q", "list_policies"]);
    assert!(listed.starts_with("vhost\tname\tpattern\tapply-to\tdefinition\tpriority\n"), "{listed}");
    assert!(listed.contains(&format!("/\t{policy}\t^{exchange}$\texchanges\t{definition}\t5\n")), "{listed}");
    assert!(last.done(&["-q", "list_exchanges", "name", "policy"]).contains(&format!("{exchange}\t{policy}\n")));
    last.done(&["clear_policy", &policy]);
    assert!(!routed());
    first.refused(&["clear_policy", &policy], 69, "Parameter does not exist");
    let unknown = ["set_policy", &policy, ".*", r#"{"colour":"red"}"#];
    first.refused(&unknown, 69, "Validation failed\n\n[{<<\"colour\">>,<<\"red\">>}] are not recognised policy settings");
    client.delete(1, &queue).unwrap();
    client.delete_exchange(1, &exchange).unwrap();
}

#[test]
fn queues_are_purged_and_deleted() {
    let broker = Broker::shared();
    let Some(cluster) = broker.cluster() else { return };
    let ctl = Ctl { cluster, at: cluster.len() - 1 };
    let queue = unique("cleared");
    broker.declare_durable(0, &queue);
    let mut client = broker.connect(0);
    client.confirm_select(1).unwrap();
    let mut publish = || {
        client.publish(1, &queue, b"x").unwrap();
        message_event(&mut client, PATIENCE).unwrap().expect("a confirm");
    };
    publish();
    ctl.refused(&["delete_queue", &queue, "--if-empty"], 64, "The queue is not empty");
    ctl.done(&["purge_queue", &queue]);
    assert!(ctl.done(&["-q", "list_queues"]).contains(&format!("{queue}\t0\n")));
    publish();
    let status = ctl.done(&["-q", "quorum_status", &queue]);
    assert_eq!((status.matches("leader").count(), status.matches("voter").count()), (1, cluster.len().min(3)), "{status}");
    let deleted = ctl.done(&["-q", "delete_queue", &queue]);
    assert_eq!(deleted, "Queue was successfully deleted with 1 ready messages\n");
    ctl.refused(&["delete_queue", &queue], 64, "No such queue was found");
    ctl.refused(&["purge_queue", &queue], 65, "was not found");
}

#[test]
fn names_and_patterns_that_cannot_be_are_refused() {
    let broker = Broker::shared();
    let Some(cluster) = broker.cluster() else { return };
    let ctl = Ctl { cluster, at: 0 };
    let (long, vhost) = ("n".repeat(256), unique("named"));
    ctl.done(&["add_vhost", &vhost]);
    ctl.refused(&["add_user", "", "secret"], 65, "Error (argument validation): Bad argument: user cannot be an empty string\n");
    ctl.refused(&["delete_queue", ""], 65, "Error (argument validation): Bad argument: queue name cannot be an empty string\n");
    ctl.refused(&["add_vhost", ""], 69, "Error:\nvhost cannot be an empty string\n");
    ctl.refused(&["add_user", &long, "secret"], 69, "Error:\nuser cannot be longer than 255 bytes\n");
    ctl.refused(&["add_vhost", &long], 69, "Error:\nvhost cannot be longer than 255 bytes\n");
    let policy = |name: &str, pattern: &str, code, text: &str| {
        ctl.refused(&["-p", &vhost, "set_policy", name, pattern, r#"{"max-length":1}"#], code, text);
    };
    policy("", ".*", 69, "Error:\npolicy name cannot be an empty string\n");
    policy(&long, ".*", 69, "Error:\npolicy name cannot be longer than 255 bytes\n");
    policy("p", "(", 69, "Error:\nValidation failed\n\npattern should be regular expression but is invalid: ");
    ctl.refused(&["-p", &vhost, "set_permissions", "guest", ".*", "(", ".*"], 69, "Error:\ninvalid regular expression '(': ");
    ctl.refused(&["-p", &vhost, "set_topic_permissions", "guest", "amq.topic", "[", ""], 69, "Error:\ninvalid regular expression '[': ");
    assert_eq!(ctl.done(&["-q", "-p", &vhost, "list_policies"]), "");
    assert_eq!(ctl.done(&["-s", "-p", &vhost, "list_permissions"]), "");
    ctl.done(&["delete_vhost", &vhost]);
}

#[test]
fn queues_of_one_connection_have_no_quorum_and_are_not_deleted() {
    let broker = Broker::shared();
    let Some(cluster) = broker.cluster() else { return };
    let (mine, transient) = (unique("mine"), unique("transient"));
    let mut client = broker.connect(0);
    client.declare(1, &mine, &QueueOptions { exclusive: true, ..QueueOptions::default() }).unwrap();
    client.declare(1, &transient, &QueueOptions::default()).unwrap();
    for at in 0..cluster.len() {
        let ctl = Ctl { cluster, at };
        for queue in [&mine, &transient] {
            ctl.refused(&["quorum_status", queue], 69, "Error:\nCannot get quorum status of a classic queue\n");
        }
        ctl.refused(&["delete_queue", &mine], 64, "Error:\nThe queue is locked or protected from deletion\n");
    }
    Ctl { cluster, at: cluster.len() - 1 }.refused(&["quorum_status", "no such queue"], 65, "was not found");
    client.delete(1, &transient).unwrap();
    client.delete(1, &mine).unwrap();
}

#[test]
fn queues_are_listed_by_where_they_are_led() {
    let broker = Broker::shared();
    let Some(cluster) = broker.cluster() else { return };
    let vhost = unique("placed");
    let ctl = Ctl { cluster, at: 0 };
    ctl.done(&["add_vhost", &vhost]);
    ctl.done(&["set_permissions", "-p", &vhost, "guest", ".*", ".*", ".*"]);
    let queues: Vec<String> = (0..6).map(|n| format!("q{n}")).collect();
    let guest = Dial { vhost: vhost.clone(), ..Dial::guest(&cluster.amqp(0)) };
    let mut client = Connection::open_with_channel(&guest).unwrap();
    queues.iter().for_each(|queue| drop(client.declare(1, queue, &QueueOptions::durable()).unwrap()));
    let listed = |at: usize, flags: &[&str]| -> Vec<String> {
        let told = Ctl { cluster, at }.done(&[&["-s", "-p", &vhost, "list_queues", "name"], flags].concat());
        told.lines().map(str::to_owned).collect()
    };
    // Leaders may change between two looks.
    let each_once = || {
        let mut local: Vec<String> = (0..cluster.len()).flat_map(|at| listed(at, &["--local"])).collect();
        local.sort();
        local == queues
    };
    assert!(eventually(PATIENCE, each_once), "each queue is local to one node");
    assert!(eventually(PATIENCE, || listed(0, &["--online"]) == queues && listed(0, &["--offline"]).is_empty()));
    assert_eq!(listed(0, &["--online", "--offline"]), queues);
    assert_eq!(ctl.done(&["-q", "-p", &vhost, "list_unresponsive_queues"]), "");
    ctl.done(&["delete_vhost", &vhost]);
}

#[test]
fn list_queues_tells_the_bytes_that_wait_and_those_that_are_out() {
    let broker = Broker::shared();
    let Some(cluster) = broker.cluster() else { return };
    let (mut client, queue) = (broker.connect(0), unique("weighed"));
    broker.declare_durable(0, &queue);
    client.confirm_select(1).unwrap();
    for body in [&b"four"[..], b"sevenly"] {
        client.publish(1, &queue, body).unwrap();
        message_event(&mut client, PATIENCE).unwrap().expect("a confirm");
    }
    client.get(1, &queue).unwrap().expect("the first");
    let columns = ["-q", "list_queues", "name", "message_bytes", "message_bytes_ready", "message_bytes_unacknowledged"];
    let told = Ctl { cluster, at: cluster.len() - 1 }.done(&columns);
    assert!(told.contains(&format!("{queue}\t11\t7\t4\n")), "{told}");
    client.delete(1, &queue).unwrap();
}

#[test]
fn health_checks_answer_with_their_exit_codes_also_under_rabbitmqs_names() {
    let broker = Broker::shared();
    let Some(cluster) = broker.cluster() else { return };
    let dir = tempfile::tempdir().unwrap();
    let tool = |name: &str, words: &[&str]| {
        let path = dir.path().join(name);
        if !path.exists() {
            std::os::unix::fs::symlink(binary(), &path).unwrap();
        }
        cluster.tool(0, &path, words, "")
    };
    let (amqp, no_port) = (cluster.ports(0).amqp.to_string(), "1");
    for (name, words, code) in [
        ("rabbitmqctl", vec!["-q", "list_queues"], 0),
        ("rabbitmqctl", vec!["await_startup"], 0),
        ("rabbitmqctl", vec!["cluster_status"], 0),
        ("rabbitmqctl", vec!["environment"], 0),
        ("rabbitmqctl", vec!["no_such_command"], 64),
        ("rabbitmqctl", vec!["delete_user"], 64),
        ("rabbitmq-diagnostics", vec!["-q", "ping"], 0),
        ("rabbitmq-diagnostics", vec!["check_running"], 0),
        ("rabbitmq-diagnostics", vec!["check_local_alarms"], 0),
        ("rabbitmq-diagnostics", vec!["check_alarms"], 0),
        ("rabbitmq-diagnostics", vec!["check_port_connectivity"], 0),
        ("rabbitmq-diagnostics", vec!["check_port_listener", &amqp], 0),
        ("rabbitmq-diagnostics", vec!["check_port_listener", no_port], 69),
        ("rabbitmq-diagnostics", vec!["check_protocol_listener", "amqp"], 0),
        ("rabbitmq-diagnostics", vec!["check_protocol_listener", "mqtt"], 69),
        ("rabbitmq-diagnostics", vec!["check_protocol_listener", "AMQP0-9-1"], 0),
        ("rabbitmq-diagnostics", vec!["check_virtual_hosts"], 0),
        ("rabbitmq-diagnostics", vec!["check_for_quorum_queues_without_an_elected_leader", "--across-all-vhosts", ".*"], 0),
        ("rabbitmq-diagnostics", vec!["check_for_quorum_queues_without_an_elected_leader", "("], 65),
        ("rabbitmq-diagnostics", vec!["check_for_quorum_queues_without_an_elected_leader", "-p", "nowhere", ".*"], 65),
        ("rabbitmq-diagnostics", vec!["check_if_metadata_store_is_initialized"], 0),
        ("rabbitmq-diagnostics", vec!["check_if_metadata_store_is_initialized_with_data"], 0),
        ("rabbitmqctl", vec!["node_health_check"], 0),
        ("rabbitmq-diagnostics", vec!["check_if_any_deprecated_features_are_used"], 0),
        ("rabbitmq-queues", vec!["check_if_node_is_mirror_sync_critical"], 0),
        ("rabbitmq-queues", vec!["check_if_node_is_quorum_critical"], if cluster.len() == 2 { 69 } else { 0 }),
        ("rabbitmq-upgrade", vec!["-t", "10", "await_online_quorum_plus_one"], if cluster.len() == 2 { 69 } else { 0 }),
    ] {
        let told = tool(name, &words);
        assert_eq!(told.code, Some(code), "{name} {words:?}: {told:?}");
        assert_eq!(told.stderr.is_empty(), code == 0, "{name} {words:?}: {told:?}");
    }
    let status: serde_json::Value = serde_json::from_str(&tool("rabbitmqctl", &["--formatter", "json", "cluster_status"]).stdout).unwrap();
    assert_eq!(status["running_nodes"].as_array().unwrap().len(), cluster.len());
}
