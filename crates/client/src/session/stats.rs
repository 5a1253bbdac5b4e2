//! The state and the counts of a session.

use std::sync::Arc;
use std::time::Duration;

use crate::connect::addr::TrackerAddr;
use crate::session::machine::Superseded;

/// What a session with one tracker has done since it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Sessions that the tracker accepted: the first session, and one for each time that the proxy connected again.
    pub sessions: u64,
    /// Times that all nodes had to be announced: in the first session, and when the tracker had lost its routes.
    pub full_announcements: u64,
    /// Streams that ended, or that could not begin.
    pub lost_streams: u64,
    /// Streams that the proxy ended because of a [`Fault`](crate::session::machine::Fault). They count as lost, too.
    pub faults: u64,
    /// Requests of all kinds.
    pub requests: u64,
    /// Nodes that the tracker accepted; a node counts each time that it is announced.
    pub announced_nodes: u64,
    /// Nodes that the tracker had no room for; a node counts each time that it is refused.
    pub refused_nodes: u64,
    /// Nodes whose routes the tracker has removed because their tunnels ended.
    pub withdrawn_nodes: u64,
    /// Handles in heartbeats.
    pub heartbeat_handles: u64,
    /// Handles that the tracker reported as gone. Their nodes are announced again.
    pub gone_handles: u64,
    /// Passes over all nodes: one for each heartbeat interval, and one after a burst of changes or gone handles.
    pub passes: u64,
}

/// A session with one tracker at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionStats {
    /// The tracker. If the session has several trackers, the present tracker.
    pub tracker: TrackerAddr,
    /// The state of the session.
    pub state: SessionState,
    /// Whether the tracker has confirmed every announcement and withdrawal.
    pub is_settled: bool,
    /// The nodes that are up, and the nodes whose routes must still be removed.
    pub nodes: usize,
    /// The heartbeat interval of the tracker's last welcome or change. `None` before the first welcome.
    pub heartbeat_interval: Option<Duration>,
    /// Why the last stream was lost, or the session has failed.
    pub last_error: Option<Arc<str>>,
    /// The counts so far.
    pub counters: Counters,
}

/// The state of a session with one tracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionState {
    /// There is no session. An attempt to begin a session follows, or is in progress.
    Connecting,
    /// The tracker has accepted the session.
    Open,
    /// The session was superseded.
    Superseded(Superseded),
    /// The session was drained. The tracker has no route of the proxy.
    Drained,
    /// A defect of this crate has ended the session. The routes stay until they expire.
    Failed,
}
