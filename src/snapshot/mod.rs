//! Snapshots: all routes of a table in one stream of bytes, for another table to begin with.
//!
//! A tracker that starts anew knows no routes until the proxies have announced them again. With a snapshot that it wrote
//! before, [`RouteTable::read_snapshot`] gives it those that are not expired yet.
//!
//! # What is in it
//!
//! *Ages*, not times: how long ago each route was last refreshed when the snapshot was begun. Ticks mean nothing in another
//! process, and a time of day would tie the routes' lives to the wall clock. The wall-clock time of writing is there once,
//! so that a reader *may* add the time between writing and reading to each age ([`Ages`]).
//!
//! Nobody waits while a snapshot is written. A route that is there all the while is in it; one that comes or goes meanwhile
//! may be, and one that is refreshed meanwhile has age zero. Expired routes and those of removed proxies are not in it.
//! A proxy that is registered all the while is in it once. If the proxy begins another incarnation meanwhile, the snapshot has
//! the older or the newer incarnation, with routes of that incarnation only.
//!
//! The incarnation of each proxy is in it, so that messages of older ones are refused after a restart too; but not those
//! that are over, whose proxies are gone.
//!
//! # Layout, version 1
//!
//! All fixed-width numbers are little-endian. A *varint* has seven bits in each byte, the lowest first, and the top bit set
//! in all bytes but the last; it is below 2^64 and as short as it can be. A *text* is its length in one byte, and UTF-8.
//!
//! ```text
//! snapshot  = header  section*  end
//!
//! header    magic "\x89NTRACK\n"               8 bytes
//!           version                            u32
//!           wall-clock time of writing         i64      milliseconds since the Unix epoch
//!           checksum                           u32
//!
//! section   kind                               u8       1 proxies, 2 nodes with a UUID, 3 nodes with a name
//!           number of items                    u32
//!           bytes of the payload               u32      at most 1,048,576
//!           checksum                           u32
//!           payload: the items                          they fill it exactly
//!           checksum                           u32
//!
//! end       a section of kind 4, with 0 items and 24 bytes of payload:
//!           proxies, nodes, routes             u64 each
//!           Nothing follows it.
//!
//! items
//! proxy     ID, cluster name, address          text each
//!           incarnation                        varint   0 where it has none
//! UUID      UUID                               16 bytes, as in its text form
//!           routes
//! name      name                               text     not empty, no control characters, no spelling of a UUID
//!           routes
//! routes    number of routes                   u8       1 to 64
//!           for each, most recently refreshed first:
//!             proxy                            varint   the number of its item, from 0; each at most once for a node
//!             age                              varint   milliseconds; but for the first one, how much older it is than
//!                                                       the one before. An age is below 2^38.
//! ```
//!
//! Sections come in the order of their kinds, and there may be any number of each. A proxy's ID, and a node, is in a
//! snapshot once. Of routes that are equally old, the one that was refreshed later stands first.
//!
//! A *checksum* is the CRC-32 (as in zlib and Ethernet) of all bytes before it in the snapshot, checksums left out; so it
//! also tells whether a section follows the ones that it was written after. The lengths in a section's head are looked at
//! only after the head's own checksum, and nothing is allocated for what a number claims beyond the largest payload.
//!
//! A node with one route through one of the first 128 proxies takes 20 bytes, or 22 if the route's age is between 16 seconds
//! and half an hour.
//!
//! # Versions
//!
//! A change to any of the above is another version. This program writes version 1 and reads version 1; any other one is
//! refused by its number ([`SnapshotError::Version`]), before anything else in the header is looked at. Every version will
//! have the magic and its number in the same place.

mod decode;
mod error;
mod load;
mod wire;
mod write;

use std::io;
use std::time::{Duration, SystemTime};

pub use error::{SnapshotError, SnapshotFault, SnapshotPart};

use crate::table::RouteTable;

/// What happened to the ages of routes between the writing and the reading of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
#[non_exhaustive]
pub enum Ages {
    /// They went on by the wall clock: each grows by the time since the snapshot was written, or by nothing where the clock
    /// says that it is still to be written. So a route expires when it would have, had the tracker not stopped. If the wall
    /// clock was set forward meanwhile, routes expire early.
    #[default]
    Continue,
    /// They stood still: a route expires as long after the reading as it would have after the writing. The wall clock does
    /// not matter.
    Frozen,
}

/// What [`RouteTable::write_snapshot`] wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
#[non_exhaustive]
pub struct SnapshotSize {
    /// Proxies, those without routes too.
    pub proxies: u64,
    /// Nodes.
    pub nodes: u64,
    /// Routes.
    pub routes: u64,
    /// The whole snapshot's length.
    pub bytes: u64,
}

/// What [`RouteTable::read_snapshot`] found, and what became of it. `routes` is the sum of `inserted`, `known`, `expired` and
/// `refused`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotReport {
    /// When the snapshot was begun, by the writer's wall clock.
    pub written_at: SystemTime,
    /// By how much each age has grown since.
    pub downtime: Duration,
    /// Proxies in the snapshot.
    pub proxies: u64,
    /// Nodes in the snapshot.
    pub nodes: u64,
    /// Routes in the snapshot.
    pub routes: u64,
    /// Routes that the table did not have, and has now.
    pub inserted: u64,
    /// Routes that the table had already, with the later time of both now; also those that are older than all of the 64
    /// that their node has.
    pub known: u64,
    /// Routes that are older than the table's keep-alive interval; they were left out.
    pub expired: u64,
    /// Routes that were left out since the table knows better: their proxy's incarnation is stale. Also those that were left
    /// out since other threads used the table meanwhile: they removed the route's proxy, or took the last room for routes.
    pub refused: u64,
}

impl RouteTable {
    /// Writes all routes with their ages, and the proxies; see [`snapshot`](crate::snapshot) for the format.
    ///
    /// No other thread waits for this call, and it waits for no other thread, not even for a thread that is stopped while it
    /// registers a proxy. It copies some 1,000 nodes, or one of 128 parts of the proxies, at a time, and writes without a
    /// pin. A million routes take about a tenth of a second beside the time of `to`, and some 20 MB there. The call needs
    /// memory for one such copy, and about 50 bytes a proxy; it writes in blocks of some 128 KiB, and flushes at the end.
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
    /// Those of `to`; what was written until then is no whole snapshot, and a reader notices.
    pub fn write_snapshot(&self, to: impl io::Write) -> io::Result<SnapshotSize> {
        write::write(self, to)
    }

    /// [`read_snapshot_with`](Self::read_snapshot_with) ages that went on by the wall clock.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn read_snapshot(&self, from: impl io::Read) -> Result<SnapshotReport, SnapshotError> {
        self.read_snapshot_with(from, Ages::Continue)
    }

    /// Reads a snapshot to its end, which must be the end of `from` too, and adds its routes to the table.
    ///
    /// Nothing is touched before the whole snapshot is read and found to be good. Then its proxies are registered, those
    /// without routes too, and its routes are added. The table may have routes, and other threads may use it: of a route
    /// that is known already, the later time counts; a proxy that is registered already keeps the details that it has; and
    /// a node keeps the 64 routes that were refreshed last. An age of more than 24.8 days may become as little as that.
    ///
    /// Each proxy is registered as by [`resume_incarnation`](Self::resume_incarnation), or by
    /// [`register_proxy`](Self::register_proxy) if it has no incarnation, and takes the registry's lock.
    ///
    /// Shards that never had a node are built whole, by all threads of rayon's global pool; so a new table is filled several
    /// times as fast as by [`add_node`](Self::add_node), and no index grows. For the time of the call, the snapshot's nodes
    /// take 32 to 64 bytes each beside their place in the table, and their routes 8 to 16, those that are expired nothing;
    /// and the reader some 8 MiB. There are never more of them than [`max_routes`](crate::Builder::max_routes), whatever is
    /// in the stream.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`]: the snapshot cannot be read or is no whole, undamaged one that this version knows, or the table
    /// has no room for all of it. The table is as it was, with two exceptions. Where other threads take the room for proxies
    /// just now ([`TooManyProxies`](SnapshotError::TooManyProxies)), some proxies may have been registered, and are dropped
    /// by the sweeper later; and where memory runs out ([`OutOfMemory`](SnapshotError::OutOfMemory)), some routes may have
    /// been added.
    pub fn read_snapshot_with(&self, from: impl io::Read, ages: Ages) -> Result<SnapshotReport, SnapshotError> {
        let snapshot = decode::read(self, from, ages)?;
        load::load(self, snapshot)
    }
}
