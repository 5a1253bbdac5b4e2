//! The shards' interface to the proxies: whether a proxy is registered, how many routes it has, and whether there is
//! room for text.

use crate::word::Word;

/// Whose limit of routes leaves no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holder {
    /// The proxy's own.
    Proxy,
    /// That of the proxy's client.
    Client,
}

/// The questions and reports about proxies of operations on routes.
pub(crate) trait Liveness {
    /// Whether routes through a proxy number may be returned.
    fn has(&self, proxy: u32) -> bool;

    /// Whether the proxy may get a further route, or whose limit is reached.
    fn has_room(&self, proxy: u32) -> Result<(), Holder>;

    /// Whether the table may store a further text of `len` bytes.
    fn has_text_room(&self, len: usize) -> bool;

    /// Counts a route that the proxy is about to get. If the proxy or its client has its maximum, returns which, and
    /// does not count the route.
    fn reserve(&self, proxy: u32) -> Result<(), Holder>;

    /// Adds `more` to the count of the proxy's routes, even beyond a maximum. `more` may be negative.
    fn count(&self, proxy: u32, more: i32);

    /// Reports that a route of the proxy is gone, and that it counted for the proxy until `tick`.
    fn left(&self, proxy: u32, tick: u64);
}

/// Records which proxies have routes.
pub(crate) trait Census {
    /// Records that the route's proxy has a route.
    fn see(&mut self, route: Word);

    /// Returns whether the route's proxy is registered. If so, records that the proxy has a route.
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
