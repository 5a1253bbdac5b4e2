//! The cases that every [`NodeTracker`] must pass.
//!
//! This crate runs the cases on its own implementations. The author of another implementation runs them in a test:
//!
//! ```
//! use std::sync::Arc;
//!
//! use nodetracker_client::tracker::conformance;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let tracker = Arc::new(nodetracker::RouteTable::new());
//! conformance::check(tracker.clone(), async || {}).await;
//! conformance::check_refreshes(&*tracker, async || {}).await;
//! # }
//! ```
//!
//! The tracker must be empty, have room for 20,000 routes and 64 proxies, and let the caller write for any proxy. Each
//! case uses its own nodes and proxies. A case that fails panics; the message and the place in this file name the case.
//!
//! `settle` returns when look-ups return the effect of every call that has returned before. If look-ups return the
//! effect of a call at once, `settle` has nothing to do. For a copy of another tracker, `settle` waits until the copy
//! has caught up.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use nodetracker::{MAX_TEXT, NodeId, Proxy, Uuid};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::tracker::{NodeTracker, Route, TrackerError};

/// Runs all cases but [`check_refreshes`].
///
/// # Panics
///
/// If the tracker fails a case, or outside of a tokio runtime.
pub async fn check(tracker: Arc<dyn NodeTracker>, settle: impl AsyncFn()) {
    concurrent_calls_lose_nothing(&tracker, &settle).await;
    let tracker = &*tracker;
    unknown_nodes_have_no_routes(tracker).await;
    the_newest_route_comes_first(tracker, &settle).await;
    repeated_calls_have_the_effect_of_one(tracker, &settle).await;
    invalid_arguments_are_named_and_change_nothing(tracker, &settle).await;
    removals_name_a_proxy(tracker, &settle).await;
    an_address_applies_to_all_routes_of_a_proxy(tracker, &settle).await;
    a_removal_of_nodes_leaves_the_routes_of_other_proxies(tracker, &settle).await;
    a_removed_proxy_has_no_routes_until_it_reports_again(tracker, &settle).await;
    uuids_have_many_spellings_and_names_one(tracker, &settle).await;
    the_latest_routes_have_each_call(tracker).await;
    batches_of_any_size_keep_their_order(tracker, &settle).await;
    // The last case: a copy may leave the reported route out for a while.
    complaints_leave_the_other_routes(tracker, &settle).await;
}

/// Checks that a refresh moves a route to the front, and advances its time. A copy that follows the changes of another
/// tracker may fail this case, because a refresh is not a change.
///
/// # Panics
///
/// If the tracker fails the case.
pub async fn check_refreshes(tracker: &dyn NodeTracker, settle: impl AsyncFn()) {
    let nodes = [node("refresh")];
    let (first, second) = (proxy("refresh-1"), proxy("refresh-2"));
    add(tracker, &first, &nodes).await;
    add(tracker, &second, &nodes).await;
    settle().await;
    let before = get(tracker, &nodes[0]).await;
    // Routes have their time to the millisecond.
    std::thread::sleep(Duration::from_millis(20));
    add(tracker, &first, &nodes).await;
    settle().await;
    let after = get(tracker, &nodes[0]).await;
    assert_eq!(ids(&after), ["refresh-1", "refresh-2"]);
    assert!(after[0].last_refresh > before[1].last_refresh, "{before:?} {after:?}");
    assert_eq!(after[1], before[0], "the refresh of a route changed another");
}

fn node(name: &str) -> NodeId {
    name.parse().expect("a name of a case is an ID")
}

fn proxy(id: &str) -> Proxy<'_> {
    Proxy {
        id,
        cluster_name: "main",
        addr: "10.0.0.1:3080",
    }
}

fn ids(routes: &[Route]) -> Vec<&str> {
    routes.iter().map(|route| route.proxy.id()).collect()
}

async fn add(tracker: &dyn NodeTracker, proxy: &Proxy<'_>, nodes: &[NodeId]) {
    tracker.add_nodes(proxy, nodes).await.expect("valid nodes are added");
}

async fn get(tracker: &dyn NodeTracker, node: &NodeId) -> Vec<Route> {
    tracker.get_proxies(node).await.expect("a look-up succeeds")
}

async fn unknown_nodes_have_no_routes(tracker: &dyn NodeTracker) {
    assert_eq!(get(tracker, &node("unknown")).await, []);
    let nodes = [node("unknown"), Uuid::from_u128(1).into()];
    assert_eq!(tracker.get_proxies_batch(&nodes).await, Ok(vec![vec![], vec![]]));
    assert_eq!(tracker.get_proxies_batch(&[]).await, Ok(vec![]));
}

async fn the_newest_route_comes_first(tracker: &dyn NodeTracker, settle: &impl AsyncFn()) {
    let nodes = [node("newest")];
    let proxies = ["newest-1", "newest-2", "newest-3"];
    for id in proxies {
        add(tracker, &proxy(id), &nodes).await;
    }
    settle().await;
    let routes = get(tracker, &nodes[0]).await;
    assert_eq!(ids(&routes), ["newest-3", "newest-2", "newest-1"]);
    for route in &routes {
        assert_eq!(route.proxy, proxy(route.proxy.id()).into());
        let age = SystemTime::now().duration_since(route.last_refresh);
        let off = age.unwrap_or_else(|ahead| ahead.duration());
        assert!(
            off < Duration::from_secs(60),
            "the time of a new route is off by {off:?}"
        );
    }
    assert_eq!(tracker.get_proxies_batch(&nodes).await, Ok(vec![routes]));
}

async fn repeated_calls_have_the_effect_of_one(tracker: &dyn NodeTracker, settle: &impl AsyncFn()) {
    let (nodes, proxy) = ([node("repeated"), node("repeated")], proxy("repeated"));
    for _ in 0..2 {
        add(tracker, &proxy, &nodes).await;
        settle().await;
        assert_eq!(ids(&get(tracker, &nodes[0]).await), [proxy.id]);
    }
    for _ in 0..2 {
        assert_eq!(tracker.remove_nodes(proxy.id, &nodes).await, Ok(()));
        settle().await;
        assert_eq!(get(tracker, &nodes[0]).await, []);
    }
    for _ in 0..2 {
        assert_eq!(tracker.remove_proxy(proxy.id).await, Ok(()));
    }
}

async fn invalid_arguments_are_named_and_change_nothing(tracker: &dyn NodeTracker, settle: &impl AsyncFn()) {
    let nodes = [node("invalid")];
    let valid = proxy("invalid");
    let long = "x".repeat(MAX_TEXT + 1);
    for (field, invalid) in [
        ("proxy id", Proxy { id: "", ..valid }),
        ("proxy id", Proxy { id: &long, ..valid }),
        ("proxy id", Proxy { id: "a\nb", ..valid }),
        (
            "cluster",
            Proxy {
                cluster_name: &long,
                ..valid
            },
        ),
        ("addr", Proxy { addr: "", ..valid }),
        (
            "addr",
            Proxy {
                addr: "10.0.0.1",
                ..valid
            },
        ),
        (
            "addr",
            Proxy {
                addr: "0.0.0.0:3080",
                ..valid
            },
        ),
    ] {
        match tracker.add_nodes(&invalid, &nodes).await {
            Err(TrackerError::InvalidArgument(message)) => {
                assert!(
                    message.to_lowercase().replace('_', " ").contains(field),
                    "{message:?} does not name {field}"
                );
            }
            other => panic!("{invalid:?}: {other:?} is no invalid argument"),
        }
    }
    settle().await;
    assert_eq!(get(tracker, &nodes[0]).await, []);
    // An empty cluster is valid, and so are the longest strings.
    let longest = &long[..MAX_TEXT];
    let unusual = Proxy {
        id: longest,
        cluster_name: "",
        addr: "[::1]:1",
    };
    add(tracker, &unusual, &[node(longest)]).await;
    settle().await;
    assert_eq!(ids(&get(tracker, &node(longest)).await), [longest]);
}

/// An empty ID must not mean the routes of all proxies.
async fn removals_name_a_proxy(tracker: &dyn NodeTracker, settle: &impl AsyncFn()) {
    let nodes = [node("named")];
    add(tracker, &proxy("named"), &nodes).await;
    for id in ["", &"x".repeat(MAX_TEXT + 1)] {
        for refused in [tracker.remove_nodes(id, &nodes).await, tracker.remove_proxy(id).await] {
            assert!(
                matches!(refused, Err(TrackerError::InvalidArgument(_))),
                "{id:?}: {refused:?}"
            );
        }
    }
    settle().await;
    assert_eq!(ids(&get(tracker, &nodes[0]).await), ["named"]);
}

async fn an_address_applies_to_all_routes_of_a_proxy(tracker: &dyn NodeTracker, settle: &impl AsyncFn()) {
    let nodes = [node("moved-1"), node("moved-2")];
    let before = proxy("moved");
    let after = Proxy {
        cluster_name: "other",
        addr: "10.0.0.2:3080",
        ..before
    };
    add(tracker, &before, &nodes).await;
    // Without nodes, the call only changes the proxy.
    add(tracker, &after, &[]).await;
    settle().await;
    for node in &nodes {
        assert_eq!(get(tracker, node).await[0].proxy, after.into());
    }
}

async fn a_removal_of_nodes_leaves_the_routes_of_other_proxies(tracker: &dyn NodeTracker, settle: &impl AsyncFn()) {
    let nodes = [node("shared-1"), node("shared-2")];
    add(tracker, &proxy("shared-1"), &nodes).await;
    add(tracker, &proxy("shared-2"), &nodes).await;
    let unknown = [nodes[0].clone(), node("unknown")];
    assert_eq!(tracker.remove_nodes("shared-2", &unknown).await, Ok(()));
    assert_eq!(tracker.remove_nodes("unknown", &nodes).await, Ok(()));
    settle().await;
    assert_eq!(ids(&get(tracker, &nodes[0]).await), ["shared-1"]);
    assert_eq!(ids(&get(tracker, &nodes[1]).await), ["shared-2", "shared-1"]);
}

async fn a_removed_proxy_has_no_routes_until_it_reports_again(tracker: &dyn NodeTracker, settle: &impl AsyncFn()) {
    let nodes = [node("removed-1"), node("removed-2")];
    add(tracker, &proxy("removed"), &nodes).await;
    add(tracker, &proxy("stays"), &nodes).await;
    assert_eq!(tracker.remove_proxy("removed").await, Ok(()));
    settle().await;
    for node in &nodes {
        assert_eq!(ids(&get(tracker, node).await), ["stays"]);
    }
    add(tracker, &proxy("removed"), &nodes[..1]).await;
    settle().await;
    assert_eq!(ids(&get(tracker, &nodes[0]).await), ["removed", "stays"]);
    assert_eq!(ids(&get(tracker, &nodes[1]).await), ["stays"]);
    assert_eq!(tracker.remove_proxy("unknown").await, Ok(()));
}

async fn uuids_have_many_spellings_and_names_one(tracker: &dyn NodeTracker, settle: &impl AsyncFn()) {
    let uuid = Uuid::from_u128(0x550e_8400_e29b_41d4_a716_4466_5544_0000);
    let names = [node("Name"), node("näme"), node(" name")];
    add(
        tracker,
        &proxy("spelled"),
        &[&[NodeId::from(uuid)], &names[..]].concat(),
    )
    .await;
    settle().await;
    for text in [
        uuid.simple().to_string(),
        uuid.urn().to_string().to_uppercase(),
        uuid.braced().to_string(),
    ] {
        assert_eq!(ids(&get(tracker, &node(&text)).await), ["spelled"], "{text}");
    }
    for name in &names {
        assert_eq!(ids(&get(tracker, name).await), ["spelled"], "{name}");
    }
    assert_eq!(get(tracker, &node("name")).await, []);
}

async fn complaints_leave_the_other_routes(tracker: &dyn NodeTracker, settle: &impl AsyncFn()) {
    let nodes = [node("complaint")];
    for id in ["complaint-1", "complaint-2"] {
        add(tracker, &proxy(id), &nodes).await;
    }
    settle().await;
    for _ in 0..2 {
        assert_eq!(tracker.report_unreachable(&nodes[0], "complaint-1").await, Ok(()));
        let routes = get(tracker, &nodes[0]).await;
        assert!(ids(&routes).contains(&"complaint-2"), "{routes:?}");
    }
}

/// Without `settle`: these look-ups do not ask a copy.
async fn the_latest_routes_have_each_call(tracker: &dyn NodeTracker) {
    let nodes = [node("latest")];
    for _ in 0..2 {
        add(tracker, &proxy("latest"), &nodes).await;
        let routes = tracker.get_latest_proxies(&nodes[0]).await.expect("a look-up succeeds");
        assert_eq!(ids(&routes), ["latest"]);
        assert_eq!(tracker.remove_proxy("latest").await, Ok(()));
        assert_eq!(tracker.get_latest_proxies(&nodes[0]).await, Ok(vec![]));
    }
}

/// More nodes than a call of the wire contract may have, and more bytes; UUIDs and names in turn.
async fn batches_of_any_size_keep_their_order(tracker: &dyn NodeTracker, settle: &impl AsyncFn()) {
    const NODES: u128 = 10_000;
    let nodes: Vec<NodeId> = (0..NODES)
        .map(|number| match number % 3 {
            0 => Uuid::from_u128(number << 64 | 0xba7c).into(),
            1 => node(&format!("batch-{number}")),
            _ => node(&format!("{number:0>200}")),
        })
        .collect();
    // Every node has a route, every second node has two.
    let halves: Vec<_> = nodes.iter().step_by(2).cloned().collect();
    add(tracker, &proxy("batch-1"), &nodes).await;
    add(tracker, &proxy("batch-2"), &halves).await;
    settle().await;
    // An unknown node and a repeated node.
    let asked = [&[node("unknown"), nodes[1].clone()], &nodes[..]].concat();
    let routes = tracker.get_proxies_batch(&asked).await.expect("a look-up succeeds");
    assert_eq!(routes.len(), asked.len());
    assert_eq!(ids(&routes[0]), [""; 0]);
    assert_eq!(ids(&routes[1]), ["batch-1"]);
    for (at, routes) in routes[2..].iter().enumerate() {
        let expected = [&["batch-2", "batch-1"][..], &["batch-1"]][at % 2];
        assert_eq!(ids(routes), expected, "node {at}, {}", nodes[at]);
    }
    assert_eq!(tracker.remove_nodes("batch-1", &nodes).await, Ok(()));
    settle().await;
    let routes = tracker.get_proxies_batch(&nodes).await.expect("a look-up succeeds");
    for (at, routes) in routes.iter().enumerate() {
        let expected = [&["batch-2"][..], &[]][at % 2];
        assert_eq!(ids(routes), expected, "node {at}, {}", nodes[at]);
    }
}

/// Threads, because the calls of a table in this process never wait.
async fn concurrent_calls_lose_nothing(tracker: &Arc<dyn NodeTracker>, settle: &impl AsyncFn()) {
    const PROXIES: usize = 16;
    let nodes: Vec<_> = (0..20).map(|number| node(&format!("concurrent-{number}"))).collect();
    let mut names: Vec<_> = (0..PROXIES).map(|number| format!("concurrent-{number}")).collect();
    let mut threads = JoinSet::new();
    for id in names.clone() {
        let (tracker, nodes, runtime) = (Arc::clone(tracker), nodes.clone(), Handle::current());
        threads.spawn_blocking(move || {
            for node in &nodes {
                let added = runtime.block_on(tracker.add_nodes(&proxy(&id), std::slice::from_ref(node)));
                added.expect("valid nodes are added");
            }
        });
    }
    threads.join_all().await;
    settle().await;
    names.sort_unstable();
    for routes in join_all(nodes.iter().map(|node| get(&**tracker, node))).await {
        let mut found = ids(&routes);
        found.sort_unstable();
        assert_eq!(found, names);
    }
}
