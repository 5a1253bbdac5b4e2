//! A session's stream: reads a request, answers it, and only then reads the next one.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nodetracker_proto::v1;
use tokio::task::coop::poll_proceed;
use tokio::time::{Instant, Sleep};
use tokio_stream::Stream;
use tonic::{Status, Streaming};

use crate::grpc::status::correct_status;
use crate::rpc::session::state::{Answer, Session};

/// The answers of one session.
pub(crate) struct Answers {
    requests: Streaming<v1::SessionRequest>,
    session: Session,
    /// When the client has been silent for too long.
    silence: Pin<Box<Sleep>>,
    allowed: Duration,
    ending: Ending,
}

/// How far the stream is from its end.
enum Ending {
    Open,
    /// Everything was sent but for this.
    Status(Status),
    Over,
}

impl Answers {
    /// Answers `requests`, of which the first has to come within `hello`.
    pub(crate) fn new(requests: Streaming<v1::SessionRequest>, session: Session, hello: Duration) -> Self {
        Self {
            requests,
            session,
            silence: Box::pin(tokio::time::sleep(hello)),
            allowed: hello,
            ending: Ending::Open,
        }
    }

    /// The next answer, or how the stream ends.
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Answer>, Status>> {
        if let Poll::Ready(answer) = self.session.poll_superseded(cx) {
            return Poll::Ready(Ok(Some(answer)));
        }
        match Pin::new(&mut self.requests).poll_next(cx) {
            Poll::Ready(Some(request)) => {
                let answer = self.session.on_request(request.map_err(correct_status)?)?;
                if let Some(allowed) = self.session.idle_timeout() {
                    self.allowed = allowed;
                    // A timer for a time that cannot be told is one for never.
                    let now = Instant::now();
                    let until = now.checked_add(allowed).unwrap_or(now + FAR);
                    self.silence.as_mut().reset(until);
                }
                Poll::Ready(Ok(Some(answer)))
            }
            Poll::Ready(None) => Poll::Ready(Ok(None)),
            Poll::Pending => {
                ready!(self.silence.as_mut().poll(cx));
                let message = format!("no message came for {:?}", self.allowed);
                Poll::Ready(Err(Status::deadline_exceeded(message)))
            }
        }
    }
}

/// Thirty years.
const FAR: Duration = Duration::from_secs(86_400 * 365 * 30);

impl Stream for Answers {
    type Item = Result<v1::SessionResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match std::mem::replace(&mut self.ending, Ending::Over) {
            Ending::Open => {}
            Ending::Status(status) => return Poll::Ready(Some(Err(status))),
            Ending::Over => return Poll::Ready(None),
        }
        self.ending = Ending::Open;
        // A client that sends without a pause does not keep the thread from its other connections.
        let proceed = ready!(poll_proceed(cx));
        let answer = ready!(self.poll_answer(cx));
        proceed.made_progress();
        match answer {
            Ok(Some(Answer::Next(response))) => Poll::Ready(Some(Ok(response))),
            Ok(Some(Answer::Last(response, end))) => {
                self.ending = end.err().map_or(Ending::Over, Ending::Status);
                Poll::Ready(Some(Ok(response)))
            }
            Ok(None) => {
                self.ending = Ending::Over;
                Poll::Ready(None)
            }
            Err(status) => {
                self.ending = Ending::Over;
                Poll::Ready(Some(Err(status)))
            }
        }
    }
}
