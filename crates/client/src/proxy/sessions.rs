//! The session of a [`ProxyService`](crate::proxy::ProxyService), and the session that replaces it after a clock step.

use std::iter::zip;
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::select_all;
use nodetracker::NodeId;
use nodetracker_proto::v1::SessionSupersededReason;
use tokio::sync::watch;
use tracing::warn;

use crate::listener::{AgentListener, NodeObserver};
use crate::proxy::report_nodes::ReportNodes;
use crate::session::machine::Superseded;
use crate::session::{ProxySession, SessionConfig, SessionConfigError, SessionStats};

/// Agents are pinged several times in a heartbeat interval, but not more often than this.
const MIN_PING_INTERVAL: Duration = Duration::from_millis(100);

/// The present session.
pub(crate) struct Sessions {
    current: ArcSwap<ProxySession>,
    /// Set when the session has ended, and no session replaces it.
    superseded: watch::Sender<Option<Superseded>>,
}

impl Sessions {
    pub(super) fn start(config: SessionConfig) -> Result<Self, SessionConfigError> {
        Ok(Self {
            current: ArcSwap::from_pointee(ProxySession::start(config)?),
            superseded: watch::Sender::new(None),
        })
    }

    pub(crate) fn current(&self) -> Arc<ProxySession> {
        self.current.load_full()
    }

    /// Waits until the session has ended, and no session replaces it.
    pub(super) async fn superseded(&self) -> Superseded {
        let mut superseded = self.superseded.subscribe();
        match superseded.wait_for(Option::is_some).await.map(|found| *found) {
            Ok(Some(superseded)) => superseded,
            // `self` has the sender.
            _ => std::future::pending().await,
        }
    }

    /// Follows the session until it is over. If the configuration asks for it, replaces the session once.
    pub(super) async fn follow(&self, mut config: SessionConfig, takes_over: bool, agents: AgentListener) {
        let mut superseded = self.until_superseded(&agents).await;
        if takes_over && let Some(incarnation) = successor(superseded, &self.current().stats()) {
            config.incarnation = incarnation;
            match ProxySession::start(config) {
                Ok(session) => {
                    warn!("{superseded}: the clock was set back, so incarnation {incarnation} begins");
                    self.current.store(Arc::new(session));
                    // Agents and peers keep the first incarnation. A greater incarnation would mean that this process
                    // has ended: agents would cut their tunnels.
                    agents.report_again();
                    superseded = self.until_superseded(&agents).await;
                }
                Err(error) => warn!("{superseded}: no later incarnation begins: {error}"),
            }
        }
        self.superseded.send_replace(Some(superseded));
    }

    async fn until_superseded(&self, agents: &AgentListener) -> Superseded {
        let session = self.current();
        tokio::select! {
            superseded = session.superseded() => superseded,
            () = follow_intervals(session.subscribe(), |silence| agents.ping_within(silence)) => session.superseded().await,
        }
    }
}

/// Returns the incarnation that may replace a session, if a tracker has refused the session from the beginning. In this
/// case, no other process has taken over, but an earlier start of this proxy had a greater incarnation.
fn successor(superseded: Superseded, stats: &[SessionStats]) -> Option<u64> {
    let is_other_process = superseded.reason == SessionSupersededReason::NewerSession;
    let was_open = stats.iter().any(|stats| stats.counters.sessions > 0);
    (!is_other_process && !was_open).then(|| superseded.latest_incarnation.saturating_add(1))
}

/// Makes the listener ping its agents at least twice in the present heartbeat interval of each tracker. Otherwise, the
/// route of a node could expire between two signs of life. Ends with the session.
async fn follow_intervals(mut trackers: Vec<watch::Receiver<SessionStats>>, ping_within: impl Fn(Option<Duration>)) {
    while !trackers.is_empty() {
        let present = |tracker: &mut watch::Receiver<SessionStats>| tracker.borrow_and_update().heartbeat_interval;
        let intervals: Vec<_> = trackers.iter_mut().map(present).collect();
        let shortest = intervals.iter().flatten().min();
        ping_within(shortest.map(|interval| (*interval / 2).max(MIN_PING_INTERVAL)));
        let changes = zip(&mut trackers, &intervals).map(|(tracker, interval)| {
            let has_changed = |stats: &SessionStats| stats.heartbeat_interval != *interval;
            Box::pin(async move { tracker.wait_for(has_changed).await.map(drop) })
        });
        let (change, which, _) = select_all(changes).await;
        if change.is_err() {
            trackers.swap_remove(which);
        }
    }
}

/// Reports nodes as long as the service has its session. Clones of the dialer keep the listener, and so its observer.
pub(super) struct ReportWhileRunning(pub(super) Weak<Sessions>);

impl ReportWhileRunning {
    fn report(&self) -> Option<ReportNodes> {
        self.0.upgrade().map(|sessions| ReportNodes(sessions.current()))
    }
}

impl NodeObserver for ReportWhileRunning {
    fn connected(&self, node: &NodeId) {
        self.report().iter().for_each(|report| report.connected(node));
    }

    fn seen(&self, node: &NodeId) {
        self.report().iter().for_each(|report| report.seen(node));
    }

    fn gone(&self, node: &NodeId) {
        self.report().iter().for_each(|report| report.gone(node));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::session::{Counters, SessionState};

    fn stats() -> SessionStats {
        SessionStats {
            tracker: "127.0.0.1:1".parse().unwrap(),
            state: SessionState::Connecting,
            is_settled: true,
            nodes: 0,
            heartbeat_interval: None,
            last_error: None,
            counters: Counters::default(),
        }
    }

    #[tokio::test]
    async fn the_shortest_present_interval_of_the_trackers_decides() {
        let (senders, trackers): (Vec<_>, Vec<_>) = (0..2).map(|_| watch::channel(stats())).unzip();
        let set = Arc::new(Mutex::new(Vec::new()));
        let task = tokio::spawn({
            let set = Arc::clone(&set);
            async move { follow_intervals(trackers, |silence| set.lock().unwrap().push(silence)).await }
        });
        let last = async || {
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            *set.lock().unwrap().last().unwrap()
        };
        assert_eq!(last().await, None, "no tracker has dictated an interval");
        let seconds = |number| Some(Duration::from_secs(number));
        for (tracker, interval, expected) in [
            (0, seconds(100), seconds(50)),
            (1, seconds(2), seconds(1)),
            (1, seconds(20), seconds(10)),
            (1, Some(Duration::ZERO), Some(MIN_PING_INTERVAL)),
            (1, None, seconds(50)),
        ] {
            senders[tracker].send_modify(|stats| stats.heartbeat_interval = interval);
            assert_eq!(last().await, expected, "{interval:?} of tracker {tracker}");
        }
        drop(senders);
        task.await.unwrap();
    }
}
