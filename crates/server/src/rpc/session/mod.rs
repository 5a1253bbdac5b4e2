//! `nodetracker.v1.SessionService`: one stream for each proxy.
//!
//! What the messages mean is told in `session.proto`; this is how a session goes.
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
//! | in | what comes | answer | then |
//! | --- | --- | --- | --- |
//! | BEGUN | hello | welcome. A session of the same proxy that was there before is superseded | OPEN |
//! | | hello of a stale incarnation | superseded, FAILED_PRECONDITION | ENDED |
//! | | another message | INVALID_ARGUMENT | ENDED |
//! | | nothing for [`Limits::call`](crate::Limits::call) | DEADLINE_EXCEEDED | ENDED |
//! | OPEN | nodes up | handles; fewer than nodes where the table is full | OPEN |
//! | | heartbeat | ack, with the handles that are gone | OPEN |
//! | | heartbeat, and the table has dropped the proxy, since it had no routes | resync | OPEN |
//! | | nodes down | ack | OPEN |
//! | | drain | ack, then OK | ENDED; the routes are gone |
//! | | hello | INVALID_ARGUMENT | ENDED |
//! | | anything, or nothing, when another session of the proxy has begun | superseded, FAILED_PRECONDITION | ENDED |
//! | | anything, when the proxy was removed | superseded, FAILED_PRECONDITION | ENDED |
//! | | nothing for a keep-alive interval | DEADLINE_EXCEEDED | ENDED |
//! | both | a message that is malformed, has too many elements, or is empty | INVALID_ARGUMENT | ENDED |
//! | | what is no message of the contract | INTERNAL | ENDED |
//! | | a message of too many bytes | RESOURCE_EXHAUSTED | ENDED |
//! | | the end of the client's side | OK | ENDED |
//! | | the server stops, or the connection has grown old | UNAVAILABLE ([`drain_body`](crate::grpc::drain_body)) | ENDED |
//! | | the connection is lost | | ENDED |
//!
//! But for a drain, and for a newer incarnation that takes over, the end of a session changes nothing in the table.
//!
//! # Who is right
//!
//! The table knows which incarnation of a proxy is the latest, and refuses what an older one does, whatever happens here
//! ([`RouteTable::begin_incarnation`]). [`owner`] adds to it that of one incarnation only the latest *session* speaks: a
//! message that was sent over a connection that is dead by now does nothing once the next session has begun.
//!
//! # Memory
//!
//! [`stream`] reads a message only when the answer to the one before was taken, and that waits for HTTP/2's flow control;
//! so a client that does not read holds up itself, with one unread window and one send buffer. A session has nothing that
//! grows with its nodes: the table keeps their routes, and the client their handles. What a message is taken apart into
//! ([`Scratch`](message::Scratch)) belongs to the thread, not to the session.
//!
//! # The heartbeat interval
//!
//! It is a third of the table's effective keep-alive interval ([`HEARTBEATS_PER_KEEP_ALIVE`]), so that a route outlives two
//! heartbeats in a row that were lost. When the table's changes, the next ack tells.

mod message;
mod owner;
mod state;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use nodetracker::RouteTable;
use nodetracker_proto::v1;
use tonic::Streaming;

use crate::limits::HEARTBEATS_PER_KEEP_ALIVE;
use crate::rpc::instance_id::InstanceId;
use crate::rpc::session::owner::Voices;
use crate::rpc::session::state::Session;
use crate::rpc::session::stream::Answers;

/// The service, and what all of its sessions share.
#[derive(Debug, Clone)]
pub(crate) struct Sessions {
    shared: Arc<Shared>,
    /// How long a client may take to say hello.
    hello: Duration,
}

/// What sessions share.
#[derive(Debug)]
pub(crate) struct Shared {
    table: Arc<RouteTable>,
    voices: Voices,
    instance_id: InstanceId,
}

impl Shared {
    fn new(table: Arc<RouteTable>, instance_id: InstanceId) -> Self {
        Self {
            table,
            voices: Voices::default(),
            instance_id,
        }
    }

    /// How often a client has to refresh each of its routes.
    fn heartbeat_interval(&self) -> Duration {
        self.table.keep_alive() / HEARTBEATS_PER_KEEP_ALIVE
    }
}

impl Sessions {
    /// Returns the service. `hello` is how long a client may take to say hello.
    pub(crate) fn new(table: Arc<RouteTable>, instance_id: InstanceId, hello: Duration) -> Self {
        let shared = Arc::new(Shared::new(table, instance_id));
        Self { shared, hello }
    }

    /// Begins a session.
    pub(crate) fn session(&self, requests: Streaming<v1::SessionRequest>) -> Answers {
        let session = Session::new(Arc::clone(&self.shared));
        Answers::new(requests, session, self.hello)
    }
}
