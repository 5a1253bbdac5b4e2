//! Response bodies that take turns.
//!
//! Services of other crates do not take [turns](crate::turns) themselves. So [`TurnBody`] takes a turn for the work of
//! each frame before it reads the next frame. The handler has taken a turn for the beginning of the call already.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Response;
use http_body::{Body as _, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use crate::limits::{BYTES_PER_WORK, CALL_WORK};
use crate::turns::{TurnFuture, Turns};

/// Makes the body of a response take turns. Returns a response without further frames unchanged.
pub(crate) fn response_in_turns(response: Response<Body>, turns: Turns) -> Response<Body> {
    if response.body().is_end_stream() {
        return response;
    }
    response.map(|body| {
        Body::new(TurnBody {
            body,
            turns,
            last_work: 0,
            turn: None,
        })
    })
}

/// A body that takes a turn for each frame.
struct TurnBody {
    body: Body,
    turns: Turns,
    /// The work of the last frame, if no turn was taken for it yet; otherwise 0.
    last_work: usize,
    /// Set while the body waits for its turn.
    turn: Option<TurnFuture>,
}

impl TurnBody {
    /// Waits for a turn for the last frame.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.last_work > 0 {
            let work = std::mem::take(&mut self.last_work);
            self.turn = self.turns.begin(work);
        }
        if let Some(turn) = &mut self.turn {
            ready!(turn.as_mut().poll(cx));
            self.turn = None;
        }
        Poll::Ready(())
    }
}

impl http_body::Body for TurnBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        ready!(self.poll_turn(cx));
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            self.last_work = CALL_WORK + bytes / BYTES_PER_WORK;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::new()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::Waker;

    use tokio::task::yield_now;

    use super::*;
    use crate::limits::WORK_PER_PASS;

    /// Frames without end.
    struct Endless;

    impl http_body::Body for Endless {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[7; 100])))))
        }
    }

    #[tokio::test]
    async fn a_body_waits_for_a_turn_before_its_next_frame() {
        let turns = Turns::of_one_client(Arc::default());
        let mut body = response_in_turns(Response::new(Body::new(Endless)), turns.clone()).into_body();
        let mut poll = || {
            Pin::new(&mut body)
                .poll_frame(&mut Context::from_waker(Waker::noop()))
                .is_ready()
        };
        assert!(poll());
        assert!(poll(), "the worker has time");
        turns.take(WORK_PER_PASS).await;
        assert!(!poll());
        while !poll() {
            yield_now().await;
        }
    }
}
