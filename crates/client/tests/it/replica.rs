//! Replicas of real trackers.

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nodetracker::{NodeId, Proxy, RouteTable};
use nodetracker_client::backoff::Limits;
use nodetracker_client::listener::ListenerConfig;
use nodetracker_client::proxy::{DialError, Dialer, DialerConfig};
use nodetracker_client::replica::{Replica, ReplicaConfig, Status};
use nodetracker_client::tracker::{NodeTracker, conformance};
use nodetracker_client::transport::{Transport, Tunnel};

use crate::fleet::{self, info};
use crate::support::{Running, eventually, node, proxies, within};

fn config(trackers: &[&Running]) -> ReplicaConfig {
    let mut config = ReplicaConfig::new(trackers.iter().map(|tracker| tracker.at()));
    config.times.probe_interval = Duration::from_millis(20);
    config.times.backoff = Limits {
        base: Duration::from_millis(10),
        max: Duration::from_millis(50),
    };
    config
}

async fn becomes(replica: &Replica, node: &NodeId, expected: &[(&str, &str)]) {
    let what = format!("{node} becomes {expected:?}");
    let expected: Vec<_> = expected
        .iter()
        .map(|(id, addr)| ((*id).to_owned(), (*addr).to_owned()))
        .collect();
    let found = async || replica.look_up(node).map(|routes| proxies(&routes)) == Some(expected.clone());
    eventually(&what, found).await;
}

#[tokio::test]
async fn a_replica_has_what_the_tracker_has() {
    let tracker = Running::start().await;
    let (name, uuid) = (node("node-1"), node("550e8400-e29b-41d4-a716-446655440000"));
    for number in 0..3_000 {
        tracker.report(&node(&format!("filler-{number}")), "proxy-1", "10.0.0.1:1");
    }
    tracker.report(&uuid, "proxy-1", "10.0.0.1:1");
    let replica = Replica::start(config(&[&tracker]), tracker.direct()).unwrap();
    within(replica.ready()).await;
    assert_eq!(replica.stats().routes, 3_001);
    becomes(&replica, &uuid, &[("proxy-1", "10.0.0.1:1")]).await;
    assert_eq!(replica.look_up(&name), Some(vec![]));

    // The latest comes first.
    tracker.report(&name, "proxy-1", "10.0.0.1:1");
    tracker.report(&name, "proxy-2", "10.0.0.2:1");
    becomes(&replica, &name, &[("proxy-2", "10.0.0.2:1"), ("proxy-1", "10.0.0.1:1")]).await;
    // A new address applies to all routes of the proxy.
    tracker.report(&node("other"), "proxy-1", "10.0.0.9:1");
    becomes(&replica, &name, &[("proxy-2", "10.0.0.2:1"), ("proxy-1", "10.0.0.9:1")]).await;
    tracker.table.remove_proxy_by_id("proxy-1");
    becomes(&replica, &name, &[("proxy-2", "10.0.0.2:1")]).await;
    becomes(&replica, &uuid, &[]).await;
    // The proxy returns, under another registration.
    tracker.report(&uuid, "proxy-1", "10.0.0.1:1");
    becomes(&replica, &uuid, &[("proxy-1", "10.0.0.1:1")]).await;
    tracker.table.remove_node(&name);
    becomes(&replica, &name, &[]).await;
    assert_eq!(replica.stats().snapshots, 1);

    // The routes of removed proxies leave the copy's memory. The tracker sweeps in its own time.
    eventually("the copy is swept", async || replica.stats().routes == 1).await;
    drop(replica);
    tracker.stop().await;
}

#[test]
fn https_needs_tls() {
    let config = ReplicaConfig::new(["https://tracker.example:3029".parse().unwrap()]);
    let error = Replica::start(config, Arc::new(RouteTable::new())).unwrap_err();
    assert_eq!(
        error.to_string(),
        "https://tracker.example:3029 needs TLS: set ConnectConfig::tls"
    );
}

#[tokio::test]
async fn without_a_tracker_the_last_copy_is_served_and_gets_older() {
    let tracker = Running::start().await;
    let old = node("old");
    tracker.report(&old, "proxy-1", "10.0.0.1:1");
    let replica = Replica::start(config(&[&tracker]), tracker.direct()).unwrap();
    within(replica.ready()).await;
    eventually("the replica is up to date", async || {
        replica
            .staleness()
            .is_some_and(|staleness| staleness < Duration::from_secs(1))
    })
    .await;

    let addr = tracker.at();
    let direct = tracker.direct();
    tracker.stop().await;
    within(replica.wait_until(|stats| stats.status == Status::Behind)).await;
    becomes(&replica, &old, &[("proxy-1", "10.0.0.1:1")]).await;
    let behind = replica.staleness();
    eventually("the staleness grows", async || replica.staleness() > behind).await;

    // Without a tracker, a replica that starts has no answer of its own.
    let starting = Replica::start(ReplicaConfig::new([addr]), Arc::clone(&direct)).unwrap();
    assert_eq!(
        (starting.look_up(&old), starting.staleness(), starting.is_ready()),
        (None, None, false)
    );
    assert_eq!(
        proxies(&starting.get_proxies(&old).await.expect("it asks the tracker")).len(),
        1
    );
}

#[tokio::test]
async fn after_a_restart_the_replica_has_the_new_table() {
    let tracker = Running::start().await;
    let (old, new) = (node("old"), node("new"));
    tracker.report(&old, "proxy-1", "10.0.0.1:1");
    let replica = Replica::start(config(&[&tracker]), tracker.direct()).unwrap();
    within(replica.ready()).await;
    let tracker = tracker.restart().await;
    tracker.report(&new, "proxy-2", "10.0.0.2:1");
    becomes(&replica, &new, &[("proxy-2", "10.0.0.2:1")]).await;
    assert_eq!(replica.look_up(&old), Some(vec![]));
    let stats = replica.stats();
    assert_eq!((stats.status, stats.snapshots), (Status::Following, 2));
    assert!(stats.ended >= 1 && stats.lost_places == 1, "{stats:?}");
}

#[tokio::test]
async fn a_replica_watches_the_next_tracker_if_the_first_is_gone() {
    let (first, second) = (Running::start().await, Running::start().await);
    let name = node("node-1");
    first.report(&name, "proxy-1", "10.0.0.1:1");
    second.report(&name, "proxy-2", "10.0.0.2:1");
    let replica = Replica::start(config(&[&first, &second]), second.direct()).unwrap();
    within(replica.ready()).await;
    becomes(&replica, &name, &[("proxy-1", "10.0.0.1:1")]).await;
    first.stop().await;
    becomes(&replica, &name, &[("proxy-2", "10.0.0.2:1")]).await;
    assert_eq!(replica.stats().tracker, 1);
}

#[tokio::test]
async fn writes_go_to_the_tracker_and_come_back() {
    let tracker = Running::start().await;
    let replica = Replica::start(config(&[&tracker]), tracker.direct()).unwrap();
    within(replica.ready()).await;
    let name = node("node-1");
    let proxy = Proxy {
        id: "proxy-1",
        cluster_name: "main",
        addr: "10.0.0.1:1",
    };
    let nodes = std::slice::from_ref(&name);
    replica.add_nodes(&proxy, nodes).await.expect("it is added");
    becomes(&replica, &name, &[("proxy-1", "10.0.0.1:1")]).await;
    replica.remove_nodes("proxy-1", nodes).await.expect("it is removed");
    becomes(&replica, &name, &[]).await;
    replica.add_nodes(&proxy, nodes).await.expect("it is added");
    becomes(&replica, &name, &[("proxy-1", "10.0.0.1:1")]).await;
    replica.remove_proxy("proxy-1").await.expect("it is removed");
    becomes(&replica, &name, &[]).await;
}

/// Reaches no proxy.
struct NoRoute;

#[async_trait::async_trait]
impl Transport for NoRoute {
    async fn connect(&self, _: &str) -> io::Result<Arc<dyn Tunnel>> {
        Err(io::ErrorKind::HostUnreachable.into())
    }
}

#[tokio::test]
async fn a_dial_tries_each_proxy_of_a_node_once() {
    let tracker = Running::start().await;
    let name = node("node-1");
    tracker.report(&name, "proxy-1", "10.0.0.1:1");
    let replica = Replica::start(config(&[&tracker]), tracker.direct()).unwrap();
    within(replica.ready()).await;
    let proxy = fleet::Proxy::new(ListenerConfig::new(info("proxy-2")));
    let agents = proxy.listener.clone();
    let dialer = Dialer::new(DialerConfig::new("proxy-2"), agents, Arc::new(replica), NoRoute);
    // The copy and the tracker have different times of the route.
    let Err(DialError::Unreachable { attempts, .. }) = dialer.dial(&name).await else {
        panic!("no proxy can be reached")
    };
    assert_eq!(attempts.len(), 1, "{attempts:?}");
}

#[tokio::test]
async fn a_replica_conforms() {
    let tracker = Running::start().await;
    let replica = Arc::new(Replica::start(config(&[&tracker]), tracker.direct()).unwrap());
    within(replica.ready()).await;
    // All nodes that the tracker has had at the end of a case's step.
    let seen = Mutex::new(HashSet::new());
    conformance::check(Arc::clone(&replica) as _, async || {
        let mut nodes = seen.lock().unwrap().clone();
        tracker.table.for_each_route(|node, _| _ = nodes.insert(node.clone()));
        seen.lock().unwrap().clone_from(&nodes);
        let of_tracker = tracker.direct();
        eventually("the replica has caught up", async || {
            for node in &nodes {
                let expected = of_tracker.get_proxies(node).await.expect("the table answers");
                if replica.look_up(node).map(|routes| proxies(&routes)) != Some(proxies(&expected)) {
                    return false;
                }
            }
            true
        })
        .await;
    })
    .await;
}
