//! Response bodies whose frames are charged to the memory budget.
//!
//! A handler that builds its replies itself charges them. tonic encodes the replies of sessions and of services of
//! other crates. So [`ChargeBody`] charges each of their frames until HTTP/2 has written or dropped the frame.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::{Body as _, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use crate::grpc::send_budget::SendBudget;

/// Charges the frames of a response. Returns a response without further frames unchanged.
pub(crate) fn charge_response(response: Response<Body>, budget: SendBudget) -> Response<Body> {
    if response.body().is_end_stream() {
        return response;
    }
    response.map(|body| Body::new(ChargeBody { body, budget }))
}

/// A body that charges its frames. If the memory has no room for a frame, the body ends with RESOURCE_EXHAUSTED.
struct ChargeBody {
    body: Body,
    budget: SendBudget,
}

impl http_body::Body for ChargeBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            ended => return Poll::Ready(ended),
        };
        Poll::Ready(Some(match frame.into_data() {
            Ok(data) => match self.budget.charge(data) {
                Ok(data) => Ok(Frame::data(data)),
                Err(full) => {
                    self.body = Body::empty();
                    let mut trailers = HeaderMap::new();
                    Status::from(full)
                        .add_header(&mut trailers)
                        .map(|()| Frame::trailers(trailers))
                }
            },
            Err(frame) => Ok(frame),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;
    use crate::memory::MemoryBudget;
    use crate::quota::ClientQuota;

    const FRAME: usize = 10_000;

    /// Frames without end.
    struct Endless;

    impl http_body::Body for Endless {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Ready(Some(Ok(Frame::data(vec![7; FRAME].into()))))
        }
    }

    #[tokio::test]
    async fn frames_are_charged_until_they_are_dropped() {
        // A connection that is alone gets half of the budget: two frames and a half.
        let memory = MemoryBudget::new(5 * FRAME, std::sync::Arc::default());
        let budget = SendBudget::new(memory.for_connection(ClientQuota::alone()));
        let mut body = charge_response(Response::new(Body::new(Endless)), budget).into_body();
        let mut next = async || poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.unwrap().unwrap();
        let read = [next().await, next().await];
        assert_eq!(memory.used(), 2 * FRAME);
        drop(read);
        assert_eq!(memory.used(), 0);
        let unread = [next().await, next().await];
        let trailers = next().await.into_trailers().expect("the memory has no room");
        assert_eq!(trailers["grpc-status"], "8");
        drop(unread);
        assert!(body.is_end_stream());
    }
}
