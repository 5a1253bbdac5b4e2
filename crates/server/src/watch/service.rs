//! `WatchService` on the wire.
//!
//! It is not the generated server, which encodes each message of each stream. Here a message is encoded once, and all the
//! streams that send it share its bytes, up to the socket; so clients that read slowly take no memory for what they are
//! behind.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::unfold;
use http::{Request, Response};
use http_body::Frame;
use nodetracker_proto::v1::watch_service_server::SERVICE_NAME;
use nodetracker_proto::{SmallCodec, v1};
use tonic::body::Body;
use tonic::codec::Codec;
use tonic::server::NamedService;
use tonic::{Status, Streaming};
use tower_service::Service;

use crate::limits::MAX_BATCH_MESSAGE_SIZE;
use crate::services::BoxedCall;
use crate::unary::{self, Arriving};
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
        let watches = Arc::clone(&self.watches);
        Box::pin(async move {
            Ok(match begin(watches, request).await {
                Ok(watch) => unary::head().map(|()| Body::new(Messages::of(watch))),
                Err(status) => status.into_http(),
            })
        })
    }
}

/// Begins the watch that a request asks for.
async fn begin(watches: Arc<Watches>, request: Request<Arriving>) -> Result<Watch, Status> {
    if request.headers().contains_key(unary::ENCODING) {
        return Err(Status::unimplemented("requests cannot be compressed here"));
    }
    let decoder = SmallCodec::<(), v1::WatchRequest>::default().decoder();
    let mut messages = Streaming::new_request(decoder, request.into_body(), None, Some(MAX_BATCH_MESSAGE_SIZE));
    let request = messages.message().await?;
    let request = request.ok_or_else(|| Status::internal("Missing request message."))?;
    messages.trailers().await?;
    let nodes = parse::nodes(request.nodes)?;
    Ok(Watch::new(watches.enter(nodes.len())?, nodes))
}

/// The messages of a watch, with their prefixes. They never end.
struct Messages(Pin<Box<dyn Stream<Item = Bytes> + Send>>);

impl Messages {
    fn of(watch: Watch) -> Self {
        Self(Box::pin(unfold(watch, async |mut watch| {
            let message = watch.next().await;
            Some((message, watch))
        })))
    }
}

impl http_body::Body for Messages {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.0
            .as_mut()
            .poll_next(cx)
            .map(|message| message.map(|message| Ok(Frame::data(message))))
    }
}
