//! `WatchService` on the wire.
//!
//! It is not the generated server, which encodes each message of each stream: the messages here are encoded once for all
//! the streams that send them.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::unary::Arriving;
use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::unfold;
use http::{Request, Response};
use nodetracker_proto::v1::watch_service_server::SERVICE_NAME;
use nodetracker_proto::{EncodedCodec, v1};
use tonic::Status;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService};
use tower_service::Service;

use crate::limits::{MAX_BATCH_MESSAGE_SIZE, MAX_WATCHES};
use crate::services::BoxedCall;
use crate::v1::parse;
use crate::watch::Watches;
use crate::watch::stream::Watch;

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct WatchServer {
    watches: Arc<Watches>,
}

impl WatchServer {
    pub(crate) fn new(watches: Arc<Watches>) -> Self {
        Self { watches }
    }
}

impl NamedService for WatchServer {
    const NAME: &'static str = SERVICE_NAME;
}

impl Service<Request<Arriving>> for WatchServer {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxedCall;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Arriving>) -> BoxedCall {
        if request.uri().path().strip_prefix('/') != Some("nodetracker.v1.WatchService/Watch") {
            return Box::pin(async { Ok(Status::unimplemented("the service has no such method").into_http()) });
        }
        let begin = Begin(Arc::clone(&self.watches));
        Box::pin(async move {
            let grpc = Grpc::new(EncodedCodec::<v1::WatchRequest>::default());
            let mut grpc = grpc.max_decoding_message_size(MAX_BATCH_MESSAGE_SIZE);
            Ok(grpc.server_streaming(begin, request).await)
        })
    }
}

/// The method.
struct Begin(Arc<Watches>);

type Messages = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

impl Service<tonic::Request<v1::WatchRequest>> for Begin {
    type Response = tonic::Response<Messages>;
    type Error = Status;
    type Future = std::future::Ready<Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: tonic::Request<v1::WatchRequest>) -> Self::Future {
        std::future::ready(self.begin(request.into_inner()))
    }
}

impl Begin {
    fn begin(&self, request: v1::WatchRequest) -> Result<tonic::Response<Messages>, Status> {
        let nodes = parse::nodes(request.nodes)?;
        let entered = self.0.enter().ok_or_else(|| {
            Status::resource_exhausted(format!("there are {MAX_WATCHES} watches, which is the limit"))
        })?;
        let messages = unfold(Watch::new(entered, nodes), async |mut watch| {
            let message = watch.next().await;
            Some((Ok(message), watch))
        });
        Ok(tonic::Response::new(Box::pin(messages)))
    }
}
