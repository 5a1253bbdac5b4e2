//! A lock-free, in-memory table of which proxies hold the tunnels to which nodes.
//!
//! Proxies report their nodes in regular heartbeats. If no heartbeat refreshes a route for a keep-alive interval,
//! look-ups no longer return the route, unless [expiry is held](RouteTable::expiry_hold). A million routes take about
//! 30 MB.
//!
//! # Example
//!
//! ```
//! use std::sync::Arc;
//! use std::thread;
//!
//! use nodetracker::{NodeId, Proxy, RouteTable, Sweeper};
//!
//! let table = Arc::new(RouteTable::new());
//! // Expired routes keep their memory until they are swept.
//! let _sweeper = Sweeper::start(Arc::clone(&table))?;
//! let mut changes = table.subscribe();
//!
//! // Two proxies report a node, each from a thread of its own.
//! let node: NodeId = "550e8400-e29b-41d4-a716-446655440000".parse()?;
//! thread::scope(|scope| {
//!     for (id, addr) in [("proxy-1", "10.0.0.1:3080"), ("proxy-2", "10.0.0.2:3080")] {
//!         let (table, node) = (&table, &node);
//!         scope.spawn(move || table.report_node(node, &Proxy { id, cluster_name: "main", addr }));
//!     }
//! });
//! // Another proxy looks the node up; the route that was refreshed last comes first.
//! for route in table.resolve(&node) {
//!     println!("dial {} at {}", route.details.id(), route.details.addr());
//! }
//!
//! // Follow the changes: look each node up after its event.
//! let mut routes = 0;
//! changes.drain_events(100, |event| {
//!     if let nodetracker::Event::Node { node, .. } = event {
//!         routes = table.get_proxies(node).len();
//!     }
//! })?;
//! assert_eq!(routes, 2);
//!
//! # #[cfg(feature = "snapshot")] {
//! // A snapshot survives a restart.
//! let mut bytes = Vec::new();
//! table.write_snapshot(&mut bytes)?;
//! let restored = RouteTable::new();
//! assert_eq!(restored.read_snapshot(bytes.as_slice())?.inserted, 2);
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! `examples/` has a program for each use: `basic`, `heartbeats` (batches and handles), `replica` (the change feed),
//! `snapshot`.
//!
//! # The calls by theme
//!
//! | to | call | cost at a million nodes |
//! | --- | --- | --- |
//! | register and remove proxies | [`register_proxy`](RouteTable::register_proxy), [`remove_proxy`](RouteTable::remove_proxy), [`begin_incarnation`](RouteTable::begin_incarnation) | a short lock if something changes; a removal costs the same however many routes the proxy has |
//! | add and refresh routes | [`add_node`](RouteTable::add_node), [`report_node`](RouteTable::report_node) | one cache miss for the index, one for the record |
//! | the same for many nodes | [`add_nodes`](RouteTable::add_nodes), [`refresh_routes`](RouteTable::refresh_routes) by handle | new nodes: a sixth less time; refreshes by handle: a tenth of the time |
//! | look up | [`get_proxies`](RouteTable::get_proxies), [`resolve`](RouteTable::resolve), [`get_proxies_batch`](RouteTable::get_proxies_batch), [`explain`](RouteTable::explain) | as adding; no allocation for up to two routes |
//! | list | [`for_each_route`](RouteTable::for_each_route), [`nodes_page`](RouteTable::nodes_page), [`proxies_page`](RouteTable::proxies_page) | a walk: some 30 ns a route; a large page: some 100 ns a node, whatever the size of the table |
//! | count | [`stats`](RouteTable::stats), [`memory_use`](RouteTable::memory_use), [`route_count`](RouteTable::route_count) of a proxy | `route_count`: one look-up of the proxy |
//! | follow | [`subscribe`](RouteTable::subscribe) | an allocation and two CAS for each change while there is a subscription |
//! | sweep | [`Sweeper`], [`SweepPace`], [`sweep`](RouteTable::sweep) | some 7 ns a record |
//! | hold expiry | [`Builder::expiry_brake`], [`expiry_hold`](RouteTable::expiry_hold), [`effective_keep_alive`](RouteTable::effective_keep_alive) | a read of the clock |
//! | save | [`write_snapshot`](RouteTable::write_snapshot), [`read_snapshot`](RouteTable::read_snapshot) | reading: some 70 ns a route |
//!
//! `profiles/README.md` in the repository has the measured figures, beside dashmap, scc, papaya and a locked `HashMap`.
//!
//! # What the table guarantees
//!
//! * Each route is linearizable, and so is the set of a node's routes. The times in one answer may belong to different
//!   instants of the call.
//! * A route of a removed proxy, or of an older [incarnation](RouteTable::begin_incarnation), is never returned after
//!   the removal.
//! * An expired route is never returned, swept or not. A route is expired when it is older than the
//!   [effective keep-alive interval](RouteTable::effective_keep_alive).
//! * Calls on routes are lock-free. "Which calls wait for another thread", below, lists every call.
//! * The limits of routes, of proxies and of each proxy's routes hold exactly. A snapshot may exceed the limit of a
//!   proxy's routes.
//!
//! # Features
//!
//! * `snapshot` (default): [`snapshot`], with rayon.
//! * `stream`: [`Subscription`] is a `futures_core::Stream`.
//! * `serde`: [`NodeId`], [`ProxyDetails`], [`ExplainedRoute`], [`RouteHandle`], [`Stats`], [`MemoryUse`] and the
//!   results of calls can be serialized.
//!
//! # Which calls wait for another thread
//!
//! The table has every method of a [`RouteTable`], a [`Subscription`] and a [`Sweeper`], except
//! [`new`](RouteTable::new) and [`builder`](RouteTable::builder). "No thread" means lock-free: the call does not wait
//! for a thread inside another call, even if the operating system has stopped this thread.
//!
//! | call | waits for |
//! | --- | --- |
//! | [`add_node`](RouteTable::add_node), [`add_nodes`](RouteTable::add_nodes), [`add_nodes_with_handles`](RouteTable::add_nodes_with_handles), [`refresh_routes`](RouteTable::refresh_routes), [`remove_node`](RouteTable::remove_node), [`remove_route`](RouteTable::remove_route) | no thread |
//! | [`get_proxies`](RouteTable::get_proxies), [`get_proxies_batch`](RouteTable::get_proxies_batch), [`resolve`](RouteTable::resolve), [`explain`](RouteTable::explain) | no thread |
//! | [`for_each_route`](RouteTable::for_each_route), [`try_for_each_route`](RouteTable::try_for_each_route), [`nodes_page`](RouteTable::nodes_page), [`try_nodes_page`](RouteTable::try_nodes_page), [`nodes_of_part`](RouteTable::nodes_of_part), [`part_of`](RouteTable::part_of), [`proxies_page`](RouteTable::proxies_page) | no thread |
//! | [`find_proxy`](RouteTable::find_proxy), [`proxy`](RouteTable::proxy), [`incarnation`](RouteTable::incarnation), [`route_count`](RouteTable::route_count) | no thread |
//! | [`stats`](RouteTable::stats), [`memory_use`](RouteTable::memory_use), [`len`](RouteTable::len), [`is_empty`](RouteTable::is_empty), [`limits`](RouteTable::limits), [`keep_alive`](RouteTable::keep_alive), [`effective_keep_alive`](RouteTable::effective_keep_alive), [`expiry_hold`](RouteTable::expiry_hold) | no thread |
//! | [`subscribe`](RouteTable::subscribe), [`subscriptions`](RouteTable::subscriptions), [`marked_changes`](RouteTable::marked_changes), [`drain_events`](Subscription::drain_events), [`poll_ready`](Subscription::poll_ready) | no thread |
//! | [`sweep`](RouteTable::sweep), [`SweepPace`] | no thread: the call yields at most 200 times to threads that wait for the registry; while another thread has the registry, the call skips the proxies |
//! | [`write_snapshot`](RouteTable::write_snapshot) | no thread: for each 64 ended incarnations, the call tries up to ten thousand times to get the registry, and then leaves the incarnations out |
//! | [`register_proxy`](RouteTable::register_proxy), [`report_node`](RouteTable::report_node), [`report_nodes`](RouteTable::report_nodes) | the registry, if the proxy is not registered or has other details, or if the call adds the first route by which a proxy of a snapshot counts for a client; otherwise no thread |
//! | [`begin_incarnation`](RouteTable::begin_incarnation), [`resume_incarnation`](RouteTable::resume_incarnation) | the registry, unless the incarnation is the current one and nothing changes, or the registered proxy's incarnation is greater |
//! | [`remove_proxy`](RouteTable::remove_proxy), [`remove_proxy_by_id`](RouteTable::remove_proxy_by_id) | the registry, if the proxy is registered |
//! | [`read_snapshot`](RouteTable::read_snapshot), [`read_snapshot_with`](RouteTable::read_snapshot_with) | the registry, for each proxy and each ended incarnation; threads of rayon's pool |
//! | [`set_keep_alive`](RouteTable::set_keep_alive) | another call of `set_keep_alive`; if the interval grows, it checks up to ten thousand times whether older calls have ended |
//! | [`wait`](Subscription::wait) | a change, until its timeout |
//! | dropping a [`Sweeper`] | the end of its thread's turn |
//!
//! *The registry* is a lock. The calls above hold the lock while they change the set of proxies or a proxy's details.
//! Most of them hold it for some microseconds. The longest call copies one of the 128 parts of the map of proxy IDs. If
//! the system stops a thread that holds the lock, only these calls of other threads wait. `tests/stopped.rs` stops
//! threads at random instructions inside each call, and checks the other calls.
//!
//! The allocator is not covered: it may have locks of its own.
//!
//! # What a stopped thread costs
//!
//! While a thread is inside a call, memory that any thread retires is not freed. A long call therefore works in parts:
//! 64 nodes of a batch, 512 records of a sweep, or one of the 128 parts of the proxies. A part of a page, a walk or a
//! snapshot is some 1,000 nodes. Replacing the index of a shard is one part, except that a sweep divides it too. Moving
//! a sparse shard to smaller memory is one part: it takes milliseconds, in a sweep and in a call that meets the move.
//! Other calls take a few microseconds.
//!
//! If the operating system stops a thread inside a call, garbage grows without bound until the thread continues. Each
//! insertion and removal of a node adds 40 to 300 bytes, each registration and removal of a proxy 2 KiB.
//! [`Stats::garbage`] reports the garbage. Watch this figure if a debugger or a frozen cgroup may stop single threads
//! of the process. The table frees the memory only after the thread has continued.
//!
//! # When memory runs out
//!
//! Some memory grows with the number of nodes and routes: records, indexes, lists of routes, names of nodes, and the
//! copies of a rebuild or a move. If the allocator has no such memory, adding a route fails with
//! [`AddError::OutOfMemory`] and changes nothing. A removal or a sweep leaves its work to a later call, and the routes
//! expire anyway. `tests/memory.rs` makes each of these allocations fail.
//!
//! As usual in Rust, the process aborts if there is no memory for
//!
//! * a *proxy* at its registration: the entry, the ID, the slot in the map of IDs, and the details. A proxy takes some
//!   60 to 100 bytes and its strings; [`max_proxies`](Builder::max_proxies) limits the proxies. With
//!   [`max_routes_per_proxy`](Builder::max_routes_per_proxy), each proxy also has a count of up to 128 bytes;
//! * small objects that do not grow with the table: the entry of a subscription that waits; crossbeam-epoch's bags of
//!   garbage, 2 KiB for every 64 retired objects, and up to 130 KiB for every thread; a new slab's header; the shards
//!   of names, 2 KiB when the first name comes;
//! * an event of the change feed while there is a subscription, and the feed's rings at the first subscription, 1 MiB;
//! * a call's result: an answer of more than two routes, handles, the positions of handles that are gone; the copy of
//!   some 1,000 nodes, or of one part of the proxies, that a page, a walk or a snapshot makes; the memory that reading
//!   a snapshot takes beside the routes themselves ([`read_snapshot_with`](RouteTable::read_snapshot_with)).

#![cfg_attr(
    not(feature = "snapshot"),
    allow(dead_code, reason = "snapshots alone use the bulk load")
)]

mod brake;
mod builder;
mod clock;
mod error;
mod feed;
mod growth;
mod keep_alive;
mod layout;
mod liveness;
mod mem;
mod proxies;
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
mod word;

pub use brake::ExpiryBrake;
pub use builder::{BuildError, Builder};
pub use clock::{Clock, ManualClock, SystemClock};
pub use error::{
    AddError, AddNodesError, BeginError, CursorError, NodeIdError, ProxyField, RegisterError, ReportError,
    ReportNodesError, StaleIncarnation, TextError,
};
pub use feed::{Event, Lagged, LostChanges, Reason, Subscription};
pub use layout::{MAX_ROUTES_PER_NODE, MAX_TEXT};
pub use sweeper::{SweepPace, Sweeper};
pub use table::RouteTable;
pub use table::batch::{AddedNodes, BatchRoutes};
pub use table::handles::{AddHandlesError, AddedHandles, RefreshedRoutes};
pub use table::incarnation::Incarnation;
pub use table::memory_use::MemoryUse;
pub use table::page::{NodeCursor, NodePage, NodeRoutes, ProxyCursor, ProxyPage};
pub use table::stats::{Stats, TableLimits};
pub use table::sweep::SweepReport;
pub use types::client::{ClientId, ReportedProxy};
pub use types::expiry_hold::{ExpiryHold, HoldCause};
pub use types::handle::RouteHandle;
pub use types::node_id::NodeId;
pub use types::proxy::{Proxy, ProxyDetails, ProxyRef};
pub use types::route::{Added, ExplainedRoute, ResolvedRoute, Route, Verdict};
pub use types::routes::{Routes, RoutesIntoIter};
#[doc(no_inline)]
pub use uuid::Uuid;
