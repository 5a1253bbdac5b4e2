//! A tracker in this process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nodetracker::{NodeId, Proxy, RouteTable};
use nodetracker_client::connect::addr::TrackerAddr;
use nodetracker_client::tracker::{NodeTracker, Route};
use nodetracker_server::{Config, Drained, Limits, Server};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// A tracker that serves a table.
pub(crate) struct Tracker {
    pub(crate) table: Arc<RouteTable>,
    addr: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Drained>,
}

impl Tracker {
    /// Starts on a free port.
    pub(crate) async fn start() -> Self {
        Self::start_on("127.0.0.1:0").await
    }

    /// Starts at the address of a tracker that has stopped, with an empty table.
    pub(crate) async fn start_at(addr: &TrackerAddr) -> Self {
        Self::start_on(&format!("{}:{}", addr.host(), addr.port())).await
    }

    async fn start_on(addr: &str) -> Self {
        let table = Arc::new(RouteTable::new());
        let config = Config::default().listen_on(addr);
        let server = Server::bind_with_limits(&config, Arc::clone(&table), Limits::default()).await;
        let server = server.expect("the port is free");
        let (stop, stopped) = oneshot::channel();
        Self {
            table,
            addr: server.local_addr(),
            stop,
            task: tokio::spawn(server.run(async {
                let _ = stopped.await;
            })),
        }
    }

    pub(crate) fn addr(&self) -> TrackerAddr {
        self.addr.to_string().parse().expect("an address")
    }

    /// The calls without the network.
    pub(crate) fn direct(&self) -> Arc<dyn NodeTracker> {
        Arc::clone(&self.table) as _
    }

    pub(crate) async fn stop(self) {
        let _ = self.stop.send(());
        // The stop may be in time or not. The replicas must handle both.
        let _ = self.task.await.expect("the tracker stops");
    }

    /// Another tracker on the same port, with an empty table.
    pub(crate) async fn restart(self) -> Self {
        let addr = self.addr.to_string();
        self.stop().await;
        Self::start_on(&addr).await
    }

    pub(crate) fn report(&self, node: &NodeId, id: &str, addr: &str) {
        let proxy = Proxy {
            id,
            cluster_name: "main",
            addr,
        };
        self.table.report_node(node, &proxy).expect("there is room");
    }
}

pub(crate) fn node(name: &str) -> NodeId {
    name.parse().expect("an ID")
}

/// The ID and address of each route's proxy.
pub(crate) fn proxies(routes: &[Route]) -> Vec<(String, String)> {
    let proxy = |route: &Route| (route.proxy.id().to_owned(), route.proxy.addr().to_owned());
    routes.iter().map(proxy).collect()
}

/// Waits until a condition is true; fails after ten seconds.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let poll = async {
        while !condition().await {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(Duration::from_secs(10), poll)
        .await
        .unwrap_or_else(|_| panic!("not within ten seconds: {what}"));
}
