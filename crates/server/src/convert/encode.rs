//! The table's types, encoded as messages of `nodetracker.v1`.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use nodetracker::{MAX_ROUTES_PER_NODE, MAX_TEXT, NodeId, ProxyDetails, ProxyRef, Route, RouteTable};
use nodetracker_proto::v1;
use nodetracker_proto::v1::node_id::Id;
use prost::encoding::{self, WireType};

use crate::grpc::frame::PREFIX;

/// The most bytes of a route whose proxy is elsewhere in the message. The route has a timestamp of two integers, an
/// index, and the tags and lengths around them.
const ROUTE_SIZE: usize = 32;

/// Numbers of the fields that are encoded by hand.
const RESPONSE_PROXIES: u32 = 1;
const RESPONSE_NODES: u32 = 2;
const RESPONSE_NEXT_PAGE_TOKEN: u32 = 3;
const NODE_ROUTES_NODE: u32 = 1;
const NODE_ROUTES_ROUTES: u32 = 2;

/// The most bytes that a further node adds to a message: a name, 64 routes, and as many proxies with three strings
/// each.
pub(crate) const MAX_NODE_SIZE: usize = 300 + MAX_ROUTES_PER_NODE * (ROUTE_SIZE + 48 + 3 * MAX_TEXT);

pub(crate) fn node(node: &NodeId) -> v1::NodeId {
    let id = match node.as_uuid() {
        Some(uuid) => Id::Uuid(uuid.as_bytes().to_vec()),
        None => Id::Name(node.to_string()),
    };
    v1::NodeId { id: Some(id) }
}

pub(crate) fn proxy(details: ProxyDetails) -> v1::Proxy {
    let (proxy_id, cluster_name, addr) = details.into_parts();
    v1::Proxy {
        proxy_id,
        cluster_name,
        addr,
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

/// Encodes a `BatchGetProxiesResponse` or a `ListNodesResponse` node by node, without allocating for each node.
///
/// Both messages have the same fields. The proxies come last, when all of them are known. Protobuf allows fields in any
/// order.
#[derive(Debug)]
pub(crate) struct RoutesEncoder<'t> {
    collector: RouteCollector<'t>,
    encoded: Vec<u8>,
    nodes: usize,
}

impl<'t> RoutesEncoder<'t> {
    /// Returns an encoder with capacity for `nodes` nodes with one route each.
    pub(crate) fn new(table: &'t RouteTable, nodes: usize) -> Self {
        let mut encoded = Vec::with_capacity(PREFIX + nodes * ROUTE_SIZE);
        encoded.extend([0; PREFIX]);
        Self {
            collector: RouteCollector::new(table),
            encoded,
            nodes: 0,
        }
    }

    /// Adds the routes of the next node of the request, without routes through proxies that were removed meanwhile.
    pub(crate) fn push(&mut self, routes: &[Route]) {
        let begin = self.begin_node();
        self.push_routes(routes);
        self.end_node(begin);
    }

    /// Adds a node with its routes. Does nothing if all its proxies were removed meanwhile.
    pub(crate) fn push_node(&mut self, id: &NodeId, routes: &[Route]) {
        let begin = self.begin_node();
        encoding::message::encode(NODE_ROUTES_NODE, &node(id), &mut self.encoded);
        let before = self.encoded.len();
        self.push_routes(routes);
        if self.encoded.len() == before {
            self.encoded.truncate(begin.key);
        } else {
            self.end_node(begin);
        }
    }

    fn begin_node(&mut self) -> NodeStart {
        let key = self.encoded.len();
        encoding::encode_key(RESPONSE_NODES, WireType::LengthDelimited, &mut self.encoded);
        // A placeholder for the node's length, which nearly always takes one byte.
        let length = self.encoded.len();
        self.encoded.push(0);
        NodeStart { key, length }
    }

    fn push_routes(&mut self, routes: &[Route]) {
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
    }

    fn end_node(&mut self, NodeStart { length, .. }: NodeStart) {
        match self.encoded.len() - length - 1 {
            short @ ..0x80 => self.encoded[length] = short as u8,
            long => {
                let mut bytes = Vec::new();
                encoding::encode_varint(long as u64, &mut bytes);
                self.encoded.splice(length..=length, bytes);
            }
        }
        self.nodes += 1;
    }

    /// Returns the number of nodes so far.
    pub(crate) fn nodes(&self) -> usize {
        self.nodes
    }

    /// Returns an upper bound of the message's size so far, in bytes, but for the page token.
    pub(crate) fn size(&self) -> usize {
        self.encoded.len() + self.collector.size()
    }

    /// Returns the encoded message, with its prefix.
    pub(crate) fn finish(self) -> Bytes {
        self.finish_with("")
    }

    /// Returns the encoded message with a `next_page_token`, and with its prefix.
    pub(crate) fn finish_with(self, next_page_token: &str) -> Bytes {
        let mut encoded = self.encoded;
        let proxies = self.collector.proxies();
        encoding::message::encode_repeated(RESPONSE_PROXIES, &proxies, &mut encoded);
        if !next_page_token.is_empty() {
            encoding::string::encode(RESPONSE_NEXT_PAGE_TOKEN, &next_page_token.to_owned(), &mut encoded);
        }
        // MAX_REPLY_SIZE is far below u32::MAX.
        let len = (encoded.len() - PREFIX) as u32;
        encoded[1..PREFIX].copy_from_slice(&len.to_be_bytes());
        encoded.into()
    }
}

/// Where a node of the message begins.
struct NodeStart {
    /// The node's key.
    key: usize,
    /// The node's length.
    length: usize,
}

#[cfg(test)]
mod tests {
    use nodetracker::Proxy;
    use prost::Message;
    use uuid::Uuid;

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
        let mut encoded = RoutesEncoder::new(&table, nodes.len());
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
        let encoded = encoded.finish();
        assert!(encoded.len() <= size);
        assert_eq!(message_in::<v1::BatchGetProxiesResponse>(encoded), message);
    }

    #[test]
    fn a_page_of_nodes_is_the_message() {
        let table = RouteTable::new();
        let proxy = |id: usize| Proxy {
            id: ["proxy-1", "proxy-2", "removed"][id],
            cluster_name: "",
            addr: "10.0.0.1:3080",
        };
        let nodes: [NodeId; 4] = [
            "node-1".parse().unwrap(),
            Uuid::from_u128(7).into(),
            "gone".parse().unwrap(),
            "node-2".parse().unwrap(),
        ];
        for (at, through) in [(0, [0, 1]), (1, [2, 1]), (2, [2, 2]), (3, [0, 2])] {
            for id in through {
                table.report_node(&nodes[at], &proxy(id)).unwrap();
            }
        }
        let routes: Vec<_> = nodes.iter().map(|node| table.get_proxies(node)).collect();
        table.remove_proxy_by_id("removed");

        let mut collector = RouteCollector::new(&table);
        let mut page = RoutesEncoder::new(&table, 0);
        let mut message = v1::ListNodesResponse::default();
        for (node, routes) in nodes.iter().zip(&routes) {
            page.push_node(node, routes);
            message.nodes.push(collector.node(node, routes));
        }
        message.nodes.remove(2);
        message.proxies = collector.proxies();
        message.next_page_token = "next".into();
        assert_eq!((page.nodes(), message.nodes.len()), (3, 3));
        assert_eq!(message_in::<v1::ListNodesResponse>(page.finish_with("next")), message);
    }

    fn message_in<M: Message + Default>(mut encoded: Bytes) -> M {
        let prefix = encoded.split_to(PREFIX);
        assert_eq!(prefix[0], 0);
        assert_eq!(prefix[1..], (encoded.len() as u32).to_be_bytes());
        M::decode(encoded).unwrap()
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
