//! A session's stream: the next request is read once the response to the previous request was taken.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nodetracker_proto::v1;
use tokio::task::coop::poll_proceed;
use tokio::time::{Instant, Sleep};
use tokio_stream::Stream;
use tonic::{Status, Streaming};

use crate::grpc::status::correct_status;
use crate::rpc::session::state::{Session, Step};

/// The responses of one session.
pub(crate) struct SessionStream {
    requests: Streaming<v1::SessionRequest>,
    session: Session,
    /// Ends when the client has been silent for `idle_timeout`.
    idle: Pin<Box<Sleep>>,
    idle_timeout: Duration,
    progress: Progress,
}

/// How far the stream is.
enum Progress {
    Open,
    /// Only this status is left to be sent.
    Ending(Status),
    Ended,
}

impl SessionStream {
    /// Returns the responses to `requests`. The first request must arrive within `hello`.
    pub(crate) fn new(requests: Streaming<v1::SessionRequest>, session: Session, hello: Duration) -> Self {
        Self {
            requests,
            session,
            idle: Box::pin(tokio::time::sleep(hello)),
            idle_timeout: hello,
            progress: Progress::Open,
        }
    }

    /// Waits for the next step, or for the end of the stream.
    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Step>, Status>> {
        if let Poll::Ready(step) = self.session.poll_superseded(cx) {
            return Poll::Ready(Ok(Some(step)));
        }
        match Pin::new(&mut self.requests).poll_next(cx) {
            Poll::Ready(Some(request)) => {
                let step = self.session.on_request(request.map_err(correct_status)?)?;
                if let Some(idle_timeout) = self.session.idle_timeout() {
                    self.idle_timeout = idle_timeout;
                    // A time that `Instant` cannot represent never comes.
                    let now = Instant::now();
                    let until = now.checked_add(idle_timeout).unwrap_or(now + FAR);
                    self.idle.as_mut().reset(until);
                }
                Poll::Ready(Ok(Some(step)))
            }
            Poll::Ready(None) => Poll::Ready(Ok(None)),
            Poll::Pending => {
                ready!(self.idle.as_mut().poll(cx));
                let message = format!("no message came for {:?}", self.idle_timeout);
                Poll::Ready(Err(Status::deadline_exceeded(message)))
            }
        }
    }
}

/// Thirty years.
const FAR: Duration = Duration::from_secs(86_400 * 365 * 30);

impl Stream for SessionStream {
    type Item = Result<v1::SessionResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match std::mem::replace(&mut self.progress, Progress::Ended) {
            Progress::Open => {}
            Progress::Ending(status) => return Poll::Ready(Some(Err(status))),
            Progress::Ended => return Poll::Ready(None),
        }
        self.progress = Progress::Open;
        // A client that sends without a pause must not occupy the thread.
        let proceed = ready!(poll_proceed(cx));
        let step = ready!(self.poll_step(cx));
        proceed.made_progress();
        match step {
            Ok(Some(Step::Continue(response))) => Poll::Ready(Some(Ok(response))),
            Ok(Some(Step::End(response, end))) => {
                self.progress = end.err().map_or(Progress::Ended, Progress::Ending);
                Poll::Ready(Some(Ok(response)))
            }
            Ok(None) => {
                self.progress = Progress::Ended;
                Poll::Ready(None)
            }
            Err(status) => {
                self.progress = Progress::Ended;
                Poll::Ready(Some(Err(status)))
            }
        }
    }
}
