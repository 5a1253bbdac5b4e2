//! `SessionService`: one stream for each proxy.
//!
//! `session.proto` explains the messages. A session goes through these states:
//!
//! ```text
//!                 hello
//!   BEGUN ──────────────────▶ OPEN ──────────────────▶ ENDED
//!     │                       │  ▲                       ▲
//!     │                       └──┘ nodes up, heartbeat,  │
//!     │                            nodes down            │
//!     └──────────────────────────────────────────────────┘
//! ```
//!
//! | state | event | response | next state |
//! | --- | --- | --- | --- |
//! | BEGUN | hello | welcome. The previous session of the proxy is superseded | OPEN |
//! | | hello for a proxy whose routes the caller may not write | PERMISSION_DENIED | ENDED |
//! | | hello of a stale incarnation | superseded, FAILED_PRECONDITION | ENDED |
//! | | another message | INVALID_ARGUMENT | ENDED |
//! | | no message for [`Limits::call`](crate::Limits::call) | DEADLINE_EXCEEDED | ENDED |
//! | OPEN | nodes up | handles; fewer than nodes if the table is full | OPEN |
//! | | heartbeat | ack, with the handles whose routes are gone | OPEN |
//! | | heartbeat, after the table has dropped the proxy because it had no routes | resync | OPEN |
//! | | nodes down | ack | OPEN |
//! | | drain | ack, then OK | ENDED; the routes are gone |
//! | | hello | INVALID_ARGUMENT | ENDED |
//! | | another session of the proxy begins | superseded, FAILED_PRECONDITION | ENDED |
//! | | any message after the proxy was removed | superseded, FAILED_PRECONDITION | ENDED |
//! | | no message for a keep-alive interval | DEADLINE_EXCEEDED | ENDED |
//! | | no response for [`Limits::stream_keep_alive`](crate::Limits::stream_keep_alive) | keep-alive | OPEN |
//! | | the tracker is about to stop | go-away, once | OPEN |
//! | both | a message that is malformed, has too many elements, or is empty | INVALID_ARGUMENT | ENDED |
//! | | bytes that are not a message of the contract | INTERNAL | ENDED |
//! | | a message over the size limit | RESOURCE_EXHAUSTED | ENDED |
//! | | the end of the client's side | OK | ENDED |
//! | | the connection drains | UNAVAILABLE (`grpc::drain_body`) | ENDED |
//! | | the connection is lost | | ENDED |
//!
//! The end of a session changes nothing in the table, except after a drain or a takeover by a newer incarnation.
//!
//! # Ownership
//!
//! The table rejects calls of every incarnation but the latest ([`RouteTable::begin_incarnation`]). [`owner`] adds that
//! of one incarnation only the latest *session* acts. So a message from a dead connection has no effect once the next
//! session has begun.
//!
//! # Memory
//!
//! [`stream`] reads a message once HTTP/2 has taken the response to the previous message. HTTP/2 takes a few responses
//! ([`MAX_UNSENT_FRAMES`](crate::limits::MAX_UNSENT_FRAMES)), and large responses are charged to the memory budget. So
//! a client that does not read delays only itself, with an unread window. A session's memory does not grow
//! with its nodes: the table keeps the routes, and the client keeps the handles. Parsed messages
//! ([`Scratch`](message::Scratch)) belong to the thread, not to the session.
//!
//! # Turns
//!
//! A session takes a [turn](crate::turns) for each message before it decodes the message. So sessions do not keep other
//! connections waiting. While a message waits for its turn, the session holds the encoded message. The memory budget
//! charges the message as part of the request.
//!
//! # Silence
//!
//! A client whose message waits for its turn is not silent.
//!
//! Before a session counts its client as silent, the session reads the messages that have arrived. If the process was
//! stopped for a while, timers fire before the sockets are polled. So when the client's time is over, the stream first
//! lets its thread poll the sockets a few times.
//!
//! # The heartbeat interval
//!
//! The heartbeat interval is a third of the table's keep-alive interval ([`HEARTBEATS_PER_INTERVAL`]), so a route
//! survives two lost heartbeats in a row. If the table's interval changes, the next ack has the new heartbeat interval.

mod message;
mod owner;
mod state;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nodetracker::RouteTable;
use tonic::Streaming;

use crate::grpc::handler::RequestsContext;
use crate::limits::{HEARTBEATS_PER_INTERVAL, Limits};
use crate::refusal::Refusals;
use crate::rpc::instance_id::InstanceId;
use crate::rpc::session::owner::SessionOwners;
use crate::rpc::session::state::Session;
use crate::rpc::session::stream::SessionStream;

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct Sessions {
    shared: Arc<Shared>,
    /// How long a client may take to say hello.
    hello: Duration,
    /// How long a session may send nothing before it sends a keep-alive.
    keep_alive: Duration,
}

/// The state that all sessions share.
#[derive(Debug)]
pub(crate) struct Shared {
    table: Arc<RouteTable>,
    owners: SessionOwners,
    instance_id: InstanceId,
    refusals: Arc<Refusals>,
}

impl Shared {
    fn new(table: Arc<RouteTable>, instance_id: InstanceId, refusals: Arc<Refusals>) -> Self {
        Self {
            table,
            owners: SessionOwners::default(),
            instance_id,
            refusals,
        }
    }

    /// Returns the interval at which a client has to refresh each of its routes.
    fn heartbeat_interval(&self) -> Duration {
        self.table.keep_alive() / HEARTBEATS_PER_INTERVAL
    }
}

impl Sessions {
    /// Returns the service.
    pub(crate) fn new(
        table: Arc<RouteTable>,
        instance_id: InstanceId,
        refusals: Arc<Refusals>,
        limits: &Limits,
    ) -> Self {
        Self {
            shared: Arc::new(Shared::new(table, instance_id, refusals)),
            hello: limits.call,
            keep_alive: limits.stream_keep_alive,
        }
    }

    /// Asks all sessions, also those that begin later, to go to another tracker within `time_left`.
    pub(crate) fn go_away(&self, time_left: Duration) {
        self.shared.owners.go_away(time_left);
    }

    /// Returns the number of proxies that have an open session.
    pub(crate) fn count(&self) -> usize {
        self.shared.owners.count()
    }

    /// Begins a session, which takes a turn for each of its encoded requests.
    pub(crate) fn session(&self, requests: Streaming<Bytes>, context: RequestsContext) -> SessionStream {
        let session = Session::new(Arc::clone(&self.shared), context.caller, context.counters);
        SessionStream::new(requests, session, context.turns, self.hello, self.keep_alive)
    }
}
