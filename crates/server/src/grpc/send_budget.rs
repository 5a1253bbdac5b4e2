//! The send budget: bytes of large replies that one connection may hold for a client that does not read.
//!
//! HTTP/2's windows bound the bytes on the wire, not the replies that wait in the server. A reply is built whole, and a
//! client can make as many calls as it may have streams and read none of the replies. So a call with a large reply begins
//! once the budget covers the largest possible reply. When the reply is built, the call returns the excess. The rest
//! returns when HTTP/2 has written or dropped the bytes. Calls that exceed the budget wait in order; a client that reads
//! its replies never notices.
//!
//! Replies that are always small need no budget: the number of streams bounds them. A watch charges its messages in full,
//! although watches share the bytes of most messages.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Response;
use http_body::Frame;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tonic::body::Body;

use crate::limits::{MAX_REPLY_SIZE, SEND_BUDGET, SMALL_REPLY_SIZE};

// Otherwise no call with a large reply could begin.
const _: () = assert!(MAX_REPLY_SIZE <= SEND_BUDGET && SEND_BUDGET <= u32::MAX as usize);

/// The free bytes of one connection's budget.
#[derive(Debug, Clone)]
pub(crate) struct SendBudget(Arc<Semaphore>);

impl Default for SendBudget {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(SEND_BUDGET)))
    }
}

impl SendBudget {
    /// Reserves the size of the largest reply, if that many bytes are free and no call waits for them.
    pub(crate) fn try_reserve(&self) -> Option<Reservation> {
        Arc::clone(&self.0)
            .try_acquire_many_owned(MAX_REPLY_SIZE as u32)
            .ok()
            .map(Reservation)
    }

    /// Waits until the size of the largest reply is free, and reserves it.
    pub(crate) async fn reserve(&self) -> Reservation {
        let permit = Arc::clone(&self.0).acquire_many_owned(MAX_REPLY_SIZE as u32);
        Reservation(permit.await.expect("the semaphore is never closed"))
    }
}

/// Bytes of the budget for replies that are about to be built. Returned to the budget on drop.
#[derive(Debug)]
pub(crate) struct Reservation(OwnedSemaphorePermit);

impl Reservation {
    /// Charges a reply to this reservation until the last reference to its bytes is dropped.
    pub(crate) fn charge(&mut self, reply: Bytes) -> Bytes {
        if reply.len() <= SMALL_REPLY_SIZE {
            return reply;
        }
        // A reply larger than the reservation takes all of it.
        let size = reply.len().min(self.0.num_permits());
        match self.0.split(size) {
            Some(permit) => Bytes::from_owner(ChargedBytes { reply, _permit: permit }),
            None => reply,
        }
    }

    /// Charges the one message of a response, which is one frame, to this reservation.
    pub(crate) fn charge_body(self, response: Response<Body>) -> Response<Body> {
        let charge = |body| {
            Body::new(ChargedBody {
                body,
                reservation: Some(self),
            })
        };
        response.map(charge)
    }
}

/// A body whose first frame is charged to a reservation; the excess is returned then.
struct ChargedBody {
    body: Body,
    reservation: Option<Reservation>,
}

impl http_body::Body for ChargedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let reservation = self.reservation.take();
        Poll::Ready(frame.map(|frame| {
            Ok(match reservation {
                Some(mut reservation) => frame?.map_data(|data| reservation.charge(data)),
                None => frame?,
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

/// Bytes that return their part of the budget on drop.
struct ChargedBytes {
    reply: Bytes,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for ChargedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.reply
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use http_body::Body as _;

    use super::*;

    fn free(budget: &SendBudget) -> usize {
        budget.0.available_permits()
    }

    #[test]
    fn a_reply_is_charged_until_it_is_dropped() {
        let budget = SendBudget::default();
        let mut reservation = budget.try_reserve().expect("all is free");
        assert_eq!(free(&budget), SEND_BUDGET - MAX_REPLY_SIZE);
        let reply = reservation.charge(vec![7; 10_000].into());
        let small = reservation.charge(vec![7; SMALL_REPLY_SIZE].into());
        drop(reservation);
        assert_eq!(free(&budget), SEND_BUDGET - 10_000);
        // A slice of the bytes keeps the whole charge.
        let part = reply.slice(1..2);
        drop((reply, small));
        assert_eq!((free(&budget), &part[..]), (SEND_BUDGET - 10_000, &[7][..]));
        drop(part);
        assert_eq!(free(&budget), SEND_BUDGET);
    }

    #[test]
    fn a_call_begins_once_the_budget_covers_the_largest_reply() {
        let budget = SendBudget::default();
        let mut held = Vec::new();
        while let Some(mut reservation) = budget.try_reserve() {
            held.push(reservation.charge(vec![0; MAX_REPLY_SIZE].into()));
        }
        assert_eq!(held.len(), SEND_BUDGET / MAX_REPLY_SIZE);
        held.pop();
        assert!(budget.try_reserve().is_some());
    }

    #[test]
    fn a_body_is_charged_for_its_message_only() {
        let budget = SendBudget::default();
        let reservation = budget.try_reserve().expect("all is free");
        let message = Body::new(HeadOf(vec![7; 10_000].into()));
        let mut body = reservation.charge_body(Response::new(message)).into_body();
        assert_eq!(free(&budget), SEND_BUDGET - MAX_REPLY_SIZE);
        let cx = &mut Context::from_waker(Waker::noop());
        let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut body).poll_frame(cx) else {
            panic!("no message");
        };
        let message = frame.into_data().expect("a message");
        assert_eq!((free(&budget), message.len()), (SEND_BUDGET - 10_000, 10_000));
        drop(message);
        assert_eq!(free(&budget), SEND_BUDGET);
    }

    /// A body with one message that has not ended yet.
    struct HeadOf(Bytes);

    impl http_body::Body for HeadOf {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            match std::mem::take(&mut self.0) {
                empty if empty.is_empty() => Poll::Pending,
                message => Poll::Ready(Some(Ok(Frame::data(message)))),
            }
        }
    }

    #[test]
    fn a_reply_larger_than_its_reservation_takes_no_more() {
        let budget = SendBudget::default();
        let mut reservation = budget.try_reserve().expect("all is free");
        let parts = [0; 3].map(|byte| reservation.charge(vec![byte; MAX_REPLY_SIZE / 2 + 1].into()));
        drop(reservation);
        assert_eq!(free(&budget), SEND_BUDGET - MAX_REPLY_SIZE);
        drop(parts);
        assert_eq!(free(&budget), SEND_BUDGET);
    }
}
