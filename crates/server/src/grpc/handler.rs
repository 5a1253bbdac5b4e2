//! Handlers: functions of services, in the three forms that the router calls.
//!
//! Each constructor takes a service and a function of it. The function takes and returns decoded messages.

use std::convert::Infallible;
use std::fmt;
use std::future::ready;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use http::{Request, Response};
use http_body::Frame;
use nodetracker_proto::SmallCodec;
use prost::Message;
use tonic::body::Body;
use tonic::codec::Codec;
use tonic::server::Grpc;
use tonic::{Status, Streaming};
use tower_service::Service;

use crate::grpc::frame;
use crate::grpc::request::{RequestBody, receive};
use crate::grpc::send_budget::SendBudget;

/// Decodes a message and returns the encoded reply, with its prefix.
pub(crate) type ImmediateHandler = dyn Fn(&[u8]) -> Result<Bytes, Status> + Send + Sync;

/// Decodes a message and returns the encoded reply, with its prefix, for which it may have to wait.
pub(crate) type DeferredHandler = dyn Fn(Bytes) -> BoxedReply + Send + Sync;

/// An encoded reply that may have to wait.
pub(crate) type BoxedReply = Pin<Box<dyn Future<Output = Result<Bytes, Status>> + Send>>;

/// Receives a request of up to so many bytes, and returns the response.
pub(crate) type StreamingHandler = dyn Fn(Request<RequestBody>, usize, &SendBudget) -> BoxedResponse + Send + Sync;

/// A response that may have to wait.
pub(crate) type BoxedResponse = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

/// How the router calls a method.
pub(crate) enum Handler {
    /// The method never waits, so it can take the [fast path](crate::grpc::unary).
    Immediate(Arc<ImmediateHandler>),
    /// The method is unary, and may wait.
    Deferred(Arc<DeferredHandler>),
    /// The method reads its request itself.
    Streaming(Arc<StreamingHandler>),
}

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Handler::Immediate(_) => "Immediate",
            Handler::Deferred(_) => "Deferred",
            Handler::Streaming(_) => "Streaming",
        })
    }
}

/// A unary method that never waits.
pub(crate) fn immediate<S, Q, R, F>(service: &Arc<S>, method: F) -> Handler
where
    S: Send + Sync + 'static,
    Q: Message + Default,
    R: Message,
    F: Fn(&S, Q) -> Result<R, Status> + Send + Sync + 'static,
{
    immediate_encoded(service, move |service, request| {
        Ok(frame::encode(&method(service, request)?))
    })
}

/// A unary method that never waits, and encodes its reply itself, with the prefix.
pub(crate) fn immediate_encoded<S, Q, F>(service: &Arc<S>, method: F) -> Handler
where
    S: Send + Sync + 'static,
    Q: Message + Default,
    F: Fn(&S, Q) -> Result<Bytes, Status> + Send + Sync + 'static,
{
    let service = Arc::clone(service);
    Handler::Immediate(Arc::new(move |message| method(&service, frame::decode(message)?)))
}

/// A unary method that may wait.
pub(crate) fn deferred<S, Q, R, F, Fut>(service: &Arc<S>, method: F) -> Handler
where
    S: Send + Sync + 'static,
    Q: Message + Default + 'static,
    R: Message + 'static,
    F: Fn(Arc<S>, Q) -> Fut + Copy + Send + Sync + 'static,
    Fut: Future<Output = Result<R, Status>> + Send,
{
    let service = Arc::clone(service);
    Handler::Deferred(Arc::new(move |message| {
        let service = Arc::clone(&service);
        Box::pin(async move {
            let request = frame::decode(&message)?;
            Ok(frame::encode(&method(service, request).await?))
        })
    }))
}

/// A method with a stream of requests and a stream of replies.
pub(crate) fn bidirectional<S, Q, R, F, St>(service: &Arc<S>, method: F) -> Handler
where
    S: Send + Sync + 'static,
    Q: Message + Default + 'static,
    R: Message + 'static,
    F: Fn(&S, Streaming<Q>) -> St + Copy + Send + Sync + 'static,
    St: Stream<Item = Result<R, Status>> + Send + 'static,
{
    let service = Arc::clone(service);
    Handler::Streaming(Arc::new(move |request, max_request, _| {
        let service = Arc::clone(&service);
        let call = ServiceFn(move |request: tonic::Request<Streaming<Q>>| {
            ready(Ok(tonic::Response::new(method(&service, request.into_inner()))))
        });
        Box::pin(async move { grpc(max_request).streaming(call, request).await })
    }))
}

/// A method with one request and a stream of replies, which it encodes itself, with their prefixes.
///
/// Replies that are encoded once can be sent on many streams, as the same bytes.
pub(crate) fn encoded_stream<S, Q, F, St>(service: &Arc<S>, method: F) -> Handler
where
    S: Send + Sync + 'static,
    Q: Message + Default + 'static,
    F: Fn(Arc<S>, Q, SendBudget) -> Result<St, Status> + Copy + Send + Sync + 'static,
    St: Stream<Item = Bytes> + Send + 'static,
{
    let service = Arc::clone(service);
    Handler::Streaming(Arc::new(move |request, max_request, budget| {
        let (service, budget) = (Arc::clone(&service), budget.clone());
        Box::pin(async move {
            let decoder = SmallCodec::<(), Q>::default().decoder();
            let replies = receive(decoder, request, max_request)
                .await
                .and_then(|request| method(service, request, budget));
            match replies {
                Ok(replies) => frame::head().map(|()| Body::new(EncodedBody(Box::pin(replies)))),
                Err(status) => status.into_http(),
            }
        })
    }))
}

/// A method of a service that another crate implements and that has its message limit already.
pub(crate) fn external<S>(service: S) -> Handler
where
    S: Service<Request<RequestBody>, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    Handler::Streaming(Arc::new(move |request, _, _| {
        let response = service.clone().call(request);
        Box::pin(async {
            match response.await {
                Ok(response) => response,
                Err(never) => match never {},
            }
        })
    }))
}

fn grpc<Q, R>(max_request: usize) -> Grpc<SmallCodec<R, Q>>
where
    Q: Message + Default + 'static,
    R: Message + 'static,
{
    Grpc::new(SmallCodec::default()).max_decoding_message_size(max_request)
}

/// A function in the form in which [`Grpc`] takes methods.
struct ServiceFn<F>(F);

impl<F, Q, R, Fut> Service<tonic::Request<Q>> for ServiceFn<F>
where
    F: Fn(tonic::Request<Q>) -> Fut,
    Fut: Future<Output = Result<tonic::Response<R>, Status>>,
{
    type Response = tonic::Response<R>;
    type Error = Status;
    type Future = Fut;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: tonic::Request<Q>) -> Fut {
        (self.0)(request)
    }
}

/// A body of encoded messages.
struct EncodedBody<St>(Pin<Box<St>>);

impl<St: Stream<Item = Bytes>> http_body::Body for EncodedBody<St> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.0
            .as_mut()
            .poll_next(cx)
            .map(|message| message.map(|message| Ok(Frame::data(message))))
    }
}
