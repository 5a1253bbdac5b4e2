//! The fast path of unary calls, which nearly all of them take: the request came in one frame.
//!
//! HTTP/2 parses all the input before it hands over the first request, so the whole message is usually there when its call
//! begins. The fast path decodes, handles and replies on the spot, without a future or a boxed body.
//!
//! Every other request takes the slow path, on which tonic collects the message and rejects malformed requests:
//!
//! * the message spans several frames, or has not arrived;
//! * the message is marked as compressed, has a wrong length, or is followed by another message or by trailers.
//!
//! The slow path reads the frame that the fast path has read again.

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

/// Reads the first frame of a body, if it is there.
pub(crate) fn first_frame(body: &mut RecvStream) -> FirstFrame {
    // If the body has not fully arrived, a task polls it again, with a waker of its own.
    let polled = body.poll_data(&mut Context::from_waker(Waker::noop()));
    let Poll::Ready(Some(Ok(mut frame))) = polled else {
        // An error is reported again on the next poll.
        return FirstFrame::Other(None);
    };
    if body.is_end_stream() && frame::whole_message(&frame).is_some() {
        frame.advance(PREFIX);
        return FirstFrame::Message(frame);
    }
    FirstFrame::Other(Some(frame))
}
