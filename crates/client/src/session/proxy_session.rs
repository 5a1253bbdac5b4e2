//! [`ProxySession`], which a proxy embeds.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nodetracker::NodeId;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::clock::now;
use crate::connect::addr::TrackerAddr;
use crate::session::config::{SessionConfig, SessionConfigError};
use crate::session::machine::{Machine, Superseded};
use crate::session::nodes::{NodeSet, TooManyNodes};
use crate::session::shell::{Shared, Shell};
use crate::session::stats::{Counters, SessionState, SessionStats};

/// Reports the nodes of a proxy to its trackers. See the [module](crate::session) for what is sent, and when.
///
/// If the session is dropped without [`drain`](Self::drain), the routes stay until they expire.
#[derive(Debug)]
pub struct ProxySession {
    /// A shell for each tracker, or one shell for all trackers with `WriteTo::One`.
    shells: Vec<ShellHandle>,
    superseded: watch::Receiver<Option<Superseded>>,
    /// Aborted with the session.
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct ShellHandle {
    shared: Arc<Shared>,
    stats: watch::Receiver<SessionStats>,
}

/// Why a drain failed: it took too long, or another session has taken over. The routes at these trackers stay until
/// they expire, or belong to the other session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrainError {
    /// The trackers that have not ended the incarnation.
    pub trackers: Vec<TrackerAddr>,
}

impl std::error::Error for DrainError {}

impl fmt::Display for DrainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not drained, so the routes stay until they expire:")?;
        self.trackers.iter().try_for_each(|tracker| write!(f, " {tracker}"))
    }
}

impl ProxySession {
    /// Begins to connect, and returns at once. A task for each tracker runs in the present tokio runtime.
    ///
    /// # Errors
    ///
    /// If the configuration cannot be used.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with its time and I/O enabled.
    pub fn start(config: SessionConfig) -> Result<Self, SessionConfigError> {
        let identity = config.identity()?;
        let now = now();
        let (superseded, is_superseded) = watch::channel(None);
        let mut shells = Vec::new();
        let mut tasks = JoinSet::new();
        for trackers in config.groups()? {
            let nodes = Arc::new(NodeSet::new(config.max_nodes, fastrand::u64(..), now));
            let (handle, stats) = ShellHandle::new(&nodes, &trackers[0]);
            let seed = fastrand::u64(..);
            let shell = Shell {
                machine: Machine::new(nodes, identity.clone(), trackers.len(), config.times, seed, now),
                shared: Arc::clone(&handle.shared),
                trackers,
                connect: config.connect.clone(),
                stats,
                superseded: superseded.clone(),
            };
            tasks.spawn(shell.run());
            shells.push(handle);
        }
        Ok(Self {
            shells,
            superseded: is_superseded,
            _tasks: tasks,
        })
    }

    /// Reports that a node has a tunnel to this proxy. The call is a sign of life too.
    ///
    /// The call locks a bucket of a map in memory for some nanoseconds, and does not wait for I/O.
    ///
    /// # Errors
    ///
    /// If the session has its [maximum of nodes](SessionConfig::max_nodes) for at least one tracker. The node is not
    /// reported to such a tracker, but to all other trackers. Once there is room, a later call reports the node.
    pub fn node_up(&self, node: &NodeId) -> Result<(), TooManyNodes> {
        let now = now();
        let mut result = Ok(());
        for shell in &self.shells {
            match shell.change(|nodes| nodes.up(node, now)) {
                Some(Ok(has_changed)) => shell.wake_if(has_changed),
                Some(Err(full)) => result = Err(full),
                None => {}
            }
        }
        result
    }

    /// Reports a sign of life of a node, at any rate. Does nothing if the node is not up. Costs as much as
    /// [`node_up`](Self::node_up).
    pub fn node_seen(&self, node: &NodeId) {
        let now = now();
        for shell in &self.shells {
            shell.wake_if(shell.change(|nodes| nodes.seen(node, now)).unwrap_or(false));
        }
    }

    /// Reports that a node has no tunnel to this proxy any more. Does nothing if the node is not up. Costs as much as
    /// [`node_up`](Self::node_up).
    pub fn node_down(&self, node: &NodeId) {
        let now = now();
        for shell in &self.shells {
            shell.wake_if(shell.change(|nodes| nodes.down(node, now)).unwrap_or(false));
        }
    }

    /// Waits until a tracker has superseded the session. The session has then ended with all trackers, and never takes
    /// over by itself. Calls on nodes have no effect any more.
    ///
    /// If the reason is `NewerIncarnation` or `NewerSession`, another process is this proxy, or the
    /// [incarnation](SessionConfig::incarnation) came from a clock that was set back. If another process is this proxy,
    /// this process should stop. If the reason is `ProxyRemoved`, an operator has removed the proxy. To report the
    /// nodes again, begin a session with an incarnation that is greater than
    /// [`latest_incarnation`](Superseded::latest_incarnation), and report each node as up.
    pub async fn superseded(&self) -> Superseded {
        let mut receiver = self.superseded.clone();
        let found = receiver.wait_for(Option::is_some).await.map(|found| *found);
        match found {
            Ok(Some(superseded)) => superseded,
            // All tasks have ended, and no tracker has superseded the session.
            _ => std::future::pending().await,
        }
    }

    /// Ends the incarnation: the trackers remove all routes of the proxy at once. Calls on nodes have no effect any
    /// more.
    ///
    /// # Errors
    ///
    /// If not all trackers have confirmed within `limit`.
    pub async fn drain(&self, limit: Duration) -> Result<(), DrainError> {
        for shell in &self.shells {
            shell.shared.is_closed.store(true, Ordering::Release);
            shell.shared.wake.notify_one();
        }
        let ended = async {
            for shell in &self.shells {
                // An error means that the task has ended.
                let is_over =
                    |stats: &SessionStats| !matches!(stats.state, SessionState::Connecting | SessionState::Open);
                let _ = shell.stats.clone().wait_for(is_over).await;
            }
        };
        let _ = timeout(limit, ended).await;
        let stats = self.stats().into_iter();
        let trackers: Vec<_> = stats
            .filter(|stats| stats.state != SessionState::Drained)
            .map(|stats| stats.tracker)
            .collect();
        match trackers.is_empty() {
            true => Ok(()),
            false => Err(DrainError { trackers }),
        }
    }

    /// Returns the state and the counts: one element for each tracker, or one for all trackers with
    /// [`WriteTo::One`](crate::connect::WriteTo::One).
    #[must_use]
    pub fn stats(&self) -> Vec<SessionStats> {
        let stats = |shell: &ShellHandle| SessionStats {
            nodes: shell.shared.nodes.len(),
            ..shell.stats.borrow().clone()
        };
        self.shells.iter().map(stats).collect()
    }

    /// Returns receivers of the same elements as [`stats`](Self::stats), to wait for changes. They do not follow the
    /// number of nodes while a tracker cannot be reached.
    #[must_use]
    pub fn subscribe(&self) -> Vec<watch::Receiver<SessionStats>> {
        self.shells.iter().map(|shell| shell.stats.clone()).collect()
    }
}

#[cfg(test)]
impl ProxySession {
    /// Creates a session without tasks, for simulations: the caller drives a machine of each set of nodes.
    pub(crate) fn without_tasks<'a>(sets: impl IntoIterator<Item = &'a Arc<NodeSet>>) -> Self {
        let tracker = "tracker".parse().expect("an address");
        let shells = sets.into_iter().map(|nodes| ShellHandle::new(nodes, &tracker).0);
        Self {
            shells: shells.collect(),
            superseded: watch::channel(None).1,
            _tasks: JoinSet::new(),
        }
    }

    /// Whether each task has been woken since the last call.
    pub(crate) fn take_wakes(&self) -> Vec<bool> {
        use futures_util::FutureExt;
        let wakes = self.shells.iter().map(|shell| shell.shared.wake.notified());
        wakes.map(|wake| wake.now_or_never().is_some()).collect()
    }

    /// Whether the session drains or is over.
    pub(crate) fn is_closed(&self) -> bool {
        self.shells
            .iter()
            .all(|shell| shell.shared.is_closed.load(Ordering::Acquire))
    }
}

impl ShellHandle {
    /// Creates a handle, and the sender with which its task publishes the state.
    fn new(nodes: &Arc<NodeSet>, tracker: &TrackerAddr) -> (Self, watch::Sender<SessionStats>) {
        let shared = Arc::new(Shared {
            nodes: Arc::clone(nodes),
            wake: Notify::new(),
            is_closed: AtomicBool::new(false),
        });
        let (sender, stats) = watch::channel(SessionStats {
            tracker: tracker.clone(),
            state: SessionState::Connecting,
            is_settled: false,
            nodes: 0,
            heartbeat_interval: None,
            last_error: None,
            counters: Counters::default(),
        });
        (Self { shared, stats }, sender)
    }

    /// Changes the nodes, unless the session no longer reports them.
    fn change<T>(&self, act: impl FnOnce(&NodeSet) -> T) -> Option<T> {
        let Shared { nodes, is_closed, .. } = &*self.shared;
        // Relaxed: a few changes more do no harm.
        (!is_closed.load(Ordering::Relaxed)).then(|| act(nodes))
    }

    fn wake_if(&self, has_changed: bool) {
        if has_changed {
            self.shared.wake.notify_one();
        }
    }
}
