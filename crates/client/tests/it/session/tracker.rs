//! Whole sessions with real trackers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nodetracker::RouteTable;
use nodetracker_client::connect::WriteTo;
use nodetracker_client::listener::NodeObserver;
use nodetracker_client::proxy::ReportNodes;
use nodetracker_client::session::machine::SessionSupersededReason;
use nodetracker_client::session::{ProxySession, SessionConfig, SessionConfigError, SessionState, SessionStats};
use nodetracker_client::{NodeId, Uuid};
use nodetracker_server::Config;
use tracing::{Metadata, Subscriber, span};

use crate::session::relay::Relay;
use crate::support::{ClosedPort, PROXY, Running, within};

/// Heartbeats follow every two seconds.
const SHORT: Duration = Duration::from_secs(6);
/// No heartbeat follows during a test, and no node counts as silent.
const LONG: Duration = Duration::from_secs(3600);

async fn start(keep_alive: Duration) -> Running {
    stopping_after("0s", keep_alive).await
}

async fn stopping_after(shutdown_delay: &str, keep_alive: Duration) -> Running {
    let config = Config::default().with("shutdown_delay", shutdown_delay).unwrap();
    let table = RouteTable::builder().keep_alive(keep_alive).build().unwrap();
    Running::serving(&config.listen_on("127.0.0.1:0"), table).await
}

/// The nodes of a range that have a route.
fn nodes(tracker: &Running, range: std::ops::Range<u128>) -> Vec<u128> {
    range
        .filter(|number| !tracker.table.get_proxies(&node(*number)).is_empty())
        .collect()
}

fn node(number: u128) -> NodeId {
    Uuid::from_u128(number).into()
}

fn config(trackers: &[SocketAddr]) -> SessionConfig {
    let trackers = trackers.iter().map(|addr| addr.to_string().parse().unwrap());
    let mut config = SessionConfig::new(PROXY, trackers.collect());
    config.incarnation = 1;
    config
}

/// Waits for a state of the session with the first tracker.
async fn until(session: &ProxySession, condition: impl FnMut(&SessionStats) -> bool) -> SessionStats {
    until_at(session, 0, condition).await
}

/// Waits for a state of the session with one of the trackers.
async fn until_at(
    session: &ProxySession,
    tracker: usize,
    condition: impl FnMut(&SessionStats) -> bool,
) -> SessionStats {
    let mut stats = session.subscribe().remove(tracker);
    let reached = within(stats.wait_for(condition)).await;
    reached.expect("the session lives").clone()
}

async fn announced(session: &ProxySession, count: u64) -> SessionStats {
    until(session, |stats| {
        stats.counters.announced_nodes == count && stats.is_settled
    })
    .await
}

fn up(session: &ProxySession, nodes: std::ops::Range<u128>) {
    for number in nodes {
        session.node_up(&node(number)).unwrap();
    }
}

fn seen(session: &ProxySession, nodes: std::ops::Range<u128>) {
    for number in nodes {
        session.node_seen(&node(number));
    }
}

#[tokio::test]
async fn nodes_come_stay_and_go() {
    let tracker = start(SHORT).await;
    let session = ProxySession::start(config(&[tracker.addr])).unwrap();
    std::thread::scope(|scope| {
        for part in [0..500, 500..1000] {
            scope.spawn(|| up(&session, part));
        }
    });
    announced(&session, 1000).await;
    assert_eq!(nodes(&tracker, 0..1000).len(), 1000);

    session.node_down(&node(7));
    session.node_seen(&node(7));
    let stats = until(&session, |stats| stats.counters.withdrawn_nodes == 1).await;
    assert_eq!((stats.nodes, tracker.table.len()), (999, 999));
    // The next round refreshes what was seen.
    seen(&session, 0..1000);
    let stats = until(&session, |stats| stats.counters.heartbeat_handles >= 999).await;
    assert_eq!(
        (stats.counters.heartbeat_handles, stats.counters.gone_handles),
        (999, 0)
    );
}

#[tokio::test]
async fn after_a_restart_of_the_tracker_all_nodes_are_announced_again() {
    let before = start(LONG).await;
    let relay = Relay::to(before.addr).await;
    let session = ProxySession::start(config(&[relay.addr])).unwrap();
    up(&session, 0..1000);
    announced(&session, 1000).await;

    let after = start(LONG).await;
    relay.retarget(after.addr);
    let stats = announced(&session, 2000).await;
    assert_eq!(nodes(&after, 0..1000).len(), 1000);
    assert_eq!((stats.counters.sessions, stats.counters.full_announcements), (2, 2));
}

#[tokio::test]
async fn after_a_lost_connection_the_handles_hold_and_nothing_is_announced_again() {
    let tracker = start(SHORT).await;
    let relay = Relay::to(tracker.addr).await;
    let session = ProxySession::start(config(&[relay.addr])).unwrap();
    up(&session, 0..1000);
    announced(&session, 1000).await;
    relay.cut();
    let resumed = until(&session, |stats| stats.counters.sessions == 2).await.counters;
    assert_eq!(
        (
            resumed.announced_nodes,
            resumed.full_announcements,
            resumed.lost_streams
        ),
        (1000, 1, 1)
    );
    seen(&session, 0..1000);
    let refreshed = |stats: &SessionStats| stats.counters.heartbeat_handles >= resumed.heartbeat_handles + 1000;
    let stats = until(&session, refreshed).await;
    assert_eq!((stats.counters.announced_nodes, stats.counters.gone_handles), (1000, 0));
}

#[tokio::test]
async fn a_newer_incarnation_supersedes_the_session_which_does_not_take_over_again() {
    let trackers = [start(LONG).await, start(LONG).await];
    let addrs = [trackers[0].addr, trackers[1].addr];
    let older = ProxySession::start(config(&addrs)).unwrap();
    up(&older, 0..10);
    announced(&older, 10).await;
    // At one of the two trackers. The older session ends with both.
    let mut newer = config(&addrs[..1]);
    newer.incarnation = 2;
    let newer = ProxySession::start(newer).unwrap();
    up(&newer, 10..20);
    let superseded = within(older.superseded()).await;
    assert_eq!(superseded.reason, SessionSupersededReason::NewerIncarnation);
    assert_eq!(superseded.latest_incarnation, 2);
    for tracker in 0..2 {
        until_at(&older, tracker, |stats| {
            stats.state == SessionState::Superseded(superseded)
        })
        .await;
    }
    announced(&newer, 10).await;
    assert_eq!(nodes(&trackers[0], 0..20), Vec::from_iter(10..20));
    let error = older.drain(SHORT).await.unwrap_err();
    assert_eq!(error.trackers.len(), 2, "{error}");
}

#[tokio::test]
async fn a_drain_ends_the_incarnation_at_each_tracker_that_can_be_reached() {
    let trackers = [start(LONG).await, start(LONG).await];
    let (relay, closed) = (Relay::to(trackers[1].addr).await, ClosedPort::new());
    let mut config = config(&[trackers[0].addr, relay.addr]);
    config.max_nodes = 10;
    let session = ProxySession::start(config).unwrap();
    up(&session, 0..10);
    announced(&session, 10).await;
    until_at(&session, 1, |stats| stats.is_settled).await;
    relay.retarget(closed.addr());
    until_at(&session, 1, |stats| stats.last_error.is_some()).await;
    let error = session.drain(Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "not drained, so the routes stay until they expire: http://{}",
            relay.addr
        )
    );
    let table = &trackers[0].table;
    assert_eq!((table.len(), table.find_proxy("proxy-1")), (0, None));
    // Calls on nodes have no effect any more, so no node is one too many.
    up(&session, 0..20);
    assert_eq!(session.stats()[0].state, SessionState::Drained);
}

#[tokio::test]
async fn a_tracker_without_room_for_a_node_does_not_keep_the_node_from_the_others() {
    let trackers = [start(LONG).await, start(LONG).await];
    let relay = Relay::to(trackers[0].addr).await;
    let mut config = config(&[relay.addr, trackers[1].addr]);
    config.max_nodes = 1;
    let session = ProxySession::start(config).unwrap();
    up(&session, 0..1);
    announced(&session, 1).await;
    let closed = ClosedPort::new();
    relay.retarget(closed.addr());
    until(&session, |stats| stats.state == SessionState::Connecting).await;
    session.node_down(&node(0));
    until_at(&session, 1, |stats| stats.nodes == 0 && stats.is_settled).await;
    // The first tracker cannot learn that the first node went down.
    session.node_up(&node(1)).unwrap_err();
    until_at(&session, 1, |stats| stats.nodes == 1 && stats.is_settled).await;
    assert_eq!(nodes(&trackers[1], 0..2), [1]);
}

#[tokio::test]
async fn a_node_without_room_is_reported_with_a_sign_of_life_once_there_is_room() {
    let tracker = start(LONG).await;
    let mut config = config(&[tracker.addr]);
    config.max_nodes = 1;
    let session = Arc::new(ProxySession::start(config).unwrap());
    let observer = ReportNodes(Arc::clone(&session));
    observer.connected(&node(1));
    observer.connected(&node(2));
    announced(&session, 1).await;
    assert_eq!(nodes(&tracker, 0..3), [1]);
    observer.gone(&node(1));
    until(&session, |stats| stats.nodes == 0).await;
    observer.seen(&node(2));
    announced(&session, 2).await;
    assert_eq!(nodes(&tracker, 0..3), [2]);
}

#[tokio::test]
async fn a_drain_before_the_first_connection_has_nothing_to_wait_for() {
    let closed = ClosedPort::new();
    for has_failed in [false, true] {
        let session = ProxySession::start(config(&[closed.addr()])).unwrap();
        if has_failed {
            until(&session, |stats| stats.counters.lost_streams > 1).await;
        }
        // Less than the time for which a hello may be on its way.
        assert_eq!(session.drain(Duration::from_secs(30)).await, Ok(()));
        assert_eq!(session.stats()[0].state, SessionState::Drained);
    }
}

#[tokio::test]
async fn the_nodes_move_to_another_tracker_before_the_first_one_stops() {
    let mut first = stopping_after("4s", LONG).await;
    let second = start(LONG).await;
    let mut config = config(&[first.addr, second.addr]);
    config.write_to = WriteTo::One;
    let session = ProxySession::start(config).unwrap();
    up(&session, 0..1000);
    announced(&session, 1000).await;
    assert!(second.table.is_empty());
    first.begin_stop();
    let stats = announced(&session, 2000).await;
    assert_eq!(stats.tracker.port(), second.addr.port());
    assert_eq!((stats.counters.lost_streams, nodes(&second, 0..1000).len()), (0, 1000));
}

#[test]
fn a_configuration_that_cannot_be_used_is_refused() {
    let begin = |config: SessionConfig| ProxySession::start(config).map(drop).unwrap_err();
    assert_eq!(begin(config(&[])), SessionConfigError::NoTracker);
    for incarnation in [0, 1 << 63] {
        let mut config = config(&[SocketAddr::from(([127, 0, 0, 1], 1))]);
        config.incarnation = incarnation;
        assert_eq!(begin(config), SessionConfigError::Incarnation(incarnation));
    }
    let config = SessionConfig::new(PROXY, vec!["a:1".parse().unwrap(), "https://b:1".parse().unwrap()]);
    assert_eq!(
        begin(config).to_string(),
        "https://b:1 needs TLS: set ConnectConfig::tls"
    );
}

/// A log that panics at each event of the session.
struct PanickingLog;

impl Subscriber for PanickingLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("nodetracker_client::session")
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        panic!("the log is full");
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[tokio::test]
async fn a_panic_of_the_task_closes_the_session_and_is_reported() {
    let _log = tracing::subscriber::set_default(PanickingLog);
    let closed = ClosedPort::new();
    let session = ProxySession::start(config(&[closed.addr()])).unwrap();
    let stats = until(&session, |stats| stats.state != SessionState::Connecting).await;
    assert_eq!(stats.state, SessionState::Failed);
    assert_eq!(stats.last_error.as_deref(), Some("the session's task has panicked"));
    // The session no longer reports the nodes, so the set does not grow.
    up(&session, 0..10);
    assert_eq!(session.stats()[0].nodes, 0);
    let error = session.drain(LONG).await.unwrap_err();
    assert_eq!(error.trackers.len(), 1);
}
