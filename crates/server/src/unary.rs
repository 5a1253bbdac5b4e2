//! The short way of a unary call whose request came in one piece, as nearly every one does.
//!
//! HTTP/2 takes apart all that has come in before it hands over the first request of it, so the message is there when its
//! call begins, in one frame that ends the stream. It is decoded, handled and answered on the spot, with neither a future
//! nor a boxed body; of the answer's head and its trailers there is only one kind. Everything else takes the long way,
//! through tonic's generated service, which decides what becomes of it: a message in several frames or too late, one that
//! is compressed, or of the wrong length, or followed by trailers. What was read of the body already is put before the rest
//! of it then.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tonic::Status;
use tonic::body::Body;

use crate::limits;

/// A service whose methods all take one message, answer with one, and never wait.
pub(crate) trait Unary: Send + Sync {
    /// The names of its methods.
    fn methods(&self) -> &'static [&'static str];

    /// Calls one of them with an encoded message, and returns the answer, as [`call`] does.
    fn unary(&self, method: &'static str, message: &[u8]) -> Result<Bytes, Status>;
}

/// How the messages of a call are compressed.
const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");

/// What goes before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;

// So the size of a message that came in one frame needs no further check.
const _: () = assert!(limits::MAX_FRAME_SIZE as usize <= limits::MAX_MESSAGE_SIZE);

/// Decodes a message, handles it, and encodes the answer, with its prefix.
pub(crate) fn call<Q, A>(message: &[u8], handle: impl FnOnce(Q) -> Result<A, Status>) -> Result<Bytes, Status>
where
    Q: prost::Message + Default,
    A: prost::Message,
{
    // The code that gRPC has for it, as tonic.
    let request = Q::decode(message).map_err(|error| Status::internal(error.to_string()))?;
    Ok(with_prefix(&handle(request)?))
}

fn with_prefix(answer: &impl prost::Message) -> Bytes {
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
    /// It is answered.
    Short(Response<Answer>),
    /// It has to take the long way.
    Long(Box<Request<Arriving>>),
}

/// Answers a call the short way where that is possible.
pub(crate) fn answer(service: &dyn Unary, method: &'static str, mut request: Request<Incoming>) -> Way {
    // What is not there yet is polled for anew, by a task.
    let polled = Pin::new(request.body_mut()).poll_frame(&mut Context::from_waker(Waker::noop()));
    let Poll::Ready(read) = polled else {
        return Way::Long(Box::new(request.map(Arriving::new)));
    };
    if let Some(Ok(frame)) = &read
        && request.body().is_end_stream()
        && !request.headers().contains_key(ENCODING)
        && let Some(message) = frame.data_ref().and_then(|data| message_in(data))
    {
        return Way::Short(respond(service.unary(method, message)));
    }
    Way::Long(Box::new(request.map(|rest| Arriving { read, rest })))
}

/// The message that a frame consists of, if it does.
fn message_in(frame: &[u8]) -> Option<&[u8]> {
    match frame.split_first_chunk::<PREFIX>()? {
        ([0, len @ ..], message) if u32::from_be_bytes(*len) as usize == message.len() => Some(message),
        _ => None,
    }
}

/// A request's body.
#[derive(Debug)]
pub(crate) struct Arriving {
    /// What was read of it already.
    read: Option<Result<Frame<Bytes>, hyper::Error>>,
    rest: Incoming,
}

impl Arriving {
    /// A body of which nothing was read.
    pub(crate) fn new(rest: Incoming) -> Self {
        Self { read: None, rest }
    }
}

impl http_body::Body for Arriving {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.read.take() {
            Some(read) => Poll::Ready(Some(read)),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_none() && self.rest.is_end_stream()
    }
}

/// The body of an answer.
pub(crate) enum Answer {
    /// One message, with its prefix, and then the trailers of a call that went well.
    Message(Bytes),
    /// These trailers.
    Trailers,
    /// Nothing more.
    Sent,
    /// What tonic made.
    Other(Body),
}

fn respond(answer: Result<Bytes, Status>) -> Response<Answer> {
    match answer {
        Ok(message) => {
            let mut headers = HeaderMap::with_capacity(1);
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            let mut response = Response::new(Answer::Message(message));
            *response.headers_mut() = headers;
            response
        }
        Err(status) => status.into_http().map(Answer::Other),
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let (frame, next) = match &mut *self {
            Answer::Message(message) => (Frame::data(std::mem::take(message)), Answer::Trailers),
            Answer::Trailers => {
                let mut trailers = HeaderMap::with_capacity(1);
                trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
                (Frame::trailers(trailers), Answer::Sent)
            }
            Answer::Sent => return Poll::Ready(None),
            Answer::Other(body) => return Pin::new(body).poll_frame(cx),
        };
        *self = next;
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Answer::Message(_) | Answer::Trailers => false,
            Answer::Sent => true,
            Answer::Other(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            // A size would become a header, which nobody reads.
            Answer::Message(_) | Answer::Trailers | Answer::Sent => SizeHint::new(),
            Answer::Other(body) => body.size_hint(),
        }
    }
}
