//! A lock-free table of which proxies hold the tunnels to which nodes.

mod batch;
mod clock;
mod counts;
mod error;
mod feed;
mod handle;
mod key;
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
    AddError, AddNodesError, CursorError, NodeIdError, ProxyField, RegisterError, ReportError, ReportNodesError,
    TextError,
};
pub use feed::{Event, Lagged, Reason, Subscription};
pub use handle::RouteHandle;
pub use node_id::{MAX_TEXT, NodeId};
pub use page::{NodeCursor, NodePage, NodeRoutes, ProxyCursor, ProxyPage};
pub use proxies::{Proxy, ProxyDetails, ProxyRef};
pub use resolve::ResolvedRoute;
pub use route::{Added, ExplainedRoute, Route, Verdict};
pub use table::{Builder, RouteTable, Stats, SweepReport};
