//! Unary calls, nearly all of which take the short way: their request came in one piece.
//!
//! HTTP/2 takes apart all that has come in before it hands over the first request of it, so the message is there when its
//! call begins, in one frame that ends the stream. It is decoded, handled and answered on the spot, with neither a future
//! nor a boxed body; of the answer's head and its trailers there is only one kind. Everything else takes the long way,
//! where tonic collects the message and decides what becomes of what is not one: a message in several frames or too late,
//! one that is compressed, or of the wrong length, or followed by trailers; and one whose answer has to wait for
//! [room](crate::grpc::send_budget). What was read of the body already is put before the rest of it then.

use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::{BufMut, Bytes, BytesMut};
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use http_body::Frame;
use tonic::codec::Decoder;
use tonic::metadata::MetadataValue;
use tonic::{Status, Streaming};

use crate::grpc::send_budget::SendBudget;
use crate::limits::{MAX_FRAME_SIZE, MAX_MESSAGE_SIZE};

/// A service whose methods all take one message, answer with one, and never wait.
pub(crate) trait Unary: Send + Sync {
    /// The service's full name.
    fn name(&self) -> &'static str;

    /// The names of its methods.
    fn methods(&self) -> &'static [&'static str];

    /// The largest message that it takes, in bytes; no smaller than a frame may be.
    fn max_message_size(&self) -> usize {
        MAX_MESSAGE_SIZE
    }

    /// Whether answers of this method can be large.
    fn has_large_answers(&self, _method: &'static str) -> bool {
        false
    }

    /// Calls one of its methods with an encoded message, and returns the answer, as [`call`] does.
    fn unary(&self, method: &'static str, message: &[u8]) -> Result<Bytes, Status>;
}

/// How the messages of a call are compressed.
const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");

/// What goes before each message: whether it is compressed, and its length.
pub(crate) const PREFIX: usize = 5;

// So the size of a message that came in one frame needs no further check.
const _: () = assert!(MAX_FRAME_SIZE as usize <= MAX_MESSAGE_SIZE);

/// Decodes a message, handles it, and encodes the answer, with its prefix.
pub(crate) fn call<Q, A>(message: &[u8], handle: impl FnOnce(Q) -> Result<A, Status>) -> Result<Bytes, Status>
where
    Q: prost::Message + Default,
    A: prost::Message,
{
    Ok(with_prefix(&handle(decode(message)?)?))
}

/// Decodes a message.
pub(crate) fn decode<Q: prost::Message + Default>(message: &[u8]) -> Result<Q, Status> {
    // The code that gRPC has for it, as tonic.
    Q::decode(message).map_err(|error| Status::internal(error.to_string()))
}

/// Encodes a message, with its prefix.
pub(crate) fn with_prefix(answer: &impl prost::Message) -> Bytes {
    let len = answer.encoded_len();
    if len == 0 {
        return Bytes::from_static(&[0; PREFIX]);
    }
    let mut bytes = BytesMut::with_capacity(PREFIX + len);
    bytes.put_u8(0);
    // Answers are limited to much less.
    bytes.put_u32(len as u32);
    answer.encode_raw(&mut bytes);
    bytes.freeze()
}

/// What becomes of a call.
pub(crate) enum Way {
    /// It is answered, with an encoded message.
    Short(Result<Bytes, Status>),
    /// It has to take the long way.
    Long(Box<Request<Arriving>>),
}

/// Answers a call the short way where that is possible, and adds the bytes of its message to `size` then.
pub(crate) fn answer(
    service: &dyn Unary,
    method: &'static str,
    mut request: Request<RecvStream>,
    budget: &SendBudget,
    size: &mut usize,
) -> Way {
    // What is not there yet is polled for anew, by a task.
    let polled = request.body_mut().poll_data(&mut Context::from_waker(Waker::noop()));
    let Poll::Ready(Some(Ok(frame))) = polled else {
        // An error is there for whoever looks again.
        return Way::Long(Box::new(request.map(Arriving::new)));
    };
    if request.body().is_end_stream()
        && !request.headers().contains_key(ENCODING)
        && let Some(message) = message_in(&frame)
        && let Some(answer) = call_now(service, method, message, budget)
    {
        *size += frame.len();
        return Way::Short(answer);
    }
    Way::Long(Box::new(request.map(|rest| Arriving {
        read: Some(frame),
        rest,
    })))
}

/// Calls a method, unless there is no room for its answer.
fn call_now(
    service: &dyn Unary,
    method: &'static str,
    message: &[u8],
    budget: &SendBudget,
) -> Option<Result<Bytes, Status>> {
    if !service.has_large_answers(method) {
        return Some(service.unary(method, message));
    }
    let mut reservation = budget.try_reserve()?;
    Some(service.unary(method, message).map(|answer| reservation.charge(answer)))
}

/// Calls a method as soon as there is room for its answer.
pub(crate) async fn call_later(
    service: &dyn Unary,
    method: &'static str,
    message: &[u8],
    budget: &SendBudget,
) -> Result<Bytes, Status> {
    if !service.has_large_answers(method) {
        return service.unary(method, message);
    }
    let mut reservation = budget.reserve().await;
    service.unary(method, message).map(|answer| reservation.charge(answer))
}

/// Collects the one message of a request.
pub(crate) async fn message<M: Send + 'static>(
    decoder: impl Decoder<Item = M, Error = Status> + Send + 'static,
    request: Request<Arriving>,
    max_size: usize,
) -> Result<M, Status> {
    if request
        .headers()
        .get(ENCODING)
        .is_some_and(|encoding| encoding != "identity")
    {
        let mut status = Status::unimplemented("requests cannot be compressed here");
        let accepted = MetadataValue::from_static("identity");
        status.metadata_mut().insert("grpc-accept-encoding", accepted);
        return Err(status);
    }
    let mut messages = Streaming::new_request(decoder, request.into_body(), None, Some(max_size));
    let message = messages.message().await?;
    let message = message.ok_or_else(|| Status::internal("Missing request message."))?;
    messages.trailers().await?;
    Ok(message)
}

/// The message that a frame consists of, if it does.
fn message_in(frame: &[u8]) -> Option<&[u8]> {
    match frame.split_first_chunk::<PREFIX>()? {
        ([0, len @ ..], message) if u32::from_be_bytes(*len) as usize == message.len() => Some(message),
        _ => None,
    }
}

/// The head of the answer to a call that went well.
pub(crate) fn head() -> Response<()> {
    let mut headers = HeaderMap::with_capacity(1);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let mut response = Response::new(());
    *response.headers_mut() = headers;
    response
}

/// The end of the answer to a call that went well.
pub(crate) fn trailers() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
    trailers
}

/// A request's body.
#[derive(Debug)]
pub(crate) struct Arriving {
    /// What was read of it already.
    read: Option<Bytes>,
    rest: RecvStream,
}

impl Arriving {
    /// A body of which nothing was read.
    pub(crate) fn new(rest: RecvStream) -> Self {
        Self { read: None, rest }
    }
}

impl http_body::Body for Arriving {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let data = match self.read.take() {
            Some(read) => Some(Ok(read)),
            None => ready!(self.rest.poll_data(cx)),
        };
        Poll::Ready(match data {
            Some(Ok(data)) => {
                // Whoever polls takes it, so the client may send as much again. The stream can be gone by now.
                let _ = self.rest.flow_control().release_capacity(data.len());
                Some(Ok(Frame::data(data)))
            }
            // The client has lost interest, which is an end as any other.
            Some(Err(error)) if matches!(error.reason(), Some(Reason::NO_ERROR | Reason::CANCEL)) => None,
            Some(Err(error)) => Some(Err(error)),
            None => ready!(self.rest.poll_trailers(cx))?.map(|trailers| Ok(Frame::trailers(trailers))),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_none() && self.rest.is_end_stream()
    }
}
