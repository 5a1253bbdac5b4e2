//! Test support: trackers in this process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nodetracker::{NodeId, Proxy, RouteTable};
use nodetracker_client::client::{ClientConfig, TrackerClient, TrackerStats};
use nodetracker_client::connect::addr::TrackerAddr;
use nodetracker_client::tracker::{NodeTracker, Route};
use nodetracker_server::{Config, Drained, Limits, Server};
use tokio::net::TcpSocket;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// A tracker in this process.
pub(crate) struct Running {
    pub(crate) addr: SocketAddr,
    pub(crate) table: Arc<RouteTable>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Drained>,
}

impl Running {
    /// Starts on a free port.
    pub(crate) async fn start() -> Self {
        Self::start_on("127.0.0.1:0").await
    }

    /// Starts at the address of a tracker that has stopped, with an empty table.
    pub(crate) async fn start_on(addr: &str) -> Self {
        Self::with_config(&Config::default().listen_on(addr)).await
    }

    pub(crate) async fn with_config(config: &Config) -> Self {
        Self::serving(config, config.table().build().unwrap()).await
    }

    /// Serves a table.
    pub(crate) async fn serving(config: &Config, table: RouteTable) -> Self {
        let table = Arc::new(table);
        let server = Server::bind_with_limits(config, Arc::clone(&table), Limits::default());
        let server = server.await.unwrap();
        let (stop, stopped) = oneshot::channel();
        Self {
            addr: server.local_addr(),
            table,
            stop: Some(stop),
            task: tokio::spawn(server.run(async { drop(stopped.await) })),
        }
    }

    /// Asks the tracker to stop.
    pub(crate) fn begin_stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    /// Stops the tracker, and waits until its port is closed.
    pub(crate) async fn stop(mut self) {
        self.begin_stop();
        // The stop may be in time or not.
        let _ = self.task.await.unwrap();
    }

    /// Another tracker on the same port, with an empty table.
    pub(crate) async fn restart(self) -> Self {
        let addr = self.addr.to_string();
        self.stop().await;
        Self::start_on(&addr).await
    }

    pub(crate) fn at(&self) -> TrackerAddr {
        at(self.addr)
    }

    /// The calls without the network.
    pub(crate) fn direct(&self) -> Arc<dyn NodeTracker> {
        Arc::clone(&self.table) as _
    }

    /// Reports a node of a proxy.
    pub(crate) fn report(&self, node: &NodeId, id: &str, addr: &str) {
        let proxy = Proxy { id, addr, ..PROXY };
        self.table.report_node(node, &proxy).unwrap();
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

/// Waits until a condition is true; fails after a minute.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let poll = async {
        while !condition().await {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(Duration::from_secs(60), poll)
        .await
        .unwrap_or_else(|_| panic!("not within a minute: {what}"));
}

/// Waits until the statistics of a client meet a condition; fails after a minute.
pub(crate) async fn wait_until(client: &TrackerClient, condition: impl FnMut(&[TrackerStats]) -> bool) {
    within(client.wait_until(condition)).await;
}

pub(crate) fn at(addr: SocketAddr) -> TrackerAddr {
    addr.to_string().parse().unwrap()
}

pub(crate) fn client(trackers: impl IntoIterator<Item = TrackerAddr>, client_config: ClientConfig) -> TrackerClient {
    TrackerClient::start(trackers, client_config).unwrap()
}

/// Options under which only a tracker that never answers is late, even on a busy machine.
pub(crate) fn patient() -> ClientConfig {
    let mut client_config = ClientConfig {
        deadline: Duration::from_secs(120),
        attempt_timeout: Duration::from_secs(60),
        ..ClientConfig::default()
    };
    client_config.health.timeout = Duration::from_secs(60);
    client_config
}

pub(crate) fn node(name: &str) -> NodeId {
    name.parse().unwrap()
}

/// The ID and address of each route's proxy.
pub(crate) fn proxies(routes: &[Route]) -> Vec<(String, String)> {
    let proxy = |route: &Route| (route.proxy.id().to_owned(), route.proxy.addr().to_owned());
    routes.iter().map(proxy).collect()
}

pub(crate) const PROXY: Proxy<'_> = Proxy {
    id: "proxy-1",
    cluster_name: "main",
    addr: "10.0.0.1:3080",
};
