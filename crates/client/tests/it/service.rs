//! A whole fleet over TCP: a tracker, two proxies behind a load balancer, and an agent.

use std::net::SocketAddr;
use std::time::Duration;

use nodetracker_client::Proxy;
use nodetracker_client::backoff::Limits;
use nodetracker_client::pool::{AgentPool, PoolConfig, Target};
use nodetracker_client::proxy::{ProxyService, ProxyServiceConfig, Via};
use nodetracker_client::transport::tcp::{TcpAcceptor, TcpTransport};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::fleet::{Balancer, PATIENCE, echo, info, serve_echo};
use crate::in_process::eventually;
use crate::support::{Running, node};

async fn service(id: &str, tracker: &Running, balancer: &Balancer) -> (ProxyService, SocketAddr) {
    let agents = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peers = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (agents_addr, peers_addr) = (agents.local_addr().unwrap(), peers.local_addr().unwrap().to_string());
    let proxy = Proxy {
        id,
        cluster_name: "main",
        addr: &peers_addr,
    };
    let config = ProxyServiceConfig::new(proxy, "test", vec![tracker.at()]);
    let acceptors = [agents, peers].map(TcpAcceptor::plaintext);
    let [agents, peers] = acceptors;
    let service = ProxyService::start(config, agents, peers, TcpTransport::default()).unwrap();
    service.agents().set_proxies(vec![info("a"), info("b")]).unwrap();
    balancer.add(agents_addr);
    (service, agents_addr)
}

/// A pool of `node-1` that does not wait for long.
fn quick() -> PoolConfig {
    PoolConfig {
        backoff: Limits {
            base: Duration::from_millis(1),
            max: Duration::from_millis(100),
        },
        spread: Duration::from_millis(10),
        ..PoolConfig::new(node("node-1"))
    }
}

/// Dials the node until the dial succeeds. Returns the ID of the proxy that holds the node.
async fn dial(service: &ProxyService) -> String {
    let mut holder = None;
    eventually("the node is reached", async || {
        let Ok(mut dialed) = service.dialer().dial(&node("node-1")).await else {
            return false;
        };
        holder = echo(&mut dialed.stream).await.is_ok().then(|| match dialed.via {
            Via::Local => service.proxy().id().to_owned(),
            Via::Peer(proxy) => proxy.id().to_owned(),
        });
        holder.is_some()
    })
    .await;
    holder.expect("a dial has succeeded")
}

#[tokio::test]
async fn a_node_is_reached_through_every_proxy_also_after_its_proxy_has_stopped() {
    let (tracker, balancer) = (Running::start().await, Balancer::new().await);
    let (a, a_addr) = service("a", &tracker, &balancer).await;
    let (b, b_addr) = service("b", &tracker, &balancer).await;
    let pool = serve_echo(AgentPool::new(quick(), TcpTransport::default()));
    pool.add_target(Target::new("main", &balancer.addr));
    let holder = dial(&a).await;
    assert_eq!(dial(&b).await, holder);
    assert_eq!(tracker.proxies(&node("node-1")), [holder.as_str()]);

    // The agent opens a tunnel to the other proxy before the first is closed.
    let (stopped, stopped_addr, other) = if holder == "a" { (a, a_addr, b) } else { (b, b_addr, a) };
    balancer.remove(stopped_addr);
    stopped
        .stop(Duration::from_millis(500), Duration::from_secs(5))
        .await
        .unwrap();
    assert_eq!(dial(&other).await, other.proxy().id());
    // The session reports the agent's new tunnel after a short delay.
    eventually("the tracker has only the other proxy", async || {
        tracker.proxies(&node("node-1")) == [other.proxy().id()]
    })
    .await;
}

#[tokio::test]
async fn a_service_that_is_dropped_leaves_its_agents_and_its_peers() {
    let (tracker, balancer) = (Running::start().await, Balancer::new().await);
    let (a, a_addr) = service("a", &tracker, &balancer).await;
    let pool = serve_echo(AgentPool::new(quick(), TcpTransport::default()));
    pool.add_target(Target::new("main", &balancer.addr));
    assert_eq!(dial(&a).await, "a");
    let (b, _) = service("b", &tracker, &balancer).await;
    let mut through_a = None;
    eventually("the node is reached through the peer", async || {
        through_a = b.dialer().dial(&node("node-1")).await.ok();
        through_a.is_some()
    })
    .await;

    balancer.remove(a_addr);
    // The clone of the dialer keeps nothing else of the service.
    let _dialer = a.dialer().clone();
    drop(a);
    let mut stream = through_a.unwrap().stream;
    let read = timeout(PATIENCE, stream.read(&mut [0])).await.expect("the tunnel ends");
    read.expect_err("this is no regular end");
    eventually("the agent has a tunnel to the other proxy", async || {
        b.agents().nodes() == [node("node-1")]
    })
    .await;
}
