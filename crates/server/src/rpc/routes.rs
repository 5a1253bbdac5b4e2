//! `RouteService`: reports and look-ups of proxies.

use std::sync::Arc;

use bytes::Bytes;
use nodetracker::RouteTable;
use nodetracker_proto::v1;
use tonic::Status;

use crate::convert::encode::{self, BatchEncoder};
use crate::convert::{parse, status};
use crate::limits::MAX_REPLY_SIZE;

/// The service.
#[derive(Debug)]
pub(crate) struct Routes {
    table: Arc<RouteTable>,
}

impl Routes {
    pub(crate) fn new(table: Arc<RouteTable>) -> Self {
        Self { table }
    }

    pub(crate) fn add_nodes(&self, request: v1::AddNodesRequest) -> Result<v1::AddNodesResponse, Status> {
        // Parse the nodes first: a bad node must not leave its proxy registered.
        let nodes = parse::nodes(request.nodes)?;
        let proxy = parse::proxy(request.proxy.as_ref())?;
        let added = self
            .table
            .report_nodes(&nodes, &proxy)
            .map_err(|error| status::report_nodes("proxy.", error))?;
        Ok(v1::AddNodesResponse {
            // A request has at most MAX_BATCH_NODES nodes.
            inserted_count: added.inserted as u32,
            refreshed_count: added.refreshed as u32,
        })
    }

    pub(crate) fn get_proxies(&self, request: v1::GetProxiesRequest) -> Result<v1::GetProxiesResponse, Status> {
        let node = parse::node(request.node)?;
        let routes = self.table.resolve(&node).into_iter().map(|route| v1::Route {
            proxy: Some(encode::proxy(route.details)),
            last_refresh_time: Some(encode::time(route.last_refresh)),
        });
        Ok(v1::GetProxiesResponse {
            routes: routes.collect(),
        })
    }

    /// Returns an encoded `BatchGetProxiesResponse`, with its prefix.
    pub(crate) fn batch_get_proxies(&self, request: v1::BatchGetProxiesRequest) -> Result<Bytes, Status> {
        let nodes = parse::nodes(request.nodes)?;
        let mut response = BatchEncoder::new(&self.table, nodes.len());
        for (at, routes) in self.table.get_proxies_batch(&nodes).enumerate() {
            response.push(&routes);
            if response.size() > MAX_REPLY_SIZE {
                return Err(Status::resource_exhausted(format!(
                    "the answer is larger than {MAX_REPLY_SIZE} bytes after {} nodes: ask for fewer",
                    at + 1
                )));
            }
        }
        Ok(response.finish())
    }

    pub(crate) fn remove_nodes(&self, request: v1::RemoveNodesRequest) -> Result<v1::RemoveNodesResponse, Status> {
        let nodes = parse::nodes(request.nodes)?;
        let by_proxy = match request.proxy_id.as_str() {
            "" => None,
            // An unknown proxy has no routes.
            id => Some(self.table.find_proxy(parse::proxy_id(id)?)),
        };
        let mut response = v1::RemoveNodesResponse::default();
        for (at, node) in nodes.iter().enumerate() {
            let removed = match by_proxy {
                None => self.table.remove_node(node),
                Some(proxy) => proxy.is_some_and(|proxy| self.table.remove_route(node, proxy)),
            };
            if removed {
                response.removed_count += 1;
            } else {
                response.absent_indexes.push(at as u32);
            }
        }
        Ok(response)
    }
}
