//! Streams of answers end when their connection has to.
//!
//! A server that stops, and a connection that has grown old, wait for the calls in flight. Calls that go on for ever, like
//! a watch, would be waited for in vain, and then be cut. So each stream of answers ends by itself, with UNAVAILABLE, which
//! tells its client to go on elsewhere, on another connection or at another tracker. What was ready to be sent is sent
//! before.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use http_body::{Body as _, Frame, SizeHint};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;
use tonic::body::Body;

/// Lets a response end with the connection. An answer that is complete already is left as it is.
pub(crate) fn ends_with(response: Response<Body>, leaving: &CancellationToken) -> Response<Body> {
    if response.body().is_end_stream() {
        return response;
    }
    response.map(|body| {
        Body::new(EndsWith {
            body,
            leaving: Some(Box::pin(leaving.clone().cancelled_owned())),
        })
    })
}

/// A body that ends once the connection has to.
struct EndsWith {
    body: Body,
    /// Taken once the end was sent.
    leaving: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl http_body::Body for EndsWith {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(leaving) = &mut self.leaving else {
            return Poll::Ready(None);
        };
        let left = leaving.as_mut().poll(cx).is_ready();
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Pending if left => {
                self.leaving = None;
                // What the stream holds is given back now, not when the client has read its end.
                self.body = Body::empty();
                Poll::Ready(Some(trailers()))
            }
            polled => polled,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.leaving.is_none() || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::new()
    }
}

fn trailers() -> Result<Frame<Bytes>, Status> {
    let status = Status::unavailable("the connection is about to be closed: go on over another one");
    let mut trailers = http::HeaderMap::new();
    status.add_header(&mut trailers)?;
    Ok(Frame::trailers(trailers))
}
