//! Proxies without incarnations.

use crate::error::RegisterError;
use crate::feed::{Event, Feed};
use crate::sync::{Guard, pin};
use crate::table::RouteTable;
use crate::types::client::ReportedProxy;
use crate::types::proxy::{ProxyDetails, ProxyRef};

/// # Proxies
impl RouteTable {
    /// Registers a proxy. Returns the reference with which to add its routes.
    ///
    /// A proxy that is already registered keeps its reference. A new address or cluster applies to all of its routes at
    /// once.
    ///
    /// The reference is valid until [`remove_proxy`](Self::remove_proxy), until a greater
    /// [incarnation](Self::begin_incarnation) takes over, or until the sweeper drops the proxy as idle. An idle proxy
    /// has no route. For more than a keep-alive interval, no call has registered the proxy, and the proxy has got or
    /// lost no route. With an invalid reference, [`add_node`](Self::add_node) fails with
    /// [`UnknownProxy`](crate::AddError::UnknownProxy).
    ///
    /// If nothing changes, this is a look-up without a lock; otherwise it takes the registry's lock.
    ///
    /// # Errors
    ///
    /// [`RegisterError`]: one of the strings is not acceptable, or the table is full. The call has changed nothing.
    pub fn register_proxy<'a>(&self, proxy: impl Into<ReportedProxy<'a>>) -> Result<ProxyRef, RegisterError> {
        let guard = pin();
        self.register_pinned(proxy.into(), self.now(), &guard)
    }

    /// The proxy that is registered under an ID, or `None`. The reference is valid as long as that of
    /// [`register_proxy`](Self::register_proxy).
    ///
    /// While a registered proxy begins another incarnation, the call returns the older or the newer reference, never
    /// `None`. Once the call returns the newer reference, no look-up returns routes of the older reference. The call
    /// takes no lock. It searches again only if another thread replaces or removes the proxy during the search.
    #[must_use]
    pub fn find_proxy(&self, id: &str) -> Option<ProxyRef> {
        self.proxies.find(id, &pin())
    }

    /// The ID, cluster and address of a proxy, or `None` if it is no longer registered.
    #[must_use]
    pub fn proxy(&self, proxy: ProxyRef) -> Option<ProxyDetails> {
        self.proxies.details(proxy, &pin())
    }

    /// Removes a proxy with all its routes. Returns `true` if the proxy was registered.
    ///
    /// From then on, no call returns the routes of the proxy, and the sweeper removes these routes later. The cost does
    /// not depend on the number of routes. If the proxy has an [incarnation](Self::begin_incarnation), the call ends
    /// the incarnation, and the table remembers the ended incarnation for a keep-alive interval. The call takes the
    /// registry's lock if the proxy is registered.
    pub fn remove_proxy(&self, proxy: ProxyRef) -> bool {
        let guard = pin();
        let removed = self.proxies.remove(proxy, self.now(), &guard);
        if removed {
            // First: a waker may panic.
            self.request_sweep();
            self.proxy_removed(proxy, &guard);
        }
        removed
    }

    /// How many routes a proxy has. A route counts until it is removed or swept. `None` if the proxy is not registered,
    /// or if the table has no limit for [proxies](crate::Builder::max_routes_per_proxy) or
    /// [clients](crate::Builder::max_routes_per_client) and so does not count the routes of a proxy.
    ///
    /// Takes no lock.
    #[must_use]
    pub fn route_count(&self, proxy: ProxyRef) -> Option<usize> {
        let _guard = pin();
        let counts = self.proxies.route_counts()?;
        self.proxies
            .reference(proxy.number)
            .filter(|current| *current == proxy)?;
        usize::try_from(counts.get(proxy.number)).ok().or(Some(0))
    }

    /// [`remove_proxy`](Self::remove_proxy) by the proxy's ID. A proxy that was registered under the ID when the call
    /// began is removed when it returns.
    pub fn remove_proxy_by_id(&self, id: &str) -> bool {
        while let Some(proxy) = self.find_proxy(id) {
            // On failure, another thread has removed the proxy, and may have registered it again.
            if self.remove_proxy(proxy) {
                return true;
            }
        }
        false
    }

    pub(super) fn register_pinned(
        &self,
        proxy: ReportedProxy<'_>,
        now: u64,
        guard: &Guard,
    ) -> Result<ProxyRef, RegisterError> {
        let registered = self.proxies.register(proxy, now, guard);
        let registered = registered.inspect_err(|error| self.proxy_refused(error))?;
        if registered.has_moved {
            self.proxy_moved(registered.proxy, guard);
        }
        Ok(registered.proxy)
    }

    /// Asks the sweeper for the numbers and the texts of removed proxies, if a proxy was refused for want of room.
    pub(super) fn proxy_refused(&self, error: &RegisterError) {
        match error {
            RegisterError::TooManyProxies { .. }
            | RegisterError::TooManyProxiesOfClient { .. }
            | RegisterError::TooMuchText { .. } => self.request_sweep(),
            RegisterError::Invalid { .. } => {}
        }
    }

    /// Marks for subscribers that a proxy's details have changed, and wakes the subscribers. The caller must not hold
    /// the registry's lock: a waker may wait for the lock.
    pub(super) fn proxy_moved(&self, proxy: ProxyRef, guard: &Guard) {
        self.feed.mark(Feed::PROXIES, guard, || Event::ProxyChanged { proxy });
    }

    /// Marks for subscribers that a proxy was removed. The caller must not hold the registry's lock, as for
    /// [`proxy_moved`](Self::proxy_moved).
    pub(super) fn proxy_removed(&self, proxy: ProxyRef, guard: &Guard) {
        self.feed.mark(Feed::PROXIES, guard, || Event::ProxyRemoved {
            proxy,
            id: self.proxies.id(proxy, guard).as_str().into(),
        });
    }
}
