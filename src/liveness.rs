//! The shards' interface to the proxies.

/// The questions and reports about proxies of operations on routes.
pub(crate) trait Liveness {
    /// Whether routes through a proxy number may be returned.
    fn has(&self, proxy: u32) -> bool;

    /// Reports that a route of the proxy is gone, and that it counted for the proxy until `tick`.
    fn left(&self, proxy: u32, tick: u64);
}

/// Records which proxies have routes.
pub(crate) trait Census {
    fn see(&mut self, proxy: u32);

    /// Returns whether routes through a proxy number may be returned. If so, records that the proxy has a route.
    #[inline]
    fn see_valid(&mut self, proxy: u32, proxies: &impl Liveness) -> bool {
        let has = proxies.has(proxy);
        if has {
            self.see(proxy);
        }
        has
    }
}

impl<F: FnMut(u32)> Census for F {
    #[inline]
    fn see(&mut self, proxy: u32) {
        self(proxy);
    }
}
