//! Requests that tonic reads: their body, and the one message of a unary request.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http_body::Frame;
use tonic::codec::Decoder;
use tonic::{Status, Streaming};

use crate::grpc::unary::{FirstFrame, first_frame};
use crate::memory::Charge;

/// The errors of a body: HTTP/2's, or a [`Status`].
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of a request. The caller may have read its first frame already.
///
/// The bytes that are read are charged to the memory of the connection, up to the size of the largest message: the reader
/// holds no more at a time.
#[derive(Debug)]
pub(crate) struct RequestBody {
    /// The frame that was read and not used.
    first: Option<Bytes>,
    stream: RecvStream,
    charge: Charge,
    /// The most bytes that are charged.
    most: usize,
}

impl RequestBody {
    /// Returns a body that yields the frame `first` before the rest of its stream. `charge` is held to the end of the body,
    /// and grows by up to `max_message` bytes.
    pub(crate) fn new(first: Option<Bytes>, stream: RecvStream, charge: Charge, max_message: usize) -> Self {
        let most = charge.bytes() + max_message;
        Self {
            first,
            stream,
            charge,
            most,
        }
    }

    /// Returns the message, without its prefix, if the body is one frame with one message, and has arrived.
    pub(crate) fn whole_message(&mut self) -> Option<Bytes> {
        if self.first.is_some() {
            return None;
        }
        match first_frame(&mut self.stream) {
            FirstFrame::Message(message) => Some(message),
            FirstFrame::Other(frame) => {
                self.first = frame;
                None
            }
        }
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let data = match self.first.take() {
            Some(first) => Some(Ok(first)),
            None => ready!(self.stream.poll_data(cx)),
        };
        Poll::Ready(match data {
            Some(Ok(data)) => {
                let more = data.len().min(self.most - self.charge.bytes());
                if let Err(full) = self.charge.grow(more) {
                    return Poll::Ready(Some(Err(Status::from(full).into())));
                }
                // The caller takes the data, so the client may send as much again. An error: the stream is gone.
                let _ = self.stream.flow_control().release_capacity(data.len());
                Some(Ok(Frame::data(data)))
            }
            // A client that cancels its call ends the body.
            Some(Err(error)) if matches!(error.reason(), Some(Reason::NO_ERROR | Reason::CANCEL)) => None,
            Some(Err(error)) => Some(Err(error.into())),
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
    body: RequestBody,
    max_size: usize,
) -> Result<M, Status> {
    let mut messages = Streaming::new_request(decoder, body, None, Some(max_size));
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
