//! A lock-free table of which proxies hold the tunnels to which nodes.
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
