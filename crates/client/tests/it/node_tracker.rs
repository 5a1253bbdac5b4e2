//! The cases that every implementation of the common API passes, on the implementations of this crate; and the limits
//! of the wire.

use std::sync::Arc;
use std::time::Duration;

use nodetracker::{MAX_ROUTES_PER_NODE, Proxy, RouteTable, Uuid};
use nodetracker_client::cache::{CacheConfig, RouteCache};
use nodetracker_client::client::ClientConfig;
use nodetracker_client::connect::WriteTo;
use nodetracker_client::connect::channel::ConnectConfig;
use nodetracker_client::tracker::{NodeTracker, TrackerError, conformance};
use nodetracker_proto::v1;
use nodetracker_proto::v1::admin_service_client::AdminServiceClient;
use nodetracker_proto::v1::node_id::Id;
use nodetracker_server::Config;

use crate::support::{PROXY, Running, client, node, patient, wait_until};

async fn check(tracker: impl NodeTracker + 'static) {
    let tracker = Arc::new(tracker);
    conformance::check(Arc::clone(&tracker) as _, async || {}).await;
    conformance::check_refreshes(&*tracker, async || {}).await;
}

#[tokio::test]
async fn the_table_of_this_process_conforms() {
    check(RouteTable::new()).await;
}

#[tokio::test]
async fn a_cache_conforms() {
    let cache = RouteCache::new(Arc::new(RouteTable::new()), CacheConfig::default());
    // A cache that follows its tracker has the changes after some milliseconds.
    conformance::check(Arc::new(cache.clone()), async || cache.invalidate_all()).await;
    conformance::check_refreshes(&cache, async || {}).await;
}

#[tokio::test]
async fn a_client_of_one_tracker_conforms() {
    let tracker = Running::start().await;
    check(client([tracker.at()], patient())).await;
}

#[tokio::test]
async fn a_client_of_two_trackers_conforms() {
    let trackers = [Running::start().await, Running::start().await];
    let client = client(trackers.iter().map(Running::at), patient());
    check(client.clone()).await;
    // Both have all routes.
    for tracker in &trackers {
        assert_eq!(tracker.proxies(&node("refresh")), ["refresh-1", "refresh-2"]);
    }
    assert_eq!(trackers[0].table.len(), trackers[1].table.len());
    for stats in client.stats() {
        assert_eq!((stats.failed_attempts, stats.missed_writes), (0, 0), "{stats:?}");
    }
}

#[tokio::test]
async fn a_write_to_one_goes_to_one_of_two_trackers() {
    let trackers = [Running::start().await, Running::start().await];
    let client_config = ClientConfig {
        write_to: WriteTo::One,
        ..patient()
    };
    let client = client(trackers.iter().map(Running::at), client_config);
    wait_until(&client, |stats| {
        stats.iter().all(|tracker| tracker.round_trip.is_some())
    })
    .await;
    client.add_nodes(&PROXY, &[node("node-1")]).await.unwrap();
    let routes: usize = trackers.iter().map(|tracker| tracker.table.len()).sum();
    assert_eq!(routes, 1);
}

/// The answer of a full batch has more bytes than a message may have.
#[tokio::test]
async fn an_answer_that_is_too_large_is_asked_for_in_parts() {
    let tracker = Running::start().await;
    let nodes: Vec<_> = (0..4096).map(|number| Uuid::from_u128(number).into()).collect();
    for number in 0..MAX_ROUTES_PER_NODE {
        let id = format!("proxy-{number}");
        tracker.table.report_nodes(&nodes, &Proxy { id: &id, ..PROXY }).unwrap();
    }
    let client = client([tracker.at()], patient());
    let routes = client.get_proxies_batch(&nodes).await.unwrap();
    assert_eq!(routes.len(), nodes.len());
    assert!(routes.iter().all(|routes| routes.len() == MAX_ROUTES_PER_NODE));
    // The whole is refused, and two halves are answered.
    assert_eq!(client.stats()[0].attempts, 3);
}

#[tokio::test]
async fn a_limit_of_the_tracker_is_an_error_with_its_delay() {
    let config = Config::default().listen_on("127.0.0.1:0");
    let config = config
        .with("max_routes", "2")
        .unwrap()
        .with("max_routes_per_proxy", "2")
        .unwrap()
        .with("max_share_per_client", "100")
        .unwrap();
    let tracker = Running::with_config(&config).await;
    let client_config = ClientConfig {
        deadline: Duration::from_secs(9),
        ..patient()
    };
    let client = client([tracker.at()], client_config);
    let nodes = [node("node-1"), node("node-2"), node("node-3")];
    match client.add_nodes(&PROXY, &nodes).await {
        Err(TrackerError::ResourceExhausted { message, retry_after }) => {
            assert!(message.contains("its maximum of 2 routes, after 2 nodes"), "{message}");
            assert_eq!(retry_after, Some(Duration::from_secs(10)));
        }
        other => panic!("{other:?}"),
    }
    // The delay is longer than the deadline.
    assert_eq!(client.stats()[0].attempts, 1);
}

#[tokio::test]
async fn a_complaint_is_explained_with_its_reporter_and_removes_nothing() {
    let tracker = Running::start().await;
    let client_config = ClientConfig {
        reporter_id: "proxy-9".into(),
        ..patient()
    };
    let client = client([tracker.at()], client_config);
    let node = node("node-1");
    client.add_nodes(&PROXY, std::slice::from_ref(&node)).await.unwrap();
    for _ in 0..2 {
        client.report_unreachable(&node, PROXY.id).await.unwrap();
    }
    assert_eq!(client.get_proxies(&node).await.unwrap().len(), 1);
    let channel = ConnectConfig::default().channel(&tracker.at());
    let request = v1::ExplainRequest {
        node: Some(v1::NodeId {
            id: Some(Id::Name("node-1".into())),
        }),
    };
    let explained = AdminServiceClient::new(channel)
        .explain(request)
        .await
        .unwrap()
        .into_inner();
    let complaint = explained.routes[0].complaint.clone().unwrap();
    assert_eq!((complaint.reporter_id.as_str(), complaint.count), ("proxy-9", 2));
}
