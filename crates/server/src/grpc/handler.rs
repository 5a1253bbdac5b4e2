//! Handlers: functions of services, in the forms that the router calls.
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
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use nodetracker_proto::{Raw, RawRequestCodec};
use prost::Message;
use tokio::sync::Semaphore;
use tonic::body::Body;
use tonic::server::Grpc;
use tonic::{Status, Streaming};
use tower_service::Service;

use crate::auth::{Caller, UncheckedWrite};
use crate::connection_counters::ConnectionCounters;
use crate::grpc::charge_body::charge_response;
use crate::grpc::frame;
use crate::grpc::request::{RequestBody, receive};
use crate::grpc::router::ConnectionRouter;
use crate::grpc::send_budget::{Reservation, SendBudget};
use crate::grpc::turn_body::response_in_turns;
use crate::limits::{BYTES_PER_WORK, CALL_WORK, NODE_WORK};
use crate::turns::Turns;

/// Decodes a message of a caller and returns the encoded reply, with its prefix.
pub(crate) type ImmediateHandler = dyn Fn(&[u8], &Caller) -> Result<Bytes, Status> + Send + Sync;

/// As [`ImmediateHandler`], for a method that may wait and may have a large reply. The reply is charged to its
/// reservation.
pub(crate) type UnaryHandler = dyn Fn(Bytes, CallContext) -> BoxedReply + Send + Sync;

/// Receives a request with messages of up to this many bytes, and returns the response.
pub(crate) type StreamingHandler =
    dyn Fn(Request<RequestBody>, usize, &ConnectionRouter) -> BoxedResponse + Send + Sync;

/// An encoded reply that may have to wait.
pub(crate) type BoxedReply = Pin<Box<dyn Future<Output = Result<Bytes, Status>> + Send>>;

/// A response that may have to wait.
pub(crate) type BoxedResponse = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

/// How the router calls a method.
pub(crate) enum Handler {
    /// A unary method with small replies that never waits, so it can take the [fast path](crate::grpc::unary).
    Immediate(Arc<ImmediateHandler>),
    /// A unary method that does much work, or has large replies.
    Unary(Arc<UnaryHandler>),
    /// A method that reads its requests itself.
    Streaming(Arc<StreamingHandler>),
}

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Handler::Immediate(_) => "Immediate",
            Handler::Unary(_) => "Unary",
            Handler::Streaming(_) => "Streaming",
        })
    }
}

/// A handler of a method that writes routes of a proxy: the handler checks that the caller may write for the proxy.
#[derive(Debug)]
pub(crate) struct WriteHandler(Handler);

impl From<WriteHandler> for Handler {
    fn from(handler: WriteHandler) -> Self {
        handler.0
    }
}

/// What a unary method gets besides its request.
#[derive(Debug)]
pub(crate) struct CallContext {
    pub(crate) caller: Arc<Caller>,
    /// A method takes a turn for each part of its work.
    pub(crate) turns: Turns,
    /// The reservation for the reply. A method charges the reply as the reply grows, or at the end.
    pub(crate) reply: Reservation,
}

/// What a method with a stream of requests gets besides these.
#[derive(Debug, Clone)]
pub(crate) struct RequestsContext {
    pub(crate) caller: Arc<Caller>,
    /// A method takes a turn for each request.
    pub(crate) turns: Turns,
    /// The counters of the connection's worker.
    pub(crate) counters: Arc<ConnectionCounters>,
}

/// What a method with a stream of replies gets besides its request.
#[derive(Debug, Clone)]
pub(crate) struct StreamContext {
    /// A method takes a turn for each message that it builds.
    pub(crate) turns: Turns,
    /// The budget to which the replies are charged.
    pub(crate) budget: SendBudget,
    /// A permit for each watch that the connection may still begin.
    pub(crate) watches: Arc<Semaphore>,
}

/// A unary method that never waits.
pub(crate) fn immediate<S, Q, R, F>(service: &Arc<S>, method: F) -> Handler
where
    S: Send + Sync + 'static,
    Q: Message + Default,
    R: Message,
    F: Fn(&S, Q) -> Result<R, Status> + Send + Sync + 'static,
{
    let service = Arc::clone(service);
    Handler::Immediate(Arc::new(move |message, _| {
        Ok(frame::encode(&method(&service, frame::decode(message)?)?))
    }))
}

/// As [`immediate`], for a method that writes routes of a proxy.
pub(crate) fn immediate_write<S, Q, R, F>(service: &Arc<S>, method: F) -> WriteHandler
where
    S: Send + Sync + 'static,
    Q: Message + Default,
    R: Message,
    F: Fn(&S, UncheckedWrite<'_, Q>) -> Result<R, Status> + Send + Sync + 'static,
{
    let service = Arc::clone(service);
    WriteHandler(Handler::Immediate(Arc::new(move |message, caller| {
        let request = UncheckedWrite::new(frame::decode(message)?, caller);
        Ok(frame::encode(&method(&service, request)?))
    })))
}

/// A unary method that may wait.
pub(crate) fn unary<S, Q, R, F>(service: &Arc<S>, method: F) -> Handler
where
    S: Send + Sync + 'static,
    Q: Message + Default + 'static,
    R: Message + 'static,
    F: for<'a> AsyncUnary<'a, S, Q, R>,
{
    let service = Arc::clone(service);
    Handler::Unary(Arc::new(move |message, mut context| {
        let service = Arc::clone(&service);
        Box::pin(async move {
            let reply = method.call(&service, frame::decode(&message)?, &mut context).await?;
            context.reply.grow_to(reply.encoded_len())?;
            Ok(context.reply.charge(frame::encode(&reply))?)
        })
    }))
}

/// As [`unary`], for a method that writes routes of a proxy.
pub(crate) fn unary_write<S, Q, R, F>(service: &Arc<S>, method: F) -> WriteHandler
where
    S: Send + Sync + 'static,
    Q: Message + Default + 'static,
    R: Message + 'static,
    F: for<'a> AsyncUnary<'a, S, UncheckedWrite<'a, Q>, R>,
{
    let service = Arc::clone(service);
    WriteHandler(Handler::Unary(Arc::new(move |message, mut context| {
        let service = Arc::clone(&service);
        Box::pin(async move {
            let caller = Arc::clone(&context.caller);
            let request = UncheckedWrite::new(frame::decode(&message)?, &caller);
            let reply = method.call(&service, request, &mut context).await?;
            context.reply.grow_to(reply.encoded_len())?;
            Ok(context.reply.charge(frame::encode(&reply))?)
        })
    })))
}

/// A unary method that may wait, and encodes its reply itself, with the prefix.
pub(crate) fn unary_encoded<S, Q, F>(service: &Arc<S>, method: F) -> Handler
where
    S: Send + Sync + 'static,
    Q: Message + Default + 'static,
    F: for<'a> AsyncUnary<'a, S, Q, Bytes>,
{
    let service = Arc::clone(service);
    Handler::Unary(Arc::new(move |message, mut context| {
        let service = Arc::clone(&service);
        Box::pin(async move {
            let reply = method.call(&service, frame::decode(&message)?, &mut context).await?;
            Ok(context.reply.charge(reply)?)
        })
    }))
}

/// An async function of a service, its request and its context.
pub(crate) trait AsyncUnary<'a, S: 'a, Q, R>: Copy + Send + Sync + 'static {
    type Future: Future<Output = Result<R, Status>> + Send + 'a;

    fn call(&self, service: &'a S, request: Q, context: &'a mut CallContext) -> Self::Future;
}

impl<'a, S: 'a, Q, R, F, Fut> AsyncUnary<'a, S, Q, R> for F
where
    F: Fn(&'a S, Q, &'a mut CallContext) -> Fut + Copy + Send + Sync + 'static,
    Fut: Future<Output = Result<R, Status>> + Send + 'a,
{
    type Future = Fut;

    fn call(&self, service: &'a S, request: Q, context: &'a mut CallContext) -> Fut {
        self(service, request, context)
    }
}

/// A method with a stream of encoded requests, which write routes of a proxy, and a stream of replies. The method
/// decodes each request in a turn, and checks that its caller may write for the proxy.
pub(crate) fn bidirectional<S, R, F, St>(service: &Arc<S>, method: F) -> WriteHandler
where
    S: Send + Sync + 'static,
    R: Message + 'static,
    F: Fn(&S, Streaming<Bytes>, RequestsContext) -> St + Copy + Send + Sync + 'static,
    St: Stream<Item = Result<R, Status>> + Send + 'static,
{
    let service = Arc::clone(service);
    WriteHandler(Handler::Streaming(Arc::new(move |request, max_request, connection| {
        let service = Arc::clone(&service);
        let context = RequestsContext {
            caller: Arc::clone(connection.caller()),
            turns: connection.turns().clone(),
            counters: Arc::clone(connection.connection_counters()),
        };
        let budget = connection.budget().clone();
        let call = ServiceFn(move |request: tonic::Request<Streaming<Bytes>>| {
            let replies = method(&service, request.into_inner(), context.clone());
            ready(Ok(tonic::Response::new(replies)))
        });
        Box::pin(async move {
            let mut grpc = Grpc::new(RawRequestCodec::default()).max_decoding_message_size(max_request);
            charge_response(grpc.streaming(call, request).await, budget)
        })
    })))
}

/// A method with one request and a stream of replies, which it encodes itself, with their prefixes. The call takes a
/// turn before it decodes the request.
///
/// Replies that are encoded once can be sent on many streams, as the same bytes.
pub(crate) fn encoded_stream<S, Q, F, St>(service: &Arc<S>, method: F) -> Handler
where
    S: Send + Sync + 'static,
    Q: Message + Default + 'static,
    F: Fn(Arc<S>, Q, StreamContext) -> Result<St, Status> + Copy + Send + Sync + 'static,
    St: Stream<Item = Result<Bytes, Status>> + Send + 'static,
{
    let service = Arc::clone(service);
    Handler::Streaming(Arc::new(move |request, max_request, connection| {
        let service = Arc::clone(&service);
        let context = StreamContext {
            turns: connection.turns().clone(),
            budget: connection.budget().clone(),
            watches: Arc::clone(connection.watches()),
        };
        Box::pin(async move {
            let replies = async {
                let request = receive(Raw, request.into_body(), max_request).await?;
                // The body has given its charge back.
                let _charge = context.budget.memory().charge(request.len())?;
                context.turns.take(decoding_work(&request)).await;
                method(service, frame::decode(&request)?, context)
            };
            match replies.await {
                Ok(replies) => frame::head().map(|()| Body::new(EncodedBody(Box::pin(replies)))),
                Err(status) => status.into_http(),
            }
        })
    }))
}

/// Returns the work to decode a request that may consist of nodes. In a request with the most nodes, each node takes at
/// least as many bytes as a UUID.
fn decoding_work(request: &[u8]) -> usize {
    const UUID: usize = 16;
    CALL_WORK + request.len() / BYTES_PER_WORK + request.len() / UUID * NODE_WORK
}

/// A method of a service that another crate implements and that has its message limit already.
///
/// The call takes a turn, and so does each part of its response. The parts are charged to the memory budget.
pub(crate) fn external<S>(service: S) -> Handler
where
    S: Service<Request<RequestBody>, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    Handler::Streaming(Arc::new(move |request, _, connection| {
        let mut service = service.clone();
        let (turns, budget) = (connection.turns().clone(), connection.budget().clone());
        Box::pin(async move {
            turns.take(CALL_WORK).await;
            match service.call(request).await {
                Ok(response) => charge_response(response_in_turns(response, turns), budget),
                Err(never) => match never {},
            }
        })
    }))
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

/// Returns the trailers of a response that ends with an error.
fn trailers(status: &Status) -> Result<HeaderMap, Status> {
    let mut trailers = HeaderMap::new();
    status.add_header(&mut trailers)?;
    Ok(trailers)
}

/// A body of encoded messages.
struct EncodedBody<St>(Pin<Box<St>>);

impl<St: Stream<Item = Result<Bytes, Status>>> http_body::Body for EncodedBody<St> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.0.as_mut().poll_next(cx).map(|message| {
            message.map(|message| match message {
                Ok(message) => Ok(Frame::data(message)),
                // Trailers end the response.
                Err(status) => trailers(&status).map(Frame::trailers),
            })
        })
    }
}
