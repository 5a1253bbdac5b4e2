//! Every limit of the server, in one place.
//!
//! The libraries below leave several limits off or generous. Each limit here fits the server's load, small messages
//! from a few hundred proxies, and the attack that it stops.

use std::num::NonZeroU64;
use std::time::Duration;

use nodetracker::MAX_ROUTES_PER_NODE;
use tracing::warn;

use crate::host;

/// Calls that one connection may have in flight. Further streams are refused. Stops stream floods.
pub const MAX_CONCURRENT_STREAMS: u32 = 256;

/// Bytes of a request's metadata: the names and values of its headers, and 32 bytes for each. gRPC needs a few hundred.
///
/// A call over the limit gets RESOURCE_EXHAUSTED.
pub const MAX_METADATA_SIZE: usize = 8 * 1024;

/// Bytes of a request's decoded headers that h2 accepts. Stops CONTINUATION floods.
///
/// h2 answers a call over the limit with HTTP status 431, which gRPC's clients report as UNKNOWN. h2 closes the
/// connection at four times the limit, or after 80 CONTINUATION frames. So the limit is far above
/// [`MAX_METADATA_SIZE`].
pub const MAX_HEADER_LIST_SIZE: u32 = 1024 * 1024;

/// Streams that the server resets because of a client's errors before it closes the connection. Stops "MadeYouReset".
pub const MAX_LOCAL_ERROR_RESETS: usize = 1024;

/// Streams that a client may open and reset before h2 hands them over, which is once a turn. No client reaches the
/// limit: a turn's input has fewer ([`MAX_TURN_INPUT`]). See [`CANCELLED_CALLS`] for the limit that stops "Rapid
/// Reset".
pub const MAX_PENDING_ACCEPT_RESETS: usize = 8 * 1024;

/// Calls of one connection that the client may cancel before the server looks at them: this many at once, and
/// [`CANCELLED_CALLS_PER_SECOND`] in the long run. A flood beyond that ends the connection. Stops "Rapid Reset".
///
/// A client may cancel all its calls 32 times while the server is busy, and ten times a second at any time.
pub const CANCELLED_CALLS: u32 = 32 * MAX_CONCURRENT_STREAMS;

/// See [`CANCELLED_CALLS`].
pub const CANCELLED_CALLS_PER_SECOND: u32 = 10 * MAX_CONCURRENT_STREAMS;

/// Frames of one connection that make h2 visit every stream, SETTINGS and GOAWAY: this many at once, and
/// [`CONTROL_FRAMES_PER_SECOND`] in the long run. A flood beyond that ends the connection. Clients send a few when they
/// connect, and seldom later.
pub const CONTROL_FRAMES: u32 = 32;

/// See [`CONTROL_FRAMES`].
pub const CONTROL_FRAMES_PER_SECOND: u32 = 1;

/// TLS records of one connection without bytes for HTTP/2: this many at once, and [`BARE_RECORDS_PER_SECOND`] in the
/// long run. A flood beyond this limit ends the connection. Stops clients that change their keys without end. A
/// handshake has some ten of these records, or more if the client's system splits large messages.
pub const BARE_RECORDS: u32 = 128;

/// See [`BARE_RECORDS`].
pub const BARE_RECORDS_PER_SECOND: u32 = 1;

/// Bytes of one request message. The largest valid message has four strings of 255 bytes.
pub const MAX_MESSAGE_SIZE: usize = 64 * 1024;

/// Nodes in one message of a session. A message has one turn: other connections of the thread wait for some quarter of
/// a millisecond while this many new nodes are added. With names of 120 bytes, this many nodes take all of
/// [`MAX_MESSAGE_SIZE`].
pub const MAX_SESSION_NODES: usize = 512;

/// The greatest incarnation of a proxy: time since 1970 in nanoseconds, until the year 2262.
///
/// After an incarnation has ended, only a greater incarnation may begin. A proxy that begins the greatest number by
/// mistake, such as -1 as an unsigned number, would be locked out.
pub const MAX_INCARNATION: NonZeroU64 = NonZeroU64::new(i64::MAX as u64).expect("it is not zero");

/// Handles in one message of a session, which take half of [`MAX_MESSAGE_SIZE`].
///
/// With this many handles, the fixed cost of a message hardly counts. A message has one turn: other connections of the
/// thread wait for one or two tenths of a millisecond.
pub const MAX_SESSION_HANDLES: usize = 4096;

/// Heartbeats per keep-alive interval. A route survives if all but one of them are lost.
pub const HEARTBEATS_PER_INTERVAL: u32 = 3;

/// Bytes of one request message with many nodes. [`MAX_BATCH_NODES`] UUIDs take 64 KiB, and as many names of 60 bytes
/// take 256 KiB.
pub const MAX_BATCH_MESSAGE_SIZE: usize = 256 * 1024;

/// Bytes on the wire that a connection reads in a turn. A TLS record counts as more bytes: see [`RECORD_WORK`].
pub const MAX_TURN_INPUT: usize = 64 * 1024;

/// The work of a small call, in tenths of a microsecond, as all figures of work. Work is an estimate: it decides who
/// waits.
pub const CALL_WORK: usize = 25;

/// The work to begin a call that becomes a task, besides [`CALL_WORK`].
pub const WAITING_CALL_WORK: usize = 50;

/// The work to verify a client's certificate: at the end of the handshake, and again after the authorities were
/// replaced.
pub const VERIFY_WORK: usize = 2_000;

/// The work for a node that is looked up, added, refreshed or removed.
pub const NODE_WORK: usize = 4;

/// Handles of a heartbeat that cost as much as one unit of work.
pub const HANDLES_PER_WORK: usize = 2;

/// Comparisons of nodes that cost as much as one unit of work, when a watch of some nodes looks for a change.
pub const COMPARISONS_PER_WORK: usize = 8;

/// The work for a route that is encoded.
pub const ROUTE_WORK: usize = 1;

/// The work to explain the routes of a node: the texts of each proxy are copied, and its complaints are looked up.
pub const EXPLAIN_WORK: usize = NODE_WORK + 3 * MAX_ROUTES_PER_NODE * ROUTE_WORK;

/// The work to read the figures of all shards.
pub const STATS_WORK: usize = 500;

/// Bytes of a request or a reply that cost as much as a route.
pub const BYTES_PER_WORK: usize = 64;

/// Bytes of a connection's input that cost as much as one unit of work, if the calls in the input cost less. h2 parses
/// and acknowledges frames that make no call, such as PING.
pub const INPUT_PER_WORK: usize = 16;

/// The work to open a TLS record, besides its bytes. A client may put each byte into a record of its own.
pub const RECORD_WORK: usize = 5;

/// Streams that cost as much as one unit of work for a frame that makes h2 visit every stream ([`CONTROL_FRAMES`]).
pub const STREAMS_PER_WORK: usize = 8;

/// The work after which a connection's small calls wait for the next turn: some 200 calls, half a millisecond.
pub const TURN_WORK: usize = 5_000;

/// As [`TURN_WORK`], while tasks of the worker wait for a turn, and for a turn that was granted.
pub const SHORT_TURN_WORK: usize = 2_000;

/// As [`TURN_WORK`], once a pass of the worker has done [`SMALL_WORK_PER_PASS`]: ten calls. So clients with few calls
/// in flight never wait for clients with many.
pub const MIN_TURN_WORK: usize = 250;

/// The work of one pass that all connections of a client may do in turns of [`MIN_TURN_WORK`]: 800 calls. Further
/// connections of the client wait for a turn. So a pass does not grow with the connections of a client.
pub const MIN_TURNS_WORK_PER_CLIENT: usize = SMALL_WORK_PER_PASS;

/// The work to poll a connection that has something to read or to write: mostly two system calls. Counted while several
/// clients share a worker.
pub const POLL_WORK: usize = 100;

/// The most work beyond its share for which a client waits in the next passes, while several clients share a worker.
pub const MAX_DEBT: usize = MIN_TURNS_WORK_PER_CLIENT;

/// For how many busy passes a worker counts as shared after a turn of another client: some seconds. Then a client that
/// is alone has the whole worker again.
pub const SHARED_PASSES: usize = 5_000;

/// Bytes that a connection reads in a turn of [`MIN_TURN_WORK`]: a few calls.
pub const MIN_TURN_INPUT: usize = 2 * 1024;

/// The work to take a connection over, and again the work to begin HTTP/2 when the client's preface has arrived: 25
/// microseconds each. Also the work to end a TLS handshake without a client's certificate. With a certificate, this
/// work is [`VERIFY_WORK`].
pub const CONNECTION_WORK: usize = 250;

/// The work for a client's hello of a TLS handshake: half a millisecond. A signature with an RSA key takes as long. In
/// TLS 1.2, also the work for the client's key.
pub const TLS_CONNECTION_WORK: usize = 5_000;

/// The work that one pass of a worker grants to the tasks that wait for a turn: half a millisecond.
pub const WORK_PER_PASS: usize = 5_000;

/// The work of small calls after which one pass of a worker leaves only [`MIN_TURN_WORK`] to each connection, while
/// at most [`CROWD`] tasks wait. Some ten connections with many calls in flight stay below: to divide their calls would
/// cost a tenth of their CPU.
pub const SMALL_WORK_PER_PASS: usize = 4 * WORK_PER_PASS;

/// Tasks of one worker that may wait for a turn without effect on [`SMALL_WORK_PER_PASS`]. While more tasks wait, the
/// small calls of a pass have less work, down to [`WORK_PER_PASS`], because a connection with one call waits for the
/// end of the pass.
pub const CROWD: usize = 16;

/// The work of one turn of a batch or of a page: 50 microseconds.
pub const WORK_PER_PART: usize = 500;

/// Calls of one worker that build a large reply at one time. Further calls wait when their reply becomes large.
pub const LARGE_CALLS: usize = 8;

/// Replies over this size, in bytes, are large for [`LARGE_CALLS`].
pub const LARGE_REPLY_SIZE: usize = 64 * 1024;

/// Nodes in one request. The call handles the nodes in parts of [`WORK_PER_PART`], each in a turn of its own.
pub const MAX_BATCH_NODES: usize = 4096;

/// Bytes of one reply. gRPC clients accept at most 4 MiB by default.
pub const MAX_REPLY_SIZE: usize = 4_000_000;

/// Bytes of large replies that one connection may have unread, in the server and in HTTP/2.
///
/// Further calls with large replies, and messages of watches, wait until the client has read. Stops clients that call
/// and never read; without the limit, each client could hold a gigabyte. A client that reads can have four of the
/// largest replies in flight.
pub const SEND_BUDGET: usize = 4 * MAX_REPLY_SIZE;

/// Replies up to this size are not charged. [`MAX_CONCURRENT_STREAMS`] of them are a quarter of a megabyte.
///
/// A stream has at most [`MAX_UNSENT_FRAMES`] of them at one time.
pub const SMALL_REPLY_SIZE: usize = 1024;

/// Certificates between the certificate of a client and its authority, in the chain that the client sends. Public
/// authorities use one or two.
pub const MAX_INTERMEDIATES: usize = 4;

/// Bytes of the certificates that a client sends.
pub const MAX_CHAIN_SIZE: usize = 16 * 1024;

/// Bytes that are charged for a connection: its buffers and the state of HTTP/2 and of TLS.
pub const CONNECTION_MEMORY: usize = 40 * 1024;

/// Bytes of the client's part of a TLS handshake without a charge: [`CONNECTION_MEMORY`] includes these.
pub const SMALL_HANDSHAKE: usize = 16 * 1024;

/// Bytes that are charged for a TLS handshake of more than [`SMALL_HANDSHAKE`], until it ends. rustls joins messages of
/// up to this size before it knows the client. If the budget has no room, the handshake fails.
pub const HANDSHAKE_MEMORY: usize = 64 * 1024;

/// Calls that a connection may have at one time without a charge for their streams: [`CONNECTION_MEMORY`] includes
/// these.
pub const SMALL_CONNECTION_CALLS: usize = 16;

/// Bytes that are charged for each further call that a connection has had at one time, until the connection ends. h2
/// keeps the memory of a stream for later streams.
///
/// Stops clients that make h2 keep some 600 kB for each of thousands of connections. If the budget has no room for the
/// charge, the connection drains.
pub const STREAM_MEMORY: usize = 5 * 512;

/// How long a connection that has had more than [`SMALL_CONNECTION_CALLS`] at one time may be idle. Then the connection
/// drains, because only the end of the connection frees the memory of its streams. A connection with a watch or a
/// session is not idle.
pub const LARGE_CONNECTION_IDLE: Duration = Duration::from_secs(30);

/// Bytes that are charged for a call that waits, besides its request and its reply.
pub const CALL_MEMORY: usize = 4 * 1024;

/// Frames of one stream of replies that h2 may hold for a client that does not read. [`STREAM_MEMORY`] includes their
/// 312 bytes each, and [`CALL_MEMORY`] the bytes of small frames.
///
/// Further frames wait: a client whose windows are open, but whose connection stands still, could make h2 hold
/// thousands of tiny frames of each stream.
pub const MAX_UNSENT_FRAMES: usize = 2;

/// Elements in one page of a list.
pub const MAX_PAGE_SIZE: usize = 1000;

/// Pages of the table, of [`TABLE_PAGE_SLOTS`] each, that one page of nodes may read. Bounds the cost of one call. If
/// few nodes match, the page is short.
pub const MAX_TABLE_PAGES: usize = 16;

/// About how many slots a page of the table reads, however few nodes it has.
pub const TABLE_PAGE_SLOTS: usize = 16_000;

/// The latest complaints about routes that are kept. Each takes up to a kilobyte, mostly some hundred bytes.
pub const COMPLAINTS: usize = 4096;

/// Changes that are kept for slow watches: some twenty megabytes. A watch that is further behind loses its place.
pub const WATCH_BACKLOG: usize = 64 * 1024;

/// Encoded bytes of the kept changes. Nodes with few routes take a fraction of that. With the decoded changes, the log
/// takes some fifty megabytes.
pub const WATCH_BACKLOG_SIZE: usize = 16 * 1024 * 1024;

/// The pause between two reads of the table's changes while there are watches. A read costs some microseconds.
///
/// A watch is late by up to this pause. If a part's feed of 512 changes overflows meanwhile, the part is read again.
pub const WATCH_INTERVAL: Duration = Duration::from_millis(5);

/// How long the watches that are up to date wait for further changes, for each watch of the server. So a server with
/// many watches sends fewer messages, with more changes each. At most [`MAX_WATCH_PAUSE`], and at least
/// [`WATCH_INTERVAL`].
pub const PAUSE_PER_WATCH: Duration = Duration::from_micros(50);

/// See [`PAUSE_PER_WATCH`].
pub const MAX_WATCH_PAUSE: Duration = Duration::from_millis(100);

/// Encoded bytes a second of the parts that are read again: some 90,000 nodes with one route.
///
/// Bounds how fast a client that makes feeds overflow fills the backlog and the other clients' connections.
pub const RESYNC_RATE: usize = 5_000_000;

/// Nodes of a part that are read again at a time.
pub const RESYNC_NODES: usize = 128;

/// How long a step of the sweeper waits until the watches' tailer has taken the changes of the step. After that the
/// sweeper continues, so that expired memory is given back: some 25,000 routes a second, even if the tailer never
/// catches up.
pub const MAX_SWEEP_WAIT: Duration = Duration::from_millis(10);

/// Connections to the diagnostics port at one time. A further connection ends the oldest connection that has not sent
/// its request, or else the oldest connection.
pub const MAX_DIAG_CONNECTIONS: usize = 16;

/// The pause after each connection that the diagnostics port accepts: at most 50 pages a second. A page of metrics
/// takes the main thread less than two milliseconds, even in a build without optimization.
pub const DIAG_ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// How long a connection to the diagnostics port may take, from its first byte to the last byte of the page.
pub const DIAG_CONNECTION_TIME: Duration = Duration::from_secs(10);

/// How long the head of a request may take on the diagnostics port.
pub const DIAG_HEADER_TIME: Duration = Duration::from_secs(1);

/// Bytes of a request's head on the diagnostics port. hyper reads this many at a time.
pub const MAX_DIAG_HEADER_SIZE: usize = 8 * 1024;

/// Headers of a request on the diagnostics port.
pub const MAX_DIAG_HEADERS: usize = 64;

/// How long a watch sends nothing before it sends a keep-alive message, and the default for sessions. HTTP proxies
/// often end streams that are silent for 60 s.
pub const STREAM_KEEP_ALIVE: Duration = Duration::from_secs(25);

/// Changes in one message of a watch.
pub const MAX_WATCH_CHANGES: usize = 1000;

/// Bytes after which a message of a watch is complete. One node can add 55 kB at most.
pub const WATCH_MESSAGE_SIZE: usize = 1_000_000;

/// Bytes of the encoded chunks that are kept for all watches that read a snapshot.
pub const SNAPSHOT_CACHE_SIZE: usize = 8 * 1024 * 1024;

/// Chunks that are kept for all watches that read a snapshot. Bounds the search for a chunk.
pub const SNAPSHOT_CACHE_CHUNKS: usize = 512;

/// A new watch joins an earlier watch's snapshot if there were at most this many changes since. The new watch has to
/// send these changes.
pub const SNAPSHOT_JOIN_CHANGES: u64 = 4096;

/// Bytes of requests that may wait unread on one stream.
pub const STREAM_WINDOW: u32 = 64 * 1024;

/// Bytes of requests that may wait unread on all streams of one connection: HTTP/2 allows this many at the beginning
/// anyway.
pub const CONNECTION_WINDOW: u32 = STREAM_WINDOW;

/// As [`CONNECTION_WINDOW`], for a connection with several calls that wait, while much memory is free. The difference
/// is charged until the connection ends.
pub const LARGE_CONNECTION_WINDOW: u32 = 256 * 1024;

/// Bytes of the buffers that h2 reads into. A frame of DATA that no call has read holds its buffer, however small the
/// frame is.
pub const READ_BUFFER: usize = 8 * 1024;

/// Bytes by which all tiny frames of DATA of one connection may be shorter than 256 bytes. Large frames offset tiny
/// frames. Stops floods of tiny frames, for which h2 keeps much more than their bytes.
///
/// h2 does not count a frame that a call has read, but counts a frame of a stream that the server has ended. So a
/// client may send some 2,000 tiny messages too late before its connection ends.
pub const DATA_FRAME_BUDGET: usize = 512 * 1024;

/// Frames of DATA that no call has read that take as much of h2's memory as a stream ([`STREAM_MEMORY`]). h2 keeps this
/// memory for later frames.
pub const FRAMES_PER_STREAM: usize = 8;

/// Bytes of input that h2 may keep for one connection without a charge, and the step in which more is charged: DATA
/// that no call has read, and trailers.
///
/// If the budget has no room, the connection reads nothing more until its calls read. It drains after
/// [`Limits::call`]. Stops clients that make h2 keep megabytes for each of thousands of connections.
pub const UNREAD_STEP: usize = 16 * 1024;

/// Bytes of a header block that have the price of other input. Ordinary requests have fewer.
pub const SMALL_BLOCK: usize = 1024;

/// The bytes of other input whose price each further byte of a header block has: the byte may be a field, which h2
/// decodes, stores and frees.
pub const FIELD_INPUT: usize = 12;

/// Bytes that are charged for each byte of a header block that has begun and not ended, and of a request's trailers,
/// which gRPC does not have. A field of one byte takes this much memory in h2's map.
pub const MEMORY_PER_FIELD_BYTE: usize = 72;

/// The most bytes that are charged for a header block that has begun and not ended. h2 keeps the decoded fields, up to
/// [`MAX_HEADER_LIST_SIZE`], and each field takes more memory than HTTP/2 counts. If the budget has no room, or if the
/// block does not end within [`Limits::call`], the connection ends.
pub const HEADER_BLOCK_MEMORY: usize = MAX_HEADER_LIST_SIZE as usize / 4 * 9;

/// Bytes of the largest frame that a client may send: HTTP/2's smallest allowed value.
pub const MAX_FRAME_SIZE: u32 = 16 * 1024;

/// Bytes of replies that may wait on one stream for a client that does not read.
pub const MAX_SEND_BUFFER: usize = 64 * 1024;

/// The acceptor's pause after a failure to accept, for example without free file descriptors. Doubles with each failure
/// in a row.
pub const ACCEPT_BACKOFF: Duration = Duration::from_millis(10);

/// The acceptor's longest pause.
pub const MAX_ACCEPT_BACKOFF: Duration = Duration::from_secs(1);

/// How often the server asks idle connections to make room while new connections wait: the idle connections of one
/// client, or of all clients.
pub const MAKE_ROOM_INTERVAL: Duration = Duration::from_secs(10);

/// How often, at most, the server asks idle connections of all clients to make room for new connections that come one
/// after the other.
pub const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// How long a client may take for its handshakes before its connection counts as idle.
pub const HANDSHAKE_GRACE: Duration = Duration::from_secs(1);

/// How long an idle connection that makes room may take to close.
pub const IDLE_DRAIN: Duration = Duration::from_secs(1);

/// Connections of one client that may wait because their address has its share of the connections. Further connections
/// are closed at once.
pub const MAX_WAITING_PER_CLIENT: usize = 8;

/// As [`MAX_WAITING_PER_CLIENT`], for the connections of all clients together.
pub const MAX_WAITING: usize = 128;

/// How long a connection waits because its address has its share. Then the connection is closed. Meanwhile, the server
/// asks the client's idle connections to make room at least once.
pub const MAX_CONNECTION_WAIT: Duration = Duration::from_secs(12);

/// Bytes that the server may write to a connection that is idle: acknowledgements of pings. A client that takes fewer
/// bytes of its replies in half of [`MAKE_ROOM_INTERVAL`] counts as idle.
pub const IDLE_BYTES: u64 = 1024;

/// Calls of one connection that leave the connection idle: watches of the health, and reflection.
pub const MAX_PASSIVE_CALLS: usize = 8;

/// Watches of one connection.
pub const MAX_WATCHES_PER_CONNECTION: usize = 64;

/// Limits that depend on where the server runs.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at one time. Further connections wait in the kernel's backlog, until idle connections have made
    /// room. 10,000 by default. The server lowers the limit if [`memory`](Self::memory) has less than
    /// [`CONNECTION_MEMORY`] and two calls that wait for each connection.
    pub max_connections: u32,
    /// Bytes that all clients together may make the server hold, besides the table: connections, requests that have
    /// arrived, and replies that were not read. If the budget is used up, calls fail with RESOURCE_EXHAUSTED. Every
    /// connection has an equal share for itself. Some of the server's memory is not counted, so plan for twice the
    /// budget. By default, an eighth of the memory that the process may use, and at most 512 MiB.
    pub memory: usize,
    /// The percentage of a limit over all clients that one address may have. The percentage applies to
    /// [`max_connections`](Self::max_connections), [`memory`](Self::memory), [`max_watches`](Self::max_watches) and
    /// [`max_watched_size`](Self::max_watched_size). For IPv6, a network of 56 bits counts as one address. 50 by
    /// default; 100 is no limit.
    pub max_share_per_client: u32,
    /// Watches at one time. A watch takes some hundred bytes. A watch whose client does not read holds one message,
    /// which counts for [`SEND_BUDGET`]. 10,000 by default.
    pub max_watches: usize,
    /// Bytes of the nodes of all watches that are limited to some nodes. A UUID takes 32 bytes, a long name up to 287.
    /// 64 megabytes by default.
    pub max_watched_size: usize,
    /// How long a client may take for the TLS handshake, and then for HTTP/2's connection preface. 10 s by default.
    pub handshake: Duration,
    /// How long a request, or the first request of a session, may take to arrive in full. Also how long a unary reply
    /// waits until the client opens its window. 10 s by default.
    pub call: Duration,
    /// How long a connection may be silent before its client is pinged. 30 s by default.
    pub ping_interval: Duration,
    /// How long a pinged client may stay silent before its connection is closed. 10 s by default. A client whose system
    /// takes bytes that were written before the ping has another [`ping_interval`](Self::ping_interval).
    pub ping_timeout: Duration,
    /// How long a session may send nothing before it sends a keep-alive message. 25 s by default, as for watches. HTTP
    /// proxies end streams that are silent for longer, often after 60 s, and HTTP/2's pings do not pass proxies.
    pub stream_keep_alive: Duration,
    /// How long calls in flight may continue after the server, or their connection, begins to drain. 10 s by default.
    pub drain: Duration,
    /// How long a connection lives before it drains. Bounds floods that are cheap for a client and that no other limit
    /// stops. One hour by default, less a few minutes that differ between connections.
    pub max_connection_age: Duration,
    /// How long the changes are kept for clients that resume, after the last watch has ended. One minute by default.
    pub watch_resume: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            memory: (host::memory() / 8).min(512 << 20),
            max_share_per_client: 50,
            max_watches: 10_000,
            max_watched_size: 64_000_000,
            handshake: Duration::from_secs(10),
            call: Duration::from_secs(10),
            ping_interval: Duration::from_secs(30),
            ping_timeout: Duration::from_secs(10),
            stream_keep_alive: STREAM_KEEP_ALIVE,
            drain: Duration::from_secs(10),
            max_connection_age: Duration::from_secs(3600),
            watch_resume: Duration::from_secs(60),
        }
    }
}

impl Limits {
    /// Lowers [`max_connections`](Self::max_connections) so that the share of each connection in the memory has room
    /// for the connection and some calls. Otherwise the server would accept connections, and then close them.
    pub(crate) fn fitted(mut self) -> Self {
        let most = (self.memory / (CONNECTION_MEMORY + 2 * CALL_MEMORY)).max(1);
        if self.max_connections as usize > most {
            let (limit, memory) = (self.max_connections, self.memory);
            warn!("the memory for clients, {memory} bytes, allows {most} connections; the limit was {limit}");
            // The number is below a u32.
            self.max_connections = most as u32;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_each_connection_has_room_for_some_calls() {
        let fitted = |memory| {
            let limits = Limits {
                memory,
                ..Limits::default()
            };
            limits.fitted().max_connections as usize
        };
        // The default on a machine with 4 GiB, and in a container with 1 GiB.
        assert_eq!(fitted(512 << 20), 10_000);
        let connections = fitted(128 << 20);
        assert!((128 << 20) / connections >= CONNECTION_MEMORY + 2 * CALL_MEMORY);
        assert!(connections > 2_000, "{connections}");
        assert_eq!(fitted(0), 1);
    }
}
