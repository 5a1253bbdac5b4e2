//! The shards' interface to the proxies.

use crate::word::Word;

/// The questions and reports about proxies of operations on routes.
pub(crate) trait Liveness {
    /// Whether routes through a proxy number may be returned.
    fn has(&self, proxy: u32) -> bool;

    /// Reports that a route of the proxy is gone, and that it counted for the proxy until `tick`.
    fn left(&self, proxy: u32, tick: u64);
}

/// Records which proxies have routes.
pub(crate) trait Census {
    /// Records that the route's proxy has a route.
    fn see(&mut self, route: Word);

    /// Returns whether the route's proxy is registered. If so, records that it has a route.
    #[inline]
    fn see_valid(&mut self, route: Word, proxies: &impl Liveness) -> bool {
        let has = proxies.has(route.proxy());
        if has {
            self.see(route);
        }
        has
    }
}

impl<F: FnMut(Word)> Census for F {
    #[inline]
    fn see(&mut self, route: Word) {
        self(route);
    }
}
