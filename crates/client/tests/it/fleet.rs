//! Test support: proxies, a load balancer, and a transport in memory.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use nodetracker_client::NodeId;
use nodetracker_client::control::proto::ProxyInfo;
use nodetracker_client::listener::{AgentListener, ListenerConfig, NodeObserver};
use nodetracker_client::pool::{AgentPool, PoolHandle, PoolStats, PoolStatus, StateCounts};
use nodetracker_client::transport::mux::MuxTunnel;
use nodetracker_client::transport::{ByteStream, Transport, Tunnel, TunnelStream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::timeout;

/// A test that waits for longer fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// An event of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NodeEvent {
    Connected(String),
    Gone(String),
}

/// Sends events of nodes, except those of living nodes.
struct Events(mpsc::UnboundedSender<NodeEvent>);

impl NodeObserver for Events {
    fn connected(&self, node: &NodeId) {
        let _ = self.0.send(NodeEvent::Connected(node.to_string()));
    }

    fn seen(&self, _: &NodeId) {}

    fn gone(&self, node: &NodeId) {
        let _ = self.0.send(NodeEvent::Gone(node.to_string()));
    }
}

pub(crate) fn info(id: &str) -> ProxyInfo {
    ProxyInfo {
        proxy_id: id.into(),
        incarnation: 1,
        version: "1.0".into(),
    }
}

/// A listener whose events of nodes can be waited for.
pub(crate) struct Proxy {
    pub(crate) listener: AgentListener,
    events: mpsc::UnboundedReceiver<NodeEvent>,
}

impl Proxy {
    pub(crate) fn new(config: ListenerConfig) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        let listener = AgentListener::new(config, Events(sender)).unwrap();
        Self { listener, events }
    }

    pub(crate) async fn event(&mut self) -> NodeEvent {
        let event = timeout(PATIENCE, self.events.recv()).await.expect("an event comes");
        event.expect("the listener lives")
    }

    /// A stream to the node, which has passed a byte in both directions.
    pub(crate) async fn stream(&self, node: &str) -> TunnelStream {
        let stream = self.listener.open_stream(&node.parse().unwrap()).await;
        let mut stream = stream.expect("the node has a tunnel");
        echo(&mut stream).await.expect("the agent answers");
        stream
    }
}

/// Writes a byte, and reads it back.
pub(crate) async fn echo(stream: &mut TunnelStream) -> io::Result<()> {
    stream.write_u8(7).await?;
    stream.flush().await?;
    let byte = timeout(PATIENCE, stream.read_u8()).await??;
    assert_eq!(byte, 7);
    Ok(())
}

/// Answers all streams of a pool with what they bring.
pub(crate) fn serve_echo(mut pool: AgentPool) -> PoolHandle {
    let handle = pool.handle().clone();
    tokio::spawn(async move {
        while let Some(mut incoming) = pool.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(&mut incoming.stream);
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    handle
}

/// Waits until the pool is in a state. Its tunnels are of the cluster `main`.
pub(crate) async fn wait_for(pool: &PoolHandle, expected: impl Fn(StateCounts, PoolStats) -> bool) -> StateCounts {
    let of_main = |status: &PoolStatus| status.counts.get("main").copied().unwrap_or_default();
    let mut status = pool.status();
    let found = timeout(
        PATIENCE,
        status.wait_for(|status| expected(of_main(status), status.stats)),
    )
    .await;
    let status = found.unwrap_or_else(|_| panic!("still {:?}", pool.counts()));
    of_main(&status.expect("the pool exists"))
}

/// A load balancer that forwards each connection to the next proxy.
pub(crate) struct Balancer {
    pub(crate) addr: String,
    state: Arc<Mutex<BalancerState>>,
}

#[derive(Default)]
struct BalancerState {
    proxies: Vec<SocketAddr>,
    next: usize,
    connections: Vec<(SocketAddr, AbortHandle)>,
}

impl Balancer {
    pub(crate) async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let state = Arc::new(Mutex::new(BalancerState::default()));
        tokio::spawn({
            let state = Arc::clone(&state);
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    state.lock().unwrap().forward(stream);
                }
            }
        });
        Self { addr, state }
    }

    pub(crate) fn add(&self, proxy: SocketAddr) {
        self.state.lock().unwrap().proxies.push(proxy);
    }

    /// Forwards no more connections to a proxy.
    pub(crate) fn remove(&self, proxy: SocketAddr) {
        self.state.lock().unwrap().proxies.retain(|other| *other != proxy);
    }

    /// Ends all connections to a proxy.
    pub(crate) fn cut(&self, proxy: SocketAddr) {
        let state = self.state.lock().unwrap();
        let of_proxy = state.connections.iter().filter(|(other, _)| *other == proxy);
        of_proxy.for_each(|(_, task)| task.abort());
    }
}

impl BalancerState {
    fn forward(&mut self, mut stream: TcpStream) {
        if self.proxies.is_empty() {
            return;
        }
        let proxy = self.proxies[self.next % self.proxies.len()];
        self.next += 1;
        let task = tokio::spawn(async move {
            let mut to = TcpStream::connect(proxy).await?;
            tokio::io::copy_bidirectional(&mut stream, &mut to).await
        });
        self.connections.push((proxy, task.abort_handle()));
    }
}

/// Connects to listeners in this process, in turns.
#[derive(Clone)]
pub(crate) struct InMemory {
    listeners: Arc<Mutex<VecDeque<AgentListener>>>,
    is_silent: Arc<Mutex<Arc<AtomicBool>>>,
}

impl InMemory {
    pub(crate) fn new(listeners: impl IntoIterator<Item = AgentListener>) -> Self {
        Self {
            listeners: Arc::new(Mutex::new(listeners.into_iter().collect())),
            is_silent: Arc::default(),
        }
    }

    /// Makes all present connections silent: nothing arrives any more.
    pub(crate) fn silence(&self) {
        let is_silent = std::mem::take(&mut *self.is_silent.lock().unwrap());
        is_silent.store(true, Ordering::Relaxed);
    }

    /// One end of a new connection to the next listener.
    pub(crate) fn connection(&self) -> impl ByteStream + use<> {
        let mut listeners = self.listeners.lock().unwrap();
        listeners.rotate_left(1);
        let listener = listeners.back().expect("there is a listener").clone();
        let is_silent = Arc::clone(&self.is_silent.lock().unwrap());
        let [ours, theirs] = HalfOpen::pair(&is_silent);
        let tunnel = MuxTunnel::server(theirs, Vec::new());
        tokio::spawn(async move { listener.serve_tunnel(Arc::new(tunnel)).await });
        ours
    }
}

#[async_trait::async_trait]
impl Transport for InMemory {
    async fn connect(&self, _: &str) -> io::Result<Arc<dyn Tunnel>> {
        Ok(Arc::new(MuxTunnel::client(self.connection(), Vec::new())))
    }
}

/// One end of a connection on which nothing arrives any more once it is silent. Neither end sees an error.
pub(crate) struct HalfOpen {
    stream: DuplexStream,
    is_silent: Arc<AtomicBool>,
}

impl HalfOpen {
    pub(crate) fn pair(is_silent: &Arc<AtomicBool>) -> [Self; 2] {
        let (one, other) = tokio::io::duplex(1 << 16);
        [one, other].map(|stream| Self {
            stream,
            is_silent: Arc::clone(is_silent),
        })
    }
}

impl AsyncRead for HalfOpen {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.is_silent.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for HalfOpen {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_silent.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_silent.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
