//! Requests that tonic reads: their body, and the one message of a unary request.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::Request;
use http_body::Frame;
use tonic::codec::Decoder;
use tonic::{Status, Streaming};

/// The body of a request. The caller may have read its first frame already.
#[derive(Debug)]
pub(crate) struct RequestBody {
    /// The frame that was read and not used.
    first: Option<Bytes>,
    stream: RecvStream,
}

impl RequestBody {
    /// Returns the body of an unread stream.
    pub(crate) fn new(stream: RecvStream) -> Self {
        Self { first: None, stream }
    }

    /// Returns a body that yields `first` again before the rest of its stream.
    pub(crate) fn with_first(first: Bytes, stream: RecvStream) -> Self {
        Self {
            first: Some(first),
            stream,
        }
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let data = match self.first.take() {
            Some(first) => Some(Ok(first)),
            None => ready!(self.stream.poll_data(cx)),
        };
        Poll::Ready(match data {
            Some(Ok(data)) => {
                // The caller takes the data, so the client may send as much again. An error: the stream is gone.
                let _ = self.stream.flow_control().release_capacity(data.len());
                Some(Ok(Frame::data(data)))
            }
            // A client that cancels its call ends the body.
            Some(Err(error)) if matches!(error.reason(), Some(Reason::NO_ERROR | Reason::CANCEL)) => None,
            Some(Err(error)) => Some(Err(error)),
            None => ready!(self.stream.poll_trailers(cx))?.map(|trailers| Ok(Frame::trailers(trailers))),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.stream.is_end_stream()
    }
}

/// Receives the one message of a request.
pub(crate) async fn receive<M: Send + 'static>(
    decoder: impl Decoder<Item = M, Error = Status> + Send + 'static,
    request: Request<RequestBody>,
    max_size: usize,
) -> Result<M, Status> {
    let mut messages = Streaming::new_request(decoder, request.into_body(), None, Some(max_size));
    let message = messages.message().await?;
    // gRPC specifies UNIMPLEMENTED for a wrong number of messages.
    let message = message.ok_or_else(|| Status::unimplemented("the request has no message, the method takes one"))?;
    match messages.message().await? {
        None => Ok(message),
        Some(_) => Err(Status::unimplemented(
            "the request has several messages, the method takes one",
        )),
    }
}
