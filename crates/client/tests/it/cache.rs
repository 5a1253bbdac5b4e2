//! Caches before real trackers.

use std::time::Duration;

use nodetracker_client::cache::{CacheConfig, Freshness, RouteCache};
use nodetracker_client::connect::channel::ConnectOptions;

use crate::in_process::{Tracker, eventually, node, proxies};

#[tokio::test]
async fn a_cache_that_follows_a_tracker_has_its_changes() {
    let tracker = Tracker::start().await;
    let name = node("node-1");
    tracker.report(&name, "proxy-1", "10.0.0.1:1");
    let mut config = CacheConfig::default();
    (config.ttl, config.negative_ttl) = (Duration::from_secs(3600), Duration::from_secs(3600));
    let cache = RouteCache::new(tracker.direct(), config);
    let follower = cache.follow(&[tracker.addr()], &ConnectOptions::default()).unwrap();
    eventually("the watch has begun", async || cache.stats().invalidations == 1).await;

    let found = async || {
        let answer = cache.look_up(&name).await.expect("the tracker answers");
        assert_eq!(answer.freshness, Freshness::Fresh);
        proxies(&answer.routes)
    };
    assert_eq!(found().await, [("proxy-1".into(), "10.0.0.1:1".into())]);
    assert_eq!(found().await.len(), 1);
    assert_eq!((cache.stats().hits, cache.stats().calls), (1, 1));

    tracker.report(&node("other"), "proxy-1", "10.0.0.9:1");
    eventually("the new address", async || {
        found().await == [("proxy-1".into(), "10.0.0.9:1".into())]
    })
    .await;
    tracker.table.remove_proxy_by_id("proxy-1");
    eventually("no route", async || found().await.is_empty()).await;
    tracker.report(&name, "proxy-2", "10.0.0.2:1");
    eventually("another route", async || found().await.len() == 1).await;

    // Without the watch, the time to live decides.
    drop(follower);
    let other = RouteCache::new(tracker.direct(), config);
    let _follower = other.follow(&[tracker.addr()], &ConnectOptions::default()).unwrap();
    eventually("the other watch has begun", async || other.stats().invalidations == 1).await;
    tracker.table.remove_proxy_by_id("proxy-2");
    eventually("a cache with a watch has the change", async || {
        other.stats().invalidations > 1
    })
    .await;
    assert_eq!(found().await, [("proxy-2".into(), "10.0.0.2:1".into())]);
    tracker.stop().await;
}
