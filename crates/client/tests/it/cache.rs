//! Caches before real trackers.

use std::time::Duration;

use nodetracker_client::cache::{CacheConfig, Freshness, RouteCache};
use nodetracker_client::connect::channel::ConnectConfig;

use crate::support::{Running, eventually, node, proxies};

#[tokio::test]
async fn a_cache_that_follows_a_tracker_has_its_changes() {
    let tracker = Running::start().await;
    let name = node("node-1");
    tracker.report(&name, "proxy-1", "10.0.0.1:1");
    let mut config = CacheConfig::default();
    (config.ttl, config.negative_ttl) = (Duration::from_secs(3600), Duration::from_secs(3600));
    let cache = RouteCache::new(tracker.direct(), config);
    let follower = cache.follow(&[tracker.at()], &ConnectConfig::default()).unwrap();
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
    let _follower = other.follow(&[tracker.at()], &ConnectConfig::default()).unwrap();
    eventually("the other watch has begun", async || other.stats().invalidations == 1).await;
    tracker.table.remove_proxy_by_id("proxy-2");
    eventually("a cache with a watch has the change", async || {
        other.stats().invalidations > 1
    })
    .await;
    assert_eq!(found().await, [("proxy-2".into(), "10.0.0.2:1".into())]);
    tracker.stop().await;
}

#[tokio::test]
async fn a_cache_follows_all_trackers_and_each_again_after_a_cut() {
    let (first, second) = (Running::start().await, Running::start().await);
    let name = node("node-1");
    let mut config = CacheConfig::default();
    (config.ttl, config.negative_ttl) = (Duration::from_secs(3600), Duration::from_secs(3600));
    let cache = RouteCache::new(second.direct(), config);
    let trackers = [first.at(), second.at()];
    let _follower = cache.follow(&trackers, &ConnectConfig::default()).unwrap();
    let invalidations = || cache.stats().invalidations;
    eventually("both watches have begun", async || invalidations() == 2).await;
    let found = async || proxies(&cache.look_up(&name).await.expect("the tracker answers").routes);
    let proxy = |number: u8| (format!("proxy-{number}"), format!("10.0.0.{number}:1"));
    let report = |tracker: &Running, number| {
        let (id, addr) = proxy(number);
        tracker.report(&name, &id, &addr);
    };
    let change_is_noticed = async |tracker: &Running, number| {
        let before = invalidations();
        report(tracker, number);
        eventually("the change is noticed", async || invalidations() > before).await;
    };
    report(&first, 1);
    report(&second, 1);
    eventually("the first route", async || found().await == [proxy(1)]).await;

    // A change reaches the first tracker, and the look-up that follows asks the second tracker.
    change_is_noticed(&first, 2).await;
    assert_eq!(found().await, [proxy(1)]);
    report(&second, 2);
    eventually("the change", async || found().await == [proxy(2), proxy(1)]).await;

    // A cut of one watch does not delay the other.
    let addr = first.addr.to_string();
    first.stop().await;
    change_is_noticed(&second, 3).await;
    assert_eq!(found().await.len(), 3);
    let before = invalidations();
    let first = Running::start_on(&addr).await;
    eventually("the first is followed again", async || invalidations() > before).await;
    assert_eq!(found().await.len(), 3);
    change_is_noticed(&first, 4).await;
}
