//! `RouteService`: reports and look-ups.

use std::sync::Arc;

use bytes::Bytes;
use nodetracker::{AddError, ReportNodesError, RouteBatch, RouteTable};
use nodetracker_proto::v1;
use nodetracker_proto::v1::route_service_server::{RouteService, RouteServiceServer};
use tonic::{Request, Response, Status};

use crate::limits::{MAX_ANSWER_SIZE, MAX_BATCH_MESSAGE_SIZE};
use crate::unary::{self, Unary};
use crate::v1::answer::{self, Collector};
use crate::v1::parse;

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

    /// The service as tonic generates it, its message limit set.
    pub(crate) fn generated(self: &Arc<Self>) -> RouteServiceServer<Self> {
        RouteServiceServer::from_arc(Arc::clone(self)).max_decoding_message_size(MAX_BATCH_MESSAGE_SIZE)
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

    fn batch_get(&self, request: v1::BatchGetProxiesRequest) -> Result<v1::BatchGetProxiesResponse, Status> {
        let nodes = parse::nodes(request.nodes)?;
        let mut batch = RouteBatch::new();
        self.table.get_proxies_batch(&nodes, &mut batch);
        let mut collector = Collector::new(&self.table);
        let mut answer = v1::BatchGetProxiesResponse::default();
        for routes in batch.iter() {
            answer.nodes.push(collector.node(None, routes));
            // Without the node's ID, which the collector counts in.
            if collector.size() > MAX_ANSWER_SIZE + 256 * answer.nodes.len() {
                return Err(Status::resource_exhausted(format!(
                    "the answer is larger than {MAX_ANSWER_SIZE} bytes after {} nodes: ask for fewer",
                    answer.nodes.len()
                )));
            }
        }
        answer.proxies = collector.proxies();
        Ok(answer)
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
    fn methods(&self) -> &'static [&'static str] {
        &["AddNodes", "GetProxies", "BatchGetProxies", "RemoveNodes"]
    }

    fn unary(&self, method: &'static str, message: &[u8]) -> Result<Bytes, Status> {
        match method {
            "AddNodes" => unary::call(message, |request| self.add(request)),
            "GetProxies" => unary::call(message, |request| self.get(request)),
            "BatchGetProxies" => unary::call(message, |request| self.batch_get(request)),
            "RemoveNodes" => unary::call(message, |request| self.remove(request)),
            _ => Err(Status::unimplemented(method)),
        }
    }
}

#[tonic::async_trait]
impl RouteService for Routes {
    async fn add_nodes(&self, request: Request<v1::AddNodesRequest>) -> Result<Response<v1::AddNodesResponse>, Status> {
        self.add(request.into_inner()).map(Response::new)
    }

    async fn get_proxies(
        &self,
        request: Request<v1::GetProxiesRequest>,
    ) -> Result<Response<v1::GetProxiesResponse>, Status> {
        self.get(request.into_inner()).map(Response::new)
    }

    async fn batch_get_proxies(
        &self,
        request: Request<v1::BatchGetProxiesRequest>,
    ) -> Result<Response<v1::BatchGetProxiesResponse>, Status> {
        self.batch_get(request.into_inner()).map(Response::new)
    }

    async fn remove_nodes(
        &self,
        request: Request<v1::RemoveNodesRequest>,
    ) -> Result<Response<v1::RemoveNodesResponse>, Status> {
        self.remove(request.into_inner()).map(Response::new)
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
