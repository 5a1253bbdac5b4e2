//! The cache before a tracker that changes, delays and fails, on a paused clock.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, mpsc};
use std::time::SystemTime;

use fastrand::Rng;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, try_join_all};
use nodetracker_proto::v1;
use nodetracker_proto::v1::ProxyChangeReason;
use nodetracker_proto::v1::node_id::Id;
use nodetracker_proto::v1::watch_change::Change;
use nodetracker_proto::v1::watch_response::Message;
use tokio::runtime::Builder;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{advance, sleep, sleep_until};

use super::*;
use crate::seeds::Seeds;

const NODES: u64 = 6;
const CONFIG: CacheConfig = CacheConfig {
    capacity: 1_000,
    ttl: Duration::from_secs(10),
    negative_ttl: Duration::from_secs(2),
    max_stale: Duration::from_secs(60),
    complaint_ttl: Duration::from_secs(30),
};
/// The longest call.
const SLOWEST: Duration = Duration::from_millis(900);

/// The proxies of a node, from a moment on.
type Version = (Instant, Vec<String>);

/// A tracker whose calls take a while.
#[derive(Default)]
struct Slow {
    /// What each node's routes were, the latest last.
    versions: Mutex<HashMap<NodeId, Vec<Version>>>,
    refreshes: Mutex<BTreeMap<(NodeId, String), u64>>,
    delays: Mutex<Option<Rng>>,
    is_down: AtomicBool,
    complaints: Mutex<Vec<(NodeId, String)>>,
    /// Whether writes get no answer.
    hangs: AtomicBool,
    /// The wait before a write changes the routes.
    write_delay: Mutex<Duration>,
}

impl Slow {
    fn versions(&self) -> MutexGuard<'_, HashMap<NodeId, Vec<Version>>> {
        self.versions.lock().expect("no test has panicked")
    }

    fn set(&self, node: &NodeId, proxies: &[&str]) {
        let proxies = proxies.iter().map(ToString::to_string).collect();
        self.versions()
            .entry(node.clone())
            .or_default()
            .push((Instant::now(), proxies));
    }

    fn refresh(&self, node: &NodeId, proxy: &str) {
        let mut refreshes = self.refreshes.lock().expect("no test has panicked");
        *refreshes.entry((node.clone(), proxy.to_owned())).or_insert(0) += 1;
    }

    fn set_down(&self, is_down: bool) {
        self.is_down.store(is_down, Ordering::Relaxed);
    }

    /// Replaces the routes of `node-1` with a route through `b`, as each write of a test does.
    async fn write(&self) -> Result<(), TrackerError> {
        let delay = *self.write_delay.lock().expect("no test has panicked");
        if !delay.is_zero() {
            sleep(delay).await;
        }
        self.set(&node(1), &["b"]);
        if self.hangs.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    fn delay(&self) -> Duration {
        let mut delays = self.delays.lock().expect("no test has panicked");
        let half = SLOWEST.as_millis() as u64 / 2;
        Duration::from_millis(delays.as_mut().map_or(half, |random| random.u64(..half)))
    }

    /// Whether a node had these proxies at some moment from `from` to `to`.
    fn had(&self, node: &NodeId, proxies: &[String], from: Instant, to: Instant) -> bool {
        let versions = self.versions();
        let versions = versions.get(node).map_or(&[][..], Vec::as_slice);
        let untouched = versions.first().is_none_or(|(since, _)| *since >= from);
        let ends = versions.iter().skip(1).map(|(end, _)| *end).chain([to + SLOWEST]);
        let mut periods = versions.iter().zip(ends);
        untouched && proxies.is_empty()
            || periods.any(|((since, had), end)| had == proxies && *since <= to && end >= from)
    }
}

#[async_trait]
impl NodeTracker for Slow {
    async fn add_nodes(&self, _: &Proxy<'_>, _: &[NodeId]) -> Result<(), TrackerError> {
        self.write().await
    }

    async fn get_proxies(&self, node: &NodeId) -> Result<Vec<Route>, TrackerError> {
        sleep(self.delay()).await;
        let proxies = self
            .versions()
            .get(node)
            .and_then(|all| all.last())
            .map(|(_, proxies)| proxies.clone());
        let is_down = self.is_down.load(Ordering::Relaxed);
        sleep(self.delay()).await;
        if is_down {
            return Err(TrackerError::Unavailable("down".to_owned()));
        }
        let refreshes = self.refreshes.lock().expect("no test has panicked");
        let route = |id: String| Route {
            proxy: Proxy {
                id: &id,
                cluster_name: "",
                addr: "proxy:1",
            }
            .into(),
            last_refresh: {
                let count = refreshes.get(&(node.clone(), id)).copied().unwrap_or(0);
                SystemTime::UNIX_EPOCH + Duration::from_secs(count)
            },
        };
        Ok(proxies.unwrap_or_default().into_iter().map(route).collect())
    }

    async fn get_proxies_batch(&self, nodes: &[NodeId]) -> Result<Vec<Vec<Route>>, TrackerError> {
        try_join_all(nodes.iter().map(|node| self.get_proxies(node))).await
    }

    async fn remove_nodes(&self, _: &str, _: &[NodeId]) -> Result<(), TrackerError> {
        self.write().await
    }

    async fn remove_proxy(&self, _: &str) -> Result<(), TrackerError> {
        self.write().await
    }

    async fn report_unreachable(&self, node: &NodeId, proxy_id: &str) -> Result<(), TrackerError> {
        let mut complaints = self.complaints.lock().expect("no test has panicked");
        complaints.push((node.clone(), proxy_id.to_owned()));
        Ok(())
    }
}

fn node(number: u64) -> NodeId {
    format!("node-{number}").parse().expect("a name")
}

fn make() -> (Arc<Slow>, RouteCache) {
    let tracker = Arc::new(Slow::default());
    let cache = RouteCache::new(Arc::clone(&tracker) as Arc<dyn NodeTracker>, CONFIG);
    (tracker, cache)
}

fn ids(answer: &Answer) -> Vec<String> {
    answer.routes.iter().map(|route| route.proxy.id().to_owned()).collect()
}

async fn look_up(cache: &RouteCache) -> (Vec<String>, Freshness) {
    let answer = cache.look_up(&node(1)).await.expect("there is an answer");
    (ids(&answer), answer.freshness)
}

/// Begins a look-up of node 1, and changes its route from `a` to `b` while the tracker's reply is on its way. The
/// result is the look-up's routes.
async fn look_up_before_a_change(tracker: &Slow, cache: &RouteCache) -> JoinHandle<Vec<String>> {
    tracker.set(&node(1), &["a"]);
    let early = {
        let cache = cache.clone();
        tokio::spawn(async move { look_up(&cache).await.0 })
    };
    // The tracker has read the routes, and the reply is on its way.
    sleep(SLOWEST * 2 / 3).await;
    tracker.set(&node(1), &["b"]);
    early
}

fn change_of(node: &NodeId) -> Message {
    let routes = v1::NodeRoutes {
        node: Some(v1::NodeId {
            id: Some(Id::Name(node.to_string())),
        }),
        routes: Vec::new(),
    };
    changes(Change::Node(v1::WatchNodeChange {
        routes: Some(routes),
        ..v1::WatchNodeChange::default()
    }))
}

fn changes(change: Change) -> Message {
    Message::Changes(v1::WatchChanges {
        proxies: Vec::new(),
        changes: vec![v1::WatchChange {
            sequence: 1,
            change: Some(change),
        }],
    })
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_fresh_for_its_time_and_an_empty_one_for_less() {
    let (tracker, cache) = make();
    tracker.set(&node(1), &["a", "b"]);
    for (wait, calls) in [(0, 1), (5, 1), (6, 2)] {
        advance(Duration::from_secs(wait)).await;
        assert_eq!(look_up(&cache).await, (vec!["a".into(), "b".into()], Freshness::Fresh));
        assert_eq!(cache.stats().calls, calls, "after another {wait} s");
    }
    for (wait, calls) in [(0, 3), (1, 3), (2, 4)] {
        advance(Duration::from_secs(wait)).await;
        assert!(cache.look_up(&node(2)).await.expect("an answer").routes.is_empty());
        assert_eq!(cache.stats().calls, calls, "after another {wait} s");
    }
    assert_eq!((cache.stats().hits, cache.stats().misses), (2, 4));
}

#[tokio::test(start_paused = true)]
async fn look_ups_at_the_same_time_share_a_call_and_its_error() {
    let (tracker, cache) = make();
    tracker.set(&node(1), &["a"]);
    for (is_down, calls) in [(true, 1), (false, 2)] {
        tracker.set_down(is_down);
        let mut herd = JoinSet::new();
        for number in 0..100 {
            let cache = cache.clone();
            let one = herd.spawn(async move { cache.look_up(&node(1)).await.is_err() });
            if number == 0 {
                tokio::task::yield_now().await;
                // The look-up that began the call goes away.
                one.abort();
            }
        }
        let failed: Vec<_> = herd.join_all_but_cancelled().await;
        assert_eq!((failed.len(), cache.stats().calls), (99, calls));
        assert!(failed.into_iter().all(|failed| failed == is_down));
    }
}

/// The results of all tasks that were not cancelled.
trait JoinAll<T> {
    async fn join_all_but_cancelled(self) -> Vec<T>;
}

impl<T: 'static> JoinAll<T> for JoinSet<T> {
    async fn join_all_but_cancelled(mut self) -> Vec<T> {
        let mut all = Vec::new();
        while let Some(joined) = self.join_next().await {
            match joined {
                Ok(result) => all.push(result),
                Err(error) => assert!(error.is_cancelled(), "{error}"),
            }
        }
        all
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_tracker_an_answer_is_stale_for_a_bounded_time() {
    let (tracker, cache) = make();
    tracker.set(&node(1), &["a"]);
    look_up(&cache).await;
    let asked = Instant::now() - SLOWEST;
    tracker.set_down(true);
    advance(CONFIG.ttl).await;
    assert_eq!(
        look_up(&cache).await,
        (vec!["a".into()], Freshness::Stale(asked.elapsed()))
    );
    // The error is not kept, except for a moment.
    tracker.set_down(false);
    advance(Duration::from_secs(1)).await;
    assert_eq!(look_up(&cache).await.1, Freshness::Fresh);
    tracker.set_down(true);
    advance(CONFIG.max_stale).await;
    assert_eq!(
        cache.look_up(&node(1)).await,
        Err(TrackerError::Unavailable("down".to_owned()))
    );
    let stats = cache.stats();
    assert_eq!((stats.stale_answers, stats.failures, stats.calls), (1, 2, 4));
}

#[tokio::test(start_paused = true)]
async fn without_a_tracker_look_ups_do_not_wait_one_after_the_other() {
    let (tracker, cache) = make();
    let nodes = Vec::from_iter((0..10).map(node));
    nodes.iter().for_each(|node| tracker.set(node, &["a"]));
    cache.get_proxies_batch(&nodes).await.expect("there are answers");
    tracker.set_down(true);
    advance(CONFIG.ttl).await;
    let calls = cache.stats().calls;
    for round in 1..=3 {
        let begun = Instant::now();
        for node in &nodes {
            let answer = cache.look_up(node).await.expect("there is an answer");
            assert!(matches!(answer.freshness, Freshness::Stale(_)), "{answer:?}");
        }
        assert_eq!(begun.elapsed(), SLOWEST, "only the first look-up waits");
        assert_eq!(
            cache.stats().calls,
            calls + round,
            "after a second, a look-up tries again"
        );
        advance(Duration::from_secs(1)).await;
    }
    // While a look-up tries again, the others do not wait.
    let trial = {
        let (cache, node) = (cache.clone(), nodes[0].clone());
        tokio::spawn(async move { cache.look_up(&node).await })
    };
    tokio::task::yield_now().await;
    tracker.set_down(false);
    let answer = cache
        .look_up(&nodes[1])
        .now_or_never()
        .expect("no wait")
        .expect("an answer");
    assert!(matches!(answer.freshness, Freshness::Stale(_)), "{answer:?}");
    let answer = trial.await.expect("no panic").expect("an answer");
    assert_eq!(answer.freshness, Freshness::Fresh);
    let answer = cache.look_up(&nodes[1]).await.expect("an answer");
    assert_eq!(answer.freshness, Freshness::Fresh, "the outage is over");

    // After a long time without look-ups, nobody knows whether the trackers are silent.
    tracker.set_down(true);
    advance(CONFIG.ttl).await;
    cache.look_up(&nodes[0]).await.expect("an answer");
    tracker.set_down(false);
    advance(CONFIG.ttl).await;
    for node in &nodes {
        let answer = cache.look_up(node).await.expect("an answer");
        assert_eq!(answer.freshness, Freshness::Fresh);
    }
}

#[tokio::test(start_paused = true)]
async fn an_old_answer_without_routes_does_not_hide_that_no_tracker_answers() {
    let (tracker, cache) = make();
    for wait in [Duration::ZERO, CONFIG.ttl] {
        tracker.set_down(false);
        advance(Duration::from_secs(1)).await;
        assert_eq!(ids(&cache.look_up(&node(2)).await.expect("an answer")), [""; 0]);
        tracker.set_down(true);
        advance(CONFIG.negative_ttl + wait).await;
        let down = Err(TrackerError::Unavailable("down".to_owned()));
        assert_eq!(cache.look_up(&node(2)).await, down);
    }
}

#[tokio::test(start_paused = true)]
async fn latest_routes_at_the_same_time_share_a_call() {
    let (tracker, cache) = make();
    tracker.set(&node(1), &["a"]);
    look_up(&cache).await;
    let calls = cache.stats().calls;
    let mut herd = JoinSet::new();
    for _ in 0..100 {
        let cache = cache.clone();
        herd.spawn(async move { cache.get_latest_proxies(&node(1)).await });
    }
    let answers = herd.join_all().await;
    assert!(
        answers
            .into_iter()
            .all(|answer| answer.is_ok_and(|routes| routes.len() == 1))
    );
    assert!(cache.stats().calls - calls <= 2, "{:?}", cache.stats());
}

#[tokio::test(start_paused = true)]
async fn the_latest_routes_are_not_of_a_call_that_began_before() {
    let (tracker, cache) = make();
    let early = look_up_before_a_change(&tracker, &cache).await;
    let latest = cache.get_latest_proxies(&node(1)).await.expect("an answer");
    assert_eq!(latest[0].proxy.id(), "b");
    assert_eq!(early.await.expect("no panic"), ["a"]);
    assert_eq!(look_up(&cache).await.0, ["b"], "the later answer is kept");
    assert_eq!(cache.stats().calls, 2);
}

/// A write through the cache, which makes the route of `node-1` go through `b`.
type Write = fn(&RouteCache) -> BoxFuture<'_, Result<(), TrackerError>>;

const WRITES: [(&str, Write); 3] = [
    ("add_nodes", |cache| {
        let proxy = Proxy {
            id: "b",
            cluster_name: "",
            addr: "proxy:1",
        };
        async move { cache.add_nodes(&proxy, &[node(1)]).await }.boxed()
    }),
    ("remove_nodes", |cache| {
        async move { cache.remove_nodes("a", &[node(1)]).await }.boxed()
    }),
    ("remove_proxy", |cache| cache.remove_proxy("a")),
];

#[tokio::test(start_paused = true)]
async fn a_write_whose_future_is_dropped_leaves_no_former_answer() {
    for (name, write) in WRITES {
        let (tracker, cache) = make();
        tracker.set(&node(1), &["a"]);
        look_up(&cache).await;
        // The write is done, and its answer does not come.
        tracker.hangs.store(true, Ordering::Relaxed);
        assert_eq!(write(&cache).now_or_never(), None, "{name}");
        assert_eq!(look_up(&cache).await.0, ["b"], "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_is_done_after_its_future_was_dropped_drops_the_answers() {
    for (name, write) in WRITES {
        let (tracker, cache) = make();
        tracker.set(&node(1), &["a"]);
        *tracker.write_delay.lock().expect("no test has panicked") = 2 * SLOWEST;
        assert_eq!(write(&cache).now_or_never(), None, "{name}");
        assert_eq!(look_up(&cache).await.0, ["a"], "{name}: the write is not done yet");
        sleep(2 * SLOWEST).await;
        assert_eq!(look_up(&cache).await.0, ["b"], "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_was_overtaken_by_a_change_leaves_no_answer() {
    let (tracker, cache) = make();
    let early = look_up_before_a_change(&tracker, &cache).await;
    assert!(cache.apply(change_of(&node(1))));
    assert_eq!(look_up(&cache).await.0, ["b"], "a later look-up joins no earlier call");
    assert_eq!(early.await.expect("it does not panic"), ["a"]);
    assert_eq!(look_up(&cache).await.0, ["b"]);
    assert_eq!(cache.stats().calls, 2);
}

#[tokio::test(start_paused = true)]
async fn what_a_watch_sends_drops_the_answers_that_it_may_change() {
    let proxy = |id: &str, reason: ProxyChangeReason| {
        changes(Change::Proxy(v1::WatchProxyChange {
            reason: reason.into(),
            proxy: Some(v1::WatchedProxy {
                registration: 1,
                proxy: Some(v1::Proxy {
                    proxy_id: id.to_owned(),
                    ..v1::Proxy::default()
                }),
            }),
        }))
    };
    let resync = |is_complete| {
        changes(Change::Resync(v1::WatchResync {
            part: Some(1),
            is_complete,
        }))
    };
    let end = || Message::SnapshotEnd(v1::WatchSnapshotEnd::default());
    let keep_alive = || Message::KeepAlive(v1::WatchKeepAlive::default());
    for (message, drops) in [
        (change_of(&node(1)), true),
        (change_of(&node(2)), false),
        (proxy("a", ProxyChangeReason::Removed), true),
        (proxy("b", ProxyChangeReason::Removed), false),
        (proxy("a", ProxyChangeReason::Moved), true),
        // The resync's beginning has dropped all answers.
        (proxy("a", ProxyChangeReason::Resync), false),
        (resync(false), true),
        (resync(true), false),
        (end(), true),
        (keep_alive(), false),
    ] {
        let (tracker, cache) = make();
        tracker.set(&node(1), &["a"]);
        look_up(&cache).await;
        let text = format!("{message:?}");
        assert!(cache.apply(message));
        look_up(&cache).await;
        assert_eq!(cache.stats().calls, 1 + u64::from(drops), "{text}");
    }
    assert!(!make().1.apply(Message::LostPlace(v1::WatchLostPlace {})));
}

#[tokio::test(start_paused = true)]
async fn a_reported_route_is_left_out_until_it_is_refreshed() {
    let (tracker, cache) = make();
    tracker.set(&node(1), &["a", "b"]);
    tracker.refresh(&node(1), "a");
    look_up(&cache).await;
    cache
        .report_unreachable(&node(1), "a")
        .await
        .expect("the tracker takes it");
    assert_eq!(
        *tracker.complaints.lock().expect("no panic"),
        [(node(1), "a".to_owned())]
    );
    assert_eq!(look_up(&cache).await.0, ["b"]);
    // A refresh of another route changes nothing.
    tracker.refresh(&node(1), "b");
    cache.invalidate(&node(1));
    assert_eq!(look_up(&cache).await.0, ["b"]);
    tracker.refresh(&node(1), "a");
    cache.invalidate(&node(1));
    assert_eq!(look_up(&cache).await.0, ["a", "b"]);

    // Without a refresh, the time of the complaint ends. The route was in no answer when the complaint came.
    cache.invalidate(&node(1));
    cache
        .report_unreachable(&node(1), "b")
        .await
        .expect("the tracker takes it");
    assert_eq!(look_up(&cache).await.0, ["a"]);
    advance(CONFIG.complaint_ttl).await;
    assert_eq!(look_up(&cache).await.0, ["a", "b"]);
    assert_eq!(cache.stats().complaints, 2);
}

#[tokio::test(start_paused = true)]
async fn a_reported_route_that_was_in_no_answer_returns_with_a_refresh() {
    let (tracker, cache) = make();
    tracker.set(&node(1), &["a", "b"]);
    look_up(&cache).await;
    cache.invalidate(&node(1));
    let complaint = cache.report_unreachable(&node(1), "a").await;
    complaint.expect("the tracker takes it");
    assert_eq!(look_up(&cache).await.0, ["b"]);
    tracker.refresh(&node(1), "a");
    cache.invalidate(&node(1));
    assert_eq!(look_up(&cache).await.0, ["a", "b"]);
}

#[test]
fn a_look_up_on_a_stopped_runtime_fails() {
    let (sender, result) = mpsc::channel();
    // A deadlock would block this thread only.
    std::thread::spawn(move || {
        let runtime = Builder::new_current_thread().build().expect("a runtime");
        let handle = runtime.handle().clone();
        drop(runtime);
        let _entered = handle.enter();
        let (_, cache) = make();
        sender.send(cache.look_up(&node(1)).now_or_never())
    });
    let result = result.recv_timeout(Duration::from_secs(60)).expect("the look-up ends");
    assert!(matches!(result, Some(Err(TrackerError::Internal(_)))), "{result:?}");
}

#[test]
fn times_without_a_bound_are_no_error() {
    let max = CacheConfig {
        ttl: Duration::MAX,
        negative_ttl: Duration::MAX,
        max_stale: Duration::MAX,
        complaint_ttl: Duration::MAX,
        ..CONFIG
    };
    let cache = RouteCache::new(Arc::new(Slow::default()), max);
    assert_eq!(cache.stats(), CacheStats::default());
}

#[tokio::test(start_paused = true)]
async fn without_a_tracker_a_complaint_leaves_the_other_routes() {
    let (tracker, cache) = make();
    tracker.set(&node(1), &["a", "b"]);
    look_up(&cache).await;
    tracker.set_down(true);
    let complaint = cache.report_unreachable(&node(1), "a").await;
    complaint.expect("the tracker takes it");
    let (routes, freshness) = look_up(&cache).await;
    assert_eq!(routes, ["b"]);
    assert!(matches!(freshness, Freshness::Stale(_)), "{freshness:?}");
    assert_eq!(cache.stats().calls, 2, "the complaint makes the cache ask");
}

#[tokio::test(start_paused = true)]
async fn after_two_complaints_a_refresh_of_either_route_brings_it_back() {
    for refreshed in ["a", "b"] {
        let (tracker, cache) = make();
        tracker.set(&node(1), &["a", "b"]);
        look_up(&cache).await;
        for id in ["a", "b"] {
            let complaint = cache.report_unreachable(&node(1), id).await;
            complaint.expect("the tracker takes it");
        }
        tracker.refresh(&node(1), refreshed);
        assert_eq!(look_up(&cache).await.0, [refreshed]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_cache_keeps_as_many_nodes_as_it_may_and_answers_for_all() {
    let tracker = Arc::new(Slow::default());
    let config = CacheConfig { capacity: 10, ..CONFIG };
    let cache = RouteCache::new(Arc::clone(&tracker) as Arc<dyn NodeTracker>, config);
    for number in (0..100).map(node) {
        tracker.set(&number, &["a"]);
        assert_eq!(ids(&cache.look_up(&number).await.expect("an answer")), ["a"]);
    }
    cache.0.kept.run_pending_tasks();
    assert!((1..=10).contains(&cache.stats().nodes), "{:?}", cache.stats());
}

#[tokio::test(start_paused = true)]
async fn changes_of_proxies_take_no_memory_while_nobody_looks_up() {
    let (tracker, cache) = make();
    tracker.set(&node(1), &["a"]);
    look_up(&cache).await;
    let ids = Arc::new(HashSet::from(["b".to_owned()]));
    (0..1_000).for_each(|_| cache.invalidate_proxies(Arc::clone(&ids)));
    let held = Arc::strong_count(&ids);
    assert!(held < 500, "{held} of 1,000 closures are held");
}

#[tokio::test(start_paused = true)]
async fn a_batch_asks_once_for_all_nodes_without_a_fresh_answer() {
    let (tracker, cache) = make();
    let nodes = Vec::from_iter((0..100).map(node));
    for number in [1, 2, 3] {
        tracker.set(&nodes[number], &["a"]);
    }
    look_up(&cache).await;
    let batch = {
        let (cache, nodes) = (cache.clone(), [&nodes[..], &nodes[2..3]].concat());
        tokio::spawn(async move { cache.get_proxies_batch(&nodes).await })
    };
    tokio::task::yield_now().await;
    // The batch's call is in flight.
    cache.invalidate(&nodes[3]);
    assert_eq!(cache.look_up(&nodes[2]).await.expect("an answer").routes.len(), 1);
    assert_eq!(cache.stats().calls, 2, "a look-up joins the batch's call");
    let all = batch.await.expect("no panic").expect("there are answers");
    let counts = Vec::from_iter(all.iter().map(Vec::len));
    assert_eq!(
        (counts.len(), &counts[..5], counts[100]),
        (101, &[0, 1, 1, 1, 0][..], 1)
    );

    for (count, calls) in [(3, 2), (4, 3)] {
        cache
            .get_proxies_batch(&nodes[..count])
            .await
            .expect("there are answers");
        assert_eq!(cache.stats().calls, calls, "only the answer for node 3 was invalidated");
    }
}

/// The longest way of a message of the watch.
const LATEST: Duration = Duration::from_millis(300);

/// A watch of the tracker's changes, whose messages take a while.
#[derive(Default)]
struct Watch {
    /// `None` while the connection is cut.
    connection: Option<u64>,
    connections: u64,
    /// Whether the cache has received the end of the snapshot in this connection.
    is_synced: bool,
    /// When the last message arrives: none overtakes another.
    last_arrival: Option<Instant>,
}

/// Sends a message to the cache, unless the connection is cut now or before the message arrives.
fn send(watch: &Arc<Mutex<Watch>>, cache: &RouteCache, message: Message, way: Duration) {
    let mut state = watch.lock().expect("no test has panicked");
    let Some(connection) = state.connection else { return };
    let arrival = (Instant::now() + way).max(state.last_arrival.unwrap_or_else(Instant::now));
    state.last_arrival = Some(arrival);
    drop(state);
    let (watch, cache) = (Arc::clone(watch), cache.clone());
    tokio::spawn(async move {
        sleep_until(arrival).await;
        let mut state = watch.lock().expect("no test has panicked");
        if state.connection == Some(connection) {
            state.is_synced |= matches!(message, Message::SnapshotEnd(_));
            assert!(cache.apply(message));
        }
    });
}

/// Cuts the connection of a watch, or connects again.
fn toggle(watch: &Arc<Mutex<Watch>>, cache: &RouteCache, way: Duration) {
    let mut state = watch.lock().expect("no test has panicked");
    state.is_synced = false;
    if state.connection.take().is_none() {
        state.connections += 1;
        state.connection = Some(state.connections);
        drop(state);
        send(watch, cache, Message::SnapshotEnd(v1::WatchSnapshotEnd::default()), way);
    }
}

/// What a random drive has seen.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    fresh: u64,
    stale: u64,
    failed: u64,
    /// Answers while the cache followed the tracker.
    synced: u64,
    oldest: Duration,
    /// The look-ups, sorted by the time at which they ended: the time since the start, the node and the result.
    trace: Vec<(Duration, NodeId, Result<Answer, TrackerError>)>,
}

/// Random changes, failures and look-ups. Returns the figures of the cache, and what the look-ups have seen.
async fn drive(seed: u64) -> (CacheStats, Seen) {
    let began = Instant::now();
    let mut random = Rng::with_seed(seed);
    let follows = random.bool();
    let (tracker, cache) = make();
    *tracker.delays.lock().expect("no test has panicked") = Some(random.fork());
    let watch = Arc::new(Mutex::new(Watch::default()));
    if follows {
        toggle(&watch, &cache, Duration::ZERO);
    }
    let seen = Arc::new(Mutex::new(Seen::default()));
    let mut look_ups = JoinSet::new();
    for _ in 0..300 {
        let any = node(random.u64(..NODES));
        match random.u8(..100) {
            0..15 => {
                let proxies = ["a", "b", "c"];
                tracker.set(&any, &proxies[..random.usize(..3)]);
                send(&watch, &cache, change_of(&any), LATEST.mul_f64(random.f64()));
            }
            15..18 => tracker.set_down(random.u8(..3) > 0),
            18..40 => sleep(Duration::from_millis(random.u64(..1_500))).await,
            40..41 => sleep(Duration::from_secs(random.u64(..80))).await,
            41..44 if follows => toggle(&watch, &cache, LATEST.mul_f64(random.f64())),
            _ => {
                let (tracker, cache, seen) = (Arc::clone(&tracker), cache.clone(), Arc::clone(&seen));
                let watch = Arc::clone(&watch);
                look_ups.spawn(async move {
                    let start = Instant::now();
                    let is_synced = watch.lock().expect("no test has panicked").is_synced;
                    let result = cache.look_up(&any).await;
                    let mut seen = seen.lock().expect("no test has panicked");
                    seen.trace.push((began.elapsed(), any.clone(), result.clone()));
                    let (answer, now) = match result {
                        Ok(answer) => (answer, Instant::now()),
                        Err(_) => return seen.failed += 1,
                    };
                    let (from, to) = match answer.freshness {
                        // A change may be on its way.
                        Freshness::Fresh if is_synced => (start - LATEST, now),
                        Freshness::Fresh if answer.routes.is_empty() => (start - CONFIG.negative_ttl, now),
                        Freshness::Fresh => (start - CONFIG.ttl, now),
                        Freshness::Stale(age) => {
                            assert!(age < CONFIG.max_stale, "seed {seed}: {age:?}");
                            seen.oldest = seen.oldest.max(age);
                            (now - age, now - age + SLOWEST)
                        }
                    };
                    seen.synced += u64::from(is_synced);
                    let is_fresh = answer.freshness == Freshness::Fresh;
                    *if is_fresh { &mut seen.fresh } else { &mut seen.stale } += 1;
                    drop(seen);
                    let had = tracker.had(&any, &ids(&answer), from, to);
                    assert!(had, "seed {seed}: {any} had never {answer:?}");
                });
                tokio::task::yield_now().await;
            }
        }
    }
    look_ups.join_all().await;
    let seen = std::mem::take(&mut *seen.lock().expect("no test has panicked"));
    (cache.stats(), seen)
}

/// `NODETRACKER_SEEDS=5000 cargo test -p nodetracker-client --lib no_answer_is_older` tries more seeds.
#[tokio::test(start_paused = true)]
async fn no_answer_is_older_than_it_says() {
    let (mut sum, mut seeds, mut hits, mut calls) = (Seen::default(), 0, 0, 0);
    for seed in Seeds::new(300) {
        seeds += 1;
        let (stats, seen) = drive(seed).await;
        assert_eq!(stats.stale_answers, seen.stale, "seed {seed}");
        assert_eq!(
            stats.hits + stats.misses,
            seen.fresh + seen.stale + seen.failed,
            "seed {seed}"
        );
        assert!(stats.calls <= stats.misses, "seed {seed}");
        (hits, calls) = (hits + stats.hits, calls + stats.calls);
        sum.fresh += seen.fresh;
        sum.stale += seen.stale;
        sum.failed += seen.failed;
        sum.synced += seen.synced;
        sum.oldest = sum.oldest.max(seen.oldest);
    }
    println!(
        "\n| a cache, under random changes, failures and cuts | seeds | hits | calls | stale answers | oldest answer | bound |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: |");
    println!(
        "| look-ups | {seeds} | {hits} | {calls} | {} | {:.1} s | {:.1} s |",
        sum.stale,
        sum.oldest.as_secs_f64(),
        CONFIG.max_stale.as_secs_f64()
    );
    let counts = [sum.stale, sum.failed, sum.synced, hits, calls];
    assert!(seeds == 1 || counts.into_iter().min() > Some(seeds), "{sum:?}");
}

#[tokio::test(start_paused = true)]
async fn a_seed_has_one_trace() {
    for seed in 0..5 {
        let (first, second) = (drive(seed).await.1, drive(seed).await.1);
        assert!(first.trace.len() > 100, "seed {seed}: {} look-ups", first.trace.len());
        assert!(first == second, "seed {seed}");
    }
}
