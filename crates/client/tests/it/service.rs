//! A whole fleet over TCP: a tracker, two proxies behind a load balancer, and an agent.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nodetracker_client::Proxy;
use nodetracker_client::backoff::Limits;
use nodetracker_client::cache::CacheConfig;
use nodetracker_client::pool::{AgentPool, PoolConfig, Target};
use nodetracker_client::proxy::{LookUps, ProxyService, ProxyServiceConfig, Via};
use nodetracker_client::replica::ReplicaConfig;
use nodetracker_client::session::SessionState;
use nodetracker_client::transport::tcp::{TcpAcceptor, TcpTransport};
use nodetracker_server::Config;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep, timeout};

use crate::fleet::{Balancer, PATIENCE, echo, serve_echo, wait_for};
use crate::support::{Running, eventually, node, within};

async fn service(id: &str, tracker: &Running, balancer: &Balancer) -> (ProxyService, SocketAddr) {
    service_with(id, tracker, balancer, |_| {}).await
}

/// A proxy behind the load balancer.
async fn service_with(
    id: &str,
    tracker: &Running,
    balancer: &Balancer,
    change: impl FnOnce(&mut ProxyServiceConfig),
) -> (ProxyService, SocketAddr) {
    let agents = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peers = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (agents_addr, peers_addr) = (agents.local_addr().unwrap(), peers.local_addr().unwrap().to_string());
    let proxy = Proxy {
        id,
        cluster_name: "main",
        addr: &peers_addr,
    };
    let mut config = ProxyServiceConfig::new(proxy, "test", vec![tracker.at()]);
    // Tests should be quick.
    config.discovery_interval = Duration::from_millis(400);
    config.listener.list_interval = Duration::from_secs(1);
    change(&mut config);
    let [agents, peers] = [agents, peers].map(TcpAcceptor::plaintext);
    let service = ProxyService::start(config, agents, peers, TcpTransport::default()).unwrap();
    balancer.add(agents_addr);
    (service, agents_addr)
}

/// Waits until agents of the proxy learn exactly these proxies.
async fn until_named(service: &ProxyService, ids: &[&str]) {
    let mut named = Vec::new();
    let is_named = eventually("the proxies are named", async || {
        let proxies = service.agents().proxies().into_iter();
        named = proxies.map(|proxy| proxy.proxy_id).collect::<Vec<_>>();
        named.sort_unstable();
        named == ids
    });
    is_named.await;
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
    let pool = serve_echo(AgentPool::start(quick(), TcpTransport::default()));
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
    let pool = serve_echo(AgentPool::start(quick(), TcpTransport::default()));
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

#[tokio::test]
async fn agents_learn_of_all_proxies_but_those_that_drain_or_die() {
    let (tracker, balancer) = (Running::start().await, Balancer::new().await);
    let (a, _) = service("a", &tracker, &balancer).await;
    let (b, b_addr) = service("b", &tracker, &balancer).await;
    let (c, c_addr) = service("c", &tracker, &balancer).await;
    let config = PoolConfig {
        connection_count: 0,
        ..quick()
    };
    let pool = serve_echo(AgentPool::start(config, TcpTransport::default()));
    pool.add_target(Target::new("main", &balancer.addr));
    wait_for(&pool, |counts, _| (counts.ready(), counts.total()) == (3, 3)).await;
    for service in [&a, &b, &c] {
        until_named(service, &["a", "b", "c"]).await;
        assert_eq!(dial(service).await, service.proxy().id());
    }

    balancer.remove(c_addr);
    c.agents().drain(Duration::ZERO);
    until_named(&a, &["a", "b"]).await;
    until_named(&b, &["a", "b"]).await;
    wait_for(&pool, |counts, _| (counts.ready(), counts.total()) == (2, 2)).await;
    c.agents().resume();
    balancer.add(c_addr);
    until_named(&a, &["a", "b", "c"]).await;

    balancer.remove(b_addr);
    drop(b);
    until_named(&a, &["a", "c"]).await;
    until_named(&c, &["a", "c"]).await;
}

#[cfg(feature = "metrics")]
#[tokio::test]
async fn the_metrics_of_a_service_end_with_the_service() {
    use prometheus_client::encoding::prometheus_text;
    use prometheus_client::registry::Registry;

    let (tracker, balancer) = (Running::start().await, Balancer::new().await);
    let (cached, _) = service("a", &tracker, &balancer).await;
    let (replicated, _) = service_with("b", &tracker, &balancer, |config| {
        config.look_ups = LookUps::Replica(ReplicaConfig::new([]));
    })
    .await;
    let no_dial = cached.dialer().dial(&node("unknown")).await;
    assert!(no_dial.is_err());
    let page = |registry: &Registry| {
        let mut page = String::new();
        prometheus_text::encode(&mut page, registry).unwrap();
        page
    };
    let open = format!("nodetracker_session_open{{tracker=\"{}\"}} 1\n", tracker.at());
    for (service, line) in [
        (cached, "nodetracker_cache_misses_total 1\n"),
        (replicated, "nodetracker_replica_snapshots_total 1\n"),
    ] {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(service.metrics()));
        eventually("the figures", async || {
            let page = page(&registry);
            page.contains(line) && page.contains(&open) && page.contains("\nnodetracker_listener_agents 0\n")
        })
        .await;
        drop(service);
        let page = page(&registry);
        assert!(!page.contains("nodetracker"), "{page}");
    }
}

#[tokio::test]
async fn proxies_of_other_clusters_are_not_named() {
    let (tracker, balancer) = (Running::start().await, Balancer::new().await);
    let (leaf, _) = service_with("leaf", &tracker, &balancer, |config| {
        let proxy = Proxy {
            cluster_name: "leaf",
            ..Proxy::from(&config.session.proxy)
        };
        config.session.proxy = proxy.into();
    })
    .await;
    let (a, _) = service("a", &tracker, &balancer).await;
    let (_b, _) = service("b", &tracker, &balancer).await;
    until_named(&a, &["a", "b"]).await;
    until_named(&leaf, &["leaf"]).await;
}

#[tokio::test]
async fn a_peer_whose_certificates_do_not_allow_its_id_is_not_named() {
    let (tracker, balancer) = (Running::start().await, Balancer::new().await);
    let (a, _) = service_with("a", &tracker, &balancer, |config| {
        config.verify_peers = Some(Arc::new(|id, _| match id {
            "b" => Err("no b".to_owned()),
            _ => Ok(()),
        }));
    })
    .await;
    let (b, _) = service("b", &tracker, &balancer).await;
    let (c, _) = service("c", &tracker, &balancer).await;
    until_named(&c, &["a", "b", "c"]).await;
    until_named(&a, &["a", "c"]).await;
    until_named(&b, &["b", "c"]).await;
    eventually("a ping is refused", async || a.peers().stats().failed > 0).await;
}

#[tokio::test]
async fn an_agent_whose_certificates_do_not_allow_its_node_is_refused() {
    let (tracker, balancer) = (Running::start().await, Balancer::new().await);
    let (a, _) = service_with("a", &tracker, &balancer, |config| {
        config.verify_agents = Some(Arc::new(|id, _| match id {
            "node-1" => Err("no certificate".to_owned()),
            _ => Ok(()),
        }));
    })
    .await;
    let pool = serve_echo(AgentPool::start(quick(), TcpTransport::default()));
    pool.add_target(Target::new("main", &balancer.addr));
    wait_for(&pool, |_, stats| stats.failures > 0).await;
    assert_eq!(a.agents().nodes(), []);
}

#[tokio::test]
async fn a_service_looks_up_in_a_replica_or_in_a_cache_that_follows() {
    let (tracker, balancer) = (Running::start().await, Balancer::new().await);
    let unused = Balancer::new().await;
    let hour = Duration::from_secs(3600);
    let mut long = CacheConfig::default();
    (long.ttl, long.negative_ttl) = (hour, hour);
    let cache = LookUps::Cache {
        config: long,
        follow: true,
    };
    let replica = LookUps::Replica(ReplicaConfig::new([]));
    let (a, _) = service_with("a", &tracker, &unused, |config| config.look_ups = cache).await;
    let (b, _) = service_with("b", &tracker, &unused, |config| config.look_ups = replica).await;
    let (_c, _) = service("c", &tracker, &balancer).await;
    for service in [&a, &b] {
        assert!(service.dialer().dial(&node("node-1")).await.is_err());
    }
    let pool = serve_echo(AgentPool::start(quick(), TcpTransport::default()));
    pool.add_target(Target::new("main", &balancer.addr));
    // The answer that the node is unknown is kept for an hour, unless the cache learns of the change.
    assert_eq!(dial(&a).await, "c");
    assert_eq!(dial(&b).await, "c");
}

#[tokio::test]
async fn a_service_whose_clock_was_set_back_takes_over_if_it_may() {
    let (tracker, balancer) = (Running::start().await, Balancer::new().await);
    let incarnation = |number, takes_over| {
        move |config: &mut ProxyServiceConfig| {
            config.session.incarnation = number;
            config.takes_over = takes_over;
        }
    };
    let (old, old_addr) = service_with("a", &tracker, &balancer, incarnation(1000, false)).await;
    eventually("the session is open", async || {
        old.session().stats()[0].state == SessionState::Open
    })
    .await;
    balancer.remove(old_addr);
    drop(old);

    let (refused, refused_addr) = service_with("a", &tracker, &balancer, incarnation(1, false)).await;
    assert_eq!(within(refused.superseded()).await.latest_incarnation, 1000);
    balancer.remove(refused_addr);
    drop(refused);

    let (a, _) = service_with("a", &tracker, &balancer, incarnation(1, true)).await;
    let pool = serve_echo(AgentPool::start(quick(), TcpTransport::default()));
    pool.add_target(Target::new("main", &balancer.addr));
    eventually("the tracker has the route", async || {
        tracker.proxies(&node("node-1")) == ["a"]
    })
    .await;
    let stats = a.session().stats();
    assert_eq!(stats[0].state, SessionState::Open, "{stats:?}");
    // For its agents, the process is the same process. A greater incarnation would end their older tunnels.
    assert_eq!(a.agents().proxies()[0].incarnation, 1);
    assert_eq!(pool.stats().lost, 0);

    // Another process takes over: this service does not fight.
    let (other, _) = service_with("a", &tracker, &balancer, incarnation(2000, false)).await;
    assert_eq!(within(a.superseded()).await.latest_incarnation, 2000);
    eventually("the session of the other process is open", async || {
        other.session().stats()[0].state == SessionState::Open
    })
    .await;
}

/// The routes expire after 5 s, and an agent is pinged each 10 s by default.
#[tokio::test]
async fn a_connected_node_keeps_its_route_also_if_routes_expire_soon() {
    let mut config = Config::default().listen_on("127.0.0.1:0");
    config.keep_alive.value = Duration::from_secs(5);
    let (tracker, balancer) = (Running::with_config(&config).await, Balancer::new().await);
    let (a, _) = service("a", &tracker, &balancer).await;
    let pool = serve_echo(AgentPool::start(quick(), TcpTransport::default()));
    pool.add_target(Target::new("main", &balancer.addr));
    assert_eq!(dial(&a).await, "a");
    eventually("the tracker has the route", async || {
        tracker.proxies(&node("node-1")) == ["a"]
    })
    .await;
    let end = Instant::now() + 2 * config.keep_alive.value;
    while Instant::now() < end {
        assert_eq!(tracker.proxies(&node("node-1")), ["a"]);
        sleep(Duration::from_millis(50)).await;
    }
}
