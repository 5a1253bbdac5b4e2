//! The fast path of unary methods with an immediate handler: nearly all their requests come in one frame.
//!
//! The server replies after h2 has parsed all the input, so the whole message has usually arrived when its call begins.
//! The fast path decodes, handles and replies at once, without a future or a boxed body.
//!
//! Every other request of these methods takes the slow path: tonic collects the message and rejects malformed requests.
//! A request takes the slow path if:
//!
//! * the message spans several frames with bytes, or has not arrived;
//! * the message is marked as compressed, has a wrong length, or is followed by another message or by trailers.
//!
//! The slow path gets the frame that the fast path has read.

use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};
use h2::RecvStream;

use crate::grpc::frame::{self, PREFIX};

/// What has arrived of a request's body.
pub(crate) enum FirstFrame {
    /// The whole message, without its prefix.
    Message(Bytes),
    /// A frame that is no message, or is not the last.
    Other(Option<Bytes>),
}

/// Reads the first frame of a body, if the frame has arrived.
pub(crate) fn first_frame(body: &mut RecvStream) -> FirstFrame {
    // If the body has not fully arrived, a task polls it again, with a waker of its own.
    let polled = body.poll_data(&mut Context::from_waker(Waker::noop()));
    let Poll::Ready(Some(Ok(mut frame))) = polled else {
        // An error is reported again on the next poll.
        return FirstFrame::Other(None);
    };
    if frame::whole_message(&frame).is_some() && (body.is_end_stream() || ends_with_empty_frame(body, frame.len())) {
        frame.advance(PREFIX);
        return FirstFrame::Message(frame);
    }
    FirstFrame::Other(Some(frame))
}

/// Reports whether a body has ended with an empty frame, after one frame of `read` bytes. Some clients end each request
/// with an empty frame.
fn ends_with_empty_frame(body: &mut RecvStream, read: usize) -> bool {
    // Otherwise the next frame may have bytes, which the slow path has to read.
    body.flow_control().used_capacity() == read
        && match body.poll_data(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(Ok(frame))) => frame.is_empty() && body.is_end_stream(),
            // An error is reported again on the next poll, and trailers are kept.
            _ => false,
        }
}
