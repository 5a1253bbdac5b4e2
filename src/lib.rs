//! A lock-free table of which proxies hold the tunnels to which nodes.
//!
//! # Which calls wait for another thread
//!
//! No call of a table waits for a thread that is inside another call, even if the operating system has stopped that thread,
//! with these exceptions:
//!
//! | call | waits for |
//! | --- | --- |
//! | [`register_proxy`](RouteTable::register_proxy), [`report_node`](RouteTable::report_node), [`report_nodes`](RouteTable::report_nodes) | the registry, if the proxy is not registered or has other details; otherwise for no thread |
//! | [`begin_incarnation`](RouteTable::begin_incarnation), [`resume_incarnation`](RouteTable::resume_incarnation) | the registry, unless the incarnation is the current one and nothing changes, or the registered proxy's incarnation is greater |
//! | [`remove_proxy`](RouteTable::remove_proxy), [`remove_proxy_by_id`](RouteTable::remove_proxy_by_id) | the registry, if the proxy is registered |
//! | [`read_snapshot`](RouteTable::read_snapshot), [`read_snapshot_with`](RouteTable::read_snapshot_with) | the registry, for each proxy; threads of rayon's pool |
//! | [`set_keep_alive`](RouteTable::set_keep_alive) | another call of `set_keep_alive`; if the interval grows, it checks up to ten thousand times whether older calls have ended |
//!
//! *The registry* is a lock. The calls above hold it while they change the set of proxies or a proxy's details, mostly for
//! some microseconds; at most, a call copies one of the 128 parts of the map of proxy IDs. A thread that is stopped with the
//! lock held blocks these calls of other threads, and no others. Routes of registered proxies can still be added, refreshed,
//! looked up and removed. [`stats`](RouteTable::stats), [`find_proxy`](RouteTable::find_proxy),
//! [`incarnation`](RouteTable::incarnation) and [`write_snapshot`](RouteTable::write_snapshot) only read.
//! [`sweep`](RouteTable::sweep) skips the proxies while another thread has the lock. `tests/stopped.rs` stops threads at
//! random instructions inside each call, and checks the other calls.
//!
//! The allocator is not covered: it may have locks of its own.
//!
//! # What a stopped thread costs
//!
//! While a thread is inside a call, memory that any thread retires is not freed. A long call therefore works in parts: 64
//! nodes of a batch, 512 records of a sweep, some 1,000 nodes of a page, a walk or a snapshot, one of the 128 parts of the
//! proxies. Replacing the index of a shard is one part, except that a sweep divides it too. Other calls take a few
//! microseconds.
//!
//! If the operating system stops a thread inside a call, garbage grows without bound until the thread continues: by 40 to 300
//! bytes for each insertion and removal of a node, by 2 KiB for each registration and removal of a proxy. [`Stats::garbage`]
//! shows it. Watch that figure if single threads of the process may be stopped, as by a debugger or a frozen cgroup of some of
//! its threads. The memory is freed only after the thread has continued, or when the process ends.
//!
//! # When memory runs out
//!
//! A table survives a failure to allocate memory that grows with the number of nodes and routes: records, indexes, lists of
//! routes, the names of nodes, and the copies that a rebuild or a move makes. Adding a route then fails with
//! [`AddError::OutOfMemory`] and changes nothing. A removal or a sweep leaves the work that it cannot do to a later call, and
//! the routes expire anyway. `tests/memory.rs` makes each of these allocations fail.
//!
//! As usual in Rust, the process aborts if there is no memory for
//!
//! * a *proxy* that is registered: its entry, its ID and the slot in the map of IDs, its details. There are at most
//!   [`max_proxies`](Builder::max_proxies), of some 60 to 100 bytes and their strings;
//! * small objects that do not grow with the table: crossbeam-epoch's bags of garbage, 2 KiB for every 64 retired objects, and up to
//!   130 KiB for every thread; a new slab's header; the shards of names, 2 KiB when the first name comes;
//! * an event of the change feed while there is a subscription, and the feed's rings at the first subscription, 1 MiB;
//! * a call's result: an answer of more than two routes, a batch of answers, handles; the copy of some 1,000 nodes, or of one
//!   part of the proxies, that a page, a walk or a snapshot makes; the memory that reading a snapshot takes beside the routes
//!   themselves ([`read_snapshot_with`](RouteTable::read_snapshot_with)).

#![cfg_attr(
    not(feature = "snapshot"),
    allow(dead_code, reason = "snapshots alone use the bulk load")
)]

mod batch;
mod clock;
mod error;
mod feed;
mod growth;
mod incarnation;
mod keep_alive;
mod layout;
mod liveness;
mod mem;
mod page;
mod proxies;
mod resolve;
mod route_limit;
mod shard;
mod shards;
#[cfg(feature = "snapshot")]
pub mod snapshot;
mod sweep;
mod sweeper;
mod sync;
mod table;
mod time;
mod types;
#[cfg(test)]
mod verify;
mod walk;
mod word;

pub use batch::{AddedNodes, RouteBatch};
pub use clock::{Clock, ManualClock, SystemClock};
pub use error::{
    AddError, AddNodesError, BeginError, CursorError, NodeIdError, ProxyField, RegisterError, ReportError,
    ReportNodesError, StaleIncarnation, TextError,
};
pub use feed::{Event, Lagged, Reason, Subscription};
pub use incarnation::Incarnation;
pub use page::{NodeCursor, NodePage, NodeRoutes, ProxyCursor, ProxyPage};
pub use resolve::ResolvedRoute;
pub use sweeper::{SweepPace, Sweeper};
pub use table::{Builder, RouteTable, Stats, SweepReport};
pub use types::handle::RouteHandle;
pub use types::node_id::{MAX_TEXT, NodeId};
pub use types::proxy::{Proxy, ProxyDetails, ProxyRef};
pub use types::route::{Added, ExplainedRoute, Route, Verdict};
