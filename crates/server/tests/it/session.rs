//! `SessionService`: every transition of the table in `rpc::session`.

use std::num::NonZeroU64;
use std::time::Duration;

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use nodetracker::{ManualClock, NodeId, Proxy, ProxyRef, RouteTable};
use nodetracker_proto::v1::admin_service_client::AdminServiceClient;
use nodetracker_proto::v1::session_request::Request;
use nodetracker_proto::v1::session_response::Response;
use nodetracker_proto::v1::session_service_client::SessionServiceClient;
use nodetracker_proto::v1::{self, SessionRefusal, SessionSupersededReason};
use nodetracker_server::{Config, Drained, Limits, limits};
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use uuid::Uuid;

use crate::support::{Raw, Running, SOON, add, framed, pass, proxies};

const INTERVAL: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(1);
const PATH: &str = "/nodetracker.v1.SessionService/Session";

/// A server whose table's time stands still.
async fn server() -> (Running, ManualClock) {
    let (clock, table) = crate::support::manual(INTERVAL);
    (Running::with_table(table).await, clock)
}

/// One session, over a connection of its own.
pub(crate) struct Session {
    requests: mpsc::Sender<v1::SessionRequest>,
    answers: Streaming<v1::SessionResponse>,
    sequence: u64,
}

impl Session {
    async fn open(server: &Running) -> Self {
        Self::over(server.channel().await).await
    }

    pub(crate) async fn over(channel: Channel) -> Self {
        let mut client = SessionServiceClient::new(channel);
        let (requests, sent) = mpsc::channel(16);
        let answers = client.session(ReceiverStream::new(sent)).await.unwrap().into_inner();
        Self {
            requests,
            answers,
            sequence: 100,
        }
    }

    /// Begins a session of `proxy-1`.
    async fn begin(server: &Running, incarnation: u64) -> Self {
        let mut session = Self::open(server).await;
        session.welcome(hello(incarnation)).await;
        session
    }

    pub(crate) async fn send(&mut self, request: impl Into<Option<Request>>) {
        self.sequence += 1;
        let request = v1::SessionRequest {
            sequence: self.sequence,
            request: request.into(),
        };
        // An error means that the server has ended the session already.
        let _ = self.requests.send(request).await;
    }

    /// The next answer, which is to the last request; `None` at the end.
    pub(crate) async fn answer(&mut self) -> Result<Option<Response>, Status> {
        let Some(answer) = self.answers.message().await? else {
            return Ok(None);
        };
        assert_eq!(answer.sequence, self.sequence);
        Ok(answer.response)
    }

    /// Expects the message of a tracker that is about to stop.
    async fn told_to_go(&mut self) {
        let answer = self.answers.message().await.unwrap().expect("a message");
        assert_eq!(answer.sequence, 0);
        assert!(matches!(answer.response, Some(Response::GoAway(_))), "{answer:?}");
    }

    async fn ask(&mut self, request: impl Into<Option<Request>>) -> Result<Response, Status> {
        self.send(request).await;
        Ok(self.answer().await?.expect("an answer"))
    }

    pub(crate) async fn welcome(&mut self, hello: v1::SessionHello) -> v1::SessionWelcome {
        match self.ask(Request::Hello(hello)).await.unwrap() {
            Response::Welcome(welcome) => welcome,
            other => panic!("{other:?}"),
        }
    }

    /// Announces nodes, and returns their handles.
    pub(crate) async fn up(&mut self, nodes: &[NodeId]) -> Vec<u64> {
        let (handles, refusal) = self.try_up(nodes).await;
        assert_eq!(refusal, SessionRefusal::Unspecified);
        assert_eq!(handles.len(), nodes.len());
        handles
    }

    async fn try_up(&mut self, nodes: &[NodeId]) -> (Vec<u64>, SessionRefusal) {
        match self.ask(up(ids(nodes))).await.unwrap() {
            Response::Handles(handles) => (unpacked(&handles.handles), handles.refusal()),
            other => panic!("{other:?}"),
        }
    }

    /// Sends a heartbeat, and returns the handles that are gone.
    pub(crate) async fn beat(&mut self, handles: &[u64]) -> Vec<u64> {
        unpacked(&self.acked(heartbeat(handles)).await.gone_handles)
    }

    async fn acked(&mut self, request: Request) -> v1::SessionAck {
        match self.ask(request).await.unwrap() {
            Response::Ack(ack) => ack,
            other => panic!("{other:?}"),
        }
    }

    /// The stream ends without anything more.
    async fn ended(&mut self) -> Result<(), Status> {
        match self.answers.message().await? {
            None => Ok(()),
            Some(answer) => panic!("{answer:?}"),
        }
    }

    /// Expects the message that another session has taken over the proxy.
    async fn superseded(&mut self, reason: SessionSupersededReason, latest_incarnation: u64) {
        let answer = self.answers.message().await.unwrap().expect("an answer");
        let expected = v1::SessionSuperseded {
            reason: reason.into(),
            latest_incarnation,
        };
        assert_eq!(answer.response, Some(Response::Superseded(expected)));
        let status = self.ended().await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        assert!(status.message().contains(&latest_incarnation.to_string()), "{status}");
    }
}

pub(crate) fn hello(incarnation: u64) -> v1::SessionHello {
    v1::SessionHello {
        proxy: Some(v1::Proxy {
            proxy_id: "proxy-1".into(),
            cluster_name: "cluster".into(),
            addr: "proxy:1".into(),
        }),
        incarnation,
        generation: 0,
        has_handles: false,
    }
}

fn again(incarnation: u64, generation: u64) -> v1::SessionHello {
    v1::SessionHello {
        generation,
        has_handles: true,
        ..hello(incarnation)
    }
}

fn up(nodes: v1::NodeIds) -> Request {
    Request::NodesUp(v1::SessionNodesUp { nodes: Some(nodes) })
}

fn down(nodes: &[NodeId]) -> Request {
    Request::NodesDown(v1::SessionNodesDown {
        nodes: Some(ids(nodes)),
    })
}

fn drain() -> Request {
    Request::Drain(v1::SessionDrain {})
}

pub(crate) fn heartbeat(handles: &[u64]) -> Request {
    let handles: Vec<u8> = handles.iter().flat_map(|handle| handle.to_le_bytes()).collect();
    Request::Heartbeat(v1::SessionHeartbeat {
        handles: handles.into(),
    })
}

fn unpacked(handles: &[u8]) -> Vec<u64> {
    let (handles, rest) = handles.as_chunks::<8>();
    assert!(rest.is_empty());
    handles.iter().map(|handle| u64::from_le_bytes(*handle)).collect()
}

/// A request as it is on the wire.
fn encoded(request: Request) -> Bytes {
    let request = v1::SessionRequest {
        sequence: u64::MAX,
        request: Some(request),
    };
    framed(&request.encode_to_vec()).into()
}

/// UUIDs and names as they are sent, the UUIDs first.
fn ids(nodes: &[NodeId]) -> v1::NodeIds {
    let names = nodes.iter().filter(|node| node.as_uuid().is_none());
    v1::NodeIds {
        uuids: nodes
            .iter()
            .filter_map(NodeId::as_uuid)
            .flat_map(Uuid::into_bytes)
            .collect(),
        names: names.map(ToString::to_string).collect(),
    }
}

pub(crate) fn node(number: u128) -> NodeId {
    Uuid::from_u128(number).into()
}

fn name(number: u32) -> NodeId {
    format!("node-{number}").parse().unwrap()
}

fn routes(table: &RouteTable, node: &NodeId) -> Vec<ProxyRef> {
    table.get_proxies(node).iter().map(|route| route.proxy).collect()
}

fn proxy_1(table: &RouteTable) -> ProxyRef {
    let proxy = Proxy {
        id: "proxy-1",
        cluster_name: "cluster",
        addr: "proxy:1",
    };
    table.register_proxy(&proxy).unwrap()
}

/// Lets the sweeper drop a proxy that has no routes.
fn drop_idle(table: &RouteTable, clock: &ManualClock) {
    let proxy = proxy_1(table);
    // An interval for the routes to expire, and one more.
    pass(table, clock, 3 * INTERVAL);
    while table.proxy(proxy).is_some() {
        table.sweep(4096);
    }
}

#[tokio::test]
async fn handles_keep_routes_alive() {
    let (server, clock) = server().await;
    let table = &server.table;
    let mut session = Session::open(&server).await;
    let welcome = session.welcome(hello(7)).await;
    assert_ne!(welcome.generation, 0);
    assert!(!welcome.handles_hold);
    assert_eq!(
        welcome.heartbeat_interval,
        Some(Duration::from_secs(20).try_into().unwrap())
    );
    let expected = v1::SessionLimits {
        max_nodes: limits::MAX_SESSION_NODES as u32,
        max_handles: limits::MAX_SESSION_HANDLES as u32,
        max_message_bytes: limits::MAX_MESSAGE_SIZE as u32,
        idle_timeout: Some(INTERVAL.try_into().unwrap()),
    };
    assert_eq!(welcome.limits, Some(expected));

    let nodes = [node(1), node(2), name(1), name(2)];
    let handles = session.up(&nodes).await;
    let proxy = proxy_1(table);
    assert_eq!(table.incarnation(proxy), NonZeroU64::new(7));
    for node in &nodes {
        assert_eq!(routes(table, node), [proxy]);
    }
    // One of each kind is kept alive, so handles are in the order of the nodes.
    for _ in 0..3 {
        pass(&server.table, &clock, INTERVAL * 2 / 3);
        assert_eq!(session.beat(&[handles[1], handles[2]]).await, [0; 0]);
    }
    let kept = nodes.map(|node| routes(table, &node).len());
    assert_eq!(kept, [0, 1, 1, 0]);

    // The answer lists the gone handles in the heartbeat's order. Announcing their nodes brings the routes back.
    let unknown = 0x0123_4567_89ab_cdef;
    let all = [handles[3], unknown, handles[2], handles[0], handles[1]];
    assert_eq!(session.beat(&all).await, [handles[3], unknown, handles[0]]);
    let back = session.up(&[node(1), name(2)]).await;
    assert_eq!(session.beat(&back).await, [0; 0]);
    assert_eq!(table.len(), 4);
}

#[tokio::test]
async fn nodes_down_takes_the_routes_of_this_proxy_only() {
    let (server, _) = server().await;
    let table = &server.table;
    let mut session = Session::begin(&server, 1).await;
    session.up(&[node(1), node(2), name(1), name(2)]).await;
    server
        .client()
        .await
        .add_node(add("node-1", "other", "other:1"))
        .await
        .unwrap();
    let ack = session.acked(down(&[node(1), node(3), name(1)])).await;
    assert_eq!(ack, v1::SessionAck::default());
    let left = [node(1), node(2), name(2)].map(|node| routes(table, &node).len());
    assert_eq!(left, [0, 1, 1]);
    assert_eq!(proxies(&mut server.client().await, "node-1").await, ["other"]);
}

#[tokio::test]
async fn a_session_that_ends_leaves_its_routes_and_its_handles() {
    let (server, clock) = server().await;
    let mut first = Session::open(&server).await;
    let generation = first.welcome(hello(1)).await.generation;
    let handles = first.up(&[node(1), name(1)]).await;
    // Once by ending its side, and once by losing the connection.
    let Session {
        requests, mut answers, ..
    } = first;
    drop(requests);
    assert_eq!(answers.message().await.unwrap(), None);
    let mut second = Session::open(&server).await;
    let welcome = second.welcome(again(1, generation)).await;
    assert!(welcome.handles_hold);
    assert_eq!(welcome.generation, generation);
    pass(&server.table, &clock, INTERVAL);
    assert_eq!(second.beat(&handles).await, [0; 0]);
    drop(second);

    let mut third = Session::open(&server).await;
    assert!(third.welcome(again(1, generation)).await.handles_hold);
    pass(&server.table, &clock, INTERVAL);
    assert_eq!(third.beat(&handles[..1]).await, [0; 0]);
    drop(third);
    clock.advance(TICK);
    assert_eq!(routes(&server.table, &node(1)).len(), 1);
    assert_eq!(routes(&server.table, &name(1)).len(), 0);
    pass(&server.table, &clock, INTERVAL);
    assert_eq!(routes(&server.table, &node(1)).len(), 0);
}

/// A client whose connection is lost, without a word.
#[tokio::test]
async fn a_session_that_is_lost_leaves_its_routes_until_they_expire() {
    let (clock, table) = crate::support::manual(INTERVAL);
    let limits = Limits {
        max_connections: 1,
        max_share_per_client: 100,
        ..Limits::default()
    };
    let server = Running::with(table, limits).await;
    let mut raw = Raw::connect(server.addr).await;
    let (response, mut stream) = raw.open(PATH).await;
    for request in [Request::Hello(hello(1)), up(ids(&[node(1), name(1)]))] {
        stream.send_data(encoded(request), false).unwrap();
    }
    let mut body = response.await.unwrap().into_body();
    let mut bytes = 0;
    // Two answers. The second answer has two handles.
    while routes(&server.table, &name(1)).is_empty() || bytes < 16 {
        bytes += body.data().await.unwrap().unwrap().len();
    }
    raw.connection.abort();
    // Another connection gets the only slot after the first connection has ended. When each worker has served a
    // connection, every worker has also ended the first connection's work.
    for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
        server.assert_serves().await;
    }
    pass(&server.table, &clock, INTERVAL);
    for node in [node(1), name(1)] {
        assert_eq!(routes(&server.table, &node), [proxy_1(&server.table)]);
    }
    clock.advance(TICK);
    for node in [node(1), name(1)] {
        assert_eq!(routes(&server.table, &node), []);
    }
}

/// Sends all requests of a session at once, without waiting for answers.
#[tokio::test]
async fn each_request_is_answered_in_its_turn() {
    let (server, _) = server().await;
    let mut session = Session::open(&server).await;
    let requests = [
        Request::Hello(hello(1)),
        up(ids(&[node(1), node(2)])),
        down(&[node(1)]),
        heartbeat(&[]),
        up(ids(&[name(1)])),
        drain(),
        // Comes too late.
        up(ids(&[node(3)])),
    ];
    for request in requests {
        session.send(request).await;
    }
    let mut answers = Vec::new();
    while let Some(answer) = session.answers.message().await.unwrap() {
        let kind = match answer.response.unwrap() {
            Response::Welcome(_) => "welcome",
            Response::Handles(handles) => ["", "one handle", "two handles"][handles.handles.len() / 8],
            Response::Ack(_) => "ack",
            other => panic!("{other:?}"),
        };
        answers.push((answer.sequence, kind));
    }
    let expected = [
        (101, "welcome"),
        (102, "two handles"),
        (103, "ack"),
        (104, "ack"),
        (105, "one handle"),
        (106, "ack"),
    ];
    assert_eq!(answers, expected);
    for node in [node(1), node(2), node(3), name(1)] {
        assert_eq!(routes(&server.table, &node), []);
    }
}

#[tokio::test]
async fn handles_hold_under_their_generation_and_incarnation_only() {
    let (server, _) = server().await;
    let mut session = Session::open(&server).await;
    let generation = session.welcome(hello(1)).await.generation;
    let handles = session.up(&[node(1)]).await;
    for (hello, hold) in [
        (again(1, generation), true),
        (hello(1), false),
        (again(1, generation ^ 1), false),
        (again(1, 0), false),
        (again(2, generation), false),
    ] {
        let mut session = Session::open(&server).await;
        assert_eq!(session.welcome(hello.clone()).await.handles_hold, hold, "{hello:?}");
    }
    let mut session = Session::open(&server).await;
    session.welcome(again(2, generation)).await;
    assert_eq!(session.beat(&handles).await, handles);

    // A restarted tracker has another generation, and reports the handles as gone.
    let restarted = Running::start().await;
    let mut session = Session::open(&restarted).await;
    let welcome = session.welcome(again(2, generation)).await;
    assert_ne!(welcome.generation, generation);
    assert!(!welcome.handles_hold);
    assert_eq!(session.beat(&handles).await, handles);
}

#[tokio::test]
async fn a_newer_incarnation_takes_over() {
    let (server, _) = server().await;
    let table = &server.table;
    let mut older = Session::begin(&server, 1).await;
    older.up(&[node(1)]).await;
    let mut newer = Session::begin(&server, 2).await;
    assert_eq!(routes(table, &node(1)), []);
    newer.up(&[node(2)]).await;
    // The older session receives a message unasked, and its own messages have no effect.
    older.send(up(ids(&[node(1)]))).await;
    older.send(down(&[node(2)])).await;
    older.send(drain()).await;
    older.superseded(SessionSupersededReason::NewerIncarnation, 2).await;
    assert_eq!(routes(table, &node(1)), []);
    assert_eq!(routes(table, &node(2)).len(), 1);
    newer.up(&[node(1)]).await;

    let mut late = Session::open(&server).await;
    late.send(Request::Hello(hello(1))).await;
    late.send(up(ids(&[node(3)]))).await;
    late.superseded(SessionSupersededReason::NewerIncarnation, 2).await;
    assert_eq!(routes(table, &node(3)), []);
    newer.up(&[node(3)]).await;
}

#[tokio::test]
async fn a_newer_session_of_the_same_incarnation_takes_over() {
    let (server, _) = server().await;
    let mut older = Session::begin(&server, 1).await;
    let handles = older.up(&[node(1)]).await;
    let mut newer = Session::begin(&server, 1).await;
    newer.acked(down(&[node(1)])).await;
    // A late announcement does not bring the node back.
    older.send(up(ids(&[node(1)]))).await;
    older.superseded(SessionSupersededReason::NewerSession, 1).await;
    assert_eq!(routes(&server.table, &node(1)), []);
    // The end of the older session does not end the newer session's right.
    drop(older);
    assert_eq!(newer.beat(&handles).await, handles);
    newer.up(&[node(1)]).await;
}

#[tokio::test]
async fn a_stale_hello_changes_nothing() {
    let (server, _) = server().await;
    let table = &server.table;
    let mut current = Session::begin(&server, 7).await;
    let handles = current.up(&[node(1)]).await;
    let before = table.proxy(proxy_1(table)).unwrap();
    for incarnation in [1, 6] {
        let mut stale = hello(incarnation);
        stale.proxy.as_mut().unwrap().addr = "elsewhere:1".into();
        stale.proxy.as_mut().unwrap().cluster_name = "other".into();
        let mut late = Session::open(&server).await;
        late.send(Request::Hello(stale)).await;
        late.superseded(SessionSupersededReason::NewerIncarnation, 7).await;
    }
    let proxy = table.find_proxy("proxy-1").unwrap();
    assert_eq!(table.proxy(proxy).unwrap(), before);
    assert_eq!(table.incarnation(proxy), NonZeroU64::new(7));
    // The current session continues undisturbed.
    assert_eq!(current.beat(&handles).await, [0; 0]);
    assert_eq!(routes(table, &node(1)), [proxy]);
}

/// The older session's announcements race with the newer session's hello, on different connections. An announcement
/// that got an answer had an effect, and all others had none.
#[tokio::test]
async fn what_a_superseded_session_got_no_answer_for_was_not_done() {
    let (server, _) = server().await;
    for round in 0..20_u128 {
        let node = move |number: u128| node(round << 64 | number);
        let mut older = Session::begin(&server, 1).await;
        let requests = older.requests.clone();
        // Announces one node after the other, until the server ends the stream.
        let sender = tokio::spawn(async move {
            let mut sent = 0;
            loop {
                let request = v1::SessionRequest {
                    sequence: sent as u64,
                    request: Some(up(ids(&[node(sent)]))),
                };
                if requests.send(request).await.is_err() {
                    return sent;
                }
                sent += 1;
            }
        });
        let mut answered = 0;
        let mut newer = None;
        loop {
            let answer = older.answers.message().await.unwrap().expect("it is superseded first");
            match answer.response.unwrap() {
                Response::Handles(handles) => assert_eq!((answer.sequence, handles.handles.len()), (answered, 8)),
                Response::Superseded(_) => break,
                other => panic!("{other:?}"),
            }
            answered += 1;
            // Another place in each round.
            if answered == 1 + 5 * round as u64 {
                let channel = server.channel().await;
                let begin = async { Session::over(channel).await.welcome(hello(1)).await };
                newer = Some(tokio::spawn(begin));
            }
        }
        let status = older.ended().await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
        newer.expect("it began").await.unwrap();
        drop(older);
        let sent = sender.await.unwrap();
        let done = (0..sent).filter(|number| !routes(&server.table, &node(*number)).is_empty());
        assert_eq!(done.count(), answered as usize, "round {round}, {sent} sent");
    }
}

#[tokio::test]
async fn an_older_incarnation_in_the_table_itself_is_refused_too() {
    let (server, _) = server().await;
    let proxy = Proxy {
        id: "proxy-1",
        cluster_name: "cluster",
        addr: "proxy:1",
    };
    let mut incarnation = 1;
    for request in [
        up(ids(&[node(1)])),
        heartbeat(&[1]),
        heartbeat(&[]),
        down(&[node(1)]),
        drain(),
    ] {
        let mut session = Session::begin(&server, incarnation).await;
        session.up(&[node(1)]).await;
        incarnation += 1;
        // As a snapshot of a later incarnation would.
        let newer = NonZeroU64::new(incarnation).unwrap();
        let newer = server.table.begin_incarnation(&proxy, newer).unwrap().proxy;
        server.table.add_node(&node(1), newer).unwrap();
        session.send(request).await;
        let reason = SessionSupersededReason::NewerIncarnation;
        session.superseded(reason, incarnation).await;
        assert_eq!(routes(&server.table, &node(1)), [newer]);
    }
}

#[tokio::test]
async fn a_drain_takes_the_routes_at_once_and_ends_the_incarnation() {
    let (server, clock) = server().await;
    let table = &server.table;
    let mut session = Session::begin(&server, 5).await;
    session.up(&[node(1), name(1)]).await;
    session.acked(drain()).await;
    session.ended().await.unwrap();
    assert_eq!(routes(table, &node(1)), []);
    assert_eq!(routes(table, &name(1)), []);
    for incarnation in [5, 4] {
        let mut late = Session::open(&server).await;
        late.send(Request::Hello(hello(incarnation))).await;
        late.superseded(SessionSupersededReason::ProxyRemoved, 5).await;
    }
    let mut next = Session::begin(&server, 6).await;
    next.acked(drain()).await;
    pass(&server.table, &clock, INTERVAL);
    let mut late = Session::open(&server).await;
    late.send(Request::Hello(hello(6))).await;
    late.superseded(SessionSupersededReason::ProxyRemoved, 6).await;
    // It is remembered for an interval.
    clock.advance(TICK);
    Session::begin(&server, 1).await;
}

#[tokio::test]
async fn an_operators_removal_takes_the_routes_at_once_and_ends_the_incarnation() {
    let (server, clock) = server().await;
    let table = &server.table;
    let mut admin = AdminServiceClient::new(server.channel().await);
    let mut remove = async || {
        let proxy_id = "proxy-1".into();
        let answer = admin.remove_proxy(v1::RemoveProxyRequest { proxy_id }).await.unwrap();
        answer.into_inner().removed
    };
    let mut session = Session::begin(&server, 5).await;
    let handles = session.up(&[node(1), name(1)]).await;
    assert!(remove().await);
    assert_eq!(routes(table, &node(1)), []);
    assert_eq!(routes(table, &name(1)), []);
    session.send(heartbeat(&handles)).await;
    session.superseded(SessionSupersededReason::ProxyRemoved, 5).await;
    assert_eq!(routes(table, &node(1)), []);

    // The tracker refuses the incarnations, with or without a sweep.
    pass(&server.table, &clock, INTERVAL);
    for _ in 0..3 {
        while !table.sweep(4096).round_completed {}
    }
    for incarnation in [5, 4] {
        let mut late = Session::open(&server).await;
        late.send(Request::Hello(hello(incarnation))).await;
        late.superseded(SessionSupersededReason::ProxyRemoved, 5).await;
    }
    assert!(!remove().await, "it is not there, only remembered");
    // After an interval, the tracker forgets the incarnation.
    clock.advance(TICK);
    Session::begin(&server, 4).await;

    // A greater incarnation need not wait.
    assert!(remove().await);
    let mut greater = Session::begin(&server, 6).await;
    greater.up(&[node(1)]).await;
    assert_eq!(routes(table, &node(1)), [proxy_1(table)]);
}

#[tokio::test]
async fn a_proxy_that_was_removed_is_told() {
    let (server, _) = server().await;
    let table = &server.table;
    let mut incarnation = 0;
    for request in [
        up(ids(&[node(1)])),
        heartbeat(&[1]),
        heartbeat(&[]),
        down(&[node(1)]),
        drain(),
    ] {
        incarnation += 1;
        let mut session = Session::begin(&server, incarnation).await;
        session.up(&[node(1)]).await;
        assert!(table.remove_proxy(proxy_1(table)));
        session.send(request).await;
        let reason = SessionSupersededReason::ProxyRemoved;
        session.superseded(reason, incarnation).await;
        assert_eq!(routes(table, &node(1)), []);
        assert_eq!(table.stats().proxies, 0);
    }
}

#[tokio::test]
async fn a_proxy_that_was_dropped_announces_again() {
    let (server, clock) = server().await;
    let table = &server.table;
    let mut session = Session::begin(&server, 1).await;
    let handles = session.up(&[node(1)]).await;
    for request in [heartbeat(&handles), heartbeat(&[])] {
        drop_idle(table, &clock);
        let answer = session.ask(request).await.unwrap();
        assert_eq!(answer, Response::Resync(v1::SessionResync {}));
        // Once.
        assert_eq!(session.beat(&handles).await, handles);
        assert_eq!(session.beat(&[]).await, [0; 0]);
        assert_eq!(table.incarnation(proxy_1(table)), NonZeroU64::new(1));
    }
    drop_idle(table, &clock);
    let handles = session.up(&[node(1)]).await;
    assert_eq!(session.beat(&handles).await, [0; 0]);
    drop_idle(table, &clock);
    session.acked(down(&[node(1)])).await;
    // A hello finds none of its handles.
    drop_idle(table, &clock);
    let mut next = Session::open(&server).await;
    let generation = next.welcome(again(1, 0)).await.generation;
    drop_idle(table, &clock);
    let mut next = Session::open(&server).await;
    assert!(!next.welcome(again(1, generation)).await.handles_hold);

    drop_idle(table, &clock);
    next.acked(drain()).await;
    next.ended().await.unwrap();
    let mut late = Session::open(&server).await;
    late.send(Request::Hello(hello(1))).await;
    late.superseded(SessionSupersededReason::ProxyRemoved, 1).await;
}

#[tokio::test]
async fn an_empty_heartbeat_keeps_a_proxy_without_routes() {
    let (server, clock) = server().await;
    let mut session = Session::begin(&server, 1).await;
    let proxy = proxy_1(&server.table);
    for _ in 0..10 {
        pass(&server.table, &clock, INTERVAL / 3);
        assert_eq!(session.beat(&[]).await, [0; 0]);
        while !server.table.sweep(4096).round_completed {}
    }
    assert!(server.table.proxy(proxy).is_some());
}

#[tokio::test]
async fn calls_of_the_frozen_contract_speak_for_the_current_incarnation() {
    let (server, _) = server().await;
    let table = &server.table;
    let mut client = server.client().await;
    client.add_node(add("node-1", "proxy-1", "proxy:1")).await.unwrap();
    // The session that begins first takes over the existing routes.
    let mut first = Session::begin(&server, 1).await;
    let proxy = proxy_1(table);
    assert_eq!(routes(table, &name(1)), [proxy]);
    client.add_node(add("node-2", "proxy-1", "proxy:1")).await.unwrap();
    assert_eq!(routes(table, &name(2)), [proxy]);
    first.acked(down(&[name(1)])).await;
    assert_eq!(routes(table, &name(1)), []);
    // The address that was reported last counts, even if the session sends other messages.
    client.add_node(add("node-2", "proxy-1", "proxy:2")).await.unwrap();
    first.acked(heartbeat(&[])).await;
    first.acked(down(&[])).await;
    assert_eq!(table.proxy(proxy).unwrap().addr(), "proxy:2");
    // The next incarnation removes these routes.
    Session::begin(&server, 2).await;
    assert_eq!(routes(table, &name(2)), []);
    client.add_node(add("node-2", "proxy-1", "proxy:1")).await.unwrap();
    assert_eq!(routes(table, &name(2)), [proxy_1(table)]);
    assert_eq!(table.incarnation(proxy_1(table)), NonZeroU64::new(2));
}

#[tokio::test]
async fn calls_of_the_frozen_contract_after_the_end_are_of_no_incarnation() {
    let (server, clock) = server().await;
    let table = &server.table;
    let mut client = server.client().await;
    let mut first = Session::begin(&server, 1).await;
    first.acked(drain()).await;
    client.add_node(add("node-1", "proxy-1", "proxy:1")).await.unwrap();
    let proxy = proxy_1(table);
    assert_eq!((routes(table, &name(1)), table.incarnation(proxy)), (vec![proxy], None));
    // While the older incarnation is remembered, this may be a late call of it: a greater incarnation does not take it
    // over.
    Session::begin(&server, 2).await.acked(drain()).await;
    assert_eq!(routes(table, &name(1)), []);

    client.add_node(add("node-1", "proxy-1", "proxy:1")).await.unwrap();
    pass(&server.table, &clock, INTERVAL);
    client.add_node(add("node-1", "proxy-1", "proxy:1")).await.unwrap();
    clock.advance(TICK);
    Session::begin(&server, 1).await;
    let proxy = proxy_1(table);
    assert_eq!(
        (routes(table, &name(1)), table.incarnation(proxy)),
        (vec![proxy], NonZeroU64::new(1))
    );
}

#[tokio::test]
async fn a_changed_keep_alive_interval_is_told_once() {
    let (server, _) = server().await;
    let mut session = Session::begin(&server, 1).await;
    assert_eq!(session.acked(heartbeat(&[])).await.heartbeat_interval, None);
    server.table.set_keep_alive(2 * INTERVAL);
    let interval = session.acked(heartbeat(&[])).await.heartbeat_interval;
    assert_eq!(interval, Some(Duration::from_secs(40).try_into().unwrap()));
    assert_eq!(session.acked(heartbeat(&[])).await.heartbeat_interval, None);
}

#[tokio::test]
async fn a_proxy_at_its_limit_keeps_its_session() {
    let table = Config::default()
        .with("max_routes_per_proxy", "2")
        .expect("a limit")
        .table()
        .build()
        .expect("possible limits");
    let server = Running::with_table(table).await;
    let mut session = Session::begin(&server, 1).await;
    let (handles, refusal) = session.try_up(&[node(1), node(2), node(3)]).await;
    assert_eq!((handles.len(), refusal), (2, SessionRefusal::TooManyRoutesOfProxy));
    assert_eq!(session.beat(&handles).await, [0; 0]);
    session.acked(down(&[node(1)])).await;
    assert_eq!(session.up(&[node(3)]).await.len(), 1);
}

#[tokio::test]
async fn a_client_at_its_limit_keeps_its_sessions() {
    let builder = RouteTable::builder().max_routes_per_client(3).max_proxies_per_client(2);
    let server = Running::with_table(builder.build().expect("possible limits")).await;
    let mut session = Session::begin(&server, 1).await;
    let (handles, refusal) = session.try_up(&[node(1), node(2), node(3), node(4)]).await;
    assert_eq!((handles.len(), refusal), (3, SessionRefusal::TooManyRoutesOfClient));
    assert_eq!(session.beat(&handles).await, [0; 0]);
    let stats = server.stats().await;
    assert_eq!(crate::support::refused(&stats, "client_routes"), 1);
}

#[tokio::test]
async fn a_full_table_takes_what_it_can() {
    let table = RouteTable::builder()
        .max_routes(3)
        .max_proxies(1)
        .build()
        .expect("possible limits");
    let server = Running::with_table(table).await;
    let mut session = Session::begin(&server, 1).await;
    let all = [node(1), node(2), node(3), name(1), name(2)];
    let (handles, refusal) = session.try_up(&all).await;
    assert_eq!((handles.len(), refusal), (3, SessionRefusal::TooManyRoutes));
    // The session continues.
    assert_eq!(session.beat(&handles).await, [0; 0]);
    session.acked(down(&[node(2)])).await;
    let (more, refusal) = session.try_up(&all[3..]).await;
    assert_eq!((more.len(), refusal), (1, SessionRefusal::TooManyRoutes));

    let mut other = Session::open(&server).await;
    let mut hello = hello(1);
    hello.proxy.as_mut().unwrap().proxy_id = "proxy-2".into();
    let status = other.ask(Request::Hello(hello)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(
        status.message(),
        "the table has no room for another proxy: it holds up to 1, and removed proxies until they are swept"
    );
}

#[tokio::test]
async fn what_is_wrong_is_told_by_its_field_and_changes_nothing() {
    let (server, _) = server().await;
    let mut kept = Session::begin(&server, 1).await;
    kept.up(&[node(1)]).await;
    let other = |change: &dyn Fn(&mut v1::SessionHello)| {
        let mut hello = hello(9);
        hello.proxy.as_mut().unwrap().proxy_id = "proxy-2".into();
        change(&mut hello);
        Request::Hello(hello)
    };
    let with_proxy = |change: &dyn Fn(&mut v1::Proxy)| other(&|hello| change(hello.proxy.as_mut().unwrap()));
    let long = "x".repeat(256);
    let good = || other(&|_| ());
    let node_ids = |uuids: usize, names: &[&str]| v1::NodeIds {
        uuids: vec![7; uuids],
        names: names.iter().map(ToString::to_string).collect(),
    };
    let nodes_down = |nodes| Request::NodesDown(v1::SessionNodesDown { nodes: Some(nodes) });
    let heartbeat_of = |bytes: usize| {
        Request::Heartbeat(v1::SessionHeartbeat {
            handles: vec![7; bytes].into(),
        })
    };
    let one_too_many = 16 * limits::MAX_SESSION_NODES;
    for (requests, message) in [
        (vec![Some(up(node_ids(16, &[])))], "nodes_up came before hello"),
        (vec![Some(heartbeat(&[]))], "heartbeat came before hello"),
        (vec![Some(down(&[node(1)]))], "nodes_down came before hello"),
        (vec![Some(drain())], "drain came before hello"),
        (vec![None], "request is missing"),
        (vec![Some(good()), Some(good())], "hello came a second time"),
        (vec![Some(good()), None], "request is missing"),
        (vec![Some(other(&|hello| hello.proxy = None))], "hello.proxy is missing"),
        (
            vec![Some(other(&|hello| hello.incarnation = 0))],
            "hello.incarnation is 0",
        ),
        (
            vec![Some(other(&|hello| hello.incarnation = u64::MAX))],
            "hello.incarnation is 18446744073709551615, the limit is 9223372036854775807",
        ),
        (
            vec![Some(with_proxy(&|proxy| proxy.proxy_id.clear()))],
            "hello.proxy.proxy_id is empty",
        ),
        (
            vec![Some(with_proxy(&|proxy| proxy.cluster_name = long.clone()))],
            "hello.proxy.cluster_name is 256 bytes long, the limit is 255",
        ),
        (
            vec![Some(with_proxy(&|proxy| proxy.addr = "proxy".into()))],
            "hello.proxy.addr is not host:port",
        ),
        (
            vec![Some(good()), Some(up(node_ids(33, &[])))],
            "nodes_up.nodes.uuids is 33 bytes long, which is no multiple of 16",
        ),
        (
            vec![Some(good()), Some(up(node_ids(32, &["node-1", "node-2", ""])))],
            "nodes_up.nodes.names[2] is empty",
        ),
        (
            vec![Some(good()), Some(up(node_ids(one_too_many, &["node-1"])))],
            "nodes_up.nodes has 513 nodes, the limit is 512",
        ),
        (
            vec![Some(good()), Some(nodes_down(node_ids(15, &[])))],
            "nodes_down.nodes.uuids is 15 bytes long, which is no multiple of 16",
        ),
        (
            vec![Some(good()), Some(nodes_down(node_ids(0, &["a\nb"])))],
            "nodes_down.nodes.names[0] has the control character '\\n' at byte 1",
        ),
        (
            vec![Some(good()), Some(heartbeat_of(31))],
            "heartbeat.handles is 31 bytes long, which is no multiple of 8",
        ),
        (
            vec![Some(good()), Some(heartbeat_of(8 * limits::MAX_SESSION_HANDLES + 8))],
            "heartbeat.handles has 4097 handles, the limit is 4096",
        ),
    ] {
        let mut session = Session::open(&server).await;
        let (last, before) = requests.split_last().unwrap();
        for request in before {
            session.ask(request.clone()).await.unwrap();
        }
        let status = session.ask(last.clone()).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, message));
        assert_eq!(server.table.len(), 1, "{message}");
    }
    // As much as is allowed.
    let all: Vec<_> = (0..limits::MAX_SESSION_NODES as u128).map(node).collect();
    let handles = kept.up(&all).await;
    let most = handles.repeat(limits::MAX_SESSION_HANDLES / limits::MAX_SESSION_NODES);
    assert_eq!(most.len(), limits::MAX_SESSION_HANDLES);
    assert_eq!(kept.beat(&most).await, [0; 0]);
    // An empty message is no mistake.
    assert_eq!(kept.up(&[]).await, [0; 0]);
    kept.acked(down(&[])).await;

    let mut session = Session::begin(&server, 1).await;
    let too_long = heartbeat_of(limits::MAX_MESSAGE_SIZE);
    let status = session.ask(too_long).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    let stats = server.table.stats();
    // Of the sessions that said a good hello, one proxy.
    assert_eq!((stats.routes, stats.proxies), (limits::MAX_SESSION_NODES, 2));
}

#[tokio::test]
async fn silent_clients_are_hung_up_on_and_keep_their_routes() {
    let (clock, limits) = (
        ManualClock::new(),
        Limits {
            call: SOON,
            ..Limits::default()
        },
    );
    let table = RouteTable::builder()
        .keep_alive(SOON)
        .clock(clock)
        .build()
        .expect("possible limits");
    let server = Running::with(table, limits).await;
    let mut mute = Session::open(&server).await;
    let status = mute.ended().await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(status.message(), "no message came for 500ms");

    let mut idle = Session::begin(&server, 1).await;
    idle.up(&[node(1)]).await;
    let status = idle.ended().await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(routes(&server.table, &node(1)).len(), 1);
}

#[tokio::test]
async fn a_server_that_stops_tells_its_sessions() {
    let (server, _) = server().await;
    let mut session = Session::begin(&server, 1).await;
    session.up(&[node(1)]).await;
    let table = std::sync::Arc::clone(&server.table);
    let stopped = tokio::spawn(server.stop());
    session.told_to_go().await;
    assert_eq!(session.ended().await.unwrap_err().code(), Code::Unavailable);
    drop(session);
    assert_eq!(stopped.await.unwrap(), Drained::Completely);
    assert_eq!(routes(&table, &node(1)).len(), 1);
}

#[tokio::test]
async fn a_session_ends_with_its_old_connection() {
    let limits = Limits {
        handshake: SOON,
        max_connection_age: 2 * SOON,
        ..Limits::default()
    };
    let server = Running::with(RouteTable::new(), limits).await;
    let mut session = Session::open(&server).await;
    let generation = session.welcome(hello(1)).await.generation;
    let handles = session.up(&[node(1)]).await;
    assert_eq!(session.ended().await.unwrap_err().code(), Code::Unavailable);
    let mut next = Session::open(&server).await;
    assert!(next.welcome(again(1, generation)).await.handles_hold);
    assert_eq!(next.beat(&handles).await, [0; 0]);
}

#[tokio::test]
async fn a_session_with_nothing_to_say_sends_keep_alives() {
    let limits = Limits {
        stream_keep_alive: SOON / 10,
        ..Limits::default()
    };
    let server = Running::with(RouteTable::new(), limits).await;
    let mut session = Session::begin(&server, 1).await;
    for _ in 0..3 {
        let answer = session.answers.message().await.unwrap().expect("a keep-alive");
        let keep_alive = Response::KeepAlive(v1::SessionKeepAlive {});
        assert_eq!((answer.sequence, answer.response), (0, Some(keep_alive)));
    }
}

/// A session whose client sends heartbeats for as long as the server reads them, and reads nothing.
struct Stalled {
    raw: Raw,
    requests: SendStream<Bytes>,
    answers: RecvStream,
    beats: usize,
}

impl Stalled {
    async fn begin(server: &Running) -> Self {
        let mut raw = Raw::connect(server.addr).await;
        let (response, mut requests) = raw.open(PATH).await;
        requests.send_data(encoded(Request::Hello(hello(1))), false).unwrap();
        let answers = response.await.unwrap().into_body();
        // Unknown handles come back, so answers are as long as requests.
        let beat = encoded(heartbeat(&[7; 1000]));
        let mut beats = 0;
        let mut refused = 0;
        // Windows and buffers on both sides take some hundred KiB; what is more than that would be the server's memory.
        while refused < 20 {
            requests.reserve_capacity(beat.len());
            raw.settle().await;
            if requests.capacity() < beat.len() {
                refused += 1;
                continue;
            }
            refused = 0;
            requests.send_data(beat.clone(), false).unwrap();
            beats += 1;
            assert!(beats * beat.len() < 1 << 20, "the server reads on and on");
        }
        Self {
            raw,
            requests,
            answers,
            beats,
        }
    }

    /// Reads everything; returns how many bytes there were, and the status.
    async fn read(&mut self) -> (usize, i32) {
        let mut bytes = 0;
        while let Some(data) = self.answers.data().await {
            let data = data.unwrap();
            bytes += data.len();
            self.answers.flow_control().release_capacity(data.len()).unwrap();
        }
        let status = self.answers.trailers().await.unwrap().unwrap();
        (bytes, status["grpc-status"].to_str().unwrap().parse().unwrap())
    }
}

/// Answers wait for a client that does not read, and its requests wait for the answers.
#[tokio::test]
async fn a_client_that_does_not_read_holds_up_itself() {
    let (server, _) = server().await;
    let mut stalled = Stalled::begin(&server).await;
    server.assert_serves().await;
    // No answer is lost: the session continues when the client reads.
    stalled.requests.send_data(Bytes::new(), true).unwrap();
    let (bytes, status) = stalled.read().await;
    let beats = stalled.beats;
    assert!(bytes > beats * 8000, "{bytes} bytes of answers to {beats} heartbeats");
    assert_eq!(status, Code::Ok as i32);
    server.assert_serves().await;
}

#[tokio::test]
async fn a_newer_session_does_not_wait_for_one_that_does_not_read() {
    let (server, _) = server().await;
    let mut stalled = Stalled::begin(&server).await;
    let mut newer = Session::begin(&server, 1).await;
    let handles = newer.up(&[node(1)]).await;
    assert_eq!(newer.beat(&handles).await, [0; 0]);
    // When the client reads at last, it gets the earlier answers and the reason. The waiting requests were not
    // executed.
    let (bytes, status) = stalled.read().await;
    assert!(bytes > 8000 && bytes < stalled.beats * 8000, "{bytes} bytes");
    assert_eq!(status, Code::FailedPrecondition as i32);
    drop(stalled.raw);
    assert_eq!(newer.beat(&handles).await, [0; 0]);
}

/// Sessions of as many proxies, over a few connections, all of them silent when the server stops.
#[tokio::test]
async fn a_thousand_sessions_end_with_the_server() {
    let (server, _) = server().await;
    let mut sessions = Vec::new();
    for connection in 0..4 {
        let channel = server.channel().await;
        for number in 0..250 {
            let mut session = Session::over(channel.clone()).await;
            let mut hello = hello(1);
            hello.proxy.as_mut().unwrap().proxy_id = format!("proxy-{connection}-{number}");
            session.welcome(hello).await;
            session.up(&[node(connection << 32 | number)]).await;
            sessions.push(session);
        }
    }
    let table = std::sync::Arc::clone(&server.table);
    assert_eq!((table.stats().proxies, table.len()), (1000, 1000));
    let stopped = tokio::spawn(server.stop());
    for mut session in sessions {
        session.told_to_go().await;
        assert_eq!(session.ended().await.unwrap_err().code(), Code::Unavailable);
    }
    assert_eq!(stopped.await.unwrap(), Drained::Completely);
    assert_eq!(table.len(), 1000, "that is no drain");
}
