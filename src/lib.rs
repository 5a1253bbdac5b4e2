//! A lock-free table of which proxies hold the tunnels to which nodes.
//!
//! # Which calls wait for another thread
//!
//! None of a table's calls waits for a thread that is inside another call, be it stopped by the operating system, with these
//! exceptions:
//!
//! | call | waits for |
//! | --- | --- |
//! | [`register_proxy`](RouteTable::register_proxy), [`report_node`](RouteTable::report_node), [`report_nodes`](RouteTable::report_nodes) | the registry, if the proxy is not registered or has other details; nobody otherwise |
//! | [`begin_incarnation`](RouteTable::begin_incarnation), [`resume_incarnation`](RouteTable::resume_incarnation) | the registry, unless the incarnation is the current one and nothing changes |
//! | [`remove_proxy`](RouteTable::remove_proxy), [`remove_proxy_by_id`](RouteTable::remove_proxy_by_id) | the registry |
//! | [`read_snapshot`](RouteTable::read_snapshot), [`read_snapshot_with`](RouteTable::read_snapshot_with) | the registry, for each proxy; threads of rayon's pool |
//! | [`set_keep_alive`](RouteTable::set_keep_alive) | another call of itself; looks ten thousand times whether older calls have ended |
//!
//! *The registry* is a lock that the calls above hold while they change which proxies there are, for a microsecond or so. A
//! thread that is stopped with the lock held stops these calls of other threads, and nothing else: routes of registered proxies
//! are added, refreshed, looked up and removed all the same, [`stats`](RouteTable::stats),
//! [`find_proxy`](RouteTable::find_proxy), [`incarnation`](RouteTable::incarnation) and
//! [`write_snapshot`](RouteTable::write_snapshot) only read, and [`sweep`](RouteTable::sweep) passes by proxies while the lock
//! is taken. `tests/stopped.rs` stops threads at random instructions inside each call, and checks the others.
//!
//! All of this leaves out the allocator, which may have locks of its own.
//!
//! # What a stopped thread costs
//!
//! A thread inside a call keeps what was retired since from being freed: for the time of a group of 64 nodes in a batch, of 512
//! records in a sweep, of a few microseconds otherwise. If the operating system stops the thread there, garbage grows until
//! the thread goes on: by 40 to 300 bytes for each insertion and removal of a node, by 2 KiB for each registration and
//! removal of a proxy, without bound. [`Stats::garbage`] shows it. A process that may be stopped thread by thread (a
//! debugger, a frozen cgroup that is not the process's own) should watch that figure; nothing but the thread's going on, or
//! the end of the process, gives the memory back.
//!
//! # When memory runs out
//!
//! What grows with the number of nodes and routes may fail to be allocated: records, indexes, lists of routes, the names of
//! nodes, and the copies that a rebuild or a move makes. Adding a route then answers [`AddError::OutOfMemory`] and changes
//! nothing; a removal or a sweep that cannot do all of its work leaves it to a later one, and routes expire all the same.
//! `tests/memory.rs` lets each of these fail.
//!
//! The process is aborted, as is Rust's way, where there is no memory for
//!
//! * a *proxy* that is registered: its entry, its ID and the map to it, its details. There are at most
//!   [`max_proxies`](Builder::max_proxies), of some 60 to 100 bytes and their strings;
//! * what is small, and the same however much the table holds: crossbeam-epoch's bags of garbage, 2 KiB for every 64 objects
//!   that are retired and for every thread; a new slab's header; the shards of names, 1 KiB when the first name comes;
//! * an event of the change feed while somebody follows it, and its rings when somebody subscribes first, 1 MiB;
//! * what a call returns: an answer of more than two routes, a batch of answers, handles; what a walk or a snapshot copies,
//!   one shard at a time; what reading a snapshot takes beside the routes themselves
//!   ([`read_snapshot_with`](RouteTable::read_snapshot_with)).

mod batch;
mod clock;
mod counts;
mod error;
mod feed;
mod handle;
mod incarnation;
mod keep_alive;
mod key;
#[cfg(all(test, loom))]
mod models;
mod node_id;
mod page;
mod place;
mod prefetch;
mod proxies;
mod resolve;
mod route;
mod shard;
pub mod snapshot;
#[cfg(all(test, not(loom)))]
mod stalls;
mod sweep;
mod sync;
mod table;
mod time;
mod walk;

pub use batch::{AddedNodes, RouteBatch};
pub use clock::{Clock, ManualClock, SystemClock};
pub use error::{
    AddError, AddNodesError, BeginError, CursorError, NodeIdError, ProxyField, RegisterError, ReportError,
    ReportNodesError, StaleIncarnation, TextError,
};
pub use feed::{Event, Lagged, Reason, Subscription};
pub use handle::RouteHandle;
pub use incarnation::Incarnation;
pub use node_id::{MAX_TEXT, NodeId};
pub use page::{NodeCursor, NodePage, NodeRoutes, ProxyCursor, ProxyPage};
pub use proxies::{Proxy, ProxyDetails, ProxyRef};
pub use resolve::ResolvedRoute;
pub use route::{Added, ExplainedRoute, Route, Verdict};
pub use table::{Builder, RouteTable, Stats, SweepReport};
