//! `RouteService`: reports and look-ups.
//!
//! Calls that take the long way do not go through the generated service either, whose answers are messages that are still
//! to be encoded: a batch of look-ups is encoded as it goes, which saves three tenths of all the CPU time that it takes the
//! server.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use nodetracker::{AddError, ReportNodesError, RouteBatch, RouteTable};
use nodetracker_proto::v1::route_service_server::SERVICE_NAME;
use nodetracker_proto::{EncodedCodec, SmallCodec, v1};
use tonic::Status;
use tonic::body::Body;
use tonic::codec::Codec;
use tonic::server::{Grpc, NamedService, UnaryService};
use tower_service::Service;

use crate::limits::{MAX_ANSWER_SIZE, MAX_BATCH_MESSAGE_SIZE};
use crate::services::BoxedCall;
use crate::unary::{self, Arriving, PREFIX, Unary};
use crate::v1::answer::{self, EncodedRoutes};
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

    /// The service for calls that take the long way.
    pub(crate) fn long(self: &Arc<Self>) -> Long {
        Long(Arc::clone(self))
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
    fn methods(&self) -> &'static [&'static str] {
        &["AddNodes", "GetProxies", "BatchGetProxies", "RemoveNodes"]
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

/// The service for calls that take the long way.
#[derive(Debug, Clone)]
pub(crate) struct Long(Arc<Routes>);

impl NamedService for Long {
    const NAME: &'static str = SERVICE_NAME;
}

impl Service<Request<Arriving>> for Long {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxedCall;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Arriving>) -> BoxedCall {
        let routes = Arc::clone(&self.0);
        match request.uri().path().strip_prefix("/nodetracker.v1.RouteService/") {
            Some("AddNodes") => long(SmallCodec::default(), request, move |asked| routes.add(asked)),
            Some("GetProxies") => long(SmallCodec::default(), request, move |asked| routes.get(asked)),
            Some("BatchGetProxies") => long(EncodedCodec::default(), request, move |asked| {
                // The codec adds another one.
                routes.batch_get(asked).map(|answer| answer.slice(PREFIX..))
            }),
            Some("RemoveNodes") => long(SmallCodec::default(), request, move |asked| routes.remove(asked)),
            _ => Box::pin(async { Ok(Status::unimplemented("the service has no such method").into_http()) }),
        }
    }
}

/// Calls a method with the message of a request, once it is there.
fn long<C, M>(codec: C, request: Request<Arriving>, method: M) -> BoxedCall
where
    C: Codec + Send + 'static,
    M: Fn(C::Decode) -> Result<C::Encode, Status> + Send + Sync + 'static,
{
    Box::pin(async move {
        let mut grpc = Grpc::new(codec).max_decoding_message_size(MAX_BATCH_MESSAGE_SIZE);
        Ok(grpc.unary(Method(method), request).await)
    })
}

/// A method that is done at once.
struct Method<M>(M);

impl<A, B, M> UnaryService<A> for Method<M>
where
    M: Fn(A) -> Result<B, Status>,
{
    type Response = B;
    type Future = Ready<Result<tonic::Response<B>, Status>>;

    fn call(&mut self, request: tonic::Request<A>) -> Self::Future {
        ready((self.0)(request.into_inner()).map(tonic::Response::new))
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
