use super::super::client::{AdminClient, ClientError};
use super::super::source::{
    AccessKeyRow, Active, CertificateRow, Granted, GroupRow, ListenerRow, PolicyRow, ReplicaRow, SettingRow, StreamGroupRow, TopicRow,
    UserRow, VhostRow,
};
use super::super::{ExchangeRow, MemberStatus, QueueRow, Status as Report, implicit_binding};
use super::*;
use crate::model::admin::{AdminCommand, Limits, Permission, TopicPermission};
use crate::model::catalog::{BindingSpec, ExchangeKind, ExchangeSpec, Name, Owner, Table};
use crate::model::consumer_group::{GroupMember, GroupName, GroupState, Turn};
use crate::model::report::{ConnectionStat, Counted};
use crate::model::rocketmq::{Arrangement, TopicSettings};
use crate::model::stream::StreamMemory;
use crate::model::stream_step::Advertised;
use crate::model::{ConnectionId, Incarnation, Offset, QueueId, ShardId};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;

struct OneVhost;

fn name(name: &str) -> Name {
    Name { vhost: "/".into(), name: name.into() }
}

fn only_root<T: Send + 'static>(vhost: String, answer: Vec<T>) -> BoxFuture<'static, Result<Vec<T>, Refusal>> {
    async move {
        match vhost.as_str() {
            "/" => Ok(answer),
            _ => Err(Refusal::NotFound { kind: "vhost".into(), name: vhost.clone(), vhost }),
        }
    }
    .boxed()
}

impl AdminSource for OneVhost {
    fn advertised(&self) -> Advertised {
        Advertised { host: "alpha".into(), port: 5552, tls_port: 0 }
    }
    fn queues(&self, _: String) -> BoxFuture<'_, Result<Vec<QueueRow>, Refusal>> {
        async { Err(Refusal::Unavailable("no majority for 10 s".into())) }.boxed()
    }
    fn exchanges(&self, vhost: String) -> BoxFuture<'_, Result<Vec<ExchangeRow>, Refusal>> {
        let spec = ExchangeSpec {
            name: name("logs"),
            kind: ExchangeKind::Fanout,
            durable: true,
            auto_delete: false,
            internal: false,
            arguments: Table::new(),
        };
        only_root(vhost, vec![ExchangeRow { spec, policy: None }])
    }
    fn bindings(&self, vhost: String) -> BoxFuture<'_, Result<Vec<BindingSpec>, Refusal>> {
        only_root(vhost, vec![implicit_binding(&name("hello"))])
    }
    fn status(&self) -> BoxFuture<'_, Result<Report, Refusal>> {
        let members =
            vec![MemberStatus { node: NodeId(1), address: "alpha:7671".into(), up: true, stage: crate::model::roster::Stage::Serving }];
        let report = Report {
            node: NodeId(1),
            cluster_id: "c".into(),
            members,
            shards: vec![],
            connections: 2,
            queues: 3,
            alarms: vec![],
            local_alarm: false,
        };
        async { Ok(report) }.boxed()
    }
    fn state_hashes(&self) -> Result<Vec<StateHash>, Refusal> {
        Ok(vec![StateHash { shard: ShardId(2), applied: 7, hash: u64::MAX }])
    }
    fn users(&self) -> Result<Vec<UserRow>, Refusal> {
        Ok(vec![UserRow { user: "guest".into(), tags: vec!["administrator".into()] }])
    }
    fn vhosts(&self) -> Result<Vec<VhostRow>, Refusal> {
        Ok(vec![VhostRow { name: "/".into(), facts: Default::default(), nodes: Vec::new() }])
    }
    fn topics(&self, _: String) -> Result<Vec<TopicRow>, Refusal> {
        Ok(vec![TopicRow { name: "orders".into(), settings: TopicSettings::default() }])
    }
    fn groups(&self, _: String) -> BoxFuture<'_, Result<Vec<GroupRow>, Refusal>> {
        async { Ok(Vec::new()) }.boxed()
    }
    fn access_keys(&self) -> Result<Vec<AccessKeyRow>, Refusal> {
        Ok(Vec::new())
    }
    fn arrange(&self, _: Arrangement) -> BoxFuture<'_, Result<(), Refusal>> {
        async { Ok(()) }.boxed()
    }
    fn errand(&self, errand: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, Refusal>> {
        // So many MiB.
        async move { Ok(vec![7; usize::from(errand[0]) << 20]) }.boxed()
    }
    fn permissions(&self, of: Holder) -> Result<Vec<Granted<Permission>>, Refusal> {
        let permission = Permission { configure: "c".into(), write: "w".into(), read: "r".into() };
        let (user, vhost) = match of {
            Holder::User(user) => (user, "/".to_owned()),
            Holder::Vhost(vhost) => ("guest".to_owned(), vhost),
        };
        Ok(vec![Granted { user, vhost, exchange: String::new(), permission }])
    }
    fn topic_permissions(&self, _: Holder) -> Result<Vec<Granted<TopicPermission>>, Refusal> {
        Ok(vec![])
    }
    fn policies(&self, _: PolicyKind, _: String) -> Result<Vec<PolicyRow>, Refusal> {
        Ok(vec![])
    }
    fn vhost_limits(&self, vhost: Option<String>) -> Result<Vec<(String, Limits)>, Refusal> {
        Ok(vec![(vhost.unwrap_or("all".into()), Limits::from([("max-queues".to_owned(), 3)]))])
    }
    fn user_limits(&self, _: Option<String>) -> Result<Vec<(String, Limits)>, Refusal> {
        Ok(vec![])
    }
    fn connections(&self) -> BoxFuture<'_, Result<Vec<ConnectionRow>, Refusal>> {
        async { Ok(vec![connection(1)]) }.boxed()
    }
    fn replica(&self, _: Name) -> Result<Option<ReplicaRow>, Refusal> {
        Ok(None)
    }
    fn stream_groups(&self, _: String) -> Result<Vec<StreamGroupRow>, Refusal> {
        let owner = |node| Owner { node: NodeId(node), incarnation: Incarnation(1), connection: ConnectionId(5) };
        let member = |node| GroupMember { owner: owner(node), subscription: 9 };
        let members = vec![(member(2), Turn::Active), (member(1), Turn::Waiting)];
        let name = GroupName { stream: QueueId(1), name: "g".into() };
        Ok(vec![StreamGroupRow { stream: "s".into(), state: GroupState { name, partition: None, members } }])
    }
    fn stream_memory(&self, stream: Name) -> Result<Option<StreamMemory>, Refusal> {
        let memory = StreamMemory { readers: vec![("r".into(), Offset(3))], publishers: Vec::new() };
        Ok((&*stream.name == "here").then_some(memory))
    }
    fn listeners(&self) -> Vec<ListenerRow> {
        vec![]
    }
    fn certificates(&self) -> Result<Vec<CertificateRow>, Refusal> {
        Ok(vec![])
    }
    fn settings(&self) -> Vec<SettingRow> {
        vec![]
    }
    fn change(&self, command: AdminCommand) -> BoxFuture<'_, Result<(), Refusal>> {
        let refusal = Refusal::NotFound { kind: "user".into(), name: "eve".into(), vhost: String::new() };
        let known = command != AdminCommand::DeleteUser { user: "eve".into() };
        async move { if known { Ok(()) } else { Err(refusal) } }.boxed()
    }
    fn active(&self, _: String, queues: BTreeSet<Arc<str>>) -> BoxFuture<'_, Result<BTreeMap<Arc<str>, Active>, Refusal>> {
        async move { Ok(queues.into_iter().map(|queue| (queue, None)).collect()) }.boxed()
    }
    fn salt(&self, user: &str) -> Result<[u8; 4], Refusal> {
        Ok([user.len() as u8; 4])
    }
    fn authenticate(&self, _: &str, nonce: &[u8], proof: &[u8]) -> Result<Option<String>, Refusal> {
        Ok((nonce != b"nonce" || proof != b"right").then(|| "invalid credentials".to_owned()))
    }
    fn purge(&self, _: Name) -> BoxFuture<'_, Result<u64, Refusal>> {
        async { Ok(4) }.boxed()
    }
    fn delete_queue(&self, queue: Name, _: bool, _: bool) -> BoxFuture<'_, Result<u64, Refusal>> {
        async move { Err(Refusal::Precondition(format!("{} in use", queue.name))) }.boxed()
    }
    fn count(&self, counted: &Counted) -> Result<u64, Refusal> {
        Ok(if *counted == Counted::UserChannels("guest".into()) { 7 } else { 0 })
    }
    fn close(&self, _: &str, which: &dyn Fn(&ConnectionRow) -> bool) -> Result<u64, Refusal> {
        Ok(u64::from(which(&connection(1))))
    }
    fn elsewhere(&self, request: ListRequest) -> BoxFuture<'_, Vec<ListReply>> {
        assert!(request.local, "each node answers for itself");
        async move { vec![list(&[connection(2)], request.columns).unwrap()] }.boxed()
    }
    fn close_elsewhere(&self, request: CloseRequest) -> BoxFuture<'_, u64> {
        assert!(request.local, "each node answers for itself");
        async { 10 }.boxed()
    }
}

fn connection(node: u16) -> ConnectionRow {
    let stat = ConnectionStat {
        id: ConnectionId(5),
        peer: "127.0.0.1:4000".parse().unwrap(),
        since: std::time::UNIX_EPOCH,
        user: Some("guest".into()),
        vhost: Some("/".into()),
        blocked: false,
    };
    ConnectionRow { node: NodeId(node), stat, report: None }
}

async fn node(readiness: Arc<Readiness>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let admin = service(NodeId(1), Arc::new(OneVhost), readiness);
    tokio::spawn(tonic::transport::Server::builder().add_service(admin).serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

async fn client(address: &str) -> AdminClient {
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    AdminClient::new(address, channel, Duration::from_secs(5))
}

fn listing(what: &str, vhost: &str, columns: &[&str]) -> ListRequest {
    ListRequest { what: what.into(), vhost: vhost.into(), columns: words(columns), ..ListRequest::default() }
}

#[tokio::test]
async fn lists_and_status_arrive() {
    let address = node(Arc::default()).await;
    let mut ctl = client(&address).await;
    let reply = ctl.list(listing("exchanges", "/", &[])).await.unwrap();
    assert_eq!(reply.columns, ["name", "type"]);
    assert_eq!(reply.rows[0].cells.iter().map(|c| c.text.as_str()).collect::<Vec<_>>(), ["logs", "fanout"]);
    assert_eq!(ctl.list(listing("bindings", "/", &["routing_key"])).await.unwrap().rows[0].cells[0].text, "hello");
    assert_eq!(ctl.status().await.unwrap().members[0].address, "alpha:7671");
    let replicas = ctl.state_hashes().await.unwrap().replicas;
    assert_eq!(replicas, [wire::StateHash { shard: 2, applied: 7, hash: u64::MAX }]);
}

#[tokio::test]
async fn an_answer_may_hold_the_largest_message() {
    let address = node(Arc::default()).await;
    let mut ctl = client(&address).await;
    // In base64, and more.
    assert_eq!(ctl.errand(vec![24]).await.unwrap().len(), 24 << 20);
}

#[tokio::test]
async fn refusals_arrive_with_their_text() {
    let address = node(Arc::default()).await;
    let mut ctl = client(&address).await;
    for (request, text, is_usage) in [
        (listing("exchanges", "x", &[]), "no vhost 'x'", false),
        (listing("queues", "/", &[]), "no majority for 10 s", false),
        (listing("exchanges", "/", &["colour"]), "Info key(s) colour are not supported", true),
        (listing("colours", "/", &[]), "'colours' cannot be listed", true),
    ] {
        match ctl.list(request).await {
            Err(ClientError::Refused { text: told, usage, .. }) => assert!(told.contains(text) && usage == is_usage, "{told}"),
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_ping_tells_what_a_node_waits_for() {
    let readiness = Arc::new(Readiness::default());
    let address = node(readiness.clone()).await;
    let mut ctl = client(&address).await;
    readiness.not_serving("no answer from node 3");
    assert_eq!(ctl.ping().await.unwrap().waiting_for, "no answer from node 3");
    readiness.serving();
    assert_eq!(ctl.ping().await.unwrap().waiting_for, "");
}

fn texts(reply: &ListReply) -> Vec<Vec<&str>> {
    reply.rows.iter().map(|row| row.cells.iter().map(|c| c.text.as_str()).collect()).collect()
}

#[tokio::test]
async fn each_node_answers_for_its_own_connections() {
    let address = node(Arc::default()).await;
    let mut ctl = client(&address).await;
    let all = ctl.list(listing("connections", "", &["pid"])).await.unwrap();
    assert_eq!(texts(&all), [["<1.5.0>"], ["<2.5.0>"]]);
    let own = ctl.list(ListRequest { local: true, ..listing("connections", "", &["pid"]) }).await.unwrap();
    assert_eq!(texts(&own), [["<1.5.0>"]]);
    let close =
        |pid: &str, vhost: &str| CloseRequest { pid: pid.into(), vhost: vhost.into(), reason: "r".into(), ..CloseRequest::default() };
    let of = |user: &str| CloseRequest { user: user.into(), ..close("", "") };
    for (request, closed) in [
        (close("<1.5.0>", ""), 11),
        (close("<1.6.0>", ""), 10),
        (close("", "/"), 11),
        (close("", "x"), 10),
        (of("guest"), 11),
        (of("eve"), 10),
    ] {
        assert_eq!(ctl.close_connections(request.clone()).await.unwrap().connections, closed, "{request:?}");
    }
}

#[tokio::test]
async fn members_of_a_group_are_listed_with_the_names_of_connections_of_all_nodes() {
    let address = node(Arc::default()).await;
    let mut ctl = client(&address).await;
    assert_eq!(texts(&ctl.list(listing("stream_consumer_groups", "/", &[])).await.unwrap()), [["s", "g", "-1", "2"]]);
    let of = |reference: &str| ListRequest { of: "s".into(), reference: reference.into(), ..listing("stream_group_consumers", "/", &[]) };
    let name = "127.0.0.1:4000 -> ?";
    assert_eq!(texts(&ctl.list(of("g")).await.unwrap()), [["9", name, "active"], ["9", name, "inactive"]]);
    assert!(matches!(ctl.list(of("other")).await, Err(ClientError::Refused { refusal: Some(Refusal::NotFound { .. }), .. })));
}

#[tokio::test]
async fn what_a_stream_remembers_is_told_by_a_node_with_a_replica() {
    let address = node(Arc::default()).await;
    let mut ctl = client(&address).await;
    let of = |what: &str, stream: &str| ListRequest { of: stream.into(), ..listing(what, "/", &[]) };
    assert_eq!(texts(&ctl.list(of("stream_tracking", "here")).await.unwrap()), [["offset", "r", "3"]]);
    assert!(ctl.list(of("stream_tracking_writer", "here")).await.unwrap().rows.is_empty());
    let local = ctl.list(ListRequest { local: true, ..of("stream_tracking", "elsewhere") }).await;
    assert!(matches!(local, Err(ClientError::Refused { refusal: Some(Refusal::Unavailable(_)), .. })), "{local:?}");
}

#[tokio::test]
async fn permissions_are_listed_with_the_columns_that_differ() {
    let address = node(Arc::default()).await;
    let mut ctl = client(&address).await;
    let of_vhost = ctl.list(listing("permissions", "/", &[])).await.unwrap();
    assert_eq!((of_vhost.columns.join(" "), texts(&of_vhost)), ("user configure write read".into(), vec![vec!["guest", "c", "w", "r"]]));
    let of_user = ctl.list(ListRequest { of: "ann".into(), ..listing("user_permissions", "", &[]) }).await.unwrap();
    assert_eq!((of_user.columns.join(" "), texts(&of_user)), ("vhost configure write read".into(), vec![vec!["/", "c", "w", "r"]]));
    let limits = ctl.list(listing("vhost_limits", "/", &["limits"])).await.unwrap();
    assert_eq!(texts(&limits), [["{\"max-queues\":3}"]]);
}

#[tokio::test]
async fn changes_arrive_and_their_refusals_come_back_whole() {
    let address = node(Arc::default()).await;
    let mut ctl = client(&address).await;
    ctl.change(&AdminCommand::DeleteUser { user: "ann".into() }).await.unwrap();
    match ctl.change(&AdminCommand::DeleteUser { user: "eve".into() }).await {
        Err(ClientError::Refused { refusal: Some(Refusal::NotFound { kind, name, .. }), usage: false, .. }) => {
            assert_eq!((kind.as_str(), name.as_str()), ("user", "eve"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(ctl.salt("guest").await.unwrap(), [5; 4]);
    assert_eq!(ctl.authenticate("guest", b"nonce", b"right").await.unwrap().refused, "");
    assert_eq!(ctl.authenticate("guest", b"nonce", b"wrong").await.unwrap().refused, "invalid credentials");
    assert_eq!(ctl.count(&Counted::UserChannels("guest".into())).await.unwrap(), 7);
    let queue = QueueRequest { vhost: "/".into(), queue: "q".into(), if_empty: false, if_unused: true };
    assert_eq!(ctl.purge_queue(queue.clone()).await.unwrap().messages, 4);
    assert!(matches!(ctl.delete_queue(queue).await, Err(ClientError::Refused { text, .. }) if text == "q in use"));
}
