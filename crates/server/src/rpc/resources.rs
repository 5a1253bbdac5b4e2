//! The resources that clients use up: how much is in use, and the limits. `AdminService.Stats` and the metrics report
//! them, and `docs/limits.md` lists them.

use nodetracker::{MemoryUse, Stats};

use crate::named::named;
use crate::rpc::statistics::Statistics;

named! {
    /// A resource that several clients share.
    Resource {
        /// Open connections.
        Connections = "connections",
        /// Bytes that clients make the server hold, besides the table.
        ClientMemory = "client_memory",
        /// Open watches.
        Watches = "watches",
        /// Bytes of the nodes that watches name.
        WatchedNodes = "watched_nodes",
        /// Open sessions: each proxy has at most one.
        Sessions = "sessions",
        /// Routes, counted until they are removed or swept.
        Routes = "routes",
        /// Registered proxies.
        Proxies = "proxies",
        /// Incarnations of proxies that the table knows, also ended incarnations.
        Incarnations = "incarnations",
        /// Bytes of the names, IDs and addresses in the table.
        Text = "text",
    }
}

/// How much of a resource is in use, and its limits. `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) used: usize,
    /// The limit over all clients.
    pub(crate) limit: Option<usize>,
    pub(crate) client_limit: Option<usize>,
    pub(crate) proxy_limit: Option<usize>,
}

impl Statistics {
    /// Returns the use of a resource and its limits. The figures of the table are read once for all resources.
    pub(crate) fn usage(&self, resource: Resource, stats: &Stats, memory_use: &MemoryUse) -> Usage {
        let (table, limits, shares) = (self.table.limits(), &self.limits, &self.shares);
        let (used, limit, client_limit) = match resource {
            Resource::Connections => (
                self.memory.connections(),
                limits.max_connections as usize,
                Some(shares.connections),
            ),
            Resource::ClientMemory => (self.memory.used(), limits.memory, Some(shares.memory)),
            Resource::Watches => (self.watches.count(), limits.max_watches, Some(shares.watches)),
            Resource::WatchedNodes => (
                self.watches.watched_size(),
                limits.max_watched_size,
                Some(shares.watched_size),
            ),
            Resource::Sessions => (self.sessions.count(), table.proxies, table.proxies_per_client),
            Resource::Routes => (stats.routes, table.routes, table.routes_per_client),
            Resource::Proxies => (stats.proxies, table.proxies, table.proxies_per_client),
            Resource::Incarnations => (stats.incarnations, table.incarnations, table.incarnations_per_client),
            Resource::Text => (memory_use.strings, table.text_bytes, None),
        };
        let some = |most: usize| (most != usize::MAX).then_some(most);
        Usage {
            used,
            limit: some(limit),
            // A share of all is no limit of its own.
            client_limit: client_limit.filter(|&of_client| of_client < limit),
            proxy_limit: table.routes_per_proxy.filter(|_| resource == Resource::Routes),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::keys::KEYS;

    /// The columns of each row of the first table in `docs/limits.md`.
    fn rows() -> impl Iterator<Item = Vec<&'static str>> {
        let text = include_str!("../../docs/limits.md");
        let rows = text.lines().filter(|line| line.starts_with("| "));
        rows.skip(2)
            .map(|row| row.trim_matches('|').split('|').map(str::trim).collect())
    }

    fn quoted(column: &str) -> impl Iterator<Item = &str> {
        column.split('`').skip(1).step_by(2)
    }

    /// Each limit that a client can reach and an operator can set has its figures in `Stats` and in the metrics.
    #[test]
    fn every_limit_of_the_configuration_is_documented_with_its_figures() {
        let is_limit = |name: &str| name.starts_with("max_") || name == "client_memory_mb";
        let limits: BTreeSet<_> = KEYS.iter().map(|key| key.name).filter(|name| is_limit(name)).collect();
        let mut keys = BTreeSet::from(["max_share_per_client"]);
        let mut figures = BTreeSet::new();
        for row in rows() {
            let (key, of_row) = (row[4], row[7]);
            keys.extend(quoted(key).filter(|name| is_limit(name)));
            figures.extend(quoted(of_row));
            assert!(
                !quoted(key).any(is_limit) || quoted(of_row).count() == 1,
                "a limit without its figures: {row:?}"
            );
        }
        assert_eq!(keys, limits);
        assert_eq!(figures, Resource::ALL.iter().map(|resource| resource.name()).collect());
    }
}
