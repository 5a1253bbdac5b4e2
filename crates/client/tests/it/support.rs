//! Test support: trackers in this process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nodetracker::{NodeId, Proxy, RouteTable};
use nodetracker_client::client::{ClientOptions, TrackerClient, TrackerStats};
use nodetracker_client::connect::addr::TrackerAddr;
use nodetracker_server::{Config, Limits, Server};
use tokio::net::TcpSocket;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// A tracker in this process.
pub(crate) struct Running {
    pub(crate) addr: SocketAddr,
    pub(crate) table: Arc<RouteTable>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Running {
    pub(crate) async fn start() -> Self {
        Self::with_config(&Config::default().listen_on("127.0.0.1:0")).await
    }

    pub(crate) async fn with_config(config: &Config) -> Self {
        let table = Arc::new(config.table().build().unwrap());
        let server = Server::bind_with_limits(config, Arc::clone(&table), Limits::default());
        let server = server.await.unwrap();
        let addr = server.local_addr();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(async {
            let stopped = async {
                let _ = stopped.await;
            };
            let _ = server.run(stopped).await;
        });
        Self {
            addr,
            table,
            stop: Some(stop),
            task,
        }
    }

    /// Asks the tracker to stop.
    pub(crate) fn begin_stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    /// Stops the tracker, and waits until its port is closed.
    pub(crate) async fn stop(mut self) {
        self.begin_stop();
        self.task.await.unwrap();
    }

    pub(crate) fn at(&self) -> TrackerAddr {
        at(self.addr)
    }

    /// The IDs of the proxies of a node in the tracker's table.
    pub(crate) fn proxies(&self, node: &NodeId) -> Vec<String> {
        let routes = self.table.resolve(node).into_iter();
        routes.map(|route| route.details.id().to_owned()).collect()
    }
}

/// A port on which nothing listens while the value lives.
pub(crate) struct ClosedPort(TcpSocket);

impl ClosedPort {
    pub(crate) fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Self(socket)
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    pub(crate) fn at(&self) -> TrackerAddr {
        at(self.addr())
    }
}

/// Waits for a future; fails after a minute.
pub(crate) async fn within<F: IntoFuture>(future: F) -> F::Output {
    timeout(Duration::from_secs(60), future).await.expect("within a minute")
}

/// Waits until the statistics of a client meet a condition; fails after a minute.
pub(crate) async fn wait_until(client: &TrackerClient, condition: impl FnMut(&[TrackerStats]) -> bool) {
    within(client.wait_until(condition)).await;
}

pub(crate) fn at(addr: SocketAddr) -> TrackerAddr {
    addr.to_string().parse().unwrap()
}

pub(crate) fn client(trackers: impl IntoIterator<Item = TrackerAddr>, options: ClientOptions) -> TrackerClient {
    TrackerClient::new(trackers, options).unwrap()
}

/// Options under which only a tracker that never answers is late, even on a busy machine.
pub(crate) fn patient() -> ClientOptions {
    let mut options = ClientOptions {
        deadline: Duration::from_secs(120),
        attempt_timeout: Duration::from_secs(60),
        ..ClientOptions::default()
    };
    options.health.timeout = Duration::from_secs(60);
    options
}

pub(crate) fn node(name: &str) -> NodeId {
    name.parse().unwrap()
}

pub(crate) const PROXY: Proxy<'_> = Proxy {
    id: "proxy-1",
    cluster_name: "main",
    addr: "10.0.0.1:3080",
};
