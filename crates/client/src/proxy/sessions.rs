//! The session of a [`ProxyService`](crate::proxy::ProxyService), and the session that replaces it after a clock step.

use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::join_all;
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
                    agents.begin_incarnation(incarnation);
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
            () = follow_intervals(&session, agents) => session.superseded().await,
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

/// Makes the listener ping its agents at least twice in a heartbeat interval of each tracker. Otherwise, the route of a
/// node could expire between two signs of life.
async fn follow_intervals(session: &ProxySession, agents: &AgentListener) {
    let follow = |mut stats: watch::Receiver<SessionStats>| async move {
        let mut last = None;
        loop {
            let next = stats.wait_for(|stats| stats.heartbeat_interval != last).await;
            let Ok(next) = next.map(|stats| stats.heartbeat_interval) else {
                return;
            };
            last = next;
            if let Some(interval) = next {
                agents.ping_within((interval / 2).max(MIN_PING_INTERVAL));
            }
        }
    };
    join_all(session.subscribe().into_iter().map(follow)).await;
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
