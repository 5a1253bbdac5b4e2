//! `WatchService` on the wire.
//!
//! It is not the generated server, which encodes each message of each stream. Here a message is encoded once, and all the
//! streams that send it share its bytes, up to the socket; so clients that read slowly take no memory for what they are
//! behind.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::unfold;
use http::Request;
use http_body::Frame;
use nodetracker_proto::v1::watch_service_server::SERVICE_NAME;
use nodetracker_proto::{SmallCodec, v1};
use tonic::Status;
use tonic::body::Body;
use tonic::codec::Codec;

use crate::convert::parse;
use crate::grpc::method::BoxedCall;
use crate::grpc::send_budget::SendBudget;
use crate::grpc::unary::{self, Arriving};
use crate::limits::MAX_BATCH_MESSAGE_SIZE;
use crate::rpc::watch::Watches;
use crate::rpc::watch::stream::Watch;

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct WatchServer {
    watches: Arc<Watches>,
}

impl WatchServer {
    /// The service's full name.
    pub(crate) const NAME: &'static str = SERVICE_NAME;

    pub(crate) fn new(watches: Arc<Watches>) -> Self {
        Self { watches }
    }

    /// Calls a method, over a connection with this send budget.
    pub(crate) fn call(&self, request: Request<Arriving>, budget: &SendBudget) -> BoxedCall {
        if request.uri().path().strip_prefix('/') != Some("nodetracker.v1.WatchService/Watch") {
            return Box::pin(async { Ok(Status::unimplemented("the service has no such method").into_http()) });
        }
        let watches = Arc::clone(&self.watches);
        let budget = budget.clone();
        Box::pin(async move {
            Ok(match begin(watches, request, budget).await {
                Ok(watch) => unary::head().map(|()| Body::new(Messages::of(watch))),
                Err(status) => status.into_http(),
            })
        })
    }
}

/// Begins the watch that a request asks for.
async fn begin(watches: Arc<Watches>, request: Request<Arriving>, budget: SendBudget) -> Result<Watch, Status> {
    let decoder = SmallCodec::<(), v1::WatchRequest>::default().decoder();
    let request = unary::message(decoder, request, MAX_BATCH_MESSAGE_SIZE).await?;
    let nodes = parse::nodes(request.nodes)?;
    Ok(Watch::new(watches.enter(nodes.len())?, nodes, budget))
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
