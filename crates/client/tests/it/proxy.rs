//! Proxies that reach nodes: their own, and those of their peers.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nodetracker::{ManualClock, RouteTable};
use nodetracker_client::cache::{CacheConfig, RouteCache};
use nodetracker_client::listener::ListenerConfig;
use nodetracker_client::pool::{AgentPool, PoolConfig, Target};
use nodetracker_client::proxy::{
    AttemptError, DialError, Dialer, DialerConfig, PeerServer, PeerServerConfig, RefusalReason, Via,
};
use nodetracker_client::tracker::{NodeTracker, Route, TrackerError};
use nodetracker_client::transport::mux::MuxTunnel;
use nodetracker_client::transport::{Transport, Tunnel, TunnelStream};
use nodetracker_client::{NodeId, Proxy as ProxyText};
use nodetracker_proto::peer::v1::{Dial, PeerRequest, PeerResponse, Ping, peer_request, peer_response};
use prost::Message;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

use crate::fleet::{HalfOpen, InMemory, NodeEvent, PATIENCE, Proxy, echo, info, serve_echo};
use crate::support::eventually;

/// The address of a proxy that does not answer.
const SILENT: &str = "silent:1";

/// Proxies of this process, at addresses `ID:1`.
#[derive(Clone, Default)]
struct Peers(Arc<Mutex<PeersState>>);

#[derive(Default)]
struct PeersState {
    servers: HashMap<String, PeerServer>,
    connects: Arc<AtomicUsize>,
    is_silent: Arc<AtomicBool>,
    /// Whether the next attempt to connect panics.
    panics: bool,
    /// The tasks of the servers' tunnels.
    tunnels: Vec<AbortHandle>,
}

impl Peers {
    fn connects(&self) -> usize {
        self.0.lock().unwrap().connects.load(Ordering::Relaxed)
    }

    /// Opens a tunnel to a peer.
    fn tunnel(&self, addr: &str) -> io::Result<MuxTunnel> {
        let mut state = self.0.lock().unwrap();
        state.connects.fetch_add(1, Ordering::Relaxed);
        let server = state.servers.get(addr).ok_or(io::ErrorKind::ConnectionRefused)?.clone();
        let [ours, theirs] = HalfOpen::pair(&state.is_silent);
        let tunnel = tokio::spawn(async move {
            server
                .serve_tunnel(Arc::new(MuxTunnel::server(theirs, Vec::new())))
                .await
        });
        state.tunnels.push(tunnel.abort_handle());
        Ok(MuxTunnel::client(ours, Vec::new()))
    }
}

#[async_trait::async_trait]
impl Transport for Peers {
    async fn connect(&self, addr: &str) -> io::Result<Arc<dyn Tunnel>> {
        if addr == SILENT {
            return std::future::pending().await;
        }
        let panics = std::mem::take(&mut self.0.lock().unwrap().panics);
        assert!(!panics, "this attempt panics");
        Ok(Arc::new(self.tunnel(addr)?))
    }
}

/// A table that notes the complaints.
struct Tracker {
    table: RouteTable,
    clock: ManualClock,
    complaints: Mutex<Vec<String>>,
    look_ups: AtomicUsize,
    /// How many complaints there were at each look-up.
    complaints_at_look_ups: Mutex<Vec<usize>>,
    /// The proxy to which the node moves after the next look-up.
    moves_to: Mutex<Option<String>>,
    is_down: AtomicBool,
}

impl Tracker {
    fn new() -> Arc<Self> {
        let clock = ManualClock::new();
        let table = RouteTable::builder().clock(clock.clone()).build().unwrap();
        Arc::new(Self {
            table,
            clock,
            complaints: Mutex::default(),
            look_ups: AtomicUsize::new(0),
            complaints_at_look_ups: Mutex::default(),
            moves_to: Mutex::default(),
            is_down: AtomicBool::new(false),
        })
    }

    /// Adds a route that is fresher than all others.
    fn add(&self, id: &str) {
        self.clock.advance(Duration::from_secs(1));
        let addr = format!("{id}:1");
        let proxy = ProxyText {
            id,
            cluster_name: "main",
            addr: &addr,
        };
        self.table.report_node(&node(), &proxy).unwrap();
    }
}

#[async_trait::async_trait]
impl NodeTracker for Tracker {
    async fn add_nodes(&self, _: &ProxyText<'_>, _: &[NodeId]) -> Result<(), TrackerError> {
        unreachable!("a dialer only reads")
    }

    async fn get_proxies(&self, node: &NodeId) -> Result<Vec<Route>, TrackerError> {
        self.look_ups.fetch_add(1, Ordering::Relaxed);
        let complaints = self.complaints.lock().unwrap().len();
        self.complaints_at_look_ups.lock().unwrap().push(complaints);
        if self.is_down.load(Ordering::Relaxed) {
            return Err(TrackerError::Unavailable("down".into()));
        }
        let table: &dyn NodeTracker = &self.table;
        let routes = table.get_proxies(node).await;
        let moves_to = self.moves_to.lock().unwrap().take();
        moves_to.iter().for_each(|id| self.add(id));
        routes
    }

    async fn remove_nodes(&self, _: &str, _: &[NodeId]) -> Result<(), TrackerError> {
        unreachable!("a dialer only reads")
    }

    async fn remove_proxy(&self, _: &str) -> Result<(), TrackerError> {
        unreachable!("a dialer only reads")
    }

    async fn report_unreachable(&self, _: &NodeId, proxy_id: &str) -> Result<(), TrackerError> {
        self.complaints.lock().unwrap().push(proxy_id.to_owned());
        Ok(())
    }
}

fn node() -> NodeId {
    "node-1".parse().unwrap()
}

/// Proxies that know each other and one tracker. Some hold `node-1`.
struct Fleet {
    peers: Peers,
    tracker: Arc<Tracker>,
    proxies: HashMap<&'static str, (Proxy, Dialer)>,
}

impl Fleet {
    async fn new(ids: &[&'static str], holders: &[&str]) -> Self {
        let (peers, tracker) = (Peers::default(), Tracker::new());
        let mut proxies = HashMap::new();
        for &id in ids {
            let mut proxy = Proxy::new(ListenerConfig::new(info(id)));
            let agents = proxy.listener.clone();
            let server = PeerServer::new(PeerServerConfig::new(id), agents.clone());
            peers.0.lock().unwrap().servers.insert(format!("{id}:1"), server);
            let dialer = Dialer::new(DialerConfig::new(id), agents, Arc::clone(&tracker) as _, peers.clone());
            if holders.contains(&id) {
                let pool = AgentPool::start(PoolConfig::new(node()), InMemory::new([proxy.listener.clone()]));
                serve_echo(pool).add_target(Target::new("main", "any:1"));
                assert_eq!(proxy.event().await, NodeEvent::Connected("node-1".into()));
            }
            proxies.insert(id, (proxy, dialer));
        }
        Self {
            peers,
            tracker,
            proxies,
        }
    }

    fn dialer(&self, id: &str) -> &Dialer {
        &self.proxies[id].1
    }

    fn server(&self, id: &str) -> PeerServer {
        self.peers.0.lock().unwrap().servers[&format!("{id}:1")].clone()
    }

    /// Dials `node-1` through a proxy, passes a byte in both directions, and returns the ID of the proxy that holds the
    /// node.
    async fn dial(&self, id: &str) -> Result<String, DialError> {
        let mut dialed = self.dialer(id).dial(&node()).await?;
        echo(&mut dialed.stream).await.unwrap();
        Ok(match dialed.via {
            Via::Local => id.to_owned(),
            Via::Peer(proxy) => proxy.id().to_owned(),
        })
    }

    /// Waits for complaints, which dials send without waiting for them.
    async fn complaints(&self, expected: &[&str]) {
        eventually("the complaints come", async || {
            *self.tracker.complaints.lock().unwrap() == expected
        })
        .await;
    }
}

#[tokio::test]
async fn a_node_is_reached_through_every_proxy() {
    let fleet = Fleet::new(&["a", "b"], &["b"]).await;
    fleet.tracker.add("b");
    // Case 2: the proxy has the tunnel, and asks no tracker.
    assert_eq!(fleet.dial("b").await.unwrap(), "b");
    assert_eq!(fleet.tracker.look_ups.load(Ordering::Relaxed), 0);
    // Case 1, over one tunnel between the proxies.
    for _ in 0..3 {
        assert_eq!(fleet.dial("a").await.unwrap(), "b");
    }
    assert_eq!(fleet.peers.connects(), 1);
    let stats = fleet.dialer("a").stats();
    assert_eq!(
        (stats.local, stats.through_peers, stats.failed, stats.peers),
        (0, 3, 0, 1)
    );
    assert_eq!(fleet.server("b").stats().dialed, 3);
}

#[tokio::test]
async fn dials_at_the_same_moment_share_one_tunnel() {
    let fleet = Fleet::new(&["a", "b"], &["b"]).await;
    fleet.tracker.add("b");
    let dials = (0..50).map(|_| fleet.dial("a"));
    for dialed in futures_util::future::join_all(dials).await {
        assert_eq!(dialed.unwrap(), "b");
    }
    assert_eq!(fleet.peers.connects(), 1);
}

#[tokio::test]
async fn the_freshest_route_is_first_and_the_next_follows_if_it_fails() {
    let fleet = Fleet::new(&["a", "b", "c", "d"], &["b", "c"]).await;
    fleet.tracker.add("b");
    fleet.tracker.add("c");
    assert_eq!(fleet.dial("a").await.unwrap(), "c");
    // Nothing listens at the freshest route, and the next proxy does not hold the node.
    fleet.tracker.add("d");
    fleet.tracker.add("gone");
    assert_eq!(fleet.dial("a").await.unwrap(), "c");
    // A peer that cannot be reached is no reason for a complaint.
    fleet.complaints(&["d"]).await;
    assert_eq!(fleet.dialer("a").stats().failed_attempts, 2);
}

#[tokio::test]
async fn an_answer_that_is_out_of_date_is_asked_for_again() {
    let fleet = Fleet::new(&["a", "b", "c"], &["c"]).await;
    fleet.tracker.add("b");
    *fleet.tracker.moves_to.lock().unwrap() = Some("c".into());
    assert_eq!(fleet.dial("a").await.unwrap(), "c");
    fleet.complaints(&["b"]).await;
    assert_eq!(fleet.tracker.look_ups.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_complaint_comes_before_the_next_look_up() {
    let fleet = Fleet::new(&["a", "b"], &[]).await;
    fleet.tracker.add("b");
    fleet.dial("a").await.unwrap_err();
    assert_eq!(*fleet.tracker.complaints_at_look_ups.lock().unwrap(), [0, 1]);
}

#[tokio::test]
async fn a_node_that_has_just_left_this_proxy_is_reached_through_its_next_proxy() {
    let fleet = Fleet::new(&["a", "b"], &["b"]).await;
    fleet.tracker.add("a");
    let cache = RouteCache::new(Arc::clone(&fleet.tracker) as _, CacheConfig::default());
    assert_eq!(cache.get_proxies(&node()).await.unwrap().len(), 1);
    fleet.tracker.add("b");
    let agents = fleet.proxies["a"].0.listener.clone();
    let dialer = Dialer::new(DialerConfig::new("a"), agents, Arc::new(cache), fleet.peers.clone());
    let dialed = dialer.dial(&node()).await.unwrap();
    assert!(matches!(dialed.via, Via::Peer(proxy) if proxy.id() == "b"));
}

#[tokio::test]
async fn an_attempt_is_left_for_the_latest_routes() {
    let fleet = Fleet::new(&["a", "b"], &["b"]).await;
    for id in ["c", "d", "e", "f"] {
        fleet.tracker.add(id);
    }
    *fleet.tracker.moves_to.lock().unwrap() = Some("b".into());
    assert_eq!(fleet.dial("a").await.unwrap(), "b");
}

#[tokio::test]
async fn a_transport_that_panics_fails_one_dial() {
    let fleet = Fleet::new(&["a", "b"], &["b"]).await;
    fleet.tracker.add("b");
    fleet.peers.0.lock().unwrap().panics = true;
    let error = fleet.dial("a").await.unwrap_err();
    assert!(error.to_string().contains("this attempt panics"), "{error}");
    assert_eq!(fleet.dial("a").await.unwrap(), "b");
}

#[tokio::test(start_paused = true)]
async fn a_proxy_that_does_not_answer_is_tried_last_for_a_while() {
    let fleet = Fleet::new(&["a", "b"], &["b"]).await;
    fleet.tracker.add("b");
    fleet.tracker.add("silent");
    for (seconds, wait) in [(5, 0), (0, 60), (5, 0)] {
        let begun = Instant::now();
        assert_eq!(fleet.dial("a").await.unwrap(), "b");
        assert_eq!(begun.elapsed().as_secs(), seconds);
        tokio::time::sleep(Duration::from_secs(wait)).await;
    }
}

#[tokio::test]
async fn an_error_names_every_proxy_that_was_tried() {
    let fleet = Fleet::new(&["a", "b"], &[]).await;
    let unknown = fleet.dial("a").await.unwrap_err();
    assert!(matches!(unknown, DialError::Unknown(_)), "{unknown}");
    // Its own route means nothing to a proxy.
    fleet.tracker.add("a");
    let own = fleet.dial("a").await.unwrap_err();
    assert!(matches!(own, DialError::Unknown(_)), "{own}");
    assert_eq!(fleet.peers.connects(), 0);

    fleet.tracker.add("gone");
    fleet.tracker.add("b");
    let error = fleet.dial("a").await.unwrap_err();
    let DialError::Unreachable { attempts, .. } = &error else {
        panic!("{error}")
    };
    assert!(matches!(
        attempts[0].1,
        AttemptError::Refused {
            reason: RefusalReason::NoTunnel,
            ..
        }
    ));
    assert_eq!(
        error.to_string(),
        "node node-1 cannot be reached: b at b:1: refused: NoTunnel \"node node-1 has no tunnel to this proxy\"; \
         gone at gone:1: connection refused"
    );

    fleet.tracker.is_down.store(true, Ordering::Relaxed);
    let error = fleet.dial("a").await.unwrap_err();
    assert!(matches!(error, DialError::Tracker { .. }), "{error}");
}

#[tokio::test]
async fn a_dial_tries_a_bounded_number_of_proxies() {
    let fleet = Fleet::new(&["a"], &[]).await;
    for id in ["b", "c", "d", "e", "f", "g"] {
        fleet.tracker.add(id);
    }
    let error = fleet.dial("a").await.unwrap_err();
    let DialError::Unreachable { attempts, .. } = &error else {
        panic!("{error}")
    };
    let tried: Vec<_> = attempts.iter().map(|(proxy, _)| proxy.id()).collect();
    assert_eq!(tried, ["g", "f", "e", "d"]);
}

/// Sends a request as it is, and returns the bytes of the answer.
async fn raw(stream: &mut TunnelStream, request: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(request).await?;
    stream.flush().await?;
    let answer = async {
        let len = stream.read_u32().await?;
        let mut answer = vec![0; len as usize];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    };
    timeout(PATIENCE, answer).await?
}

/// A message, preceded by its length.
fn framed(message: &impl Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    [&u32::try_from(message.len()).unwrap().to_be_bytes()[..], &message].concat()
}

fn dial_request(origin: &str, hop_count: u32, node: Option<&str>) -> PeerRequest {
    let id = node.map(|name| nodetracker_proto::v1::node_id::Id::Name(name.into()));
    let dial = Dial {
        node: Some(nodetracker_proto::v1::NodeId { id }),
        origin_proxy_id: origin.into(),
        hop_count,
    };
    PeerRequest {
        request: Some(peer_request::Request::Dial(dial)),
    }
}

fn is_dialed(answer: &[u8]) -> bool {
    matches!(
        PeerResponse::decode(answer).unwrap().response,
        Some(peer_response::Response::Dialed(_))
    )
}

fn refusal(answer: &[u8]) -> RefusalReason {
    match PeerResponse::decode(answer).unwrap().response {
        Some(peer_response::Response::Refused(refused)) => refused.reason(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn bad_requests_are_refused_and_disturb_no_other_stream() {
    let fleet = Fleet::new(&["b"], &["b"]).await;
    let tunnel = fleet.peers.tunnel("b:1").unwrap();
    let mut good = tunnel.open().await.unwrap();
    let request = dial_request("a", 0, Some("node-1"));
    let answer = raw(&mut good, &framed(&request)).await.unwrap();
    assert!(is_dialed(&answer));

    for (request, reason) in [
        (dial_request("a", 1, Some("node-1")), RefusalReason::Loop),
        (dial_request("b", 0, Some("node-1")), RefusalReason::Loop),
        (dial_request("a", 0, Some("node-2")), RefusalReason::NoTunnel),
        (dial_request("a", 0, Some("")), RefusalReason::Invalid),
        (dial_request("a", 0, None), RefusalReason::Invalid),
        (PeerRequest { request: None }, RefusalReason::Invalid),
    ] {
        let mut stream = tunnel.open().await.unwrap();
        let answer = raw(&mut stream, &framed(&request)).await.unwrap();
        assert_eq!(refusal(&answer), reason);
        let end = timeout(PATIENCE, stream.read(&mut [0])).await;
        assert_eq!(end.unwrap().unwrap(), 0, "the stream ends");
    }
    // Too long, and no message at all.
    for bytes in [5000_u32.to_be_bytes().to_vec(), vec![0, 0, 0, 2, 0xff, 0xff]] {
        let mut stream = tunnel.open().await.unwrap();
        assert!(raw(&mut stream, &bytes).await.is_err());
    }
    echo(&mut good).await.unwrap();
    assert_eq!(fleet.server("b").stats().refused, 6);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_gone_without_a_word_is_noticed() {
    let fleet = Fleet::new(&["a", "b"], &["b"]).await;
    fleet.tracker.add("b");
    let mut dialed = fleet.dialer("a").dial(&node()).await.unwrap();
    echo(&mut dialed.stream).await.unwrap();
    let begun = Instant::now();
    fleet.peers.0.lock().unwrap().is_silent.store(true, Ordering::Relaxed);
    dialed.stream.read(&mut [0]).await.expect_err("this is no regular end");
    // A ping interval, and the time for two answers.
    assert!(begun.elapsed() <= Duration::from_secs(21), "{:?}", begun.elapsed());
    // The next dial connects again.
    fleet.peers.0.lock().unwrap().is_silent = Arc::default();
    assert_eq!(fleet.dial("a").await.unwrap(), "b");
    assert_eq!(fleet.peers.connects(), 2);
    // The server has noticed too, and holds only the new tunnel.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(fleet.server("b").stats().peers, 1);
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_gives_up_leaves_no_tunnel_that_cannot_be_forgotten() {
    let fleet = Fleet::new(&["a", "b"], &["b"]).await;
    fleet.tracker.add("b");
    // The dial ends while it waits for the tunnel.
    let node = node();
    let dial = fleet.dialer("a").dial(&node);
    assert!(tokio::time::timeout(Duration::ZERO, dial).await.is_err());
    eventually("the dial's attempt begins", async || fleet.peers.connects() > 0).await;
    fleet.peers.0.lock().unwrap().is_silent.store(true, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(fleet.dialer("a").stats().peers, 0);
}

#[tokio::test]
async fn a_peer_has_more_tunnels_if_one_is_full() {
    let fleet = Fleet::new(&["a", "b"], &["b"]).await;
    fleet.tracker.add("b");
    // The agent's tunnel is shared by all, so the peer refuses the dials that this tunnel has no stream for.
    let mut dialed = Vec::new();
    for _ in 0..254 {
        dialed.push(fleet.dialer("a").dial(&node()).await.expect("there is a stream"));
    }
    assert_eq!(fleet.peers.connects(), 2);
    drop(dialed);
}

#[tokio::test]
async fn a_reset_is_no_regular_end() {
    let fleet = Fleet::new(&["a", "b"], &["b"]).await;
    fleet.tracker.add("b");
    let mut dialed = fleet.dialer("a").dial(&node()).await.unwrap();
    echo(&mut dialed.stream).await.unwrap();
    // The node's pool is dropped with its tunnels.
    fleet.proxies["b"].0.listener.close(Duration::ZERO).await;
    let read = timeout(PATIENCE, dialed.stream.read(&mut [0])).await.unwrap();
    read.expect_err("the node did not end its direction");

    let mut ended = fleet.peers.tunnel("b:1").unwrap().open().await.unwrap();
    let read = timeout(PATIENCE, ended.read(&mut [0])).await.unwrap();
    read.expect_err("the tunnel is dropped");
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_nobody_uses_is_closed() {
    let fleet = Fleet::new(&["a", "b"], &["b"]).await;
    fleet.tracker.add("b");
    let dialed = fleet.dialer("a").dial(&node()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(fleet.dialer("a").stats().peers, 1, "a stream is open");
    drop(dialed);
    tokio::time::sleep(Duration::from_secs(330)).await;
    assert_eq!(fleet.dialer("a").stats().peers, 0);
    assert_eq!(fleet.server("b").stats().peers, 0);
    assert_eq!(fleet.dial("a").await.unwrap(), "b");
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_of_a_dialer_that_is_gone_lasts_as_long_as_its_streams() {
    let mut fleet = Fleet::new(&["a", "b"], &["b"]).await;
    fleet.tracker.add("b");
    let mut dialed = fleet.dialer("a").dial(&node()).await.unwrap();
    fleet.proxies.remove("a");
    tokio::time::sleep(Duration::from_secs(60)).await;
    echo(&mut dialed.stream).await.unwrap();
    drop(dialed);
    // Two pings.
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(fleet.server("b").stats().peers, 0);
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_for_short_dials_is_not_idle() {
    let fleet = Fleet::new(&["a", "b"], &["b"]).await;
    fleet.tracker.add("b");
    for _ in 0..700 {
        assert_eq!(fleet.dial("a").await.unwrap(), "b");
        // In no step with the pings.
        tokio::time::sleep(Duration::from_millis(1030)).await;
    }
    assert_eq!(fleet.peers.connects(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_full_tunnel_lives_also_if_all_dials_had_to_connect_again() {
    let fleet = Fleet::new(&["a", "b"], &["b"]).await;
    fleet.tracker.add("b");
    // The node needs more streams than one of its tunnels has.
    let agents = &fleet.proxies["b"].0.listener;
    let pool = AgentPool::start(PoolConfig::new(node()), InMemory::new([agents.clone()]));
    serve_echo(pool).add_target(Target::new("main", "any:1"));
    eventually("the second tunnel is claimed", async || agents.stats().claimed == 2).await;
    assert_eq!(fleet.dial("a").await.unwrap(), "b");
    let tunnels = std::mem::take(&mut fleet.peers.0.lock().unwrap().tunnels);
    tunnels.iter().for_each(AbortHandle::abort);

    // All dials wait for a stream of the tunnel that ends. Few have a stream, and fail.
    let node = node();
    let dials = (0..300).map(|_| fleet.dialer("a").dial(&node));
    let dialed = futures_util::future::join_all(dials).await.into_iter();
    let mut dialed: Vec<_> = dialed.flatten().collect();
    assert!(dialed.len() > 255, "{} dials", dialed.len());
    tokio::time::sleep(Duration::from_secs(60)).await;
    for dialed in &mut dialed {
        echo(&mut dialed.stream).await.unwrap();
    }
}

/// A server of `b` that serves only the proxy `a`, and a tunnel to it.
fn strict_server(fleet: &Fleet) -> MuxTunnel {
    let only_a = |id: &str, _: &[CertificateDer<'static>]| match id {
        "a" => Ok(()),
        other => Err(format!("{other} is not a")),
    };
    let agents = fleet.proxies["b"].0.listener.clone();
    let config = PeerServerConfig {
        silence_timeout: Duration::from_secs(3600),
        ..PeerServerConfig::new("b")
    };
    let server = PeerServer::with_verify(config, agents, Box::new(only_a));
    fleet.peers.0.lock().unwrap().servers.insert("b:1".into(), server);
    fleet.peers.tunnel("b:1").unwrap()
}

#[tokio::test]
async fn a_peer_with_another_id_than_its_certificate_allows_loses_its_tunnel() {
    let fleet = Fleet::new(&["b"], &["b"]).await;
    let tunnel = strict_server(&fleet);
    let mut good = tunnel.open().await.unwrap();
    let answer = raw(&mut good, &framed(&dial_request("a", 0, Some("node-1")))).await;
    assert!(is_dialed(&answer.unwrap()));
    let mut bad = tunnel.open().await.unwrap();
    let answer = raw(&mut bad, &framed(&dial_request("c", 0, Some("node-1")))).await;
    assert_eq!(refusal(&answer.unwrap()), RefusalReason::Invalid);
    let accepted = timeout(PATIENCE, tunnel.accept()).await.unwrap();
    assert!(accepted.is_none(), "the tunnel ends");
    assert_eq!(fleet.server("b").stats().failed, 1);
}

#[tokio::test(start_paused = true)]
async fn pings_do_not_keep_the_tunnel_of_a_peer_that_never_dials() {
    let fleet = Fleet::new(&["b"], &["b"]).await;
    let tunnel = strict_server(&fleet);
    let ping = PeerRequest {
        request: Some(peer_request::Request::Ping(Ping::default())),
    };
    let begun = Instant::now();
    while let Ok(mut stream) = tunnel.open().await
        && raw(&mut stream, &framed(&ping)).await.is_ok()
    {
        assert!(begun.elapsed() < Duration::from_secs(60), "the tunnel is still there");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(fleet.server("b").stats().peers, 0);
}

#[tokio::test]
async fn a_server_that_closes_refuses_dials_and_waits_for_its_streams() {
    let fleet = Fleet::new(&["a", "b"], &["b"]).await;
    fleet.tracker.add("b");
    let mut dialed = fleet.dialer("a").dial(&node()).await.unwrap();
    let server = fleet.server("b");
    let closed = tokio::spawn(async move { server.close(PATIENCE).await });
    let error = loop {
        match fleet.dial("a").await {
            // The task has not begun to close.
            Ok(_) => tokio::task::yield_now().await,
            Err(error) => break error,
        }
    };
    let DialError::Unreachable { attempts, .. } = &error else {
        panic!("{error}")
    };
    assert!(
        matches!(
            attempts[0].1,
            AttemptError::Refused {
                reason: RefusalReason::Stopping,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(*fleet.tracker.complaints.lock().unwrap(), [""; 0]);
    echo(&mut dialed.stream).await.unwrap();
    assert!(!closed.is_finished());
    drop(dialed);
    timeout(PATIENCE, closed).await.expect("the server closes").unwrap();
    assert_eq!(fleet.server("b").stats().peers, 0);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_closes_cuts_streams_only_after_the_limit() {
    let fleet = Fleet::new(&["a", "b"], &["b"]).await;
    fleet.tracker.add("b");
    let mut dialed = fleet.dialer("a").dial(&node()).await.unwrap();
    echo(&mut dialed.stream).await.unwrap();
    let (limit, begun) = (Duration::from_secs(20), tokio::time::Instant::now());
    fleet.server("b").close(limit).await;
    assert!(begun.elapsed() >= limit, "{:?}", begun.elapsed());
    assert!(echo(&mut dialed.stream).await.is_err());
    // A peer that comes later is closed at once.
    let late = fleet.peers.tunnel("b:1").unwrap();
    assert!(late.accept().await.is_none(), "the tunnel ends");
}

#[tokio::test]
async fn peers_over_the_maximum_are_closed_at_once() {
    let fleet = Fleet::new(&["b"], &["b"]).await;
    let config = PeerServerConfig {
        max_peers: 1,
        ..PeerServerConfig::new("b")
    };
    let server = PeerServer::new(config, fleet.proxies["b"].0.listener.clone());
    fleet.peers.0.lock().unwrap().servers.insert("b:1".into(), server);
    let first = fleet.peers.tunnel("b:1").unwrap();
    let _stream = first.open().await.unwrap();
    // The server's task has to begin before the second peer comes.
    eventually("the first peer is served", async || fleet.server("b").stats().peers > 0).await;
    let second = fleet.peers.tunnel("b:1").unwrap();
    let accepted = timeout(PATIENCE, second.accept()).await.unwrap();
    assert!(accepted.is_none(), "the tunnel ends");
    let stats = fleet.server("b").stats();
    assert_eq!((stats.peers, stats.full), (1, 1));
}
