//! Snapshots: all routes of a table in one stream of bytes, from which another table can start.
//!
//! A tracker that restarts knows no routes until the proxies announce them again. [`RouteTable::read_snapshot`] adds
//! the unexpired routes of a snapshot that the tracker wrote before.
//!
//! # Contents
//!
//! *Ages*, not times: how long before the start of the snapshot each route was last refreshed. Ticks mean nothing in
//! another process, and a time of day would tie the routes' lives to the wall clock. The snapshot has the wall-clock
//! time of writing once, so that a reader *may* add the time between writing and reading to each age ([`Ages`]).
//!
//! Writing a snapshot blocks no call on routes. A route that exists all the time is in the snapshot. A route that
//! is added or removed meanwhile may be in it, and a route that is refreshed meanwhile has age zero. Expired routes and
//! routes of removed proxies are not in the snapshot. A proxy that is registered all the time is in it once. If the
//! proxy begins another incarnation meanwhile, the snapshot has the older or the newer incarnation, with routes of that
//! incarnation only.
//!
//! The snapshot has the current incarnation of each proxy, and the ended incarnations that a table must still refuse.
//! So a restarted table refuses messages of older incarnations, too. An incarnation may end while the snapshot is
//! written. Then the snapshot may have the incarnation twice, as current and as ended, and the reader treats it as
//! ended.
//!
//! # Layout, version 2
//!
//! All fixed-width numbers are little-endian. A *varint* has seven bits in each byte, the lowest first, and the top bit
//! set in all bytes but the last. It is below 2^64 and as short as possible. A *text* is its length in one byte, then
//! UTF-8.
//!
//! ```text
//! snapshot  = header  section*  end
//!
//! header    magic "\x89NTRACK\n"               8 bytes
//!           version                            u32
//!           wall-clock time of writing         i64      milliseconds since the Unix epoch
//!           checksum                           u32
//!
//! section   kind                               u8       1 proxies, 2 nodes with a UUID, 3 nodes with a name,
//!                                                       4 ended incarnations
//!           number of items                    u32      at least 1 in a section of nodes
//!           bytes of the payload               u32      at most 1,048,576
//!           checksum                           u32
//!           payload: the items                          they fill it exactly
//!           checksum                           u32
//!
//! end       a section of kind 5, with 0 items and 32 bytes of payload:
//!           proxies, nodes, routes, ended      u64 each
//!           Nothing follows it.
//!
//! items
//! proxy     ID, cluster name, address          text each
//!           incarnation                        varint   0 if the proxy has none
//! UUID      UUID                               16 bytes, as in its text form
//!           routes
//! name      name                               text     not empty, no control characters, no spelling of a UUID
//!           routes
//! routes    number of routes                   u8       1 to 64
//!           for each, most recently refreshed first:
//!             proxy                            varint   the number of its item, from 0; each at most once for a node
//!             age                              varint   milliseconds; from the second route on, the difference from
//!                                                       the route before. An age is below 2^38.
//! ended     ID of the proxy                    text
//!           incarnation                        varint   not 0
//!           how it ended                       u8       1: the proxy was removed, 0: it was dropped without routes
//!           age of the end                     varint   milliseconds, below 2^38
//! ```
//!
//! Sections are in the order of their kinds, with any number of each kind. Each ID is in a snapshot once among the
//! proxies, and once among the ended incarnations. Each node is in a snapshot once. Of routes of the same age, the
//! route that was refreshed later stands first.
//!
//! A *checksum* is the CRC-32 (as in zlib and Ethernet) of all bytes before it in the snapshot, except checksums. So it
//! also detects a section that does not follow the sections after which it was written. A reader checks the checksum of
//! a section's head before it uses the lengths in the head. A reader allocates nothing for a number's claim beyond the
//! largest payload.
//!
//! A node with a UUID and one route through one of the first 128 proxies takes 20 bytes. If the route's age is between
//! 16 seconds and half an hour, the node takes 21 bytes.
//!
//! # Versions
//!
//! Any change to the layout is another version. This program writes and reads version 2. It refuses any other version
//! by its number ([`SnapshotError::Version`]), before it reads the rest of the header. Every version will have the
//! magic and the number in the same place.

mod decode;
mod error;
mod load;
mod wire;
mod write;

use std::io;
use std::time::{Duration, SystemTime};

pub use error::{SnapshotError, SnapshotFault, SnapshotPart};

use crate::table::RouteTable;

/// How routes age between the writing and the reading of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
#[non_exhaustive]
pub enum Ages {
    /// Routes age by the wall clock: each age grows by the time since the snapshot was written, but not if that time is
    /// negative. So a route expires as if the tracker had not stopped. If the wall clock was set forward meanwhile,
    /// routes expire early.
    #[default]
    Continue,
    /// Routes age by the wall clock, but no route of the snapshot expires for one keep-alive interval after the
    /// reading, at most 18.6 hours: [expiry is held](crate::RouteTable::expiry_hold). For a tracker that restarts:
    /// proxies report all their routes within an interval, and the other routes expire at its end. Until a route is
    /// refreshed, [`explain`](crate::RouteTable::explain) reports [`Verdict::Restored`](crate::Verdict::Restored). Only
    /// for a table without routes.
    Grace,
    /// Routes do not age: a route expires as long after the reading as it would have after the writing. The wall clock
    /// does not matter.
    Frozen,
}

/// What [`RouteTable::write_snapshot`] wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
#[non_exhaustive]
pub struct SnapshotSize {
    /// Proxies, with and without routes.
    pub proxies: u64,
    /// Nodes.
    pub nodes: u64,
    /// Routes.
    pub routes: u64,
    /// Ended incarnations.
    pub incarnations: u64,
    /// Whether the snapshot has all ended incarnations that still count. `false` if another thread was stopped while it
    /// held the lock of the proxies.
    pub has_all_incarnations: bool,
    /// The length of the whole snapshot.
    pub bytes: u64,
}

/// The contents of a snapshot that [`RouteTable::read_snapshot`] read, and the effect. `routes` is the sum of
/// `inserted`, `known`, `expired` and `refused`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotReport {
    /// The time at which the writer began the snapshot, by the writer's wall clock.
    pub written_at: SystemTime,
    /// How much each age has grown since then.
    pub downtime: Duration,
    /// Proxies in the snapshot.
    pub proxies: u64,
    /// Nodes in the snapshot.
    pub nodes: u64,
    /// Routes in the snapshot.
    pub routes: u64,
    /// Ended incarnations in the snapshot.
    pub incarnations: u64,
    /// Ended incarnations that the call left out, because a table in use has no room to remember them. The table does
    /// not refuse older incarnations of these proxies.
    pub incarnations_left_out: u64,
    /// Routes that were unknown to the table, and are added.
    pub inserted: u64,
    /// Routes that the table had already, each with the later of both times now. Also routes that are older than all of
    /// the 64 routes of their node.
    pub known: u64,
    /// Routes that are older than the table's keep-alive interval; they are left out.
    pub expired: u64,
    /// Routes that the call left out. The incarnation of their proxy is stale, another thread has removed the proxy, or
    /// the table is full because other threads have added routes.
    pub refused: u64,
}

/// # Snapshots
impl RouteTable {
    /// Writes the proxies, and all routes with their ages. See [`snapshot`](crate::snapshot) for the format.
    ///
    /// To copy 64 ended incarnations, the call holds the registry's lock for some microseconds. A thread that is
    /// stopped meanwhile blocks the calls that [wait for the registry](crate#which-calls-wait-for-another-thread). The
    /// call itself waits for no other thread: if another thread keeps the lock, the call leaves out ended incarnations
    /// ([`has_all_incarnations`](SnapshotSize::has_all_incarnations)). The call copies some 1,000 nodes, or one of 128
    /// parts of the proxies, at a time, and writes without a pin. A million routes take some 20 MB and about a tenth of
    /// a second, plus the time of `to`. The call needs memory for one such copy, and about 50 bytes a proxy. It writes
    /// in blocks of some 128 KiB, and flushes at the end.
    ///
    /// ```
    /// # use nodetracker::{NodeId, Proxy, RouteTable};
    /// # let node: NodeId = "550e8400-e29b-41d4-a716-446655440000".parse()?;
    /// # let table = RouteTable::new();
    /// # let proxy = table.register_proxy(&Proxy { id: "proxy-1", cluster_name: "main", addr: "10.0.0.1:3080" })?;
    /// table.add_node(&node, proxy)?;
    /// let mut bytes = Vec::new();
    /// table.write_snapshot(&mut bytes)?;
    ///
    /// let restarted = RouteTable::new();
    /// let report = restarted.read_snapshot(bytes.as_slice())?;
    /// assert_eq!((report.routes, report.inserted), (1, 1));
    /// assert_eq!(restarted.get_proxies(&node).len(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of `to`. The bytes that were written before are not a whole snapshot, which a reader detects.
    pub fn write_snapshot(&self, to: impl io::Write) -> io::Result<SnapshotSize> {
        write::write(self, to)
    }

    /// [`read_snapshot_with`](Self::read_snapshot_with) [`Ages::Continue`].
    ///
    /// # Errors
    ///
    /// As for `read_snapshot_with`.
    pub fn read_snapshot(&self, from: impl io::Read) -> Result<SnapshotReport, SnapshotError> {
        self.read_snapshot_with(from, Ages::Continue)
    }

    /// Reads a snapshot to its end, which must also be the end of `from`, and adds its routes to the table.
    ///
    /// The call reads and checks the whole snapshot before it changes the table. Then it registers the snapshot's
    /// proxies, with and without routes, and adds the routes. The table may have routes, and other threads may use it.
    /// A known route gets the later of both times, and a proxy that is already registered keeps its details. A node
    /// keeps the 64 routes that were refreshed last. An age of more than 24.8 days may shrink to 24.8 days.
    ///
    /// Each proxy is registered as by [`resume_incarnation`](Self::resume_incarnation), or by
    /// [`register_proxy`](Self::register_proxy) if it has no incarnation, and takes the registry's lock.
    ///
    /// All threads of rayon's global pool build whole shards if these never had a node. So a new table is filled
    /// several times as fast as by [`add_node`](Self::add_node), and no index grows. Nodes are put at once into the
    /// memory that they will have in the table. Beside that, the reader takes some 4 MiB, and half a byte for each
    /// node. (If all names have one letter, the reader takes up to 20 MiB.) If the table is in use, the snapshot takes
    /// as much memory as a table of its own during the call. The call never holds more nodes or routes than
    /// [`max_routes`](crate::Builder::max_routes), for any stream.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`]: the snapshot cannot be read, is damaged or incomplete, has an unknown version, or does not
    /// fit into the table. The table is unchanged, with two exceptions. If other threads take the room for proxies
    /// during the call ([`TooManyProxies`](SnapshotError::TooManyProxies)), some proxies may have been registered, and
    /// the sweeper drops them later. If memory runs out ([`OutOfMemory`](SnapshotError::OutOfMemory)), some routes may
    /// have been added.
    pub fn read_snapshot_with(&self, from: impl io::Read, ages: Ages) -> Result<SnapshotReport, SnapshotError> {
        if ages == Ages::Grace && !self.is_empty() {
            return Err(SnapshotError::NotEmpty);
        }
        let snapshot = decode::read(self, from, ages)?;
        load::load(self, snapshot)
    }
}
