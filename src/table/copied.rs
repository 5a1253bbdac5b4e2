//! A route outside of a pin.

use crate::time::Time;
use crate::types::life::Life;
use crate::types::proxy::ProxyRef;
use crate::types::route::Route;

/// A copy of a route.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CopiedRoute {
    pub(crate) proxy: ProxyRef,
    /// The tick of the last refresh.
    pub(crate) tick: u64,
}

impl CopiedRoute {
    /// Fills unused elements of an array. No caller gets this value.
    pub(super) const NONE: Self = Self {
        proxy: ProxyRef {
            number: 0,
            life: Life::NEW,
        },
        tick: 0,
    };

    /// The route with the wall-clock time of its last refresh.
    #[inline]
    pub(super) fn dated(self, time: &Time) -> Route {
        Route {
            proxy: self.proxy,
            last_refresh: time.wall(self.tick),
        }
    }
}
