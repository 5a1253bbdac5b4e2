//! The subjects of the calls: nodes and proxies by number, and the requests that name them.

use std::ops::Range;

use bytes::Bytes;
use fastrand::Rng;
use nodetracker_proto::{api, v1};
use prost::Message;
use prost::encoding::{WireType, decode_key, decode_varint, skip_field};
use uuid::Uuid;

use crate::cli::commands::bench::connection::Method;
use crate::grpc::frame;

/// One in this many calls of [`Work::Mixed`] is a look-up.
const MIXED_LOOK_UP: u64 = 10;

/// What calls do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// `AddNode` of the frozen contract.
    AddNode,
    /// `GetProxies` of the frozen contract.
    GetProxies,
    /// Nine `AddNode` to one `GetProxies`.
    Mixed,
    /// `AddNodes` of `RouteService`.
    AddNodes,
    /// `BatchGetProxies` of `RouteService`.
    BatchGetProxies,
}

/// Nodes and proxies. The same seed gives the same nodes and proxies.
///
/// Batch `b` starts at node `b` times the size, and has proxy `b`. After the last node or proxy comes the first.
#[derive(Debug, Clone, Copy)]
pub(super) struct Population {
    pub(super) seed: u64,
    pub(super) nodes: u32,
    pub(super) proxies: u32,
    /// Nodes in one call.
    pub(super) batch_size: u32,
}

impl Population {
    /// Returns a random UUID of version 4.
    pub(super) fn node(&self, number: u32) -> Uuid {
        // The seed and the number take different bits: seeds in a row share no node.
        let mut random = Rng::with_seed(self.seed.rotate_left(32) ^ u64::from(number));
        uuid::Builder::from_random_bytes(random.u128(..).to_be_bytes()).into_uuid()
    }

    pub(super) fn proxy_id(&self, number: u32) -> String {
        format!("bench-{:x}-{number}", self.seed)
    }

    pub(super) fn proxy(&self, number: u32) -> v1::Proxy {
        let [_, a, b, c] = number.to_be_bytes();
        v1::Proxy {
            proxy_id: self.proxy_id(number),
            cluster_name: "nodetracker-bench".into(),
            addr: format!("10.{a}.{b}.{c}:3080"),
        }
    }

    pub(super) fn batches(&self) -> u32 {
        self.nodes.div_ceil(self.batch_size)
    }

    /// Returns the nodes of a call, and the number of their proxy.
    fn batch(&self, call: u64) -> (Range<u32>, u32) {
        let batch = (call % u64::from(self.batches())) as u32;
        let first = batch * self.batch_size;
        let end = first.saturating_add(self.batch_size).min(self.nodes);
        (first..end, batch % self.proxies)
    }

    pub(super) fn node_ids(&self, nodes: Range<u32>) -> v1::NodeIds {
        v1::NodeIds {
            uuids: nodes.flat_map(|node| self.node(node).into_bytes()).collect(),
            names: Vec::new(),
        }
    }
}

/// A request that is ready to be sent.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) message: Bytes,
    /// How many nodes it is about.
    pub(super) nodes: u32,
}

impl Work {
    /// Returns the request of a call.
    pub(super) fn request(self, population: &Population, call: u64) -> Request {
        let (nodes, proxy) = population.batch(call);
        let count = nodes.len() as u32;
        let request = |method, message| Request {
            method,
            message,
            nodes: count,
        };
        match self {
            Self::AddNode => {
                let proxy = population.proxy(proxy);
                let message = frame::encode(&api::AddNodeRequest {
                    node_id: population.node(nodes.start).to_string(),
                    proxy_id: proxy.proxy_id,
                    cluster_name: proxy.cluster_name,
                    addr: proxy.addr,
                });
                request(Method::AddNode, message)
            }
            Self::GetProxies => {
                let node_id = population.node(nodes.start).to_string();
                request(Method::GetProxies, frame::encode(&api::GetProxiesRequest { node_id }))
            }
            // Not every tenth call, which would be all calls of one of ten connections.
            Self::Mixed => match Rng::with_seed(call).u64(..MIXED_LOOK_UP) {
                0 => Self::GetProxies.request(population, call),
                _ => Self::AddNode.request(population, call),
            },
            Self::AddNodes => {
                let message = frame::encode(&v1::AddNodesRequest {
                    proxy: Some(population.proxy(proxy)),
                    nodes: Some(population.node_ids(nodes)),
                });
                request(Method::AddNodes, message)
            }
            Self::BatchGetProxies => {
                let nodes = Some(population.node_ids(nodes));
                request(
                    Method::BatchGetProxies,
                    frame::encode(&v1::BatchGetProxiesRequest { nodes }),
                )
            }
        }
    }
}

/// Returns how many nodes the tracker has added, or how many have routes, as the reply reports. Decodes only the fields
/// that the count needs, so that the generator takes little CPU.
pub(super) fn nodes_done(method: Method, nodes: u32, reply: Bytes) -> u32 {
    match method {
        Method::AddNode => nodes,
        Method::GetProxies => u32::from(!reply.is_empty()),
        Method::AddNodes => v1::AddNodesResponse::decode(reply)
            .map_or(0, |added| added.inserted_count.saturating_add(added.refreshed_count)),
        Method::BatchGetProxies => nodes_with_routes(reply).unwrap_or_default(),
    }
}

/// Returns how many elements of `BatchGetProxiesResponse.nodes` are not empty, or `None` if the message is malformed.
fn nodes_with_routes(mut reply: Bytes) -> Option<u32> {
    const NODES: u32 = 2;
    let mut found = 0;
    while !reply.is_empty() {
        let (field, wire_type) = decode_key(&mut reply).ok()?;
        if field == NODES && wire_type == WireType::LengthDelimited {
            let len = usize::try_from(decode_varint(&mut reply).ok()?).ok()?;
            if len > reply.len() {
                return None;
            }
            found += u32::from(len > 0);
            reply = reply.split_off(len);
        } else {
            skip_field(wire_type, field, &mut reply, prost::encoding::DecodeContext::default()).ok()?;
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const POPULATION: Population = Population {
        seed: 47,
        nodes: 1050,
        proxies: 7,
        batch_size: 100,
    };

    #[test]
    fn nodes_and_proxies_are_distinct_and_come_from_the_seed() {
        let nodes: HashSet<_> = (0..POPULATION.nodes).map(|node| POPULATION.node(node)).collect();
        assert_eq!(nodes.len(), 1050);
        let proxies: HashSet<_> = (0..7).map(|proxy| POPULATION.proxy(proxy).addr).collect();
        assert_eq!(proxies.len(), 7);
        assert!(nodes.iter().all(|node| node.get_version_num() == 4));
        let same = Population { ..POPULATION };
        assert_eq!(POPULATION.node(3), same.node(3));
        let other = Population { seed: 48, ..POPULATION };
        assert_ne!(POPULATION.node(3), other.node(3));
        assert_ne!(POPULATION.proxy_id(3), other.proxy_id(3));
    }

    #[test]
    fn neighbouring_seeds_share_no_node() {
        let nodes = |seed| {
            let population = Population { seed, ..POPULATION };
            (0..population.nodes).map(move |node| population.node(node))
        };
        let all: HashSet<_> = (46..49).flat_map(nodes).collect();
        assert_eq!(all.len(), 3 * POPULATION.nodes as usize);
    }

    #[test]
    fn the_batches_have_every_node_once() {
        let mut seen = Vec::new();
        for call in 0..u64::from(POPULATION.batches()) {
            let request = Work::AddNodes.request(&POPULATION, call);
            let message = v1::AddNodesRequest::decode(request.message.slice(5..)).unwrap();
            assert_eq!(message.proxy, Some(POPULATION.proxy((call % 7) as u32)));
            let uuids = message.nodes.unwrap().uuids;
            assert_eq!(uuids.len(), 16 * request.nodes as usize);
            seen.extend(uuids.chunks(16).map(|uuid| Uuid::from_slice(uuid).unwrap()));
        }
        let all: Vec<_> = (0..POPULATION.nodes).map(|node| POPULATION.node(node)).collect();
        assert_eq!(seen, all);
        // Then the first batch again, through the same proxy.
        assert_eq!(POPULATION.batch(11), POPULATION.batch(0));
    }

    #[test]
    fn one_in_ten_mixed_calls_is_a_look_up() {
        let single = Population {
            batch_size: 1,
            ..POPULATION
        };
        for lane in 0..10 {
            let calls = (0..10_000).map(|call| Work::Mixed.request(&single, 10 * call + lane));
            let look_ups = calls.filter(|request| request.method == Method::GetProxies).count();
            assert!((800..1200).contains(&look_ups), "{look_ups}");
        }
    }

    #[test]
    fn replies_are_counted() {
        let added = v1::AddNodesResponse {
            inserted_count: 2,
            refreshed_count: 3,
        };
        assert_eq!(nodes_done(Method::AddNodes, 5, added.encode_to_vec().into()), 5);
        let routes = |count| v1::NodeRoutes {
            routes: vec![v1::IndexedRoute::default(); count],
            ..v1::NodeRoutes::default()
        };
        let found = v1::BatchGetProxiesResponse {
            proxies: vec![POPULATION.proxy(0)],
            nodes: vec![routes(1), routes(0), routes(2)],
        };
        assert_eq!(nodes_done(Method::BatchGetProxies, 3, found.encode_to_vec().into()), 2);
        for malformed in [&b"\x12\x05"[..], b"\x12", b"\xff", b"\x0a\xff\xff"] {
            assert_eq!(nodes_with_routes(Bytes::from_static(malformed)), None, "{malformed:?}");
        }
        assert_eq!(nodes_done(Method::GetProxies, 1, Bytes::new()), 0);
        assert_eq!(nodes_done(Method::AddNode, 1, Bytes::new()), 1);
    }
}
