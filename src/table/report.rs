//! Reporting one node.

use crate::error::{AddError, ReportError};
use crate::liveness::Holder;
use crate::shard::CapacityError;
use crate::shard::routes::Change;
use crate::sync::{Guard, pin};
use crate::table::RouteTable;
use crate::time::Now;
use crate::types::client::ReportedProxy;
use crate::types::node_id::NodeId;
use crate::types::proxy::ProxyRef;
use crate::types::route::Added;

/// # Reporting nodes
impl RouteTable {
    /// Records that `proxy` holds a tunnel to `node` now. Returns whether the route is new or refreshed.
    ///
    /// A node has at most 64 routes. A further route replaces the route with the oldest refresh.
    ///
    /// # Errors
    ///
    /// [`AddError`]: the proxy is no longer registered, or there is no room or no memory for the route. The call has
    /// changed nothing.
    pub fn add_node(&self, node: &NodeId, proxy: ProxyRef) -> Result<Added, AddError> {
        let (hash, now) = self.begin(node);
        let guard = pin();
        // Under the pin that the CAS is under: see `proxies`.
        if !self.proxies.takes_routes(proxy) {
            return Err(AddError::UnknownProxy);
        }
        self.shards.ensure_for(node);
        self.add_pinned(node, hash, proxy, now, &guard).map(|(added, _)| added)
    }

    /// [`register_proxy`](Self::register_proxy) and [`add_node`](Self::add_node) in one call, for callers that keep no
    /// references. The proxy cannot be dropped in between.
    ///
    /// # Errors
    ///
    /// [`ReportError`]: as for both calls, but never [`AddError::UnknownProxy`].
    pub fn report_node<'a>(&self, node: &NodeId, proxy: impl Into<ReportedProxy<'a>>) -> Result<Added, ReportError> {
        self.report_one(node, proxy.into())
    }

    fn report_one(&self, node: &NodeId, reported: ReportedProxy<'_>) -> Result<Added, ReportError> {
        let (hash, now) = self.begin(node);
        let guard = pin();
        // One pin covers both the registration and the CAS, so a removal between them counts as a removal after both:
        // see `proxies`.
        let proxy = self.register_pinned(reported, now.tick, &guard)?;
        self.shards.ensure_for(node);
        let (added, _) = self.add_pinned(node, hash, proxy, now, &guard)?;
        if added == Added::Inserted {
            self.proxies.claim(proxy, reported.client, &guard);
        }
        Ok(added)
    }

    /// Adds a route of a proxy that takes routes, as the caller has checked under `guard`. Also returns the record's
    /// number.
    pub(crate) fn add_pinned(
        &self,
        node: &NodeId,
        hash: u64,
        proxy: ProxyRef,
        now: Now,
        guard: &Guard,
    ) -> Result<(Added, u32), AddError> {
        let scope = self.scope_at(now, guard);
        let added = self.shards.put(node, hash, Change::Add(proxy.number), &scope);
        if let Ok((Added::Inserted, _)) = added {
            self.proxies.touch(proxy.number, now.tick);
        }
        added.map_err(|refused| self.add_error(refused))
    }

    pub(crate) fn add_error(&self, refused: CapacityError) -> AddError {
        match refused {
            CapacityError::Routes => {
                self.request_sweep();
                AddError::TooManyRoutes {
                    limit: self.route_limit.limit(),
                }
            }
            CapacityError::RoutesOf(holder) => {
                self.request_sweep();
                let limit = self.proxies.route_counts().map_or(0, |counts| counts.limit(holder));
                match holder {
                    Holder::Proxy => AddError::TooManyRoutesOfProxy { limit },
                    Holder::Client => AddError::TooManyRoutesOfClient { limit },
                }
            }
            CapacityError::Text => {
                self.request_sweep();
                AddError::TooMuchText {
                    limit: self.proxies.limits().text_bytes,
                }
            }
            CapacityError::Memory => AddError::OutOfMemory,
        }
    }
}
