//! Requests that tonic reads: their body, and the one message of a unary request.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http_body::Frame;
use tonic::codec::Decoder;
use tonic::{Status, Streaming};

use crate::grpc::frame::PREFIX;
use crate::grpc::status::correct_status;
use crate::grpc::unary::{FirstFrame, first_frame};
use crate::grpc::unread::Unread;
use crate::memory::Charge;

/// The errors of a body: HTTP/2's, or a [`Status`].
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of a request. The caller may have read its first frame already.
///
/// The reader collects one message at a time. When the prefix of a message arrives, the body charges the message's
/// length to the memory of the connection. For later messages, the body charges only the excess over the longest
/// message so far. The body counts the frames that it takes from h2.
#[derive(Debug)]
pub(crate) struct RequestBody {
    /// The frame that was read and not used.
    first: Option<Bytes>,
    stream: RecvStream,
    unread: Arc<Unread>,
    /// Whether all DATA of the stream was read.
    is_read: bool,
    charge: Charge,
    /// The bytes that are charged for a message.
    charged: usize,
    /// The most bytes of a message. The reader refuses longer messages.
    max_message: usize,
    lengths: Lengths,
}

/// Finds the lengths of the messages in a stream of bytes.
#[derive(Debug, Default)]
struct Lengths {
    prefix: [u8; PREFIX],
    /// How many bytes of the next prefix have arrived.
    prefix_len: usize,
    /// The bytes of the current message that have not arrived.
    left: usize,
}

impl Lengths {
    /// Returns the length of the longest message whose prefix ends in `data`.
    fn longest(&mut self, mut data: &[u8]) -> usize {
        let mut longest = 0;
        while !data.is_empty() {
            let skipped = data.len().min(self.left);
            self.left -= skipped;
            data = &data[skipped..];
            let taken = data.len().min(PREFIX - self.prefix_len);
            self.prefix[self.prefix_len..][..taken].copy_from_slice(&data[..taken]);
            self.prefix_len += taken;
            data = &data[taken..];
            if self.prefix_len == PREFIX {
                let [_, len @ ..] = self.prefix;
                self.left = u32::from_be_bytes(len) as usize;
                self.prefix_len = 0;
                longest = longest.max(self.left);
            }
        }
        longest
    }
}

impl RequestBody {
    /// Returns a body that yields the frame `first` before the rest of its stream. `charge` is held to the end of the
    /// body, and grows by the length of the longest message, up to `max_message`.
    pub(crate) fn new(
        first: Option<Bytes>,
        mut stream: RecvStream,
        charge: Charge,
        max_message: usize,
        unread: Arc<Unread>,
    ) -> Self {
        unread.add_reader(&mut stream);
        Self {
            first,
            stream,
            unread,
            is_read: false,
            charge,
            charged: 0,
            max_message,
            lengths: Lengths::default(),
        }
    }

    /// Returns the message, without its prefix, if the body is one frame with one message, and has arrived. The caller
    /// charges the message.
    pub(crate) fn whole_message(&mut self) -> Option<Bytes> {
        if self.first.is_some() {
            return None;
        }
        match first_frame(&mut self.stream) {
            FirstFrame::Message(message) => {
                self.unread.take(PREFIX + message.len());
                self.is_read = true;
                // As in `poll_frame`. Otherwise the calls that wait would use up the connection's window.
                let _ = self.stream.flow_control().release_capacity(PREFIX + message.len());
                Some(message)
            }
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
                self.unread.take(data.len());
                let longest = self.lengths.longest(&data).min(self.max_message);
                if longest > self.charged {
                    let more = longest - self.charged;
                    if let Err(full) = self.charge.grow(more) {
                        return Poll::Ready(Some(Err(Status::from(full).into())));
                    }
                    self.charged = longest;
                }
                // The caller takes the data, so the client may send as much again. An error: the stream is gone.
                let _ = self.stream.flow_control().release_capacity(data.len());
                Some(Ok(Frame::data(data)))
            }
            // A client that cancels its call ends the body.
            Some(Err(error)) if matches!(error.reason(), Some(Reason::NO_ERROR | Reason::CANCEL)) => None,
            Some(Err(error)) => Some(Err(error.into())),
            None => {
                self.is_read = true;
                ready!(self.stream.poll_trailers(cx))?.map(|trailers| Ok(Frame::trailers(trailers)))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.stream.is_end_stream()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let Some(first) = &self.first {
            self.unread.take(first.len());
        }
        if !self.is_read {
            self.unread.discard(&mut self.stream);
        }
        self.unread.remove_reader(&self.stream);
    }
}

/// Receives the one message of a request.
pub(crate) async fn receive<M: Send + 'static>(
    decoder: impl Decoder<Item = M, Error = Status> + Send + 'static,
    body: RequestBody,
    max_size: usize,
) -> Result<M, Status> {
    let refusals = Arc::clone(body.charge.memory().refusals());
    let mut messages = Streaming::new_request(decoder, body, None, Some(max_size));
    let correct = |status| correct_status(status, &refusals);
    let message = messages.message().await.map_err(correct)?;
    // gRPC specifies UNIMPLEMENTED for a wrong number of messages.
    let message = message.ok_or_else(|| Status::unimplemented("the request has no message, the method takes one"))?;
    match messages.message().await.map_err(correct)? {
        None => Ok(message),
        Some(_) => Err(Status::unimplemented(
            "the request has several messages, the method takes one",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_found_however_the_bytes_are_cut() {
        let messages = [3, 0, 70_000, 5];
        let mut bytes = Vec::new();
        for len in messages {
            bytes.push(0);
            bytes.extend((len as u32).to_be_bytes());
            bytes.resize(bytes.len() + len, 7);
        }
        for size in [1, 2, 4, 5, 6, 7, 1000, bytes.len()] {
            let mut lengths = Lengths::default();
            let longest: Vec<_> = bytes.chunks(size).map(|chunk| lengths.longest(chunk)).collect();
            assert_eq!(longest.iter().max(), Some(&70_000), "{size}");
            if size <= PREFIX {
                let found: Vec<_> = longest.into_iter().filter(|&len| len > 0).collect();
                assert_eq!(found, [3, 70_000, 5], "{size}");
            }
            assert_eq!((lengths.left, lengths.prefix_len), (0, 0));
        }
    }
}
