//! Pools and listeners: over TCP and TLS, and in memory when time matters.

use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nodetracker::RouteTable;
use nodetracker_client::backoff::Limits;
use nodetracker_client::connect::channel::ClientTls;
use nodetracker_client::control::proto::ProxyInfo;
use nodetracker_client::control::verify_dns_name;
use nodetracker_client::listener::{AgentListener, ListenerConfig, OpenError};
use nodetracker_client::pool::{AgentPool, PoolConfig, Target};
use nodetracker_client::proxy::{DialError, Dialer, DialerConfig, PeerServer, PeerServerConfig};
use nodetracker_client::transport::mux::{MAX_STREAMS, MuxTunnel};
use nodetracker_client::transport::server_tls::ServerTlsFiles;
use nodetracker_client::transport::tcp::{PEER_ALPN, TcpAcceptor, TcpTransport};
use nodetracker_client::transport::{ByteStream, Transport, Tunnel};
use nodetracker_tls::server::{ServerFiles, server_config};
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::net::TcpListener;
use tokio::time::{Instant, Sleep, timeout};

use crate::fleet::{Balancer, InMemory, NodeEvent, PATIENCE, Proxy, echo, info, serve_echo, wait_for};
use crate::pki::Pki;

fn config(connection_count: usize) -> PoolConfig {
    PoolConfig {
        connection_count,
        // Tests should be quick.
        backoff: Limits {
            base: Duration::from_millis(1),
            max: Duration::from_millis(100),
        },
        spread: Duration::from_millis(10),
        ..PoolConfig::new("node-1".parse().unwrap())
    }
}

fn connected() -> NodeEvent {
    NodeEvent::Connected("node-1".into())
}

fn gone() -> NodeEvent {
    NodeEvent::Gone("node-1".into())
}

/// A proxy behind the load balancer that knows the proxies `a` and `b`.
async fn tcp_proxy(id: &str, balancer: &Balancer) -> (Proxy, SocketAddr) {
    let proxy = Proxy::new(ListenerConfig::new(info(id)));
    proxy.listener.set_proxies(vec![info("a"), info("b")]).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    balancer.add(addr);
    let serving = proxy.listener.clone();
    tokio::spawn(async move { serving.serve(TcpAcceptor::plaintext(listener)).await });
    (proxy, addr)
}

#[tokio::test]
async fn a_pool_has_a_tunnel_to_each_of_two_proxies_and_returns_to_one_that_was_cut_off() {
    let balancer = Balancer::new().await;
    let (mut a, addr) = tcp_proxy("a", &balancer).await;
    let (mut b, _) = tcp_proxy("b", &balancer).await;
    let pool = serve_echo(AgentPool::start(config(0), TcpTransport::default()));
    pool.add_target(Target::new("main", &balancer.addr));
    assert_eq!((a.event().await, b.event().await), (connected(), connected()));
    a.stream("node-1").await;
    b.stream("node-1").await;

    balancer.remove(addr);
    balancer.cut(addr);
    assert_eq!(a.event().await, gone());
    let error = a.listener.open_stream(&"node-1".parse().unwrap()).await.err();
    assert!(matches!(error, Some(OpenError::NotHeld(_))), "{error:?}");
    wait_for(&pool, |counts, _| counts.ready() == 1).await;
    b.stream("node-1").await;

    balancer.add(addr);
    assert_eq!(a.event().await, connected());
    wait_for(&pool, |counts, _| counts.ready() == 2 && counts.total() == 2).await;
    a.stream("node-1").await;
    assert!(
        pool.stats().lost == 1 && pool.stats().attempts >= 3,
        "{:?}",
        pool.stats()
    );
}

#[tokio::test]
async fn a_proxy_that_drains_keeps_its_streams_until_they_end() {
    let balancer = Balancer::new().await;
    let (mut a, addr) = tcp_proxy("a", &balancer).await;
    let pool = serve_echo(AgentPool::start(config(1), TcpTransport::default()));
    pool.add_target(Target::new("main", &balancer.addr));
    assert_eq!(a.event().await, connected());
    let mut stream = a.stream("node-1").await;

    let (mut b, _) = tcp_proxy("b", &balancer).await;
    balancer.remove(addr);
    a.listener.drain(Duration::from_millis(10));
    assert_eq!(b.event().await, connected());
    assert_eq!(a.event().await, gone());
    b.stream("node-1").await;
    echo(&mut stream).await.unwrap();
    assert_eq!(a.listener.stats().agents, 1, "the stream is open");

    drop(stream);
    a.listener.close(PATIENCE).await;
    assert_eq!(a.listener.stats().agents, 0);
    let counts = wait_for(&pool, |counts, _| counts.total() == 1).await;
    assert_eq!(counts.ready(), 1);
    assert_eq!((pool.stats().lost, pool.stats().reconnects), (0, 1));
}

#[tokio::test]
async fn a_proxy_that_drains_refuses_new_agents() {
    let balancer = Balancer::new().await;
    let (a, _) = tcp_proxy("a", &balancer).await;
    a.listener.drain(Duration::from_secs(1));
    let pool = AgentPool::start(config(1), TcpTransport::default());
    pool.handle().add_target(Target::new("main", &balancer.addr));
    wait_for(pool.handle(), |_, stats| stats.failures > 0).await;
    assert!(a.listener.stats().refused > 0);
    assert_eq!(a.listener.stats().claimed, 0);
}

#[tokio::test]
async fn a_proxy_that_resumes_accepts_agents() {
    let mut proxy = Proxy::new(ListenerConfig::new(info("a")));
    proxy.listener.drain(Duration::from_secs(1));
    let pool = serve_echo(AgentPool::start(config(1), InMemory::new([proxy.listener.clone()])));
    pool.add_target(Target::new("main", ""));
    wait_for(&pool, |_, stats| stats.failures > 0).await;
    proxy.listener.resume();
    assert_eq!(proxy.event().await, connected());
}

#[tokio::test]
async fn a_proxy_sheds_agents_and_still_accepts_agents() {
    let balancer = Balancer::new().await;
    let (mut a, addr) = tcp_proxy("a", &balancer).await;
    let pool = serve_echo(AgentPool::start(config(1), TcpTransport::default()));
    pool.add_target(Target::new("main", &balancer.addr));
    assert_eq!(a.event().await, connected());
    let (mut b, _) = tcp_proxy("b", &balancer).await;
    balancer.remove(addr);
    a.listener.shed(0.0, Duration::ZERO);
    a.stream("node-1").await;
    a.listener.shed(1.0, Duration::from_millis(10));
    assert_eq!(b.event().await, connected());
    assert_eq!(a.event().await, gone());
    assert_eq!(pool.stats().reconnects, 1);

    let pool = serve_echo(AgentPool::start(config(1), InMemory::new([a.listener.clone()])));
    pool.add_target(Target::new("main", ""));
    assert_eq!(a.event().await, connected());
}

#[tokio::test]
async fn an_agent_of_another_cluster_is_refused() {
    let config_of_proxy = ListenerConfig {
        cluster: "main".into(),
        ..ListenerConfig::new(info("a"))
    };
    let mut proxy = Proxy::new(config_of_proxy);
    let pool = serve_echo(AgentPool::start(config(1), InMemory::new([proxy.listener.clone()])));
    pool.add_target(Target::new("leaf", "1"));
    wait_for(&pool, |_, stats| stats.failures > 0).await;
    pool.add_target(Target::new("main", "2"));
    assert_eq!(proxy.event().await, connected());
    assert_eq!(proxy.listener.stats().claimed, 1);
}

#[tokio::test]
async fn the_longest_list_of_proxies_reaches_an_agent() {
    let mut proxy = Proxy::new(ListenerConfig::new(info("a")));
    let long = |number: usize| ProxyInfo {
        proxy_id: format!("{number:x>255}"),
        incarnation: u64::MAX,
        version: "v".repeat(255),
    };
    proxy.listener.set_proxies((1..512).map(long).collect()).unwrap();
    let pool = serve_echo(AgentPool::start(config(1), InMemory::new([proxy.listener.clone()])));
    pool.add_target(Target::new("main", ""));
    assert_eq!(proxy.event().await, connected());
    assert_eq!(pool.stats().ignored_proxies, 0);
    assert!(proxy.listener.set_proxies((1..514).map(long).collect()).is_err());
}

#[tokio::test]
async fn closing_a_pool_waits_for_its_streams() {
    let mut proxy = Proxy::new(ListenerConfig::new(info("a")));
    let pool = serve_echo(AgentPool::start(config(1), InMemory::new([proxy.listener.clone()])));
    pool.add_target(Target::new("main", ""));
    assert_eq!(proxy.event().await, connected());
    let mut stream = proxy.stream("node-1").await;
    let closed = tokio::spawn({
        let pool = pool.clone();
        async move { pool.close().await }
    });
    assert_eq!(proxy.event().await, gone());
    echo(&mut stream).await.unwrap();
    assert!(!closed.is_finished());
    drop(stream);
    timeout(PATIENCE, closed).await.expect("the pool closes").unwrap();
    pool.add_target(Target::new("main", ""));
    assert!(pool.counts().is_empty(), "a closed pool stays closed");
}

#[tokio::test]
async fn closing_a_listener_cuts_streams_only_after_the_limit() {
    let mut proxy = Proxy::new(ListenerConfig::new(info("a")));
    let pool = serve_echo(AgentPool::start(config(1), InMemory::new([proxy.listener.clone()])));
    pool.add_target(Target::new("main", ""));
    assert_eq!(proxy.event().await, connected());
    let mut stream = proxy.stream("node-1").await;
    timeout(PATIENCE, proxy.listener.close(Duration::from_millis(10)))
        .await
        .expect("the limit passes");
    assert_eq!(proxy.event().await, gone());
    assert!(echo(&mut stream).await.is_err());
    assert_eq!(proxy.listener.stats().agents, 0);
}

#[tokio::test(start_paused = true)]
async fn both_ends_notice_a_connection_that_is_half_open() {
    let mut proxy = Proxy::new(ListenerConfig::new(info("a")));
    let transport = InMemory::new([proxy.listener.clone()]);
    let config = config(1);
    let bound = config.keep_alive.interval + config.keep_alive.timeout;
    let pool = serve_echo(AgentPool::start(config, transport.clone()));
    pool.add_target(Target::new("main", ""));
    assert_eq!(proxy.event().await, connected());
    // The connection stays up as long as pings are answered.
    tokio::time::sleep(10 * bound).await;
    assert_eq!(pool.stats().attempts, 1);

    let begin = Instant::now();
    transport.silence();
    wait_for(&pool, |counts, _| counts.ready() == 0).await;
    assert!(begin.elapsed() <= bound, "{:?}", begin.elapsed());
    assert_eq!(pool.stats().broken, 1);
    // The agent's next tunnel is there, or not yet, when the proxy notices the end of the old one.
    wait_for(&pool, |counts, _| counts.ready() == 1).await;
    tokio::time::sleep_until(begin + bound + Duration::from_secs(1)).await;
    let stats = proxy.listener.stats();
    assert_eq!((stats.agents, stats.nodes, stats.claimed), (1, 1, 2));
}

/// A connection that delivers 20 KB in a tenth of a second.
struct Slow {
    stream: DuplexStream,
    next: Pin<Box<Sleep>>,
}

impl AsyncRead for Slow {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.next.as_mut().poll(cx));
        let mut part = [0; 20_000];
        let max = buf.remaining().min(part.len());
        let mut part = ReadBuf::new(&mut part[..max]);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut part))?;
        buf.put_slice(part.filled());
        let next = Instant::now() + Duration::from_millis(100);
        self.next.as_mut().reset(next);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Slow {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Connects to a listener. The bytes of one end wait in a large buffer, and arrive slowly.
struct SlowPath {
    listener: AgentListener,
    agent_is_slow: bool,
}

#[async_trait::async_trait]
impl Transport for SlowPath {
    async fn connect(&self, _: &str) -> io::Result<Arc<dyn Tunnel>> {
        let slow = |stream| -> Box<dyn ByteStream> {
            let next = Box::pin(tokio::time::sleep(Duration::ZERO));
            Box::new(Slow { stream, next })
        };
        let (agent, proxy) = tokio::io::duplex(2 << 20);
        let (agent, proxy): (Box<dyn ByteStream>, Box<dyn ByteStream>) = match self.agent_is_slow {
            true => (slow(agent), Box::new(proxy)),
            false => (Box::new(agent), slow(proxy)),
        };
        let (listener, tunnel) = (self.listener.clone(), MuxTunnel::server(proxy, Vec::new()));
        tokio::spawn(async move { listener.serve_tunnel(Arc::new(tunnel)).await });
        Ok(Arc::new(MuxTunnel::client(agent, Vec::new())))
    }
}

/// The agent's echo of 320 KB takes 8 s: two reads for each frame of 8 KB. Each stream has less than half a window, so
/// the proxy reports no progress. The agent's ping waits behind the echo for longer than the keep-alive waits.
#[tokio::test(start_paused = true)]
async fn a_tunnel_that_still_delivers_a_burst_is_not_broken() {
    let mut listener_config = ListenerConfig::new(info("a"));
    // The agent hears only pongs.
    listener_config.keep_alive.interval = Duration::from_secs(3600);
    let mut proxy = Proxy::new(listener_config);
    let transport = SlowPath {
        listener: proxy.listener.clone(),
        agent_is_slow: false,
    };
    let config = config(1);
    let interval = config.keep_alive.interval;
    let pool = serve_echo(AgentPool::start(config, transport));
    pool.add_target(Target::new("main", ""));
    assert_eq!(proxy.event().await, connected());
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(proxy.listener.open_stream(&"node-1".parse().unwrap()).await.unwrap());
    }
    tokio::time::sleep(interval - Duration::from_secs(1)).await;
    let begin = Instant::now();
    for stream in &mut streams {
        stream.write_all(&[0; 80_000]).await.unwrap();
        stream.flush().await.unwrap();
    }
    for stream in &mut streams {
        stream.read_exact(&mut [0; 80_000]).await.unwrap();
    }
    assert!(begin.elapsed() > Duration::from_secs(7), "{:?}", begin.elapsed());
    let stats = pool.stats();
    assert_eq!((stats.attempts, stats.lost), (1, 0), "{stats:?}");
}

/// In one direction, 1.5 MB wait in front of each ping and pong, for longer than the keep-alive waits.
#[tokio::test(start_paused = true)]
async fn a_tunnel_that_is_busy_and_slow_is_not_broken() {
    for agent_is_slow in [false, true] {
        let mut proxy = Proxy::new(ListenerConfig::new(info("a")));
        let listener = proxy.listener.clone();
        let transport = SlowPath {
            listener,
            agent_is_slow,
        };
        let pool = serve_echo(AgentPool::start(config(1), transport));
        pool.add_target(Target::new("main", ""));
        assert_eq!(proxy.event().await, connected());
        for _ in 0..6 {
            let stream = proxy.listener.open_stream(&"node-1".parse().unwrap()).await.unwrap();
            let (mut read, mut write) = tokio::io::split(stream);
            tokio::spawn(async move { while write.write_all(&[0; 1 << 14]).await.is_ok() {} });
            tokio::spawn(async move { tokio::io::copy(&mut read, &mut tokio::io::sink()).await });
        }
        tokio::time::sleep(Duration::from_secs(300)).await;
        let stats = pool.stats();
        assert_eq!(
            (stats.attempts, stats.lost),
            (1, 0),
            "agent_is_slow: {agent_is_slow}, {stats:?}"
        );
        assert_eq!(proxy.listener.stats().claimed, 1, "agent_is_slow: {agent_is_slow}");
    }
}

#[tokio::test]
async fn a_reader_of_the_status_may_call_the_pool() {
    let pool = AgentPool::start(config(1), InMemory::new([]));
    let handle = pool.handle();
    let mut status = handle.status();
    let found = status.wait_for(|status| {
        handle.add_target(Target::new("main", ""));
        !status.counts.is_empty()
    });
    timeout(PATIENCE, found).await.expect("the pool adds the target");
}

#[tokio::test(start_paused = true)]
async fn the_status_ends_with_the_pool_while_a_handle_lives() {
    let pool = AgentPool::start(config(1), InMemory::new([]));
    let handle = pool.handle().clone();
    let mut status = handle.status();
    assert_eq!(
        timeout(PATIENCE, status.changed()).await.ok(),
        None,
        "nothing has changed"
    );
    drop(pool);
    let ended = async { while status.changed().await.is_some() {} };
    timeout(PATIENCE, ended).await.expect("the status ends");
    let late = timeout(PATIENCE, handle.status().wait_for(|_| false)).await;
    assert_eq!(late, Ok(None));
    assert!(handle.counts().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_slow_or_silent_is_closed_in_time() {
    let proxy = Proxy::new(ListenerConfig::new(info("a")));
    let transport = InMemory::new([proxy.listener.clone()]);
    let limit = ListenerConfig::new(info("a")).handshake_timeout;
    // No stream at all; and a stream on which a byte comes each second.
    let _silent = transport.connection();
    let slow = MuxTunnel::client(transport.connection(), Vec::new());
    let mut stream = slow.open().await.unwrap();
    let begin = Instant::now();
    let mut written = 0;
    while stream.write_u8(0).await.is_ok() && stream.flush().await.is_ok() {
        written += 1;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(written >= 4, "a length of 0 is a message without content");
    assert!(
        begin.elapsed() <= limit + Duration::from_secs(2),
        "{:?}",
        begin.elapsed()
    );
    assert_eq!(proxy.listener.stats().agents, 0);
}

#[tokio::test]
async fn an_overlong_message_and_a_second_stream_close_the_tunnel() {
    let proxy = Proxy::new(ListenerConfig::new(info("a")));
    let transport = InMemory::new([proxy.listener.clone()]);
    let tunnel = MuxTunnel::client(transport.connection(), Vec::new());
    let mut stream = tunnel.open().await.unwrap();
    stream.write_u32(4097).await.unwrap();
    assert!(timeout(PATIENCE, tunnel.accept()).await.unwrap().is_none());

    let tunnel = MuxTunnel::client(transport.connection(), Vec::new());
    let mut streams = Vec::new();
    for _ in 0..2 {
        let mut stream = tunnel.open().await.unwrap();
        stream.write_u8(0).await.unwrap();
        streams.push(stream);
    }
    assert!(timeout(PATIENCE, tunnel.accept()).await.unwrap().is_none());
}

#[tokio::test]
async fn agents_beyond_the_maximum_are_closed_at_once() {
    let mut proxy = Proxy::new(ListenerConfig {
        max_agents: 1,
        ..ListenerConfig::new(info("a"))
    });
    let transport = InMemory::new([proxy.listener.clone()]);
    let pool = serve_echo(AgentPool::start(config(1), transport.clone()));
    pool.add_target(Target::new("main", ""));
    assert_eq!(proxy.event().await, connected());
    let second = MuxTunnel::client(transport.connection(), Vec::new());
    assert!(timeout(PATIENCE, second.accept()).await.unwrap().is_none());
    let stats = proxy.listener.stats();
    assert_eq!((stats.agents, stats.accepted, stats.full), (1, 2, 1));
}

#[tokio::test]
async fn a_tunnel_resets_the_streams_beyond_its_maximum_and_lives() {
    let (client, server) = mux_pair();
    let mut opened = Vec::new();
    for _ in 0..MAX_STREAMS {
        opened.push(client.open().await.unwrap());
    }
    let error = client.open().await.err().unwrap();
    assert_eq!(error.to_string(), format!("the tunnel has {MAX_STREAMS} streams"));
    let mut accepted = Vec::new();
    for _ in 0..MAX_STREAMS {
        accepted.push(timeout(PATIENCE, server.accept()).await.unwrap().unwrap());
    }
    // The server still holds the stream that the client has dropped.
    drop(opened.pop());
    let mut last = client.open().await.unwrap();
    let error = timeout(PATIENCE, last.read(&mut [0])).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    drop(last);
    opened[0].write_u8(1).await.unwrap();
    timeout(PATIENCE, echo_back(&mut accepted[0])).await.unwrap();
    assert_eq!(timeout(PATIENCE, opened[0].read_u8()).await.unwrap().unwrap(), 1);

    opened.truncate(1);
    timeout(PATIENCE, client.until_at_most(1))
        .await
        .expect("the streams are closed");
}

/// Both ends of a tunnel in memory.
fn mux_pair() -> (MuxTunnel, MuxTunnel) {
    let (one, other) = tokio::io::duplex(1 << 16);
    (MuxTunnel::client(one, Vec::new()), MuxTunnel::server(other, Vec::new()))
}

#[tokio::test]
async fn the_other_end_sees_a_stream_before_the_first_byte() {
    let (client, server) = mux_pair();
    // The end that accepts speaks first.
    let mut opened = client.open().await.unwrap();
    let mut accepted = timeout(PATIENCE, server.accept()).await.unwrap().unwrap();
    accepted.write_u8(1).await.unwrap();
    assert_eq!(timeout(PATIENCE, opened.read_u8()).await.unwrap().unwrap(), 1);
    // The end that opens ends its direction at once.
    let mut opened = client.open().await.unwrap();
    opened.shutdown().await.unwrap();
    let mut accepted = timeout(PATIENCE, server.accept()).await.unwrap().unwrap();
    assert_eq!(timeout(PATIENCE, accepted.read(&mut [0])).await.unwrap().unwrap(), 0);
    accepted.write_u8(2).await.unwrap();
    assert_eq!(timeout(PATIENCE, opened.read_u8()).await.unwrap().unwrap(), 2);
}

#[tokio::test]
async fn both_halves_of_a_stream_notice_that_the_tunnel_is_dropped() {
    let (client, _server) = mux_pair();
    let (mut read, mut write) = tokio::io::split(client.open().await.unwrap());
    // The other end does not read: the writer waits for credit.
    let buf = vec![0; 1 << 20];
    let reader = tokio::spawn(async move { read.read_u8().await.map(drop) });
    tokio::task::yield_now().await;
    let writer = tokio::spawn(async move { write.write_all(&buf).await });
    tokio::task::yield_now().await;
    drop(client);
    for half in [reader, writer] {
        let ended = timeout(PATIENCE, half).await.expect("the half is woken").unwrap();
        ended.expect_err("the tunnel has ended");
    }
}

#[tokio::test]
async fn waiting_for_the_streams_of_a_tunnel_takes_no_stream() {
    let (client, _server) = mux_pair();
    let stream = client.open().await.unwrap();
    let mut waits = pin!(client.until_at_most(0));
    assert!(timeout(Duration::ZERO, waits.as_mut()).await.is_err());
    assert_eq!(client.open_streams(), 1);
    drop((client.open().await.unwrap(), stream));
    timeout(PATIENCE, waits).await.expect("the streams are closed");
}

async fn echo_back(stream: &mut nodetracker_client::transport::TunnelStream) {
    let byte = stream.read_u8().await.unwrap();
    stream.write_u8(byte).await.unwrap();
    stream.flush().await.unwrap();
}

/// The TLS of `proxy.test`, which verifies the certificates of agents and peers.
fn server_tls(pki: &Pki) -> ServerConfig {
    pki.issue("proxy.test", "proxy.test");
    let ServerTlsFiles {
        key,
        certificate,
        client_ca,
    } = pki.server_files("proxy.test");
    let files = ServerFiles {
        key: &key,
        certificate: &certificate,
        client_ca: client_ca.as_deref(),
    };
    server_config(&files, b"").unwrap()
}

/// Dials `proxy.test` with a certificate of this name.
fn transport(pki: &Pki, name: &str) -> TcpTransport {
    pki.issue(name, name);
    TcpTransport {
        server_name: Some("proxy.test".into()),
        ..TcpTransport::agent(ClientTls::load(pki.client_files(name)).unwrap())
    }
}

#[tokio::test]
async fn with_tls_both_ends_verify_the_other_ends_id() {
    let pki = Pki::new();
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target::new("main", tcp.local_addr().unwrap().to_string());
    let config_of_proxy = ListenerConfig::new(info("proxy.test"));
    let listener = AgentListener::with_verify(config_of_proxy, (), Box::new(verify_dns_name)).unwrap();
    let serving = listener.clone();
    let acceptor = TcpAcceptor::tls(tcp, &server_tls(&pki));
    tokio::spawn(async move { serving.serve(acceptor).await });

    let good = AgentPool::start_with_verify(config(1), transport(&pki, "node-1"), Box::new(verify_dns_name));
    let good = serve_echo(good);
    good.add_target(target.clone());
    wait_for(&good, |counts, _| counts.ready() == 1).await;
    let stream = timeout(PATIENCE, async {
        loop {
            // The claim may still be on its way.
            if let Ok(stream) = listener.open_stream(&"node-1".parse().unwrap()).await {
                return stream;
            }
            tokio::task::yield_now().await;
        }
    });
    echo(&mut stream.await.unwrap()).await.unwrap();

    // The certificate of another node.
    let bad = AgentPool::start(config(1), transport(&pki, "node-2"));
    bad.handle().add_target(target.clone());
    wait_for(bad.handle(), |_, stats| stats.failures > 0).await;
    assert!(listener.stats().refused >= 1);

    // The proxy has another ID than the agent expects.
    let expects_other =
        |_: &str, certificates: &[CertificateDer<'static>]| verify_dns_name("proxy-2.test", certificates);
    let careful = AgentPool::start_with_verify(config(1), transport(&pki, "node-1"), Box::new(expects_other));
    careful.handle().add_target(target.clone());
    wait_for(careful.handle(), |_, stats| stats.failures > 0).await;

    // A proxy that dials the port for agents.
    let peer = TcpTransport {
        alpn: PEER_ALPN,
        ..transport(&pki, "node-1")
    };
    let failed = listener.stats().failed;
    assert!(peer.connect(&target.addr).await.is_err());
    assert_eq!(listener.stats().failed, failed + 1);

    // No certificate at all.
    let plain = AgentPool::start(config(1), TcpTransport::default());
    plain.handle().add_target(target);
    wait_for(plain.handle(), |_, stats| stats.failures > 0).await;
    assert_eq!(listener.stats().claimed, 1);
}

#[tokio::test]
async fn with_tls_a_peer_and_its_dialer_verify_each_other() {
    let pki = Pki::new();
    let mut proxy = Proxy::new(ListenerConfig::new(info("proxy.test")));
    let pool = serve_echo(AgentPool::start(config(1), InMemory::new([proxy.listener.clone()])));
    pool.add_target(Target::new("main", ""));
    assert_eq!(proxy.event().await, connected());
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = tcp.local_addr().unwrap().to_string();
    let agents = proxy.listener.clone();
    let server = PeerServer::with_verify(PeerServerConfig::new("proxy.test"), agents, Box::new(verify_dns_name));
    let acceptor = TcpAcceptor::tls(tcp, &server_tls(&pki));
    let serving = server.clone();
    tokio::spawn(async move { serving.serve(acceptor).await });

    // The ID of the proxy that dials, and the ID of the proxy that the tracker names. The certificates are those of
    // `origin.test` and `proxy.test`.
    let dial = async |origin: &str, peer: &str| {
        let table = RouteTable::new();
        let route = nodetracker_client::Proxy {
            id: peer,
            cluster_name: "main",
            addr: &addr,
        };
        let node = "node-1".parse().unwrap();
        table.report_node(&node, &route).unwrap();
        let other = AgentListener::new(ListenerConfig::new(info(origin)), ()).unwrap();
        let transport = TcpTransport {
            alpn: PEER_ALPN,
            ..transport(&pki, "origin.test")
        };
        let config = DialerConfig::new(origin);
        let dialer = Dialer::with_verify(config, other, Arc::new(table), transport, Box::new(verify_dns_name));
        dialer.dial(&node).await
    };
    let mut dialed = dial("origin.test", "proxy.test").await.unwrap();
    echo(&mut dialed.stream).await.unwrap();
    for (origin, peer) in [("other.test", "proxy.test"), ("origin.test", "other.test")] {
        let error = dial(origin, peer).await.err().unwrap();
        assert!(matches!(error, DialError::Unreachable { .. }), "{error}");
    }
    assert_eq!((server.stats().dialed, server.stats().failed), (1, 1));
}
