//! Following the changes.

use crate::feed::Subscription;
use crate::table::RouteTable;

/// # Following changes
impl RouteTable {
    /// Subscribes to the changes of the table from now on: routes added and removed, proxies changed and removed, but
    /// not refreshes.
    ///
    /// To follow the table: subscribe, read the whole table, then drain the events again and again, and look up the
    /// node of each event. Writers do not wait for subscribers. While there is a subscription, each change costs more;
    /// further subscriptions cost writers nothing.
    #[must_use]
    pub fn subscribe(&self) -> Subscription<'_> {
        self.feed.subscribe()
    }

    /// The number of [subscriptions](Self::subscribe).
    #[must_use]
    pub fn subscriptions(&self) -> usize {
        self.feed.subscriptions()
    }

    /// The number of changes marked for [subscriptions](Self::subscribe) since the table was made. A change is marked
    /// once, however many subscriptions there are, and not at all while there are none. Adds up 257 counters.
    #[must_use]
    pub fn marked_changes(&self) -> u64 {
        self.feed.marked()
    }
}
