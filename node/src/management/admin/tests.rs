use super::super::client::{AdminClient, ClientError};
use super::super::{MemberStatus, QueueRow, Status as Report, implicit_binding};
use super::*;
use crate::model::catalog::{BindingSpec, ExchangeKind, ExchangeSpec, Name, Table};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use warren_proto::admin::admin_client::AdminClient as Stub;

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
    fn queues(&self, _: String) -> BoxFuture<'_, Result<Vec<QueueRow>, Refusal>> {
        async { Err(Refusal::Unavailable("no majority for 10 s".into())) }.boxed()
    }
    fn exchanges(&self, vhost: String) -> BoxFuture<'_, Result<Vec<ExchangeSpec>, Refusal>> {
        let spec = ExchangeSpec {
            name: name("logs"),
            kind: ExchangeKind::Fanout,
            durable: true,
            auto_delete: false,
            internal: false,
            arguments: Table::new(),
        };
        only_root(vhost, vec![spec])
    }
    fn bindings(&self, vhost: String) -> BoxFuture<'_, Result<Vec<BindingSpec>, Refusal>> {
        only_root(vhost, vec![implicit_binding(&name("hello"))])
    }
    fn status(&self) -> BoxFuture<'_, Result<Report, Refusal>> {
        let members = vec![MemberStatus { node: NodeId(1), address: "alpha:7671".into(), up: true }];
        let report = Report { node: NodeId(1), cluster_id: "c".into(), members, shards: vec![], connections: 2, queues: 3, alarms: vec![] };
        async { Ok(report) }.boxed()
    }
}

async fn node(readiness: Arc<Readiness>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let admin = service(NodeId(1), Arc::new(OneVhost), readiness, b"the secret");
    tokio::spawn(tonic::transport::Server::builder().add_service(admin).serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

async fn client(address: &str, secret: &[u8]) -> AdminClient {
    AdminClient::connect(address, secret, Duration::from_secs(5)).await.unwrap()
}

fn listing(what: &str, vhost: &str, columns: &[&str]) -> ListRequest {
    ListRequest { what: what.into(), vhost: vhost.into(), columns: columns.iter().map(|c| (*c).to_owned()).collect() }
}

#[tokio::test]
async fn who_knows_the_secret_gets_answers() {
    let address = node(Arc::default()).await;
    let mut ctl = client(&address, b"the secret").await;
    let reply = ctl.list(listing("exchanges", "/", &[])).await.unwrap();
    assert_eq!(reply.columns, ["name", "type"]);
    assert_eq!(reply.rows[0].cells.iter().map(|c| c.text.as_str()).collect::<Vec<_>>(), ["logs", "fanout"]);
    assert_eq!(ctl.list(listing("bindings", "/", &["routing_key"])).await.unwrap().rows[0].cells[0].text, "hello");
    assert_eq!(ctl.status().await.unwrap().members[0].address, "alpha:7671");
}

#[tokio::test]
async fn another_secret_or_none_gets_nothing() {
    let address = node(Arc::default()).await;
    let mut stranger = client(&address, b"a guess").await;
    assert!(matches!(stranger.status().await, Err(ClientError::WrongSecret { .. })));
    assert!(matches!(stranger.ping().await, Err(ClientError::WrongSecret { .. })));
    let mut bare = Stub::connect(format!("http://{address}")).await.unwrap();
    assert_eq!(bare.status(StatusRequest {}).await.unwrap_err().code(), tonic::Code::Unauthenticated);
    assert_eq!(bare.list(listing("queues", "/", &[])).await.unwrap_err().code(), tonic::Code::Unauthenticated);
}

#[tokio::test]
async fn refusals_arrive_with_their_text() {
    let address = node(Arc::default()).await;
    let mut ctl = client(&address, b"the secret").await;
    for (request, text, is_usage) in [
        (listing("exchanges", "x", &[]), "no vhost 'x'", false),
        (listing("queues", "/", &[]), "no majority for 10 s", false),
        (listing("exchanges", "/", &["colour"]), "'colour'", true),
        (listing("users", "/", &[]), "'users' cannot be listed", true),
    ] {
        match ctl.list(request).await {
            Err(ClientError::Refused { text: told, usage }) => assert!(told.contains(text) && usage == is_usage, "{told}"),
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_ping_tells_what_a_node_waits_for() {
    let readiness = Arc::new(Readiness::default());
    let address = node(readiness.clone()).await;
    let mut ctl = client(&address, b"the secret").await;
    readiness.not_serving("no answer from node 3");
    assert_eq!(ctl.ping().await.unwrap().waiting_for, "no answer from node 3");
    readiness.serving();
    assert_eq!(ctl.ping().await.unwrap().waiting_for, "");
}

#[tokio::test]
async fn nobody_at_home_is_said_so() {
    let refused = AdminClient::connect("127.0.0.1:1", b"the secret", Duration::from_secs(5)).await.err().unwrap();
    assert!(refused.to_string().contains("127.0.0.1:1"), "{refused}");
}
