//! Every limit of the front end, in one place.
//!
//! The libraries underneath leave several of them off or generous. Each one here is chosen for what this server
//! carries, small messages from a few hundred proxies, and for the attack that it stops.

use std::time::Duration;

/// Calls that one connection may have in flight; further streams are refused. Stops stream floods.
pub const MAX_CONCURRENT_STREAMS: u32 = 256;

/// The size of a request's decoded headers. gRPC needs a few hundred bytes; stops CONTINUATION floods.
pub const MAX_HEADER_LIST_SIZE: u32 = 8 * 1024;

/// Streams that the server may reset over a connection's life because of what the client sent, before the connection
/// itself is closed. Stops "MadeYouReset".
pub const MAX_LOCAL_ERROR_RESETS: usize = 1024;

/// Streams that a client may have opened and reset before they were looked at. Stops "Rapid Reset".
pub const MAX_PENDING_ACCEPT_RESETS: usize = 20;

/// The size of one request message. The largest legal one has four strings of 255 bytes.
pub const MAX_MESSAGE_SIZE: usize = 64 * 1024;

/// Nodes in one message of a session: as UUIDs they fill half of what a message may be, and names of some 28 bytes all of it.
pub const MAX_SESSION_NODES: usize = 2048;

/// Handles in one message of a session, half of what a message may be. Enough for what a message costs by itself to be lost
/// among them, few enough for the others on the thread not to wait: about a tenth of a millisecond.
pub const MAX_SESSION_HANDLES: usize = 4096;

/// Heartbeats in one keep-alive interval, which sessions are told: all but one of them may be lost, and the route lives.
pub const HEARTBEATS_PER_KEEP_ALIVE: u32 = 3;

/// The size of one request message that may have many nodes. As many UUIDs as it may have take 64 KiB, as many names of
/// 60 bytes 256 KiB.
pub const MAX_BATCH_MESSAGE_SIZE: usize = 256 * 1024;

/// Bytes of requests and their answers after which a connection lets the others of its worker go first: three of the batches
/// that take longest, or some 800 small calls, are a few milliseconds of work.
pub const MAX_TURN: usize = 64 * 1024;

/// Nodes that one request may have. A few hundred microseconds of work, for which the other connections of a worker wait.
pub const MAX_BATCH_NODES: usize = 4096;

/// The size of one answer; gRPC's clients take no more than 4 MiB unless they are told to.
pub const MAX_ANSWER_SIZE: usize = 4_000_000;

/// Bytes of large answers that one connection may have unread, wherever they wait: further calls that may have such an
/// answer, and snapshots of watches, wait until the client has read. Stops clients that ask and never read, who would have
/// a gigabyte otherwise; one that reads can have four of the largest answers on their way.
pub const MAX_UNREAD_ANSWERS: usize = 4 * MAX_ANSWER_SIZE;

/// Answers up to this size do not count for that: for as many calls as one connection may have they are a megabyte. Nor do
/// those of a node's proxies, and of a message of a session, which some tens of kilobytes are the most of.
pub const SMALL_ANSWER_SIZE: usize = 4 * 1024;

/// Elements of one page of a list.
pub const MAX_PAGE_SIZE: usize = 1000;

/// The most pages of the table, each of some 16,000 slots, that one page of nodes is made of: if few nodes in them match, the
/// page is short. Bounds the cost of one call.
pub const MAX_TABLE_PAGES: usize = 16;

/// Watches at one time. Each takes some hundred bytes, and up to some hundred kilobytes while it is sent its snapshot; ten
/// megabytes where every node has 64 routes. One whose client does not read holds one message, for which its connection has
/// [budget](MAX_UNREAD_ANSWERS), and one more of changes, which are the same bytes for all.
pub const MAX_WATCHES: usize = 10_000;

/// Nodes that watches of some nodes are about, all together: some fifty megabytes of UUIDs, and 255 bytes for a name.
pub const MAX_WATCHED_NODES: usize = 1_000_000;

/// Changes that are kept for watches which are behind: some twenty megabytes. One that is further behind loses its place.
pub const WATCH_BACKLOG: usize = 64 * 1024;

/// Bytes of these changes, encoded; a few times as much as they take where nodes have few routes. With what else is kept of
/// them it is some fifty megabytes.
pub const WATCH_BACKLOG_SIZE: usize = 16 * 1024 * 1024;

/// How often the table's changes are taken while somebody watches: how late a watch is, and for how long the feed of a shard
/// has to have room (for 512 changes), or all watches lose their place. Looking costs some microseconds.
pub const WATCH_INTERVAL: Duration = Duration::from_millis(5);

/// Changes in one message of a watch.
pub const MAX_WATCH_CHANGES: usize = 1000;

/// The size at which a message of a watch is sent and another one begun; one node can add 55 kB at most.
pub const WATCH_MESSAGE_SIZE: usize = 1_000_000;

/// Nodes in one message of a watch's snapshot.
pub const MAX_SNAPSHOT_NODES: usize = 1000;

/// Nodes that are copied at a time for a watch's snapshot.
pub const SNAPSHOT_COPY: usize = 8 * 1024;

/// Bytes of requests that may wait unread on one stream.
pub const STREAM_WINDOW: u32 = 64 * 1024;

/// Bytes of requests that may wait unread on one connection, all of its streams together.
pub const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// The largest frame that a client may send, HTTP/2's smallest allowed value.
pub const MAX_FRAME_SIZE: u32 = 16 * 1024;

/// Bytes of answers that may wait on one stream for a client that does not read.
pub const MAX_SEND_BUFFER: usize = 64 * 1024;

/// How long the acceptor waits after its first failure to accept, such as running out of file descriptors. Doubles
/// with every further one.
pub const ACCEPT_BACKOFF: Duration = Duration::from_millis(10);

/// The longest wait after a failure to accept.
pub const MAX_ACCEPT_BACKOFF: Duration = Duration::from_secs(1);

/// Limits that depend on where the server runs.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections served at one time. Further ones wait in the kernel's backlog. 10,000 by default.
    pub max_connections: u32,
    /// How long a client may take for the TLS handshake, and then for HTTP/2's connection preface. 10 s by default.
    pub handshake: Duration,
    /// How long a call's request may take to arrive in full, and a session's first one. 10 s by default.
    pub call: Duration,
    /// How long a connection may be silent before its client is pinged. 30 s by default.
    pub keep_alive_interval: Duration,
    /// How long a pinged client may stay silent before its connection is closed. 10 s by default.
    pub keep_alive_timeout: Duration,
    /// How long calls in flight may go on after the server, or their connection, was told to stop. 10 s by default.
    pub drain: Duration,
    /// How long a connection lives before its client is told to open another. Bounds what a client can gain from
    /// floods that are cheap for it and that nothing else ends. One hour by default, less a few minutes that differ
    /// between connections.
    pub max_connection_age: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            handshake: Duration::from_secs(10),
            call: Duration::from_secs(10),
            keep_alive_interval: Duration::from_secs(30),
            keep_alive_timeout: Duration::from_secs(10),
            drain: Duration::from_secs(10),
            max_connection_age: Duration::from_secs(3600),
        }
    }
}
