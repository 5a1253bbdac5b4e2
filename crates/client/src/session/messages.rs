//! The messages of a session: requests within the tracker's limits, and answers that are checked before the machine
//! acts.

use std::time::Duration;

use nodetracker::NodeId;
use nodetracker_proto::v1;
use nodetracker_proto::v1::session_request::Request;

/// Bytes of a handle.
const HANDLE: usize = size_of::<u64>();

/// The most bytes of a request beside its nodes or handles: the sequence, and the tags and lengths of three levels.
const ENVELOPE: usize = 32;

/// The most bytes of a name beside its text: the tag, and a length of up to 255.
const NAME: usize = 3;

/// The longest message that a node may need.
const SMALLEST_MESSAGE: usize = ENVELOPE + NAME + nodetracker::MAX_TEXT;

/// The most nodes and handles of a message, even if the tracker allows more. They bound the memory of the client.
const MAX_NODES: usize = 4096;
const MAX_HANDLES: usize = 65_536;

/// The shortest and the longest interval that a tracker can ask for. They bound the work and the times of the client.
const INTERVALS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(86_400));

/// How the tracker violates the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The limits allow no message with a node.
    #[error("the welcome has no usable limits")]
    Limits,
    /// A time is missing or negative.
    #[error("the welcome has no usable heartbeat interval or idle timeout")]
    Times,
    /// An answer's sequence is not that of the oldest request without an answer.
    #[error("an answer came out of order")]
    Order,
    /// An answer does not belong to its request.
    #[error("an answer is of the wrong kind")]
    Kind,
    /// Handles are not of eight bytes each, or are more than the request's nodes or handles.
    #[error("an answer has more handles than its request, or a part of a handle")]
    Handles,
}

/// The limits of a session's messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    max_nodes: usize,
    max_handles: usize,
    max_bytes: usize,
}

/// The contents of a welcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Terms {
    pub(super) generation: u64,
    pub(super) handles_hold: bool,
    pub(super) interval: Duration,
    /// How long a route lives without a refresh, which is also how long the client may be silent.
    pub(super) lifetime: Duration,
    pub(super) limits: Limits,
}

impl TryFrom<v1::SessionWelcome> for Terms {
    type Error = Violation;

    fn try_from(welcome: v1::SessionWelcome) -> Result<Self, Violation> {
        let limits = welcome.limits.ok_or(Violation::Limits)?;
        let lifetime = interval(limits.idle_timeout)?;
        let max_bytes = limits.max_message_bytes as usize;
        if limits.max_nodes == 0 || limits.max_handles == 0 || max_bytes < SMALLEST_MESSAGE {
            return Err(Violation::Limits);
        }
        Ok(Self {
            generation: welcome.generation,
            handles_hold: welcome.handles_hold,
            // At most half, so that a session that sends only heartbeats is not silent for the whole timeout.
            interval: interval(welcome.heartbeat_interval)?.min(lifetime / 2),
            lifetime,
            limits: Limits {
                max_nodes: (limits.max_nodes as usize).min(MAX_NODES),
                max_handles: (limits.max_handles as usize)
                    .min(MAX_HANDLES)
                    .min((max_bytes - ENVELOPE) / HANDLE),
                max_bytes,
            },
        })
    }
}

/// Reads an interval that a tracker asks for, within bounds.
pub(super) fn interval(wire: Option<prost_types::Duration>) -> Result<Duration, Violation> {
    let interval: Duration = wire.ok_or(Violation::Times)?.try_into().map_err(|_| Violation::Times)?;
    Ok(interval.clamp(INTERVALS.0, INTERVALS.1))
}

/// Nodes of one message.
#[derive(Debug)]
pub(super) struct Batch {
    uuids: Vec<NodeId>,
    names: Vec<NodeId>,
    bytes: usize,
    limits: Limits,
}

impl Batch {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            uuids: Vec::new(),
            names: Vec::new(),
            bytes: ENVELOPE,
            limits,
        }
    }

    /// Whether any node fits.
    pub(super) fn has_room(&self) -> bool {
        let room = self.limits.max_bytes - self.bytes;
        self.uuids.len() + self.names.len() < self.limits.max_nodes && room >= NAME + nodetracker::MAX_TEXT
    }

    /// Adds a node. There must be [room](Self::has_room).
    pub(super) fn push(&mut self, node: NodeId) {
        match node.as_name() {
            Some(name) => {
                self.bytes += NAME + name.len();
                self.names.push(node);
            }
            None => {
                self.bytes += size_of::<nodetracker::Uuid>();
                self.uuids.push(node);
            }
        }
    }

    /// Returns the message's field, and the nodes in the order of their positions; `None` without nodes.
    pub(super) fn finish(self) -> Option<(v1::NodeIds, Vec<NodeId>)> {
        let uuids = self.uuids.iter().filter_map(NodeId::as_uuid);
        let field = v1::NodeIds {
            uuids: uuids.flat_map(nodetracker::Uuid::into_bytes).collect(),
            names: self
                .names
                .iter()
                .filter_map(NodeId::as_name)
                .map(str::to_owned)
                .collect(),
        };
        let mut nodes = self.uuids;
        nodes.extend(self.names);
        (!nodes.is_empty()).then_some((field, nodes))
    }
}

/// Takes as many handles as one heartbeat may have off the end of `handles`.
pub(super) fn heartbeat(handles: &mut Vec<u64>, limits: Limits) -> (Request, usize) {
    let taken = handles.split_off(handles.len().saturating_sub(limits.max_handles));
    let bytes: Vec<u8> = taken.iter().flat_map(|handle| handle.to_le_bytes()).collect();
    (
        Request::Heartbeat(v1::SessionHeartbeat { handles: bytes.into() }),
        taken.len(),
    )
}

/// Reads the handles of an answer to a request with `max` nodes or handles.
pub(super) fn handles(bytes: &[u8], max: usize) -> Result<impl Iterator<Item = u64>, Violation> {
    let (handles, rest) = bytes.as_chunks::<HANDLE>();
    if !rest.is_empty() || handles.len() > max {
        return Err(Violation::Handles);
    }
    Ok(handles.iter().map(|handle| u64::from_le_bytes(*handle)))
}
