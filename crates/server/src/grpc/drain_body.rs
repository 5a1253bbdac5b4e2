//! Reply streams that end when their connection drains.
//!
//! A connection drains when the server stops or when the connection has grown old. A draining connection waits for the
//! calls in flight, and a call such as a watch never ends by itself. So each stream ends with UNAVAILABLE, after which
//! its client continues on another connection or at another tracker. Messages that are ready are sent before the end.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use http_body::{Body as _, Frame, SizeHint};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;
use tonic::body::Body;

/// Ends a response when `draining` is cancelled. Holds `held` until then, or until the response has ended. Returns a
/// complete response as it is.
pub(crate) fn end_on_drain(
    response: Response<Body>,
    draining: &CancellationToken,
    held: impl Send + Unpin + 'static,
) -> Response<Body> {
    if response.body().is_end_stream() {
        return response;
    }
    response.map(|body| {
        Body::new(DrainBody {
            body,
            draining: Some((Box::pin(draining.clone().cancelled_owned()), held)),
        })
    })
}

/// A body that ends when its connection drains.
struct DrainBody<H> {
    body: Body,
    /// `None` once the end was sent.
    draining: Option<(Pin<Box<WaitForCancellationFutureOwned>>, H)>,
}

impl<H: Unpin> http_body::Body for DrainBody<H> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some((draining, _)) = &mut self.draining else {
            return Poll::Ready(None);
        };
        let is_draining = draining.as_mut().poll(cx).is_ready();
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Pending if is_draining => {
                self.draining = None;
                // The stream's resources are freed now, not when the client has read the end.
                self.body = Body::empty();
                Poll::Ready(Some(trailers()))
            }
            polled => polled,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.draining.is_none() || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::new()
    }
}

fn trailers() -> Result<Frame<Bytes>, Status> {
    let status = Status::unavailable("the connection is about to be closed: repeat the call on another connection");
    let mut trailers = http::HeaderMap::new();
    status.add_header(&mut trailers)?;
    Ok(Frame::trailers(trailers))
}
