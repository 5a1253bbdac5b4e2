//! `RouteService`: reports and look-ups.

use std::sync::Arc;

use bytes::Bytes;
use nodetracker::{AddError, ReportNodesError, RouteBatch, RouteTable};
use nodetracker_proto::v1;
use nodetracker_proto::v1::route_service_server::SERVICE_NAME;
use tonic::Status;

use crate::convert::encode::{self as answer, EncodedRoutes};
use crate::convert::parse;
use crate::grpc::unary::{self, Unary};
use crate::limits::{MAX_ANSWER_SIZE, MAX_BATCH_MESSAGE_SIZE};

/// Answers from a table.
#[derive(Debug)]
pub(crate) struct Routes {
    table: Arc<RouteTable>,
}

impl Routes {
    /// Answers from a table.
    pub(crate) fn new(table: Arc<RouteTable>) -> Self {
        Self { table }
    }

    fn add(&self, request: v1::AddNodesRequest) -> Result<v1::AddNodesResponse, Status> {
        // The nodes first: a bad one must not leave its proxy behind.
        let nodes = parse::nodes(request.nodes)?;
        let proxy = parse::proxy(request.proxy.as_ref())?;
        let added = self.table.report_nodes(&nodes, &proxy).map_err(refused)?;
        Ok(v1::AddNodesResponse {
            // A request has no more than thousands.
            inserted_count: added.inserted as u32,
            refreshed_count: added.refreshed as u32,
        })
    }

    fn get(&self, request: v1::GetProxiesRequest) -> Result<v1::GetProxiesResponse, Status> {
        let node = parse::node(request.node)?;
        let routes = self.table.resolve(&node).into_iter().map(|route| v1::Route {
            proxy: Some(answer::proxy(route.details)),
            last_refresh_time: Some(answer::time(route.last_refresh)),
        });
        Ok(v1::GetProxiesResponse {
            routes: routes.collect(),
        })
    }

    /// Returns a `BatchGetProxiesResponse` that is encoded, with its prefix.
    fn batch_get(&self, request: v1::BatchGetProxiesRequest) -> Result<Bytes, Status> {
        let nodes = parse::nodes(request.nodes)?;
        let mut batch = RouteBatch::new();
        self.table.get_proxies_batch(&nodes, &mut batch);
        let mut answer = EncodedRoutes::new(&self.table, nodes.len());
        for (at, routes) in batch.iter().enumerate() {
            answer.push(routes);
            if answer.size() > MAX_ANSWER_SIZE {
                return Err(Status::resource_exhausted(format!(
                    "the answer is larger than {MAX_ANSWER_SIZE} bytes after {} nodes: ask for fewer",
                    at + 1
                )));
            }
        }
        Ok(answer.finish())
    }

    fn remove(&self, request: v1::RemoveNodesRequest) -> Result<v1::RemoveNodesResponse, Status> {
        let nodes = parse::nodes(request.nodes)?;
        let by_proxy = match request.proxy_id.as_str() {
            "" => None,
            // A proxy that is not known has no routes.
            id => Some(self.table.find_proxy(parse::proxy_id(id)?)),
        };
        let mut answer = v1::RemoveNodesResponse::default();
        for (at, node) in nodes.iter().enumerate() {
            let removed = match by_proxy {
                None => self.table.remove_node(node),
                Some(proxy) => proxy.is_some_and(|proxy| self.table.remove_route(node, proxy)),
            };
            if removed {
                answer.removed_count += 1;
            } else {
                answer.absent_indexes.push(at as u32);
            }
        }
        Ok(answer)
    }
}

impl Unary for Routes {
    fn name(&self) -> &'static str {
        SERVICE_NAME
    }

    fn max_message_size(&self) -> usize {
        MAX_BATCH_MESSAGE_SIZE
    }

    fn methods(&self) -> &'static [&'static str] {
        &["AddNodes", "GetProxies", "BatchGetProxies", "RemoveNodes"]
    }

    fn has_large_answers(&self, method: &'static str) -> bool {
        method == "BatchGetProxies"
    }

    fn unary(&self, method: &'static str, message: &[u8]) -> Result<Bytes, Status> {
        match method {
            "AddNodes" => unary::call(message, |request| self.add(request)),
            "GetProxies" => unary::call(message, |request| self.get(request)),
            "BatchGetProxies" => self.batch_get(unary::decode(message)?),
            "RemoveNodes" => unary::call(message, |request| self.remove(request)),
            _ => Err(Status::unimplemented(method)),
        }
    }
}

fn refused(error: ReportNodesError) -> Status {
    match error {
        ReportNodesError::Proxy(error) => parse::refused_proxy(error, "proxy."),
        ReportNodesError::Nodes(error) => match error.error {
            AddError::TooManyRoutes { .. } | AddError::OutOfMemory => Status::resource_exhausted(error.to_string()),
            _ => Status::internal(error.to_string()),
        },
        error => Status::internal(error.to_string()),
    }
}
