//! The fast path of unary calls, which nearly all of them take: the request came in one frame.
//!
//! HTTP/2 parses all the input before it hands over the first request, so the whole message is usually there when its call
//! begins. The fast path decodes, handles and replies on the spot, without a future or a boxed body.
//!
//! Every other request takes the slow path, on which tonic collects the message and rejects malformed requests:
//!
//! * the message spans several frames, or has not arrived;
//! * the message is marked as compressed, has a wrong length, or is followed by another message or by trailers;
//! * the reply may be large, and the [send budget](crate::grpc::send_budget) is used up.
//!
//! The slow path reads the frame that the fast path has read again.

use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::RecvStream;
use http::Request;
use tonic::Status;

use crate::grpc::frame;
use crate::grpc::handler::ImmediateHandler;
use crate::grpc::method::ReplyKind;
use crate::grpc::panics::catch;
use crate::grpc::request::RequestBody;
use crate::grpc::send_budget::SendBudget;

/// The outcome of the fast path.
pub(crate) enum FastPath {
    /// The call is complete; its reply is encoded.
    Replied(Result<Bytes, Status>),
    /// The call needs the slow path.
    NotTaken(Box<Request<RequestBody>>),
}

/// Tries to complete a call at once. If it does, adds the bytes of the request to `size`.
pub(crate) fn try_fast_path(
    handler: &ImmediateHandler,
    reply: ReplyKind,
    mut request: Request<RecvStream>,
    budget: &SendBudget,
    size: &mut usize,
) -> FastPath {
    // If the body has not fully arrived, a task polls it again, with a waker of its own.
    let polled = request.body_mut().poll_data(&mut Context::from_waker(Waker::noop()));
    let Poll::Ready(Some(Ok(frame))) = polled else {
        // An error is reported again on the next poll.
        return FastPath::NotTaken(Box::new(request.map(RequestBody::new)));
    };
    if request.body().is_end_stream()
        && let Some(message) = frame::whole_message(&frame)
        && let Some(replied) = call_within_budget(handler, reply, message, budget)
    {
        *size += frame.len();
        return FastPath::Replied(replied);
    }
    FastPath::NotTaken(Box::new(request.map(|stream| RequestBody::with_first(frame, stream))))
}

/// Calls a handler, unless its reply has to wait for the budget.
fn call_within_budget(
    handler: &ImmediateHandler,
    reply: ReplyKind,
    message: &[u8],
    budget: &SendBudget,
) -> Option<Result<Bytes, Status>> {
    if reply != ReplyKind::LargeUnary {
        return Some(catch(|| handler(message)).flatten());
    }
    let mut reservation = budget.try_reserve()?;
    Some(
        catch(|| handler(message))
            .flatten()
            .map(|reply| reservation.charge(reply)),
    )
}
