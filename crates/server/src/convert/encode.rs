//! The table's types, encoded as messages of `nodetracker.v1`.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use nodetracker::{NodeId, ProxyDetails, ProxyRef, Route, RouteTable};
use nodetracker_proto::v1;
use nodetracker_proto::v1::node_id::Id;
use prost::encoding::{self, WireType};

use crate::grpc::frame::PREFIX;

/// The most bytes of a route whose proxy is elsewhere in the message: a timestamp of two integers, an index, and the tags
/// and lengths around them.
const ROUTE_SIZE: usize = 32;

/// Numbers of the fields that are encoded by hand.
const RESPONSE_PROXIES: u32 = 1;
const RESPONSE_NODES: u32 = 2;
const NODE_ROUTES_ROUTES: u32 = 2;

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
        // Nanoseconds are below a billion.
        nanos: duration.subsec_nanos() as i32,
    }
}

/// Collects routes for a message that has each proxy once, and an upper bound of the message's size.
#[derive(Debug)]
pub(crate) struct RouteCollector<'t> {
    table: &'t RouteTable,
    /// The position of each proxy in `proxies`; `None` if the proxy was removed before it was looked up.
    indexes: HashMap<ProxyRef, Option<u32>, ahash::RandomState>,
    proxies: Vec<(ProxyRef, v1::Proxy)>,
    size: usize,
}

impl<'t> RouteCollector<'t> {
    pub(crate) fn new(table: &'t RouteTable) -> Self {
        Self {
            table,
            indexes: HashMap::default(),
            proxies: Vec::new(),
            size: 0,
        }
    }

    pub(crate) fn table(&self) -> &'t RouteTable {
        self.table
    }

    /// Returns a node with its routes, without routes through proxies that were removed meanwhile.
    pub(crate) fn node(&mut self, id: &NodeId, routes: &[Route]) -> v1::NodeRoutes {
        // The 300 bytes include the node's UUID or name.
        self.size += 300 + routes.len() * ROUTE_SIZE;
        let routes = routes.iter().filter_map(|route| self.route(route)).collect();
        v1::NodeRoutes {
            node: Some(node(id)),
            routes,
        }
    }

    fn route(&mut self, route: &Route) -> Option<v1::IndexedRoute> {
        Some(v1::IndexedRoute {
            proxy_index: self.index(route.proxy)?,
            last_refresh_time: Some(time(route.last_refresh)),
        })
    }

    /// Returns a proxy's position in the list. Adds the proxy if it is new.
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

    /// Returns an upper bound of the message's size so far, in bytes.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Returns the list of proxies.
    pub(crate) fn proxies(self) -> Vec<v1::Proxy> {
        self.proxies.into_iter().map(|(_, proxy)| proxy).collect()
    }

    /// Returns the list of proxies with their registrations.
    pub(crate) fn watched_proxies(self) -> Vec<v1::WatchedProxy> {
        self.proxies
            .into_iter()
            .map(|(reference, proxy)| v1::WatchedProxy {
                registration: reference.to_bits(),
                proxy: Some(proxy),
            })
            .collect()
    }
}

/// Encodes a `BatchGetProxiesResponse` node by node, without allocating for each node.
///
/// The proxies come last, when all of them are known. Protobuf allows fields in any order.
#[derive(Debug)]
pub(crate) struct BatchEncoder<'t> {
    collector: RouteCollector<'t>,
    encoded: Vec<u8>,
}

impl<'t> BatchEncoder<'t> {
    /// Returns an encoder with capacity for `nodes` nodes with one route each.
    pub(crate) fn new(table: &'t RouteTable, nodes: usize) -> Self {
        let mut encoded = Vec::with_capacity(PREFIX + nodes * ROUTE_SIZE);
        encoded.extend([0; PREFIX]);
        Self {
            collector: RouteCollector::new(table),
            encoded,
        }
    }

    /// Adds a node with its routes, without routes through proxies that were removed meanwhile.
    pub(crate) fn push(&mut self, routes: &[Route]) {
        encoding::encode_key(RESPONSE_NODES, WireType::LengthDelimited, &mut self.encoded);
        // A placeholder for the node's length, which nearly always takes one byte.
        let length = self.encoded.len();
        self.encoded.push(0);
        for route in routes {
            if let Some(route) = self.collector.route(route) {
                // Encoding into an array is faster: a vector checks its capacity for each byte.
                let mut array = [0; ROUTE_SIZE];
                let mut rest = &mut array[..];
                encoding::message::encode(NODE_ROUTES_ROUTES, &route, &mut rest);
                let used = ROUTE_SIZE - rest.len();
                self.encoded.extend_from_slice(&array[..used]);
            }
        }
        match self.encoded.len() - length - 1 {
            short @ ..0x80 => self.encoded[length] = short as u8,
            long => {
                let mut bytes = Vec::new();
                encoding::encode_varint(long as u64, &mut bytes);
                self.encoded.splice(length..=length, bytes);
            }
        }
    }

    /// Returns an upper bound of the message's size so far, in bytes.
    pub(crate) fn size(&self) -> usize {
        self.encoded.len() + self.collector.size()
    }

    /// Returns the encoded message, with its prefix.
    pub(crate) fn finish(self) -> Bytes {
        let mut encoded = self.encoded;
        encoding::message::encode_repeated(RESPONSE_PROXIES, &self.collector.proxies(), &mut encoded);
        // MAX_REPLY_SIZE is far below u32::MAX.
        let len = (encoded.len() - PREFIX) as u32;
        encoded[1..PREFIX].copy_from_slice(&len.to_be_bytes());
        encoded.into()
    }
}

#[cfg(test)]
mod tests {
    use nodetracker::Proxy;
    use prost::Message;

    use super::*;

    #[test]
    fn nodes_encoded_one_by_one_are_the_message() {
        let table = RouteTable::new();
        let mut nodes = Vec::new();
        // With 5 routes a node's length still fits into one byte; from 6 on it does not.
        for routes in 0..=64 {
            let node: NodeId = format!("node-{routes}").parse().unwrap();
            for number in 0..routes {
                let proxy = Proxy {
                    id: &format!("proxy-{number}"),
                    cluster_name: "",
                    addr: "10.0.0.1:3080",
                };
                table.report_node(&node, &proxy).unwrap();
            }
            nodes.push(node);
        }
        let mut collector = RouteCollector::new(&table);
        let mut encoded = BatchEncoder::new(&table, nodes.len());
        let mut message = v1::BatchGetProxiesResponse::default();
        for node in &nodes {
            let routes = table.get_proxies(node);
            encoded.push(&routes);
            message.nodes.push(v1::NodeRoutes {
                node: None,
                ..collector.node(node, &routes)
            });
        }
        message.proxies = collector.proxies();
        assert!(message.nodes.iter().map(|node| node.routes.len()).eq(0..=64));
        let size = encoded.size();
        let mut encoded = encoded.finish();
        assert!(encoded.len() <= size);
        let prefix = encoded.split_to(PREFIX);
        assert_eq!(prefix[0], 0);
        assert_eq!(prefix[1..], (encoded.len() as u32).to_be_bytes());
        assert_eq!(v1::BatchGetProxiesResponse::decode(encoded).unwrap(), message);
    }

    /// The size limit of a message relies on the bound, so the bound must hold for the longest strings.
    #[test]
    fn a_message_is_no_larger_than_its_bound() {
        let table = RouteTable::new();
        let long = "x".repeat(255);
        let longest = &long[..250];
        for count in [1, 10, 200] {
            let mut collector = RouteCollector::new(&table);
            let mut message = v1::WatchChanges::default();
            for number in 0..count {
                let proxy = Proxy {
                    id: &format!("{number:0>255}"),
                    cluster_name: &long,
                    addr: &format!("{longest}:3080"),
                };
                let node: NodeId = format!("{number:0>255}").parse().unwrap();
                table.report_node(&node, &proxy).unwrap();
                let routes = collector.node(&node, &table.get_proxies(&node));
                let change = v1::WatchNodeChange {
                    routes: Some(routes),
                    reason: v1::NodeChangeReason::Added.into(),
                    part: u32::MAX,
                };
                message.changes.push(v1::WatchChange {
                    sequence: u64::MAX,
                    change: Some(v1::watch_change::Change::Node(change)),
                });
            }
            let bound = collector.size();
            message.proxies = collector.watched_proxies();
            assert!(message.encoded_len() <= bound, "{} > {bound}", message.encoded_len());
            assert!(bound < message.encoded_len() * 5 / 4);
        }
    }
}
