//! The table's types, turned into answers of `nodetracker.v1`.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use nodetracker::{NodeId, ProxyDetails, ProxyRef, Route, RouteTable};
use nodetracker_proto::v1;
use nodetracker_proto::v1::node_id::Id;

/// Bytes that a route takes in a message that has its proxy elsewhere, at most: two integers with their tags in a
/// timestamp, an index, and what is around them.
const ROUTE_SIZE: usize = 32;

pub(crate) fn node(node: &NodeId) -> v1::NodeId {
    let id = match node.as_uuid() {
        Some(uuid) => Id::Uuid(uuid.as_bytes().to_vec()),
        None => Id::Name(node.to_string()),
    };
    v1::NodeId { id: Some(id) }
}

pub(crate) fn proxy(details: ProxyDetails) -> v1::Proxy {
    v1::Proxy {
        proxy_id: details.id.into(),
        cluster_name: details.cluster_name.into(),
        addr: details.addr.into(),
    }
}

pub(crate) fn time(time: SystemTime) -> prost_types::Timestamp {
    time.into()
}

pub(crate) fn duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        // Below a billion.
        nanos: duration.subsec_nanos() as i32,
    }
}

/// Routes for a message in which each proxy is there once.
#[derive(Debug)]
pub(crate) struct Collector<'t> {
    table: &'t RouteTable,
    /// Where each proxy is in the list; `None`: it was not registered any more when it was looked up.
    indexes: HashMap<ProxyRef, Option<u32>>,
    proxies: Vec<(ProxyRef, v1::Proxy)>,
    size: usize,
}

impl<'t> Collector<'t> {
    pub(crate) fn new(table: &'t RouteTable) -> Self {
        Self {
            table,
            indexes: HashMap::new(),
            proxies: Vec::new(),
            size: 0,
        }
    }

    pub(crate) fn table(&self) -> &'t RouteTable {
        self.table
    }

    /// A node with its routes, less those through proxies that have been removed meanwhile.
    pub(crate) fn node(&mut self, id: Option<&NodeId>, routes: &[Route]) -> v1::NodeRoutes {
        // A node's name, as its UUID, is a part of the 300 bytes.
        self.size += 300 + routes.len() * ROUTE_SIZE;
        let routes = routes.iter().filter_map(|route| {
            Some(v1::IndexedRoute {
                proxy_index: self.index(route.proxy)?,
                last_refresh_time: Some(time(route.last_refresh)),
            })
        });
        let routes = routes.collect();
        v1::NodeRoutes {
            node: id.map(node),
            routes,
        }
    }

    /// A proxy's position in the list, to which it is added where it is new.
    pub(crate) fn index(&mut self, reference: ProxyRef) -> Option<u32> {
        if let Some(index) = self.indexes.get(&reference) {
            return *index;
        }
        let index = self.table.proxy(reference).map(|details| {
            let details = proxy(details);
            self.size += 48 + details.proxy_id.len() + details.cluster_name.len() + details.addr.len();
            self.proxies.push((reference, details));
            self.proxies.len() as u32 - 1
        });
        self.indexes.insert(reference, index);
        index
    }

    /// The most bytes that the message can have so far.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// The list of proxies.
    pub(crate) fn proxies(self) -> Vec<v1::Proxy> {
        self.proxies.into_iter().map(|(_, proxy)| proxy).collect()
    }

    /// The list of proxies, with their registrations.
    pub(crate) fn watched(self) -> Vec<v1::WatchedProxy> {
        self.proxies
            .into_iter()
            .map(|(reference, proxy)| v1::WatchedProxy {
                registration: reference.to_bits(),
                proxy: Some(proxy),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use nodetracker::Proxy;
    use prost::Message;

    use super::*;

    /// The bound is what keeps a message below its limit, so it has to hold for the longest strings.
    #[test]
    fn a_message_is_no_larger_than_told() {
        let table = RouteTable::new();
        let long = "x".repeat(255);
        let longest = &long[..250];
        for count in [1, 10, 200] {
            let mut collector = Collector::new(&table);
            let mut message = v1::WatchChanges::default();
            for number in 0..count {
                let proxy = Proxy {
                    id: &format!("{number:0>255}"),
                    cluster_name: &long,
                    addr: &format!("{longest}:3080"),
                };
                let node: NodeId = format!("{number:0>255}").parse().unwrap();
                table.report_node(&node, &proxy).unwrap();
                let routes = collector.node(Some(&node), &table.get_proxies(&node));
                let change = v1::WatchNodeChange {
                    routes: Some(routes),
                    reason: v1::NodeChangeReason::Added.into(),
                };
                message.changes.push(v1::WatchChange {
                    sequence: u64::MAX,
                    change: Some(v1::watch_change::Change::Node(change)),
                });
            }
            let told = collector.size();
            message.proxies = collector.watched();
            assert!(message.encoded_len() <= told, "{} > {told}", message.encoded_len());
            assert!(told < message.encoded_len() * 5 / 4);
        }
    }
}
